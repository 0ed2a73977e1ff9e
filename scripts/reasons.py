"""Why something is not ready: the deepest cause that the cluster's objects tell, one line each.

`collect` reads what is needed in a dozen calls; all else is a pure function of that snapshot::

    for line in explain(collect(kube)):
        print(line)  # pod dev/demo-app-7d4b: image registry.lab/demo-app:x can't be pulled: … [holds up Kustomization dev]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from functools import cached_property

from scripts.hostfacts import mask_credentials
from scripts.kube import Kube, Object, condition, is_ready

MAX_LINE = 400
LOGS_READ = 10
LOG_LINES = 20
# A pod whose container runs for less is starting; what its probes say by then is no fault yet.
STARTING_S = 30
TERMINATION_GRACE_S = 60

_SCALED = {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"}
_PULL_REASONS = {
    "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
}  # fmt: skip
_CREATING = {"", "ContainerCreating", "PodInitializing"}
_START_EVENTS = {
    "FailedCreatePodSandBox", "FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodContainer",
    "NetworkNotReady", "FailedKillPod", "FailedSync",
}  # fmt: skip
# metrics-server scrapes every 10 to 15 s and needs two samples; the HPA looks every 5 to 15 s.
METRICS_GRACE_S = 90
_NODE_PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")

_URL = re.compile(r"[\w+.-]{1,20}://\S+")  # bounded: the time stays linear in a long word
_PULL_NOISE = re.compile(
    r"Back-off pulling image \"[^\"]*\": |ErrImagePull: |rpc error: code = \w+ desc = "
    r"|failed to pull and unpack image \"[^\"]*\": |failed to resolve reference \"[^\"]*\": |failed to resolve image: "
)
_LONG_ID = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_FORBIDDEN = re.compile(r"^(?:Error creating: )?pods \"[^\"]*\" is forbidden: ")
# kustomize-controller: "Deployment/dev/demo-app status: 'InProgress'", cluster-scoped objects without a namespace.
_WAITED_FOR = re.compile(r"\b([A-Z]\w+)/(?:([\w.-]+)/)?([\w.:-]+) status: '(\w+)'")


class Depth(IntEnum):
    """How deep a cause lies: what is found further down explains what is found above it."""

    NODE = 0
    POD = 1
    WORKLOAD = 2
    FLUX = 3
    SCALER = 4
    STARTING = 5  # not a fault so far


@dataclass(frozen=True)
class Cause:
    """One cause: what it is about and why; `owner` joins pods of one workload that share it."""

    subject: str
    why: str
    depth: Depth
    owner: str = ""


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
        return {(thing["kind"], _namespace(thing), _name(thing)): thing for thing in everything}

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        return self._index.get((kind, namespace, name))

    def owned_by(self, owner: Object, things: Iterable[Object]) -> list[Object]:
        """Return those of the things that the object owns."""
        wanted = (owner["kind"], _name(owner))
        mine = (t for t in things if _namespace(t) == _namespace(owner))
        return [t for t in mine if wanted in [(o["kind"], o["name"]) for o in _owners(t)]]

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
        for status in _statuses(pod):
            ended = _bad_end(status)
            if not ended or status.get("ready") or len(found) >= LOGS_READ:
                continue
            key = f"{_namespace(pod)}/{_name(pod)}/{status['name']}"
            previous = "terminated" not in (status.get("state") or {})
            path = f"/api/v1/namespaces/{_namespace(pod)}/pods/{_name(pod)}/log"
            try:
                found[key] = kube.get_text(path, container=status["name"], previous=previous, tailLines=LOG_LINES)
            except ApiException:
                continue  # gone by now: its exit code has to do
    return found


def explain_now(kube: Kube) -> str:
    """Return the deepest causes of what is not ready now, one line each."""
    return "\n".join(explain(collect(kube)))


def explain(snapshot: Snapshot) -> list[str]:
    """Return why things are not ready, deepest causes first; what one cause holds up is named behind it."""
    found = _Findings()
    for thing in snapshot.nodes:
        found.add(_causes_of_node(snapshot, thing), f"node {_name(thing)}")
    for thing in snapshot.sources:
        found.add(source_causes(snapshot, thing), f"GitRepository {_flux_name(thing)}")
    for thing in snapshot.kustomizations:
        found.add(kustomization_causes(snapshot, thing), f"Kustomization {_flux_name(thing)}")
    for thing in snapshot.workloads:
        # A ReplicaSet speaks through its Deployment.
        if thing["kind"] != "ReplicaSet" or not _owners(thing):
            found.add(workload_causes(snapshot, thing))
    for pod in snapshot.pods:
        found.add(pod_causes(snapshot, pod))
    for thing in snapshot.autoscalers:
        found.add(autoscaler_causes(snapshot, thing), f"HPA {_full_name(thing)}")
    return found.lines()


class _Findings:
    """Causes joined: the same one found on several ways is one line."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[Depth, list[str], list[str]]] = {}

    def add(self, causes: Iterable[Cause], holds_up: str = "") -> None:
        for cause in causes:
            key = (cause.owner or cause.subject, cause.why)
            _, subjects, held = self._found.setdefault(key, (cause.depth, [], []))
            if cause.subject not in subjects:
                subjects.append(cause.subject)
            if holds_up and holds_up not in held and not cause.subject.startswith(holds_up):
                held.append(holds_up)

    def lines(self) -> list[str]:
        rows = sorted(self._found.items(), key=lambda row: (row[1][0], -len(row[1][2])))
        return [self._line(why, subjects, held) for (_, why), (_, subjects, held) in rows]

    @staticmethod
    def _line(why: str, subjects: list[str], held: list[str]) -> str:
        more = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
        behind = f" [holds up {', '.join(held)}]" if held else ""
        return f"{subjects[0]}{more}: {one_line(why)}{behind}"


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return a message as one line: ids and long middles shortened, passwords in URLs masked."""
    flat = mask_urls(_LONG_ID.sub(r"\1…", " ".join(text.split())))
    # Nested errors say the cause last and the object first: the middle goes.
    return flat if len(flat) <= limit else f"{flat[: limit // 3]} … {flat[-(limit - limit // 3 - 3) :]}"


def mask_urls(text: str) -> str:
    """Return a text with user and password of each URL in it masked."""
    return _URL.sub(lambda match: mask_credentials(match[0]), text)


# --- nodes


def node_problem(node: Object) -> str:
    """Return why a node is not Ready or under pressure, or ""."""
    ready = condition(node)
    if ready.get("status") != "True":
        message = ready.get("message") or "has not reported yet"
        return f"not Ready: {message}"
    pressures = [c for c in _NODE_PRESSURES if condition(node, c).get("status") == "True"]
    return ", ".join(f"{c}: {condition(node, c).get('message', '')}" for c in pressures)


def _node_causes(snapshot: Snapshot) -> list[Cause]:
    return [cause for node in snapshot.nodes for cause in _causes_of_node(snapshot, node)]


def _causes_of_node(snapshot: Snapshot, node: Object) -> list[Cause]:
    problem = node_problem(node)
    if not problem:
        return []
    if any(word in problem for word in ("NetworkPlugin", "network plugin", "cni")):
        # The network's own pods run on the node's network, so they start on a node that isn't Ready.
        for pod in snapshot.pods:
            spec = pod.get("spec", {})
            if (
                spec.get("hostNetwork")
                and spec.get("nodeName") == _name(node)
                and (why := _definite_problem(snapshot, pod))
            ):
                return [_pod_cause(pod, why, Depth.NODE)]
    return [Cause(f"node {_name(node)}", problem, Depth.NODE)]


# --- pods


def pod_causes(snapshot: Snapshot, pod: Object) -> list[Cause]:
    """Return why a pod is not ready; [] for one that is ready, has done its work, or is being deleted in time."""
    meta, status = pod["metadata"], pod.get("status", {})
    if deleted := meta.get("deletionTimestamp"):
        late = (snapshot.taken_at - _time(deleted)).total_seconds()
        if late < TERMINATION_GRACE_S:
            return []
        finalizers = f", finalizers: {', '.join(meta['finalizers'])}" if meta.get("finalizers") else ""
        return [_pod_cause(pod, f"still terminating {late:.0f} s after its deadline{finalizers}", Depth.POD)]
    if pod_is_ready(pod):
        return []
    if status.get("phase") == "Failed" and _owner_is_healthy(snapshot, pod):
        return []  # evicted or shut down, and replaced since
    scheduled = condition(pod, "PodScheduled")
    if not pod.get("spec", {}).get("nodeName"):
        return _unscheduled(snapshot, pod, scheduled)
    if why := _definite_problem(snapshot, pod):
        return [_pod_cause(pod, why, Depth.POD)]
    node = snapshot.find("Node", "", pod["spec"]["nodeName"])
    if node and condition(node).get("status") != "True":
        return _causes_of_node(snapshot, node)
    return [_not_ready_yet(snapshot, pod)]


def pod_is_ready(pod: Object) -> bool:
    """Whether a pod is Ready or has done its work."""
    phase = pod.get("status", {}).get("phase")
    return phase == "Succeeded" or (phase != "Failed" and condition(pod).get("status") == "True")


def _unscheduled(snapshot: Snapshot, pod: Object, scheduled: Object) -> list[Cause]:
    message = scheduled.get("message") or snapshot.newest_event(pod, ["FailedScheduling"])
    if not message:
        return [_pod_cause(pod, "not scheduled to a node yet", Depth.STARTING)]
    if "node.kubernetes.io/not-ready" in message or "node.kubernetes.io/unreachable" in message:
        causes = _node_causes(snapshot)
        if causes:
            return causes
    # The scheduler adds what preemption came to, which repeats the first part.
    return [_pod_cause(pod, f"can't be scheduled: {message.split(' preemption:')[0]}", Depth.POD)]


def _definite_problem(snapshot: Snapshot, pod: Object) -> str:
    """Return what keeps a scheduled pod from running, or "" if it may just be starting."""
    status = pod.get("status", {})
    for container in _statuses(pod):
        if why := _container_problem(snapshot, pod, container):
            return f"{_label(pod, container)}{why}"
    if status.get("phase") == "Failed":
        return ": ".join(t for t in (status.get("reason") or "failed", status.get("message") or "") if t)
    if not any((c.get("state") or {}).get("running") for c in status.get("containerStatuses") or []) and (
        message := snapshot.newest_event(pod, _START_EVENTS)
    ):
        return re.sub(r"rpc error: code = \w+ desc = ", "", message)
    return ""


def _container_problem(snapshot: Snapshot, pod: Object, status: Object) -> str:
    if status.get("ready"):
        return ""
    state = status.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = waiting.get("reason") or ""
    if reason in _PULL_REASONS:
        message = _PULL_NOISE.sub("", waiting.get("message") or "").strip()
        if not message or message.startswith("Back-off"):
            failed = snapshot.newest_event(pod, ["Failed"], contains="Failed to pull image")
            message = _PULL_NOISE.sub("", failed.partition(": ")[2]) or reason
        return f"image {status.get('image') or '(none)'} can't be pulled: {message}"
    if ended := _bad_end(status):
        return _how_it_ended(snapshot, pod, status, ended)
    if reason == "CrashLoopBackOff":
        return "ends at once with exit code 0, again and again"
    if reason not in _CREATING:
        return f"{reason}: {waiting.get('message') or 'no message'}"
    return ""


def _bad_end(status: Object) -> Object:
    """Return the state in which a container that doesn't run ended badly, or {}."""
    state = status.get("state") or {}
    if state.get("running"):
        return {}
    last = (status.get("lastState") or {}).get("terminated") or {}
    ended: Object = state.get("terminated") or last
    return ended if ended.get("exitCode") else {}


