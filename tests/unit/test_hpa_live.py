import io
from dataclasses import replace

import pytest
from rich.console import Console

from scripts.hpa import live
from scripts.hpa.live import Teller, Trends, View, plain, render, sparkline
from scripts.hpa.model import Event, Phase, PodView
from tests.unit.hpa_facts import LATENCY_PLAN, PLAN, sample

PODS = (
    PodView("demo-app-1-aaaaa", "worker", "Ready", 163.2),
    PodView("demo-app-1-bbbbb", "worker2", "Running"),
    PodView("demo-app-1-ccccc", "", "Pending"),
)
SAMPLE = replace(sample(12, 4, 2, cpu=163), pods=PODS, conditions=("AbleToScale=True SucceededRescale",))
VIEW = View(
    plan=PLAN, phase=Phase.LOAD, phase_s=12.3, clock_s=12.3, wanted_rate=10, rate=9.8, failed=0, unanswered=2,
    p50_s=0.024, p95_s=0.061, p99_s=None, sample=SAMPLE, generator_cores=0.083,
    reasons=("new pods not ready: 2 new pods are starting.",),
    events=(
        Event("SuccessfulRescale", "New size: 4; reason: above", "Normal", 1, "2026-05-01T12:00:00Z", 12.0),
        Event("FailedGetResourceMetric", "no metrics", "Warning", 1, "2026-05-01T12:00:01Z", 12.1),
    ),
    milestones=((0.0, "the load begins"), (11.9, "New size: 4; reason: above")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("values", "highest", "bars"),
    [([], 0, ""), ([0, 0], 0, "▁▁"), ([0, 5, 10], 0, "▁▅█"), ([5], 10, "▅"), ([20], 10, "█")],
)
def test_a_sparkline_goes_from_nothing_to_the_highest(values: list[float], highest: float, bars: str) -> None:
    assert sparkline(values, highest) == bars


def drawn(view: View, width: int = 140) -> str:
    trends = Trends()
    trends.add(view)
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(render(view, trends))
    return out.getvalue()


SHOWN = [
    "staging", "constant, peak 10/s of /work?cpu_ms=20", "load 12 s of 60 s", "10/s of 10/s", "0 failed", "2 under way",
    "p50 24 ms", "p95 61 ms", "p99 -", "163 % of the request, target 70 %", "desired 4", "ready 2", "bounds 2 to 5",
    "0.08 of 2 CPUs", "worker ", "● aaaaa 163m", "worker2", "◐ bbbbb", "no node yet", "○ ccccc",
    "AbleToScale=True SucceededRescale", "! new pods not ready: 2 new pods are starting.", "+11.9 s  New size: 4",
    "FailedGetResourceMetric: no metrics",
]  # fmt: skip


LATE = replace(
    VIEW, plan=LATENCY_PLAN, sample=replace(SAMPLE, hpa_cpu_percent=None, cpu_percent=87.0, hpa_latency_ms=231.4, latency_ms=198.0)
)  # fmt: skip


def test_a_latency_that_is_followed_is_shown_beside_the_cpu() -> None:
    text = drawn(LATE)
    for words in ("p95 of the app", "231 ms, target 150 ms  (now 198 ms)", "87 % of the request"):
        assert words in text
    assert "target 70 %" not in text
    assert "the app's p95 231 ms (target 150 ms) CPU 87 %" in plain(LATE)
    unknown = replace(LATE, sample=replace(LATE.sample, hpa_latency_ms=None))
    assert "the app's p95 <unknown> (target 150 ms)" in plain(unknown)


def test_the_screen_shows_everything_that_is_to_be_watched() -> None:
    text = drawn(VIEW)
    missing = [words for words in SHOWN if words not in text]
    assert missing == []
    assert text.count("New size: 4") == 1, "a rescale is a milestone, and told once"
    assert "can't reach" not in text


def test_the_screen_says_what_is_unknown_and_what_is_wrong() -> None:
    blind = replace(VIEW, failed=3, behind=True, sample=replace(SAMPLE, hpa_cpu_percent=None, cpu_percent=None))
    text = drawn(blind)
    assert "<unknown> of the request" in text
    assert "3 failed" in text
    assert "the machine can't reach this rate" in text
    assert "before the load 12 s" in drawn(replace(VIEW, phase=Phase.QUIET))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_screen_fits_any_width(width: int) -> None:
    assert max(len(line) for line in drawn(VIEW, width).splitlines()) <= width


def test_a_line_says_the_same() -> None:
    assert plain(VIEW) == (
        " +12.3 s load | 10/s of 10/s, 0 failed, 2 under way | p50 24 ms p95 61 ms p99 - | CPU 163 % (target 70 %)"
        " | desired 4 ready 2 (worker 1, worker2 1, no node yet 1) | generator 0.08 CPUs"
        " | ! new pods not ready: 2 new pods are starting."
    )


def test_lines_come_now_and_then_and_each_happening_once() -> None:
    teller = Teller()
    first = teller.lines(VIEW)
    assert [line.split("» ")[-1] for line in first[:2]] == ["the load begins", "New size: 4; reason: above"]
    assert first[2].endswith("FailedGetResourceMetric: no metrics")
    assert len(first) == 4
    assert teller.lines(replace(VIEW, clock_s=13.3)) == []
    later = replace(VIEW, clock_s=12.3 + live.LINE_EVERY_S, milestones=(*VIEW.milestones, (17.0, "the load ends")))
    assert [line[:30].rstrip() for line in teller.lines(later)] == [
        " +17.0 s » the load ends",
        " +17.3 s load | 10/s of 10/s, 0"[:30].rstrip(),
    ]


def test_the_same_event_again_is_told_again() -> None:
    teller = Teller()
    teller.lines(VIEW)
    again = replace(VIEW.events[1], last="2026-05-01T12:01:00Z", count=2)
    assert len(teller.lines(replace(VIEW, clock_s=13, events=(*VIEW.events, again)))) == 1
