"""Patches that match nothing: kustomize passes over one whose target selects no object, without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.check import yamlfile
from scripts.check.fluxobjects import FluxObject, RenderSpec
from scripts.check.graph import Graph, Kustomization
from scripts.check.model import Finding, Place, Resource, Severity, Stage
from scripts.check.references import ReferenceKind

if TYPE_CHECKING:
    from scripts.check.build import Rendering

# Fields that bring in objects which only a build can know.
_OPAQUE = ("helmCharts", "helmChartInflationGenerator")
_MEND = "mend the target's kind, name or namespace, or remove the patch"


@dataclass(frozen=True)
class _Candidate:
    """An object that a patch could have met, before or after its names were changed."""

    api_version: str
    kind: str
    name: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str] | None


def unmatched_patches(graph: Graph, spec: RenderSpec, resources: Sequence[Resource] | None) -> list[Finding]:
    """Return a finding per patch that matches nothing; `resources` is what was rendered, if it could be."""
    findings = []
    for folder in graph.closure(spec.folder):
        kustomization = graph.buildable(folder)
        if kustomization is None:
            continue
        # A Component works on what its includer has.
        scope = graph.closure(spec.folder) if kustomization.is_component else graph.closure(folder)
        if not _is_known(graph, scope):
            continue
        candidates = [*_written(graph, scope), *_rendered(graph, scope, resources)]
        renamed = resources is None and any(_renames(graph.buildable(f)) for f in scope)
        for target, place in _targets(graph, kustomization, with_objects=resources is None):
            if not any(_matches(target, c, renamed) for c in candidates):
                findings.append(_finding(spec, target, place))
    return findings


def unmatched_flux_patches(graph: Graph, spec: RenderSpec, rendering: Rendering, flux: FluxObject) -> list[Finding]:
    """Return a warning per patch of a Flux Kustomization that matches nothing of what its folder rendered to."""
    scope = graph.closure(spec.folder)
    if not rendering.built or not spec.settings.get("patches") or not _is_known(graph, scope):
        return []
    candidates = [*_written(graph, scope), *_rendered(graph, scope, rendering.resources)]
    return [
        _finding(spec, target, flux.place_of(f"/spec/patches/{index}"), flux.subject)
        for index, target in _flux_targets(spec)
        # A patch that a parent gives to all its children is meant for those that it fits.
        if f"/spec/patches/{index}" in flux.lines and not any(_matches(target, c, False) for c in candidates)
    ]


def _finding(spec: RenderSpec, target: Mapping[str, Any], place: Place, flux: str = "") -> Finding:
    shown = ", ".join(f"{k}={v}" for k, v in target.items() if v)
    # A target that names no object is meant for whatever may come.
    named = bool(target.get("name")) and not flux
    what = "a patch of the Flux Kustomization" if flux else "the patch"
    return Finding(
        Stage.BUILD, "patch-no-match", f"{what} matches nothing: no object has {shown}", _MEND, place,
        kustomization=spec.folder, severity=Severity.ERROR if named else Severity.WARNING,
    )  # fmt: skip


def _is_known(graph: Graph, scope: Iterable[str]) -> bool:
    """Whether every object of some folders can be known without a build."""
    for folder in scope:
        kustomization = graph.buildable(folder)
        if kustomization is None:
            return False
        if kustomization.remote or any(kustomization.data.get(field) for field in _OPAQUE):
            return False
        for reference in kustomization.references:
            # A file that `flux bootstrap` is yet to fill.
            is_file = reference.kind is ReferenceKind.RESOURCE and graph.tree.is_file(reference.target)
            if is_file and not graph.tree.source(reference.target).documents:
                return False
            if reference.kind is ReferenceKind.PLUGIN:
                if not graph.tree.is_file(reference.target):
                    return False
                if any(d.api_version != "builtin" for d in graph.tree.source(reference.target).documents):
                    return False
    return True


def _written(graph: Graph, scope: Iterable[str]) -> Iterator[_Candidate]:
    for folder in scope:
        kustomization = graph.buildable(folder)
        if kustomization is None:
            continue
        for reference in kustomization.references:
            if reference.kind in (ReferenceKind.RESOURCE, ReferenceKind.PLUGIN) and graph.tree.is_file(
                reference.target
            ):
                for d in graph.tree.source(reference.target).documents:
                    kind = d.kind.removesuffix("Generator") if d.api_version == "builtin" else d.kind
                    version = "v1" if d.api_version == "builtin" else d.api_version
                    yield _Candidate(version, kind, d.name, d.namespace, d.labels, None)
        for field, kind in (("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")):
            for generator in kustomization.data.get(field) or []:
                if isinstance(generator, Mapping):
                    options = generator.get("options") or {}
                    yield _Candidate(
                        "v1", kind, str(generator.get("name", "")), str(generator.get("namespace") or ""),
                        options.get("labels") or {}, None,
                    )  # fmt: skip


def _rendered(graph: Graph, scope: Sequence[str], resources: Sequence[Resource] | None) -> Iterator[_Candidate]:
    if resources is None:
        return
    files = {f for folder in scope for f in _own_files(graph, folder)}
    for resource in resources:
        if resource.place.file in files:
            metadata = resource.data.get("metadata") or {}
            yield _Candidate(
                resource.api_version, resource.kind, resource.name, resource.namespace,
                metadata.get("labels") or {}, metadata.get("annotations") or {},
            )  # fmt: skip


def _own_files(graph: Graph, folder: str) -> Iterator[str]:
    kustomization = graph.buildable(folder)
    if kustomization:
        yield kustomization.place
        yield from (r.target for r in kustomization.references if r.target)


def _renames(kustomization: Kustomization | None) -> bool:
    return kustomization is not None and any(kustomization.data.get(f) for f in ("namePrefix", "nameSuffix"))


def _targets(
    graph: Graph, kustomization: Kustomization, with_objects: bool
) -> Iterator[tuple[Mapping[str, Any], Place]]:
    """Yield each patch's target with its place; the objects that strategic merge patches name only if asked for."""
    for field in ("patches", "patchesJson6902", "patchesStrategicMerge"):
        for index, patch in enumerate(kustomization.data.get(field) or []):
            place = Place(kustomization.place, kustomization.document.line_of(f"/{field}/{index}"))
            if isinstance(patch, Mapping) and isinstance(patch.get("target"), Mapping):
                yield patch["target"], place
            elif with_objects:
                yield from _objects_named(graph, kustomization, patch, place)


