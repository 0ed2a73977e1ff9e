"""How the tree hangs together: what is wrong with who includes whom."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Callable, Iterator, Set

from scripts.check.filechecks import check_documents_of_resources, check_fields, check_files
from scripts.check.graph import Graph, Kustomization, circles_of
from scripts.check.model import Place, Severity, Structure
from scripts.check.references import Reference, ReferenceKind, folder_target
from scripts.check.sourcefile import KUSTOMIZATION_FILES, Document
from scripts.check.tree import FileKind, is_below


def check_structure(graph: Graph, applied: set[str]) -> Structure:
    """Look at every file and reference of a tree; `applied` are the folders that Flux applies."""
    result = Structure()
    in_use = _files_in_use(graph, applied)
    for kustomization in graph.all:
        check_fields(kustomization, result)
        _check_references(graph, kustomization, kustomization.references, result)
        if not applied:
            _check_restrictions(graph, kustomization, result)
        for file, reference in graph.plugin_references(kustomization):
            _check_reference(graph, kustomization, reference, Place(file, reference.line), result)
        _check_twice(graph, kustomization, result)
    for folder in sorted(applied):
        generated = graph.buildable(folder)
        if generated and not generated.file:
            check_documents_of_resources(graph, generated, result)
    for kustomization in graph.all:
        check_documents_of_resources(graph, kustomization, result)
    _check_cycles(graph, result)
    check_files(graph, in_use, result)
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


def broken_builds(graph: Graph, folder: str, broken: Set[str]) -> Iterator[str]:
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
