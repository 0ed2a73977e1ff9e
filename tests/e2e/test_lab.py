"""The lab as setup-all leaves it."""

from __future__ import annotations

import json

import pytest

from scripts import docker, flux
from scripts.git import environment_branch
from scripts.images import REPOSITORY
from scripts.kube import owner_labels
from scripts.settings import APP_NAME, FLUX_NAMESPACE, Edge, environments, source_name

SOURCES = {
    "flux-system": "main",
    "applications": "main",
    "infrastructure": "main",
    "dev-environment": "main",
    "staging-environment": "env/staging",
    "production-environment": "env/production",
}
SNAPSHOTS = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
SIZES = {"dev": (1, "50m", "64Mi"), "staging": (2, "100m", "128Mi"), "production": (3, "200m", "256Mi")}


def test_three_nodes_are_ready_with_roles_zones_and_a_taint(kube):
    nodes = {n["metadata"]["name"]: n for n in (kube.to_dict(n) for n in kube.call(kube.core.list_node).items)}
    assert len(nodes) == 3
    workers = [n for n in nodes.values() if "node-role.kubernetes.io/worker" in n["metadata"]["labels"]]
    planes = [n for n in nodes.values() if "node-role.kubernetes.io/control-plane" in n["metadata"]["labels"]]
    assert len(workers) == 2 and len(planes) == 1
    assert len({n["metadata"]["labels"]["topology.kubernetes.io/zone"] for n in workers}) == 2
    assert any(t["effect"] == "NoSchedule" for t in planes[0]["spec"]["taints"])
    for name, node in nodes.items():
        ready = next(c for c in node["status"]["conditions"] if c["type"] == "Ready")
        assert ready["status"] == "True", f"{name}: {ready['message']}"


def test_no_pod_was_started_on_a_node_that_had_no_addresses_for_pods(kube):
    events = kube.call(kube.core.list_event_for_all_namespaces).items
    failed = [e for e in events if e.reason == "FailedCreatePodSandBox" and "no IP ranges" in (e.message or "")]
    assert not failed, [f"{e.involved_object.name}: {e.message}" for e in failed]


def test_nodes_neither_copy_nor_unpack_the_images_of_source_mode(settings):
    for node in docker.containers_with_label(f"io.x-k8s.kind.cluster={settings.cluster_name}"):
        if not docker.inspect("container", node)["Config"]["Image"].startswith(f"{REPOSITORY}/"):
            pytest.skip("the node image is not ours")
        content = "/var/lib/containerd/io.containerd.content.v1.content"
        copied = docker.docker("exec", node, "du", "--summarize", "--block-size=1M", content).stdout.split()[0]
        # 1224 MiB as archives; what was pulled or loaded since is the application's and monitoring's.
        assert int(copied) < 600, node
        # Links to what the node image has: none of that was unpacked again.
        linked = docker.docker("exec", node, "find", SNAPSHOTS, "-maxdepth", "1", "-type", "l").stdout.split()
        assert linked, node


def test_host_ports_are_bound_to_loopback_only(settings):
    names = docker.containers_with_label(f"io.x-k8s.kind.cluster={settings.cluster_name}")
    names += [settings.registry_container, settings.git_container]
    for name in names:
        bindings = docker.inspect("container", name)["HostConfig"]["PortBindings"] or {}
        for many in bindings.values():
            assert {b["HostIp"] for b in many} == {"127.0.0.1"}, name


def test_the_six_sources_and_those_of_added_environments_follow_their_branches_and_are_ready(kube):
    wanted = SOURCES | {source_name(e): environment_branch(e) for e in environments()}
    found = {g["metadata"]["name"]: g for g in kube.list_custom("GitRepository", FLUX_NAMESPACE)}
    assert {name: g["spec"]["ref"]["branch"] for name, g in found.items()} == wanted
    not_ready = {n: flux.condition(g) for n, g in found.items() if not flux.is_ready(g)}
    assert not not_ready


