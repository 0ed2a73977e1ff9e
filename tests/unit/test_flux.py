"""Flux's install manifests are tuned for a lab, and placed where nothing of the workers reaches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import flux, versions
from scripts.cache import Cache
from tests.unit.conftest import Programs

PINS = versions.load()
CONTROLLERS = ("source-controller", "kustomize-controller", "helm-controller", "notification-controller")


def exported(name: str) -> dict[str, Any]:
    """Return a controller as `flux install --export` writes it, as far as it is tuned."""
    container = {
        "args": ["--log-level=info", "--enable-leader-election", "--requeue-dependency=30s"],
        "env": [{"name": "RUNTIME_NAMESPACE", "value": "flux-system"}],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 9440}},
        "image": f"ghcr.io/fluxcd/{name}:v0.0.0",
    }
    pod = {
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "containers": [container],
        "volumes": [{"name": "temp", "emptyDir": {}}, {"name": "ca", "configMap": {"name": "ca"}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"template": {"spec": pod}},
    }


@pytest.fixture
def export(programs: Programs, tmp_path: Path) -> Path:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "flux-system"}}
    file = tmp_path / "install.yaml"
    file.write_text(yaml.safe_dump_all([namespace, *map(exported, CONTROLLERS)]))
    return programs.add("flux", f'/bin/cat "{file}"')


def pods(export: Path, *, pinned: bool = False, own: bool = True) -> dict[str, dict[str, Any]]:
    objects = flux.install_manifests(Cache(export.parent / "cache"), export, PINS, pinned, own)
    return {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"}


def test_in_the_labs_own_cluster_flux_runs_on_the_control_plane(export: Path) -> None:
    for pod in pods(export).values():
        assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "node-role.kubernetes.io/control-plane": ""}
        (toleration,) = pod["tolerations"]
        assert toleration == {
            "key": "node-role.kubernetes.io/control-plane",
            "operator": "Exists",
            "effect": "NoSchedule",
        }


def test_in_a_cluster_of_somebody_elses_flux_runs_where_that_cluster_lets_it(export: Path) -> None:
    for pod in pods(export, own=False).values():
        assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
        assert "tolerations" not in pod


def test_each_argument_is_given_once_and_tuned(export: Path) -> None:
    for name, pod in pods(export).items():
        arguments = pod["containers"][0]["args"]
        names = [argument.partition("=")[0] for argument in arguments]
        assert len(set(names)) == len(names), arguments
        assert {"--log-level=info", "--enable-leader-election=false"} <= set(arguments)
        assert ("--requeue-dependency=500ms" in arguments) == (name != "notification-controller")


def test_memory_stays_limited_and_volumes_are_in_memory(export: Path) -> None:
    for pod in pods(export).values():
        assert pod["containers"][0]["resources"]["limits"] == {"memory": "1Gi"}
        assert pod["volumes"] == [
            {"name": "temp", "emptyDir": {"medium": "Memory"}},
            {"name": "ca", "configMap": {"name": "ca"}},
        ]


@pytest.mark.parametrize("pinned", [False, True])
def test_images_are_the_pinned_ones(export: Path, pinned: bool) -> None:
    for name, pod in pods(export, pinned=pinned).items():
        image = PINS.images[name]
        assert pod["containers"][0]["image"] == (image.reference if pinned else image.tagged)


def test_what_flux_says_is_asked_for_once_by_each_program(export: Path, programs: Programs) -> None:
    first = pods(export)
    assert pods(export) == first
    assert len(programs.calls()) == 1
    other = export.read_text() + "# another build\n"
    export.write_text(other)
    assert pods(export) == first
    assert len(programs.calls()) == 2
