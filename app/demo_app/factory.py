"""Builds the app: `create_app` from settings, `from_environment` for gunicorn."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from flask import Flask

from demo_app import logs, middleware, views
from demo_app.metrics import Metrics
from demo_app.pod import PodState
from demo_app.settings import Settings, load

MAX_BODY_BYTES = 4096
POD = "demo_app.pod"


def create_app(
    settings: Settings,
    *,
    with_metrics: bool = True,
    request_log: logs.RequestLog | None = None,
    chance: Callable[[], float] = random.random,
) -> Flask:
    """Return the app.

    Args:
        settings: what the environment asked for.
        with_metrics: off only to measure what the metrics cost; there is no variable for it.
        request_log: takes a line for each request.
        chance: a number from 0 to 1 for each request of /work, which fails if it is below the fail rate.
    """
    app = Flask("demo_app")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    pod = PodState(settings.readiness_delay_s, settings.fail_rate)
    app.extensions[POD] = pod
    views.add_work(app, settings, pod, chance)
    views.add_probes(app, pod)
    views.add_control(app, pod, settings.control_token)
    views.add_errors(app)
    metrics = Metrics(settings, pod) if with_metrics else None
    if metrics is not None:
        views.add_metrics(app, metrics)
    if metrics is not None or request_log is not None:
        middleware.observe(app, metrics, request_log)
    return app


def from_environment(with_metrics: bool = True) -> Flask:
    """Return the app as the environment asks for it, with logs set up; raises SettingsError."""
    return create_app(load(os.environ), with_metrics=with_metrics, request_log=logs.configure())


def pod_of(app: Flask) -> PodState:
    """Return the state that all workers of an app share."""
    pod = app.extensions[POD]
    assert isinstance(pod, PodState)
    return pod
