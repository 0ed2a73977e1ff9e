import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from scripts import docker, sidecars
from scripts.docker import ContainerSpec, MemoryUse, ensure_container, parse_size
from scripts.errors import LabError
from scripts.process import CommandError
from scripts.settings import Settings
from tests.unit.conftest import Programs

SPEC = ContainerSpec(
    name="lab-registry",
    image="registry:3",
    owner="lab",
    network="lab",
    ports={5001: 5000},
    volumes={"lab-registry-data": "/var/lib/registry"},
    environment={"A": "1"},
    command=("serve", "/etc/config.yml"),
)
OURS = {"gitops-lab.owner": "lab", "gitops-lab.spec": "f1"}


class Engine:
    """A fake `docker`: answers `<kind> inspect <name>` from files, and does the rest silently."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self.programs = programs
        self.folder = folder / "objects"
        self.folder.mkdir()
        programs.add(
            "docker",
            f'if [ "$2" = inspect ]; then f="{self.folder}/$1-$3"; [ -e "$f" ] || {{ echo "No such $1" >&2; exit 1; }}\n'
            'while read -r line; do echo "$line"; done < "$f"; fi',
        )

    def has(self, kind: str, name: str, **content: Any) -> None:
        (self.folder / f"{kind}-{name}").write_text(json.dumps([content]) + "\n")

    def changes(self) -> list[list[str]]:
        return [call[1:] for call in self.programs.calls("docker") if call[2] != "inspect"]


@pytest.fixture
def engine(programs: Programs, tmp_path: Path) -> Engine:
    return Engine(programs, tmp_path)


@pytest.mark.parametrize(
    ("stdout", "code", "version"),
    [
        ('{"ServerVersion": "29.1.2"}', 0, "29.1.2"),
        ('{"ServerVersion": "20.10.24+dfsg1", "ServerErrors": null}', 0, "20.10.24+dfsg1"),
        ('{"ServerErrors": ["Cannot connect to the Docker daemon"]}', 0, ""),
        ('{"ServerVersion": "", "ServerErrors": []}', 0, ""),
        ('{"ServerErrors": ["Cannot connect"], "host": {}}', 0, ""),
        ("Cannot connect to the Docker daemon", 1, ""),
    ],
)
def test_an_engine_is_there_only_if_its_server_answers(
    programs: Programs, stdout: str, code: int, version: str
) -> None:
    programs.add("docker", f"echo '{stdout}'; exit {code}")
    info = docker.engine_info()
    assert (info or {}).get("ServerVersion", "") == version


def test_podman_behind_the_same_command_counts_as_an_engine(programs: Programs) -> None:
    programs.add("docker", """echo '{"host": {"arch": "amd64"}, "version": {"Version": "5.0"}}'""")
    assert docker.engine_info() is not None


def test_a_failed_command_shows_what_the_engine_said(programs: Programs) -> None:
    programs.add("docker", 'echo "Error: port is already allocated" >&2; exit 125')
    with pytest.raises(CommandError, match="port is already allocated"):
        docker.docker("start", "x")


@pytest.mark.parametrize(
    ("found", "ours"),
    [
        ({"Labels": {"gitops-lab.owner": "lab"}}, True),
        ({"Config": {"Labels": {"gitops-lab.owner": "lab"}}}, True),
        ({"Labels": {"gitops-lab.owner": "other-lab"}}, False),
        ({"Labels": {"gitops-lab.owner": ""}}, False),
        ({"Labels": None, "Config": {"Labels": None}}, False),
        ({"Labels": {}}, False),
        ({}, False),
    ],
)
def test_only_what_carries_this_labs_label_is_ours(found: dict[str, Any], ours: bool) -> None:
    assert docker.is_ours(found, "lab") is ours


def test_what_is_not_there_is_no_error(engine: Engine) -> None:
    assert docker.inspect("container", "none") is None
    assert docker.container_state("none") == ""
    assert docker.container_ip("none", "lab") == ""
    assert docker.published_ports("none") == set()
    assert docker.image_exists("none") is False


def test_a_containers_state_address_and_ports_are_read(engine: Engine) -> None:
    ports = {
        "5000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "5001"}, {"HostIp": "::1", "HostPort": "5001"}],
        "443/tcp": None,
        "80/tcp": [{"HostIp": "", "HostPort": ""}],
    }
    engine.has(
        "container", "c",
        State={"Status": "exited", "Running": False},
        NetworkSettings={"Networks": {"lab": {"IPAddress": "172.18.0.2"}, "bridge": {"IPAddress": ""}}},
        HostConfig={"PortBindings": ports},
    )  # fmt: skip
    assert docker.container_state("c") == "exited"
    assert docker.container_ip("c", "lab") == "172.18.0.2"
    assert docker.container_ip("c", "elsewhere") == ""
    assert docker.published_ports("c") == {5001}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("512B", 512),
        ("1.5KiB", 1536),
        ("590.1MiB", 618764697),
        (" 2GiB ", 2 * 1024**3),
        ("1.2kB", 1200),
        ("3MB", 3_000_000),
        ("1GB", 10**9),
    ],
)
def test_a_size_is_read_as_the_engine_prints_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "--", "12", "MiB", "1.2 furlongs", "1,5MiB"])
def test_what_is_no_size_is_not_taken_for_zero(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_memory_is_read_of_every_container_at_once(programs: Programs) -> None:
    programs.add(
        "docker", """echo '{"Name":"a","MemUsage":"1MiB / 2GiB"}'; echo; echo '{"Name":"b","MemUsage":"0B / 0B"}'"""
    )
    assert docker.memory_of([]) == []
    assert programs.calls() == []
    assert docker.memory_of(["a", "b"]) == [MemoryUse("a", 1024**2), MemoryUse("b", 0)]
    assert len(programs.calls()) == 1


def test_containers_are_found_by_label_running_or_not(programs: Programs) -> None:
    programs.add("docker", "echo b; echo a")
    assert docker.containers_with_label("k=v") == ["a", "b"]
    assert programs.calls() == [["docker", "ps", "--all", "--filter", "label=k=v", "--format", "{{.Names}}"]]


def test_a_side_container_is_created_on_this_machine_only(engine: Engine) -> None:
    assert ensure_container(SPEC, "f1") == "created"
    (call,) = engine.changes()
    assert call[:2] == ["run", "--detach"]
    assert call[-3:] == ["registry:3", "serve", "/etc/config.yml"]
    pairs = list(itertools.pairwise(call))
    for pair in (
        ("--name", "lab-registry"),
        ("--network", "lab"),
        ("--label", "gitops-lab.owner=lab"),
        ("--label", "gitops-lab.spec=f1"),
        ("--publish", "127.0.0.1:5001:5000"),
        ("--volume", "lab-registry-data:/var/lib/registry"),
        ("--env", "A=1"),
    ):
        assert pair in pairs
    assert not [b for a, b in pairs if a == "--publish" and not b.startswith("127.0.0.1:")]


@pytest.mark.parametrize(
    ("fingerprint", "running", "verb", "first"),
    [
        ("f1", True, "found", []),
        ("f1", False, "started", ["start", "lab-registry"]),
        ("f2", True, "replaced", ["rm", "--force", "lab-registry"]),
        ("f2", False, "replaced", ["rm", "--force", "lab-registry"]),
    ],
)
def test_a_side_container_of_ours_is_found_started_or_replaced(
    engine: Engine, fingerprint: str, running: bool, verb: str, first: list[str]
) -> None:
    engine.has("container", SPEC.name, Config={"Labels": OURS}, State={"Running": running})
    assert ensure_container(SPEC, fingerprint) == verb
    assert (engine.changes() or [[]])[0] == first
    assert not [call for call in engine.changes() if "--volumes" in call or "-v" in call], "its data stays"


@pytest.mark.parametrize("labels", [{}, {"gitops-lab.owner": "other"}, None])
def test_a_container_of_that_name_that_is_not_ours_is_refused(engine: Engine, labels: Any) -> None:
    engine.has("container", SPEC.name, Config={"Labels": labels}, State={"Running": True})
    with pytest.raises(LabError):
        ensure_container(SPEC, "f1")
    assert engine.changes() == []


def test_a_volume_is_created_once(engine: Engine) -> None:
    docker.ensure_volume("v", "lab")
    assert engine.changes() == [["volume", "create", "--label", "gitops-lab.owner=lab", "v"]]
    engine.programs.forget()
    engine.has("volume", "v", Labels={"gitops-lab.owner": "lab"})
    docker.ensure_volume("v", "lab")
    assert engine.changes() == []


@pytest.mark.parametrize(
    "change", [{"registry_port": 5002}, {"cluster_name": "two"}, {}], ids=["another port", "another lab", "nothing"]
)
def test_a_side_container_is_made_anew_only_when_what_it_is_made_of_changed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(sidecars, "_wait_for_http", lambda *args: None)
    marks = []
    for settings in (Settings(), dataclasses.replace(Settings(), **change)):
        engine.programs.forget()
        sidecars.ensure_registry(settings, "registry:3")
        (call,) = [c for c in engine.changes() if c[0] == "run"]
        marks.append(next(part for part in call if part.startswith("gitops-lab.spec=")))
    assert (marks[0] == marks[1]) is (change == {})


def test_the_git_servers_address_follows_its_container(engine: Engine) -> None:
    networks = {"gitops-lab": {"IPAddress": "172.18.0.9"}}
    engine.has("container", "gitops-lab-git", NetworkSettings={"Networks": networks})
    service, slices = sidecars.git_service_objects(Settings())
    assert slices["endpoints"][0]["addresses"] == ["172.18.0.9"]
    assert slices["metadata"]["labels"] == {"kubernetes.io/service-name": service["metadata"]["name"]}
    assert "selector" not in service["spec"], "a selector would let Kubernetes overwrite the addresses"
    assert service["spec"]["clusterIP"] == "None", "kube-proxy learns of an address of its own too late"
    assert service["spec"]["ports"][0]["port"] == slices["ports"][0]["port"]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local."
    assert Settings().git_fetch_url.startswith(f"http://{host}:{service['spec']['ports'][0]['port']}/")


def test_the_hooks_token_is_no_argument(programs: Programs, tmp_path: Path) -> None:
    got = tmp_path / "stdin"
    programs.add("docker", f'read -r line || :; echo "$line" > "{got}"')
    sidecars.connect_receiver(Settings(), "/hook/abc", "tr0ub4dor-and-3", [])
    (call,) = programs.calls()
    assert not [part for part in call if "tr0ub4dor" in part]
    assert json.loads(got.read_text()) == {
        "url": "http://gitops-lab-control-plane:30092/hook/abc",
        "token": "tr0ub4dor-and-3",
        "sources": [],
    }
