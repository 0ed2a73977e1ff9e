"""KEDA's manifests, and an environment as it is while it scales on latency."""

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from scripts import keda, settings, versions
from scripts.definitions import sources
from scripts.hpa import changes
from scripts.hpa.sampling import LATENCY_METRIC
from scripts.settings import KEDA_NAMESPACE, MONITORING_NAMESPACE
from tests.manifests.conftest import Build, Object, Tree, load_all, load_file
from tests.manifests.paths import APPLICATIONS, BASE, KEDA

READING = {"get", "list", "watch"}
COMPONENT = APPLICATIONS / "_components" / "latency-scaling"


@pytest.fixture(scope="session")
def installed(render: Callable[[Path], Tree]) -> Tree:
    return render(KEDA)


# ---------------------------------------------------------------- an environment on latency


@pytest.fixture(params=settings.OWN_ENVIRONMENTS)
def environment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def as_flux_builds_it(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Object]]:
    """Build an environment with what a run writes into its Flux Kustomization, the way kustomize-controller does."""
    copied = shutil.copytree(settings.FLUX_CD, tmp_path_factory.mktemp("latency") / "flux-cd")

    @cache
    def built(name: str) -> list[Object]:
        folder = copied / settings.OVERLAYS.relative_to(settings.FLUX_CD) / name
        spec = changes.latency_changes(name, (7, 9))["spec"]
        file = folder / "kustomization.yaml"
        overlay = yaml.safe_load(file.read_text())
        overlay["components"] = [*overlay.get("components", []), *spec["components"]]
        overlay["patches"] = [*overlay.get("patches", []), *spec["patches"]]
        file.write_text(yaml.safe_dump(overlay, sort_keys=False))
        return load_all(build(folder))

    return built


