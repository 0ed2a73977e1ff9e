"""A real, empty Kubernetes API server on 127.0.0.1: kube-apiserver and etcd of the pinned version, nothing else.

No node, no controller, no container. Each server lives in a temporary folder of its own, with a certificate that it
makes itself and a token that only its user can read, and dies with the process that started it::

    with running(settings, binaries) as server:
        ...  # talk to server.url with server.token, trusting server.ca

A server that `make watch` keeps (`kept_warm`) is found by others through a file in the state folder.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scripts.cache import lock, write_atomically
from scripts.errors import LabError
from scripts.process import Background, background, last_lines
from scripts.settings import Settings
from scripts.waiting import wait_for

START_TIMEOUT_S = 120
# It lives for seconds, a fifth of which would go to collecting garbage; it takes 370 MiB instead of 280.
APISERVER_ENV = {"GOGC": "400"}
_PREFIX = "gitops-lab-dry-run-"
# SEC 1 private key on the curve P-256: its 32 random bytes, and the curve's name.
_KEY_HEAD, _KEY_TAIL = bytes.fromhex("30310201010420"), bytes.fromhex("a00a06082a8648ce3d030107")


@dataclass(frozen=True)
class Binaries:
    """The two programs, and what tells them from those of another version."""

    kube_apiserver: Path
    etcd: Path

    @property
    def identity(self) -> str:
        """A text that changes with the programs."""
        files = [p.resolve() for p in (self.kube_apiserver, self.etcd)]
        return " ".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)


@dataclass(frozen=True)
class Server:
    """A running API server: where it answers, and the folder with its certificate and token."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        """The server's address."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        """The certificate that the server made for itself, which it also signed itself."""
        return self.folder / "certificates" / "apiserver.crt"

    @property
    def token(self) -> str:
        """The token that lets in."""
        return (self.folder / "tokens.csv").read_text().partition(",")[0]

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Have the server to oneself: a second check waits."""
        with lock(self.folder / "in-use.lock", "its dry run", timeout_s=300):
            yield

    def problem(self) -> str:
        """Return why the server isn't ready, or an empty string."""
        if not self.ca.exists():
            return "it has not made its certificate yet"
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {self.token}"})
        try:
            # No proxy is between this process and its own server, whatever the environment says.
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}),
                urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.ca))),
            )
            with opener.open(request, timeout=5):
                return ""
        except urllib.error.HTTPError as error:
            return f"it answers {error.code}"
        except (OSError, ssl.SSLError) as error:
            return f"it does not answer ({getattr(error, 'reason', error)})"


def find_binaries(tools_dir: Path) -> Binaries | None:
    """Return the binaries if they are among the tools, which are those of the pinned versions."""
    found = Binaries(tools_dir / "kube-apiserver", tools_dir / "etcd")
    return found if found.kube_apiserver.exists() and found.etcd.exists() else None


@contextlib.contextmanager
def running(binaries: Binaries) -> Iterator[Server]:
    """Run a new, empty server beside the block."""
    with _starting(binaries) as (server, wait_until_ready):
        wait_until_ready()
        yield server


@contextlib.contextmanager
def _starting(binaries: Binaries) -> Iterator[tuple[Server, Callable[[], None]]]:
    """Start a server beside the block, which has to wait before it asks it anything."""
    with _workspace() as folder, _reserved_port() as port:
        server = Server(port, folder)
        _write_private(folder / "tokens.csv", f"{secrets.token_urlsafe(32)},dry-run,dry-run,system:masters\n")
        _write_private(folder / "service-accounts.key", _private_key())
        # Side by side: the API server asks until etcd answers.
        with (
            background(_etcd_command(binaries.etcd, folder)) as etcd,
            background(_apiserver_command(binaries.kube_apiserver, server), APISERVER_ENV) as apiserver,
        ):
            yield server, partial(_wait_until_ready, server, etcd, apiserver)


