"""`make bench`: what the lab is measured by. Ratios come from one run on one machine; JSON and a table.

The bare cluster that setup is compared with has the same node image and configuration, a name of its own, and is
removed again. Pushes come from a clone of the bench's own; the Git server's branches are set back at the end.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scripts import cluster, console, flux_sync, git, setup, teardown
from scripts import provide as providing
from scripts.bench_measure import Measure
from scripts.deploy import lab_kube
from scripts.docker import containers_with_label, docker, engine_info, memory_of
from scripts.errors import LabError, NotReadyError
from scripts.kube import Kube
from scripts.monitoring import mode
from scripts.process import run
from scripts.settings import (
    APP_NAME,
    KIND_CLUSTER_LABEL,
    MAIN_BRANCH,
    OVERLAYS,
    OWNER_LABEL,
    ROOT,
    Monitoring,
    Settings,
)
from scripts.sidecars import restore_branches
from scripts.versions import Versions
from scripts.waiting import wait_for

PUSHES = 30
PUSH_TIMEOUT_S = 60
BARE_TIMEOUT_S = 300
GOALS = {
    "setup_over_bare": 2.0,
    "second_run_s": 10.0,
    "push_p50_s": 0.5,
    "push_p95_s": 0.8,
    "memory_gib": 2.0,
    "memory_with_monitoring_gib": 3.0,
}


def bench(settings: Settings, versions: Versions) -> int:
    """Measure what BENCH names (setup, push, memory, check; default all) and print it; the lab is left running."""
    wanted = (os.environ.get("BENCH", "") or "push,memory,check,setup").split(",")
    unknown = set(wanted) - {"setup", "push", "memory", "check"}
    if unknown:
        raise LabError(f"BENCH={','.join(wanted)} is not known.", "take some of: setup, push, memory, check")
    measures: list[Measure] = []
    details: dict[str, Any] = {}
    if "setup" in wanted:
        found, details["setup"] = measure_setup(settings, versions)
        measures += found
    if "push" in wanted:
        found, details["push"] = measure_pushes(settings)
        measures += found
    if "memory" in wanted:
        found, details["memory"] = measure_memory(settings)
        measures += found
    if "check" in wanted:
        from scripts.check.bench_check import measure_check

        peers = os.environ.get("PEERS", "")
        found, details["check"] = measure_check(settings, Path(peers).resolve() if peers else None)
        measures += found
    console.table(
        "Measures",
        ["measure", "value", "goal", ""],
        [[m.name, f"{m.value:.2f} {m.unit}", f"<= {m.goal} {m.unit}" if m.goal else "", m.verdict] for m in measures],
    )
    report = ROOT / "reports" / "bench.json"
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps({"measures": [asdict(m) for m in measures], "details": details}, indent=2) + "\n")
    console.line(f"JSON: {report.relative_to(ROOT)}")
    return 0


def measure_setup(settings: Settings, versions: Versions) -> tuple[list[Measure], dict[str, Any]]:
    """Time setup-all from nothing (caches warm) over a bare cluster, then setup-all on the running lab."""
    source, _ = providing.choose_source(settings)
    provided, _ = providing.provide(settings, versions, source, settings.state_dir / "logs")
    if cluster.node_containers(settings):
        teardown.teardown(settings, teardown.Purge.NOTHING)
    bare = _time_bare(settings, provided)
    console.line(f"bare kind create cluster until all pods are Ready: {bare:.1f} s")
    lab = _time_setup(settings)
    second = _time_setup(settings)
    return (
        [
            Measure("bare kind cluster, all pods Ready", bare, None, "s"),
            Measure("setup-all, caches warm", lab, None, "s"),
            Measure("setup-all over bare", lab / bare, GOALS["setup_over_bare"], "x"),
            Measure("setup-all again", second, GOALS["second_run_s"], "s"),
        ],
        {"bare_s": bare, "setup_s": lab, "second_s": second},
    )


def _time_setup(settings: Settings) -> float:
    """Run setup-all as a user does, in a process of its own."""
    started = time.monotonic()
    run([sys.executable, "-m", "scripts", "setup-all"], timeout_s=1200, cwd=ROOT, env=environment_of(settings))
    return time.monotonic() - started


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the variables that make a command use these settings."""
    return {
        "CLUSTER_NAME": settings.cluster_name,
        "EDGE_PORT": str(settings.edge_port),
        "REGISTRY_PORT": str(settings.registry_port),
        "GIT_PORT": str(settings.git_port),
        "GIT_REMOTE": settings.git_remote,
        "IMAGE_SOURCE": str(settings.image_source),
        "EDGE": str(settings.edge),
        "MONITORING": str(settings.monitoring),
    }


def _time_bare(settings: Settings, provided: providing.Provided) -> float:
    bare = replace(settings, cluster_name=f"{settings.cluster_name[:34]}-bare")
    cgroup_v1 = str((engine_info() or {}).get("CgroupVersion", "2")) == "1"
    kind = provided.tool("kind")
    if cluster.node_containers(bare):
        cluster.delete_cluster(bare, kind)
    cluster.ensure_network(bare)
    try:
        started = time.monotonic()
        cluster.ensure_cluster(bare, kind, provided.node_image, cgroup_v1)
        kube = Kube(bare.context, provided.tool("kubectl"))
        wait_for(
            "every pod of the bare cluster is Ready",
            lambda: cluster.not_ready_nodes(kube, setup.NODES) or cluster.not_ready_pods(kube),
            timeout_s=BARE_TIMEOUT_S,
            interval_s=0.3,
        )
        return time.monotonic() - started
    finally:
        cluster.delete_cluster(bare, kind)
        docker("network", "rm", bare.network)


