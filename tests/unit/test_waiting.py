from collections.abc import Callable

import pytest

from scripts import console
from scripts.errors import NotReadyError
from scripts.waiting import wait_for


def answers(*looks: list[str]) -> Callable[[], list[str]]:
    """Give one answer per look, the last one for ever."""
    left = list(looks)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_a_condition_that_holds_is_looked_at_once() -> None:
    looks = []
    assert wait_for("it", lambda: looks.append(1) or [], timeout_s=0) < 1  # type: ignore[func-returns-value]
    assert looks == [1]


def test_it_looks_again_until_nothing_is_pending() -> None:
    pending = answers(["a", "b"], ["b"], [])
    assert wait_for("all are ready", pending, timeout_s=10, interval_s=0.001) < 10
    assert pending() == []


def test_the_deadline_says_what_is_pending_and_why() -> None:
    pending = answers(["never seen again"], ["pod a: ImagePullBackOff", "pod b: no node has memory"])
    with pytest.raises(NotReadyError) as late:
        wait_for("every pod is Ready", pending, timeout_s=0.05, interval_s=0.01, mend="look there")
    assert str(late.value).splitlines() == [
        "after 0 s still waiting: every pod is Ready",
        "    pod a: ImagePullBackOff",
        "    pod b: no node has memory",
        "To mend it: look there",
    ]


def test_the_deepest_cause_is_looked_for_once_and_only_at_the_deadline() -> None:
    asked = []

    def explain() -> str:
        asked.append(1)
        return "first line\nthe deepest cause\n"

    assert wait_for("it", answers(["no"], []), timeout_s=5, interval_s=0.001, explain=explain) < 5
    assert asked == []
    with pytest.raises(NotReadyError, match=r"no\n    first line\n    the deepest cause"):
        wait_for("it", lambda: ["no"], timeout_s=0.01, interval_s=0.001, explain=explain)
    assert asked == [1]


def test_a_long_explanation_keeps_its_end() -> None:
    with pytest.raises(NotReadyError) as late:
        wait_for("it", lambda: ["no"], timeout_s=0, explain=lambda: "\n".join(f"line {n}" for n in range(200)))
    lines = late.value.details.splitlines()
    assert len(lines) < 60
    assert lines[-1] == "    line 199"


def test_a_pending_thing_is_still_named_beside_a_long_explanation() -> None:
    with pytest.raises(NotReadyError) as late:
        wait_for("it", lambda: ["pod a: why"], timeout_s=0, explain=lambda: "\n".join(f"line {n}" for n in range(200)))
    assert "pod a: why" in late.value.details


def test_meanwhile_the_step_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "note", said.append)
    wait_for("pods are Ready", answers(["a: why", "b", "c"], ["a: why"], []), timeout_s=10, interval_s=0.001)
    assert said == ["waiting: pods are Ready: a: why (+2)", "waiting: pods are Ready: a: why"]


def test_an_error_of_the_condition_is_not_swallowed() -> None:
    def pending() -> list[str]:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        wait_for("it", pending, timeout_s=10)
