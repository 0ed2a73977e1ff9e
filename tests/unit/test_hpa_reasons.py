from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from kubernetes.client import ApiException

from scripts.hpa import autoscaler, reasons, status
from scripts.hpa import facts as facts_module
from scripts.hpa.autoscaler import Recommendation
from scripts.hpa.facts import Facts
from scripts.hpa.reasons import Kind, explain
from scripts.settings import HpaMetric
from tests.unit.hpa_facts import NOW, ago, cond, deployment, facts, hpa, latency_hpa, pod, rescale

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

TWO = cond(
    "ScalingActive",
    "False",
    "AmbiguousSelector",
    "pods by selector app.kubernetes.io/name=demo-app are controlled by multiple HPAs: [staging/demo-app staging/keda-hpa-demo-app]",
)
EXTERNAL = (
    "unable to get external metric staging/s0-prometheus/&LabelSelector{MatchLabels:map[string]string{scaledobject.keda.sh/name: "
    "demo-app,},MatchExpressions:[]LabelSelectorRequirement{},}: unable to fetch metrics from external metrics API: "
)
NO_EXTERNAL = cond(
    "ScalingActive", "False", "FailedGetExternalMetric", EXTERNAL + "the server could not find the metric"
)
BLIND = {"hpa": latency_hpa(NO_EXTERNAL, ms=None)}
KEDA_DOWN = {
    "status": {"conditions": [cond("Available", "False", "MissingEndpoints", "no response from https://10.96.1.2:443")]}
}
SCALED = {"status": {"conditions": [cond("Ready", "True", "ScaledObjectReady", "ScaledObject is defined correctly")]}}
MISTAKEN = {"status": {"conditions": [cond("Ready", "False", "ScaledObjectCheckFailed", "no threshold")]}}


def trigger_failed(message: str, seconds_ago: float = 5) -> dict[str, Any]:
    return {"reason": "KEDAScalerFailed", "message": message, "lastTimestamp": ago(seconds_ago)}


EMPTY = trigger_failed("prometheus metrics 'prometheus' target may be lost, the result is empty")
NO_NAME = trigger_failed('Get "http://prometheus-operated.monitoring.svc:9090/api": dial tcp: lookup: no such host', 60)

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
    ("two autoscalers", facts(hpa=hpa(TWO)), [Kind.TWO_AUTOSCALERS], "another HorizontalPodAutoscaler has the same pods", "kubectl -n staging get hpa"),
    ("latency, all is well", facts(hpa=latency_hpa()), [], "", ""),
    ("no KEDA", facts(**BLIND), [Kind.EXTERNAL_API], "no API v1beta1.external.metrics.k8s.io: there is no KEDA", "HPA_METRIC=latency"),
    ("KEDA down", facts(**BLIND, api_service=KEDA_DOWN, metrics_pods=(pod("keda-1", ready=False), pod("keda-2"))), [Kind.EXTERNAL_API], "no response from https://10.96.1.2:443); 1 of 2 of KEDA's pods are ready", "make status"),
    ("no ScaledObject", facts(**BLIND, api_service=SERVES), [Kind.SCALED_OBJECT], "no ScaledObject demo-app in staging", "make reconcile"),
    ("ScaledObject mistaken", facts(**BLIND, api_service=SERVES, scaled_object=MISTAKEN), [Kind.SCALED_OBJECT], "no threshold", "latency-scaling"),
    ("ScaledObject new", facts(**BLIND, api_service=SERVES, scaled_object={}), [Kind.SCALED_OBJECT], "KEDA has not looked at it yet", "keda-operator"),
    ("no data", facts(**BLIND, api_service=SERVES, scaled_object=SCALED, trigger_events=(NO_NAME, EMPTY)), [Kind.NO_LATENCY], "Prometheus has no data of staging's histogram", "does Prometheus scrape it"),
    ("no Prometheus", facts(**BLIND, api_service=SERVES, scaled_object=MISTAKEN, trigger_events=(NO_NAME,)), [Kind.NO_LATENCY], "KEDA can't ask Prometheus (Get", "does Prometheus run?"),
    ("latency unknown", facts(**BLIND, api_service=SERVES, scaled_object=SCALED), [Kind.NO_LATENCY], "the p95 is <unknown> (unable to get external metric", "keda-operator"),
    ("latency at maximum", facts(hpa=latency_hpa(ms=400, current=5)), [Kind.AT_MAXIMUM], "has its 5 pods, with a p95 of 400 ms where 150 ms is the target", "maxReplicas"),
    ("latency, young pods", facts(hpa=latency_hpa(), pods=(pod(), pod("b", ready=False))), [Kind.NOT_READY], "1 new pod is starting", ""),
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
    assert autoscaler.down_window_s(hpa(behavior={})) == 300
    assert autoscaler.up_window_s(hpa(behavior={})) == 0


