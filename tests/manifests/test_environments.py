"""The rendered environments: sizes, safety, and that everything which refers to something else finds it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import appimage, endpoints, settings
from scripts.settings import APP_DIR, APP_NAME, APP_PORT, EDGE_NAMESPACE, OVERLAYS, REGISTRY_IN_CLUSTER
from tests.manifests.conftest import Build, Object, Tree
from tests.manifests.paths import EDGE
from tests.manifests.podsecurity import violations
from tests.manifests.quantities import number, share

# environment: replicas at least, CPU and memory requested
SIZES = {"dev": (1, "50m", "64Mi"), "staging": (2, "100m", "128Mi"), "production": (3, "200m", "256Mi")}
MAX_REPLICAS = 5
PART_OF = {"app.kubernetes.io/part-of": "demo"}
BASE_LABELS = {"app.kubernetes.io/name": APP_NAME, "app.kubernetes.io/component": "web", **PART_OF}
NETWORK_POLICIES = {"default-deny", "same-namespace", "metrics-from-monitoring", "dns", "http-from-edge"}


@pytest.fixture(params=settings.environments())
def environment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tree(environment: str, render: Callable[[Path], Tree]) -> Tree:
    return render(OVERLAYS / environment)


@pytest.fixture
def deployment(tree: Tree) -> Object:
    return tree.one("Deployment")


@pytest.fixture
def pod(deployment: Object) -> Object:
    return deployment["spec"]["template"]


@pytest.fixture
def container(pod: Object) -> Object:
    (only,) = pod["spec"]["containers"]
    return only


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def test_the_known_environments_are_there() -> None:
    assert settings.environments()[:3] == list(SIZES)


def test_everything_is_in_the_environments_namespace_and_carries_its_labels(environment: str, tree: Tree) -> None:
    for o in tree.objects:
        labels = o["metadata"]["labels"]
        assert o["kind"] == "Namespace" or o["metadata"]["namespace"] == environment
        expected = PART_OF if o["kind"] in {"Namespace", "ResourceQuota"} else BASE_LABELS
        assert {**expected, "app.kubernetes.io/instance": environment}.items() <= labels.items(), o["kind"]


def test_pods_carry_the_labels_too(environment: str, pod: Object) -> None:
    assert {**BASE_LABELS, "app.kubernetes.io/instance": environment}.items() <= pod["metadata"]["labels"].items()


def test_pod_security_restricted_is_enforced_and_kept(environment: str, tree: Tree, pod: Object) -> None:
    labels = tree.one("Namespace", environment)["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}
    assert violations(pod["spec"]) == []


def test_the_container_runs_as_1001_on_a_read_only_root_without_a_token(pod: Object, container: Object) -> None:
    assert pod["spec"]["securityContext"]["runAsUser"] == 1001
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["volumes"] == [{"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}}]
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_each_environment_has_its_size(name: str, size: tuple[int, str, str], render: Callable[[Path], Tree]) -> None:
    tree = render(OVERLAYS / name)
    autoscaler, deployment = tree.one("HorizontalPodAutoscaler")["spec"], tree.one("Deployment")
    requests = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert (autoscaler["minReplicas"], requests["cpu"], requests["memory"]) == size
    assert autoscaler["maxReplicas"] == MAX_REPLICAS


def test_the_replica_count_is_the_autoscalers_alone(deployment: Object, tree: Tree) -> None:
    autoscaler = tree.one("HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in deployment["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert [m["resource"]["name"] for m in autoscaler["metrics"]] == ["cpu"]


@pytest.mark.parametrize("name", SIZES)
def test_the_way_back_to_the_minimum_fits_the_90_s_that_are_promised(name: str, render: Callable[[Path], Tree]) -> None:
    autoscaler = render(OVERLAYS / name).one("HorizontalPodAutoscaler")["spec"]
    down = autoscaler["behavior"]["scaleDown"]
    (policy,) = down["policies"]
    assert policy["type"] == "Pods"
    steps = -(-(autoscaler["maxReplicas"] - autoscaler["minReplicas"]) // policy["value"])
    # The figures fall up to 20 s after the load; then the window, and a period between one step and the next.
    assert 20 + down["stabilizationWindowSeconds"] + (steps - 1) * policy["periodSeconds"] <= 90
    assert autoscaler["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0


def test_limits_fit_the_requests_and_the_limit_range(container: Object, tree: Tree) -> None:
    resources, (limits,) = container["resources"], tree.one("LimitRange")["spec"]["limits"]
    for resource in ("cpu", "memory"):
        assert number(resources["requests"][resource]) <= number(resources["limits"][resource])
    assert number(resources["limits"]["memory"]) <= number(limits["max"]["memory"])
    assert number(limits["default"]["memory"]) >= number(limits["defaultRequest"]["memory"])


def test_the_quota_fits_the_autoscalers_maximum_and_a_rollout(
    deployment: Object, container: Object, tree: Tree
) -> None:
    strategy = deployment["spec"]["strategy"]["rollingUpdate"]
    surge = share(strategy["maxSurge"], MAX_REPLICAS)
    # Pods of the first wave still terminate, and count, while those of the second start.
    pods = MAX_REPLICAS + min(2 * surge, MAX_REPLICAS)
    hard, resources = tree.one("ResourceQuota")["spec"]["hard"], container["resources"]
    assert number(hard["pods"]) >= pods
    assert number(hard["requests.cpu"]) >= pods * number(resources["requests"]["cpu"])
    assert number(hard["requests.memory"]) >= pods * number(resources["requests"]["memory"])
    assert number(hard["limits.memory"]) >= pods * number(resources["limits"]["memory"])
    assert strategy["maxUnavailable"] == 0


def test_half_may_be_disrupted_and_one_replica_can_still_be_drained(tree: Tree) -> None:
    budget, autoscaler = tree.one("PodDisruptionBudget")["spec"], tree.one("HorizontalPodAutoscaler")["spec"]
    assert budget["maxUnavailable"] == "50%"
    assert share(budget["maxUnavailable"], autoscaler["minReplicas"]) >= 1


def test_deployment_and_service_select_by_name_only(deployment: Object, pod: Object, tree: Tree) -> None:
    by_name = {"app.kubernetes.io/name": APP_NAME}
    assert deployment["spec"]["selector"] == {"matchLabels": by_name}
    assert tree.one("Service")["spec"]["selector"] == by_name
    assert selects(by_name, pod["metadata"]["labels"])


def test_what_covers_a_canary_too_selects_by_a_label_it_keeps(pod: Object, tree: Tree) -> None:
    labels = pod["metadata"]["labels"]
    spread = pod["spec"]["topologySpreadConstraints"]
    selectors = [
        tree.one("PodDisruptionBudget")["spec"]["selector"],
        *(c["labelSelector"] for c in spread),
        *(p["spec"]["podSelector"] for p in tree.all("NetworkPolicy") if p["spec"]["podSelector"]),
    ]
    assert all(selects(s["matchLabels"], labels) for s in selectors)
    monitor = tree.one("ServiceMonitor")["spec"]["selector"]
    assert selects(monitor["matchLabels"], tree.one("Service")["metadata"]["labels"])
    assert all("app.kubernetes.io/name" not in s["matchLabels"] for s in [*selectors, monitor])


def test_pods_go_to_workers_only_and_spread_over_zones_and_hosts(pod: Object) -> None:
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert affinity["nodeSelectorTerms"] == [
        {"matchExpressions": [{"key": "node-role.kubernetes.io/worker", "operator": "Exists"}]}
    ]
    spread = pod["spec"]["topologySpreadConstraints"]
    assert [c["topologyKey"] for c in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_the_image_is_the_labs_registrys_under_the_tag_of_the_sources(container: Object) -> None:
    assert container["image"] == f"{REGISTRY_IN_CLUSTER}/{APP_NAME}:{appimage.manifest_tag()}"


def test_git_asks_for_the_application_that_is_in_git() -> None:
    """On a fresh machine only this tree's sources can be built, so that is what the tree has to ask for."""
    assert appimage.manifest_tag() == appimage.content_tag(), (
        "write what `python -m scripts app-tag` prints into the base"
    )


