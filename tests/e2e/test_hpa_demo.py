"""Autoscaling on the live lab: a run from 2 pods to 3 and more and back; and what keeps it, by breaking one thing each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from scripts import bench, deploy, load
from scripts.hpa import facts, reasons
from scripts.hpa.reasons import Kind
from scripts.hpa.report import REPORTS, SERIES
from scripts.process import run
from scripts.settings import APP_NAME, FLUX_NAMESPACE, ROOT
from scripts.waiting import wait_for

HPA = ("hpa", APP_NAME)
APP = ("deployment", APP_NAME)
QUOTA = ("quota", "demo")
METRICS_SERVER = ("deployment", "metrics-server")


@contextlib.contextmanager
def on_hold(kube, settings, *kustomizations: str) -> Iterator[None]:
    """Keep Flux from mending what a test breaks; afterwards it mends all of it."""
    for name in kustomizations:
        kube.patch_custom("Kustomization", FLUX_NAMESPACE, name, {"spec": {"suspend": True}})
    try:
        yield
    finally:
        for name in kustomizations:
            kube.patch_custom("Kustomization", FLUX_NAMESPACE, name, {"spec": {"suspend": None}})
        deploy.reconcile(settings)


def patch(kube, namespace: str, what: tuple[str, str], change: object) -> None:
    """Patch an object: a list is a JSON patch, a dictionary is merged."""
    kind = "json" if isinstance(change, list) else "merge"
    kube.kubectl("--namespace", namespace, "patch", *what, "--type", kind, "--patch", json.dumps(change))


def found(kube, environment: str) -> list[reasons.Reason]:
    known = facts.collect(kube, environment)
    assert known is not None
    return reasons.explain(known)


def wait_until_found(kube, environment: str, kind: Kind, timeout_s: float = 60) -> None:
    def pending() -> list[str]:
        seen = found(kube, environment)
        return [] if any(r.kind is kind for r in seen) else [f"found: {[str(r) for r in seen]}"]

    wait_for(f"{environment}'s autoscaler is kept by: {kind}", pending, timeout_s=timeout_s)


def wait_until_free(kube, environment: str, timeout_s: float = 120) -> None:
    wait_for(
        f"nothing keeps {environment}'s autoscaler",
        lambda: [str(r) for r in found(kube, environment)],
        timeout_s=timeout_s,
    )


@dataclass(frozen=True)
class Break:
    """One thing to break in dev, and what has to be said of it."""

    kind: Kind
    namespace: str
    what: tuple[str, str]
    change: object
    back: object
    told: str
    mend: str
    more: tuple[tuple[tuple[str, str], object, object], ...] = ()  # what has to give way for it


BREAKS = [
    Break(
        Kind.TARGET_MISSING, "dev", HPA, {"spec": {"scaleTargetRef": {"name": "nothing"}}},
        {"spec": {"scaleTargetRef": {"name": APP_NAME}}}, "there is no Deployment nothing in dev", "scaleTargetRef",
    ),
    Break(
        Kind.QUOTA, "dev", HPA, {"spec": {"minReplicas": 2}}, {"spec": {"minReplicas": 1}},
        "exceeded quota: demo", "dev/resourcequota.yaml",
        more=((QUOTA, {"spec": {"hard": {"pods": "1"}}}, {"spec": {"hard": {"pods": "10"}}}),),
    ),
    Break(
        Kind.UNSCHEDULABLE, "dev", APP, {"spec": {"template": {"spec": {"nodeSelector": {"e2e": "nowhere"}}}}},
        {"spec": {"template": {"spec": {"nodeSelector": None}}}}, "fits on no node", "uncordon",
    ),
    pytest.param(
        Break(
            Kind.DISABLED, "dev", APP, {"spec": {"replicas": 0}}, {"spec": {"replicas": 1}},
            "set to 0 replicas", "--replicas=1",
        ),
        marks=pytest.mark.long,
    ),
]  # fmt: skip


@pytest.fixture(scope="class")
def dev_on_hold(kube, settings):
    with on_hold(kube, settings, "dev"):
        yield


@pytest.mark.usefixtures("dev_on_hold")
class TestStatus:
    @pytest.mark.parametrize("broken", BREAKS, ids=lambda b: str(b.kind))
    def test_it_says_what_keeps_the_autoscaler(self, kube, make, broken):
        require_status_tells(kube, make, broken)


def require_status_tells(kube, make, broken: Break, timeout_s: float = 60) -> None:
    try:
        for what, change, _ in broken.more:
            patch(kube, broken.namespace, what, change)
        patch(kube, broken.namespace, broken.what, broken.change)
        wait_until_found(kube, "dev", broken.kind, timeout_s)
        result = make("hpa-status", ENV="dev")
    finally:
        patch(kube, broken.namespace, broken.what, broken.back)
        for what, _, back in broken.more:
            patch(kube, broken.namespace, what, back)
    assert f"dev: {broken.kind}: " in result.output
    assert broken.told in result.output
    assert broken.mend in result.output
    assert (result.code == 0) == (broken.kind not in reasons.FAULTS), result.output


def test_without_the_metrics_api_status_says_so_and_a_demo_is_refused(kube, settings, make):
    with on_hold(kube, settings, "metrics-server-sync"):
        kube.kubectl("delete", "apiservice", facts.METRICS_API)
        wait_until_found(kube, "dev", Kind.METRICS_API)
        result = make("hpa-status", ENV="dev")
        demo = make("hpa-demo", ENV="dev")
    assert result.code != 0
    assert "metrics API absent: the cluster has no API v1beta1.metrics.k8s.io" in result.output
    assert "make reconcile" in result.output
    assert demo.code != 0
    assert "The autoscaler of dev can't scale: metrics API absent" in demo.output
    assert "the load begins" not in demo.output
    wait_until_free(kube, "dev")


@pytest.mark.long
def test_a_pod_too_young_for_metrics_is_waited_for_not_mended(kube, make):
    kube.kubectl(
        "--namespace", "dev", "delete", "pod", "--selector", f"app.kubernetes.io/name={APP_NAME}", "--wait=false"
    )
    wait_until_found(kube, "dev", Kind.NO_METRICS)
    result = make("hpa-status", ENV="dev")
    assert result.code == 0, result.output
    assert re.search(r"metrics not there yet: the pods are \d+ s old", result.output), result.output


# --- what takes minutes


@dataclass(frozen=True)
class Demo:
    code: int
    output: str
    folder: Path
    data: dict


def newest(before: set[Path]) -> Path:
    (folder,) = {p.parent for p in REPORTS.glob(f"*/{SERIES}")} - before
    return folder


def demo(make, **variables: str) -> Demo:
    before = {p.parent for p in REPORTS.glob(f"*/{SERIES}")}
    result = make("hpa-demo", **variables)
    assert {p.parent for p in REPORTS.glob(f"*/{SERIES}")} - before, f"it ran nothing:\n{result.output}"
    folder = newest(before)
    return Demo(result.code, result.output, folder, json.loads((folder / SERIES).read_text()))


def seconds_of(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def rescales(kube, environment: str, since: float) -> list[tuple[int, float, str]]:
    """Return size, time and message of the API server's rescale events."""
    events = kube.events(environment, limit=500)
    mine = [e for e in events if e["reason"] == "SuccessfulRescale" and seconds_of(e["lastTimestamp"]) >= since - 1]
    return [(int(re.findall(r"\d+", e["message"])[0]), seconds_of(e["lastTimestamp"]), e["message"]) for e in mine]


