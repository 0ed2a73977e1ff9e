"""The one exception family whose text is made for the terminal: what is wrong, and how to mend it."""

from __future__ import annotations


class LabError(Exception):
    """Something the user has to know: one line of what is wrong, one of how to mend it."""

    def __init__(self, what: str, mend: str = "", details: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend
        self.details = details

    def __str__(self) -> str:
        parts = [self.what]
        if self.details:
            parts.append(self.details)
        if self.mend:
            parts.append(f"To mend it: {self.mend}")
        return "\n".join(parts)


class UsageError(LabError):
    """A value the user gave can't be used; refused before anything changes."""


class PreflightError(LabError):
    """A precondition doesn't hold; found before anything is created."""


class NotReadyError(LabError):
    """A condition did not come true before its deadline."""
