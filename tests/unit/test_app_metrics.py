"""The app's metrics: every request once, whatever its outcome; and the bug that this project is known for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_app.factory import create_app
from demo_app.metrics import BUCKETS_S, LABELS
from demo_app.settings import Settings
from flask import Flask, Response, abort, jsonify
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from werkzeug.test import EnvironBuilder

WORK = "/work"

TOKEN = "a-token-of-20-letters"
Series = tuple[str, str, str]


def make_app(outcomes: Iterator[float] | None = None) -> Flask:
    settings = Settings(greeting="hello", readiness_delay_s=0.0, fail_rate=0.5, control_token=TOKEN)
    return create_app(settings, chance=(lambda: next(outcomes)) if outcomes else lambda: 0.9)


def samples(app: Flask, name: str) -> dict[Series, float]:
    """Return one metric's values by method, route and status, without those that are 0."""
    text = app.test_client().get("/metrics").text
    return {
        (s.labels["method"], s.labels["route"], s.labels["status"]): s.value
        for family in parse_text(text)
        for s in family.samples
        if s.name == name and s.value
    }


def in_flight(app: Flask) -> float:
    text = app.test_client().get("/metrics").text
    return next(f.samples[0].value for f in parse_text(text) if f.name == "app_requests_in_flight")


def latency_findings(app: Flask, outcomes: int) -> list[str]:
    """Send requests half of which fail, and return each status whose latency was not observed once per request."""
    client = app.test_client()
    sent: dict[str, int] = {}
    for _ in range(outcomes):
        status = str(client.get("/work", buffered=True).status_code)
        sent[status] = sent.get(status, 0) + 1
    observed = samples(app, "app_request_duration_seconds_count")
    return [
        f"status {status}: {count} requests, {observed.get(('GET', '/work', status), 0):g} latencies"
        for status, count in sorted(sent.items())
        if observed.get(("GET", "/work", status), 0) != count
    ]


def faulty_app() -> Flask:
    """Return a copy, as small as can be, of the original: the latency is observed where the failure is handled."""
    app = Flask("faulty")
    registry = CollectorRegistry()
    duration = Histogram("app_request_duration_seconds", "…", LABELS, buckets=BUCKETS_S, registry=registry)
    outcomes = iter([0.1, 0.9] * 100)

    @app.get("/work")
    def work() -> tuple[Response, int]:
        started = time.perf_counter()
        try:
            if next(outcomes) < 0.5:
                raise RuntimeError("failed on purpose")
        except RuntimeError:
            duration.labels("GET", "/work", "500").observe(time.perf_counter() - started)
            return jsonify(error="failed"), 500
        return jsonify(greeting="hello"), 200

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), mimetype="text/plain")

    return app


def test_every_outcome_of_work_observes_its_latency() -> None:
    assert latency_findings(make_app(iter([0.1, 0.9] * 100)), 20) == []


def test_the_original_bug_is_caught_by_the_same_check() -> None:
    assert latency_findings(faulty_app(), 20) == ["status 200: 10 requests, 0 latencies"]


def views_of_every_kind() -> Flask:
    app = make_app()

    def boom() -> str:
        raise RuntimeError("boom")

    def aborts() -> str:
        abort(418)

    def streams() -> Response:
        return Response(iter(["a", "b"]), mimetype="text/plain")

    def item(number: int) -> str:
        return str(number)

    app.add_url_rule("/boom", view_func=boom)
    app.add_url_rule("/aborts", view_func=aborts)
    app.add_url_rule("/streams", view_func=streams)
    app.add_url_rule("/items/<int:number>", view_func=item)
    return app


