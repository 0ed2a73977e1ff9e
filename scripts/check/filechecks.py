"""What is wrong with files by themselves: how they are written, a kustomization's fields, documents that are no objects."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Mapping
from typing import Any

from scripts.check.graph import Graph, Kustomization
from scripts.check.model import Place, Severity, Structure
from scripts.check.references import ReferenceKind
from scripts.check.sourcefile import KUSTOMIZATION_FILES, KUSTOMIZE_GROUP, MAX_YAML_BYTES, may_expand
from scripts.check.tree import FileKind, Tree

# The fields of a kustomization, deprecated ones included: https://kubectl.docs.kubernetes.io/references/kustomize/
_LISTS = {
    "resources", "bases", "components", "generators", "transformers", "validators", "patches", "patchesStrategicMerge",
    "patchesJson6902", "crds", "configurations", "configMapGenerator", "secretGenerator", "replacements", "images",
    "imageTags", "replicas", "labels", "vars", "helmCharts", "helmChartInflationGenerator", "buildMetadata",
}  # fmt: skip
_MAPPINGS = {
    "commonLabels",
    "commonAnnotations",
    "generatorOptions",
    "openapi",
    "helmGlobals",
    "sortOptions",
    "metadata",
}
_TEXTS = {"apiVersion", "kind", "namespace", "namePrefix", "nameSuffix"}
_FIELDS = _LISTS | _MAPPINGS | _TEXTS
_KINDS = ("Kustomization", "Component")


def check_files(graph: Graph, in_use: set[str], result: Structure) -> None:
    """Report what is wrong with how files are written; those that nothing uses are only warned about."""
    tree = graph.tree
    for path, entry in sorted(tree.entries.items()):
        if tree.in_chart(path):
            continue
        used = path in in_use or posixpath.basename(path).startswith("kustomization.")
        severity = Severity.ERROR if used else Severity.WARNING
        if entry.kind is FileKind.LINK_OUTSIDE:
            message = f"is a link out of the tree, to {entry.link}"
            result.add("link-outside", message, "put the file itself there", Place(path), severity=severity)
        elif entry.kind is FileKind.BROKEN_LINK:
            message = f"is a link to nothing: {entry.link}"
            result.add("link-broken", message, "mend the link or remove it", Place(path), severity=severity)
    for path in _read_as_yaml(graph):
        source = tree.source(path)
        used = path in in_use or tree.kustomization_file(posixpath.dirname(path)) == path
        if source.template and not used:
            continue
        is_kustomization = tree.kustomization_file(posixpath.dirname(path)) == path
        if is_kustomization and not source.problems and graph.kustomization(posixpath.dirname(path)) is None:
            what = "is not a mapping" if source.documents else "is empty"
            result.add("kustomization-empty", what, "list its resources", Place(path), posixpath.dirname(path))
        for problem in source.problems:
            severity = Severity.ERROR if used else Severity.WARNING
            result.add(problem.rule, problem.message, problem.mend, Place(path, problem.line), severity=severity)


def check_fields(kustomization: Kustomization, result: Structure) -> None:
    """Report what kustomize wouldn't take of a kustomization's fields."""
    document = kustomization.document

    def add(rule: str, message: str, mend: str, pointer: str, severity: Severity = Severity.ERROR) -> None:
        place = Place(kustomization.file, document.line_of(pointer))
        result.add(rule, message, mend, place, kustomization.folder, severity)

    kind, version = document.kind, document.api_version
    if kind and kind not in _KINDS:
        add("kustomization-kind", f"its kind is {kind}", f"write kind: {_KINDS[0]}", "/kind")
    elif version and version.rpartition("/")[0] != KUSTOMIZE_GROUP:
        mend = f"write apiVersion: {KUSTOMIZE_GROUP}/v1beta1"
        add("kustomization-kind", f"its apiVersion is {version}", mend, "/apiVersion")
    if not set(kustomization.data) - {"apiVersion", "kind", "metadata"}:
        add("kustomization-empty", "says nothing but its kind", "list its resources", "")
    for name, value in kustomization.data.items():
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, 1)
            mend = f"did you mean `{near[0]}`?" if near else "mend its name or its place, or remove it"
            add("kustomization-unknown-field", f"kustomize knows no field `{name}`", mend, f"/{name}")
            continue
        expected = _expected_type(name, value)
        if expected:
            shown = _shown_type(value)
            message = f"`{name}` is {shown} instead of {expected}"
            add("kustomization-type", message, f"write `{name}` as {expected}", f"/{name}")
    if kustomization.documents > 1:
        message = "holds several documents: kustomize reads the first only"
        add("kustomization-documents", message, "make it one document", "")


def _shown_type(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, Mapping):
        return "a mapping"
    return "text" if isinstance(value, str) else f"`{value}`"


def _expected_type(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in _LISTS and not isinstance(value, list):
        return "a list"
    if name in _MAPPINGS and not isinstance(value, Mapping):
        return "a mapping"
    if name in _TEXTS and not isinstance(value, str):
        return "text"
    if name in ("resources", "components") and any(not isinstance(v, str) for v in value):
        return "a list of paths"
    return ""


def check_documents_of_resources(graph: Graph, kustomization: Kustomization, result: Structure) -> None:
    """Find documents among the resources that are no objects."""
    for reference in kustomization.references:
        if reference.kind is not ReferenceKind.RESOURCE or not graph.tree.is_file(reference.target):
            continue
        source = graph.tree.source(reference.target)
        if posixpath.basename(reference.target) in KUSTOMIZATION_FILES:
            continue
        for document in source.documents:
            place = Place(reference.target, document.line)
            missing = [
                name
                for name, value in (
                    ("apiVersion", document.api_version), ("kind", document.kind), ("metadata.name", document.name)
                )
                if not value
            ]  # fmt: skip
            # A name that the API server makes up is given to nothing that Git holds.
            if missing:
                mend = "complete it, or leave the file out of `resources`"
                message = f"is no object: it has no {' and no '.join(missing)}"
                result.add("object-incomplete", message, mend, place, kustomization.folder)
        filled_later = posixpath.basename(reference.target).startswith("gotk-")  # by `flux bootstrap`
        if not source.documents and not source.problems and not filled_later:
            result.add(
                "file-empty", "holds no object", "fill it, or leave it out of `resources`", Place(reference.target),
                kustomization.folder, Severity.WARNING,
            )  # fmt: skip


def unusable_files(graph: Graph) -> frozenset[str]:
    """Return the files that no program may be given: too large, links out of the tree, endless aliases.

    kustomize would spend minutes on aliases that expand without end, so these are known before the first build; only
    files that have aliases are read for it.
    """
    tree = graph.tree
    unusable = {
        path for path, entry in tree.entries.items() if entry.kind in (FileKind.LINK_OUTSIDE, FileKind.BROKEN_LINK)
    }
    for path in _read_as_yaml(graph):
        size = tree.entries[path].size
        if size > MAX_YAML_BYTES or (_is_looked_at(tree, path) and tree.source(path).problems):
            unusable.add(path)
    return frozenset(unusable)


def _is_looked_at(tree: Tree, path: str) -> bool:
    return may_expand(tree.absolute(path).read_text(errors="replace"))


def _read_as_yaml(graph: Graph) -> list[str]:
    """Return every YAML file, and those without its suffix that a kustomization lists as if they were."""
    tree = graph.tree
    listed = {
        r.target
        for k in graph.all
        for r in k.references
        if r.kind is not ReferenceKind.CONTENT and tree.is_file(r.target) and not tree.in_chart(r.target)
    }
    return sorted({*tree.yaml_files(), *listed})
