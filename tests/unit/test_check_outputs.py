import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.check.commands import output_of
from scripts.check.model import Finding, Place, Report, Row, Severity, Stage
from scripts.check.outputs import Output, as_json, as_junit, as_sarif
from scripts.check.report import closing_line, finding_lines, plain_table, summary
from scripts.check.store import from_record, to_record
from scripts.errors import UsageError

ERROR = Finding(
    Stage.SCHEMA, "wrong-type", 'spec.replicas: got "a" & <b>\x01', "write a number", Place("base/my web.yaml", 7),
    "Deployment dev/web", "dev",
)  # fmt: skip
WARNING = Finding(
    Stage.STRUCTURE, "file-unreferenced", "nobody lists it", "list it", Place("x.yaml"), severity=Severity.WARNING
)
ROWS = (Row("dev", ("dev",), resources=3, seconds=0.25, built=True), Row("base", note="part of dev"))


@pytest.fixture
def report(tmp_path: Path) -> Report:
    (tmp_path / ".git").mkdir()
    root = tmp_path / "tree"
    root.mkdir()
    seconds = {Stage.STRUCTURE: 0.1, Stage.BUILD: 0.2, Stage.SCHEMA: 0.3}
    return Report(root, findings=(ERROR, WARNING), rows=ROWS, seconds=seconds, total_s=0.6)


def test_a_finding_survives_being_kept() -> None:
    assert [from_record(json.loads(json.dumps(to_record(f)))) for f in (ERROR, WARNING)] == [ERROR, WARNING]


def test_json_holds_the_verdict_and_each_finding(report: Report) -> None:
    found = json.loads(as_json(report))
    assert (found["ok"], found["errors"], found["warnings"]) == (False, 1, 1)
    assert found["findings"][0]["place"] == {"file": "base/my web.yaml", "line": 7}
    assert found["kustomizations"][0]["resources"] == 3


def test_sarif_has_what_code_scanning_asks_for(report: Report) -> None:
    found = json.loads(as_sarif(report))
    run = found["runs"][0]
    assert found["version"] == "2.1.0"
    assert [r["id"] for r in run["tool"]["driver"]["rules"]] == ["wrong-type", "file-unreferenced"]
    first, second = run["results"]
    assert first["level"], second["level"] == ("error", "warning")
    assert run["tool"]["driver"]["rules"][second["ruleIndex"]]["id"] == second["ruleId"]
    location = first["locations"][0]["physicalLocation"]
    # Relative to the repository, not to the tree, and escaped as an address is.
    assert location == {"artifactLocation": {"uri": "tree/base/my%20web.yaml"}, "region": {"startLine": 7}}
    assert second["locations"][0]["physicalLocation"]["region"]["startLine"] == 1


def test_junit_has_a_suite_per_kustomization_and_fails_where_an_error_is(report: Report) -> None:
    root = ElementTree.fromstring(as_junit(report))
    suites = {s.get("name"): s for s in root}
    assert set(suites) == {".", "base", "dev"}
    assert [c.get("name") for c in suites["dev"]] == ["structure", "build", "schema"]
    failures = suites["dev"].findall("testcase/failure")
    assert [f.get("type") for f in failures] == ["wrong-type"]
    assert "base/my web.yaml:7" in (failures[0].text or "")
    assert (root.get("failures"), suites["base"].get("failures"), root.get("tests")) == ("1", "0", "9")
    assert "nobody lists it" in (suites["."].findtext("testcase/system-out") or "")


def test_the_table_has_a_row_per_kustomization_and_counts(report: Report) -> None:
    columns, rows = summary(report)
    assert columns[:4] == ["kustomization", "structure", "build", "schema"]
    assert rows[0] == ["dev", "✔", "✔", "✘ 1", "3", "0.25 s", ""]
    assert rows[1] == ["base", "✔", "-", "-", "-", "-", "part of dev"]
    assert plain_table(columns, rows).count("\n") == 2


def test_each_finding_is_told_with_place_object_fault_and_mend(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(report.root.parent)
    text = "\n".join(finding_lines(report))
    for part in ("tree/base/my web.yaml:7", "Deployment dev/web", "[wrong-type]", "to mend it: write a number"):
        assert part in text


def test_the_same_fault_in_several_kustomizations_is_told_once(report: Report) -> None:
    again = Finding(**{**ERROR.__dict__, "kustomization": "prod"})
    lines = list(finding_lines(Report(report.root, findings=(ERROR, again))))
    assert len(lines) == 3
    assert "in 2 kustomizations: dev, prod" in lines[1]


def test_a_warning_met_in_many_objects_is_told_once_with_some_of_them(report: Report) -> None:
    many = tuple(Finding(**{**WARNING.__dict__, "place": Place(f"{i:02}.yaml")}) for i in range(20))
    lines = list(finding_lines(Report(report.root, findings=many)))
    assert len(lines) == 4
    assert lines[1] == "    and 19 more: 01.yaml, 02.yaml, 03.yaml, 04.yaml, 05.yaml, …"


@pytest.mark.parametrize(
    ("findings", "ok", "verdict"),
    [((), True, "✔ in order:"), ((WARNING,), True, "✔ in order, 1 warning:"), ((ERROR,), False, "✘ 1 error:")],
)
def test_only_errors_fail(report: Report, findings: tuple[Finding, ...], ok: bool, verdict: str) -> None:
    told = Report(report.root, findings=findings)
    assert told.ok is ok
    assert closing_line(told).startswith(verdict)


def test_an_unknown_output_is_refused() -> None:
    assert output_of("") is Output.TEXT
    with pytest.raises(UsageError):
        output_of("xml")
