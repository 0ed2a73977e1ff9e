"""What the cluster does during a run: watches of the autoscaler, its target, pods and events; the metrics API.

Each watch lives in a thread and keeps the newest objects; once a second they become a `Sample`. A watch that is cut
off lists again and goes on; what was lost in between shows as the next sample's state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from scripts import console
from scripts.causes import one_line
from scripts.errors import LabError
from scripts.hpa import autoscaler, facts, reasons
from scripts.hpa.autoscaler import Recommendation
from scripts.hpa.facts import Facts
from scripts.hpa.model import Event, PodLife, PodView, Sample
from scripts.hpa.reasons import Reason
from scripts.kube import Kube, Object, condition
from scripts.settings import APP_NAME, HpaMetric
from scripts.snapshot import event_time

WATCH_S = 60
RETRY_S = 1.0
METRICS_EVERY_S = 2.0
METRICS_GROUP = ("metrics.k8s.io", "v1beta1")
EXTERNAL_GROUP = ("external.metrics.k8s.io", "v1beta1")
# How KEDA names the first trigger of a ScaledObject, and how it is asked for it.
LATENCY_METRIC = "s0-prometheus"
LATENCY_SELECTOR = f"scaledobject.keda.sh/name={APP_NAME}"
# Why there are no metrics is asked no more often than this: it takes several calls, logs among them.
METRICS_SOURCE_EVERY_S = 10.0
HISTORY_S = 900
FRESH_S = 3.0
MAX_WHY = 160


@dataclass(frozen=True)
class Watched:
    """One kind of objects to follow: how to list it, and which."""

    kind: str
    method: Callable[..., Any]
    selector: dict[str, str]


class Sampler:
    """Follows an environment's autoscaler from `start` to `stop`; all else may be asked from any thread."""

    def __init__(self, kube: Kube, environment: str, hpa: Object, deployment: Object) -> None:
        self._kube = kube
        self._environment = environment
        labels = deployment["spec"]["selector"].get("matchLabels") or {}
        self._pod_selector = ",".join(f"{k}={v}" for k, v in labels.items())
        by_name = {"field_selector": f"metadata.name={deployment['metadata']['name']}"}
        self._name = str(hpa["metadata"]["name"])
        self._metric = autoscaler.metric_of(hpa)
        scalers = kube.autoscaling.list_namespaced_horizontal_pod_autoscaler
        self._watched = (
            Watched("hpa", scalers, {"field_selector": f"metadata.name={self._name}"}),
            Watched("deployment", kube.apps.list_namespaced_deployment, by_name),
            Watched("pod", kube.core.list_namespaced_pod, {"label_selector": self._pod_selector}),
            Watched("event", kube.core.list_namespaced_event, {"field_selector": facts.about(hpa)}),
        )
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._started = time.time()
        self._objects: dict[str, dict[str, Object]] = {w.kind: {} for w in self._watched}
        self._objects["hpa"][self._name] = hpa
        self._objects["deployment"][deployment["metadata"]["name"]] = deployment
        self._usage: dict[str, float] = {}
        self._latency_ms: float | None = None
        self._events: dict[tuple[str, int], Event] = {}
        self._lives: dict[str, PodLife] = {}
        self._recommendations: list[Recommendation] = []
        self._troubles: dict[str, tuple[int, str]] = {}
        self._heard = time.monotonic()
        self._metrics_facts: Facts | None = None
        self._metrics_facts_at = 0.0

    def start(self) -> None:
        """Begin to follow."""
        for watched in self._watched:
            threading.Thread(target=self._follow, args=(watched,), daemon=True, name=f"watch-{watched.kind}").start()
        threading.Thread(target=self._measure, daemon=True, name="metrics").start()

    def stop(self) -> None:
        """Follow no longer; the threads end with their connections."""
        self._stop.set()

    # --- following

    def _follow(self, watched: Watched) -> None:
        from kubernetes.client import ApiException

        while not self._stop.is_set():
            try:
                listed, version = self._kube.list_plain(watched.method, self._environment, **watched.selector)
                self._heard = time.monotonic()
                self.replace(watched.kind, listed)
                changes = self._kube.watch(
                    watched.method, self._environment, version=version, timeout_s=WATCH_S,
                    **watched.selector,
                )  # fmt: skip
                for change, thing in changes:
                    if self._stop.is_set():
                        return
                    self.take(watched.kind, change, thing)
            except (ApiException, LabError) as error:
                # 410: the version was too old, which a new list mends.
                if getattr(error, "status", None) != 410:
                    self._note(f"the watch of {watched.kind} objects was cut off and begun again", error)
                self._stop.wait(RETRY_S)

    def _measure(self) -> None:
        from kubernetes.client import ApiException

        while not self._stop.is_set():
            try:
                found = self._kube.call(
                    self._kube.custom.list_namespaced_custom_object, *METRICS_GROUP, self._environment, "pods",
                    label_selector=self._pod_selector,
                )  # fmt: skip
                usage = {item["metadata"]["name"]: usage_of(item) for item in found["items"]}
                self._heard = time.monotonic()
            except (ApiException, LabError) as error:
                usage = {}
                # An API server that refuses is there.
                if isinstance(error, ApiException):
                    self._heard = time.monotonic()
                self._note("the metrics API did not answer", error)
            latency_ms = self._measure_latency() if self._metric is HpaMetric.LATENCY else None
            with self._lock:
                self._usage, self._latency_ms = usage, latency_ms
            self._stop.wait(METRICS_EVERY_S)

    def _measure_latency(self) -> float | None:
        from kubernetes.client import ApiException

        try:
            found = self._kube.call(
                self._kube.custom.list_namespaced_custom_object, *EXTERNAL_GROUP, self._environment, LATENCY_METRIC,
                label_selector=LATENCY_SELECTOR,
            )  # fmt: skip
        except (ApiException, LabError) as error:
            self._note("the external metrics API did not answer", error)
            return None
        return next((autoscaler.number(item["value"]) for item in found["items"]), None)

    def replace(self, kind: str, things: Iterable[Object]) -> None:
        """Take a whole list: what is not in it is gone."""
        listed = {thing["metadata"]["name"]: thing for thing in things}
        with self._lock:
            gone = [thing for name, thing in self._objects[kind].items() if name not in listed]
        for thing in gone:
            self.take(kind, "DELETED", thing)
        for thing in listed.values():
            self.take(kind, "ADDED", thing)

    def take(self, kind: str, change: str, thing: Object) -> None:
        """Take one change of an object."""
        now = time.time()
        name = str(thing["metadata"]["name"])
        with self._lock:
            if change == "DELETED":
                self._objects[kind].pop(name, None)
            else:
                self._objects[kind][name] = thing
            if kind == "event" and change != "DELETED":
                self._take_event(thing, now)
            elif kind == "pod":
                self._take_pod(change, thing, now)
            elif kind == "hpa":
                self._take_hpa(thing)

    def _take_event(self, thing: Object, now: float) -> None:
        last = event_time(thing)
        count = int(thing.get("count") or (thing.get("series") or {}).get("count") or 1)
        # Those of earlier runs are listed too; an event's time is to the second.
        if last and datetime.fromisoformat(last).timestamp() >= self._started - 1:
            self._events.setdefault(
                (str(thing["metadata"].get("uid") or thing["metadata"]["name"]), count),
                Event(
                    reason=str(thing.get("reason") or ""),
                    message=str(thing.get("message") or ""),
                    kind=str(thing.get("type") or "Normal"),
                    count=count,
                    last=last,
                    seen=now,
                ),
            )

    def _take_pod(self, change: str, pod: Object, now: float) -> None:
        name = pod["metadata"]["name"]
        view = view_of(pod)
        born = pod["metadata"].get("creationTimestamp")
        life = self._lives.get(name) or PodLife(name, view.node, _moment(born, now))
        if view.node and not life.node:
            life = replace(life, node=view.node)
        if view.ready and life.ready is None:
            life = replace(life, ready=_moment(condition(pod).get("lastTransitionTime"), now))
        if view.phase == "Terminating" and life.ending is None:
            life = replace(life, ending=now)
        if change == "DELETED":
            life = replace(life, ending=life.ending or now, gone=now)
        self._lives[name] = life

    def _take_hpa(self, hpa: Object) -> None:
        wanted = autoscaler.recommend(hpa, self._ready())
        if wanted is not None:
            moment = datetime.now(UTC)
            kept = autoscaler.keep_recent(self._recommendations, moment, HISTORY_S)
            self._recommendations = [*kept, Recommendation(moment, wanted)]

    def _ready(self) -> int | None:
        deployment: Object = next(iter(self._objects["deployment"].values()), {})
        ready = (deployment.get("status") or {}).get("readyReplicas")
        return None if ready is None else int(ready)

    def _note(self, trouble: str, error: Exception) -> None:
        why = one_line(_why(error), MAX_WHY)
        console.debug(f"{trouble}: {why}")
        with self._lock:
            count, first = self._troubles.get(trouble, (0, why))
            self._troubles[trouble] = (count + 1, first)

    # --- asking

    def sample(self) -> Sample:
        """Return the state now."""
        with self._lock:
            hpa: Object = next(iter(self._objects["hpa"].values()), {"spec": {}, "metadata": {}})
            deployment: Object = next(iter(self._objects["deployment"].values()), {})
            pods = list(self._objects["pod"].values())
            usage, latency_ms = dict(self._usage), self._latency_ms
        status, scaled = hpa.get("status") or {}, deployment.get("status") or {}
        return Sample(
            at=time.time(),
            desired=int(status.get("desiredReplicas") or 0),
            current=int(deployment.get("spec", {}).get("replicas") or 0),
            ready=int(scaled.get("readyReplicas") or 0),
            hpa_cpu_percent=autoscaler.cpu_percent(hpa),
            cpu_percent=percent_of_requests(pods, usage),
            hpa_latency_ms=autoscaler.latency_ms(hpa),
            latency_ms=latency_ms,
            pods=tuple(sorted((view_of(p, usage) for p in pods), key=lambda p: p.name)),
            conditions=tuple(
                f"{c['type']}={c['status']} {c.get('reason', '')}".strip() for c in status.get("conditions") or []
            ),
        )

    def explain(self) -> list[Reason]:
        """Return what keeps the autoscaler now, from what the watches have seen."""
        with self._lock:
            hpa = next(iter(self._objects["hpa"].values()), None)
            deployment = next(iter(self._objects["deployment"].values()), None)
            pods, events = tuple(self._objects["pod"].values()), tuple(self._objects["event"].values())
            history = tuple(self._recommendations)
        if hpa is None:
            return [Reason(reasons.Kind.OTHER, "its HorizontalPodAutoscaler is gone.", "make reconcile")]
        known = Facts(
            now=datetime.now(UTC), environment=self._environment, hpa=hpa, deployment=deployment, pods=pods,
            events=events, recommendations=history,
        )  # fmt: skip
        if autoscaler.lacks_metrics(hpa):
            if self._metrics_facts is None or time.monotonic() - self._metrics_facts_at > METRICS_SOURCE_EVERY_S:
                self._metrics_facts = facts.with_metrics_source(self._kube, known)
                self._metrics_facts_at = time.monotonic()
            told = self._metrics_facts
            known = replace(
                known, api_service=told.api_service, metrics_pods=told.metrics_pods, metrics_log=told.metrics_log,
                scaled_object=told.scaled_object, trigger_events=told.trigger_events,
            )  # fmt: skip
        return reasons.explain(known)

    def events(self) -> tuple[Event, ...]:
        """Return the autoscaler's events of this run, oldest first."""
        with self._lock:
            return tuple(sorted(self._events.values(), key=lambda e: e.seen))

    def lives(self) -> tuple[PodLife, ...]:
        """Return the pods of this run, oldest first."""
        with self._lock:
            return tuple(sorted(self._lives.values(), key=lambda p: (p.created, p.name)))

    def troubles(self) -> tuple[str, ...]:
        """Return what could not be read in between."""
        with self._lock:
            return tuple(
                f"{trouble} ({f'{count} times; first: ' if count > 1 else ''}{first})"
                for trouble, (count, first) in self._troubles.items()
            )

    def silent_s(self) -> float:
        """Return for how long the API server has not answered."""
        return time.monotonic() - self._heard


