"""The app as it runs in its image: gunicorn with its own configuration, several workers, on a free port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
TOKEN = "a-token-of-20-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
COMMAND = [sys.executable, "-m", "gunicorn", "--config", "python:demo_app.gunicorn_conf", "--bind", "127.0.0.1:0"]


def until(condition: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """Poll until the condition is true and return what it returned."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {what}")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str


@dataclass
class Server:
    """A running gunicorn."""

    process: subprocess.Popen[bytes]
    stdout: Path
    port: int = 0

    def log(self) -> list[dict[str, Any]]:
        """Return all complete lines of the log; each must be JSON."""
        return [json.loads(line) for line in self.stdout.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def listening_port(self) -> int:
        words = [e["message"] for e in self.log() if e["message"].startswith("Listening at: ")]
        return int(words[0].rpartition(":")[2].split()[0]) if words else 0

    def worker_pids(self) -> set[int]:
        return {e["pid"] for e in self.log() if e["message"].startswith("Booting worker")}

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self, path: str, method: str = "GET", body: object = None, **headers: str) -> Answer:
        """Send one request on a connection of its own, which any of the workers may take."""
        with contextlib.closing(self.connect()) as connection:
            return ask(connection, path, method, body, headers)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        scrape = self.get("/metrics")
        assert scrape.status == 200, scrape.body
        families = text_string_to_metric_families(scrape.body)
        found = (s for f in families for s in f.samples if s.name == name)
        return sum(s.value for s in found if labels.items() <= s.labels.items())


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    method: str = "GET",
    body: object = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    connection.request(method, path, json.dumps(body) if body is not None else None, headers or {})
    response = connection.getresponse()
    return Answer(response.status, dict(response.getheaders()), response.read().decode())


def environment(folder: Path, **settings: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {
        "PYTHONPATH": str(ROOT / "app"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "GREETING": "hello",
        "CONTROL_TOKEN": TOKEN,
        "READINESS_DELAY_SEC": "0",
        "DRAIN_SEC": "0",
        **settings,
    }


@contextlib.contextmanager
def running(folder: Path, **settings: str) -> Iterator[Server]:
    """Start gunicorn, wait until every worker has booted, and end it."""
    stdout = folder / "stdout"
    with stdout.open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            COMMAND, cwd=folder, env=environment(folder, **settings), stdout=out, stderr=err, stdin=subprocess.DEVNULL
        )
    server = Server(process, stdout)
    try:
        server.port = until(server.listening_port, "gunicorn listens")
        until(lambda: len(server.worker_pids()) == 2, "both workers have booted")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        finally:
            process.kill()


def load_all_workers(server: Server, pool: ThreadPoolExecutor, workers: set[int]) -> list[int]:
    """Send requests until each of these workers has answered some, and return all statuses."""
    statuses: list[int] = []
    known = len(server.log())

    def all_have_answered() -> bool:
        # Slow enough that one worker doesn't find the time to take them all.
        statuses.extend(a.status for a in pool.map(lambda _: server.get("/work?wait_ms=20"), range(16)))
        return workers <= {e["pid"] for e in server.log()[known:] if e.get("route") == "/work"}

    until(all_have_answered, "all workers have answered")
    return statuses


def test_metrics_add_up_over_workers_and_survive_their_death(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "counter_1.db").write_bytes(b"left over from an earlier run of the container")
    with running(tmp_path, READINESS_DELAY_SEC="1.0") as server, ThreadPoolExecutor(8) as pool:

        def until_counted(requests: int) -> None:
            """A request is observed when its response is sent, which is a moment before or after it is read."""
            names = ("app_requests_total", "app_request_duration_seconds_count")
            until(
                lambda: {server.metric(name, route="/work", status="200") for name in names} == {requests},
                f"{requests} requests are counted",
            )

        first = server.worker_pids()
        statuses = load_all_workers(server, pool, first)
        assert set(statuses) == {200}
        until_counted(len(statuses))
        until(lambda: server.get("/readyz").status == 200, "ready after its delay")

        hanging = [pool.submit(server.get, "/work?wait_ms=5000") for _ in range(4)]
        until(lambda: server.metric("app_requests_in_flight") == 4, "4 requests are in flight")
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        for request in hanging:
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                request.result()
        until(lambda: len(server.worker_pids()) == 4, "both workers are replaced")
        # The delay counts from the master's start, and what the dead had in flight is not in flight any more.
        assert [server.get("/readyz").status for _ in range(8)] == [200] * 8
        assert server.metric("app_requests_in_flight") == 0
        until_counted(len(statuses))
        statuses += load_all_workers(server, pool, server.worker_pids() - first)
        assert set(statuses) == {200}
        until_counted(len(statuses))
        assert server.metric("app_build_info") == 1
        assert server.metric("app_ready") == 1


def test_a_fault_switched_at_one_worker_holds_for_all_and_for_new_ones(tmp_path: Path) -> None:
    with running(tmp_path) as server, ThreadPoolExecutor(8) as pool:
        first = server.worker_pids()
        changed = server.get("/control/faults", "POST", {"fail_rate": 1, "not_ready": True}, **BEARER)
        assert changed.status == 200
        assert set(load_all_workers(server, pool, first)) == {500}
        assert {server.get("/readyz").status for _ in range(8)} == {503}

        for pid in first:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(server.worker_pids()) == 4, "both workers are replaced")
        assert set(load_all_workers(server, pool, server.worker_pids() - first)) == {500}

        assert server.get("/control/faults", "DELETE", **BEARER).status == 200
        assert set(load_all_workers(server, pool, server.worker_pids() - first)) == {200}
        assert {server.get("/readyz").status for _ in range(8)} == {200}