def test_every_kustomization_is_ready(kube, settings):
    found = {k["metadata"]["name"]: k for k in kube.list_custom("Kustomization", FLUX_NAMESPACE)}
    assert {"flux-system", "applications-sync", "infrastructure-sync", "metrics-server-sync"} <= set(found)
    assert set(environments()) <= set(found)
    assert ("edge-sync" in found) == (settings.edge is not Edge.NONE)
    not_ready = {n: flux.condition(k) for n, k in found.items() if not flux.is_ready(k)}
    assert not not_ready


def test_definitions_that_setup_brought_early_are_fluxs_alone(kube):
    """Else a field that Git drops would stay, held by setup, and setup would undo what Git adds."""
    listed = kube.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
    marks = [d["metadata"] for d in listed]
    owner = owner_labels("infrastructure-sync", FLUX_NAMESPACE)
    brought = [m for m in marks if owner.items() <= m.get("labels", {}).items()]
    assert "servicemonitors.monitoring.coreos.com" in {m["name"] for m in brought}
    for mark in brought:
        applied = {f["manager"] for f in mark["managedFields"] if f["operation"] == "Apply"}
        assert applied == {"kustomize-controller"}, mark["name"]


@pytest.mark.parametrize("environment", SIZES)
def test_an_environment_has_its_size_and_runs_on_workers_only(kube, environment):
    replicas, cpu, memory = SIZES[environment]
    hpa = kube.to_dict(kube.call(kube.autoscaling.read_namespaced_horizontal_pod_autoscaler, APP_NAME, environment))
    assert hpa["spec"]["minReplicas"] == replicas
    assert hpa["spec"]["maxReplicas"] == 5
    deployment = flux.app_deployment(kube, environment)
    requests = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert requests == {"cpu": cpu, "memory": memory}
    assert deployment["status"]["readyReplicas"] >= replicas
    pods = kube.call(kube.core.list_namespaced_pod, environment, label_selector=f"app.kubernetes.io/name={APP_NAME}")
    hosts = {p.spec.node_name for p in pods.items}
    assert hosts and not any("control-plane" in host for host in hosts)


def test_test_endpoints_says_that_all_of_them_answer(make):
    result = make("test-endpoints")
    assert result.code == 0, result.output
    assert result.output.count(" ok") == 4 * len(environments())


def test_status_is_healthy_and_its_json_names_every_environment(make):
    result = make("status", OUTPUT="json")
    assert result.code == 0, result.output
    text = json.dumps(json.loads(result.output))
    for environment in environments():
        assert f'"{environment}"' in text


def test_metrics_server_answers(kube):
    usage = kube.call(kube.custom.list_cluster_custom_object, "metrics.k8s.io", "v1beta1", "nodes")
    assert len(usage["items"]) == 3


def test_the_registry_is_announced_in_the_cluster(kube, settings):
    found = kube.call(kube.core.read_namespaced_config_map, "local-registry-hosting", "kube-public")
    assert f"localhost:{settings.registry_port}" in found.data["localRegistryHosting.v1"]


def test_setup_on_a_running_lab_changes_nothing(make, kube, settings):
    def uids() -> set[str]:
        return {p.metadata.uid for p in kube.call(kube.core.list_pod_for_all_namespaces).items}

    before = uids()
    result = make("setup-all")
    assert result.code == 0, result.output
    assert uids() == before
    last = json.loads((settings.state_dir / "timings.jsonl").read_text().splitlines()[-1])
    assert [s["name"] for s in last["steps"] if s["changed"]] == []


def test_secrets_are_not_in_logs(settings, kube):
    import base64

    secret = kube.call(kube.core.read_namespaced_secret, flux.RECEIVER_SECRET, FLUX_NAMESPACE)
    token = base64.b64decode(secret.data["token"]).decode()
    logs = list((settings.state_dir / "logs").glob("*"))
    assert logs
    for log in logs:
        assert token not in log.read_text(errors="replace"), log
