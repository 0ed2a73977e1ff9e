"""Flux at work: what every Kustomization must be Ready at, asking it to look now, and waiting until all is live."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts import console
from scripts.flux import MONITORING_SYNCS, ROOT_NAME
from scripts.git import differs as git_differs
from scripts.git import ensure_known, remote_branches
from scripts.health import healthy_already, revision_in_check
from scripts.kube import Kube, Object, condition, is_ready
from scripts.monitoring import mode
from scripts.settings import FLUX_NAMESPACE, Edge, Monitoring, Settings, environments, source_name
from scripts.sources import source_scopes
from scripts.waiting import wait_for

NUDGE_AFTER_S = 8.0
HURRY_EVERY_S = 0.4
STILL_AT = ": still at "
REQUESTED_AT = "reconcile.fluxcd.io/requestedAt"


@dataclass(frozen=True)
class Expected:
    """What a Kustomization must be Ready at: a commit, or an older one with the same files below its paths."""

    commit: str
    paths: tuple[str, ...] = ()


def pending_kustomizations(kube: Kube, expected: Mapping[str, Expected]) -> list[str]:
    """Return which of the expected Kustomizations are not Ready at what is expected of them, one line each."""
    return pending_among(kube.list_custom("Kustomization", FLUX_NAMESPACE), expected)


def pending_among(kustomizations: Iterable[Object], expected: Mapping[str, Expected]) -> list[str]:
    """Return the same of Kustomizations at hand."""
    found = {k["metadata"]["name"]: k for k in kustomizations}
    lines = []
    for name, wanted in expected.items():
        thing = found.get(name)
        if not thing:
            lines.append(f"Kustomization {name}: not created yet")
        elif not is_ready(thing):
            message = str(condition(thing).get("message", "not reconciled yet")).strip()
            lines.append(f"Kustomization {name}: {message}")
        elif _is_asked(thing):
            lines.append(f"Kustomization {name}: asked to look again, and not done with it yet")
        elif not _holds(str(thing["status"].get("lastAppliedRevision", "")), wanted):
            lines.append(f"Kustomization {name}{STILL_AT}{thing['status'].get('lastAppliedRevision', 'no revision')}")
    return lines


def _is_asked(thing: Mapping[str, Any]) -> bool:
    """Whether Flux was asked to look at a thing and has not answered: its Ready is still that of the last time."""
    asked = thing["metadata"].get("annotations", {}).get(REQUESTED_AT, "")
    suspended = thing.get("spec", {}).get("suspend", False)
    return bool(asked) and not suspended and thing["status"].get("lastHandledReconcileAt", "") != asked


def _holds(revision: str, wanted: Expected) -> bool:
    """Whether a revision (`branch@sha1:commit`) is the wanted commit, or has the same files as far as they are read."""
    held = revision.rpartition(":")[2]
    if not wanted.commit or held == wanted.commit:
        return True
    return bool(held and wanted.paths) and not git_differs(held, wanted.commit, wanted.paths)


def expected_kustomizations(settings: Settings, branches: Mapping[str, str]) -> dict[str, Expected]:
    """Return every Kustomization of the lab with what it must be Ready at."""
    sources = {ROOT_NAME: ROOT_NAME, "applications-sync": "applications"}
    sources |= {"infrastructure-sync": "infrastructure", "metrics-server-sync": "infrastructure"}
    if settings.edge is not Edge.NONE:
        sources["edge-sync"] = "infrastructure"
    if mode.in_lab(settings) is not Monitoring.NONE:
        sources |= dict.fromkeys(MONITORING_SYNCS, "infrastructure")
    sources |= {environment: source_name(environment) for environment in environments()}
    ensure_known(settings, branches)
    scopes = {scope.name: scope for scope in source_scopes()}
    return {
        name: Expected(branches.get(scopes[source].branch, ""), scopes[source].paths)
        for name, source in sources.items()
    }


def request_reconcile(
    kube: Kube, when: str, sources: Collection[str] | None = None, kustomizations: Collection[str] | None = None
) -> list[str]:
    """Ask Flux to look at every source and Kustomization now, or at those named; return what was asked.

    A source without a new commit costs one request; a Kustomization applies all that it has again.
    """
    patch: dict[str, Any] = {"metadata": {"annotations": {REQUESTED_AT: when}}}
    asked = []
    for kind, only in (("GitRepository", sources), ("Kustomization", kustomizations)):
        names = (
            [thing["metadata"]["name"] for thing in kube.list_custom(kind, FLUX_NAMESPACE)] if only is None else only
        )
        for name in names:
            kube.patch_custom(kind, FLUX_NAMESPACE, name, patch)
            asked.append(f"{kind}/{name}")
    return asked


def wait_until_ready(
    settings: Settings, kube: Kube, timeout_s: float, explain: Callable[[], str], interval_s: float = 0.4
) -> int:
    """Wait until every Kustomization is Ready at its branch's commit and return how many there are.

    A source that is behind although nobody is working on it was not told of a push (the hook could not reach the
    Receiver): it is asked to look, rather than waited for until its interval of ten minutes. So is a Kustomization whose
    health check has not seen yet that all is healthy.
    """
    expected = expected_kustomizations(settings, remote_branches(settings))
    behind: dict[str, float] = {}
    hurried: set[tuple[str, str]] = set()
    hurried_at = -HURRY_EVERY_S

    def pending() -> list[str]:
        nonlocal behind, hurried_at
        kustomizations = kube.list_custom("Kustomization", FLUX_NAMESPACE)
        lines = pending_among(kustomizations, expected)
        now = time.monotonic()
        if now - hurried_at >= HURRY_EVERY_S:
            hurried_at = now
            _hurry(kube, [k for k in kustomizations if k["metadata"]["name"] in expected], hurried)
        # Only what stays behind: a Kustomization is Ready a moment before it says at which commit, and asking then
        # would have everything applied once more.
        behind = {line: behind.get(line, now) for line in lines if STILL_AT in line}
        if behind and now - min(behind.values()) >= NUDGE_AFTER_S:
            console.note("asking Flux to look again")
            late = [line.removeprefix("Kustomization ").partition(STILL_AT)[0] for line in behind]
            request_reconcile(kube, f"nudge-{time.monotonic_ns()}", kustomizations=late)
            behind = {}
        return lines

    wait_for(
        "every Kustomization is Ready at its branch's commit",
        pending,
        timeout_s=timeout_s,
        interval_s=interval_s,
        mend="`make status` shows the state, `make diagnose` collects everything; to undo a change: git revert, make push",
        explain=explain,
    )
    return len(expected)


def _hurry(kube: Kube, kustomizations: Sequence[Object], hurried: set[tuple[str, str]]) -> None:
    """Ask those to look whose health check waits for what is there already, once for each revision."""
    waiting = [k for k in kustomizations if revision_in_check(k) and _attempt(k) not in hurried]
    healthy = healthy_already(kube, waiting)
    if healthy:
        request_reconcile(kube, f"healthy-{time.monotonic_ns()}", (), [k["metadata"]["name"] for k in healthy])
        hurried.update(map(_attempt, healthy))


def _attempt(kustomization: Object) -> tuple[str, str]:
    return kustomization["metadata"]["name"], revision_in_check(kustomization)


def settle_sources(kube: Kube, branches: Mapping[str, str], timeout_s: float = 60) -> None:
    """Make every source hold its branch's commit, asking again as long as one does not.

    Once is not enough after branches were set back: a reconcile that begins while the last one is still being
    written compares with what it read before, and leaves the artifact of the commit in between.
    """
    asked_at = 0.0

    def pending() -> list[str]:
        nonlocal asked_at
        stale = {}
        for source in kube.list_custom("GitRepository", FLUX_NAMESPACE):
            commit = branches.get(source["spec"]["ref"].get("branch", ""), "")
            held = str(source.get("status", {}).get("artifact", {}).get("revision", ""))
            if not held.endswith(commit):
                stale[source["metadata"]["name"]] = held or "no revision"
        if stale and time.monotonic() - asked_at > 1:
            asked_at = time.monotonic()
            request_reconcile(kube, f"settle-{time.monotonic_ns()}", sources=stale, kustomizations=())
        return [f"{name} is at {held}" for name, held in stale.items()]

    wait_for("every source holds its branch's commit", pending, timeout_s=timeout_s)