def _objects_named(
    graph: Graph, kustomization: Kustomization, patch: Any, place: Place
) -> Iterator[tuple[Mapping[str, Any], Place]]:
    text = patch.get("patch") if isinstance(patch, Mapping) else patch
    path = patch.get("path") if isinstance(patch, Mapping) else patch
    reference = next((r for r in kustomization.references if r.value == path), None)
    if reference and graph.tree.is_file(reference.target):
        for d in graph.tree.source(reference.target).documents:
            if d.kind and d.name:
                yield _target(d.api_version, d.kind, d.name), Place(reference.target, d.line)
    elif isinstance(text, str) and "\n" in text:
        for node in yamlfile.compose(text)[0]:
            data = yamlfile.to_plain(node)
            if isinstance(data, dict) and isinstance(data.get("metadata"), dict) and data["metadata"].get("name"):
                yield (
                    _target(str(data.get("apiVersion", "")), str(data.get("kind", "")), data["metadata"]["name"]),
                    place,
                )


def _target(api_version: str, kind: str, name: str) -> dict[str, str]:
    group, _, version = api_version.rpartition("/")
    return {"group": group, "version": version, "kind": kind, "name": name}


def _flux_targets(spec: RenderSpec) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for index, patch in enumerate(spec.settings.get("patches") or []):
        if isinstance(patch, Mapping) and isinstance(patch.get("target"), Mapping):
            yield index, patch["target"]


def _matches(target: Mapping[str, Any], candidate: _Candidate, renamed: bool) -> bool:
    group, _, version = candidate.api_version.rpartition("/")
    if not all(
        _fits(str(target.get(field) or ""), value)
        for field, value in (("group", group), ("version", version), ("kind", candidate.kind))
    ):
        return False
    name = str(target.get("name") or "")
    if not _fits(name, candidate.name) and not (renamed and candidate.name and candidate.name in name):
        return False
    # An object without a namespace may get one on the way.
    if candidate.namespace and not _fits(str(target.get("namespace") or ""), candidate.namespace):
        return False
    if not _selects(str(target.get("labelSelector") or ""), candidate.labels):
        return False
    return candidate.annotations is None or _selects(str(target.get("annotationSelector") or ""), candidate.annotations)


def _fits(pattern: str, value: str) -> bool:
    """Whether a target's field, which is a regular expression, fits a whole value."""
    if not pattern or pattern == value:
        return True
    try:
        return re.fullmatch(pattern, value) is not None
    except re.error:
        return True


def _selects(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes an object; what isn't understood is taken to."""
    if not selector:
        return True
    for part in re.split(r",(?![^(]*\))", selector):
        term = part.strip()
        match = re.fullmatch(r"([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)", term)
        if match:
            key, operator, value = match.groups()
            if (labels.get(key) == value) == (operator == "!="):
                return False
            continue
        match = re.fullmatch(r"([\w./-]+)\s+(in|notin)\s+\(([^)]*)\)", term)
        if match:
            values = {v.strip() for v in match.group(3).split(",")}
            if (labels.get(match.group(1)) in values) == (match.group(2) == "notin"):
                return False
            continue
        if re.fullmatch(r"![\w./-]+", term):
            if term[1:] in labels:
                return False
        elif re.fullmatch(r"[\w./-]+", term) and term not in labels:
            return False
    return True
