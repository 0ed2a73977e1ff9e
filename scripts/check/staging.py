"""A folder to build in: the kustomization as kustomize-controller would write it, everything else a link to the tree.

Flux changes the kustomization file of the folder that it applies (namespace, patches, images, components) and builds that.
Here the changed file stands in a temporary folder that looks like the real one from where it stands: each path that the
kustomization can name leads, by a link, to the tree. So nothing in the tree is written, and builds run side by side.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.check.fluxobjects import RenderSpec
from scripts.check.graph import Graph, Kustomization
from scripts.check.references import ReferenceKind, every_string
from scripts.check.sourcefile import KUSTOMIZATION_FILES
from scripts.check.tree import join


def stage(graph: Graph, spec: RenderSpec, kustomization: Kustomization, into: Path) -> Path:
    """Lay out a build of a folder below a temporary one and return the folder to build."""
    tree = graph.tree
    data = effective_kustomization(graph, spec, kustomization)
    real = Path(os.path.normpath(tree.absolute(spec.folder)))
    inside = real.relative_to(tree.top)
    staged = into / inside
    staged.mkdir(parents=True, exist_ok=True)
    (staged / KUSTOMIZATION_FILES[0]).write_text(json.dumps(data))
    with os.scandir(real) as children:
        for child in children:
            if child.name not in KUSTOMIZATION_FILES:
                (staged / child.name).symlink_to(child.path)
    sources: list[Mapping[str, Any]] = [data]
    for reference in kustomization.references:
        if reference.kind is ReferenceKind.PLUGIN and tree.is_file(reference.target):
            sources += [d.data for d in tree.source(reference.target).documents if d.data]
    _link_what_is_named(into, tree.top, inside, (text for source in sources for text in every_string(source)))
    return staged


def _link_what_is_named(into: Path, top: Path, inside: Path, texts: Iterable[str]) -> None:
    """Link, for each text that is a path out of the folder, the first step that leaves the way to the folder."""
    way = inside.parts
    for text in texts:
        if not text.startswith(".."):
            continue
        parts = Path(os.path.normpath(inside / text)).parts
        if not parts or parts[0] == "..":
            continue
        common = 0
        while common < min(len(parts), len(way)) and parts[common] == way[common]:
            common += 1
        if common == len(parts) or common == len(way):
            continue
        step = Path(*parts[: common + 1])
        if not (into / step).is_symlink() and os.path.lexists(top / step):
            (into / step).symlink_to(top / step)


def effective_kustomization(graph: Graph, spec: RenderSpec, kustomization: Kustomization) -> dict[str, Any]:
    """Return the kustomization that kustomize-controller would build, with origins asked for."""
    data: dict[str, Any] = dict(kustomization.data)
    flux = spec.settings
    for field, name in (("targetNamespace", "namespace"), ("namePrefix", "namePrefix"), ("nameSuffix", "nameSuffix")):
        if flux.get(field):
            data[name] = flux[field]
    for field in ("patches", "patchesStrategicMerge", "patchesJson6902"):
        if flux.get(field):
            extra = [_as_kustomize_takes_it(field, patch) for patch in flux[field]]
            data[field] = [*(data.get(field) or []), *extra]
    components = [
        c
        for c in flux.get("components") or []
        if not flux.get("ignoreMissingComponents") or graph.tree.is_folder(join(spec.folder, str(c)))
    ]
    if components:
        data["components"] = [*(data.get("components") or []), *components]
    if flux.get("images"):
        data["images"] = _merged_images(data.get("images") or [], flux["images"])
    data["buildMetadata"] = sorted({*(data.get("buildMetadata") or []), "originAnnotations"})
    return data


def _as_kustomize_takes_it(field: str, patch: Any) -> Any:
    if field == "patchesJson6902" and isinstance(patch, Mapping) and not isinstance(patch.get("patch"), str):
        return {**patch, "patch": json.dumps(patch.get("patch"))}
    if field == "patchesStrategicMerge" and not isinstance(patch, str):
        return json.dumps(patch)
    return patch


def _merged_images(written: list[Any], flux: list[Any]) -> list[Any]:
    """Return a kustomization's images with Flux's over them: name and version are each replaced as a whole."""
    merged = [dict(image) for image in written if isinstance(image, Mapping)]
    for image in flux:
        same = next((m for m in merged if m.get("name") == image.get("name")), None)
        if same is None:
            merged.append(dict(image))
            continue
        if image.get("newName"):
            same["newName"] = image["newName"]
        if image.get("newTag") or image.get("digest"):
            for field in ("newTag", "digest"):
                same.pop(field, None)
                if image.get(field):
                    same[field] = image[field]
    return merged