@pytest.mark.parametrize(
    ("method", "paths", "series"),
    [
        ("GET", ["/work"], ("GET", "/work", "200")),
        ("HEAD", ["/work"], ("HEAD", "/work", "200")),
        ("GET", ["/work?cpu_ms=x"], ("GET", "/work", "400")),
        ("GET", ["/"], ("GET", "/", "200")),
        ("GET", ["/boom"], ("GET", "/boom", "500")),
        ("GET", ["/aborts"], ("GET", "/aborts", "418")),
        ("GET", ["/streams"], ("GET", "/streams", "200")),
        ("GET", ["/items/1", "/items/2"], ("GET", "/items/<int:number>", "200")),
        ("GET", ["/a", "/b", "/b/c", "/metrics/", f"{WORK}/", "/x?y=z"], ("GET", "unmatched", "404")),
        ("POST", ["/work"], ("POST", "unmatched", "405")),
        ("BREW", ["/work", "/a"], ("other", "unmatched", "")),
    ],
)
def test_a_request_is_counted_and_timed_exactly_once(method: str, paths: list[str], series: Series) -> None:
    app = views_of_every_kind()
    client = app.test_client()
    statuses = [str(client.open(path, method=method, buffered=True).status_code) for path in paths]
    # Two kinds of error are possible for a method nobody knows.
    expected = {(series[0], series[1], s): float(statuses.count(s)) for s in statuses}
    assert samples(app, "app_requests_total") == expected
    assert samples(app, "app_request_duration_seconds_count") == expected
    assert not series[2] or set(expected) == {series}
    assert in_flight(app) == 0


def test_a_view_that_raises_through_the_server_is_observed_too() -> None:
    app = views_of_every_kind()
    app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(RuntimeError, match="boom"):
        app.test_client().get("/boom")
    # Flask never came to a response, and took the route with it.
    assert samples(app, "app_request_duration_seconds_count") == {("GET", "unmatched", "500"): 1}
    assert in_flight(app) == 0


def test_a_client_that_goes_away_is_observed_once_and_at_the_end() -> None:
    app = views_of_every_kind()
    body = app(EnvironBuilder(path="/streams").get_environ(), lambda status, headers, exc_info=None: lambda data: None)
    next(iter(body))
    assert in_flight(app) == 1
    assert samples(app, "app_requests_total") == {}
    body.close()  # type: ignore[attr-defined]
    body.close()  # type: ignore[attr-defined]
    assert in_flight(app) == 0
    assert samples(app, "app_requests_total") == {("GET", "/streams", "200"): 1}
    assert samples(app, "app_request_duration_seconds_count") == {("GET", "/streams", "200"): 1}


def test_the_latency_is_the_requests_own() -> None:
    app = make_app()
    app.test_client().get("/work?wait_ms=60", buffered=True)
    (seconds,) = samples(app, "app_request_duration_seconds_sum").values()
    assert 0.06 <= seconds < 1.0


def test_probes_scrapes_and_control_are_not_work() -> None:
    app = make_app()
    client = app.test_client()
    for path in ("/healthz", "/readyz", "/metrics", "/control/faults"):
        client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}, buffered=True)
    client.post("/healthz", buffered=True)
    assert samples(app, "app_requests_total") == {}
    assert samples(app, "app_request_duration_seconds_count") == {}


def test_both_outcomes_of_work_begin_with_zero() -> None:
    text = make_app().test_client().get("/metrics").text
    for status in ("200", "500"):
        assert f'app_requests_total{{method="GET",route="/work",status="{status}"}} 0.0' in text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4"),
        ("text/plain", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"),
    ],
)
def test_the_format_is_the_one_asked_for(accept: str, content_type: str) -> None:
    app = make_app()
    app.test_client().get("/work", buffered=True)
    answer = app.test_client().get("/metrics", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith(content_type)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    families = {family.name for family in parse(answer.text)}
    assert families >= {"app_request_duration_seconds", "app_requests_in_flight", "app_build_info", "app_ready"}
    assert answer.text.endswith("# EOF\n") == ("openmetrics" in content_type)


def test_a_scrape_passes_over_a_file_that_a_worker_has_only_opened(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").touch()
    app = create_app(Settings(greeting="hello", metrics_dir=tmp_path))
    answer = app.test_client().get("/metrics")
    assert answer.status_code == 200
    assert "app_ready 0.0" in answer.text


def test_buckets_fit_1_ms_to_10_s() -> None:
    assert (BUCKETS_S[0], BUCKETS_S[-1]) == (0.001, 10.0)
    assert list(BUCKETS_S) == sorted(BUCKETS_S)
    # A quantile is at most wrong by its bucket's width.
    assert max(b / a for a, b in itertools.pairwise(BUCKETS_S)) <= 2.5
