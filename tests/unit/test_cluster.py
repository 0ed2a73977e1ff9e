import dataclasses
import http.server
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from scripts import cluster
from scripts.certificates import ServerCertificate, ensure_certificate
from scripts.cluster import ensure_cluster, ensure_network, render_config
from scripts.errors import LabError, NotReadyError, PreflightError
from scripts.kube import condition, is_ready
from scripts.process import CommandError
from scripts.settings import Settings
from tests.unit.conftest import Programs

NODES = ["gitops-lab-control-plane", "gitops-lab-worker", "gitops-lab-worker2"]
OURS = {"gitops-lab.owner": "gitops-lab"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", state_root=tmp_path / "state")


def config(settings: Settings, cgroup_v1: bool = False) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(render_config(settings, cgroup_v1))
    return data


def patches(data: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    loaded = [yaml.safe_load(text) for text in data["kubeadmConfigPatches"]]
    return [patch for patch in loaded if patch["kind"] == kind]


# ---------------------------------------------------------------- kind's configuration


def test_the_cluster_has_one_control_plane_and_a_worker_in_each_of_two_zones() -> None:
    nodes = config(Settings())["nodes"]
    assert [node["role"] for node in nodes] == ["control-plane", "worker", "worker"]
    zones = [node["labels"]["topology.kubernetes.io/zone"] for node in nodes if node["role"] == "worker"]
    assert len(set(zones)) == 2
    # A kubelet may not give itself such a label: the node would never join.
    assert not [label for node in nodes for label in node.get("labels", {}) if "node-role.kubernetes.io" in label]


def test_no_port_is_open_to_another_machine() -> None:
    data = config(Settings())
    assert data["networking"]["apiServerAddress"] == "127.0.0.1"
    mappings = [m for node in data["nodes"] for m in node.get("extraPortMappings", [])]
    assert mappings
    assert {m["listenAddress"] for m in mappings} == {"127.0.0.1"}


def test_name_and_port_are_this_runs() -> None:
    data = config(Settings(cluster_name="two", edge_port=9999))
    assert data["name"] == "two"
    assert [m["hostPort"] for n in data["nodes"] for m in n.get("extraPortMappings", [])] == [9999]


@pytest.mark.parametrize("cgroup_v1", [False, True])
def test_only_a_machine_with_cgroup_v1_lets_the_kubelet_start_on_it(cgroup_v1: bool) -> None:
    data = config(Settings(), cgroup_v1)
    kubelet: dict[str, Any] = {}
    for patch in patches(data, "KubeletConfiguration"):
        kubelet |= patch
    assert kubelet.get("failCgroupV1") is (False if cgroup_v1 else None)
    assert kubelet["serializeImagePulls"] is False
    assert len(patches(data, "ClusterConfiguration")) == 1


def test_rendering_changes_nothing_the_next_rendering_sees() -> None:
    plain = render_config(Settings(), False)
    render_config(Settings(cluster_name="two", edge_port=1), True)
    assert render_config(Settings(), False) == plain


def test_an_image_by_digest_is_the_same_whatever_mirror_it_came_from() -> None:
    digest = f"sha256:{'a' * 64}"
    names = ("docker.io/kindest/node:v1", "mirror.example/docker.io/kindest/node:v1")
    assert len({cluster.fingerprint("c", f"{name}@{digest}") for name in names}) == 1


def test_a_fingerprint_changes_with_configuration_and_image() -> None:
    marks = {cluster.fingerprint(*inputs) for inputs in (("a", "i"), ("a", "j"), ("b", "i"), ("a", "i"))}
    assert len(marks) == 3
    assert all(len(mark) == 16 for mark in marks)


# ---------------------------------------------------------------- the network


class Lab:
    """Fake `docker` and `kind` over a folder: networks, node containers and the marker of a finished cluster."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self.programs = programs
        self.folder = folder / "engine"
        self.folder.mkdir()
        programs.add(
            "docker",
            f"""cd "{self.folder}"; PATH=/usr/bin:/bin
            case "$1 $2" in
            "network inspect"|"container inspect") [ -e "$1-$3" ] || {{ echo "Error: No such $1: $3" >&2; exit 1; }}; cat "$1-$3";;
            "ps --all") [ ! -e nodes ] || cat nodes;;
            "exec --interactive") cat > marker;;
            "exec gitops-lab-control-plane") cat marker;;
            esac; exit""",
        )
        names = "\\n".join(NODES)
        self.kind = programs.add(
            "kind",
            f"""cd "{self.folder}"; PATH=/usr/bin:/bin
            env | grep ^KIND_ > kind-env
            case "$1 $2" in
            "create cluster") cp "$4" config; [ ! -e refuse ] || {{ echo "ERROR: no" >&2; exit 1; }}
              printf '{names}\\n' > nodes;;
            "delete cluster") rm -f nodes marker;;
            esac; exit 0""",
        )

    def has(self, kind: str, name: str, **content: Any) -> None:
        (self.folder / f"{kind}-{name}").write_text(json.dumps([content]))

    def has_cluster(self, marker: str | None, nodes: list[str] = NODES, network: str = "gitops-lab") -> None:
        (self.folder / "nodes").write_text("\n".join(nodes))
        for node in nodes:
            self.has("container", node, State={"Status": "running"}, NetworkSettings={"Networks": {network: {}}})
        if marker is not None:
            (self.folder / "marker").write_text(marker)

    def kind_calls(self) -> list[str]:
        return [" ".join(call[1:3]) for call in self.programs.calls("kind")]


@pytest.fixture
def lab(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(cluster, "_context_is_current", lambda settings: True)
    return Lab(programs, tmp_path)


def test_the_network_is_created_with_the_labs_label(lab: Lab, settings: Settings) -> None:
    assert ensure_network(dataclasses.replace(settings, subnet="172.30.0.0/16")).changed
    (call,) = [c for c in lab.programs.calls("docker") if c[2] == "create"]
    assert call[-1] == "gitops-lab"
    text = " ".join(call)
    assert "--label gitops-lab.owner=gitops-lab" in text
    assert "--subnet 172.30.0.0/16" in text


def test_the_labs_network_is_kept_and_another_ones_is_refused(lab: Lab, settings: Settings) -> None:
    lab.has("network", "gitops-lab", Labels=OURS)
    assert ensure_network(settings).changed is False
    lab.has("network", "gitops-lab", Labels={})
    with pytest.raises(PreflightError, match="did not make") as refused:
        ensure_network(settings)
    assert "CLUSTER_NAME" in refused.value.mend
    assert not [c for c in lab.programs.calls("docker") if c[2] != "inspect"]


@pytest.mark.parametrize(
    ("subnets", "found"),
    [
        (["172.18.0.0/16"], "172.18.0.0/16"),
        (["fc00:f853:ccd:e793::/64", "172.18.0.0/16"], "172.18.0.0/16"),
        (["fc00:f853:ccd:e793::/64"], None),
        ([], None),
        (None, None),
    ],
)
def test_the_networks_ipv4_subnet_is_found(
    lab: Lab, settings: Settings, subnets: list[str] | None, found: str | None
) -> None:
    entries = None if subnets is None else [{"Subnet": s} for s in subnets]
    lab.has("network", "gitops-lab", IPAM={"Config": entries})
    if found:
        assert cluster.network_subnet(settings) == found
    else:
        with pytest.raises(LabError, match="no IPv4 subnet"):
            cluster.network_subnet(settings)


# ---------------------------------------------------------------- the cluster


def wanted(settings: Settings) -> str:
    return cluster.fingerprint(render_config(settings, False), "node:1")


def test_a_cluster_is_created_on_the_labs_network_and_marked_as_whole(lab: Lab, settings: Settings) -> None:
    done = ensure_cluster(settings, lab.kind, "node:1", False)
    assert done.changed
    assert lab.kind_calls() == ["create cluster"]
    call = lab.programs.calls("kind")[0]
    assert "--retain" in call, "the nodes of a failed cluster are kept for diagnosis"
    assert call[call.index("--image") + 1] == "node:1"
    assert "KIND_EXPERIMENTAL_DOCKER_NETWORK=gitops-lab" in (lab.folder / "kind-env").read_text()
    assert (lab.folder / "config").read_text() == render_config(settings, False)
    assert (lab.folder / "marker").read_text() == wanted(settings)


def test_a_whole_cluster_is_left_as_it_is(lab: Lab, settings: Settings) -> None:
    lab.has("network", "gitops-lab", Labels=OURS)
    lab.has_cluster(wanted(settings))
    assert ensure_cluster(settings, lab.kind, "node:1", False).changed is False
    assert lab.kind_calls() == []


def test_a_whole_cluster_of_another_make_is_kept_and_spoken_of(
    lab: Lab, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.has("network", "gitops-lab", Labels=OURS)
    lab.has_cluster("0123456789abcdef")
    assert ensure_cluster(settings, lab.kind, "node:1", False).changed is False
    assert lab.kind_calls() == []
    assert "make teardown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("marker", "nodes"), [(None, NODES), (None, NODES[:1]), ("", NODES), ("whole", NODES[:2])],
    ids=["killed before its end", "killed with one node", "killed while it was marked", "a node was removed"],
)  # fmt: skip
def test_a_half_made_cluster_of_ours_is_made_anew(
    lab: Lab, settings: Settings, marker: str | None, nodes: list[str]
) -> None:
    lab.has("network", "gitops-lab", Labels=OURS)
    lab.has_cluster(marker, nodes)
    assert ensure_cluster(settings, lab.kind, "node:1", False).changed
    assert lab.kind_calls() == ["delete cluster", "create cluster"]


@pytest.mark.parametrize(
    ("network", "labels"), [("kind", OURS), ("gitops-lab", {}), ("gitops-lab", None)],
    ids=["on kind's own network", "on an unlabelled network", "on a network that is gone"],
)  # fmt: skip
def test_a_cluster_of_that_name_that_is_not_ours_is_refused_and_left_alone(
    lab: Lab, settings: Settings, network: str, labels: dict[str, str] | None
) -> None:
    if labels is not None:
        lab.has("network", "gitops-lab", Labels=labels)
    lab.has_cluster(None, network=network)
    with pytest.raises(PreflightError, match="did not make") as refused:
        ensure_cluster(settings, lab.kind, "node:1", False)
    assert "CLUSTER_NAME" in refused.value.mend
    assert lab.kind_calls() == []


def test_a_failed_creation_names_its_log_and_marks_nothing(lab: Lab, settings: Settings) -> None:
    (lab.folder / "refuse").touch()
    with pytest.raises(CommandError, match="ERROR: no") as failed:
        ensure_cluster(settings, lab.kind, "node:1", False)
    assert str(settings.state_dir / "logs" / "kind-create.log") in failed.value.what
    assert not (lab.folder / "marker").exists()


def test_stopped_nodes_are_started_before_their_cluster_is_judged(lab: Lab, settings: Settings) -> None:
    lab.has("network", "gitops-lab", Labels=OURS)
    lab.has_cluster(wanted(settings))
    for node in NODES:
        lab.has("container", node, State={"Status": "exited"}, NetworkSettings={"Networks": {"gitops-lab": {}}})
    assert ensure_cluster(settings, lab.kind, "node:1", False).changed is False
    assert sorted(c[2] for c in lab.programs.calls("docker") if c[1] == "start") == NODES


@pytest.mark.parametrize(("there", "before"), [(False, ["create cluster"]), (True, [])], ids=["new", "whole"])
def test_who_waits_for_a_new_cluster_hears_before_it_is_made_and_only_then(
    lab: Lab, settings: Settings, there: bool, before: list[str]
) -> None:
    heard: list[list[str]] = []
    if there:
        lab.has("network", "gitops-lab", Labels=OURS)
        lab.has_cluster(wanted(settings))
    ensure_cluster(settings, lab.kind, "node:1", False, lambda: heard.append(lab.kind_calls()))
    assert (heard, lab.kind_calls()) == (([[]], before) if before else ([], []))


def test_a_remnant_is_gone_before_a_new_cluster_is_announced(lab: Lab, settings: Settings) -> None:
    heard: list[list[str]] = []
    lab.has("network", "gitops-lab", Labels=OURS)
    lab.has_cluster(None)
    ensure_cluster(settings, lab.kind, "node:1", False, lambda: heard.append(lab.kind_calls()))
    assert heard == [["delete cluster"]]


@pytest.fixture
def certificate(tmp_path: Path) -> ServerCertificate:
    """A certificate that nobody knows; made before the search path is the fake programs' alone."""
    return ensure_certificate(tmp_path / "tls", ["127.0.0.1"])


