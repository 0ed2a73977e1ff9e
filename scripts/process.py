"""The only place that starts a process.

Argument lists, never a shell string; always a time limit; on failure the command, its exit code and its
last lines. Secrets go in by standard input or a file, never as an argument::

    run(["kind", "get", "clusters"], timeout_s=30).stdout.split()
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from scripts import console
from scripts.errors import LabError

LAST_LINES = 15


@dataclass(frozen=True)
class Completed:
    """A finished process: what was run, its exit code and what it printed."""

    args: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float


class CommandError(LabError):
    """A command that failed, timed out or could not be started."""

    def __init__(self, args: Sequence[str], exit_code: int | None, output: str, why: str, mend: str = "") -> None:
        self.command = tuple(args)
        self.exit_code = exit_code
        self.output = output
        super().__init__(f"`{printable(args)}` {why}", mend, last_lines(output))


def printable(args: Sequence[str]) -> str:
    """Return the command as one would type it, shortened to a line."""
    text = shlex.join(str(a) for a in args)
    return text if len(text) <= 300 else text[:297] + "..."


def last_lines(text: str, count: int = LAST_LINES) -> str:
    """Return the last non-empty lines of a text, indented for the terminal."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-count:])


def run(
    args: Sequence[str | Path],
    *,
    timeout_s: float,
    input_text: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    log_file: Path | None = None,
    mend: str = "",
) -> Completed:
    """Run a command to its end and return what it printed.

    Args:
        args: the program and its arguments.
        timeout_s: seconds after which the whole process group is killed.
        input_text: standard input; the way to hand over a secret.
        cwd: the folder to run in.
        env: variables added to the environment.
        check: raise CommandError unless the exit code is 0.
        log_file: where both streams go instead of memory (long builds); its end is quoted on failure.
        mend: the line that tells the user how to mend a failure.
    """
    argv = [str(a) for a in args]
    console.debug(f"$ {printable(argv)}")
    started = time.monotonic()
    if not shutil.which(argv[0]):
        raise CommandError(argv, None, "", "could not be started: there is no such program", mend)
    sink: IO[str] | int = log_file.open("a", encoding="utf-8", errors="replace") if log_file else subprocess.PIPE
    try:
        process = subprocess.Popen(
            [*_die_with_parent(), *argv],
            stdin=subprocess.PIPE if input_text is not None else subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT if log_file else subprocess.PIPE,
            cwd=cwd,
            env={**os.environ, **env} if env else None,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise CommandError(argv, None, "", f"could not be started: {error.strerror}", mend) from None
    finally:
        if log_file and not isinstance(sink, int):
            sink.close()
    try:
        stdout, stderr = process.communicate(input_text, timeout=timeout_s)
    except BaseException as error:
        # The group goes too: a build's compilers must not outlive an interrupted or timed-out build.
        kill_group(process)
        if isinstance(error, subprocess.TimeoutExpired):
            tail = _tail(log_file) if log_file else "".join(_text(s) for s in (error.stdout, error.stderr))
            raise CommandError(argv, None, tail, f"did not end within {timeout_s:.0f} s", mend) from None
        raise
    done = Completed(tuple(argv), process.returncode, stdout or "", stderr or "", time.monotonic() - started)
    console.debug(f"  exit {done.exit_code} after {done.seconds:.2f} s")
    if check and done.exit_code != 0:
        output = _tail(log_file) if log_file else done.stdout + done.stderr
        where = f"; its log: {log_file}" if log_file else ""
        raise CommandError(argv, done.exit_code, output, f"failed with exit code {done.exit_code}{where}", mend)
    return done


@cache
def _die_with_parent() -> tuple[str, ...]:
    """Return a prefix that lets the kernel end a command when this process is killed (Linux, util-linux).

    Without it a `kind create` or a build would go on after its setup was killed, beside the next one.
    """
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()


def kill_group(process: subprocess.Popen[str]) -> None:
    """End a process started in a session of its own, with all its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(timeout=30)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 8192))
        return file.read().decode(errors="replace")


def _text(stream: bytes | str | None) -> str:
    return stream.decode(errors="replace") if isinstance(stream, bytes) else stream or ""


def spawn_daemon(args: Sequence[str | Path], log_file: Path, env: Mapping[str, str] | None = None) -> int:
    """Start a long-lived process in a session of its own, its output in a file, and return its id."""
    argv = [str(a) for a in args]
    console.debug(f"$ {printable(argv)} &")
    with log_file.open("a", encoding="utf-8") as sink:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env} if env else None,
            start_new_session=True,
        )
    return process.pid


@dataclass(frozen=True)
class Background:
    """A process that runs beside a block of code."""

    args: tuple[str, ...]
    process: subprocess.Popen[str]
    output: IO[str]

    def require_running(self) -> None:
        """Raise CommandError if the process has ended."""
        code = self.process.poll()
        if code is not None:
            self.output.seek(0)
            raise CommandError(self.args, code, self.output.read(), f"ended early with exit code {code}")


@contextlib.contextmanager
def background(
    args: Sequence[str | Path], env: Mapping[str, str] | None = None, grace_s: float = 0.0
) -> Iterator[Background]:
    """Run a command beside the block and end it, with its children, afterwards; first politely, if given the time."""
    argv = [str(a) for a in args]
    console.debug(f"$ {printable(argv)} &")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*_die_with_parent(), *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env} if env else None,
            text=True,
            start_new_session=True,
        )
        try:
            yield Background(tuple(argv), process, output)
        finally:
            if grace_s:
                _ask_to_end(process, grace_s)
            kill_group(process)


def _ask_to_end(process: subprocess.Popen[str], grace_s: float) -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=grace_s)


@dataclass(frozen=True)
class Pipeline:
    """Commands whose output flows from one to the next; `lines` is what the last one prints, as it prints it."""

    processes: tuple[subprocess.Popen[str], ...]
    lines: IO[str]
    errors: IO[str]

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' ids."""
        return tuple(p.pid for p in self.processes)

    def interrupt(self) -> None:
        """Ask the first command to end as Ctrl-C would; the others end with their input."""
        if self.processes[0].poll() is None:
            self.processes[0].send_signal(signal.SIGINT)

    def failure(self, timeout_s: float) -> str:
        """Wait until all have ended and return what the first that failed said, or ""."""
        failed = [p for p in self.processes if p.wait(timeout_s) != 0]
        self.errors.seek(0)
        said = self.errors.read().strip()
        return f"exit code {failed[0].returncode}: {said or 'without a word'}" if failed else ""

    def close(self) -> None:
        """End whatever still runs, and let go of its output."""
        for process in self.processes:
            kill_group(process)
        self.lines.close()
        self.errors.close()


def start_pipeline(*commands: Sequence[str | Path]) -> Pipeline:
    """Start commands, each reading what the one before it prints; the caller closes the pipeline."""
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (the pipeline's, until it is closed)
    processes: list[subprocess.Popen[str]] = []
    source: IO[str] | int = subprocess.DEVNULL
    for command in commands:
        argv = [str(a) for a in command]
        console.debug(f"$ {printable(argv)} |")
        try:
            if not shutil.which(argv[0]):
                raise FileNotFoundError(2, "there is no such program")
            process = subprocess.Popen(
                [*_die_with_parent(), *argv],
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            for started in processes:
                kill_group(started)
            errors.close()
            raise CommandError(argv, None, "", f"could not be started: {error.strerror}") from None
        if not isinstance(source, int):
            source.close()  # the reader's end belongs to the reader: the writer must see it when the reader dies
        assert process.stdout is not None
        source = process.stdout
        processes.append(process)
    assert not isinstance(source, int)
    return Pipeline(tuple(processes), source, errors)
