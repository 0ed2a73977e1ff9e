"""How the tree hangs together: what is wrong with its files, and with who includes whom."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.check.graph import Graph, Kustomization, circles_of
from scripts.check.model import Finding, Place, Severity, Stage
from scripts.check.references import Reference, ReferenceKind, folder_target
from scripts.check.sourcefile import KUSTOMIZATION_FILES, KUSTOMIZE_GROUP, LARGE_BYTES, MAX_YAML_BYTES, Document
from scripts.check.tree import YAML_SUFFIXES, FileKind, Tree, is_below

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


@dataclass
class Structure:
    """What a look at the files found."""

    findings: list[Finding] = field(default_factory=list)
    # Files and folders that no build can use: what includes them is not built.
    broken: set[str] = field(default_factory=set)

    def add(
        self,
        rule: str,
        message: str,
        mend: str,
        place: Place,
        kustomization: str = "",
        severity: Severity = Severity.ERROR,
        subject: str = "",
    ) -> None:
        """Add a finding; an error makes its file useless to builds."""
        self.findings.append(Finding(Stage.STRUCTURE, rule, message, mend, place, subject, kustomization, severity))
        if severity is Severity.ERROR:
            self.broken.add(place.file)


def check_structure(graph: Graph, applied: set[str]) -> Structure:
    """Look at every file and reference of a tree; `applied` are the folders that Flux applies."""
    result = Structure()
    in_use = _files_in_use(graph, applied)
    for kustomization in graph.all:
        _check_fields(kustomization, result)
        _check_references(graph, kustomization, kustomization.references, result)
        if not applied:
            _check_restrictions(graph, kustomization, result)
        for file, reference in graph.plugin_references(kustomization):
            _check_reference(graph, kustomization, reference, Place(file, reference.line), result)
        _check_twice(graph, kustomization, result)
    for folder in sorted(applied):
        generated = graph.buildable(folder)
        if generated and not generated.file:
            _check_documents_of_resources(graph, generated, result)
    for kustomization in graph.all:
        _check_documents_of_resources(graph, kustomization, result)
    _check_cycles(graph, result)
    _check_files(graph, in_use, result)
    _check_orphans(graph, in_use, result)
    return result


def _files_in_use(graph: Graph, applied: set[str]) -> set[str]:
    used: set[str] = set()
    for folder in [*(k.folder for k in graph.all), *sorted(applied)]:
        built = graph.buildable(folder)
        if built:
            used.add(built.place)
            used.update(r.target for r in built.references if r.target)
            used.update(inner.target for _, inner in graph.plugin_references(built) if inner.target)
    return used


def _check_files(graph: Graph, in_use: set[str], result: Structure) -> None:
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
    for path in tree.yaml_files():
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


def _check_fields(kustomization: Kustomization, result: Structure) -> None:
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


def _check_references(
    graph: Graph, kustomization: Kustomization, references: tuple[Reference, ...], result: Structure
) -> None:
    for reference in references:
        _check_reference(graph, kustomization, reference, Place(kustomization.place, reference.line), result)


def _check_reference(
    graph: Graph, kustomization: Kustomization, reference: Reference, place: Place, result: Structure
) -> None:
    tree = graph.tree
    target = folder_target(reference)

    def add(rule: str, message: str, mend: str, severity: Severity = Severity.ERROR) -> None:
        result.add(rule, message, mend, place, kustomization.folder, severity)
        if severity is Severity.ERROR:
            # A generator's file is not what builds are told by.
            result.broken.add(kustomization.place)

    if reference.is_remote:
        message = f"`{reference.value}` is fetched from the network, so it is not checked"
        add("remote-resource", message, "keep a copy in the tree", Severity.WARNING)
        return
    if _leaves(graph, reference.target):
        add("reference-outside", f"`{reference.value}` leads out of the repository", "keep a copy in the tree")
        return
    entry = tree.entry(target)
    if entry is None:
        near = _similar(graph, target)
        mend = f"did you mean `{posixpath.relpath(near, kustomization.folder or '.')}`?" if near else "mend the path"
        add("reference-missing", f"`{reference.value}` does not exist", mend)
    elif entry.kind in (FileKind.LINK_OUTSIDE, FileKind.BROKEN_LINK):
        result.broken.add(target)
    elif entry.kind is FileKind.FOLDER:
        _check_folder_reference(graph, reference, target, add)
    elif reference.kind is ReferenceKind.COMPONENT:
        add("reference-kind", f"`{reference.value}` is a file, and a component is a folder", "name its folder")
    elif posixpath.basename(target) in KUSTOMIZATION_FILES and reference.kind is ReferenceKind.RESOURCE:
        add("reference-kind", f"`{reference.value}` is a kustomization's file", "name its folder instead")


def _check_folder_reference(
    graph: Graph, reference: Reference, target: str, add: Callable[[str, str, str], None]
) -> None:
    if reference.kind in (ReferenceKind.PATCH, ReferenceKind.CONTENT):
        add("reference-kind", f"`{reference.value}` is a folder, and a file is needed", "name the file")
        return
    if not graph.tree.kustomization_file(target):
        message = f"`{reference.value}` is a folder without a kustomization.yaml"
        add("reference-not-kustomization", message, "add one, or list the folder's files")
        return
    included = graph.kustomization(target)
    if included is None:
        return
    if included.is_component and reference.kind is ReferenceKind.RESOURCE:
        add("reference-kind", f"`{reference.value}` is a Component", "list it under `components`")
    if not included.is_component and reference.kind is ReferenceKind.COMPONENT:
        add("reference-kind", f"`{reference.value}` is not a Component", "list it under `resources`")


def _check_restrictions(graph: Graph, kustomization: Kustomization, result: Structure) -> None:
    """Find files that kustomize by itself refuses to read, in a tree that no Flux (which allows them) applies."""
    for reference in kustomization.references:
        inner = posixpath.relpath(reference.target or ".", kustomization.folder or ".")
        outside_tree = reference.target.startswith("../")  # said already
        if inner.startswith("..") and not outside_tree and graph.tree.is_file(reference.target):
            message = f"`{reference.value}` lies outside its folder: kustomize refuses it, unlike Flux"
            place = Place(kustomization.place, reference.line)
            mend = "move it into the folder, or give its folder a kustomization and name that"
            result.add("reference-restricted", message, mend, place, kustomization.folder, Severity.WARNING)


def _leaves(graph: Graph, target: str) -> bool:
    """Whether a path leads out of the repository, or is absolute."""
    place = graph.tree.absolute(target)
    return target.startswith("/") or not _normal(place).startswith(_normal(graph.tree.top))


def _normal(place: object) -> str:
    return posixpath.normpath(str(place)) + "/"


def _similar(graph: Graph, target: str) -> str:
    near = difflib.get_close_matches(target, graph.tree.children(posixpath.dirname(target)), 1, 0.75)
    return near[0] if near else ""


def _check_twice(graph: Graph, kustomization: Kustomization, result: Structure) -> None:
    """Find objects that two of a kustomization's own files define, and files that it lists twice."""
    listed: dict[str, Reference] = {}
    objects: dict[tuple[str, str, str, str], tuple[Place, Document]] = {}
    for reference in kustomization.references:
        if reference.kind not in (ReferenceKind.RESOURCE, ReferenceKind.COMPONENT) or not reference.target:
            continue
        if reference.target in listed:
            message = f"`{reference.value}` is listed twice, first in line {listed[reference.target].line}"
            place = Place(kustomization.place, reference.line)
            result.add("resource-twice", message, "remove one of them", place, kustomization.folder)
            continue
        listed[reference.target] = reference
        for document in graph.tree.source(reference.target).documents if graph.tree.is_file(reference.target) else ():
            if not document.is_object:
                continue
            key = (document.group, document.kind, document.namespace, document.name)
            place = Place(reference.target, document.line)
            if key in objects:
                message = f"is defined a second time; the first is in {objects[key][0]}"
                mend = "remove one of the two, or make the second a patch"
                subject = f"{document.kind} {document.namespace + '/' if document.namespace else ''}{document.name}"
                result.add("resource-twice", message, mend, place, kustomization.folder, subject=subject)
            objects.setdefault(key, (place, document))


