"""A cluster, a Git host and an image registry of one's own: KUBE_CONTEXT, GIT_URL and IMAGE_REPOSITORY.

The cluster is a plain kind cluster that this lab did not make, beside the lab on its network; the Git host is a second Git
server that tells nobody of pushes; the registry is the lab's, under another name of the image.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import requests

from scripts import cluster, flux, git
from scripts.docker import container_ip, docker, engine_info
from scripts.kube import Kube, condition
from scripts.settings import (
    FLUX_NAMESPACE,
    GIT_PORT_INSIDE,
    GIT_REPOSITORY,
    REGISTRY_PORT_INSIDE,
    WORKER_LABEL,
    environments,
)
from scripts.waiting import wait_for
from tests.e2e.conftest import OtherLab, other_lab

pytestmark = pytest.mark.long

NAME = "lab-e2e-own"
TOKEN = secrets.token_hex(16)
DEV = "flux-cd/applications/mock-cluster-aka-namespaces/dev/kustomization.yaml"


@dataclass(frozen=True)
class Own(OtherLab):
    """A lab in somebody's own cluster."""

    kube: Kube
    url: str
    repository: str


@pytest.fixture(scope="module")
def git_host(settings, kube) -> Iterator[str]:
    """Serve an empty repository and return its address, which host and clusters reach."""
    name = f"{NAME}-git"
    image = docker("inspect", "--format", "{{.Config.Image}}", settings.git_container).stdout.strip()
    docker("run", "--detach", "--name", name, "--network", settings.network, image)
    try:
        url = f"http://{container_ip(name, settings.network)}:{GIT_PORT_INSIDE}/{GIT_REPOSITORY}"

        def pending() -> list[str]:
            try:
                code = requests.get(f"{url}/info/refs?service=git-upload-pack", timeout=5).status_code
            except requests.RequestException as error:
                return [type(error).__name__]
            return [] if code == 200 else [f"HTTP {code}"]

        wait_for("the Git host answers", pending, timeout_s=60)
        yield url
    finally:
        docker("rm", "--force", "--volumes", name)


@pytest.fixture(scope="module")
def own(settings, git_host, tmp_path_factory) -> Iterator[Own]:
    """Make a cluster that setup knows nothing of, and a clone with a remote of one's own."""
    folder = tmp_path_factory.mktemp("own")
    kind, beside = settings.tools_dir / "kind", replace(settings, cluster_name=NAME)
    config = folder / "cluster.yaml"
    text = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n- role: worker\n"
    if str((engine_info() or {}).get("CgroupVersion")) == "1":
        text += "kubeadmConfigPatches:\n- |\n  kind: KubeletConfiguration\n  failCgroupV1: false\n"
    config.write_text(text)
    image = docker("inspect", "--format", "{{.Config.Image}}", settings.control_plane).stdout.strip()
    env = {**os.environ, "KIND_EXPERIMENTAL_DOCKER_NETWORK": settings.network}
    try:
        subprocess.run(
            [kind, "create", "cluster", "--name", NAME, "--config", config, "--image", image, "--wait", "180s"],
            check=True, env=env, timeout=400,
        )  # fmt: skip
        registry = f'[host."http://{settings.registry_container}:{REGISTRY_PORT_INSIDE}"]\n  capabilities = ["pull", "resolve"]\n'
        cluster.put_files(beside, {f"/etc/containerd/certs.d/localhost:{settings.registry_port}/hosts.toml": registry})
        repository = f"localhost:{settings.registry_port}/own/demo-app"
        lab = other_lab(
            folder / "clone", settings, CLUSTER_NAME=NAME, EDGE="", MONITORING="", GIT_REMOTE="own", GIT_URL=git_host,
            GIT_TOKEN=TOKEN, KUBE_CONTEXT=f"kind-{NAME}", IMAGE_REPOSITORY=repository,
            XDG_STATE_HOME=str(folder / "state"),
        )  # fmt: skip
        git.git("remote", "add", "own", git_host, root=lab.clone)
        kube = Kube(f"kind-{NAME}", settings.tools_dir / "kubectl")
        yield Own(lab.clone, lab.environment, kube, git_host, repository)
    finally:
        subprocess.run([kind, "delete", "cluster", "--name", NAME], check=True, timeout=120)


def test_a_cluster_without_workers_is_refused_before_anything_changes(own):
    result = own.make("setup-all")
    assert result.code != 0
    assert f"No node of KUBE_CONTEXT=kind-{NAME} has the label {WORKER_LABEL}" in result.output
    mend = f"kubectl --context kind-{NAME} label nodes {NAME}-worker {WORKER_LABEL}="
    assert mend in result.output
    namespaces = {n.metadata.name for n in own.kube.call(own.kube.core.list_namespace).items}
    assert FLUX_NAMESPACE not in namespaces
    # As it says.
    own.kube.kubectl(*mend.split()[3:])


def test_setup_uses_it_with_ones_own_git_host_and_registry(own):
    result = own.make("setup-all")
    assert result.code == 0, result.output
    assert "endpoints answer" in result.output
    sources = own.kube.list_custom("GitRepository", FLUX_NAMESPACE)
    assert {s["spec"]["url"] for s in sources} == {own.url}
    assert {s["spec"]["secretRef"]["name"] for s in sources} == {flux.GIT_SECRET}
    kustomizations = own.kube.list_custom("Kustomization", FLUX_NAMESPACE)
    assert {condition(k)["status"] for k in kustomizations} == {"True"}
    for environment in environments():
        (container,) = flux.app_deployment(own.kube, environment)["spec"]["template"]["spec"]["containers"]
        assert container["image"].rpartition(":")[0] == own.repository


def test_again_changes_nothing_and_status_and_endpoints_are_well(own):
    again = own.make("setup-all")
    assert again.code == 0, again.output
    assert "nothing changed" in again.output or "bootstrap is in place" in again.output, again.output
    status = own.make("status")
    assert status.code == 0, status.output
    endpoints = own.make("test-endpoints")
    assert endpoints.code == 0, endpoints.output


def test_a_push_is_live_although_nobody_tells_flux_of_it(own):
    own.commit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.002")
    result = own.make("push")
    assert result.code == 0, result.output
    assert "asking Flux to look again" not in result.output
    found = own.kube.call(
        own.kube.core.list_namespaced_config_map, "dev", label_selector="app.kubernetes.io/part-of=demo"
    )
    assert "0.002" in {c.data.get("FAIL_RATE") for c in found.items}


def test_the_token_is_in_the_cluster_and_nowhere_else(own):
    secret = own.kube.call(own.kube.core.read_namespaced_secret, flux.GIT_SECRET, FLUX_NAMESPACE)
    assert secret.data
    for folder in (Path(own.environment["XDG_STATE_HOME"]), own.clone):
        for path in (p for p in folder.rglob("*") if p.is_file() and ".venv" not in p.parts):
            assert TOKEN.encode() not in path.read_bytes(), path


def test_teardown_leaves_it_alone(own):
    result = own.make("teardown")
    assert result.code != 0
    assert "KUBE_CONTEXT names a cluster that it did not make" in result.output
    assert own.kube.is_up()


def test_the_lab_beside_it_is_as_it_was(make):
    assert make("status").code == 0