def _how_it_ended(snapshot: Snapshot, pod: Object, status: Object, ended: Object) -> str:
    name = status["name"]
    restarts = status.get("restartCount") or 0
    times = f" ({restarts} restarts)" if restarts else ""
    if ended.get("reason") == "OOMKilled":
        spec = next((c for c in _containers(pod) if c.get("name") == name), {})
        limit = spec.get("resources", {}).get("limits", {}).get("memory")
        return f"OOMKilled: needs more than its memory limit{f' of {limit}' if limit else ''}{times}"
    if ended.get("reason") in ("StartError", "ContainerCannotRun"):
        return f"can't be started: {ended.get('message') or 'no message'}{times}"
    log = snapshot.logs.get(f"{_namespace(pod)}/{_name(pod)}/{name}") or ended.get("message") or ""
    words = [line.strip() for line in log.splitlines() if line.strip()]
    why = f"ends with exit code {ended['exitCode']}{times}"
    killed = snapshot.newest_event(pod, ["Unhealthy"])
    if ended["exitCode"] in (137, 143) and killed.startswith(("Liveness", "Startup")):
        why = f"killed by its probe{times}: {killed}"
    return f"{why}; its last words: {words[-1]}" if words else why


def _not_ready_yet(snapshot: Snapshot, pod: Object) -> Cause:
    """Return what a pod without a definite problem waits for."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    waiting: Object = next((c for c in statuses if not c.get("ready")), {})
    if statuses and not waiting:
        return _pod_cause(pod, condition(pod).get("message") or "its containers are ready, the pod not yet", Depth.POD)
    running = (waiting.get("state") or {}).get("running") or {}
    if not running:
        initialising = [
            c for c in pod["status"].get("initContainerStatuses") or [] if (c.get("state") or {}).get("running")
        ]
        doing = f"init container {initialising[0]['name']} runs" if initialising else "its containers are being created"
        return _pod_cause(pod, f"starting: {doing}", Depth.STARTING)
    age = (snapshot.taken_at - _time(running["startedAt"])).total_seconds() if running.get("startedAt") else 0.0
    restarts = f", {waiting['restartCount']} restarts" if waiting.get("restartCount") else ""
    probe = snapshot.newest_event(pod, ["Unhealthy"])
    why = f"{_label(pod, waiting)}{probe or 'its probe has not passed yet'}{restarts}"
    return _pod_cause(pod, why, Depth.STARTING if age < STARTING_S else Depth.POD)


def _pod_cause(pod: Object, why: str, depth: Depth) -> Cause:
    owner = next((f"{o['kind']} {_namespace(pod)}/{o['name']}" for o in _owners(pod)), "")
    return Cause(f"pod {_full_name(pod)}", why, depth, owner)


def _label(pod: Object, status: Object) -> str:
    """Return the container's name where a pod has more than one."""
    init = any(c.get("name") == status["name"] for c in pod.get("spec", {}).get("initContainers") or [])
    if init:
        return f"init container {status['name']}: "
    return f"container {status['name']}: " if len(pod["spec"].get("containers") or []) > 1 else ""


