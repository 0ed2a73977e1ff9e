"""Latency-driven scaling on the live lab: KEDA brought, a run out and back under failures, everything put back after it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from kubernetes.client import ApiException

from scripts import flux_sync, keda
from scripts.hpa import changes, facts, reasons
from scripts.hpa.autoscaler import NAMES, metric_of
from scripts.hpa.reasons import Kind
from scripts.kube import condition
from scripts.settings import APP_NAME, FLUX_NAMESPACE, KEDA_NAMESPACE, MONITORING_NAMESPACE, HpaMetric, HpaSettings
from scripts.waiting import wait_for
from tests.e2e.test_hpa_demo import demo, on_hold, patch

pytestmark = pytest.mark.long
ENVIRONMENT = "staging"
BOUNDS = (2, 5)
LATENCY = HpaSettings(environment=ENVIRONMENT, metric=HpaMetric.LATENCY)
RUN = {"ENV": ENVIRONMENT, "HPA_DURATION": "120", "HPA_FAIL_RATE": "0.05"}


@pytest.fixture(scope="module", autouse=True)
def _monitored(kube) -> None:
    try:
        kube.get(f"/api/v1/namespaces/{MONITORING_NAMESPACE}/services/prometheus-operated")
    except ApiException as error:
        pytest.fail(f"this lab has no Prometheus ({error.status}): make setup-all MONITORING=lite first")


@pytest.fixture
def following(kube) -> Iterator[None]:
    """Staging scales on latency; afterwards as before."""
    with changes.made(kube, LATENCY, BOUNDS):
        yield


def scalers(kube) -> dict[str, dict]:
    found = kube.get(f"/apis/autoscaling/v2/namespaces/{ENVIRONMENT}/horizontalpodautoscalers")["items"]
    return {hpa["metadata"]["name"]: hpa for hpa in found}


def require_as_before(kube) -> None:
    assert set(scalers(kube)) == {NAMES[HpaMetric.CPU]}
    assert not changes.left_over(kube, ENVIRONMENT)
    deployment = kube.get(f"/apis/apps/v1/namespaces/{ENVIRONMENT}/deployments/{APP_NAME}")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "FAIL_RATE" not in {variable["name"] for variable in container["env"]}
    sync = kube.get(f"/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/{FLUX_NAMESPACE}/kustomizations/{ENVIRONMENT}")
    assert not {"components", "patches"} & set(sync["spec"])


def test_a_run_on_latency_scales_staging_out_and_back_and_fails_only_on_purpose(kube, make):
    done = demo(make, **RUN, HPA_METRIC="latency")
    assert done.code == 0, done.output
    run, target = done.data["run"], done.data["run"]["target_ms"]
    assert run["metric"] == "latency" and target == done.data["histograms"]["target_ms"]
    assert 3 <= done.data["replicas"]["highest_ready"] <= 5
    assert done.data["replicas"]["lowest"] == 2

    # What made it scale is the latency that it saw, which the external metrics API told.
    decision = done.data["moments"]["decision"]
    seen = [s for s in done.data["samples"] if s["hpa_latency_ms"] is not None]
    assert max(s["hpa_latency_ms"] for s in seen if s["t"] <= decision + 6) > target
    assert any(s["latency_ms"] is not None for s in done.data["samples"])
    rescales = [e["message"] for e in done.data["events"] if e["reason"] == "SuccessfulRescale"]
    assert any("external metric" in message for message in rescales), rescales

    # Failed on purpose, and in no other way.
    share = done.data["requests"]["failed"] / done.data["requests"]["total"]
    assert share == pytest.approx(0.05, abs=0.03)
    assert "✔ no request failed but on purpose" in done.output

    # The old histogram saw the failures alone: fewer to tell by, at no moment more than the right one.
    every, failed = (done.data["histograms"][name]["wishes"] for name in ("every", "failed_only"))
    assert 0 < sum(w["observed"] for w in failed) < sum(w["observed"] for w in every) * 0.2
    require_as_before(kube)


def test_the_second_time_keda_is_there_and_both_metrics_are_compared(kube, make):
    rate = "32"
    first = demo(make, **RUN, HPA_METRIC="cpu", HPA_RATE=rate)
    second = demo(make, **RUN, HPA_METRIC="latency", HPA_RATE=rate)
    assert first.code == second.code == 0, first.output + second.output
    assert "installing KEDA" not in second.output
    result = make("hpa-compare", RUNS=f"{first.folder.name} {second.folder.name}")
    assert result.code == 0, result.output
    assert "pods by a p95 of failed ones only (the old histogram), at most" in result.output
    picture = first.folder.parent / f"compare-{first.folder.name}-{second.folder.name}" / "compare.png"
    assert picture.stat().st_size > 20_000
    require_as_before(kube)


def test_flux_does_not_undo_it(kube, following):
    before = scalers(kube)
    assert set(before) == {NAMES[HpaMetric.LATENCY]}
    asked = f"e2e-{time.monotonic_ns()}"
    flux_sync.request_reconcile(kube, asked)

    def pending() -> list[str]:
        found = {k["metadata"]["name"]: k for k in kube.list_custom("Kustomization", FLUX_NAMESPACE)}
        names = ("applications-sync", ENVIRONMENT)
        return [n for n in names if (found[n].get("status") or {}).get("lastHandledReconcileAt") != asked]

    wait_for("Flux has applied all of it again", pending, timeout_s=90)
    after = scalers(kube)
    assert {name: hpa["metadata"]["uid"] for name, hpa in after.items()} == {
        name: hpa["metadata"]["uid"] for name, hpa in before.items()
    }
    assert changes.not_following(facts.collect(kube, ENVIRONMENT)) == []


def wait_until_found(kube, kind: Kind, told: str, timeout_s: float = 90) -> None:
    def pending() -> list[str]:
        known = facts.collect(kube, ENVIRONMENT)
        assert known is not None and metric_of(known.hpa) is HpaMetric.LATENCY
        found = [str(r) for r in reasons.explain(known)]
        return [] if any(r.startswith(f"{kind}: ") and told in r for r in found) else [f"found: {found}"]

    wait_for(f"the autoscaler is kept by: {kind}", pending, timeout_s=timeout_s)


def test_without_the_external_metrics_api_it_says_so(kube, settings, make, following):
    with on_hold(kube, settings, "keda-sync"):
        kube.kubectl("delete", "apiservice", facts.EXTERNAL_API)
        wait_until_found(kube, Kind.EXTERNAL_API, "there is no KEDA")
        result = make("hpa-status", ENV=ENVIRONMENT)
    assert result.code != 0
    assert f"{ENVIRONMENT}: external metrics API absent: the cluster has no API" in result.output
    wait_for("KEDA serves again", lambda: keda.pending(kube), timeout_s=180)


def test_a_histogram_that_prometheus_does_not_have_is_named(kube, settings, make, following):
    with on_hold(kube, settings, ENVIRONMENT):
        lost = [{"op": "replace", "path": "/spec/triggers/0/metadata/query", "value": "app_no_such_metric"}]
        patch(kube, ENVIRONMENT, ("scaledobject", APP_NAME), lost)
        wait_until_found(kube, Kind.NO_LATENCY, "Prometheus has no data of staging's histogram")
        result = make("hpa-status", ENV=ENVIRONMENT)
    assert result.code != 0
    assert "latency unknown: Prometheus has no data" in result.output


def test_a_scaled_object_that_is_not_ready_is_named(kube, settings, following):
    with on_hold(kube, settings, ENVIRONMENT):
        patch(kube, ENVIRONMENT, ("scaledobject", APP_NAME), {"spec": {"scaleTargetRef": {"name": "nothing"}}})
        wait_for(
            "KEDA says so",
            lambda: [] if condition(scaled(kube)).get("status") == "False" else ["still Ready"],
            timeout_s=60,
        )
        told = condition(scaled(kube))["message"]
    assert "ScaledObject" in told or "not found" in told


def scaled(kube) -> dict:
    return kube.get(f"/apis/keda.sh/v1alpha1/namespaces/{ENVIRONMENT}/scaledobjects/{APP_NAME}")


def test_what_a_killed_run_left_is_put_back_by_the_next(kube, make):
    kube.apply([changes.latency_changes(ENVIRONMENT, BOUNDS)], changes.MANAGER)
    wait_for("it follows", lambda: changes.not_following(facts.collect(kube, ENVIRONMENT)), timeout_s=120)
    done = demo(make, ENV=ENVIRONMENT, HPA_DURATION="30", WAIT_SCALE_IN="0")
    assert f"a run that was killed left {ENVIRONMENT} changed" in done.output
    assert done.data["run"]["metric"] == "cpu"
    require_as_before(kube)


def test_keda_goes_when_it_is_asked_to_and_comes_again(kube, make):
    assert keda.is_installed(kube)
    with changes.made(kube, LATENCY, BOUNDS):
        refused = make("keda-remove")
        assert refused.code != 0 and f"KEDA is in use: {ENVIRONMENT}/{APP_NAME}" in refused.output
    assert make("keda-remove").code == 0
    assert KEDA_NAMESPACE not in {n.metadata.name for n in kube.call(kube.core.list_namespace).items}
    again = make("keda-remove")
    assert again.code == 0 and "KEDA is not installed" in again.output
