"""A tree of manifests as it lies on disk: every file by its content, and what its YAML documents are.

Nothing is trusted by its time stamp: each run reads every file, and what was learned of a content is kept by its digest.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from scripts.check.sourcefile import KUSTOMIZATION_FILES, MAX_YAML_BYTES, Document, SourceFile, parse
from scripts.errors import UsageError

YAML_SUFFIXES = (".yaml", ".yml")
# Folders that hold no manifests, or whose YAML is not meant for Kubernetes.
_SKIPPED_FOLDERS = {"node_modules", "__pycache__"}
_MAX_LINKS = 20


class FileKind(Enum):
    """What stands at a path."""

    FILE = "file"
    FOLDER = "folder"
    BROKEN_LINK = "broken link"
    LINK_OUTSIDE = "link out of the tree"


@dataclass(frozen=True)
class Entry:
    """One path of the tree: what it is, the digest of its content, and where it points if it is a link."""

    kind: FileKind
    digest: str = ""
    size: int = 0
    link: str = ""


class Tree:
    """A folder of manifests, and what of its repository they refer to.

    Paths are relative to the root and written with `/`; one that begins with `..` lies beside the root, within the
    repository.
    """

    def __init__(self, root: Path, known: Mapping[str, SourceFile] | None = None) -> None:
        if not root.is_dir():
            raise UsageError(f"TREE={root} is not a folder.", "give the folder of a Flux or Kustomize tree")
        self.root = root.resolve()
        self.top = _repository_of(self.root)
        self.entries: dict[str, Entry] = {}
        # Paths beside the root, or in hidden folders, that something refers to: in the order in which they were read.
        self.outside: list[str] = []
        self.charts: set[str] = set()
        self._canonical: dict[str, str] = {}
        # What was learned of contents, by digest: kept between runs by its user.
        self.known: dict[str, SourceFile] = dict(known or {})
        # What is being parsed beside this process, by its key in `known`, and how to have it.
        self._aside: frozenset[str] = frozenset()
        self._take_aside: Callable[[], Mapping[str, SourceFile]] = dict
        self._scan("")

    def absolute(self, path: str) -> Path:
        """Return where a path of the tree lies on disk."""
        return self.root / path if path else self.root

    def relative(self, path: Path) -> str:
        """Return a place on disk as a path of the tree."""
        return normalise(Path(os.path.relpath(path, self.root)).as_posix())

    def entry(self, path: str) -> Entry | None:
        """Return what stands at a path, reading it first if it was left out of the scan; None if nothing does."""
        if path not in self.entries and _is_left_out(path) and not self._is_read(path):
            self._read_outside(path)
        return self.entries.get(path)

    def canonical(self, path: str) -> str:
        """Return a path with the links to folders in it followed, as kustomize does; one name per place."""
        known = self._canonical.get(path)
        if known is None:
            known = self._canonical[path] = self._followed(path)
        return known

    def _followed(self, path: str) -> str:
        for _ in range(_MAX_LINKS):
            if path.startswith(".."):
                # Out of the root and back into it.
                path = self.relative(Path(os.path.normpath(self.root / path)))
            parts = path.split("/")
            for count in range(1, len(parts) + 1):
                prefix = "/".join(parts[:count])
                found = self.entry(prefix) if prefix.rpartition("/")[2] != ".." else None
                if found is not None and found.kind is FileKind.FOLDER and found.link:
                    path = join(self.relative(self.absolute(prefix).resolve()), "/".join(parts[count:]))
                    break
            else:
                return path
        return path

    def is_folder(self, path: str) -> bool:
        """Whether a path is a folder."""
        found = self.entry(path)
        return found is not None and found.kind is FileKind.FOLDER

    def is_file(self, path: str) -> bool:
        """Whether a path is a file that can be read."""
        found = self.entry(path)
        return found is not None and found.kind is FileKind.FILE

    def paths_below(self, folder: str) -> list[str]:
        """Return a path and all that lies below it, in order; links to folders are not followed."""
        ordered = self._sorted
        if not folder:
            return [p for p in ordered if is_below(p, "")]
        # `0` is the character after `/`.
        below = ordered[bisect_left(ordered, f"{folder}/") : bisect_left(ordered, f"{folder}0")]
        return [folder, *below] if folder in self.entries else below

    def children(self, folder: str) -> list[str]:
        """Return the paths directly in a folder, in order."""
        return self._children.get(folder, [])

    def kustomization_file(self, folder: str) -> str:
        """Return the path of a folder's kustomization file, or empty."""
        for name in KUSTOMIZATION_FILES:
            path = join(folder, name)
            if self.is_file(path):
                return path
        return ""

    def kustomization(self, folder: str) -> Document | None:
        """Return a folder's kustomization, if it has one that can be read."""
        path = self.kustomization_file(folder)
        documents = self.source(path).documents if path else ()
        return documents[0] if documents and documents[0].data is not None else None

    @property
    def kustomizations(self) -> list[str]:
        """Every folder that holds a kustomization file, Components included."""
        folders = {posixpath.dirname(p) for p in self.entries if posixpath.basename(p) in KUSTOMIZATION_FILES}
        return sorted(f for f in folders if self.kustomization_file(f) and not self.in_chart(f))

    def in_chart(self, path: str) -> bool:
        """Whether a path belongs to a Helm chart, whose files are templates."""
        return any(is_below(path, chart) for chart in self.charts)

    def yaml_files(self) -> list[str]:
        """Return every file whose name says that it is YAML, kustomizations included, charts left out."""
        return [
            path
            for path in self._sorted
            if is_yaml(path) and self.entries[path].kind is FileKind.FILE and not self.in_chart(path)
        ]

    def source(self, path: str) -> SourceFile:
        """Return what a YAML file holds; each content is parsed once."""
        found = self.entry(path)
        if found is None or found.kind is not FileKind.FILE:
            return SourceFile()
        key = self.source_key(path, found)
        if key in self._aside:
            self._aside = frozenset()
            self.known.update(self._take_aside())
        if key not in self.known:
            self.known[key] = parse(self.absolute(path), found.size, path)
        return self.known[key]

    @staticmethod
    def source_key(path: str, entry: Entry) -> str:
        """Return what a file's content is known by: the same text is something else as a kustomization."""
        return f"{entry.digest}{'k' if posixpath.basename(path) in KUSTOMIZATION_FILES else ''}"

    def expect(self, keys: Collection[str], take: Callable[[], Mapping[str, SourceFile]]) -> None:
        """Note that some contents are being parsed elsewhere: whoever asks for one of them takes all of them."""
        self._aside, self._take_aside = frozenset(keys), take

    def documents_of_kind(self, kind: str) -> list[tuple[str, Document]]:
        """Return every document of a kind that is kept with its data, each with its file."""
        return self._documents.get(kind, [])

    @cached_property
    def _documents(self) -> dict[str, list[tuple[str, Document]]]:
        found: dict[str, list[tuple[str, Document]]] = {}
        for path in self.yaml_files():
            for document in self.source(path).documents:
                if document.data is not None:
                    found.setdefault(document.kind, []).append((path, document))
        return found

    def used_keys(self) -> set[str]:
        """Return the keys of `known` that this tree can ask for: the rest is of earlier contents."""
        digests = {e.digest for e in self.entries.values()}
        return {k for k in self.known if k.removesuffix("k") in digests}

    def content_digest(self) -> str:
        """Return a digest of everything that was read: paths, kinds, contents, where links point."""
        return digest_of_entries(self.entries, self._sorted)

    @property
    def _sorted(self) -> list[str]:
        return self._index[0]

    @property
    def _children(self) -> dict[str, list[str]]:
        return self._index[1]

    @cached_property
    def _index(self) -> tuple[list[str], dict[str, list[str]]]:
        ordered = sorted(self.entries)
        children: dict[str, list[str]] = {}
        for path in ordered:
            if path:
                children.setdefault(posixpath.dirname(path), []).append(path)
        return ordered, children

    def _is_read(self, path: str) -> bool:
        return any(is_below(path, folder) for folder in self.outside)

    def _read_outside(self, path: str) -> None:
        """Read a path beside the root or in a hidden folder, if it lies in the same repository."""
        place = Path(os.path.normpath(self.root / path))
        if not place.is_relative_to(self.top) or place == self.top or self.root.is_relative_to(place):
            return
        self.outside.append(path)
        self._canonical.clear()
        try:
            found = place.lstat()
        except OSError:
            return
        if stat.S_ISDIR(found.st_mode):
            self._scan(path)
        else:
            self._add(path, place)
        self.__dict__.pop("_index", None)
        self.__dict__.pop("_documents", None)

    def _scan(self, start: str) -> None:
        self.entries[start] = Entry(FileKind.FOLDER)
        pending = [start]
        while pending:
            folder = pending.pop()
            with os.scandir(self.absolute(folder)) as found:
                for item in found:
                    if item.name.startswith(".git") or item.name in _SKIPPED_FOLDERS:
                        continue
                    path = join(folder, item.name)
                    if item.is_dir(follow_symlinks=False):
                        if not item.name.startswith(".") or _is_left_out(folder):
                            self.entries[path] = Entry(FileKind.FOLDER)
                            pending.append(path)
                        continue
                    if item.name == "Chart.yaml":
                        self.charts.add(folder)
                    self._add(path, Path(item.path))

    def _add(self, path: str, place: Path) -> None:
        link = str(place.readlink()) if place.is_symlink() else ""
        if link:
            target = place.resolve()
            if not target.exists():
                self.entries[path] = Entry(FileKind.BROKEN_LINK, link=link)
                return
            if not target.is_relative_to(self.top):
                self.entries[path] = Entry(FileKind.LINK_OUTSIDE, link=link)
                return
            if target.is_dir():
                # What it points to is read where it lies: a link up the tree would have no end.
                self.entries[path] = Entry(FileKind.FOLDER, link=link)
                return
        digest, size = _digest(place)
        self.entries[path] = Entry(FileKind.FILE, digest, size, link)


