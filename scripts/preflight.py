"""What would cost hours later, found before anything is created: each finding says what is wrong and what mends it.

Only judges: the facts are gathered by hostfacts and labfacts, and handed in.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from rich.text import Text

from scripts import console
from scripts.errors import PreflightError
from scripts.hostfacts import LOOPBACK_LISTENERS, EngineFacts, HostFacts, Network, PortHolder, Route, read_int
from scripts.outcome import Outcome
from scripts.settings import (
    INOTIFY_INSTANCES,
    INOTIFY_WATCHES,
    MIN_DISK_BYTES,
    MIN_DISK_WARM_BYTES,
    MIN_MEMORY_BYTES,
    REGISTRY_IN_CLUSTER,
    Edge,
    ImageSource,
    Settings,
)

OLDEST_DOCKER = (20, 10)
OLDEST_PYTHON = (3, 11)
MIN_PIDS = 4096
# A machine "of 6 GB" reports less: firmware and kernel keep a part.
MEMORY_TOLERANCE = 0.92
# The tools alone, when images are the engine's.
MIN_DISK_TOOLS_BYTES = 1024**3
# Nobody ran this code earlier: a clock that says so makes every certificate "not yet valid".
BUILT = datetime(2026, 11, 1, tzinfo=UTC)
CLOCK_YEARS = 15
INOTIFY_DIR = Path("/proc/sys/fs/inotify")

_SLOW_DRIVERS = {
    "vfs": "copies every layer whole: slow, and several times the disk",
    "btrfs": "is known to fail in kind's nodes without /dev/mapper",
    "zfs": "is known to fail in kind's nodes without /dev/mapper",
    "devicemapper": "is gone from current engines",
    "aufs": "is gone from current engines",
}
_GIB = 1024**3


class Level(StrEnum):
    """How bad a finding is; only an error stops the setup."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its id, how bad it is, what was found, and the line that mends it."""

    id: str
    level: Level
    what: str
    mend: str = ""


def _ok(id: str, what: str) -> Finding:
    return Finding(id, Level.OK, what)


def _info(id: str, what: str) -> Finding:
    return Finding(id, Level.INFO, what)


def _warning(id: str, what: str, mend: str) -> Finding:
    return Finding(id, Level.WARNING, what, mend)


def _error(id: str, what: str, mend: str) -> Finding:
    return Finding(id, Level.ERROR, what, mend)


class ClusterState(StrEnum):
    """Whether a cluster of the wanted name is there, and whose it is."""

    ABSENT = "absent"
    OURS = "ours"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class LabFacts:
    """What is there of this lab already, as engine and kubeconfig know it.

    Args:
        cluster: whether a kind cluster of the wanted name is there.
        context_server: the API server that the kubeconfig context of the lab's name points to; "" without one.
        context_problem: for KUBE_CONTEXT, why the cluster can't be reached; "" when it can.
        own_ports: host ports that containers of this lab hold.
        container_ports: host ports that other containers hold, with the container's name.
        networks: subnets of the engine's networks by name.
        can_start_engine: whether setup can install or start an engine by itself.
    """

    cluster: ClusterState = ClusterState.ABSENT
    context_server: str = ""
    context_problem: str = ""
    own_ports: frozenset[int] = frozenset()
    container_ports: Mapping[int, str] = field(default_factory=dict)
    networks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    can_start_engine: bool = False


def wanted_ports(settings: Settings) -> dict[str, int]:
    """Return the host ports that setup will take, by the variable that changes each."""
    ports = {}
    if settings.owns_cluster:
        ports["REGISTRY_PORT"] = settings.registry_port
        if settings.edge is not Edge.NONE:
            ports["EDGE_PORT"] = settings.edge_port
    if settings.owns_git:
        ports["GIT_PORT"] = settings.git_port
    return ports


def check(
    settings: Settings,
    host: HostFacts,
    engine: EngineFacts | None,
    lab: LabFacts,
    *,
    source: ImageSource,
    warm: bool = False,
) -> list[Finding]:
    """Return a finding for everything that was looked at, in the order of the looking.

    Args:
        settings: the run's names, ports and choices.
        host: facts of this machine.
        engine: facts of the container engine; None when none answers.
        lab: what is there of this lab already.
        source: where images come from, decided (AUTO counts as REGISTRY).
        warm: whether every output of source mode is in the cache already.
    """
    found = [*_programs(host), _clock(host)]
    if settings.owns_cluster:
        found += [
            *_engine(engine, host, lab),
            _cgroup(engine, host),
            _capabilities(engine, host),
            *_inotify(host),
            *_memory(host, engine, lab),
            *_disk(settings, host, lab, source, warm),
            *_container(host),
            *_subnet(settings, host, lab),
        ]
    return [*found, *_ports(settings, host, lab), *_proxy(settings, host), _cluster(settings, lab)]


