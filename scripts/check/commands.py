"""The commands of the check: what each of them looks at, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import console
from scripts.check import report as text_report
from scripts.check.model import Report, Stage
from scripts.check.outputs import WRITERS, Output
from scripts.check.runner import ALL, Checked, ExtraStage, Options, check
from scripts.check.store import SHARED, Store, digest, identity_of
from scripts.errors import UsageError
from scripts.settings import CHECK_TOOLS, DRY_RUN_TOOLS, HELM, ROOT, Settings

if TYPE_CHECKING:
    from scripts.check.model import Finding, Rendered
    from scripts.check.validate import Definitions

PIN_FILES = (ROOT / "versions.yaml", ROOT / "versions.lock.yaml")
BUILD_OUTPUT = ROOT / "reports" / "kustomize-build"


def extra_stages(settings: Settings) -> tuple[ExtraStage, ...]:
    """Return the stages that look at everything rendered: one entry each.

    What a stage needs is imported by its own function, so that a run which finds its answer in the cache pays nothing:
    `ExtraStage(Stage.X, lambda rendered, options: __import__("…").x(rendered, options.root), depends_on="…")`.
    """

    def lint(rendered: Sequence[Rendered], _: Options) -> list[Finding]:
        from scripts.check.lint import lint

        return lint(rendered, definitions(settings).kubernetes)

    def dry_run(rendered: Sequence[Rendered], _: Options) -> list[Finding]:
        from scripts import versions
        from scripts.check.dryrun import dry_run

        return dry_run(rendered, settings, versions.load())

    stages = [ExtraStage(Stage.LINT, lint)]
    programs = [settings.tools_dir / name for name in DRY_RUN_TOOLS]
    if settings.dry_run and all(p.exists() for p in programs):
        stages.append(ExtraStage(Stage.DRY_RUN, dry_run, " ".join(identity_of(p) for p in programs)))
    return tuple(stages)


def options_for(
    settings: Settings, root: Path | None = None, stages: Sequence[Stage] = ALL, everything: bool = False
) -> Options:
    """Return what a run over a tree needs, its tools brought first if they are missing or of other versions."""
    pins = ensure_tools(settings)
    return Options(
        root or settings.tree,
        check_cache(settings),
        settings.tools_dir / "kustomize",
        settings.tools_dir / "kubeconform",
        tuple(stages),
        lambda: definitions(settings),
        pins,
        tuple(e for e in extra_stages(settings) if e.stage in stages),
        everything=everything,
        helm=settings.tools_dir / HELM,
        charts=settings.charts,
    )


def check_cache(settings: Settings) -> Path:
    """Return where earlier runs' results lie."""
    return settings.cache_dir / "check"


def pins_digest() -> str:
    """Return a digest of what pins versions."""
    return digest([p.read_text() if p.exists() else "" for p in PIN_FILES])


def ensure_tools(settings: Settings) -> str:
    """Make the tools be there in the pinned versions, and return a digest of the pins."""
    pins = pins_digest()
    tools = [settings.tools_dir / name for name in CHECK_TOOLS]
    store = Store(check_cache(settings))
    if all(t.exists() for t in tools) and store.get("tools", "current") == _current_tools(settings, pins):
        return pins
    from scripts import provide, versions

    outcome = provide.ensure_check_tools(settings, versions.load(), settings.state_dir / "logs")
    if outcome.changed:
        console.line(outcome.what)
    note_tools(settings)
    return pins


def note_tools(settings: Settings) -> None:
    """Note that the tools, as they are, are those of the pins, and lay the schemas beside them that every tree needs."""
    from scripts.check.validate import make_schemas

    make_schemas(definitions(settings), Store(check_cache(settings) / SHARED))
    Store(check_cache(settings)).put("tools", "current", _current_tools(settings, pins_digest()))


def _current_tools(settings: Settings, pins: str) -> list[str]:
    return [pins, *(identity_of(settings.tools_dir / name) for name in CHECK_TOOLS)]


def definitions(settings: Settings) -> Definitions:
    """Return where schemas come from besides the tree; what the pins say is read again only when they change."""
    from scripts.check.validate import Definitions

    store, pins = Store(check_cache(settings)), pins_digest()
    kubernetes, *files = store.get("definitions", pins) or ("",)
    if not kubernetes or not all(Path(f).exists() for f in files):
        from scripts import versions
        from scripts.manifests import flux_definitions

        pinned = versions.load()
        kubernetes, files = pinned.kubernetes, [str(flux_definitions(settings, pinned, settings.tools_dir))]
        store.put("definitions", pins, [kubernetes, *files])
        store.drop_old("definitions", [pins])
    return Definitions(kubernetes, tuple(Path(f) for f in files))


