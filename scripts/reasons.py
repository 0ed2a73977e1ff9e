"""Why something is not ready: the deepest cause that the cluster's objects tell, one line each.

`collect` reads what is needed in a dozen calls; all else is a pure function of that snapshot::

    for line in explain(collect(kube)):
        print(line)  # pod dev/demo-app-7d4b: image registry.lab/demo-app:x can't be pulled: … [holds up Kustomization dev]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

from scripts.causes import Cause, Depth, causes_of_node, one_line, pod_causes, workload_causes
from scripts.kube import Kube, Object, condition, is_ready
from scripts.snapshot import Snapshot, collect, flux_name, full_name, name_of, namespace_of, owners_of

_SCALED = {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"}
# metrics-server scrapes every 10 to 15 s and needs two samples; the HPA looks every 5 to 15 s.
METRICS_GRACE_S = 90
# kustomize-controller: "Deployment/dev/demo-app status: 'InProgress'", cluster-scoped objects without a namespace.
_WAITED_FOR = re.compile(r"\b([A-Z]\w+)/(?:([\w.-]+)/)?([\w.:-]+) status: '(\w+)'")


def explain_now(kube: Kube) -> str:
    """Return the deepest causes of what is not ready now, one line each."""
    return "\n".join(explain(collect(kube)))


def explain(snapshot: Snapshot) -> list[str]:
    """Return why things are not ready, deepest causes first; what one cause holds up is named behind it."""
    found = _Findings()
    for thing in snapshot.nodes:
        found.add(causes_of_node(snapshot, thing), f"node {name_of(thing)}")
    for thing in snapshot.sources:
        found.add(source_causes(snapshot, thing), f"GitRepository {flux_name(thing)}")
    for thing in snapshot.kustomizations:
        found.add(kustomization_causes(snapshot, thing), f"Kustomization {flux_name(thing)}")
    for thing in snapshot.workloads:
        # A ReplicaSet speaks through its Deployment.
        if thing["kind"] != "ReplicaSet" or not owners_of(thing):
            found.add(workload_causes(snapshot, thing))
    for pod in snapshot.pods:
        found.add(pod_causes(snapshot, pod))
    for thing in snapshot.autoscalers:
        found.add(autoscaler_causes(snapshot, thing), f"HPA {full_name(thing)}")
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
    key = full_name(thing)
    if key in seen:
        return [
            Cause(f"Kustomization {flux_name(thing)}", "waits for itself: its dependencies form a circle", Depth.FLUX)
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
        deeper = [c for kind, ns, name in inventory(thing) for c in _object_causes(snapshot, kind, ns, name, seen)]
        return deeper or own
    return own


def _dependency_causes(snapshot: Snapshot, thing: Object, seen: frozenset[str]) -> list[Cause]:
    causes: list[Cause] = []
    for reference in thing["spec"].get("dependsOn") or []:
        dependency = snapshot.find(
            "Kustomization", reference.get("namespace") or namespace_of(thing), reference["name"]
        )
        if dependency:
            causes += kustomization_causes(snapshot, dependency, seen)
    return causes


def _causes_of_its_source(snapshot: Snapshot, thing: Object) -> list[Cause]:
    reference = thing["spec"].get("sourceRef", {})
    source = snapshot.find(
        reference.get("kind", ""), reference.get("namespace") or namespace_of(thing), reference.get("name", "")
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
    subject = f"{thing['kind']} {flux_name(thing)}"
    ready = condition(thing)
    generation = thing["metadata"].get("generation") or 0
    observed = ready.get("observedGeneration") or thing.get("status", {}).get("observedGeneration") or 0
    if not ready or observed < generation:
        deployment = snapshot.find("Deployment", namespace_of(thing), controller)
        if deployment and (causes := workload_causes(snapshot, deployment)):
            return causes
        if not deployment and snapshot.workloads:
            return [Cause(subject, f"not reconciled: there is no {controller} in {namespace_of(thing)}", Depth.FLUX)]
        what = "its latest change has not been reconciled yet" if ready else "not reconciled yet"
        return [Cause(subject, what, Depth.STARTING)]
    if ready.get("status") == "Unknown":
        message = condition(thing, "Reconciling").get("message") or ready.get("message") or "reconciling"
        return [Cause(subject, message, Depth.STARTING)]
    return [Cause(subject, ready.get("message") or ready.get("reason") or "not Ready", Depth.FLUX)]


def inventory(thing: Object) -> Iterator[tuple[str, str, str]]:
    """Yield kind, namespace and name of what a Kustomization has applied (ids as in namespace_name_group_kind)."""
    for entry in (thing.get("status", {}).get("inventory") or {}).get("entries") or []:
        parts = entry["id"].split("_")
        if len(parts) >= 4:
            yield parts[-1], parts[0], "_".join(parts[1:-2])


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
    subject = f"HPA {full_name(thing)}"
    if not condition(thing, "ScalingActive"):
        return [Cause(subject, problem, Depth.STARTING)]
    if waits_for_first_metrics(snapshot, thing):
        return []
    if "metrics" in problem:
        servers = [w for w in snapshot.workloads if w["kind"] == "Deployment" and name_of(w) == "metrics-server"]
        causes = [c for server in servers for c in workload_causes(snapshot, server)]
        if not servers and snapshot.workloads:
            causes = [Cause(subject, f"there is no metrics-server: {problem}", Depth.SCALER)]
        target = thing.get("spec", {}).get("scaleTargetRef", {})
        scaled = snapshot.find(target.get("kind", ""), namespace_of(thing), target.get("name", ""))
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
    pods = [p for p in snapshot.pods if namespace_of(p) == namespace_of(thing) and name_of(p).startswith(f"{target}-")]
    born = [_timestamp(p["metadata"].get("creationTimestamp", "")) for p in pods]
    return any(b and (snapshot.taken_at - b).total_seconds() < METRICS_GRACE_S for b in born)


def _timestamp(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
