"""HelmReleases rendered, each as a rendering of its own beside the kustomizations: what stages see is what Helm installs.

Where the chart, a value or Helm itself is not at hand, the release is named as not rendered, with the reason. Results are
kept by what they were made from: the chart's contents, the values, what Helm is told of the cluster, and the programs.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.check import origin
from scripts.check.build import Rendering, dump
from scripts.check.charts import Chart, Shelves
from scripts.check.chartsource import Finder, NotAtHandError, WrongChartError, is_flux_source
from scripts.check.fluxchecks import missing_source, sources_of
from scripts.check.fluxobjects import FluxObject, RenderSpec, from_resource, is_flux
from scripts.check.graph import Graph
from scripts.check.helm import HelmError, Job, in_namespace, render
from scripts.check.helmvalues import UnknownValuesError, WrongValuesError, composed
from scripts.check.kinds import api_versions, definitions
from scripts.check.model import Finding, Place, Resource, Severity, Stage, release_folder
from scripts.check.renderer import Applied, Renderings
from scripts.check.store import Store, code_digest, digest, identity_of
from scripts.check.tree import join

HELM_GROUP = "helm.toolkit.fluxcd.io"
# A chart may bring HelmReleases of its own; deeper than this, they bring each other.
_MAX_ROUNDS = 5
_MAX_NAME = 53
_UNKNOWN = re.compile(r"\$\{|ENC\[AES256_GCM,")


@dataclass(frozen=True)
class Tools:
    """What releases are rendered with."""

    helm: Path
    kustomize: Path
    kubernetes: str
    shelves: Shelves


@dataclass
class Releases:
    """What became of the HelmReleases of a tree."""

    findings: list[Finding] = field(default_factory=list)
    # What was rendered in this run, by its key: to be kept once the tree is known to have stayed the same.
    fresh: dict[str, Any] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    # Whether an answer depends on what lies outside the tree.
    looked_outside: bool = False


@dataclass(frozen=True)
class _Release:
    flux: FluxObject
    owner: Applied

    @property
    def spec(self) -> RenderSpec:
        """Its rendering's name."""
        return RenderSpec(release_folder(self.owner.rendering.spec.folder, self.owner.names, self.flux.subject))


def has_releases(applied: Iterable[Applied]) -> bool:
    """Whether anything that was rendered is a HelmRelease."""
    return any(True for a in applied for _ in _in(a))


def add_releases(graph: Graph, renderings: Renderings, tools: Tools, store: Store) -> Releases:
    """Render every HelmRelease among what was rendered, and add each to the renderings."""
    done = Releases()
    new = list(renderings.applied)
    for _ in range(_MAX_ROUNDS):
        waiting = [_Release(from_resource(graph.tree, r, a.scopes[0]), a) for a in new for r in _in(a)]
        if not waiting:
            break
        new = _Round(graph, renderings, tools, store, done).render(waiting)
        renderings.applied += new
        for applied in new:
            for resource in applied.rendering.resources:
                if is_flux(resource.data):
                    renderings.flux.append(from_resource(graph.tree, resource, applied.scopes[0]))
    renderings.applied.sort(key=lambda a: (a.rendering.spec.folder, a.rendering.key))
    return done


def _in(applied: Applied) -> Iterator[Resource]:
    for resource in applied.rendering.resources:
        if resource.kind == "HelmRelease" and resource.api_version.startswith(f"{HELM_GROUP}/"):
            yield resource


