import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import git
from scripts.errors import LabError, UsageError
from scripts.process import CommandError
from scripts.settings import OWN_ENVIRONMENTS, ROOT, Settings

pytestmark = pytest.mark.usefixtures("person")


class Repository:
    """A working copy in a folder; commits by a person of the tests."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def git(self, *args: str) -> str:
        done = subprocess.run(["git", "-C", self.root, *args], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()

    def write(self, path: str, text: str = "x\n") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def commit(self, path: str = "flux-cd/file", text: str = "x\n") -> str:
        self.write(path, text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", f"{path}: {text!r}")
        return self.git("rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def three_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this tree has been given since."""
    monkeypatch.setattr(git, "environments", lambda: list(OWN_ENVIRONMENTS))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy with one commit and an empty bare repository: copied for each test."""
    folder = tmp_path_factory.mktemp("first")
    person = ["-c", "user.name=A Person", "-c", "user.email=person@example.com", "-c", "commit.gpgsign=false"]
    (folder / "work" / "flux-cd").mkdir(parents=True)
    (folder / "work" / "flux-cd" / "file").write_text("x\n")
    nobodys = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
    }
    for where, args in (
        ("work", ["init", "--quiet", "--initial-branch=main"]),
        ("work", ["add", "--all"]),
        ("work", [*person, "commit", "--quiet", "--message", "first"]),
        (".", ["init", "--quiet", "--bare", "--initial-branch=main", "server.git"]),
    ):
        subprocess.run(["git", "-C", folder / where, *args], check=True, timeout=60, env=nobodys)
    return folder


@pytest.fixture
def work(first: Path, tmp_path: Path) -> Repository:
    return Repository(Path(shutil.copytree(first / "work", tmp_path / "work")))


@pytest.fixture
def server(first: Path, tmp_path: Path) -> Repository:
    """Return a bare repository that refuses nothing by itself: what is not pushed is this code's doing."""
    return Repository(Path(shutil.copytree(first / "server.git", tmp_path / "server.git")))


@pytest.fixture
def settings(server: Repository) -> Settings:
    return Settings(git_url=server.root.as_uri())


@pytest.fixture
def connected(work: Repository, settings: Settings) -> Repository:
    git.ensure_remote(settings, work.root)
    git.push_main(settings, work.git("rev-parse", "HEAD"), work.root)
    return work


@pytest.fixture
def colleague(tmp_path: Path, connected: Repository, server: Repository) -> Repository:
    """Return another clone, one commit ahead of the first, which has been pushed."""
    subprocess.run(["git", "clone", "--quiet", server.root, tmp_path / "colleague"], check=True, timeout=60)
    repository = Repository(tmp_path / "colleague")
    repository.commit("flux-cd/theirs")
    repository.git("push", "--quiet", "origin", "main")
    return repository


# ---------------------------------------------------------------- the working copy


def test_a_clean_working_copy_is_its_commit(work: Repository) -> None:
    assert git.require_clean(work.root) == git.WorkingCopy(work.git("rev-parse", "HEAD"), ())


@pytest.mark.parametrize(
    ("change", "dirty"),
    [
        (lambda w: w.write("flux-cd/file", "changed\n"), ("flux-cd/file",)),
        (lambda w: w.write("flux-cd/dev/new.yaml"), ("flux-cd/dev/",)),
        (lambda w: (w.write("flux-cd/new"), w.git("add", "--all")), ("flux-cd/new",)),
        (lambda w: (w.root / "flux-cd/file").unlink(), ("flux-cd/file",)),
        (lambda w: w.write("app/file"), ()),
        (lambda w: w.write("README.md"), ()),
        (lambda w: (w.write(".gitignore", "*.log\n"), w.write("flux-cd/x.log")), ()),
    ],
    ids=["changed", "untracked", "staged", "deleted", "in another folder", "at the top", "ignored"],
)
def test_only_what_flux_reads_must_be_committed(work: Repository, change: object, dirty: tuple[str, ...]) -> None:
    change(work)  # type: ignore[operator]
    assert git.working_copy(work.root).dirty == dirty
    if dirty:
        with pytest.raises(UsageError, match="Uncommitted changes in flux-cd") as refused:
            git.require_clean(work.root)
        assert dirty[0] in refused.value.what
        assert "git commit" in refused.value.mend
    else:
        git.require_clean(work.root)


