"""The one place that observes requests: metrics, log line and request id.

It is WSGI middleware around the whole app, not hooks or a decorator on views: no view can forget it, and a request is
observed exactly once whether its view answers, aborts or raises, or Flask finds no route, or the client goes away.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from flask import Flask, request

from demo_app.logs import REQUEST_ID
from demo_app.metrics import UNMATCHED, Metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROUTE = "demo_app.route"
# Not work: neither counted nor, unless they fail, logged.
PROBE_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
CONTROL_PREFIX = "/control/"
MAX_LOGGED_PATH = 200

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


class Exchange:
    """One request and its response; as the response's iterable it learns of the end."""

    __slots__ = (
        "_body",
        "_environ",
        "_finish",
        "_start_response",
        "finished",
        "request_id",
        "started",
        "status",
    )

    def __init__(
        self, environ: WSGIEnvironment, start_response: StartResponse, finish: Callable[[Exchange], None]
    ) -> None:
        self.started = time.perf_counter()
        self.finished = False
        self.status = "500"
        given = environ.get("HTTP_X_REQUEST_ID", "")
        self.request_id = given if _SANE_REQUEST_ID.match(given) else uuid.uuid4().hex
        environ[REQUEST_ID] = self.request_id
        self._environ = environ
        self._start_response = start_response
        self._finish = finish
        self._body: Iterable[bytes] = ()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None
    ) -> Callable[[bytes], object]:
        """Note the status and name the request in the response."""
        self.status = status[:3]
        headers.append(("X-Request-Id", self.request_id))
        return self._start_response(status, headers, exc_info)  # type: ignore[arg-type]

    def run(self, app: WSGIApplication) -> Exchange:
        """Call the app; what it raises is observed as status 500 and raised again."""
        try:
            self._body = app(self._environ, self.start_response)
        except BaseException:
            self.status = "500"
            self._end()
            raise
        return self

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """End the exchange: the server calls this after the last byte, or when the client has gone."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._end()

    def _end(self) -> None:
        if not self.finished:
            self.finished = True
            self._finish(self)

    @property
    def method(self) -> str:
        """The request's method as the client sent it."""
        return str(self._environ["REQUEST_METHOD"])

    @property
    def path(self) -> str:
        """The request's path, without the query."""
        return str(self._environ.get("PATH_INFO", ""))

    @property
    def route(self) -> str:
        """The template of the route that matched, or UNMATCHED."""
        return str(self._environ.get(ROUTE, UNMATCHED))


class Observer:
    """Observes every request of an app: metrics, log line, or both."""

    def __init__(self, app: WSGIApplication, metrics: Metrics | None, log: logging.Logger | None) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, observed."""
        path = environ.get("PATH_INFO", "")
        if path in PROBE_PATHS or path.startswith(CONTROL_PREFIX):
            return Exchange(environ, start_response, self.finish_other).run(self._app)
        if self._metrics is not None:
            self._metrics.enter()
        return Exchange(environ, start_response, self.finish_work).run(self._app)

    def finish_work(self, exchange: Exchange) -> None:
        """Observe a request that is work."""
        seconds = time.perf_counter() - exchange.started
        if self._metrics is not None:
            self._metrics.leave()
            self._metrics.observe(exchange.method, exchange.route, exchange.status, seconds)
        self._write(exchange, seconds)

    def finish_other(self, exchange: Exchange) -> None:
        """Observe a probe, a scrape or a control request: a line for each use of control and each failure, no more."""
        if exchange.status >= "400" or exchange.path not in PROBE_PATHS:
            self._write(exchange, time.perf_counter() - exchange.started)

    def _write(self, exchange: Exchange, seconds: float) -> None:
        if self._log is None:
            return
        fields = {
            "request_id": exchange.request_id,
            "method": exchange.method[:20],
            "route": exchange.route,
            "path": exchange.path[:MAX_LOGGED_PATH],
            "status": int(exchange.status),
            "duration_ms": round(seconds * 1000, 3),
        }
        self._log.log(logging.INFO if exchange.status < "500" else logging.WARNING, "request", extra={"fields": fields})


def observe(app: Flask, metrics: Metrics | None, log: logging.Logger | None) -> None:
    """Wrap an app so that each of its requests is observed exactly once."""

    def remember_route() -> None:
        if request.url_rule is not None:
            request.environ[ROUTE] = request.url_rule.rule

    app.before_request(remember_route)
    app.wsgi_app = Observer(app.wsgi_app, metrics, log)  # type: ignore[method-assign]
