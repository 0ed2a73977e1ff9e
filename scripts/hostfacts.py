"""What this machine and its container engine are like: facts only, judged by preflight.

Each function reads one thing and returns nothing (None, empty) where the system doesn't tell. Linux and macOS.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts import bounded_runc
from scripts.bounded_runc import CAPABILITIES
from scripts.errors import LabError
from scripts.process import CommandError, run

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
REQUIRED_PROGRAMS = ("git", "tar")
# Who listens here stands in the way of a port on 127.0.0.1.
LOOPBACK_LISTENERS = frozenset({"127.0.0.1", "0.0.0.0", "::"})

_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_LISTEN = "0A"
_URL_USER = re.compile(r"(?<=//)[^/\s]+(?=@)")
_BARE_USER = re.compile(r"^[^/\s]+(?=@)")

Network = ipaddress.IPv4Network


@dataclass(frozen=True)
class PortHolder:
    """A process that listens on a port; without a name where the system doesn't show it (another user's)."""

    port: int
    address: str
    pid: int | None = None
    process: str = ""

    def __str__(self) -> str:
        if not self.process:
            return "a process of another user (`sudo lsof -i` shows it)"
        return f"{self.process} (pid {self.pid})"


@dataclass(frozen=True)
class Route:
    """A route of this machine, other than the default one."""

    interface: str
    network: Network


@dataclass(frozen=True)
class EngineFacts:
    """What the container engine says of itself (`docker info`)."""

    product: str
    version: str
    storage_driver: str
    containerd_image_store: bool
    cgroup_driver: str
    cgroup_version: int
    rootless: bool
    memory_bytes: int
    cpus: int
    root_dir: str
    operating_system: str
    default_runtime: str

    @property
    def is_desktop(self) -> bool:
        """Whether the engine runs in a virtual machine of its own, with its own memory and disk."""
        return "desktop" in self.operating_system.lower()


@dataclass(frozen=True)
class HostFacts:
    """What this machine is like."""

    system: str
    is_root: bool = False
    in_container: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    python: tuple[int, int] = (3, 11)
    programs: Mapping[str, str] = field(default_factory=dict)
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_limit_bytes: int | None = None
    pids_limit: int | None = None
    cache_free_bytes: int | None = None
    engine_free_bytes: int | None = None
    one_filesystem: bool = True
    cgroup_version: int | None = None
    missing_capabilities: tuple[str, ...] = ()
    inotify_watches: int | None = None
    inotify_instances: int | None = None
    port_holders: tuple[PortHolder, ...] = ()
    routes: tuple[Route, ...] = ()
    proxies: Mapping[str, str] = field(default_factory=dict)
    no_proxy: str = ""


def gather(cache_dir: Path, ports: Iterable[int], environ: Mapping[str, str], engine_root: str = "") -> HostFacts:
    """Return the facts of this machine.

    Args:
        cache_dir: the lab's cache, which needs not exist yet.
        ports: the ports whose holders are looked up.
        environ: the environment, for PATH and the proxy variables.
        engine_root: where the engine keeps its data, if that is on this machine.
    """
    total, available = memory()
    engine_path = Path(engine_root) if engine_root and _is_visible(Path(engine_root)) else None
    return HostFacts(
        system=system(),
        is_root=os.geteuid() == 0,
        in_container=in_container(),
        now=datetime.now(UTC),
        python=(sys.version_info.major, sys.version_info.minor),
        programs=programs(REQUIRED_PROGRAMS, environ.get("PATH", os.defpath)),
        memory_total_bytes=total,
        memory_available_bytes=available,
        memory_limit_bytes=memory_limit(),
        pids_limit=pids_limit(),
        cache_free_bytes=disk_free(cache_dir),
        engine_free_bytes=disk_free(engine_path) if engine_path else None,
        one_filesystem=engine_path is None or _device(engine_path) == _device(cache_dir),
        cgroup_version=cgroup_version(),
        missing_capabilities=missing_capabilities(),
        inotify_watches=read_int(Path("/proc/sys/fs/inotify/max_user_watches")),
        inotify_instances=read_int(Path("/proc/sys/fs/inotify/max_user_instances")),
        port_holders=port_holders(ports),
        routes=routes(),
        proxies=proxies(environ),
        no_proxy=environ.get("no_proxy", "") or environ.get("NO_PROXY", ""),
    )


def system() -> str:
    """Return "linux" or "darwin"; raises LabError for another system."""
    name = platform.system().lower()
    if name not in ("linux", "darwin"):
        raise LabError(f"{platform.system()} is not supported.", "run the lab on Linux (WSL 2 is one) or macOS")
    return name


def current_platform() -> str:
    """Return this machine's platform as Go and container images write it, as in "linux/amd64"."""
    machine = platform.machine().lower()
    if machine not in _MACHINES:
        raise LabError(f"A {machine} processor is not supported.", "run the lab on amd64 or arm64")
    return f"{system()}/{_MACHINES[machine]}"


