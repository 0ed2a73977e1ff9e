"""What both histograms would have called for."""

from dataclasses import replace

import pytest

from scripts.hpa import histograms
from scripts.hpa.histograms import replay
from tests.unit.hpa_facts import BEGAN, WANTED, answers, recording, sample

QUERY = histograms.query()


def test_the_query_is_the_scaledobjects() -> None:
    assert QUERY.target_ms > 0
    assert QUERY.window_s >= 30, "three scrapes of 15 s, or there may be no two to make a rate of"


def mixed(fail_every: int, good_s: float, bad_s: float) -> list:
    """Return a load of 20/s for 60 s of which each n-th request fails, in its own time."""
    good = answers(0, 60, 20, good_s)
    return [replace(a, code=500, latency_s=bad_s) if i % fail_every == 0 else a for i, a in enumerate(good)]


def test_without_a_failure_the_old_histogram_has_nothing_to_tell_by() -> None:
    found = replay(recording())
    assert all(w.p95_ms is None and w.replicas is None and w.observed == 0 for w in found.failed_only)
    assert histograms.highest(found.failed_only) is None
    assert histograms.blind_s(found.failed_only) >= 120
    # The right one sees the load: 300 ms where the target is less, which calls for more pods than the 2 there are.
    assert max(w.p95_ms or 0 for w in found.every) > QUERY.target_ms
    assert histograms.highest(found.every) > 2


@pytest.mark.parametrize(
    ("good_s", "bad_s", "every", "failed_only"),
    [
        (0.4, 0.4, 5, 5),  # failures that take as long tell the same, from fewer requests
        (0.4, 0.002, 5, 2),  # failures that are quick hide that the others wait
        (0.03, 4.0, 2, 5),  # failures that are slow ask for pods that nothing needs: one in 50 is beyond the p95
    ],
    ids=["alike", "quick failures", "slow failures"],
)
def test_the_old_histogram_asks_by_how_long_failures_take(
    good_s: float, bad_s: float, every: int, failed_only: int
) -> None:
    still = tuple(sample(t, 2, 2) for t in range(-10, 70))
    found = replay(recording(before=(), after=(), during=tuple(mixed(50, good_s, bad_s)), samples=still))
    assert histograms.highest(found.every) == every
    assert histograms.highest(found.failed_only) == failed_only


def test_a_wish_is_within_the_bounds_and_of_the_pods_that_bear_the_load() -> None:
    slow = tuple(answers(0, 60, 10, 0.2))
    two_of_four = tuple(sample(t, 4, 2) for t in range(-10, 70))
    wishes = replay(recording(before=(), after=(), during=slow, samples=two_of_four)).every
    # Near 250 ms in the bucket's upper end: 2 ready pods times the ratio, not 4.
    ratio = (wishes[5].p95_ms or 0) / QUERY.target_ms
    assert wishes[5].replicas == max(2, min(5, -int(-ratio * 2 // 1)))
    assert all(w.replicas is None or 2 <= w.replicas <= 5 for w in wishes)


def test_a_run_without_an_answer_has_no_wishes() -> None:
    none = recording(before=(), during=(), after=())
    assert replay(none).every == replay(none).failed_only == ()
    assert replay(recording(plan=replace(recording().plan, wanted=WANTED), started=BEGAN)).every
