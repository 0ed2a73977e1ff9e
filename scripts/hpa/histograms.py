"""What an autoscaler on latency would have asked for, reckoned from a run's own requests: by each of two histograms.

The right one observes every request; the old one, the bug that this project is known for, observed only those that
failed. Every few seconds the requests answered in the query's window are put into the application's buckets, the p95
is computed as Prometheus does, and the controller's formula makes a number of pods of it. Without a request in the
window there is no figure, and the autoscaler leaves things as they are.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import yaml

from scripts.hpa.autoscaler import formula
from scripts.hpa.model import Answer, Recording, Sample
from scripts.hpa.reasons import LATENCY_SCALING
from scripts.latency_bug import app_buckets, fill, histogram_quantile
from scripts.settings import ROOT

QUANTILE = 0.95
STEP_S = 5.0  # as often as the controller looks
_RANGE = re.compile(r"\[(\d+)s\]")


@dataclass(frozen=True)
class Query:
    """What the ScaledObject in Git asks for: the target in milliseconds, over so many seconds."""

    target_ms: float
    window_s: float


@dataclass(frozen=True)
class Wish:
    """What one histogram says at one moment, and the pods that it calls for; None without a request to tell by."""

    at: float
    observed: int
    p95_ms: float | None
    replicas: int | None


@dataclass(frozen=True)
class Replay:
    """The wishes of both histograms over a run."""

    query: Query
    every: tuple[Wish, ...]
    failed_only: tuple[Wish, ...]


@cache
def query() -> Query:
    """Return the query of the ScaledObject in Git."""
    (trigger,) = yaml.load((ROOT / LATENCY_SCALING / "scaledobject.yaml").read_text(), yaml.CSafeLoader)["spec"][
        "triggers"
    ]
    (window,) = set(_RANGE.findall(trigger["metadata"]["query"]))
    return Query(float(trigger["metadata"]["threshold"]), float(window))


def replay(recording: Recording) -> Replay:
    """Return what both histograms would have called for while the run was on."""
    asked = query()
    # The application observes a request when it has answered it, from when it got it.
    ordered = sorted(recording.answers, key=lambda a: a.answered)
    if not ordered or not recording.samples:
        return Replay(asked, (), ())
    times = [a.answered for a in ordered]
    every, failed_only = [], []
    moment = ordered[0].answered + STEP_S
    while moment <= ordered[-1].answered + STEP_S:
        window = ordered[bisect.bisect_right(times, moment - asked.window_s) : bisect.bisect_right(times, moment)]
        state = _at(recording.samples, moment)
        every.append(_wish(moment, window, state, recording, asked))
        failed_only.append(_wish(moment, [a for a in window if not a.ok], state, recording, asked))
        moment += STEP_S
    return Replay(asked, tuple(every), tuple(failed_only))


def _at(samples: Sequence[Sample], moment: float) -> Sample:
    return next((s for s in reversed(samples) if s.at <= moment), samples[0])


def _wish(moment: float, window: Sequence[Answer], state: Sample, recording: Recording, asked: Query) -> Wish:
    bounds = app_buckets()
    p95_s = histogram_quantile(QUANTILE, fill([a.answered - a.sent for a in window], bounds), bounds)
    if math.isnan(p95_s):
        return Wish(moment, 0, None, None)
    capacity = recording.plan.capacity
    wanted = formula(p95_s * 1000, asked.target_ms, state.current, state.ready)
    within = max(capacity.minimum, min(capacity.maximum, wanted))
    return Wish(moment, len(window), round(p95_s * 1000, 1), within)


def blind_s(wishes: Sequence[Wish]) -> float:
    """Return for how many seconds a histogram had nothing to tell by."""
    return STEP_S * sum(1 for w in wishes if w.p95_ms is None)


def highest(wishes: Sequence[Wish]) -> int | None:
    """Return the most pods that a histogram called for."""
    return max((w.replicas for w in wishes if w.replicas is not None), default=None)
