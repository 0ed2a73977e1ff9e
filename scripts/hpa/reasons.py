"""Why an autoscaler does not scale: what keeps it, and what mends it.

A pure function of the autoscaler's facts::

for reason in explain(collect(kube, "staging")):
print(reason)  # quota: exceeded quota: demo, … To mend it: raise …
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from scripts.causes import one_line
from scripts.hpa.autoscaler import (
    AMBIGUOUS,
    TOLERANCE,
    UNITS,
    down_window_s,
    metric_of,
    rules,
    seen,
    shown,
    up_window_s,
)
from scripts.hpa.facts import EXTERNAL_API, METRICS_API, Facts
from scripts.kube import Object, condition
from scripts.settings import APP_NAME, HpaMetric
from scripts.snapshot import event_time

# A pod's first figures: metrics-server needs two looks at it, 10 to 15 s apart, and the autoscaler one of its own.
FIRST_METRICS_S = 60
BASE = "flux-cd/applications/_base-app-config"
OVERLAY = "flux-cd/applications/mock-cluster-aka-namespaces"
LATENCY_SCALING = "flux-cd/applications/_components/latency-scaling"
BRING_KEDA = "make hpa-demo HPA_METRIC=latency brings it"

_CERTIFICATE = re.compile(r"x509:|failed to verify certificate|certificate (?:signed by|has expired|is not valid)")
_SCRAPE_ERROR = re.compile(r'err="((?:[^"\\]|\\.)*)"')


class Kind(StrEnum):
    """What can keep an autoscaler from changing the number of pods."""

    NOT_SEEN = "not looked at yet"
    TARGET_MISSING = "target missing"
    DISABLED = "switched off"
    METRICS_API = "metrics API absent"
    KUBELET_CERTIFICATE = "kubelet certificate"
    NO_METRICS = "metrics not there yet"
    NO_CPU_REQUEST = "no CPU request"
    EXTERNAL_API = "external metrics API absent"
    SCALED_OBJECT = "ScaledObject not Ready"
    NO_LATENCY = "latency unknown"
    TWO_AUTOSCALERS = "two autoscalers"
    QUOTA = "quota"
    UNSCHEDULABLE = "unschedulable"
    NOT_READY = "new pods not ready"
    AT_MAXIMUM = "at maximum"
    STABILISING = "stabilising"
    RATE = "one step at a time"
    OTHER = "can't scale"


# Faults: someone has to do something. The others pass by themselves, or are the size that was asked for.
FAULTS = frozenset(
    {Kind.TARGET_MISSING, Kind.METRICS_API, Kind.KUBELET_CERTIFICATE, Kind.NO_CPU_REQUEST, Kind.EXTERNAL_API,
     Kind.SCALED_OBJECT, Kind.NO_LATENCY, Kind.TWO_AUTOSCALERS, Kind.QUOTA, Kind.UNSCHEDULABLE, Kind.OTHER}
)  # fmt: skip


@dataclass(frozen=True)
class Reason:
    """One thing that keeps an autoscaler, and what mends it."""

    kind: Kind
    what: str
    mend: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether it stays until someone mends it."""
        return self.kind in FAULTS

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}" + (f" To mend it: {self.mend}" if self.mend else "")


def explain(facts: Facts) -> list[Reason]:
    """Return what keeps the autoscaler, what lies deepest first; [] when nothing does: the load is what keeps it."""
    able, active = condition(facts.hpa, "AbleToScale"), condition(facts.hpa, "ScalingActive")
    if not able:
        return [Reason(Kind.NOT_SEEN, "its controller has not looked at it yet.", "wait for some seconds")]
    if able.get("status") == "False":
        return [_unable(facts, able)]
    if active.get("status") == "False":
        return [_inactive(facts, active)]
    missing = _pods_missing(facts)
    found = [*missing, *_limited(facts)]
    # With pods still missing, it may have asked for its maximum without having it.
    if missing:
        return [r for r in found if r.kind is not Kind.AT_MAXIMUM]
    return found if any(r.kind is Kind.AT_MAXIMUM for r in found) else [*found, *_at_maximum(facts)]


