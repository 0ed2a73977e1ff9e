"""The platform's part: upstream's definitions, images and versions, metrics, the edge."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import versions
from scripts.definitions import Source, sha256, sources, stripped
from scripts.settings import EDGE_NAMESPACE, EDGE_NODE_PORT, REGISTRY_IN_CLUSTER
from tests.manifests.conftest import Object, Tree, load_all, load_file
from tests.manifests.paths import CRD_FOLDERS, EDGE, FOUNDATION, KEDA, METRICS_SERVER, ROOTS
from tests.manifests.podsecurity import violations
from tests.manifests.quantities import number

COPIES = [(folder / name, source) for folder in CRD_FOLDERS for name, source in sources(folder).items()]
PROXY = {
    "app.kubernetes.io/name": "envoy",
    "app.kubernetes.io/component": "proxy",
    "app.kubernetes.io/managed-by": "envoy-gateway",
}
POD_KINDS = {"Deployment", "Job", "DaemonSet", "StatefulSet"}
# The controller's own choice: a listener's port plus 10000 where it is below 1024.
PROXY_HTTP_PORT, PROXY_METRICS_PORT, XDS_PORT = 10080, 19001, 18000


@pytest.fixture(scope="session")
def edge_config() -> dict[str, Any]:
    return dict(load_file(EDGE / "envoy-gateway.yaml"))


@pytest.fixture
def proxy(edge_config: dict[str, Any]) -> dict[str, Any]:
    return dict(edge_config["envoyProxy"]["provider"]["kubernetes"])


def pod_specs(tree: Tree) -> list[Object]:
    return [o["spec"]["template"]["spec"] for o in tree.objects if o["kind"] in POD_KINDS]


def descriptions(schema: Any, at: str = "") -> Iterator[str]:
    """Yield where a text of that name is: a property of that name holds a schema."""
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if key == "description" and isinstance(value, str):
            yield f"{at}.{key}"
        elif isinstance(value, dict | list):
            yield from descriptions(value, f"{at}.{key}")


@pytest.mark.parametrize(("path", "source"), COPIES, ids=lambda x: x.name if isinstance(x, Path) else "")
def test_a_definition_is_what_was_made_from_upstreams_and_has_no_schemas_descriptions(
    path: Path, source: Source
) -> None:
    assert sha256(path.read_bytes()) == source.sha256_here, "`make definitions` writes it; nobody else does"
    assert source.path.endswith(path.name)
    text = path.read_text()
    assert text.startswith(source.header)
    assert stripped(text) == text.removeprefix(source.header), "another run would write it in another way"
    (definition,) = load_all(text)
    assert definition["kind"] == "CustomResourceDefinition"
    for version in definition["spec"]["versions"]:
        assert list(descriptions(version["schema"])) == []


@pytest.mark.parametrize("folder", CRD_FOLDERS, ids=lambda f: f.parent.name)
def test_every_definition_is_recorded_and_applied(folder: Path) -> None:
    assert set(sources(folder)) == set(load_file(folder / "kustomization.yaml")["resources"])


def test_the_edges_definitions_are_its_controllers_own() -> None:
    packages = versions.load().modules["envoy-gateway"].packages
    modules = {source.module for _, source in COPIES if "envoyproxy" in source.module}
    assert {p.replace("/cmd/envoy-gateway", "") for p in packages} == modules


def test_every_image_is_one_of_the_pinned(
    render: Callable[[Path], Tree], edge_config: dict[str, Any], proxy: dict[str, Any]
) -> None:
    used = {
        c["image"]
        for root in (*ROOTS, KEDA)
        for pod in pod_specs(render(root))
        for c in [*pod["containers"], *pod.get("initContainers", [])]
    }
    used |= {
        proxy["envoyDeployment"]["container"]["image"],
        edge_config["provider"]["kubernetes"]["shutdownManager"]["image"],
    }
    pinned = {image.tagged for image in versions.load().images.values()}
    assert {i for i in used if not i.startswith(f"{REGISTRY_IN_CLUSTER}/")} <= pinned
    assert all(":" in i.rpartition("/")[2] for i in used)


@pytest.mark.parametrize("name", ["metrics-server", "envoy-gateway"])
def test_images_have_the_versions_that_source_mode_builds(name: str) -> None:
    found = versions.load()
    assert {p.rpartition("@")[2] for p in found.modules[name].packages} == {found.images[name].tag}


def test_envoy_is_the_wheels_version() -> None:
    found = versions.load()
    assert found.images["envoy"].tag == f"distroless-{found.envoy_wheel.version}"


@pytest.mark.parametrize("root", [METRICS_SERVER, EDGE, KEDA], ids=lambda p: p.name)
def test_platform_pods_are_restricted_bounded_and_have_requests(root: Path, render: Callable[[Path], Tree]) -> None:
    pods = pod_specs(render(root))
    assert pods
    for pod in pods:
        assert violations(pod) == []
        for container in pod["containers"]:
            resources = container["resources"]
            assert set(resources["requests"]) == {"cpu", "memory"}
            assert number(resources["requests"]["memory"]) <= number(resources["limits"]["memory"])
            assert container["imagePullPolicy"] == "IfNotPresent"


def test_metrics_server_starts_and_serves_an_autoscaler_soon(render: Callable[[Path], Tree]) -> None:
    (pod,) = pod_specs(render(METRICS_SERVER))
    args = dict(a.removeprefix("--").partition("=")[::2] for a in pod["containers"][0]["args"])
    assert "kubelet-insecure-tls" in args
    resolution, timeout = (
        int(args[name].removesuffix("s")) for name in ("metric-resolution", "kubelet-request-timeout")
    )
    assert resolution >= 10 and timeout <= 0.9 * resolution  # it refuses to start otherwise


def test_the_edge_lives_in_its_namespace(render: Callable[[Path], Tree]) -> None:
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "GatewayClass"}
    for o in render(EDGE).objects:
        assert o["kind"] in cluster_wide or o["metadata"]["namespace"] == EDGE_NAMESPACE
    labels = render(FOUNDATION).one("Namespace", EDGE_NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    (subject,) = render(EDGE).one("ClusterRoleBinding")["subjects"]
    assert subject["namespace"] == EDGE_NAMESPACE


def test_the_proxy_is_reached_at_the_port_that_kind_maps(proxy: dict[str, Any], render: Callable[[Path], Tree]) -> None:
    service = proxy["envoyService"]
    (port,), (listener,) = service["patch"]["value"]["spec"]["ports"], render(EDGE).one("Gateway")["spec"]["listeners"]
    assert service["type"] == "NodePort"
    assert (port["port"], port["nodePort"]) == (listener["port"], EDGE_NODE_PORT)
    assert listener["hostname"] == "*.localhost"


def test_a_replaced_proxy_goes_on_serving_until_the_next_is_ready(
    edge_config: dict[str, Any], proxy: dict[str, Any]
) -> None:
    deployment, shutdown = proxy["envoyDeployment"], edge_config["envoyProxy"]["shutdown"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    delay, least, most = (
        int(shutdown[k].removesuffix("s")) for k in ("healthCheckFailureDelay", "minDrainDuration", "drainTimeout")
    )
    assert 15 <= delay < least < most


def test_the_controllers_settings_roll_it(render: Callable[[Path], Tree], edge_config: dict[str, Any]) -> None:
    config, deployment = render(EDGE).one("ConfigMap"), render(EDGE).one("Deployment")
    volumes = {v["configMap"]["name"] for v in deployment["spec"]["template"]["spec"]["volumes"] if "configMap" in v}
    assert volumes == {config["metadata"]["name"]} and config["metadata"]["name"].startswith("envoy-gateway-config-")
    assert yaml.safe_load(config["data"]["envoy-gateway.yaml"]) == edge_config
    assert render(EDGE).one("GatewayClass")["spec"]["controllerName"] == edge_config["gateway"]["controllerName"]


def test_the_controller_needs_no_webhook_and_no_lease(edge_config: dict[str, Any]) -> None:
    # Spelt as the module's types have it: `disable` here, `disabled` there. A misspelt one would be ignored.
    kubernetes = edge_config["provider"]["kubernetes"]
    assert kubernetes["leaderElection"] == {"disable": True}
    assert kubernetes["proxyTopologyInjector"] == {"disabled": True}


def test_the_certificates_job_is_named_by_its_version_and_runs_once(render: Callable[[Path], Tree]) -> None:
    job = render(EDGE).one("Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["metadata"]["name"] == f"certgen-{container['image'].rpartition(':')[2].replace('.', '-')}"
    assert "ttlSecondsAfterFinished" not in job["spec"]


def test_the_edges_controller_may_change_things_only_in_its_own_namespace(render: Callable[[Path], Tree]) -> None:
    reading = {"get", "list", "watch"}
    for rule in render(EDGE).one("ClusterRole")["rules"]:
        writes = set(rule["verbs"]) - reading
        own_status = all(r.endswith("/status") or r == "gatewayclasses" for r in rule["resources"])
        assert not writes or own_status, rule
    rules = [r for o in render(EDGE).objects if o["kind"] in {"Role", "ClusterRole"} for r in o["rules"]]
    assert not any("*" in r["apiGroups"] + r["resources"] + r["verbs"] for r in rules)


def test_its_controller_may_watch_just_the_kinds_that_are_defined(render: Callable[[Path], Tree]) -> None:
    defined = {
        (c["spec"]["group"], c["spec"]["names"]["plural"]) for c in render(FOUNDATION).all("CustomResourceDefinition")
    }
    edge_groups = {"gateway.networking.k8s.io", "gateway.envoyproxy.io"}
    rules = render(EDGE).one("ClusterRole")["rules"]
    watched = {
        (g, r)
        for rule in rules
        if "watch" in rule["verbs"]
        for g in rule["apiGroups"]
        for r in rule["resources"]
        if g in edge_groups
    }
    assert watched == {d for d in defined if d[0] in edge_groups}


def test_network_policies_of_the_edge_let_through_what_its_parts_say_to_each_other(
    render: Callable[[Path], Tree],
) -> None:
    policies = {p["metadata"]["name"]: p["spec"] for p in render(FOUNDATION).all("NetworkPolicy")}
    assert {p["metadata"]["namespace"] for p in render(FOUNDATION).all("NetworkPolicy")} == {EDGE_NAMESPACE}
    pods = {
        o["metadata"]["name"]: o["spec"]["template"]["metadata"]["labels"]
        for o in render(EDGE).objects
        if o["kind"] in POD_KINDS
    }
    labels = {
        "default-deny": {},
        "proxy": PROXY,
        "controller": pods["envoy-gateway"],
        "certgen": next(v for k, v in pods.items() if k.startswith("certgen")),
    }
    assert set(policies) == set(labels)
    for name, spec in policies.items():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["podSelector"].get("matchLabels", {}).items() <= labels[name].items()
    ports = {
        name: {p["port"] for rule in spec.get("ingress", []) for p in rule["ports"]} for name, spec in policies.items()
    }
    assert ports == {
        "default-deny": set(),
        "certgen": set(),
        "proxy": {PROXY_HTTP_PORT, PROXY_METRICS_PORT},
        "controller": {XDS_PORT, PROXY_METRICS_PORT},
    }
    to_controller = policies["proxy"]["egress"][0]
    assert to_controller["to"][0]["podSelector"]["matchLabels"].items() <= labels["controller"].items()
    assert render(EDGE).one("Service")["spec"]["selector"].items() <= labels["controller"].items()


def test_a_route_may_only_have_its_namespaces_host_name(render: Callable[[Path], Tree]) -> None:
    policy, binding = (
        render(FOUNDATION).one("ValidatingAdmissionPolicy"),
        render(FOUNDATION).one("ValidatingAdmissionPolicyBinding"),
    )
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert (rule["apiGroups"], rule["resources"]) == (["gateway.networking.k8s.io"], ["httproutes"])
    assert set(rule["operations"]) == {"CREATE", "UPDATE"}
    assert policy["spec"]["failurePolicy"] == "Fail"
    assert (binding["spec"]["policyName"], binding["spec"]["validationActions"]) == (
        policy["metadata"]["name"],
        ["Deny"],
    )
    assert "matchResources" not in binding["spec"]
