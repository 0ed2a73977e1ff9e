"""What the bug that this project is known for does to p50, p95 and p99: a worked example.

The original observed a request's latency only where it handled a failure. This simulates workloads, fills the app's
own histogram buckets as the right and as the faulty instrumentation would, and computes the quantiles as Prometheus
does. The same seed gives the same numbers. What design-decisions.md shows is this table and this picture::

    python -m scripts.latency_bug --picture
"""

from __future__ import annotations

import argparse
import bisect
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import console
from scripts.settings import APP_DIR, ROOT

QUANTILES = (0.5, 0.95, 0.99)
REQUESTS = 20_000
FAILURES = 0.02
SEED = 12
EXACT = "exact"
# Beside the script that draws it: below app/ it would be part of the application, and change the image's tag.
PICTURE = ROOT / "scripts" / "latency-bug.png"


@dataclass(frozen=True)
class Request:
    """One simulated request."""

    seconds: float
    failed: bool


@dataclass(frozen=True)
class Scenario:
    """A workload: how long requests take that succeed, and those that fail."""

    name: str
    success_s: Callable[[random.Random], float]
    failure_s: Callable[[random.Random], float]


@dataclass(frozen=True)
class Row:
    """One line of the table: what one instrumentation says about one workload, in seconds."""

    scenario: str
    source: str
    observed: int
    mean_s: float
    quantiles_s: tuple[float, ...]


def _around(median_s: float, spread: float) -> Callable[[random.Random], float]:
    return lambda rng: rng.lognormvariate(math.log(median_s), spread)


SCENARIOS = (
    Scenario("failures are time-outs", _around(0.040, 0.5), _around(3.0, 0.1)),
    Scenario("failures are instant refusals", _around(0.040, 0.5), _around(0.002, 0.3)),
    Scenario("as above, successes 10 times slower", _around(0.400, 0.5), _around(0.002, 0.3)),
)


def workload(scenario: Scenario, seed: int) -> list[Request]:
    """Return the scenario's requests."""
    rng = random.Random(seed)
    failed = [rng.random() < FAILURES for _ in range(REQUESTS)]
    return [Request(scenario.failure_s(rng) if f else scenario.success_s(rng), f) for f in failed]


def fill(seconds: Sequence[float], bounds: Sequence[float]) -> list[int]:
    """Return how many values are in each bucket; the last bucket is for those above every bound."""
    counts = [0] * (len(bounds) + 1)
    for value in seconds:
        counts[bisect.bisect_left(bounds, value)] += 1
    return counts


def histogram_quantile(quantile: float, counts: Sequence[int], bounds: Sequence[float]) -> float:
    """Return a quantile as Prometheus' function of that name does: linear within the bucket that holds it.

    See https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile
    """
    rank = quantile * sum(counts)
    if not rank:
        return math.nan
    below = 0
    for i, bound in enumerate(bounds):
        if counts[i] and below + counts[i] >= rank:
            low = bounds[i - 1] if i else 0.0
            return low + (bound - low) * (rank - below) / counts[i]
        below += counts[i]
    return bounds[-1]


def rows(scenario: Scenario, bounds: Sequence[float], seed: int) -> list[Row]:
    """Return what is true, what the right instrumentation says and what the faulty one says."""
    requests = workload(scenario, seed)
    everything = sorted(r.seconds for r in requests)
    failures = [r.seconds for r in requests if r.failed]
    exact = tuple(everything[math.ceil(q * len(everything)) - 1] for q in QUANTILES)
    found = [Row(scenario.name, EXACT, len(everything), sum(everything) / len(everything), exact)]
    for source, seconds in (("every request (right)", everything), ("only failures (the bug)", failures)):
        counts = fill(seconds, bounds)
        quantiles = tuple(histogram_quantile(q, counts, bounds) for q in QUANTILES)
        found.append(Row(scenario.name, source, len(seconds), sum(seconds) / len(seconds), quantiles))
    return found


def markdown(table: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, in milliseconds."""
    lines = [
        "| workload | latency observed of | observations | mean | p50 | p95 | p99 |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in table:
        times = " | ".join(f"{1000 * s:,.0f} ms" if s >= 0.01 else f"{1000 * s:.1f} ms" for s in _times(row))
        lines.append(f"| {row.scenario} | {row.source} | {row.observed:,} | {times} |")
    return "\n".join(lines)


def _times(row: Row) -> tuple[float, ...]:
    return (row.mean_s, *row.quantiles_s)


def draw(table: Sequence[Row], picture: Path) -> None:
    """Draw the rows as a PNG that holds, as text, the table it was drawn from."""
    import matplotlib

    matplotlib.use("Agg")
    # Imported here, as it takes a second that the table doesn't need.
    from matplotlib import pyplot

    names = list(dict.fromkeys(row.scenario for row in table))
    figure, axes = pyplot.subplots(1, len(names), figsize=(12, 3.8), sharey=True)
    looks = {
        EXACT: ("#9aa4af", "the truth"),
        "every request (right)": ("#1a7f37", "measured: every request (right)"),
        "only failures (the bug)": ("#cf222e", "measured: only failures (the bug)"),
    }
    for axis, name in zip(axes, names, strict=True):
        for i, row in enumerate(r for r in table if r.scenario == name):
            colour, label = looks[row.source]
            at = [x + (i - 1) * 0.27 for x in range(len(QUANTILES))]
            bars = axis.bar(at, [1000 * s for s in row.quantiles_s], 0.25, color=colour, label=label)
            axis.bar_label(bars, fmt="{:.0f}", fontsize=8, padding=1)
        axis.set_title(name, fontsize=10)
        axis.set_yscale("log")
        axis.set_ylim(1, 10_000)
        axis.set_yticks([1, 10, 100, 1000, 10_000], ["1 ms", "10 ms", "100 ms", "1 s", "10 s"])
        axis.set_xticks(range(len(QUANTILES)), [f"p{100 * q:g}" for q in QUANTILES])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("latency, log scale (numbers: ms)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    picture.parent.mkdir(parents=True, exist_ok=True)
    # Without the date and the library's version, the same numbers give the same file.
    figure.savefig(picture, dpi=110, metadata={"Software": None, "Description": markdown(table)})
    pyplot.close(figure)


def worked_example(seed: int = SEED) -> list[Row]:
    """Return all rows: what is true and what either instrumentation says, for each workload."""
    return [row for scenario in SCENARIOS for row in rows(scenario, app_buckets(), seed)]


def app_buckets() -> tuple[float, ...]:
    """Return the bounds of the app's latency buckets, in seconds."""
    if str(APP_DIR) not in sys.path:
        sys.path.insert(0, str(APP_DIR))
    from demo_app.metrics import BUCKETS_S

    return BUCKETS_S


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m scripts.latency_bug", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--picture",
        type=Path,
        nargs="?",
        const=PICTURE,
        help=f"a PNG to draw, {PICTURE.relative_to(ROOT)} unless named",
    )
    options = parser.parse_args(argv)
    table = worked_example(options.seed)
    console.raw(markdown(table))
    if options.picture:
        draw(table, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
