"""What kustomize prints: its objects one by one, and where in the tree each of them was written.

kustomize itself says where an object comes from, in an annotation that is taken out of its text again. Its output has one
form (block style, two blanks a level), so that is done on the text, and no byte of an object changes otherwise.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, SupportsIndex

from scripts.check import yamlfile
from scripts.check.graph import Graph
from scripts.check.model import Place
from scripts.check.sourcefile import Document
from scripts.check.tree import join

ORIGIN = "config.kubernetes.io/origin"
_METADATA = re.compile(r"^metadata:\n(?:[ ].*\n|\n)*", re.MULTILINE)
_ANNOTATIONS = re.compile(r"^  annotations:\n(?:   .*\n|\n)*", re.MULTILINE)
_ORIGIN = re.compile(rf"^    {re.escape(ORIGIN)}: \|\n(?P<value>(?:      .*\n)+)", re.MULTILINE)
_SOPS = re.compile(r"^sops:\n(?:[ -].*\n|\n)*", re.MULTILINE)
_HASH = re.compile(r"-[a-z0-9]{10}$")
# Objects larger than this (definitions, mostly) are read only once somebody asks for more than their head.
_LARGE = 30_000


@dataclass(frozen=True)
class Origin:
    """Where kustomize says that an object comes from: relative to the folder that was built."""

    path: str = ""
    repository: str = ""
    # The kustomization whose generator made it.
    configured_in: str = ""


class LazyObject(dict[str, Any]):
    """A large object: its head (apiVersion, kind, metadata) at once, the rest when it is asked for."""

    _HEAD = ("apiVersion", "kind", "metadata")

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._whole = False
        head = text.find("\nspec:")
        if head > 0:
            found = _load(text[: head + 1])
            super().update({k: found[k] for k in self._HEAD if k in found})

    def _all(self) -> None:
        if not self._whole:
            self._whole = True
            super().clear()
            super().update(_load(self._text))

    def _has_head(self, key: object) -> bool:
        return key in self._HEAD and super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        if not self._has_head(key):
            self._all()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, as a dict does."""
        if not self._has_head(key):
            self._all()
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        if not self._has_head(key):
            self._all()
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def __len__(self) -> int:
        self._all()
        return super().__len__()

    def __eq__(self, other: object) -> bool:
        self._all()
        return super().__eq__(other)

    __hash__ = None

    def keys(self) -> Any:
        """Return the keys, as a dict does."""
        self._all()
        return super().keys()

    def values(self) -> Any:
        """Return the values, as a dict does."""
        self._all()
        return super().values()

    def items(self) -> Any:
        """Return the items, as a dict does."""
        self._all()
        return super().items()

    def __reduce_ex__(self, _: SupportsIndex) -> tuple[Any, ...]:
        return dict, (dict(self),)


def _load(text: str) -> dict[str, Any]:
    plain = yamlfile.load_one(text)
    if not isinstance(plain, dict):
        raise ValueError("is not an object")
    return plain


def read_object(text: str) -> dict[str, Any]:
    """Return one rendered object as data; raises ValueError for text that is not one."""
    return LazyObject(text) if len(text) > _LARGE else _load(text)


def split(text: str) -> list[str]:
    """Return the documents of a stream that kustomize printed, each ending with a line feed."""
    documents = text.split("\n---\n")
    return [d if d.endswith("\n") else f"{d}\n" for d in documents if d.strip()]


def take_origin(text: str) -> tuple[str, Origin]:
    """Return an object's text without the origin annotation, and what the annotation says."""
    metadata = _METADATA.search(text)
    annotations = _ANNOTATIONS.search(text, metadata.start(), metadata.end()) if metadata else None
    found = _ORIGIN.search(text, annotations.start(), annotations.end()) if annotations else None
    if not annotations or not found:
        return text, Origin()
    values = dict(line.strip().partition(": ")[::2] for line in found.group("value").splitlines())
    kept = annotations.group().replace(found.group(), "", 1)
    if kept == "  annotations:\n":
        kept = ""
    clean = text[: annotations.start()] + kept + text[annotations.end() :]
    return clean, Origin(values.get("path", ""), values.get("repo", ""), values.get("configuredIn", ""))


def drop_sops(text: str) -> str:
    """Return an object's text as Flux applies it: without the block in which SOPS keeps its keys."""
    return _SOPS.sub("", text, count=1) if "\nsops:\n" in text else text


def place_of(graph: Graph, folder: str, origin: Origin, data: dict[str, Any]) -> Place:
    """Return where in the tree an object was written; the kustomization that was built, where nobody can say."""
    kind = str(data.get("kind", ""))
    name = str((data.get("metadata") or {}).get("name", ""))
    if origin.path and not origin.repository:
        path = graph.tree.canonical(join(folder, origin.path))
        return Place(path, _line_in(graph.tree.source(path).documents, kind, name))
    if origin.configured_in:
        path = graph.tree.canonical(join(folder, origin.configured_in))
        return _place_of_generated(graph, path, kind, name)
    built = graph.buildable(folder)
    return Place(built.place if built else folder)


def _line_in(documents: tuple[Document, ...], kind: str, name: str) -> int:
    same_kind = [d for d in documents if d.kind == kind]
    for match in (
        [d for d in same_kind if d.name == name],
        # A prefix, a suffix, a hash.
        [d for d in same_kind if d.name and d.name in name],
        same_kind,
    ):
        if match:
            return max(match, key=lambda d: len(d.name)).line
    return documents[0].line if documents else 1


def _place_of_generated(graph: Graph, path: str, kind: str, name: str) -> Place:
    document = graph.tree.kustomization(posixpath.dirname(path))
    field = {"ConfigMap": "configMapGenerator", "Secret": "secretGenerator"}.get(kind, "")
    bare = _HASH.sub("", name)
    found: list[tuple[int, Place]] = []
    for index, generator in enumerate((document.data or {}).get(field) or [] if document else []):
        made = str(generator.get("name", "")) if isinstance(generator, dict) else ""
        # A prefix and a suffix may stand around it.
        if document and made and made in bare:
            found.append((len(made), Place(path, document.line_of(f"/{field}/{index}"))))
    kustomization = graph.kustomization(posixpath.dirname(path))
    for reference in kustomization.references if kustomization else ():
        for candidate in graph.tree.source(reference.target).documents if graph.tree.is_file(reference.target) else ():
            if candidate.api_version == "builtin" and candidate.name and candidate.name in bare:
                found.append((len(candidate.name), Place(reference.target, candidate.line)))
    if found:
        return max(found, key=lambda f: f[0])[1]
    return Place(path, 1)
