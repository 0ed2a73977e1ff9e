"""What all workers of a pod share: since when it runs, whether it is draining, and the faults that are switched on.

The state is one page of anonymous shared memory, made in gunicorn's master before it forks: a worker that is started
again sees the same page, reading it costs no system call, and nothing is left on disk. Each value is an aligned double
that is written at once and that depends on no other, so that no lock is needed: the last writer wins.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping
from enum import IntEnum

from demo_app.faults import Faults


class _Slot(IntEnum):
    DRAINING = 0
    READY_AT = 1
    FAIL_RATE = 2
    LATENCY_MS = 3
    CPU_MS = 4
    NOT_READY = 5


class PodState:
    """The shared state of one pod's processes."""

    def __init__(self, readiness_delay_s: float, fail_rate: float) -> None:
        self._values = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")
        self._defaults = Faults(fail_rate=fail_rate)
        # The monotonic clock is the kernel's, the same for all processes. The delay counts from the master's start:
        # a worker that is started again must not make a ready pod unready.
        self._values[_Slot.READY_AT] = time.monotonic() + readiness_delay_s
        self.reset_faults()

    @property
    def draining(self) -> bool:
        """Whether SIGTERM has arrived."""
        return self._values[_Slot.DRAINING] != 0.0

    def start_draining(self) -> None:
        """Turn the pod unready for good; called by the master on SIGTERM."""
        self._values[_Slot.DRAINING] = 1.0

    @property
    def faults(self) -> Faults:
        """The faults that are switched on now."""
        return Faults(
            fail_rate=self._values[_Slot.FAIL_RATE],
            latency_ms=self._values[_Slot.LATENCY_MS],
            cpu_ms=self._values[_Slot.CPU_MS],
            not_ready=self._values[_Slot.NOT_READY] != 0.0,
        )

    def change_faults(self, changes: Mapping[str, float]) -> None:
        """Switch the faults that are named and leave the others as they are."""
        for name, value in changes.items():
            self._values[_Slot[name.upper()]] = float(value)

    def reset_faults(self) -> None:
        """Put every fault back to what the settings ask for."""
        self.change_faults(vars(self._defaults))

    def unready_reason(self) -> str:
        """Return why the pod takes no traffic now; empty if it does."""
        if self.draining:
            return "stopping"
        left_s = self._values[_Slot.READY_AT] - time.monotonic()
        if left_s > 0:
            return f"starting, ready in {left_s:.1f} s"
        if self._values[_Slot.NOT_READY]:
            return "switched to not-ready by the control endpoint"
        return ""
