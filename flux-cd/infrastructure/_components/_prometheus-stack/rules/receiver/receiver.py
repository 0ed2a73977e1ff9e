"""Alertmanager's receiver that a person can look at: the last notifications as a page and as JSON, each also a log line.

The standard library only, so that any image with Python runs it. What it keeps is gone with its pod; the log lines
are the cluster's.

    POST /alerts   a notification of Alertmanager (webhook, version 4)
    POST /nowhere  taken and dropped: where alerts go as long as nobody gave an address of their own
    GET  /         the page; /notifications the same as JSON; /healthz
"""

from __future__ import annotations

import html
import json
import sys
import threading
from collections import deque
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8080
KEPT = 200
MAX_BODY_BYTES = 1024 * 1024
READ_TIMEOUT_S = 10

_lock = threading.Lock()
_kept: deque[dict[str, Any]] = deque(maxlen=KEPT)

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="10">
<title>Alerts</title><style>body{{font:14px/1.5 system-ui,sans-serif;margin:2rem;color:#222}}
table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.4rem .8rem;border-bottom:1px solid #ddd}}
.firing{{color:#b00020;font-weight:600}}.resolved{{color:#1b7a2f}}</style></head><body>
<h1>What Alertmanager told</h1><p>{count} lines, the newest first; the last {kept} are kept.</p>
<table><tr><th>received</th><th>state</th><th>severity</th><th>alert</th><th>summary</th><th>runbook</th></tr>
{rows}</table></body></html>"""
_ROW = '<tr><td>{received}</td><td class="{status}">{status}</td><td>{severity}</td><td>{alert}</td><td>{summary}</td><td>{runbook}</td></tr>'


def entries(document: Any, received: str) -> list[dict[str, Any]]:
    """Return one entry per alert of a notification; raises ValueError for what is none."""
    alerts = document.get("alerts") if isinstance(document, dict) else None
    if not isinstance(alerts, list) or not all(isinstance(a, dict) for a in alerts):
        raise ValueError("not a notification of Alertmanager")
    found = []
    for alert in alerts:
        labels, annotations = alert.get("labels") or {}, alert.get("annotations") or {}
        found.append(
            {
                "received": received,
                "status": str(alert.get("status", "")),
                "alert": str(labels.get("alertname", "")),
                "severity": str(labels.get("severity", "")),
                "labels": {str(k): str(v) for k, v in labels.items()},
                "summary": str(annotations.get("summary", "")),
                "runbook": str(annotations.get("runbook_url", "")),
                "starts_at": str(alert.get("startsAt", "")),
                "ends_at": str(alert.get("endsAt", "")),
            }
        )
    return found


def page(kept: list[dict[str, Any]]) -> str:
    """Return the page: everything in it came from labels, so everything is escaped."""
    columns = ("received", "status", "severity", "alert", "summary", "runbook")
    rows = "\n".join(_ROW.format(**{c: html.escape(entry[c]) for c in columns}) for entry in reversed(kept))
    return _PAGE.format(count=len(kept), kept=KEPT, rows=rows)


class Handler(BaseHTTPRequestHandler):
    """Takes notifications and shows them."""

    timeout = READ_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer the page, the JSON, or the probe."""
        if self.path == "/healthz":
            self._answer(200, "text/plain", "ok")
            return
        with _lock:
            kept = list(_kept)
        if self.path == "/":
            self._answer(200, "text/html; charset=utf-8", page(kept))
        elif self.path == "/notifications":
            self._answer(200, "application/json", json.dumps(kept))
        else:
            self._answer(404, "text/plain", "not here")

    def do_POST(self) -> None:
        """Take a notification."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self._answer(413, "text/plain", "too large, or without a length")
            return
        body = self.rfile.read(int(length))
        if self.path == "/nowhere":
            self._answer(200, "text/plain", "dropped")
            return
        if self.path != "/alerts":
            self._answer(404, "text/plain", "not here")
            return
        try:
            new = entries(json.loads(body), datetime.now(UTC).isoformat(timespec="seconds"))
        except ValueError as error:
            self._answer(400, "text/plain", str(error))
            return
        with _lock:
            _kept.extend(new)
        for entry in new:
            sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()
        self._answer(200, "text/plain", "taken")

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line per request: notifications are the log."""

    def _answer(self, status: int, content_type: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()
