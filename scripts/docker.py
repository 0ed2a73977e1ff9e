"""The container engine's command line, wrapped: JSON in and out, explicit time limits, labels on what is ours."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.errors import LabError
from scripts.process import CommandError, Completed, run
from scripts.settings import OWNER_LABEL


def docker(
    *args: str | Path,
    timeout_s: float = 60,
    check: bool = True,
    input_text: str | None = None,
    log_file: Path | None = None,
) -> Completed:
    """Run one `docker` command."""
    return run(["docker", *args], timeout_s=timeout_s, check=check, input_text=input_text, log_file=log_file)


def engine_info() -> dict[str, Any] | None:
    """Return `docker info`, or None when no engine answers."""
    done = run(["docker", "info", "--format", "{{json .}}"], timeout_s=20, check=False)
    if done.exit_code != 0:
        return None
    info: dict[str, Any] = json.loads(done.stdout)
    # Some versions exit 0 without a server and say so inside; Podman's answer has another shape (key "host").
    return info if (info.get("ServerVersion") or "host" in info) and not info.get("ServerErrors") else None


def inspect(kind: str, name: str) -> dict[str, Any] | None:
    """Return what the engine knows of a container, image, volume or network; None if there is none."""
    done = docker(kind, "inspect", name, check=False)
    if done.exit_code != 0:
        _require_absent(done)
        return None
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found[0] if found else None


def image_exists(reference: str) -> bool:
    """Whether the engine has the image."""
    done = docker("image", "inspect", "--format", "{{.Id}}", reference, check=False)
    if done.exit_code != 0:
        _require_absent(done)
    return done.exit_code == 0


def _require_absent(done: Completed) -> None:
    """Tell "there is no such thing" from any other failure, which must not pass for it."""
    if "no such" not in done.stderr.lower() and "not found" not in done.stderr.lower():
        raise CommandError(
            done.args, done.exit_code, done.stderr, "failed", "look at the container engine: make doctor"
        )


def is_ours(found: dict[str, Any], owner: str) -> bool:
    """Whether an object carries this lab's label."""
    labels = found.get("Labels") or found.get("Config", {}).get("Labels") or {}
    return bool(labels.get(OWNER_LABEL) == owner)


def container_state(name: str) -> str:
    """Return a container's state ("running", "exited", …), or "" if there is none."""
    found = inspect("container", name)
    return str(found["State"]["Status"]) if found else ""


def container_ip(name: str, network: str) -> str:
    """Return a container's address on a network, or ""."""
    found = inspect("container", name)
    networks = found["NetworkSettings"]["Networks"] if found else {}
    return str(networks.get(network, {}).get("IPAddress", ""))


def containers_with_label(label: str) -> list[str]:
    """Return the names of all containers, running or not, that carry `key=value`."""
    done = docker("ps", "--all", "--filter", f"label={label}", "--format", "{{.Names}}")
    return sorted(done.stdout.split())


def published_ports(container: str) -> set[int]:
    """Return the host ports a container holds."""
    found = inspect("container", container)
    bindings = (found or {}).get("HostConfig", {}).get("PortBindings") or {}
    return {int(b["HostPort"]) for many in bindings.values() for b in many or [] if b.get("HostPort")}


@dataclass(frozen=True)
class MemoryUse:
    """A container's memory, as `docker stats` counts it (without the page cache)."""

    container: str
    bytes_used: int


_UNITS = {"B": 1, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "KB": 1000, "MB": 1000**2, "GB": 1000**3}


def parse_size(text: str) -> int:
    """Return the bytes of a size as the engine prints it, as in "590.1MiB"."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]+)\s*", text)
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"not a size: {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def memory_of(containers: Sequence[str]) -> list[MemoryUse]:
    """Return the memory in use by each running container."""
    if not containers:
        return []
    done = docker("stats", "--no-stream", "--format", "{{json .}}", *containers, timeout_s=60)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    return [MemoryUse(row["Name"], parse_size(row["MemUsage"].split("/")[0])) for row in rows]


@dataclass(frozen=True)
class ContainerSpec:
    """A side container of the lab (registry, Git server): what `docker run` needs to make it."""

    name: str
    image: str
    owner: str
    network: str
    ports: dict[int, int] = field(default_factory=dict)  # host port on 127.0.0.1 -> container port
    volumes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def ensure_container(spec: ContainerSpec, fingerprint: str) -> str:
    """Make a side container run as specified; return "found", "started", "created" or "replaced".

    The fingerprint (a hash of the specification and of the image) is kept as a label: a container made from
    another one is replaced; its data is in volumes and stays.
    """
    label = "gitops-lab.spec"
    found = inspect("container", spec.name)
    verb = "created"
    if found:
        if not is_ours(found, spec.owner):
            raise LabError(
                f"A container {spec.name} exists that this lab did not make.",
                "take another name with CLUSTER_NAME=…, or remove that container",
            )
        if found["Config"]["Labels"].get(label) == fingerprint:
            if found["State"]["Running"]:
                return "found"
            docker("start", spec.name)
            return "started"
        docker("rm", "--force", spec.name)
        verb = "replaced"
    args: list[str] = ["run", "--detach", "--name", spec.name, "--network", spec.network, "--restart", "unless-stopped"]
    args += ["--label", f"{OWNER_LABEL}={spec.owner}", "--label", f"{label}={fingerprint}"]
    for host, inside in spec.ports.items():
        args += ["--publish", f"127.0.0.1:{host}:{inside}"]
    for volume, target in spec.volumes.items():
        args += ["--volume", f"{volume}:{target}"]
    for key, value in spec.environment.items():
        args += ["--env", f"{key}={value}"]
    docker(*args, spec.image, *spec.command, timeout_s=120)
    return verb


def ensure_volume(name: str, owner: str) -> None:
    """Create a labelled volume unless it is there."""
    if not inspect("volume", name):
        docker("volume", "create", "--label", f"{OWNER_LABEL}={owner}", name)
