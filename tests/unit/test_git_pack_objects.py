"""What the Git server sends to a shallow clone: all of it to people, Flux's paths alone by the address of Flux."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts.settings import KIND_DIR

PACK_OBJECTS = KIND_DIR / "git-server" / "pack-objects"
FILES = {
    "flux-cd/dev/a.yaml": "a: 1\n",
    "flux-cd/b.yaml": "b: 2\n",
    "README.md": "# read me\n",
    "docs/flux-cd/c": "c\n",
}
SHALLOW = ("--shallow-file", "", "pack-objects", "--revs", "--stdout", "--shallow", "--delta-base-offset")
WHOLE = ("pack-objects", "--revs", "--thin", "--stdout", "--delta-base-offset")


def git(folder: Path, *args: str, data: bytes = b"") -> str:
    identity = {f"GIT_{who}_{what}": "x@invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", *args], cwd=folder, input=data, env=os.environ | identity, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits, the first with a file that the second leaves as it is."""
    folder = tmp_path / "repository"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(tmp_path, "init", "-q", "-b", "main", str(folder))
    for message in ("first", "second"):
        (folder / "flux-cd" / "b.yaml").write_text(f"b: {message}\n")
        git(folder, "add", "--all")
        git(folder, "commit", "-qm", message)
    return folder


def sent(repository: Path, tmp_path: Path, args: tuple[str, ...], paths: str) -> tuple[bytes, set[str], Path]:
    """Return the pack that the script sends, the files whose content is in it, and a repository that has taken it."""
    head = git(repository, "rev-parse", "HEAD")
    wish = f"--shallow {head}\n{head}\n" if "--shallow" in args else f"{head}\n"
    environment = {k: v for k, v in os.environ.items() if k != "LAB_PATHS"} | ({"LAB_PATHS": paths} if paths else {})
    pack = subprocess.run(
        [PACK_OBJECTS, "git", *args, "-q"], cwd=repository, input=wish.encode(), env=environment, capture_output=True, check=True
    ).stdout  # fmt: skip
    taken = tmp_path / "taken"
    git(tmp_path, "init", "-q", "-b", "main", str(taken))
    git(taken, "unpack-objects", "-q", data=pack)
    listed = [line.split(maxsplit=3) for line in git(taken, "ls-tree", "-r", head).splitlines()]
    assert {name for *_, name in listed} == set(FILES), "the commit is the same whatever is left out of it"
    objects = git(taken, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").splitlines()
    return pack, {name for _, _, blob, name in listed if blob in objects}, taken


@pytest.mark.parametrize(
    ("args", "paths", "files"),
    [
        (SHALLOW, "/flux-cd/", {"flux-cd/dev/a.yaml", "flux-cd/b.yaml"}),
        (SHALLOW, "", set(FILES)),
        (WHOLE, "/flux-cd/", set(FILES)),
    ],
    ids=["Flux", "a shallow clone of a person's", "a clone with all of the history"],
)
def test_only_flux_does_without_files(
    repository: Path, tmp_path: Path, args: tuple[str, ...], paths: str, files: set[str]
) -> None:
    _, there, taken = sent(repository, tmp_path, args, paths)
    assert there == files
    earlier = subprocess.run(
        ["git", "cat-file", "-e", git(repository, "rev-parse", "HEAD~1")], cwd=taken, capture_output=True, check=False
    )
    assert (earlier.returncode == 0) == (args == WHOLE), "a shallow clone has the last commit alone"


def test_a_shallow_clone_is_not_compressed(repository: Path, tmp_path: Path) -> None:
    pack, _, _ = sent(repository, tmp_path, SHALLOW, "")
    assert b"b: second\n" in pack
