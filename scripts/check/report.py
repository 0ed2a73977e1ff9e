"""What a person reads after a check: one table, and each finding with its place and how to mend it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts import console
from scripts.check.model import Finding, Report, Row, Severity, Stage

_STAGE_COLUMNS = (Stage.STRUCTURE, Stage.BUILD, Stage.SCHEMA, Stage.LINT, Stage.DRY_RUN)
# How many of many names are told.
_SHOWN = 5


def print_report(report: Report) -> None:
    """Print a report for people: live colours in a terminal, plain text in a pipe."""
    columns, rows = summary(report)
    if sys.stdout.isatty():
        console.table("", columns, rows)
    else:
        console.raw(plain_table(columns, rows))
    print_findings(report)


def print_findings(report: Report) -> None:
    """Print each finding, and the verdict."""
    for line in finding_lines(report):
        console.raw(line)
    console.raw(closing_line(report))


def summary(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return the table's columns and rows: a mark per stage that ran, with the number of findings."""
    shown = [s for s in _STAGE_COLUMNS if s in report.seconds]
    columns = ["kustomization", *(s.value.replace("-", " ") for s in shown), "resources", "time", ""]
    known = {r.kustomization for r in report.rows}
    by_folder: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_folder.setdefault(_row_of(finding, known), []).append(finding)
    rows = []
    done: set[str] = set()
    for row in report.rows:
        # Two renderings of a folder share its findings: they are told once.
        findings = by_folder.get(row.kustomization, []) if row.kustomization not in done else []
        done.add(row.kustomization)
        rows.append(_cells(row, findings, shown))
    return columns, rows


def _cells(row: Row, findings: list[Finding], shown: Sequence[Stage]) -> list[str]:
    name = row.kustomization or "."
    if row.flux and row.flux != (name.rpartition("/")[2],):
        name += f" ({', '.join(row.flux)})"
    marks = [_mark(s, row, [f for f in findings if f.stage is s]) for s in shown]
    numbers = [str(row.resources), f"{row.seconds:.2f} s"] if row.built else ["-", "-"]
    return [name, *marks, *numbers, row.note]


def _mark(stage: Stage, row: Row, findings: list[Finding]) -> str:
    errors = sum(f.severity is Severity.ERROR for f in findings)
    warnings = len(findings) - errors
    told = " ".join([f"✘ {errors}"] * bool(errors) + [f"! {warnings}"] * bool(warnings))
    if told:
        return told
    return "✔" if row.built or stage is Stage.STRUCTURE else "-"


def _row_of(finding: Finding, known: set[str]) -> str:
    """Return the kustomization that a finding is counted for: its own, or the nearest one around its file."""
    folder = finding.kustomization
    if folder not in known or (not folder and finding.place.file):
        folder = finding.kustomization or finding.place.file
        while folder and folder not in known:
            folder = folder.rpartition("/")[0]
    return folder


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as plain text, without importing what draws the coloured one."""
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [columns, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def finding_lines(report: Report) -> Iterable[str]:
    """Yield the findings as text.

    The same fault met in several kustomizations is told once, and so is one that is only a warning met in many objects.
    """
    grouped: dict[tuple[object, ...], list[Finding]] = {}
    for finding in report.findings:
        place = finding.place if finding.severity is Severity.ERROR else None
        key = (finding.severity, finding.stage, finding.rule, place, finding.message)
        grouped.setdefault(key, []).append(finding)
    for same in grouped.values():
        finding = same[0]
        mark = "✘" if finding.severity is Severity.ERROR else "!"
        subject = f"  {finding.subject}" if finding.subject else ""
        folders = sorted({f.kustomization or "." for f in same if f.kustomization})
        within = f" (in {len(folders)} kustomizations: {_some(folders)})" if len(folders) > 1 else ""
        yield f"{mark} {shown_path(report.root, finding)}{subject}"
        others = sorted({f.subject or str(f.place) for f in same if f.place != finding.place})
        if others:
            yield f"    and {len(others)} more: {_some(others)}"
            within = ""
        yield f"    {finding.message}{within} [{finding.rule}]"
        yield f"    to mend it: {finding.mend}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def shown_path(root: Path, finding: Finding) -> str:
    """Return a finding's place as one can open it from the current folder."""
    line = f":{finding.place.line}" if finding.place.line else ""
    return f"{os.path.relpath(os.path.normpath(root / finding.place.file))}{line}"


def closing_line(report: Report) -> str:
    """Return the last line: the verdict, with counts and time."""
    errors = sum(f.severity is Severity.ERROR for f in report.findings)
    warnings = len(report.findings) - errors
    built = sum(r.built and not r.release for r in report.rows)
    releases = sum(r.built and r.release for r in report.rows)
    charts = f", {releases} HelmRelease{'s' * (releases != 1)}" if releases else ""
    resources = sum(r.resources for r in report.rows)
    laps = ", ".join(f"{s.value} {t:.2f}" for s, t in report.seconds.items())
    how = "nothing changed since the last run" if report.from_cache else laps
    verdict = "✔ in order" if report.ok else f"✘ {errors} error{'s' * (errors != 1)}"
    told = f", {warnings} warning{'s' * (warnings != 1)}" if warnings else ""
    return f"{verdict}{told}: {built} kustomizations{charts}, {resources} resources, {report.total_s:.2f} s ({how})"