@pytest.fixture
def api_server(certificate: ServerCertificate) -> Iterator[http.server.HTTPServer]:
    """An HTTPS server, which answers with its `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, dict(self.headers)))
            self.send_response(server.status)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    asked: list[tuple[str, dict[str, str]]] = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.status, server.asked = 200, asked  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def has_port(lab: Lab, port: int) -> None:
    bindings = {"6443/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
    lab.has("container", NODES[0], HostConfig={"PortBindings": bindings})


@pytest.mark.parametrize(("status", "answers"), [(200, True), (500, False), (403, False)])
def test_an_api_server_answers_once_it_is_ready(
    api_server: Any, lab: Lab, settings: Settings, status: int, answers: bool
) -> None:
    api_server.status = status
    has_port(lab, api_server.server_port)
    assert cluster.api_answers(cluster.api_port(settings)) is answers
    ((path, headers),) = api_server.asked
    assert path == "/readyz"
    assert "Authorization" not in headers, "who answers is not verified, so nothing is sent"


def test_an_api_server_that_is_not_there_does_not_answer(lab: Lab, settings: Settings) -> None:
    assert cluster.api_answers(cluster.api_port(settings)) is False, "there is no control plane yet"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        has_port(lab, taken.getsockname()[1])
        assert cluster.api_answers(cluster.api_port(settings)) is False


# ---------------------------------------------------------------- the registry's address on the nodes


def test_every_node_is_told_where_the_registry_is(
    programs: Programs, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tmp_path / "nodes"
    # The fake engine runs the real shell script, with the node's folder in place of /etc/containerd.
    programs.add(
        "docker",
        f"""PATH=/usr/bin:/bin
        if [ "$1" = ps ]; then printf 'a\\nb\\n'; exit; fi
        script=$(printf %s "$6" | sed "s|/etc/containerd|{nodes}/$3|g"); exec "$4" "$5" "$script" """,
    )
    cluster.wire_registry(dataclasses.replace(settings, registry_port=5005))
    wanted = '[host."http://gitops-lab-registry:5000"]\n  capabilities = ["pull", "resolve"]\n'
    files = {str(path.relative_to(nodes)): path.read_text() for path in nodes.rglob("hosts.toml")}
    names = ("registry.lab", "localhost:5005")
    assert files == {f"{node}/certs.d/{name}/hosts.toml": wanted for node in "ab" for name in names}


def test_files_reach_every_node_readable_by_root_only_and_stand_in_no_command_line(
    programs: Programs, tmp_path: Path, settings: Settings
) -> None:
    # The fake engine runs the real shell script; each node has a folder of its own in place of /etc.
    programs.add(
        "docker",
        f"""PATH=/usr/bin:/bin
        if [ "$1" = ps ]; then printf 'a\\nb\\n'; exit; fi
        sed "s|/etc/|{tmp_path}/$3/|" | "$4" "$5" "$6" """,
    )
    texts = {"/etc/x/hosts.toml": 'Authorization = "Basic c2VjcmV0"\n\\t%s $HOME\n', "/etc/ca.crt": "one\n\n  three\n"}
    cluster.put_files(settings, texts)
    for node in "ab":
        files = [path for path in (tmp_path / node).rglob("*") if path.is_file()]
        assert {f"/etc/{p.relative_to(tmp_path / node)}": p.read_text() for p in files} == texts
        assert {p.stat().st_mode & 0o777 for p in files} == {0o600}
    assert "c2VjcmV0" not in " ".join(" ".join(call) for call in programs.calls())


def test_tools_are_told_where_the_registry_is(settings: Settings) -> None:
    found = cluster.hosting_config_map(dataclasses.replace(settings, registry_port=5005))
    assert (found["metadata"]["name"], found["metadata"]["namespace"]) == ("local-registry-hosting", "kube-public")
    assert yaml.safe_load(found["data"]["localRegistryHosting.v1"])["host"] == "localhost:5005"


# ---------------------------------------------------------------- nodes, by a fake API


def node(name: str, ready: str | None = "True", labels: dict[str, str] | None = None, why: str = "") -> dict[str, Any]:
    conditions = [] if ready is None else [{"type": "Ready", "status": ready, "message": why}]
    return {"metadata": {"name": name, "labels": labels or {}}, "status": {"conditions": conditions}}


class FakeKube:
    """As much of the API as the node functions use."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self.nodes = nodes
        self.patched: dict[str, Any] = {}
        self.core = SimpleNamespace(list_node=self.list_node, patch_node=self.patched.__setitem__)

    def list_node(self) -> Any:
        return SimpleNamespace(
            items=[SimpleNamespace(metadata=SimpleNamespace(**n["metadata"]), plain=n) for n in self.nodes]
        )

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        return method(*args)

    def to_dict(self, thing: Any) -> Any:
        return thing.plain


