"""No request fails while the lab changes under a steady load: rollout, configuration, drain, scale-in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from scripts import flux, flux_sync, load
from scripts.git import environment_branch
from scripts.hpa import autoscaler
from scripts.settings import APP_NAME, EDGE_NAMESPACE, Edge
from scripts.waiting import wait_for

RATE = 60
# A load outlasts what it measures, however slow the machine: it is ended once that is over and enough was sent.
LONGEST_S = 300
ENOUGH_S = 36
BASE = "flux-cd/applications/_base-app-config/deployment.yaml"
PATH = "/work?cpu_ms=1"


@pytest.fixture(autouse=True)
def needs_the_edge(settings):
    assert settings.edge is not Edge.NONE, "these tests measure at the edge: run them on a lab with EDGE=envoy"


def overlay(environment: str) -> str:
    return f"flux-cd/applications/mock-cluster-aka-namespaces/{environment}/kustomization.yaml"


def promote(clone, kube, environment: str, commit: str) -> None:
    clone.push()
    if environment_branch(environment) != "main":
        clone.push(environment_branch(environment))
    flux_commit = {environment: flux_sync.Expected(commit)}
    wait_for(
        f"{environment} is Ready at the new commit",
        lambda: flux_sync.pending_kustomizations(kube, flux_commit),
        timeout_s=180,
    )


def ready_pods(kube, environment: str) -> set[str]:
    pods = kube.call(
        kube.core.list_namespaced_pod, environment, label_selector=f"app.kubernetes.io/name={APP_NAME}"
    ).items
    return {
        p.metadata.name
        for p in pods
        if not p.metadata.deletion_timestamp
        and any(c.type == "Ready" and c.status == "True" for c in p.status.conditions or [])
    }


def require_no_failure(result: load.LoadResult, at_least: int) -> None:
    assert result.requests >= at_least, result
    assert result.failed == 0, result


@pytest.mark.parametrize(
    "environment",
    [pytest.param("dev", marks=pytest.mark.long), "staging", pytest.param("production", marks=pytest.mark.long)],
)
def test_a_rollout_of_a_new_version_fails_no_request(settings, kube, clone, environment):
    before = ready_pods(kube, environment)
    clone.edit(
        BASE,
        "    spec:\n      serviceAccountName",
        "    metadata:\n      annotations:\n        e2e: rollout\n    spec:\n      serviceAccountName",
    )
    commit = clone.commit("Test: another version")
    with load.attack(settings, environment, PATH, RATE, LONGEST_S) as attack:
        promote(clone, kube, environment, commit)
        result = attack.finish(after_s=ENOUGH_S)
    assert not before & ready_pods(kube, environment), "no pod was replaced"
    require_no_failure(result, 2000)


@pytest.mark.long
@pytest.mark.parametrize("environment", ["staging", "production"])
def test_a_change_of_the_configuration_rolls_the_pods_and_fails_no_request(settings, kube, clone, environment):
    before = ready_pods(kube, environment)
    clone.edit("flux-cd/applications/_base-app-config/configmap.yaml", "READINESS_DELAY_SEC=5", "READINESS_DELAY_SEC=4")
    commit = clone.commit("Test: another configuration")
    with load.attack(settings, environment, PATH, RATE, LONGEST_S) as attack:
        promote(clone, kube, environment, commit)
        result = attack.finish(after_s=ENOUGH_S)
    assert not before & ready_pods(kube, environment), "no pod was replaced"
    require_no_failure(result, 2000)


@contextlib.contextmanager
def drained(kube, node: str) -> Iterator[None]:
    try:
        kube.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s", timeout_s=150)
        yield
    finally:
        kube.kubectl("uncordon", node)


@pytest.mark.long
@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("environment", ["staging", "production"])
def test_draining_a_worker_fails_no_request(settings, kube, environment, worker):
    nodes = sorted(
        n.metadata.name
        for n in kube.call(kube.core.list_node).items
        if "node-role.kubernetes.io/worker" in (n.metadata.labels or {})
    )
    with load.attack(settings, environment, PATH, RATE, LONGEST_S) as attack:
        with drained(kube, nodes[worker]):
            pods = kube.call(kube.core.list_namespaced_pod, environment).items
            assert nodes[worker] not in {p.spec.node_name for p in pods if not p.metadata.deletion_timestamp}
        result = attack.finish(after_s=ENOUGH_S)
    require_no_failure(result, 2000)


@pytest.mark.long
@pytest.mark.parametrize("environment", ["staging", "production"])
def test_scaling_in_fails_no_request(settings, kube, clone, environment):
    minimum = {"staging": 2, "production": 3}[environment]
    least = "path: /spec/minReplicas\n      value: "
    clone.edit(overlay(environment), f"{least}{minimum}", f"{least}5")
    promote(clone, kube, environment, clone.commit("Test: five pods"))
    wait_for(
        "five pods are ready",
        lambda: [] if len(ready_pods(kube, environment)) == 5 else [f"{len(ready_pods(kube, environment))} of 5"],
        timeout_s=120,
    )
    clone.edit(overlay(environment), f"{least}5", f"{least}{minimum}")
    commit = clone.commit("Test: back to the minimum")
    with load.attack(settings, environment, PATH, 25, LONGEST_S) as attack:
        promote(clone, kube, environment, commit)
        wait_for(
            "the environment is back at its minimum",
            lambda: (
                [] if len(ready_pods(kube, environment)) == minimum else [f"{len(ready_pods(kube, environment))} pods"]
            ),
            timeout_s=LONGEST_S,
        )
        result = attack.finish(after_s=2100 / 25)
    require_no_failure(result, 2000)


def test_replicas_survive_a_reconcile_under_load(settings, kube, make):
    """Git holds no replica count, so Flux has none to put back: what the autoscaler decided stays."""

    def replicas() -> int:
        count: int = flux.app_deployment(kube, "staging")["spec"]["replicas"]
        return count

    def still_growing() -> list[str]:
        # three replicas left over from an earlier test would be scaled in meanwhile, with no reconcile to blame
        hpa = kube.to_dict(kube.call(kube.autoscaling.read_namespaced_horizontal_pod_autoscaler, APP_NAME, "staging"))
        percent, target, wanted = autoscaler.cpu_percent(hpa), autoscaler.target_percent(hpa), replicas()
        if wanted >= 3 and percent is not None and target is not None and percent > target:
            return []
        return [f"{wanted} replicas at {percent} % of {target} %"]

    with load.attack(settings, "staging", "/work?cpu_ms=30", 20, LONGEST_S) as attack:
        wait_for("staging has scaled out and is busy", still_growing, timeout_s=100)
        before = replicas()
        result = make("reconcile")
        assert result.code == 0, result.output
        assert attack.is_running(), "the load ended before the reconcile did"
        assert replicas() >= before, "the reconcile put the replica count back"


@pytest.mark.long
def test_draining_devs_node_costs_only_the_time_its_new_pod_needs(settings, kube):
    """Dev has one replica: its budget lets it go, and nothing serves until the next one is ready."""
    (pod,) = kube.call(kube.core.list_namespaced_pod, "dev", label_selector=f"app.kubernetes.io/name={APP_NAME}").items
    with load.attack(settings, "dev", PATH, RATE, LONGEST_S) as attack:
        with drained(kube, pod.spec.node_name):
            wait_for(
                "dev's next pod is ready",
                lambda: [] if ready_pods(kube, "dev") - {pod.metadata.name} else ["none yet"],
                timeout_s=60,
            )
        result = attack.finish(after_s=ENOUGH_S)
    (name,) = ready_pods(kube, "dev") - {pod.metadata.name}
    new = kube.call(kube.core.read_namespaced_pod, name, "dev")
    ready = next(c for c in new.status.conditions if c.type == "Ready").last_transition_time
    needed_s = (ready - new.metadata.creation_timestamp).total_seconds()
    assert result.requests >= 2000, result
    assert set(result.statuses) <= {"200", "503"}, result
    # The API server's times are whole seconds.
    assert result.failed / RATE <= needed_s + 1, f"{result}; the new pod needed {needed_s:.0f} s"


def proxies(kube) -> set[str]:
    selector = "app.kubernetes.io/component=proxy"
    return {
        p.metadata.name for p in kube.call(kube.core.list_namespaced_pod, EDGE_NAMESPACE, label_selector=selector).items
    }


@pytest.mark.long
def test_a_rollout_of_the_edge_itself_fails_no_request(settings, kube, clone):
    before = proxies(kube)
    clone.edit(
        "flux-cd/infrastructure/_components/ingress-controllers/envoy-gateway.yaml",
        "              cpu: 50m\n              memory: 64Mi",
        "              cpu: 51m\n              memory: 64Mi",
    )
    commit = clone.commit("Test: another request of the proxy's")
    with load.attack(settings, "production", PATH, RATE, LONGEST_S) as attack:
        clone.push()
        wait_for(
            "the edge is Ready at the new commit",
            lambda: flux_sync.pending_kustomizations(kube, {"edge-sync": flux_sync.Expected(commit)}),
            timeout_s=120,
        )

        def pending() -> list[str]:
            now = proxies(kube)
            return [f"{name} is still there" for name in now & before] or ([] if now else ["no new proxy yet"])

        # Its drain is part of what is measured: up to a minute.
        wait_for("the old proxy is gone", pending, timeout_s=180)
        result = attack.finish(after_s=ENOUGH_S)
    require_no_failure(result, 2000)
