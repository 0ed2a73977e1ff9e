"""What a lint rule is: a small function over one object, with its id, its reason and how to mend what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from scripts.check.lint_inventory import Inventory, Item


class Warn(str):
    """A message that is shown and doesn't fail the check: it may be meant, or be true only of what can't be seen."""

    __slots__ = ()


@dataclass(frozen=True)
class Context:
    """What rules look at besides the object: everything else, and the Kubernetes version (major, minor)."""

    seen: Inventory
    kubernetes: tuple[int, int]

    def missing(self, namespace: str, message: str) -> str:
        """Return the message about something missing; a warning where something unseen might make it."""
        maker = self.seen.maker_in(namespace)
        return Warn(f"{message}, unless what can't be seen here makes it ({maker})") if maker else message


Check = Callable[[Item, Context], Iterator[str]]


@dataclass(frozen=True)
class Rule:
    """One rule: what it is called, why it exists, how to mend what it finds, and the function that looks."""

    id: str
    kinds: frozenset[str]
    reason: str
    mend: str
    check: Check


def rule(id: str, *, kinds: Iterable[str], reason: str, mend: str) -> Callable[[Check], Rule]:
    """Make a rule of a function that yields one message per thing it finds in an object of these kinds."""
    return lambda check: Rule(id, frozenset(kinds), reason, mend, check)
