"""A panel as a picture, drawn by matplotlib from what its queries came to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from scripts.hpa.charts import BLUE, GREEN, GREY, NODE_COLOURS, ORANGE, PURPLE, RED, pyplot
from scripts.monitoring.dashboards.panels import Panel
from scripts.monitoring.prometheus import Point

DPI = 110
SIZE_IN = (6.0, 3.4)
NAMED = 8
# The lab's environments have a colour of their own, the same in every panel.
COLOURS = {"dev": BLUE, "staging": ORANGE, "production": GREEN}
OTHERS = (PURPLE, *NODE_COLOURS)
# Series that are bounds, not measurements.
BOUNDS = (" target", " limit")


@dataclass(frozen=True)
class Line:
    """A series with the name that its panel gives it."""

    name: str
    points: tuple[Point, ...]

    @property
    def finite(self) -> list[float]:
        """Its values that can be drawn."""
        return [p.value for p in self.points if math.isfinite(p.value)]


def draw(panel: Panel, lines: Sequence[Line], span: tuple[float, float], step_s: float, path: Path) -> Path:
    """Draw a panel's lines over a span of time into a PNG."""
    plt = pyplot()
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    zone = datetime.now().astimezone().tzinfo
    figure, axis = plt.subplots(figsize=SIZE_IN)
    drawn = sorted(lines, key=lambda line: line.name)
    colours = _colours([line.name for line in drawn])
    if panel.stacked:
        _stack(axis, drawn, colours, zone)
    else:
        for line in drawn:
            times, values = with_gaps(line.points, step_s)
            axis.plot(
                [datetime.fromtimestamp(t, zone) for t in times], values, label=line.name, color=colours[line.name],
                drawstyle="steps-post" if panel.steps else "default",
                linestyle="--" if line.name.endswith(BOUNDS) else "-",
            )  # fmt: skip
    if panel.limit is not None:
        axis.axhline(panel.limit, color=RED, linestyle="--", linewidth=1.2)
    _bound(axis, panel, drawn)
    axis.set_xlim(*(datetime.fromtimestamp(t, zone) for t in span))
    axis.xaxis.set_major_formatter(_clock(span, zone))
    axis.xaxis.set_major_locator(_dates(zone))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_unit(panel.unit, value)))
    axis.set_title(panel.title)
    _name(axis, drawn)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name: an environment's where the name begins with one and is the only one that does."""
    first = [name.split(" ")[0] for name in names if not name.endswith(BOUNDS)]
    own = {e: c for e, c in COLOURS.items() if first.count(e) <= 1}
    others = iter(OTHERS * (len(names) // len(OTHERS) + 1))
    return {n: own.get(n.split(" ")[0]) or next(others) for n in names}


def _stack(axis: Any, lines: Sequence[Line], colours: dict[str, str], zone: tzinfo | None) -> None:
    times = sorted({p.at for line in lines for p in line.points})
    layers = []
    for line in lines:
        values = {p.at: p.value for p in line.points if math.isfinite(p.value)}
        layers.append([values.get(t, 0.0) for t in times])
    moments = [datetime.fromtimestamp(t, zone) for t in times]
    axis.stackplot(
        moments, layers, labels=[line.name for line in lines], colors=[colours[line.name] for line in lines], alpha=0.75
    )


def with_gaps(points: Sequence[Point], step_s: float) -> tuple[list[float], list[float]]:
    """Return times and values with a NaN where moments are missing: a line must not hide that nothing was measured."""
    times: list[float] = []
    values: list[float] = []
    for point in points:
        if times and point.at - times[-1] > 1.5 * step_s:
            times.append(times[-1] + step_s)
            values.append(math.nan)
        times.append(point.at)
        values.append(point.value if math.isfinite(point.value) else math.nan)
    return times, values


def _bound(axis: Any, panel: Panel, lines: Sequence[Line]) -> None:
    highest = max((v for line in lines for v in line.finite), default=0.0)
    if panel.minimum is not None:
        axis.set_ylim(bottom=panel.minimum)
    if panel.maximum is not None:
        axis.set_ylim(top=panel.maximum)
    elif highest == 0 and panel.minimum == 0 and not panel.limit:
        axis.set_ylim(top=1)  # a line of zeros lies on the axis, not in the middle of nowhere


def _clock(span: tuple[float, float], zone: tzinfo | None) -> Any:
    from matplotlib.dates import DateFormatter

    return DateFormatter("%H:%M" if span[1] - span[0] <= 86400 else "%d %b %H:%M", tz=zone)  # type: ignore[no-untyped-call]


def _dates(zone: tzinfo | None) -> Any:
    from matplotlib.dates import AutoDateLocator

    return AutoDateLocator(minticks=3, maxticks=6, tz=zone)  # type: ignore[no-untyped-call]


def _name(axis: Any, lines: Sequence[Line]) -> None:
    """Name the lines below the axes; of many the highest, and how many more there are."""
    handles, names = axis.get_legend_handles_labels()
    if len(names) > NAMED:
        last = {line.name: (line.finite or [-math.inf])[-1] for line in lines}
        kept = sorted(range(len(names)), key=lambda i: -last.get(names[i], -math.inf))[:NAMED]
        axis.annotate(
            f"the highest {NAMED} of {len(names)}", (1.0, 1.01), xycoords="axes fraction", ha="right", va="bottom",
            fontsize=8, color=GREY,
        )  # fmt: skip
        handles, names = [handles[i] for i in kept], [names[i] for i in kept]
    columns = _columns(names)
    rows = -(-len(names) // columns)
    # A layout of our own: matplotlib's draws everything twice to measure it, and all panels are alike.
    axis.figure.subplots_adjust(left=0.125, right=0.975, top=0.9, bottom=0.12 + 0.055 * rows)
    axis.figure.legend(handles, names, loc="lower left", bbox_to_anchor=(0.01, 0.0), ncols=columns, fontsize=8)


def _columns(names: Sequence[str]) -> int:
    longest = max((len(n) for n in names), default=1)
    return max(1, min(4, 84 // (longest + 6)))


def _scaled(base: float, names: Sequence[str]) -> Callable[[float], str]:
    def text(value: float) -> str:
        size = abs(value)
        for name in names[:-1]:
            if size < base:
                return f"{value:.3g} {name}".rstrip()
            size, value = size / base, value / base
        return f"{value:.3g} {names[-1]}"

    return text


def _seconds(value: float) -> str:
    size = abs(value)
    if size == 0 or size >= 1:
        return f"{value:.3g} s"
    return f"{value * 1000:.3g} ms" if size >= 0.001 else f"{value * 1e6:.3g} µs"


_PLAIN = _scaled(1000, ("", "k", "M", "G"))
# Grafana's names of units, and how a value is written in them.
UNITS: dict[str, Callable[[float], str]] = {
    "short": _PLAIN,
    "reqps": lambda v: f"{_PLAIN(v)}/s",
    "ops": lambda v: f"{_PLAIN(v)}/s",
    "s": _seconds,
    "ms": lambda v: _seconds(v / 1000),
    "percent": lambda v: f"{v:.3g} %",
    "percentunit": lambda v: f"{v * 100:.3g} %",
    "bytes": _scaled(1024, ("B", "KiB", "MiB", "GiB")),
    "Bps": _scaled(1000, ("B/s", "kB/s", "MB/s", "GB/s")),
}


def in_unit(unit: str, value: float) -> str:
    """Return a value as people read it."""
    return UNITS[unit](value)


def names(board: str) -> Iterator[str]:
    """Yield the names of a dashboard's files, one for each panel."""
    number = 0
    while True:
        number += 1
        yield f"{board.removeprefix('lab-')}-{number:02d}.png"
