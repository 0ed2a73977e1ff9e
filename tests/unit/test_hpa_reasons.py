from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from kubernetes.client import ApiException

from scripts.hpa import reasons, status
from scripts.hpa.reasons import Facts, Kind, Recommendation, explain
from tests.unit.hpa_facts import NOW, ago, cond, deployment, facts, hpa, pod, rescale

FETCH = (
    "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: "
    "unable to fetch metrics from resource metrics API: "
)
NO_API = cond(
    "ScalingActive",
    "False",
    "FailedGetResourceMetric",
    FETCH + "the server could not find the requested resource (get pods.metrics.k8s.io)",
)
UNABLE = cond(
    "ScalingActive",
    "False",
    "FailedGetResourceMetric",
    FETCH + "the server is currently unable to handle the request (get pods.metrics.k8s.io)",
)
NO_FIGURES = cond(
    "ScalingActive",
    "False",
    "FailedGetResourceMetric",
    "failed to get cpu utilization: did not receive metrics for any ready pods",
)
NO_REQUEST = cond(
    "ScalingActive",
    "False",
    "FailedGetResourceMetric",
    "failed to get cpu utilization: missing request for cpu in container app of Pod demo-app-7d4b",
)
GONE = cond(
    "AbleToScale",
    "False",
    "FailedGetScale",
    'the HPA controller was unable to get the target\'s current scale: deployments.apps "demo-app" not found',
)
NO_KIND = cond(
    "AbleToScale",
    "False",
    "FailedGetScale",
    'the HPA controller was unable to get the target\'s current scale: no matches for kind "Deploymint"',
)
REFUSED = cond(
    "AbleToScale",
    "False",
    "FailedUpdateScale",
    "the HPA controller was unable to update the target scale: Operation cannot be fulfilled",
)
OFF = cond(
    "ScalingActive", "False", "ScalingDisabled", "scaling is disabled since the replica count of the target is zero"
)
TOO_MANY = cond(
    "ScalingLimited", "True", "TooManyReplicas", "the desired replica count is more than the maximum replica count"
)
DOWN = cond("AbleToScale", "True", "ScaleDownStabilized", "recent recommendations were higher than current one")
UP = cond("AbleToScale", "True", "ScaleUpStabilized", "recent recommendations were lower than current one")
SLOW = cond(
    "ScalingLimited",
    "True",
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
)
QUOTA = cond(
    "ReplicaFailure",
    "True",
    "FailedCreate",
    'pods "demo-app-7d4b-x" is forbidden: exceeded quota: demo, requested: requests.cpu=100m, used: requests.cpu=200m, limited: requests.cpu=200m',
)
DENIED = cond(
    "ReplicaFailure",
    "True",
    "FailedCreate",
    'pods "demo-app-7d4b-x" is forbidden: violates PodSecurity "restricted:latest"',
)
NO_ROOM = cond(
    "PodScheduled",
    "False",
    "Unschedulable",
    "0/3 nodes are available: 1 node(s) had untolerated taint, 2 node(s) were unschedulable. preemption: 0/3 nodes are available",
)
X509 = 'E1125 01:00:00.000000 1 scraper.go:149] "Failed to scrape node" err="Get \\"https://172.18.0.4:10250/metrics/resource\\": tls: failed to verify certificate: x509: cannot validate certificate for 172.18.0.4 because it doesn\'t contain any IP SANs" node="lab-worker"\n'
SERVES = {"status": {"conditions": [cond("Available", "True", "Passed")]}}
ABSENT = {
    "status": {
        "conditions": [
            cond(
                "Available",
                "False",
                "MissingEndpoints",
                'endpoints for service/metrics-server in "kube-system" have no addresses',
            )
        ]
    }
}

