"""The working copy and the lab's remote: what may be pushed, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.errors import LabError, UsageError
from scripts.outcome import Outcome
from scripts.process import CommandError, Completed, run
from scripts.settings import MAIN_BRANCH, OVERLAYS, ROOT, Settings, environments

PUSH_TIMEOUT_S = 120
# Never ask: a prompt would hang a setup that nobody watches.
# In English, because two refusals below are told apart by git's own words.
_ENV = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def environment_branch(environment: str) -> str:
    """Return the branch an environment follows: dev is where main arrives, the others move by promotion."""
    return MAIN_BRANCH if environment == "dev" else f"env/{environment}"


def git(*args: str | Path, timeout_s: float = 30, check: bool = True, root: Path = ROOT) -> Completed:
    """Run one `git` command in the working copy."""
    return run(["git", "-C", root, *args], timeout_s=timeout_s, check=check, env=_ENV)


@dataclass(frozen=True)
class WorkingCopy:
    """The state of the working copy that matters for a push."""

    head: str
    dirty: tuple[str, ...]


def working_copy(root: Path = ROOT) -> WorkingCopy:
    """Return the working copy's commit and what is uncommitted in the folders that Flux reads."""
    found = git("rev-parse", "--git-dir", check=False, root=root)
    if "dubious ownership" in found.stderr:
        raise UsageError(
            "This clone belongs to another user, and git refuses to work in it.",
            f"run as its owner, or: git config --global --add safe.directory {root}",
        )
    if found.exit_code != 0:
        raise UsageError(
            "This folder is not a Git working copy, and Flux deploys from Git.",
            "clone the repository instead of copying it",
        )
    head = git("rev-parse", "--verify", "--quiet", "HEAD", check=False, root=root).stdout.strip()
    if not head:
        raise UsageError("This repository has no commit yet.", "git add -A && git commit")
    status = git("status", "--porcelain", "--", "flux-cd", root=root).stdout
    return WorkingCopy(head, tuple(line[3:] for line in status.splitlines()))


def is_published(settings: Settings, root: Path = ROOT) -> bool:
    """Whether the remote's main branch has what Flux reads exactly as it lies in the working copy."""
    copy = working_copy(root)
    return not copy.dirty and remote_branches(settings, root).get(MAIN_BRANCH) == copy.head


def require_clean(root: Path = ROOT) -> WorkingCopy:
    """Return the working copy; raises UsageError if something in flux-cd is uncommitted."""
    copy = working_copy(root)
    if copy.dirty:
        shown = ", ".join(copy.dirty[:3]) + (" …" if len(copy.dirty) > 3 else "")
        raise UsageError(
            f"Uncommitted changes in flux-cd would not be pushed: {shown}.",
            "git add flux-cd && git commit, or git stash",
        )
    return copy


def ensure_remote(settings: Settings, root: Path = ROOT) -> Outcome:
    """Make the remote point at the lab's Git server; a remote of that name that points elsewhere is refused."""
    done = git("remote", "get-url", settings.git_remote, check=False, root=root)
    current = done.stdout.strip()
    if done.exit_code != 0:
        git("remote", "add", settings.git_remote, settings.git_push_url, root=root)
        return Outcome(True, f"remote {settings.git_remote} added")
    if current == settings.git_push_url:
        return Outcome(False, f"remote {settings.git_remote}")
    if current.startswith("http://127.0.0.1:") and current.endswith("/lab.git"):
        # An earlier lab's address (another GIT_PORT): ours to move.
        git("remote", "set-url", settings.git_remote, settings.git_push_url, root=root)
        return Outcome(True, f"remote {settings.git_remote} moved to {settings.git_push_url}")
    raise UsageError(
        f"The Git remote {settings.git_remote} points at {current}.",
        f"take another name with GIT_REMOTE=…, or: git remote remove {settings.git_remote}",
    )


def remove_remote(settings: Settings, root: Path = ROOT) -> Outcome:
    """Remove the remote if it is the lab's own."""
    done = git("remote", "get-url", settings.git_remote, check=False, root=root)
    if done.exit_code == 0 and done.stdout.strip() == settings.git_push_url and settings.owns_git:
        git("remote", "remove", settings.git_remote, root=root)
        return Outcome(True, f"remote {settings.git_remote} removed")
    return Outcome(False, "no remote of the lab's")


