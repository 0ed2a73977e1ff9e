"""What the lab is like now: nodes, Flux objects, pods, autoscalers, endpoints; what is not healthy comes first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from rich.text import Text

from scripts import console, endpoints
from scripts.cache import now_iso
from scripts.causes import node_problem, one_line, pod_causes
from scripts.cluster import node_containers
from scripts.docker import container_state, engine_info
from scripts.endpoints import EndpointResult
from scripts.errors import LabError, UsageError
from scripts.kube import Kube, Object, UnreachableError, condition, is_ready
from scripts.reasons import autoscaler_problem, explain, waits_for_first_metrics
from scripts.settings import APP_NAME, FLUX_NAMESPACE, MONITORING_NAMESPACE, Settings, environments
from scripts.snapshot import Snapshot, collect

OUTPUTS = ("table", "json")
SHORT_COMMIT = 10
MESSAGE_WIDTH = 90
ZONE_LABEL = "topology.kubernetes.io/zone"
ROLE_PREFIX = "node-role.kubernetes.io/"


@dataclass(frozen=True)
class NodeRow:
    """A node."""

    name: str
    role: str
    zone: str
    ok: bool
    ready: str
    version: str


@dataclass(frozen=True)
class FluxRow:
    """A GitRepository or Kustomization."""

    kind: str
    name: str
    revision: str
    ok: bool
    ready: str
    message: str


@dataclass(frozen=True)
class PodRow:
    """A pod of an environment, or of monitoring."""

    environment: str
    name: str
    ok: bool
    ready: str
    state: str
    restarts: int
    node: str
    image_tag: str


@dataclass(frozen=True)
class AutoscalerRow:
    """An HPA of an environment; CPU in percent of the request, None where there is no measurement."""

    environment: str
    name: str
    ok: bool
    current: int
    desired: int
    minimum: int
    maximum: int
    cpu_percent: int | None
    cpu_target_percent: int | None


@dataclass(frozen=True)
class Status:
    """All of it, with the causes of what is not healthy, and with notes on what could not be read."""

    context: str
    taken_at: str
    nodes: tuple[NodeRow, ...] = ()
    flux: tuple[FluxRow, ...] = ()
    pods: tuple[PodRow, ...] = ()
    autoscalers: tuple[AutoscalerRow, ...] = ()
    endpoints: tuple[EndpointResult, ...] = ()
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def gather(settings: Settings, kube: Kube, results: Iterable[EndpointResult] = ()) -> Status:
    """Return the lab's status; raises UnreachableError if the cluster doesn't answer."""
    return from_snapshot(settings.context, collect(kube), environments(), tuple(results))


def from_snapshot(
    context: str, snapshot: Snapshot, names: Sequence[str], results: tuple[EndpointResult, ...]
) -> Status:
    """Return the status that a snapshot tells."""
    namespaces = set(names)
    order = {name: index for index, name in enumerate((*names, MONITORING_NAMESPACE))}
    shown = [p for p in snapshot.pods if p["metadata"].get("namespace") in order]
    scalers = [a for a in snapshot.autoscalers if a["metadata"].get("namespace") in namespaces]
    flux = (*snapshot.sources, *snapshot.kustomizations)
    return Status(
        context=context,
        taken_at=now_iso(),
        nodes=tuple(_node_row(n) for n in snapshot.nodes),
        flux=tuple(_flux_row(f) for f in flux),
        pods=tuple(sorted((_pod_row(snapshot, p) for p in shown), key=lambda p: (order[p.environment], p.name))),
        autoscalers=tuple(sorted((_autoscaler_row(snapshot, a) for a in scalers), key=lambda a: order[a.environment])),
        endpoints=results,
        causes=(*explain(snapshot), *_absent(snapshot, names)),
        notes=snapshot.unread,
    )


def unhealthy(status: Status) -> list[str]:
    """Return what is not healthy, one line each, deepest causes first; [] when all is healthy."""
    lines = list(status.causes)
    told = "\n".join(lines)
    rows = [
        *((f"node {n.name}", n.ok, n.ready) for n in status.nodes),
        *((f"{f.kind} {f.name}", f.ok, f.message) for f in status.flux),
        *((f"HPA {a.environment}/{a.name}", a.ok, "does not scale") for a in status.autoscalers),
    ]
    # Each row that is not well is named, whether or not a cause was found for it; pods are by their own causes.
    lines += [f"{what}: {why}" for what, ok, why in rows if not ok and what not in told]
    lines += [f"endpoint {e.environment}{e.path}: {e.why or f'HTTP {e.status}'}" for e in status.endpoints if not e.ok]
    return lines


def show(status: Status) -> None:
    """Print the status for a person."""
    problems = unhealthy(status)
    if problems:
        count = f"{len(problems)} things are" if len(problems) > 1 else "1 thing is"
        console.line(f"✘ {status.context}: {count} not healthy", style="bold red")
        for problem in problems:
            console.line(f"  {problem}")
    else:
        console.line(f"✔ {status.context}: all is healthy", style="bold green")
    for note in status.notes:
        console.line(f"  {note}", style="dim")
    _table(
        "Nodes",
        ["name", "role", "zone", "ready", "version"],
        [(n.ok, [n.name, n.role, n.zone, n.ready, n.version]) for n in status.nodes],
    )
    _table(
        "Flux",
        ["kind", "name", "revision", "ready", "message"],
        [(f.ok, [f.kind, f.name, f.revision, f.ready, one_line(f.message, MESSAGE_WIDTH)]) for f in status.flux],
    )
    _table(
        "Pods",
        ["environment", "pod", "ready", "state", "restarts", "node", "image tag"],
        [(p.ok, [p.environment, p.name, p.ready, p.state, str(p.restarts), p.node, p.image_tag]) for p in status.pods],
    )
    _table(
        "Autoscalers",
        ["environment", "name", "replicas", "wanted", "min-max", "CPU", "CPU target"],
        [
            (
                a.ok,
                [a.environment, a.name, str(a.current), str(a.desired), f"{a.minimum}-{a.maximum}",
                 _percent(a.cpu_percent), _percent(a.cpu_target_percent)],
            )
            for a in status.autoscalers
        ],
    )  # fmt: skip
    _table(
        "Endpoints",
        ["environment", "path", "answer", "time"],
        [
            (e.ok, [e.environment, e.path, e.why or f"HTTP {e.status}", f"{e.seconds * 1000:.0f} ms"])
            for e in status.endpoints
        ],
    )


def as_json(status: Status) -> str:
    """Return the status for a machine: healthy, unhealthy, and each row as shown."""
    problems = unhealthy(status)
    return json.dumps({"healthy": not problems, "unhealthy": problems, **asdict(status)}, indent=2)


def main(settings: Settings, output: str) -> int:
    """Print the status as a table or as JSON; return 0 only when all is healthy."""
    if output not in OUTPUTS:
        raise UsageError(f"OUTPUT={output} is not known.", f"take one of: {', '.join(OUTPUTS)}")
    kube = Kube(settings.context, settings.tools_dir / "kubectl")
    try:
        status = gather(settings, kube, _endpoints(settings, kube))
    except UnreachableError as error:
        deepest = why_unreachable(settings, error)
        if output != "json":
            raise deepest from None
        status = Status(settings.context, now_iso(), causes=(f"{deepest.what} To mend it: {deepest.mend}",))
    if output == "json":
        console.raw(as_json(status))
    else:
        show(status)
    return 1 if unhealthy(status) else 0


def _endpoints(settings: Settings, kube: Kube) -> list[EndpointResult]:
    """Return the endpoints' answers; a cluster that is down is told by `gather`, not by each of them."""
    kube.get_text("/version")
    try:
        return endpoints.check_all(settings, kube)
    except UnreachableError:
        raise
    except LabError as error:
        return [EndpointResult("all", "", False, 0, 0.0, one_line(error.what))]


