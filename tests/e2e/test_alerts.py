"""Alerts on the live lab: a promise broken by a push, heard by the receiver, kept again after the revert."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from scripts import docker, git
from scripts.kube import Kube
from scripts.monitoring import alerts, mode
from scripts.monitoring.prometheus import ALERTMANAGER, Alert, Prometheus, connected, reached
from scripts.settings import Monitoring, Settings
from scripts.waiting import wait_for
from tests.e2e.conftest import Clone, MakeResult

RULES = "flux-cd/infrastructure/_components/_prometheus-stack/rules/kustomization.yaml"
DEV = "flux-cd/applications/mock-cluster-aka-namespaces/dev/kustomization.yaml"
PAGE = ("AvailabilityBudgetBurning", "dev")
REQUESTS_PER_S = 10


@pytest.fixture
def prometheus(settings: Settings, kube: Kube) -> Iterator[Prometheus]:
    if mode.in_lab(settings) is Monitoring.NONE:
        pytest.skip("this lab has no monitoring")
    with connected(kube) as found:
        yield found


@pytest.fixture
def traffic(edge: Callable[..., requests.Response]) -> Iterator[None]:
    """Ask dev for /work through the edge, so many times a second and no more, while the test runs."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(1 / REQUESTS_PER_S):
            try:
                edge("dev", "/work")
            except requests.RequestException:
                continue  # a request that fails is what this is about

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    over.set()
    thread.join(timeout=15)


def subject(alert: Alert) -> tuple[str, str]:
    return alert.name, alert.labels.get("namespace", "")


def firing(prometheus: Prometheus) -> set[tuple[str, str]]:
    return {subject(a) for a in prometheus.alerts() if a.state == "firing"}


def test_make_alerts_shows_that_the_way_to_the_receiver_works(
    prometheus: Prometheus, kube: Kube, make: Callable[..., MakeResult]
) -> None:
    wait_for(
        "the receiver has heard of the alert that always fires",
        lambda: [] if any(n.alert == "Watchdog" for n in alerts.notifications(kube)) else ["nothing yet"],
        timeout_s=120,
        interval_s=2,
    )
    result = make("alerts", OUTPUT="json")
    assert result.code == 0, result.output
    report = json.loads(result.output)
    assert {"Watchdog"} <= {a["labels"]["alertname"] for a in report["alerts"]}
    assert {"Watchdog"} <= {n["alert"] for n in report["notifications"]}


@pytest.mark.long
def test_half_of_devs_requests_failing_fires_one_alert_and_the_revert_ends_it(
    prometheus: Prometheus, kube: Kube, clone: Clone, traffic: None, make: Callable[..., MakeResult]
) -> None:
    before = firing(prometheus)
    assert PAGE not in before
    path = clone.path / RULES
    path.write_text(path.read_text() + "components:\n- short-windows\n")
    clone.commit("Test: short windows")
    clone.push()
    wait_for(
        "the short windows are in force",
        lambda: [] if "slo:errors:ratio_rate1m" in {r.name for r in prometheus.rules()} else ["the long ones"],
        timeout_s=180,
        interval_s=2,
    )

    since = datetime.now(UTC).isoformat(timespec="seconds")  # as the receiver, on the same machine, writes its own
    clone.edit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.5")
    clone.commit("Test: half of dev's requests fail")
    clone.push()
    seen: set[tuple[str, str]] = set()

    def not_firing() -> list[str]:
        seen.update(firing(prometheus) - before)
        return [] if PAGE in seen else [f"fires: {sorted(seen) or 'nothing new'}"]

    wait_for("dev's alert fires", not_firing, timeout_s=300, interval_s=2)
    assert seen == {PAGE}

    def heard(status: str) -> list[str]:
        new = [n for n in alerts.notifications(kube) if n.received >= since]
        told = [n for n in new if (n.alert, n.labels.get("namespace")) == PAGE and n.status == status]
        return [] if told else [f"told of {sorted({(n.alert, n.status) for n in new})}"]

    wait_for("the receiver is told that it fires", lambda: heard("firing"), timeout_s=120, interval_s=2)
    assert "AvailabilityBudgetBurning" in make("alerts").output

    git.git("revert", "--no-edit", "HEAD", root=clone.path)
    clone.push()

    def still_firing() -> list[str]:
        now = firing(prometheus) - before
        seen.update(now)
        return [f"fires: {sorted(now)}"] if PAGE in now else []

    wait_for("it is over", still_firing, timeout_s=420, interval_s=2)
    wait_for("the receiver is told that it is over", lambda: heard("resolved"), timeout_s=180, interval_s=2)
    seen.update(firing(prometheus) - before)
    assert seen == {PAGE}


@pytest.fixture
def address_of_ones_own(settings: Settings, make: Callable[..., MakeResult]) -> Iterator[tuple[str, list[str]]]:
    """A web server of somebody's own where pods find this machine, and the names of the alerts that it was told."""
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.extend(a["labels"]["alertname"] for a in body["alerts"] if self.path == "/hook?token=secret")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    network = docker.inspect("network", settings.network)
    assert network is not None
    (gateway,) = [c["Gateway"] for c in network["IPAM"]["Config"] if "." in c.get("Gateway", "")]
    with ThreadingHTTPServer((gateway, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{gateway}:{server.server_port}/hook?token=secret", told
        finally:
            server.shutdown()
            thread.join(timeout=15)
            assert make("alert-webhook", ALERT_WEBHOOK_URL="").code == 0


@pytest.mark.long
def test_an_address_of_ones_own_is_told_too_and_shown_nowhere(
    prometheus: Prometheus, kube: Kube, address_of_ones_own: tuple[str, list[str]], make: Callable[..., MakeResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    url, told = address_of_ones_own
    with monkeypatch.context() as patch:
        patch.setenv("ALERT_WEBHOOK_URL", url)
        result = make("alert-webhook")
    assert result.code == 0, result.output
    assert "within a minute" in result.output and "secret" not in result.output

    number = 0

    def pending() -> list[str]:
        """A new alert each time: one that Alertmanager sent to the old address is not sent again for hours."""
        nonlocal number
        number += 1
        with reached(kube, ALERTMANAGER) as tunnel:
            labels = {"alertname": f"E2eWebhook{number}", "severity": "warning", "namespace": "dev"}
            answer = requests.post(
                f"http://127.0.0.1:{tunnel.port}/api/v2/alerts", json=[{"labels": labels}], timeout=10
            )
            assert answer.status_code == 200, answer.text
        return [] if any(name.startswith("E2eWebhook") for name in told) else [f"told so far: {told}"]

    wait_for("the address of one's own is told", pending, timeout_s=180, interval_s=5)
    assert any(n.alert.startswith("E2eWebhook") for n in alerts.notifications(kube)), (
        "the receiver is told all the same"
    )