def remote_branches(settings: Settings, root: Path = ROOT) -> dict[str, str]:
    """Return the remote's branches with their commits."""
    done = git(
        "ls-remote",
        "--heads",
        settings.git_push_url if settings.owns_git else settings.git_remote,
        root=root,
        timeout_s=60,
    )
    pairs = (line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    return {ref.removeprefix("refs/heads/"): commit for commit, ref in pairs}


def is_ancestor(older: str, newer: str, root: Path = ROOT) -> bool:
    """Whether a commit is contained in another; False when one of them is not known here."""
    return git("merge-base", "--is-ancestor", older, newer, check=False, root=root).exit_code == 0


def ensure_known(settings: Settings, branches: Mapping[str, str], root: Path = ROOT) -> None:
    """Fetch the branches' commits that this clone lacks, so that they can be compared; no local branch moves."""
    for branch, commit in branches.items():
        if git("cat-file", "-e", f"{commit}^{{commit}}", check=False, root=root).exit_code != 0:
            git("fetch", "--quiet", settings.git_push_url, f"refs/heads/{branch}", timeout_s=PUSH_TIMEOUT_S, root=root)


def differs(old: str, new: str, paths: Sequence[str], root: Path = ROOT) -> bool:
    """Whether two commits differ below any of the paths; True where one of them is not known here."""
    return git("diff", "--quiet", old, new, "--", *paths, check=False, root=root).exit_code != 0


def push_main(settings: Settings, head: str, root: Path = ROOT) -> Outcome:
    """Push a commit to the remote's main branch, never over somebody's commits.

    An environment that it takes out of main loses its branch: a later one of that name would begin at an old commit.
    """
    current = remote_branches(settings, root).get(MAIN_BRANCH, "")
    if current == head:
        return Outcome(False, f"{MAIN_BRANCH} is at {head[:10]}")
    if current and is_ancestor(head, current, root):
        return Outcome(False, f"{MAIN_BRANCH} is ahead of this clone, at {current[:10]}")
    push(settings, f"{head}:refs/heads/{MAIN_BRANCH}", root)
    removed = _remove_branches(settings, environments_at(current, root) - environments_at(head, root), root)
    return Outcome(True, ", ".join([f"{head[:10]} pushed to {MAIN_BRANCH}", *(f"{b} removed" for b in removed)]))


def push(settings: Settings, refspec: str, root: Path = ROOT) -> str:
    """Push one refspec and return what the remote said; a remote that moved on is a clear refusal."""
    try:
        return git("push", settings.git_remote, refspec, timeout_s=PUSH_TIMEOUT_S, root=root).stderr
    except CommandError as error:
        if any(word in error.output for word in ("(non-fast-forward)", "(fetch first)")):
            branch = refspec.rpartition(":")[2].removeprefix("refs/heads/")
            raise LabError(
                f"The remote's {branch} has commits that this clone lacks; nothing was pushed.",
                f"git pull --rebase {settings.git_remote} {branch}, then push again",
            ) from None
        raise


def ensure_environment_branches(settings: Settings, root: Path = ROOT) -> Outcome:
    """Create the promotion branches at main's commit where the remote lacks them.

    One that has nothing of its environment, a left-over of an earlier one of that name, is moved to main.
    """
    branches = remote_branches(settings, root)
    lacking = []
    for environment in environments():
        branch = environment_branch(environment)
        if branch not in branches or (MAIN_BRANCH in branches and _lacks(settings, environment, branches, root)):
            lacking.append(branch)
    if lacking and MAIN_BRANCH not in branches:
        raise LabError(f"The remote {settings.git_remote} has no branch {MAIN_BRANCH}.", "make push")
    for branch in lacking:
        ensure_known(settings, {MAIN_BRANCH: branches[MAIN_BRANCH]}, root)
        push(settings, f"{branches[MAIN_BRANCH]}:refs/heads/{branch}", root)
    return Outcome(bool(lacking), f"{', '.join(lacking)} created" if lacking else "environment branches are there")


def _lacks(settings: Settings, environment: str, branches: Mapping[str, str], root: Path) -> bool:
    """Whether main has an environment, and the environment's own branch, behind main, does not."""
    own, main = branches[environment_branch(environment)], branches[MAIN_BRANCH]
    if own == main:
        return False
    ensure_known(settings, {MAIN_BRANCH: main, environment_branch(environment): own}, root)
    return (
        environment in environments_at(main, root)
        and environment not in environments_at(own, root)
        and is_ancestor(own, main, root)
    )


def environments_at(commit: str, root: Path = ROOT) -> set[str]:
    """Return the environments that a commit has; none where the commit is not known here, as in a shallow clone."""
    folder = OVERLAYS.relative_to(ROOT)
    listed = git("ls-tree", "-d", "--name-only", commit, "--", f"{folder}/", check=False, root=root).stdout
    return {Path(line).name for line in listed.splitlines()}


def _remove_branches(settings: Settings, environments_gone: set[str], root: Path) -> list[str]:
    there = remote_branches(settings, root) if environments_gone else {}
    branches = [b for b in sorted(map(environment_branch, environments_gone)) if b in there and b != MAIN_BRANCH]
    for branch in branches:
        git("push", settings.git_remote, "--delete", f"refs/heads/{branch}", timeout_s=PUSH_TIMEOUT_S, root=root)
    return branches


def credentials(settings: Settings, environ: Mapping[str, str]) -> dict[str, str] | None:
    """Return what Flux needs to read the user's own remote, for a Secret; None where none is given.

    GIT_TOKEN (with GIT_USERNAME, default "git") for https, GIT_SSH_KEY_FILE and GIT_KNOWN_HOSTS_FILE for ssh.
    https://fluxcd.io/flux/components/source/gitrepositories/#secret-reference
    """
    if settings.owns_git:
        return None
    if settings.git_url.startswith("ssh://"):
        key, hosts = environ.get("GIT_SSH_KEY_FILE", ""), environ.get("GIT_KNOWN_HOSTS_FILE", "")
        if not key or not hosts:
            raise UsageError(
                "GIT_URL is an ssh address, but no key is given.",
                "set GIT_SSH_KEY_FILE to a deploy key and GIT_KNOWN_HOSTS_FILE to the host's keys (ssh-keyscan)",
            )
        try:
            return {"identity": Path(key).expanduser().read_text(), "known_hosts": Path(hosts).expanduser().read_text()}
        except OSError as error:
            raise UsageError(f"{error.filename} can't be read: {error.strerror}.", "name a readable file") from None
    token = environ.get("GIT_TOKEN", "")
    return {"username": environ.get("GIT_USERNAME", "") or "git", "password": token} if token else None
