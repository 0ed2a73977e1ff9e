"""The sampler against a small server that lists and streams as the API server does."""

import http.server
import json
import queue
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from scripts.hpa import sampling
from scripts.hpa.sampling import Sampler, percent_of_requests, request_of, view_of
from scripts.kube import Kube, UnreachableError
from tests.unit.conftest import Until
from tests.unit.hpa_facts import cond, deployment, hpa, pod

PODS = "/api/v1/namespaces/staging/pods"
EVENTS = "/api/v1/namespaces/staging/events"
SCALERS = "/apis/autoscaling/v2/namespaces/staging/horizontalpodautoscalers"
DEPLOYMENTS = "/apis/apps/v1/namespaces/staging/deployments"
USAGE = "/apis/metrics.k8s.io/v1beta1/namespaces/staging/pods"


class Api(http.server.ThreadingHTTPServer):
    """Lists by path, and for each path a queue of what its next watches tell; None cuts a watch off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lists: dict[str, Any] = {}
        self.streams: dict[str, queue.Queue[Any]] = {}
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.gone = False

    def tell(self, path: str, change: str, thing: Any) -> None:
        self.streams.setdefault(path, queue.Queue()).put({"type": change, "object": thing})

    def cut(self, path: str) -> None:
        self.streams.setdefault(path, queue.Queue()).put(None)

    def listed(self, path: str) -> int:
        return sum(1 for asked, query in self.asked if asked == path and "watch" not in query)

    def watched(self, path: str) -> int:
        return sum(1 for asked, query in self.asked if asked == path and "watch" in query)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Api
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.server.gone:
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        self.server.asked.append((parts.path, query))
        if "watch" not in query:
            found = self.server.lists.get(parts.path, [])
            things = [] if isinstance(found, int) else found
            body = json.dumps({"metadata": {"resourceVersion": "7"}, "items": things}).encode()
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        stream = self.server.streams.setdefault(parts.path, queue.Queue())
        while (event := stream.get()) is not None:
            self._chunk(json.dumps(event).encode() + b"\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        for path in (PODS, EVENTS, SCALERS, DEPLOYMENTS):
            server.cut(path)
        server.shutdown()


@pytest.fixture
def kube(api: Api) -> Kube:
    from kubernetes import client

    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{api.server_port}"
    configuration.retries = False
    kube = Kube("kind-lab")
    kube.__dict__["_api"] = client.ApiClient(configuration)
    return kube


@pytest.fixture
def sampler(api: Api, kube: Kube) -> Iterator[Sampler]:
    api.lists = {
        SCALERS: [hpa()],
        DEPLOYMENTS: [deployment() | {"spec": deployment()["spec"] | {"template": {}}}],
        PODS: [pod("demo-app-1-a"), pod("demo-app-1-b", node="lab-worker2")],
        USAGE: [{"metadata": {"name": "demo-app-1-a"}, "containers": [{"usage": {"cpu": "40000000n"}}]}],
    }
    found = Sampler(kube, "staging", hpa(), deployment())
    found.start()
    yield found
    found.stop()


def test_a_watch_tells_changes_from_a_version_on_until_it_is_cut_off(api: Api, kube: Kube) -> None:
    api.tell(PODS, "MODIFIED", pod("a"))
    api.tell(PODS, "BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    api.tell(PODS, "DELETED", pod("b"))
    api.cut(PODS)
    changes = list(kube.watch(kube.core.list_namespaced_pod, "staging", version="7", timeout_s=5, label_selector="x=y"))
    assert [(change, thing["metadata"]["name"]) for change, thing in changes] == [("MODIFIED", "a"), ("DELETED", "b")]
    (_, query) = api.asked[-1]
    assert query["resourceVersion"] == ["7"] and query["timeoutSeconds"] == ["5"] and query["labelSelector"] == ["x=y"]


def test_a_watch_of_a_server_that_is_gone_is_one_clear_error(kube: Kube, api: Api) -> None:
    api.shutdown()
    api.server_close()
    with pytest.raises(UnreachableError, match="was cut off"):
        list(kube.watch(kube.core.list_namespaced_pod, "staging", version="7", timeout_s=5))


def test_a_sample_is_what_the_lists_and_the_metrics_api_say(api: Api, sampler: Sampler, until: Until) -> None:
    until(lambda: len(sampler.sample().pods) == 2 and sampler.sample().cpu_percent is not None)
    found = sampler.sample()
    assert (found.desired, found.current, found.ready, found.hpa_cpu_percent, found.cpu_percent) == (2, 2, 2, 40, 40.0)
    assert [(p.name, p.node, p.phase, p.cpu_millicores) for p in found.pods] == [
        ("demo-app-1-a", "lab-worker", "Ready", 40.0),
        ("demo-app-1-b", "lab-worker2", "Ready", None),
    ]
    assert "AbleToScale=True ReadyForNewScale" in found.conditions
    assert sampler.explain() == []


def test_changes_show_in_the_next_sample_and_in_the_pods_lives(api: Api, sampler: Sampler, until: Until) -> None:
    until(lambda: len(sampler.sample().pods) == 2)
    api.tell(SCALERS, "MODIFIED", hpa(current=3, percent=150))
    api.tell(DEPLOYMENTS, "MODIFIED", deployment(replicas=3))
    born = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    api.tell(PODS, "ADDED", pod("demo-app-1-c", ready=False, node="", phase="Pending", created=born))
    until(lambda: len(sampler.sample().pods) == 3 and sampler.sample().hpa_cpu_percent == 150)
    until(lambda: sampler.sample().current == 3)
    found = sampler.sample()
    assert (found.desired, found.current) == (3, 3)
    assert found.pods[2].phase == "Pending"
    assert [r.kind for r in sampler.explain()] == [sampling.reasons.Kind.NOT_READY]
    api.tell(PODS, "MODIFIED", pod("demo-app-1-c", node="lab-worker2"))
    api.tell(PODS, "MODIFIED", pod("demo-app-1-c", node="lab-worker2", deleted=True))
    api.tell(PODS, "DELETED", pod("demo-app-1-c", node="lab-worker2", deleted=True))
    until(lambda: len(sampler.sample().pods) == 2)
    life = next(p for p in sampler.lives() if p.name == "demo-app-1-c")
    assert life.node == "lab-worker2"
    assert life.ready is not None and life.ending is not None and life.gone is not None
    assert life.ready <= life.ending <= life.gone
    old = next(p for p in sampler.lives() if p.name == "demo-app-1-a")
    assert old.created < life.created - 1000, "its own timestamp tells how old a pod is"


def test_a_watch_that_ends_is_begun_again_and_what_went_meanwhile_is_gone(
    api: Api, sampler: Sampler, until: Until
) -> None:
    until(lambda: len(sampler.sample().pods) == 2 and api.watched(PODS) == 1)
    api.lists[PODS] = [pod("demo-app-1-a")]
    api.cut(PODS)
    until(lambda: len(sampler.sample().pods) == 1)
    assert next(p for p in sampler.lives() if p.name == "demo-app-1-b").gone is not None
    assert sampler.troubles() == ()


def test_a_refused_watch_is_noted_once_and_tried_again(
    api: Api, sampler: Sampler, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "RETRY_S", 0.01)
    until(lambda: api.watched(PODS) == 1)
    api.lists[PODS] = 403
    api.cut(PODS)
    until(lambda: api.listed(PODS) >= 4)
    assert len(sampler.troubles()) == 1
    assert re.fullmatch(
        r"the watch of pod objects was cut off and begun again \(\d+ times; first: Forbidden\)", sampler.troubles()[0]
    )
    api.lists[PODS] = [pod("demo-app-1-z")]
    until(lambda: [p.name for p in sampler.sample().pods] == ["demo-app-1-z"])


def test_an_api_server_that_is_gone_is_noticed(
    api: Api, sampler: Sampler, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "METRICS_EVERY_S", 0.01)
    monkeypatch.setattr(sampling, "RETRY_S", 0.01)
    until(lambda: api.watched(PODS) == 1)
    asked = len(api.asked)
    until(lambda: len(api.asked) > asked + 3 and sampler.silent_s() < 1)
    api.gone = True
    until(lambda: sampler.silent_s() > 1.5)
    assert any("the metrics API did not answer" in t for t in sampler.troubles())
    assert all("\n" not in t for t in sampler.troubles())


def event(uid: str, size: int, count: int, last: str) -> dict[str, Any]:
    return {
        "metadata": {"name": f"demo-app.{uid}", "uid": uid, "namespace": "staging"},
        "involvedObject": {},
        "reason": "SuccessfulRescale",
        "message": f"New size: {size}; reason: cpu resource utilization (percentage of request) above target",
        "type": "Normal",
        "count": count,
        "lastTimestamp": last,
    }


def test_events_of_this_run_are_kept_each_time_they_happen(api: Api, sampler: Sampler, until: Until) -> None:
    api.tell(EVENTS, "ADDED", event("old", 5, 3, "2020-01-01T00:00:00Z"))
    api.tell(EVENTS, "ADDED", event("a", 3, 1, "2999-01-01T00:00:00Z"))
    api.tell(EVENTS, "MODIFIED", event("a", 3, 1, "2999-01-01T00:00:00Z"))
    api.tell(EVENTS, "MODIFIED", event("a", 3, 2, "2999-01-01T00:01:00Z"))
    api.tell(EVENTS, "ADDED", event("b", 4, 1, "2999-01-01T00:02:00Z"))
    until(lambda: len(sampler.events()) == 3)
    assert [(e.count, e.last[11:16]) for e in sampler.events()] == [(1, "00:00"), (2, "00:01"), (1, "00:02")]
    assert sampler.events()[0].message.startswith("New size: 3;")


def test_recommendations_are_recorded_so_that_a_window_tells_its_seconds(
    api: Api, sampler: Sampler, until: Until
) -> None:
    down = cond("AbleToScale", "True", "ScaleDownStabilized")
    api.tell(SCALERS, "MODIFIED", hpa(current=4, percent=70))
    api.tell(SCALERS, "MODIFIED", hpa(down, current=4, percent=5))
    until(lambda: any(r.kind is sampling.reasons.Kind.STABILISING for r in sampler.explain()))
    (reason,) = sampler.explain()
    # Recorded for less than the window: the last one that stood against it was just now, what was before is not known.
    assert reason.what.startswith("stabilising for 30 s")


def test_without_metrics_the_reason_is_looked_for_at_metrics_server(api: Api, sampler: Sampler, until: Until) -> None:
    gone = cond(
        "ScalingActive", "False", "FailedGetResourceMetric", "unable to fetch metrics from resource metrics API"
    )
    api.lists["/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io"] = 404
    api.tell(SCALERS, "MODIFIED", hpa(gone, percent=None))
    until(lambda: sampler.sample().hpa_cpu_percent is None)
    assert [r.kind for r in sampler.explain()] == [sampling.reasons.Kind.METRICS_API]
    assert [r.kind for r in sampler.explain()] == [sampling.reasons.Kind.METRICS_API]
    asked = [path for path, _ in api.asked if "apiservices" in path]
    assert len(asked) == 1, "metrics-server is not asked at each look"


def test_an_autoscaler_that_is_deleted_says_so(api: Api, sampler: Sampler, until: Until) -> None:
    api.tell(SCALERS, "DELETED", hpa())
    until(lambda: sampler.explain() and "is gone" in sampler.explain()[0].what)
    assert sampler.sample().desired == 0


@pytest.mark.parametrize(
    ("given", "phase"),
    [
        (pod(), "Ready"),
        (pod(ready=False), "Running"),
        (pod(ready=False, phase="Pending", node=""), "Pending"),
        (pod(deleted=True), "Terminating"),
    ],
)
def test_a_pods_phase(given: dict[str, Any], phase: str) -> None:
    assert view_of(given).phase == phase


def test_percentages_are_of_the_measured_pods_requests() -> None:
    pods = [pod("a"), pod("b", cpu="0.2"), pod("c")]
    assert percent_of_requests(pods, {"a": 50.0, "b": 100.0}) == 50.0
    assert percent_of_requests(pods, {}) is None
    without = pod("a")
    without["spec"]["containers"].append({"name": "sidecar"})
    assert request_of(without) == 0
    assert percent_of_requests([without], {"a": 50.0}) is None
