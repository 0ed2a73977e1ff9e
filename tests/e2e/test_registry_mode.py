"""Registry mode from end to end, through a mirror on 127.0.0.1: a lab that knows nothing of source mode.

The mirror is served and filled as a person does it, from the source-built set. The lab has an empty home and cache, a
PATH without tools, a clone, a cluster name and ports of its own, and a lock that was made against the mirror.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from scripts import bench, cluster, docker, git, provide
from scripts.settings import HELM, KIND_CLUSTER_LABEL, OVERLAYS, ROOT, environments
from scripts.waiting import wait_for
from tests.e2e.conftest import own_environment

pytestmark = pytest.mark.long

NAME = "lab-e2e-mirror"
FILL_TIMEOUT_S = 1800
SETUP_TIMEOUT_S = 1800
SETUP_OVER_BARE = 2.2
# Where a machine has its own programs.
PLAIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for listener in held:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


@dataclass(frozen=True)
class Done:
    code: int
    output: str


@dataclass(frozen=True)
class Mirror:
    """A filled mirror: where it is, and what a lab is told of it."""

    folder: Path
    images: str
    variables: dict[str, str]


@dataclass(frozen=True)
class Person:
    """Somebody on this machine with an empty home, a clone, and nothing but what the variables say."""

    home: Path
    clone: Path
    environment: dict[str, str]

    def make(self, *args: str, timeout_s: float = SETUP_TIMEOUT_S, **variables: str) -> Done:
        return make(*args, root=self.clone, env=self.environment | variables, timeout_s=timeout_s)


def make(*args: str, root: Path, env: dict[str, str], timeout_s: float) -> Done:
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(root), "-o", ".venv/.complete", *args],
        capture_output=True, text=True, timeout=timeout_s, env=env, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout + done.stderr)


def path_without_tools(folder: Path) -> Path:
    """Fill a folder with this machine's programs but for the lab's tools, which some machines have, and return it."""
    for place in PLAIN_PATH.split(":"):
        for program in sorted(Path(place).glob("*")):
            link = folder / program.name
            if program.name not in provide.TOOL_BINARIES and not link.is_symlink():
                link.symlink_to(program)
    return folder


@pytest.fixture(scope="module")
def alone(settings) -> Iterator[None]:
    """Take the usual lab down while this one runs, and bring it back: two at once say nothing about time."""
    was_up = bool(cluster.node_containers(settings))
    env = own_environment(**bench.environment_of(settings))
    if was_up:
        assert make("teardown", root=ROOT, env=env, timeout_s=600).code == 0
    yield
    if was_up:
        assert make("setup-all", root=ROOT, env=env, timeout_s=SETUP_TIMEOUT_S).code == 0


@pytest.fixture(scope="module")
def mirror(alone, tmp_path_factory) -> Iterator[Mirror]:
    """Serve a mirror and fill it from the source-built set, as the documents say."""
    folder = tmp_path_factory.mktemp("mirror")
    images_port, files_port = free_ports(2)
    images, ca = f"127.0.0.1:{images_port}", folder / "files" / "mirror-ca.pem"
    keeping = {"MIRROR_DIR": str(folder), "MIRROR_PORT": str(images_port), "MIRROR_FILES_PORT": str(files_port)}
    # The whole stack has a chart and images that nothing here is built from.
    keeping |= {"MONITORING": "lite"}
    log = folder / "serve.log"
    serving = subprocess.Popen(
        [sys.executable, "-m", "scripts", "mirror-serve"],
        cwd=ROOT, env=own_environment(**keeping), stdin=subprocess.DEVNULL, stdout=log.open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:

        def pending() -> list[str]:
            assert serving.poll() is None, log.read_text()
            return [] if "The mirror is up" in log.read_text() else ["mirror-serve has not said that it is up"]

        wait_for("the mirror is up", pending, timeout_s=120)
        filling = keeping | {"MIRROR": images, "MIRROR_CA": str(ca), "IMAGE_SOURCE": "source"}
        filled = make("mirror-fill", root=ROOT, env=own_environment(**filling), timeout_s=FILL_TIMEOUT_S)
        assert filled.code == 0, filled.output
        again = make("mirror-fill", root=ROOT, env=own_environment(**filling), timeout_s=FILL_TIMEOUT_S)
        assert again.code == 0, again.output
        assert "0 things sent (0 bytes)" in again.output
        variables = {
            "IMAGE_MIRROR": images,
            "DOWNLOAD_MIRROR": f"https://127.0.0.1:{files_port}",
            "MIRROR_CA": str(ca),
            "VERSIONS_LOCK": str(folder / "mirror.lock.yaml"),
            "MONITORING": "lite",
        }
        locked = make("lock", root=ROOT, env=own_environment(**variables), timeout_s=300)
        assert locked.code == 0, locked.output
        verifying = filling | variables | {"IMAGE_SOURCE": "registry"}
        verified = make("mirror-verify", root=ROOT, env=own_environment(**verifying), timeout_s=600)
        assert verified.code == 0, verified.output
        assert " 0 wrong" in verified.output
        yield Mirror(folder, images, variables)
    finally:
        serving.send_signal(signal.SIGINT)
        assert serving.wait(timeout=60) == 0, log.read_text()
        for port in (images_port, files_port):
            with pytest.raises(requests.ConnectionError):
                requests.get(f"https://127.0.0.1:{port}/", timeout=5, verify=False)


@pytest.fixture(scope="module")
def person(mirror, tmp_path_factory) -> Iterator[Person]:
    home = tmp_path_factory.mktemp("home")
    clone = tmp_path_factory.mktemp("work") / "lab"
    git.git("clone", "--quiet", "--no-hardlinks", str(ROOT), clone, root=ROOT, timeout_s=120)
    bench.configure_author(clone)
    (clone / ".venv").symlink_to(ROOT / ".venv")
    edge, registry, git_port = free_ports(3)
    # What a network needs stays (pip's settings, a proxy); what an earlier lab of this user had does not.
    kept = {
        k: v
        for k, v in os.environ.items()
        if k.startswith("PIP_") or k.lower().endswith("_proxy") or k == "DOCKER_HOST"
    }
    environment = kept | mirror.variables | {
        "HOME": str(home),
        "PATH": str(path_without_tools(tmp_path_factory.mktemp("programs"))),
        "LANG": "C.UTF-8",
        "IMAGE_SOURCE": "registry",
        "CLUSTER_NAME": NAME,
        "EDGE_PORT": str(edge),
        "REGISTRY_PORT": str(registry),
        "GIT_PORT": str(git_port),
    }  # fmt: skip
    for tool in provide.TOOL_BINARIES:
        assert not shutil.which(tool, path=environment["PATH"]), f"{tool} is on PATH: this test would prove nothing"
    found = Person(home, clone, environment)
    yield found
    down = found.make("teardown", PURGE="1")
    assert down.code == 0, down.output
    assert docker.containers_with_label(f"{KIND_CLUSTER_LABEL}={NAME}") == []
    for reference in _pulled(mirror):
        docker.docker("rmi", "--force", reference, check=False)


def _pulled(mirror: Mirror) -> list[str]:
    """Return what the engine has under the mirror's name: pulled by digest, so it has no tag."""
    found: set[str] = set()
    for depth in ("*/*", "*/*/*"):
        pattern = f"reference={mirror.images}/{depth}"
        found |= set(
            docker.docker(
                "images", "--digests", "--filter", pattern, "--format", "{{.Repository}}@{{.Digest}}"
            ).stdout.split()
        )
    return sorted(found)


