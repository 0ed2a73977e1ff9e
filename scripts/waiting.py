"""The one way to wait for a condition: poll with a deadline, and say what is still not ready and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from scripts import console
from scripts.errors import NotReadyError
from scripts.process import last_lines


def wait_for(
    what: str,
    pending: Callable[[], Sequence[str]],
    *,
    timeout_s: float,
    interval_s: float = 0.25,
    mend: str = "",
    explain: Callable[[], str] | None = None,
) -> float:
    """Wait until `pending` returns nothing and return the seconds it took.

    Args:
        what: what is waited for, as in "every node is Ready".
        pending: what is still not ready, each with its reason; empty when the condition holds.
        timeout_s: seconds until NotReadyError, which quotes the last answer of `pending`.
        interval_s: seconds between two looks.
        mend: the line that tells how to mend it.
        explain: looks for the deepest cause (an event, a log line) once the deadline has passed.
    """
    started, said = time.monotonic(), ""
    while True:
        missing = list(pending())
        elapsed = time.monotonic() - started
        if not missing:
            return elapsed
        if elapsed >= timeout_s:
            deepest = explain() if explain else ""
            details = "\n".join(filter(None, [last_lines("\n".join(missing), 20), last_lines(deepest, 20)]))
            raise NotReadyError(f"after {timeout_s:.0f} s still waiting: {what}", mend, details)
        say = f"waiting: {what}: {missing[0]}" + (f" (+{len(missing) - 1})" if len(missing) > 1 else "")
        if say != said:
            console.note(say)
            said = say
        time.sleep(interval_s)
