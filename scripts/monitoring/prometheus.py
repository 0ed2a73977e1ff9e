"""The lab's Prometheus and Alertmanager, asked through a port-forward to their pod.

with connected(kube) as prometheus:
    prometheus.instant("up")
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import requests

from scripts import endpoints
from scripts.errors import LabError
from scripts.kube import Kube
from scripts.settings import MONITORING_NAMESPACE
from scripts.transfer import direct_session

TIMEOUT_S = 30
SET_UP = "make setup-all MONITORING=lite"


@dataclass(frozen=True)
class Tool:
    """A web server of the monitoring namespace: how its pod is known, and where it listens."""

    name: str
    selector: str
    port: int
    mend: str = SET_UP


PROMETHEUS = Tool("Prometheus", "app.kubernetes.io/name=prometheus", 9090)
ALERTMANAGER = Tool("Alertmanager", "app.kubernetes.io/name=alertmanager", 9093)
GRAFANA = Tool(
    "Grafana",
    "app.kubernetes.io/name=grafana",
    3000,
    "`make dashboards` draws the same dashboards into a page; Grafana itself comes with MONITORING=full",
)


class MonitoringMissingError(LabError):
    """What is asked for does not run in the cluster."""


class QueryError(LabError):
    """Prometheus refuses a query, in its own words."""


class Kind(StrEnum):
    """The types of a result, as Prometheus names them."""

    VECTOR = "vector"
    MATRIX = "matrix"
    SCALAR = "scalar"
    STRING = "string"


@dataclass(frozen=True)
class Point:
    """A value at a moment (seconds since 1970)."""

    at: float
    value: float


@dataclass(frozen=True)
class Series:
    """A series' labels, its name among them as `__name__`, and its points in time's order."""

    labels: Mapping[str, str]
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """The series as PromQL writes it."""
        labels = ", ".join(f'{k}="{v}"' for k, v in sorted(self.labels.items()) if k != "__name__")
        return f"{self.labels.get('__name__', '')}{{{labels}}}" if labels else self.labels.get("__name__", "{}")


@dataclass(frozen=True)
class Answer:
    """What a query came to: series, or a text for a string literal; Prometheus' own warnings."""

    kind: Kind
    series: tuple[Series, ...]
    text: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """Something that is scraped."""

    job: str
    namespace: str
    instance: str
    pool: str
    url: str
    health: str
    error: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def up(self) -> bool:
        """Whether the last scrape worked."""
        return self.health == "up"


@dataclass(frozen=True)
class Alert:
    """An alert that is pending or fires (Prometheus), or that is routed (Alertmanager: active or suppressed)."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    state: str
    since: str
    value: str = ""
    receivers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The alert's name."""
        return self.labels.get("alertname", "")


@dataclass(frozen=True)
class Rule:
    """A recording or alerting rule and how its last evaluation went."""

    group: str
    name: str
    kind: str
    query: str
    health: str
    error: str
    state: str
    labels: Mapping[str, str]
    alerts: tuple[Alert, ...] = ()