def why_unreachable(settings: Settings, error: UnreachableError) -> UnreachableError:
    """Return the deepest cause of a cluster that doesn't answer: its engine, its containers, or the API server itself."""
    if not settings.owns_cluster:
        return error
    try:
        if engine_info() is None:
            return UnreachableError("The container engine doesn't answer, so there is no cluster.", "make doctor")
        nodes = node_containers(settings)
        stopped = [f"{n} ({state})" for n in nodes if (state := container_state(n)) != "running"]
    except LabError as engine:
        return UnreachableError(f"{error.what} The container engine: {engine.what}", engine.mend or "make doctor")
    if not nodes:
        return UnreachableError(f"There is no cluster {settings.cluster_name}.", "make setup-all")
    if stopped:
        return UnreachableError(f"The cluster's nodes do not run: {', '.join(stopped)}.", "make resume")
    return UnreachableError(f"{error.what} Its nodes run, so the API server is at fault.", "make diagnose, make resume")


def _absent(snapshot: Snapshot, names: Sequence[str]) -> list[str]:
    """Return what should be there and isn't: nothing of it can say so itself."""
    flux = {k["metadata"]["name"] for k in snapshot.kustomizations if k["metadata"].get("namespace") == FLUX_NAMESPACE}
    if not flux:
        return [f"There are no Kustomizations in {FLUX_NAMESPACE}: setup has not come that far (make setup-all)"]
    lines = [f"environment {name}: there is no Kustomization {name} yet" for name in names if name not in flux]
    pods = {p["metadata"].get("namespace") for p in snapshot.pods}
    return lines + [f"environment {name}: there are no pods" for name in names if name in flux and name not in pods]


