"""`make query`: durations, sparklines, tables, JSON, and its exit code."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from scripts.errors import UsageError
from scripts.monitoring import query
from scripts.monitoring.prometheus import Point, Prometheus, Series
from scripts.settings import ROOT, Settings
from tests.unit.fake_prometheus import FakePrometheus, Refusal, serving, success


@pytest.fixture
def fake() -> Iterator[FakePrometheus]:
    with serving(FakePrometheus()) as server:
        yield server


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("15m", 900), ("1h", 3600), ("1h30m", 5400), ("2d", 172800), ("1w", 604800)]
)
def test_durations_are_those_of_prometheus(text, seconds):
    assert query.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["1", "h", "1 h", "-1h", "1y", "0s", "1h;", "", "1.5h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError, match="is not a duration"):
        query.seconds_of(text)


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([7, 0, None, 7], "█▁ █"),
        ([5, 5, 5], "▁▁▁"),
        ([1, math.nan, 2], "▁ █"),
        ([math.nan], " "),
        ([0, math.inf, 1], "▁ █"),
        ([], ""),
    ],
)
def test_a_sparkline_goes_from_lowest_to_highest_and_leaves_gaps(values, drawn):
    points = [Point(float(i), v) for i, v in enumerate(values) if v is not None]
    assert query.sparkline(points, 0, len(values), width=len(values)) == drawn


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.0, "3"), (0.123456, "0.1235"), (1234567.0, "1234567"), (1.5e-7, "1.5e-07"), (math.nan, "NaN"),
     (math.inf, "+Inf"), (-math.inf, "-Inf"), (1e20, "1e+20")],
)  # fmt: skip
def test_a_value_has_four_digits_that_count(value, text):
    assert query.number(value) == text


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        ([{"a": "1", "b": "x"}], ["a", "b"]),
        ([{"a": "1", "b": "x"}, {"a": "2", "b": "x"}], ["a"]),
        ([{"a": "1"}, {"b": "x"}], ["a", "b"]),
        ([{}], []),
    ],
)
def test_columns_are_the_labels_that_tell_series_apart(labels, columns):
    assert query.label_columns([Series(one, ()) for one in labels]) == columns


def test_an_answer_is_a_table(fake, capsys):
    fake.answer = lambda _: [
        ({"namespace": "dev", "job": "x"}, lambda _: 2.5),
        ({"namespace": "qa", "job": "x"}, lambda _: 0),
    ]
    assert query.ask(Prometheus(fake.url), "y", None, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "y: 2 series"
    assert [line.split() for line in lines[1:]] == [["namespace", "value"], ["dev", "2.5"], ["qa", "0"]]


def test_since_draws_a_line_for_each_series(fake, capsys):
    now = time.time()
    fake.answer = lambda _: [({"namespace": "dev"}, lambda at: at - now + 3600), ({"namespace": "qa"}, lambda _: 1.0)]
    assert query.ask(Prometheus(fake.url), "y", 3600.0, as_json=False) == 0
    output = capsys.readouterr().out
    assert "▁▁" in output and "▇█" in output
    path, asked = fake.asked[0]
    assert path == "/api/v1/query_range"
    assert float(asked["end"]) - float(asked["start"]) == pytest.approx(3600)
    assert float(asked["step"]) == 60


def test_a_short_time_is_not_asked_for_more_often_than_it_is_scraped(fake):
    query.ask(Prometheus(fake.url), "y", 300.0, as_json=False)
    assert float(fake.asked[0][1]["step"]) == 15


def test_json_is_json_whatever_the_values(fake, capsys):
    fake.answer = lambda _: [({"a": "b"}, lambda _: math.nan), ({"a": "c"}, lambda _: 1.5)]
    assert query.ask(Prometheus(fake.url), "y", None, as_json=True) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["query"] == "y"
    assert [s["points"][0][1] for s in found["series"]] == ["NaN", 1.5]


def test_nothing_is_said_to_be_nothing(fake, capsys):
    assert query.ask(Prometheus(fake.url), "y", None, as_json=False) == 0
    assert "no series" in capsys.readouterr().out


def test_a_text_is_printed(fake, capsys):
    fake.pages["/api/v1/query"] = (200, success({"resultType": "string", "result": [1, "hello"]}))
    assert query.ask(Prometheus(fake.url), '"hello"', None, as_json=False) == 0
    assert capsys.readouterr().out.strip() == "hello"


@pytest.mark.parametrize("since", [None, 600.0])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_bad_expression_is_exit_code_2_in_prometheus_own_words(fake, capsys, since, as_json):
    fake.answer = lambda _: Refusal(400, "bad_data", 'invalid parameter "query": 1:5: parse error: unexpected end')
    assert query.ask(Prometheus(fake.url), "sum(", since, as_json) == 2
    captured = capsys.readouterr()
    assert 'invalid parameter "query": 1:5: parse error: unexpected end' in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("expression", "since", "output", "what"),
    [
        ("", "", "", "Q is empty"),
        (" ", "", "", "Q is empty"),
        ("up", "x", "", "SINCE=x"),
        ("up", "", "xml", "OUTPUT=xml"),
    ],
)
def test_bad_input_is_refused_before_a_cluster_is_asked(expression, since, output, what):
    with pytest.raises(UsageError, match=what):
        query.query(Settings(), expression, since, output)


@pytest.mark.skipif(not shutil.which("make"), reason="the makefile needs make")
@pytest.mark.parametrize(
    "expression", ['a{b=~"c$|d"}', "rate(x[5m]) # no comment", 'count({a="b  c"})', "$(shell echo no)"]
)
def test_make_hands_a_query_over_as_it_was_typed(expression):
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), "-o", ".venv/.complete", "query", f"Q={expression}", "LAB=printenv Q;:"],
        capture_output=True, text=True, timeout=30, check=False,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "Q")},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, expression + "\n"), done.stderr
