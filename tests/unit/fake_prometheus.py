"""A Prometheus to talk to: real HTTP, the API's own shapes, answers that a test decides on."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Labels = dict[str, str]
# Series of a query, each with what its value is at a moment; None for a moment without one.
Found = list[tuple[Labels, Callable[[float], float | None]]]


@dataclass
class Refusal:
    """What Prometheus says of a query that it can't answer."""

    status: int
    kind: str
    error: str


@dataclass
class FakePrometheus:
    """Answers by path, and of queries by expression; what was asked is kept."""

    url: str = ""
    answer: Callable[[str], Found | Refusal] = lambda _: []
    pages: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def respond(self, path: str, query: dict[str, str]) -> tuple[int, str]:
        self.asked.append((path, query))
        if path in self.pages:
            return self.pages[path]
        found = self.answer(query["query"])
        if isinstance(found, Refusal):
            return found.status, json.dumps({"status": "error", "errorType": found.kind, "error": found.error})
        if path == "/api/v1/query":
            at = float(query.get("time", "1000"))
            values = [(labels, value(at)) for labels, value in found]
            result = [{"metric": labels, "value": [at, str(v)]} for labels, v in values if v is not None]
            return 200, success({"resultType": "vector", "result": result})
        start, end, step = (float(query[name]) for name in ("start", "end", "step"))
        moments = [start + step * i for i in range(int((end - start) / step) + 1)]
        series = [{"metric": labels, "values": points(value, moments)} for labels, value in found]
        return 200, success({"resultType": "matrix", "result": [s for s in series if s["values"]]})


def points(value: Callable[[float], float | None], moments: list[float]) -> list[list[Any]]:
    found = [(at, value(at)) for at in moments]
    return [[at, str(v)] for at, v in found if v is not None]


def success(data: Any, **more: Any) -> str:
    return json.dumps({"status": "success", "data": data, **more})


@contextlib.contextmanager
def serving(fake: FakePrometheus) -> Iterator[FakePrometheus]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            status, text = fake.respond(parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()})
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield fake
        finally:
            server.shutdown()