def _unable(facts: Facts, able: Object) -> Reason:
    message = str(able.get("message") or able.get("reason") or "no reason given")
    reference = facts.hpa["spec"]["scaleTargetRef"]
    if able.get("reason") == "FailedGetScale" and ("not found" in message or "no matches for kind" in message):
        return Reason(
            Kind.TARGET_MISSING,
            f"there is no {reference['kind']} {reference['name']} in {facts.environment}.",
            f"name one that exists in scaleTargetRef ({BASE}/horizontalpodautoscaler.yaml), or `make reconcile` if it "
            "was deleted by hand",
        )
    return Reason(Kind.OTHER, one_line(message), "make status")


def _inactive(facts: Facts, active: Object) -> Reason:
    reason, message = str(active.get("reason") or ""), str(active.get("message") or "")
    if reason == "ScalingDisabled":
        return Reason(
            Kind.DISABLED, "its target was set to 0 replicas.", f"kubectl -n {facts.environment} scale … --replicas=1"
        )
    if reason == AMBIGUOUS:
        return Reason(
            Kind.TWO_AUTOSCALERS,
            f"another HorizontalPodAutoscaler has the same pods, so neither does anything ({one_line(message, 160)}).",
            f"kubectl -n {facts.environment} get hpa shows both: take one away",
        )
    if metric_of(facts.hpa) is HpaMetric.LATENCY:
        return _latency_missing(facts, message)
    if "missing request for cpu" in message:
        container = re.search(r"in container (\S+)", message)
        of = f"container {container[1]}" if container else "a container"
        return Reason(
            Kind.NO_CPU_REQUEST,
            f"{of} of its pods has no CPU request, so there is nothing to take a percentage of.",
            f"give it resources.requests.cpu ({BASE}/deployment.yaml), or a default in {BASE}/limitrange.yaml",
        )
    return _metrics_missing(facts, message)


def _metrics_missing(facts: Facts, message: str) -> Reason:
    """Return why there are no metrics: from the kubelets' certificates up to the pods being too young."""
    if _CERTIFICATE.search(facts.metrics_log) and not _is_available(facts.api_service):
        errors = [m[1] for line in facts.metrics_log.splitlines() if (m := _SCRAPE_ERROR.search(line))]
        told = next((e for e in reversed(errors) if _CERTIFICATE.search(e)), "x509")
        return Reason(
            Kind.KUBELET_CERTIFICATE,
            f"metrics-server does not trust the kubelets' certificates ({one_line(told.rpartition('tls: ')[2], 160)}).",
            "--kubelet-insecure-tls in flux-cd/infrastructure/_components/metrics-server/deployment.yaml, or kubelets "
            "with certificates that the cluster's CA signed (serverTLSBootstrap)",
        )
    if facts.api_service is None:
        return Reason(
            Kind.METRICS_API, f"the cluster has no API {METRICS_API}: there is no metrics-server.", "make reconcile"
        )
    if not _is_available(facts.api_service):
        why = condition(facts.api_service, "Available").get("message") or "it has not answered yet"
        pods = facts.metrics_pods
        ready = sum(1 for pod in pods if condition(pod).get("status") == "True")
        return Reason(
            Kind.METRICS_API,
            f"the metrics API does not answer ({one_line(why, 160)}); {ready} of {len(pods)} metrics-server pods are ready.",
            "make reconcile if it was changed by hand; `make status` says why its pod is not ready",
        )
    youngest = _youngest_s(facts)
    if youngest is not None and youngest < FIRST_METRICS_S:
        return Reason(
            Kind.NO_METRICS,
            f"metrics not there yet: the pods are {youngest:.0f} s old, first figures come within {FIRST_METRICS_S} s.",
            "wait",
        )
    return Reason(
        Kind.NO_METRICS,
        f"the metrics API answers, but the CPU of {facts.environment}'s pods is <unknown> ({one_line(message, 200)}).",
        "make status: pods that are not ready have no figures",
    )


