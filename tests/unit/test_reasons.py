import http.server
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scripts.causes import one_line
from scripts.kube import Kube, UnreachableError
from scripts.reasons import explain
from scripts.snapshot import Snapshot, collect

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
IMAGE = "registry.lab/demo-app:3f2a"


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def cond(kind: str, status: str, message: str = "", reason: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "message": message, "reason": reason}


def node(name: str = "lab-worker", ready: str = "True", message: str = "", *more: dict[str, Any]) -> dict[str, Any]:
    conditions = [cond("Ready", ready, message), *more]
    return {"kind": "Node", "metadata": {"name": name}, "status": {"conditions": conditions}}


def pod(name: str = "demo-app-7d4b-x", statuses: Any = None, **more: Any) -> dict[str, Any]:
    """Return a pod of ReplicaSet demo-app-7d4b in dev on lab-worker that is not Ready, unless told otherwise."""
    status: dict[str, Any] = {
        "phase": more.get("phase", "Running"),
        "conditions": more.get("conditions", [cond("Ready", "False")]),
    }
    if statuses is not None:
        status["containerStatuses"] = [statuses] if isinstance(statuses, dict) else statuses
    for key in ("initContainerStatuses", "reason", "message"):
        if key in more:
            status[key] = more[key]
    spec: dict[str, Any] = {
        "containers": more.get("containers", [{"name": "app"}]),
        "nodeName": more.get("node", "lab-worker"),
    }
    if "initContainerStatuses" in more:
        spec["initContainers"] = [{"name": s["name"]} for s in more["initContainerStatuses"]]
    spec |= more.get("spec", {})
    owner = more.get("owner", ("ReplicaSet", "demo-app-7d4b"))
    meta = {
        "name": name,
        "namespace": more.get("namespace", "dev"),
        "uid": f"uid-{name}",
        "ownerReferences": [{"kind": owner[0], "name": owner[1]}],
    } | more.get("meta", {})
    return {"kind": "Pod", "metadata": meta, "spec": spec, "status": status}


def container(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "app", "image": IMAGE, "ready": False, "restartCount": 0, "state": state} | more


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return container({"waiting": {"reason": reason, "message": message}}, **more)


def running(seconds: float, **more: Any) -> dict[str, Any]:
    return container({"running": {"startedAt": ago(seconds)}}, **more)


