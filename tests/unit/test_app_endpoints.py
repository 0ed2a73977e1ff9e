"""The app's endpoints, without a server."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from demo_app.factory import create_app, pod_of
from demo_app.faults import burn_cpu
from demo_app.logs import JsonFormatter, request_log
from demo_app.settings import Settings
from flask import Flask
from flask.testing import FlaskClient

from scripts.endpoints import PATHS

TOKEN = "a-token-of-20-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def make_app(chance: Callable[[], float] = lambda: 0.5, **settings: Any) -> Flask:
    merged: dict[str, Any] = {"greeting": "hello", "readiness_delay_s": 0.0} | settings
    return create_app(Settings(**merged), chance=chance)


@pytest.fixture
def app() -> Flask:
    return make_app(control_token=TOKEN, environment="dev", version="1.2", pod="pod-1", node="node-1")


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_work_answers_the_greeting_and_how_long_it_took(client: FlaskClient) -> None:
    answer = client.get("/work?cpu_ms=5&wait_ms=10")
    assert answer.status_code == 200
    assert answer.json is not None
    assert answer.json["greeting"] == "hello"
    assert answer.json["took_ms"] >= 15
    assert 5 <= answer.json["cpu_ms"] < answer.json["took_ms"]
    assert (answer.json["environment"], answer.json["version"], answer.json["pod"]) == ("dev", "1.2", "pod-1")


def test_cpu_time_is_the_threads_own_however_busy_the_process_is() -> None:
    def burn() -> float:
        started = time.thread_time()
        burn_cpu(30)
        return time.thread_time() - started

    with ThreadPoolExecutor(3) as pool:
        used = [future.result() for future in [pool.submit(burn) for _ in range(3)]]
    assert min(used) >= 0.03


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("cpu_ms=2001", "cpu_ms"),
        ("wait_ms=5000.5", "wait_ms"),
        ("cpu_ms=-1", "cpu_ms"),
        ("wait_ms=soon", "wait_ms"),
        ("wait_ms=", "wait_ms"),
        ("cpu_ms=nan", "cpu_ms"),
        ("wait_ms=inf", "wait_ms"),
    ],
)
def test_work_refuses_what_is_out_of_bounds(client: FlaskClient, query: str, name: str) -> None:
    answer = client.get(f"/work?{query}")
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["error"].startswith(f"{name} must be a number from 0 to ")


@pytest.mark.parametrize(
    ("fail_rate", "chance", "status"), [(0.0, 0.0, 200), (0.3, 0.29, 500), (0.3, 0.3, 200), (1.0, 0.999, 500)]
)
def test_work_fails_with_the_fail_rate(fail_rate: float, chance: float, status: int) -> None:
    answer = make_app(lambda: chance, fail_rate=fail_rate).test_client().get("/work")
    assert answer.status_code == status
    assert answer.json is not None
    assert ("error" in answer.json) == (status == 500)
    assert "greeting" not in answer.json or status == 200


def test_faults_hit_work_and_nothing_else(client: FlaskClient) -> None:
    faults = {"fail_rate": 1, "latency_ms": 30, "cpu_ms": 5}
    assert client.post("/control/faults", json=faults, headers=BEARER).json == faults | {"not_ready": False}
    failed = client.get("/work")
    assert failed.status_code == 500
    assert failed.json is not None
    assert failed.json["took_ms"] >= 35
    for path in ("/", "/healthz", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200, path
    assert client.delete("/control/faults", headers=BEARER).json == {
        "fail_rate": 0.0,
        "latency_ms": 0.0,
        "cpu_ms": 0.0,
        "not_ready": False,
    }
    assert client.get("/work").status_code == 200


def test_a_change_leaves_the_faults_it_does_not_name(client: FlaskClient) -> None:
    client.post("/control/faults", json={"fail_rate": 0.25}, headers=BEARER)
    client.post("/control/faults", json={"not_ready": True}, headers=BEARER)
    answer = client.get("/control/faults", headers=BEARER)
    assert answer.json == {"fail_rate": 0.25, "latency_ms": 0.0, "cpu_ms": 0.0, "not_ready": True}


def test_reset_goes_back_to_the_settings() -> None:
    client = make_app(control_token=TOKEN, fail_rate=0.75).test_client()
    client.post("/control/faults", json={"fail_rate": 0}, headers=BEARER)
    answer = client.delete("/control/faults", headers=BEARER)
    assert answer.json is not None
    assert answer.json["fail_rate"] == 0.75


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[1]",
        b"{not json",
        b'{"typo": 1}',
        b'{"fail_rate": 1.5}',
        b'{"fail_rate": "1"}',
        b'{"fail_rate": true}',
        b'{"fail_rate": NaN}',
        b'{"cpu_ms": 1e999}',
        b'{"latency_ms": null}',
        b'{"not_ready": 1}',
        b'{"fail_rate": 1, "cpu_ms": -1}',
    ],
)
def test_a_bad_change_is_refused_whole(app: Flask, client: FlaskClient, body: bytes) -> None:
    before = pod_of(app).faults
    answer = client.post("/control/faults", data=body, headers=BEARER)
    assert answer.status_code == 400
    assert answer.json is not None
    assert "must be" in answer.json["error"]
    assert pod_of(app).faults == before


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "header", [{}, {"Authorization": TOKEN}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é"}]
)
def test_control_needs_the_token(app: Flask, client: FlaskClient, method: str, header: dict[str, str]) -> None:
    answer = client.open("/control/faults", method=method, json={"fail_rate": 1}, headers=header)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert pod_of(app).faults.fail_rate == 0


def test_control_is_off_without_a_token() -> None:
    client = make_app().test_client()
    for header in ({}, {"Authorization": "Bearer "}, BEARER):
        assert client.get("/control/faults", headers=header).status_code == 404


def test_readiness_waits_for_the_delay_and_ends_with_draining() -> None:
    app = make_app(readiness_delay_s=60.0)
    client = app.test_client()
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json is not None
    assert answer.json["reason"].startswith("starting, ready in ")
    assert client.get("/healthz").status_code == 200
    assert b"app_ready 0.0" in client.get("/metrics").data

    app = make_app()
    client = app.test_client()
    assert client.get("/readyz").status_code == 200
    assert b"app_ready 1.0" in client.get("/metrics").data
    pod_of(app).start_draining()
    assert client.get("/readyz").status_code == 503
    assert client.get("/work").status_code == 200
    assert b"app_ready 0.0" in client.get("/metrics").data


def test_not_ready_is_a_fault_of_readyz_alone(client: FlaskClient) -> None:
    client.post("/control/faults", json={"not_ready": True}, headers=BEARER)
    statuses = {path: client.get(path).status_code for path in ("/readyz", "/healthz", "/work")}
    assert statuses == {"/readyz": 503, "/healthz": 200, "/work": 200}


def test_the_page_says_where_you_are_and_escapes_it() -> None:
    client = make_app(environment="<script>alert(1)</script>", version="1.2", pod="pod-1", node="node-1").test_client()
    answer = client.get("/")
    assert answer.mimetype == "text/html"
    for text in ("1.2", "pod-1", "node-1", "&lt;script&gt;"):
        assert text in answer.text
    assert "<script>" not in answer.text
    assert "hello" not in answer.text
    for path in PATHS:
        assert f'<a href="{path}">' in answer.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("PUT", "/work", 405)])
def test_errors_are_json(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code == status
    assert answer.json is not None
    assert answer.json["error"]
    assert status != 405 or "GET" in answer.headers["Allow"]


@pytest.mark.parametrize("given", ["abc-123_4.5", "6f1b0f9e-0a52-4ad5-a8b8-0fc1d1f0f1aa"])
def test_a_sane_request_id_is_kept(client: FlaskClient, given: str) -> None:
    assert client.get("/work", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, '"}', "é"])
def test_any_other_request_id_is_replaced(client: FlaskClient, given: str) -> None:
    answer = client.get("/healthz", headers={"X-Request-Id": given})
    assert len(answer.headers["X-Request-Id"]) == 32
    assert answer.headers["X-Request-Id"] != client.get("/healthz").headers["X-Request-Id"]


def test_each_request_writes_one_json_line_without_secrets() -> None:
    written = io.StringIO()
    settings = Settings(greeting="hello", readiness_delay_s=60.0, control_token=TOKEN)
    client = create_app(settings, request_log=request_log(written)).test_client()
    client.get("/work?wait_ms=1", headers={"X-Request-Id": "id-1"}, buffered=True)
    client.get('/no"\n' + "x" * 300, buffered=True)
    client.get("/healthz", buffered=True)
    client.get("/metrics", buffered=True)
    client.get("/control/faults", headers=BEARER, buffered=True)
    client.get("/readyz", buffered=True)
    lines = written.getvalue().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [(e["route"], e["status"]) for e in entries] == [
        ("/work", 200),
        ("unmatched", 404),
        ("/control/faults", 200),
        ("/readyz", 503),
    ]
    first = entries[0]
    assert (first["request_id"], first["method"], first["path"], first["level"]) == ("id-1", "GET", "/work", "info")
    assert first["duration_ms"] >= 1
    assert first["ts"].endswith("+00:00")
    assert len(entries[1]["path"]) == 200
    assert not any(TOKEN in line or "hello" in line or "wait_ms" in line for line in lines)


def test_a_traceback_is_one_json_line_with_the_request_id(app: Flask) -> None:
    def boom() -> str:
        raise RuntimeError("boom")

    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter().format(record))

    app.add_url_rule("/boom", view_func=boom)
    handler = Keep()
    app.logger.addHandler(handler)
    try:
        answer = app.test_client().get("/boom", headers={"X-Request-Id": "id-2"})
    finally:
        app.logger.removeHandler(handler)
    assert answer.status_code == 500
    assert answer.json is not None
    assert "boom" not in answer.text
    (line,) = lines
    entry = json.loads(line)
    assert entry["request_id"] == "id-2"
    assert "RuntimeError: boom" in entry["exception"]
    assert "\n" not in line