def _owner_is_healthy(snapshot: Snapshot, pod: Object) -> bool:
    for owner in _owners(pod):
        thing = snapshot.find(owner["kind"], _namespace(pod), owner["name"])
        if thing:
            return not _workload_problem(thing)
    return False


# --- workloads


def workload_causes(snapshot: Snapshot, thing: Object) -> list[Cause]:
    """Return why a Deployment, DaemonSet, StatefulSet, ReplicaSet or Job is not as it should be."""
    problem = _workload_problem(thing)
    if not problem:
        return []
    subject = f"{thing['kind']} {_full_name(thing)}"
    makers = [thing]
    if thing["kind"] == "Deployment":
        makers = [
            s for s in snapshot.owned_by(thing, snapshot.workloads) if s.get("spec", {}).get("replicas")
        ] or makers
    causes = [Cause(subject, refusal, Depth.WORKLOAD) for m in makers if (refusal := _refusal(snapshot, m))]
    for maker in makers:
        for pod in snapshot.owned_by(maker, snapshot.pods):
            causes += pod_causes(snapshot, pod)
    if any(c.depth is not Depth.STARTING for c in causes):
        return causes
    for kind, bad in (("ReplicaFailure", "True"), ("Failed", "True"), ("Progressing", "False")):
        found = condition(thing, kind)
        if found.get("status") == bad:
            # A deadline that has passed says nothing that a pod's own state doesn't say better.
            return causes or [Cause(subject, found.get("message") or found.get("reason") or kind, Depth.WORKLOAD)]
    return causes or [Cause(subject, problem, Depth.STARTING)]