def render(findings: Sequence[Finding]) -> None:
    """Print the findings as a table, the worst first, and the lines that mend them."""
    styles = {Level.OK: "green", Level.INFO: "cyan", Level.WARNING: "yellow", Level.ERROR: "bold red"}
    worst_first = sorted(findings, key=lambda f: -list(Level).index(f.level))
    rows: list[list[str | Text]] = [[Text(str(f.level), style=styles[f.level]), f.id, f.what] for f in worst_first]
    console.table("Preflight", ["", "check", "found"], rows)
    mends = [f for f in worst_first if f.mend]
    if mends:
        # Below the table, not in it: a command that is folded in a column can't be copied.
        console.line("\nTo mend it", style="bold")
        for finding in mends:
            console.line(f"  {finding.id}: {finding.mend}")


def require(findings: Sequence[Finding]) -> None:
    """Warn of what is unwise; raise PreflightError that lists everything in the way, each with what mends it."""
    for finding in findings:
        if finding.level is Level.WARNING:
            console.warn(f"{finding.what}" + (f" To mend it: {finding.mend}" if finding.mend else ""))
    errors = [f for f in findings if f.level is Level.ERROR]
    if len(errors) == 1:
        raise PreflightError(errors[0].what, errors[0].mend)
    if errors:
        details = "\n".join(f"  - {f.what}" + (f"\n    To mend it: {f.mend}" if f.mend else "") for f in errors)
        raise PreflightError(f"{len(errors)} things are in the way; nothing was created.", "", details)


def raise_inotify(folder: Path = INOTIFY_DIR, *, is_root: bool | None = None) -> Outcome:
    """Raise the kernel's inotify limits to what three nodes need, until the next boot, where root may; looks first."""
    may = os.geteuid() == 0 if is_root is None else is_root
    raised = []
    for name, wanted in (("max_user_watches", INOTIFY_WATCHES), ("max_user_instances", INOTIFY_INSTANCES)):
        now = read_int(folder / name)
        if now is None or now >= wanted or not may:
            continue
        try:
            (folder / name).write_text(f"{wanted}\n")
        except OSError as error:  # read-only /proc of a container
            console.warn(f"fs.inotify.{name} stays at {now}: {error.strerror}. {_sysctl_mend()}")
            continue
        raised.append(f"fs.inotify.{name} {now} -> {wanted}")
    return Outcome(bool(raised), ", ".join(raised) or "inotify limits found")


def _programs(host: HostFacts) -> list[Finding]:
    found = []
    for name, path in host.programs.items():
        mend = (
            f"xcode-select --install, or brew install {name}" if host.system == "darwin" else f"apt-get install {name}"
        )
        found.append(
            _ok(name, f"{name} is {path}")
            if path
            else _error(name, f"{name} is not on PATH.", f"{mend} (or your system's package manager)")
        )
    version = ".".join(map(str, host.python))
    if host.python < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        found.append(
            _error("python", f"Python {version} is too old.", f"install Python {wanted} or later, then make clean")
        )
    else:
        found.append(_ok("python", f"Python {version}"))
    return found


def _clock(host: HostFacts) -> Finding:
    shown = host.now.strftime("%Y-%m-%d %H:%M UTC")
    mend = "sudo date -u -s '<the right time>'" if host.system == "darwin" else "sudo timedatectl set-ntp true"
    if host.now < BUILT:
        return _error("clock", f"The clock is wrong: it says {shown}, before this lab was written.", mend)
    if host.now.year > BUILT.year + CLOCK_YEARS:
        return _warning("clock", f"The clock says {shown}; certificates may count as expired.", mend)
    return _ok("clock", shown)