def test_ports_are_the_apps(container: Object, tree: Tree) -> None:
    assert [(p["name"], p["containerPort"]) for p in container["ports"]] == [("http", APP_PORT)]
    assert [(p["name"], p["port"], p["targetPort"]) for p in tree.one("Service")["spec"]["ports"]] == [
        ("http", APP_PORT, "http")
    ]
    assert [(e["port"], e["path"]) for e in tree.one("ServiceMonitor")["spec"]["endpoints"]] == [("http", "/metrics")]
    let_in = [rule for p in tree.all("NetworkPolicy") for rule in p["spec"].get("ingress", []) if "ports" in rule]
    assert {port["port"] for rule in let_in for port in rule["ports"]} == {APP_PORT}


def test_probes_let_a_pod_warm_up_and_never_kill_a_slow_start(container: Object, tree: Tree) -> None:
    (config,) = tree.all("ConfigMap")
    startup, readiness, liveness = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
    assert [p["httpGet"] for p in (startup, readiness, liveness)] == [
        {"path": "/healthz", "port": "http"},
        {"path": "/readyz", "port": "http"},
        {"path": "/healthz", "port": "http"},
    ]
    assert config["data"]["READINESS_DELAY_SEC"] == "5"
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3 * int(config["data"]["READINESS_DELAY_SEC"])
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60


def gunicorn(setting: str) -> int:
    found = re.search(rf"^{setting} = (\d+)$", (APP_DIR / "demo_app" / "gunicorn_conf.py").read_text(), re.MULTILINE)
    assert found, f"gunicorn_conf.py sets no {setting}"
    return int(found[1])


def test_a_pod_has_time_to_drain_before_it_is_killed(pod: Object, container: Object) -> None:
    pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]  # by the kubelet: the image has no shell
    assert pre_stop > 0
    assert pre_stop + gunicorn("graceful_timeout") < pod["spec"]["terminationGracePeriodSeconds"]