def digest_of_entries(entries: Mapping[str, Entry], paths: list[str]) -> str:
    """Return a digest of some of a tree's paths with their contents."""
    total = hashlib.sha256()
    for path in paths:
        entry = entries[path]
        total.update(f"{path}\0{entry.kind.value}\0{entry.digest}\0{entry.link}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def join(folder: str, name: str) -> str:
    """Return a name within a folder as a path of the tree."""
    return normalise(f"{folder}/{name}" if folder else name)


def normalise(path: str) -> str:
    """Return a path without `.` and inner `..`; the root is the empty path."""
    clean = posixpath.normpath(path)
    return "" if clean == "." else clean


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it."""
    if not folder:
        return not path.startswith("..")
    return path == folder or path.startswith(f"{folder}/")


def is_yaml(path: str) -> bool:
    """Whether a file's name says that it is YAML."""
    return path.endswith(YAML_SUFFIXES) or posixpath.basename(path) in KUSTOMIZATION_FILES


def _is_left_out(path: str) -> bool:
    """Whether the scan of the root leaves a path out: it lies beside the root, or in a hidden folder."""
    return path.startswith(".") or "/." in path


def _repository_of(root: Path) -> Path:
    """Return the Git working copy that a folder lies in, or the folder itself: paths of Flux start there."""
    return next((p for p in [root, *root.parents] if (p / ".git").exists()), root)


def _digest(place: Path) -> tuple[str, int]:
    with place.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_YAML_BYTES:
            # Too large to be a manifest: told apart by what the kernel says of it.
            found = os.fstat(file.fileno())
            mark = f"{size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
            return hashlib.sha256(mark.encode()).hexdigest(), size
        content = file.read()
    return hashlib.sha256(content).hexdigest(), len(content)
