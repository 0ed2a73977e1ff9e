"""What a recording came to: figures by the second, the moments that count, and the checks at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from scripts.hpa import histograms
from scripts.hpa.autoscaler import shown
from scripts.hpa.histograms import Replay
from scripts.hpa.model import Answer, Check, Moments, Recording, Sample
from scripts.settings import HpaMetric, Profile

# Latency is "back" when its p95 over a window is no more than this much above the level before, and stays for a while.
LEVEL_TOLERANCE = 1.2
WINDOW_S = 5.0
STAYS_S = 5.0
# What the application answers when it fails on purpose.
ON_PURPOSE = 500
# A generator that sends less than this share of what was due shows another load than it was asked for.
RATE_KEPT = 0.98
# Late by more than this, what is measured is the generator's machine.
LATE_S = 0.1
READY_GOAL_S = 45.0
# A latency is one of the last 45 s, which a CPU figure is not.
MINIMUM_GOAL_S = {HpaMetric.CPU: 90.0, HpaMetric.LATENCY: 150.0}
# So many standard deviations may the share of failures be off what was asked for.
SIGMAS = 4.0


@dataclass(frozen=True)
class Second:
    """One second of the load, by the moments at which requests were due; latencies in seconds, None without answers."""

    at: float  # its beginning
    sent: int
    failed: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    moments: Moments
    checks: tuple[Check, ...]
    requests: int
    failed: int
    errors: tuple[str, ...]
    planned: int
    sent_in_load: int
    late_p99_s: float | None
    minimum_seen: int
    highest_ready: int
    highest_desired: int
    level_before_s: float | None
    p95_worst_s: float | None
    p95_after_s: float | None
    nodes: tuple[str, ...]
    replay: Replay

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(c.ok for c in self.checks)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value that `share` of the values don't exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def by_second(answers: Iterable[Answer], origin: float) -> list[Second]:
    """Return the load second by second, without gaps from the first to the last."""
    buckets: dict[int, list[Answer]] = {}
    for answer in answers:
        buckets.setdefault(math.floor(answer.due - origin), []).append(answer)
    if not buckets:
        return []
    found = []
    for index in range(min(buckets), max(buckets) + 1):
        bucket = buckets.get(index, [])
        latencies = [a.latency_s for a in bucket]
        found.append(
            Second(
                at=origin + index,
                sent=len(bucket),
                failed=sum(1 for a in bucket if not a.ok),
                p50_s=percentile(latencies, 0.5),
                p95_s=percentile(latencies, 0.95),
                p99_s=percentile(latencies, 0.99),
            )
        )
    return found


def summarise(recording: Recording) -> Summary:
    """Return moments, figures and checks of a recording."""
    in_load = recording.during
    level = percentile([a.latency_s for a in recording.before], 0.95)
    moments = find_moments(recording, level)
    settled = _settled(in_load, moments)
    windows = [p for _, p in rolling(in_load)]
    failures = [a for a in recording.answers if not a.ok]
    summary = Summary(
        moments=moments,
        checks=(),
        requests=len(recording.answers),
        failed=len(failures),
        errors=tuple(sorted({a.error or f"HTTP {a.code}" for a in failures})),
        planned=recording.planned,
        sent_in_load=len(in_load),
        late_p99_s=percentile([a.sent - a.due for a in in_load], 0.99),
        minimum_seen=min((s.current for s in recording.samples), default=0),
        highest_ready=max((s.ready for s in recording.samples), default=0),
        highest_desired=max((s.desired for s in recording.samples), default=0),
        level_before_s=level,
        p95_worst_s=max(windows, default=None),
        p95_after_s=percentile([a.latency_s for a in settled], 0.95),
        nodes=tuple(sorted({p.node for p in recording.pods if p.node})),
        replay=histograms.replay(recording),
    )
    return _with_checks(recording, summary)


def _settled(in_load: Sequence[Answer], moments: Moments) -> list[Answer]:
    """Return what was sent while the highest number of pods was ready."""
    start = moments.at_highest or moments.new_ready
    return [] if start is None else [a for a in in_load if a.due >= start]


def find_moments(recording: Recording, level: float | None) -> Moments:
    """Return when the load met its decision, its pods and its level."""
    began, ended = recording.load_began, recording.load_ended
    if began is None:
        return Moments()
    minimum = recording.plan.capacity.minimum
    loaded = [s for s in recording.samples if s.at >= began and (ended is None or s.at <= ended)]
    first = loaded[0].current if loaded else minimum
    fresh = [p for p in recording.pods if p.created >= began]
    ready = [p.ready for p in fresh if p.ready is not None]
    highest = max((s.ready for s in loaded), default=0)
    decision = _first(loaded, lambda s: s.desired > first)
    rescaled = [
        e.seen for e in recording.events if e.reason == "SuccessfulRescale" and began <= e.seen <= (ended or e.seen)
    ]
    created = min((p.created for p in fresh), default=None)
    # Status, event and pod come by watches of their own, each late by itself; the decision is no later than any of them.
    times = [t for t in (decision, min(rescaled, default=None), created) if t is not None]
    return Moments(
        load_began=began,
        decision=min(times) if decision is not None else None,
        new_pod=created,
        new_ready=min(ready, default=None),
        at_highest=_first(loaded, lambda s: s.ready == highest) if highest > first else None,
        latency_back=_latency_back(recording.during, level, min(ready, default=None)),
        load_ended=ended,
        at_minimum=_back_at(recording.samples, ended, minimum),
    )


def _first(samples: Iterable[Sample], holds: Callable[[Sample], bool]) -> float | None:
    return next((s.at for s in samples if holds(s)), None)


def _back_at(samples: Sequence[Sample], ended: float | None, minimum: int) -> float | None:
    """Return when the number of pods came back to the minimum for good."""
    if ended is None:
        return None
    back = None
    for sample in reversed(samples):
        if sample.current > minimum or sample.at < ended:
            break
        back = sample.at
    return back


def rolling(answers: Sequence[Answer], share: float = 0.95) -> list[tuple[float, float]]:
    """Return a percentile of each window, at its end, once a second; no window begins before the first answer."""
    if not answers:
        return []
    ordered = sorted(answers, key=lambda a: a.due)
    found = []
    start = end = 0
    moment = ordered[0].due + WINDOW_S
    while moment <= ordered[-1].due + 1:
        while end < len(ordered) and ordered[end].due < moment:
            end += 1
        while start < end and ordered[start].due < moment - WINDOW_S:
            start += 1
        value = percentile([a.latency_s for a in ordered[start:end]], share)
        if value is not None:
            found.append((moment, value))
        moment += 1
    return found


def _latency_back(in_load: Sequence[Answer], level: float | None, ready: float | None) -> float | None:
    """Return when, after new pods were ready, the p95 came back to the level before the load, and stayed there."""
    if level is None or ready is None:
        return None
    since = None
    for moment, p95 in rolling(in_load):
        if moment < ready or p95 > level * LEVEL_TOLERANCE:
            since = None
        elif since is None:
            since = moment
        if since is not None and moment - since >= STAYS_S:
            return since
    return None


def _with_checks(recording: Recording, summary: Summary) -> Summary:
    plan = recording.plan
    capacity = plan.capacity
    currents = [s.current for s in recording.samples]
    checks = [_scaled_out(recording, summary)]
    outside = [c for c in currents if not capacity.minimum <= c <= capacity.maximum]
    checks.append(
        Check(
            "stayed within its bounds",
            bool(currents) and not outside,
            f"{min(currents, default=0)} to {max(currents, default=0)} pods, bounds {capacity.minimum} to {capacity.maximum}",
        )
    )
    if recording.lost:
        checks.append(Check("the cluster answered", False, "it stopped to, which ended the run: make status"))
    if plan.wanted.wait_scale_in and not (recording.interrupted or recording.lost):
        checks.append(_back_at_minimum(recording, summary))
    checks += [_failures(recording, summary), _rate_kept(recording, summary)]
    return replace(summary, checks=tuple(checks))


def _failures(recording: Recording, summary: Summary) -> Check:
    wanted = recording.plan.wanted.fail_rate
    words = f": {'; '.join(summary.errors[:3])}" if summary.errors else ""
    told = f"{summary.failed} of {summary.requests} requests failed"
    if not wanted:
        return Check("no failed request", summary.failed == 0 and summary.requests > 0, f"{told}{words}")
    # The application answers 500 on purpose; whatever else fails, fails.
    others = sum(1 for a in recording.answers if not a.ok and a.code != ON_PURPOSE)
    share = (summary.failed - others) / summary.requests if summary.requests else 0.0
    off = SIGMAS * math.sqrt(wanted * (1 - wanted) / max(1, summary.requests))
    as_asked = summary.requests > 0 and abs(share - wanted) <= off
    detail = f"{told}, {share:.1%} on purpose where {wanted:.1%} was asked for, {others} otherwise"
    return Check("no request failed but on purpose", as_asked and others == 0, detail + (words if others else ""))


def _scaled_out(recording: Recording, summary: Summary) -> Check:
    took = since(summary.moments.load_began, summary.moments.new_ready)
    if took is None:
        return Check("scaled out", False, why_not(recording))
    # Only a load that is all there from the beginning can be held to a time.
    held = f" ({goal(took, READY_GOAL_S)})" if recording.plan.wanted.profile is Profile.CONSTANT else ""
    return Check(
        "scaled out", True, f"to {summary.highest_ready} ready pods, the first new one Ready after {took:.0f} s{held}"
    )


def _back_at_minimum(recording: Recording, summary: Summary) -> Check:
    minimum = recording.plan.capacity.minimum
    took = since(summary.moments.load_ended, summary.moments.at_minimum)
    if took is None:
        return Check("back at its minimum", False, f"not back at {minimum} pods")
    if max(s.current for s in recording.samples) <= minimum:
        return Check("back at its minimum", True, "it never left it")
    return Check(
        "back at its minimum",
        True,
        f"{took:.0f} s after the load ({goal(took, MINIMUM_GOAL_S[recording.plan.metric])})",
    )


def why_not(recording: Recording) -> str:
    """Return why no pod was added: what was found in its way, or that the load did not call for it."""
    if recording.obstacles:
        return "; ".join(recording.obstacles)
    metric, aim = recording.plan.metric, recording.plan.target_ms
    if metric is HpaMetric.LATENCY:
        met = [s.hpa_latency_ms for s in recording.samples if s.hpa_latency_ms is not None]
        worst = shown(metric, max(met, default=None))
        return f"the p95 reached {worst}, the target is {shown(metric, aim)}: more load or more time"
    seen = [s.hpa_cpu_percent for s in recording.samples if s.hpa_cpu_percent is not None]
    target = recording.plan.capacity.target_percent
    return f"the CPU reached {max(seen, default=0)} % of the request, the target is {target} %: more load or more time"


def _rate_kept(recording: Recording, summary: Summary) -> Check:
    share = summary.sent_in_load / recording.planned if recording.planned else 0.0
    told = f"sent {summary.sent_in_load} of {recording.planned} requests, on {recording.generator_cores:.2f} CPUs"
    late = summary.late_p99_s
    if late is not None and late > LATE_S:
        told += f"; 1 in 100 was sent more than {late * 1000:.0f} ms late, which its latency contains"
    if share < RATE_KEPT:
        told += "; this machine can't reach the rate, or too many requests wait at once: lower HPA_RATE, or quiet the machine"
    return Check("the load was what was asked for", share >= RATE_KEPT, told)


def goal(took: float, wanted: float) -> str:
    """Return how a time compares with its goal. A goal missed is told, not failed: it depends on the machine."""
    return f"goal {wanted:.0f} s {'met' if took <= wanted else 'MISSED'}"


def since(start: float | None, end: float | None) -> float | None:
    """Return the seconds between two moments, None if one of them never was."""
    return None if start is None or end is None else end - start
