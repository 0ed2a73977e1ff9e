"""What the check is measured by: whole runs of its command, each a process of its own, on this tree and on made-up ones."""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench_measure import Measure
from scripts.check.apiserver import find_binaries, kept_warm
from scripts.check.bench_peers import Runs, measure_peers
from scripts.check.commands import ensure_tools, note_tools
from scripts.errors import LabError
from scripts.settings import CHECK_TOOLS, DRY_RUN_TOOLS, FLUX_CD, ROOT, Settings

GOALS = {
    "cold_s": 1.5, "changed_s": 0.6, "warm_s": 0.3, "overlays_s": 5.0, "memory_mib": 300.0,
    "dry_run_cold_s": 8.0, "dry_run_warm_s": 2.0,
}  # fmt: skip
OVERLAYS = (10, 100, 400)
REPEATS = 5
RUN_TIMEOUT_S = 300
# Twice the time per overlay of the smallest tree would not be linear any more.
LINEAR = 2.0


@dataclass(frozen=True)
class Timed:
    """One run: its wall time, and the most memory that it and its children held together, where that was watched."""

    seconds: float
    memory_mib: float = 0.0


def measure_check(settings: Settings, peers: Path | None = None) -> tuple[list[Measure], dict[str, Any]]:
    """Time the check: empty cache, one file changed, nothing changed, many overlays, dry run, and beside its peers.

    Args:
        settings: where the tools are.
        peers: a folder with the peers' programs (yq, flate); a folder `trees` in it holds trees to measure besides this one.
    """
    ensure_tools(settings)
    with tempfile.TemporaryDirectory(prefix="gitops-lab-bench-check-") as folder:
        place = Path(folder)
        tree = _copied(FLUX_CD, place)
        own = _runs(settings, tree, place)
        cold, warm = ([run() for _ in range(REPEATS)] for run in (own.cold, own.warm))
        deployment = tree / "applications" / "_base-app-config" / "deployment.yaml"
        changed = [own.warm() for _ in _changes(deployment)]
        trees = {count: _overlays(place, count) for count in OVERLAYS}
        many = {count: _run(settings, each, _fresh(settings, place, str(count))) for count, each in trees.items()}
        # To watch memory takes time from what is watched, so those are runs of their own.
        watched = {
            "this tree": _run(settings, tree, _fresh(settings, place, "watched"), watch_memory=True),
            **{
                str(count): _run(settings, each, _fresh(settings, place, f"watched-{count}"), watch_memory=True)
                for count, each in trees.items()
            },
        }
        dry_run = _time_dry_run(settings, tree, deployment, place)
        beside: list[Measure] = []
        of_peers: dict[str, Any] = {}
        if peers:
            others = [_copied(other, place) for other in sorted((peers / "trees").glob("*"))]
            for each, runs in [(tree, own), *((other, _runs(settings, other, place)) for other in others)]:
                found, of_peers[each.name] = measure_peers(settings, each, peers, runs, place)
                beside += found
    per_overlay = {count: timed.seconds / count for count, timed in many.items()}
    memory = max(t.memory_mib for t in watched.values())
    measures = [
        Measure("check of this tree, empty cache", statistics.median(cold), GOALS["cold_s"], "s"),
        Measure("check after a file of the base changed", statistics.median(changed), GOALS["changed_s"], "s"),
        Measure("check with nothing changed", statistics.median(warm), GOALS["warm_s"], "s"),
        Measure("check of 100 overlays, empty cache", many[100].seconds, GOALS["overlays_s"], "s"),
        Measure("time per overlay, 400 over 100", per_overlay[400] / per_overlay[100], LINEAR, "x"),
        Measure("most memory of a check", memory, GOALS["memory_mib"], "MiB"),
        *(
            Measure(f"dry run, {name}", _median(runs), GOALS[f"dry_run_{name}_s"], "s")
            for name, runs in dry_run.items()
        ),
        *beside,
    ]
    details = {
        "cold_s": cold,
        "changed_s": changed,
        "warm_s": warm,
        "overlays_s": {str(count): t.seconds for count, t in many.items()},
        "memory_mib": {name: t.memory_mib for name, t in watched.items()},
        "dry_run_s": {name: [t.seconds for t in runs] for name, runs in dry_run.items()},
        "peers": of_peers,
    }
    return measures, details


def _copied(tree: Path, place: Path) -> Path:
    """Copy a tree into a repository of its own, where it may be changed."""
    repository = place / "repositories" / tree.name
    copy = Path(shutil.copytree(tree, repository / tree.name, symlinks=True, ignore=shutil.ignore_patterns(".git")))
    (repository / ".git").mkdir()
    return copy


