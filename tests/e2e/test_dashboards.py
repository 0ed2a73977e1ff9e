"""Monitoring on the live lab: every query of every dashboard and rule has data, and what people look at it with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from scripts import endpoints
from scripts.monitoring import page
from scripts.monitoring.dashboards import generate, panels
from scripts.monitoring.dashboards.panels import Panel
from scripts.monitoring.debug_metrics import PROBE
from scripts.monitoring.prometheus import GRAFANA, MonitoringMissingError, Prometheus, connected, pod_of
from scripts.settings import ROOT, environments
from scripts.transfer import direct_session
from scripts.waiting import wait_for
from tests.e2e.conftest import run_make

BOARDS = [panels.read(board) for board in generate.boards()]
QUERIES = [
    pytest.param(panel, query, id=f"{board.uid}: {panel.row}: {panel.title}: {n}")
    for board in BOARDS
    for panel in board.panels
    for n, query in enumerate(panel.queries)
]
# What has data only after an event, and why.
AFTER_AN_EVENT = {
    "Fetched to Ready": "after a commit that changes what is applied: one that doesn't has nothing to be Ready with",
}
# Metrics in rules whose series are made by the very thing that the alert is about.
METRICS_AFTER_AN_EVENT = {
    "kube_pod_container_status_waiting_reason": "a container that waits: a crash loop, an image that can't be had",
    "kube_pod_container_status_last_terminated_reason": "a container that has ended once",
}
# Two scrapes, half a minute apart, make a rate; objects' states come a scrape after that.
DATA_TIMEOUT_S = 180
STEP_S = 15


@pytest.fixture(scope="module")
def prometheus(kube) -> Iterator[Prometheus]:
    with connected(kube) as found:
        yield found


@pytest.fixture(scope="module")
def traffic(settings, kube) -> None:
    """People's requests in every environment: durations and the edge's counters begin with the first."""
    for environment in environments():
        for _ in range(20):
            (answer,) = endpoints.check_environment(settings, kube, environment, ["/work"])
            assert answer.ok, answer.why


def has_data(prometheus: Prometheus, expression: str) -> bool:
    """Whether an expression has a value within the last quarter of an hour."""
    now = time.time()
    series = prometheus.range(expression, now - 900, now, STEP_S).series
    return any(point.value == point.value for s in series for point in s.points)


def wait_for_data(prometheus: Prometheus, expression: str) -> None:
    wait_for(
        "the query has data",
        lambda: [] if has_data(prometheus, expression) else [expression],
        timeout_s=DATA_TIMEOUT_S,
        interval_s=5,
    )


@pytest.fixture(scope="module")
def reconciled(prometheus) -> None:
    """Let Flux work once while Prometheus looks: in a lab that nobody has pushed to yet there is nothing to measure.

    In a new lab it takes Prometheus a minute or two to hear of all that it has to look at, and what a counter had
    reached by then is no rate.
    """
    for kind in ("GitRepository", "Kustomization"):
        wait_for_data(prometheus, f'gotk_reconcile_duration_seconds_count{{kind="{kind}"}}')
    done = run_make("reconcile")
    assert done.code == 0, done.output


@pytest.mark.usefixtures("traffic", "reconciled")
@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_every_query_of_every_dashboard_has_data(prometheus, panel: Panel, query: panels.PanelQuery):
    expression = panels.without_variables(query.expression, STEP_S)
    if panel.title in AFTER_AN_EVENT:
        assert prometheus.instant(expression).kind == "vector"
        for metric in panels.metrics_of(expression):
            wait_for_data(prometheus, metric)
    else:
        wait_for_data(prometheus, expression)


def test_every_rule_is_evaluated_without_an_error(prometheus):
    rules = prometheus.rules()
    assert {"recording", "alerting"} <= {r.kind for r in rules}

    def pending() -> list[str]:
        return [f"{r.group}: {r.name}: {r.health} {r.error}" for r in prometheus.rules() if r.health != "ok"]

    wait_for("every rule's last evaluation was ok", pending, timeout_s=DATA_TIMEOUT_S, interval_s=5)


@pytest.mark.usefixtures("traffic")
def test_every_recording_rule_records_and_every_alert_looks_at_what_is_there(prometheus):
    rules = prometheus.rules()
    for rule in rules:
        if rule.kind == "recording":
            wait_for_data(prometheus, rule.name)
    asked = {m for r in rules for m in panels.metrics_of(r.query)}
    for metric in sorted(asked - METRICS_AFTER_AN_EVENT.keys()):
        wait_for_data(prometheus, metric)


def test_every_environment_is_scraped(prometheus):
    def pending() -> list[str]:
        up = {t.namespace for t in prometheus.targets() if t.job == "demo-app" and t.up}
        return [f"no target of {e} is up" for e in environments() if e not in up]

    wait_for("every environment is scraped", pending, timeout_s=DATA_TIMEOUT_S, interval_s=2)


def ask(**variables: str) -> subprocess.CompletedProcess[str]:
    """`make query` without make, which makes each failure its own exit code."""
    return subprocess.run(
        [sys.executable, "-m", "scripts", "query"], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, **variables},
    )  # fmt: skip


def test_a_query_in_the_terminal(make):
    expression = 'sum by (namespace) (app_ready{job="demo-app", namespace=~"dev|staging$"}) > 0'
    result = make("query", Q=expression, OUTPUT="json")
    assert result.code == 0, result.output
    found = json.loads(result.output)
    assert found["query"] == expression
    assert {s["labels"]["namespace"] for s in found["series"]} == {"dev", "staging"}
    table = make("query", Q="sum by (namespace) (app_ready)")
    assert re.search(r"^production +[1-9]", table.output, re.MULTILINE), table.output
    lines = make("query", Q="sum by (namespace) (app_ready)", SINCE="15m")
    assert re.search(r"^production +.*[▁▂▃▄▅▆▇█]", lines.output, re.MULTILINE), lines.output


def test_a_bad_expression_is_refused_in_prometheus_own_words():
    done = ask(Q="sum(rate(x[5m])")
    assert done.returncode == 2
    assert "parse error" in done.stderr


def probes(kube) -> list[str]:
    return [
        p.metadata.name
        for namespace in ("monitoring", "default")
        for p in kube.call(
            kube.core.list_namespaced_pod, namespace, label_selector=f"app.kubernetes.io/name={PROBE}"
        ).items
        if p.metadata.deletion_timestamp is None
    ]


def test_monitoring_gets_the_metrics_of_every_environment_and_others_do_not(make, kube):
    result = make("debug-metrics", OUTPUT="json")
    assert result.code == 0, result.output
    found = json.loads(result.output)
    assert found["ok"] is True
    looks = {(v["environment"], v["origin"]): v for v in found["looks"]}
    for environment in environments():
        inside, outside = looks[environment, "monitoring"], looks[environment, "default"]
        assert inside["look"]["outcome"] == "answered"
        assert all(line.startswith("app_") for line in inside["look"]["lines"])
        assert inside["look"]["lines"]
        assert outside["look"]["outcome"] in ("refused", "timed out", "unreachable")
        assert not outside["look"]["lines"]
    assert probes(kube) == []


def test_a_policy_that_lets_everybody_in_is_found(make, kube):
    """A policy more is a hole: what one of them allows is allowed."""
    hole = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "e2e-hole"},
        "spec": {"podSelector": {}, "ingress": [{}], "policyTypes": ["Ingress"]},
    }
    kube.kubectl("--namespace", "dev", "apply", "--filename", "-", input_text=json.dumps(hole))
    try:
        wrong: list[dict] = []

        def pending() -> list[str]:
            result = make("debug-metrics", OUTPUT="json")
            wrong[:] = [v for v in json.loads(result.output.partition("\nmake: ")[0])["looks"] if not v["ok"]]
            assert (result.code == 0) == (not wrong), result.output
            return [] if wrong else ["nothing was found"]

        wait_for("the hole is found", pending, timeout_s=120)
    finally:
        kube.kubectl("--namespace", "dev", "delete", "networkpolicy", "e2e-hole")
    assert [(v["environment"], v["origin"]) for v in wrong] == [("dev", "default")]
    assert "any pod gets in" in wrong[0]["why"]


def test_an_interrupted_look_leaves_no_pod(kube):
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts", "debug-metrics"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=ROOT,
    )  # fmt: skip
    try:
        wait_for("its pods are there", lambda: [] if probes(kube) else ["no pod yet"], timeout_s=60, interval_s=0.02)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert probes(kube) == []


@pytest.mark.usefixtures("traffic")
def test_the_dashboards_are_drawn_into_a_page(make):
    result = make("dashboards", SINCE="15m")
    assert result.code == 0, result.output
    match = re.search(r"page: (\S+)", result.output)
    assert match, result.output
    folder = (ROOT / match[1]).parent
    assert folder.parent == page.REPORTS
    text = (folder / "index.html").read_text()
    empty = set(re.findall(r"without data: [^:]+: ([^:]+):", result.output))
    assert empty <= AFTER_AN_EVENT.keys(), result.output
    drawn = sum(len(board.panels) for board in BOARDS) - len(empty)
    assert text.count("data:image/png;base64,") == len(list(folder.glob("*.png"))) >= drawn


def test_prometheus_is_reached_on_the_loopback_address_until_interrupted():
    port = endpoints.free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts", "port-forward-prometheus"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=ROOT,
        env={**os.environ, "PORT": str(port), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}/ is Prometheus" in process.stdout.readline()
        session = direct_session()
        assert session.get(f"http://127.0.0.1:{port}/-/ready", timeout=10).status_code == 200
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()


def test_where_grafana_is_not_there_its_stand_in_is_named(make, kube):
    try:
        pod_of(kube, GRAFANA)
    except MonitoringMissingError:
        result = make("port-forward-grafana")
        assert result.code != 0
        assert "make dashboards" in result.output
        return
    pytest.fail("this lab has Grafana: run on one with MONITORING=lite")
