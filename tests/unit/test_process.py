import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import console
from scripts.process import CommandError, last_lines, printable, run, spawn_daemon
from scripts.settings import ROOT
from tests.unit.conftest import Programs, Until

SECRET = "tr0ub4dor-and-3"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and setpriv")


@pytest.fixture
def debug_log(tmp_path: Path) -> Iterator[Path]:
    """Return the log file of this run, as `console.open_log` writes it."""
    logger = logging.getLogger("gitops-lab")
    before, level = list(logger.handlers), logger.level
    path = tmp_path / "logs" / "lab.log"
    console.open_log(path)
    yield path
    for handler in set(logger.handlers) - set(before):
        handler.close()
        logger.removeHandler(handler)
    logger.setLevel(level)


def sh(script: str, *args: str) -> list[str]:
    return ["sh", "-c", script, "sh", *args]


def test_a_command_that_ends_well_gives_both_streams_and_its_time() -> None:
    done = run(sh("echo out; echo err >&2; echo $1", "an argument with spaces; $HOME"), timeout_s=10)
    assert (done.stdout, done.stderr, done.exit_code) == ("out\nan argument with spaces; $HOME\n", "err\n", 0)
    assert done.args[0] == "sh"
    assert 0 < done.seconds < 10


@pytest.mark.parametrize("code", [1, 2, 125, 126, 127, 255])
def test_an_exit_code_is_not_lost(code: int) -> None:
    with pytest.raises(CommandError) as failed:
        run(sh(f"exit {code}"), timeout_s=10)
    assert failed.value.exit_code == code
    assert f"failed with exit code {code}" in failed.value.what
    assert run(sh(f"exit {code}"), timeout_s=10, check=False).exit_code == code


def test_a_command_killed_by_a_signal_is_a_failure() -> None:
    with pytest.raises(CommandError) as failed:
        run(sh("kill -TERM $$"), timeout_s=10)
    assert failed.value.exit_code == -signal.SIGTERM


def test_a_failure_shows_the_command_its_last_lines_and_how_to_mend_it() -> None:
    with pytest.raises(CommandError) as failed:
        run(
            sh("for i in $(seq 40); do echo line $i; done; echo; echo the reason >&2; exit 7"), timeout_s=10, mend="try"
        )
    shown = str(failed.value).splitlines()
    assert shown[0].startswith("`sh -c ")
    assert shown[0].endswith("failed with exit code 7")
    assert shown[1:-1] == [*(f"    line {n}" for n in range(27, 41)), "    the reason"]
    assert shown[-1] == "To mend it: try"


def test_a_failure_of_a_logged_command_quotes_and_names_its_log(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text("from an earlier run\n")
    with pytest.raises(CommandError) as failed:
        run(sh("yes no | head -20000; echo out; echo err >&2; exit 1"), timeout_s=10, log_file=log)
    assert str(log) in failed.value.what
    assert failed.value.details.splitlines()[-2:] == ["    out", "    err"]
    assert log.read_text().startswith("from an earlier run\nno\n")


def test_a_missing_program_is_named(programs: Programs) -> None:
    with pytest.raises(CommandError) as failed:
        run(["kubectl", "get", "pods"], timeout_s=10, mend="install it", check=False)
    assert failed.value.exit_code is None
    assert "`kubectl get pods` could not be started" in failed.value.what
    assert failed.value.mend == "install it"


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="could not be started"):
        run(["true"], timeout_s=10, cwd=tmp_path / "gone")


def test_folder_and_variables_reach_the_command_beside_the_environment(tmp_path: Path) -> None:
    done = run(sh('echo "$PWD $A $HOME"'), timeout_s=10, cwd=tmp_path, env={"A": "1"})
    assert done.stdout == f"{tmp_path} 1 {os.environ['HOME']}\n"


def test_standard_input_is_empty_unless_given() -> None:
    assert run(["cat"], timeout_s=10).stdout == ""
    assert run(["cat"], timeout_s=10, input_text="in\n").stdout == "in\n"


def test_a_command_that_does_not_read_its_input_is_no_failure() -> None:
    assert run(["true"], timeout_s=10, input_text="x" * 2**20).exit_code == 0


def test_bytes_that_are_no_text_do_not_break_a_run() -> None:
    assert run(sh(r"printf 'a\377b'"), timeout_s=10).stdout == "a\ufffdb"