@pytest.mark.parametrize(
    ("percent", "current", "wanted"),
    [(70, 2, 2), (76, 2, 2), (78, 2, 3), (140, 2, 4), (141, 2, 5), (64, 4, 4), (60, 4, 4), (35, 4, 2), (0, 4, 1), (None, 2, None)],
)  # fmt: skip
def test_the_recommendation_is_the_controllers(percent: int | None, current: int, wanted: int | None) -> None:
    assert autoscaler.recommend(hpa(percent=percent, current=current)) == wanted


@pytest.mark.parametrize(
    ("ms", "current", "ready", "wanted"),
    [(150, 2, 2, 2), (164, 2, 2, 2), (166, 2, 2, 3), (300, 2, 2, 4), (300, 4, 2, 4), (450, 4, 2, 6), (60, 4, 4, 2), (0, 4, 4, 1), (None, 2, 2, None), (300, 3, None, 6)],
)  # fmt: skip
def test_an_external_value_is_shared_by_the_ready_pods(
    ms: float | None, current: int, ready: int | None, wanted: int | None
) -> None:
    assert autoscaler.recommend(latency_hpa(ms=ms, current=current), ready) == wanted


def test_figures_are_of_the_metric_that_is_followed() -> None:
    cpu, latency = hpa(percent=40), latency_hpa(ms=131.5)
    assert (autoscaler.metric_of(cpu), autoscaler.metric_of(latency)) == (HpaMetric.CPU, HpaMetric.LATENCY)
    assert (autoscaler.seen(cpu), autoscaler.seen(latency)) == ((40, 70), (131.5, 150))
    assert autoscaler.seen(latency_hpa(ms=None)) == (None, 150)
    assert (
        autoscaler.shown(HpaMetric.LATENCY, 131.5) == "132 ms" and autoscaler.shown(HpaMetric.CPU, None) == "<unknown>"
    )


def test_old_recommendations_are_dropped() -> None:
    assert autoscaler.keep_recent(history((100, 5), (20, 4)), NOW, 60) == list(history((20, 4)))


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
    found = facts_module.collect(server, "staging")
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
    found = facts_module.collect(server, "staging")
    assert found is not None
    assert [r.kind for r in explain(found)] == [Kind.KUBELET_CERTIFICATE]
    server.answers["/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io"] = ApiException(status=404)
    server.answers["/api/v1/namespaces/kube-system/pods"] = {"items": []}
    found = facts_module.collect(server, "staging")
    assert found is not None
    assert [r.kind for r in explain(found)] == [Kind.METRICS_API]


def test_kedas_autoscaler_is_found_where_gits_is_away_and_without_metrics_keda_is_asked() -> None:
    scalers = "/apis/autoscaling/v2/namespaces/staging/horizontalpodautoscalers"
    away = ApiException(status=404, reason="Not Found")
    server: Any = Server(
        **{"/api/v1/namespaces/staging/events": {"items": []}},
        **{f"{scalers}/demo-app": away, f"{scalers}/keda-hpa-demo-app": latency_hpa(NO_EXTERNAL, ms=None)},
        **{"/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io": SERVES},
        **{"/apis/keda.sh/v1alpha1/namespaces/staging/scaledobjects/demo-app": MISTAKEN},
    )
    found = facts_module.collect(server, "staging")
    assert found is not None
    assert [r.kind for r in explain(found)] == [Kind.SCALED_OBJECT]
    asked = [query.get("fieldSelector", "") for path, query in server.asked if path.endswith("/events")]
    assert "involvedObject.name=keda-hpa-demo-app" in asked[0]
    assert "involvedObject.kind=ScaledObject" in asked[1] and "reason=KEDAScalerFailed" in asked[1]


def test_no_autoscaler_is_none_and_what_may_not_be_read_is_noted() -> None:
    server: Any = Server()
    assert facts_module.collect(server, "dev") is None
    server.answers["/api/v1/namespaces/staging/events"] = ApiException(status=403, reason="Forbidden")
    found = facts_module.collect(server, "staging")
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
    monkeypatch.setattr(status.facts, "collect", lambda _, name: found[name])
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