def _check_documents_of_resources(graph: Graph, kustomization: Kustomization, result: Structure) -> None:
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


def _check_cycles(graph: Graph, result: Structure) -> None:
    """Find kustomizations that include themselves, each circle once."""
    onward = {k.folder: [target for _, target in graph.included(k)] for k in graph.all}
    for circle in circles_of(onward):
        _add_cycle(graph, circle, result)


def _add_cycle(graph: Graph, circle: list[str], result: Structure) -> None:
    first = graph.kustomization(circle[0])
    assert first is not None
    onward = circle[1] if len(circle) > 1 else circle[0]
    line = next((r.line for r, target in graph.included(first) if target == onward), 1)
    shown = " → ".join(f or "." for f in [*circle, circle[0]])
    result.add(
        "cycle", f"includes itself: {shown}", "take one of these references out", Place(first.place, line), first.folder
    )
    result.broken.update(k.place for k in (graph.kustomization(f) for f in circle) if k)


def _check_orphans(graph: Graph, in_use: set[str], result: Structure) -> None:
    """Find objects in a kustomization's folders that no kustomization lists."""
    misused = {folder_target(r) for k in graph.all for r in k.references if r.target}
    for path in graph.tree.yaml_files():
        if path in in_use or graph.tree.kustomization_file(posixpath.dirname(path)) == path:
            continue
        objects = [d for d in graph.tree.source(path).documents if d.is_object]
        owner = _owner(graph, path)
        # What a kustomization that can't be read lists, nobody knows; a folder that is listed is a finding of its own.
        if not objects or owner is None or owner in result.broken & set(_unreadable(graph)):
            continue
        if any(is_below(path, folder) for folder in misused if folder and not graph.tree.kustomization_file(folder)):
            continue
        result.add(
            "file-unreferenced",
            f"no kustomization lists it, so its {objects[0].kind} {objects[0].name} is never applied",
            f"list it in {owner}, or remove it",
            Place(path, objects[0].line),
            posixpath.dirname(owner),
            Severity.WARNING,
        )


