"""`make hpa-compare`: two runs side by side, in one table and one picture; before and after a change, for instance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import console
from scripts.cache import write_atomically
from scripts.errors import LabError, UsageError
from scripts.hpa import charts
from scripts.hpa.report import REPORTS, SERIES, STEPS, VERSION
from scripts.settings import ROOT, HpaMetric

FOLDER = re.compile(r"\d{8}T\d{6}Z-[a-z0-9-]+")
COLOURS = (charts.BLUE, charts.RED)


@dataclass(frozen=True)
class StoredRun:
    """A run as its report's JSON has it."""

    name: str
    data: dict[str, Any]

    @property
    def label(self) -> str:
        """Its name, and what its autoscaler followed."""
        return f"{self.name} ({self.run['metric']})"

    @property
    def run(self) -> dict[str, Any]:
        """What was run against what."""
        found: dict[str, Any] = self.data["run"]
        return found

    def series(self, key: str, value: str) -> tuple[list[float], list[float]]:
        """Return times and values of a series, without the gaps."""
        points = [(p["t"], p[value]) for p in self.data[key] if p[value] is not None]
        return [t for t, _ in points], [v for _, v in points]

    def wishes(self, histogram: str) -> tuple[list[float], list[float]]:
        """Return times and pods that a histogram would have called for, with gaps where it had nothing to tell by."""
        points = self.data["histograms"][histogram]["wishes"]
        return [p["t"] for p in points], [math.nan if p["replicas"] is None else p["replicas"] for p in points]


def compare(names: Sequence[str], reports: Path = REPORTS) -> int:
    """Compare two runs (folders, or their names; none: the last two), print the table and write the picture."""
    first, second = (load(folder) for folder in choose(names, reports))
    rows = table(first, second)
    columns = ["", first.name, second.name, "change"]
    folder = reports / f"compare-{first.name}-{second.name}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "compare.md", markdown(columns, rows))
    draw(first, second, folder / "compare.png")
    console.table("Runs compared", columns, rows)
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    console.line(f"picture: {shown}/compare.png")
    return 0


def choose(names: Sequence[str], reports: Path) -> list[Path]:
    """Return the folders of two runs, older first; raises UsageError where there are none such."""
    known = sorted(p for p in reports.glob("*") if FOLDER.fullmatch(p.name) and (p / SERIES).exists())
    if not names:
        if len(known) < 2:
            raise UsageError(
                f"There are {len(known)} runs in reports/hpa; a comparison takes two.", "make hpa-demo, twice"
            )
        return known[-2:]
    if len(names) != 2:
        raise UsageError(f"RUNS names {len(names)} runs; a comparison takes two.", "RUNS='<folder> <folder>'")
    found = []
    for name in names:
        folder = next((c for c in (reports / name, Path(name)) if (c / SERIES).exists()), None)
        if folder is None:
            last = ", ".join(p.name for p in known[-4:]) or "none yet"
            raise UsageError(f"There is no run {name}.", f"take two of reports/hpa, as in: {last}")
        found.append(folder)
    return found


def load(folder: Path) -> StoredRun:
    """Return a run from its report's folder."""
    try:
        data = json.loads((folder / SERIES).read_text(encoding="utf-8"))
        version = data["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise LabError(
            f"{folder / SERIES} is not a run's JSON.", "take another run, or run make hpa-demo again"
        ) from None
    if version != VERSION:
        raise LabError(f"{folder / SERIES} is of version {version}, this is {VERSION}.", "run make hpa-demo again")
    return StoredRun(folder.name, data)


def _row(label: str, first: float | None, second: float | None, unit: str, number: Callable[[float], str]) -> list[str]:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{number(value)}{unit}"

    if first is None or second is None:
        return [label, shown(first), shown(second), ""]
    change = second - first
    share = f" ({100 * change / first:+.0f} %)" if first else ""
    same = number(first) == number(second)
    return [
        label,
        shown(first),
        shown(second),
        "same" if same else f"{change:+.{1 if '.' in number(1.5) else 0}f}{unit}{share}",
    ]


