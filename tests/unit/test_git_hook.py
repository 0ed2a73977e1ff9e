"""The Git server's hook: which of Flux's sources a push is announced to, seen by real pushes."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from scripts.settings import KIND_DIR
from scripts.sources import hook_scopes

TOKEN = "a-token-of-the-tests"
OVERLAYS = "flux-cd/applications/mock-cluster-aka-namespaces"


class Receiver(HTTPServer):
    """Flux's Receiver, as far as the hook sees it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told: list[list[str]] = []
        self.signed = True


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        expected = "sha256=" + hmac.new(TOKEN.encode(), body, hashlib.sha256).hexdigest()
        self.server.signed = self.server.signed and self.headers["X-Signature"] == expected
        self.server.told.append(json.loads(body)["sources"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep standard error for the hook."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Pusher:
    """A working copy whose remote has the hook, and what the hook said."""

    def __init__(self, folder: Path) -> None:
        self.hooks, self.server, self.work = folder / "hooks", folder / "lab.git", folder / "work"

    def begin(self) -> None:
        """Make both repositories, with relative paths to each other: a copy of their folder is as good as they are."""
        self.hooks.mkdir()
        shutil.copy2(KIND_DIR / "git-server" / "post-receive", self.hooks)
        self.git("init", "--quiet", "--template=", "--bare", "-b", "main", self.server)
        self.git("-C", self.server, "config", "core.hooksPath", "../hooks")
        self.git("init", "--quiet", "--template=", "-b", "main", self.work)
        self.git("-C", self.work, "remote", "add", "lab", "../lab.git")

    def git(self, *args: str | Path) -> str:
        person = ["-c", "user.name=A Person", "-c", "user.email=person@example.com"]
        done = subprocess.run(["git", *person, *args], capture_output=True, text=True, check=True, timeout=60)
        return done.stderr

    def commit(self, *files: str) -> None:
        for file in files:
            path = self.work / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.read_text() + "x\n" if path.exists() else "x\n")
        self.git("-C", self.work, "add", "--all")
        self.git("-C", self.work, "commit", "--quiet", "--message", "change")

    def push(self, *refs: str) -> str:
        return self.git("-C", self.work, "push", "--quiet", "lab", *refs)


@pytest.fixture(scope="module")
def first_push(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repositories after a first push, from before Flux was there: copied for each test."""
    folder = tmp_path_factory.mktemp("first")
    pusher = Pusher(folder)
    pusher.begin()
    pusher.commit("README.md")
    pusher.push("main", "main:env/staging")
    return folder


@pytest.fixture
def pusher(first_push: Path, tmp_path: Path, receiver: Receiver) -> Pusher:
    shutil.copytree(first_push, tmp_path, dirs_exist_ok=True)
    pusher = Pusher(tmp_path)
    sources = [asdict(scope) for scope in hook_scopes()]
    url = f"http://127.0.0.1:{receiver.server_port}/hook"
    (tmp_path / "receiver.json").write_text(json.dumps({"url": url, "token": TOKEN, "sources": sources}))
    return pusher


@pytest.mark.parametrize(
    ("file", "refs", "told"),
    [
        (f"{OVERLAYS}/dev/kustomization.yaml", ["main"], ["dev-environment"]),
        (f"{OVERLAYS}/qa/sync.yaml", ["main"], ["applications", "dev-environment"]),
        ("flux-cd/applications/_base-app-config/service.yaml", ["main"], ["dev-environment"]),
        ("flux-cd/infrastructure/x.yaml", ["main"], ["infrastructure"]),
        ("flux-cd/bootstrap/x.yaml", ["main"], ["flux-system"]),
        (f"{OVERLAYS}/staging/kustomization.yaml", ["main:env/staging"], ["staging-environment"]),
        (f"{OVERLAYS}/qa/kustomization.yaml", ["main:env/qa"], ["qa-environment"]),
        (f"{OVERLAYS}/qa/kustomization.yaml", ["main", "main:env/qa"], ["dev-environment", "qa-environment"]),
        ("flux-cd/infrastructure/x.yaml", ["main:env/staging"], []),
        (f"{OVERLAYS}/dev/kustomization.yaml", ["main:a-branch"], []),
        (f"{OVERLAYS}/dev/kustomization.yaml", ["main:env/a/b"], []),
        ("README.md", ["main"], []),
    ],
)  # fmt: skip
def test_a_push_is_announced_to_those_that_read_what_changed(
    pusher: Pusher, receiver: Receiver, file: str, refs: list[str], told: list[str]
) -> None:
    pusher.commit(file)
    said = pusher.push(*refs)
    assert [sorted(sources) for sources in receiver.told] == ([told] if told else [])
    assert receiver.signed
    assert ("Flux was told" if told else "nothing that Flux reads has changed") in said


def test_the_end_of_a_branch_is_announced_to_nobody(pusher: Pusher, receiver: Receiver) -> None:
    pusher.push("main:env/qa")
    receiver.told.clear()
    assert "nothing that Flux reads has changed" in pusher.push("--delete", "env/qa")
    assert receiver.told == []


def test_a_push_before_flux_is_there_says_so(pusher: Pusher, receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "receiver.json").unlink()
    pusher.commit("flux-cd/x")
    assert "make setup-all" in pusher.push("main")
    assert receiver.told == []


def test_a_receiver_that_does_not_answer_does_not_refuse_the_push(pusher: Pusher, tmp_path: Path) -> None:
    path = tmp_path / "receiver.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "url": "http://127.0.0.1:9/hook"}))
    pusher.commit(f"{OVERLAYS}/dev/x")
    assert "make reconcile" in pusher.push("main")
