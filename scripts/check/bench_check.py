"""What the check is measured by: whole runs of its command, each a process of its own, on this tree and on made-up ones."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench_measure import Measure
from scripts.check.commands import ensure_tools, note_tools
from scripts.errors import LabError
from scripts.settings import CHECK_TOOLS, FLUX_CD, ROOT, Settings

GOALS = {"cold_s": 1.5, "changed_s": 0.6, "warm_s": 0.3, "overlays_s": 5.0, "memory_mib": 300.0}
OVERLAYS = (10, 100, 400)
REPEATS = 5
RUN_TIMEOUT_S = 300
# Twice the time per overlay of the smallest tree would not be linear any more.
LINEAR = 2.0


@dataclass(frozen=True)
class Timed:
    """One run: its wall time, and the most memory that it and its children held together."""

    seconds: float
    memory_mib: float


def measure_check(settings: Settings) -> tuple[list[Measure], dict[str, Any]]:
    """Time the check with an empty cache, after one file changed, with nothing changed, and over many overlays."""
    ensure_tools(settings)
    with tempfile.TemporaryDirectory(prefix="gitops-lab-bench-check-") as folder:
        place = Path(folder)
        tree = Path(shutil.copytree(FLUX_CD, place / "repository" / "flux-cd"))
        (place / "repository" / ".git").mkdir()
        cold = [_run(settings, tree, _fresh(settings, place, f"cold-{n}")) for n in range(REPEATS)]
        cache = _fresh(settings, place, "warm")
        _run(settings, tree, cache)
        warm = [_run(settings, tree, cache) for _ in range(REPEATS)]
        deployment = tree / "applications" / "_base-app-config" / "deployment.yaml"
        original = deployment.read_text()
        changed = []
        for number in range(REPEATS):
            # A file of the base: every environment has to be rendered again.
            deployment.write_text(original.replace("\nspec:\n", f"\nspec:\n  minReadySeconds: {number + 1}\n", 1))
            changed.append(_run(settings, tree, cache))
        many = {
            count: _run(settings, _overlays(place, count), _fresh(settings, place, str(count))) for count in OVERLAYS
        }
    per_overlay = {count: timed.seconds / count for count, timed in many.items()}
    memory = max(t.memory_mib for t in [*cold, *many.values()])
    measures = [
        Measure("check of this tree, empty cache", _median(cold), GOALS["cold_s"], "s"),
        Measure("check after a file of the base changed", _median(changed), GOALS["changed_s"], "s"),
        Measure("check with nothing changed", _median(warm), GOALS["warm_s"], "s"),
        Measure("check of 100 overlays, empty cache", many[100].seconds, GOALS["overlays_s"], "s"),
        Measure("time per overlay, 400 over 100", per_overlay[400] / per_overlay[100], LINEAR, "x"),
        Measure("most memory of a check", memory, GOALS["memory_mib"], "MiB"),
    ]
    details = {
        "cold_s": [t.seconds for t in cold],
        "changed_s": [t.seconds for t in changed],
        "warm_s": [t.seconds for t in warm],
        "overlays_s": {str(count): t.seconds for count, t in many.items()},
        "memory_mib": {str(count): t.memory_mib for count, t in many.items()},
    }
    return measures, details


def _median(runs: list[Timed]) -> float:
    return statistics.median(t.seconds for t in runs)


def _fresh(settings: Settings, place: Path, name: str) -> Path:
    """Return a cache folder that holds the tools and nothing else."""
    cache = place / "caches" / name / "gitops-lab"
    (cache / "tools").mkdir(parents=True)
    for tool in CHECK_TOOLS:
        (cache / "tools" / tool).symlink_to((settings.tools_dir / tool).resolve())
    note_tools(replace(settings, cache_dir=cache))
    return cache.parent


def _run(settings: Settings, tree: Path, cache: Path) -> Timed:
    """Run the command as a user does and return its time and memory; it must find nothing wrong."""
    # As the makefile calls it.
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts", "kustomize-check"],
        cwd=ROOT,
        env={**inherited, "TREE": str(tree), "XDG_CACHE_HOME": str(cache), "DRY_RUN": "0", "OUTPUT": "text"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = 0.0
    try:
        while True:
            peak = max(peak, _memory_mib(process.pid))
            try:
                output, _ = process.communicate(timeout=0.02)
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
