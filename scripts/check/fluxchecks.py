"""What is wrong with what Flux is told: paths, sources, dependencies, and objects that two Kustomizations apply."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scripts.check.fluxobjects import (
    DEFAULT_NAMESPACE,
    SOURCE_KINDS,
    FluxObject,
    artifacts_of,
    dependencies_of,
    folder_of,
    path_of,
    source_of,
)
from scripts.check.graph import Graph, circles_of
from scripts.check.kinds import is_cluster_scoped
from scripts.check.model import Finding, Place, Resource, Severity, Stage
from scripts.check.patches import unmatched_flux_patches
from scripts.check.renderer import Applied, Renderings

# Where the chart of a HelmRelease comes from.
_CHART_SOURCES = (("chart", "spec", "sourceRef"), ("chartRef",))


@dataclass(frozen=True)
class Sources:
    """The sources of a tree, and which of them are repositories that are not this one."""

    known: frozenset[tuple[str, str, str]]
    # Those that something takes a path of this tree from, written in it or not, and their addresses.
    own: frozenset[tuple[str, str, str]]
    own_urls: frozenset[str]
    urls: Mapping[tuple[str, str, str], str]

    def is_elsewhere(self, source: tuple[str, str, str]) -> bool:
        """Whether a source holds something else than this tree, so that its paths can't be looked for here."""
        if source[0] != "GitRepository":
            return source[0] not in ("", "ExternalArtifact") and source in self.known
        url = self.urls.get(source)
        return bool(url and self.own and source not in self.own and url not in self.own_urls)


def check_flux(graph: Graph, renderings: Renderings) -> list[Finding]:
    """Look at every Flux object that was met."""
    findings: list[Finding] = []
    objects = renderings.flux
    sources = sources_of(graph, objects)
    names = {(o.namespace, o.name) for o in objects if o.is_kustomization}
    for flux in objects:
        if flux.is_kustomization:
            findings += _check_kustomization(graph, flux, names, sources)
        elif flux.kind == "HelmRelease":
            findings += filter(None, [missing_source(flux, sources)])
    findings += _check_dependency_circles(objects)
    findings += _check_applied_twice(renderings.applied)
    for each in renderings.applied:
        for flux in each.flux[:1]:
            findings += unmatched_flux_patches(graph, each.rendering.spec, each.rendering, flux)
    return findings


def sources_of(graph: Graph, objects: Sequence[FluxObject]) -> Sources:
    """Return the sources of a tree."""
    urls = {
        (o.kind, o.namespace, o.name): str(o.spec.get("url") or o.spec.get("bucketName") or "")
        for o in objects
        if o.kind in SOURCE_KINDS
    }
    own = {
        source_of(o)
        for o in objects
        if o.is_kustomization and o.spec.get("path") and folder_of(graph.tree, o) is not None
    }
    made = {("ExternalArtifact", o.namespace, name) for o in objects for name in artifacts_of(o)}
    own_urls = frozenset(urls[source] for source in own if source in urls)
    return Sources(frozenset({*urls, *made}), frozenset(own), own_urls, urls)


def _finding(flux: FluxObject, rule: str, message: str, mend: str, pointer: str, warning: bool = False) -> Finding:
    severity = Severity.WARNING if warning else Severity.ERROR
    return Finding(Stage.STRUCTURE, rule, message, mend, flux.place_of(pointer), flux.subject, severity=severity)


def _check_kustomization(
    graph: Graph, flux: FluxObject, names: set[tuple[str, str]], sources: Sources
) -> list[Finding]:
    findings = []
    source = source_of(flux)
    path = str(flux.spec.get("path") or "./")
    if folder_of(graph.tree, flux) is None:
        if sources.is_elsewhere(source) or not path_of(flux):
            message = f"its path {path} lies in {source[0]} {source[2]}, which is not this tree: not rendered"
            mend = "check it where that source's files are"
            findings.append(_finding(flux, "flux-path-elsewhere", message, mend, "/spec/path", warning=True))
        else:
            message = f"its path {path} does not exist"
            findings.append(_finding(flux, "flux-path-missing", message, "mend spec.path", "/spec/path"))
    if not source[2]:
        mend = "name the GitRepository, OCIRepository or Bucket in spec.sourceRef"
        findings.append(_finding(flux, "flux-source-missing", "names no source", mend, "/spec"))
    # `flux bootstrap` makes the source it is called with; Git holds it only once that was done.
    elif source not in sources.known and source[1:] != (DEFAULT_NAMESPACE, DEFAULT_NAMESPACE):
        message = f"its source, {source[0]} {source[1]}/{source[2]}, is not in the tree"
        findings.append(
            _finding(flux, "flux-source-missing", message, "add it, or mend spec.sourceRef", "/spec/sourceRef")
        )
    for namespace, name, pointer in dependencies_of(flux):
        if (namespace, name) not in names:
            message = f"depends on Kustomization {namespace}/{name}, which is not in the tree"
            mend = "mend the name in spec.dependsOn, or remove it"
            findings.append(_finding(flux, "flux-dependency-missing", message, mend, pointer))
    return findings


