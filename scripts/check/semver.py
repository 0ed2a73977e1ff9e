"""Versions of charts and the ranges that HelmReleases give, read as Helm and Flux read them.

Of a range like `1.x`, `^1.2`, `~1.2.3`, `>=1.0 <2` or `1.2 - 1.4`, alternatives are parted by `||`. A version before a
release (1.0.0-rc.1) is only taken by a range that names one itself. https://semver.org and Masterminds/semver, which both
Helm and Flux use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering

_PART = r"(?:0|[1-9][0-9]*)"
_TAIL = r"(?:-(?P<pre>[0-9A-Za-z.-]+))?(?:\+(?P<build>[0-9A-Za-z.-]+))?"
_VERSION = re.compile(rf"v?(?P<major>{_PART})(?:\.(?P<minor>{_PART}))?(?:\.(?P<patch>{_PART}))?{_TAIL}")
_ANY = r"(?:[0-9]+|[xX*])"
_CONDITION = re.compile(
    rf"(?P<operator>=>|=<|>=|<=|!=|[=<>~^]|~>|)\s*v?(?P<major>{_ANY})(?:\.(?P<minor>{_ANY}))?(?:\.(?P<patch>{_ANY}))?{_TAIL}"
)
_HYPHEN = re.compile(r"(?P<low>\S+)\s+-\s+(?P<high>\S+)")
_MANY = 10**9


@total_ordering
@dataclass(frozen=True)
class Version:
    """A version; what stands after `+` doesn't order."""

    numbers: tuple[int, int, int]
    pre: tuple[str, ...] = ()

    def __lt__(self, other: Version) -> bool:
        return self._key < other._key

    @property
    def _key(self) -> tuple[tuple[int, int, int], bool, list[tuple[bool, int, str]]]:
        # A version before a release comes before it, numbers come before words.
        parts = [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in self.pre]
        return self.numbers, not self.pre, parts


def parse(text: str) -> Version | None:
    """Return a version, its missing numbers as 0; None for a text that is none."""
    match = _VERSION.fullmatch(text.strip())
    if not match:
        return None
    numbers = tuple(int(match[name] or 0) for name in ("major", "minor", "patch"))
    return Version((numbers[0], numbers[1], numbers[2]), tuple(match["pre"].split(".")) if match["pre"] else ())


@dataclass(frozen=True)
class _Bounds:
    """From a version on, up to another one."""

    low: Version
    high: Version
    with_low: bool = True
    with_high: bool = False
    negated: bool = False
    # Whether the range names a version before a release.
    before_release: bool = False

    def holds(self, version: Version) -> bool:
        if version.pre and not self.before_release:
            return False
        above = version >= self.low if self.with_low else version > self.low
        below = version <= self.high if self.with_high else version < self.high
        return (above and below) is not self.negated


def satisfies(version: str, wanted: str) -> bool | None:
    """Whether a version is in a range; None where one of the two can't be read."""
    found = parse(version)
    if found is None:
        return None
    alternatives = [_conditions(part) for part in (wanted.strip() or "*").split("||")]
    if any(a is None for a in alternatives):
        return None
    return any(all(bounds.holds(found) for bounds in a) for a in alternatives if a is not None)


def best(versions: Iterable[str], wanted: str) -> str | None:
    """Return the highest version in a range, as Flux takes it; None if none is in it."""
    fitting = [(parsed, v) for v in versions if satisfies(v, wanted) and (parsed := parse(v))]
    return max(fitting)[1] if fitting else None


def is_exact(wanted: str) -> bool:
    """Whether a range names one version and no other."""
    match = _CONDITION.fullmatch(wanted.strip())
    whole = match is not None and all(match[n] and match[n].isdigit() for n in ("major", "minor", "patch"))
    return whole and match is not None and match["operator"] in ("", "=")


def _conditions(text: str) -> list[_Bounds] | None:
    text = _HYPHEN.sub(r">=\g<low> <=\g<high>", text).strip()
    found = []
    position = 0
    while position < len(text):
        match = _CONDITION.match(text, position)
        if not match or match.end() == position:
            return None
        found.append(_bounds(match))
        separator = re.compile(r"[\s,]*").match(text, match.end())
        assert separator is not None
        if separator.end() == match.end() < len(text):
            return None
        position = separator.end()
    return found or None


def _bounds(match: re.Match[str]) -> _Bounds:
    names = ("major", "minor", "patch")
    given = [int(match[n]) if match[n] and match[n].isdigit() else None for n in names]
    known = next((i for i, n in enumerate(given) if n is None), 3)
    numbers = tuple(n or 0 if i < known else 0 for i, n in enumerate(given))
    pre = tuple(match["pre"].split(".")) if match["pre"] else ()
    low = Version((numbers[0], numbers[1], numbers[2]), pre)
    # The first version after all that begin as it is written.
    after = _raised(low, known - 1) if known else Version((_MANY, 0, 0))
    operator = match["operator"]
    least, most = Version((0, 0, 0), ("0",)), Version((_MANY, 0, 0))
    named = bool(pre)
    if not known or operator in ("", "=", "!="):
        if known == 3:
            return _Bounds(low, low, True, True, operator == "!=", named or operator == "!=")
        return _Bounds(low, after, negated=operator == "!=", before_release=named)
    if operator in (">=", "=>"):
        return _Bounds(low, most, before_release=named)
    if operator == ">":
        return _Bounds(after if known < 3 else low, most, known < 3, before_release=named)
    if operator in ("<=", "=<"):
        return _Bounds(least, after if known < 3 else low, True, known == 3, before_release=named)
    if operator == "<":
        return _Bounds(least, low, before_release=named)
    if operator == "^":
        first = next((i for i in range(known) if numbers[i]), known - 1)
        return _Bounds(low, _raised(low, first), before_release=named)
    return _Bounds(low, _raised(low, min(known - 1, 1)), before_release=named)


def _raised(version: Version, index: int) -> Version:
    numbers = [n + 1 if i == index else n if i < index else 0 for i, n in enumerate(version.numbers)]
    return Version((numbers[0], numbers[1], numbers[2]))
