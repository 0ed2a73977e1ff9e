from dataclasses import replace
from typing import Any

import pytest

from scripts.hpa import timeline
from scripts.hpa.model import Answer, Event, Recording
from scripts.hpa.timeline import by_second, percentile, rolling, summarise
from scripts.settings import Profile
from tests.unit.hpa_facts import BEGAN, PLAN, WANTED, answers, latency_recording, recording, sample


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, None), ([3.0], 0.99, 3.0), ([4, 1, 3, 2], 0.5, 2), (list(range(1, 101)), 0.95, 95), ([1, 2], 0.0, 1)],
)
def test_a_percentile_is_a_value_that_was_seen(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected


def test_seconds_have_no_gaps_and_count_failures() -> None:
    seconds = by_second([*answers(0, 1, 4, 0.1), *answers(2, 3, 4, 0.2, code=503)], BEGAN + 0.01)
    assert [(s.sent, s.failed, s.p95_s) for s in seconds] == [(4, 0, 0.1), (0, 0, None), (4, 4, 0.2)]
    assert [s.at - BEGAN for s in seconds] == pytest.approx([0.01, 1.01, 2.01])
    assert by_second([], BEGAN) == []


def test_a_rolling_percentile_covers_whole_windows_only() -> None:
    found = rolling([*answers(0, 10, 10, 0.1), *answers(10, 20, 10, 0.5)])
    assert found[0][0] - BEGAN == pytest.approx(5.1)
    assert {p for at, p in found if at <= BEGAN + 10} == {0.1}
    assert {p for at, p in found if at > BEGAN + 11} == {0.5}
    assert rolling([]) == []


def test_the_moments_of_a_run_that_went_well() -> None:
    summary = summarise(recording())
    found = {k: None if v is None else round(v - BEGAN, 1) for k, v in vars(summary.moments).items()}
    assert found == {
        "load_began": 0.0,
        "decision": 14.8,  # the event came before the status
        "new_pod": 15.2,
        "new_ready": 29.5,
        "at_highest": 30.0,
        "latency_back": 35.1,  # the first whole window of 30 ms answers, against a level of 28 ms
        "load_ended": 60.0,
        "at_minimum": 110.0,
    }
    assert (summary.highest_ready, summary.highest_desired, summary.minimum_seen) == (4, 4, 2)
    assert (summary.level_before_s, summary.p95_worst_s, summary.p95_after_s) == (0.028, 0.3, 0.03)
    assert summary.nodes == ("worker0", "worker1")
    assert summary.ok
    assert [(c.name, c.detail) for c in summary.checks] == [
        ("scaled out", "to 4 ready pods, the first new one Ready after 30 s (goal 45 s met)"),
        ("stayed within its bounds", "2 to 4 pods, bounds 2 to 5"),
        ("back at its minimum", "50 s after the load (goal 90 s met)"),
        ("no failed request", "0 of 740 requests failed"),
        ("the load was what was asked for", "sent 600 of 600 requests, on 0.10 CPUs"),
    ]


def late(run: Recording) -> tuple[Answer, ...]:
    return tuple(replace(a, sent=a.sent + 0.2) for a in run.during)


GOOD = recording()
FLAT = {"samples": tuple(sample(t, 2, 2, cpu=60) for t in range(-10, 120)), "pods": GOOD.pods[:1], "events": ()}
QUOTA = "quota: exceeded quota: demo. To mend it: raise it."
BROKEN: list[tuple[str, dict[str, Any], str, str]] = [
    ("no scale-out", FLAT, "scaled out", "the CPU reached 60 % of the request, the target is 70 %"),
    ("kept", FLAT | {"obstacles": (QUOTA,)}, "scaled out", QUOTA),
    ("never ready", {"pods": tuple(replace(p, ready=None) for p in GOOD.pods)}, "scaled out", "the CPU reached 150 %"),
    ("too many", {"samples": (*GOOD.samples[:60], sample(50, 6, 6), *GOOD.samples[60:])}, "stayed within its bounds", "2 to 6 pods, bounds 2 to 5"),
    ("too few", {"samples": (*GOOD.samples[:60], sample(50, 1, 1), *GOOD.samples[60:])}, "stayed within its bounds", "1 to 4 pods"),
    ("stays up", {"samples": GOOD.samples[:-10]}, "back at its minimum", "not back at 2 pods"),
    ("a failure", {"after": (*GOOD.after, *answers(90, 90.5, 2, 0.1, 503))}, "no failed request", "1 of 741 requests failed: 503 Broken"),
    ("nothing sent", {"before": (), "during": (), "after": ()}, "no failed request", "0 of 0"),
    ("rate missed", {"during": GOOD.during[:580]}, "the load was what was asked for", "sent 580 of 600 requests, on 0.10 CPUs; this machine can't reach the rate"),
]  # fmt: skip


def test_an_autoscaler_that_never_left_its_minimum_is_back_at_it() -> None:
    check = summarise(recording(**FLAT)).checks[2]
    assert check.ok
    assert check.detail == "it never left it"


@pytest.mark.parametrize(("more", "check", "told"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_what_went_wrong_fails_its_check_and_says_what(more: dict[str, Any], check: str, told: str) -> None:
    summary = summarise(recording(**more))
    assert not summary.ok
    found = next(c for c in summary.checks if c.name == check)
    assert not found.ok
    assert told in found.detail


FAILURES: list[tuple[str, dict[str, Any], bool, str]] = [
    ("as asked for", {}, True, "37 of 740 requests failed, 5.0% on purpose where 5.0% was asked for, 0 otherwise"),
    ("none, though asked for", {"during": recording().during, "before": (), "after": ()}, False, "0.0% on purpose where 5.0%"),
    ("too many", {"during": tuple(answers(0, 60, 10, 0.1, 500))}, False, "asked for, 0 otherwise"),
    ("others as well", {"before": tuple(answers(-10, 0, 2, 0.1, 503))}, False, "20 otherwise: "),
]  # fmt: skip


@pytest.mark.parametrize(("more", "ok", "told"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_failures_on_purpose_are_told_from_others(more: dict[str, Any], ok: bool, told: str) -> None:
    found = timeline.summarise(latency_recording(**more))
    (check,) = [c for c in found.checks if c.name == "no request failed but on purpose"]
    assert check.ok is ok
    assert told in check.detail


def test_a_run_on_latency_is_held_to_its_own_goal_and_says_what_its_latency_was() -> None:
    assert "goal 150 s met" in str(timeline.summarise(latency_recording()).checks)
    still = tuple(replace(s, desired=2, current=2, ready=2, pods=s.pods[:2]) for s in latency_recording().samples)
    idle = timeline.summarise(latency_recording(samples=still, events=(), pods=latency_recording().pods[:1]))
    (check,) = [c for c in idle.checks if c.name == "scaled out"]
    assert (check.ok, check.detail) == (False, "the p95 reached 290 ms, the target is 150 ms: more load or more time")


def test_goals_that_are_missed_are_told_and_fail_nothing() -> None:
    slow = tuple(replace(s, at=s.at + 40) if s.at > BEGAN + 60 else s for s in GOOD.samples)
    pods = tuple(replace(p, ready=p.ready + 20) if p.created > BEGAN and p.ready else p for p in GOOD.pods)
    summary = summarise(recording(samples=slow, pods=pods))
    assert summary.ok
    assert "after 50 s (goal 45 s MISSED)" in summary.checks[0].detail
    assert "90 s after the load (goal 90 s met)" in summary.checks[2].detail


def test_a_load_that_rises_is_not_held_to_the_time_of_one_that_is_there_at_once() -> None:
    ramp = replace(PLAN, wanted=replace(WANTED, profile=Profile.RAMP))
    assert "goal" not in summarise(recording(plan=ramp)).checks[0].detail


def test_requests_that_were_sent_late_are_told() -> None:
    check = summarise(recording(during=late(GOOD))).checks[-1]
    assert check.ok
    assert "more than 200 ms late" in check.detail


def test_without_waiting_for_the_scale_in_it_is_not_judged() -> None:
    plan = replace(PLAN, wanted=replace(WANTED, wait_scale_in=False))
    names = [c.name for c in summarise(recording(plan=plan)).checks]
    assert "back at its minimum" not in names and len(names) == 4
    assert len(summarise(recording(interrupted=True)).checks) == 4


def test_latency_that_never_comes_back_and_a_run_without_a_load_have_no_such_moments() -> None:
    assert summarise(recording(during=tuple(answers(0, 60, 10, 0.3)))).moments.latency_back is None
    nothing = summarise(recording(load_began=None, load_ended=None, during=(), after=()))
    assert set(vars(nothing.moments).values()) == {None}
    assert not nothing.ok


def test_a_short_dip_of_latency_is_not_back() -> None:
    during = [*answers(0, 34, 10, 0.3), *answers(34, 42, 10, 0.03), *answers(42, 60, 10, 0.3)]
    assert summarise(recording(during=tuple(during))).moments.latency_back is None


def test_a_scale_in_while_the_load_lasts_is_no_return_to_the_minimum() -> None:
    samples = (*(sample(t, 4, 4) for t in range(50)), *(sample(t, 2, 2) for t in range(50, 120)))
    summary = summarise(recording(samples=samples))
    assert summary.moments.at_minimum == pytest.approx(BEGAN + 60)


def test_a_rescale_of_the_scale_in_is_no_decision() -> None:
    early = Event("SuccessfulRescale", "New size: 2; reason: below", "Normal", 1, "", BEGAN - 5)
    summary = summarise(recording(events=(early, *GOOD.events)))
    assert summary.moments.decision == pytest.approx(BEGAN + 14.8)
    assert timeline.since(summary.moments.load_began, None) is None