def run(settings: Settings, stages: Sequence[Stage], output: Output) -> int:
    """Check the tree and show what was found; returns the exit code."""
    options = options_for(settings, stages=stages)
    missing = Stage.DRY_RUN in stages and all(e.stage is not Stage.DRY_RUN for e in options.extra)
    if missing and output is Output.TEXT:
        why = (
            f"{' and '.join(DRY_RUN_TOOLS)} are not there (`make setup-all` brings them)"
            if settings.dry_run
            else "DRY_RUN=0"
        )
        console.raw(f"dry run left out: {why}")
    return show(check(options).report, output)


def show(report: Report, output: Output) -> int:
    """Print a report and return the exit code: 1 where anything is an error."""
    if output is Output.TEXT:
        text_report.print_report(report)
    else:
        console.raw(WRITERS[output](report))
    return 0 if report.ok else 1


def structure(settings: Settings, stages: Sequence[Stage], output: Output) -> int:
    """Show the tree as a picture, and what is wrong with how it hangs together."""
    checked = check(options_for(settings, stages=stages), need_renderings=output is Output.TEXT)
    if output is not Output.TEXT:
        return show(checked.report, output)
    from scripts.check import picture

    picture.draw(checked)
    text_report.print_findings(checked.report)
    return 0 if checked.report.ok else 1


def build(settings: Settings, stages: Sequence[Stage], output: Output) -> int:
    """Build every kustomization into files of a folder."""
    checked = check(options_for(settings, stages=stages, everything=True), need_renderings=True)
    folder = write_builds(checked, BUILD_OUTPUT)
    code = show(checked.report, output)
    if output is Output.TEXT:
        console.raw(f"written to {folder}")
    return code


# How a command shows what its stages found.
SHOWN = {"report": run, "picture": structure, "build": build}


def diff(settings: Settings, base: str, live: bool, output: str) -> int:
    """Show what the tree changes, against a Git revision or against the cluster."""
    from scripts.check import diff as differences

    if output not in ("", "text", "markdown"):
        raise UsageError(f"OUTPUT={output} is not known here.", "take text or markdown")
    options = options_for(settings, stages=(Stage.STRUCTURE, Stage.BUILD))
    if live:
        from scripts.kube import Kube

        kube = Kube(settings.context, settings.tools_dir / "kubectl")
        renderings = check(options, need_renderings=True).renderings
        assert renderings is not None
        changes = differences.against_cluster(kube, renderings.applied)
        base = f"cluster {settings.context}"
    else:
        changes = differences.against_revision(options, base)
    if output == "markdown":
        console.raw(differences.as_markdown(changes, base))
    else:
        for line in differences.as_text(changes, base):
            console.diff_line(line)
    return 0


def pre_push(settings: Settings) -> int:
    """Check what Git is about to push."""
    from scripts.check import hooks

    return hooks.pre_push(lambda: options_for(settings, stages=hooks.STAGES))


def watch(settings: Settings, stages: Sequence[Stage] = ALL) -> int:
    """Check the tree at each save, until interrupted."""
    import threading

    from scripts.check import watch as watching

    options = options_for(settings, stages=stages)
    # Asked for here, since a server for dry runs is kept only as long as somebody watches.
    with _warm_server(settings, options):
        watching.watch(options.root, lambda: check(options).report, text_report.print_report, threading.Event())
    return 0


def _warm_server(settings: Settings, options: Options) -> AbstractContextManager[None]:
    from scripts.check.apiserver import kept_warm

    return kept_warm(settings) if any(e.stage is Stage.DRY_RUN for e in options.extra) else nullcontext()


def write_builds(checked: Checked, folder: Path) -> Path:
    """Write each rendering into a file below a folder, and remove what an earlier build left there."""
    import shutil
    import tempfile

    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    folders = [r.kustomization for r in checked.report.rendered]
    for rendered in checked.report.rendered:
        # A HelmRelease's file stands beside its kustomization's, named after it.
        folder_name, _, release = rendered.kustomization.partition(": ")
        name = folder_name.replace("../", "__/") or "root"
        name += f"--{release.replace(' ', '-').replace('/', '-')}" if release else ""
        if folders.count(rendered.kustomization) > 1:
            name += f"--{'-'.join(rendered.flux_kustomizations) or 'plain'}"
        path = fresh / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rendered.text)
    fresh.chmod(0o755)
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
    return folder


def output_of(text: str) -> Output:
    """Return the form of the report that was asked for."""
    try:
        return Output(text or "text")
    except ValueError:
        raise UsageError(f"OUTPUT={text} is not known.", f"take one of: {', '.join(Output)}") from None
