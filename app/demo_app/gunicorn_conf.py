"""gunicorn's configuration: `python3 -m gunicorn --config python:demo_app.gunicorn_conf`.

gunicorn reads this module once, in its master and before anything else. So the settings are checked here: a bad one
ends the process with one line, not with workers that fail to boot one after another.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from demo_app.settings import SettingsError, load

DEFAULT_METRICS_DIR = "/tmp/demo-app-metrics"  # in the pod's own emptyDir


def _prepare_metrics_dir(folder: Path) -> None:
    """Make the folder of the workers' metric files, without those of an earlier run of this container."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in folder.glob("*.db"):
            left_over.unlink()
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise SettingsError(
            f"PROMETHEUS_MULTIPROC_DIR={str(folder)!r} is not usable: it must be a folder the app may write to "
            f"({error.strerror})"
        ) from error


try:
    # prometheus_client looks for this variable when it is first imported, which is after this module.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or DEFAULT_METRICS_DIR
    _settings = load(os.environ)
    _prepare_metrics_dir(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
except SettingsError as error:
    print(f"demo-app: {error}", file=sys.stderr)
    sys.exit(2)

wsgi_app = "demo_app.factory:from_environment()"
bind = "0.0.0.0:8000"
workers = _settings.workers
# Threads, since a request may wait; enough that probes find a free one while requests wait up to 5 s.
worker_class = "gthread"
threads = 16
# In the master, before the fork: one copy in memory, one PodState for all workers, a broken app ends the process.
preload_app = True
# The proxy in front must close idle connections first: if the app does, a request that the proxy has just sent on
# such a connection is lost. So this is longer than the proxy's idle timeout has to be (Envoy: 60 s, its default of
# an hour being too long for any server).
keepalive = 75
# SIGTERM to SIGKILL: 2 s of drain (below), then up to 20 s for the longest /work (5 s of waiting and 2 s of CPU time,
# which a CPU limit stretches): with a preStop of 5 s within the pod's default of 30 s.
graceful_timeout = 20
# A worker tells the master that it lives by touching a file: in memory, so that a slow disk can't get it killed.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# gunicorn's own management socket would need a writable home, and nothing here uses it.
control_socket_disable = True


def when_ready(server: Any) -> None:
    """On SIGTERM drain first, then stop as gunicorn does.

    gunicorn closes its listening socket at once, so that a connection which a proxy opens before it has heard of the
    pod's end is refused, and so is the readiness probe. For `drain_s` the workers go on as before, but unready and
    ending each connection with its response. Then gunicorn stops accepting and waits for what is in flight.
    """
    from demo_app.factory import pod_of

    stop = server.handle_term

    def drain_then_stop() -> None:
        pod_of(server.app.wsgi()).start_draining()
        server.log.info("Draining for %g s: not ready, connections close", _settings.drain_s)
        time.sleep(_settings.drain_s)
        stop()

    server.handle_term = drain_then_stop


def pre_request(worker: Any, req: Any) -> None:
    """End kept-alive connections while draining.

    The response then says `Connection: close`, and the client opens its next connection to another pod. Only gunicorn
    can say so: it drops that header from an app's response.
    """
    from demo_app.factory import pod_of

    if pod_of(worker.wsgi).draining:
        req.force_close()


def child_exit(server: Any, worker: Any) -> None:
    """Take a dead worker out of the gauges of what is in flight; its counters stay."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
