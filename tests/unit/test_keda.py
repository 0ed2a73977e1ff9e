"""KEDA on demand: what is written into its Flux Kustomization, when it is built, and that it is not taken from under a run."""

from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException

from scripts import keda, versions
from scripts.errors import LabError
from scripts.settings import ImageSource, Settings
from scripts.sourcebuild import SourceSet

PINS = versions.load()
SERVICE = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io"


class Cluster:
    """A cluster whose Flux has everything Ready at once."""

    def __init__(self) -> None:
        self.kustomization: dict[str, Any] | None = None
        self.available = "True"
        self.scaled: list[dict[str, Any]] = []
        self.applied = 0

    def apply(self, objects: list[dict[str, Any]]) -> None:
        (self.kustomization,) = objects
        self.applied += 1

    def list_custom(self, kind: str, namespace: str) -> list[dict[str, Any]]:
        assert (kind, namespace) == ("Kustomization", "flux-system")
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        return [self.kustomization | {"status": ready}] if self.kustomization else []

    def get(self, path: str) -> Any:
        if path == SERVICE and self.kustomization:
            return {
                "status": {"conditions": [{"type": "Available", "status": self.available, "message": "no endpoints"}]}
            }
        if path == "/apis/keda.sh/v1alpha1/scaledobjects" and self.kustomization:
            return {"items": self.scaled}
        raise ApiException(status=404)


@pytest.fixture
def cluster() -> Any:
    return Cluster()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Source mode with a registry and an engine that take everything; what they took is kept."""
    took: dict[str, Any] = {"source": ImageSource.SOURCE, "registry": set(), "built": 0}

    def build(*_: Any) -> SourceSet:
        took["built"] += 1
        return SourceSet()

    def docker(*args: Any, **_: Any) -> None:
        if args[0] == "push":
            took["registry"].add(args[2].rpartition("/")[2])

    monkeypatch.setattr(keda.provide, "choose_source", lambda _: (took["source"], "as told"))
    monkeypatch.setattr(
        keda.appimage, "pushed_digest", lambda _, tag, name: "x" if f"{name}:{tag}" in took["registry"] else ""
    )
    monkeypatch.setattr(keda.sourcebuild, "ensure_on_demand", build)
    monkeypatch.setattr(keda.images, "ensure_image", lambda recipe, _: (f"gitops-lab/{recipe.name}:1", True))
    monkeypatch.setattr(keda, "docker", docker)
    return took


def test_built_images_are_pushed_once_and_named_by_what_they_are_made_from(
    cluster: Any, source: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(cache_dir=tmp_path)
    assert keda.ensure(settings, cluster, PINS, tmp_path).changed
    assert "installing KEDA (first time): built from source, which takes about ten minutes" in capsys.readouterr().out
    images = {i["name"]: f"{i['newName']}:{i['newTag']}" for i in cluster.kustomization["spec"]["images"]}
    assert set(images) == {PINS.images["keda"].image, PINS.images["keda-adapter"].image}
    assert {i.removeprefix("registry.lab/") for i in images.values()} == source["registry"]
    assert len(set(images.values())) == 2 and source["built"] == 1
    assert not keda.ensure(settings, cluster, PINS, tmp_path).changed
    assert capsys.readouterr().out == ""
    assert (cluster.applied, source["built"]) == (1, 1)
    # A new cluster beside the same registry builds nothing.
    other: Any = Cluster()
    keda.ensure(settings, other, PINS, tmp_path)
    assert source["built"] == 1 and other.kustomization == cluster.kustomization


def test_published_images_are_pulled_by_digest(cluster: Any, source: dict[str, Any], tmp_path: Path) -> None:
    source["source"] = ImageSource.REGISTRY
    keda.ensure(Settings(cache_dir=tmp_path), cluster, PINS, tmp_path)
    assert cluster.kustomization["spec"]["images"] == [
        {"name": PINS.images[n].image, "digest": PINS.images[n].digest} for n in ("keda", "keda-adapter")
    ]
    assert source["built"] == 0 and not source["registry"]


def test_images_that_are_built_here_cannot_be_had_by_another_cluster(
    cluster: Any, source: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(LabError, match="can't pull images that are built here"):
        keda.ensure(Settings(cache_dir=tmp_path, kube_context="theirs"), cluster, PINS, tmp_path)
    assert cluster.kustomization is None


def test_what_is_not_there_yet_is_told(cluster: Any) -> None:
    assert keda.pending(cluster) == ["its Flux Kustomization is not there"]
    cluster.kustomization = keda.flux_kustomization()
    assert keda.pending(cluster) == []
    cluster.available = "False"
    assert keda.pending(cluster) == ["v1beta1.external.metrics.k8s.io: no endpoints"]


def test_keda_in_use_is_not_taken_away(cluster: Any) -> None:
    assert keda.remove(cluster).what == "KEDA is not installed"
    cluster.kustomization = keda.flux_kustomization()
    cluster.scaled = [{"metadata": {"namespace": "staging", "name": "demo-app"}}]
    with pytest.raises(LabError, match="in use: staging/demo-app"):
        keda.remove(cluster)
