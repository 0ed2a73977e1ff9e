"""Work beside the process: its results, and what becomes of them where the child fails or can't be had."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each in a process of its own: a copy is made only of a process with one thread, which pytest's need not be.
PROLOGUE = """
import json, os, signal
from scripts.check import aside
aside.os.sched_getaffinity = lambda _: {0, 1}
parent = os.getpid()
def here():
    return os.getpid() == parent
def end(**facts):
    try:
        os.waitpid(-1, 0)
        facts["left"] = True
    except ChildProcessError:
        facts["left"] = False
    print(json.dumps(facts))
"""


def run(script: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROLOGUE + script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")
@pytest.mark.parametrize(
    ("script", "facts"),
    [
        (
            "def produce():\n    yield here()\n    yield 'x' * 10**6\n"
            "def more(work):\n    try:\n        return work.take()\n    except StopIteration:\n        return 'none'\n"
            "work = aside.Aside(produce)\nend(here=work.take(), size=len(work.take()), more=more(work))",
            {"here": False, "size": 10**6, "more": "none", "left": False},
        ),
        (
            # It dies after the first: the second is made here, and the first is not given twice.
            "def produce():\n    yield 'first'\n    if not here():\n        os.kill(os.getpid(), signal.SIGKILL)\n"
            "    yield here()\n"
            "work = aside.Aside(produce)\nend(first=work.take(), second=work.take())",
            {"first": "first", "second": True, "left": False},
        ),
        (
            "def produce():\n    yield 'x' * 10**6\n    yield 'y'\n"
            "work = aside.Aside(produce)\nwork.finish()\nwork.finish()\nend()",
            {"left": False},
        ),
        (
            "aside.os.sched_getaffinity = lambda _: {0}\n"
            "def produce():\n    yield here()\n"
            "work = aside.Aside(produce)\nend(here=work.take())",
            {"here": True, "left": False},
        ),
    ],
    ids=["in order", "killed", "dropped", "one core"],
)
def test_results(script: str, facts: dict[str, Any]) -> None:
    assert run(script) == facts


@pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")
def test_a_fault_is_told_in_its_own_words_by_the_process_that_asks() -> None:
    script = (
        "def produce():\n    yield 1\n    raise ValueError('unheard of')\n"
        "work = aside.Aside(produce)\nwork.take()\n"
        "try:\n    work.take()\nexcept ValueError as error:\n    end(said=str(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout) == {"said": "unheard of", "left": False}
    assert done.stderr == ""
