"""What takes minutes: setup killed in each step, an engine killed and started again, teardown to the last trace."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import requests

from scripts import bench, cluster, docker, engine, flux, git, setup, teardown
from scripts.kube import Kube
from scripts.settings import ROOT, environments
from scripts.waiting import wait_for

pytestmark = pytest.mark.long


def start_setup(settings, log) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["make", "--no-print-directory", "-C", str(ROOT), "setup-all"],
        stdin=subprocess.DEVNULL,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **bench.environment_of(settings)},
        start_new_session=True,
    )


def kill_whole_run(process: subprocess.Popen[str]) -> None:
    """SIGKILL to setup itself, not to what it started: that has to end by itself, or be found by the next run."""
    children = subprocess.run(
        ["pgrep", "-g", str(process.pid), "-f", "scripts setup-all"], capture_output=True, text=True, check=True
    )
    for pid in children.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    process.wait(timeout=30)


@pytest.mark.parametrize("step", range(1, 8))
def test_setup_killed_during_a_step_is_finished_by_the_next_run(settings, make, tmp_path, step):
    assert make("teardown").code == 0
    log = tmp_path / "setup.log"
    process = start_setup(settings, log)
    marker = f"{step}/7 {setup.STEPS[step - 1]}"

    def pending() -> list[str]:
        text = log.read_text() if log.exists() else ""
        if marker in text:
            return []
        assert process.poll() is None, text
        return [f"step {step} has not begun"]

    wait_for(f"step {step} has begun", pending, timeout_s=300, interval_s=0.01)
    kill_whole_run(process)
    assert process.returncode != 0
    result = make("setup-all")
    assert result.code == 0, result.output
    assert make("test-endpoints").code == 0


def test_a_killed_engine_comes_back_with_the_same_state(settings, kube, make):
    if not engine.started_by_setup(settings):
        pytest.fail("this test restarts the engine and may only touch one that setup started")
    before = {e: flux.app_deployment(kube, e)["spec"]["template"] for e in environments()}
    revisions = git.remote_branches(settings)
    record = engine.started_by_setup(settings)
    os.kill(record.pid, signal.SIGKILL)
    wait_for("the engine is gone", lambda: [] if not docker.engine_info() else ["it still answers"], timeout_s=30)
    result = make("resume")
    assert result.code == 0, result.output
    again = Kube(settings.context, settings.tools_dir / "kubectl")
    assert {e: flux.app_deployment(again, e)["spec"]["template"] for e in environments()} == before
    assert git.remote_branches(settings) == revisions
    # metrics-server has to measure twice before the autoscalers know anything again
    wait_for("status is healthy", lambda: [] if make("status").code == 0 else ["not healthy yet"], timeout_s=120)


def test_an_engine_stopped_by_make_comes_back_even_when_addresses_were_swapped(settings, make):
    if not engine.started_by_setup(settings):
        pytest.fail("this test restarts the engine and may only touch one that setup started")
    before = cluster.engine_addresses(settings)
    assert make("engine-stop").code == 0
    assert docker.engine_info() is None
    engine.ensure_engine(settings)
    # Start the nodes in the reverse order, so that the engine hands out other addresses than before.
    nodes = cluster.node_containers(settings)
    for node in nodes:
        docker.docker("stop", "--time", "5", node, timeout_s=60)
    for node in sorted(nodes, reverse=True):
        docker.docker("start", node, timeout_s=60)
    after = cluster.engine_addresses(settings)
    result = make("resume")
    assert result.code == 0, f"{before} -> {after}\n{result.output}"
    assert make("status").code == 0
    assert make("test-endpoints").code == 0


def test_teardown_leaves_nothing_behind_and_the_next_lab_has_the_same_git_history(settings, make):
    branches = git.remote_branches(settings)
    other = docker.docker("network", "ls", "--format", "{{.Name}}").stdout.split()
    result = make("teardown")
    assert result.code == 0, result.output
    assert cluster.node_containers(settings) == []
    assert docker.container_state(settings.registry_container) == ""
    assert docker.container_state(settings.git_container) == ""
    assert docker.inspect("network", settings.network) is None
    assert set(other) - set(docker.docker("network", "ls", "--format", "{{.Name}}").stdout.split()) == {
        settings.network
    }
    assert cluster.context_server(settings.context) == ""
    assert git.git("remote", "get-url", settings.git_remote, check=False).exit_code != 0
    assert teardown.is_down(settings)
    assert make("teardown").code == 0
    assert make("setup-all").code == 0
    assert git.remote_branches(settings) == branches


def test_a_lab_without_an_edge_answers_through_port_forwards(settings, make):
    """And it begins without a history: PURGE=volumes took that away."""
    assert docker.inspect("volume", settings.git_volume)
    assert make("teardown", PURGE="volumes").code == 0
    assert docker.inspect("volume", settings.git_volume) is None
    assert docker.inspect("volume", settings.registry_volume) is None
    try:
        result = make("setup-all", EDGE="none")
        assert result.code == 0, result.output
        endpoints = make("test-endpoints", EDGE="none")
        assert endpoints.code == 0, endpoints.output
        kube = Kube(settings.context, settings.tools_dir / "kubectl")
        names = {k["metadata"]["name"] for k in kube.list_custom("Kustomization", "flux-system")}
        assert "edge-sync" not in names
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{settings.edge_port}/", timeout=5)
    finally:
        assert make("teardown").code == 0
        assert make("setup-all").code == 0


def test_a_failing_setup_names_the_deepest_cause_and_a_diagnostics_folder(settings, make, clone):
    """Break what a node needs, and see setup say so rather than "timed out"."""
    started = time.monotonic()
    clone.edit("flux-cd/infrastructure/_components/metrics-server/deployment.yaml", ":v0.9.0", ":v0.0.0-missing")
    clone.commit("Test: an image that does not exist")
    clone.push()
    result = make("diagnose")
    assert result.code == 0, result.output
    folder = re.search(r"diagnostics: (\S+)", result.output)[1]
    assert (Path(folder) / "summary.txt").is_file()
    assert time.monotonic() - started < 300
    assert json.loads((settings.state_dir / "timings.jsonl").read_text().splitlines()[-1])
