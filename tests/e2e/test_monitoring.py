"""Monitoring in the live lab: every target up, each environment's among them, and it comes and goes without a trace."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import pytest

from scripts import endpoints, flux, fluxcli
from scripts.cluster import node_containers
from scripts.docker import memory_of
from scripts.kube import Kube
from scripts.monitoring import mode, prometheus
from scripts.settings import MONITORING_NAMESPACE, Edge, Monitoring, Settings, environments
from scripts.transfer import direct_session
from scripts.waiting import wait_for

# Seconds in which a Prometheus that has just started must have seen all of its targets: discovery, and two scrapes of 30 s.
SEEN_S = 120
JOBS = {
    "apiserver", "kubelet", "coredns", "flux", "prometheus", "alertmanager", "prometheus-operator", "node-exporter",
    "kube-state-metrics",
}  # fmt: skip
EDGE_JOBS = {"edge-controller", "edge-proxy"}
NODES = 3

Ask = Callable[[str], prometheus.Answer]
pytestmark = pytest.mark.usefixtures("monitored")


@pytest.fixture(scope="module")
def monitored(settings: Settings) -> None:
    if mode.in_lab(settings) is Monitoring.NONE:
        pytest.skip("this lab has no monitoring: make setup-all MONITORING=lite")


@pytest.fixture
def ask(kube: Kube) -> Iterator[Ask]:
    """Ask Prometheus by its API; a forward for each test, as its pod may be another by then."""
    with prometheus.connected(kube) as api:
        yield api.instant


def targets(ask: Ask) -> dict[tuple[str, str], list[float]]:
    """Return whether each target is up (1) or down (0), by job and, for the application, environment."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for series in ask("up").series:
        job, namespace = series.labels["job"], series.labels["namespace"]
        found[job, namespace if job == "demo-app" else ""].append(series.points[-1].value)
    return found


def wait_for_targets(
    ask: Ask, expected: set[tuple[str, str]], timeout_s: float = SEEN_S, counts: Mapping[str, int] | None = None
) -> dict[tuple[str, str], list[float]]:
    """Wait until there is a target of each, and as many as `counts` says of the jobs it names, and all are up."""
    found: dict[tuple[str, str], list[float]] = {}

    def pending() -> list[str]:
        nonlocal found
        found = targets(ask)
        missing = [f"no target of {job} {where}".strip() for job, where in sorted(expected - set(found))]
        seen = {job: len(found.get((job, ""), ())) for job in counts or {}}
        missing += [f"{seen[job]} of {count} of {job}" for job, count in (counts or {}).items() if seen[job] < count]
        return missing + [f"{key}: down" for key, values in found.items() if 0.0 in values]

    wait_for("every target is up", pending, timeout_s=timeout_s, interval_s=2)
    return found


def test_every_target_is_up_in_every_environment(ask: Ask, settings: Settings) -> None:
    expected = {(job, "") for job in JOBS | (EDGE_JOBS if settings.edge is not Edge.NONE else set())}
    expected |= {("demo-app", environment) for environment in environments()}
    # Each kubelet, and its cAdvisor.
    counts = {"node-exporter": NODES, "kubelet": 2 * NODES, "flux": len(fluxcli.CONTROLLERS)}
    found = wait_for_targets(ask, expected, counts=counts)
    assert {job: len(found[job, ""]) for job in counts} == counts
    assert not {job for job, _ in found} & {"etcd", "kube-scheduler", "kube-controller-manager"}
    assert set(found) == expected, "and nothing is watched twice"


@pytest.mark.parametrize(
    "expression",
    [
        'count by (namespace) (app_requests_total{job="demo-app"})',
        'sum by (namespace) (rate(container_cpu_usage_seconds_total{namespace="dev"}[2m]))',
        'sum by (namespace) (container_memory_working_set_bytes{namespace="dev"})',
        'gotk_resource_info{kind="Kustomization", name="dev", ready="True"}',
        'kube_horizontalpodautoscaler_spec_max_replicas{namespace="production"}',
        'kube_poddisruptionbudget_status_pod_disruptions_allowed{namespace="production"}',
        'kube_resourcequota{namespace="dev", type="hard"}',
        "node_memory_MemAvailable_bytes",
        "apiserver_request_total",
        "coredns_dns_requests_total",
        "controller_runtime_reconcile_total",
        "prometheus_operator_reconcile_operations_total",
        'alertmanager_build_info{version="0.34.0"}',
        'prometheus_build_info{version="3.14.0"}',
    ],
)
def test_what_rules_and_dashboards_are_made_of_is_there(ask: Ask, expression: str) -> None:
    wait_for(
        f"data for {expression}",
        lambda: [] if ask(expression).series else ["no data"],
        timeout_s=SEEN_S,
        interval_s=2,
    )


