"""The report of a run: a folder with a page that stands alone, pictures, the raw series as JSON, a short summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts import console, htmlpage
from scripts.cache import write_atomically
from scripts.hpa import charts, histograms
from scripts.hpa.autoscaler import shown
from scripts.hpa.histograms import Wish
from scripts.hpa.live import milliseconds
from scripts.hpa.model import Check, Recording
from scripts.hpa.timeline import Summary, by_second, since
from scripts.settings import ROOT, HpaMetric

REPORTS = ROOT / "reports" / "hpa"
VERSION = 2
SERIES = "series.json"
STEPS = (
    ("decision", "load to decision"),
    ("new_pod", "load to new pod"),
    ("new_ready", "load to first new pod Ready"),
    ("at_highest", "load to highest number of pods Ready"),
    ("latency_back", "load to latency back at its level before"),
)


def folder_name(recording: Recording) -> str:
    """Return the name of a run's folder: the time in UTC and the environment, so that names sort by time."""
    moment = datetime.fromtimestamp(recording.started, UTC)
    return f"{moment:%Y%m%dT%H%M%SZ}-{recording.plan.wanted.environment}"


def write(recording: Recording, summary: Summary, reports: Path = REPORTS) -> Path:
    """Write the report and return its folder; what takes longest, the pictures, comes last."""
    folder = reports / folder_name(recording)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SERIES, json.dumps(as_data(recording, summary), indent=1) + "\n")
    write_atomically(folder / "summary.md", markdown(recording, summary))
    pictures = charts.draw(recording, summary, folder)
    write_atomically(folder / "index.html", page(recording, summary, pictures))
    return folder


def show(recording: Recording, summary: Summary, folder: Path) -> None:
    """Print what the run came to."""
    console.line()
    for check in summary.checks:
        console.line(
            f"{'✔' if check.ok else '✘'} {check.name}: {check.detail}", style="green" if check.ok else "bold red"
        )
    console.line()
    console.table("Times", ["", ""], [[name, value] for name, value in figures(recording, summary)])
    for obstacle in recording.obstacles:
        console.line(f"! {obstacle}", style="yellow")
    for note in recording.notes:
        console.line(f"  {note}", style="dim")
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    console.line(f"report: {shown}/index.html")


def figures(recording: Recording, summary: Summary) -> list[tuple[str, str]]:
    """Return the figures of a run, by name, as people read them."""
    moments = summary.moments
    rows = [(name, _seconds(since(moments.load_began, getattr(moments, key)))) for key, name in STEPS]
    rows.append(("end of load to minimum", _seconds(since(moments.load_ended, moments.at_minimum))))
    rows += [
        ("highest number of pods Ready", f"{summary.highest_ready} (desired {summary.highest_desired})"),
        ("requests", f"{summary.requests}, of them failed {summary.failed}"),
        ("p95 before the load", milliseconds(summary.level_before_s)),
        ("p95 at its worst (5 s)", milliseconds(summary.p95_worst_s)),
        ("p95 with all pods Ready", milliseconds(summary.p95_after_s)),
        *_histograms(recording, summary),
        ("CPU of the generator", f"{recording.generator_cores:.2f} of {recording.plan.capacity.machine_cores:.0f}"),
        ("nodes", ", ".join(summary.nodes) or "-"),
    ]
    return rows


def _histograms(recording: Recording, summary: Summary) -> list[tuple[str, str]]:
    """Return what both histograms would have called for, where a latency was followed or requests failed."""
    if not charts.tells_of_histograms(recording):
        return []
    target = shown(HpaMetric.LATENCY, summary.replay.query.target_ms)
    rows = []
    for name, wishes in (("every request", summary.replay.every), ("failed requests only", summary.replay.failed_only)):
        most = histograms.highest(wishes)
        blind = f", nothing to tell by for {histograms.blind_s(wishes):.0f} s"
        rows.append(
            (f"a p95 of {name}, {target} being the target", f"at most {'-' if most is None else most} pods{blind}")
        )
    return rows


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def as_data(recording: Recording, summary: Summary) -> dict[str, Any]:
    """Return the raw series with what they came to; times `t` are seconds since the load began."""
    origin = recording.load_began or recording.started
    plan = recording.plan

    def t(moment: float | None) -> float | None:
        return None if moment is None else round(moment - origin, 3)

    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else round(seconds * 1000, 2)

    return {
        "version": VERSION,
        "run": {
            "environment": plan.wanted.environment,
            "profile": str(plan.wanted.profile),
            "metric": str(plan.metric),
            "target_ms": plan.target_ms,
            "fail_rate": plan.wanted.fail_rate,
            "duration_s": plan.wanted.duration_s,
            "target": plan.target,
            "path": plan.path,
            "peak_rate": plan.peak,
            "quiet_rate": plan.quiet,
            "stages": [asdict(s) for s in plan.stages],
            **asdict(plan.capacity),
            "started": _iso(recording.started),
            "load_began": None if recording.load_began is None else _iso(recording.load_began),
            "load_ended": None if recording.load_ended is None else _iso(recording.load_ended),
            "interrupted": recording.interrupted,
            "lost": recording.lost,
        },
        "moments": {name: t(at) for name, at in asdict(summary.moments).items()},
        "checks": [asdict(c) for c in summary.checks],
        "ok": summary.ok,
        "requests": {
            "total": summary.requests,
            "failed": summary.failed,
            "errors": list(summary.errors),
            "planned_in_load": summary.planned,
            "sent_in_load": summary.sent_in_load,
            "late_p99_ms": ms(summary.late_p99_s),
        },
        "latency": {
            "p95_before_ms": ms(summary.level_before_s),
            "p95_worst_ms": ms(summary.p95_worst_s),
            "p95_all_ready_ms": ms(summary.p95_after_s),
        },
        "replicas": {
            "lowest": summary.minimum_seen,
            "highest_ready": summary.highest_ready,
            "highest_desired": summary.highest_desired,
        },
        "histograms": {
            "target_ms": summary.replay.query.target_ms,
            "window_s": summary.replay.query.window_s,
            **{
                name: {
                    "highest": histograms.highest(wishes),
                    "blind_s": histograms.blind_s(wishes),
                    "wishes": [{"t": t(w.at), **{k: v for k, v in asdict(w).items() if k != "at"}} for w in wishes],
                }
                for name, wishes in _by_name(summary)
            },
        },
        "generator_cores": round(recording.generator_cores, 3),
        "obstacles": list(recording.obstacles),
        "notes": list(recording.notes),
        "seconds": [
            {"t": t(s.at), "sent": s.sent, "failed": s.failed, "p50_ms": ms(s.p50_s), "p95_ms": ms(s.p95_s),
             "p99_ms": ms(s.p99_s)}
            for s in by_second(recording.answers, origin)
        ],
        "samples": [
            {"t": t(s.at), **{k: v for k, v in asdict(s).items() if k not in ("at", "pods")},
             "pods": [asdict(p) for p in s.pods]}
            for s in recording.samples
        ],
        "events": [{"t": t(e.seen), **{k: v for k, v in asdict(e).items() if k != "seen"}} for e in recording.events],
        "pods": [
            {"name": p.name, "node": p.node, **{k: t(getattr(p, k)) for k in ("created", "ready", "ending", "gone")}}
            for p in recording.pods
        ],
    }  # fmt: skip


