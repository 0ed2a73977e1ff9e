"""Kubernetes quantities and int-or-percent values as exact numbers."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_SUFFIXES = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12), "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40), "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d{1,2})|([numkMGTPE]|[KMGTPE]i)?)")


def quantity(value: object) -> Fraction | None:
    """Return a quantity in its base unit (CPUs, bytes, pieces), or None for what isn't one."""
    matched = _QUANTITY.fullmatch(str(value).strip())
    if not matched or isinstance(value, bool):
        return None
    digits, exponent, suffix = matched.groups()
    return Fraction(digits) * (Fraction(f"1{exponent}") if exponent else _SUFFIXES[suffix or ""])


def share_of(value: object, total: int) -> int | None:
    """Return an int-or-percent of a count, rounded up as Kubernetes does, or None for what is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    matched = re.fullmatch(r"(\d{1,4})%", str(value))
    return math.ceil(Fraction(int(matched[1]) * total, 100)) if matched else None


def shown(amount: Fraction, resource: str) -> str:
    """Return an amount as people write it: `250m` CPUs, `64Mi` of memory, `3` pods."""
    if resource.endswith("cpu"):
        return f"{math.ceil(amount * 1000)}m" if amount % 1 else str(int(amount))
    if resource.endswith("memory"):
        return f"{math.ceil(amount / 2**20)}Mi" if amount >= 2**20 else str(math.ceil(amount))
    return str(math.ceil(amount))