def test_an_altered_layer_is_refused_and_nothing_is_made(person, mirror):
    """The true lock, and one byte changed in a layer of the mirror's storage."""
    lock = (mirror.folder / "mirror.lock.yaml").read_text()
    # Put together without the engine, so that the engine has none of its layers from an earlier build.
    digest = re.search(r"docker.io/library/registry:[\d.]+: sha256:(\w+)", lock)[1]
    blobs = mirror.folder / "registry" / "docker" / "registry" / "v2" / "blobs" / "sha256"
    manifest = json.loads((blobs / digest[:2] / digest / "data").read_bytes())
    layer = manifest["layers"][0]["digest"].partition(":")[2]
    path = blobs / layer[:2] / layer / "data"
    whole = path.read_bytes()
    assert hashlib.sha256(whole).hexdigest() == layer
    path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    try:
        refused = person.make("setup-all")
        verified = make("mirror-verify", root=ROOT, env=person.environment | {"MIRROR": mirror.images}, timeout_s=600)
    finally:
        path.write_bytes(whole)
    assert refused.code != 0
    assert "mirror-verify" in refused.output
    assert "Traceback" not in refused.output
    assert docker.containers_with_label(f"{KIND_CLUSTER_LABEL}={NAME}") == []
    assert not [name for name in _pulled(mirror) if "library/registry" in name]
    assert verified.code != 0
    assert "docker.io/library/registry:" in verified.output
    assert "is not what its digest says" in verified.output


