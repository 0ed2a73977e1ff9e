"""The Git hook that checks what is pushed, before it leaves this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from scripts import console
from scripts.check.diff import checked_out
from scripts.check.model import Severity, Stage
from scripts.check.report import closing_line, finding_lines
from scripts.check.runner import Options, check
from scripts.errors import UsageError
from scripts.git import git
from scripts.outcome import Outcome
from scripts.settings import ROOT

_MARK = "# gitops-lab: checks the manifests of what is pushed; `git push --no-verify` leaves it out"
# The dry run takes seconds; what it finds is found by `make kustomize-check` and by setup.
STAGES = (Stage.STRUCTURE, Stage.BUILD, Stage.SCHEMA, Stage.LINT)


def install(root: Path = ROOT) -> Outcome:
    """Install the pre-push hook; another one of that name is left alone."""
    path = Path(git("rev-parse", "--path-format=absolute", "--git-path", "hooks/pre-push", root=root).stdout.strip())
    text = _script(root)
    if path.exists() or path.is_symlink():
        current = path.read_text(errors="replace") if path.is_file() else ""
        if _MARK not in current:
            raise UsageError(
                f"There is a pre-push hook already, and it is not the lab's: {path}",
                f"add this line to it, or move it away: {text.splitlines()[-1]}",
            )
        if current == text:
            return Outcome(False, f"the hook is installed: {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return Outcome(True, f"installed {path}: each push checks the manifests first")


def _script(root: Path) -> str:
    return f"""#!/bin/sh
{_MARK}
# Git tells a hook where its repository is by variables that would mislead the git commands of the check.
# The last one would have Python compile the package anew each time.
unset $(git rev-parse --local-env-vars) PYTHONDONTWRITEBYTECODE
cd {shlex.quote(str(root))} && exec .venv/bin/python -m scripts pre-push
"""


def pre_push(options: Callable[[], Options], lines: Iterator[str] | None = None) -> int:
    """Check every commit that is about to be pushed; returns 1, which stops the push, where one has an error."""
    commits = dict.fromkeys(_pushed_commits(lines if lines is not None else iter(sys.stdin)))
    code = 0
    for commit in commits:
        wanted = replace(options(), stages=STAGES)
        # What is pushed is the commit, whatever lies in the working copy.
        with checked_out(wanted.root, commit) as root:
            if root is None:
                continue
            report = check(replace(wanted, root=root, store_name=str(wanted.root.resolve()))).report
        errors = replace(report, findings=tuple(f for f in report.findings if f.severity is Severity.ERROR))
        if not errors.ok:
            code = 1
            for line in finding_lines(replace(errors, root=wanted.root)):
                console.raw(line)
            console.raw(f"{commit[:10]} is not pushed. {closing_line(errors)}")
    return code


def _pushed_commits(lines: Iterator[str]) -> Iterator[str]:
    """Yield the commits that git tells a pre-push hook of: local ref, commit (zeros for none), remote ref, commit."""
    for line in lines:
        parts = line.split()
        if len(parts) == 4 and parts[1].strip("0") and not parts[2].startswith("refs/tags/"):
            yield parts[1]
