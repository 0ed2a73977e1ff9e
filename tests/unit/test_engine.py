import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import console, engine
from scripts.engine import StartedEngine, ensure_engine, started_by_setup, stop_engine
from scripts.errors import LabError
from scripts.settings import Settings
from tests.unit.conftest import Programs, Until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="an engine is started on Linux only")

# Answers while the file `up` is there, as the client does when its engine runs.
DOCKER = """
if [ -e "{up}" ]; then echo '{{"ServerVersion": "29.1.2", "ServerErrors": null}}'; exit 0; fi
echo '{{"ServerVersion": "", "ServerErrors": ["Cannot connect to the Docker daemon"]}}'
exit {code}
"""
DOCKERD = """
trap 'rm -f "{up}"; exit 0' TERM
PATH=/usr/bin:/bin
echo "API listen on /var/run/docker.sock"
: > "{up}"
while :; do sleep 0.02; done
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", state_root=tmp_path / "state")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a machine with root, with every capability and no trace of a real engine; return its /var/run."""
    run = tmp_path / "var-run"
    run.mkdir()
    real = Path

    def path(*parts: str | Path) -> Path:
        found = real(*parts)
        return run / found.name if str(found).startswith("/var/run/docker") else found

    monkeypatch.setattr(engine, "Path", path)
    monkeypatch.setattr(engine, "is_root", lambda: True)
    monkeypatch.setattr(engine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(engine.hostfacts, "missing_capabilities", list)
    return run


class Machine:
    """The fake engine of a test: what is installed, and whether it is up."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self.programs = programs
        self.up = folder / "up"

    def install_client(self, code: int = 1) -> None:
        self.programs.add("docker", DOCKER.format(up=self.up, code=code))

    def install_daemon(self) -> None:
        self.programs.add("dockerd", DOCKERD.format(up=self.up))


@pytest.fixture
def fake(programs: Programs, tmp_path: Path, settings: Settings) -> Iterator[Machine]:
    yield Machine(programs, tmp_path)
    record = settings.state_root / "engine" / "engine.json"
    if record.exists():
        pid = json.loads(record.read_text())["pid"]
        with contextlib.suppress(OSError):
            if str(tmp_path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def test_an_engine_that_answers_is_used_and_nothing_else_is_called(
    fake: Machine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "is_root", lambda: False)
    fake.install_client()
    fake.install_daemon()
    fake.up.touch()
    found = ensure_engine(settings)
    assert (found.changed, found.what) == (False, "Docker 29.1.2")
    assert {call[0] for call in fake.programs.calls()} == {"docker"}
    assert started_by_setup(settings) is None


@pytest.mark.parametrize(
    ("system", "client", "host", "says", "mend"),
    [
        ("Linux", False, "", "No container engine is installed.", "sudo apt-get install -y docker.io"),
        ("Linux", True, "", "Docker is installed, but no engine answers.", "sudo systemctl start docker"),
        ("Linux", True, "tcp://10.0.0.9:2375", "No container engine answers at DOCKER_HOST=tcp://10.0.0.9:2375.", ""),
        ("Darwin", False, "", "No container engine is installed.", "brew install colima docker"),
        ("Darwin", True, "", "Docker is installed, but no engine answers.", "colima start"),
    ],
)
def test_without_an_engine_and_without_root_the_command_is_named(
    fake: Machine, settings: Settings, monkeypatch: pytest.MonkeyPatch,
    system: str, client: bool, host: str, says: str, mend: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(engine, "is_root", lambda: False)
    monkeypatch.setattr(engine.platform, "system", lambda: system)
    fake.install_daemon()
    if client:
        fake.install_client()
    if host:
        monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(LabError) as refused:
        ensure_engine(settings)
    assert refused.value.what == says
    assert mend in refused.value.mend
    assert {call[0] for call in fake.programs.calls()} <= {"docker"}


def test_root_on_a_mac_installs_nothing(fake: Machine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.platform, "system", lambda: "Darwin")
    fake.programs.add("apt-get")
    with pytest.raises(LabError, match="No container engine is installed"):
        ensure_engine(settings)
    assert fake.programs.calls() == []


def test_a_socket_that_this_user_may_not_use_is_named(
    fake: Machine, settings: Settings, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "is_root", lambda: False)
    monkeypatch.setattr(engine.os, "access", lambda path, mode: False)
    monkeypatch.setattr(engine.shutil, "which", lambda name: f"/usr/bin/{name}")
    fake.install_client()
    (machine / "docker.sock").touch()
    with pytest.raises(LabError, match="this user may not use it"):
        ensure_engine(settings)


@pytest.mark.parametrize("code", [0, 1], ids=["a client that exits 0", "a client that exits 1"])
def test_root_starts_an_installed_engine_and_records_it(fake: Machine, settings: Settings, code: int) -> None:
    fake.install_client(code)
    fake.install_daemon()
    done = ensure_engine(settings)
    assert done.changed
    assert done.what == "Docker 29.1.2, started by setup (stop it with `make engine-stop`)"
    assert fake.programs.calls("dockerd") == [["dockerd"]]
    record = started_by_setup(settings)
    assert record is not None
    assert record.start_ticks.isdigit()
    assert ensure_engine(settings).changed is False
    assert len(fake.programs.calls("dockerd")) == 1


def test_root_without_an_engine_installs_one_and_says_so(
    fake: Machine, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f'PATH=/usr/bin:/bin\n[ "$1" = update ] || cp {fake.programs.folder}/later/* {fake.programs.folder}/'
    fake.programs.add("apt-get", body)
    later = Programs(fake.programs.folder / "later")
    later.log = fake.programs.log
    Machine(later, fake.up.parent).install_client()
    Machine(later, fake.up.parent).install_daemon()
    done = ensure_engine(settings)
    assert done.what.startswith("Docker 29.1.2, installed and started by setup")
    assert [call[1] for call in fake.programs.calls("apt-get")] == ["update", "install"]
    assert set(engine.APT_PACKAGES) < set(fake.programs.calls("apt-get")[1])
    assert "installing docker.io" in capsys.readouterr().out


@pytest.mark.parametrize("failing", ["update", "install"])
def test_a_failed_installation_is_a_clear_error(fake: Machine, settings: Settings, failing: str) -> None:
    fake.programs.add("apt-get", f'[ "$1" != {failing} ] || {{ echo "E: no mirror" >&2; exit 100; }}')
    with pytest.raises(LabError, match="E: no mirror") as failed:
        ensure_engine(settings)
    assert "apt's package mirror" in failed.value.mend


def test_root_without_apt_is_told_what_to_do(fake: Machine, settings: Settings) -> None:
    with pytest.raises(LabError, match="there is no apt-get"):
        ensure_engine(settings)


def test_no_engine_is_started_when_another_host_is_asked_for(
    fake: Machine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.9:2375")
    monkeypatch.setattr(engine, "START_TIMEOUT_S", 0.1)
    fake.install_client()
    fake.programs.add("dockerd", "PATH=/usr/bin:/bin; exec sleep 5")
    with pytest.raises(LabError, match="DOCKER_HOST"):
        ensure_engine(settings)
    assert fake.programs.calls("dockerd") == []


def test_an_engine_that_ends_at_once_is_reported_with_its_last_lines(fake: Machine, settings: Settings) -> None:
    fake.install_client()
    fake.programs.add("dockerd", 'echo "failed to start daemon: no iptables" >&2; exit 1')
    with pytest.raises(LabError, match="dockerd ended at once") as failed:
        ensure_engine(settings)
    assert "no iptables" in failed.value.details
    assert str(settings.state_root) in failed.value.mend
    assert started_by_setup(settings) is None


def test_an_engine_that_does_not_answer_is_reported_with_its_log(
    fake: Machine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "START_TIMEOUT_S", 0.3)
    fake.install_client()
    fake.programs.add("dockerd", "echo waiting for containerd; PATH=/usr/bin:/bin; while :; do sleep 0.02; done")
    with pytest.raises(LabError, match="still waiting: the container engine answers") as failed:
        ensure_engine(settings)
    assert "waiting for containerd" in failed.value.details


def test_only_a_machine_that_lacks_a_capability_gets_the_wrapper(
    fake: Machine, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine.hostfacts, "missing_capabilities", lambda: ["CAP_SYS_RESOURCE"])
    fake.install_client()
    fake.install_daemon()
    ensure_engine(settings)
    wrapper = settings.state_root / "engine" / "bounded-runc"
    assert fake.programs.calls("dockerd") == [
        ["dockerd", "--add-runtime", f"bounded={wrapper}", "--default-runtime", "bounded"]
    ]
    assert "CAP_SYS_RESOURCE" in capsys.readouterr().out
    shebang = wrapper.read_text().partition("\n")[0]
    assert Path(shebang.removeprefix("#!")).exists()
    assert ".venv" not in shebang, "a clone may be deleted while its engine runs on"
    done = subprocess.run(
        [wrapper, "--version"], env={"PATH": str(fake.programs.folder)}, capture_output=True, text=True
    )
    assert done.stderr == "bounded-runc: runc is not there\n" or done.returncode == 0


@pytest.mark.parametrize(
    ("content", "kept"),
    [("{self}", False), ("{dead}", False), ("", False), ("rubbish", False), ("{dockerd}", True)],
)
def test_a_pid_file_is_removed_unless_its_process_is_an_engine(
    fake: Machine, settings: Settings, machine: Path, content: str, kept: bool
) -> None:
    running = subprocess.Popen(
        ["/bin/sh", fake.programs.add("dockerd", "PATH=/usr/bin:/bin; while :; do sleep 0.02; done")]
    )
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    try:
        pid_file = machine / "docker.pid"
        pid_file.write_text(content.format(self=os.getpid(), dead=ended.pid, dockerd=running.pid))
        engine._clear_dead_pid_files()
        assert pid_file.exists() is kept
    finally:
        running.kill()
        running.wait()


def test_the_engine_that_setup_started_is_stopped(
    fake: Machine, settings: Settings, is_running: Callable[[int], bool]
) -> None:
    fake.install_client()
    fake.install_daemon()
    ensure_engine(settings)
    record = started_by_setup(settings)
    assert record is not None
    done = stop_engine(settings)
    assert done.changed
    assert str(record.pid) in done.what
    assert not is_running(record.pid)
    assert not fake.up.exists(), "it was asked to end, not killed"
    assert stop_engine(settings).changed is False


@pytest.fixture
def somebodys(programs: Programs, until: Until) -> Iterator[Callable[[str], StartedEngine]]:
    """Start processes of somebody else's; returns what an engine's record of one would say."""
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> StartedEngine:
        process = subprocess.Popen(["/bin/sh", programs.add(name, "PATH=/usr/bin:/bin; while :; do sleep 0.02; done")])
        running.append(process)
        until(lambda: programs.calls(name))
        return StartedEngine(process.pid, engine._start_ticks(process.pid))

    yield start
    for process in running:
        assert process.poll() is None, "a process that is not the lab's was ended"
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("dockerd", ""),
        ("dockerd", "not json"),
        ("dockerd", "[]"),
        ("dockerd", '{{"pid": {pid}}}'),
        ("dockerd", '{{"pid": {pid}, "start_ticks": ""}}'),
        ("dockerd", '{{"pid": {pid}, "start_ticks": "1"}}'),
        ("editor", '{{"pid": {pid}, "start_ticks": "{ticks}"}}'),
    ],
    ids=["no record", "no json", "a list", "half a record", "no start", "the id was reused", "another program"],
)
def test_nobody_elses_process_is_touched(
    somebodys: Callable[[str], StartedEngine], settings: Settings, name: str, record: str
) -> None:
    theirs = somebodys(name)
    if record:
        path = settings.state_root / "engine" / "engine.json"
        path.parent.mkdir(parents=True)
        path.write_text(record.format(pid=theirs.pid, ticks=theirs.start_ticks))
    assert started_by_setup(settings) is None
    done = stop_engine(settings)
    assert done.changed is False
    assert "left alone" in done.what


def test_an_engine_that_will_not_end_is_named(
    fake: Machine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "STOP_TIMEOUT_S", 0.1)
    fake.install_client()
    fake.programs.add("dockerd", f': > "{fake.up}"; trap "" TERM; PATH=/usr/bin:/bin; while :; do sleep 0.02; done')
    ensure_engine(settings)
    record = started_by_setup(settings)
    assert record is not None
    with pytest.raises(LabError, match="still stopping") as late:
        stop_engine(settings)
    assert str(record.pid) in late.value.mend
    assert started_by_setup(settings) == record, "the next `make engine-stop` still knows it"


def test_the_step_says_what_it_waits_for(fake: Machine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "note", said.append)
    fake.install_client()
    fake.programs.add("dockerd", DOCKERD.format(up=fake.up).replace(": >", "sleep 0.2; : >"))
    ensure_engine(settings)
    assert "waiting: the container engine answers: dockerd has not answered yet" in said