def _engine(engine: EngineFacts | None, host: HostFacts, lab: LabFacts) -> list[Finding]:
    if engine is None:
        if lab.can_start_engine:
            return [_info("engine", "No container engine answers; setup starts one.")]
        mend = "start Docker Desktop: open -a Docker" if host.system == "darwin" else "sudo systemctl start docker"
        return [_error("engine", "No container engine answers.", f"{mend} (or install Docker first)")]
    if engine.product != "docker":
        return [
            _error(
                "engine",
                f"{engine.product} {engine.version} answers in Docker's place; kind's nodes and networks would be made another way.",
                "install Docker, or point DOCKER_HOST at one",
            )
        ]
    found = []
    if _version(engine.version) < OLDEST_DOCKER:
        wanted = ".".join(map(str, OLDEST_DOCKER))
        found.append(_error("engine", f"Docker {engine.version} is too old.", f"install Docker {wanted} or later"))
    else:
        found.append(_ok("engine", f"Docker {engine.version}, {engine.cpus} processors"))
    if engine.cpus == 1:
        found.append(_warning("processors", "The engine has 1 processor; kubeadm wants 2.", "give it 2 or more"))
    if engine.storage_driver in _SLOW_DRIVERS and not engine.containerd_image_store:
        why = _SLOW_DRIVERS[engine.storage_driver]
        mend = f'set "storage-driver": "overlay2" in /etc/docker/daemon.json, on ext4 or xfs ({engine.root_dir})'
        found.append(_warning("storage", f"The storage driver {engine.storage_driver} {why}.", mend))
    else:
        found.append(_ok("storage", f"storage driver {engine.storage_driver}"))
    if engine.containerd_image_store:
        found.append(
            _info("image-store", "containerd's image store is in use; images reach the nodes by the registry.")
        )
    if engine.rootless:
        found.append(_rootless(engine))
    return found


def _rootless(engine: EngineFacts) -> Finding:
    if engine.cgroup_version < 2:
        return _error(
            "rootless",
            "A rootless engine on cgroup v1 can't run kind's nodes.",
            "boot with systemd.unified_cgroup_hierarchy=1, or use an engine that runs as root",
        )
    return _warning(
        "rootless",
        "The engine is rootless; nodes fail to start unless systemd delegates cpu, memory and pids to it.",
        "follow https://kind.sigs.k8s.io/docs/user/rootless/",
    )


def _cgroup(engine: EngineFacts | None, host: HostFacts) -> Finding:
    version = engine.cgroup_version if engine else host.cgroup_version
    if version == 1:
        return _info("cgroup", "cgroup v1: the kubelet is told to accept it.")
    return _ok("cgroup", f"cgroup v{version}" if version else "cgroup version unknown until an engine runs")


def _capabilities(engine: EngineFacts | None, host: HostFacts) -> Finding:
    missing = ", ".join(host.missing_capabilities)
    if not missing or (engine and engine.is_desktop):
        return _ok("capabilities", "all that --privileged asks for")
    if engine is None:
        return _info("capabilities", f"{missing} can't be had here; setup's engine starts containers without.")
    if engine.default_runtime == "bounded":
        return _ok("capabilities", f"without {missing}, which the engine's runtime leaves out")
    return _warning(
        "capabilities",
        f"{missing} can't be had here; nodes fail with `unable to apply caps` if the engine can't either.",
        "stop that engine and run setup as root: it starts one that leaves them out",
    )


def _inotify(host: HostFacts) -> list[Finding]:
    if host.inotify_watches is None or host.inotify_instances is None:
        return []
    shown = f"{host.inotify_watches} watches, {host.inotify_instances} instances"
    if host.inotify_watches >= INOTIFY_WATCHES and host.inotify_instances >= INOTIFY_INSTANCES:
        return [_ok("inotify", shown)]
    if host.is_root:
        return [_info("inotify", f"{shown}: setup raises them to {INOTIFY_WATCHES} and {INOTIFY_INSTANCES}.")]
    what = f"The inotify limits are low ({shown}); pods of a 3-node cluster fail with `too many open files`."
    return [_warning("inotify", what, _sysctl_mend())]


def _sysctl_mend() -> str:
    return (
        f"sudo sysctl fs.inotify.max_user_watches={INOTIFY_WATCHES} fs.inotify.max_user_instances={INOTIFY_INSTANCES}"
    )


