"""Every folder that something applies, rendered: Flux Kustomizations are followed as they are met in what was rendered.

A Flux Kustomization may be changed by the one that applies it (patches, variables), so what counts is how it was rendered.
Builds run side by side; each is kept under a key of all that it was made from.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

from scripts.check.build import Build, Rendering, finish, prepare
from scripts.check.filechecks import unusable_files
from scripts.check.fluxobjects import (
    FluxObject,
    RenderSpec,
    folder_of,
    from_resource,
    is_flux,
    render_spec,
)
from scripts.check.graph import Graph
from scripts.check.model import Finding, Place, Rendered, Severity, Stage
from scripts.check.references import Reference
from scripts.check.sourcefile import expanding_patches
from scripts.check.store import Store, code_digest, digest, identity_of
from scripts.check.structure import broken_builds
from scripts.check.tree import join
from scripts.check.variables import Variables, variables_of
from scripts.process import CommandError, Completed


@dataclass
class Applied:
    """A rendering, and the Flux Kustomizations that apply it."""

    rendering: Rendering
    flux: list[FluxObject] = field(default_factory=list)
    # The roots that it follows from.
    scopes: list[str] = field(default_factory=list)
    # The renderings that hold the Flux Kustomizations which apply it.
    parents: list[Applied] = field(default_factory=list)
    # The HelmRelease that it is what Helm renders of, its chart, and whether that is in the tree.
    release: FluxObject | None = None
    chart: str = ""
    own_chart: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The Flux Kustomizations' names, each once."""
        return tuple(dict.fromkeys(f.name for f in self.flux))

    @property
    def rendered(self) -> Rendered:
        """What it rendered to."""
        rendered = self.rendering.rendered(self.names)
        if self.release is None:
            return rendered
        metadata = self.release.data.get("metadata") or {}
        return replace(rendered, release_annotations=metadata.get("annotations") or {}, own_chart=self.own_chart)


@dataclass
class Renderings:
    """All that was rendered, and every Flux object that was met."""

    applied: list[Applied] = field(default_factory=list)
    flux: list[FluxObject] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    spec: RenderSpec
    flux: FluxObject | None
    scope: str
    parent: Applied | None = None


