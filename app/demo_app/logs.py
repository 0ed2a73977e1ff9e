"""Logs: one JSON object a line, on standard output; the app's, Flask's and gunicorn's alike."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from flask import has_request_context, request

REQUEST_ID = "demo_app.request_id"


class JsonFormatter(logging.Formatter):
    """Formats a record, with what `extra={"fields": {...}}` adds, as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if fields:
            entry.update(fields)
        elif has_request_context():
            entry["request_id"] = request.environ.get(REQUEST_ID)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure() -> None:
    """Send every logger of this process, gunicorn's too, to standard output as JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    # gunicorn has set up a handler of its own before it loads the app, and doesn't propagate.
    for logger in (logging.getLogger(), logging.getLogger("gunicorn.error")):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