def test_the_proxy_closes_idle_connections_before_the_app_does(tree: Tree) -> None:
    idle = tree.one("BackendTrafficPolicy")["spec"]["timeout"]["http"]["connectionIdleTimeout"]
    assert int(idle.removesuffix("s")) < gunicorn("keepalive")


def test_only_requests_that_never_reached_the_app_are_retried(tree: Tree) -> None:
    policy, route = tree.one("BackendTrafficPolicy")["spec"], tree.one("HTTPRoute")
    assert set(policy["retry"]["retryOn"]) == {"triggers"}
    assert set(policy["retry"]["retryOn"]["triggers"]) == {"connect-failure", "refused-stream", "reset-before-request"}
    assert [(t["kind"], t["name"]) for t in policy["targetRefs"]] == [("HTTPRoute", route["metadata"]["name"])]


def test_the_route_has_the_environments_host_name_and_hangs_on_the_edges_gateway(
    environment: str, tree: Tree, render: Callable[[Path], Tree]
) -> None:
    gateway, route = render(EDGE).one("Gateway"), tree.one("HTTPRoute")["spec"]
    (listener,), (parent,) = gateway["spec"]["listeners"], route["parentRefs"]
    assert route["hostnames"] == [f"{environment}.localhost"]
    assert (parent["namespace"], parent["name"]) == (EDGE_NAMESPACE, gateway["metadata"]["name"])
    wanted = listener["allowedRoutes"]["namespaces"]["selector"]["matchLabels"]
    assert selects(wanted, tree.one("Namespace")["metadata"]["labels"])
    ((backend,),) = (rule["backendRefs"] for rule in route["rules"])
    assert (backend["name"], backend["port"]) == (tree.one("Service")["metadata"]["name"], APP_PORT)


def test_the_route_shows_what_is_meant_for_the_outside_and_not_the_control_endpoint(tree: Tree) -> None:
    matches = [m for rule in tree.one("HTTPRoute")["spec"]["rules"] for m in rule["matches"]]
    # Exact: a prefix would show whatever is added below it.
    assert {m["path"]["type"] for m in matches} == {"Exact"}
    assert sorted(m["path"]["value"] for m in matches) == sorted(["/", *endpoints.PATHS])


def test_network_is_closed_but_for_what_is_named(tree: Tree) -> None:
    policies = {p["metadata"]["name"]: p["spec"] for p in tree.all("NetworkPolicy")}
    assert set(policies) == NETWORK_POLICIES
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    peers = {
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for spec in policies.values()
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]
        for peer in rule.get("from", rule.get("to", []))
        if "namespaceSelector" in peer
    }
    assert peers == {"monitoring", "kube-system", EDGE_NAMESPACE}
    assert all(rule for spec in policies.values() for rule in [*spec.get("ingress", []), *spec.get("egress", [])])


def test_the_service_account_reads_its_own_settings_by_name_and_nothing_else(
    environment: str, pod: Object, tree: Tree
) -> None:
    account, role, binding = tree.one("ServiceAccount"), tree.one("Role"), tree.one("RoleBinding")
    assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": environment}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert {(r["resources"][0], *r["resourceNames"]) for r in role["rules"]} == {
        ("configmaps", tree.one("ConfigMap")["metadata"]["name"]),
        ("secrets", tree.one("Secret")["metadata"]["name"]),
    }
    assert [r["verbs"] for r in role["rules"]] == [["get"], ["get"]]


def test_the_app_gets_the_variables_that_it_reads(container: Object, tree: Tree) -> None:
    sources = {kind: ref["name"] for source in container["envFrom"] for kind, ref in source.items()}
    assert sources == {
        "configMapRef": tree.one("ConfigMap")["metadata"]["name"],
        "secretRef": tree.one("Secret")["metadata"]["name"],
    }
    given = {e["name"] for e in container["env"]} | set(tree.one("ConfigMap")["data"]) | set(tree.one("Secret")["data"])
    known = set(re.findall(r'environ(?:\.get\(|, )"([A-Z_]+)"', (APP_DIR / "demo_app" / "settings.py").read_text()))
    assert given <= known
    assert {"GREETING", "READINESS_DELAY_SEC", "FAIL_RATE", "ENVIRONMENT", "POD_NAME", "NODE_NAME"} <= given


@pytest.mark.parametrize("old_value", ["FAIL_RATE=0", "GREETING=Hello from dev"])
def test_a_changed_value_rolls_the_pods(
    old_value: str, build: Build, render: Callable[[Path], Tree], copy_of_tree: Path
) -> None:
    overlay = copy_of_tree / OVERLAYS.relative_to(settings.FLUX_CD) / "dev"
    before = pod_template(render(OVERLAYS / "dev").text)
    kustomization = overlay / "kustomization.yaml"
    text = kustomization.read_text()
    assert old_value in text
    kustomization.write_text(text.replace(old_value, f"{old_value}.5"))
    assert pod_template(build(overlay)) != before


def pod_template(rendered: str) -> Any:
    return Tree(rendered).one("Deployment")["spec"]["template"]