class Renderer:
    """Renders a tree."""

    def __init__(
        self,
        graph: Graph,
        kustomize: Path,
        store: Store,
        written: Sequence[FluxObject],
        look_at_files: Callable[[], set[str]],
        everything: bool = False,
    ) -> None:
        """Prepare to render a tree.

        Args:
            graph: the tree's kustomizations.
            kustomize: the program.
            store: where earlier renderings are kept.
            written: the Flux Kustomizations as they are written.
            look_at_files: finds the files that no build can use. It takes as long as a build, so it is called while the
                first builds run; those that turn out to need such a file are dropped.
            everything: render also those that only others include.
        """
        self.written = written
        self.look_at_files = look_at_files
        self.everything = everything
        self.graph = graph
        self.kustomize = kustomize
        self.store = store
        self.broken: set[str] | None = None
        self.used_keys: list[str] = []
        # What was built in this run: kept only if the tree is still the one that it was built from.
        self.fresh: list[Rendering] = []
        self._by_spec: dict[str, Applied] = {}
        self._objects: dict[tuple[str, str, str, str, int], FluxObject] = {}
        self._findings: list[Finding] = []
        self._unusable: tuple[int, frozenset[str]] = (0, frozenset())
        self._tools = digest(code_digest(), identity_of(kustomize))

    def render_all(self) -> Renderings:
        """Render everything that the tree's roots lead to, then what none of them did."""
        written = list(self.written)
        self._run(_roots(self.graph, written))
        met = {(f.place.file, f.place.line) for f in self._objects.values()}
        # A circle of Flux Kustomizations that only apply each other, or one whose parent did not build.
        self._run([self._job(f, f.scope) for f in written if (f.place.file, f.place.line) not in met])
        if self.everything:
            done = {a.rendering.spec.folder for a in self._by_spec.values()}
            rest = [k for k in self.graph.all if not k.is_component and k.folder not in done]
            self._run([_Job(RenderSpec(k.folder), None, k.folder or ".") for k in rest])
        if self.broken is None:
            # A tree in which nothing can be built.
            self.broken = self.look_at_files()
        applied = sorted(self._by_spec.values(), key=lambda a: (a.rendering.spec.folder, a.rendering.key))
        return Renderings(applied, list(self._objects.values()), self._findings)

    def keep_fresh(self) -> None:
        """Keep what was built in this run for later ones."""
        for rendering in self.fresh:
            self.store.put("renders", rendering.key, rendering.to_record())

    def _job(self, flux: FluxObject, scope: str, parent: Applied | None = None) -> _Job:
        folder = folder_of(self.graph.tree, flux)
        return _Job(render_spec(flux, folder if folder is not None else "\0"), flux, scope, parent)

    def _run(self, jobs: list[_Job]) -> None:
        queue = deque(jobs)
        running: dict[Future[Completed | CommandError], Build] = {}
        with (
            tempfile.TemporaryDirectory(prefix="gitops-lab-check-") as folder,
            ThreadPoolExecutor(os.cpu_count(), "kustomize") as pool,
        ):
            while queue or running:
                while queue:
                    build = self._begin(queue.popleft(), Path(folder), queue.append)
                    if build:
                        running[pool.submit(build.run)] = build
                if self.broken is None:
                    self.broken = self.look_at_files()
                if running:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        build = running.pop(future)
                        if self._is_blocked(self._by_spec[build.spec.key]):
                            continue
                        rendering = finish(self.graph, build, future.result())
                        self.fresh.append(rendering)
                        self._keep(rendering, queue.append)

    def _begin(self, job: _Job, folder: Path, follow: Callable[[_Job], None]) -> Build | None:
        """Note a job; return its build if it has to be run, or keep what is known of it."""
        if job.flux:
            self._note(job.flux, job.scope)
        if job.spec.folder == "\0":
            return None
        name = job.spec.key
        known = self._by_spec.get(name)
        if known:
            known.flux += [job.flux] if job.flux else []
            known.parents += [job.parent] if job.parent else []
            if job.scope not in known.scopes:
                known.scopes.append(job.scope)
                self._follow(known, job.scope, follow)
            return None
        variables = variables_of(self.graph, job.spec, job.spec.near)
        self._check_variables(job, variables)
        components = {str(c): join(job.spec.folder, str(c)) for c in job.spec.settings.get("components") or []}
        if job.spec.settings.get("ignoreMissingComponents"):
            components = {c: f for c, f in components.items() if self.graph.tree.is_folder(f)}
        missing = self._missing_components(job, components)
        extra = tuple(components.values())
        key = digest(
            self._tools, name, variables.values, sorted(variables.hidden), [vars(m) for m in variables.missing], variables.active,
            self.graph.content_digest(job.spec.folder, extra),
        )  # fmt: skip
        self.used_keys.append(key)
        parents = [job.parent] if job.parent else []
        applied = Applied(Rendering(job.spec, key), [job.flux] if job.flux else [], [job.scope], parents)
        self._by_spec[name] = applied
        if self._is_blocked(applied):
            return None
        if missing:
            applied.rendering = Rendering(job.spec, key, skipped=f"{missing[0]} does not exist")
            return None
        entered = [f for start in (job.spec.folder, *extra) for f in self.graph.closure(start)]
        remote = [r.value for f in entered for r in _remote(self.graph, f)]
        if remote:
            applied.rendering = Rendering(job.spec, key, skipped=f"{remote[0]} is not in the tree")
            return None
        record = self.store.get("renders", key)
        if record is not None:
            self._keep(Rendering.from_record(job.spec, key, record), follow)
            return None
        return prepare(self.graph, job.spec, key, variables, self.kustomize, folder)

    def _is_blocked(self, applied: Applied) -> bool:
        """Whether a rendering needs a file that no build can use; notes it."""
        spec = applied.rendering.spec
        components = [join(spec.folder, str(c)) for c in spec.settings.get("components") or []]
        broken = self._unusable_files() | (self.broken or set())
        if any(expanding_patches(spec.settings)):
            place = applied.flux[0].place.file
            applied.rendering = Rendering(spec, applied.rendering.key, skipped=f"{place} is broken")
            return True
        for folder in (spec.folder, *components):
            for path in broken_builds(self.graph, folder, broken) if self.graph.buildable(folder) else ():
                applied.rendering = Rendering(spec, applied.rendering.key, skipped=f"{path} is broken")
                return True
        return False

    def _unusable_files(self) -> frozenset[str]:
        """Return the files that no build may be given, found anew only where a build met more of the repository."""
        if self._unusable[0] != self.graph.size:
            self._unusable = (self.graph.size, unusable_files(self.graph))
        return self._unusable[1]

    def _keep(self, rendering: Rendering, follow: Callable[[_Job], None]) -> None:
        applied = self._by_spec[rendering.spec.key]
        applied.rendering = rendering
        for scope in applied.scopes:
            self._follow(applied, scope, follow)

    def _follow(self, applied: Applied, scope: str, follow: Callable[[_Job], None]) -> None:
        """Note the Flux objects among what was rendered, and go on with its Kustomizations."""
        for resource in applied.rendering.resources:
            if not is_flux(resource.data):
                continue
            flux = from_resource(self.graph.tree, resource, scope)
            if flux.is_kustomization:
                if self._key(flux, scope) not in self._objects:
                    follow(self._job(flux, scope, applied))
            else:
                self._note(flux, scope)

    def _note(self, flux: FluxObject, scope: str) -> None:
        self._objects.setdefault(self._key(flux, scope), flux)

    @staticmethod
    def _key(flux: FluxObject, scope: str) -> tuple[str, str, str, str, int]:
        # One that is both written as a root and rendered by itself is one.
        return scope, flux.kind, flux.namespace, flux.name, 0

    def _missing_components(self, job: _Job, components: dict[str, str]) -> list[str]:
        missing = [written for written, folder in components.items() if not self.graph.tree.kustomization_file(folder)]
        for written in missing if job.flux else []:
            assert job.flux is not None
            index = list(job.flux.spec.get("components") or []).index(written)
            place = job.flux.place_of(f"/spec/components/{index}")
            message = f"its component {written} does not exist"
            mend = "mend the path: it starts at spec.path; or set ignoreMissingComponents"
            self._findings.append(
                Finding(Stage.STRUCTURE, "reference-missing", message, mend, place, job.flux.subject, job.spec.folder)
            )
        return missing

    def _check_variables(self, job: _Job, variables: Variables) -> None:
        if job.flux is None:
            return

        def add(rule: str, message: str, mend: str, pointer: str, severity: Severity) -> None:
            assert job.flux is not None
            self._findings.append(
                Finding(
                    Stage.BUILD,
                    rule,
                    message,
                    mend,
                    job.flux.place_of(pointer),
                    job.flux.subject,
                    job.spec.folder,
                    severity,
                )
            )

        for missing in variables.missing:
            if not missing.optional:
                add(
                    "substitute-from-missing",
                    f"{missing.kind} {missing.name} is not in the tree, so its variables are not checked",
                    "add it, or make sure that the cluster has it",
                    missing.pointer,
                    Severity.WARNING,
                )
        for name in variables.bad_names:
            mend = "use letters, digits and underscores, with no digit first"
            add(
                "substitution-name",
                f"Flux refuses `{name}` as a variable's name",
                mend,
                f"/spec/postBuild/substitute/{name}",
                Severity.ERROR,
            )


def _remote(graph: Graph, folder: str) -> Iterator[Reference]:
    built = graph.buildable(folder)
    return iter(built.remote if built else ())


def _roots(graph: Graph, written: list[FluxObject]) -> list[_Job]:
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
    jobs = [_Job(RenderSpec(folder), None, folder or ".") for folder in tops]
    for flux in written:
        own = folders[id(flux)]
        parents = [f for f in written if f is not flux and folders[id(f)] is not None and folders[id(f)] != own]
        if any(flux.place.file in files[folder] for folder in tops):
            continue
        if any(flux.place.file in files[folders[id(f)] or ""] for f in parents):
            continue
        spec = render_spec(flux, own if own is not None else "\0")
        jobs.append(_Job(spec, flux, posix_folder(flux.place)))
    return jobs


def _bootstrap_folders(graph: Graph, written: list[FluxObject], covered: set[str]) -> set[str]:
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


def posix_folder(place: Place) -> str:
    """Return the folder of a file: what stands side by side belongs to one cluster."""
    return place.file.rpartition("/")[0] or "."


def _includers(graph: Graph, folder: str) -> bool:
    return any(k.folder != folder for k in graph.includers.get(folder, []))