def _unreadable(graph: Graph) -> Iterator[str]:
    """Yield the kustomization files whose lists can't be read."""
    for folder in graph.tree.kustomizations:
        found = graph.kustomization(folder)
        if found is None or any(isinstance(found.data.get(f), str) for f in ("resources", "components", "bases")):
            yield graph.tree.kustomization_file(folder)


def _owner(graph: Graph, path: str) -> str | None:
    """Return the kustomization file of the nearest folder around a file."""
    folder = posixpath.dirname(path)
    while True:
        found = graph.tree.kustomization_file(folder)
        if found:
            return found
        if not folder or folder == "..":
            return None
        folder = posixpath.dirname(folder)


def unusable_files(tree: Tree) -> set[str]:
    """Return the files that no program may be given: too large, links out of the tree, small ones written wrongly.

    kustomize would spend minutes on aliases that expand without end, so these are known before the first build.
    """
    refused = {
        path
        for path, entry in tree.entries.items()
        if entry.kind in (FileKind.LINK_OUTSIDE, FileKind.BROKEN_LINK)
        or (entry.size > MAX_YAML_BYTES and posixpath.splitext(path)[1] in YAML_SUFFIXES)
    }
    small = (path for path in tree.yaml_files() if tree.entries[path].size < LARGE_BYTES)
    return refused | {path for path in small if tree.source(path).problems}


def broken_builds(graph: Graph, folder: str, broken: set[str]) -> Iterator[str]:
    """Yield what keeps a folder from being built: the broken files among all that its build takes in."""
    for path in graph.files_of(folder):
        if path in broken:
            yield path
    for each in graph.closure(folder):
        built = graph.buildable(each)
        for reference in built.references if built else ():
            if folder_target(reference) in broken:
                yield reference.target
        if built is None:
            yield graph.tree.kustomization_file(each) or each