def test_many_uncommitted_files_are_one_line(work: Repository) -> None:
    for number in range(6):
        work.write(f"flux-cd/f{number}")
    with pytest.raises(UsageError) as refused:
        git.require_clean(work.root)
    assert refused.value.what.endswith("flux-cd/f0, flux-cd/f1, flux-cd/f2 ….")


def test_a_folder_without_git_and_one_without_a_commit_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a Git working copy"):
        git.working_copy(tmp_path)
    (tmp_path / "new").mkdir()
    Repository(tmp_path / "new").git("init", "--quiet")
    with pytest.raises(UsageError, match="no commit yet"):
        git.working_copy(tmp_path / "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's files")
def test_another_users_clone_is_not_called_a_folder_without_git(work: Repository) -> None:
    for path in (work.root, work.root / ".git"):
        os.chown(path, 12345, 12345)
    with pytest.raises(LabError, match=r"safe\.directory|ownership"):
        git.working_copy(work.root)


# ---------------------------------------------------------------- the remote


def test_the_remote_is_added_once(work: Repository, settings: Settings) -> None:
    assert git.ensure_remote(settings, work.root).changed
    assert work.git("remote", "get-url", "lab") == settings.git_url
    assert git.ensure_remote(settings, work.root).changed is False


def test_a_remote_that_points_elsewhere_is_refused_and_kept(work: Repository, settings: Settings) -> None:
    elsewhere = "https://github.com/me/lab.git"
    work.git("remote", "add", "lab", elsewhere)
    for given in (settings, Settings()):
        with pytest.raises(UsageError, match=f"points at {re.escape(elsewhere)}") as refused:
            git.ensure_remote(given, work.root)
        assert "GIT_REMOTE=" in refused.value.mend
        assert git.remove_remote(given, work.root).changed is False
    assert work.git("remote", "get-url", "lab") == elsewhere


def test_other_remotes_are_left_alone(work: Repository, settings: Settings) -> None:
    work.git("remote", "add", "origin", "https://github.com/me/lab.git")
    git.ensure_remote(settings, work.root)
    git.remove_remote(settings, work.root)
    assert work.git("remote", "get-url", "origin") == "https://github.com/me/lab.git"


def test_an_earlier_labs_address_is_moved(work: Repository) -> None:
    git.ensure_remote(Settings(), work.root)
    assert git.ensure_remote(Settings(git_port=9000), work.root).changed
    assert work.git("remote", "get-url", "lab") == "http://127.0.0.1:9000/lab.git"


def test_the_labs_own_remote_is_removed_and_the_users_is_kept(work: Repository, settings: Settings) -> None:
    git.ensure_remote(Settings(), work.root)
    assert git.remove_remote(Settings(), work.root).changed
    assert work.git("remote") == ""
    assert git.remove_remote(Settings(), work.root).changed is False
    git.ensure_remote(settings, work.root)
    assert git.remove_remote(settings, work.root).changed is False
    assert work.git("remote") == "lab"


# ---------------------------------------------------------------- pushing


def test_a_commit_is_pushed_once(work: Repository, server: Repository, settings: Settings) -> None:
    git.ensure_remote(settings, work.root)
    assert git.remote_branches(settings, work.root) == {}
    for text in ("one\n", "two\n"):
        head = work.commit(text=text)
        assert git.push_main(settings, head, work.root).changed
        assert server.git("rev-parse", "main") == head
        assert git.push_main(settings, head, work.root).changed is False
    assert git.remote_branches(settings, work.root) == {"main": head}


