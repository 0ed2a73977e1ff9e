"""What people see: status lines, tables, and the log file that keeps the details.

Lines are live in a terminal and plain in a pipe or under CI. NO_COLOR is honoured (by rich).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

# rich takes a tenth of a second to import: a command that prints nothing through it does not pay for it.
if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

HEARTBEAT_S = 30.0
PIPE_WIDTH = 240

_log = logging.getLogger("gitops-lab")
_log.addHandler(logging.NullHandler())
_log.propagate = False
_local = threading.local()


@cache
def _out() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@cache
def _err() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def is_live() -> bool:
    """Whether lines may be redrawn in place: a terminal, and not CI."""
    return _out().is_terminal and not os.environ.get("CI")


def open_log(path: Path) -> None:
    """Keep the details of this run in a file, apart from what the terminal shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(threadName)s %(message)s"))
    _log.setLevel(logging.DEBUG)
    _log.addHandler(handler)


def debug(message: str) -> None:
    """Write a line to the log file only."""
    _log.debug(message)


def line(message: str = "", style: str = "") -> None:
    """Print a line of information."""
    from rich.text import Text

    _log.info(message)
    _out().print(Text(message, style=style))


def warn(message: str) -> None:
    """Print a warning on standard error."""
    from rich.text import Text

    _log.warning(message)
    _err().print(Text.assemble(("! ", "yellow"), message))


def error(message: str) -> None:
    """Print an error on standard error, its first line marked."""
    from rich.text import Text

    _log.error(message)
    first, _, rest = message.partition("\n")
    _err().print(Text.assemble(("✘ ", "bold red"), (first, "bold")))
    if rest:
        _err().print(Text(rest))


def raw(text: str) -> None:
    """Print text as it is, for machines (JSON) and for pipes."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def diff_line(text: str) -> None:
    """Print a line of a difference, coloured in a terminal by what it begins with."""
    if not sys.stdout.isatty():
        raw(text)
        return
    mark = text.strip()[:1]
    line(text, {"+": "green", "-": "red", "@": "cyan", "─": "bold"}.get(mark, ""))


@contextlib.contextmanager
def live(draw: Callable[[], RenderableType], per_second: float = 2) -> Iterator[None]:
    """Show what `draw` returns, drawn anew while the block runs; only where `is_live`. The last drawing stays."""
    from rich.live import Live

    with Live(get_renderable=draw, console=_out(), refresh_per_second=per_second, vertical_overflow="crop"):
        yield


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    if _out().is_terminal:
        _out().print(grid)
    else:
        # A pipe has no width: a table is never folded for it.
        Console(highlight=False, width=PIPE_WIDTH, no_color=True).print(grid)


def duration(seconds: float) -> str:
    """Return a duration as people write it."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def note(message: str) -> None:
    """Say what the current step is doing: live beside the step in a terminal, a log line elsewhere."""
    _log.info(message)
    task = getattr(_local, "task", None)
    if task is not None:
        task.detail = message


_board: Board | None = None


@contextlib.contextmanager
def lane(label: str) -> Iterator[None]:
    """Show one of several things that run side by side within a step, if a board is up."""
    if _board is None:
        yield
    else:
        with _board.task(label):
            yield


class _Task:
    """A step that is running: its label, what it does now and since when."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.detail = ""
        self.started = time.monotonic()
        self.said_at = self.started


class Board:
    """The running steps. In a terminal each has a live line; in a pipe each gets a line now and then."""

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._stop = threading.Event()
        self._beat: threading.Thread | None = None

    def __enter__(self) -> Board:
        from rich.live import Live

        global _board
        _board = self
        if is_live():
            self._live = Live(get_renderable=self._draw, console=_out(), refresh_per_second=8, transient=True)
            self._live.__enter__()
        else:
            self._beat = threading.Thread(target=self._heartbeat, daemon=True, name="heartbeat")
            self._beat.start()
        return self

    def __exit__(self, *exc: object) -> None:
        global _board
        _board = None
        self._stop.set()
        if self._live:
            self._live.__exit__(None, None, None)
        if self._beat:
            self._beat.join()

    def _draw(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        now = time.monotonic()
        frame = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[int(now * 10) % 10]
        with self._lock:
            for task in self._tasks:
                grid.add_row(
                    Text(frame, style="cyan"),
                    Text(task.label),
                    Text(duration(now - task.started), style="dim"),
                    Text(task.detail, style="dim", overflow="ellipsis", no_wrap=True),
                )
        return grid

    def _heartbeat(self) -> None:
        from rich.text import Text

        while not self._stop.wait(1.0):
            now = time.monotonic()
            with self._lock:
                for task in self._tasks:
                    if now - task.said_at >= HEARTBEAT_S:
                        task.said_at = now
                        _out().print(
                            Text(f"… {task.label}: {task.detail or 'running'} ({duration(now - task.started)})")
                        )

    @contextlib.contextmanager
    def task(self, label: str) -> Iterator[_Task]:
        """Show a step as running until the block ends; `note()` in this thread then speaks for it."""
        from rich.text import Text

        task = _Task(label)
        if not self._live:
            _out().print(Text(f"▸ {label}", style="dim"))
        with self._lock:
            self._tasks.append(task)
        previous = getattr(_local, "task", None)
        _local.task = task
        try:
            yield task
        finally:
            _local.task = previous
            with self._lock:
                self._tasks.remove(task)


def done(label: str, seconds: float, detail: str = "", ok: bool = True) -> None:
    """Print a finished step: its mark, its time, what it found or did."""
    from rich.text import Text

    _log.info("%s %s %s %s", "done" if ok else "FAILED", label, duration(seconds), detail)
    mark = ("✔ ", "green") if ok else ("✘ ", "bold red")
    _out().print(
        Text.assemble(mark, label, (f"  {duration(seconds)}", "dim"), (f"  {detail}" if detail else "", "dim"))
    )
