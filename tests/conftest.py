"""Shared by all tests: what a shell in the background does to signals is undone; many workers share what there is."""

import os
import signal

import pytest

from scripts.check.scratch import memory_for

# A shell without job control starts what it puts into the background with SIGINT ignored, and so are its children:
# tests of Ctrl-C would then interrupt nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_FILES_BYTES = 512 * 1024**2


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a third of the tests' time is waiting for a process, a server or a deadline."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_configure(config: pytest.Config) -> None:
    """Put the unit tests' twenty thousand small files into memory, where there is room; end-to-end tests have large ones."""
    place = memory_for(_FILES_BYTES) if config.getoption("numprocesses", None) else None
    if place:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(place))
