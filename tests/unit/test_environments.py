"""`make new-environment`: what it takes and refuses, and that nothing is left half done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import environments, settings
from scripts.errors import LabError, UsageError
from scripts.settings import FLUX_CD, OVERLAYS, OWN_ENVIRONMENTS, ROOT
from tests.warm import WarmPython

FOLDER = OVERLAYS.relative_to(ROOT)
LIST = environments.LIST.relative_to(ROOT)
Git = Callable[..., str]

pytestmark = pytest.mark.usefixtures("person")
# No Git configuration, and no hook's variables.
NOBODYS = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
}


def valid(flux_cd: Path) -> None:
    assert (flux_cd / "kustomization.yaml").is_file()


def invalid(flux_cd: Path) -> None:
    raise LabError("1 of the checks failed.", "mend these files", f"    {flux_cd}/x: no such field")


@pytest.fixture(scope="module")
def first_commit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy with this tree's flux-cd, as far as it is the lab's own, committed: copied for each test.

    What the platform is made of is left out: no environment's name or folder is written there.
    """
    root = tmp_path_factory.mktemp("first") / "work"
    platform = str(FLUX_CD / "infrastructure" / "_components")
    shutil.copytree(FLUX_CD, root / "flux-cd", ignore=lambda folder, names: names if folder == platform else [])
    for added in set(settings.environments()) - set(OWN_ENVIRONMENTS):
        environments.erase_environment(added, root / "flux-cd")
    (root / "README.md").write_text("x\n")
    author = ["-c", "user.name=A Person", "-c", "user.email=person@example.com", "-c", "commit.gpgsign=false"]
    for args in (
        ["init", "--quiet", "--template="],
        ["add", "--all"],
        [*author, "commit", "--quiet", "--message", "first"],
    ):
        subprocess.run(["git", "-C", root, *args], check=True, timeout=60, env=NOBODYS)
    return root


@pytest.fixture
def root(first_commit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first_commit, tmp_path / "work", symlinks=True))


@pytest.fixture
def git(root: Path) -> Git:
    def run(*args: str) -> str:
        done = subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()

    return run


def require_untouched(root: Path, git: Git, head: str) -> None:
    assert git("rev-parse", "HEAD") == head
    assert git("status", "--porcelain", "--untracked-files=all") == ""
    assert [p.name for p in (root / ".git").glob("gitops-lab*") if p.is_dir()] == []


def test_an_environment_is_a_folder_and_a_line_in_one_commit(root: Path, git: Git) -> None:
    head = git("rev-parse", "HEAD")
    change = environments.add("qa", valid, root=root)
    assert (change.commit, git("rev-parse", "HEAD~1")) == (git("rev-parse", "HEAD"), head)
    changed = git("diff", "--name-status", "HEAD~1", "HEAD").splitlines()
    names = sorted(p.name for p in (OVERLAYS / "dev").glob("*.yaml"))
    assert changed == [f"M\t{LIST}", *(f"A\t{FOLDER}/qa/{name}" for name in names)]
    assert git("diff", "-U0", "HEAD~1", "HEAD", "--", str(LIST)).splitlines()[-1] == f"+- {FOLDER.name}/qa/sync.yaml"
    assert git("status", "--porcelain") == ""
    assert git("log", "-1", "--format=%s") == "Add environment qa"


def test_taking_it_back_leaves_the_tree_as_it_was(root: Path, git: Git) -> None:
    tree = git("rev-parse", "HEAD^{tree}")
    environments.add("qa", valid, root=root)
    environments.add("qa-2", valid, root=root)
    environments.remove("qa", valid, root=root)
    assert not (root / FOLDER / "qa").exists()
    assert (root / FOLDER / "qa-2" / "sync.yaml").exists()
    environments.remove("qa-2", valid, root=root)
    assert git("rev-parse", "HEAD^{tree}") == tree
    assert git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    "name",
    ["", "QA", "q a", "qa-", "-qa", "9qa", "qa.b", "../qa", "qa\n", "q" * 41, "qä", "yes", "null", "on", "y"],
)
def test_a_name_that_cannot_be_used_is_refused(root: Path, git: Git, name: str) -> None:
    head = git("rev-parse", "HEAD")
    with pytest.raises(UsageError, match="NAME=") as refused:
        environments.add(name, valid, root=root)
    assert "NAME=qa" in refused.value.mend
    assert "\n" not in refused.value.what.replace(name or "(empty)", "")
    require_untouched(root, git, head)


@pytest.mark.parametrize("name", ["q", "q" * 40, "qa--2"])
def test_a_name_that_a_namespace_may_have_is_taken(root: Path, git: Git, name: str) -> None:
    environments.add(name, valid, root=root)
    assert f"name: {name}\n" in (root / FOLDER / name / "namespace.yaml").read_text()


