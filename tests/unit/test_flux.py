"""Flux's install manifests are tuned for a lab, and placed where nothing of the workers reaches them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import flux, fluxinstall, versions
from scripts.cache import Cache
from scripts.settings import Settings
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
    objects = fluxinstall.install_manifests(Cache(export.parent / "cache"), export, PINS, pinned, own)
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


class Applied:
    """An API that notes what is applied, under which manager."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[dict[str, Any]]]] = []

    def apply(self, objects: list[dict[str, Any]], manager: str = "gitops-lab") -> None:
        self.calls.append((manager, objects))


def test_definitions_that_come_early_are_fluxs_own(programs: Programs, tmp_path: Path) -> None:
    """Under its name and with its marks: otherwise fields that Git drops would stay, and so would the whole definition."""
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "routes.example.org", "labels": {"app.kubernetes.io/part-of": "edge"}},
    }  # fmt: skip
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "edge"}}
    file = tmp_path / "built.yaml"
    file.write_text(yaml.safe_dump_all([namespace, definition]))
    kube = Applied()
    flux.define_early(kube, programs.add("kustomize", f'/bin/cat "{file}"'))  # type: ignore[arg-type]
    ((manager, (applied,)),) = kube.calls
    assert manager == "kustomize-controller"
    assert applied["metadata"] == {
        "name": "routes.example.org",
        "labels": {
            "app.kubernetes.io/part-of": "edge",
            "kustomize.toolkit.fluxcd.io/name": "infrastructure-sync",
            "kustomize.toolkit.fluxcd.io/namespace": "flux-system",
        },
    }
    ((_, *arguments),) = programs.calls()
    assert arguments[0] == "build"
    assert (Path(arguments[1]) / "kustomization.yaml").exists(), "the folder that infrastructure-sync applies"


def test_the_root_comes_last_and_only_when_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = Applied()
    monkeypatch.setattr(flux, "_applied", lambda kube: {})
    monkeypatch.setattr(flux, "_receiver_token", lambda kube: "t")
    seen: list[int] = []
    outcome = flux.ensure_bootstrap(
        replace(Settings(), git_url="https://git.example.org/lab"), kube, "", None, lambda: seen.append(len(kube.calls))  # type: ignore[arg-type]
    )  # fmt: skip
    assert outcome.changed
    kinds = [{thing["kind"] for thing in objects} for _, objects in kube.calls]
    assert seen == [1]
    assert "Receiver" in kinds[0] and not kinds[0] & {"GitRepository", "Kustomization"}
    assert kinds[1] == {"GitRepository", "Kustomization"}