class _Round:
    """Renders the HelmReleases that one round met."""

    def __init__(self, graph: Graph, renderings: Renderings, tools: Tools, store: Store, done: Releases) -> None:
        self.graph = graph
        self.applied = renderings.applied
        self.tools = tools
        self.store = store
        self.done = done
        texts = [t for a in renderings.applied for t in a.rendering.texts]
        self.crds = definitions(texts)
        self.api_versions = api_versions(texts)
        self.sources = sources_of(graph, renderings.flux)
        self.finder = Finder(
            graph.tree, tools.shelves, renderings.flux, self.sources.is_elsewhere,
            lambda key: key in self.sources.own or self.sources.urls.get(key) in self.sources.own_urls or is_flux_source(key),
        )  # fmt: skip
        self.programs = [code_digest(), identity_of(tools.helm), identity_of(tools.kustomize)]

    def render(self, releases: Sequence[_Release]) -> list[Applied]:
        """Return a rendering for each release: with objects, with what is wrong, or with why there are none."""
        found: list[Applied] = []
        jobs: list[tuple[_Release, Job, str]] = []
        for release in releases:
            job = self._job(release)
            if isinstance(job, Applied):
                found.append(job)
            else:
                key = digest(self.programs, job.inputs)
                self.done.used.append(key)
                jobs.append((release, job, key))
        self.done.looked_outside = self.done.looked_outside or bool(self.finder.looked)
        with ThreadPoolExecutor(os.cpu_count(), "helm") as pool:
            for (release, job, key), record in zip(jobs, pool.map(self._record, jobs), strict=True):
                found.append(self._finished(release, job, key, record))
        return found

    def _job(self, release: _Release) -> Job | Applied:
        flux, spec = release.flux, release.flux.spec
        try:
            chart = self.finder.chart_of(flux)
            if not self.tools.helm.exists():
                raise NotAtHandError("helm is not here", "`make helm` brings it")
            values = composed(spec, lambda kind, name: self._values_object(release, kind, name))
        except NotAtHandError as error:
            return self._left_out(release, error.why, error.mend)
        except UnknownValuesError as error:
            return self._left_out(release, str(error), "add it to the tree, or check the release where it is known")
        except WrongChartError as error:
            return self._refused(release, error.rule, error.message, error.mend, flux.place_of(error.pointer))
        except WrongValuesError as error:
            return self._refused(release, error.rule, error.message, error.mend, flux.place_of(error.pointer))
        install = _mapping(spec.get("install"))
        names = [name for name in (str(spec.get("releaseName") or ""), _release_name(flux)) if name]
        renderers = spec.get("postRenderers")
        with_definitions = install.get("crds") != "Skip"
        own = [c.decode(errors="replace") for n, c in chart.files.items() if "crds/" in f"/{n}" and with_definitions]
        return Job(
            chart, names[0], str(spec.get("targetNamespace") or flux.namespace), values, self.tools.kubernetes,
            tuple(sorted({*self.api_versions, *api_versions(own)})), with_definitions,
            not install.get("disableHooks"), not install.get("disableSchemaValidation"),
            tuple(r for r in renderers if isinstance(r, Mapping)) if isinstance(renderers, list) else (),
            spec.get("postRenderStrategy") != "nohooks", _mapping(spec.get("commonMetadata")),
        )  # fmt: skip

    def _values_object(self, release: _Release, kind: str, name: str) -> Mapping[str, Any] | None:
        """Return the ConfigMap or Secret that a release names: of what applies it, else of the same cluster."""
        near = [release.owner, *(a for a in self.applied if a is not release.owner)]
        for applied in near:
            if not set(applied.scopes) & set(release.owner.scopes):
                continue
            namespace = str(applied.rendering.spec.settings.get("targetNamespace") or "")
            for resource in applied.rendering.resources:
                if (resource.kind, resource.name) == (kind, name) and release.flux.namespace == (
                    resource.namespace or namespace or release.flux.namespace
                ):
                    return resource.data
        return None

    def _record(self, item: tuple[_Release, Job, str]) -> Mapping[str, Any]:
        """Return what Helm made of a job, as it is kept; what an earlier run knows is not rendered again."""
        _, job, key = item
        known: Mapping[str, Any] | None = self.store.get("charts", key)
        if known is not None:
            return known
        started = time.monotonic()
        try:
            made = render(self.tools.helm, self.tools.kustomize, job)
        except HelmError as error:
            return {"error": vars(error)}
        own = definitions(dump(m.data) for m in made if m.data.get("kind") == "CustomResourceDefinition")
        made = in_namespace(made, job.namespace, {**self.crds, **own})
        objects = [(dump(m.data), m.template) for m in made]
        return {"objects": objects, "seconds": time.monotonic() - started}

    def _finished(self, release: _Release, job: Job, key: str, record: Mapping[str, Any]) -> Applied:
        self.done.fresh[key] = record
        if "error" in record:
            return self._failed(release, job, HelmError(**record["error"]))
        texts = [text for text, _ in record["objects"]]
        objects = [origin.read_object(text) for text in texts]
        templates = [template for _, template in record["objects"]]
        places = [
            self._place(release, job.chart, t, str(o.get("kind"))) for t, o in zip(templates, objects, strict=True)
        ]
        namespace = self._namespace(release, job)
        if namespace:
            texts, objects = [dump(namespace), *texts], [namespace, *objects]
            templates, places = ["spec.install.createNamespace", *templates], [release.flux.place, *places]
        rendering = Rendering(
            release.spec,
            key,
            tuple(texts),
            tuple(objects),
            tuple(places),
            seconds=record["seconds"],
            built=True,
            templates=tuple(templates),
        )
        return self._applied(release, rendering, job.chart)

    def _namespace(self, release: _Release, job: Job) -> dict[str, Any] | None:
        """Return the namespace that Helm makes before anything else, where nothing in the tree does."""
        wanted = _mapping(release.flux.spec.get("install")).get("createNamespace")
        there = any(
            r.kind == "Namespace" and r.name == job.namespace for a in self.applied for r in a.rendering.resources
        )
        if not wanted or there or not release.flux.spec.get("targetNamespace"):
            return None
        metadata = {"name": job.namespace, "labels": {"name": job.namespace}}
        return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}

    def _failed(self, release: _Release, job: Job, error: HelmError) -> Applied:
        if _UNKNOWN.search(dump(dict(job.values))):
            why = f"its values hold variables or encrypted texts, with which Helm says: {error.message}"
            return self._left_out(release, why, "check it where those are known")
        place = release.flux.place_of(error.pointer) if error.pointer else release.flux.place
        message = error.message
        if error.template:
            file = self._file_of(job.chart, error.template)
            place = Place(file, error.line) if file else place
            told = f"{error.template}:{error.line}" if error.line else error.template
            message = message if told in message else f"{told}: {message}"
        return self._refused(release, error.rule, f"{job.chart.label}: {message}", error.mend, place)

    def _place(self, release: _Release, chart: Chart, template: str, kind: str) -> Place:
        """Return where an object is written: in the chart's file, if that is in the tree."""
        file = self._file_of(chart, template)
        if not file:
            return release.flux.place
        text = self.graph.tree.absolute(file).read_text(errors="replace")
        found = re.search(rf"^kind:\s*[\"']?{re.escape(kind)}\b", text, re.MULTILINE)
        return Place(file, text.count("\n", 0, found.start()) + 1 if found else 1)

    def _file_of(self, chart: Chart, template: str) -> str:
        """Return the tree's file for a template, which Helm names with the chart's name before it; or empty."""
        file = join(chart.folder, template.partition("/")[2]) if chart.folder else ""
        return file if file and self.graph.tree.is_file(file) else ""

    def _left_out(self, release: _Release, why: str, mend: str) -> Applied:
        if not missing_source(release.flux, self.sources):
            self._add(
                release, Stage.STRUCTURE, "helm-not-rendered", f"not rendered: {why}", mend, release.flux.place, True
            )
        return self._applied(
            release, Rendering(release.spec, digest(release.spec.folder), skipped=f"not rendered: {why}")
        )

    def _refused(self, release: _Release, rule: str, message: str, mend: str, place: Place) -> Applied:
        self._add(release, Stage.BUILD, rule, message, mend, place)
        return self._applied(release, Rendering(release.spec, digest(release.spec.folder)))

    def _applied(self, release: _Release, rendering: Rendering, chart: Chart | None = None) -> Applied:
        return Applied(
            rendering, [], list(release.owner.scopes), [release.owner], release.flux,
            chart.label if chart else "", bool(chart and chart.folder),
        )  # fmt: skip

    def _add(
        self, release: _Release, stage: Stage, rule: str, message: str, mend: str, place: Place, warning: bool = False
    ) -> None:
        severity = Severity.WARNING if warning else Severity.ERROR
        folder = release.spec.folder
        self.done.findings.append(Finding(stage, rule, message, mend, place, release.flux.subject, folder, severity))


def keep(releases: Releases, store: Store) -> None:
    """Keep what was rendered in this run for later ones."""
    for key, record in releases.fresh.items():
        store.put("charts", key, record)
    store.drop_old("charts", releases.used)


def with_templates(applied: Iterable[Applied], findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings, those about a chart's objects with the release and the chart's file in their message.

    What a rule finds in a chart from elsewhere is a warning: nobody can mend it here but by values.
    """
    owners = {a.rendering.spec.folder: a for a in applied if a.release}
    templates = {(f, r.subject): r.template for f, a in owners.items() for r in a.rendering.resources}
    for finding in findings:
        template = templates.get((finding.kustomization, finding.subject), "")
        if template:
            owner = owners[finding.kustomization]
            assert owner.release is not None
            finding = replace(finding, message=f"{finding.message} ({owner.release.subject}: {template})")
            if finding.stage is Stage.LINT and not owner.own_chart:
                finding = replace(finding, severity=Severity.WARNING)
        yield finding


def _release_name(flux: FluxObject) -> str:
    """Return a release's name where none is written, shortened as helm-controller does it."""
    target = flux.spec.get("targetNamespace")
    name = f"{target}-{flux.name}" if target else flux.name
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
