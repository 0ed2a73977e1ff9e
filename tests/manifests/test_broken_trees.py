"""Every way of being broken that is kept in broken/: a small tree, and beside it what the check has to say of it.

And the good tree: no findings, and setup's step 4 lets it pass, but not with one manifest broken.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import settings, versions
from scripts.check import commands
from scripts.check.runner import Checked, check
from scripts.errors import LabError
from scripts.manifests import validate
from tests.manifests.checking import checked, options
from tests.manifests.conftest import Tree, load_file
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of flux-cd/ in what looks like a repository, to break and to mend again."""
    root = tmp_path_factory.mktemp("repository")
    (root / ".git").mkdir()
    return Path(shutil.copytree(settings.FLUX_CD, root / "flux-cd"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def good(tree: Path, cache: Path) -> Checked:
    return check(options(tree, cache), need_renderings=True)


def test_the_good_tree_has_no_findings(good: Checked) -> None:
    report = good.report
    # The chart of the full monitoring lies in nobody's tree: that it is not rendered is said, and nothing else.
    assert [f for f in report.findings if (f.rule, f.severity.value) != ("helm-not-rendered", "warning")] == []
    assert {settings.FLUX_CD / r.kustomization for r in report.rendered} >= set(ROOTS)


def test_the_good_tree_is_rendered_byte_for_byte_as_kustomize_does(
    good: Checked, render: Callable[[Path], Tree]
) -> None:
    assert good.report.rendered
    for rendered in good.report.rendered:
        assert rendered.text == render(settings.FLUX_CD / rendered.kustomization).text


# ---------------------------------------------------------------- setup's step 4: nothing goes on while a manifest is wrong


@pytest.fixture
def step_four(tree: Path, cache: Path, good: Checked, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Run the step over the copy; what a change doesn't reach is known from the good tree."""
    monkeypatch.setattr(commands, "check_cache", lambda _: cache)
    chosen = settings.load()
    return lambda: validate(chosen, versions.load(), chosen.tools_dir, tree).what


def test_good_manifests_pass(step_four: Callable[[], str]) -> None:
    count, _, said = step_four().partition(" ")
    assert (int(count) >= len(ROOTS), said) == (True, "kustomizations build and are valid")


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("deployment.yaml", "kind: Deployment", "kind: Deploiment", "there is no schema for Deploiment"),
        ("service.yaml", "spec:", "spec:\n  sessionAffinty: None", "_base-app-config/service.yaml"),
        ("kustomization.yaml", "- deployment.yaml", "- deploiment.yaml", "`deploiment.yaml` does not exist"),
    ],
)
def test_a_broken_manifest_stops_with_its_file_and_fault(
    tree: Path, step_four: Callable[[], str], file: str, old: str, new: str, told: str
) -> None:
    path = tree / "applications" / "_base-app-config" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    try:
        with pytest.raises(LabError) as stopped:
            step_four()
    finally:
        path.write_text(text)
    assert told in str(stopped.value)
    assert "the cluster was not touched" in stopped.value.what