def test_main_is_pushed_whatever_branch_is_checked_out(
    connected: Repository, server: Repository, settings: Settings
) -> None:
    connected.git("checkout", "--quiet", "-b", "topic")
    head = connected.commit(text="topic\n")
    git.push_main(settings, head, connected.root)
    assert git.remote_branches(settings, connected.root) == {"main": head}


def test_push_is_refused_when_the_remote_moved_on(
    connected: Repository, colleague: Repository, server: Repository, settings: Settings
) -> None:
    theirs = colleague.git("rev-parse", "HEAD")
    mine = connected.commit("flux-cd/mine")
    for _ in ("their commit is not here", "their commit was fetched"):
        with pytest.raises(LabError, match="main has commits that this clone lacks; nothing was pushed") as refused:
            git.push_main(settings, mine, connected.root)
        assert refused.value.mend.startswith("git pull --rebase lab main")
        assert server.git("rev-parse", "main") == theirs
        assert connected.git("rev-parse", "HEAD") == mine
        connected.git("fetch", "--quiet", "lab")
    # The way out that was named does work.
    connected.git("pull", "--quiet", "--rebase", "lab", "main")
    assert git.push_main(settings, connected.git("rev-parse", "HEAD"), connected.root).changed


@pytest.mark.parametrize("option", ["remote.lab.push=+refs/heads/*:refs/heads/*", "push.default=matching"])
def test_no_configuration_of_the_user_makes_a_push_forced(
    connected: Repository, colleague: Repository, server: Repository, settings: Settings, option: str
) -> None:
    connected.git("config", *option.split("=", 1))
    mine = connected.commit("flux-cd/mine")
    with pytest.raises(LabError, match="nothing was pushed"):
        git.push_main(settings, mine, connected.root)
    assert server.git("rev-parse", "main") == colleague.git("rev-parse", "HEAD")


def test_a_clone_that_is_behind_pushes_nothing_and_is_no_error(
    connected: Repository, colleague: Repository, settings: Settings
) -> None:
    connected.git("fetch", "--quiet", "lab")
    done = git.push_main(settings, connected.git("rev-parse", "HEAD"), connected.root)
    assert (done.changed, "ahead of this clone" in done.what) == (False, True)


def test_a_push_that_a_rule_of_the_host_forbids_is_not_called_a_missing_commit(
    connected: Repository, server: Repository, settings: Settings
) -> None:
    hook = server.root / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'main is protected: open a pull request' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(LabError) as refused:
        git.push_main(settings, connected.commit("flux-cd/mine"), connected.root)
    assert "main is protected" in str(refused.value)


def test_a_remote_that_is_not_there_is_named(work: Repository, tmp_path: Path) -> None:
    settings = Settings(git_url=(tmp_path / "gone.git").as_uri())
    git.ensure_remote(settings, work.root)
    with pytest.raises(CommandError, match=r"gone\.git"):
        git.push_main(settings, work.git("rev-parse", "HEAD"), work.root)


def test_git_never_asks_for_a_password(work: Repository) -> None:
    work.git("config", "alias.terminal", "!echo $GIT_TERMINAL_PROMPT")
    assert git.git("terminal", root=work.root).stdout == "0\n"


# ---------------------------------------------------------------- environments' branches


@pytest.mark.parametrize(
    ("environment", "branch"), [("dev", "main"), ("staging", "env/staging"), ("production", "env/production")]
)
def test_dev_follows_main_and_the_others_a_branch_of_their_own(environment: str, branch: str) -> None:
    assert git.environment_branch(environment) == branch


def test_environment_branches_are_created_at_mains_commit_once(
    connected: Repository, server: Repository, settings: Settings
) -> None:
    head = connected.git("rev-parse", "HEAD")
    assert git.ensure_environment_branches(settings, connected.root).changed
    assert git.remote_branches(settings, connected.root) == dict.fromkeys(
        ("main", "env/staging", "env/production"), head
    )
    assert git.ensure_environment_branches(settings, connected.root).changed is False


