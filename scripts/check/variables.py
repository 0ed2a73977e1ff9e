"""The values that a Flux Kustomization's postBuild has: written in it, or taken from ConfigMaps and Secrets of the tree."""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.check.fluxobjects import RenderSpec
from scripts.check.graph import Graph
from scripts.check.sourcefile import Document
from scripts.check.substitute import VARIABLE_NAME
from scripts.check.tree import join


@dataclass(frozen=True)
class MissingSource:
    """A ConfigMap or Secret that substituteFrom names and the tree does not hold."""

    kind: str
    name: str
    pointer: str
    optional: bool


@dataclass(frozen=True)
class Variables:
    """Values by name; names whose value is encrypted; and whether there may be more, in an object that isn't here."""

    values: Mapping[str, str] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    missing: tuple[MissingSource, ...] = ()
    # Whether anything is replaced at all: without a single value Flux leaves the text alone.
    active: bool = False

    def stand_in(self, name: str) -> str | None:
        """Return what stands for a value that can't be known here: its own expression; None for an unset name."""
        return f"${{{name}}}" if name in self.hidden or self.missing else None

    @property
    def bad_names(self) -> list[str]:
        """Names that Flux refuses."""
        return sorted(n for n in {*self.values, *self.hidden} if not VARIABLE_NAME.fullmatch(n))


def variables_of(graph: Graph, spec: RenderSpec, near: str) -> Variables:
    """Return the variables of a rendering; of several objects of a name, those of the file nearest to `near`."""
    post_build = spec.settings.get("postBuild")
    if not isinstance(post_build, Mapping):
        return Variables()
    values: dict[str, str] = {}
    hidden: set[str] = set()
    missing: list[MissingSource] = []
    sources = post_build.get("substituteFrom")
    for index, source in enumerate(sources if isinstance(sources, list) else []):
        if not isinstance(source, Mapping):
            continue
        kind, name = str(source.get("kind", "")), str(source.get("name", ""))
        found = _values_of(graph, kind, name, spec.namespace, near)
        if found is None:
            pointer = f"/spec/postBuild/substituteFrom/{index}"
            missing.append(MissingSource(kind, name, pointer, bool(source.get("optional"))))
            continue
        for key, value in found.items():
            values.pop(key, None)
            hidden.discard(key)
            if value is None:
                hidden.add(key)
            else:
                values[key] = value.replace("\n", "")
    for key, value in _mapping(post_build.get("substitute")).items():
        hidden.discard(str(key))
        values[str(key)] = _text(value).replace("\n", "")
    active = bool(values or hidden or missing) or post_build.get("substituteStrategy") == "Always"
    return Variables(values, frozenset(hidden), tuple(missing), active)


def _values_of(graph: Graph, kind: str, name: str, namespace: str, near: str) -> dict[str, str | None] | None:
    candidates: list[tuple[int, int, str, dict[str, str | None]]] = []
    for path, document in graph.tree.documents_of_kind(kind):
        if document.name == name:
            same = int(document.namespace in ("", namespace))
            candidates.append((same, _shared(path, near), path, _data_of(document)))
    for kustomization in graph.all:
        for generated in _generated(graph, kustomization.folder, kustomization.data, kind, name):
            candidates.append((1, _shared(kustomization.place, near), kustomization.place, generated))
    return max(candidates, key=lambda c: c[:3])[3] if candidates else None


def _shared(path: str, near: str) -> int:
    """Return how many folders two paths have in common."""
    return len(posixpath.commonpath([f"/{path}", f"/{near}"]).split("/"))


def _data_of(document: Document) -> dict[str, str | None]:
    data = document.data or {}
    encrypted = "sops" in data or data.get("kind") == "SealedSecret"
    found: dict[str, str | None] = {}
    for key, value in _mapping(data.get("data")).items():
        text = _text(value)
        if document.kind == "Secret":
            try:
                text = base64.b64decode(text, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                found[str(key)] = None
                continue
        found[str(key)] = None if encrypted or text.startswith("ENC[") else text
    for key, value in _mapping(data.get("stringData")).items():
        found[str(key)] = None if encrypted or _text(value).startswith("ENC[") else _text(value)
    return found


def _generated(
    graph: Graph, folder: str, data: Mapping[str, Any], kind: str, name: str
) -> Iterator[dict[str, str | None]]:
    """Yield the values of generators that make the object under the name that is asked for."""
    field_name = {"ConfigMap": "configMapGenerator", "Secret": "secretGenerator"}.get(kind, "")
    for generator in _list(data.get(field_name)):
        if not isinstance(generator, Mapping) or generator.get("name") != name:
            continue
        found: dict[str, str | None] = {}
        for literal in _list(generator.get("literals")):
            key, _, value = str(literal).partition("=")
            found[key] = value.strip("'\"")
        for env in [*_list(generator.get("envs")), *([generator["env"]] if generator.get("env") else [])]:
            path = graph.tree.canonical(join(folder, str(env)))
            if graph.tree.is_file(path):
                for line in graph.tree.absolute(path).read_text(errors="replace").splitlines():
                    if "=" in line and not line.lstrip().startswith("#"):
                        key, _, value = line.strip().partition("=")
                        found[key] = None if value.startswith("ENC[") else value
        for file in _list(generator.get("files")):
            key, _, path = str(file).rpartition("=")
            found[key or posixpath.basename(path)] = None
        yield found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
