import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts import hostfacts
from scripts.hostfacts import EngineFacts, Network, PortHolder, Route

GIB = 1024**3

DOCKER_20 = {
    "ServerVersion": "20.10.24+dfsg1",
    "Driver": "overlay2",
    "DriverStatus": [["Backing Filesystem", "extfs"], ["Supports d_type", "true"]],
    "CgroupDriver": "cgroupfs",
    "CgroupVersion": "1",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "MemTotal": 24 * GIB,
    "NCPU": 2,
    "DockerRootDir": "/var/lib/docker",
    "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
    "DefaultRuntime": "bounded",
}
DOCKER_29 = {
    "ServerVersion": "29.1.2",
    "Driver": "overlayfs",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns", "name=rootless"],
    "MemTotal": 16 * GIB,
    "NCPU": 8,
    "DockerRootDir": "/home/me/.local/share/docker",
    "OperatingSystem": "Ubuntu 26.04 LTS",
    "DefaultRuntime": "runc",
}
DESKTOP = {
    "ServerVersion": "28.4.0",
    "Driver": "stargz",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "CgroupDriver": "cgroupfs",
    "CgroupVersion": "2",
    "SecurityOptions": ["name=seccomp,profile=unconfined", "name=cgroupns"],
    "MemTotal": 8 * GIB,
    "NCPU": 10,
    "DockerRootDir": "/var/lib/docker",
    "OperatingSystem": "Docker Desktop",
    "DefaultRuntime": "runc",
}
PODMAN = {
    "host": {
        "cgroupManager": "systemd",
        "cgroupVersion": "v2",
        "cpus": 4,
        "memTotal": 8 * GIB,
        "distribution": {"distribution": "fedora", "version": "43"},
        "ociRuntime": {"name": "crun"},
        "security": {"rootless": True},
    },
    "store": {"graphDriverName": "overlay", "graphRoot": "/home/me/.local/share/containers/storage"},
    "version": {"Version": "5.6.2"},
}
# An engine that is not there: the client answers alone.
BARE = {"ServerErrors": ["Cannot connect to the Docker daemon"], "DriverStatus": None, "SecurityOptions": None}


@pytest.mark.parametrize(
    ("info", "facts", "desktop"),
    [
        (DOCKER_20, EngineFacts("docker", "20.10.24+dfsg1", "overlay2", False, "cgroupfs", 1, False, 24 * GIB, 2, "/var/lib/docker", "Debian GNU/Linux 12 (bookworm)", "bounded"), False),
        (DOCKER_29, EngineFacts("docker", "29.1.2", "overlayfs", True, "systemd", 2, True, 16 * GIB, 8, "/home/me/.local/share/docker", "Ubuntu 26.04 LTS", "runc"), False),
        (DESKTOP, EngineFacts("docker", "28.4.0", "stargz", True, "cgroupfs", 2, False, 8 * GIB, 10, "/var/lib/docker", "Docker Desktop", "runc"), True),
        (PODMAN, EngineFacts("podman", "5.6.2", "overlay", False, "systemd", 2, True, 8 * GIB, 4, "/home/me/.local/share/containers/storage", "fedora", "crun"), False),
        (BARE, EngineFacts("docker", "", "", False, "", 1, False, 0, 0, "", "", ""), False),
    ],
    ids=["docker 20.10", "docker 29 rootless", "docker desktop", "podman-docker", "no server"],
)  # fmt: skip
def test_engines_are_told_apart(info: Mapping[str, Any], facts: EngineFacts, desktop: bool) -> None:
    found = hostfacts.parse_engine_info(info)
    assert found == facts
    assert found.is_desktop is desktop


@pytest.mark.parametrize(
    ("bounding", "last", "missing"),
    [
        ("000001ffffffffff", "40", ()),
        ("000001fffeffffff", "40", ("CAP_SYS_RESOURCE",)),
        ("0000003fffffffff", "37", ()),
        ("0000003fffffffff", "40", ("CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE")),
        ("000001fffffffffe", "", ("CAP_CHOWN",)),
    ],
)
def test_missing_capabilities_are_those_the_kernel_knows(
    tmp_path: Path, bounding: str, last: str, missing: tuple[str, ...]
) -> None:
    (tmp_path / "status").write_text(f"Name:\tx\nCapEff:\t0000000000000000\nCapBnd:\t{bounding}\n")
    (tmp_path / "last").write_text(f"{last}\n")
    assert hostfacts.missing_capabilities(tmp_path / "status", tmp_path / "last") == missing


def test_a_system_without_capabilities_lacks_none(tmp_path: Path) -> None:
    assert hostfacts.missing_capabilities(tmp_path / "status", tmp_path / "last") == ()


@pytest.mark.parametrize(
    ("files", "version"),
    [({"cgroup.controllers": ""}, 2), ({"memory/x": ""}, 1), ({"unified/x": "", "memory/x": ""}, 1), ({}, None)],
)
def test_cgroup_versions(tmp_path: Path, files: dict[str, str], version: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hostfacts.cgroup_version(tmp_path) == version


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("memory.max", "max", None),
        ("memory.max", "4294967296", 4 * GIB),
        ("memory/memory.limit_in_bytes", "9223372036854771712", None),
        ("memory/memory.limit_in_bytes", "4294967296", 4 * GIB),
    ],
)
def test_the_memory_limit_of_a_container(tmp_path: Path, name: str, text: str, limit: int | None) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text + "\n")
    assert hostfacts.memory_limit(tmp_path) == limit


