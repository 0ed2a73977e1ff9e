"""`make alerts`: what fires or is about to, and what the receiver in the cluster was told; `make alert-webhook`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import requests

from scripts import console, deploy
from scripts.errors import LabError, UsageError
from scripts.kube import Kube
from scripts.monitoring.prometheus import Alert, Tool, connected, reached
from scripts.settings import MONITORING_NAMESPACE, Settings
from scripts.transfer import direct_session

OUTPUTS = ("table", "json")
RECEIVER = Tool("the receiver of alerts", "app.kubernetes.io/name=alert-receiver", 8080)
WEBHOOK_SECRET = "alert-webhook"
# Takes alerts and drops them: what stands in the Secret as long as nobody gave an address.
NOWHERE = "http://alert-receiver.monitoring.svc:8080/nowhere"
SHOWN_NOTIFICATIONS = 20
_ORDER = {"critical": 0, "warning": 1, "none": 2}
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Notification:
    """What the receiver was told of one alert."""

    received: str
    status: str
    alert: str
    severity: str
    labels: Mapping[str, str]
    summary: str
    runbook: str


@dataclass(frozen=True)
class Report:
    """Alerts, the worst first, and notifications, the newest first."""

    alerts: tuple[Alert, ...]
    notifications: tuple[Notification, ...]

    @property
    def firing(self) -> tuple[Alert, ...]:
        """What fires, apart from the one that always does."""
        return tuple(a for a in self.alerts if a.state == "firing" and a.labels.get("severity") != "none")


def collect(kube: Kube) -> Report:
    """Ask Prometheus and the receiver."""
    with connected(kube) as prometheus:
        alerts = prometheus.alerts()
    return Report(tuple(sorted(alerts, key=_rank)), notifications(kube))


def notifications(kube: Kube) -> tuple[Notification, ...]:
    """Return what the receiver was told since its pod started, the newest first."""
    with reached(kube, RECEIVER) as tunnel:
        session = direct_session()
        try:
            answer = session.get(f"http://127.0.0.1:{tunnel.port}/notifications", timeout=_TIMEOUT_S)
            answer.raise_for_status()
            found = answer.json()
        except requests.RequestException as error:
            raise LabError(f"The receiver of alerts does not answer ({type(error).__name__}).", "make status") from None
    return tuple(_notification(entry) for entry in reversed(found))


def _notification(entry: Mapping[str, Any]) -> Notification:
    return Notification(
        entry["received"],
        entry["status"],
        entry["alert"],
        entry["severity"],
        entry["labels"],
        entry["summary"],
        entry["runbook"],
    )


def _rank(alert: Alert) -> tuple[bool, int, str, str]:
    severity = _ORDER.get(alert.labels.get("severity", ""), len(_ORDER))
    return alert.state != "firing", severity, alert.name, str(sorted(alert.labels.items()))


def show(settings: Settings, output: str) -> int:
    """Print both, as tables or JSON; 0 as soon as the stack answers, whatever fires."""
    if output not in OUTPUTS:
        raise UsageError(f"OUTPUT={output} is not known.", f"take one of: {', '.join(OUTPUTS)}")
    report = collect(deploy.lab_kube(settings))
    if output == "json":
        console.raw(as_json(report))
        return 0
    console.table("Alerts", ("state", "severity", "alert", "of", "since", "what"), alert_rows(report.alerts))
    console.table(
        f"What the receiver was told (the last {SHOWN_NOTIFICATIONS})",
        ("received", "state", "severity", "alert", "of"),
        notification_rows(report.notifications[:SHOWN_NOTIFICATIONS]),
    )
    count = len(report.firing)
    console.line(
        "Nothing fires but what always does."
        if not count
        else f"{count} fire: how-to-run.MD, Runbooks, says what to do about each."
    )
    return 0


def as_json(report: Report) -> str:
    """Return the report for machines."""
    return json.dumps({"firing": len(report.firing), **asdict(report)}, indent=2)


def alert_rows(alerts: Sequence[Alert]) -> list[list[str]]:
    """Return the alerts as rows of a table."""
    return [
        [
            a.state,
            a.labels.get("severity", ""),
            a.name,
            subject(a.labels),
            a.since.partition(".")[0],
            a.annotations.get("summary", ""),
        ]
        for a in alerts
    ]


def notification_rows(found: Sequence[Notification]) -> list[list[str]]:
    """Return notifications as rows of a table."""
    return [[n.received, n.status, n.severity, n.alert, subject(n.labels)] for n in found]


def subject(labels: Mapping[str, str]) -> str:
    """Return what an alert is about: its labels without what every alert has."""
    return " ".join(f"{k}={v}" for k, v in sorted(labels.items()) if k not in ("alertname", "severity"))


def set_webhook(settings: Settings, url: str) -> str:
    """Put a person's address into the cluster, or take it back with an empty one; return what was done.

    The address may hold a token: it is in no argument, no log line and no error.
    """
    if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        raise UsageError("ALERT_WEBHOOK_URL is not an http:// or https:// address.", "give the whole address")
    kube = deploy.lab_kube(settings)
    kube.apply(
        [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": WEBHOOK_SECRET,
                    "namespace": MONITORING_NAMESPACE,
                    # As Git has it: Flux makes this Secret where it is missing, and leaves one that is there alone.
                    "annotations": {"kustomize.toolkit.fluxcd.io/ssa": "IfNotPresent"},
                },
                "stringData": {"url": url or NOWHERE},
            }
        ]
    )
    if not url:
        return "alerts go to the receiver in the cluster only"
    return f"alerts go to {urlsplit(url).hostname} too, within a minute"
