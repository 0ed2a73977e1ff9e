"""`make new-environment`: an environment is one folder plus one line, made and taken back in one commit.

The new tree is made beside the working copy, from the current commit, and proven there; only then is it moved in. So a
run that fails leaves nothing, and one that is killed while it moves things in is finished by the same command again::

    make new-environment NAME=qa
    make new-environment NAME=qa DELETE=1
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

from scripts import git
from scripts.cache import lock
from scripts.errors import LabError, UsageError
from scripts.settings import FLUX_CD, FLUX_NAMESPACE, OVERLAYS, OWN_ENVIRONMENTS, ROOT, environments, source_name

# What a new environment is a copy of: the smallest one, and the source of one that moves by promotion.
TEMPLATE = "dev"
SOURCE_TEMPLATE = "staging"
LIST = FLUX_CD / "applications" / "kustomization.yaml"
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
# Namespaces that are there without standing in Git.
_CLUSTERS_OWN = ("default", "local-path-storage")
_LINE = f"- {OVERLAYS.name}/{{}}/sync.yaml\n"
_SCRATCH = "gitops-lab-environment-"

Check = Callable[[Path], None]


@dataclass(frozen=True)
class Change:
    """What a run did."""

    name: str
    deleted: bool
    folder: Path
    commit: str


def add(name: str, check: Check, live_namespaces: Collection[str] = (), root: Path = ROOT) -> Change:
    """Add an environment in a commit of its own; refused unless the name is free and the working copy clean.

    Args:
        name: the environment's, its namespace's and its host's name.
        check: raises LabError if a flux-cd folder is not valid.
        live_namespaces: those of the cluster, if one answers: Flux would adopt them, and prune them with the environment.
        root: the working copy.
    """
    require_usable(name)

    def edit(flux_cd: Path) -> None:
        require_free(name, flux_cd, live_namespaces)
        write_environment(name, flux_cd)

    return _change(name, edit, check, root)


def remove(name: str, check: Check, root: Path = ROOT) -> Change:
    """Take an environment back in a commit of its own; the lab's own three are refused."""
    if name in OWN_ENVIRONMENTS:
        raise UsageError(f"{name} is one of the lab's own environments.", "name one that was added")

    def edit(flux_cd: Path) -> None:
        known = [e for e in environments(_in(flux_cd, OVERLAYS)) if e not in OWN_ENVIRONMENTS]
        if name not in known:
            raise UsageError(
                f"NAME={name or '(empty)'} is not an environment that was added.",
                f"take one of: {', '.join(known)}" if known else "none was added: there is nothing to take back",
            )
        erase_environment(name, flux_cd)

    return _change(name, edit, check, root)


def require_usable(name: str) -> None:
    """Refuse what can't name a namespace, a branch, a host and a Flux object at once."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"NAME={name or '(empty)'} can't name an environment.",
            "use at most 40 lower-case letters, digits and dashes, beginning with a letter, ending with no dash: NAME=qa",
        )
    if yaml.safe_load(name) != name or name in ("y", "n"):
        raise UsageError(f"NAME={name} is a word that YAML takes for something else.", "take another, as in NAME=qa")


def require_free(name: str, flux_cd: Path, live_namespaces: Collection[str] = ()) -> None:
    """Refuse a name that an environment, the platform or the cluster has already."""
    if name in environments(_in(flux_cd, OVERLAYS)):
        why = "an environment of that name exists"
    elif name in (*_CLUSTERS_OWN, FLUX_NAMESPACE) or name.startswith("kube-"):
        why = "Kubernetes or Flux uses that namespace"
    elif {name, source_name(name)} & _platform_names(flux_cd):
        why = "the platform has something of that name"
    elif name in live_namespaces:
        why = "the cluster has a namespace of that name, which Flux would take over"
    else:
        return
    raise UsageError(f"NAME={name} is taken: {why}.", "take another name, as in NAME=qa")


def _platform_names(flux_cd: Path) -> set[str]:
    """Return the namespaces and Flux objects outside the environments."""
    names = set()
    for folder in (flux_cd / "bootstrap", flux_cd / "infrastructure" / OVERLAYS.name):
        for path in folder.rglob("*.yaml"):
            for thing in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader):
                if thing and (thing["kind"] == "Namespace" or ".toolkit.fluxcd.io/" in thing["apiVersion"]):
                    names.add(str(thing["metadata"]["name"]))
    return names


def write_environment(name: str, flux_cd: Path) -> None:
    """Write an environment's folder, a copy of dev's, and its line into a flux-cd folder."""
    overlays = _in(flux_cd, OVERLAYS)
    (overlays / name).mkdir()
    for path in sorted((overlays / TEMPLATE).glob("*.yaml")):
        text = _renamed(path.read_text(), TEMPLATE, name)
        if path.name == "sync.yaml":
            text += f"---\n{_source(name, flux_cd)}"
        (overlays / name / path.name).write_text(text)
    listed = _in(flux_cd, LIST)
    head, last, tail = listed.read_text().rpartition("/sync.yaml\n")
    listed.write_text(f"{head}{last}{_LINE.format(name)}{tail}")


def erase_environment(name: str, flux_cd: Path) -> None:
    """Take an environment's folder and line out of a flux-cd folder."""
    shutil.rmtree(_in(flux_cd, OVERLAYS) / name)
    listed = _in(flux_cd, LIST)
    listed.write_text(listed.read_text().replace(_LINE.format(name), ""))