def loopbacks() -> list[tuple[socket.AddressFamily, str]]:
    """Return the loopback addresses that this machine has: one without IPv6 is no less fit."""
    has = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind((address, 0))
            has.append((family, address))
    return has


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("family", "address"), loopbacks())
def test_the_holder_of_a_port_is_this_very_process(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        comm = Path("/proc/self/comm").read_text().strip()
        assert hostfacts.port_holders([port]) == (PortHolder(port, address, os.getpid(), comm),)
    assert hostfacts.port_holders([port]) == ()


def test_a_port_that_is_only_connected_from_is_not_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert hostfacts.port_holders([client.getsockname()[1]]) == ()


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample is of a little-endian machine")
def test_a_holder_that_may_not_be_seen_has_no_name(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  1000        0 {} 1 0 100 0 0 10 0\n"
    (tmp_path / "net" / "tcp").write_text(
        head + row.format("00000000:1F90", "0A", 7) + row.format("0100007F:1F90", "01", 8)
    )
    mapped = "0000000000000000FFFF00000100007F:1389"
    (tmp_path / "net" / "tcp6").write_text(head + row.format(mapped, "0A", 9))
    found = hostfacts.port_holders([8080, 5001], tmp_path)
    assert found == (PortHolder(8080, "0.0.0.0"), PortHolder(5001, "127.0.0.1"))
    assert str(found[0]).startswith("a process of another user")


def test_lsof_is_read() -> None:
    text = "p402\ncControlCe\nf9\nn*:5000\nf10\nn[::1]:5000\np77\ncpython3.1\nf3\nn127.0.0.1:5000\n"
    assert hostfacts.parse_lsof(5000, text) == [
        PortHolder(5000, "0.0.0.0", 402, "ControlCe"),
        PortHolder(5000, "::1", 402, "ControlCe"),
        PortHolder(5000, "127.0.0.1", 77, "python3.1"),
    ]


def test_a_port_is_known_as_taken_where_lsof_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostfacts, "_output", lambda args: "")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert hostfacts.port_holders([port], tmp_path) == (PortHolder(port, "127.0.0.1"),)
    assert hostfacts.port_holders([port], tmp_path) == ()


def test_the_routes_of_linux_are_read_without_the_default() -> None:
    text = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n"
    )
    assert hostfacts.parse_proc_route(text) == (
        Route("docker0", Network("172.17.0.0/16")),
        Route("tun0", Network("10.0.0.0/8")),
    )


def test_the_routes_of_macos_are_read_without_the_default() -> None:
    text = (
        "Routing tables\n\nInternet:\nDestination        Gateway            Flags               Netif Expire\n"
        "default            192.168.1.1        UGScg                 en0\n"
        "10.8/16            10.8.0.5           UGSc                utun4\n"
        "127                127.0.0.1          UCS                   lo0\n"
        "172.16/12          link#20            UCS                 utun4      !\n"
        "192.168.1          link#14            UCS                   en0      !\n"
        "192.168.1.7/32     link#14            UCS                   en0      !\n"
    )
    assert [str(r.network) for r in hostfacts.parse_netstat(text)] == [
        "10.8.0.0/16",
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.168.1.0/24",
        "192.168.1.7/32",
    ]
    assert hostfacts.parse_netstat(text)[0].interface == "utun4"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://me:secret@proxy:3128/", "http://***@proxy:3128/"),
        ("http://me:se@cret@proxy:3128", "http://***@proxy:3128"),
        ("me:secret@proxy:3128", "***@proxy:3128"),
        ("no url at http://a:b@c/x and https://d:e@f", "no url at http://***@c/x and https://***@f"),
    ],
)
def test_passwords_in_addresses_are_masked(text: str, masked: str) -> None:
    assert hostfacts.mask_credentials(text) == masked


def test_proxies_are_shown_masked_and_in_one_case() -> None:
    found = hostfacts.proxies({"HTTPS_PROXY": "http://upper", "https_proxy": "http://a:b@lower", "ALL_PROXY": ""})
    assert found == {"HTTPS_PROXY": "http://***@lower"}


@pytest.mark.parametrize(
    ("machine", "system", "name"),
    [("x86_64", "Linux", "linux/amd64"), ("aarch64", "Linux", "linux/arm64"), ("arm64", "Darwin", "darwin/arm64")],
)
def test_the_platform_is_named_as_go_names_it(
    monkeypatch: pytest.MonkeyPatch, machine: str, system: str, name: str
) -> None:
    monkeypatch.setattr(hostfacts.platform, "machine", lambda: machine)
    monkeypatch.setattr(hostfacts.platform, "system", lambda: system)
    assert hostfacts.current_platform() == name


@pytest.mark.parametrize(("machine", "system"), [("riscv64", "Linux"), ("x86_64", "Windows")])
def test_another_platform_is_refused(monkeypatch: pytest.MonkeyPatch, machine: str, system: str) -> None:
    monkeypatch.setattr(hostfacts.platform, "machine", lambda: machine)
    monkeypatch.setattr(hostfacts.platform, "system", lambda: system)
    with pytest.raises(hostfacts.LabError, match="is not supported"):
        hostfacts.current_platform()


def test_the_facts_of_this_machine_are_gathered(tmp_path: Path) -> None:
    found = hostfacts.gather(tmp_path / "not" / "there" / "yet", [], {"PATH": os.environ["PATH"]}, str(tmp_path))
    assert found.memory_total_bytes
    # One file system, asked twice: other tests write meanwhile.
    assert found.cache_free_bytes == pytest.approx(found.engine_free_bytes, abs=1024**3)
    assert found.one_filesystem
    assert found.programs["git"]
    assert found.proxies == {}
    assert found.system == hostfacts.system()


def test_the_folder_of_an_engine_elsewhere_is_not_measured(tmp_path: Path) -> None:
    found = hostfacts.gather(tmp_path, [], {}, "/var/lib/docker-of-another-machine")
    assert found.engine_free_bytes is None
    assert found.one_filesystem
