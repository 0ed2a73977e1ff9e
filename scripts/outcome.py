"""What a step found or did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """The result of an `ensure_…` function: whether it changed something, and what in a few words."""

    changed: bool
    what: str
