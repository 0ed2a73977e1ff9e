import itertools
from dataclasses import replace

import pytest

from scripts.errors import UsageError
from scripts.hpa import profile
from scripts.hpa.profile import Capacity, Stage
from scripts.settings import HPA_CONCURRENCY, HPA_RATE, HpaMetric, HpaSettings, Profile

DEV = Capacity(1, 5, 50, 70, 2)
STAGING = Capacity(2, 5, 100, 70, 2)
PRODUCTION = Capacity(3, 5, 200, 70, 2)


@pytest.mark.parametrize("shape", list(Profile))
@pytest.mark.parametrize(("peak", "duration_s"), [(1, 30), (28, 120), (2000, 100), (7, 899)])
def test_stages_follow_each_other_and_stay_within_duration_and_peak(shape: Profile, peak: int, duration_s: int) -> None:
    found = profile.stages(shape, peak, duration_s)
    assert found[0].start_s == 0
    for before, after in itertools.pairwise(found):
        assert after.start_s == pytest.approx(before.end_s)
    assert found[-1].end_s == pytest.approx(duration_s)
    assert max(s.rate for s in found) == peak
    assert min(s.rate for s in found) >= 1
    assert all(s.seconds >= 3 for s in found)


SHAPES = [
    (Profile.CONSTANT, [(120, 60)]),
    (Profile.STEP, [(40, 20), (40, 40), (40, 60)]),
    (Profile.SPIKE, [(30, 9), (30, 60), (60, 9)]),
]


@pytest.mark.parametrize(("shape", "expected"), SHAPES)
def test_a_profile_has_its_shape(shape: Profile, expected: list[tuple[float, int]]) -> None:
    assert [(s.seconds, s.rate) for s in profile.stages(shape, 60, 120)] == expected


def test_a_ramp_rises_all_the_way_and_then_holds_the_peak() -> None:
    found = profile.stages(Profile.RAMP, 60, 120)
    rates = [s.rate for s in found]
    assert rates == sorted(rates) and len(set(rates)) == len(rates)
    assert found[-1].seconds == 40


LATENCY = HpaSettings(metric=HpaMetric.LATENCY)
RATES = [
    ("given", STAGING, HpaSettings(rate=77), 77),
    ("four clients of 20 ms", STAGING, HpaSettings(concurrency=4), 200),
    ("as many clients as may be", STAGING, HpaSettings(concurrency=HPA_CONCURRENCY[1]), HPA_RATE[1]),
    # 4.6 pods at 70m, at 22.5 ms a request
    ("what fills the autoscaler", STAGING, HpaSettings(), 14),
    ("of a small environment", DEV, HpaSettings(), 7),
    ("of a large one", PRODUCTION, HpaSettings(), 28),
    ("less than half of the machine", replace(PRODUCTION, maximum=50), HpaSettings(), 40),
    ("a latency: the least pods near their limit", replace(STAGING, limit_millicores=500), LATENCY, 34),
    ("a latency of a small environment", replace(DEV, limit_millicores=500), LATENCY, 17),
    ("a latency, given", replace(PRODUCTION, limit_millicores=1000), replace(LATENCY, rate=5), 5),
    ("at least one pod more than the minimum", Capacity(4, 5, 100, 70, 8), HpaSettings(), 15),
]


@pytest.mark.parametrize(("capacity", "wanted", "rate"), [r[1:] for r in RATES], ids=[r[0] for r in RATES])
def test_the_peak_rate(capacity: Capacity, wanted: HpaSettings, rate: int) -> None:
    assert profile.peak_rate(wanted, capacity) == rate


@pytest.mark.parametrize("capacity", [DEV, STAGING, PRODUCTION])
def test_the_default_load_scales_out_and_the_quiet_one_does_not(capacity: Capacity) -> None:
    peak = profile.peak_rate(HpaSettings(), capacity)
    load = peak * profile.CPU_MS
    assert load > 1.1 * capacity.minimum * capacity.pod_millicores
    assert load < 1.1 * capacity.maximum * capacity.pod_millicores
    quiet = profile.quiet_rate(capacity, peak)
    assert 1 <= quiet <= 5
    assert quiet * profile.cost_ms() < 0.7 * capacity.minimum * capacity.pod_millicores


def test_more_requests_than_one_run_may_send_are_refused() -> None:
    profile.require_bounded([Stage(0, 150, 2000)])
    with pytest.raises(UsageError, match="300020 requests are more than the 300000"):
        profile.require_bounded([Stage(0, 150, 2000), Stage(150, 20, 1)])


@pytest.mark.parametrize(
    ("capacity", "told"),
    [
        (replace(PRODUCTION, limit_millicores=1000), "3 pods have 3.0 CPUs before a request waits; this machine has 2"),
        (STAGING, "have no CPU limit"),
    ],
    ids=["too large", "no limit"],
)
def test_a_latency_that_this_machine_cannot_raise_is_refused(capacity: Capacity, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        profile.peak_rate(LATENCY, capacity)
    assert told in refused.value.what
    assert "ENV=staging" in str(refused.value)
