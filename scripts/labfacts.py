"""What is there of this lab and of others already, gathered for preflight's checks."""

from __future__ import annotations

import json
import os
import platform
import shutil

from scripts import cluster, hostfacts, preflight
from scripts.docker import containers_with_label, docker, engine_info, published_ports
from scripts.engine import is_root
from scripts.errors import LabError
from scripts.kube import Kube
from scripts.preconditions import ClusterState, Finding, LabFacts
from scripts.preflight_network import wanted_ports
from scripts.settings import KIND_CLUSTER_LABEL, OWNER_LABEL, ImageSource, Settings


def run_checks(settings: Settings, source: ImageSource, warm: bool) -> list[Finding]:
    """Gather the facts of host, engine and lab, and check them all."""
    info = engine_info() if shutil.which("docker") else None
    engine = hostfacts.parse_engine_info(info) if info else None
    host = hostfacts.gather(
        settings.cache_dir, wanted_ports(settings).values(), os.environ, engine.root_dir if engine else ""
    )
    return preflight.check(settings, host, engine, gather(settings, bool(engine)), source=source, warm=warm)


def gather(settings: Settings, engine_answers: bool) -> LabFacts:
    """Return what engine and kubeconfig know of this lab."""
    can_start = platform.system() == "Linux" and is_root() and bool(shutil.which("dockerd") or shutil.which("apt-get"))
    problem = _context_problem(settings)
    server = cluster.context_server(settings.context)
    unlabelled = () if settings.owns_cluster or problem else cluster.without_workers(Kube(settings.context))
    if not engine_answers:
        return LabFacts(
            context_server=server, context_problem=problem, unlabelled=unlabelled, can_start_engine=can_start
        )
    state = ClusterState.ABSENT
    if cluster.node_containers(settings):
        ours = cluster.cluster_is_ours(settings)
        state = ClusterState.OURS if ours else ClusterState.FOREIGN
    mine = set(containers_with_label(f"{KIND_CLUSTER_LABEL}={settings.cluster_name}"))
    mine |= set(containers_with_label(f"{OWNER_LABEL}={settings.cluster_name}"))
    if state is ClusterState.FOREIGN:
        mine -= set(cluster.node_containers(settings))
    own_ports = {port for name in mine for port in published_ports(name)}
    return LabFacts(
        cluster=state,
        context_server=server if state is not ClusterState.OURS else "",
        context_problem=problem,
        unlabelled=unlabelled,
        own_ports=frozenset(own_ports),
        container_ports=_other_ports(mine),
        networks=_networks(),
        can_start_engine=can_start,
    )


def _context_problem(settings: Settings) -> str:
    if settings.owns_cluster:
        return ""
    try:
        return "" if Kube(settings.context).is_up() else "its API server does not answer"
    except LabError as error:
        return error.what


def _other_ports(mine: set[str]) -> dict[int, str]:
    names = docker("ps", "--format", "{{.Names}}").stdout.split()
    return {port: name for name in names if name not in mine for port in published_ports(name)}


def _networks() -> dict[str, tuple[str, ...]]:
    """Return the subnets of the engine's networks."""
    names = docker("network", "ls", "--format", "{{.Name}}").stdout.split()
    found = {}
    if names:
        for network in json.loads(docker("network", "inspect", *names).stdout):
            entries = network.get("IPAM", {}).get("Config") or []
            found[network["Name"]] = tuple(e["Subnet"] for e in entries if e.get("Subnet"))
    return found
