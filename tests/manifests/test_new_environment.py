"""An environment that `make new-environment` writes: dev's twin, found by everything that lists environments."""

import base64
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import environments, flux, git
from scripts.kube import Object
from scripts.settings import FLUX_CD, OVERLAYS, Edge, Settings, source_name
from tests.manifests.conftest import Build, Tree, load_all
from tests.manifests.paths import APPLICATIONS

NAME = "brand-new"  # not one that a person has added


@pytest.fixture(scope="module")
def flux_cd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = Path(shutil.copytree(FLUX_CD, tmp_path_factory.mktemp("new") / "flux-cd"))
    environments.write_environment(NAME, copied)
    return copied


def test_it_renders_as_dev_does_under_its_own_name(flux_cd: Path, build: Build, render: Callable[[Path], Tree]) -> None:
    text = build(flux_cd / OVERLAYS.relative_to(FLUX_CD) / NAME)
    mine, devs = ([plain(o) for o in load_all(t)] for t in (text, render(OVERLAYS / "dev").text))
    assert mine == [json.loads(json.dumps(o).replace("dev", NAME)) for o in devs]
    assert "dev" not in text.replace("dev/", "")  # no left-over of the template


def plain(thing: Object) -> Any:
    """Return an object readable: without the hashes that end generated names, secrets decoded."""
    if thing["kind"] == "Secret":
        thing = {**thing, "data": {k: base64.b64decode(v).decode() for k, v in thing["data"].items()}}
    return json.loads(re.sub(r"(demo-app-(?:config|secret))-[a-z0-9]{10}", r"\1", json.dumps(thing)))


def test_its_source_is_as_stagings_on_a_branch_of_its_own(
    flux_cd: Path, build: Build, render: Callable[[Path], Tree]
) -> None:
    added = [o for o in load_all(build(flux_cd / APPLICATIONS.relative_to(FLUX_CD))) if NAME in o["metadata"]["name"]]
    sync, source = sorted(added, key=lambda o: o["kind"] == "GitRepository")
    assert (sync["kind"], sync["metadata"]["name"], source["metadata"]["name"]) == (
        "Kustomization",
        NAME,
        source_name(NAME),
    )
    stagings = render(FLUX_CD).one("GitRepository", source_name("staging"))
    assert source["spec"] == stagings["spec"] | {"ref": {"branch": git.environment_branch(NAME)}}
    assert flux.PROMOTED.items() <= source["metadata"]["labels"].items()
    devs = render(APPLICATIONS).one("Kustomization", "dev")
    assert sync["spec"] == json.loads(json.dumps(devs["spec"]).replace("dev", NAME))


@pytest.mark.parametrize("edge", Edge)
@pytest.mark.parametrize("repository", ["", "host.example/demo-app"])
@pytest.mark.parametrize("url", ["", "https://host.example/lab.git"])
def test_what_depends_on_the_machine_reaches_it_too(
    flux_cd: Path, build: Build, edge: Edge, repository: str, url: str
) -> None:
    settings = replace(Settings(), edge=edge, image_repository=repository, git_url=url)
    _, root = flux.root_objects(settings, with_credentials=True)
    objects = build_around(build, flux_cd, root)
    (applications,) = (o for o in objects if o["metadata"]["name"] == "applications-sync")
    objects = build_around(build, flux_cd, applications)
    sources = [o for o in objects if o["kind"] == "GitRepository"]
    assert source_name(NAME) in {o["metadata"]["name"] for o in sources}
    for source in sources:
        assert source["spec"]["url"] == settings.git_fetch_url
        assert source["spec"].get("secretRef") == ({"name": flux.GIT_SECRET} if url else None)
    syncs = [o for o in objects if o["kind"] == "Kustomization"]
    # All in one build: each is in a namespace of its own.
    everything = build_around(build, flux_cd, *syncs)
    assert NAME in {sync["metadata"]["name"] for sync in syncs}
    for name in (sync["metadata"]["name"] for sync in syncs):
        rendered = [o for o in everything if o["metadata"].get("namespace") == name]
        (deployment,) = (o for o in rendered if o["kind"] == "Deployment")
        image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image.startswith(f"{repository or 'registry.lab/demo-app'}:")
        assert any(o["kind"] == "HTTPRoute" for o in rendered) == (edge is not Edge.NONE)


def build_around(build: Build, flux_cd: Path, *syncs: Object) -> list[Object]:
    """Build folders, each with what its Flux Kustomization adds: components, patches, images."""
    wrappers = flux_cd.parent / "around"
    for sync in syncs:
        wrapper, folder = wrappers / sync["metadata"]["name"], flux_cd.parent / sync["spec"]["path"]
        wrapper.mkdir(parents=True, exist_ok=True)
        spec = sync["spec"]
        kustomization = {
            "resources": [os.path.relpath(folder, wrapper)],
            "components": [os.path.relpath(folder / c, wrapper) for c in spec.get("components", [])],
            "patches": spec.get("patches", []),
            "images": spec.get("images", []),
        }
        (wrapper / "kustomization.yaml").write_text(json.dumps(kustomization))
    (wrappers / "kustomization.yaml").write_text(json.dumps({"resources": [s["metadata"]["name"] for s in syncs]}))
    return load_all(build(wrappers))
