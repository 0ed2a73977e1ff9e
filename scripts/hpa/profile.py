"""The load's shape over time: a profile becomes a few stages, each with a constant rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.errors import UsageError
from scripts.settings import HPA_RATE, HpaMetric, HpaSettings, Profile

# One request's CPU time: long enough that the app's own share is small, short enough that requests don't queue.
CPU_MS = 20
# What a request costs besides: the server, the framework, metrics and a log line.
OVERHEAD_MS = 2.5
# The most that one run may send, so that its raw results fit in memory.
MAX_REQUESTS = 300_000
# Where the load is to bring the autoscaler by default: this share of its maximum, so that it can carry it at its target.
FILL = 0.92
# More than this share of the machine would measure the machine, not the autoscaler.
MACHINE_SHARE = 0.45
# A latency rises as pods come near the CPU that their limit gives them, long before they are out of it: at this share of it
# a request waits about as long as it works. At all of it (seen: 45 requests/s for two pods) what waits piled up until the
# probes waited too and no pod was ready for 5 s.
SATURATION = 0.75
# That many pods at their limits, and everything else that a lab runs, have to fit on the machine.
LATENCY_MACHINE_SHARE = 0.6
# Before and after the load, requests are as cheap as it needs to leave the autoscaler at its minimum.
QUIET_SHARE = 0.4
QUIET_RATES = (1, 5)
RAMP_STAGE_S = 5.0


@dataclass(frozen=True)
class Stage:
    """A constant rate for some seconds, beginning `start_s` after the profile does."""

    start_s: float
    seconds: float
    rate: int

    @property
    def end_s(self) -> float:
        """Seconds from the profile's beginning to this stage's end."""
        return self.start_s + self.seconds

    @property
    def requests(self) -> int:
        """The number of requests that are due in it."""
        return int(self.rate * self.seconds)


@dataclass(frozen=True)
class Capacity:
    """What the autoscaler would do with a load: its bounds, the CPU request of a pod and the target in percent of it."""

    minimum: int
    maximum: int
    request_millicores: float
    target_percent: int
    machine_cores: float
    limit_millicores: float = 0.0  # 0: none

    @property
    def pod_millicores(self) -> float:
        """The CPU that a pod uses when it is exactly at the target."""
        return self.request_millicores * self.target_percent / 100


def stages(profile: Profile, peak: int, duration_s: float) -> tuple[Stage, ...]:
    """Return a profile's stages: no gap between them, none beyond the duration or the peak rate."""
    if profile is Profile.CONSTANT:
        shares = [(duration_s, 1.0)]
    elif profile is Profile.STEP:
        shares = [(duration_s / 3, share) for share in (1 / 3, 2 / 3, 1.0)]
    elif profile is Profile.SPIKE:
        shares = [(duration_s / 4, 0.15), (duration_s / 4, 1.0), (duration_s / 2, 0.15)]
    else:
        # Two thirds of the time to the peak, a third to see what comes of it.
        count = max(2, int(duration_s * 2 / 3 / RAMP_STAGE_S))
        shares = [(duration_s * 2 / 3 / count, (i + 1) / (count + 1)) for i in range(count)]
        shares.append((duration_s / 3, 1.0))
    found: list[Stage] = []
    start = 0.0
    for seconds, share in shares:
        found.append(Stage(start, seconds, max(1, round(peak * share))))
        start += seconds
    return tuple(found)


def cost_ms() -> float:
    """Return the CPU time that one request is expected to cost."""
    return CPU_MS + OVERHEAD_MS


def peak_rate(wanted: HpaSettings, capacity: Capacity) -> int:
    """Return the load's highest rate: the given one, the one that so many clients would make, or what fills the autoscaler.

    A concurrency of n is the rate of n clients that each send their next request when the last one's nominal time
    is over: it stays open loop, so a slow answer doesn't slow the load down.
    """
    if wanted.rate:
        return wanted.rate
    if wanted.concurrency:
        return round(wanted.concurrency * 1000 / CPU_MS)
    if wanted.metric is HpaMetric.LATENCY:
        return _saturating_rate(wanted, capacity)
    pods = max(capacity.minimum + 0.9, capacity.maximum * FILL)
    millicores = min(pods * capacity.pod_millicores, capacity.machine_cores * 1000 * MACHINE_SHARE)
    return max(1, min(HPA_RATE[1], math.floor(millicores / cost_ms())))


def _saturating_rate(wanted: HpaSettings, capacity: Capacity) -> int:
    """Return the rate at which the fewest pods are out of CPU; raises UsageError where this machine can't make it."""
    mend = "ENV=dev or ENV=staging, whose pods have less; or give a rate of your own, as in HPA_RATE=40"
    if not capacity.limit_millicores:
        raise UsageError(
            f"The pods of {wanted.environment} have no CPU limit: their latency rises with nothing but the machine's.",
            mend,
        )
    limits = capacity.minimum * capacity.limit_millicores
    millicores = limits * SATURATION
    if millicores > capacity.machine_cores * 1000 * LATENCY_MACHINE_SHARE:
        raise UsageError(
            f"{wanted.environment}'s {capacity.minimum} pods have {limits / 1000:.1f} CPUs before a request waits; this "
            f"machine has {capacity.machine_cores:.0f} for everything.",
            mend,
        )
    return max(1, min(HPA_RATE[1], math.ceil(millicores / cost_ms())))


def quiet_rate(capacity: Capacity, peak: int) -> int:
    """Return the rate before and after the load: enough for percentiles, too little to scale."""
    millicores = capacity.minimum * capacity.pod_millicores * QUIET_SHARE
    lowest, highest = QUIET_RATES
    return max(lowest, min(highest, peak, math.floor(millicores / cost_ms())))


def require_bounded(planned: Sequence[Stage]) -> None:
    """Raise UsageError if a load sends more requests than one run may."""
    total = sum(stage.requests for stage in planned)
    if total > MAX_REQUESTS:
        raise UsageError(
            f"{total} requests are more than the {MAX_REQUESTS} that one run may send.",
            "lower HPA_RATE, HPA_CONCURRENCY or HPA_DURATION",
        )
