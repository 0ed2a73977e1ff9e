"""What a change does, and the hook that looks at a push: in real Git repositories."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.check import hooks
from scripts.check.diff import against_revision, as_text
from scripts.check.runner import Options
from scripts.errors import LabError, UsageError
from scripts.git import git
from tests.manifests.checking import HEAD, config_map, options, write


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    overlay = HEAD + "namespace: {0}\nresources:\n- ../base\n"
    write(
        root,
        {
            "tree/base/kustomization.yaml": HEAD + "resources:\n- settings.yaml\n",
            "tree/base/settings.yaml": config_map(),
            "tree/dev/kustomization.yaml": overlay.format("dev"),
            "tree/prod/kustomization.yaml": overlay.format("prod"),
        },
    )
    git("init", "--quiet", "--initial-branch=main", root=root)
    git("config", "user.name", "test", root=root)
    git("config", "user.email", "test@example.com", root=root)
    commit(root, "first")
    return root


def commit(root: Path, message: str) -> str:
    git("add", "--all", root=root)
    git("commit", "--quiet", "--message", message, root=root)
    return git("rev-parse", "HEAD", root=root).stdout.strip()


@pytest.fixture
def chosen(repository: Path, tmp_path: Path) -> Options:
    return options(repository / "tree", tmp_path / "cache")


def test_a_change_is_told_for_each_environment_it_reaches(repository: Path, chosen: Options) -> None:
    assert against_revision(chosen, "main") == []
    (repository / "tree" / "base" / "settings.yaml").write_text(config_map(data="level: debug"))
    changes = against_revision(chosen, "main")
    assert [(c.name, [o.subject for o in c.objects]) for c in changes] == [
        ("dev", ["ConfigMap dev/settings"]),
        ("prod", ["ConfigMap prod/settings"]),
    ]
    text = "\n".join(as_text(changes, "main"))
    assert "-  level: info" in text
    assert "+  level: debug" in text
    assert git("status", "--porcelain", root=repository).stdout.split() == ["M", "tree/base/settings.yaml"]
    assert "worktree" not in git("worktree", "list", "--porcelain", root=repository).stdout.replace("worktree ", "", 1)


def test_a_tree_that_was_not_there_is_all_new(repository: Path, chosen: Options) -> None:
    (repository / "tree").rename(repository / "moved")
    commit(repository, "moved")
    changes = against_revision(replace(chosen, root=repository / "moved"), "HEAD~1")
    assert {o.verb for c in changes for o in c.objects} == {"added"}


def test_what_can_not_be_compared_is_refused(repository: Path, chosen: Options) -> None:
    with pytest.raises(UsageError, match="BASE=nowhere"):
        against_revision(chosen, "nowhere")
    (repository / "tree" / "base" / "settings.yaml").unlink()
    with pytest.raises(LabError, match="can't be built in the tree"):
        against_revision(chosen, "main")


def push_line(commit_id: str) -> list[str]:
    return [f"refs/heads/main {commit_id} refs/heads/main {'0' * 40}"]


def test_a_broken_commit_is_not_pushed_even_if_the_working_copy_is_mended(
    repository: Path, chosen: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    good = git("rev-parse", "HEAD", root=repository).stdout.strip()
    settings = repository / "tree" / "base" / "settings.yaml"
    settings.write_text(config_map(data="level: 5"))
    bad = commit(repository, "broken")
    settings.write_text(config_map())
    assert hooks.pre_push(lambda: chosen, iter(push_line(good))) == 0
    assert capsys.readouterr().out == ""
    assert hooks.pre_push(lambda: chosen, iter(push_line(bad))) == 1
    told = capsys.readouterr().out
    assert "[wrong-type]" in told
    assert "tree/base/settings.yaml:6" in told


def test_git_calls_the_hook_and_heeds_it(repository: Path, tmp_path: Path) -> None:
    """The installed script itself, with a stand-in for the check."""
    remote = tmp_path / "remote.git"
    git("init", "--quiet", "--bare", str(remote), root=tmp_path)
    python = repository / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" > called\ncat >> called\n[ -z "$GIT_DIR" ] && exit 1\n')
    python.chmod(0o755)
    hooks.install(repository)
    refused = git("push", str(remote), "main", root=repository, check=False)
    assert refused.exit_code != 0
    called = (repository / "called").read_text()
    assert called.startswith("-m scripts pre-push")
    assert "refs/heads/main" in called
    assert subprocess.run(["git", "-C", str(remote), "branch"], capture_output=True, text=True, check=True).stdout == ""


def test_a_revision_is_what_was_committed_whatever_the_working_copys_attributes_say(
    repository: Path, chosen: Options
) -> None:
    (repository / ".gitattributes").write_text("*.yaml working-tree-encoding=UTF-16\n")
    (repository / "tree" / "base" / "settings.yaml").write_text(config_map(data="level: debug"))
    changes = against_revision(chosen, "HEAD")
    assert {o.verb for c in changes for o in c.objects} == {"changed"}