@pytest.mark.long
def test_a_run_scales_staging_out_and_back_and_its_figures_are_the_api_servers(kube, make):
    done = demo(make, ENV="staging", HPA_DURATION="75")
    assert done.code == 0, done.output
    began, moments = seconds_of(done.data["run"]["load_began"]), done.data["moments"]
    events = rescales(kube, "staging", began)
    sizes = [size for size, _, _ in events]
    assert done.data["replicas"]["lowest"] == 2
    assert 3 <= done.data["replicas"]["highest_ready"] <= 5
    assert done.data["replicas"]["highest_desired"] == max(sizes)
    assert sizes[-1] == 2

    # The events in the JSON are those of the API server, to the second.
    told = {(e["message"], seconds_of(e["last"])) for e in done.data["events"] if e["reason"] == "SuccessfulRescale"}
    assert {(message, at) for _, at, message in events} <= told
    assert moments["decision"] == pytest.approx(min(at for _, at, _ in events) - began, abs=2)
    assert moments["at_minimum"] == pytest.approx(max(at for _, at, _ in events) - began, abs=3)

    # So are the pods: each new one was made by the ReplicaSet at that time.
    made = {
        e["message"].rpartition(" ")[2]: seconds_of(e["lastTimestamp"])
        for e in kube.events("staging", limit=500)
        if e["reason"] == "SuccessfulCreate" and e["involvedObject"]["kind"] == "ReplicaSet"
    }
    new = [p for p in done.data["pods"] if p["created"] > 0]
    assert new
    for pod in new:
        assert pod["created"] == pytest.approx(made[pod["name"]] - began, abs=2), pod
    assert len({p["node"] for p in done.data["pods"]}) == 2, "the pods are on both workers"

    assert done.data["requests"]["failed"] == 0
    assert sum(s["sent"] for s in done.data["seconds"]) == done.data["requests"]["total"]
    assert moments["new_ready"] <= 45, done.output
    assert moments["at_minimum"] - moments["load_ended"] <= 90, done.output
    # While it scaled in, the window's seconds were told, and they went down.
    left = [int(s) for s in re.findall(r"stabilising for (\d+) s", done.output)]
    assert left and min(left) < max(left) <= 30
    assert {p.name for p in done.folder.iterdir()} >= {"index.html", "overview.png", "pods.png", "summary.md"}