@pytest.mark.parametrize(
    ("nodes", "lines"),
    [
        ([node("a"), node("b"), node("c")], []),
        ([node("a"), node("b")], ["2 of 3 nodes have joined"]),
        (
            [node("a"), node("b"), node("c", "False", why="cni plugin not initialized")],
            ["node c: cni plugin not initialized"],
        ),
        ([node("a"), node("b"), node("c", None)], ["node c: has not reported yet"]),
        ([node("a", "Unknown", why="kubelet stopped")], ["node a: kubelet stopped", "1 of 3 nodes have joined"]),
        ([], ["0 of 3 nodes have joined"]),
    ],
)
def test_a_node_that_is_not_ready_is_named_with_its_reason(nodes: list[dict[str, Any]], lines: list[str]) -> None:
    assert cluster.not_ready_nodes(FakeKube(nodes), 3) == lines  # type: ignore[arg-type]


def test_waiting_for_nodes_ends_with_the_reason() -> None:
    kube = FakeKube([node("a", "False", why="disk full")])
    with pytest.raises(NotReadyError, match="node a: disk full"):
        cluster.wait_for_nodes(kube, 1, timeout_s=0)  # type: ignore[arg-type]


def test_workers_get_their_role_once_and_the_control_plane_none() -> None:
    kube = FakeKube(
        [
            node("control", labels={"node-role.kubernetes.io/control-plane": ""}),
            node("new"),
            node("old", labels={"node-role.kubernetes.io/worker": ""}),
        ]
    )
    cluster.label_workers(kube)  # type: ignore[arg-type]
    assert kube.patched == {"new": {"metadata": {"labels": {"node-role.kubernetes.io/worker": ""}}}}