def _by_name(summary: Summary) -> tuple[tuple[str, Sequence[Wish]], ...]:
    return ("every", summary.replay.every), ("failed_only", summary.replay.failed_only)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def headline(recording: Recording, summary: Summary) -> str:
    """Return in one sentence what the run came to."""
    wanted = recording.plan.wanted
    said = "every check holds" if summary.ok else "not every check holds"
    stopped = ", interrupted" if recording.interrupted else ""
    return f"{wanted.environment}, {wanted.profile} load for {wanted.duration_s} s{stopped}: {said}"


def markdown(recording: Recording, summary: Summary) -> str:
    """Return the short summary."""
    lines = [f"# {headline(recording, summary)}", "", f"{_iso(recording.started)}, {_setting(recording)}", ""]
    lines += [f"- {'✔' if c.ok else '✘'} {c.name}: {c.detail}" for c in summary.checks]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in figures(recording, summary)]
    if recording.obstacles:
        lines += ["", "What kept it from scaling (further):", "", *(f"- {o}" for o in recording.obstacles)]
    if recording.notes:
        lines += ["", "Notes:", "", *(f"- {n}" for n in recording.notes)]
    return "\n".join(lines) + "\n"


def _setting(recording: Recording) -> str:
    plan, capacity = recording.plan, recording.plan.capacity
    return (
        f"{plan.peak} requests/s at the peak to {plan.path}; {plan.target} of {capacity.minimum} to {capacity.maximum} pods "
        f"with {capacity.request_millicores:.0f}m each, target {_target(recording)}"
    )


def _target(recording: Recording) -> str:
    plan = recording.plan
    if plan.target_ms is None:
        return f"{plan.capacity.target_percent} % of it"
    return f"a p95 of {shown(plan.metric, plan.target_ms)}"


def page(recording: Recording, summary: Summary, pictures: Sequence[Path]) -> str:
    """Return the page; the pictures are part of it, so that it can be sent as one file."""
    origin = recording.load_began or recording.started
    checks = "".join(_check(c) for c in summary.checks)
    rows = htmlpage.table(figures(recording, summary))
    events = htmlpage.table(
        [(f"{e.seen - origin:+.1f} s", f"{e.reason}: {e.message}") for e in recording.events], ("after load", "event")
    )
    pods = htmlpage.table(
        [
            (p.name, p.node, f"{p.created - origin:+.1f} s", "-" if p.ready is None else f"{p.ready - origin:+.1f} s")
            for p in recording.pods
        ],
        ("pod", "node", "created", "Ready"),
    )
    images = "".join(htmlpage.image(p, f"{p.stem} of the run") for p in pictures)
    obstacles = "".join(f"<li>{htmlpage.escape(o)}</li>" for o in recording.obstacles)
    kept = f"<h2>What kept it from scaling (further)</h2><ul>{obstacles}</ul>" if obstacles else ""
    title = headline(recording, summary)
    return htmlpage.document(
        title,
        f'<h1>{htmlpage.escape(title)}</h1><p class="setting">{htmlpage.escape(_iso(recording.started))}, {htmlpage.escape(_setting(recording))}</p>'
        f'<ul class="checks">{checks}</ul>{kept}{images}<h2>Figures</h2>{rows}<h2>Events of the autoscaler</h2>{events}'
        f"<h2>Pods</h2>{pods}",
    )


def _check(check: Check) -> str:
    mark, style = ("✔", "ok") if check.ok else ("✘", "bad")
    return f'<li class="{style}">{mark} {htmlpage.escape(check.name)}: {htmlpage.escape(check.detail)}</li>'