@pytest.mark.parametrize(
    ("script", "limit_s"),
    [("cat > /dev/null", 10), ("cat > /dev/null; echo no >&2; exit 3", 10), ("read x; exec sleep 60", 0.3)],
    ids=["ends well", "fails", "takes too long"],
)
def test_a_secret_given_by_standard_input_is_in_no_log_and_no_error(
    debug_log: Path, capfd: pytest.CaptureFixture[str], script: str, limit_s: float
) -> None:
    shown = ""
    try:
        shown = repr(run(sh(script), timeout_s=limit_s, input_text=f"{SECRET}\n", env={"TOKEN": SECRET}))
    except CommandError as error:
        shown = f"{error} {error!r} {error.__dict__}"
    assert script in debug_log.read_text()
    out, err = capfd.readouterr()
    assert SECRET not in debug_log.read_text() + shown + out + err


def test_every_command_and_its_exit_code_are_in_the_log_file(debug_log: Path) -> None:
    run(sh("exit 3"), timeout_s=10, check=False)
    text = debug_log.read_text()
    assert "$ sh -c 'exit 3' sh" in text
    assert "exit 3 after" in text


@linux_only
@pytest.mark.parametrize("logged", [False, True], ids=["in memory", "in a log file"])
def test_a_time_limit_ends_the_whole_group(
    tmp_path: Path, until: Until, is_running: Callable[[int], bool], logged: bool
) -> None:
    pids = tmp_path / "pids"
    script = 'sleep 60 & echo $! > "$1.new"; echo $$ >> "$1.new"; mv "$1.new" "$1"; echo half way; wait'
    with pytest.raises(CommandError) as late:
        run(sh(script, str(pids)), timeout_s=0.8, log_file=tmp_path / "log" if logged else None)
    assert "did not end within" in late.value.what
    assert late.value.exit_code is None
    assert late.value.details == "    half way"
    children = [int(pid) for pid in pids.read_text().split()]
    assert len(children) == 2
    until(lambda: not any(is_running(pid) for pid in children))


@linux_only
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_command_ends_with_the_run_that_started_it(
    tmp_path: Path, until: Until, is_running: Callable[[int], bool], how: signal.Signals
) -> None:
    pid_file = tmp_path / "pid"
    code = (
        # a run in the background (`make … &` in a script) starts with SIGINT ignored: this one is a person's
        "import signal, sys; from scripts.process import run; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "run(['sh', '-c', 'echo $$ > \"$1.new\"; mv \"$1.new\" \"$1\"; exec sleep 60', 'sh', sys.argv[1]], timeout_s=60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, pid_file], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until(pid_file.exists)
        child = int(pid_file.read_text())
        assert is_running(child)
        parent.send_signal(how)
        assert parent.wait(60) != 0
        until(lambda: not is_running(child))
    finally:
        parent.kill()
        parent.wait()


@linux_only
def test_a_daemon_has_a_session_of_its_own_and_adds_to_its_log(
    tmp_path: Path, until: Until, is_running: Callable[[int], bool]
) -> None:
    log = tmp_path / "daemon.log"
    log.write_text("earlier\n")
    pid = spawn_daemon(sh("echo up $A; exec sleep 60"), log, env={"A": "1"})
    try:
        until(lambda: log.read_text() == "earlier\nup 1\n")
        assert os.getsid(pid) == pid  # so that ^C does not reach it
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not is_running(pid))


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["git", "-C", Path("/a b"), "push"], "git -C '/a b' push"),
        (["echo", "$HOME", ""], "echo '$HOME' ''"),
        (["x" * 400], "x" * 297 + "..."),
    ],
)
def test_a_command_is_shown_as_one_would_type_it(args: list[str], shown: str) -> None:
    assert printable(args) == shown


@pytest.mark.parametrize(
    ("text", "count", "shown"),
    [
        ("", 3, ""),
        ("\n \n", 3, ""),
        ("a\n\nb  \n", 3, "    a\n    b"),
        ("a\nb\nc\nd", 2, "    c\n    d"),
        ("a\r\nb\r\n", 2, "    a\n    b"),
    ],
)
def test_last_lines_leave_out_what_is_empty(text: str, count: int, shown: str) -> None:
    assert last_lines(text, count) == shown