CASES: list[tuple[str, Facts, list[Kind], str, str]] = [
    ("all is well", facts(), [], "", ""),
    ("not looked at", facts(hpa=hpa() | {"status": {}}), [Kind.NOT_SEEN], "has not looked at it yet", "wait"),
    ("target deleted", facts(hpa=hpa(GONE), deployment=None, pods=()), [Kind.TARGET_MISSING], "no Deployment demo-app in staging", "make reconcile"),
    ("target misspelt", facts(hpa=hpa(NO_KIND)), [Kind.TARGET_MISSING], "no Deployment demo-app", "scaleTargetRef"),
    ("update refused", facts(hpa=hpa(REFUSED)), [Kind.OTHER], "Operation cannot be fulfilled", "make status"),
    ("zero replicas", facts(hpa=hpa(OFF, percent=None)), [Kind.DISABLED], "set to 0 replicas", "--replicas=1"),
    ("no API", facts(hpa=hpa(NO_API, percent=None)), [Kind.METRICS_API], "there is no metrics-server", "make reconcile"),
    ("API down", facts(hpa=hpa(UNABLE, percent=None), api_service=ABSENT, metrics_pods=(pod("metrics-server-1", ready=False),)), [Kind.METRICS_API], "have no addresses); 0 of 1 metrics-server pods are ready", "make reconcile"),
    ("certificate", facts(hpa=hpa(UNABLE, percent=None), api_service=ABSENT, metrics_log=X509), [Kind.KUBELET_CERTIFICATE], "doesn't contain any IP SANs", "--kubelet-insecure-tls"),
    ("certificate of old", facts(hpa=hpa(NO_FIGURES, percent=None), api_service=SERVES, metrics_log=X509), [Kind.NO_METRICS], "<unknown>", "make status"),
    ("young pods", facts(hpa=hpa(NO_FIGURES, percent=None), api_service=SERVES, pods=(pod(created=ago(12)),)), [Kind.NO_METRICS], "metrics not there yet: the pods are 12 s old", "wait"),
    ("no request", facts(hpa=hpa(NO_REQUEST, percent=None)), [Kind.NO_CPU_REQUEST], "container app of its pods has no CPU request", "resources.requests.cpu"),
    ("quota", facts(hpa=hpa(current=5), deployment=deployment(QUOTA, replicas=5)), [Kind.QUOTA], "exceeded quota: demo, requested: requests.cpu=100m, used", "staging/resourcequota.yaml"),
    ("refused otherwise", facts(deployment=deployment(DENIED, replicas=5)), [Kind.OTHER], "violates PodSecurity", "make status"),
    ("unschedulable", facts(pods=(pod(), pod("b", NO_ROOM, ready=False, node="", phase="Pending"))), [Kind.UNSCHEDULABLE], "1 pod fits on no node: 0/3 nodes are available", "uncordon"),
    ("starting", facts(pods=(pod(), pod("b", ready=False))), [Kind.NOT_READY], "1 new pod is starting", ""),
    ("ending", facts(pods=(pod(), pod("b", ready=False, deleted=True))), [], "", ""),
    ("maximum asked for more", facts(hpa=hpa(TOO_MANY, current=5, percent=200)), [Kind.AT_MAXIMUM], "has its 5 pods, with CPU at 200 % of the request where 70 % is the target", "maxReplicas"),
    ("maximum and busy", facts(hpa=hpa(current=5, percent=90)), [Kind.AT_MAXIMUM], "CPU at 90 %", "maxReplicas"),
    ("maximum, not ready", facts(hpa=hpa(current=5, percent=200), pods=(pod(), pod("b", ready=False))), [Kind.NOT_READY], "1 new pod is starting", ""),
    ("maximum and content", facts(hpa=hpa(current=5, percent=75)), [], "", ""),
    ("stabilising", facts(hpa=hpa(DOWN, current=4, percent=5)), [Kind.STABILISING], "stabilising for at most 30 s: it scales in once no higher number", "stabilizationWindowSeconds"),
    ("stabilising upwards", facts(hpa=hpa(UP, percent=200, behavior={"scaleUp": {"stabilizationWindowSeconds": 60}})), [Kind.STABILISING], "at most 60 s: it scales out once no lower", "stabilizationWindowSeconds"),
    ("one at a time", facts(hpa=hpa(SLOW, current=4, percent=5)), [Kind.RATE], "removes at most 1 pod in 10 s", "wait"),
    ("maximum asked for, not there", facts(hpa=hpa(TOO_MANY, current=5, percent=200), deployment=deployment(QUOTA, replicas=5)), [Kind.QUOTA], "exceeded quota", "resourcequota.yaml"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kinds", "what", "mend"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_reason_is_recognised_and_named_with_its_mend(
    given: Facts, kinds: list[Kind], what: str, mend: str
) -> None:
    found = explain(given)
    assert [r.kind for r in found] == kinds
    if found:
        assert what in found[0].what
        assert mend in found[0].mend
        assert "\n" not in str(found[0])


def test_what_passes_by_itself_is_no_fault() -> None:
    passing = {
        Kind.NOT_SEEN,
        Kind.NO_METRICS,
        Kind.NOT_READY,
        Kind.AT_MAXIMUM,
        Kind.STABILISING,
        Kind.RATE,
        Kind.DISABLED,
    }
    assert set(Kind) - passing == reasons.FAULTS


def history(*entries: tuple[float, int]) -> tuple[Recommendation, ...]:
    return tuple(Recommendation(NOW - timedelta(seconds=seconds), replicas) for seconds, replicas in entries)


WINDOWS: list[tuple[str, dict[str, Any], tuple[float, float]]] = [
    ("recorded", {"recommendations": history((60, 5), (25, 4), (12, 4), (5, 1))}, (18, 18)),
    ("recorded and over", {"recommendations": history((60, 5), (40, 4), (5, 1))}, (0, 0)),
    ("recorded too short", {"recommendations": history((10, 4), (5, 1))}, (20, 30)),
    ("not recorded", {}, (0, 30)),
    ("scaled out a moment ago", {"events": (rescale(4, 12), rescale(3, 500))}, (18, 30)),
    ("scaled out long ago", {"events": (rescale(4, 500),)}, (0, 30)),
]


@pytest.mark.parametrize(("more", "left"), [w[1:] for w in WINDOWS], ids=[w[0] for w in WINDOWS])
def test_the_seconds_that_a_window_has_left(more: dict[str, Any], left: tuple[float, float]) -> None:
    given = facts(hpa=hpa(DOWN, current=4, percent=5), **more)
    assert reasons.window_left_s(given, down=True) == left


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"recommendations": history((60, 5), (12, 4))}, "stabilising for 18 s"),
        ({"recommendations": history((60, 5), (40, 4))}, "the window is over, the next look decides"),
        ({"events": (rescale(4, 12),)}, "stabilising for 18 to 30 s"),
    ],
)
def test_a_window_says_its_seconds(more: dict[str, Any], told: str) -> None:
    (reason,) = explain(facts(hpa=hpa(DOWN, current=4, percent=5), **more))
    assert reason.what.startswith(told)


