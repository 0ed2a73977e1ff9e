"""Renders the tree with the kustomize that step 2 leaves in the tools folder; each folder once per run, for all workers."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import settings
from scripts.cache import lock
from scripts.check.build import GO_ENV
from scripts.check.model import Report, Stage
from scripts.check.runner import check
from scripts.process import run
from tests.manifests import helm_stand_in
from tests.manifests.checking import options
from tests.manifests.helmtrees import Look

Object = dict[str, Any]
Build = Callable[[Path], str]


class Loader(yaml.CSafeLoader):
    """YAML 1.1 has a type for a lone `=`, which a definition has as a plain word; PyYAML knows the type, not what it is."""


Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))  # type: ignore[no-untyped-call]


def load_all(text: str) -> list[Object]:
    """Return the objects of a stream of YAML documents."""
    return [d for d in yaml.load_all(text, Loader) if d]


def load_file(path: Path) -> Any:
    return yaml.load(path.read_text(), yaml.CSafeLoader)


class Tree:
    """One rendered folder: its text and its objects."""

    def __init__(self, text: str, objects: list[Object] | None = None) -> None:
        self.text = text
        if objects is not None:
            self.objects = objects

    @cached_property
    def objects(self) -> list[Object]:
        return load_all(self.text)

    def all(self, kind: str) -> list[Object]:
        return [o for o in self.objects if o["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Object:
        found = [o for o in self.all(kind) if not name or o["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} objects of kind {kind} {name}"
        return found[0]


@pytest.fixture(scope="session")
def build() -> Build:
    binary = settings.load().tools_dir / "kustomize"
    assert binary.exists(), f"{binary} is not there: `make test` brings it"

    def run_build(folder: Path) -> str:
        return run([binary, "build", folder], timeout_s=30, env=GO_ENV).stdout

    return run_build


@pytest.fixture(scope="session")
def render(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Tree]:
    own = tmp_path_factory.getbasetemp()
    # Of a run with several workers each has a folder of its own in the run's.
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "rendered"
    shared.mkdir(exist_ok=True)
    done: dict[Path, Tree] = {}

    def from_run(folder: Path) -> Tree:
        kept = shared / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        with lock(kept.with_suffix(".lock"), f"the rendering of {folder}", timeout_s=120):
            if kept.exists():
                return Tree(*pickle.loads(kept.read_bytes()))
            tree = Tree(build(folder))
            kept.write_bytes(pickle.dumps((tree.text, tree.objects)))
            return tree

    def cached(folder: Path) -> Tree:
        if folder not in done:
            done[folder] = from_run(folder)
        return done[folder]

    return cached


@pytest.fixture
def copy_of_tree(tmp_path: Path) -> Path:
    """A copy of flux-cd/ to break or change."""
    return Path(shutil.copytree(settings.FLUX_CD, tmp_path / "flux-cd"))


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("helm") / "helm"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{helm_stand_in.__file__}" "$@"\n')
    binary.chmod(0o755)
    return binary


@pytest.fixture
def look(tmp_path: Path, helm: Path) -> Look:
    """Check the tree below tmp_path, with the folder `shelf` for charts."""

    def run(**changes: Any) -> Report:
        chosen = {"helm": helm, "charts": (tmp_path / "shelf",), "stages": (Stage.STRUCTURE, Stage.BUILD), **changes}
        return check(options(tmp_path / "tree", tmp_path / "cache", **chosen), need_renderings=True).report

    return run
