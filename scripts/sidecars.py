"""The two containers beside the cluster: the image registry and the Git server. Their data outlives clusters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from scripts.cache import digest_of
from scripts.docker import ContainerSpec, container_ip, docker, ensure_container, ensure_volume
from scripts.outcome import Outcome
from scripts.settings import (
    FLUX_NAMESPACE,
    GIT_HOST_IN_CLUSTER,
    GIT_PORT_INSIDE,
    GIT_REPOSITORY,
    RECEIVER_NODE_PORT,
    REGISTRY_HOST_IN_CLUSTER,
    REGISTRY_PORT_INSIDE,
    Settings,
)
from scripts.transfer import direct_session
from scripts.waiting import wait_for

READY_TIMEOUT_S = 60


@dataclass(frozen=True)
class SidecarImages:
    """The images step 2 left for the two containers."""

    registry: str
    git_server: str


def ensure_registry(settings: Settings, image: str) -> Outcome:
    """Make the registry run and answer."""
    ensure_volume(settings.registry_volume, settings.cluster_name)
    spec = ContainerSpec(
        name=settings.registry_container,
        image=image,
        owner=settings.cluster_name,
        network=settings.network,
        ports={settings.registry_port: REGISTRY_PORT_INSIDE},
        volumes={settings.registry_volume: "/var/lib/registry"},
        environment={"REGISTRY_STORAGE_DELETE_ENABLED": "true", "OTEL_TRACES_EXPORTER": "none"},
    )
    verb = ensure_container(spec, digest_of(spec.__dict__)[:16])
    wait_for_registry(settings)
    return Outcome(verb != "found", f"registry {verb}")


def ensure_git_server(settings: Settings, image: str) -> Outcome:
    """Make the Git server run and answer."""
    ensure_volume(settings.git_volume, settings.cluster_name)
    spec = ContainerSpec(
        name=settings.git_container,
        image=image,
        owner=settings.cluster_name,
        network=settings.network,
        ports={settings.git_port: GIT_PORT_INSIDE},
        volumes={settings.git_volume: "/srv/git"},
    )
    verb = ensure_container(spec, digest_of(spec.__dict__)[:16])
    wait_for_git_server(settings)
    return Outcome(verb != "found", f"Git server {verb}")


def wait_for_registry(settings: Settings, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Wait until the registry answers."""
    url = f"http://127.0.0.1:{settings.registry_port}/v2/"
    _wait_for_http("the registry", settings.registry_container, url, timeout_s)


def wait_for_git_server(settings: Settings, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Wait until the Git server answers for the lab's repository."""
    url = f"http://127.0.0.1:{settings.git_port}/{GIT_REPOSITORY}/info/refs?service=git-upload-pack"
    _wait_for_http("the Git server", settings.git_container, url, timeout_s)


def _wait_for_http(what: str, container: str, url: str, timeout_s: float) -> None:
    session = direct_session()

    def pending() -> list[str]:
        try:
            answer = session.get(url, timeout=5)
        except requests.RequestException as error:
            return [f"{url}: {type(error).__name__}"]
        return [] if answer.status_code == 200 else [f"{url}: HTTP {answer.status_code}"]

    def explain() -> str:
        done = docker("logs", "--tail", "20", container, check=False)
        return done.stdout + done.stderr

    wait_for(f"{what} answers", pending, timeout_s=timeout_s, mend=f"docker logs {container}", explain=explain)


def git_service_objects(settings: Settings) -> list[dict[str, Any]]:
    """Return the Service and EndpointSlice by which the cluster knows the Git server beside it."""
    return _service_objects(settings, GIT_HOST_IN_CLUSTER, GIT_PORT_INSIDE, settings.git_container)


def registry_service_objects(settings: Settings) -> list[dict[str, Any]]:
    """Return the same for the registry, which Flux takes charts from behind a mirror."""
    return _service_objects(settings, REGISTRY_HOST_IN_CLUSTER, REGISTRY_PORT_INSIDE, settings.registry_container)


def _service_objects(settings: Settings, host: str, port: int, container: str) -> list[dict[str, Any]]:
    name = host.partition(".")[0]
    metadata = {"name": name, "namespace": FLUX_NAMESPACE}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": port}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": port}],
            "endpoints": [
                {
                    "addresses": [container_ip(container, settings.network)],
                    "conditions": {"ready": True},
                }
            ],
        },
    ]


def connect_receiver(settings: Settings, webhook_path: str, token: str, sources: Sequence[Mapping[str, Any]]) -> None:
    """Tell the Git server's hook where Flux's Receiver is, and which source reads what; by standard input."""
    url = f"http://{settings.control_plane}:{RECEIVER_NODE_PORT}{webhook_path}"
    text = json.dumps({"url": url, "token": token, "sources": list(sources)})
    script = "umask 077 && cat > /srv/git/.receiver.json && mv /srv/git/.receiver.json /srv/git/receiver.json"
    docker("exec", "--interactive", settings.git_container, "sh", "-euc", script, input_text=text)


def restore_branches(settings: Settings, branches: Mapping[str, str]) -> bool:
    """Set the Git server's branches back to known commits and return whether any had moved.

    For measurements and tests, which leave the lab as it was: the server itself refuses to go back by a push.
    """
    repository = f"/srv/git/{GIT_REPOSITORY}"
    shown = docker(
        "exec", settings.git_container, "git", "-C", repository, "for-each-ref", "--format=%(refname:short) %(objectname)",
        "refs/heads",
    )  # fmt: skip
    now = dict(line.split() for line in shown.stdout.splitlines())
    moved = [f"update refs/heads/{name} {commit}" for name, commit in branches.items() if now.get(name) != commit]
    moved += [f"delete refs/heads/{name}" for name in now if name not in branches]
    if moved:
        docker(
            "exec", "--interactive", settings.git_container, "git", "-C", repository, "update-ref", "--stdin",
            input_text="\n".join(moved) + "\n",
        )  # fmt: skip
    return bool(moved)
