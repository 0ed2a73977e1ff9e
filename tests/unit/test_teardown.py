"""What a teardown takes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import teardown
from scripts.errors import LabError
from scripts.outcome import Outcome
from scripts.settings import Settings
from scripts.teardown import Purge, purge_of
from tests.unit.conftest import Programs

# An engine with nothing of the lab but images: two releases, one of them built twice, and the layers of the last build.
ENGINE = """case "$1" in
info) echo '{"ServerVersion":"29.0"}' ;;
ps) ;;
images) printf 'localhost:5001/demo-app:aaaa\nlocalhost:5001/demo-app:bbbb\nlocalhost:5001/demo-app:<none>\ngitops-lab/demo-app-build:x\n' ;;
rmi) ;;
*) echo "Error: No such $1: $3" >&2; exit 1 ;;
esac"""


@pytest.mark.parametrize(
    ("environ", "purge"),
    [
        ({}, Purge.NOTHING),
        ({"PURGE": ""}, Purge.NOTHING),
        ({"PURGE": "0"}, Purge.NOTHING),
        ({"PURGE": "volumes"}, Purge.VOLUMES),
        ({"PURGE": "1"}, Purge.ALL),
    ],
)
def test_purge_says_how_much_goes(environ, purge):
    assert purge_of(environ) is purge


@pytest.mark.parametrize("value", ["yes", "volume", "cache", "11"])
def test_a_purge_that_is_not_known_removes_nothing(value):
    with pytest.raises(LabError, match="is not known") as refused:
        purge_of({"PURGE": value})
    assert "PURGE=volumes" in refused.value.mend


@pytest.mark.parametrize(
    ("purge", "removed"),
    [
        (Purge.NOTHING, []),
        (
            Purge.VOLUMES,
            ["localhost:5001/demo-app:aaaa", "localhost:5001/demo-app:bbbb", "gitops-lab/demo-app-build:x"],
        ),
    ],
)
def test_the_engines_copies_of_what_was_pushed_go_with_the_registrys(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purge: Purge, removed: list[str]
) -> None:
    programs.add("docker", ENGINE)
    monkeypatch.setattr(teardown.git, "remove_remote", lambda settings: Outcome(False, ""))
    settings = Settings(cluster_name="x", state_root=tmp_path / "state", cache_dir=tmp_path / "cache")
    teardown.teardown(settings, purge)
    assert [call[2] for call in programs.calls("docker") if call[1] == "rmi"] == removed
    listed = [call for call in programs.calls("docker") if call[1] == "images"]
    assert all("reference=gitops-lab/demo-app-build:x" in call for call in listed)
