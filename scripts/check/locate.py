"""Where in the tree a field of a rendered object was written: in the object's file, or in a patch that put it there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.check import yamlfile
from scripts.check.graph import Graph
from scripts.check.model import Place, Resource
from scripts.check.references import ReferenceKind


def line_of_field(graph: Graph, folder: str, resource: Resource, pointer: str) -> Place:
    """Return the place of a field, given by its JSON pointer, or of the deepest part of its path that is written."""
    path = resource.place.file
    # A chart's file is a template, whose lines are not those of what it renders to.
    if resource.template or not graph.tree.is_file(path):
        return resource.place
    nodes, _ = yamlfile.compose(graph.tree.absolute(path).read_text(errors="replace"))
    own = next((n for n in nodes if n.start_mark.line + 1 == resource.place.line), None)
    if own is None or not pointer:
        return resource.place
    if yamlfile.reaches(own, pointer):
        return Place(path, yamlfile.line_at(own, pointer))
    for place, node, offset in _patches(graph, folder, resource):
        if yamlfile.reaches(node, pointer):
            return Place(place.file, offset + yamlfile.line_at(node, pointer))
    return Place(path, yamlfile.line_at(own, pointer))


def _patches(graph: Graph, folder: str, resource: Resource) -> Iterator[tuple[Place, Any, int]]:
    """Yield the strategic merge patches that name an object, each with the line that its text begins after."""
    for each in graph.closure(folder):
        kustomization = graph.buildable(each)
        if kustomization is None:
            continue
        for reference in kustomization.references:
            if reference.kind is ReferenceKind.PATCH and graph.tree.is_file(reference.target):
                text = graph.tree.absolute(reference.target).read_text(errors="replace")
                for node in yamlfile.compose(text)[0]:
                    if _names(node, resource):
                        yield Place(reference.target), node, 0
        for field in ("patches", "patchesStrategicMerge"):
            for index, patch in enumerate(kustomization.data.get(field) or []):
                inline = patch.get("patch") if isinstance(patch, dict) else patch
                pointer = f"/{field}/{index}/patch" if isinstance(patch, dict) else f"/{field}/{index}"
                if isinstance(inline, str) and "\n" in inline:
                    for node in yamlfile.compose(inline)[0]:
                        if _names(node, resource):
                            yield Place(kustomization.place), node, kustomization.document.line_of(pointer)


def _names(node: Any, resource: Resource) -> bool:
    kind = yamlfile.node_at(node, "kind")
    name = yamlfile.node_at(node, "metadata", "name")
    return bool(kind and kind.value == resource.kind and name and str(name.value) in resource.name)
