"""A Python that has modules in memory already: each program runs in a fork of it, which pays for no interpreter and no import.

What is shown of a process is shown here too: its output, its exit code, the signal that ended it, and nothing that it
leaves in memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.settings import ROOT

_SERVER = """
import importlib, json, os, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
jobs, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 0)
for job in map(json.loads, jobs):
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
else:
    sys.exit()
jobs.close()
answers.close()
for number, path in ((1, job["stdout"]), (2, job["stderr"])):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
os.chdir(job["cwd"])
os.environ.clear()
os.environ.update(job["env"])
sys.argv = ["-c", *job["argv"]]
exec(compile(job["program"], "<program>", "exec"), {"__name__": "__main__"})
"""


class WarmPython:
    """Runs programs one after the other; a context manager that ends with its block."""

    def __init__(self, folder: Path, *modules: str) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *modules],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> WarmPython:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate(timeout=30)

    def run(
        self, program: str, *argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """Run a program's text and return what came of it."""
        assert self._server.stdin is not None and self._server.stdout is not None
        out, err = self._folder / "stdout", self._folder / "stderr"
        arguments = [str(a) for a in argv]
        job = {
            "program": program, "argv": arguments, "env": dict(os.environ if env is None else env), "cwd": str(cwd),
            "stdout": str(out), "stderr": str(err),
        }  # fmt: skip
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the warm Python has ended"
        return subprocess.CompletedProcess(arguments, int(answer), out.read_text(), err.read_text())