def test_prometheus_stays_small(ask: Ask, settings: Settings) -> None:
    """Series are what memory goes with: an unfiltered API server alone would be more than all of this."""
    (series,) = ask("sum(prometheus_tsdb_head_series)").series
    assert series.points[-1].value < 30_000
    (used,) = ask('sum(process_resident_memory_bytes{job="prometheus"})').series
    assert used.points[-1].value < 400 * 1024**2


@pytest.mark.parametrize(
    ("service", "port", "path", "title"),
    [("prometheus-operated", 9090, "/query", "Prometheus"), ("alertmanager-operated", 9093, "/", "Alertmanager")],
)
def test_people_see_pages(kube: Kube, service: str, port: int, path: str, title: str) -> None:
    with endpoints.tunnel(kube, MONITORING_NAMESPACE, f"service/{service}", port) as forward:
        page = direct_session().get(f"http://127.0.0.1:{forward.port}{path}", timeout=10).text
    assert re.search(f"<title>[^<]*{title}", page)


def test_status_shows_monitoring(make, settings) -> None:
    shown = json.loads(make("status", OUTPUT="json").output)
    assert set(flux.MONITORING_SYNCS) <= {f["name"] for f in shown["flux"]}
    pods = {p["name"]: p for p in shown["pods"] if p["environment"] == MONITORING_NAMESPACE}
    assert {"prometheus-lab-0", "alertmanager-lab-0"} <= set(pods)
    assert all(p["ok"] for p in pods.values())


@pytest.mark.long
def test_an_environment_that_is_added_is_watched_without_a_word_more(ask: Ask, clone, make, settings) -> None:
    added = make("new-environment", root=clone.path, NAME="qa")
    assert added.code == 0, added.output
    pushed = make("push", root=clone.path, GIT_REMOTE="lab")
    assert pushed.code == 0, pushed.output
    wait_for_targets(ask, {("demo-app", "qa")})
    removed = make("new-environment", root=clone.path, NAME="qa", DELETE="1")
    assert removed.code == 0, removed.output
    pushed = make("push", root=clone.path, GIT_REMOTE="lab")
    assert pushed.code == 0, pushed.output
    wait_for(
        "its targets are gone",
        lambda: [str(key) for key in targets(ask) if key[1] == "qa"],
        timeout_s=360,  # five minutes after its last scrape a series is no longer current
        interval_s=5,
    )


@pytest.mark.long
def test_monitoring_comes_and_goes_on_a_running_lab(make, kube, settings) -> None:
    """Last of this file: none leaves nothing but definitions, which people's objects may be of; lite comes back."""
    before = mode.in_lab(settings)
    try:
        taken = make("setup-all", MONITORING="none")
        assert taken.code == 0, taken.output
        assert mode.in_lab(settings) is Monitoring.NONE
        wait_for("nothing of it is left", lambda: left(kube), timeout_s=180, interval_s=2)
        without = memory(settings)
    finally:
        back = make("setup-all", MONITORING=str(before))
    assert back.code == 0, back.output
    with prometheus.connected(kube) as api:
        wait_for_targets(
            api.instant, {("demo-app", environment) for environment in environments()} | {(job, "") for job in JOBS}
        )
    if before is Monitoring.LITE:
        assert memory(settings) - without < 600 * 1024**2


def left(kube: Kube) -> list[str]:
    """Return what there still is of monitoring besides definitions, its namespace and the applications' monitors."""
    found = [f"pod {p.metadata.name}" for p in kube.call(kube.core.list_namespaced_pod, MONITORING_NAMESPACE).items]
    done = kube.kubectl(
        "get", "all,secrets,configmaps,networkpolicies,serviceaccounts,roles,rolebindings,servicemonitors,podmonitors,prometheuses,alertmanagers",
        "--namespace", MONITORING_NAMESPACE, "--output", "name",
    )  # fmt: skip
    own = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
    found += sorted(set(done.stdout.split()) - own)
    done = kube.kubectl("get", "clusterroles,clusterrolebindings", "--output", "name")
    names = {"prometheus-operator", "prometheus", "kube-state-metrics"}
    found += [n for n in done.stdout.split() if n.rpartition("/")[2] in names]
    done = kube.kubectl("get", "services,endpointslices,endpoints", "--namespace", "kube-system", "--output", "name")
    return found + [n for n in done.stdout.split() if n.rpartition("/")[2].startswith("kubelet")]


def memory(settings: Settings) -> int:
    """Return the bytes in use by the nodes."""
    return sum(use.bytes_used for use in memory_of(node_containers(settings)))
