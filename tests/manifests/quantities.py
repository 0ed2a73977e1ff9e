"""Kubernetes quantities as numbers."""

from __future__ import annotations

import math

_SUFFIXES = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1e3, "M": 1e6, "G": 1e9}


def number(quantity: str | int) -> float:
    """Return a quantity in its base unit: CPUs or bytes."""
    text = str(quantity)
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def share(value: str | int, of: int) -> int:
    """Return an int-or-percent of a count, rounded up as Kubernetes does for surge and disruption."""
    return math.ceil(of * int(value.rstrip("%")) / 100) if isinstance(value, str) else value
