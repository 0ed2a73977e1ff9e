import functools
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scripts import console
from scripts.settings import ROOT
from tests.unit.conftest import Until

Capture = pytest.CaptureFixture[str]
# Shows one of each, in a process of its own: what it prints depends on its output and on its environment.
SHOW = """
import time
from scripts import console
with console.Board() as board, board.task("the step"):
    if console.is_live():
        time.sleep(0.2)  # lines are redrawn eight times a second
    console.note("a detail")
    console.line("[bold]a line[/bold] :rocket:")
    console.done("a step", 12.34, "did it")
    console.done("a step", 100, "did not", ok=False)
    console.table("Title", ["name", "state"], [["one", "Ready"]])
    console.warn("a warning")
    console.error("an error\\nits cause")
"""
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")


@functools.cache
def show_in_terminal(*extra: str) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "FORCE_COLOR")} | {
        "TERM": "xterm-256color"
    }
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        env=env | dict(v.split("=") for v in extra),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    data = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed (Linux)
            break
        if not part:
            break
        data += part
    os.close(ours)
    assert process.wait(60) == 0
    return data.decode()


def test_in_a_pipe_lines_are_plain_and_errors_apart() -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
    shown = subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert [line.rstrip() for line in shown.stdout.splitlines()] == [
        "▸ the step",
        "[bold]a line[/bold] :rocket:",
        "✔ a step  12.3 s  did it",
        "✘ a step  1 min 40 s  did not",
        "Title",
        "name  state",
        "one   Ready",
    ]
    assert shown.stderr.splitlines() == ["! a warning", "✘ an error", "its cause"]


def test_a_terminal_has_colours_and_a_live_line() -> None:
    shown = show_in_terminal()
    assert COLOUR.search(shown)
    assert "the step" in shown, "the running step has a line that is redrawn"
    assert "\x1b[?25l" in shown, "while lines are redrawn the cursor is hidden"
    assert "\x1b[?25h" in shown.rpartition("\x1b[?25l")[2], "and comes back"


@pytest.mark.parametrize(
    ("extra", "coloured", "live"),
    [("NO_COLOR=1", False, True), ("CI=true", True, False), ("TERM=dumb", False, False)],
)
def test_a_terminal_that_asks_for_less_gets_less(extra: str, coloured: bool, live: bool) -> None:
    shown = show_in_terminal(extra)
    assert bool(COLOUR.search(shown)) is coloured
    assert ("\x1b[?25l" in shown) is live
    assert "a line" in shown


def test_a_long_line_in_a_pipe_stays_one_line(capsys: Capture) -> None:
    console.line("x" * 500)
    console.done("y" * 500, 1)
    assert [len(line) for line in capsys.readouterr().out.splitlines()] == [500, 2 + 500 + len("  1.0 s")]


def test_a_table_in_a_pipe_is_not_cut_to_the_width_of_a_terminal(capsys: Capture) -> None:
    console.table("", ["name", "why"], [["n" * 50, "w" * 100]])
    assert f"{'n' * 50}  {'w' * 100}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ['{"a": "[red]"}', '{"a": 1}\n'])
def test_raw_text_is_left_as_it_is_and_ends_in_one_newline(capsys: Capture, text: str) -> None:
    console.raw(text)
    out = capsys.readouterr().out
    assert out == text.rstrip("\n") + "\n"
    assert json.loads(out)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (0.04, "0.0 s"), (12.34, "12.3 s"), (89.9, "89.9 s"), (90, "1 min 30 s"), (3725.9, "62 min 05 s")],
)
def test_a_duration_reads_as_people_write_it(seconds: float, shown: str) -> None:
    assert console.duration(seconds) == shown


def test_a_step_that_takes_long_says_now_and_then_what_it_does(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(console, "HEARTBEAT_S", 0.0)
    out = ""

    def heard() -> bool:
        nonlocal out
        out += capsys.readouterr().out
        return out.count("… ") >= 2

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return super().wait(0.01)

    board = console.Board()
    board._stop = Impatient()
    with board, board.task("images"), console.lane("etcd"):
        console.note("compiling")
        until(heard)
    assert re.search(r"^… images: running \(\d+\.\d s\)$", out, re.MULTILINE)
    assert re.search(r"^… etcd: compiling \(\d+\.\d s\)$", out, re.MULTILINE)


def test_a_lane_of_a_step_needs_no_board() -> None:
    with console.lane("etcd"):
        console.note("compiling")


def test_a_note_speaks_for_the_step_of_its_thread_and_for_the_outer_one_again() -> None:
    board = console.Board()
    with board.task("outer") as outer:
        with board.task("inner") as inner:
            console.note("deep")
        console.note("shallow")
        other = threading.Thread(target=console.note, args=("a thread that speaks for nobody",))
        other.start()
        other.join()
    assert (outer.detail, inner.detail) == ("shallow", "deep")


def test_only_the_mark_of_a_step_and_of_a_warning_is_coloured() -> None:
    shown = show_in_terminal()
    assert "\x1b[32m✔ \x1b[0m" in shown
    assert "\x1b[33m! \x1b[0ma warning" in shown


def test_a_step_that_fails_is_no_longer_shown_as_running() -> None:
    board = console.Board()
    with pytest.raises(ValueError, match="no"), board.task("step"):
        raise ValueError("no")
    assert board._tasks == []


def test_details_go_to_the_log_file_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "deep" / "lab.log"
    code = (
        "from scripts import console; import pathlib, sys\n"
        "console.open_log(pathlib.Path(sys.argv[1]))\n"
        "console.debug('a detail'); console.note('a note'); console.line('a line'); console.error('an error')"
    )
    shown = subprocess.run([sys.executable, "-c", code, log], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (shown.stdout, shown.stderr) == ("a line\n", "✘ an error\n")
    assert [line.split(" MainThread ")[1] for line in log.read_text().splitlines()] == [
        "a detail",
        "a note",
        "a line",
        "an error",
    ]
