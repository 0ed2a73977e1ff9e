from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scripts import console, preflight
from scripts.errors import PreflightError
from scripts.hostfacts import EngineFacts, HostFacts, Network, PortHolder, Route
from scripts.preconditions import ClusterState, Finding, LabFacts, Level
from scripts.preflight_network import wanted_ports
from scripts.settings import Edge, ImageSource, Settings

GIB = 1024**3
SETTINGS = Settings(cache_dir=Path("/cache"))
HOST = HostFacts(
    system="linux",
    now=datetime(2026, 12, 1, tzinfo=UTC),
    programs={"git": "/usr/bin/git", "tar": "/usr/bin/tar"},
    memory_total_bytes=16 * GIB,
    memory_available_bytes=12 * GIB,
    cache_free_bytes=100 * GIB,
    cgroup_version=2,
    inotify_watches=524288,
    inotify_instances=512,
)
ENGINE = EngineFacts(
    product="docker",
    version="28.4.0",
    storage_driver="overlay2",
    containerd_image_store=False,
    cgroup_driver="systemd",
    cgroup_version=2,
    rootless=False,
    memory_bytes=16 * GIB,
    cpus=8,
    root_dir="/var/lib/docker",
    operating_system="Debian",
    default_runtime="runc",
)
LAB = LabFacts()
DESKTOP = {"operating_system": "Docker Desktop"}
VPN = Route("tun0", Network("172.30.0.0/25"))
PROXY = {"HTTPS_PROXY": "http://***@proxy:3128"}
ALL_LAB_HOSTS = "127.0.0.1,localhost,registry.lab,gitops-lab-registry,gitops-lab-git"


def findings(
    settings: dict[str, Any] | None = None,
    host: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    lab: dict[str, Any] | None = None,
    *,
    source: ImageSource = ImageSource.REGISTRY,
    warm: bool = False,
    no_engine: bool = False,
) -> list[Finding]:
    return preflight.check(
        replace(SETTINGS, **(settings or {})),
        replace(HOST, **(host or {})),
        None if no_engine else replace(ENGINE, **(engine or {})),
        replace(LAB, **(lab or {})),
        source=source,
        warm=warm,
    )


def test_a_good_machine_has_nothing_to_mend() -> None:
    assert {f.level for f in findings()} == {Level.OK}
    preflight.require(findings())


SOURCE, REGISTRY = ImageSource.SOURCE, ImageSource.REGISTRY
E, W, I, OK = Level.ERROR, Level.WARNING, Level.INFO, Level.OK  # noqa: E741
HELD = (PortHolder(8080, "0.0.0.0", 4242, "nginx"),)