def test_sigterm_drains_finishes_what_is_in_flight_and_exits_0(tmp_path: Path) -> None:
    with running(tmp_path, DRAIN_SEC="1.5") as server, ThreadPoolExecutor(2) as pool:
        kept_alive = server.connect()
        first = ask(kept_alive, "/work")
        assert first.headers["Connection"] == "keep-alive"
        # Still in flight when the drain ends and the listening socket is closed.
        slow = pool.submit(server.get, "/work?wait_ms=3500")
        until(lambda: server.metric("app_requests_in_flight") == 1, "the slow request is in flight")

        server.process.terminate()
        until(lambda: server.get("/readyz").status == 503, "not ready", timeout_s=1.2)
        late = [server.get("/work") for _ in range(6)]
        assert {(a.status, a.headers["Connection"]) for a in late} == {(200, "close")}
        again = ask(kept_alive, "/work")
        assert (again.status, again.headers["Connection"]) == (200, "close")
        assert {server.get("/readyz").status for _ in range(6)} == {503}
        assert server.get("/healthz").status == 200
        assert not slow.done()

        assert slow.result().status == 200
        assert server.process.wait(timeout=20) == 0
        with pytest.raises(ConnectionRefusedError):
            server.get("/healthz")
    assert (tmp_path / "stderr").read_text() == ""
    messages = [e["message"] for e in server.log()]
    assert any(m.startswith("Draining for 1.5 s") for m in messages)
    assert "hello" not in server.stdout.read_text()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"GREETING": ""}, "GREETING"),
        ({"FAIL_RATE": "2"}, "FAIL_RATE"),
        ({"READINESS_DELAY_SEC": "ten"}, "READINESS_DELAY_SEC"),
        ({"PROMETHEUS_MULTIPROC_DIR": "/proc/nowhere"}, "PROMETHEUS_MULTIPROC_DIR"),
    ],
)
def test_a_bad_setting_ends_the_start_with_one_line(tmp_path: Path, settings: dict[str, str], names: str) -> None:
    ended = subprocess.run(
        COMMAND, cwd=tmp_path, env=environment(tmp_path, **settings), capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert names in line
    assert "must be" in line
