"""The endpoints."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import asdict

from flask import Flask, abort, jsonify, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from demo_app.faults import MAX_CPU_MS, MAX_WAIT_MS, OutOfBoundsError, bounded, burn_cpu, changes_from
from demo_app.metrics import Metrics
from demo_app.pod import PodState
from demo_app.settings import Settings


def add_work(app: Flask, settings: Settings, pod: PodState, chance: Callable[[], float]) -> None:
    """Add / for people and /work for load."""

    @app.get("/")
    def index() -> ResponseReturnValue:
        page = render_template("index.html", settings=settings, unready=pod.unready_reason())
        # No script, nothing from elsewhere: the page is text.
        headers = {
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        return page, headers

    @app.get("/work")
    def work() -> ResponseReturnValue:
        started = time.perf_counter()
        cpu_ms = bounded("cpu_ms", request.args.get("cpu_ms", "0"), MAX_CPU_MS)
        wait_ms = bounded("wait_ms", request.args.get("wait_ms", "0"), MAX_WAIT_MS)
        faults = pod.faults
        if wait_ms + faults.latency_ms > 0:
            time.sleep((wait_ms + faults.latency_ms) / 1000)
        used_ms = burn_cpu(cpu_ms + faults.cpu_ms)
        took_ms = round((time.perf_counter() - started) * 1000, 3)
        # Last, so that a request that fails has cost as much as one that doesn't.
        if chance() < faults.fail_rate:
            return jsonify(error="failed on purpose (fail rate)", took_ms=took_ms), 500
        return jsonify(
            greeting=settings.greeting,
            took_ms=took_ms,
            cpu_ms=round(used_ms, 3),
            environment=settings.environment,
            version=settings.version,
            pod=settings.pod,
        )


def add_probes(app: Flask, pod: PodState) -> None:
    """Add /healthz (alive) and /readyz (takes traffic)."""

    @app.get("/healthz")
    def healthz() -> ResponseReturnValue:
        return jsonify(status="alive")

    @app.get("/readyz")
    def readyz() -> ResponseReturnValue:
        reason = pod.unready_reason()
        if reason:
            return jsonify(status="not ready", reason=reason), 503
        return jsonify(status="ready")


def add_metrics(app: Flask, metrics: Metrics) -> None:
    """Add /metrics: the text format, or OpenMetrics for those who ask for it."""

    @app.get("/metrics")
    def expose() -> ResponseReturnValue:
        body, content_type = metrics.expose(request.headers.get("Accept", ""))
        return body, {"Content-Type": content_type}


def add_control(app: Flask, pod: PodState, token: str) -> None:
    """Add the control endpoint; without a token it doesn't exist."""
    if not token:
        return
    expected = f"Bearer {token}".encode()

    def require_token() -> None:
        given = request.headers.get("Authorization", "").encode()
        # In constant time: how long the answer takes must not tell how much of a guess was right.
        if not hmac.compare_digest(given, expected):
            abort(401)

    @app.get("/control/faults")
    def show() -> ResponseReturnValue:
        require_token()
        return jsonify(asdict(pod.faults))

    @app.post("/control/faults")
    def change() -> ResponseReturnValue:
        require_token()
        pod.change_faults(changes_from(request.get_json(force=True, silent=True)))
        return jsonify(asdict(pod.faults))

    @app.delete("/control/faults")
    def reset() -> ResponseReturnValue:
        require_token()
        pod.reset_faults()
        return jsonify(asdict(pod.faults))


def add_errors(app: Flask) -> None:
    """Answer every error as JSON with its reason."""

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> ResponseReturnValue:
        response = error.get_response()
        response.set_data(jsonify(error=error.description).get_data())
        response.content_type = "application/json"
        if error.code == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    @app.errorhandler(OutOfBoundsError)
    def out_of_bounds(error: OutOfBoundsError) -> ResponseReturnValue:
        return jsonify(error=str(error)), 400
