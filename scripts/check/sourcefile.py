"""What a YAML file holds: its documents, and what is wrong with how it is written."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.check.model import Problem

MAX_YAML_BYTES = 8 * 1024**2
KUSTOMIZATION_FILES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
KUSTOMIZE_GROUP = "kustomize.config.k8s.io"
FLUX_KUSTOMIZE_GROUP = "kustomize.toolkit.fluxcd.io"
ARTIFACT_GROUP = "source.extensions.fluxcd.io"
FLUX_GROUPS = (FLUX_KUSTOMIZE_GROUP, "source.toolkit.fluxcd.io", "helm.toolkit.fluxcd.io", ARTIFACT_GROUP)
_MANY_LINES = 20_000
# The sign comes first, what stands before it is looked at then: a pattern that begins with a sign is found ten times sooner.
_ANCHOR = re.compile(r"&(?<![^\s\[{,:-]&)[^\s\[\]{},&]")
_ALIAS = re.compile(r"\*(?<![^\s\[{,:-]\*)[^\s\[\]{},*]")


@dataclass(frozen=True)
class Document:
    """One YAML document of a file; kustomizations, Flux objects and what Flux substitutes from with all their data."""

    line: int
    api_version: str = ""
    kind: str = ""
    name: str = ""
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    # The line of every value by its JSON pointer; with `data` only.
    lines: Mapping[str, int] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The API group, empty for the core."""
        return self.api_version.rpartition("/")[0]

    @property
    def is_object(self) -> bool:
        """Whether this is something the API server would take."""
        return bool(self.kind and self.api_version and self.name and self.group != KUSTOMIZE_GROUP)

    def line_of(self, pointer: str) -> int:
        """Return the line of the value at a JSON pointer, or of what holds it."""
        while pointer and pointer not in self.lines:
            pointer = pointer.rpartition("/")[0]
        return self.lines.get(pointer, self.line)


@dataclass(frozen=True)
class SourceFile:
    """What a YAML file holds."""

    documents: tuple[Document, ...] = ()
    problems: tuple[Problem, ...] = ()
    # Whether it is a template of something else (Helm, Jinja), which is not YAML before it is rendered.
    template: bool = False


def parse(place: Path, size: int, path: str) -> SourceFile:
    """Return what the file at a place on disk holds, which the tree has at a path."""
    return parse_whole(place, size, path)[0]


def parse_whole(place: Path, size: int, path: str) -> tuple[SourceFile, str, list[Any]]:
    """Return what a file holds, its text, and its documents as nodes; no text and no nodes of one that can't be read."""
    if size > MAX_YAML_BYTES:
        message = f"has {size / 1024**2:.1f} MiB: the API server takes objects of 1.5 MiB at most"
        return _unreadable(Problem("file-too-large", message, "split it, or keep it out of the tree")), "", []
    content = place.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8: byte 0x{content[error.start]:02x}"
        return _unreadable(Problem("file-not-utf8", message, "save it as UTF-8", line)), "", []
    # Imported here: a run that knows every content reads no YAML.
    from scripts.check import yamlfile

    nodes, problems = yamlfile.compose(text)
    # `{{` outside a string is how templates look, and never how a manifest does.
    template = bool(problems) and "{{" in text
    is_kustomization = posixpath.basename(path) in KUSTOMIZATION_FILES
    documents: list[Document] = []
    for node in nodes:
        documents.extend(_documents(node, is_kustomization))
    for document in documents:
        problems.extend(_expanding_patches(document))
    return SourceFile(tuple(documents), tuple(problems), template), text, nodes


def _unreadable(problem: Problem) -> SourceFile:
    return SourceFile(problems=(problem,))


def may_expand(text: str) -> bool:
    """Whether a text can have aliases: a cheap look, wrong only on the safe side."""
    return "*" in text and "&" in text and bool(_ANCHOR.search(text) and _ALIAS.search(text))


def expanding_patches(data: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Problem]]:
    """Yield the patches written in place, by their JSON pointer, that would expand without end.

    kustomize reads them as YAML of their own.
    """
    for field_name in ("patches", "patchesStrategicMerge", "patchesJson6902"):
        patches = data.get(field_name)
        for index, patch in enumerate(patches if isinstance(patches, list) else []):
            pointer, text = f"{start}/{field_name}/{index}", patch
            if isinstance(patch, Mapping):
                pointer, text = f"{pointer}/patch", patch.get("patch")
            if isinstance(text, str) and may_expand(text):
                from scripts.check import yamlfile

                yield from ((pointer, p) for p in yamlfile.compose(text)[1] if p.rule == "yaml-alias")


def _expanding_patches(document: Document) -> Iterator[Problem]:
    data, start = document.data or {}, ""
    if document.group == FLUX_KUSTOMIZE_GROUP:
        spec = data.get("spec")
        data, start = spec if isinstance(spec, Mapping) else {}, "/spec"
    for pointer, problem in expanding_patches(data, start):
        yield replace(problem, line=document.line_of(pointer))


def _documents(node: Any, is_kustomization: bool) -> Iterator[Document]:
    import yaml

    from scripts.check import yamlfile

    head = _head(node)
    if head.kind.endswith("List") and head.api_version and not head.name:
        items = yamlfile.node_at(node, "items")
        for item in items.value if isinstance(items, yaml.SequenceNode) else []:
            yield from _documents(item, False)
        return
    wanted = is_kustomization or head.group == KUSTOMIZE_GROUP or head.group in FLUX_GROUPS
    wanted = wanted or (head.kind in ("ConfigMap", "Secret") and head.api_version == "v1")
    wanted = wanted or head.api_version == "builtin"
    if not wanted or node.end_mark.line - node.start_mark.line > _MANY_LINES:
        yield head
        return
    data = yamlfile.to_plain(node)
    if not isinstance(data, dict):
        yield head
        return
    yield Document(
        head.line, head.api_version, head.kind, head.name, head.namespace, head.labels, data, yamlfile.lines_of(node)
    )


def _head(node: Any) -> Document:
    import yaml

    from scripts.check import yamlfile

    def text(*path: str) -> str:
        found = yamlfile.node_at(node, *path)
        return str(found.value) if isinstance(found, yaml.ScalarNode) else ""

    labels = yamlfile.node_at(node, "metadata", "labels")
    plain = yamlfile.to_plain(labels) if isinstance(labels, yaml.MappingNode) else {}
    return Document(
        node.start_mark.line + 1,
        text("apiVersion"),
        text("kind"),
        text("metadata", "name"),
        text("metadata", "namespace"),
        {str(k): str(v) for k, v in plain.items()},
    )


def source_to_record(source: SourceFile) -> dict[str, Any]:
    """Return what a file holds as JSON has it."""
    return {
        "documents": [vars(d) for d in source.documents],
        "problems": [vars(p) for p in source.problems],
        "template": source.template,
    }


def source_from_record(record: Mapping[str, Any]) -> SourceFile:
    """Return what a file holds from a record."""
    return SourceFile(
        tuple(Document(**d) for d in record["documents"]),
        tuple(Problem(**p) for p in record["problems"]),
        record["template"],
    )