def test_a_window_that_is_not_set_is_the_controllers() -> None:
    assert reasons.down_window_s(hpa(behavior={})) == 300
    assert reasons.up_window_s(hpa(behavior={})) == 0


@pytest.mark.parametrize(
    ("percent", "current", "wanted"),
    [(70, 2, 2), (76, 2, 2), (78, 2, 3), (140, 2, 4), (141, 2, 5), (64, 4, 4), (60, 4, 4), (35, 4, 2), (0, 4, 1), (None, 2, None)],
)  # fmt: skip
def test_the_recommendation_is_the_controllers(percent: int | None, current: int, wanted: int | None) -> None:
    assert reasons.recommend(hpa(percent=percent, current=current)) == wanted


def test_old_recommendations_are_dropped() -> None:
    assert reasons.keep_recent(history((100, 5), (20, 4)), NOW, 60) == list(history((20, 4)))


class Server:
    """Answers as the API does, from what is put in; all else is not there."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            "/apis/autoscaling/v2/namespaces/staging/horizontalpodautoscalers/demo-app": hpa(),
            "/apis/apps/v1/namespaces/staging/deployments/demo-app": deployment(),
            "/api/v1/namespaces/staging/events": {"items": [rescale(2, 100)]},
            "/api/v1/namespaces/staging/pods": {"items": [pod()]},
        } | answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def get(self, path: str, **query: Any) -> Any:
        self.asked.append((path, query))
        found = self.answers.get(path, ApiException(status=404, reason="Not Found"))
        if isinstance(found, Exception):
            raise found
        return found

    get_text = get


def test_the_facts_are_read_in_four_calls_while_there_are_metrics() -> None:
    server: Any = Server()
    found = reasons.collect(server, "staging")
    assert found is not None
    assert (found.hpa, found.deployment, len(found.pods), len(found.events)) == (hpa(), deployment(), 1, 1)
    assert len(server.asked) == 4
    assert ("/api/v1/namespaces/staging/pods", {"labelSelector": "app.kubernetes.io/name=demo-app"}) in server.asked


def test_without_metrics_the_api_and_metrics_servers_log_are_read_too() -> None:
    scaler = "/apis/autoscaling/v2/namespaces/staging/horizontalpodautoscalers/demo-app"
    answers: dict[str, Any] = {
        scaler: hpa(UNABLE, percent=None),
        "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io": ABSENT,
        "/api/v1/namespaces/kube-system/pods": {
            "items": [pod("metrics-server-1", ready=False), pod("metrics-server-2")]
        },
        "/api/v1/namespaces/kube-system/pods/metrics-server-2/log": X509,
    }
    server: Any = Server(**answers)
    found = reasons.collect(server, "staging")
    assert found is not None
    assert [r.kind for r in explain(found)] == [Kind.KUBELET_CERTIFICATE]
    server.answers["/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io"] = ApiException(status=404)
    server.answers["/api/v1/namespaces/kube-system/pods"] = {"items": []}
    found = reasons.collect(server, "staging")
    assert found is not None
    assert [r.kind for r in explain(found)] == [Kind.METRICS_API]


def test_no_autoscaler_is_none_and_what_may_not_be_read_is_noted() -> None:
    server: Any = Server()
    assert reasons.collect(server, "dev") is None
    server.answers["/api/v1/namespaces/staging/events"] = ApiException(status=403, reason="Forbidden")
    found = reasons.collect(server, "staging")
    assert found is not None and found.events == ()
    assert found.unread == ("/api/v1/namespaces/staging/events can't be read: Forbidden",)


@pytest.mark.parametrize(
    ("percent", "current", "told"),
    [(5, 2, "at its minimum"), (70, 3, "at its target"), (5, 3, "about to change"), (200, 2, "about to change"), (None, 2, "nothing")],
)  # fmt: skip
def test_an_autoscaler_that_nothing_keeps_says_what_it_does(percent: int | None, current: int, told: str) -> None:
    assert told in status.at_rest(facts(hpa=hpa(percent=percent, current=current)))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Facts | None]:
    found: dict[str, Facts | None] = {name: facts() for name in ("dev", "staging", "production")}
    monkeypatch.setattr(status, "lab_kube", lambda _: None)
    monkeypatch.setattr(status.reasons, "collect", lambda _, name: found[name])
    return found


def test_status_tells_every_autoscaler_and_its_exit_code_a_fault(
    cluster: dict[str, Facts | None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings: Any = None
    assert status.status(settings, "") == 0
    cluster["staging"] = facts(hpa=hpa(DOWN, current=4, percent=5))
    assert status.status(settings, "") == 0, "what passes by itself is no fault"
    assert "· staging: stabilising: stabilising for at most 30 s" in capsys.readouterr().out
    cluster["dev"] = None
    cluster["production"] = replace(facts(), deployment=deployment(QUOTA, replicas=5))
    assert status.status(settings, "staging") == 0
    assert status.status(settings, "") == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("✘ dev: can't scale: there is no HorizontalPodAutoscaler") for line in lines)
    assert any(line.startswith("✘ production: quota: exceeded quota") and "To mend it: raise" in line for line in lines)
    row = next(line.split() for line in lines if line.startswith("staging"))
    assert row[:4] == ["staging", "4", "2", "4"]
