"""`make alerts`, and the receiver that it asks."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from types import ModuleType
from typing import Any

import pytest
import requests

from scripts.errors import UsageError
from scripts.monitoring import alerts, slo
from scripts.monitoring.prometheus import Alert
from scripts.settings import Settings

NOTIFICATION = {
    "version": "4",
    "status": "firing",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "PodNotReady", "severity": "warning", "namespace": "dev", "pod": "<b>a</b>"},
            "annotations": {"summary": "dev/<b>a</b> is not Ready", "runbook_url": "how-to-run.MD#podnotready"},
            "startsAt": "2026-11-27T12:00:00Z",
            "endsAt": "0001-01-01T00:00:00Z",
        }
    ],
}


@pytest.fixture
def receiver() -> ModuleType:
    """The receiver's file, as the pod runs it, fresh for each test."""
    spec = importlib.util.spec_from_file_location("receiver", slo.RULES / "receiver" / "receiver.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def address(receiver: ModuleType) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), receiver.Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def session() -> requests.Session:
    found = requests.Session()
    found.trust_env = False
    return found


def test_a_notification_is_kept_logged_and_shown(
    address: str, session: requests.Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert session.post(f"{address}/alerts", json=NOTIFICATION, timeout=5).status_code == 200
    (entry,) = session.get(f"{address}/notifications", timeout=5).json()
    assert (entry["alert"], entry["status"], entry["severity"]) == ("PodNotReady", "firing", "warning")
    assert entry["labels"]["namespace"] == "dev" and entry["runbook"].endswith("#podnotready")
    assert json.loads(capsys.readouterr().out)["alert"] == "PodNotReady"
    page = session.get(f"{address}/", timeout=5).text
    assert "PodNotReady" in page and "&lt;b&gt;a" in page and "<b>" not in page
    found = alerts._notification(entry)
    assert alerts.notification_rows([found])[0][1:4] == ["firing", "warning", "PodNotReady"]


def test_nowhere_takes_everything_and_keeps_nothing(address: str, session: requests.Session) -> None:
    assert session.post(f"{address}/nowhere", json=NOTIFICATION, timeout=5).status_code == 200
    assert session.get(f"{address}/notifications", timeout=5).json() == []
    assert alerts.NOWHERE.endswith(":8080/nowhere")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/alerts", b"no JSON", 400),
        ("/alerts", b"[]", 400),
        ("/alerts", b'{"alerts": [1]}', 400),
        ("/alerts", b"x" * (1024 * 1024 + 1), 413),
        ("/elsewhere", b"{}", 404),
    ],
)
def test_what_is_no_notification_is_refused_and_not_kept(
    address: str, session: requests.Session, path: str, body: bytes, status: int
) -> None:
    try:
        answer = session.post(f"{address}{path}", data=body, timeout=5)
    except requests.ConnectionError:  # it answers before it has read a body that is too large
        assert status == 413
    else:
        assert answer.status_code == status
    assert session.get(f"{address}/notifications", timeout=5).json() == []


def test_only_the_last_ones_are_kept(receiver: ModuleType, address: str, session: requests.Session) -> None:
    many = {"alerts": [{"labels": {"alertname": str(n)}} for n in range(receiver.KEPT + 1)]}
    assert session.post(f"{address}/alerts", json=many, timeout=5).status_code == 200
    kept = session.get(f"{address}/notifications", timeout=5).json()
    assert [kept[0]["alert"], kept[-1]["alert"], len(kept)] == ["1", str(receiver.KEPT), receiver.KEPT]


def alert(name: str, state: str, severity: str) -> Alert:
    return Alert({"alertname": name, "severity": severity, "namespace": "dev"}, {"summary": "so"}, state, "2026-11-27T12:00:00.5Z")  # fmt: skip


def test_the_worst_comes_first_and_what_always_fires_does_not_count() -> None:
    found = [
        alert("Watchdog", "firing", "none"),
        alert("C", "pending", "critical"),
        alert("B", "firing", "warning"),
        alert("A", "firing", "critical"),
    ]
    report = alerts.Report(tuple(sorted(found, key=alerts._rank)), ())
    assert [a.name for a in report.alerts] == ["A", "B", "Watchdog", "C"]
    assert [a.name for a in report.firing] == ["A", "B"]
    assert json.loads(alerts.as_json(report))["firing"] == 2
    assert alerts.alert_rows(report.alerts)[0] == ["firing", "critical", "A", "namespace=dev", "2026-11-27T12:00:00", "so"]  # fmt: skip


@pytest.mark.parametrize("url", ["hooks.example/t0ken", "ftp://hooks.example/t0ken", "https:///t0ken"])
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        alerts.set_webhook(Settings(), url)
    assert "t0ken" not in str(refused.value)


def test_an_address_goes_into_the_secret_and_into_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[Any] = []

    class Cluster:
        def apply(self, objects: list[Any]) -> None:
            applied.extend(objects)

    monkeypatch.setattr(alerts.deploy, "lab_kube", lambda settings: Cluster())
    said = alerts.set_webhook(Settings(), "https://hooks.example/t0ken")
    assert "t0ken" not in said and "hooks.example" in said
    assert applied[0]["stringData"] == {"url": "https://hooks.example/t0ken"}
    assert alerts.set_webhook(Settings(), "").endswith("only")
    assert applied[1]["stringData"] == {"url": alerts.NOWHERE}
