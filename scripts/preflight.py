"""What would cost hours later, found before anything is created: each finding says what is wrong and what mends it.

Only judges: the facts are gathered by hostfacts and labfacts, and handed in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.text import Text

from scripts import console, preflight_network
from scripts.errors import PreflightError
from scripts.hostfacts import EngineFacts, HostFacts, read_int
from scripts.outcome import Outcome
from scripts.preconditions import Finding, LabFacts, Level, error, info, ok, unless_running, warning
from scripts.settings import (
    INOTIFY_INSTANCES,
    INOTIFY_WATCHES,
    MIN_DISK_BYTES,
    MIN_DISK_WARM_BYTES,
    MIN_MEMORY_BYTES,
    MONITORING_MEMORY_BYTES,
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
            *_memory(settings, host, engine, lab),
            *_disk(settings, host, lab, source, warm),
            *_container(host),
            *preflight_network.subnet_findings(settings, host, lab),
        ]
    return [
        *found,
        *preflight_network.port_findings(settings, host, lab),
        *preflight_network.proxy_findings(settings, host),
        preflight_network.cluster_finding(settings, lab),
    ]


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
            ok(name, f"{name} is {path}")
            if path
            else error(name, f"{name} is not on PATH.", f"{mend} (or your system's package manager)")
        )
    version = ".".join(map(str, host.python))
    if host.python < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        found.append(
            error("python", f"Python {version} is too old.", f"install Python {wanted} or later, then make clean")
        )
    else:
        found.append(ok("python", f"Python {version}"))
    return found


def _clock(host: HostFacts) -> Finding:
    shown = host.now.strftime("%Y-%m-%d %H:%M UTC")
    mend = "sudo date -u -s '<the right time>'" if host.system == "darwin" else "sudo timedatectl set-ntp true"
    if host.now < BUILT:
        return error("clock", f"The clock is wrong: it says {shown}, before this lab was written.", mend)
    if host.now.year > BUILT.year + CLOCK_YEARS:
        return warning("clock", f"The clock says {shown}; certificates may count as expired.", mend)
    return ok("clock", shown)


def _engine(engine: EngineFacts | None, host: HostFacts, lab: LabFacts) -> list[Finding]:
    if engine is None:
        if lab.can_start_engine:
            return [info("engine", "No container engine answers; setup starts one.")]
        mend = "start Docker Desktop: open -a Docker" if host.system == "darwin" else "sudo systemctl start docker"
        return [error("engine", "No container engine answers.", f"{mend} (or install Docker first)")]
    if engine.product != "docker":
        return [
            error(
                "engine",
                f"{engine.product} {engine.version} answers in Docker's place; kind's nodes and networks would be made another way.",
                "install Docker, or point DOCKER_HOST at one",
            )
        ]
    found = []
    if _version(engine.version) < OLDEST_DOCKER:
        wanted = ".".join(map(str, OLDEST_DOCKER))
        found.append(error("engine", f"Docker {engine.version} is too old.", f"install Docker {wanted} or later"))
    else:
        found.append(ok("engine", f"Docker {engine.version}, {engine.cpus} processors"))
    if engine.cpus == 1:
        found.append(warning("processors", "The engine has 1 processor; kubeadm wants 2.", "give it 2 or more"))
    if engine.storage_driver in _SLOW_DRIVERS and not engine.containerd_image_store:
        why = _SLOW_DRIVERS[engine.storage_driver]
        mend = f'set "storage-driver": "overlay2" in /etc/docker/daemon.json, on ext4 or xfs ({engine.root_dir})'
        found.append(warning("storage", f"The storage driver {engine.storage_driver} {why}.", mend))
    else:
        found.append(ok("storage", f"storage driver {engine.storage_driver}"))
    if engine.containerd_image_store:
        found.append(info("image-store", "containerd's image store is in use; images reach the nodes by the registry."))
    if engine.rootless:
        found.append(_rootless(engine))
    return found


def _rootless(engine: EngineFacts) -> Finding:
    if engine.cgroup_version < 2:
        return error(
            "rootless",
            "A rootless engine on cgroup v1 can't run kind's nodes.",
            "boot with systemd.unified_cgroup_hierarchy=1, or use an engine that runs as root",
        )
    return warning(
        "rootless",
        "The engine is rootless; nodes fail to start unless systemd delegates cpu, memory and pids to it.",
        "follow https://kind.sigs.k8s.io/docs/user/rootless/",
    )


def _cgroup(engine: EngineFacts | None, host: HostFacts) -> Finding:
    version = engine.cgroup_version if engine else host.cgroup_version
    if version == 1:
        return info("cgroup", "cgroup v1: the kubelet is told to accept it.")
    return ok("cgroup", f"cgroup v{version}" if version else "cgroup version unknown until an engine runs")


def _capabilities(engine: EngineFacts | None, host: HostFacts) -> Finding:
    missing = ", ".join(host.missing_capabilities)
    if not missing or (engine and engine.is_desktop):
        return ok("capabilities", "all that --privileged asks for")
    if engine is None:
        return info("capabilities", f"{missing} can't be had here; setup's engine starts containers without.")
    if engine.default_runtime == "bounded":
        return ok("capabilities", f"without {missing}, which the engine's runtime leaves out")
    return warning(
        "capabilities",
        f"{missing} can't be had here; nodes fail with `unable to apply caps` if the engine can't either.",
        "stop that engine and run setup as root: it starts one that leaves them out",
    )


def _inotify(host: HostFacts) -> list[Finding]:
    if host.inotify_watches is None or host.inotify_instances is None:
        return []
    shown = f"{host.inotify_watches} watches, {host.inotify_instances} instances"
    if host.inotify_watches >= INOTIFY_WATCHES and host.inotify_instances >= INOTIFY_INSTANCES:
        return [ok("inotify", shown)]
    if host.is_root:
        return [info("inotify", f"{shown}: setup raises them to {INOTIFY_WATCHES} and {INOTIFY_INSTANCES}.")]
    what = f"The inotify limits are low ({shown}); pods of a 3-node cluster fail with `too many open files`."
    return [warning("inotify", what, _sysctl_mend())]


def _sysctl_mend() -> str:
    return (
        f"sudo sysctl fs.inotify.max_user_watches={INOTIFY_WATCHES} fs.inotify.max_user_instances={INOTIFY_INSTANCES}"
    )


def _memory(settings: Settings, host: HostFacts, engine: EngineFacts | None, lab: LabFacts) -> list[Finding]:
    engine_bytes = engine.memory_bytes if engine else 0
    known = [b for b in (engine_bytes, host.memory_limit_bytes, host.memory_total_bytes) if b]
    if not known:
        return []
    total = min(known)
    if total < MIN_MEMORY_BYTES * MEMORY_TOLERANCE:
        desktop = bool(engine and engine.is_desktop)
        mend = "Docker Desktop, Settings, Resources: raise the memory" if desktop else "give the machine more memory"
        what = f"{_gib(total)} of memory; the lab needs {_gib(MIN_MEMORY_BYTES)}."
        return [Finding("memory", unless_running(lab, Level.ERROR), what, mend)]
    more = MONITORING_MEMORY_BYTES.get(settings.monitoring, 0)
    if total < (MIN_MEMORY_BYTES + more) * MEMORY_TOLERANCE:
        what = f"{_gib(total)} of memory; with MONITORING={settings.monitoring} the lab needs {_gib(MIN_MEMORY_BYTES + more)}."
        mend = "MONITORING=lite, which needs less, or MONITORING=none"
        return [Finding("memory", unless_running(lab, Level.WARNING), what, mend)]
    available = host.memory_available_bytes
    if available is not None and available < MIN_MEMORY_BYTES / 2 and not (engine and engine.is_desktop):
        what = f"Only {_gib(available)} of {_gib(total)} of memory are free."
        return [Finding("memory", unless_running(lab, Level.WARNING), what, "end some programs before setup")]
    return [ok("memory", _gib(total))]


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
            found.append(ok("disk", f"{_gib(free)} free for {place}"))
            continue
        found.append(
            Finding(
                "disk",
                unless_running(lab, Level.ERROR),
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
        return [warning("container", what, "start it with --pids-limit=-1")]
    limit = f", limited to {_gib(host.memory_limit_bytes)} of memory" if host.memory_limit_bytes else ""
    return [info("container", f"This is a container{limit}: its limits are the nodes' too.")]


def _version(text: str) -> tuple[int, ...]:
    numbers = text.split("-")[0].split(".")
    return tuple(int(n) for n in numbers if n.isdigit())


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