CONTROL = {"node-role.kubernetes.io/control-plane": ""}


@pytest.mark.parametrize(
    ("nodes", "unlabelled"),
    [
        ([node("c", labels=CONTROL), node("a", labels={"node-role.kubernetes.io/worker": ""}), node("b")], ()),
        ([node("c", labels=CONTROL), node("a"), node("b")], ("a", "b")),
        ([node("only", labels=CONTROL)], ("only",)),
    ],
)
def test_a_cluster_of_ones_own_may_lack_workers(nodes: list[dict[str, Any]], unlabelled: tuple[str, ...]) -> None:
    assert cluster.without_workers(FakeKube(nodes)) == unlabelled  # type: ignore[arg-type]


# ---------------------------------------------------------------- the API's wrapper


def flux_object(status: str, generation: int, observed: int | None, of_condition: int | None) -> dict[str, Any]:
    ready: dict[str, Any] = {"type": "Ready", "status": status}
    if of_condition is not None:
        ready["observedGeneration"] = of_condition
    found: dict[str, Any] = {"conditions": [{"type": "Stalled", "status": "True"}, ready]}
    if observed is not None:
        found["observedGeneration"] = observed
    return {"metadata": {"generation": generation}, "status": found}


@pytest.mark.parametrize(
    ("thing", "ready"),
    [
        (flux_object("True", 2, 2, 2), True),
        (flux_object("True", 2, 2, None), True),
        (flux_object("True", 2, None, None), True),
        (flux_object("True", 2, 1, 1), False),
        (flux_object("True", 2, 2, 1), False),
        (flux_object("False", 2, 2, 2), False),
        (flux_object("Unknown", 2, 2, 2), False),
        ({"metadata": {"generation": 1}, "status": {"conditions": None}}, False),
        ({"metadata": {}}, False),
    ],
)
def test_ready_is_about_the_current_generation(thing: dict[str, Any], ready: bool) -> None:
    assert is_ready(thing) is ready
    assert (condition(thing).get("status") == "True") is ready or condition(thing)["type"] == "Ready"


def piece(*ready: bool | None) -> dict[str, Any]:
    return {"endpoints": [{"conditions": {} if r is None else {"ready": r}} for r in ready]}


@pytest.mark.parametrize(
    ("pieces", "answers"),
    [
        ([], False),
        ([{"endpoints": None}], False),
        ([piece(False, None)], False),
        ([piece(False, True)], True),
        ([piece(False), piece(True)], True),
    ],
)
def test_dns_answers_once_one_of_its_pods_is_ready(pieces: list[dict[str, Any]], answers: bool) -> None:
    asked = []

    def get(path: str, **query: str) -> dict[str, Any]:
        asked.append((path.rpartition("/")[2], query))
        return {"items": pieces}

    assert cluster.dns_answers(SimpleNamespace(get=get)) is answers  # type: ignore[arg-type]
    assert asked == [("endpointslices", {"labelSelector": "kubernetes.io/service-name=kube-dns"})]
