"""The container engine: use the one that answers; as root, start or install one; otherwise say the command.

An engine that setup started is recorded (process id and start time) and can be stopped by `make engine-stop`;
nobody else's is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import bounded_runc, console, hostfacts
from scripts.cache import lock, write_atomically
from scripts.docker import engine_info
from scripts.errors import LabError
from scripts.outcome import Outcome
from scripts.process import last_lines, run, spawn_daemon
from scripts.settings import Settings
from scripts.waiting import wait_for

APT_PACKAGES = ("docker.io", "iptables", "iproute2")
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
CONTAINERD_END_S = 10.0

_INSTALL_HINTS = {
    "Darwin": "install and start Docker Desktop, OrbStack or Colima, as in: brew install colima docker && colima start",
    "Linux": "install Docker Engine with your distribution's packages and start it, as in: "
    "sudo apt-get install -y docker.io && sudo systemctl start docker && sudo usermod -aG docker $USER",
}


@dataclass(frozen=True)
class StartedEngine:
    """The engine that setup started: enough to know it again after its process id was reused."""

    pid: int
    start_ticks: str


def is_root() -> bool:
    """Whether this process may start and install an engine."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def ensure_engine(settings: Settings) -> Outcome:
    """Make a container engine answer; raises LabError with the command for this system where it can't."""
    with lock(settings.cache_dir / "locks" / "engine.lock", "the container engine", timeout_s=600):
        info = engine_info() if shutil.which("docker") else None
        if info:
            return Outcome(False, f"Docker {info.get('ServerVersion', '(Podman)')}")
        did = []
        elsewhere = bool(os.environ.get("DOCKER_HOST"))
        if platform.system() != "Linux" or not is_root() or elsewhere:
            raise LabError(_why_unreachable(), _INSTALL_HINTS.get(platform.system(), _INSTALL_HINTS["Linux"]))
        if not shutil.which("dockerd") or not shutil.which("docker"):
            _install()
            did.append("installed and")
        _start(settings)
        info = engine_info()
        version = info["ServerVersion"] if info else "?"
        return Outcome(
            True, f"Docker {version}, {' '.join([*did, 'started'])} by setup (stop it with `make engine-stop`)"
        )


def _why_unreachable() -> str:
    if not shutil.which("docker"):
        return "No container engine is installed."
    host = os.environ.get("DOCKER_HOST")
    if host:
        return f"No container engine answers at DOCKER_HOST={host}."
    socket = Path("/var/run/docker.sock")
    if socket.exists() and not os.access(socket, os.W_OK):
        return "The container engine's socket is there, but this user may not use it (group docker)."
    return "Docker is installed, but no engine answers."


def _install() -> None:
    if not shutil.which("apt-get"):
        raise LabError(
            "No container engine is installed, and there is no apt-get to install one.", _INSTALL_HINTS["Linux"]
        )
    console.line(f"  Docker is not installed: installing {', '.join(APT_PACKAGES)} with apt-get")
    apt_install(APT_PACKAGES)


def apt_install(packages: tuple[str, ...]) -> None:
    """Install Debian packages, with the services they bring left stopped."""
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    mend = "check that apt's package mirror can be reached (`apt-get update`), then run again"
    run(["apt-get", "update", "-qq"], timeout_s=300, env=env, mend=mend)
    run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], timeout_s=900, env=env, mend=mend)


def _start(settings: Settings) -> None:
    folder = settings.state_root / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "dockerd.log"
    _clear_dead_pid_files()
    args: list[str | Path] = ["dockerd"]
    missing = hostfacts.missing_capabilities()
    if missing:
        console.line(
            f"  this machine can't give {', '.join(missing)}: privileged containers do without (a runc wrapper)"
        )
        args += ["--add-runtime", f"bounded={_install_wrapper(folder)}", "--default-runtime", "bounded"]
    pid = spawn_daemon(args, log)
    record = StartedEngine(pid, _start_ticks(pid))
    write_atomically(folder / "engine.json", json.dumps(record.__dict__))

    def pending() -> list[str]:
        if engine_info():
            return []
        if not _start_ticks(pid):
            raise LabError("dockerd ended at once.", f"read {log}", last_lines(log.read_text(errors="replace")))
        return ["dockerd has not answered yet"]

    wait_for(
        "the container engine answers",
        pending,
        timeout_s=START_TIMEOUT_S,
        mend=f"read {log}",
        explain=lambda: log.read_text(errors="replace"),
    )


def _clear_dead_pid_files() -> None:
    """Remove pid files of an engine that was killed: dockerd would take a dying or another process for its own.

    The containerd of a killed dockerd gets its signal from the kernel and may take a moment to end; a dockerd that
    is started meanwhile waits for it in vain.
    """
    _remove_if_dead(Path("/var/run/docker.pid"), "dockerd", grace_s=0)
    _remove_if_dead(Path("/var/run/docker/containerd/containerd.pid"), "containerd", grace_s=CONTAINERD_END_S)


def _remove_if_dead(path: Path, program: str, grace_s: float) -> None:
    if not path.exists():
        return
    text = path.read_text().strip()
    deadline = time.monotonic() + grace_s
    while text.isdigit() and _start_ticks(int(text)) and program in _command_of(int(text)):
        if time.monotonic() >= deadline:
            return
        time.sleep(0.05)
    path.unlink(missing_ok=True)


def _install_wrapper(folder: Path) -> Path:
    target = folder / "bounded-runc"
    source = Path(bounded_runc.__file__).read_text()
    # The base interpreter, not the virtual environment's: a clone may be deleted while the engine runs on.
    interpreter = Path(sys.base_prefix) / "bin" / "python3"
    shebang = f"#!{interpreter if interpreter.exists() else '/usr/bin/env python3'}\n"
    write_atomically(target, shebang + source.partition("\n")[2], mode=0o755)
    return target


def _start_ticks(pid: int) -> str:
    """Return when a process started, in clock ticks since boot, or "" if it is gone (proc(5), field 22)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def started_by_setup(settings: Settings) -> StartedEngine | None:
    """Return the engine that setup started, if it still runs."""
    path = settings.state_root / "engine" / "engine.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        record = StartedEngine(int(data["pid"]), str(data["start_ticks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    alive = _start_ticks(record.pid) == record.start_ticks and "dockerd" in _command_of(record.pid)
    return record if alive else None


def stop_engine(settings: Settings) -> Outcome:
    """Stop the engine that setup started; nobody else's."""
    record = started_by_setup(settings)
    if not record:
        return Outcome(False, "no engine that setup started is running; others are left alone")
    try:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGTERM)
    except PermissionError:
        raise LabError("The engine was started by another user.", "run `make engine-stop` as that user") from None
    wait_for(
        "the engine has stopped",
        lambda: ["dockerd is still stopping its containers"] if _start_ticks(record.pid) == record.start_ticks else [],
        timeout_s=STOP_TIMEOUT_S,
        mend=f"end process {record.pid} yourself",
    )
    (settings.state_root / "engine" / "engine.json").unlink(missing_ok=True)
    return Outcome(True, f"engine stopped (process {record.pid}); `make resume` brings it and the lab back")
