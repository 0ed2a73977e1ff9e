"""The client of Prometheus and Alertmanager: real HTTP to a server with the API's shapes."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import endpoints
from scripts.errors import LabError
from scripts.monitoring import prometheus
from scripts.monitoring.prometheus import (
    ALERTMANAGER,
    GRAFANA,
    PROMETHEUS,
    Alertmanager,
    Kind,
    MonitoringMissingError,
    Point,
    Prometheus,
    QueryError,
    Series,
)
from scripts.waiting import wait_for
from tests.unit.fake_prometheus import FakePrometheus, Refusal, serving, success


@pytest.fixture
def fake() -> Iterator[FakePrometheus]:
    with serving(FakePrometheus()) as server:
        yield server


@pytest.mark.parametrize(
    ("data", "kind", "series", "text"),
    [
        (
            {"resultType": "vector", "result": [{"metric": {"__name__": "up", "job": "a"}, "value": [10.5, "1"]}]},
            Kind.VECTOR, (Series({"__name__": "up", "job": "a"}, (Point(10.5, 1.0),)),), "",
        ),
        (
            {"resultType": "matrix", "result": [{"metric": {}, "values": [[1, "0.5"], [2, "+Inf"]]}]},
            Kind.MATRIX, (Series({}, (Point(1.0, 0.5), Point(2.0, math.inf))),), "",
        ),
        ({"resultType": "scalar", "result": [3, "42"]}, Kind.SCALAR, (Series({}, (Point(3.0, 42.0),)),), ""),
        ({"resultType": "string", "result": [3, "hello"]}, Kind.STRING, (), "hello"),
        ({"resultType": "vector", "result": []}, Kind.VECTOR, (), ""),
    ],
)  # fmt: skip
def test_every_type_of_result_is_read(fake, data, kind, series, text):
    fake.pages["/api/v1/query"] = (200, success(data, warnings=["slow"], infos=["odd"]))
    answer = Prometheus(fake.url).instant("x")
    assert (answer.kind, answer.series, answer.text, answer.warnings) == (kind, series, text, ("slow", "odd"))


def test_a_query_and_its_time_arrive_as_they_were_given(fake):
    expression = 'sum by (a) (rate(x{b=~"c|d.+", e!="f g"}[5m])) / 100 > 0 # %'
    client = Prometheus(fake.url)
    client.instant(expression)
    client.instant(expression, at=12.5)
    client.range(expression, 100, 160, 15)
    paths = [path for path, _ in fake.asked]
    assert paths == ["/api/v1/query", "/api/v1/query", "/api/v1/query_range"]
    assert [query["query"] for _, query in fake.asked] == [expression] * 3
    assert fake.asked[1][1]["time"] == "12.5"
    assert {k: v for k, v in fake.asked[2][1].items() if k != "query"} == {"start": "100", "end": "160", "step": "15"}


def test_a_range_has_a_point_for_each_step(fake):
    fake.answer = lambda _: [({"a": "b"}, lambda at: at / 10)]
    (series,) = Prometheus(fake.url).range("x", 100, 145, 15).series
    assert series.points == (Point(100, 10), Point(115, 11.5), Point(130, 13), Point(145, 14.5))


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (Refusal(400, "bad_data", "1:5: parse error: unclosed left parenthesis"), "bad_data: 1:5: parse error: unclosed left"),
        (Refusal(422, "execution", "many-to-many matching not allowed"), "execution: many-to-many matching not allowed"),
        (Refusal(503, "timeout", "query timed out in expression evaluation"), "timeout: query timed out"),
    ],
)  # fmt: skip
def test_a_refusal_is_in_prometheus_own_words(fake, refusal, said):
    fake.answer = lambda _: refusal
    with pytest.raises(QueryError) as error:
        Prometheus(fake.url).instant("sum(")
    assert said in error.value.what


@pytest.mark.parametrize(("status", "text"), [(502, "<html>bad gateway</html>"), (500, '{"odd": 1}')])
def test_an_answer_that_is_none_of_prometheus_is_an_error_of_the_lab(fake, status, text):
    fake.pages["/api/v1/query"] = (status, text)
    with pytest.raises(LabError, match=f"HTTP {status}") as error:
        Prometheus(fake.url).instant("up")
    assert not isinstance(error.value, QueryError)


def test_a_server_that_is_gone_is_one_line():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(LabError, match="Prometheus does not answer"):
            Prometheus(url).instant("up")


def test_a_proxy_of_the_environment_is_passed_by(fake, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert Prometheus(fake.url).instant("up").series == ()


def test_targets_and_rules_and_alerts_are_read(fake):
    alert = {
        "labels": {"alertname": "Slow", "namespace": "dev"}, "annotations": {"summary": "slow"}, "state": "firing",
        "activeAt": "2026-01-01T00:00:00Z", "value": "1e+00",
    }  # fmt: skip
    fake.pages["/api/v1/targets"] = (
        200,
        success(
            {
                "activeTargets": [
                    {
                        "labels": {"job": "demo-app", "namespace": "dev", "instance": "10.0.0.1:8000"},
                        "scrapePool": "serviceMonitor/dev/demo-app/0", "scrapeUrl": "http://10.0.0.1:8000/metrics",
                        "health": "down", "lastError": "connection refused",
                    },
                ]
            }
        ),
    )  # fmt: skip
    rules = [
        {"name": "slo:x", "type": "recording", "query": "sum(x)", "health": "ok"},
        {"name": "Slow", "type": "alerting", "query": "x > 1", "health": "err", "lastError": "boom", "state": "firing",
         "labels": {"severity": "page"}, "alerts": [alert]},
    ]  # fmt: skip
    fake.pages["/api/v1/rules"] = (200, success({"groups": [{"name": "g", "rules": rules}]}))
    fake.pages["/api/v1/alerts"] = (200, success({"alerts": [alert]}))
    client = Prometheus(fake.url)
    (target,) = client.targets()
    assert (target.job, target.namespace, target.up, target.error) == ("demo-app", "dev", False, "connection refused")
    recording, alerting = client.rules()
    assert (recording.group, recording.name, recording.kind, recording.health) == ("g", "slo:x", "recording", "ok")
    assert (alerting.state, alerting.error, alerting.labels) == ("firing", "boom", {"severity": "page"})
    assert alerting.alerts == client.alerts()
    assert (client.alerts()[0].name, client.alerts()[0].since) == ("Slow", "2026-01-01T00:00:00Z")


def test_alertmanagers_alerts_name_their_receivers(fake):
    found = [
        {
            "labels": {"alertname": "Slow"}, "annotations": {"summary": "slow"}, "startsAt": "2026-01-01T00:00:00Z",
            "status": {"state": "active"}, "receivers": [{"name": "local"}, {"name": "webhook"}],
        },
    ]  # fmt: skip
    fake.pages["/api/v2/alerts"] = (200, json.dumps(found))
    (alert,) = Alertmanager(fake.url).alerts()
    assert (alert.name, alert.state, alert.receivers) == ("Slow", "active", ("local", "webhook"))


def pod(name: str, ready: str, phase: str = "Running") -> Any:
    conditions = [SimpleNamespace(type="Ready", status=ready)]
    status = SimpleNamespace(phase=phase, conditions=conditions if phase == "Running" else None)
    return SimpleNamespace(metadata=SimpleNamespace(name=name), status=status)


class FakeKube:
    """As much of the API as finding a pod uses."""

    context = "kind-test"
    kubectl_path = "kubectl"

    def __init__(self, *pods: Any) -> None:
        self.asked: list[tuple[str, str]] = []
        self.pods = pods
        self.core = SimpleNamespace(list_namespaced_pod=self.list)

    def list(self, namespace: str, label_selector: str) -> Any:
        self.asked.append((namespace, label_selector))
        return SimpleNamespace(items=list(self.pods))

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)


@pytest.mark.parametrize("tool", [PROMETHEUS, ALERTMANAGER, GRAFANA], ids=lambda t: t.name)
def test_a_ready_pod_is_taken(tool):
    kube = FakeKube(pod("old", "False"), pod("new", "True"))
    assert prometheus.pod_of(kube, tool) == "new"
    assert kube.asked == [("monitoring", tool.selector)]


@pytest.mark.parametrize(
    ("tool", "pods", "what", "mend"),
    [
        (PROMETHEUS, (), "There is no Prometheus in the cluster of context kind-test.", "make setup-all MONITORING=lite"),
        (ALERTMANAGER, (), "There is no Alertmanager", "make setup-all MONITORING=lite"),
        (GRAFANA, (), "There is no Grafana", "make dashboards"),
        (PROMETHEUS, (pod("p", "False", "Pending"),), "not Ready: pod p is Pending", "make status"),
        (PROMETHEUS, (pod("p", "False"),), "not Ready: pod p is Running", "make status"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_with_its_mend(tool, pods, what, mend):
    with pytest.raises(MonitoringMissingError) as error:
        prometheus.pod_of(FakeKube(*pods), tool)
    assert what in error.value.what
    assert mend in error.value.mend


def test_the_port_forward_goes_to_the_pod_with_the_labs_context_on_the_loopback_address(programs, fake):
    """kubectl is a program that listens where it is told to: on the fake server's own port, which answers."""
    port = int(fake.url.rpartition(":")[2])
    kube = FakeKube(pod("prometheus-lab-0", "True"))
    kube.kubectl_path = str(programs.add("kubectl", "exec /bin/sleep 60"))
    programs.add("setpriv", 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"')
    original, endpoints.free_port = endpoints.free_port, lambda: port
    try:
        with prometheus.connected(kube) as client:
            assert client.instant("up").series == ()
            # the server answers at once, whether kubectl has begun or not
            wait_for("kubectl runs", lambda: [] if programs.calls("kubectl") else ["not yet"], timeout_s=20)
    finally:
        endpoints.free_port = original
    (call,) = programs.calls("kubectl")
    assert call[1:] == [
        "--context", "kind-test", "--namespace", "monitoring", "port-forward", "--address", "127.0.0.1",
        "pod/prometheus-lab-0", f"{port}:9090",
    ]  # fmt: skip


def test_a_port_that_is_taken_is_refused_before_anything_starts(programs, fake):
    port = int(fake.url.rpartition(":")[2])
    kube = FakeKube(pod("prometheus-lab-0", "True"))
    with (
        pytest.raises(LabError, match=f"Port {port} of 127.0.0.1 is taken") as error,
        prometheus.reached(kube, PROMETHEUS, port),
    ):
        pass
    assert "PORT=" in error.value.mend
    assert not programs.calls()
