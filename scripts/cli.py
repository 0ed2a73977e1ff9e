"""The command line: reads arguments, calls one function, prints its result. The makefile has one line per command."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import console, settings
from scripts.errors import LabError, UsageError
from scripts.settings import Monitoring, Settings

if TYPE_CHECKING:
    from scripts.versions import Versions

Command = Callable[[Settings], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts", description="The GitOps lab's commands; see `make help`."
    )
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("--debug", action="store_true", default=os.environ.get("DEBUG") == "1", help="show tracebacks")
    options = parser.parse_args(arguments)
    try:
        chosen = settings.load()
        log = chosen.state_dir / "logs" / f"{options.command}.log"
        if options.command not in _QUIET:
            _rotate(log)
            console.open_log(log)
        return COMMANDS[options.command](chosen)
    except KeyboardInterrupt:
        console.error("Interrupted. What was done is kept: run the same command again to go on.")
        return 130
    except LabError as error:
        if options.debug:
            traceback.print_exc()
        console.error(str(error))
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as error:  # the last resort: a traceback is for developers, a line for people
        if options.debug:
            raise
        console.debug(traceback.format_exc())
        console.error(
            f"Unexpected {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
            f"To mend it: run again with DEBUG=1 to see where; details are in {_log_of(options.command)}"
        )
        return 1


def _pinned() -> Versions:
    from scripts import versions

    return versions.load()


def _log_of(command: str) -> str:
    return str(settings.load().state_dir / "logs" / f"{command}.log")


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > 5 * 1024**2:
        log.replace(log.with_suffix(".log.1"))


def _setup(chosen: Settings) -> int:
    from scripts import setup

    try:
        setup.setup_all(chosen, _pinned())
    except LabError:
        _diagnose_after_failure(chosen)
        raise
    return 0


def _diagnose_after_failure(chosen: Settings) -> None:
    from scripts import cluster, diagnose
    from scripts.docker import engine_info
    from scripts.kube import Kube

    # Before a cluster exists there is nothing to collect that the error doesn't say.
    if chosen.owns_cluster and engine_info() and cluster.node_containers(chosen):
        folder = diagnose.diagnose(chosen, Kube(chosen.context, chosen.tools_dir / "kubectl"))
        console.line(f"  diagnostics: {folder}")


def _tools(chosen: Settings) -> int:
    from scripts import provide

    with console.Board() as board, board.task("Tools of the tests"):
        outcome = provide.ensure_check_tools(chosen, _pinned(), chosen.state_dir / "logs", tests=True)
    if outcome.changed:
        console.line(outcome.what)
    return 0


def _doctor(chosen: Settings) -> int:
    from scripts import labfacts, preflight, provide, sourcebuild
    from scripts.cache import Cache
    from scripts.monitoring import mode
    from scripts.preconditions import Level

    source, why = provide.choose_source(chosen)
    console.line(f"image source: {source} ({why})")
    chosen = replace(chosen, monitoring=mode.choose(chosen, source))
    warm = sourcebuild.is_warm(Cache(chosen.cache_dir), _pinned(), chosen.monitoring is not Monitoring.NONE)
    findings = labfacts.run_checks(chosen, source, warm)
    preflight.render(findings)
    return 1 if any(f.level is Level.ERROR for f in findings) else 0


def _status(chosen: Settings) -> int:
    from scripts import status

    return status.main(chosen, os.environ.get("OUTPUT", "") or "table")


def _diagnose(chosen: Settings) -> int:
    from scripts import diagnose
    from scripts.kube import Kube

    console.line(f"diagnostics: {diagnose.diagnose(chosen, Kube(chosen.context, chosen.tools_dir / 'kubectl'))}")
    return 0


def _timings(chosen: Settings) -> int:
    from scripts import timings

    timings.show(chosen)
    return 0


def _teardown(chosen: Settings) -> int:
    from scripts import teardown

    teardown.teardown(chosen, teardown.purge_of(os.environ))
    return 0


def _resume(chosen: Settings) -> int:
    from scripts import resume

    return resume.resume(chosen)


def _engine_stop(chosen: Settings) -> int:
    from scripts import engine

    console.line(engine.stop_engine(chosen).what)
    return 0


def _deploy(chosen: Settings) -> int:
    from scripts import deploy

    deploy.deploy(chosen, _pinned())
    return 0


def _push(chosen: Settings) -> int:
    from scripts import deploy

    deploy.push(chosen)
    return 0


def _reconcile(chosen: Settings) -> int:
    from scripts import deploy

    deploy.reconcile(chosen)
    return 0


def _logs(chosen: Settings) -> int:
    from scripts import deploy

    return deploy.logs(chosen, settings.require_environment(os.environ.get("ENV", "")))


def _port_forward(chosen: Settings) -> int:
    from scripts import deploy

    return deploy.port_forward(chosen, settings.require_environment(os.environ.get("ENV", "")))


def _test_endpoints(chosen: Settings) -> int:
    from scripts import deploy

    return deploy.test_endpoints(chosen)


def _new_environment(chosen: Settings) -> int:
    from scripts import deploy, environments, manifests, provide

    pinned = _pinned()

    def check(flux_cd: Path) -> None:
        provide.ensure_check_tools(chosen, pinned, chosen.state_dir / "logs")
        manifests.validate(chosen, pinned, chosen.tools_dir, flux_cd)

    name = os.environ.get("NAME", "")
    if os.environ.get("DELETE") == "1":
        change = environments.remove(name, check)
    else:
        change = environments.add(name, check, deploy.live_namespaces(chosen))
    verb = "removed from" if change.deleted else "committed to"
    console.line(f"{name} {verb} Git ({change.commit[:10]}); `make push` makes it so in the cluster")
    return 0


def _bench(chosen: Settings) -> int:
    from scripts import bench

    return bench.bench(chosen, _pinned())


def _kustomize(shown: str, *stages: str) -> Command:
    """Return the command that runs some stages of the check, all of them if none is named, and shows them in one way."""

    def command(chosen: Settings) -> int:
        from scripts.check import commands
        from scripts.check.model import Stage

        output = commands.output_of(os.environ.get("OUTPUT", ""))
        return commands.SHOWN[shown](chosen, tuple(Stage(s) for s in stages) or tuple(Stage), output)

    return command


def _kustomize_diff(chosen: Settings) -> int:
    from scripts.check import commands

    base, live = os.environ.get("BASE", "") or "main", os.environ.get("LIVE") == "1"
    return commands.diff(chosen, base, live, os.environ.get("OUTPUT", ""))


def _helm(chosen: Settings) -> int:
    from scripts import provide

    with console.Board() as board, board.task("Helm"):
        outcome = provide.ensure_helm(chosen, _pinned(), chosen.state_dir / "logs")
    console.line(outcome.what)
    return 0


def _hooks(_: Settings) -> int:
    from scripts.check import hooks

    console.line(hooks.install().what)
    return 0


def _pre_push(chosen: Settings) -> int:
    from scripts.check import commands

    return commands.pre_push(chosen)


def _watch(chosen: Settings) -> int:
    from scripts.check import commands

    return commands.watch(chosen)


def _hpa_demo(chosen: Settings) -> int:
    wanted = settings.load_hpa()

    from scripts.hpa import demo

    return demo.demo(chosen, wanted)


def _hpa_status(chosen: Settings) -> int:
    from scripts.hpa import status

    return status.status(chosen, os.environ.get("ENV", ""))


def _hpa_compare(_: Settings) -> int:
    from scripts.hpa import compare

    return compare.compare(os.environ.get("RUNS", "").split())


def _keda_remove(chosen: Settings) -> int:
    from scripts import deploy, keda

    console.line(keda.remove(deploy.lab_kube(chosen)).what)
    return 0


def _query(chosen: Settings) -> int:
    from scripts.monitoring import query

    env = os.environ
    return query.query(chosen, env.get("Q", ""), env.get("SINCE", ""), env.get("OUTPUT", ""))


def _port_forward_tool(name: str) -> Command:
    def command(chosen: Settings) -> int:
        from scripts.monitoring import forward, prometheus

        tool = {t.name.lower(): t for t in (prometheus.PROMETHEUS, prometheus.ALERTMANAGER, prometheus.GRAFANA)}[name]
        return forward.port_forward(chosen, tool, settings.port(os.environ, "PORT", tool.port))

    return command


def _alerts(chosen: Settings) -> int:
    from scripts.monitoring import alerts

    return alerts.show(chosen, os.environ.get("OUTPUT", "") or "table")


def _alert_webhook(chosen: Settings) -> int:
    from scripts.monitoring import alerts

    if "ALERT_WEBHOOK_URL" not in os.environ:
        raise UsageError(
            "ALERT_WEBHOOK_URL is not in the environment.", "read -rs ALERT_WEBHOOK_URL; export ALERT_WEBHOOK_URL"
        )
    console.line(alerts.set_webhook(chosen, os.environ["ALERT_WEBHOOK_URL"].strip()))
    return 0


def _rules(_: Settings) -> int:
    from scripts.monitoring import rules

    changed = rules.write()
    console.line(
        f"written: {', '.join(p.name for p in changed)}" if changed else "the rules are what slo.yaml promises"
    )
    return 0


def _debug_metrics(chosen: Settings) -> int:
    from scripts.monitoring import debug_metrics

    return debug_metrics.debug_metrics(chosen, os.environ.get("OUTPUT", ""))


def _dashboards(chosen: Settings) -> int:
    from scripts.monitoring import page

    return page.dashboards(chosen, os.environ.get("SINCE", ""))


def _dashboards_generate(_: Settings) -> int:
    from scripts.monitoring.dashboards import generate

    console.line(generate.write().what)
    return 0


def _definitions(chosen: Settings) -> int:
    from scripts import definitions

    changed = definitions.renew(chosen, _pinned())
    console.line("\n".join(f"written: {name}" for name in changed) or "the definitions are what upstream.yaml asks for")
    return 0


def _lock(chosen: Settings) -> int:
    from scripts import relock

    relock.relock(chosen, _pinned(), force=os.environ.get("FORCE") == "1")
    return 0


def _mirror_fill(chosen: Settings) -> int:
    from scripts import mirror_options, mirrorfill

    options = mirror_options.load(os.environ)
    tally = mirrorfill.fill(chosen, _pinned(), options)
    console.line(str(tally))
    for name in tally.left_out:
        console.line(f"  {name} is not part of what is built from source: not in this mirror", "dim")
    console.line("Next: `make mirror-verify` with the same variables.", "dim")
    return 0


def _mirror_list(_: Settings) -> int:
    from scripts import mirrorset

    console.raw(mirrorset.listing(_pinned()))
    return 0


def _mirror_verify(chosen: Settings) -> int:
    from scripts import mirror_options, mirrorverify
    from scripts.transfer import size_text

    options = mirror_options.load(os.environ)
    verdict = mirrorverify.verify(chosen, _pinned(), options)
    for line in verdict.wrong:
        console.error(line)
    console.line(
        f"{verdict.things} things, {size_text(verdict.read_bytes)} read, {len(verdict.wrong)} wrong: "
        f"{mirrorverify.platforms_line(options)}"
    )
    return 1 if verdict.wrong else 0


def _mirror_serve(chosen: Settings) -> int:
    from scripts import mirror_options, mirrorserve

    mirrorserve.serve(chosen, _pinned(), mirror_options.load(os.environ))
    return 0


def _outdated(chosen: Settings) -> int:
    from scripts import outdated

    outdated.render(outdated.look(chosen, _pinned()))
    return 0


def _clean(chosen: Settings) -> int:
    from scripts import teardown

    teardown.clean(chosen, cache=os.environ.get("CACHE") == "1")
    return 0


def _app_tag(_: Settings) -> int:
    from scripts import appimage

    console.raw(appimage.content_tag())
    return 0


COMMANDS: dict[str, Command] = {
    "alert-webhook": _alert_webhook,
    "alerts": _alerts,
    "app-tag": _app_tag,
    "bench": _bench,
    "clean": _clean,
    "dashboards": _dashboards,
    "dashboards-generate": _dashboards_generate,
    "debug-metrics": _debug_metrics,
    "definitions": _definitions,
    "deploy": _deploy,
    "diagnose": _diagnose,
    "doctor": _doctor,
    "engine-stop": _engine_stop,
    "helm": _helm,
    "hooks": _hooks,
    "hpa-compare": _hpa_compare,
    "hpa-demo": _hpa_demo,
    "hpa-status": _hpa_status,
    "keda-remove": _keda_remove,
    "kustomize-build": _kustomize("build", "structure", "build"),
    "kustomize-check": _kustomize("report"),
    "kustomize-diff": _kustomize_diff,
    "kustomize-dry-run": _kustomize("report", "structure", "build", "dry-run"),
    "kustomize-lint": _kustomize("report", "structure", "build", "lint"),
    "kustomize-structure": _kustomize("picture", "structure"),
    "kustomize-validate": _kustomize("report", "structure", "build", "schema"),
    "lock": _lock,
    "logs": _logs,
    "mirror-fill": _mirror_fill,
    "mirror-list": _mirror_list,
    "mirror-serve": _mirror_serve,
    "mirror-verify": _mirror_verify,
    "new-environment": _new_environment,
    "outdated": _outdated,
    "port-forward": _port_forward,
    "port-forward-alertmanager": _port_forward_tool("alertmanager"),
    "port-forward-grafana": _port_forward_tool("grafana"),
    "port-forward-prometheus": _port_forward_tool("prometheus"),
    "pre-push": _pre_push,
    "push": _push,
    "query": _query,
    "reconcile": _reconcile,
    "resume": _resume,
    "rules": _rules,
    "setup-all": _setup,
    "status": _status,
    "teardown": _teardown,
    "test-endpoints": _test_endpoints,
    "timings": _timings,
    "tools": _tools,
    "watch": _watch,
}
# Commands whose details nobody reads later.
_QUIET = {
    "app-tag", "hpa-compare", "hpa-status", "status", "timings", "logs", "port-forward", "test-endpoints", "doctor", "tools", "mirror-list",
    "kustomize-check",
    "kustomize-diff", "pre-push", "hooks", "watch", "kustomize-structure", "kustomize-build", "kustomize-validate",
    "kustomize-lint", "kustomize-dry-run", "query", "alerts", "alert-webhook", "rules", "dashboards-generate",
    "port-forward-prometheus", "port-forward-grafana", "port-forward-alertmanager",
}  # fmt: skip
