"""Faults that can be switched on, their limits, and the work that a request can ask for.

Faults hit /work alone, which calls them itself: probes, /metrics, the control endpoint and the page can't be hit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields

MAX_CPU_MS = 2000.0
MAX_WAIT_MS = 5000.0


class OutOfBoundsError(ValueError):
    """A value that a client gave can't be used; the text says what it may be."""


@dataclass(frozen=True)
class Faults:
    """The faults of a pod: `cpu_ms` and `latency_ms` are added to every request of /work."""

    fail_rate: float = 0.0
    latency_ms: float = 0.0
    cpu_ms: float = 0.0
    not_ready: bool = False


_HIGHEST = {"fail_rate": 1.0, "latency_ms": MAX_WAIT_MS, "cpu_ms": MAX_CPU_MS}


def bounded(name: str, value: object, highest: float) -> float:
    """Return the value as a number from 0 to `highest`; raises OutOfBoundsError otherwise."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    # A number that is not a number fails both comparisons.
    if not 0.0 <= number <= highest:
        raise OutOfBoundsError(f"{name} must be a number from 0 to {highest:g}")
    return number


def changes_from(document: object) -> dict[str, float]:
    """Return the faults that a JSON document names, checked; raises OutOfBoundsError."""
    known = [f.name for f in fields(Faults)]
    if not isinstance(document, dict) or not document or not set(document) <= set(known):
        raise OutOfBoundsError(f"the body must be a JSON object with any of: {', '.join(known)}")
    changes: dict[str, float] = {}
    for name, value in document.items():
        if name == "not_ready":
            if not isinstance(value, bool):
                raise OutOfBoundsError("not_ready must be true or false")
            changes[name] = value
        elif isinstance(value, str):
            raise OutOfBoundsError(f"{name} must be a number from 0 to {_HIGHEST[name]:g}")
        else:
            changes[name] = bounded(name, value, _HIGHEST[name])
    return changes


def burn_cpu(milliseconds: float) -> float:
    """Use that much of this thread's CPU time, however long a busy or throttled machine takes; return the milliseconds used."""
    started = time.thread_time()
    used_ms = 0.0
    while used_ms < milliseconds:
        # Short enough to end within a fraction of a millisecond, long enough not to be all system calls.
        sum(range(500))
        used_ms = (time.thread_time() - started) * 1000
    return used_ms
