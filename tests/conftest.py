"""Shared by all tests: what a shell in the background does to signals is undone; many workers share what there is."""

import os
import shutil
import signal
from pathlib import Path

import pytest

# A shell without job control starts what it puts into the background with SIGINT ignored, and so are its children:
# tests of Ctrl-C would then interrupt nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_IN_MEMORY = Path("/dev/shm")
_NEEDED_BYTES = 1024**3


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a third of the tests' time is waiting for a process, a server or a deadline."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_configure(config: pytest.Config) -> None:
    """Put the unit tests' twenty thousand small files into memory, where there is room; end-to-end tests have large ones."""
    if not config.getoption("numprocesses", None) or "TMPDIR" in os.environ or not _IN_MEMORY.is_dir():
        return
    if os.access(_IN_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_IN_MEMORY).free > _NEEDED_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))