CASES: list[tuple[str, dict[str, Any], str, Level, str, str]] = [
    # name, facts that differ, finding, level, what it says, what mends it
    ("git missing", {"host": {"programs": {"git": ""}}}, "git", E, "git is not on PATH.", "apt-get install git"),
    ("git missing, mac", {"host": {"system": "darwin", "programs": {"git": ""}}}, "git", E, "git is", "xcode-select --install"),
    ("old python", {"host": {"python": (3, 10)}}, "python", E, "Python 3.10 is too old.", "install Python 3.11 or later"),
    ("clock behind", {"host": {"now": datetime(1970, 1, 1, tzinfo=UTC)}}, "clock", E, "1970-01-01", "timedatectl set-ntp true"),
    ("clock ahead", {"host": {"now": datetime(2060, 1, 1, tzinfo=UTC)}}, "clock", W, "2060-01-01", "timedatectl"),
    ("no engine", {"no_engine": True}, "engine", E, "No container engine answers.", "sudo systemctl start docker"),
    ("no engine, mac", {"no_engine": True, "host": {"system": "darwin"}}, "engine", E, "No container", "open -a Docker"),
    ("no engine, root", {"no_engine": True, "lab": {"can_start_engine": True}}, "engine", I, "setup starts one", ""),
    ("old engine", {"engine": {"version": "19.03.15"}}, "engine", E, "Docker 19.03.15 is too old.", "Docker 20.10 or later"),
    ("debian's engine", {"engine": {"version": "20.10.24+dfsg1"}}, "engine", OK, "Docker 20.10.24+dfsg1", ""),
    ("podman", {"engine": {"product": "podman", "version": "5.6.2"}}, "engine", E, "podman 5.6.2 answers", "DOCKER_HOST"),
    ("one processor", {"engine": {"cpus": 1}}, "processors", W, "1 processor", "give it 2"),
    ("vfs", {"engine": {"storage_driver": "vfs"}}, "storage", W, "vfs copies every layer", "overlay2"),
    ("btrfs", {"engine": {"storage_driver": "btrfs"}}, "storage", W, "btrfs", "overlay2"),
    ("containerd's btrfs", {"engine": {"storage_driver": "btrfs", "containerd_image_store": True}}, "storage", OK, "btrfs", ""),
    ("docker 29", {"engine": {"containerd_image_store": True}}, "image-store", I, "by the registry", ""),
    ("rootless", {"engine": {"rootless": True}}, "rootless", W, "rootless", "kind.sigs.k8s.io/docs/user/rootless"),
    ("rootless, v1", {"engine": {"rootless": True, "cgroup_version": 1}}, "rootless", E, "cgroup v1", "unified_cgroup_hierarchy"),
    ("cgroup v1", {"engine": {"cgroup_version": 1}}, "cgroup", I, "cgroup v1", ""),
    ("cgroup v1 of host", {"no_engine": True, "host": {"cgroup_version": 1}}, "cgroup", I, "cgroup v1", ""),
    ("caps", {"host": {"missing_capabilities": ("CAP_SYS_RESOURCE",)}}, "capabilities", W, "CAP_SYS_RESOURCE", "stop that engine"),
    ("caps, bounded", {"host": {"missing_capabilities": ("CAP_BPF",)}, "engine": {"default_runtime": "bounded"}}, "capabilities", OK, "without CAP_BPF", ""),
    ("caps, our engine", {"host": {"missing_capabilities": ("CAP_BPF",)}, "no_engine": True}, "capabilities", I, "CAP_BPF", ""),
    ("few watches", {"host": {"inotify_watches": 8192}}, "inotify", W, "8192 watches, 512 instances", "sudo sysctl fs.inotify.max_user_watches=524288 fs.inotify.max_user_instances=512"),
    ("few instances, root", {"host": {"inotify_instances": 128, "is_root": True}}, "inotify", I, "setup raises them", ""),
    ("little memory", {"engine": {"memory_bytes": 4 * GIB}}, "memory", E, "4.0 GiB of memory; the lab needs 6.0 GiB.", "give the machine more"),
    ("little memory, desktop", {"engine": {"memory_bytes": 4 * GIB, **DESKTOP}}, "memory", E, "4.0 GiB", "Docker Desktop, Settings"),
    ("a machine of 6 GB", {"engine": {"memory_bytes": int(5.7 * GIB)}}, "memory", OK, "5.7 GiB", ""),
    ("limited container", {"host": {"memory_limit_bytes": 2 * GIB, "in_container": True}}, "memory", E, "2.0 GiB", "more memory"),
    ("little memory free", {"host": {"memory_available_bytes": GIB}}, "memory", W, "Only 1.0 GiB of 16.0 GiB", "end some programs"),
    ("little memory, running", {"engine": {"memory_bytes": 4 * GIB}, "lab": {"cluster": ClusterState.OURS}}, "memory", I, "4.0 GiB", ""),
    ("disk, registry", {"host": {"cache_free_bytes": 11 * GIB}}, "disk", E, "11.0 GiB of disk free for /cache; the lab needs 12.0 GiB", "free some space"),
    ("disk, cold source", {"host": {"cache_free_bytes": 29 * GIB}, "source": SOURCE}, "disk", E, "a first build needs 30.0 GiB", "IMAGE_SOURCE=registry"),
    ("disk, warm source", {"host": {"cache_free_bytes": 9 * GIB}, "source": SOURCE, "warm": True}, "disk", OK, "9.0 GiB", ""),
    ("disk, warm source, less", {"host": {"cache_free_bytes": 7 * GIB}, "source": SOURCE, "warm": True}, "disk", E, "needs 8.0 GiB", "free some"),
    ("disk, running", {"host": {"cache_free_bytes": GIB}, "lab": {"cluster": ClusterState.OURS}}, "disk", I, "1.0 GiB", ""),
    ("disk of the engine", {"host": {"one_filesystem": False, "engine_free_bytes": 3 * GIB}}, "disk", E, "3.0 GiB of disk free for the engine's folder; the lab needs 12.0 GiB", "docker system prune"),
    ("disk of the engine, source", {"host": {"one_filesystem": False, "engine_free_bytes": 9 * GIB}, "source": SOURCE}, "disk", OK, "9.0 GiB free for the engine", ""),
    ("small cache, own disk", {"host": {"one_filesystem": False, "engine_free_bytes": 50 * GIB, "cache_free_bytes": 2 * GIB}}, "disk", OK, "2.0 GiB free for /cache", ""),
    ("in a container", {"host": {"in_container": True}}, "container", I, "This is a container", ""),
    ("few processes", {"host": {"in_container": True, "pids_limit": 512}}, "container", W, "512 processes", "--pids-limit=-1"),
    ("no subnet", {"settings": {"subnet": "lab"}}, "subnet", E, "SUBNET=lab is no private IPv4 subnet", "SUBNET=172.30.0.0/24"),
    ("public subnet", {"settings": {"subnet": "8.8.8.0/24"}}, "subnet", E, "SUBNET=8.8.8.0/24", "SUBNET="),
    ("tiny subnet", {"settings": {"subnet": "172.30.0.0/29"}}, "subnet", E, "/16 to /26", "SUBNET="),
    ("host bits", {"settings": {"subnet": "172.30.0.1/24"}}, "subnet", E, "SUBNET=172.30.0.1/24", "SUBNET="),
    ("vpn inside", {"settings": {"subnet": "172.30.0.0/24"}, "host": {"routes": (VPN,)}}, "subnet", E, "172.30.0.0/25 by tun0", "choose another"),
    ("vpn around", {"settings": {"subnet": "172.30.0.0/24"}, "host": {"routes": (Route("tun0", Network("172.16.0.0/12")),)}}, "subnet", W, "will be hidden", "choose another"),
    ("vpn for all", {"settings": {"subnet": "172.30.0.0/24"}, "host": {"routes": (Route("tun0", Network("128.0.0.0/1")),)}}, "subnet", OK, "172.30.0.0/24", ""),
    ("other network", {"settings": {"subnet": "172.18.0.0/24"}, "lab": {"networks": {"kind": ("172.18.0.0/16", "fc00::/64")}}}, "subnet", E, "network kind (172.18.0.0/16)", "choose another"),
    ("another than the lab's", {"settings": {"subnet": "172.30.0.0/24"}, "lab": {"networks": {"gitops-lab": ("172.19.0.0/16",)}}}, "subnet", E, "not SUBNET=172.30.0.0/24", "make teardown first"),
    ("own network", {"host": {"routes": (Route("br-1", Network("172.19.0.0/16")),)}, "lab": {"networks": {"gitops-lab": ("172.19.0.0/16",)}}}, "subnet", OK, "172.19.0.0/16", ""),
    ("own network and vpn", {"host": {"routes": (Route("tun0", Network("172.19.4.0/24")),)}, "lab": {"networks": {"gitops-lab": ("172.19.0.0/16",)}}}, "subnet", E, "172.19.4.0/24 by tun0", "after make teardown"),
    ("port taken", {"host": {"port_holders": HELD}}, "port", E, "Port 8080 (EDGE_PORT) is taken by nginx (pid 4242).", "end that process, or EDGE_PORT=<another port>"),
    ("port taken by another user", {"host": {"port_holders": (PortHolder(8090, "::"),)}}, "port", E, "Port 8090 (GIT_PORT) is taken by a process of another user", "GIT_PORT="),
    ("port taken by airplay", {"settings": {"registry_port": 5000}, "host": {"port_holders": (PortHolder(5000, "0.0.0.0", 402, "ControlCe"),)}}, "port", E, "ControlCe (pid 402)", "AirPlay Receiver"),
    ("port taken by a container", {"lab": {"container_ports": {5001: "registry"}}}, "port", E, "Port 5001 (REGISTRY_PORT) is taken by the container registry.", "docker stop registry"),
    ("port held by this lab", {"host": {"port_holders": HELD}, "lab": {"own_ports": frozenset({8080})}}, "port", OK, "8080 is held by this lab", ""),
    ("port taken elsewhere", {"host": {"port_holders": (PortHolder(8080, "192.168.1.7", 1, "x"), PortHolder(8080, "::1", 1, "x"))}}, "port", OK, "8080 is free", ""),
    ("proxy, no exception", {"host": {"proxies": PROXY}}, "proxy", E, "HTTPS_PROXY=http://***@proxy:3128", f"export NO_PROXY={ALL_LAB_HOSTS} no_proxy={ALL_LAB_HOSTS}"),
    ("proxy, some exceptions", {"host": {"proxies": PROXY, "no_proxy": "corp, localhost,.lab,127.0.0.0/8"}}, "proxy", E, "leaves out gitops-lab-registry, gitops-lab-git:", "export NO_PROXY=corp,localhost,.lab,127.0.0.0/8,gitops-lab-registry,gitops-lab-git "),
    ("proxy, all exceptions", {"host": {"proxies": PROXY, "no_proxy": ALL_LAB_HOSTS}}, "proxy", OK, "http://***@proxy:3128", ""),
    ("proxy, none used", {"host": {"proxies": PROXY, "no_proxy": "*"}}, "proxy", OK, "proxy", ""),
    ("foreign cluster", {"lab": {"cluster": ClusterState.FOREIGN}}, "cluster", E, "A kind cluster named gitops-lab is there that this lab did not make", "CLUSTER_NAME=<another name>"),
    ("own cluster", {"lab": {"cluster": ClusterState.OURS, "context_server": "https://127.0.0.1:1"}}, "cluster", OK, "gitops-lab is there", ""),
    ("left-over context", {"lab": {"context_server": "https://127.0.0.1:40001"}}, "cluster", W, "kind-gitops-lab", "kubectl config delete-context kind-gitops-lab"),
    ("somebody's context", {"lab": {"context_server": "https://prod.example:6443"}}, "cluster", E, "https://prod.example:6443", "CLUSTER_NAME=<another name>"),
    ("context unreachable", {"settings": {"kube_context": "prod"}, "lab": {"context_problem": "there is none."}}, "context", E, "The cluster of KUBE_CONTEXT=prod can't be used: there is none.", "kubectl config get-contexts"),
    ("context without workers", {"settings": {"kube_context": "prod"}, "lab": {"unlabelled": ("a", "b")}}, "context", E, "No node of KUBE_CONTEXT=prod has the label node-role.kubernetes.io/worker", "kubectl --context prod label nodes a b node-role.kubernetes.io/worker="),
    ("context reachable", {"settings": {"kube_context": "prod"}}, "context", OK, "prod answers", ""),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "id", "level", "says", "mend"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_found(facts: dict[str, Any], id: str, level: Level, says: str, mend: str) -> None:
    found = [f for f in findings(**facts) if f.id == id and says in f.what]
    assert [f.level for f in found] == [level], findings(**facts)
    assert mend in found[0].mend
    if level in (Level.WARNING, Level.ERROR):
        assert found[0].mend, "a problem without the line that mends it"


@pytest.mark.parametrize("facts", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_a_broken_thing_is_found_once_and_breaks_nothing_else(facts: dict[str, Any]) -> None:
    assert len([f for f in findings(**facts) if f.level is Level.ERROR]) <= 1


def test_an_existing_cluster_needs_nothing_of_the_engine() -> None:
    ids = {
        f.id
        for f in findings(settings={"kube_context": "prod", "git_url": "https://github.com/me/lab"}, no_engine=True)
    }
    assert ids == {"git", "tar", "python", "clock", "proxy", "context"}


@pytest.mark.parametrize(
    ("settings", "ports"),
    [
        ({}, {"REGISTRY_PORT": 5001, "EDGE_PORT": 8080, "GIT_PORT": 8090}),
        ({"edge": Edge.NONE}, {"REGISTRY_PORT": 5001, "GIT_PORT": 8090}),
        ({"git_url": "https://github.com/me/lab"}, {"REGISTRY_PORT": 5001, "EDGE_PORT": 8080}),
        ({"kube_context": "prod"}, {"GIT_PORT": 8090}),
    ],
)
def test_only_ports_that_setup_takes_are_looked_at(settings: dict[str, Any], ports: dict[str, int]) -> None:
    assert wanted_ports(replace(SETTINGS, **settings)) == ports


def test_unknown_facts_are_not_judged() -> None:
    unknown = HostFacts(system="darwin", now=HOST.now)
    found = preflight.check(SETTINGS, unknown, replace(ENGINE, **DESKTOP), LAB, source=REGISTRY)
    assert {f.level for f in found} == {Level.OK}


def test_everything_in_the_way_is_said_in_one_go() -> None:
    found = findings(host={"port_holders": HELD, "programs": {"git": ""}}, lab={"cluster": ClusterState.FOREIGN})
    with pytest.raises(PreflightError) as refused:
        preflight.require(found)
    text = str(refused.value)
    assert text.startswith("3 things are in the way; nothing was created.")
    for finding in found:
        if finding.level is Level.ERROR:
            assert finding.what in text
            assert f"To mend it: {finding.mend}" in text


def test_one_thing_in_the_way_is_the_error_itself() -> None:
    with pytest.raises(PreflightError) as refused:
        preflight.require([Finding("x", Level.ERROR, "It is broken.", "mend it"), Finding("y", Level.OK, "fine")])
    assert (refused.value.what, refused.value.mend) == ("It is broken.", "mend it")


def test_a_warning_is_said_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "warn", said.append)
    preflight.require([Finding("x", Level.WARNING, "It is odd.", "mend it")])
    assert said == ["It is odd. To mend it: mend it"]


def test_the_table_has_the_worst_first(capsys: pytest.CaptureFixture[str]) -> None:
    levels = [Level.OK, Level.WARNING, Level.ERROR, Level.INFO]
    command = "sudo sysctl " + " ".join(f"fs.inotify.number_{i}=524288" for i in range(9))
    preflight.render([Finding(f"id-{level}", level, f"found {level}") for level in levels])
    preflight.render([Finding("id", Level.ERROR, "bad", command)])
    out = capsys.readouterr().out
    places = [out.index(f"id-{level}") for level in (Level.ERROR, Level.WARNING, Level.INFO, Level.OK)]
    assert places == sorted(places)
    assert f"  id: {command}\n" in out, "a command must stay on one line"


@pytest.fixture
def inotify(tmp_path: Path) -> Path:
    (tmp_path / "max_user_watches").write_text("8192\n")
    (tmp_path / "max_user_instances").write_text("1024\n")
    return tmp_path


def test_root_raises_only_what_is_too_low(inotify: Path) -> None:
    outcome = preflight.raise_inotify(inotify, is_root=True)
    assert (outcome.changed, outcome.what) == (True, "fs.inotify.max_user_watches 8192 -> 524288")
    assert (inotify / "max_user_watches").read_text() == "524288\n"
    assert (inotify / "max_user_instances").read_text() == "1024\n"
    assert not preflight.raise_inotify(inotify, is_root=True).changed


def test_another_user_raises_nothing(inotify: Path) -> None:
    assert not preflight.raise_inotify(inotify, is_root=False).changed
    assert (inotify / "max_user_watches").read_text() == "8192\n"


def test_a_system_without_inotify_has_nothing_to_raise(tmp_path: Path) -> None:
    assert not preflight.raise_inotify(tmp_path / "none", is_root=True).changed


def test_limits_that_may_not_be_written_are_a_warning(inotify: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "warn", said.append)

    def refuse(self: Path, text: str) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert not preflight.raise_inotify(inotify, is_root=True).changed
    assert "stays at 8192: Read-only file system. sudo sysctl" in said[0]
