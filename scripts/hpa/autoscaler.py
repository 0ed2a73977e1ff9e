"""An autoscaler's own figures, read from the object as plain data: what it measures, its target, what they call for.

It follows the CPU (in percent of the request) or the latency (p95 in milliseconds, an external metric that KEDA serves).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from scripts.kube import Object, condition
from scripts.settings import APP_NAME, HpaMetric

# The one that Git has, and the one that KEDA makes of a ScaledObject of the same name.
NAMES = {HpaMetric.CPU: APP_NAME, HpaMetric.LATENCY: f"keda-hpa-{APP_NAME}"}
UNITS = {HpaMetric.CPU: "%", HpaMetric.LATENCY: "ms"}
# The controller's word for two autoscalers of the same pods, which it keeps until it looks again.
AMBIGUOUS = "AmbiguousSelector"
# The controller's --horizontal-pod-autoscaler-tolerance: closer to the target than this it does nothing.
TOLERANCE = 0.1
# What the controller takes where the autoscaler gives no window of its own.
DEFAULT_DOWN_WINDOW_S = 300


@dataclass(frozen=True)
class Recommendation:
    """The number of pods that the load called for at a moment."""

    at: datetime
    replicas: int


def metric_of(hpa: Object) -> HpaMetric:
    """Return what an autoscaler follows."""
    return HpaMetric.LATENCY if _external(hpa["spec"].get("metrics") or []) else HpaMetric.CPU


def lacks_metrics(hpa: Object) -> bool:
    """Whether the autoscaler says that it gets no metrics."""
    active = condition(hpa, "ScalingActive")
    return active.get("status") == "False" and active.get("reason") not in ("ScalingDisabled", AMBIGUOUS)


def rules(hpa: Object, down: bool) -> Object:
    """Return an autoscaler's behaviour in one direction."""
    found: Object = (hpa["spec"].get("behavior") or {}).get("scaleDown" if down else "scaleUp") or {}
    return found


def down_window_s(hpa: Object) -> int:
    """Return how long a lower number of pods has to be called for before the autoscaler scales in."""
    window: Any = rules(hpa, True).get("stabilizationWindowSeconds")
    return DEFAULT_DOWN_WINDOW_S if window is None else int(window)


def up_window_s(hpa: Object) -> int:
    """Return how long a higher number of pods has to be called for before the autoscaler scales out."""
    return int(rules(hpa, False).get("stabilizationWindowSeconds") or 0)


def _cpu(metrics: Iterable[Object]) -> Object:
    return next((m["resource"] for m in metrics if (m.get("resource") or {}).get("name") == "cpu"), {})


def _external(metrics: Iterable[Object]) -> Object:
    # The controller answers for a metric that it does not have with an entry without content.
    return next((m["external"] for m in metrics if m.get("type") == "External" and m.get("external")), {})


def cpu_percent(hpa: Object) -> int | None:
    """Return the CPU that the autoscaler saw, in percent of the request; None while it is unknown."""
    percent = _cpu((hpa.get("status") or {}).get("currentMetrics") or []).get("current", {}).get("averageUtilization")
    return None if percent is None else int(percent)


def target_percent(hpa: Object) -> int | None:
    """Return the target in percent of the request; None where it is something else."""
    percent = _cpu(hpa["spec"].get("metrics") or []).get("target", {}).get("averageUtilization")
    return None if percent is None else int(percent)


def latency_ms(hpa: Object) -> float | None:
    """Return the latency that the autoscaler saw; None while it is unknown."""
    value = _external((hpa.get("status") or {}).get("currentMetrics") or []).get("current", {}).get("value")
    return None if value is None else number(value)


def target_ms(hpa: Object) -> float | None:
    """Return the latency that it keeps; None where it follows something else."""
    value = _external(hpa["spec"].get("metrics") or []).get("target", {}).get("value")
    return None if value is None else number(value)


def number(quantity: str) -> float:
    """Return a quantity of Kubernetes as a number."""
    from kubernetes.utils import quantity as quantities

    return float(quantities.parse_quantity(quantity))  # type: ignore[no-untyped-call]


def seen(hpa: Object) -> tuple[float | None, float | None]:
    """Return what the autoscaler saw of what it follows, and its target; None for what is unknown."""
    if metric_of(hpa) is HpaMetric.LATENCY:
        return latency_ms(hpa), target_ms(hpa)
    return cpu_percent(hpa), target_percent(hpa)


def shown(metric: HpaMetric, value: float | None) -> str:
    """Return a figure of a metric as people read it."""
    return "<unknown>" if value is None else f"{value:.0f} {UNITS[metric]}"


def formula(value: float, target: float, current: int, ready: int) -> int:
    """Return the number of pods that a value calls for, as the controller reckons: within the tolerance, those there are.

    `ready` pods bear the value, `current` is the size that was asked for last.
    """
    ratio = value / target
    return current if abs(1 - ratio) <= TOLERANCE else max(1, math.ceil(ratio * ready - 1e-9))


def recommend(hpa: Object, ready: int | None = None) -> int | None:
    """Return the number of pods that the load calls for; None while the metric is unknown.

    An external value is one for all ready pods; where their number is not given, all are taken to be ready.
    """
    value, target = seen(hpa)
    current = int((hpa.get("status") or {}).get("currentReplicas") or 0)
    if value is None or not target:
        return None
    bearing = ready if ready is not None and metric_of(hpa) is HpaMetric.LATENCY else current
    return formula(value, target, current, bearing)


def keep_recent(history: Sequence[Recommendation], now: datetime, seconds: float) -> list[Recommendation]:
    """Return the recommendations that a window of so many seconds can still look back to."""
    return [r for r in history if now - r.at <= timedelta(seconds=seconds)]