def _moment(stamp: str | None, now: float) -> float:
    """Return when something happened: now, unless its timestamp, which is to the second, says that it is long ago."""
    told = datetime.fromisoformat(stamp).timestamp() if stamp else now
    return told if now - told > FRESH_S else now


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "what", None) or error)


def millicores(quantity: str) -> float:
    """Return a CPU quantity in thousandths of a core."""
    return autoscaler.number(quantity) * 1000


def usage_of(metrics: Object) -> float:
    """Return the CPU that a pod uses, in thousandths of a core."""
    return sum(millicores(c["usage"]["cpu"]) for c in metrics["containers"] if "cpu" in c.get("usage", {}))


def request_of(pod: Object) -> float:
    """Return the CPU that a pod asks for, in thousandths of a core; 0 if a container asks for none."""
    asked = [(c.get("resources", {}).get("requests") or {}).get("cpu") for c in pod["spec"].get("containers") or []]
    return sum(millicores(a) for a in asked if a) if all(asked) else 0.0


def limit_of(pod: Object) -> float:
    """Return the CPU that a pod's limits leave it, in thousandths of a core; 0 if a container has none."""
    given = [(c.get("resources", {}).get("limits") or {}).get("cpu") for c in pod["spec"].get("containers") or []]
    return sum(millicores(g) for g in given if g) if all(given) else 0.0


def percent_of_requests(pods: Iterable[Object], usage: dict[str, float]) -> float | None:
    """Return the measured pods' CPU in percent of what they ask for, as the autoscaler reckons it; None without figures."""
    measured = [(usage[p["metadata"]["name"]], request_of(p)) for p in pods if p["metadata"]["name"] in usage]
    asked = sum(request for _, request in measured)
    return round(100 * sum(used for used, _ in measured) / asked, 1) if asked else None


def view_of(pod: Object, usage: dict[str, float] | None = None) -> PodView:
    """Return a pod as it is shown."""
    if pod["metadata"].get("deletionTimestamp"):
        phase = "Terminating"
    elif condition(pod).get("status") == "True":
        phase = "Ready"
    else:
        phase = str(pod.get("status", {}).get("phase") or "Pending")
    used = (usage or {}).get(pod["metadata"]["name"])
    return PodView(
        pod["metadata"]["name"], pod["spec"].get("nodeName") or "", phase, None if used is None else round(used, 1)
    )