def _etcd_command(etcd: Path, folder: Path) -> list[str | Path]:
    client, peer = (f"unix://{folder}/{name}.sock" for name in ("etcd", "peer"))
    return [
        etcd,
        f"--data-dir={folder}/etcd",
        # Sockets in a folder that only its user can enter: nothing to find on a port, and no certificate needed.
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        # What it holds is thrown away: nothing has to survive a power cut.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]  # fmt: skip


def _apiserver_command(kube_apiserver: Path, server: Server) -> list[str | Path]:
    folder = server.folder
    return [
        # By this name: in source mode it is one program with several, told apart by how it is called.
        kube_apiserver,
        f"--etcd-servers=unix://{folder}/etcd.sock",
        "--bind-address=127.0.0.1", f"--secure-port={server.port}",
        # The port is held by this process meanwhile, so that nobody else gets it.
        "--permit-port-sharing=true",
        f"--cert-dir={folder}/certificates",
        f"--token-auth-file={folder}/tokens.csv", "--anonymous-auth=false",
        # Nobody but the holder of the token gets in, and it may do everything: no roles have to be made at the start.
        "--authorization-mode=AlwaysAllow",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder}/service-accounts.key",
        f"--service-account-signing-key-file={folder}/service-accounts.key",
        # As every cluster has it: whether a pod may be privileged is Pod Security's to say.
        "--allow-privileged=true",
        # Both families, so that a Service may ask for either.
        "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
        # What one client for a few seconds doesn't need, and a start would wait for.
        "--enable-priority-and-fairness=false", "--endpoint-reconciler-type=none", "--profiling=false",
    ]  # fmt: skip


def _wait_until_ready(server: Server, etcd: Background, apiserver: Background) -> None:
    def pending() -> list[str]:
        etcd.require_running()
        apiserver.require_running()
        problem = server.problem()
        return [problem] if problem else []

    def explain() -> str:
        return "\n".join(last_lines(_text_of(program)) for program in (etcd, apiserver))

    wait_for(
        "the dry run's API server is ready",
        pending,
        timeout_s=START_TIMEOUT_S,
        interval_s=0.05,
        mend="run again; DRY_RUN=0 leaves the dry run out",
        explain=explain,
    )


def _text_of(program: Background) -> str:
    program.output.seek(0)
    return program.output.read()


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    """Make a folder for one server; those of runs that were killed go first."""
    base = Path(tempfile.gettempdir())
    for leftover in base.glob(f"{_PREFIX}*"):
        _remove_unless_used(leftover)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with FileLock(folder / "alive.lock"):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_unless_used(folder: Path) -> None:
    """Remove a folder whose owner is dead: the kernel has released its lock."""
    # Others' folders can't be entered; one that is gone meanwhile is what was wanted.
    with contextlib.suppress(OSError):
        alive = folder / "alive.lock"
        if folder.stat().st_uid != os.getuid() or not alive.exists():
            return
        with contextlib.suppress(Timeout), FileLock(alive, timeout=0):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """Hold a free port of 127.0.0.1 without listening on it: only this user's programs may share it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _private_key() -> str:
    """Return a new private key for service accounts' tokens (P-256, in PEM)."""
    # A number below the curve's order: with the top byte cleared of its highest bit it always is.
    number = bytearray(secrets.token_bytes(32))
    number[0] &= 0x7F
    body = base64.b64encode(_KEY_HEAD + bytes(number) + _KEY_TAIL).decode()
    label = "EC PRIVATE KEY"  # apart: no file of the repository looks as if it held one
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"


def _state_file(settings: Settings) -> Path:
    return settings.state_root / "dry-run-server.json"


@contextlib.contextmanager
def kept_warm(settings: Settings) -> Iterator[None]:
    """Keep a server for the dry runs of this user while the block runs, unless one is kept already."""
    binaries = find_binaries(settings.tools_dir)
    if not binaries or find_warm(settings, binaries):
        yield
        return
    with running(binaries) as server:
        state = {"port": server.port, "folder": str(server.folder), "identity": binaries.identity}
        write_atomically(_state_file(settings), json.dumps(state), mode=0o600)
        try:
            yield
        finally:
            if _read_state(settings) == state:
                _state_file(settings).unlink(missing_ok=True)


def find_warm(settings: Settings, binaries: Binaries) -> Server | None:
    """Return a server that is kept warm and answers; one of another version, or whose keeper died, doesn't count."""
    state = _read_state(settings)
    try:
        server = Server(int(state["port"]), Path(state["folder"]))
        usable = state["identity"] == binaries.identity and not server.problem()
    except (KeyError, ValueError, TypeError, OSError):
        return None
    return server if usable else None


def _read_state(settings: Settings) -> dict[str, Any]:
    try:
        state = json.loads(_state_file(settings).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


@contextlib.contextmanager
def any_server(settings: Settings, binaries: Binaries) -> Iterator[tuple[Server, Callable[[], None]]]:
    """Have a server to oneself, the one that is kept warm or a new one, and what waits until it answers."""
    warm = find_warm(settings, binaries)
    if warm:
        with warm.exclusively():
            yield warm, lambda: None
        return
    with _starting(binaries) as starting:
        yield starting


class ServerGoneError(LabError):
    """The dry run's API server went away in the middle of it."""