def _memory(host: HostFacts, engine: EngineFacts | None, lab: LabFacts) -> list[Finding]:
    engine_bytes = engine.memory_bytes if engine else 0
    known = [b for b in (engine_bytes, host.memory_limit_bytes, host.memory_total_bytes) if b]
    if not known:
        return []
    total = min(known)
    if total < MIN_MEMORY_BYTES * MEMORY_TOLERANCE:
        desktop = bool(engine and engine.is_desktop)
        mend = "Docker Desktop, Settings, Resources: raise the memory" if desktop else "give the machine more memory"
        what = f"{_gib(total)} of memory; the lab needs {_gib(MIN_MEMORY_BYTES)}."
        return [Finding("memory", _unless_running(lab, Level.ERROR), what, mend)]
    available = host.memory_available_bytes
    if available is not None and available < MIN_MEMORY_BYTES / 2 and not (engine and engine.is_desktop):
        what = f"Only {_gib(available)} of {_gib(total)} of memory are free."
        return [Finding("memory", _unless_running(lab, Level.WARNING), what, "end some programs before setup")]
    return [_ok("memory", _gib(total))]


def _disk(settings: Settings, host: HostFacts, lab: LabFacts, source: ImageSource, warm: bool) -> list[Finding]:
    cold_source = source is ImageSource.SOURCE and not warm
    everything = MIN_DISK_BYTES["source" if source is ImageSource.SOURCE else "registry"]
    if source is ImageSource.SOURCE and warm:
        everything = MIN_DISK_WARM_BYTES
    places = [(str(settings.cache_dir), host.cache_free_bytes, everything)]
    if not host.one_filesystem:
        # Building fills the cache; images, once built or pulled, fill the engine's folder.
        places = [
            (str(settings.cache_dir), host.cache_free_bytes, everything if cold_source else MIN_DISK_TOOLS_BYTES),
            ("the engine's folder", host.engine_free_bytes, MIN_DISK_WARM_BYTES if cold_source else everything),
        ]
    found = []
    for place, free, needed in places:
        if free is None:
            continue
        if free >= needed:
            found.append(_ok("disk", f"{_gib(free)} free for {place}"))
            continue
        found.append(
            Finding(
                "disk",
                _unless_running(lab, Level.ERROR),
                f"{_gib(free)} of disk free for {place}; {'a first build' if cold_source else 'the lab'} needs {_gib(needed)}.",
                "free some space (docker system prune shows what the engine can spare)"
                + (", or IMAGE_SOURCE=registry, which needs less" if cold_source else ""),
            )
        )
    return found


def _container(host: HostFacts) -> list[Finding]:
    if not host.in_container:
        return []
    if host.pids_limit is not None and host.pids_limit < MIN_PIDS:
        what = f"This container may have {host.pids_limit} processes; three nodes need {MIN_PIDS}."
        return [_warning("container", what, "start it with --pids-limit=-1")]
    limit = f", limited to {_gib(host.memory_limit_bytes)} of memory" if host.memory_limit_bytes else ""
    return [_info("container", f"This is a container{limit}: its limits are the nodes' too.")]


def _subnet(settings: Settings, host: HostFacts, lab: LabFacts) -> list[Finding]:
    existing = [n for text in lab.networks.get(settings.network, ()) if (n := _ipv4(text))]
    wanted = existing
    if settings.subnet:
        subnet = _ipv4(settings.subnet)
        if subnet is None or not subnet.is_private or not 16 <= subnet.prefixlen <= 26:
            what = f"SUBNET={settings.subnet} is no private IPv4 subnet of /16 to /26."
            return [_error("subnet", what, "give one as in SUBNET=172.30.0.0/24")]
        if existing and subnet not in existing:
            what = f"The lab's network has {', '.join(map(str, existing))}, not SUBNET={subnet}."
            return [_error("subnet", what, "make teardown first, or leave SUBNET out")]
        wanted = [subnet]
    for subnet in wanted:
        clash = _clash(subnet, settings, host.routes, lab, set(existing))
        if clash:
            return [clash]
    return [_ok("subnet", ", ".join(map(str, wanted)) or "the engine chooses a free one")]


def _clash(
    subnet: Network, settings: Settings, routes: Sequence[Route], lab: LabFacts, own: set[Network]
) -> Finding | None:
    mend = "choose another one, as in SUBNET=172.30.0.0/24" + (" (after make teardown)" if own else "")
    for name, texts in lab.networks.items():
        for text in texts:
            other = _ipv4(text)
            if name != settings.network and other and other.overlaps(subnet):
                return _error("subnet", f"{subnet} is taken by the engine's network {name} ({other}).", mend)
    for route in routes:
        # Halves of the internet are how a VPN takes over the default route; the lab's own bridge is no clash.
        if route.network.prefixlen < 2 or not route.network.overlaps(subnet) or route.network in own:
            continue
        where = f"{route.network} by {route.interface}"
        if route.network.prefixlen >= subnet.prefixlen:
            what = f"{subnet} clashes with a route of this machine ({where}; a VPN?): the nodes would not be reached."
            return _error("subnet", what, mend)
        what = f"{subnet} lies within a route of this machine ({where}; a VPN?): hosts of that range will be hidden."
        return _warning("subnet", what, mend)
    return None


