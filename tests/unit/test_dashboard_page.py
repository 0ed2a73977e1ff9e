"""`make dashboards`: the page that is drawn from a Prometheus' answers, and what it says where there are none."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.errors import UsageError
from scripts.monitoring import page, pictures
from scripts.monitoring.dashboards import application, generate, panels
from scripts.monitoring.dashboards.build import Board, Row
from scripts.monitoring.dashboards.panels import Panel, PanelQuery
from scripts.monitoring.page import Span
from scripts.monitoring.pictures import Line
from scripts.monitoring.prometheus import Point, Prometheus
from tests.unit.fake_prometheus import FakePrometheus, Found, Refusal, serving

NOW = 1_800_000_000.0
SPAN = Span(NOW - 600, NOW, 15)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def fake() -> Iterator[FakePrometheus]:
    with serving(FakePrometheus()) as server:
        yield server


@pytest.fixture
def small(monkeypatch) -> panels.Dashboard:
    """One dashboard of two rows and three panels: drawing takes its time, and is the same for each."""

    def board() -> Board:
        rows = application.board().rows
        return Board("lab-small", "Small", "Says.", (Row("One", rows[0].panels[:2]), Row("Two", rows[1].panels[1:2])))

    monkeypatch.setattr(generate, "BOARDS", (board,))
    monkeypatch.setattr(pictures, "DPI", 30)
    return panels.read(generate.boards()[0])


def panel(*expressions: str, unit: str = "s", **more) -> Panel:
    known = {
        "row": "Row", "title": "A <title>", "description": "It says <what>.", "minimum": 0.0, "maximum": None,
        "limit": None, "stacked": False, "steps": False, "when_empty": "",
    }  # fmt: skip
    return Panel(unit=unit, queries=tuple(PanelQuery(e, "{{namespace}}") for e in expressions), **{**known, **more})


def environments(_: str) -> Found:
    return [
        ({"namespace": "dev"}, lambda at: (at % 300) / 300),
        ({"namespace": "staging"}, lambda at: None if NOW - 300 < at < NOW - 200 else 0.5),
        ({"namespace": "<b>", "name": "x"}, lambda _: 2.0),
    ]


def test_the_page_holds_every_panel_of_every_dashboard_as_a_picture(fake, small, tmp_path):
    fake.answer = environments
    folder, shown = page.write(Prometheus(fake.url), SPAN, "context kind-test", tmp_path)
    assert [s.found.panel for s in shown["Small"]] == list(small.panels)
    text = (folder / "index.html").read_text()
    files = sorted(p.name for p in folder.glob("*.png"))
    assert files == ["small-01.png", "small-02.png", "small-03.png"]
    assert all((folder / name).read_bytes().startswith(PNG) for name in files)
    assert text.count("data:image/png;base64,") == 3
    for one in small.panels:
        assert f'alt="{one.title}"' in text
        assert f"<h2>{one.row}</h2>" in text
    assert "Every panel has data." in text
    assert "context kind-test" in text
    # It needs nothing but itself.
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    assert "<script" not in text and "http" not in text
    assert "prefers-color-scheme: dark" in text


def test_every_query_is_asked_over_the_time_that_is_shown(fake, tmp_path):
    page.write(Prometheus(fake.url), SPAN, "", tmp_path)
    asked = {q["query"] for _, q in fake.asked}
    for board in generate.boards():
        for one in panels.read(board).panels:
            assert {panels.without_variables(q.expression, 15) for q in one.queries} <= asked
    times = {(q["start"], q["end"], q["step"]) for _, q in fake.asked}
    assert [tuple(float(t) for t in each) for each in times] == [(NOW - 600, NOW, 15.0)]


def nothing(_: str) -> Found:
    return []


def only_the_metric(expression: str) -> Found:
    return [({}, lambda _: 1.0)] if expression.startswith("count({") else []


def only_nan(expression: str) -> Found:
    return [({"namespace": "dev"}, lambda _: 1.0 if expression.startswith("count({") else math.nan)]


@pytest.mark.parametrize(
    ("answer", "when_empty", "why"),
    [
        (nothing, "", "there is no metric a_total, b in this time: nothing that has it was scraped"),
        (nothing, "empty without the edge", "nothing that has it was scraped; empty without the edge"),
        (only_the_metric, "", "its metrics are there, and no series matches in this time"),
        (only_nan, "", "nothing was measured in this time (only NaN)"),
        (only_nan, "empty while nobody asks", "(only NaN); empty while nobody asks"),
        (lambda _: Refusal(422, "execution", "many-to-many"), "", "Prometheus refuses: execution: many-to-many"),
    ],
)
def test_a_panel_without_data_says_why(fake, answer, when_empty, why):
    fake.answer = answer
    found = page.look(Prometheus(fake.url), panel("rate(a_total[5m]) / b", when_empty=when_empty), SPAN)
    assert found.lines == ()
    assert found.empty.endswith(why)


def test_a_panel_of_which_a_part_has_data_shows_it_and_says_what_is_missing(fake):
    fake.answer = lambda e: environments(e) if e == "a" else []
    found = page.look(Prometheus(fake.url), panel("a", "b"), SPAN)
    assert [line.name for line in found.lines] == ["dev", "staging", "<b>"]
    assert (found.empty, len(found.missing)) == ("", 1)
    assert "no metric b" in found.missing[0]


def test_what_has_no_data_is_listed_and_nothing_of_it_is_html(fake):
    board = panels.Dashboard("lab-x", "Title & more", "Says.", (panel("a"),))
    found = page.look(Prometheus(fake.url), board.panels[0], SPAN)
    text = page.page([board], {board.title: [page.Shown(found, None)]}, SPAN, "context <x>")
    assert "<strong>A &lt;title&gt;</strong>no data: there is no metric a" in text
    assert "<td>Title &amp; more</td><td>A &lt;title&gt;</td><td>there is no metric a" in text
    assert "It says &lt;what&gt;." in text and "context &lt;x&gt;" in text


@pytest.mark.parametrize(
    ("since", "seconds", "step"), [("", 3600, 15), ("30m", 1800, 15), ("6h", 21600, 90), ("2d", 172800, 720)]
)
def test_the_time_that_is_shown(since, seconds, step):
    span = page.span_of(since, NOW)
    assert (span.end - span.start, span.step_s) == (seconds, step)
    assert f"a point each {step} s" in str(span)


def test_a_time_that_is_none_is_refused():
    with pytest.raises(UsageError, match="SINCE=yesterday"):
        page.span_of("yesterday", NOW)


@pytest.mark.parametrize(
    ("times", "drawn"),
    [
        ([0, 15, 30], [0, 15, 30]),
        ([0, 15, 60, 75], [0, 15, 30, 60, 75]),
        ([0, 22], [0, 22]),
        ([], []),
    ],
)
def test_a_line_is_cut_where_nothing_was_measured(times, drawn):
    found, values = pictures.with_gaps([Point(float(t), 1.0) for t in times], 15)
    assert found == drawn
    assert [math.isnan(v) for v in values] == [t not in times for t in drawn]


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("short", 12.0, "12"), ("short", 25300.0, "25.3 k"), ("reqps", 0.25, "0.25/s"), ("s", 0.0123, "12.3 ms"),
        ("s", 2.5, "2.5 s"), ("s", 0.0, "0 s"), ("s", 5e-5, "50 µs"), ("ms", 1500.0, "1.5 s"), ("percentunit", 0.125, "12.5 %"),
        ("percent", 70.0, "70 %"), ("bytes", 3 * 1024**2, "3 MiB"), ("bytes", 0.0, "0 B"), ("Bps", 2500.0, "2.5 kB/s"),
        ("bytes", 5 * 1024**4, "5.12e+03 GiB"),
    ],
)  # fmt: skip
def test_a_value_in_its_unit(unit, value, text):
    assert pictures.in_unit(unit, value) == text


MANY = [Line(f"series {n}", (Point(NOW - 30, float(n)), Point(NOW, float(n)))) for n in range(12)]
ONE = [Line("dev", (Point(NOW - 30, 0.0), Point(NOW, 0.0)))]


@pytest.mark.parametrize(
    ("lines", "more"),
    [
        (ONE, {}), (MANY, {}), (MANY, {"stacked": True}), (ONE, {"limit": 1.0, "maximum": 1.05, "steps": True}),
        ([Line("dev", (Point(NOW, math.nan),))], {}), ([*ONE, Line("dev target", ONE[0].points)], {}),
    ],
    ids=["zeros", "many", "stacked", "limit", "only NaN", "target"],
)  # fmt: skip
def test_every_kind_of_panel_is_drawn(lines, more, tmp_path: Path):
    path = pictures.draw(panel("a", **more), lines, (NOW - 600, NOW), 15, tmp_path / "x.png")
    assert path.read_bytes().startswith(PNG)


def test_an_environment_has_its_colour_in_every_panel():
    alone, among = pictures._colours(["production"]), pictures._colours(["dev", "production", "qa"])
    assert alone["production"] == among["production"]
    assert len(set(among.values())) == 3
    # Where an environment has several lines none of them is "the" environment's.
    assert len(set(pictures._colours(["dev 2xx", "dev 5xx"]).values())) == 2
