"""The monitoring that Git holds: what it runs, what it watches, and what it may."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import flux, settings, versions
from scripts.definitions import sources
from scripts.fluxcli import CONTROLLERS
from scripts.monitoring import mode
from scripts.settings import EDGE_NAMESPACE, FLUX_NAMESPACE, MONITORING_NAMESPACE
from tests.manifests.conftest import Object, Tree, load_all, load_file
from tests.manifests.paths import EDGE, FOUNDATION, LITE, MONITORING_DEFINITIONS, ROOTS, WATCHED
from tests.manifests.podsecurity import violations
from tests.manifests.quantities import number

POD_KINDS = {"Deployment", "DaemonSet", "StatefulSet", "Job"}
PRUNE = "kustomize.toolkit.fluxcd.io/prune"
NAME = "app.kubernetes.io/name"
# What the cluster has of its own, as kubeadm and the API server make it: labels and the names of ports.
GIVEN_SERVICES = [
    ("default", {"component": "apiserver", "provider": "kubernetes"}, {"https"}),
    ("kube-system", {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true"}, {"dns", "dns-tcp", "metrics"}),
]
# What controllers make of the tree's objects: their labels and ports are the controllers' words.
MADE_PODS = [
    (MONITORING_NAMESPACE, {NAME: "prometheus", "prometheus": "lab"}, {"web": 9090, "reloader-web": 8080}),
    (MONITORING_NAMESPACE, {NAME: "alertmanager", "alertmanager": "lab"}, {"web": 9093, "reloader-web": 8080}),
    (
        EDGE_NAMESPACE,
        {NAME: "envoy", "app.kubernetes.io/component": "proxy", "app.kubernetes.io/managed-by": "envoy-gateway"},
        {"http-80": 10080, "metrics": 19001, "readiness": 19003},
    ),
    *((FLUX_NAMESPACE, {"app": name}, {"http-prom": 8080, "healthz": 9440}) for name in CONTROLLERS),
]
# Bound to loopback by kind: a target of these would be down for ever.
LOOPBACK = {"etcd", "kube-scheduler", "kube-controller-manager", "kube-proxy"}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    for e in selector.get("matchExpressions", []):
        assert e["operator"] == "In", "as far as this test reads"
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", [])
    )


@pytest.fixture(scope="module")
def everything(render: Callable[[Path], Tree]) -> list[Object]:
    return [o for root in ROOTS for o in render(root).objects]


@pytest.fixture(scope="module")
def pods(everything: list[Object]) -> list[tuple[str, dict[str, str], dict[str, int]]]:
    """Namespace, labels and ports by name of every pod that is there in the lab."""
    found = []
    for o in everything:
        if o["kind"] in POD_KINDS:
            template = o["spec"]["template"]
            ports = {p["name"]: p["containerPort"] for c in template["spec"]["containers"] for p in c.get("ports", [])}
            found.append((o["metadata"].get("namespace", ""), template["metadata"]["labels"], ports))
    return [*found, *MADE_PODS]


@pytest.fixture(scope="module")
def monitors(everything: list[Object]) -> list[Object]:
    return [o for o in everything if o["kind"] in ("ServiceMonitor", "PodMonitor")]


def in_lite(render: Callable[[Path], Tree]) -> list[Object]:
    return [o for o in render(LITE).objects if o["kind"] in POD_KINDS]


# ---------------------------------------------------------------- what is watched


def test_prometheus_takes_every_monitor_and_rule_of_every_namespace(render: Callable[[Path], Tree]) -> None:
    spec = render(LITE).one("Prometheus", "lab")["spec"]
    for what in ("serviceMonitor", "podMonitor", "rule"):
        assert spec[f"{what}Selector"] == {} and spec[f"{what}NamespaceSelector"] == {}, "no release label is asked for"


def test_every_monitor_finds_a_service_or_pod_with_its_port(
    monitors: list[Object], everything: list[Object], pods: list[tuple[str, dict[str, str], dict[str, int]]]
) -> None:
    services = [
        (o["metadata"]["namespace"], o["metadata"].get("labels", {}), {p["name"] for p in o["spec"]["ports"]})
        for o in everything
        if o["kind"] == "Service"
    ]
    assert {"flux", "edge-proxy", "edge-controller", "coredns", "kubelet", "apiserver", "demo-app"} <= {
        m["metadata"]["name"] for m in monitors
    }
    for monitor in monitors:
        spec, own = monitor["spec"], monitor["metadata"]["namespace"]
        namespaces = set(spec.get("namespaceSelector", {}).get("matchNames", [own]))
        endpoints = spec.get("endpoints") or spec["podMetricsEndpoints"]
        targets: list[Any] = [*services, *GIVEN_SERVICES] if monitor["kind"] == "ServiceMonitor" else list(pods)
        fitting = [t for t in targets if t[0] in namespaces and selects(spec["selector"], t[1])]
        assert fitting, f"{monitor['metadata']['name']} selects nothing"
        for endpoint in endpoints:
            assert all(endpoint["port"] in ports for _, _, ports in fitting), monitor["metadata"]["name"]


def test_all_of_fluxs_controllers_are_watched(render: Callable[[Path], Tree]) -> None:
    (expression,) = render(WATCHED).one("PodMonitor", "flux")["spec"]["selector"]["matchExpressions"]
    assert set(expression["values"]) == set(CONTROLLERS)


def test_what_kind_binds_to_loopback_is_not_watched(monitors: list[Object]) -> None:
    said = [str(m["metadata"]["name"]) + str(m["spec"]["selector"]) for m in monitors]
    assert not [s for s in said if any(name in s for name in LOOPBACK)]


def test_the_large_sources_are_cut_down_to_named_families(render: Callable[[Path], Tree]) -> None:
    for name in ("apiserver", "kubelet"):
        for endpoint in render(WATCHED).one("ServiceMonitor", name)["spec"]["endpoints"]:
            first = endpoint["metricRelabelings"][0]
            assert (first["action"], first["sourceLabels"]) == ("keep", ["__name__"]), name
            assert ".*_bucket" not in first["regex"] and first["regex"] != ".*"


def test_the_applications_are_watched_twice_as_often_as_the_platform(monitors: list[Object]) -> None:
    intervals: dict[str, set[str]] = {}
    for monitor in monitors:
        endpoints = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        intervals.setdefault(monitor["metadata"]["name"], set()).update(e.get("interval", "15s") for e in endpoints)
    often = {name for name, found in intervals.items() if found == {"15s"}}
    assert often == {"demo-app", "edge-proxy"}
    assert set().union(*(found for name, found in intervals.items() if name not in often)) == {"30s"}


def test_the_kubelets_service_is_as_the_operator_writes_it(render: Callable[[Path], Tree]) -> None:
    service = render(WATCHED).one("Service", "kubelet")
    args = container_args(render, "prometheus-operator")
    assert f"--kubelet-service={service['metadata']['namespace']}/{service['metadata']['name']}" in args
    ports = {p["name"]: p["port"] for p in service["spec"]["ports"]}
    assert ports == {"https-metrics": 10250, "cadvisor": 4194}, "as an operator of this version was seen to write it"
    # Endpoints would stay behind when the Service goes; slices belong to it.
    assert {"--kubelet-endpointslice=true", "--kubelet-endpoints=false", "--kubelet-http-metrics=false"} <= set(args)
    assert render(LITE).one("Prometheus")["spec"]["serviceDiscoveryRole"] == "EndpointSlice"


def container_args(render: Callable[[Path], Tree], deployment: str) -> list[str]:
    (container,) = render(LITE).one("Deployment", deployment)["spec"]["template"]["spec"]["containers"]
    return list(container["args"])


def test_kube_state_metrics_may_read_just_what_it_counts(
    render: Callable[[Path], Tree], everything: list[Object]
) -> None:
    args = dict(a.removeprefix("--").partition("=")[::2] for a in container_args(render, "kube-state-metrics"))
    config = render(LITE).one("ConfigMap")["data"]
    (described,) = load_all(config[args["custom-resource-state-config-file"].rpartition("/")[2]])
    kinds = {f"{r['groupVersionKind']['kind'].lower()}s".replace("ys", "ies") for r in described["spec"]["resources"]}
    roles = ("kube-state-metrics", "kube-state-metrics-flux")
    rules = [rule for role in roles for rule in render(LITE).one("ClusterRole", role)["rules"]]
    granted = {r for rule in rules for r in rule["resources"]}
    assert granted == {*args["resources"].split(","), *kinds, "customresourcedefinitions"}
    (volume,) = render(LITE).one("Deployment", "kube-state-metrics")["spec"]["template"]["spec"]["volumes"]
    (config,) = (o for o in everything if o["metadata"]["name"] == volume["configMap"]["name"])
    assert args["custom-resource-state-config-file"].rpartition("/")[2] in config["data"]


# ---------------------------------------------------------------- what runs, and what it may


def test_images_are_the_pinned_ones_that_setup_puts_onto_the_nodes(render: Callable[[Path], Tree]) -> None:
    used = {c["image"] for o in in_lite(render) for c in o["spec"]["template"]["spec"]["containers"]}
    used |= {o["spec"]["image"] for kind in ("Prometheus", "Alertmanager") for o in render(LITE).all(kind)}
    (reloader,) = (a for a in container_args(render, "prometheus-operator") if a.startswith("--prometheus-config-rel"))
    used.add(reloader.partition("=")[2])
    pinned = versions.load().images
    assert used == {pinned[name].tagged for name in mode.IMAGES}


def test_versions_told_to_the_operator_are_those_that_run(render: Callable[[Path], Tree]) -> None:
    for kind in ("Prometheus", "Alertmanager"):
        spec = render(LITE).one(kind)["spec"]
        assert spec["image"].endswith(f":{spec['version']}")
        assert spec["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize(
    ("image", "module"),
    [
        ("prometheus-operator", "prometheus-operator"),
        ("prometheus-config-reloader", "prometheus-operator"),
        ("node-exporter", "node-exporter"),
        ("kube-state-metrics", "kube-state-metrics"),
    ],
)
def test_images_have_the_versions_that_source_mode_builds(image: str, module: str) -> None:
    found = versions.load()
    assert {p.rpartition("@")[2] for p in found.modules[module].packages} == {found.images[image].tag}
    stamp = found.modules[module].stamps["github.com/prometheus/common/version.Version"]
    assert stamp.removeprefix("v") == found.images[image].tag.removeprefix("v")


def test_prometheus_has_the_version_that_its_module_stands_for() -> None:
    found = versions.load()
    major, minor, patch = found.images["prometheus"].tag.removeprefix("v").split(".")
    for name in ("prometheus", "promtool"):
        (package,) = found.modules[name].packages
        assert package.rpartition("@")[2] == f"v0.{major}{minor}.{patch}"
        assert list(found.modules[name].stamps.values()) == [f"{major}.{minor}.{patch}"]


def test_definitions_are_of_the_operator_that_runs_and_outlive_it(render: Callable[[Path], Tree]) -> None:
    definitions = render(MONITORING_DEFINITIONS).objects
    assert all(d["metadata"]["annotations"][PRUNE] == "disabled" for d in definitions), "people's objects go with them"
    tag = versions.load().images["prometheus-operator"].tag
    folders = (MONITORING_DEFINITIONS, MONITORING_DEFINITIONS.parent)
    modules = {source.module for folder in folders for source in sources(folder).values()}
    assert modules == {f"github.com/prometheus-operator/prometheus-operator@{tag}"}


def test_every_kind_that_is_used_is_defined_before(everything: list[Object], render: Callable[[Path], Tree]) -> None:
    defined = {
        d["spec"]["names"]["kind"]
        for root in (MONITORING_DEFINITIONS, FOUNDATION)
        for d in render(root).all("CustomResourceDefinition")
        if d["spec"]["group"] == "monitoring.coreos.com"
    }
    used = {o["kind"] for o in everything if o["apiVersion"].startswith("monitoring.coreos.com/")}
    assert used <= defined
    # Those that nobody uses here are the ones that the operator won't start without.
    assert defined - used <= {"Probe", "AlertmanagerConfig", "PrometheusRule"}


def test_pods_are_restricted_but_for_the_hosts_files_that_are_measured(render: Callable[[Path], Tree]) -> None:
    for o in in_lite(render):
        pod, name = o["spec"]["template"]["spec"], o["metadata"]["name"]
        hosts = ["volume proc", "volume root", "volume sys"] if name == "node-exporter" else []
        assert sorted(violations(pod)) == hosts, name
        for volume in pod.get("volumes", []):
            (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == volume["name"])
            assert "hostPath" not in volume or mount["readOnly"] is True
    for kind in ("Prometheus", "Alertmanager"):
        context = render(LITE).one(kind)["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True and context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_every_container_has_probes_requests_and_a_limit_of_memory(render: Callable[[Path], Tree]) -> None:
    for o in in_lite(render):
        for container in o["spec"]["template"]["spec"]["containers"]:
            assert {"livenessProbe", "readinessProbe"} <= set(container), o["metadata"]["name"]
    for resources in all_resources(render):
        assert set(resources["requests"]) == {"cpu", "memory"} and set(resources["limits"]) == {"memory"}
        assert number(resources["requests"]["memory"]) < number(resources["limits"]["memory"])


def all_resources(render: Callable[[Path], Tree]) -> list[Object]:
    found = [c["resources"] for o in in_lite(render) for c in o["spec"]["template"]["spec"]["containers"]]
    return [*found, *(render(LITE).one(kind)["spec"]["resources"] for kind in ("Prometheus", "Alertmanager"))]


def test_the_small_stack_asks_for_little(render: Callable[[Path], Tree]) -> None:
    """What is asked for on three nodes, with the reloaders that the operator adds; the limit of each is below 512 MiB."""
    nodes = 3
    asked = sum(number(r["requests"]["memory"]) for r in all_resources(render))
    daemon = render(LITE).one("DaemonSet")["spec"]["template"]["spec"]["containers"][0]["resources"]
    asked += (nodes - 1) * number(daemon["requests"]["memory"]) + 2 * 16 * 1024**2
    assert asked < 600 * 1024**2
    assert all(number(r["limits"]["memory"]) < 512 * 1024**2 for r in all_resources(render))


def test_prometheus_collects_before_the_kernel_kills_and_forgets_in_time(render: Callable[[Path], Tree]) -> None:
    spec = render(LITE).one("Prometheus")["spec"]
    (patch,) = spec["containers"]
    (limit,) = (e["value"] for e in patch["env"] if e["name"] == "GOMEMLIMIT")
    assert number(limit.replace("iB", "i")) < 0.8 * number(spec["resources"]["limits"]["memory"])
    assert spec["retention"] == "24h"
    assert number(spec["retentionSize"].removesuffix("MB") + "M") < number(spec["storage"]["emptyDir"]["sizeLimit"])
    for kind in ("Prometheus", "Alertmanager"):
        assert render(LITE).one(kind)["spec"]["terminationGracePeriodSeconds"] <= 60, "the operator's own is 10 min"


def test_nothing_may_read_secrets_outside_its_own_namespace(render: Callable[[Path], Tree]) -> None:
    objects = render(LITE).objects
    for role in (o for o in objects if o["kind"] == "ClusterRole"):
        for rule in role["rules"]:
            assert "secrets" not in rule.get("resources", []) and "configmaps" not in rule.get("resources", [])
            assert set(rule["verbs"]) <= {"get", "list", "watch"}, role["metadata"]["name"]
    for role in (o for o in objects if o["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            assert not [w for w in (*rule.get("resources", []), *rule["verbs"], *rule.get("apiGroups", [])) if w == "*"]
    args = container_args(render, "prometheus-operator")
    for what in ("prometheus-instance", "alertmanager-instance", "alertmanager-config"):
        assert f"--{what}-namespaces={MONITORING_NAMESPACE}" in args, "its rights end there"


# ---------------------------------------------------------------- network policies


def test_the_namespace_denies_by_default_and_each_pod_has_its_own_exception(
    everything: list[Object], pods: list[tuple[str, dict[str, str], dict[str, int]]]
) -> None:
    policies = {
        o["metadata"]["name"]: o["spec"]
        for o in everything
        if o["kind"] == "NetworkPolicy" and o["metadata"]["namespace"] == MONITORING_NAMESPACE
    }
    told = {"alert-receiver": "alertmanager"}  # the others are only scraped
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for namespace, labels, ports in pods:
        if namespace != MONITORING_NAMESPACE:
            continue
        (policy,) = (p for n, p in policies.items() if n != "default-deny" and selects(p["podSelector"], labels))
        for rule in policy["ingress"]:
            caller = told.get(labels[NAME], "prometheus")
            assert rule["from"] == [{"podSelector": {"matchLabels": {NAME: caller}}}], labels
            assert {p["port"] for p in rule["ports"]} <= set(ports.values()), labels


def test_prometheus_may_reach_every_port_that_is_watched(
    render: Callable[[Path], Tree],
    monitors: list[Object],
    everything: list[Object],
    pods: list[tuple[str, dict[str, str], dict[str, int]]],
) -> None:
    (egress,) = render(LITE).one("NetworkPolicy", "prometheus")["spec"]["egress"]
    open_ports = {p["port"] for p in egress["ports"]}
    watched = {"https": 6443, "https-metrics": 10250, "metrics": 9153, "http": settings.APP_PORT}
    for monitor in monitors:
        spec = monitor["spec"]
        for endpoint in spec.get("endpoints", []):
            assert watched[endpoint["port"]] in open_ports, monitor["metadata"]["name"]
        for endpoint in spec.get("podMetricsEndpoints", []):
            namespaces = spec.get("namespaceSelector", {}).get("matchNames", [monitor["metadata"]["namespace"]])
            for namespace, labels, ports in pods:
                if namespace in namespaces and selects(spec["selector"], labels):
                    assert ports[endpoint["port"]] in open_ports, monitor["metadata"]["name"]
    assert {443, 6443} <= open_ports, "targets are found by the API server"


def test_watched_pods_let_monitoring_in(render: Callable[[Path], Tree]) -> None:
    policies = [*render(FOUNDATION).all("NetworkPolicy"), *render(settings.OVERLAYS / "dev").all("NetworkPolicy")]
    source = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": MONITORING_NAMESPACE}}}
    let_in = {
        (p["metadata"]["namespace"], port["port"])
        for p in policies
        for rule in p["spec"].get("ingress", [])
        if source in rule.get("from", [])
        for port in rule["ports"]
    }
    assert let_in == {(EDGE_NAMESPACE, 19001), ("dev", settings.APP_PORT)}


def test_the_edge_tells_on_the_port_that_is_watched(render: Callable[[Path], Tree]) -> None:
    (container,) = render(EDGE).one("Deployment")["spec"]["template"]["spec"]["containers"]
    assert {"metrics"} <= {p["name"] for p in container["ports"]}
    config = load_file(EDGE / "envoy-gateway.yaml")
    assert config["envoyProxy"]["telemetry"]["metrics"] == {"prometheus": {}}


def test_the_parts_are_named_as_setup_waits_for_them(render: Callable[[Path], Tree]) -> None:
    names = {o["metadata"]["name"] for o in render(settings.FLUX_CD).all("Kustomization")}
    assert set(flux.MONITORING_SYNCS) <= names
