"""One figure of `make bench` with its goal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One figure with its goal."""

    name: str
    value: float
    goal: float | None
    unit: str

    @property
    def verdict(self) -> str:
        """Whether the goal is met, in a word; nothing where there is none."""
        if self.goal is None:
            return ""
        return "met" if self.value <= self.goal else "MISSED"
