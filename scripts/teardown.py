"""Take the lab down: what setup made, and nothing else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from enum import StrEnum

from scripts import appimage, cluster, console, git
from scripts.cache import lock
from scripts.docker import container_state, docker, engine_info, inspect, is_ours
from scripts.engine import ensure_engine
from scripts.errors import LabError
from scripts.kube import Kube
from scripts.monitoring import mode
from scripts.process import run
from scripts.provide import forget_source
from scripts.settings import Settings


class Purge(StrEnum):
    """How much of what outlives a cluster goes with it: PURGE's values."""

    NOTHING = ""
    VOLUMES = "volumes"
    ALL = "1"


def purge_of(environ: Mapping[str, str]) -> Purge:
    """Read what PURGE asks for; another word is refused, as one that is not understood must not delete."""
    value = environ.get("PURGE", "")
    try:
        return Purge("" if value == "0" else value)
    except ValueError:
        raise LabError(
            f"PURGE={value} is not known.",
            "PURGE=volumes removes Git history and pushed images, PURGE=1 also this user's caches",
        ) from None


def teardown(settings: Settings, purge: Purge) -> None:
    """Remove cluster, side containers, network, context and Git remote, and what purge names.

    With a purge the engine is started if it stands still: volumes are only removed by it.
    """
    if not settings.owns_cluster:
        raise LabError(
            "teardown removes what setup made, and KUBE_CONTEXT names a cluster that it did not make.",
            "to take Flux out of it: flux uninstall --context …",
        )
    started = time.monotonic()
    if purge is not Purge.NOTHING:
        ensure_engine(settings)
    elif not engine_info():
        raise LabError(
            "No container engine answers, so there is nothing that can be taken down.",
            "make resume starts the engine that setup started; then make teardown",
        )
    with (
        lock(settings.state_dir / "setup.lock", "this lab"),
        console.Board() as board,
        board.task("taking the lab down"),
    ):
        removed = _remove(settings, purge is not Purge.NOTHING)
    if purge is Purge.ALL:
        shutil.rmtree(settings.state_dir, ignore_errors=True)
        clean(settings, cache=True)
    console.done("teardown", time.monotonic() - started, ", ".join(removed) or "there was nothing to remove")


def _remove(settings: Settings, volumes: bool) -> list[str]:
    removed = []
    if cluster.node_containers(settings):
        if not cluster.cluster_is_ours(settings):
            raise LabError(
                f"The kind cluster {settings.cluster_name} was not made by this lab; nothing was removed.",
                "name this lab's cluster with CLUSTER_NAME=…",
            )
        cluster.delete_cluster(settings, settings.tools_dir / "kind")
        removed.append("cluster")
    else:
        remove_context(settings)
    for container in (settings.registry_container, settings.git_container):
        found = inspect("container", container)
        if found and is_ours(found, settings.cluster_name):
            docker("rm", "--force", container)
            removed.append(container)
    network = inspect("network", settings.network)
    if network and is_ours(network, settings.cluster_name):
        docker("network", "rm", settings.network)
        removed.append("network")
    if volumes:
        for volume in (settings.registry_volume, settings.git_volume):
            found = inspect("volume", volume)
            if found and is_ours(found, settings.cluster_name):
                docker("volume", "rm", volume)
                removed.append(volume)
        # The registry that they were pushed to is gone, so nothing asks for them by these names.
        for image in appimage.built_images(settings):
            docker("rmi", image)
    outcome = git.remove_remote(settings)
    if outcome.changed:
        removed.append("Git remote")
    forget_source(settings)
    mode.forget(settings)
    return removed


def remove_context(settings: Settings) -> None:
    """Drop the context of a cluster that is gone from the user's kubeconfig, if it is there."""
    kubectl = settings.tools_dir / "kubectl"
    if not kubectl.exists():
        return
    name = f"kind-{settings.cluster_name}"
    for kind in ("contexts", "clusters", "users"):
        listed = run([kubectl, "config", "view", "-o", f"jsonpath={{.{kind}[*].name}}"], timeout_s=30).stdout.split()
        if name in listed:
            run([kubectl, "config", "unset", f"{kind}.{name}"], timeout_s=30)


def clean(settings: Settings, cache: bool) -> None:
    """Remove what commands left in this working copy; with cache also the per-user cache of tools and builds."""
    from scripts.settings import ROOT

    for name in ("build", "reports", ".pytest_cache", ".mypy_cache", ".ruff_cache"):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for folder in ROOT.rglob("__pycache__"):
        if ".venv" not in folder.parts:
            shutil.rmtree(folder, ignore_errors=True)
    what = "build output"
    if cache:
        for image in _lab_images():
            docker("rmi", "--force", image, check=False)
        shutil.rmtree(settings.cache_dir, ignore_errors=True)
        what += ", the cache and the images built from it"
    console.line(f"removed {what}")


def _lab_images() -> list[str]:
    from scripts.images import REPOSITORY

    if not engine_info():
        return []
    done = docker("images", "--filter", f"reference={REPOSITORY}/*", "--format", "{{.Repository}}:{{.Tag}}")
    return done.stdout.split()


def is_down(settings: Settings) -> bool:
    """Whether nothing of the lab is left in the engine."""
    names = (settings.registry_container, settings.git_container)
    return (
        not cluster.node_containers(settings)
        and not any(container_state(n) for n in names)
        and not inspect("network", settings.network)
        and not Kube(settings.context).is_up()
    )
