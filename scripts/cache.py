"""The per-user cache of finished outputs, keyed by what they were built from.

An entry is a folder that appears by one rename once it is whole: a build that is killed leaves nothing that
could be taken for an output, and two builds of the same entry wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from scripts import console
from scripts.errors import LabError


def digest_of(*parts: object) -> str:
    """Return a hash of plain data (dicts, lists, strings, numbers), the same for the same data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def digest_of_tree(folder: Path) -> str:
    """Return a hash of a folder: relative names, executable bits and contents; caches of tools left out."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        mode = "x" if os.access(path, os.X_OK) else "-"
        total.update(f"{path.relative_to(folder)}\0{mode}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@contextlib.contextmanager
def lock(path: Path, what: str, timeout_s: float = 3600) -> Iterator[None]:
    """Hold a lock between processes; says so when it has to wait. Released by the kernel when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(path)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        console.note(f"waiting for another run that is busy with {what}")
        try:
            file_lock.acquire(timeout=timeout_s, poll_interval=0.2)
        except Timeout:
            raise LabError(
                f"Another run has been busy with {what} for {timeout_s:.0f} s.", f"end that run, or remove {path}"
            ) from None
    try:
        yield
    finally:
        file_lock.release()


class Cache:
    """Finished outputs below one folder: `entries/<name>-<key>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries = root / "entries"

    def path(self, name: str, key: str) -> Path:
        """Return where the entry is or would be."""
        return self.entries / f"{name}-{key[:16]}"

    def find(self, name: str, key: str) -> Path | None:
        """Return the entry if it is there, whole."""
        path = self.path(name, key)
        if not path.is_dir():
            return None
        # What is used is young: of several entries of a name the oldest are dropped.
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def ensure(self, name: str, key: str, build: Callable[[Path], None]) -> tuple[Path, bool]:
        """Return the entry and whether it had to be built by `build(folder)`."""
        found = self.find(name, key)
        if found:
            return found, False
        with lock(self.root / "locks" / f"{name}.lock", f"building {name}"):
            found = self.find(name, key)
            if found:
                return found, False
            self.entries.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers(name)
            folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.entries))
            try:
                build(folder)
                folder.chmod(0o755)
                for path in folder.rglob("*"):
                    if path.is_file() and not path.is_symlink():
                        sync(path)
                folder.rename(self.path(name, key))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._remove_older(name, key)
            return self.path(name, key), True

    def _remove_leftovers(self, name: str) -> None:
        """Drop unfinished folders of builds that were killed: with the lock held, none can be in use."""
        for folder in self.entries.glob(f".{name}-????????"):
            shutil.rmtree(folder)

    def _remove_older(self, name: str, key: str) -> None:
        """Keep the two newest entries of a name, so that a pin can be changed and changed back."""
        current = self.path(name, key)
        mine = [p for p in self.entries.glob(f"{name}-????????????????") if p != current]
        for folder in sorted(mine, key=lambda p: p.stat().st_mtime, reverse=True)[1:]:
            # First out of its name: half deleted under it, it would be taken for whole.
            doomed = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.entries))
            folder.rename(doomed / "entry")
            shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Wait until a file's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file by one rename, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(mode)
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def now_iso() -> str:
    """Return the time now in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