def memory() -> tuple[int | None, int | None]:
    """Return the bytes of memory in total and available."""
    text = _read(Path("/proc/meminfo"))
    if text:
        sizes = {m[1]: int(m[2]) * 1024 for m in re.finditer(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        return sizes.get("MemTotal"), sizes.get("MemAvailable")
    total = _output(["sysctl", "-n", "hw.memsize"]).strip()
    return (int(total) if total.isdigit() else None), None


def memory_limit(cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory that this process's container may use, or None without a limit."""
    limit = read_int(cgroups / "memory.max") or read_int(cgroups / "memory" / "memory.limit_in_bytes")
    # cgroup v1 writes "no limit" as the largest page-aligned number.
    return limit if limit and limit < 2**60 else None


def pids_limit(cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many processes this process's container may have, or None without a limit."""
    return read_int(cgroups / "pids.max") or read_int(cgroups / "pids" / "pids.max")


def disk_free(path: Path) -> int | None:
    """Return the free bytes of the filesystem that holds a path, or would."""
    try:
        return shutil.disk_usage(_nearest(path)).free
    except OSError:
        return None


def cgroup_version(cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return 2 or 1 (which includes the hybrid layout), or None where there are no cgroups."""
    if (cgroups / "cgroup.controllers").exists():
        return 2
    return 1 if (cgroups / "memory").exists() or (cgroups / "unified").exists() else None


def missing_capabilities(
    status: Path = Path("/proc/self/status"), last: Path = Path("/proc/sys/kernel/cap_last_cap")
) -> tuple[str, ...]:
    """Return what `--privileged` asks for and this process's bounding set lacks, as in ("CAP_SYS_RESOURCE",)."""
    text = _read(status)
    if "CapBnd:" not in text:
        return ()
    allowed = bounded_runc.bounding_set(text)
    last_cap = read_int(last)
    # A kernel older than the table doesn't know the table's end, and nobody asks it for that.
    known = CAPABILITIES if last_cap is None else CAPABILITIES[: last_cap + 1]
    return tuple(f"CAP_{name}" for name in known if f"CAP_{name}" not in allowed)


def in_container() -> bool:
    """Whether this process itself runs in a container."""
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return True
    return bool(re.search(r"/(docker|kubepods|containerd|lxc)[/-]", _read(Path("/proc/1/cgroup"))))


def programs(names: Iterable[str], path: str) -> dict[str, str]:
    """Return where each program is on PATH; "" for one that isn't."""
    return {name: shutil.which(name, path=path) or "" for name in names}


def port_holders(ports: Iterable[int], proc: Path = Path("/proc")) -> tuple[PortHolder, ...]:
    """Return who listens on any of the ports."""
    wanted = set(ports)
    if (proc / "net" / "tcp").exists():
        return _linux_port_holders(wanted, proc)
    holders: list[PortHolder] = []
    for port in sorted(wanted):
        found = parse_lsof(port, _output(["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpcn"]))
        # lsof shows no process of another user; that its port is taken shows all the same.
        holders += found or ([PortHolder(port, "127.0.0.1")] if not _can_listen(port) else [])
    return tuple(holders)


def parse_lsof(port: int, text: str) -> list[PortHolder]:
    """Return the listeners that `lsof -Fpcn` shows."""
    holders: list[PortHolder] = []
    pid, process = None, ""
    for line in text.splitlines():
        key, value = line[:1], line[1:]
        if key == "p":
            pid, process = int(value), ""
        elif key == "c":
            process = value
        elif key == "n":
            address = value.rpartition(":")[0].strip("[]").replace("*", "0.0.0.0")
            holders.append(PortHolder(port, address, pid, process))
    return holders


def routes() -> tuple[Route, ...]:
    """Return this machine's IPv4 routes but the default ones."""
    text = _read(Path("/proc/net/route"))
    return parse_proc_route(text) if text else parse_netstat(_output(["netstat", "-rn", "-f", "inet"]))


def parse_proc_route(text: str) -> tuple[Route, ...]:
    """Return the routes of /proc/net/route."""
    found = []
    for line in text.splitlines()[1:]:
        columns = line.split()
        if len(columns) < 8:
            continue
        address, mask = (int.from_bytes(bytes.fromhex(columns[i]), "little") for i in (1, 7))
        prefix = mask.bit_count()
        if prefix:
            found.append(Route(columns[0], Network((address, prefix), strict=False)))
    return tuple(found)


def parse_netstat(text: str) -> tuple[Route, ...]:
    """Return the routes of macOS's `netstat -rn`, which leaves out trailing zeros ("10.8/16", "192.168.1")."""
    found = []
    for line in text.splitlines():
        columns = line.split()
        if len(columns) < 4 or not re.fullmatch(r"\d+(\.\d+){0,3}(/\d+)?", columns[0]):
            continue
        address, _, prefix = columns[0].partition("/")
        octets = address.split(".")
        full = ".".join([*octets, *["0"] * (4 - len(octets))])
        network = Network(f"{full}/{prefix or 8 * len(octets)}", strict=False)
        if network.prefixlen:
            found.append(Route(columns[3], network))
    return tuple(found)


def proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the proxy variables that are set, passwords masked; a name in lower case wins, as programs take it."""
    found = {}
    for name in PROXY_VARIABLES:
        value = environ.get(name.lower(), "") or environ.get(name, "")
        if value:
            found[name] = mask_credentials(value)
    return found


def mask_credentials(text: str) -> str:
    """Return a text with the user and password in its URLs replaced by `***`."""
    return _BARE_USER.sub("***", _URL_USER.sub("***", text))


def parse_engine_info(info: Mapping[str, Any]) -> EngineFacts:
    """Return the facts of `docker info --format '{{json .}}'`, also as podman-docker answers it."""
    if "host" in info:
        return _podman_facts(info)
    driver_status = [tuple(pair) for pair in info.get("DriverStatus") or []]
    version = str(info.get("CgroupVersion") or "1")
    return EngineFacts(
        product="docker",
        version=str(info.get("ServerVersion") or ""),
        storage_driver=str(info.get("Driver") or ""),
        containerd_image_store=any(str(value).startswith("io.containerd.snapshotter") for _, value in driver_status),
        cgroup_driver=str(info.get("CgroupDriver") or ""),
        cgroup_version=int(version) if version.isdigit() else 1,
        rootless=any("rootless" in str(option) for option in info.get("SecurityOptions") or []),
        memory_bytes=int(info.get("MemTotal") or 0),
        cpus=int(info.get("NCPU") or 0),
        root_dir=str(info.get("DockerRootDir") or ""),
        operating_system=str(info.get("OperatingSystem") or ""),
        default_runtime=str(info.get("DefaultRuntime") or ""),
    )


def read_int(path: Path) -> int | None:
    """Return the number that a file of the kernel holds, or None."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _podman_facts(info: Mapping[str, Any]) -> EngineFacts:
    host, store = info.get("host") or {}, info.get("store") or {}
    return EngineFacts(
        product="podman",
        version=str((info.get("version") or {}).get("Version") or ""),
        storage_driver=str(store.get("graphDriverName") or ""),
        containerd_image_store=False,
        cgroup_driver=str(host.get("cgroupManager") or ""),
        cgroup_version=2 if host.get("cgroupVersion") == "v2" else 1,
        rootless=bool((host.get("security") or {}).get("rootless")),
        memory_bytes=int(host.get("memTotal") or 0),
        cpus=int(host.get("cpus") or 0),
        root_dir=str(store.get("graphRoot") or ""),
        operating_system=str((host.get("distribution") or {}).get("distribution") or ""),
        default_runtime=str((host.get("ociRuntime") or {}).get("name") or ""),
    )


def _linux_port_holders(ports: set[int], proc: Path) -> tuple[PortHolder, ...]:
    sockets: dict[str, tuple[int, str]] = {}
    for table in ("tcp", "tcp6"):
        for line in _read(proc / "net" / table).splitlines()[1:]:
            columns = line.split()
            address, _, port = columns[1].rpartition(":")
            if columns[3] == _LISTEN and int(port, 16) in ports:
                sockets[columns[9]] = (int(port, 16), _address(address))
    owners = _socket_owners(set(sockets), proc) if sockets else {}
    return tuple(PortHolder(port, address, *owners.get(inode, ())) for inode, (port, address) in sockets.items())


def _socket_owners(inodes: set[str], proc: Path) -> dict[str, tuple[int, str]]:
    """Return process id and name of each socket's holder, as far as this user may see."""
    links = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, tuple[int, str]] = {}
    for folder in proc.glob("[0-9]*"):
        try:
            for descriptor in (folder / "fd").iterdir():
                inode = links.get(str(descriptor.readlink()))
                if inode:
                    found[inode] = (int(folder.name), _read(folder / "comm").strip())
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def _can_listen(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _address(hexadecimal: str) -> str:
    """Return an address of /proc/net/tcp{,6}, which is written in words of the machine's byte order."""
    raw = bytes.fromhex(hexadecimal)
    words = b"".join(
        raw[i : i + 4][::-1] if sys.byteorder == "little" else raw[i : i + 4] for i in range(0, len(raw), 4)
    )
    address = ipaddress.ip_address(words)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(args: list[str]) -> str:
    try:
        return run(args, timeout_s=10, check=False).stdout
    except CommandError:
        return ""


def _nearest(path: Path) -> Path:
    """Return the path or its nearest parent that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _device(path: Path) -> int | None:
    try:
        return _nearest(path).stat().st_dev
    except OSError:
        return None


def _is_visible(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