class _Http:
    """GET requests to one server on 127.0.0.1, past any proxy of the environment."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url.rstrip("/")
        self._name = name
        self._session = direct_session()

    def get(self, path: str, **query: str | float) -> Any:
        try:
            answer = self._session.get(f"{self._url}{path}", params=query, timeout=TIMEOUT_S)
            found = answer.json()
        except requests.JSONDecodeError:
            raise LabError(f"{self._name} answers {path} with HTTP {answer.status_code}.", "make status") from None
        except requests.RequestException as error:
            raise LabError(f"{self._name} does not answer ({type(error).__name__}).", "make status") from None
        if answer.ok:
            return found
        if isinstance(found, dict) and found.get("status") == "error":
            raise QueryError(f"{self._name} refuses: {found.get('errorType', 'error')}: {found.get('error', '')}")
        raise LabError(f"{self._name} answers {path} with HTTP {answer.status_code}: {found}", "make status")


class Prometheus:
    """A Prometheus by its address."""

    def __init__(self, url: str) -> None:
        self._http = _Http(url, PROMETHEUS.name)

    def instant(self, query: str, at: float | None = None) -> Answer:
        """Return what a query comes to now, or at a moment; raises QueryError for an expression that is none."""
        more = {} if at is None else {"time": at}
        return _answer(self._http.get("/api/v1/query", query=query, **more))

    def range(self, query: str, start: float, end: float, step_s: float) -> Answer:
        """Return what a query comes to at each step between two moments; raises QueryError as `instant` does."""
        return _answer(self._http.get("/api/v1/query_range", query=query, start=start, end=end, step=step_s))

    def targets(self) -> tuple[Target, ...]:
        """Return all that is scraped."""
        data = self._http.get("/api/v1/targets", state="active")["data"]["activeTargets"]
        return tuple(
            Target(
                job=t["labels"].get("job", ""),
                namespace=t["labels"].get("namespace", ""),
                instance=t["labels"].get("instance", ""),
                pool=t.get("scrapePool", ""),
                url=t.get("scrapeUrl", ""),
                health=t["health"],
                error=t.get("lastError", ""),
                labels=t["labels"],
            )
            for t in data
        )

    def rules(self) -> tuple[Rule, ...]:
        """Return all rules, group by group."""
        groups = self._http.get("/api/v1/rules")["data"]["groups"]
        return tuple(_rule(group["name"], rule) for group in groups for rule in group["rules"])

    def alerts(self) -> tuple[Alert, ...]:
        """Return the alerts that are pending or fire."""
        return tuple(_alert(a) for a in self._http.get("/api/v1/alerts")["data"]["alerts"])


class Alertmanager:
    """An Alertmanager by its address."""

    def __init__(self, url: str) -> None:
        self._http = _Http(url, ALERTMANAGER.name)

    def alerts(self) -> tuple[Alert, ...]:
        """Return the alerts that it holds, with the receivers that it routes them to."""
        return tuple(
            Alert(
                labels=a["labels"],
                annotations=a["annotations"],
                state=a["status"]["state"],
                since=a["startsAt"],
                receivers=tuple(r["name"] for r in a["receivers"]),
            )
            for a in self._http.get("/api/v2/alerts")
        )


@contextlib.contextmanager
def connected(kube: Kube) -> Iterator[Prometheus]:
    """Reach the lab's Prometheus while the block runs."""
    with reached(kube, PROMETHEUS) as tunnel:
        yield Prometheus(f"http://127.0.0.1:{tunnel.port}")


@contextlib.contextmanager
def alertmanager(kube: Kube) -> Iterator[Alertmanager]:
    """Reach the lab's Alertmanager while the block runs."""
    with reached(kube, ALERTMANAGER) as tunnel:
        yield Alertmanager(f"http://127.0.0.1:{tunnel.port}")


@contextlib.contextmanager
def reached(kube: Kube, tool: Tool, port: int = 0) -> Iterator[endpoints.Tunnel]:
    """Forward a port of 127.0.0.1 (a free one by default) to a tool's pod while the block runs."""
    with endpoints.tunnel(kube, MONITORING_NAMESPACE, f"pod/{pod_of(kube, tool)}", tool.port, port) as tunnel:
        yield tunnel


def pod_of(kube: Kube, tool: Tool) -> str:
    """Return the name of a tool's Ready pod; raises MonitoringMissingError if there is none."""
    pods = kube.call(kube.core.list_namespaced_pod, MONITORING_NAMESPACE, label_selector=tool.selector).items
    if not pods:
        raise MonitoringMissingError(f"There is no {tool.name} in the cluster of context {kube.context}.", tool.mend)
    for pod in pods:
        if any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or []):
            name: str = pod.metadata.name
            return name
    raise MonitoringMissingError(
        f"{tool.name} is there and not Ready: pod {pods[0].metadata.name} is {pods[0].status.phase}.",
        "make status names the cause; if it has just been started, wait a moment",
    )


def _answer(found: dict[str, Any]) -> Answer:
    kind, result = Kind(found["data"]["resultType"]), found["data"]["result"]
    warnings = (*found.get("warnings", ()), *found.get("infos", ()))
    if kind is Kind.STRING:
        return Answer(kind, (), str(result[1]), warnings)
    if kind is Kind.SCALAR:
        return Answer(kind, (Series({}, (_point(result),)),), warnings=warnings)
    series = tuple(
        Series(s["metric"], tuple(_point(p) for p in s.get("values") or ([s["value"]] if "value" in s else ())))
        for s in result
    )
    return Answer(kind, series, warnings=warnings)


def _point(pair: tuple[float, str]) -> Point:
    return Point(float(pair[0]), float(pair[1]))


def _rule(group: str, rule: dict[str, Any]) -> Rule:
    return Rule(
        group=group,
        name=rule["name"],
        kind=rule["type"],
        query=rule["query"],
        health=rule["health"],
        error=rule.get("lastError", ""),
        state=rule.get("state", ""),
        labels=rule.get("labels", {}),
        alerts=tuple(_alert(a) for a in rule.get("alerts", ())),
    )


def _alert(alert: dict[str, Any]) -> Alert:
    return Alert(
        labels=alert["labels"],
        annotations=alert.get("annotations", {}),
        state=alert["state"],
        since=alert.get("activeAt", ""),
        value=str(alert.get("value", "")),
    )
