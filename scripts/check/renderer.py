"""Every folder that something applies, rendered: Flux Kustomizations are followed as they are met in what was rendered.

A Flux Kustomization may be changed by the one that applies it (patches, variables), so what counts is how it was rendered.
Builds run side by side; each is kept under a key of all that it was made from.
"""

from __future__ import annotations

import json
import os
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
from scripts.check.model import Finding, Rendered, Severity, Stage
from scripts.check.references import Reference
from scripts.check.roots import Root, may_patch_kustomizations, roots
from scripts.check.scratch import scratch
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
class _Job(Root):
    """A rendering that is to be made, and the one that brought it."""

    parent: Applied | None = None


@dataclass(frozen=True)
class _Recipe:
    """What a build takes in: its key, its variables, and what it names that is not in the tree."""

    key: str
    variables: Variables
    missing: Sequence[str]
    remote: Sequence[str]


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
        self._recipes: dict[str, _Recipe] = {}
        # Builds begun before their turn, by key.
        self._begun: dict[str, tuple[Build, Future[Completed | CommandError]]] = {}
        self._tools = digest(code_digest(), identity_of(kustomize))

    def render_all(self) -> Renderings:
        """Render everything that the tree's roots lead to, then what none of them did."""
        written = list(self.written)
        self._run([_Job(r.spec, r.flux, r.scope) for r in roots(self.graph, written)])
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
            scratch("check") as folder,
            ThreadPoolExecutor(os.cpu_count(), "kustomize") as pool,
        ):
            while queue or running:
                while queue:
                    build = self._begin(queue.popleft(), Path(folder), queue.append)
                    if build:
                        _, future = self._begun.pop(build.key, (build, None))
                        running[future or pool.submit(build.run)] = build
                if self.broken is None:
                    self._begin_early(Path(folder), pool)
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
        # What they printed names the temporary folder, which is gone.
        self._begun.clear()

    def _begin_early(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        """Begin to build what Flux Kustomizations apply as they are written, before it is known what they render to.

        Where something may change them (a patch of their kind, a variable in them), such builds would be for nothing. The
        largest come first: one that begins last would be waited for alone.
        """
        written = [flux for flux in self.written if "${" not in json.dumps(flux.spec, default=str)]
        jobs = [job for flux in written if (job := self._job(flux, flux.scope)).spec.folder != "\0"]
        tops = {*(a.rendering.spec.folder for a in self._by_spec.values()), *(job.spec.folder for job in jobs)}
        if may_patch_kustomizations(self.graph, self.written, tops):
            return
        wanted: dict[str, RenderSpec] = {}
        for spec in (job.spec for job in jobs):
            if spec.key in self._by_spec or self._blocker(spec, "a patch"):
                continue
            recipe = self._recipe(spec)
            if not recipe.missing and not recipe.remote and not self.store.has("renders", recipe.key):
                wanted[recipe.key] = spec
        for key, spec in sorted(wanted.items(), key=lambda w: -self._size_of(w[1])):
            build = prepare(self.graph, spec, key, self._recipe(spec).variables, self.kustomize, folder)
            self._begun[key] = (build, pool.submit(build.run))

    def _size_of(self, spec: RenderSpec) -> int:
        """Return how much a build reads, about."""
        files = set(self.graph.files_of(spec.folder)) if self.graph.buildable(spec.folder) else set()
        return sum(self.graph.tree.entries[f].size for f in files)

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
        recipe = self._recipe(job.spec)
        self._check_variables(job, recipe.variables)
        self._check_components(job, recipe.missing)
        key = recipe.key
        self.used_keys.append(key)
        parents = [job.parent] if job.parent else []
        applied = Applied(Rendering(job.spec, key), [job.flux] if job.flux else [], [job.scope], parents)
        self._by_spec[name] = applied
        if self._is_blocked(applied):
            return None
        if recipe.missing:
            applied.rendering = Rendering(job.spec, key, skipped=f"{recipe.missing[0]} does not exist")
            return None
        if recipe.remote:
            applied.rendering = Rendering(job.spec, key, skipped=f"{recipe.remote[0]} is not in the tree")
            return None
        record = self.store.get("renders", key)
        if record is not None:
            self._keep(Rendering.from_record(job.spec, key, record), follow)
            return None
        if key in self._begun:
            return self._begun[key][0]
        return prepare(self.graph, job.spec, key, recipe.variables, self.kustomize, folder)

    def _recipe(self, spec: RenderSpec) -> _Recipe:
        """Return what a build takes in, worked out once."""
        if spec.key in self._recipes:
            return self._recipes[spec.key]
        variables = variables_of(self.graph, spec, spec.near)
        components = {str(c): join(spec.folder, str(c)) for c in spec.settings.get("components") or []}
        if spec.settings.get("ignoreMissingComponents"):
            components = {c: f for c, f in components.items() if self.graph.tree.is_folder(f)}
        missing = [c for c, folder in components.items() if not self.graph.tree.kustomization_file(folder)]
        extra = tuple(components.values())
        key = digest(
            self._tools, spec.key, variables.values, sorted(variables.hidden), [vars(m) for m in variables.missing],
            variables.active, self.graph.content_digest(spec.folder, extra),
        )  # fmt: skip
        entered = [f for start in (spec.folder, *extra) for f in self.graph.closure(start)]
        remote = [r.value for f in entered for r in _remote(self.graph, f)]
        self._recipes[spec.key] = _Recipe(key, variables, missing, remote)
        return self._recipes[spec.key]

    def _is_blocked(self, applied: Applied) -> bool:
        """Whether a rendering needs a file that no build can use; notes it."""
        place = applied.flux[0].place.file if applied.flux else ""
        blocker = self._blocker(applied.rendering.spec, place)
        if blocker:
            applied.rendering = Rendering(applied.rendering.spec, applied.rendering.key, skipped=f"{blocker} is broken")
        return bool(blocker)

    def _blocker(self, spec: RenderSpec, flux_file: str) -> str:
        """Return a file that a rendering needs and no build can use, or empty."""
        if any(expanding_patches(spec.settings)):
            return flux_file
        components = [join(spec.folder, str(c)) for c in spec.settings.get("components") or []]
        broken = self._unusable_files() | (self.broken or set())
        for folder in (spec.folder, *components):
            for path in broken_builds(self.graph, folder, broken) if self.graph.buildable(folder) else ():
                return path
        return ""

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

    def _check_components(self, job: _Job, missing: Sequence[str]) -> None:
        for written in missing if job.flux else []:
            assert job.flux is not None
            index = list(job.flux.spec.get("components") or []).index(written)
            place = job.flux.place_of(f"/spec/components/{index}")
            message = f"its component {written} does not exist"
            mend = "mend the path: it starts at spec.path; or set ignoreMissingComponents"
            self._findings.append(
                Finding(Stage.STRUCTURE, "reference-missing", message, mend, place, job.flux.subject, job.spec.folder)
            )

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
