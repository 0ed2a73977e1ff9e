"""When Flux is asked to look again while a lab comes up: only for what stays behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import flux_sync
from scripts.settings import Settings

BEHIND = f"Kustomization dev{flux_sync.STILL_AT}main@sha1:0"
WORKING = "Kustomization dev: Reconciliation in progress"
AFTER_LOOKS = 5


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], list[str]]], int]:
    """Wait while each look answers as told by its number, and give how often Flux was asked."""

    def wait(look: Callable[[int], list[str]]) -> int:
        looks, asked = 0, 0

        def pending(*_: object) -> list[str]:
            nonlocal looks
            looks += 1
            return look(looks)

        def ask(*_: object, kustomizations: list[str]) -> list[str]:
            nonlocal asked
            asked += 1
            assert kustomizations == ["dev"], "the others would apply all that they have again"
            return []

        clock = SimpleNamespace(monotonic=lambda: looks * 1.0, monotonic_ns=lambda: looks)
        monkeypatch.setattr(flux_sync, "time", clock)
        monkeypatch.setattr(flux_sync, "NUDGE_AFTER_S", AFTER_LOOKS)
        monkeypatch.setattr(flux_sync, "remote_branches", lambda settings: {})
        monkeypatch.setattr(flux_sync, "expected_kustomizations", lambda *_: {"dev": flux_sync.Expected("1")})
        monkeypatch.setattr(flux_sync, "pending_among", pending)
        monkeypatch.setattr(flux_sync, "request_reconcile", ask)
        settings = replace(Settings(), cluster_name="waited-for")
        kube = SimpleNamespace(list_custom=lambda *_: [])
        assert flux_sync.wait_until_ready(settings, kube, 10, lambda: "", interval_s=0.001) == 1  # type: ignore[arg-type]
        return asked

    return wait


def test_what_is_behind_for_a_moment_asks_for_nothing(waiting) -> None:
    """A Kustomization is Ready a moment before it says at which commit."""
    assert waiting(lambda n: [] if n > 40 else [BEHIND] if n in (20, 40) else [WORKING]) == 0


def test_what_stays_behind_is_asked_for_once_in_a_while(waiting) -> None:
    assert waiting(lambda n: [] if n > 14 else [BEHIND]) == 2


def test_a_new_commit_begins_anew(waiting) -> None:
    """Each of them is held for less than it takes to be asked for."""
    assert waiting(lambda n: [] if n > 20 else [f"{BEHIND}{n // 3}"]) == 0


@pytest.mark.parametrize(
    ("asked", "handled", "suspended", "says"),
    [
        (None, None, False, []),
        ("at-2", "at-2", False, []),
        ("at-2", "at-1", False, ["Kustomization dev: asked to look again, and not done with it yet"]),
        ("at-2", None, False, ["Kustomization dev: asked to look again, and not done with it yet"]),
        ("at-2", "at-1", True, []),
    ],
)
def test_a_kustomization_that_was_asked_is_waited_for(
    asked: str | None, handled: str | None, suspended: bool, says: list[str]
) -> None:
    """Until it has looked, its Ready is that of the last time: `make reconcile` and `make resume` ended too early."""
    thing: dict[str, Any] = {
        "metadata": {"name": "dev"},
        "spec": {"suspend": suspended},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "lastAppliedRevision": "main@sha1:1"},
    }
    if asked:
        thing["metadata"]["annotations"] = {flux_sync.REQUESTED_AT: asked}
    if handled:
        thing["status"]["lastHandledReconcileAt"] = handled
    kube = SimpleNamespace(list_custom=lambda *_: [thing])
    assert flux_sync.pending_kustomizations(kube, {"dev": flux_sync.Expected("1")}) == says  # type: ignore[arg-type]
