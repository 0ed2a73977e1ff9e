"""Every way of being broken that is kept in broken/: a small tree, and beside it what the check has to say of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from scripts import settings, versions
from scripts.check.model import Report
from scripts.check.runner import Options, check
from scripts.check.validate import Definitions
from scripts.manifests import flux_definitions
from tests.manifests.conftest import load_file

BROKEN = Path(__file__).parent / "broken"
CASES = sorted(p.name for p in BROKEN.iterdir())


def checked(root: Path, cache: Path) -> Report:
    chosen, pinned = settings.load(), versions.load()
    tools = chosen.tools_dir
    definitions = Definitions(pinned.kubernetes, (flux_definitions(chosen, pinned, tools),))
    return check(
        Options(root, cache, tools / "kustomize", tools / "kubeconform", definitions=lambda: definitions)
    ).report


def lay_out(case: str, into: Path) -> Path:
    root = Path(shutil.copytree(BROKEN / case / "tree", into / "tree", symlinks=True))
    for name, size in load_file(BROKEN / case / "expected.yaml").get("large", {}).items():
        (root / name).write_text("# large\n" + "a" * size)
    return root


def as_expected(finding: Any) -> tuple[str, str, int, str]:
    return finding.rule, finding.place.file, finding.place.line, finding.severity.value


def test_there_are_at_least_sixty_broken_trees() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("case", CASES)
def test_a_broken_tree_is_found_out(case: str, tmp_path: Path) -> None:
    wanted = [
        (f["rule"], f["file"], f["line"], f.get("severity", "error"))
        for f in load_file(BROKEN / case / "expected.yaml")["findings"]
    ]
    report = checked(lay_out(case, tmp_path), tmp_path / "cache")
    assert sorted({as_expected(f) for f in report.findings}) == sorted(wanted), [
        f"{f.rule} {f.place} {f.message}" for f in report.findings
    ]
    assert all(f.mend and f.message for f in report.findings)
    assert report.ok == all(severity == "warning" for *_, severity in wanted)


def test_the_good_tree_has_no_findings(tmp_path: Path) -> None:
    report = checked(settings.FLUX_CD, tmp_path)
    assert report.findings == ()
    assert len(report.rendered) == 8
