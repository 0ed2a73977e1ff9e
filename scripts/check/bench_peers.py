"""The check beside its peers, on the same tree and machine: `make bench BENCH=check PEERS=<folder with their programs>`.

The validate script of the Flux project's example (fluxcd/flux2-kustomize-helm-example, until it moved to a catalog on the
network): yq over every file, kubeconform over what lies in clusters/, kustomize into kubeconform per kustomization, one
after the other. Its steps are made anew here, with schemas on disk instead of downloaded ones. And flate, which renders a
whole tree as Flux does: `flate test all`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts import console, versions
from scripts.bench_measure import Measure
from scripts.check.sourcefile import KUSTOMIZATION_FILES
from scripts.check.tree import Tree
from scripts.errors import LabError
from scripts.git import git
from scripts.schemas import TEMPLATE, CoreSchemas, ObjectKind, crd_schemas
from scripts.settings import Settings
from scripts.versions import Versions

STEP_TIMEOUT_S = 300
REPEATS = 5
# At least five times as fast as the script.
OF_SCRIPT = 0.2


def write_schemas(tree: Path, settings: Settings, pinned: Versions, folder: Path) -> None:
    """Write a schema file per kind that a tree has, of Kubernetes and of Flux, as the script has them at hand."""
    from scripts.check.yamlfile import compose, to_plain
    from scripts.manifests import flux_definitions

    folder.mkdir(parents=True)
    found = Tree(tree)
    core = CoreSchemas(pinned.kubernetes)
    kinds = {
        ObjectKind.of(d.api_version, d.kind)
        for p in found.yaml_files()
        for d in found.source(p).documents
        if d.is_object
    }
    for kind in kinds:
        schema = core.schema(kind)
        if schema is not None:
            (folder / kind.file_name).write_text(json.dumps(schema))
    for node in compose(flux_definitions(settings, pinned, settings.tools_dir).read_text())[0]:
        definition = to_plain(node)
        if definition.get("kind") == "CustomResourceDefinition":
            for kind, schema in crd_schemas(definition):
                (folder / kind.file_name).write_text(json.dumps(schema))


def time_validate(tree: Path, tools: Path, yq: Path, schemas: Path) -> float:
    """Time the steps of the example's script over a tree."""
    kubeconform: list[str | Path] = [
        tools / "kubeconform", "-skip=Secret", "-strict", "-ignore-missing-schemas",
        "-schema-location", f"{schemas}/{TEMPLATE}", "-verbose",
    ]  # fmt: skip
    started = time.monotonic()
    for path in sorted(tree.rglob("*.yaml")):
        _step([yq, "e", "true", path])
    for path in [*(tree / "clusters").glob("*.yaml"), *(tree / "clusters").glob("*/*.yaml")]:
        _step([*kubeconform, path])
    for path in sorted(tree.rglob(KUSTOMIZATION_FILES[0])):
        # A Component builds within others only: the script has none in its tree.
        if "kind: Component" not in path.read_text():
            built = _step([tools / "kustomize", "build", path.parent, "--load-restrictor=LoadRestrictionsNone"])
            _step(kubeconform, built)
    return time.monotonic() - started


def flates_copy(tree: Path, place: Path) -> Path:
    """Copy a tree as flate takes it: a clone of the repository that its sources name, which it need not fetch then."""
    copy = place / f"of-flate-{tree.name}"
    shutil.copytree(tree, copy / tree.name, symlinks=True)
    git("init", "--quiet", root=copy)
    found = Tree(tree)
    urls = [
        str(document.data["spec"]["url"])
        for path in found.yaml_files()
        for document in found.source(path).documents
        if document.kind == "GitRepository" and document.data
    ]
    if urls:
        git("remote", "add", "origin", statistics.mode(urls), root=copy)
    return copy


def time_flate(tree: Path, flate: Path, cache: Path) -> float:
    """Time `flate test all` over a tree, with a cache of its own."""
    started = time.monotonic()
    _step([flate, "test", "all", "--path", tree], env={"XDG_CACHE_HOME": str(cache), "HOME": str(cache)})
    return time.monotonic() - started


def _step(args: list[str | Path], stdin: str = "", env: dict[str, str] | None = None) -> str:
    """Run a program as a script would: no more around it than there has to be."""
    done = subprocess.run(
        args, input=stdin, capture_output=True, text=True, check=False, timeout=STEP_TIMEOUT_S,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    if done.returncode != 0:
        raise LabError(
            f"{Path(args[0]).name} failed on the tree that is measured.",
            "look at what it says",
            done.stdout + done.stderr,
        )
    return done.stdout


@dataclass(frozen=True)
class Runs:
    """How to run the check over a tree once, each giving its seconds: with an empty cache, and with that of the last run."""

    cold: Callable[[], float]
    warm: Callable[[], float]


def measure_peers(
    settings: Settings, tree: Path, programs: Path, check: Runs, place: Path
) -> tuple[list[Measure], dict[str, list[float]]]:
    """Time the peers whose programs are in a folder, turn by turn with the check on the same tree.

    A machine that others use too is slow for seconds at a time: each ratio is the median of those of neighbouring runs.
    """
    measures: list[Measure] = []
    details: dict[str, list[float]] = {}
    name = tree.name
    if (programs / "yq").exists():
        schemas = place / f"schemas-{name}"
        write_schemas(tree, settings, versions.load(), schemas)
        turns = _in_turns(
            lambda: time_validate(tree, settings.tools_dir, programs / "yq", schemas), check.cold, check.warm
        )
        details["validate_s"], *ours = turns
        measures.append(Measure(f"{name}: the example's validate steps", statistics.median(turns[0]), None, "s"))
        for what, seconds in zip(("empty cache", "nothing changed"), ours, strict=True):
            measures.append(
                Measure(f"{name}: check, {what}, of the validate steps", _ratio(seconds, turns[0]), OF_SCRIPT, "x")
            )
    if (programs / "flate").exists():
        copy = flates_copy(tree, place)
        caches = (place / f"flate-{name}-{n}" for n in range(REPEATS))
        try:
            cold, our_cold = _in_turns(lambda: time_flate(copy, programs / "flate", next(caches)), check.cold)
        except LabError as error:
            # It fetches charts and other sources: without a network it has no time to compare with.
            first = next((line.strip() for line in error.details.splitlines() if "✗" in line), error.what)
            console.warn(f"{name}: flate is not measured: {first}")
            return measures, details
        warm, our_warm = _in_turns(lambda: time_flate(copy, programs / "flate", place / f"flate-{name}-0"), check.warm)
        details |= {"flate_cold_s": cold, "flate_warm_s": warm}
        measures.append(Measure(f"{name}: check over flate test all, empty caches", _ratio(our_cold, cold), 1.0, "x"))
        measures.append(Measure(f"{name}: check over flate test all, warm", _ratio(our_warm, warm), 1.0, "x"))
    return measures, details


def _in_turns(*runs: Callable[[], float]) -> list[list[float]]:
    """Run each in its turn, several times, and return the seconds of each."""
    turns = [[run() for run in runs] for _ in range(REPEATS)]
    return [list(seconds) for seconds in zip(*turns, strict=True)]


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
