"""Every way of being broken that is kept in broken/: a small tree, and beside it what the check has to say of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from scripts import settings
from tests.manifests.checking import checked, renderings
from tests.manifests.conftest import Build, load_file
from tests.manifests.paths import ROOTS

BROKEN = Path(__file__).parent / "broken"
CASES = sorted(p.name for p in BROKEN.iterdir())


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
    # The chart of the full monitoring lies in nobody's tree: that it is not rendered is said, and nothing else.
    assert [f for f in report.findings if (f.rule, f.severity.value) != ("helm-not-rendered", "warning")] == []
    assert {settings.FLUX_CD / r.kustomization for r in report.rendered} >= set(ROOTS)


def test_the_good_tree_is_rendered_byte_for_byte_as_kustomize_does(tmp_path: Path, build: Build) -> None:
    for rendered in renderings(settings.FLUX_CD, tmp_path).values():
        assert rendered.text == build(settings.FLUX_CD / rendered.kustomization)