def table(first: StoredRun, second: StoredRun) -> list[list[str]]:
    """Return the rows: what was set, and what came of it."""

    def whole(value: float) -> str:
        return f"{value:.0f}"

    def tenth(value: float) -> str:
        return f"{value:.1f}"

    def row(label: str, path: str, unit: str = "", number: Callable[[float], str] = whole) -> list[str]:
        values = [_at(r.data, path) for r in (first, second)]
        return _row(label, values[0], values[1], unit, number)

    def words(label: str, key: str) -> list[str]:
        a, b = (str(r.run[key]) for r in (first, second))
        return [label, a, b, "same" if a == b else "differs"]

    rows = [
        words("environment", "environment"),
        words("profile", "profile"),
        words("metric", "metric"),
        row("load", "run.duration_s", " s"),
        row("peak rate", "run.peak_rate", "/s"),
        row("CPU request of a pod", "run.request_millicores", "m"),
        row("share that fails on purpose", "run.fail_rate", "", lambda value: f"{value:g}"),
        row("CPU target", "run.target_percent", " %"),
        row("latency target", "run.target_ms", " ms"),
        row("minimum", "run.minimum"),
        row("maximum", "run.maximum"),
    ]
    rows += [row(label, f"moments.{key}", " s", tenth) for key, label in STEPS]
    back = [_back_s(r) for r in (first, second)]
    rows.append(_row("end of load to minimum", back[0], back[1], " s", tenth))
    rows += [
        row("highest number of pods Ready", "replicas.highest_ready"),
        row("requests", "requests.total"),
        row("failed", "requests.failed"),
        row("p95 before the load", "latency.p95_before_ms", " ms"),
        row("p95 at its worst", "latency.p95_worst_ms", " ms"),
        row("p95 with all pods Ready", "latency.p95_all_ready_ms", " ms"),
        row("pods by a p95 of every request, at most", "histograms.every.highest"),
        row("pods by a p95 of failed ones only (the old histogram), at most", "histograms.failed_only.highest"),
        row("time in which that one had nothing to tell by", "histograms.failed_only.blind_s", " s"),
    ]
    return rows


def _at(data: dict[str, Any], path: str) -> float | None:
    value: Any = data
    for key in path.split("."):
        value = value[key]
    return None if value is None else float(value)


def _back_s(run: StoredRun) -> float | None:
    ended, back = run.data["moments"]["load_ended"], run.data["moments"]["at_minimum"]
    return None if ended is None or back is None else float(back - ended)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as Markdown."""
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def draw(first: StoredRun, second: StoredRun, path: Path) -> None:
    """Draw both runs on one time axis: latency, CPU and pods."""
    plt = charts.pyplot()
    figure, axes = plt.subplots(4, 1, figsize=(11, 12.5), sharex=True)
    for run, colour, style in zip((first, second), COLOURS, ("-", "--"), strict=True):
        axes[0].plot(*run.series("seconds", "p95_ms"), color=colour, linestyle=style, linewidth=1.2, label=run.label)
        axes[1].plot(*run.series("samples", "cpu_percent"), color=colour, linestyle=style)
        axes[2].step(*run.series("samples", "ready"), where="post", color=colour, linestyle=style)
        axes[3].step(*run.wishes("failed_only"), where="post", color=colour, linestyle=style)
        if run.run["metric"] == HpaMetric.CPU:
            axes[1].axhline(run.run["target_percent"], color=colour, linestyle=style, linewidth=0.9, alpha=0.6)
        ended = run.data["moments"]["load_ended"]
        for axis in axes if ended is not None else ():
            axis.axvline(ended, color=colour, linestyle=style, linewidth=0.9, alpha=0.5)
    for axis in axes:
        axis.axvline(0, color="#333333", linewidth=0.9)
        axis.set_ylim(bottom=0)
    axes[0].set_title("Latency, p95 of each second")
    axes[0].set_ylabel("ms")
    axes[1].set_title("CPU of all pods, in percent of their request; thin: an autoscaler's target")
    axes[1].set_ylabel("%")
    axes[2].set_title("Pods Ready")
    axes[3].set_title("Pods by the old histogram, of failed requests only; a gap: nothing to tell by")
    for axis in axes[2:]:
        highest = int(max(r.run["maximum"] for r in (first, second)))
        axis.set_ylim(0, highest + 0.5)
        axis.set_yticks(range(highest + 1))
    if all(math.isnan(pods) for run in (first, second) for pods in run.wishes("failed_only")[1]):
        told = (
            "No request failed: it had nothing to tell by in either run, and an autoscaler on it would not have moved."
        )
        axes[3].text(0.5, 0.5, told, transform=axes[3].transAxes, ha="center", va="center", color="#333333")
    axes[3].set_xlabel("seconds since the load began; thin upright lines: its end")
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1.02), ncols=2)
    figure.savefig(path, dpi=charts.DPI, bbox_inches="tight")
    plt.close(figure)