def _latency_missing(facts: Facts, message: str) -> Reason:
    """Return why there is no latency: from KEDA's API down to the query that it asks Prometheus."""
    if facts.api_service is None:
        return Reason(Kind.EXTERNAL_API, f"the cluster has no API {EXTERNAL_API}: there is no KEDA.", f"{BRING_KEDA}")
    if not _is_available(facts.api_service):
        why = condition(facts.api_service, "Available").get("message") or "it has not answered yet"
        ready = sum(1 for pod in facts.metrics_pods if condition(pod).get("status") == "True")
        return Reason(
            Kind.EXTERNAL_API,
            f"the external metrics API does not answer ({one_line(why, 160)}); {ready} of {len(facts.metrics_pods)} of "
            "KEDA's pods are ready.",
            "`make status` says why a pod of KEDA's is not ready",
        )
    if facts.scaled_object is None:
        return Reason(
            Kind.SCALED_OBJECT,
            f"there is no ScaledObject {APP_NAME} in {facts.environment}, which says what its latency is.",
            f"make reconcile, if it was deleted by hand ({LATENCY_SCALING})",
        )
    told = max(facts.trigger_events, key=event_time, default={}).get("message") or ""
    if "is empty" in told:
        return Reason(
            Kind.NO_LATENCY,
            f"Prometheus has no data of {facts.environment}'s histogram: the query's result is empty.",
            "wait for the first two scrapes; then: does Prometheus scrape it (its page of targets)? "
            f"the query stands in {LATENCY_SCALING}/scaledobject.yaml",
        )
    if told:
        return Reason(
            Kind.NO_LATENCY,
            f"KEDA can't ask Prometheus ({one_line(told, 200)}).",
            "make status: does Prometheus run? network policies of keda and monitoring have to let KEDA ask it",
        )
    ready_condition = condition(facts.scaled_object)
    if ready_condition.get("status") != "True":
        why = ready_condition.get("message") or "KEDA has not looked at it yet"
        return Reason(
            Kind.SCALED_OBJECT, f"{one_line(str(why), 200)}.", f"mend {LATENCY_SCALING}, or look at keda-operator's log"
        )
    return Reason(
        Kind.NO_LATENCY,
        f"the external metrics API answers, but the p95 is <unknown> ({one_line(message, 200)}).",
        "look at keda-operator's log",
    )


def _is_available(service: Object | None) -> bool:
    return service is not None and condition(service, "Available").get("status") == "True"


def _youngest_s(facts: Facts) -> float | None:
    born = [p["metadata"].get("creationTimestamp") for p in facts.pods]
    ages = [(facts.now - datetime.fromisoformat(b)).total_seconds() for b in born if b]
    return min(ages, default=None)


def _pods_missing(facts: Facts) -> list[Reason]:
    """Return why pods that the autoscaler asked for are not there."""
    found: list[Reason] = []
    failure = condition(facts.deployment or {}, "ReplicaFailure")
    message = str(failure.get("message") or "")
    if failure.get("status") == "True" and "exceeded quota" in message:
        told = message[message.index("exceeded quota") :]
        found.append(
            Reason(
                Kind.QUOTA,
                f"{one_line(told)}.",
                f"raise it in {OVERLAY}/{facts.environment}/resourcequota.yaml, or ask for less per pod",
            )
        )
    elif failure.get("status") == "True":
        found.append(Reason(Kind.OTHER, f"its pods are refused: {one_line(message)}", "make status"))
    waiting = [p for p in facts.pods if not p["metadata"].get("deletionTimestamp")]
    unscheduled = [p for p in waiting if condition(p, "PodScheduled").get("reason") == "Unschedulable"]
    if unscheduled:
        told = str(condition(unscheduled[0], "PodScheduled").get("message") or "").split(" preemption:")[0]
        count = f"{len(unscheduled)} pods fit" if len(unscheduled) > 1 else "1 pod fits"
        found.append(
            Reason(
                Kind.UNSCHEDULABLE,
                f"{count} on no node: {one_line(told)}",
                "uncordon a node (kubectl uncordon), free one, or ask for less per pod",
            )
        )
    starting = [p for p in waiting if p not in unscheduled and condition(p).get("status") != "True"]
    if starting and not found:
        names = f"{len(starting)} new pods are" if len(starting) > 1 else "1 new pod is"
        found.append(Reason(Kind.NOT_READY, f"{names} starting.", ""))
    return found


