import os
from pathlib import Path

import pytest

from scripts.check import hooks
from scripts.errors import UsageError
from scripts.git import git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git("init", "--quiet", "--initial-branch=main", root=tmp_path)
    return tmp_path


def hook(repository: Path) -> Path:
    return repository / ".git" / "hooks" / "pre-push"


def test_the_hook_is_installed_once_and_can_be_run(repository: Path) -> None:
    assert hooks.install(repository).changed
    assert os.access(hook(repository), os.X_OK)
    assert "scripts pre-push" in hook(repository).read_text()
    assert not hooks.install(repository).changed


def test_the_labs_own_older_hook_is_replaced(repository: Path) -> None:
    hooks.install(repository)
    current = hook(repository).read_text()
    hook(repository).write_text(current.replace("exec", "exec  "))
    assert hooks.install(repository).changed
    assert hook(repository).read_text() == current


def test_somebody_elses_hook_is_left_alone(repository: Path) -> None:
    hook(repository).parent.mkdir(exist_ok=True)
    hook(repository).write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(UsageError) as refused:
        hooks.install(repository)
    assert "scripts pre-push" in refused.value.mend
    assert hook(repository).read_text() == "#!/bin/sh\nexit 0\n"


def test_a_folder_of_hooks_of_ones_own_is_respected(repository: Path) -> None:
    git("config", "core.hooksPath", "my-hooks", root=repository)
    hooks.install(repository)
    assert (repository / "my-hooks" / "pre-push").exists()
    assert not hook(repository).exists()


@pytest.mark.parametrize(
    ("line", "commits"),
    [
        ("refs/heads/main abc refs/heads/main def", ["abc"]),
        (f"(delete) {'0' * 40} refs/heads/old def", []),
        (f"(delete) {'0' * 64} refs/heads/old def", []),
        ("refs/tags/v1 abc refs/tags/v1 def", []),
        ("", []),
    ],
)
def test_the_commits_of_pushed_branches_are_looked_at(line: str, commits: list[str]) -> None:
    assert list(hooks._pushed_commits(iter([line]))) == commits
