"""One run of the check over a tree: structure, build, schema, and the stages that look at everything rendered."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.check.model import Finding, Report, Row, Severity, Stage
from scripts.check.sourcefile import source_from_record, source_to_record
from scripts.check.store import (
    SHARED,
    Store,
    code_digest,
    digest,
    digest_of_text,
    drop_unused,
    from_record,
    identity_below,
    identity_of,
    store_of,
    to_record,
)
from scripts.check.tree import Tree, join

if TYPE_CHECKING:
    from scripts.check.graph import Graph
    from scripts.check.model import Rendered, Structure
    from scripts.check.renderer import Applied, Renderings
    from scripts.check.validate import Definitions

ALL = (Stage.STRUCTURE, Stage.BUILD, Stage.SCHEMA, Stage.LINT, Stage.DRY_RUN)


@dataclass(frozen=True)
class ExtraStage:
    """A stage that looks at everything rendered, in the order in which Flux applies it.

    Its function returns the findings, and imports what it needs itself.
    """

    stage: Stage
    run: Callable[[Sequence[Rendered], Options], list[Finding]]
    # What its answer depends on besides the rendered objects and the code of this package.
    depends_on: str = ""


@dataclass(frozen=True)
class Options:
    """What a run is asked for, and with what."""

    root: Path
    cache: Path
    kustomize: Path
    kubeconform: Path
    stages: tuple[Stage, ...] = ALL
    # Asked for only where something has to be validated: it may have to be made.
    definitions: Callable[[], Definitions] | None = None
    # What the definitions and other pins are taken from, as a digest.
    pins: str = ""
    extra: tuple[ExtraStage, ...] = ()
    # The name that results are kept under, where the tree is a copy of another state of it; the root's path otherwise.
    store_name: str = ""
    # Build also those that only others include.
    everything: bool = False
    # What HelmReleases are rendered with, where it is there, and the folders that charts are looked for in.
    helm: Path = Path("helm-is-not-here")
    charts: tuple[Path, ...] = ()


@dataclass
class Checked:
    """A report, and what it was made from unless it was known from an earlier run."""

    report: Report
    graph: Graph | None = None
    renderings: Renderings | None = None


def check(options: Options, need_renderings: bool = False) -> Checked:
    """Check a tree; what an earlier run knew of the same contents is taken over."""
    with _no_collections():
        return _check(options, need_renderings)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Leave out Python's search for cycles: what a check reads makes none, and is looked through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check(options: Options, need_renderings: bool) -> Checked:
    started = time.monotonic()
    store = store_of(options.cache, options.store_name or str(options.root.resolve()))
    # What a file holds is known by its content and by the code that read it.
    known_files = f"{'copy' if options.store_name else 'own'}-{code_digest()[:16]}"
    tree = Tree(options.root)
    key = digest(
        tree.content_digest(), code_digest(), identity_of(options.kustomize), identity_of(options.kubeconform),
        options.pins, [s.value for s in options.stages], [(e.stage.value, e.depends_on) for e in options.extra],
        options.everything,
        identity_of(options.helm),
        [str(c) for c in options.charts],
        tree.relative(tree.top),
    )  # fmt: skip
    if not need_renderings:
        record = store.get("results", key)
        if record is not None and _same_outside(tree, options, record):
            return Checked(_report_of(tree.root, record, time.monotonic() - started))
    tree.known.update({k: source_from_record(r) for k, r in (store.get("files", known_files) or {}).items()})
    known = set(tree.known)
    checked, keep, outside = _run(tree, options, store)
    report = replace(checked.report, total_s=time.monotonic() - started)
    # A file saved while the check ran was read before or after: what was found then belongs to neither content.
    if _is_unchanged(tree):
        keep()
        if tree.used_keys() != known:
            store.put("files", known_files, {k: source_to_record(tree.known[k]) for k in sorted(tree.used_keys())})
            store.drop_old("files", [known_files])
        store.put("results", key, {**_record_of(report, tree), "charts": outside})
        store.drop_old("results", [key])
        drop_unused(options.cache)
    return replace(checked, report=report)


def _is_unchanged(tree: Tree) -> bool:
    """Whether a tree that was read is still as it was read."""
    again = Tree(tree.root)
    for path in tree.outside:
        again.entry(path)
    return again.content_digest() == tree.content_digest()


def _run(tree: Tree, options: Options, store: Store) -> tuple[Checked, Callable[[], None], str]:
    """Return what was found, what keeps its parts for later runs, and what of the folders of charts it depends on."""
    from scripts.check.ahead import names_flux, read_ahead

    seconds: dict[Stage, float] = {}
    clock = _Clock(seconds)
    shared = Store(options.cache / SHARED)
    validates = Stage.SCHEMA in options.stages and options.definitions is not None
    aside = read_ahead(tree, shared if validates else None)

    # Imported while files are read.
    from scripts.check.environments import check_environments
    from scripts.check.fluxchecks import check_flux, check_namespaces
    from scripts.check.fluxobjects import folder_of, written_objects
    from scripts.check.graph import Graph
    from scripts.check.kinds import definitions
    from scripts.check.renderer import Renderer
    from scripts.check.structure import check_structure

    with clock.of(Stage.STRUCTURE):
        graph = Graph(tree)
        files = (path for path in tree.yaml_files() if names_flux(tree, path) and path not in graph.only_patches)
        written = [f for f in written_objects(tree, files) if f.is_kustomization]
        applied = {folder for flux in written if (folder := folder_of(tree, flux)) is not None}
    structures: list[Structure] = []

    def look_at_files() -> set[str]:
        with clock.of(Stage.STRUCTURE):
            structures.append(check_structure(graph, applied))
        return structures[0].broken

    with clock.of(Stage.BUILD):
        renderer = Renderer(graph, options.kustomize, store, written, look_at_files, options.everything)
        renderings = renderer.render_all()
        keep, outside = renderer.keep_fresh, ""
        if any("kind: HelmRelease\n" in text for a in renderings.applied for text in a.rendering.texts):
            keep, outside, released = _render_releases(graph, renderings, options, store, keep)
            renderings.findings += released
    findings = list(structures[0].findings)
    if aside:
        aside.finish()
    # kubeconform runs while everything else is looked at.
    with _validating(graph, options, store, shared, renderings, clock) as schema_findings:
        with clock.of(Stage.STRUCTURE):
            crds = definitions(t for a in renderings.applied for t in a.rendering.texts)
            findings += check_flux(graph, renderings)
            findings += check_namespaces(graph, renderings.applied, crds)
            findings += check_environments(graph, renderings.applied)
        findings += renderings.findings
        findings += [f for a in renderings.applied for f in a.rendering.findings]
        findings += _extra_findings(graph, options, store, renderings, clock)
        with clock.of(Stage.SCHEMA):
            findings += schema_findings()
    if any(a.release for a in renderings.applied):
        from scripts.check.releases import with_templates

        findings = list(with_templates(renderings.applied, findings))
    store.drop_old("renders", renderer.used_keys)
    report = Report(
        tree.root,
        tuple(a.rendered for a in renderings.applied if a.rendering.built),
        tuple(_ordered(f for f in _said_once(findings) if f.stage in options.stages)),
        seconds,
        tuple(_rows(graph, renderings)),
    )
    return Checked(report, graph, renderings), keep, outside


@contextmanager
def _validating(
    graph: Graph, options: Options, store: Store, shared: Store, renderings: Renderings, clock: _Clock
) -> Iterator[Callable[[], list[Finding]]]:
    """Begin to validate what was rendered, where that was asked for; what is yielded returns the findings."""
    if Stage.SCHEMA not in options.stages or options.definitions is None:
        yield list
        return
    from scripts.check.fluxobjects import folder_of
    from scripts.check.validate import Validator

    with ExitStack() as stack:
        with clock.of(Stage.SCHEMA):
            validator = Validator(graph, options.kubeconform, store, shared, options.definitions())
            elsewhere = any(f.is_kustomization and folder_of(graph.tree, f) is None for f in renderings.flux)
            rendered = [a.rendering for a in renderings.applied]
            findings = stack.enter_context(validator.validating(rendered, elsewhere))
        yield findings


def _render_releases(
    graph: Graph, renderings: Renderings, options: Options, store: Store, keep: Callable[[], None]
) -> tuple[Callable[[], None], str, list[Finding]]:
    """Add what the HelmReleases among what was rendered render to."""
    from scripts.check import releases
    from scripts.check.charts import Shelves

    # As it is before anything is read from there.
    shelves = identity_below(options.charts)
    kubernetes = options.definitions().kubernetes if options.definitions else ""
    tools = releases.Tools(options.helm, options.kustomize, kubernetes, Shelves(options.charts))
    done = releases.add_releases(graph, renderings, tools, store)

    def keep_all() -> None:
        keep()
        releases.keep(done, store)

    return keep_all, shelves if done.looked_outside else "", done.findings


def _extra_findings(
    graph: Graph, options: Options, store: Store, renderings: Renderings, clock: _Clock
) -> list[Finding]:
    findings: list[Finding] = []
    wanted = [e for e in options.extra if e.stage in options.stages]
    if not wanted:
        return findings
    from scripts.check.order import in_apply_order

    built = [a for a in in_apply_order(renderings.applied) if a.rendering.built]
    rendered = [a.rendered for a in built]
    # What a stage sees, and the places that its findings name.
    seen = [
        (
            a.rendering.spec.folder,
            a.names,
            digest_of_text("".join(a.rendering.texts)),
            [str(p) for p in a.rendering.places],
        )
        for a in built
    ]
    content = digest(code_digest(), seen)
    for extra in wanted:
        with clock.of(extra.stage):
            key = digest(content, extra.stage.value, extra.depends_on, options.pins)
            record = store.get("stages", key)
            if record is None:
                record = [to_record(f) for f in extra.run(rendered, options)]
                store.put("stages", key, record)
                store.drop_old("stages", [key])
            # Lines are looked up each time: they move with what the objects don't show, as comments.
            findings += _at_their_lines(graph, built, [from_record(r) for r in record])
    return findings


def _at_their_lines(graph: Graph, built: Sequence[Applied], findings: Sequence[Finding]) -> list[Finding]:
    """Return findings about a field with the place where the field is written."""
    if not any(f.pointer for f in findings):
        return list(findings)
    from scripts.check.locate import line_of_field

    resources = {(a.rendering.spec.folder, r.subject, r.place): r for a in built for r in a.rendering.resources}
    found = []
    for finding in findings:
        resource = resources.get((finding.kustomization, finding.subject, finding.place))
        if finding.pointer and resource:
            place = line_of_field(graph, finding.kustomization, resource, finding.pointer)
            finding = replace(finding, place=place, pointer="")
        found.append(finding)
    return found


def _rows(graph: Graph, renderings: Renderings) -> list[Row]:
    rows = []
    shown = set()
    for each in renderings.applied:
        rendering = each.rendering
        shown.add(rendering.spec.folder)
        rows.append(
            Row(
                rendering.spec.folder, each.names, rendering.skipped or each.chart, len(rendering.texts), rendering.seconds,
                rendering.built, each.release is not None,
            )
        )  # fmt: skip
    includers: dict[str, set[str]] = {}
    for folder in {*shown, *(k.folder for k in graph.all)}:
        built = graph.buildable(folder)
        for _, target in graph.included(built) if built else ():
            includers.setdefault(target, set()).add(folder or ".")
    for each in renderings.applied:
        for component in each.rendering.spec.settings.get("components") or []:
            target = graph.tree.canonical(join(each.rendering.spec.folder, str(component)))
            includers.setdefault(target, set()).add(each.rendering.spec.folder or ".")
    for kustomization in graph.all:
        if kustomization.folder not in shown:
            owners = sorted(includers.get(kustomization.folder, ()))
            note = f"part of {owners[0]}" + f" and {len(owners) - 1} more" * (len(owners) > 1) if owners else ""
            if not owners and kustomization.is_component:
                note = "a Component that nothing in the tree names"
            rows.append(Row(kustomization.folder, note=note))
    return sorted(rows, key=lambda r: (r.kustomization, r.flux))


def _said_once(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield findings without the dry run's word on a kind that no schema is there for: nobody knows it, twice."""
    unknown = {(f.subject, f.kustomization) for f in findings if f.rule == "schema-missing"}
    for finding in findings:
        is_known = finding.rule == "unknown-kind" and (finding.subject, finding.kustomization) in unknown
        if not (is_known and finding.stage is Stage.DRY_RUN):
            yield finding