def _limited(facts: Facts) -> list[Reason]:
    """Return what the autoscaler's own bounds and behaviour hold back."""
    able, limited = condition(facts.hpa, "AbleToScale"), condition(facts.hpa, "ScalingLimited")
    found = []
    if limited.get("status") == "True" and limited.get("reason") == "TooManyReplicas":
        found.append(_maximum_reason(facts))
    if able.get("reason") in ("ScaleDownStabilized", "ScaleUpStabilized"):
        found.append(_stabilising(facts, down=able["reason"] == "ScaleDownStabilized"))
    elif limited.get("status") == "True" and limited.get("reason") in ("ScaleDownLimit", "ScaleUpLimit"):
        down = limited["reason"] == "ScaleDownLimit"
        policies = rules(facts.hpa, down).get("policies") or []
        steps = " or ".join(
            f"{p['value']}{' %' if p['type'] == 'Percent' else ' pod' if p['value'] == 1 else ' pods'} in "
            f"{p['periodSeconds']} s"
            for p in policies
        )
        found.append(
            Reason(Kind.RATE, f"it {'removes' if down else 'adds'} at most {steps or 'so many pods at once'}.", "wait")
        )
    return found


def _at_maximum(facts: Facts) -> list[Reason]:
    """At the maximum with more load than it can carry; the condition says so only where it is asked for still more."""
    spec, status = facts.hpa["spec"], facts.hpa.get("status") or {}
    value, target = seen(facts.hpa)
    if (status.get("currentReplicas") or 0) < spec["maxReplicas"] or value is None or not target:
        return []
    return [_maximum_reason(facts)] if value > target * (1 + TOLERANCE) else []


def _maximum_reason(facts: Facts) -> Reason:
    metric, (value, target) = metric_of(facts.hpa), seen(facts.hpa)
    what = "CPU at {} of the request" if metric is HpaMetric.CPU else "a p95 of {}"
    load = (
        ""
        if value is None
        else f", with {what.format(shown(metric, value))} where {target:.0f} {UNITS[metric]} is the target"
    )
    return Reason(
        Kind.AT_MAXIMUM,
        f"it has its {facts.hpa['spec']['maxReplicas']} pods{load}.",
        f"raise maxReplicas ({BASE}/horizontalpodautoscaler.yaml) and with it the quota, or the pods' request",
    )


def _stabilising(facts: Facts, down: bool) -> Reason:
    direction, better = ("in", "higher") if down else ("out", "lower")
    least, most = window_left_s(facts, down)
    if most <= 0:
        left = "the window is over, the next look decides"
    elif round(least) == round(most):
        left = f"stabilising for {most:.0f} s"
    else:
        left = f"stabilising for {least:.0f} to {most:.0f} s" if least >= 1 else f"stabilising for at most {most:.0f} s"
    window = down_window_s(facts.hpa) if down else up_window_s(facts.hpa)
    return Reason(
        Kind.STABILISING,
        f"{left}: it scales {direction} once no {better} number of pods was called for in the last {window} s.",
        "wait, or change stabilizationWindowSeconds",
    )


def window_left_s(facts: Facts, down: bool) -> tuple[float, float]:
    """Return the least and the most seconds that a stabilisation window has left.

    The controller keeps its recommendations to itself. Where they were recorded from outside, the last one that stood
    against the change ends the window; else all that is known is that it is younger than the window, and not older
    than the last change of size in the other direction.
    """
    window = down_window_s(facts.hpa) if down else up_window_s(facts.hpa)
    current = (facts.hpa.get("status") or {}).get("currentReplicas") or 0
    against = [r.at for r in facts.recommendations if (r.replicas >= current if down else r.replicas <= current)]
    seen_all = facts.recommendations and (facts.now - facts.recommendations[0].at).total_seconds() >= window
    if against and seen_all:
        left = max(0.0, window - (facts.now - max(against)).total_seconds())
        return left, left
    since = [_when(e) for e in facts.events if e.get("reason") == "SuccessfulRescale" and _size(e) == current]
    known = max([*since, *against], default=None)
    least = max(0.0, window - (facts.now - known).total_seconds()) if known and down else 0.0
    return least, float(window)


def _when(event: Object) -> datetime:
    return datetime.fromisoformat(event_time(event))


def _size(event: Object) -> int | None:
    """Return the size that a rescale event tells."""
    found = re.match(r"New size: (\d+);", str(event.get("message") or ""))
    return int(found[1]) if found else None