def test_the_scaled_object_takes_the_autoscalers_place_with_its_bounds_and_behaviour(
    environment: str, as_flux_builds_it: Callable[[str], list[Object]], render: Callable[[Path], Tree]
) -> None:
    before = render(settings.OVERLAYS / environment).objects
    after = as_flux_builds_it(environment)
    assert [o for o in after if o["kind"] == "HorizontalPodAutoscaler"] == []
    (scaled,) = [o for o in after if o["kind"] == "ScaledObject"]
    own = load_file(BASE / "horizontalpodautoscaler.yaml")["spec"]
    spec = scaled["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (7, 9)
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == own["behavior"]
    assert spec["scaleTargetRef"] == own["scaleTargetRef"]
    assert spec["advanced"]["restoreToOriginalReplicaCount"] is False
    # Nothing else is changed.
    kinds = ("HorizontalPodAutoscaler", "ScaledObject")
    assert [o for o in before if o["kind"] not in kinds] == [o for o in after if o["kind"] not in kinds]


def test_the_query_is_about_the_environments_own_histogram(
    environment: str, as_flux_builds_it: Callable[[str], list[Object]]
) -> None:
    (scaled,) = [o for o in as_flux_builds_it(environment) if o["kind"] == "ScaledObject"]
    (trigger,) = scaled["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    assert re.findall(r'namespace="([^"]*)"', query) == [environment, environment]
    assert "app_request_duration_seconds_bucket" in query and "status" not in query, "failed requests count as well"
    assert trigger["metricType"] == "Value"
    assert trigger["metadata"]["ignoreNullValues"] == "false", "no data has to be an error"
    interval = int(load_file(BASE / "servicemonitor.yaml")["spec"]["endpoints"][0]["interval"].removesuffix("s"))
    assert {int(s) for s in re.findall(r"\[(\d+)s\]", query)} == {3 * interval}


def test_prometheus_is_asked_where_monitoring_has_it() -> None:
    (trigger,) = load_file(COMPONENT / "scaledobject.yaml")["spec"]["triggers"]
    assert trigger["metadata"]["serverAddress"] == f"http://prometheus-operated.{MONITORING_NAMESPACE}.svc:9090"


# ---------------------------------------------------------------- KEDA


def test_it_is_applied_by_flux_on_demand_only(render: Callable[[Path], Tree]) -> None:
    sync = keda.flux_kustomization()
    assert (settings.ROOT / sync["spec"]["path"]).resolve() == KEDA
    assert sync["spec"]["prune"] is True and sync["spec"]["wait"] is True
    names = [o["metadata"]["name"] for o in render(settings.FLUX_CD).objects]
    assert sync["metadata"]["name"] not in names


@pytest.mark.parametrize("name", keda.IMAGES)
def test_its_images_have_the_version_that_is_built(name: str, installed: Tree) -> None:
    pinned = versions.load()
    image = pinned.images[name]
    assert {p.rpartition("@")[2] for p in pinned.modules[keda.MODULE].packages} == {f"v{image.tag}"}
    assert pinned.modules[keda.MODULE].on_demand == image.on_demand
    used = [c["image"] for d in installed.all("Deployment") for c in d["spec"]["template"]["spec"]["containers"]]
    assert image.tagged in used


def test_its_definitions_are_its_modules_and_every_kind_that_it_watches_is_defined(installed: Tree) -> None:
    (package,) = {p.partition("/cmd/")[0] for p in versions.load().modules[keda.MODULE].packages}
    (version,) = {p.rpartition("@")[2] for p in versions.load().modules[keda.MODULE].packages}
    modules = {source.module for source in sources(KEDA / "crds").values()}
    assert modules == {f"{package}@{version}"}
    defined = {(c["spec"]["group"], c["spec"]["names"]["plural"]) for c in installed.all("CustomResourceDefinition")}
    watched = {
        (g, r)
        for rule in installed.one("ClusterRole", "keda-operator")["rules"]
        if "watch" in rule["verbs"]
        for g in rule["apiGroups"]
        for r in rule["resources"]
        if g.endswith("keda.sh")
    }
    assert watched == defined


def test_it_may_read_no_secret_of_an_environment_and_change_little(installed: Tree) -> None:
    rules = [r for o in installed.all("ClusterRole") for r in o["rules"]]
    assert not any("secrets" in r["resources"] for r in rules)
    assert not any("*" in r["apiGroups"] + r["resources"] + r["verbs"] for r in rules)
    written = {res for r in rules if set(r["verbs"]) - READING for res in r["resources"]}
    assert written == {
        "scaledobjects", "scaledobjects/finalizers", "scaledobjects/status", "horizontalpodautoscalers",
        "deployments/scale", "events", "apiservices",
    }  # fmt: skip
    (one,) = [r for r in rules if "apiservices" in r["resources"] and set(r["verbs"]) - READING]
    assert one["resourceNames"] == [installed.one("APIService")["metadata"]["name"]]
    operator = installed.one("Deployment", "keda-operator")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "KEDA_RESTRICT_SECRET_ACCESS", "value": "true"} in operator["env"]


def test_the_autoscalers_controller_may_read_just_the_metric(installed: Tree) -> None:
    (rule,) = installed.one("ClusterRole", "keda-external-metrics-reader")["rules"]
    assert (rule["resources"], set(rule["verbs"])) == ([LATENCY_METRIC], {"get", "list"})
    (subject,) = installed.one("ClusterRoleBinding", "keda-hpa-controller-external-metrics")["subjects"]
    assert subject["name"] == "horizontal-pod-autoscaler"


def test_the_api_server_verifies_who_serves_the_metric(installed: Tree) -> None:
    spec = installed.one("APIService")["spec"]
    assert not spec.get("insecureSkipTLSVerify") and "caBundle" not in spec, "the operator writes it"


def test_its_namespace_is_restricted_and_its_policies_let_through_what_its_parts_say_to_each_other(
    installed: Tree,
) -> None:
    labels = installed.one("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    policies = {(p["metadata"]["namespace"], p["metadata"]["name"]): p["spec"] for p in installed.all("NetworkPolicy")}
    own, away = KEDA_NAMESPACE, MONITORING_NAMESPACE
    assert set(policies) == {
        (own, "default-deny"), (own, "operator"), (own, "adapter"), (away, "prometheus-from-keda"),
    }  # fmt: skip
    pods = {d["metadata"]["name"]: d["spec"]["template"]["metadata"]["labels"] for d in installed.all("Deployment")}
    operator, adapter = policies[own, "operator"], policies[own, "adapter"]
    assert operator["podSelector"]["matchLabels"].items() <= pods["keda-operator"].items()
    assert adapter["podSelector"]["matchLabels"].items() <= pods["keda-metrics-apiserver"].items()
    (asks,) = operator["ingress"]
    assert asks["from"][0]["podSelector"]["matchLabels"].items() <= pods["keda-metrics-apiserver"].items()
    ports = {s["metadata"]["name"]: s["spec"]["ports"][0]["targetPort"] for s in installed.all("Service")}
    assert ports == {"keda-operator": "metricsservice", "keda-metrics-apiserver": "https"}
    assert "from" not in adapter["ingress"][0], "the API server is no pod: it comes from a node's address"
    # What the operator may ask is what Prometheus lets it ask.
    (out,) = [
        e
        for e in operator["egress"]
        if any(
            "podSelector" in t and t["podSelector"]["matchLabels"].get("app.kubernetes.io/name") == "prometheus"
            for t in e.get("to", [])
        )
    ]
    (into,) = policies[away, "prometheus-from-keda"]["ingress"]
    assert out["ports"] == into["ports"] == [{"protocol": "TCP", "port": 9090}]
    assert into["from"][0]["podSelector"]["matchLabels"].items() <= pods["keda-operator"].items()