def test_an_environment_that_was_promoted_is_not_moved(
    connected: Repository, server: Repository, settings: Settings
) -> None:
    old = connected.git("rev-parse", "HEAD")
    git.ensure_environment_branches(settings, connected.root)
    new = connected.commit(text="new\n")
    git.push_main(settings, new, connected.root)
    server.git("branch", "--delete", "--force", "env/production")
    assert "env/production" in git.ensure_environment_branches(settings, connected.root).what
    assert git.remote_branches(settings, connected.root) == {"main": new, "env/staging": old, "env/production": new}


QA = "flux-cd/applications/mock-cluster-aka-namespaces/qa"


def test_a_removed_environment_loses_its_branch_and_nothing_else_does(
    connected: Repository, server: Repository, settings: Settings
) -> None:
    before = connected.commit(f"{QA}/kustomization.yaml")
    git.push_main(settings, before, connected.root)
    for branch in ("env/qa", "env/staging", "env/somebody-elses"):
        server.git("branch", branch, before)
    shutil.rmtree(connected.root / QA)
    after = connected.commit("flux-cd/other")
    outcome = git.push_main(settings, after, connected.root)
    assert (outcome.changed, outcome.what) == (True, f"{after[:10]} pushed to main, env/qa removed")
    left = {"main": after, "env/staging": before, "env/somebody-elses": before}
    assert git.remote_branches(settings, connected.root) == left
    assert git.push_main(settings, after, connected.root).changed is False


def test_a_left_over_branch_without_its_environment_is_moved_to_main(
    connected: Repository, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git, "environments", lambda: ["dev", "qa"])
    old = connected.git("rev-parse", "HEAD")
    git.push(settings, f"{old}:refs/heads/env/qa", connected.root)
    new = connected.commit(f"{QA}/kustomization.yaml")
    git.push_main(settings, new, connected.root)
    assert git.ensure_environment_branches(settings, connected.root).what == "env/qa created"
    assert git.remote_branches(settings, connected.root)["env/qa"] == new
    newer = connected.commit(f"{QA}/other.yaml")
    git.push_main(settings, newer, connected.root)
    assert git.ensure_environment_branches(settings, connected.root).changed is False


def test_a_left_over_branch_with_commits_of_its_own_is_left_alone(
    connected: Repository, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git, "environments", lambda: ["dev", "qa"])
    base = connected.git("rev-parse", "HEAD")
    theirs = connected.commit("flux-cd/theirs")
    git.push(settings, f"{theirs}:refs/heads/env/qa", connected.root)
    connected.git("reset", "--quiet", "--hard", base)
    git.push_main(settings, connected.commit(f"{QA}/kustomization.yaml"), connected.root)
    assert git.ensure_environment_branches(settings, connected.root).changed is False
    assert git.remote_branches(settings, connected.root)["env/qa"] == theirs


def test_a_branch_can_be_made_at_a_commit_this_clone_has_not_fetched(
    connected: Repository, colleague: Repository, server: Repository, settings: Settings
) -> None:
    theirs = colleague.git("rev-parse", "HEAD")
    git.ensure_environment_branches(settings, connected.root)
    assert server.git("rev-parse", "env/staging") == theirs


def test_an_environments_branch_that_moved_on_is_refused(
    connected: Repository, colleague: Repository, server: Repository, settings: Settings
) -> None:
    colleague.git("push", "--quiet", "origin", "main:env/staging")
    mine = connected.commit("flux-cd/mine")
    with pytest.raises(LabError, match="env/staging has commits"):
        git.push(settings, f"{mine}:refs/heads/env/staging", connected.root)
    assert server.git("rev-parse", "env/staging") == colleague.git("rev-parse", "HEAD")


@pytest.mark.parametrize("case", ["older", "same", "newer", "unknown"])
def test_containment_of_an_unknown_commit_is_no(connected: Repository, case: str) -> None:
    old, new = connected.git("rev-parse", "HEAD"), connected.commit(text="new\n")
    pairs = {"older": (old, new), "same": (new, new), "newer": (new, old), "unknown": ("0" * 40, new)}
    assert git.is_ancestor(*pairs[case], connected.root) is (case in ("older", "same"))