def _ports(settings: Settings, host: HostFacts, lab: LabFacts) -> list[Finding]:
    found = []
    for variable, port in wanted_ports(settings).items():
        holder = next((h for h in host.port_holders if h.port == port and h.address in LOOPBACK_LISTENERS), None)
        if port in lab.own_ports:
            found.append(_ok("port", f"{port} is held by this lab"))
        elif port in lab.container_ports:
            container = lab.container_ports[port]
            what = f"Port {port} ({variable}) is taken by the container {container}."
            found.append(_error("port", what, f"docker stop {container}, or {variable}=<another port>"))
        elif holder:
            found.append(_port_taken(variable, port, holder))
        else:
            found.append(_ok("port", f"{port} is free ({variable})"))
    return found


def _port_taken(variable: str, port: int, holder: PortHolder) -> Finding:
    mend = f"{variable}=<another port>"
    if holder.process.startswith("ControlCe"):
        mend = f"{mend}, or switch off AirPlay Receiver in System Settings"
    elif holder.pid:
        mend = f"end that process, or {mend}"
    return _error("port", f"Port {port} ({variable}) is taken by {holder}.", mend)


def _proxy(settings: Settings, host: HostFacts) -> list[Finding]:
    if not host.proxies:
        return [_ok("proxy", "none")]
    shown = ", ".join(f"{name}={value}" for name, value in host.proxies.items())
    hosts = ["127.0.0.1", "localhost"]
    if settings.owns_cluster:
        hosts += [REGISTRY_IN_CLUSTER, settings.registry_container]
    if settings.owns_git:
        hosts.append(settings.git_container)
    entries = [e.strip() for e in host.no_proxy.split(",") if e.strip()]
    missing = [name for name in hosts if not any(_covers(entry, name) for entry in entries)]
    if not missing:
        return [_ok("proxy", shown)]
    value = ",".join([*entries, *missing])
    what = f"A proxy is set ({shown}), and NO_PROXY leaves out {', '.join(missing)}: calls to the lab would go there."
    return [_error("proxy", what, f"export NO_PROXY={value} no_proxy={value}")]


def _covers(entry: str, host: str) -> bool:
    """Whether a NO_PROXY entry covers a host: its name, a parent domain, an address range, or everything."""
    if entry == "*" or entry == host:
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.endswith("." + entry.lstrip("*").lstrip("."))


def _cluster(settings: Settings, lab: LabFacts) -> Finding:
    if not settings.owns_cluster:
        if lab.context_problem:
            what = f"The cluster of KUBE_CONTEXT={settings.kube_context} can't be used: {lab.context_problem}"
            return _error("context", what, "kubectl config get-contexts shows those that there are")
        return _ok("context", f"{settings.kube_context} answers")
    name = settings.cluster_name
    if lab.cluster is ClusterState.FOREIGN:
        what = f"A kind cluster named {name} is there that this lab did not make; it is left alone."
        return _error("cluster", what, "CLUSTER_NAME=<another name> make setup-all")
    if lab.cluster is ClusterState.OURS:
        return _ok("cluster", f"{name} is there")
    if lab.context_server:
        what = f"The kubeconfig has a context {settings.context} ({lab.context_server}), but there is no such cluster."
        # kind's own leftovers point at this machine and may go; anything else is somebody's way to a cluster.
        level = Level.WARNING if _is_local(lab.context_server) else Level.ERROR
        return Finding(
            "cluster", level, what, f"kubectl config delete-context {settings.context}, or CLUSTER_NAME=<another name>"
        )
    return _ok("cluster", f"{name} is free")


def _is_local(server: str) -> bool:
    return any(f"//{host}" in server for host in ("127.0.0.1", "localhost", "0.0.0.0"))


def _unless_running(lab: LabFacts, level: Level) -> Level:
    """Return a level, or one that doesn't stop a second run: a lab that is there has taken its share already."""
    return Level.INFO if lab.cluster is ClusterState.OURS else level


def _ipv4(text: str) -> Network | None:
    try:
        return Network(text)
    except ValueError:
        return None


def _version(text: str) -> tuple[int, ...]:
    numbers = text.split("-")[0].split(".")
    return tuple(int(n) for n in numbers if n.isdigit())


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