def missing_source(flux: FluxObject, sources: Sources) -> Finding | None:
    """Return that the source of a HelmRelease's chart is not in the tree, if so."""
    for steps in _CHART_SOURCES:
        reference: object = flux.spec
        for step in steps:
            reference = reference.get(step) if isinstance(reference, Mapping) else None
        if isinstance(reference, Mapping) and reference.get("name"):
            key = (
                str(reference.get("kind")),
                str(reference.get("namespace") or flux.namespace),
                str(reference["name"]),
            )
            # `flux bootstrap` makes the one that it is called with.
            if key not in sources.known and key[1:] != (DEFAULT_NAMESPACE, DEFAULT_NAMESPACE):
                message = f"its chart's source, {key[0]} {key[1]}/{key[2]}, is not in the tree"
                pointer = "/spec/" + "/".join(steps)
                mend = "add it, or mend the reference"
                return _finding(flux, "flux-source-missing", message, mend, pointer, warning=True)
    return None


def _check_dependency_circles(objects: Iterable[FluxObject]) -> list[Finding]:
    kustomizations = [o for o in objects if o.is_kustomization]
    by_name: dict[tuple[str, str], list[FluxObject]] = {}
    for flux in kustomizations:
        by_name.setdefault((flux.namespace, flux.name), []).append(flux)
    numbers = {id(flux): index for index, flux in enumerate(kustomizations)}
    onward = {
        index: [
            numbers[id(_nearest(flux, by_name[(namespace, name)]))]
            for namespace, name, _ in dependencies_of(flux)
            if (namespace, name) in by_name
        ]
        for index, flux in enumerate(kustomizations)
    }
    findings = []
    for circle in circles_of(onward):
        flux = kustomizations[circle[0]]
        following = kustomizations[circle[1] if len(circle) > 1 else circle[0]]
        pointer = next(
            (p for ns, n, p in dependencies_of(flux) if (ns, n) == (following.namespace, following.name)), ""
        )
        shown = " → ".join(kustomizations[i].name for i in [*circle, circle[0]])
        message = f"depends on itself: {shown}; none of them is ever applied"
        findings.append(_finding(flux, "flux-dependency-cycle", message, "take one of these out of dependsOn", pointer))
    return findings


def _nearest(flux: FluxObject, candidates: list[FluxObject]) -> FluxObject:
    """Return the object of the same cluster: of the same scope, then of the nearest file."""

    def nearness(other: FluxObject) -> tuple[bool, int]:
        shared = posixpath.commonpath([f"/{flux.place.file}", f"/{other.place.file}"])
        return other.scope == flux.scope, len(shared)

    return max(candidates, key=nearness)


def _check_applied_twice(applied: Iterable[Applied]) -> list[Finding]:
    """Find objects that two Flux Kustomizations of one cluster apply: each undoes what the other did."""
    owners: dict[tuple[str, ...], tuple[Applied, Resource]] = {}
    findings = []
    for each in applied:
        if not each.flux:
            continue
        namespace = str(each.rendering.spec.settings.get("targetNamespace") or "")
        for resource in each.rendering.resources:
            group = resource.api_version.rpartition("/")[0]
            for scope in each.scopes:
                key = (scope, group, resource.kind, resource.namespace or namespace, resource.name)
                first = owners.setdefault(key, (each, resource))
                if first[0] is each or not resource.name:
                    continue
                mine, other = ", ".join(each.names), ", ".join(first[0].names)
                findings.append(
                    Finding(
                        Stage.STRUCTURE,
                        "applied-twice",
                        f"is applied by {other} and by {mine}: each undoes what the other did",
                        "leave it to one of them",
                        resource.place,
                        resource.subject,
                        each.rendering.spec.folder,
                    )
                )
                break
    return findings


def check_namespaces(graph: Graph, applied: Iterable[Applied], crds: Mapping[tuple[str, str], bool]) -> list[Finding]:
    """Find overlays whose objects have no namespace."""
    findings = []
    for each in applied:
        built = graph.buildable(each.rendering.spec.folder)
        if built is None or each.rendering.spec.targets_namespace:
            continue
        # What Flux applies without a namespace lands where the Kustomization itself is.
        bare = [
            r
            for r in each.rendering.resources
            if not r.namespace and is_cluster_scoped(r.api_version, r.kind, crds) is False and r.kind != "List"
        ]
        outside = [
            t for _, t in graph.included(built) if posixpath.relpath(t or ".", built.folder or ".").startswith("..")
        ]
        if not bare or (not outside and not each.flux):
            continue
        shown = ", ".join(f"{r.kind} {r.name}" for r in bare[:3]) + (
            f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        )
        findings.append(
            Finding(
                Stage.STRUCTURE,
                "no-namespace",
                f"{len(bare)} of its objects have no namespace: {shown}",
                "write `namespace:` in the kustomization",
                Place(built.place, 1 if built.file else 0),
                kustomization=built.folder,
                severity=Severity.ERROR if outside else Severity.WARNING,
            )
        )
    return findings
