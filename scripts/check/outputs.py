"""A report for machines: JSON, SARIF 2.1.0 (code scanning), JUnit (CI)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.check.model import Finding, Report, Severity, Stage
from scripts.check.store import to_record

_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_STAGES = tuple(Stage)


class Output(StrEnum):
    """The forms of a report."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    JUNIT = "junit"


def as_json(report: Report) -> str:
    """Return a report as JSON."""
    errors = sum(f.severity is Severity.ERROR for f in report.findings)
    return json.dumps(
        {
            "tree": str(report.root),
            "ok": report.ok,
            "errors": errors,
            "warnings": len(report.findings) - errors,
            "seconds": {"total": report.total_s, **{s.value: t for s, t in report.seconds.items()}},
            "fromCache": report.from_cache,
            "kustomizations": [asdict(r) for r in report.rows],
            "findings": [to_record(f) for f in report.findings],
        },
        indent=2,
    )


def as_sarif(report: Report) -> str:
    """Return a report as SARIF; paths are relative to the repository, as code scanning wants them."""
    top = _repository(report.root)
    rules: dict[str, int] = {}
    described: list[dict[str, Any]] = []
    for finding in report.findings:
        if finding.rule not in rules:
            rules[finding.rule] = len(rules)
            described.append(
                {
                    "id": finding.rule,
                    "shortDescription": {"text": finding.rule.replace("-", " ")},
                    "help": {"text": finding.mend},
                    "properties": {"tags": [finding.stage.value]},
                }
            )
    results = [
        {
            "ruleId": f.rule,
            "ruleIndex": rules[f.rule],
            "level": f.severity.value,
            "message": {"text": f"{f.subject + ': ' if f.subject else ''}{f.message}. To mend it: {f.mend}"},
            "locations": [{"physicalLocation": _location(report.root, top, f)}],
            "partialFingerprints": {"finding/v1": f"{f.rule}:{f.place.file}:{f.subject}:{f.message}"},
        }
        for f in report.findings
    ]
    driver = {"name": "kustomize-check", "semanticVersion": "1.0.0", "rules": described}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return json.dumps({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _location(root: Path, top: Path, finding: Finding) -> dict[str, Any]:
    path = os.path.relpath(os.path.normpath(root / finding.place.file), top)
    return {
        "artifactLocation": {"uri": quote(Path(path).as_posix())},
        # A finding about a file as a whole is shown at its top.
        "region": {"startLine": max(1, finding.place.line)},
    }


def _repository(root: Path) -> Path:
    return next((p for p in [root, *root.parents] if (p / ".git").exists()), root)


def as_junit(report: Report) -> str:
    """Return a report as JUnit has it: a suite per kustomization, a case per stage, a failure per error."""
    from xml.etree import ElementTree

    known = {r.kustomization for r in report.rows}
    suites = ElementTree.Element("testsuites", name="kustomize-check", time=f"{report.total_s:.3f}")
    total = failed = 0
    for name in sorted({*known, *(f.kustomization for f in report.findings)}):
        seconds = sum(r.seconds for r in report.rows if r.kustomization == name)
        suite = ElementTree.SubElement(suites, "testsuite", name=name or ".", time=f"{seconds:.3f}")
        mine = [f for f in report.findings if f.kustomization == name]
        failures = 0
        for stage in _STAGES:
            if stage not in report.seconds:
                continue
            case = ElementTree.SubElement(suite, "testcase", name=stage.value, classname=name or ".", time="0")
            errors = [f for f in mine if f.stage is stage and f.severity is Severity.ERROR]
            warnings = [f for f in mine if f.stage is stage and f.severity is Severity.WARNING]
            if errors:
                failures += 1
                failure = ElementTree.SubElement(case, "failure", type=errors[0].rule, message=_xml(errors[0].message))
                failure.text = "\n".join(_line(f) for f in errors)
            if warnings:
                ElementTree.SubElement(case, "system-out").text = "\n".join(_line(f) for f in warnings)
            total += 1
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(failures))
        suite.set("errors", "0")
        failed += failures
    suites.set("tests", str(total))
    suites.set("failures", str(failed))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)


def _line(finding: Finding) -> str:
    subject = f" {finding.subject}:" if finding.subject else ""
    return _xml(f"{finding.place}:{subject} {finding.message} [{finding.rule}]; to mend it: {finding.mend}")


def _xml(text: str) -> str:
    """Return a text without the characters that XML 1.0 can't hold."""
    return "".join(c if c in "\t\n\r" or 0x20 <= ord(c) <= 0xD7FF or ord(c) >= 0xE000 else "\ufffd" for c in text)


WRITERS: dict[Output, Callable[[Report], str]] = {
    Output.JSON: as_json,
    Output.SARIF: as_sarif,
    Output.JUNIT: as_junit,
}
