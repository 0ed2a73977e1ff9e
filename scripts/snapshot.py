"""A cluster's state at one moment as plain data, read in a dozen calls; what the reasons are found in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from scripts.kube import Kube, Object

LOGS_READ = 10
LOG_LINES = 20


@dataclass(frozen=True)
class Snapshot:
    """The objects that tell a cluster's state, as plain data with `kind` set."""

    taken_at: datetime
    nodes: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    workloads: tuple[Object, ...] = ()
    autoscalers: tuple[Object, ...] = ()
    events: tuple[Object, ...] = ()  # warnings
    sources: tuple[Object, ...] = ()
    kustomizations: tuple[Object, ...] = ()
    logs: Mapping[str, str] = field(default_factory=dict)  # "namespace/pod/container" -> its last words
    unread: tuple[str, ...] = ()

    @cached_property
    def _index(self) -> dict[tuple[str, str, str], Object]:
        everything = (*self.nodes, *self.pods, *self.workloads, *self.sources, *self.kustomizations)
        return {(thing["kind"], namespace_of(thing), name_of(thing)): thing for thing in everything}

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        return self._index.get((kind, namespace, name))

    def owned_by(self, owner: Object, things: Iterable[Object]) -> list[Object]:
        """Return those of the things that the object owns."""
        wanted = (owner["kind"], name_of(owner))
        mine = (t for t in things if namespace_of(t) == namespace_of(owner))
        return [t for t in mine if wanted in [(o["kind"], o["name"]) for o in owners_of(t)]]

    def newest_event(self, thing: Object, reasons: Iterable[str] = (), contains: str = "") -> str:
        """Return the message of an object's newest warning, or ""."""
        wanted = set(reasons)
        found = [
            e
            for e in self.events
            if _is_about(e, thing)
            and (not wanted or e.get("reason") in wanted)
            and contains in (e.get("message") or "")
        ]
        return str(max(found, key=event_time).get("message") or "") if found else ""


def collect(kube: Kube) -> Snapshot:
    """Read the snapshot; kinds this user may not read, or that the cluster lacks, are left out and named in `unread`."""
    from kubernetes.client import ApiException

    unread: list[str] = []

    def items(kind: str, path: str, **query: str) -> tuple[Object, ...]:
        try:
            found = kube.get(path, **query)["items"]
        except ApiException as error:
            unread.append(f"{kind} objects can't be read: {error.reason}")
            return ()
        return tuple({"kind": kind} | thing for thing in found)

    def flux(kind: str) -> tuple[Object, ...]:
        try:
            return tuple({"kind": kind} | thing for thing in kube.list_custom(kind))
        except ApiException as error:
            unread.append(f"{kind} objects can't be read: {error.reason}")
            return ()

    pods = items("Pod", "/api/v1/pods")
    return Snapshot(
        taken_at=datetime.now(UTC),
        nodes=items("Node", "/api/v1/nodes"),
        pods=pods,
        workloads=(
            *items("Deployment", "/apis/apps/v1/deployments"),
            *items("ReplicaSet", "/apis/apps/v1/replicasets"),
            *items("DaemonSet", "/apis/apps/v1/daemonsets"),
            *items("StatefulSet", "/apis/apps/v1/statefulsets"),
            *items("Job", "/apis/batch/v1/jobs"),
        ),
        autoscalers=items("HorizontalPodAutoscaler", "/apis/autoscaling/v2/horizontalpodautoscalers"),
        events=items("Event", "/api/v1/events", fieldSelector="type=Warning"),
        sources=flux("GitRepository"),
        kustomizations=flux("Kustomization"),
        logs=_last_words(kube, pods),
        unread=tuple(unread),
    )


def _last_words(kube: Kube, pods: Iterable[Object]) -> dict[str, str]:
    """Return the last log lines of containers that ended badly."""
    from kubernetes.client import ApiException

    found: dict[str, str] = {}
    for pod in pods:
        for status in statuses_of(pod):
            ended = bad_end(status)
            if not ended or status.get("ready") or len(found) >= LOGS_READ:
                continue
            key = f"{namespace_of(pod)}/{name_of(pod)}/{status['name']}"
            previous = "terminated" not in (status.get("state") or {})
            path = f"/api/v1/namespaces/{namespace_of(pod)}/pods/{name_of(pod)}/log"
            try:
                found[key] = kube.get_text(path, container=status["name"], previous=previous, tailLines=LOG_LINES)
            except ApiException:
                continue  # gone by now: its exit code has to do
    return found


def bad_end(status: Object) -> Object:
    """Return the state in which a container that doesn't run ended badly, or {}."""
    state = status.get("state") or {}
    if state.get("running"):
        return {}
    last = (status.get("lastState") or {}).get("terminated") or {}
    ended: Object = state.get("terminated") or last
    return ended if ended.get("exitCode") else {}


def event_time(event: Object) -> str:
    """Return when an event was last seen, whichever of its three ways it says so in."""
    series = (event.get("series") or {}).get("lastObservedTime")
    last = series or event.get("lastTimestamp") or event.get("eventTime")
    return str(last or event.get("metadata", {}).get("creationTimestamp") or "")


def _is_about(event: Object, thing: Object) -> bool:
    about = event.get("involvedObject") or {}
    if about.get("uid") and thing["metadata"].get("uid"):
        return bool(about["uid"] == thing["metadata"]["uid"])
    place = (about.get("kind"), about.get("namespace") or "", about.get("name"))
    return place == (thing["kind"], namespace_of(thing), name_of(thing))


def statuses_of(pod: Object) -> list[Object]:
    """Return the container statuses of a pod; init containers that have done their work are left out."""
    status = pod.get("status", {})
    init = [s for s in status.get("initContainerStatuses") or [] if not _is_done(s)]
    return [*init, *(status.get("containerStatuses") or [])]


def _is_done(status: Object) -> bool:
    ended = (status.get("state") or {}).get("terminated") or {}
    return ended.get("exitCode") == 0


def containers_of(pod: Object) -> list[Object]:
    """Return a pod's init containers and containers."""
    spec = pod.get("spec", {})
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]


def owners_of(thing: Object) -> list[Object]:
    """Return an object's owner references."""
    owners: list[Object] = thing["metadata"].get("ownerReferences") or []
    return owners


def name_of(thing: Object) -> str:
    """Return an object's name."""
    return str(thing["metadata"]["name"])


def namespace_of(thing: Object) -> str:
    """Return an object's namespace, or an empty text."""
    return str(thing["metadata"].get("namespace") or "")


def full_name(thing: Object) -> str:
    """Return namespace/name, or the name of what has no namespace."""
    return f"{namespace_of(thing)}/{name_of(thing)}" if namespace_of(thing) else name_of(thing)


def flux_name(thing: Object) -> str:
    """Return the name alone where it says all: Flux objects of a lab are in one namespace."""
    return name_of(thing) if namespace_of(thing) == "flux-system" else full_name(thing)


def parse_time(text: str) -> datetime:
    """Return the API server's time as a datetime."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