@pytest.mark.long
def test_a_run_that_a_quota_blocks_says_so(kube, settings, make):
    with on_hold(kube, settings, "staging"):
        patch(kube, "staging", QUOTA, {"spec": {"hard": {"pods": "2"}}})
        try:
            done = demo(make, ENV="staging", HPA_DURATION="45", WAIT_SCALE_IN="0")
        finally:
            patch(kube, "staging", QUOTA, {"spec": {"hard": {"pods": "10"}}})
    assert done.code != 0
    assert re.search(
        r"✘ scaled out: quota: exceeded quota: demo, .*To mend it: raise it in .*staging/resourcequota", done.output
    )
    assert done.data["replicas"]["highest_desired"] > 2 == done.data["replicas"]["highest_ready"]
    assert any("exceeded quota" in o for o in done.data["obstacles"])


@pytest.mark.long
def test_an_interrupted_run_stops_its_load_at_once_and_still_has_its_report(settings):
    before = {p.parent for p in REPORTS.glob(f"*/{SERIES}")}
    process = subprocess.Popen(
        ["make", "--no-print-directory", "-C", str(ROOT), "-o", ".venv/.complete", "hpa-demo", "ENV=dev", "HPA_DURATION=300"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, **bench.environment_of(settings)},
    )  # fmt: skip
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if re.search(r"\+ *1\d\.\d s load \|", line):
            break
    # As Ctrl-C does: to make and to all that it started.
    os.killpg(process.pid, signal.SIGINT)
    started = time.monotonic()
    lines += process.stdout.readlines()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - started < 30
    output = "".join(lines)
    assert "interrupted: the load is stopped, the report follows" in output
    data = json.loads((newest(before) / SERIES).read_text())
    assert data["run"]["interrupted"] is True
    assert 5 < data["moments"]["load_ended"] < 60
    assert data["requests"]["sent_in_load"] > 0
    assert (newest(before) / "index.html").exists()
    assert "vegeta attack" not in run(["ps", "-eo", "args"], timeout_s=10).stdout


@pytest.mark.long
def test_an_autoscaler_at_its_maximum_says_so(kube, settings, make):
    with on_hold(kube, settings, "dev"):
        patch(kube, "dev", HPA, {"spec": {"maxReplicas": 2}})
        try:
            with load.attack(settings, "dev", "/work?cpu_ms=20", 12, 120) as attack:
                wait_until_found(kube, "dev", Kind.AT_MAXIMUM, timeout_s=90)
                result = make("hpa-status", ENV="dev")
                attack.finish(after_s=0)
        finally:
            patch(kube, "dev", HPA, {"spec": {"maxReplicas": 5}})
    assert result.code == 0, result.output
    assert re.search(
        r"dev: at maximum: it has its 2 pods, with CPU at \d+ % of the request where 70 % is the target", result.output
    )
    assert "raise maxReplicas" in result.output