def crashed(exit_code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    last = {"terminated": {"exitCode": exit_code, "reason": reason} | more.pop("ended", {})}
    return waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container=app", lastState=last, **more)


READY_POD = pod(statuses=running(300, ready=True), conditions=[cond("Ready", "True")])


def event(about: dict[str, Any], reason: str, message: str, seconds_ago: float = 10) -> dict[str, Any]:
    meta = about["metadata"]
    involved = {"kind": about["kind"], "namespace": meta.get("namespace"), "name": meta["name"], "uid": meta.get("uid")}
    return {
        "involvedObject": involved,
        "reason": reason,
        "message": message,
        "lastTimestamp": ago(seconds_ago),
        "type": "Warning",
    }


def deployment(available: int = 0, wanted: int = 1, *conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    status = {
        "availableReplicas": available,
        "updatedReplicas": wanted,
        "observedGeneration": 1,
        "conditions": list(conditions),
    }
    meta = {"name": more.get("name", "demo-app"), "namespace": more.get("namespace", "dev"), "generation": 1}
    return {"kind": "Deployment", "metadata": meta, "spec": {"replicas": wanted}, "status": status}


def replica_set(failure: str = "", name: str = "demo-app-7d4b", owner: str = "demo-app", **more: Any) -> dict[str, Any]:
    conditions = [cond("ReplicaFailure", "True", failure, "FailedCreate")] if failure else []
    owners = [{"kind": "Deployment", "name": owner}]
    meta = {"name": name, "namespace": more.get("namespace", "dev"), "ownerReferences": owners}
    return {"kind": "ReplicaSet", "metadata": meta, "spec": {"replicas": 1}, "status": {"conditions": conditions}}


def flux(
    kind: str, name: str, ready: str = "False", message: str = "", reason: str = "", **spec: Any
) -> dict[str, Any]:
    status: dict[str, Any] = {"observedGeneration": 1}
    if ready:
        status["conditions"] = [cond("Ready", ready, message, reason) | {"observedGeneration": 1}]
    status |= spec.pop("status", {})
    return {
        "kind": kind,
        "metadata": {"name": name, "namespace": "flux-system", "generation": 1},
        "spec": spec,
        "status": status,
    }


def kustomization(
    name: str = "dev", ready: str = "False", message: str = "", reason: str = "", **spec: Any
) -> dict[str, Any]:
    source = {"sourceRef": {"kind": "GitRepository", "name": f"{name}-environment"}}
    return flux("Kustomization", name, ready, message, reason, **source | spec)


def repository(name: str, ready: str, message: str = "", reason: str = "") -> dict[str, Any]:
    return flux("GitRepository", name, ready, message, reason)


def hpa(*conditions: dict[str, Any]) -> dict[str, Any]:
    spec = {"scaleTargetRef": {"kind": "Deployment", "name": "demo-app"}}
    meta = {"name": "demo-app", "namespace": "dev"}
    return {
        "kind": "HorizontalPodAutoscaler",
        "metadata": meta,
        "spec": spec,
        "status": {"conditions": list(conditions)},
    }


def snapshot(*things: dict[str, Any], events: Any = (), logs: Any = None) -> Snapshot:
    def of(*kinds: str) -> tuple[dict[str, Any], ...]:
        return tuple(t for t in things if t["kind"] in kinds)

    return Snapshot(
        taken_at=NOW,
        nodes=of("Node"),
        pods=of("Pod"),
        workloads=of("Deployment", "ReplicaSet", "DaemonSet", "StatefulSet", "Job"),
        autoscalers=of("HorizontalPodAutoscaler"),
        sources=of("GitRepository"),
        kustomizations=of("Kustomization"),
        events=tuple(events),
        logs=logs or {},
    )


NOT_FOUND = (
    f'Back-off pulling image "{IMAGE}": ErrImagePull: rpc error: code = NotFound desc = failed to pull and unpack image '
    f'"{IMAGE}": failed to resolve reference "{IMAGE}": {IMAGE}: not found'
)
PROBE = "Readiness probe failed: HTTP probe failed with statuscode: 503"
STARTUP = (
    'Startup probe failed: Get "http://10.244.1.7:8000/healthz": dial tcp 10.244.1.7:8000: connect: connection refused'
)
SANDBOX = (
    f"Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "
    f'"{"ab12" * 16}": plugin type="bridge" failed (add): no addresses left'
)
UNSCHEDULABLE = (
    "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. no new claims to deallocate, "
    "preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found."
)
OOM = [{"name": "app", "resources": {"limits": {"memory": "192Mi"}}}]

PODS = [
    ("image not found", pod(statuses=waiting("ImagePullBackOff", NOT_FOUND)), f"image {IMAGE} can't be pulled: {IMAGE}: not found"),
    ("image name", pod(statuses=waiting("InvalidImageName", "couldn't parse")), f"image {IMAGE} can't be pulled: couldn't parse"),
    ("missing secret", pod(statuses=waiting("CreateContainerConfigError", 'secret "x" not found')), 'CreateContainerConfigError: secret "x" not found'),
    ("crash", pod(statuses=crashed(3, restartCount=4)), "ends with exit code 3 (4 restarts)"),
    ("crash at exit 0", pod(statuses=crashed(0, "Completed")), "ends at once with exit code 0, again and again"),
    ("out of memory", pod(statuses=crashed(137, "OOMKilled", restartCount=2), containers=OOM), "OOMKilled: needs more than its memory limit of 192Mi (2 restarts)"),
    ("no such program", pod(statuses=crashed(128, "StartError", ended={"message": 'exec: "x": not found'})), "can't be started: exec: \"x\": not found"),
    ("between restarts", pod(statuses=container({"terminated": {"exitCode": 1, "reason": "Error"}})), "ends with exit code 1"),
    ("unschedulable", pod(node="", conditions=[cond("PodScheduled", "False", UNSCHEDULABLE)]), "can't be scheduled: 0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu. no new claims to deallocate,"),
    ("no scheduler yet", pod(node="", conditions=[]), "not scheduled to a node yet"),
    ("creating", pod(statuses=waiting("ContainerCreating")), "starting: its containers are being created"),
    ("not ready", pod(statuses=running(90)), "its probe has not passed yet"),
    ("readiness gate", pod(statuses=running(90, ready=True), conditions=[cond("Ready", "False", "gate x"), cond("ContainersReady", "True")]), "gate x"),
    ("evicted", pod(phase="Failed", reason="Evicted", message="low on memory"), "Evicted: low on memory"),
    ("stuck", pod(meta={"deletionTimestamp": ago(100), "finalizers": ["a/b"]}), "still terminating 100 s after its deadline, finalizers: a/b"),
    (
        "init container",
        pod(statuses=waiting("PodInitializing"), initContainerStatuses=[crashed(1) | {"name": "wait"}]),
        "init container wait: ends with exit code 1",
    ),
    (
        "second init container pulls",
        pod(
            statuses=waiting("PodInitializing"),
            initContainerStatuses=[
                container({"terminated": {"exitCode": 0}}, name="one"),
                waiting("ErrImagePull", "no such host", name="two"),
            ],
        ),
        f"init container two: image {IMAGE} can't be pulled: no such host",
    ),
    (
        "second container",
        pod(statuses=[running(9, ready=True), crashed(1) | {"name": "side"}], containers=[{"name": "app"}, {"name": "side"}]),
        "container side: ends with exit code 1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("thing", "why"), [case[1:] for case in PODS], ids=[case[0] for case in PODS])
def test_a_pods_cause_is_told_from_its_state(thing: dict[str, Any], why: str) -> None:
    assert explain(snapshot(node(), thing)) == [f"pod dev/demo-app-7d4b-x: {why}"]


EVENTS = [
    ("readiness", pod(statuses=running(90)), "Unhealthy", PROBE, PROBE),
    ("startup", pod(statuses=running(5, restartCount=2)), "Unhealthy", STARTUP, f"{STARTUP}, 2 restarts"),
    ("killed by probe", pod(statuses=crashed(137, restartCount=3)), "Unhealthy", STARTUP, f"killed by its probe (3 restarts): {STARTUP}"),
    ("sandbox", pod(statuses=waiting("ContainerCreating")), "FailedCreatePodSandBox", SANDBOX, 'Failed to create pod sandbox: failed to setup network for sandbox "ab12ab12ab12…": plugin type="bridge" failed (add): no addresses left'),
    ("mount", pod(statuses=waiting("ContainerCreating")), "FailedMount", 'MountVolume.SetUp failed for volume "c" : configmap "c" not found', 'MountVolume.SetUp failed for volume "c" : configmap "c" not found'),
    ("pull without cause", pod(statuses=waiting("ImagePullBackOff", f'Back-off pulling image "{IMAGE}"')), "Failed", f'Failed to pull image "{IMAGE}": rpc error: code = Unknown desc = connection refused', f"image {IMAGE} can't be pulled: connection refused"),
    ("scheduling", pod(node="", conditions=[]), "FailedScheduling", "0/3 nodes", "can't be scheduled: 0/3 nodes"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("thing", "reason", "message", "why"), [case[1:] for case in EVENTS], ids=[case[0] for case in EVENTS]
)
def test_a_pods_cause_is_told_from_its_events(thing: dict[str, Any], reason: str, message: str, why: str) -> None:
    older = event(thing, reason, "older: Failed to pull image: no", 600)
    stranger = event(pod("other"), reason, "someone else's", 1)
    assert explain(snapshot(node(), thing, events=[event(thing, reason, message), older, stranger])) == [
        f"pod dev/demo-app-7d4b-x: {why}"
    ]


def test_a_crash_is_told_with_its_last_words() -> None:
    logs = {"dev/demo-app-7d4b-x/app": "Traceback (most recent call last):\n  …\nKeyError: 'GREETING'\n\n"}
    lines = explain(snapshot(node(), pod(statuses=crashed(1)), logs=logs))
    assert lines == ["pod dev/demo-app-7d4b-x: ends with exit code 1; its last words: KeyError: 'GREETING'"]


HEALTHY = [
    ("ready", READY_POD),
    ("done", pod(phase="Succeeded")),
    ("going", pod(statuses=running(9), meta={"deletionTimestamp": ago(5)})),
    ("deployment", deployment(1)),
    ("scaled to zero", deployment(0, 0)),
    ("suspended", kustomization("dev", "False", "old failure", suspend=True)),
    ("kustomization", kustomization("dev", "True", "Applied revision")),
    ("scaler", hpa(cond("AbleToScale", "True"), cond("ScalingActive", "True"), cond("ScalingLimited", "True", "at its maximum"))),
    ("scaler off", hpa(cond("AbleToScale", "True"), cond("ScalingActive", "False", "zero", "ScalingDisabled"))),
    ("job", {"kind": "Job", "metadata": {"name": "j"}, "status": {"failed": 1, "conditions": [cond("Complete", "True")]}}),
]  # fmt: skip


@pytest.mark.parametrize("thing", [case[1] for case in HEALTHY], ids=[case[0] for case in HEALTHY])
def test_nothing_is_said_of_what_is_well(thing: dict[str, Any]) -> None:
    assert explain(snapshot(node(), thing)) == []


def test_an_evicted_pod_that_was_replaced_is_no_fault() -> None:
    evicted = pod("demo-app-7d4b-old", phase="Failed", reason="Evicted")
    ready_set = replica_set() | {"status": {"availableReplicas": 1}}
    assert explain(snapshot(node(), evicted, READY_POD, deployment(1), ready_set)) == []


REFUSALS = [
    (
        'pods "demo-app-7d4b-" is forbidden: exceeded quota: demo, requested: pods=1, used: pods=10, limited: pods=10',
        "exceeded quota: demo, requested: pods=1, used: pods=10, limited: pods=10",
    ),
    (
        'pods "demo-app-7d4b-" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
        'violates PodSecurity "restricted:latest": runAsNonRoot != true',
    ),
    ('Internal error occurred: failed calling webhook "w": refused', 'Internal error occurred: failed calling webhook "w": refused'),
]  # fmt: skip


@pytest.mark.parametrize(("message", "why"), REFUSALS)
def test_a_deployment_whose_pods_are_refused_says_by_what(message: str, why: str) -> None:
    things = (deployment(0, 1, cond("Progressing", "False", "has timed out progressing.")), replica_set(message))
    assert explain(snapshot(node(), *things)) == [f"Deployment dev/demo-app: its pods are refused: {why}"]


def test_a_daemon_set_and_a_job_whose_pods_are_refused_say_by_what() -> None:
    daemons = {
        "kind": "DaemonSet",
        "metadata": {"name": "net", "namespace": "kube-system"},
        "status": {"desiredNumberScheduled": 3},
    }
    job = {"kind": "Job", "metadata": {"name": "certgen", "namespace": "edge"}, "status": {"failed": 1}}
    events = [
        event(t, "FailedCreate", 'Error creating: pods "x" is forbidden: exceeded quota: q') for t in (daemons, job)
    ]
    assert explain(snapshot(node(), daemons, job, events=events)) == [
        "DaemonSet kube-system/net: its pods are refused: exceeded quota: q",
        "Job edge/certgen: its pods are refused: exceeded quota: q",
    ]


def test_a_deployments_deadline_is_told_only_where_no_pod_tells_more() -> None:
    late = deployment(0, 1, cond("Progressing", "False", 'ReplicaSet "demo-app-7d4b" has timed out progressing.'))
    assert explain(snapshot(node(), late, replica_set())) == [
        'Deployment dev/demo-app: ReplicaSet "demo-app-7d4b" has timed out progressing.'
    ]
    broken = pod(statuses=waiting("ErrImagePull", "no such host"))
    assert explain(snapshot(node(), late, replica_set(), broken)) == [
        f"pod dev/demo-app-7d4b-x: image {IMAGE} can't be pulled: no such host"
    ]


def test_pods_that_share_a_cause_share_a_line() -> None:
    pods = [pod(f"demo-app-7d4b-{n}", statuses=crashed(1)) for n in "abc"]
    assert explain(snapshot(node(), deployment(), replica_set(), *pods)) == [
        "pod dev/demo-app-7d4b-a and 2 more: ends with exit code 1"
    ]


STATUS_OF = "health check failed after 1m0.1s: timeout waiting for: [Deployment/dev/demo-app status: 'InProgress']"
FLUX = [
    (
        "authentication",
        [
            repository("dev-environment", "False", "failed to checkout and determine revision: unable to clone 'https://u:p@git.example/x': authentication required", "GitOperationFailed"),
            kustomization("dev", "False", "Source artifact not found, retrying in 1s", "ArtifactFailed"),
        ],
        ["GitRepository dev-environment: failed to checkout and determine revision: unable to clone 'https://***@git.example/x': authentication required [holds up Kustomization dev]"],
    ),
    ("source missing", [kustomization("dev", "False", "Source 'GitRepository/flux-system/x' not found", "ArtifactFailed")], ["Kustomization dev: Source 'GitRepository/flux-system/x' not found"]),
    ("build", [kustomization("dev", "False", "kustomize build failed: accumulating resources: no such file", "BuildFailed")], ["Kustomization dev: kustomize build failed: accumulating resources: no such file"]),
    ("dry run", [kustomization("dev", "False", "Service/dev/demo-app dry-run failed (Invalid): port 0\n", "ReconciliationFailed")], ["Kustomization dev: Service/dev/demo-app dry-run failed (Invalid): port 0"]),
    (
        "health check to pod",
        [kustomization("dev", "False", STATUS_OF, "HealthCheckFailed"), deployment(), replica_set(), pod(statuses=crashed(2))],
        ["pod dev/demo-app-7d4b-x: ends with exit code 2 [holds up Kustomization dev]"],
    ),
    (
        "health check, stalled, cluster-scoped",
        [kustomization("edge-sync", "False", "failed early due to stalled resources: [GatewayClass/eg status: 'Failed', Gateway/edge/eg status: 'InProgress']", "HealthCheckFailed")],
        ["GatewayClass eg: health check says Failed [holds up Kustomization edge-sync]", "Gateway edge/eg: health check says InProgress [holds up Kustomization edge-sync]"],
    ),
    (
        "health check to quota",
        [kustomization("dev", "False", STATUS_OF, "HealthCheckFailed"), deployment(), replica_set('pods "x" is forbidden: exceeded quota: demo')],
        ["Deployment dev/demo-app: its pods are refused: exceeded quota: demo [holds up Kustomization dev]"],
    ),
    (
        "waiting, by inventory",
        [
            kustomization("dev", "Unknown", "Reconciliation in progress", "Progressing", status={"inventory": {"entries": [{"id": "dev_demo-app_apps_Deployment", "v": "v1"}, {"id": "dev_demo-app__Service", "v": "v1"}]}}),
            deployment(), replica_set(), pod(statuses=crashed(2)),
        ],
        ["pod dev/demo-app-7d4b-x: ends with exit code 2 [holds up Kustomization dev]"],
    ),
    (
        "dependency to dependency to its source",
        [
            kustomization("apps", dependsOn=[{"name": "infra"}], reason="DependencyNotReady", message="dependency 'flux-system/infra' is not ready"),
            kustomization("infra", dependsOn=[{"name": "base"}], reason="DependencyNotReady", message="dependency 'flux-system/base' is not ready"),
            kustomization("base", reason="BuildFailed", message="kustomize build failed: bad"),
        ],
        ["Kustomization base: kustomize build failed: bad [holds up Kustomization apps, Kustomization infra]"],
    ),
    (
        "a circle",
        [kustomization("a", dependsOn=[{"name": "a"}], reason="DependencyNotReady", message="dependency 'flux-system/a' is not ready")],
        ["Kustomization a: waits for itself: its dependencies form a circle"],
    ),
    ("missing dependency", [kustomization("a", dependsOn=[{"name": "b"}], reason="DependencyNotReady", message="dependency 'flux-system/b' not found")], ["Kustomization a: dependency 'flux-system/b' not found"]),
    ("nested kustomization", [kustomization("root", reason="HealthCheckFailed", message="x: [Kustomization/flux-system/dev status: 'Failed']"), kustomization("dev", reason="BuildFailed", message="bad")], ["Kustomization dev: bad [holds up Kustomization root]"]),
    ("not reconciled", [kustomization("dev", ""), deployment(1, 1, name="kustomize-controller", namespace="flux-system")], ["Kustomization dev: not reconciled yet"]),
    ("no controller", [kustomization("dev", ""), deployment(1)], ["Kustomization dev: not reconciled: there is no kustomize-controller in flux-system"]),
    (
        "controller crashes",
        [
            kustomization("dev", ""),
            deployment(0, 1, name="kustomize-controller", namespace="flux-system"),
            replica_set(name="kc-1", owner="kustomize-controller", namespace="flux-system"),
            pod("kc-1-a", crashed(1), namespace="flux-system", owner=("ReplicaSet", "kc-1")),
        ],
        ["pod flux-system/kc-1-a: ends with exit code 1 [holds up Kustomization dev]"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("things", "lines"), [case[1:] for case in FLUX], ids=[case[0] for case in FLUX])
def test_a_flux_objects_cause_is_followed_to_its_end(things: list[dict[str, Any]], lines: list[str]) -> None:
    assert explain(snapshot(node(), *things)) == lines


def test_a_ready_condition_of_an_older_generation_is_not_taken_for_ready() -> None:
    stale = kustomization("dev", "True", "Applied revision")
    stale["metadata"]["generation"] = 2
    assert explain(snapshot(stale)) == ["Kustomization dev: its latest change has not been reconciled yet"]


METRICS = "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu"


def test_an_autoscaler_without_metrics_leads_to_metrics_server() -> None:
    scaler = hpa(cond("AbleToScale", "True"), cond("ScalingActive", "False", METRICS, "FailedGetResourceMetric"))
    server = deployment(0, 1, name="metrics-server", namespace="kube-system")
    made = replica_set(name="ms-1", owner="metrics-server", namespace="kube-system")
    broken = pod("ms-1-a", crashed(1), namespace="kube-system", owner=("ReplicaSet", "ms-1"))
    assert explain(snapshot(node(), scaler, server, made, broken)) == [
        "pod kube-system/ms-1-a: ends with exit code 1 [holds up HPA dev/demo-app]"
    ]
    assert explain(snapshot(node(), scaler, deployment(1))) == [
        f"HPA dev/demo-app: there is no metrics-server: {METRICS}"
    ]
    well = deployment(1, 1, name="metrics-server", namespace="kube-system")
    assert explain(snapshot(node(), scaler, well)) == [f"HPA dev/demo-app: {METRICS}"]
    assert explain(snapshot(hpa())) == ["HPA dev/demo-app: its controller has not looked at it yet"]


def test_a_dead_node_explains_its_pods() -> None:
    dead = node("lab-worker", "Unknown", "Kubelet stopped posting node status.")
    things = (
        dead,
        pod(statuses=running(900)),
        deployment(),
        replica_set(),
        kustomization("dev", "False", STATUS_OF, "HealthCheckFailed"),
    )
    assert explain(snapshot(*things)) == [
        "node lab-worker: not Ready: Kubelet stopped posting node status. [holds up Kustomization dev]"
    ]


def test_a_node_without_network_leads_to_the_networks_pod() -> None:
    bare = node(
        "lab-worker", "False", "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady"
    )
    router = pod(
        "kube-router-x",
        crashed(1),
        namespace="kube-system",
        owner=("DaemonSet", "kube-router"),
        spec={"hostNetwork": True},
    )
    tainted = "0/3 nodes are available: 3 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."
    pending = pod(node="", conditions=[cond("PodScheduled", "False", tainted)])
    assert explain(snapshot(bare, router, pending)) == [
        "pod kube-system/kube-router-x: ends with exit code 1 [holds up node lab-worker]"
    ]
    assert explain(snapshot(bare, pending)) == [
        f"node lab-worker: not Ready: {bare['status']['conditions'][0]['message']}"
    ]


def test_causes_come_deepest_first() -> None:
    things = (
        hpa(cond("ScalingActive", "False", "no such scale")),
        kustomization("x", reason="BuildFailed", message="bad"),
        pod("starting", waiting("ContainerCreating")),
        pod("crashed", crashed(1)),
        node("full", "True", "", cond("DiskPressure", "True", "disk is full")),
    )
    assert [line.split(":")[0] for line in explain(snapshot(node(), *things))] == [
        "node full", "pod dev/crashed", "Kustomization x", "HPA dev/demo-app", "pod dev/starting",
    ]  # fmt: skip


def test_a_long_message_keeps_its_start_and_its_end() -> None:
    line = one_line("start " + "middle " * 200 + "the end", 100)
    assert len(line) <= 100
    assert line.startswith("start ")
    assert line.endswith("the end")


# --- the API, as far as it can be had without a cluster


class _Server(http.server.BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, str]] = {}
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        code, text = self.answers.get(self.path.partition("?")[0], (200, '{"items": []}'))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def kube() -> Iterator[Kube]:
    from kubernetes import client

    _Server.answers, _Server.asked = {}, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{server.server_port}"
        kube = Kube("kind-lab")
        kube.__dict__["_api"] = client.ApiClient(configuration)
        yield kube
        server.shutdown()


def test_collect_reads_last_words_and_names_what_it_may_not_read(kube: Kube) -> None:
    crash, between = pod("a", crashed(1)), pod("b", container({"terminated": {"exitCode": 1}}))
    for thing in (crash, between):
        del thing["kind"]  # as lists give them
    _Server.answers = {
        "/api/v1/pods": (200, json.dumps({"items": [crash, between, READY_POD]})),
        "/api/v1/nodes": (403, "{}"),
        "/api/v1/namespaces/dev/pods/a/log": (200, "first\nlast\n"),
        "/api/v1/namespaces/dev/pods/b/log": (404, "gone"),
    }
    taken = collect(kube)
    assert [p["kind"] for p in taken.pods] == ["Pod"] * 3
    assert taken.logs == {"dev/a/app": "first\nlast\n"}
    assert taken.unread == ("Node objects can't be read: Forbidden",)
    logs = [path for path in _Server.asked if path.endswith("tailLines=20")]
    assert "previous=true" in logs[0] and "previous=false" in logs[1] and len(logs) == 2
    assert any("fieldSelector=type%3DWarning" in path for path in _Server.asked)


@pytest.mark.parametrize("code", [401, 503])
def test_a_server_that_refuses_us_counts_as_unreachable(kube: Kube, code: int) -> None:
    _Server.answers = {"/api/v1/pods": (code, "no")}
    with pytest.raises(UnreachableError, match=f"refuses to answer .HTTP {code}"):
        collect(kube)
