"""`make query Q='…'`: an expression's answer in the terminal, as a table or, with SINCE=1h, as a sparkline per series."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from typing import Any

from scripts import console, deploy
from scripts.errors import UsageError
from scripts.monitoring.prometheus import Answer, Point, Prometheus, QueryError, Series, connected
from scripts.settings import Settings

BARS = "▁▂▃▄▅▆▇█"
GAP = " "
WIDTH = 60
# Prometheus keeps a value for five minutes; asking more often than it scrapes shows steps that are none.
SHORTEST_STEP_S = 15.0
BAD_QUERY = 2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SINCE = re.compile(r"(?:[0-9]{1,6}[smhdw])+")


def query(settings: Settings, expression: str, since: str, output: str) -> int:
    """Ask the lab's Prometheus and print the answer; 2 for an expression that it refuses."""
    if not expression.strip():
        raise UsageError("Q is empty.", "give an expression, as in make query Q='sum by (namespace) (up)'")
    if output not in ("", "table", "json"):
        raise UsageError(f"OUTPUT={output} is not known.", "take one of: table, json")
    seconds = seconds_of(since) if since else None
    with connected(deploy.lab_kube(settings)) as prometheus:
        return ask(prometheus, expression, seconds, as_json=output == "json")


def seconds_of(text: str, variable: str = "SINCE") -> float:
    """Return the seconds of a duration as Prometheus writes it (1h30m); raises UsageError for what is none."""
    total = 0
    if _SINCE.fullmatch(text):
        total = sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"([0-9]+)([smhdw])", text))
    if not total:
        raise UsageError(
            f"{variable}={text} is not a duration.", f"as in {variable}=15m, {variable}=1h or {variable}=2d"
        )
    return float(total)


def ask(prometheus: Prometheus, expression: str, since_s: float | None, as_json: bool) -> int:
    """Print what an expression comes to now, or over the last seconds."""
    now = time.time()
    try:
        if since_s is None:
            answer = prometheus.instant(expression)
        else:
            answer = prometheus.range(expression, now - since_s, now, max(SHORTEST_STEP_S, since_s / WIDTH))
    except QueryError as error:
        console.error(error.what)
        return BAD_QUERY
    for warning in answer.warnings:
        console.warn(warning)
    if as_json:
        console.raw(json.dumps(as_data(expression, answer), indent=1))
    elif answer.text:
        console.line(answer.text)
    elif not answer.series:
        console.line("no series: the expression is valid, and nothing matches it now")
    elif since_s is None:
        _show_values(expression, answer)
    else:
        _show_sparklines(expression, answer, now - since_s, now)
    return 0


def as_data(expression: str, answer: Answer) -> dict[str, Any]:
    """Return an answer for machines: values are numbers, or text where JSON has none for them (NaN, +Inf)."""
    return {
        "query": expression,
        "type": str(answer.kind),
        "text": answer.text,
        "series": [
            {"labels": dict(s.labels), "points": [[p.at, p.value if math.isfinite(p.value) else number(p.value)] for p in s.points]}
            for s in answer.series
        ],
    }  # fmt: skip


def number(value: float) -> str:
    """Return a value as people read it: four digits that count."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.4g}"


def sparkline(points: Sequence[Point], start: float, end: float, width: int = WIDTH) -> str:
    """Return a line of bars from the lowest value to the highest; a moment without a value is a gap."""
    if not points:
        return GAP * width
    slots: list[float | None] = [None] * width
    for point in points:
        if math.isfinite(point.value):
            place = int((point.at - start) / max(end - start, 1e-9) * width)
            slots[min(max(place, 0), width - 1)] = point.value
    seen = [v for v in slots if v is not None]
    if not seen:
        return GAP * width
    low, high = min(seen), max(seen)
    span = high - low
    return "".join(GAP if v is None else BARS[round((v - low) / span * (len(BARS) - 1)) if span else 0] for v in slots)


def _show_values(expression: str, answer: Answer) -> None:
    ordered = sorted(answer.series, key=lambda s: s.name)
    columns = label_columns(ordered)
    rows = [[*(s.labels.get(c, "") for c in columns), " ".join(number(p.value) for p in s.points)] for s in ordered]
    console.table(f"{expression}: {len(rows)} series", [*columns, "value"], rows)


def label_columns(series: Sequence[Series]) -> list[str]:
    """Return the labels that tell series apart; all of them where there is one series only."""
    names = sorted({n for s in series for n in s.labels})
    if len(series) == 1:
        return names
    return [n for n in names if len({s.labels.get(n, "") for s in series}) > 1]


def _show_sparklines(expression: str, answer: Answer, start: float, end: float) -> None:
    ordered = sorted(answer.series, key=lambda s: s.name)
    columns = label_columns(ordered)
    rows = []
    for s in ordered:
        values = [p.value for p in s.points if math.isfinite(p.value)]
        figures = [number(f(values)) for f in (min, max)] if values else ["-", "-"]
        last = number(s.points[-1].value) if s.points else "-"
        rows.append([*(s.labels.get(c, "") for c in columns), sparkline(s.points, start, end), *figures, last])
    title = f"{expression}: {len(rows)} series over {console.duration(end - start)}"
    console.table(title, [*columns, "", "lowest", "highest", "last"], rows)