def _workload_problem(thing: Object) -> str:
    """Return in what a workload differs from what was asked for, or ""."""
    spec, status = thing.get("spec", {}), thing.get("status", {})
    kind = thing["kind"]
    if kind == "Job":
        failed = condition(thing, "Failed").get("status") == "True"
        retried = status.get("failed") and condition(thing, "Complete").get("status") != "True"
        return "failed" if failed else f"{status['failed']} failed attempts" if retried else ""
    if (status.get("observedGeneration") or 0) < (thing["metadata"].get("generation") or 0):
        return "its latest change has not been seen by its controller yet"
    if kind == "DaemonSet":
        wanted = status.get("desiredNumberScheduled") or 0
        counts = {"updated": status.get("updatedNumberScheduled") or 0, "available": status.get("numberAvailable") or 0}
    else:
        wanted = spec.get("replicas", 1)
        counts = {"available": status.get("availableReplicas") or 0}
        if kind == "Deployment":
            counts["updated"] = status.get("updatedReplicas") or 0
    short = [f"{count} of {wanted} replicas {what}" for what, count in counts.items() if count < wanted]
    return ", ".join(short)


def _refusal(snapshot: Snapshot, maker: Object) -> str:
    """Return why a controller may not create its pods (quota, admission), or ""."""
    message = ""
    if maker["kind"] == "ReplicaSet":
        failure = condition(maker, "ReplicaFailure")
        message = failure.get("message", "") if failure.get("status") == "True" else ""
    elif maker["kind"] != "Deployment":
        message = snapshot.newest_event(maker, ["FailedCreate"])
    if not message:
        return ""
    return f"its pods are refused: {_FORBIDDEN.sub('', message).removeprefix('Error creating: ')}"


