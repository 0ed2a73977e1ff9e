"""Who includes whom: the kustomizations of a tree, their references, and what Flux makes of folders without one."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from scripts.check.references import (
    Reference,
    ReferenceKind,
    every_string,
    folder_target,
    plugin_contents,
    references,
    target_of,
)
from scripts.check.sourcefile import Document
from scripts.check.tree import YAML_SUFFIXES, FileKind, Tree, digest_of_entries, is_below, join

# What source-controller leaves out of an artifact, so that no generated kustomization lists it.
_NOT_IN_ARTIFACTS = {
    ".travis.yml", ".gitlab-ci.yml", "appveyor.yml", ".drone.yml", "cloudbuild.yaml", "codeship-services.yml",
    "codeship-steps.yml", ".goreleaser.yml", ".sops.yaml", ".flux.yaml",
}  # fmt: skip

T = TypeVar("T", str, int)


@dataclass(frozen=True)
class Kustomization:
    """A folder that can be built: its kustomization file's data, or the one that Flux would generate."""

    folder: str
    # The kustomization file, or empty for a generated one.
    file: str
    data: Mapping[str, Any]
    document: Document
    references: tuple[Reference, ...]
    # How many documents its file holds: kustomize reads one.
    documents: int = 1

    @property
    def is_component(self) -> bool:
        """Whether it is a Component, which builds within others only."""
        return self.data.get("kind") == "Component"

    @property
    def place(self) -> str:
        """The file that findings about it name."""
        return self.file or self.folder or "."

    @property
    def remote(self) -> list[Reference]:
        """Its references to addresses."""
        return [r for r in self.references if r.is_remote]


