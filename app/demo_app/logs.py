"""Logs: one JSON object a line, on standard output; the app's, Flask's and gunicorn's alike."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

from flask import has_request_context, request

REQUEST_ID = "demo_app.request_id"

RequestLog = Callable[[dict[str, object]], None]


def _line(seconds: float, level: str, logger: str, message: str, fields: dict[str, object]) -> str:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    entry = {"ts": moment, "level": level, "logger": logger, "pid": os.getpid(), "message": message, **fields}
    return json.dumps(entry)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, object] = {}
        if has_request_context():
            fields["request_id"] = request.environ.get(REQUEST_ID)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _line(record.created, record.levelname.lower(), record.name, record.getMessage(), fields)


def request_log(stream: TextIO) -> RequestLog:
    """Return a function that writes one request's line.

    It goes past the logging module, which costs several times as much as all the rest that a request is observed by.
    A line is written at once: threads and processes don't mix theirs.
    """

    def write(fields: dict[str, object]) -> None:
        stream.write(_line(time.time(), "info", "request", "request", fields) + "\n")
        stream.flush()

    return write


def configure() -> RequestLog:
    """Send every logger of this process, gunicorn's too, to standard output as JSON; return the log of requests."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    # gunicorn has set up a handler of its own before it loads the app, and doesn't propagate.
    for logger in (logging.getLogger(), logging.getLogger("gunicorn.error")):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
    return request_log(sys.stdout)
