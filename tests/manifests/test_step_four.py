"""Setup's step 4: nothing goes on while a manifest is wrong."""

from pathlib import Path

import pytest

from scripts import settings, versions
from scripts.errors import LabError
from scripts.manifests import validate
from tests.manifests.paths import ROOTS


def run(root: Path) -> str:
    chosen = settings.load()
    return validate(chosen, versions.load(), chosen.tools_dir, root).what


def test_good_manifests_pass() -> None:
    count, _, said = run(settings.FLUX_CD).partition(" ")
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
    copy_of_tree: Path, file: str, old: str, new: str, told: str
) -> None:
    path = copy_of_tree / "applications" / "_base-app-config" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(LabError) as stopped:
        run(copy_of_tree)
    assert told in str(stopped.value)
    assert "the cluster was not touched" in stopped.value.what
