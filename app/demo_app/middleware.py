"""The one place that observes requests: metrics, log line and request id.

It is WSGI middleware around the whole app, not hooks or a decorator on views: no view can forget it, and a request is
observed exactly once whether its view answers, aborts or raises, or Flask finds no route, or the client goes away.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from flask import Flask

from demo_app.logs import REQUEST_ID, RequestLog
from demo_app.metrics import UNMATCHED, Metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Not work: neither counted nor, unless they fail, logged.
PROBE_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
CONTROL_PREFIX = "/control/"
MAX_LOGGED_METHOD = 20
MAX_LOGGED_PATH = 200

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")


class Exchange:
    """One request and its response; as the response's iterable it learns of the end."""

    def __init__(
        self, environ: WSGIEnvironment, start_response: StartResponse, finish: Callable[[Exchange], None]
    ) -> None:
        self.started = time.perf_counter()
        self.environ = environ
        self.status = "500"
        self.route = UNMATCHED
        given = environ.get("HTTP_X_REQUEST_ID")
        # Not uuid4, which costs ten times as much and says no more.
        self.request_id = given if given and _SANE_REQUEST_ID.match(given) else os.urandom(16).hex()
        environ[REQUEST_ID] = self.request_id
        self._start_response = start_response
        self._finish = finish
        self._finished = False
        self._body: Iterable[bytes] = ()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: object = None
    ) -> Callable[[bytes], object]:
        """Note status and route, and name the request in the response."""
        self.status = status[:3]
        # Flask keeps its request here as long as it handles it. A hook of Flask's would know the rule too, at the
        # price of a fifth of all that observing costs.
        rule = self.environ["werkzeug.request"].url_rule
        if rule is not None:
            self.route = rule.rule
        headers.append(("X-Request-Id", self.request_id))
        return self._start_response(status, headers, exc_info)  # type: ignore[arg-type]

    def run(self, app: WSGIApplication) -> Exchange:
        """Call the app; what it raises is observed as status 500 and raised again."""
        try:
            self._body = app(self.environ, self.start_response)
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
        if not self._finished:
            self._finished = True
            self._finish(self)


class Observer:
    """Observes every request of an app: metrics, log line, or both."""

    def __init__(self, app: WSGIApplication, metrics: Metrics | None, log: RequestLog | None) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, observed."""
        path = environ["PATH_INFO"]
        if path in PROBE_PATHS or path.startswith(CONTROL_PREFIX):
            return Exchange(environ, start_response, self._finish_other).run(self._app)
        if self._metrics is not None:
            self._metrics.enter()
        return Exchange(environ, start_response, self._finish_work).run(self._app)

    def _finish_work(self, exchange: Exchange) -> None:
        seconds = time.perf_counter() - exchange.started
        if self._metrics is not None:
            self._metrics.leave()
            self._metrics.observe(exchange.environ["REQUEST_METHOD"], exchange.route, exchange.status, seconds)
        self._write(exchange, seconds)

    def _finish_other(self, exchange: Exchange) -> None:
        """Log a probe or scrape only if it fails, and each use of the control endpoint."""
        if exchange.status >= "400" or exchange.environ["PATH_INFO"] not in PROBE_PATHS:
            self._write(exchange, time.perf_counter() - exchange.started)

    def _write(self, exchange: Exchange, seconds: float) -> None:
        if self._log is None:
            return
        self._log(
            {
                "request_id": exchange.request_id,
                "method": exchange.environ["REQUEST_METHOD"][:MAX_LOGGED_METHOD],
                "route": exchange.route,
                # Without the query, which may hold what a log must not.
                "path": exchange.environ["PATH_INFO"][:MAX_LOGGED_PATH],
                "status": int(exchange.status),
                "duration_ms": round(seconds * 1000, 3),
            }
        )


def observe(app: Flask, metrics: Metrics | None, log: RequestLog | None) -> None:
    """Wrap an app so that each of its requests is observed exactly once."""
    app.wsgi_app = Observer(app.wsgi_app, metrics, log)  # type: ignore[method-assign]