@pytest.mark.long
def test_kubelet_certificates_that_metrics_server_does_not_trust_are_named(kube, settings, make):
    server = kube.to_dict(kube.call(kube.apps.read_namespaced_deployment, "metrics-server", facts.METRICS_NAMESPACE))
    args = server["spec"]["template"]["spec"]["containers"][0]["args"]
    index = args.index("--kubelet-insecure-tls")
    where = "/spec/template/spec/containers/0/args"
    # With a rolling update the old pod would go on serving.
    recreate = [{"op": "replace", "path": "/spec/strategy", "value": {"type": "Recreate"}}]
    broken = Break(
        Kind.KUBELET_CERTIFICATE, facts.METRICS_NAMESPACE, METRICS_SERVER,
        [*recreate, {"op": "remove", "path": f"{where}/{index}"}],
        [
            {"op": "replace", "path": "/spec/strategy", "value": server["spec"]["strategy"]},
            {"op": "replace", "path": where, "value": args},
        ],
        "does not trust the kubelets' certificates", "--kubelet-insecure-tls",
    )  # fmt: skip
    with on_hold(kube, settings, "metrics-server-sync"):
        require_status_tells(kube, make, broken, timeout_s=120)
    wait_until_free(kube, "dev", timeout_s=180)


@pytest.mark.long
def test_pods_without_a_cpu_request_are_named(kube, settings, make):
    """The environment's defaults have to give way first: they give a pod a request that has none of its own."""
    limits = ("limitrange", "demo")
    requests = "/spec/template/spec/containers/0/resources"
    no_default = [{"op": "remove", "path": "/spec/limits/0/defaultRequest/cpu"}]
    default = [{"op": "add", "path": "/spec/limits/0/defaultRequest/cpu", "value": "25m"}]
    broken = Break(
        Kind.NO_CPU_REQUEST, "dev", APP,
        [{"op": "remove", "path": f"{requests}/requests/cpu"}, {"op": "remove", "path": f"{requests}/limits/cpu"}],
        [
            {"op": "add", "path": f"{requests}/requests/cpu", "value": "50m"},
            {"op": "add", "path": f"{requests}/limits/cpu", "value": "500m"},
        ],
        "container app of its pods has no CPU request", "resources.requests.cpu",
        more=(
            (QUOTA, [{"op": "remove", "path": "/spec/hard/requests.cpu"}],
             [{"op": "add", "path": "/spec/hard/requests.cpu", "value": "500m"}]),
            (limits, no_default, default),
        ),
    )  # fmt: skip
    with on_hold(kube, settings, "dev"):
        require_status_tells(kube, make, broken, timeout_s=120)
    wait_until_free(kube, "dev", timeout_s=180)


@pytest.mark.long
@pytest.mark.parametrize("profile", ["ramp", "step", "spike"])
def test_every_profile_scales_dev_out_and_fails_no_request(make, profile):
    done = demo(make, ENV="dev", HPA_DURATION="90", HPA_PROFILE=profile, WAIT_SCALE_IN="0")
    assert done.code == 0, done.output
    rates = [stage["rate"] for stage in done.data["run"]["stages"]]
    assert len(set(rates)) > 1 and max(rates) == done.data["run"]["peak_rate"]


@pytest.mark.long
def test_two_runs_are_compared_in_a_table_and_a_picture(make):
    runs: Sequence[Demo] = [
        demo(make, ENV="dev", HPA_DURATION="45", HPA_RATE=rate, WAIT_SCALE_IN="0") for rate in ("6", "9")
    ]
    result = make("hpa-compare")
    assert result.code == 0, result.output
    assert re.search(r"peak rate +6/s +9/s +\+3/s \(\+50 %\)", result.output), result.output
    folder = REPORTS / f"compare-{runs[0].folder.name}-{runs[1].folder.name}"
    assert (folder / "compare.png").stat().st_size > 10_000
