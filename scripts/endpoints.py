"""The application's endpoints as a user reaches them: through the edge, or by port-forwards where there is none."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import requests

from scripts.errors import LabError
from scripts.kube import Kube
from scripts.process import Background, background
from scripts.settings import APP_NAME, APP_PORT, Edge, Settings, environments
from scripts.transfer import direct_session
from scripts.waiting import wait_for

PATHS = ("/healthz", "/readyz", "/work", "/metrics")
REQUEST_TIMEOUT_S = 10
FORWARD_TIMEOUT_S = 20


@dataclass(frozen=True)
class EndpointResult:
    """One request's outcome."""

    environment: str
    path: str
    ok: bool
    status: int
    seconds: float
    why: str


def host_of(environment: str) -> str:
    """Return the host name of an environment at the edge."""
    return f"{environment}.localhost"


def check_all(settings: Settings, kube: Kube) -> list[EndpointResult]:
    """Request every endpoint of every environment once."""
    results = []
    for environment in environments():
        results += check_environment(settings, kube, environment)
    return results


def check_environment(
    settings: Settings, kube: Kube, environment: str, paths: Sequence[str] = PATHS
) -> list[EndpointResult]:
    """Request an environment's endpoints once."""
    if settings.edge is Edge.NONE:
        with forwarded(kube, environment) as port:
            return [_check(environment, path, f"http://127.0.0.1:{port}{path}", f"127.0.0.1:{port}") for path in paths]
    base = f"http://127.0.0.1:{settings.edge_port}"
    return [_check(environment, path, f"{base}{path}", host_of(environment)) for path in paths]


def _check(environment: str, path: str, url: str, host: str) -> EndpointResult:
    session = direct_session()
    started = time.monotonic()
    try:
        answer = session.get(url, headers={"Host": host}, timeout=REQUEST_TIMEOUT_S)
    except requests.RequestException as error:
        return EndpointResult(environment, path, False, 0, time.monotonic() - started, type(error).__name__)
    why = expectation_failure(path, answer)
    return EndpointResult(environment, path, not why, answer.status_code, time.monotonic() - started, why)


def expectation_failure(path: str, answer: requests.Response) -> str:
    """Return what is wrong with an answer, or "": its status, and that it is the application that answered."""
    if answer.status_code != 200:
        return f"HTTP {answer.status_code}: {answer.text.strip()[:100]}"
    if path == "/metrics" and "app_build_info" not in answer.text:
        return "no app_build_info in the metrics"
    if path == "/work" and "greeting" not in answer.text:
        return "no greeting in the answer"
    return ""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@dataclass(frozen=True)
class Tunnel:
    """A port of 127.0.0.1 that leads into the cluster."""

    port: int
    process: Background

    def wait(self) -> None:
        """Wait until it ends by itself, which is an error: its pod went away, or the API server did."""
        self.process.process.wait()
        self.process.require_running()


@contextlib.contextmanager
def forwarded(kube: Kube, environment: str, port: int = 0) -> Iterator[int]:
    """Forward a local port to the environment's Service while the block runs."""
    with tunnel(kube, environment, f"service/{APP_NAME}", APP_PORT, port) as found:
        yield found.port


@contextlib.contextmanager
def tunnel(kube: Kube, namespace: str, target: str, remote: int, port: int = 0) -> Iterator[Tunnel]:
    """Forward a port of 127.0.0.1 (a free one by default) to a pod or Service while the block runs."""
    if port and not _is_free(port):
        raise LabError(f"Port {port} of 127.0.0.1 is taken.", f"give another one, as in PORT={free_port()}")
    local = port or free_port()
    args = [
        str(kube.kubectl_path), "--context", kube.context, "--namespace", namespace, "port-forward",
        "--address", "127.0.0.1", target, f"{local}:{remote}",
    ]  # fmt: skip
    with background(args) as process:

        def pending() -> list[str]:
            process.require_running()
            with socket.socket() as probe:
                probe.settimeout(1)
                return [] if probe.connect_ex(("127.0.0.1", local)) == 0 else [f"port {local} does not answer"]

        wait_for("the port-forward is up", pending, timeout_s=FORWARD_TIMEOUT_S, interval_s=0.05)
        yield Tunnel(local, process)
