"""Bring a lab back after a reboot or an engine restart: the same cluster, the same state.

What is known to go wrong with a multi-node kind cluster: nodes come back under each other's addresses, the
kubeconfig points nowhere, side containers have moved. Each is looked at and mended; nothing is created anew.
"""

from __future__ import annotations

import json
import os
import time

from scripts import cluster, console, flux, flux_sync, git, reasons, setup, sidecars
from scripts.cache import lock, now_iso
from scripts.docker import container_state, docker
from scripts.engine import ensure_engine
from scripts.errors import LabError
from scripts.hpa.sampling import METRICS_GROUP
from scripts.kube import Kube
from scripts.reasons import explain_now
from scripts.settings import Settings
from scripts.snapshot import collect, full_name
from scripts.waiting import wait_for

API_TIMEOUT_S = 240
SIDECARS_TIMEOUT_S = 240
# metrics-server has to measure twice before the autoscalers know anything again.
METRICS_TIMEOUT_S = 180


def resume(settings: Settings) -> int:
    """Start what stands still, mend addresses, and wait until the lab is as it was."""
    if not settings.owns_cluster:
        raise LabError(
            "resume brings the embedded cluster back, and KUBE_CONTEXT names another.", "start that one yourself"
        )
    started = time.monotonic()
    with lock(settings.state_dir / "setup.lock", "this lab"), console.Board() as board:
        with board.task("engine"):
            engine = ensure_engine(settings)
        console.done("engine", time.monotonic() - started, engine.what)
        nodes = cluster.node_containers(settings)
        if len(nodes) != setup.NODES:
            raise LabError(f"There is no whole lab {settings.cluster_name} to bring back.", "make setup-all")
        with board.task("containers"):
            began = time.monotonic()
            woken = _start_containers(settings, nodes)
        console.done(
            "containers", time.monotonic() - began, f"started {', '.join(woken)}" if woken else "all are running"
        )
        with board.task("cluster"):
            began = time.monotonic()
            mended = _mend_cluster(settings)
        console.done("cluster", time.monotonic() - began, ", ".join(mended) or "nothing had to be mended")
        with board.task("waiting"):
            began = time.monotonic()
            kube = Kube(settings.context, settings.tools_dir / "kubectl")
            credentials = git.credentials(settings, os.environ)
            flux.ensure_bootstrap(settings, kube, cluster.network_subnet(settings), credentials)
            if settings.owns_git:
                flux.connect_git_server(settings, kube)
            flux_sync.request_reconcile(kube, now_iso())
            ready = flux_sync.wait_until_ready(settings, kube, setup.READY_TIMEOUT_S, lambda: explain_now(kube))
            wait_for("every pod is Ready", lambda: cluster.not_ready_pods(kube), timeout_s=180, interval_s=0.5)
            checked = setup.wait_for_endpoints(settings, kube)
            wait_for(
                "every autoscaler has its figures",
                lambda: _without_figures(kube),
                timeout_s=METRICS_TIMEOUT_S,
                interval_s=0.5,
                mend="`make status` shows why",
            )
        console.done("lab", time.monotonic() - began, f"{ready} Kustomizations Ready, {checked} endpoints answer")
    return 0


def _without_figures(kube: Kube) -> list[str]:
    """Return the autoscalers that can't know anything yet: what they say may still be from before."""
    from kubernetes.client import ApiException

    scalers = collect(kube).autoscalers
    try:
        pods = json.loads(kube.get_text(f"/apis/{'/'.join(METRICS_GROUP)}/pods"))["items"]
    except ApiException as error:
        return [f"metrics-server does not answer yet (HTTP {error.status})"] if scalers else []
    measured = {pod["metadata"]["namespace"] for pod in pods}
    lines = []
    for scaler in scalers:
        problem = reasons.autoscaler_problem(scaler)
        if scaler["metadata"]["namespace"] not in measured:
            lines.append(f"HPA {full_name(scaler)}: none of its pods is measured yet")
        elif "metrics" in problem:
            lines.append(f"HPA {full_name(scaler)}: {problem}")
    return lines


def _start_containers(settings: Settings, nodes: list[str]) -> list[str]:
    """Start the control plane before the workers: in the order of creation each gets its old address back."""
    order = [settings.control_plane, *(n for n in nodes if n != settings.control_plane)]
    beside = [settings.registry_container, *([settings.git_container] if settings.owns_git else [])]
    woken = []
    for name in [*order, *beside]:
        state = container_state(name)
        if not state:
            raise LabError(f"The container {name} is gone.", "make setup-all makes it anew")
        if state == "paused":
            docker("unpause", name)
            woken.append(name)
        elif state != "running":
            docker("start", name, timeout_s=120)
            woken.append(name)
    # A container that was just started does not answer yet. After an engine was killed the kernel takes the network of the
    # containers that died with it down in its own time: until then (100 s were seen) two may have one address.
    sidecars.wait_for_registry(settings, SIDECARS_TIMEOUT_S)
    if settings.owns_git:
        sidecars.wait_for_git_server(settings, SIDECARS_TIMEOUT_S)
    return woken


def _mend_cluster(settings: Settings) -> list[str]:
    kind = settings.tools_dir / "kind"
    cluster.export_kubeconfig(settings, kind)
    kube = Kube(settings.context, settings.tools_dir / "kubectl")
    wait_for(
        "the API server answers",
        lambda: [] if kube.is_up() else ["the API server is not ready"],
        timeout_s=API_TIMEOUT_S,
        mend=f"docker logs {settings.control_plane}; if nothing helps: make teardown, make setup-all (Git data is kept)",
    )
    mended = []
    # A kubelet reports the address it had when it started; one that came back under another must start again.
    addresses = cluster.engine_addresses(settings)
    for node in kube.call(kube.core.list_node).items:
        reported = next((a.address for a in node.status.addresses if a.type == "InternalIP"), "")
        if reported != addresses.get(node.metadata.name):
            docker("exec", node.metadata.name, "systemctl", "restart", "kubelet")
            mended.append(f"{node.metadata.name}: {reported} -> {addresses.get(node.metadata.name)}")

    def moved() -> list[str]:
        now = cluster.engine_addresses(settings)
        lines = []
        for node in kube.call(kube.core.list_node).items:
            reported = next((a.address for a in node.status.addresses if a.type == "InternalIP"), "")
            if reported != now.get(node.metadata.name):
                lines.append(f"node {node.metadata.name} still reports {reported}")
        return lines

    wait_for("every node reports its address", moved, timeout_s=90, interval_s=1)
    cluster.wire_registry(settings)
    cluster.label_workers(kube)
    cluster.wait_for_nodes(kube, setup.NODES)
    return mended