class Graph:
    """The kustomizations of a tree and their references."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        # Folders that are taken for what `flux bootstrap` was called with: of their files, those that hold objects.
        self.assumed: set[str] = set()
        self._kustomizations: dict[str, Kustomization | None] = {}
        self._closures: dict[str, tuple[str, ...]] = {}
        for folder in tree.kustomizations:
            self.kustomization(folder)

    def kustomization(self, folder: str) -> Kustomization | None:
        """Return the kustomization whose file lies in a folder; None without one that can be read."""
        if folder not in self._kustomizations:
            document = self.tree.kustomization(folder)
            self._kustomizations[folder] = (
                Kustomization(
                    folder,
                    self.tree.kustomization_file(folder),
                    document.data or {},
                    document,
                    tuple(references(self.tree, folder, document)),
                    len(self.tree.source(self.tree.kustomization_file(folder)).documents),
                )
                if document
                else None
            )
        return self._kustomizations[folder]

    def buildable(self, folder: str) -> Kustomization | None:
        """Return a folder's kustomization, or the one that Flux generates for a folder that has none."""
        if self.tree.kustomization_file(folder):
            return self.kustomization(folder)
        return self._generated(folder) if self.tree.is_folder(folder) else None

    @property
    def all(self) -> list[Kustomization]:
        """Every kustomization that has a file, by folder."""
        return [k for _, k in sorted(self._kustomizations.items()) if k is not None]

    @property
    def size(self) -> int:
        """How much of the repository is known: it grows where something beside the root, or hidden, is met."""
        return len(self.tree.entries) + len(self._kustomizations)

    def included(self, kustomization: Kustomization) -> list[tuple[Reference, str]]:
        """Return the folders that a kustomization includes, each with its reference."""
        return [
            (r, folder_target(r))
            for r in kustomization.references
            if r.kind in (ReferenceKind.RESOURCE, ReferenceKind.COMPONENT, ReferenceKind.PLUGIN)
            and r.target
            and self.tree.is_folder(folder_target(r))
        ]

    def closure(self, folder: str) -> tuple[str, ...]:
        """Return a folder and every folder that its build includes, in the order in which they are met."""
        if folder not in self._closures:
            order: dict[str, None] = {}
            pending = [folder]
            while pending:
                current = pending.pop()
                if current in order:
                    continue
                order[current] = None
                found = self.buildable(current)
                if found:
                    pending.extend(target for _, target in reversed(self.included(found)))
            self._closures[folder] = tuple(order)
        return self._closures[folder]

    @cached_property
    def includers(self) -> dict[str, list[Kustomization]]:
        """By folder: the kustomizations that include it."""
        found: dict[str, list[Kustomization]] = {}
        for kustomization in self.all:
            for _, target in self.included(kustomization):
                found.setdefault(target, []).append(kustomization)
        return found

    @cached_property
    def only_patches(self) -> frozenset[str]:
        """The files that kustomizations take as patches, and none as a resource: what stands in them is no object."""
        kinds: dict[str, set[ReferenceKind]] = {}
        for reference in (r for k in self.all for r in k.references if r.target):
            kinds.setdefault(reference.target, set()).add(reference.kind)
        return frozenset(file for file, found in kinds.items() if found == {ReferenceKind.PATCH})

    def files_of(self, folder: str) -> Iterator[str]:
        """Yield every file that the build of a folder takes in, kustomization files included."""
        for each in self.closure(folder):
            found = self.buildable(each)
            if not found:
                continue
            if found.file:
                yield found.file
            for reference in found.references:
                if reference.target and self.tree.is_file(reference.target):
                    yield reference.target
            for _, inner in self.plugin_references(found):
                if inner.target and self.tree.is_file(inner.target):
                    yield inner.target

    def plugin_references(self, kustomization: Kustomization) -> Iterator[tuple[str, Reference]]:
        """Yield the files that generators in files of their own take in, with the generator's file."""
        for reference in kustomization.references:
            if reference.kind is ReferenceKind.PLUGIN and reference.target:
                for document in self.tree.source(reference.target).documents:
                    for inner in plugin_contents(self.tree, kustomization.folder, document):
                        yield reference.target, inner

    def content_digest(self, folder: str, extra: tuple[str, ...] = ()) -> str:
        """Return a digest of all that a folder's build can read.

        More is taken than is read, never less: everything below each folder that the build enters, and every string in
        its kustomizations and their plugins that is a path of the tree, wherever it stands.
        """
        folders: dict[str, None] = {}
        files: dict[str, None] = {}
        for start in (folder, *extra):
            for each in self.closure(start):
                folders[each] = None
                found = self.buildable(each)
                if not found:
                    continue
                sources = [found.data]
                for reference in found.references:
                    if reference.kind is ReferenceKind.PLUGIN and self.tree.is_file(reference.target):
                        sources += [d.data for d in self.tree.source(reference.target).documents if d.data]
                for text in (t for s in sources for t in every_string(s)):
                    path = target_of(self.tree, each, text, ReferenceKind.CONTENT)
                    entry = self.tree.entry(path)
                    if entry is not None and entry.kind is FileKind.FOLDER:
                        folders[path] = None
                    elif entry is not None:
                        files[path] = None
        tops: list[str] = []
        for each in sorted(folders):
            if not any(is_below(each, top) for top in tops):
                tops.append(each)
        paths = sorted({*(p for top in tops for p in self._everything_below(top)), *files})
        return digest_of_entries(self.tree.entries, paths)

    def _everything_below(self, folder: str) -> list[str]:
        """Return every path below a folder, and below the folders that links in it point to."""
        found: dict[str, None] = {}
        pending = [folder]
        while pending:
            top = pending.pop()
            for path in self.tree.paths_below(top):
                if path in found:
                    continue
                found[path] = None
                entry = self.tree.entries[path]
                if entry.link and entry.kind is FileKind.FOLDER:
                    pending.append(self.tree.canonical(path))
        return list(found)

    def _holds_objects(self, path: str) -> bool:
        source = self.tree.source(path)
        return bool(source.documents) and all(d.is_object for d in source.documents)

    def _generated(self, folder: str) -> Kustomization:
        """Return the kustomization that kustomize-controller generates for a folder without one."""
        resources: list[str] = []
        pending = [folder]
        while pending:
            current = pending.pop()
            for path in self.tree.children(current):
                if self.tree.is_folder(path):
                    if self.tree.kustomization_file(path):
                        resources.append(path)
                    else:
                        pending.append(path)
                elif path.endswith(YAML_SUFFIXES) and posixpath.basename(path) not in _NOT_IN_ARTIFACTS:
                    resources.append(path)
        if folder in self.assumed:
            resources = [r for r in resources if self.tree.is_folder(r) or self._holds_objects(r)]
        names = [posixpath.relpath(path, folder or ".") for path in sorted(resources)]
        data = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": names}
        document = Document(0, str(data["apiVersion"]), "Kustomization", data=data)
        found = tuple(
            Reference(ReferenceKind.RESOURCE, name, f"/resources/{index}", 0, join(folder, name) or ".")
            for index, name in enumerate(names)
        )
        return Kustomization(folder, "", data, document, found)


def circles_of(onward: Mapping[T, Sequence[T]]) -> list[list[T]]:
    """Return the circles of a graph, each once and told from its least member on."""
    done: set[T] = set()
    circles: dict[tuple[T, ...], None] = {}
    for start in onward:
        # The way to where the search stands, and what is left to try from each step of it.
        way: list[T] = []
        left = [iter([start])]
        while left:
            following = next(left[-1], None)
            if following is None:
                left.pop()
                if way:
                    done.add(way.pop())
            elif following in way:
                circle = way[way.index(following) :]
                least = circle.index(min(circle))
                circles[tuple(circle[least:] + circle[:least])] = None
            elif following not in done and following in onward:
                way.append(following)
                left.append(iter(onward[following]))
    return [list(c) for c in circles]
