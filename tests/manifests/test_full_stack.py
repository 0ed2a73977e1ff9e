"""MONITORING=full: the chart's release and its values, against the traps that it is known for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import versions
from scripts.monitoring import full, slo
from tests.manifests.conftest import Tree
from tests.manifests.quantities import number
from tests.manifests.test_flux import seconds


@pytest.fixture
def stack(render: Callable[[Path], Tree]) -> Tree:
    return render(slo.STACK)


@pytest.fixture
def values(stack: Tree) -> dict[str, Any]:
    return dict(yaml.safe_load(stack.one("ConfigMap", "kube-prometheus-stack-values")["data"]["values.yaml"]))


def at(values: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def test_the_release_is_pinned_patient_and_goes_back_when_it_fails(stack: Tree) -> None:
    spec = stack.one("HelmRelease")["spec"]
    pinned = versions.load().charts["kube-prometheus-stack"]
    repository = stack.one("HelmRepository")
    assert spec["chart"]["spec"]["version"] == pinned.tag
    assert f"{repository['spec']['url']}/{spec['chart']['spec']['chart']}" == f"oci://{pinned.image}"
    assert repository["spec"]["type"] == "oci"
    assert spec["chart"]["spec"]["sourceRef"]["name"] == repository["metadata"]["name"]
    assert seconds(spec["timeout"]) > 600
    assert spec["upgrade"]["remediation"] == {"retries": 3, "remediateLastFailure": True, "strategy": "rollback"}
    assert spec["install"]["remediation"]["retries"] >= 1


def test_definitions_come_from_crds_alone(stack: Tree, values: dict[str, Any]) -> None:
    spec = stack.one("HelmRelease")["spec"]
    assert spec["install"]["crds"] == spec["upgrade"]["crds"] == "Skip"
    assert values["crds"]["enabled"] is False


def test_the_release_reads_the_values_and_hears_of_a_change(stack: Tree) -> None:
    config = stack.one("ConfigMap", "kube-prometheus-stack-values")
    (source,) = stack.one("HelmRelease")["spec"]["valuesFrom"]
    assert (source["name"], source["valuesKey"]) == (config["metadata"]["name"], *config["data"])
    assert config["metadata"]["labels"]["reconcile.fluxcd.io/watch"] == "Enabled"


def test_no_monitor_or_rule_is_passed_over_for_want_of_a_label(values: dict[str, Any]) -> None:
    spec = values["prometheus"]["prometheusSpec"]
    selectors = ("rule", "serviceMonitor", "podMonitor", "probe", "scrapeConfig")
    assert [spec[f"{s}SelectorNilUsesHelmValues"] for s in selectors] == [False] * len(selectors)
    assert not any(key.endswith(("Selector", "NamespaceSelector")) for key in spec)


@pytest.mark.parametrize(
    "name",
    ["kubeApiServer", "kubelet", "coreDns", "kubeControllerManager", "kubeEtcd", "kubeScheduler", "kubeProxy", "kubernetesServiceMonitors"],
)  # fmt: skip
def test_the_charts_own_monitors_are_off(values: dict[str, Any], name: str) -> None:
    assert values[name]["enabled"] is False


def test_nothing_is_scraped_or_judged_twice(values: dict[str, Any]) -> None:
    assert values["defaultRules"]["create"] is False
    for part in ("prometheusOperator", "prometheus", "alertmanager"):
        assert values[part]["serviceMonitor"]["selfMonitor"] is False
    for part in ("kube-state-metrics", "prometheus-node-exporter"):
        assert values[part]["prometheus"]["monitor"]["enabled"] is False
    assert values["grafana"]["serviceMonitor"]["enabled"] is False


def test_every_image_has_the_pinned_tag(values: dict[str, Any]) -> None:
    pinned = versions.load().images
    for name, path in full.IMAGES.items():
        assert str(at(values, path)["tag"]) == pinned[name].tag, name
        assert pinned[name].digest, f"{name} is not pinned"


def test_every_container_has_requests_and_a_memory_limit(values: dict[str, Any]) -> None:
    paths = [
        ("prometheusOperator",), ("prometheusOperator", "prometheusConfigReloader"), ("prometheus", "prometheusSpec"),
        ("alertmanager", "alertmanagerSpec"), ("kube-state-metrics",), ("prometheus-node-exporter",), ("grafana",),
        ("grafana", "sidecar"),
    ]  # fmt: skip
    for path in paths:
        resources = at(values, path)["resources"]
        assert set(resources["requests"]) == {"cpu", "memory"}, path
        assert number(resources["requests"]["memory"]) <= number(resources["limits"]["memory"]), path
    prometheus = values["prometheus"]["prometheusSpec"]
    assert number(prometheus["resources"]["limits"]["memory"]) <= 1024**3
    assert number(prometheus["retentionSize"].replace("MB", "M")) < number(prometheus["storageSpec"]["emptyDir"]["sizeLimit"])  # fmt: skip


def test_grafana_takes_its_password_from_the_secret_that_setup_makes(values: dict[str, Any]) -> None:
    grafana = values["grafana"]
    assert grafana["admin"]["existingSecret"] == full.GRAFANA_SECRET
    assert "adminPassword" not in grafana
    dashboards = grafana["sidecar"]["dashboards"]
    assert (dashboards["label"], dashboards["labelValue"]) == ("grafana_dashboard", "1")


def test_alertmanager_has_the_configuration_and_the_address_of_rules(values: dict[str, Any]) -> None:
    spec = values["alertmanager"]["alertmanagerSpec"]
    assert spec["useExistingSecret"] is True and spec["configSecret"] == "alertmanager-lab"
    (mount,) = spec["volumeMounts"]
    (volume,) = spec["volumes"]
    assert (mount["mountPath"], volume["secret"]["secretName"]) == ("/etc/alertmanager/webhook", "alert-webhook")
    assert volume["secret"]["optional"] is True
