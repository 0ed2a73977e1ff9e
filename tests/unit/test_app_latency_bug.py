"""The worked example of what the original's bug does to percentiles."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from scripts.latency_bug import (
    EXACT,
    PICTURE,
    QUANTILES,
    SCENARIOS,
    Row,
    app_buckets,
    draw,
    fill,
    histogram_quantile,
    markdown,
    rows,
    worked_example,
)
from scripts.settings import ROOT

DOCUMENT = ROOT / "design-decisions.md"


@pytest.fixture(scope="module")
def table() -> list[Row]:
    return worked_example()


@pytest.mark.parametrize(
    ("quantile", "counts", "expected"),
    [
        (0.5, [10, 0, 0], 0.5),
        (0.5, [5, 5, 0], 1.0),
        (0.75, [5, 5, 0], 2.0),
        (0.5, [0, 4, 0], 2.0),
        (0.99, [1, 0, 9], 3.0),
        (0.5, [0, 0, 0], math.nan),
    ],
)
def test_quantiles_are_prometheus_s(quantile: float, counts: list[int], expected: float) -> None:
    assert histogram_quantile(quantile, counts, (1.0, 3.0)) == pytest.approx(expected, nan_ok=True)


def test_a_value_on_a_bound_belongs_to_the_bucket_below() -> None:
    assert fill([0.5, 1.0, 1.1, 3.0, 9.0], (1.0, 3.0)) == [2, 2, 1]


def test_right_instrumentation_is_near_the_truth_and_the_faulty_one_is_not() -> None:
    for scenario in SCENARIOS:
        exact, right, faulty = rows(scenario, app_buckets(), seed=12)
        for i, _ in enumerate(QUANTILES):
            # A bucket is at most 2.5 times as wide as it begins.
            assert 1 / 2.5 <= right.quantiles_s[i] / exact.quantiles_s[i] <= 2.5
        wrong = faulty.quantiles_s[0] / exact.quantiles_s[0]
        assert wrong > 10 or wrong < 0.1
        assert faulty.observed < exact.observed / 20


def test_the_faulty_instrumentation_is_blind_to_slow_successes() -> None:
    before, after = (rows(s, app_buckets(), seed=12) for s in SCENARIOS[1:])
    assert before[2].quantiles_s == after[2].quantiles_s
    assert after[1].quantiles_s[0] > 5 * before[1].quantiles_s[0]


def test_the_table_is_the_same_for_the_same_seed() -> None:
    once, again = (markdown(rows(SCENARIOS[0], app_buckets(), seed=3)) for _ in range(2))
    assert once == again
    assert once.startswith("| workload |")


def test_the_document_shows_the_scripts_numbers_and_picture(table: list[Row]) -> None:
    text = DOCUMENT.read_text()
    assert markdown([row for row in table if row.source != EXACT]) in text
    assert f"]({PICTURE.relative_to(ROOT)})" in text


def test_the_committed_picture_was_drawn_from_these_numbers(table: list[Row]) -> None:
    with Image.open(PICTURE) as picture:
        assert picture.text["Description"] == markdown(table)  # type: ignore[attr-defined]


def test_the_picture_has_a_bar_for_each_number_and_is_the_same_twice(table: list[Row], tmp_path: Path) -> None:
    draw(table, tmp_path / "one.png")
    draw(table, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size > (1000, 300)
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 20)
    assert colours is not None
    # Grey for the truth, green for right, red for the bug: all of them, and much of each.
    by_colour = {colour: count for count, colour in colours}
    assert all(by_colour[colour] > 2000 for colour in ((154, 164, 175), (26, 127, 55), (207, 34, 46)))
