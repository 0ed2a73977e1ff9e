"""What tells the state of an autoscaler, read in a few calls; what it means is `reasons`' part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from scripts.hpa.autoscaler import NAMES, Recommendation, lacks_metrics, metric_of
from scripts.kube import Kube, Object
from scripts.settings import APP_NAME, KEDA_NAMESPACE, HpaMetric

METRICS_API = "v1beta1.metrics.k8s.io"
METRICS_NAMESPACE = "kube-system"
METRICS_SELECTOR = "k8s-app=metrics-server"
EXTERNAL_API = "v1beta1.external.metrics.k8s.io"
LOG_LINES = 60
# KEDA tells of a trigger that it can't read in an event of the ScaledObject.
TRIGGER_FAILED = "KEDAScalerFailed"


@dataclass(frozen=True)
class Facts:
    """What tells the state of one autoscaler, as plain data."""

    now: datetime
    environment: str
    hpa: Object
    deployment: Object | None = None
    pods: tuple[Object, ...] = ()
    events: tuple[Object, ...] = ()
    # The API that its metric comes from, and the pods behind it: metrics-server's, or KEDA's.
    api_service: Object | None = None
    metrics_pods: tuple[Object, ...] = ()
    metrics_log: str = ""
    scaled_object: Object | None = None
    trigger_events: tuple[Object, ...] = ()
    recommendations: tuple[Recommendation, ...] = ()
    unread: tuple[str, ...] = field(default=())


def collect(kube: Kube, environment: str, recommendations: Sequence[Recommendation] = ()) -> Facts | None:
    """Read the facts of an environment's autoscaler; None if there is none."""
    from kubernetes.client import ApiException

    unread: list[str] = []

    def read(path: str, **query: str) -> Object | None:
        try:
            return kube.get(path, **query)
        except ApiException as error:
            if error.status != 404:
                unread.append(f"{path} can't be read: {error.reason}")
            return None

    scalers = f"/apis/autoscaling/v2/namespaces/{environment}/horizontalpodautoscalers"
    hpa = next((found for name in NAMES.values() if (found := read(f"{scalers}/{name}"))), None)
    if hpa is None:
        return None
    target = hpa["spec"]["scaleTargetRef"]["name"]
    deployment = read(f"/apis/apps/v1/namespaces/{environment}/deployments/{target}")
    events = read(f"/api/v1/namespaces/{environment}/events", fieldSelector=about(hpa))
    pods: Object | None = None
    if deployment:
        labels = deployment["spec"]["selector"].get("matchLabels") or {}
        selector = ",".join(f"{k}={v}" for k, v in labels.items())
        pods = read(f"/api/v1/namespaces/{environment}/pods", labelSelector=selector)
    facts = Facts(
        now=datetime.now(UTC),
        environment=environment,
        hpa=hpa,
        deployment=deployment,
        pods=tuple((pods or {}).get("items") or ()),
        events=tuple((events or {}).get("items") or ()),
        recommendations=tuple(recommendations),
        unread=tuple(unread),
    )
    return with_metrics_source(kube, facts) if lacks_metrics(hpa) else facts


def about(hpa: Object) -> str:
    """Return the field selector of an autoscaler's events."""
    return f"involvedObject.kind=HorizontalPodAutoscaler,involvedObject.name={hpa['metadata']['name']}"


def with_metrics_source(kube: Kube, facts: Facts) -> Facts:
    """Add what tells why there are no metrics: the state of the API that brings them, and of what is behind it."""
    from kubernetes.client import ApiException

    def read(path: str, **query: str) -> Object | None:
        try:
            return kube.get(path, **query)
        except ApiException:
            return None

    def items(path: str, **query: str) -> tuple[Object, ...]:
        return tuple((read(path, **query) or {}).get("items") or ())

    services = "/apis/apiregistration.k8s.io/v1/apiservices"
    if metric_of(facts.hpa) is HpaMetric.LATENCY:
        events = items(
            f"/api/v1/namespaces/{facts.environment}/events",
            fieldSelector=f"involvedObject.kind=ScaledObject,involvedObject.name={APP_NAME},reason={TRIGGER_FAILED}",
        )
        return replace(
            facts,
            api_service=read(f"{services}/{EXTERNAL_API}"),
            metrics_pods=items(f"/api/v1/namespaces/{KEDA_NAMESPACE}/pods"),
            scaled_object=read(f"/apis/keda.sh/v1alpha1/namespaces/{facts.environment}/scaledobjects/{APP_NAME}"),
            trigger_events=events,
        )
    pods = items(f"/api/v1/namespaces/{METRICS_NAMESPACE}/pods", labelSelector=METRICS_SELECTOR)
    log = ""
    for pod in pods:
        path = f"/api/v1/namespaces/{METRICS_NAMESPACE}/pods/{pod['metadata']['name']}/log"
        try:
            log += kube.get_text(path, tailLines=LOG_LINES)
        except ApiException:
            continue  # it has no log yet
    return replace(facts, api_service=read(f"{services}/{METRICS_API}"), metrics_pods=pods, metrics_log=log)
