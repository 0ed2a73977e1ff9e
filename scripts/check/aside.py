"""Work in a process of its own beside this one, for what takes long and needs nothing that is found meanwhile.

A thread would not do: reading YAML is Python, and only one thread runs that at a time.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Aside:
    """The results of a generator that runs in a child process; in this one, when asked, where no child can be had."""

    def __init__(self, produce: Callable[[], Iterator[Any]]) -> None:
        self._produce = produce
        self._here: Iterator[Any] | None = None
        self._taken = 0
        if _can_fork():
            self._pid, self._results = _fork(produce)
        else:
            self._here = produce()

    def take(self) -> Any:
        """Wait for the next result and return it; raises StopIteration after the last."""
        if self._here is not None:
            return next(self._here)
        if self._results.closed:
            raise StopIteration
        try:
            # Written by this process's own child, a copy of it.
            result = pickle.load(self._results)
        except (EOFError, pickle.UnpicklingError):
            self._results.close()
            _, status = os.waitpid(self._pid, 0)
            if status == 0:
                raise StopIteration from None
            # It failed or was killed: done here, it says why, or succeeds.
            self._here = self._produce()
            for _ in range(self._taken):
                next(self._here)
            return next(self._here)
        self._taken += 1
        return result

    def finish(self) -> None:
        """Wait until all is done; results that nobody took are dropped."""
        with contextlib.suppress(StopIteration):
            while True:
                self.take()


def _can_fork() -> bool:
    """Whether a copy of this process would work, and run on a core of its own."""
    return sys.platform == "linux" and threading.active_count() == 1 and len(os.sched_getaffinity(0)) > 1


def _fork(produce: Callable[[], Iterator[Any]]) -> tuple[int, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, os.fdopen(reading, "rb")
    code = 1
    try:
        # Ctrl-C reaches both: the parent is the one that says so.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.close(reading)
        with os.fdopen(writing, "wb") as results:
            for result in produce():
                pickle.dump(result, results, pickle.HIGHEST_PROTOCOL)
                results.flush()
        code = 0
    finally:
        # Nothing of the parent's is flushed or cleaned up a second time.
        os._exit(code)
