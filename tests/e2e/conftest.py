"""Fixtures of the live lab. The tests use it through what a user has: make, git, HTTP, kubectl's context."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from scripts import bench, deploy, flux_sync, git
from scripts import settings as lab_settings
from scripts.kube import Kube
from scripts.settings import MAIN_BRANCH, ROOT, Settings
from scripts.sidecars import restore_branches
from scripts.transfer import direct_session

MAKE_TIMEOUT_S = 900


@dataclass(frozen=True)
class MakeResult:
    code: int
    output: str


def own_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what a make around it has put there, and with more variables."""
    left_out = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    return {k: v for k, v in os.environ.items() if k not in left_out} | variables


def run_make(
    *args: str,
    root: Path = ROOT,
    timeout_s: float = MAKE_TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
    **variables: str,
) -> MakeResult:
    """Run make as a user does, and return exit code and everything it printed."""
    done = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "-C",
            str(root),
            "-o",
            ".venv/.complete",
            *args,
            *(f"{k}={v}" for k, v in variables.items()),
        ],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=own_environment() if environment is None else environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return MakeResult(done.returncode, done.stdout + done.stderr)


@dataclass(frozen=True)
class OtherLab:
    """A clone of this working copy with variables of its own: another lab than the one under test."""

    clone: Path
    environment: dict[str, str]

    def make(self, *args: str, **variables: str) -> MakeResult:
        """Run make there as a user does."""
        return run_make(*args, root=self.clone, environment=self.environment, **variables)

    def commit(self, file: str, old: str, new: str) -> None:
        """Change a file and commit it."""
        path = self.clone / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new))
        git.git("commit", "--quiet", "--all", "--message", f"Test: {new}", root=self.clone)


def other_lab(clone: Path, settings: Settings, **variables: str) -> OtherLab:
    """Clone this working copy for another lab."""
    git.git("clone", "--quiet", ROOT, clone, timeout_s=60)
    bench.configure_author(clone)
    git.git("switch", "--quiet", "-C", MAIN_BRANCH, root=clone)
    (clone / ".venv").symlink_to(ROOT / ".venv")
    return OtherLab(clone, own_environment(**bench.environment_of(settings)) | variables)


@pytest.fixture(scope="session")
def settings() -> Settings:
    return lab_settings.load()


@pytest.fixture(scope="session")
def kube(settings: Settings) -> Kube:
    api = Kube(settings.context, settings.tools_dir / "kubectl")
    assert api.is_up(), f"no lab answers in context {settings.context}: run `make setup-all` first"
    return api


@pytest.fixture
def make() -> Callable[..., MakeResult]:
    return run_make


@dataclass(frozen=True)
class Clone:
    """A second working copy of the lab's repository: what another person of the team has."""

    path: Path

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.path / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new))

    def commit(self, message: str) -> str:
        git.git("commit", "--quiet", "--all", "--message", message, root=self.path)
        return git.git("rev-parse", "HEAD", root=self.path).stdout.strip()

    def push(self, branch: str = MAIN_BRANCH) -> None:
        git.git("push", "--quiet", "origin", f"HEAD:{branch}", root=self.path, timeout_s=60)


@pytest.fixture
def clone(settings: Settings, tmp_path: Path) -> Iterator[Clone]:
    """Clone the lab's main; the Git server's branches are set back at the end, and Flux follows."""
    before = git.remote_branches(settings)
    path = tmp_path / "clone"
    git.git("clone", "--quiet", "--branch", MAIN_BRANCH, settings.git_push_url, path, timeout_s=60)
    bench.configure_author(path)
    (path / ".venv").symlink_to(ROOT / ".venv")
    yield Clone(path)
    kube = deploy.lab_kube(settings)
    flux_sync.settle_sources(kube, git.remote_branches(settings))
    if restore_branches(settings, before):
        flux_sync.settle_sources(kube, before)
        deploy.wait_until_live(settings, kube)


@pytest.fixture
def edge(settings: Settings) -> Callable[..., requests.Response]:
    """Request a path of an environment through the edge on 127.0.0.1."""
    session = direct_session()

    def get(environment: str, path: str) -> requests.Response:
        url = f"http://127.0.0.1:{settings.edge_port}{path}"
        return session.get(url, headers={"Host": f"{environment}.localhost"}, timeout=10)

    return get
