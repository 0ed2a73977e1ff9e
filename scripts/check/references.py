"""What a kustomization refers to: each reference with its field, its line, and the path that it means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from scripts.check.sourcefile import Document
from scripts.check.tree import Tree, join

# How kustomize knows an address of a repository or a file on the web.
_REMOTE = re.compile(r"^(?:[a-z+]+::|https?://|ssh://|git@|gh:|github\.com[:/])|\?(?:ref|version)=", re.IGNORECASE)

_WORD = re.compile(r"[^\s'\"\[\],]+")


class ReferenceKind(Enum):
    """What a reference brings in."""

    RESOURCE = "resource"
    COMPONENT = "component"
    PLUGIN = "plugin"
    PATCH = "patch"
    CONTENT = "content"


@dataclass(frozen=True)
class Reference:
    """One path or address in a kustomization."""

    kind: ReferenceKind
    # As it is written, without the key of a generator's `key=path`.
    value: str
    pointer: str
    line: int
    # The path of the tree that it means; empty for an address.
    target: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether it is an address, which is not fetched."""
        return not self.target


_LISTS = {
    "resources": ReferenceKind.RESOURCE,
    "bases": ReferenceKind.RESOURCE,
    "components": ReferenceKind.COMPONENT,
    "generators": ReferenceKind.PLUGIN,
    "transformers": ReferenceKind.PLUGIN,
    "validators": ReferenceKind.PLUGIN,
    "patchesStrategicMerge": ReferenceKind.PATCH,
    "crds": ReferenceKind.CONTENT,
    "configurations": ReferenceKind.CONTENT,
}


def references(tree: Tree, folder: str, kustomization: Document) -> list[Reference]:
    """Return everything that a folder's kustomization refers to, in the order of its fields."""
    data = kustomization.data or {}
    found: list[Reference] = []

    def add(kind: ReferenceKind, value: Any, pointer: str, source: Document = kustomization) -> None:
        # Several lines are the thing itself, written in place.
        if isinstance(value, str) and value and "\n" not in value:
            found.append(Reference(kind, value, pointer, source.line_of(pointer), target_of(tree, folder, value, kind)))

    for field, kind in _LISTS.items():
        for index, value in enumerate(_list(data, field)):
            add(kind, value, f"/{field}/{index}")
    for field in ("patches", "patchesJson6902"):
        for index, patch in enumerate(_list(data, field)):
            if isinstance(patch, Mapping):
                add(ReferenceKind.PATCH, patch.get("path"), f"/{field}/{index}/path")
    for index, replacement in enumerate(_list(data, "replacements")):
        if isinstance(replacement, Mapping):
            add(ReferenceKind.CONTENT, replacement.get("path"), f"/replacements/{index}/path")
    for field in ("configMapGenerator", "secretGenerator"):
        for index, generator in enumerate(_list(data, field)):
            if isinstance(generator, Mapping):
                for pointer, value in _contents(generator, f"/{field}/{index}"):
                    add(ReferenceKind.CONTENT, value, pointer)
    for index, chart in enumerate(_list(data, "helmCharts")):
        if isinstance(chart, Mapping):
            add(ReferenceKind.CONTENT, chart.get("valuesFile"), f"/helmCharts/{index}/valuesFile")
    openapi = data.get("openapi")
    if isinstance(openapi, Mapping):
        add(ReferenceKind.CONTENT, openapi.get("path"), "/openapi/path")
    return found


def plugin_contents(tree: Tree, folder: str, plugin: Document) -> list[Reference]:
    """Return the files that a built-in generator in a file of its own takes in: paths start at the kustomization."""
    return [
        Reference(
            ReferenceKind.CONTENT,
            value,
            pointer,
            plugin.line_of(pointer),
            target_of(tree, folder, value, ReferenceKind.CONTENT),
        )
        for pointer, value in _contents(plugin.data or {}, "")
    ]


def target_of(tree: Tree, folder: str, value: str, kind: ReferenceKind) -> str:
    """Return the path that a reference means, or empty for an address on the web."""
    path = tree.canonical(join(folder, value)) if not value.startswith("/") else value
    if _REMOTE.search(value) and kind is not ReferenceKind.CONTENT and tree.entry(path) is None:
        return ""
    return path or "."


def folder_target(reference: Reference) -> str:
    """Return a reference's path as folders are named: the root is empty."""
    return "" if reference.target == "." else reference.target


def every_string(data: Any) -> Iterator[str]:
    """Yield every string that could be a path, and what follows the `=` of those with one: all a build can read."""
    if isinstance(data, str):
        # A generator may be written in place, over several lines, and take in files of its own.
        for word in [data] if "\n" not in data else _WORD.findall(data):
            if word and len(word) < 1024:
                yield word
                if "=" in word:
                    yield word.partition("=")[2]
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from every_string(value)
    elif isinstance(data, list):
        for value in data:
            yield from every_string(value)


def _contents(generator: Mapping[str, Any], pointer: str) -> Iterator[tuple[str, str]]:
    for index, value in enumerate(_list(generator, "files")):
        if isinstance(value, str):
            key, _, path = value.partition("=")
            yield f"{pointer}/files/{index}", path or key
    for index, value in enumerate(_list(generator, "envs")):
        if isinstance(value, str):
            yield f"{pointer}/envs/{index}", value
    if isinstance(generator.get("env"), str):
        yield f"{pointer}/env", str(generator["env"])


def _list(data: Mapping[str, Any], field: str) -> list[Any]:
    value = data.get(field)
    return value if isinstance(value, list) else []
