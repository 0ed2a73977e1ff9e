"""A dashboard's JSON read back: what a drawing without Grafana and the tests need of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# What PromQL says besides the names of metrics and labels.
_WORDS = re.compile(
    r'"(?:[^"\\]|\\.)*"|\{[^{}]*\}|\[[^\]]*\]|\b(?:by|on|ignoring|without|group_left|group_right)\s*\([^()]*\)'
)
_NAME = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\w*\s*\()(?![\w:])")
_OPERATORS = frozenset({"or", "and", "unless", "offset", "bool", "by", "on", "ignoring", "without", "inf", "nan"})


@dataclass(frozen=True)
class PanelQuery:
    """An expression as Grafana gets it, its variables still in it, and the template of its series' names."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """What a panel shows and how."""

    row: str
    title: str
    description: str
    unit: str
    queries: tuple[PanelQuery, ...]
    minimum: float | None
    maximum: float | None
    limit: float | None
    stacked: bool
    steps: bool
    when_empty: str


@dataclass(frozen=True)
class Dashboard:
    """A dashboard: its panels in reading order."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]


def read(board: dict[str, Any]) -> Dashboard:
    """Return what Grafana's JSON describes."""
    row, panels = "", []
    for panel in board["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            panels.append(_panel(row, panel))
    return Dashboard(board["uid"], board["title"], board["description"], tuple(panels))


def _panel(row: str, panel: dict[str, Any]) -> Panel:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    steps = defaults.get("thresholds", {}).get("steps", [])
    return Panel(
        row=row,
        title=panel["title"],
        description=panel["description"],
        unit=defaults["unit"],
        queries=tuple(PanelQuery(t["expr"], t["legendFormat"]) for t in panel["targets"]),
        minimum=defaults.get("min"),
        maximum=defaults.get("max"),
        limit=next((s["value"] for s in steps if s.get("value") is not None), None),
        stacked=custom.get("stacking", {}).get("mode", "none") != "none",
        steps=custom.get("lineInterpolation") == "stepAfter",
        when_empty=defaults.get("noValue", ""),
    )


def without_variables(expression: str, step_s: float, scrape_s: float = 30.0) -> str:
    """Return an expression that Prometheus can be asked: every choice is "all", rates look back as Grafana has them."""
    rate_s = max(step_s + scrape_s, 4 * scrape_s)
    known = {"__rate_interval": f"{rate_s:.0f}s", "environment": ".+", "namespace": ".+"}
    return re.sub(r"\$(__rate_interval|environment|namespace)\b", lambda m: known[m[1]], expression)


def name_of(legend: str, labels: dict[str, str]) -> str:
    """Return a series' name: the template with the labels' values in it."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda m: labels.get(m[1], ""), legend).strip() or "all"


def metrics_of(expression: str) -> list[str]:
    """Return the metrics that an expression asks for."""
    bare = expression
    while (stripped := _WORDS.sub(" ", bare)) != bare:
        bare = stripped
    return sorted({n for n in _NAME.findall(bare) if n.lower() not in _OPERATORS})
