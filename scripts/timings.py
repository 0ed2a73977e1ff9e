"""How long setup took, run by run: one line of JSON each in the state folder, the last ten as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.text import Text

from scripts import console
from scripts.settings import Settings

SHOWN = 10


@dataclass(frozen=True)
class StepTiming:
    """One step: its seconds, and whether it changed something."""

    name: str
    seconds: float
    changed: bool


@dataclass(frozen=True)
class RunTiming:
    """One setup run: when it began (ISO 8601, UTC), its steps, its seconds in all, and whether it ended well."""

    started: str
    image_source: str
    ok: bool
    total_s: float
    steps: tuple[StepTiming, ...]


def timings_file(settings: Settings) -> Path:
    """Return where the runs are recorded."""
    return settings.state_dir / "timings.jsonl"


def record(settings: Settings, run: RunTiming) -> None:
    """Append a run; a line that a killed process left unfinished stays a line of its own."""
    path = timings_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (json.dumps(asdict(run)) + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        file.write(data)


def load(settings: Settings, count: int = SHOWN) -> list[RunTiming]:
    """Return the newest runs, oldest first; lines that are not whole are passed over."""
    try:
        text = timings_file(settings).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    runs: list[RunTiming] = []
    for line in reversed(text.splitlines()):
        if run := _parse(line):
            runs.append(run)
        if len(runs) == count:
            break
    return runs[::-1]


def _parse(line: str) -> RunTiming | None:
    try:
        found = json.loads(line)
        steps = tuple(StepTiming(str(s["name"]), float(s["seconds"]), bool(s["changed"])) for s in found["steps"])
        return RunTiming(
            str(found["started"]), str(found["image_source"]), bool(found["ok"]), float(found["total_s"]), steps
        )
    except (ValueError, KeyError, TypeError):
        return None


def show(settings: Settings) -> None:
    """Print the last runs."""
    runs = load(settings)
    if not runs:
        console.line("No setup run has been recorded yet: make setup-all")
        return
    print_table(
        f"The last {len(runs)} setup runs (* changed something)" if len(runs) > 1 else "The last setup run", runs
    )


def show_run(steps: Sequence[StepTiming], total_s: float) -> None:
    """Print one run, a row per step: the table that each run ends with."""
    rows: list[list[str | Text]] = [
        [step.name, console.duration(step.seconds), "changed" if step.changed else "as it was"] for step in steps
    ]
    rows.append([Text("in all", style="bold"), Text(console.duration(total_s), style="bold"), "steps overlap"])
    console.table("Time per step", ["step", "time", "found"], rows)


def print_table(title: str, runs: Sequence[RunTiming]) -> None:
    """Print runs as rows and steps as columns, in the order in which the newest run has them."""
    names = dict.fromkeys(step.name for run in reversed(runs) for step in run.steps)
    rows: list[list[str | Text]] = []
    for run in runs:
        cells = {step.name: _cell(step) for step in run.steps}
        result = Text("ok", style="green") if run.ok else Text("failed", style="red")
        when = run.started.replace("T", " ").removesuffix("Z")
        rows.append(
            [when, run.image_source, *(cells.get(name, "-") for name in names), console.duration(run.total_s), result]
        )
    console.table(title, ["started (UTC)", "images", *names, "in all", "result"], rows)


def _cell(step: StepTiming) -> str:
    return console.duration(step.seconds) + ("*" if step.changed else "")
