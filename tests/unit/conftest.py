"""Shared by the unit tests: small fake programs on an otherwise empty PATH, and waiting without sleeping."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import process
from tests.unit.fake_registry import authority, new_registry, registry  # noqa: F401 - fixtures

Until = Callable[[Callable[[], object]], None]


class Programs:
    """Fake programs in a folder that is all of PATH; each call is recorded with its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.parent / "calls"
        folder.mkdir()

    def add(self, name: str, body: str = "") -> Path:
        """Add a program: a shell body that sees its arguments and, by full path, the machine's own tools."""
        path = self.folder / name
        # One printf is one write at the file's end: calls side by side don't mix.
        record = f'printf "%s\\037" {name} "$@" "\x1e" >> "{self.log}"'
        path.write_text(f"#!/bin/sh\n{record}\n{body}\n")
        path.chmod(0o755)
        return path

    def calls(self, name: str = "") -> list[list[str]]:
        """Return the calls so far, oldest first, program name first: of all programs or of one."""
        if not self.log.exists():
            return []
        calls = [call.split("\x1f")[:-1] for call in self.log.read_text().split("\x1e\x1f")[:-1]]
        return [call for call in calls if not name or call[0] == name]

    def forget(self) -> None:
        """Forget the calls so far."""
        self.log.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def setpriv() -> None:
    """What run() looks up once and keeps is looked up on the real PATH."""
    process.run(["true"], timeout_s=10)


@pytest.fixture
def programs(setpriv: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    fakes = Programs(tmp_path / "fake-bin")
    monkeypatch.setenv("PATH", str(fakes.folder))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return fakes


@pytest.fixture
def until() -> Until:
    """Poll a condition until it holds; fails after half a minute."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, f"did not come true: {condition}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def is_running() -> Callable[[int], bool]:
    """Whether a process is there and not just waiting to be collected."""

    def look(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return look


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's Git configuration, and a hook's variables, out of a test."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "gitconfig"
    config.write_text("[user]\nname = A Person\nemail = person@example.com\n[init]\ndefaultBranch = main\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