# ---------------------------------------------------------------- what may be in the repository

# What each has in it (looked for first, as it is quick) and how it reads; in parts, so that this file holds none.
SECRETS = {
    "a private key": ("PRIVATE" + " KEY", "-----BEGIN [A-Z ]*" + "PRIVATE KEY"),
    "a GitHub token": ("g", r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_" + "pat_[A-Za-z0-9_]{22,})"),
    "a GitLab token": ("gl" + "pat-", r"\bgl" + r"pat-[A-Za-z0-9_-]{20}"),
    "an AWS key": ("AKIA", r"\bAKIA" + "[0-9A-Z]{16}"),
    "a Slack token": ("xox", r"\bxox" + "[abprs]-[A-Za-z0-9-]{10,}"),
    "a JSON web token": ("eyJ", r"\beyJ" + r"[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."),
    "a password in an address": ("://", r"\b(?:https?|ssh)://[^\s/:@{}$<>…]+:[^\s/@{}$<>…]+@"),
    "a Secret's data": ("kind: Secret\n", r"(?m)^kind: Secret\n(?:[^-].*\n)*?(?:stringData|data):\n"),
}
# Their secrets are made up.
SHOW_THAT_SECRETS_ARE_MASKED = {
    f"tests/unit/test_{name}.py" for name in ("diagnose", "downloads", "hostfacts", "reasons")
}
# The operator looks for a Secret; what it holds are addresses inside the cluster. A person's own goes into the cluster only.
ARE_SECRETS_IN_NAME_ONLY = {
    f"flux-cd/infrastructure/_components/_prometheus-stack/rules/secret-{name}.yaml"
    for name in ("alertmanager", "webhook")
}


def secrets_in(text: str) -> list[str]:
    return [what for what, (part, pattern) in SECRETS.items() if part in text and re.search(pattern, text)]


def test_no_file_of_this_repository_holds_a_secret() -> None:
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout.split("\0")  # fmt: skip
    found = []
    for name in filter(None, listed):
        # Lock files hold nothing but names, versions and hashes.
        if not name.endswith((".sum", ".lock")) and (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
            found += [f"{name} holds {what}" for what in secrets_in(text)]
    known = SHOW_THAT_SECRETS_ARE_MASKED | ARE_SECRETS_IN_NAME_ONLY
    assert [line for line in found if line.split()[0] not in known] == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a private key", "-----BEGIN OPENSSH " + "PRIVATE KEY-----"),
        ("a GitHub token", "token: gh" + "p_" + "a1B2" * 9),
        ("a GitLab token", "gl" + "pat-" + "a1B2" * 5),
        ("an AWS key", "AKIA" + "A1B2" * 4),
        ("a Slack token", "xox" + "b-123456789012-abc"),
        ("a JSON web token", "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0.x"),
        ("a password in an address", "https://me:" + "hunter2@github.com/me/lab.git"),
        ("a Secret's data", "apiVersion: v1\nkind: " + "Secret\nmetadata:\n  name: x\nstringData:\n  a: b\n"),
    ],
)
def test_the_search_for_secrets_finds_one_of_each(what: str, text: str) -> None:
    assert secrets_in(text) == [what]


def test_published_is_what_the_remote_has_as_it_lies_here(work: Repository, settings: Settings) -> None:
    work.git("remote", "add", settings.git_remote, settings.git_url)
    assert not git.is_published(settings, work.root), "nothing is pushed yet"
    head = work.git("rev-parse", "HEAD")
    work.git("push", "--quiet", settings.git_url, "HEAD:main")
    assert git.is_published(settings, work.root)
    work.write("README.md", "a draft\n")
    assert git.is_published(settings, work.root), "Flux does not read it"
    work.write("flux-cd/file", "changed\n")
    assert not git.is_published(settings, work.root)
    work.commit("flux-cd/file", "changed\n")
    assert not git.is_published(settings, work.root), f"the remote is at {head}"