# --- Flux


def source_causes(snapshot: Snapshot, thing: Object) -> list[Cause]:
    """Return why a GitRepository has no current artifact."""
    if thing.get("spec", {}).get("suspend") or is_ready(thing):
        return []
    return _flux_own(snapshot, thing, "source-controller")


def kustomization_causes(snapshot: Snapshot, thing: Object, seen: frozenset[str] = frozenset()) -> list[Cause]:
    """Return why a Kustomization is not Ready: followed to its source, its dependencies and the objects it waits for."""
    if thing.get("spec", {}).get("suspend") or is_ready(thing):
        return []
    own = _flux_own(snapshot, thing, "kustomize-controller")
    key = _full_name(thing)
    if key in seen:
        return [
            Cause(f"Kustomization {_flux_name(thing)}", "waits for itself: its dependencies form a circle", Depth.FLUX)
        ]
    seen |= {key}
    ready = condition(thing)
    reason = ready.get("reason") or ""
    if reason == "DependencyNotReady":
        return _dependency_causes(snapshot, thing, seen) or own
    if reason == "ArtifactFailed":
        return _causes_of_its_source(snapshot, thing) or own
    message = ready.get("message") or ""
    if waited := _WAITED_FOR.findall(message):
        deeper: list[Cause] = []
        for kind, namespace, name, state in waited:
            found = _object_causes(snapshot, kind, namespace, name, seen)
            place = f"{namespace}/{name}" if namespace else name
            deeper += found or [Cause(f"{kind} {place}", f"health check says {state}", Depth.FLUX)]
        return deeper
    if reason in ("Progressing", "HealthCheckCanceled", "HealthCheckFailed"):
        deeper = [c for kind, ns, name in _inventory(thing) for c in _object_causes(snapshot, kind, ns, name, seen)]
        return deeper or own
    return own


def _dependency_causes(snapshot: Snapshot, thing: Object, seen: frozenset[str]) -> list[Cause]:
    causes: list[Cause] = []
    for reference in thing["spec"].get("dependsOn") or []:
        dependency = snapshot.find("Kustomization", reference.get("namespace") or _namespace(thing), reference["name"])
        if dependency:
            causes += kustomization_causes(snapshot, dependency, seen)
    return causes


def _causes_of_its_source(snapshot: Snapshot, thing: Object) -> list[Cause]:
    reference = thing["spec"].get("sourceRef", {})
    source = snapshot.find(
        reference.get("kind", ""), reference.get("namespace") or _namespace(thing), reference.get("name", "")
    )
    return source_causes(snapshot, source) if source else []


def _object_causes(snapshot: Snapshot, kind: str, namespace: str, name: str, seen: frozenset[str]) -> list[Cause]:
    thing = snapshot.find(kind, namespace, name)
    if thing is None:
        event = snapshot.newest_event({"kind": kind, "metadata": {"namespace": namespace, "name": name}})
        return [Cause(f"{kind} {namespace}/{name}", event, Depth.WORKLOAD)] if event else []
    if kind == "Kustomization":
        return kustomization_causes(snapshot, thing, seen)
    if kind == "GitRepository":
        return source_causes(snapshot, thing)
    if kind == "Pod":
        return pod_causes(snapshot, thing)
    return workload_causes(snapshot, thing) if kind in _SCALED else []


def _flux_own(snapshot: Snapshot, thing: Object, controller: str) -> list[Cause]:
    """Return what a Flux object says of itself, or, where it says nothing, what keeps its controller from speaking."""
    subject = f"{thing['kind']} {_flux_name(thing)}"
    ready = condition(thing)
    generation = thing["metadata"].get("generation") or 0
    observed = ready.get("observedGeneration") or thing.get("status", {}).get("observedGeneration") or 0
    if not ready or observed < generation:
        deployment = snapshot.find("Deployment", _namespace(thing), controller)
        if deployment and (causes := workload_causes(snapshot, deployment)):
            return causes
        if not deployment and snapshot.workloads:
            return [Cause(subject, f"not reconciled: there is no {controller} in {_namespace(thing)}", Depth.FLUX)]
        what = "its latest change has not been reconciled yet" if ready else "not reconciled yet"
        return [Cause(subject, what, Depth.STARTING)]
    if ready.get("status") == "Unknown":
        message = condition(thing, "Reconciling").get("message") or ready.get("message") or "reconciling"
        return [Cause(subject, message, Depth.STARTING)]
    return [Cause(subject, ready.get("message") or ready.get("reason") or "not Ready", Depth.FLUX)]