def measure_pushes(settings: Settings, count: int = PUSHES) -> tuple[list[Measure], dict[str, Any]]:
    """Time pushes of dev's configuration, from the start of `git push` to the changed object in the API."""
    kube = lab_kube(settings)
    if not settings.owns_git:
        raise LabError("Pushes are measured on the lab's own Git server only.", "leave GIT_URL out")
    before = git.remote_branches(settings)
    times: list[float] = []
    push_times: list[float] = []
    with tempfile.TemporaryDirectory(prefix="gitops-lab-bench-") as folder:
        clone = Path(folder) / "clone"
        git.git("clone", "--quiet", "--branch", MAIN_BRANCH, settings.git_push_url, clone, timeout_s=60)
        configure_author(clone)
        # An annotation of dev's HPA: it changes no pod, so that only the path from push to object is measured.
        marker = Marker(clone, kube)
        try:
            for number in range(count):
                marker.write(str(number))
                begun = time.monotonic()
                git.git("push", "--quiet", "origin", f"HEAD:{MAIN_BRANCH}", timeout_s=60, root=clone)
                pushed = time.monotonic()
                marker.wait(str(number))
                times.append(time.monotonic() - begun)
                push_times.append(pushed - begun)
                console.note(f"push {number + 1}/{count}: {times[-1]:.3f} s")
        finally:
            flux_sync.settle_sources(kube, git.remote_branches(settings))
            restore_branches(settings, before)
            flux_sync.settle_sources(kube, before)
    p50, p95 = statistics.median(times), percentile(times, 95)
    return (
        [
            Measure(f"push to changed object, p50 of {count}", p50, GOALS["push_p50_s"], "s"),
            Measure(f"push to changed object, p95 of {count}", p95, GOALS["push_p95_s"], "s"),
            Measure("of it `git push` itself, p50", statistics.median(push_times), None, "s"),
        ],
        {"times_s": times, "push_times_s": push_times},
    )


class Marker:
    """A value in dev's overlay that shows up as an annotation of dev's HPA."""

    KEY = "gitops-lab/bench"

    def __init__(self, clone: Path, kube: Kube) -> None:
        self._clone = clone
        self._kube = kube
        self._overlay = clone / OVERLAYS.relative_to(ROOT) / "dev" / "kustomization.yaml"
        self._original = self._overlay.read_text()

    def write(self, value: str) -> None:
        """Commit the value in the clone."""
        patch = (
            "\n- target: {kind: HorizontalPodAutoscaler}\n"
            "  patch: |-\n"
            "    apiVersion: autoscaling/v2\n    kind: HorizontalPodAutoscaler\n    metadata:\n"
            f'      name: {APP_NAME}\n      annotations: {{{self.KEY}: "{value}"}}\n'
        )
        assert "\npatches:" in self._original
        self._overlay.write_text(self._original.replace("\npatches:", f"\npatches:{patch.rstrip()}", 1))
        git.git("commit", "--quiet", "--all", "--message", f"Bench: marker {value}", root=self._clone)

    def wait(self, value: str) -> None:
        """Wait until the API server has the value; a watch, since polling would load what is measured."""
        from kubernetes import watch

        stream = watch.Watch().stream(  # type: ignore[no-untyped-call]
            self._kube.autoscaling.list_namespaced_horizontal_pod_autoscaler,
            "dev",
            field_selector=f"metadata.name={APP_NAME}",
            timeout_seconds=PUSH_TIMEOUT_S,
        )
        for event in stream:
            if (event["object"].metadata.annotations or {}).get(self.KEY) == value:
                return
        raise NotReadyError(f"marker {value} was not live after {PUSH_TIMEOUT_S} s", "make status")


def configure_author(clone: Path) -> None:
    """Let commits in a scratch clone work on a machine without a Git identity."""
    git.git("config", "user.name", "GitOps lab", root=clone)
    git.git("config", "user.email", "lab@localhost.invalid", root=clone)


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile by the nearest-rank method."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, max(0, round(percent / 100 * len(ranked) + 0.5) - 1))]


def measure_memory(settings: Settings) -> tuple[list[Measure], dict[str, Any]]:
    """Sum the memory of all containers of the lab."""
    names = containers_with_label(f"{KIND_CLUSTER_LABEL}={settings.cluster_name}")
    names += containers_with_label(f"{OWNER_LABEL}={settings.cluster_name}")
    if not names:
        raise LabError("There is no lab whose memory could be measured.", "make setup-all")
    uses = memory_of(names)
    total = sum(u.bytes_used for u in uses) / 1024**3
    monitoring = mode.in_lab(settings)
    goal = GOALS["memory_gib" if monitoring is Monitoring.NONE else "memory_with_monitoring_gib"]
    return (
        [Measure(f"memory of all containers, monitoring {monitoring}", total, goal, "GiB")],
        {u.container: u.bytes_used for u in uses},
    )
