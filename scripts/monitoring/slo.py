"""Service level objectives: what rules/slo.yaml promises, and the windows in which a broken promise is noticed.

The windows and burn rates are those of the Google SRE workbook, chapter 5 ("Alerting on SLOs", table 5-8), for a
budget of 30 days. The short set has another scale only: a person who waits for an alert, or a test, can't wait hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from scripts.errors import LabError
from scripts.settings import FLUX_CD

STACK = FLUX_CD / "infrastructure" / "_components" / "_prometheus-stack"
RULES = STACK / "rules"
SLO_FILE = RULES / "slo.yaml"
BUDGET_PERIOD = "30d"


class Severity(StrEnum):
    """What an alert asks for: somebody now, or somebody in working hours."""

    CRITICAL = "critical"
    WARNING = "warning"


@dataclass(frozen=True)
class Objective:
    """What one environment promises: two shares in percent, and what counts as slow."""

    availability: float
    latency: float
    threshold_s: float


@dataclass(frozen=True)
class Burn:
    """An alert's condition: both windows spend the budget at least `rate` times as fast as it lasts for the period."""

    long: str
    short: str
    rate: float
    severity: Severity


@dataclass(frozen=True)
class Windows:
    """One set of windows, and how long a warning holds back: a short incident is a page, not both."""

    burns: tuple[Burn, ...]
    warning_for: str

    @property
    def all(self) -> tuple[str, ...]:
        """Every window, the shortest first."""
        return tuple(sorted({w for b in self.burns for w in (b.long, b.short)}, key=seconds))

    @property
    def long(self) -> tuple[str, ...]:
        """The long windows, the shortest first."""
        return tuple(sorted({b.long for b in self.burns}, key=seconds))


NORMAL = Windows(
    (
        Burn("1h", "5m", 14.4, Severity.CRITICAL),
        Burn("6h", "30m", 6, Severity.CRITICAL),
        Burn("1d", "2h", 3, Severity.WARNING),
        Burn("3d", "6h", 1, Severity.WARNING),
    ),
    warning_for="15m",
)
# Scrapes come every 15 s: a minute holds four of them, the least that a rate is worth.
SHORT = Windows(
    (
        Burn("5m", "1m", 14.4, Severity.CRITICAL),
        Burn("10m", "2m", 6, Severity.CRITICAL),
        Burn("20m", "4m", 3, Severity.WARNING),
        Burn("30m", "10m", 1, Severity.WARNING),
    ),
    warning_for="15m",
)


@dataclass(frozen=True)
class Objectives:
    """The default, what single environments promise instead, and the guard against few requests."""

    default: Objective
    environments: Mapping[str, Objective]
    least_bad: int

    def of(self, environment: str) -> Objective:
        """Return what an environment promises."""
        return self.environments.get(environment, self.default)


def seconds(window: str) -> int:
    """Return a window such as 5m, 6h or 3d in seconds."""
    return int(window[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[window[-1]]


def load(path: Path = SLO_FILE) -> Objectives:
    """Return the objectives; raises LabError for what can't be promised."""
    document = yaml.load(path.read_text(), yaml.CSafeLoader)
    try:
        default = _objective(document["default"], "default", {})
        environments = {
            name: _objective(values, name, document["default"])
            for name, values in (document.get("environments") or {}).items()
        }
        least_bad = int(document["least_bad"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LabError(f"{path.name} can't be read: {error!r}.", "write it as `git show HEAD:` has it") from None
    if least_bad < 1:
        raise LabError(f"{path.name}: least_bad is {least_bad}.", "write 1 or more")
    return Objectives(default, environments, least_bad)


def _objective(values: Mapping[str, Any], name: str, default: Mapping[str, Any]) -> Objective:
    known = {f.name for f in fields(Objective)}
    if not set(values) <= known:
        raise LabError(
            f"slo.yaml: {name} has {', '.join(sorted(set(values) - known))}.",
            f"take any of: {', '.join(sorted(known))}",
        )
    objective = Objective(**{k: float(v) for k, v in {**default, **values}.items()})
    for share in (objective.availability, objective.latency):
        # At 100 percent there is no budget: any failure would burn it infinitely fast.
        if not 50 <= share < 100:
            raise LabError(f"slo.yaml: {name} promises {share:g} %.", "write a share from 50 to below 100")
    if objective.threshold_s <= 0:
        raise LabError(f"slo.yaml: {name} has a threshold of {objective.threshold_s:g} s.", "write seconds above 0")
    return objective