def test_a_lab_comes_up_from_the_mirror_alone(person, mirror):
    result = person.make("setup-all")
    assert result.code == 0, result.output
    assert "image source: registry" in result.output
    for number in range(1, 8):
        assert f"{number}/7" in result.output
    endpoints = person.make("test-endpoints")
    assert endpoints.code == 0, endpoints.output
    tools = person.home / ".cache" / "gitops-lab" / "tools"
    assert {path.name for path in tools.iterdir() if not path.name.startswith(".")} == set(provide.TOOL_BINARIES) - {
        HELM
    }
    assert not any(path.is_symlink() for path in tools.iterdir())
    entries = person.home / ".cache" / "gitops-lab" / "entries"
    assert not [e.name for e in entries.iterdir() if e.name.startswith(("kubernetes-", "rootfs-", "flux-9"))], (
        "nothing was built"
    )


def test_no_object_names_the_mirror_and_nodes_pulled_from_it(person, mirror):
    kubectl = [str(person.home / ".cache/gitops-lab/tools/kubectl"), "--context", f"kind-{NAME}"]
    objects = subprocess.run(
        [*kubectl, "get", "deployments,daemonsets,jobs,pods", "--all-namespaces", "--output", "json"],
        capture_output=True, text=True, check=True, env=person.environment, timeout=60,
    ).stdout  # fmt: skip
    assert mirror.images not in objects
    assert "source-controller:v" in objects
    node = f"{NAME}-worker"
    hosts = docker.docker("exec", node, "cat", "/etc/containerd/certs.d/ghcr.io/hosts.toml").stdout
    assert mirror.images.rpartition(":")[2] in hosts
    lock = (mirror.folder / "mirror.lock.yaml").read_text()
    wanted = re.search(r"source-controller:v[\d.]+: (sha256:\w+)", lock)[1]
    everywhere = "".join(
        docker.docker("exec", n, "crictl", "images", "--digests", "-o", "json").stdout
        for n in docker.containers_with_label(f"{KIND_CLUSTER_LABEL}={NAME}")
    )
    assert wanted in everywhere


def test_a_push_goes_live(person):
    overlay = person.clone / OVERLAYS.relative_to(ROOT) / "dev" / "kustomization.yaml"
    text = overlay.read_text()
    assert "FAIL_RATE=" in text
    overlay.write_text(re.sub(r"FAIL_RATE=[\d.]+", "FAIL_RATE=0.25", text))
    git.git("commit", "--quiet", "--all", "--message", "Test: dev fails more often", root=person.clone)
    pushed = person.make("push", timeout_s=300)
    assert pushed.code == 0, pushed.output
    assert "live" in pushed.output


def test_a_second_setup_changes_nothing(person):
    again = person.make("setup-all")
    assert again.code == 0, again.output
    timings = person.home / ".local" / "state" / "gitops-lab" / NAME / "timings.jsonl"
    last = json.loads(timings.read_text().splitlines()[-1])
    assert last["ok"]
    assert [step["name"] for step in last["steps"] if step["changed"]] == []


def test_it_takes_little_longer_than_a_bare_cluster_from_the_same_mirror(person):
    measured = person.make("bench", BENCH="setup", MONITORING="none", timeout_s=3000)
    assert measured.code == 0, measured.output
    report = json.loads((person.clone / "reports" / "bench.json").read_text())["details"]["setup"]
    ratio = report["setup_s"] / report["bare_s"]
    print(
        f"bare {report['bare_s']:.1f} s, setup-all {report['setup_s']:.1f} s ({ratio:.2f}), again {report['second_s']:.1f} s"
    )
    assert ratio <= SETUP_OVER_BARE, report
    assert len(environments()) >= 3


def test_nothing_is_left_but_what_others_may_use(person):
    down = person.make("teardown", PURGE="1")
    assert down.code == 0, down.output
    assert docker.inspect("network", NAME) is None
    assert not (person.home / ".cache" / "gitops-lab").exists()
