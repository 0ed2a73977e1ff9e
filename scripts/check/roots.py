"""Where rendering begins: what nothing else in a tree applies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.check.fluxobjects import FluxObject, RenderSpec, folder_of, render_spec
from scripts.check.graph import Graph
from scripts.check.model import Place
from scripts.check.references import ReferenceKind
from scripts.check.sourcefile import FLUX_KUSTOMIZE_GROUP


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


def may_patch_kustomizations(graph: Graph, written: Sequence[FluxObject], tops: Iterable[str]) -> bool:
    """Whether any patch that the builds of some folders take in may be one of Flux Kustomizations, as it is written.

    A patch in a file is taken for one if the file names their group.
    """
    entered = [built for top in tops for folder in graph.closure(top) if (built := graph.buildable(folder))]
    for source in [*(k.data for k in entered), *(f.spec for f in written)]:
        for field in ("patches", "patchesJson6902", "patchesStrategicMerge"):
            patches = source.get(field)
            if any(_may_mean_kustomizations(patch) for patch in (patches if isinstance(patches, list) else [])):
                return True
    files = {r.target for k in entered for r in k.references if r.kind is ReferenceKind.PATCH}
    texts = (graph.tree.absolute(f).read_text(errors="replace") for f in files if graph.tree.is_file(f))
    return any(FLUX_KUSTOMIZE_GROUP in text for text in texts)


def _may_mean_kustomizations(patch: Any) -> bool:
    target = patch.get("target") if isinstance(patch, Mapping) else None
    kind = target.get("kind") if isinstance(target, Mapping) else None
    # A target's kind is a regular expression; without one the patch's own says what it means.
    return "Kustomization" in str(kind) or "*" in str(kind) if kind else "Kustomization" in str(patch)


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