def _source(name: str, flux_cd: Path) -> str:
    """Return the environment's GitRepository: those of the lab's own environments stand with the other sources."""
    documents = re.split(r"^---\n", (flux_cd / "bootstrap" / "sources.yaml").read_text(), flags=re.MULTILINE)
    wanted = f"\n  name: {source_name(SOURCE_TEMPLATE)}\n"
    (document,) = (d for d in documents if wanted in d)
    return _renamed(re.sub(r"^#.*\n", "", document, flags=re.MULTILINE), SOURCE_TEMPLATE, name)


def _renamed(text: str, old: str, new: str) -> str:
    return re.sub(rf"\b{old}\b", new, text)


def _in(flux_cd: Path, path: Path) -> Path:
    """Return where a path of this tree's flux-cd is in another copy of it."""
    return flux_cd / path.relative_to(FLUX_CD)


def _change(name: str, edit: Callable[[Path], None], check: Check, root: Path) -> Change:
    """Edit a copy of the current commit's flux-cd, prove it, and move what differs into the working copy, committed."""
    git_dir = Path(git.git("rev-parse", "--absolute-git-dir", root=root).stdout.strip())
    with lock(git_dir / "gitops-lab-environment.lock", "this working copy", timeout_s=60):
        for left_over in git_dir.glob(f"{_SCRATCH}????????"):
            shutil.rmtree(left_over)
        # On the working copy's own file system: what is moved in from there is there at once, or not at all.
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=git_dir) as folder:
            tree = Path(folder)
            archive = tree / "head.zip"
            git.git("archive", f"--output={archive}", "HEAD", "flux-cd", root=root)
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(tree)
            edit(tree / "flux-cd")
            _require_clean(tree, root)
            try:
                check(tree / "flux-cd")
            except LabError as error:
                raise LabError(
                    f"With this change of {name} the manifests would not be valid; nothing was changed.",
                    error.mend,
                    error.details.replace(f"{tree}/", ""),
                ) from None
            return _move_in(name, tree, root)


def _require_clean(tree: Path, root: Path) -> None:
    """Refuse uncommitted changes, except those that a killed run of this very change left: it is finished then."""
    listed = git.git(
        "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", "flux-cd", root=root
    ).stdout
    dirty = [entry[3:] for entry in listed.split("\0") if entry]
    foreign = [path for path in dirty if _content(root / path) != _content(tree / path)]
    if foreign:
        shown = ", ".join(foreign[:3]) + (" …" if len(foreign) > 3 else "")
        raise UsageError(f"Uncommitted changes in flux-cd: {shown}.", "git add flux-cd && git commit, or git stash")


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _move_in(name: str, tree: Path, root: Path) -> Change:
    folder, listed = OVERLAYS.relative_to(ROOT) / name, LIST.relative_to(ROOT)
    deleted = not (tree / folder).exists()
    try:
        # In this order every state in between builds: a folder without its line is one that Flux doesn't know yet.
        if not deleted and not (root / folder).exists():
            shutil.move(tree / folder, root / folder)
        shutil.move(tree / listed, root / listed)
        if deleted and (root / folder).exists():
            shutil.move(root / folder, tree / "gone")
        if deleted:
            git.git("rm", "--quiet", "-r", "--cached", "--ignore-unmatch", "--", folder, root=root)
        git.git("add", "--", listed, *([] if deleted else [folder]), root=root)
        message = f"{'Remove' if deleted else 'Add'} environment {name}"
        git.git("commit", "--quiet", "--message", message, "--", folder, listed, root=root)
    except BaseException:
        _undo(folder, listed, deleted, root)
        raise
    return Change(name, deleted, folder, git.git("rev-parse", "HEAD", root=root).stdout.strip())


def _undo(folder: Path, listed: Path, deleted: bool, root: Path) -> None:
    """Put folder and line back to what the current commit has: it was refused, by a hook or for want of an author."""
    if not deleted:
        git.git("rm", "--quiet", "-r", "--cached", "--ignore-unmatch", "--", folder, root=root)
        shutil.rmtree(root / folder, ignore_errors=True)
    wanted = [folder, listed] if deleted else [listed]
    git.git("restore", "--source=HEAD", "--staged", "--worktree", "--", *wanted, root=root)
