"""Where rendering begins: what nothing else in a tree applies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scripts.check.fluxobjects import FluxObject, RenderSpec, folder_of, render_spec
from scripts.check.graph import Graph
from scripts.check.model import Place


@dataclass(frozen=True)
class Root:
    """One rendering that follows from none: how, by which Flux Kustomization, and what its objects belong to."""

    spec: RenderSpec
    flux: FluxObject | None
    scope: str


def roots(graph: Graph, written: Sequence[FluxObject]) -> list[Root]:
    """Return what nothing else applies: kustomizations on top, and Flux Kustomizations that only a person applies."""
    folders = {id(f): folder_of(graph.tree, f) for f in written}
    applied = {f for f in folders.values() if f is not None}
    included = {inner for folder in applied for inner in graph.closure(folder)[1:]}
    plain = [
        k
        for k in graph.all
        if not k.is_component
        and k.folder not in applied
        and k.folder not in included
        and not _includers(graph, k.folder)
    ]
    bare = _bootstrap_folders(graph, written, applied | included)
    graph.assumed |= bare
    files = {folder: set(graph.files_of(folder)) for folder in {*applied, *bare, *(k.folder for k in plain)}}
    tops = [*(k.folder for k in plain), *sorted(bare)]
    found = [Root(RenderSpec(folder), None, folder or ".") for folder in tops]
    for flux in written:
        own = folders[id(flux)]
        parents = [f for f in written if f is not flux and folders[id(f)] is not None and folders[id(f)] != own]
        if any(flux.place.file in files[folder] for folder in tops):
            continue
        if any(flux.place.file in files[folders[id(f)] or ""] for f in parents):
            continue
        spec = render_spec(flux, own if own is not None else "\0")
        found.append(Root(spec, flux, _folder_of_file(flux.place)))
    return found


def _bootstrap_folders(graph: Graph, written: Sequence[FluxObject], covered: set[str]) -> set[str]:
    """Return the folders without a kustomization that hold Flux Kustomizations and that nothing applies.

    `flux bootstrap` is called with such a folder, and Flux generates a kustomization for all that is in it.
    """
    found: set[str] = set()
    for flux in sorted(written, key=lambda f: f.place.file):
        folder = flux.place.file.rpartition("/")[0]
        around = {folder, *(folder[:i] for i, c in enumerate(folder) if c == "/"), ""}
        taken = any(f in covered or f in found or graph.tree.kustomization_file(f) for f in around if f or not folder)
        if not taken and not graph.tree.kustomization_file(folder):
            found.add(folder)
    return found


def _folder_of_file(place: Place) -> str:
    """Return the folder of a file: what stands side by side belongs to one cluster."""
    return place.file.rpartition("/")[0] or "."


def _includers(graph: Graph, folder: str) -> bool:
    return any(k.folder != folder for k in graph.includers.get(folder, []))