def _runs(settings: Settings, tree: Path, place: Path) -> Runs:
    """Return how to run the check over a tree; a warm run is one that knows what the tree was at the last one."""
    numbers = itertools.count()
    cache = _fresh(settings, place, f"{tree.name}-warm")
    _run(settings, tree, cache)
    return Runs(
        lambda: _run(settings, tree, _fresh(settings, place, f"{tree.name}-cold-{next(numbers)}")).seconds,
        lambda: _run(settings, tree, cache).seconds,
    )


def _changes(deployment: Path) -> Iterator[None]:
    """Change a file of the base, so that every environment has to be rendered again, as often as is measured."""
    original = deployment.read_text()
    for number in range(REPEATS):
        deployment.write_text(original.replace("\nspec:\n", f"\nspec:\n  minReadySeconds: {number + 1}\n", 1))
        yield
    deployment.write_text(original)


def _time_dry_run(settings: Settings, tree: Path, deployment: Path, place: Path) -> dict[str, list[Timed]]:
    """Time the dry run alone with its builds: a server that has to be started, and one that `make watch` keeps warm."""
    if find_binaries(settings.tools_dir) is None:
        return {}
    cache, state = _fresh(settings, place, "dry-run"), place / "state"
    dry_run = {"DRY_RUN": "1", "XDG_STATE_HOME": str(state)}
    cold = [_run(settings, tree, cache, "kustomize-dry-run", dry_run) for _ in _changes(deployment)]
    with kept_warm(replace(settings, state_root=state / "gitops-lab")):
        # The first run makes what has to exist there.
        _run(settings, tree, _fresh(settings, place, "dry-run-first"), "kustomize-dry-run", dry_run)
        warm = [_run(settings, tree, cache, "kustomize-dry-run", dry_run) for _ in _changes(deployment)]
    return {"cold": cold, "warm": warm}


def _median(runs: list[Timed]) -> float:
    return statistics.median(t.seconds for t in runs)


def _fresh(settings: Settings, place: Path, name: str) -> Path:
    """Return a cache folder that holds the tools and nothing else."""
    cache = place / "caches" / name / "gitops-lab"
    (cache / "tools").mkdir(parents=True)
    for tool in (t for t in (*CHECK_TOOLS, *DRY_RUN_TOOLS) if (settings.tools_dir / t).exists()):
        (cache / "tools" / tool).symlink_to((settings.tools_dir / tool).resolve())
    note_tools(replace(settings, cache_dir=cache))
    return cache.parent


def _run(
    settings: Settings,
    tree: Path,
    cache: Path,
    command: str = "kustomize-check",
    more: Mapping[str, str] | None = None,
    watch_memory: bool = False,
) -> Timed:
    """Run a command as a user does and return its time, and its memory if wanted; it must find nothing wrong."""
    # As the makefile calls it.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    variables = {"TREE": str(tree), "XDG_CACHE_HOME": str(cache), "DRY_RUN": "0", "OUTPUT": "text"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts", command],
        cwd=ROOT,
        env={**inherited, **variables, **(more or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = 0.0
    try:
        while True:
            peak = max(peak, _memory_mib(process.pid)) if watch_memory else peak
            try:
                output, _ = process.communicate(timeout=0.02 if watch_memory else 1)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() - started > RUN_TIMEOUT_S:
                    raise LabError(f"A check did not end within {RUN_TIMEOUT_S} s.") from None
    finally:
        process.kill()
    seconds = time.monotonic() - started
    if process.returncode != 0:
        raise LabError("The check that is being measured failed.", "mend what it says", output)
    return Timed(seconds, peak)


def _memory_mib(pid: int) -> float:
    """Return the resident memory of a process and its descendants (Linux; 0 elsewhere)."""
    total = 0
    pending = [pid]
    while pending:
        current = pending.pop()
        try:
            status = Path(f"/proc/{current}/status").read_text()
            for task in Path(f"/proc/{current}/task").iterdir():
                pending += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            # Ended in between.
            continue
        total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)
    return total / 1024


def _overlays(place: Path, count: int) -> Path:
    """Write a tree of one base, the application's of this lab, and many overlays of it; return its root."""
    root = place / f"overlays-{count}"
    shutil.copytree(FLUX_CD / "applications" / "_base-app-config", root / "base")
    definitions = FLUX_CD / "infrastructure" / "_components" / "ingress-controllers" / "crds"
    shutil.copytree(definitions, root / "crds")
    shutil.copytree(FLUX_CD / "infrastructure" / "_components" / "_prometheus-stack" / "crds", root / "monitors")
    for number in range(count):
        folder = root / "overlays" / f"team-{number:03}"
        folder.mkdir(parents=True)
        (folder / "kustomization.yaml").write_text(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
            f"namespace: team-{number:03}\nresources:\n- ../../base\n"
            f"patches:\n- target:\n    kind: HorizontalPodAutoscaler\n  patch: |-\n"
            f"    - op: replace\n      path: /spec/maxReplicas\n      value: {2 + number % 4}\n"
        )
    return root