@pytest.mark.parametrize(
    "name",
    [
        *OWN_ENVIRONMENTS, "default", "kube-system", "kube-qa", "flux-system", "monitoring", "edge", "edge-sync",
        "applications", "infrastructure-sync", "local-path-storage", "by-hand",
    ],
)  # fmt: skip
def test_a_name_that_is_taken_is_refused(root: Path, git: Git, name: str) -> None:
    head = git("rev-parse", "HEAD")
    with pytest.raises(UsageError, match=f"NAME={name} is taken: "):
        environments.add(name, valid, live_namespaces=["by-hand"], root=root)
    require_untouched(root, git, head)


@pytest.mark.parametrize("name", [*OWN_ENVIRONMENTS, "qa", "", "monitoring", "../qa"])
def test_only_an_environment_that_was_added_is_taken_back(root: Path, git: Git, name: str) -> None:
    environments.add("other", valid, root=root)
    head = git("rev-parse", "HEAD")
    with pytest.raises(UsageError) as refused:
        environments.remove(name, valid, root=root)
    assert "lab's own" in refused.value.what if name in OWN_ENVIRONMENTS else "other" in refused.value.mend
    require_untouched(root, git, head)


@pytest.mark.parametrize("file", ["flux-cd/kustomization.yaml", "flux-cd/new.yaml", f"{FOLDER}/qa/namespace.yaml"])
@pytest.mark.parametrize("staged", [True, False])
def test_uncommitted_manifests_are_refused(root: Path, git: Git, file: str, staged: bool) -> None:
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text("# mine\n")
    if staged:
        git("add", file)
    before = git("status", "--porcelain", "--untracked-files=all")
    with pytest.raises(UsageError, match="Uncommitted changes in flux-cd") as refused:
        environments.add("qa", valid, root=root)
    assert file in refused.value.what
    assert git("status", "--porcelain", "--untracked-files=all") == before
    assert (root / file).read_text() == "# mine\n"


def test_what_is_uncommitted_elsewhere_stays_so(root: Path, git: Git) -> None:
    (root / "README.md").write_text("changed\n")
    git("add", "README.md")
    environments.add("qa", valid, root=root)
    assert git("status", "--porcelain") == "M  README.md"


def test_a_tree_that_would_not_be_valid_changes_nothing(root: Path, git: Git) -> None:
    head = git("rev-parse", "HEAD")
    with pytest.raises(LabError, match="nothing was changed") as refused:
        environments.add("qa", invalid, root=root)
    assert "flux-cd/x: no such field" in refused.value.details
    assert str(root) not in refused.value.details
    require_untouched(root, git, head)


def test_a_commit_that_is_refused_changes_nothing(root: Path, git: Git) -> None:
    environments.add("old", valid, root=root)
    head = git("rev-parse", "HEAD")
    hook = root / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    for change in (environments.add, environments.remove):
        with pytest.raises(LabError, match="exit code 1") as refused:
            change("old" if change is environments.remove else "qa", valid, root=root)
        assert "not today" in refused.value.details
        require_untouched(root, git, head)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    with WarmPython(tmp_path_factory.mktemp("warm"), "scripts.environments", "scripts.git") as python:
        yield python


KILLED = """
    import os, shutil, signal, sys
    from pathlib import Path
    from scripts import environments, git

    verb, name, root, at = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    steps = 0

    def counted(function):
        def call(*args, **kwargs):
            global steps
            if function is shutil_move or args[0] in ("add", "rm", "commit"):
                steps += 1
                if steps == at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    shutil_move = shutil.move
    shutil.move, git.git = counted(shutil.move), counted(git.git)
    getattr(environments, verb)(name, lambda flux_cd: None, root=root)
    print("steps", steps)
"""


@pytest.mark.parametrize(("verb", "at"), [*(("add", n) for n in range(1, 6)), *(("remove", n) for n in range(1, 7))])
def test_a_killed_run_is_finished_by_the_same_command(
    root: Path, git: Git, warm: WarmPython, verb: str, at: int
) -> None:
    before = git("rev-parse", "HEAD^{tree}")
    if verb == "remove":
        environments.add("qa", valid, root=root)
    head = git("rev-parse", "HEAD")
    done = warm.run(textwrap.dedent(KILLED), verb, "qa", root, str(at))
    if at > (4 if verb == "add" else 5):  # there are no more steps: nothing killed it
        assert done.stdout == f"steps {at - 1}\n"
        return
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert git("rev-parse", "HEAD") == head
    folder, line = root / FOLDER / "qa", f"{FOLDER.name}/qa/" in (root / LIST).read_text()
    # A line without its folder would not build.
    assert folder.is_dir() or not line
    if folder.is_dir():
        assert {p.name for p in folder.iterdir()} == {p.name for p in (root / FOLDER / "dev").iterdir()}
    getattr(environments, verb)("qa", valid, root=root)
    assert git("status", "--porcelain", "--untracked-files=all") == ""
    assert git("rev-parse", "HEAD~1") == head
    assert (git("rev-parse", "HEAD^{tree}") == before) is (verb == "remove")
    assert (folder.is_dir(), f"{FOLDER.name}/qa/" in (root / LIST).read_text()) == (verb == "add",) * 2
    assert list((root / ".git").glob("gitops-lab-environment-*")) == []
