"""Why a node, a pod or a workload is not as it should be: pure functions of a snapshot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from scripts.hostfacts import mask_credentials
from scripts.kube import Object, condition
from scripts.snapshot import (
    Snapshot,
    bad_end,
    containers_of,
    full_name,
    name_of,
    namespace_of,
    owners_of,
    parse_time,
    statuses_of,
)

MAX_LINE = 400
# A pod whose container runs for less is starting; what its probes say by then is no fault yet.
STARTING_S = 30
TERMINATION_GRACE_S = 60

MAX_LINE = 400
LOGS_READ = 10
LOG_LINES = 20
# A pod whose container runs for less is starting; what its probes say by then is no fault yet.
STARTING_S = 30
TERMINATION_GRACE_S = 60

_PULL_REASONS = {
    "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
}  # fmt: skip
_CREATING = {"", "ContainerCreating", "PodInitializing"}
_START_EVENTS = {
    "FailedCreatePodSandBox", "FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodContainer",
    "NetworkNotReady", "FailedKillPod", "FailedSync",
}  # fmt: skip
_NODE_PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")

_URL = re.compile(r"[\w+.-]{1,20}://\S+")  # bounded: the time stays linear in a long word
_PULL_NOISE = re.compile(
    r"Back-off pulling image \"[^\"]*\": |ErrImagePull: |rpc error: code = \w+ desc = "
    r"|failed to pull and unpack image \"[^\"]*\": |failed to resolve reference \"[^\"]*\": |failed to resolve image: "
)
_LONG_ID = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_FORBIDDEN = re.compile(r"^(?:Error creating: )?pods \"[^\"]*\" is forbidden: ")


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


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return a message as one line: ids and long middles shortened, passwords in URLs masked."""
    flat = mask_urls(_LONG_ID.sub(r"\1…", " ".join(text.split())))
    # Nested errors say the cause last and the object first: the middle goes.
    return flat if len(flat) <= limit else f"{flat[: limit // 3]} … {flat[-(limit - limit // 3 - 3) :]}"


def mask_urls(text: str) -> str:
    """Return a text with user and password of each URL in it masked."""
    return _URL.sub(lambda match: mask_credentials(match[0]), text)


def node_problem(node: Object) -> str:
    """Return why a node is not Ready or under pressure, or ""."""
    ready = condition(node)
    if ready.get("status") != "True":
        message = ready.get("message") or "has not reported yet"
        return f"not Ready: {message}"
    pressures = [c for c in _NODE_PRESSURES if condition(node, c).get("status") == "True"]
    return ", ".join(f"{c}: {condition(node, c).get('message', '')}" for c in pressures)


def _node_causes(snapshot: Snapshot) -> list[Cause]:
    return [cause for node in snapshot.nodes for cause in causes_of_node(snapshot, node)]


def causes_of_node(snapshot: Snapshot, node: Object) -> list[Cause]:
    """Return why a node is not Ready, followed to the network's own pod where that is the reason."""
    problem = node_problem(node)
    if not problem:
        return []
    if any(word in problem for word in ("NetworkPlugin", "network plugin", "cni")):
        # The network's own pods run on the node's network, so they start on a node that isn't Ready.
        for pod in snapshot.pods:
            spec = pod.get("spec", {})
            if (
                spec.get("hostNetwork")
                and spec.get("nodeName") == name_of(node)
                and (why := _definite_problem(snapshot, pod))
            ):
                return [_pod_cause(pod, why, Depth.NODE)]
    return [Cause(f"node {name_of(node)}", problem, Depth.NODE)]


def pod_causes(snapshot: Snapshot, pod: Object) -> list[Cause]:
    """Return why a pod is not ready; [] for one that is ready, has done its work, or is being deleted in time."""
    meta, status = pod["metadata"], pod.get("status", {})
    if deleted := meta.get("deletionTimestamp"):
        late = (snapshot.taken_at - parse_time(deleted)).total_seconds()
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
        return causes_of_node(snapshot, node)
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
    for container in statuses_of(pod):
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
    if ended := bad_end(status):
        return _how_it_ended(snapshot, pod, status, ended)
    if reason == "CrashLoopBackOff":
        return "ends at once with exit code 0, again and again"
    if reason not in _CREATING:
        return f"{reason}: {waiting.get('message') or 'no message'}"
    return ""


def _how_it_ended(snapshot: Snapshot, pod: Object, status: Object, ended: Object) -> str:
    name = status["name"]
    restarts = status.get("restartCount") or 0
    times = f" ({restarts} restarts)" if restarts else ""
    if ended.get("reason") == "OOMKilled":
        spec = next((c for c in containers_of(pod) if c.get("name") == name), {})
        limit = spec.get("resources", {}).get("limits", {}).get("memory")
        return f"OOMKilled: needs more than its memory limit{f' of {limit}' if limit else ''}{times}"
    if ended.get("reason") in ("StartError", "ContainerCannotRun"):
        return f"can't be started: {ended.get('message') or 'no message'}{times}"
    log = snapshot.logs.get(f"{namespace_of(pod)}/{name_of(pod)}/{name}") or ended.get("message") or ""
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
    age = (snapshot.taken_at - parse_time(running["startedAt"])).total_seconds() if running.get("startedAt") else 0.0
    restarts = f", {waiting['restartCount']} restarts" if waiting.get("restartCount") else ""
    probe = snapshot.newest_event(pod, ["Unhealthy"])
    why = f"{_label(pod, waiting)}{probe or 'its probe has not passed yet'}{restarts}"
    return _pod_cause(pod, why, Depth.STARTING if age < STARTING_S else Depth.POD)


def _pod_cause(pod: Object, why: str, depth: Depth) -> Cause:
    owner = next((f"{o['kind']} {namespace_of(pod)}/{o['name']}" for o in owners_of(pod)), "")
    return Cause(f"pod {full_name(pod)}", why, depth, owner)


def _label(pod: Object, status: Object) -> str:
    """Return the container's name where a pod has more than one."""
    init = any(c.get("name") == status["name"] for c in pod.get("spec", {}).get("initContainers") or [])
    if init:
        return f"init container {status['name']}: "
    return f"container {status['name']}: " if len(pod["spec"].get("containers") or []) > 1 else ""


def _owner_is_healthy(snapshot: Snapshot, pod: Object) -> bool:
    for owner in owners_of(pod):
        thing = snapshot.find(owner["kind"], namespace_of(pod), owner["name"])
        if thing:
            return not _workload_problem(thing)
    return False


def workload_causes(snapshot: Snapshot, thing: Object) -> list[Cause]:
    """Return why a Deployment, DaemonSet, StatefulSet, ReplicaSet or Job is not as it should be."""
    problem = _workload_problem(thing)
    if not problem:
        return []
    subject = f"{thing['kind']} {full_name(thing)}"
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