def _node_row(node: Object) -> NodeRow:
    labels = node["metadata"].get("labels") or {}
    roles = sorted(key.removeprefix(ROLE_PREFIX) for key in labels if key.startswith(ROLE_PREFIX))
    problem = node_problem(node)
    ready = condition(node).get("status", "Unknown") + (
        ", cordoned" if node.get("spec", {}).get("unschedulable") else ""
    )
    info = node.get("status", {}).get("nodeInfo") or {}
    return NodeRow(
        name=node["metadata"]["name"],
        role=",".join(roles) or "-",
        zone=labels.get(ZONE_LABEL, "-"),
        ok=not problem,
        ready=ready,
        version=info.get("kubeletVersion", "-"),
    )


def _flux_row(thing: Object) -> FluxRow:
    status, meta = thing.get("status", {}), thing["metadata"]
    revision = (status.get("artifact") or {}).get("revision") or status.get("lastAppliedRevision") or ""
    suspended = bool(thing.get("spec", {}).get("suspend"))
    ready = condition(thing)
    stale = ready.get("status") == "True" and not is_ready(thing)
    shown = "suspended" if suspended else "outdated" if stale else ready.get("status", "Unknown")
    name = meta["name"] if meta.get("namespace") == FLUX_NAMESPACE else f"{meta.get('namespace')}/{meta['name']}"
    return FluxRow(
        kind=thing["kind"],
        name=name,
        revision=short_revision(revision),
        ok=suspended or is_ready(thing),
        ready=shown,
        message=one_line(ready.get("message") or "not reconciled yet"),
    )


def short_revision(revision: str) -> str:
    """Return a Flux revision as people compare it, as in main@1a2b3c4d5e."""
    ref, _, commit = revision.rpartition("@")
    digest = commit.rpartition(":")[2][:SHORT_COMMIT]
    return f"{ref}@{digest}" if ref else digest or "-"


def _pod_row(snapshot: Snapshot, pod: Object) -> PodRow:
    meta, status = pod["metadata"], pod.get("status", {})
    containers = status.get("containerStatuses") or []
    ending = bool(meta.get("deletionTimestamp"))
    waiting = [w["reason"] for c in containers if (w := (c.get("state") or {}).get("waiting") or {}).get("reason")]
    specs = pod.get("spec", {}).get("containers") or []
    app = next((c for c in specs if f"/{APP_NAME}" in f"/{c.get('image', '')}"), specs[0] if specs else {})
    return PodRow(
        environment=meta["namespace"],
        name=meta["name"],
        ok=not pod_causes(snapshot, pod),
        ready=f"{sum(1 for c in containers if c.get('ready'))}/{len(specs)}",
        state="Terminating" if ending else (waiting or [status.get("reason") or status.get("phase") or "Unknown"])[0],
        restarts=sum(c.get("restartCount") or 0 for c in containers),
        node=pod.get("spec", {}).get("nodeName") or "-",
        image_tag=image_tag(app.get("image", "")),
    )


def image_tag(image: str) -> str:
    """Return an image reference's tag, or the start of its digest."""
    name, _, digest = image.partition("@")
    _, _, tag = name.rpartition("/")[2].partition(":")
    return tag or digest.removeprefix("sha256:")[:12] or "latest"


def _autoscaler_row(snapshot: Snapshot, thing: Object) -> AutoscalerRow:
    spec, status = thing.get("spec", {}), thing.get("status", {})
    current = [m["resource"] for m in status.get("currentMetrics") or [] if m.get("resource", {}).get("name") == "cpu"]
    target = [m["resource"] for m in spec.get("metrics") or [] if m.get("resource", {}).get("name") == "cpu"]
    return AutoscalerRow(
        environment=thing["metadata"]["namespace"],
        name=thing["metadata"]["name"],
        ok=not autoscaler_problem(thing) or waits_for_first_metrics(snapshot, thing),
        current=status.get("currentReplicas") or 0,
        desired=status.get("desiredReplicas") or 0,
        minimum=spec.get("minReplicas", 1),
        maximum=spec.get("maxReplicas", 0),
        cpu_percent=current[0].get("current", {}).get("averageUtilization") if current else None,
        cpu_target_percent=target[0].get("target", {}).get("averageUtilization") if target else None,
    )


def _percent(value: int | None) -> str:
    return "-" if value is None else f"{value} %"


def _table(title: str, columns: list[str], rows: list[tuple[bool, list[str]]]) -> None:
    """Print a table, what is not healthy first and in red."""
    if not rows:
        return
    ordered = sorted(rows, key=lambda row: row[0])
    cells: list[list[str | Text]] = [
        [Text("✔", style="green") if ok else Text("✘", style="red"), *(c if ok else Text(c, style="red") for c in row)]
        for ok, row in ordered
    ]
    console.line()
    console.table(title, ["", *columns], cells)