def _ordered(findings: Any) -> list[Finding]:
    order = list(Stage)
    unique = dict.fromkeys(findings)
    return sorted(
        unique,
        key=lambda f: (
            f.severity is not Severity.ERROR, order.index(f.stage), f.place.file, f.place.line, f.rule, f.kustomization,
        ),
    )  # fmt: skip


class _Clock:
    """Adds up seconds by stage."""

    def __init__(self, seconds: dict[Stage, float]) -> None:
        self.seconds = seconds

    def of(self, stage: Stage) -> _Lap:
        """Return a block whose time counts for a stage."""
        return _Lap(self.seconds, stage)


class _Lap:
    def __init__(self, seconds: dict[Stage, float], stage: Stage) -> None:
        self.seconds = seconds
        self.stage = stage
        self.started = 0.0

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + time.monotonic() - self.started


def _record_of(report: Report, tree: Tree) -> dict[str, Any]:
    return {
        "findings": [to_record(f) for f in report.findings],
        "rows": [asdict(r) for r in report.rows],
        "seconds": {s.value: t for s, t in report.seconds.items()},
        "outside": tree.outside,
        "content": tree.content_digest(),
    }


def _same_outside(tree: Tree, options: Options, record: Mapping[str, Any]) -> bool:
    """Whether what an earlier run read beside the root, or of charts elsewhere, is still the same."""
    if record["charts"] and record["charts"] != identity_below(options.charts):
        return False
    for path in record["outside"]:
        tree.entry(path)
    return tree.content_digest() == str(record["content"])


def _report_of(root: Path, record: Mapping[str, Any], total_s: float) -> Report:
    return Report(
        root,
        findings=tuple(from_record(f) for f in record["findings"]),
        seconds={Stage(s): t for s, t in record["seconds"].items()},
        rows=tuple(Row(**{**r, "flux": tuple(r["flux"])}) for r in record["rows"]),
        total_s=total_s,
        from_cache=True,
    )