def _inventory(thing: Object) -> Iterator[tuple[str, str, str]]:
    """Yield kind, namespace and name of what a Kustomization has applied (ids as in namespace_name_group_kind)."""
    for entry in (thing.get("status", {}).get("inventory") or {}).get("entries") or []:
        parts = entry["id"].split("_")
        if len(parts) >= 4:
            yield parts[-1], parts[0], "_".join(parts[1:-2])


# --- autoscalers


def autoscaler_problem(thing: Object) -> str:
    """Return why an HPA doesn't scale, or ""."""
    for kind in ("AbleToScale", "ScalingActive"):
        found = condition(thing, kind)
        if found.get("status") == "False" and found.get("reason") != "ScalingDisabled":
            return str(found.get("message") or found.get("reason"))
    return "" if condition(thing, "ScalingActive") else "its controller has not looked at it yet"


def autoscaler_causes(snapshot: Snapshot, thing: Object) -> list[Cause]:
    """Return why an HPA doesn't scale, followed to metrics-server and to the pods that are measured."""
    problem = autoscaler_problem(thing)
    if not problem:
        return []
    subject = f"HPA {_full_name(thing)}"
    if not condition(thing, "ScalingActive"):
        return [Cause(subject, problem, Depth.STARTING)]
    if waits_for_first_metrics(snapshot, thing):
        return []
    if "metrics" in problem:
        servers = [w for w in snapshot.workloads if w["kind"] == "Deployment" and _name(w) == "metrics-server"]
        causes = [c for server in servers for c in workload_causes(snapshot, server)]
        if not servers and snapshot.workloads:
            causes = [Cause(subject, f"there is no metrics-server: {problem}", Depth.SCALER)]
        target = thing.get("spec", {}).get("scaleTargetRef", {})
        scaled = snapshot.find(target.get("kind", ""), _namespace(thing), target.get("name", ""))
        if not causes and scaled:
            causes = workload_causes(snapshot, scaled)
        if causes:
            return causes
    return [Cause(subject, problem, Depth.SCALER)]


def waits_for_first_metrics(snapshot: Snapshot, thing: Object) -> bool:
    """Whether an HPA only lacks metrics of pods so young that metrics-server can't have measured them yet."""
    if "metrics" not in autoscaler_problem(thing):
        return False
    target = thing.get("spec", {}).get("scaleTargetRef", {}).get("name", "")
    pods = [p for p in snapshot.pods if _namespace(p) == _namespace(thing) and _name(p).startswith(f"{target}-")]
    born = [_timestamp(p["metadata"].get("creationTimestamp", "")) for p in pods]
    return any(b and (snapshot.taken_at - b).total_seconds() < METRICS_GRACE_S for b in born)


def _timestamp(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


# --- plain data


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
    return place == (thing["kind"], _namespace(thing), _name(thing))


def _statuses(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    init = [s for s in status.get("initContainerStatuses") or [] if not _is_done(s)]
    return [*init, *(status.get("containerStatuses") or [])]


def _is_done(status: Object) -> bool:
    ended = (status.get("state") or {}).get("terminated") or {}
    return ended.get("exitCode") == 0


def _containers(pod: Object) -> list[Object]:
    spec = pod.get("spec", {})
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]


def _owners(thing: Object) -> list[Object]:
    owners: list[Object] = thing["metadata"].get("ownerReferences") or []
    return owners


def _name(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def _namespace(thing: Object) -> str:
    return str(thing["metadata"].get("namespace") or "")


def _full_name(thing: Object) -> str:
    return f"{_namespace(thing)}/{_name(thing)}" if _namespace(thing) else _name(thing)


def _flux_name(thing: Object) -> str:
    """Return the name alone where it says all: Flux objects of a lab are in one namespace."""
    return _name(thing) if _namespace(thing) == "flux-system" else _full_name(thing)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
