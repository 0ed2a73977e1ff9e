"""Alerts on the live lab: a promise broken by a push, heard by the receiver, kept again after the revert."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
import requests

from scripts import git
from scripts.kube import Kube
from scripts.monitoring import alerts, mode
from scripts.monitoring.prometheus import Alert, Prometheus, connected
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
