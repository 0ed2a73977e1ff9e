"""The app's metrics, correct with several workers and through their restarts.

With `metrics_dir` each worker writes to memory-mapped files of its own and a scrape, whichever worker it meets, adds
them up. A dead worker's counters and histograms stay, or totals would fall; its part of the in-flight gauge goes
(`multiprocess.mark_process_dead` in gunicorn_conf). What the pod's shared state knows better than any worker is not
stored at all but read at scrape time. This module must not be imported before PROMETHEUS_MULTIPROC_DIR is set.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from demo_app.pod import PodState
from demo_app.settings import Settings

# From a page that is only formatted (1 ms) to the longest /work (5 s of waiting, 2 s of CPU, twice with faults).
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LABELS = ("method", "route", "status")
# All paths that no route matches share this label value: a scanner must not be able to create time series.
UNMATCHED = "unmatched"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "other"


class _PodCollector(Collector):
    """Readiness and build: read when asked for."""

    def __init__(self, settings: Settings, pod: PodState) -> None:
        self._settings = settings
        self._pod = pod

    def collect(self) -> Iterable[Metric]:
        ready = 0.0 if self._pod.unready_reason() else 1.0
        yield GaugeMetricFamily("app_ready", "Whether /readyz answers 200.", value=ready)
        build = GaugeMetricFamily(
            "app_build_info", "Always 1; the labels tell the build.", labels=("version", "revision", "python")
        )
        build.add_metric((self._settings.version, self._settings.revision, platform.python_version()), 1.0)
        yield build


class Metrics:
    """The metrics of one process; `expose` answers for the whole pod."""

    def __init__(self, settings: Settings, pod: PodState) -> None:
        self._metrics_dir = settings.metrics_dir
        self._pod_collector = _PodCollector(settings, pod)
        self._registry = CollectorRegistry()
        self._requests = Counter("app_requests_total", "Requests answered.", LABELS, registry=self._registry)
        self._duration = Histogram(
            "app_request_duration_seconds",
            "Time from the first line of the app to the last byte of the response, of every request.",
            LABELS,
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        in_flight = Gauge(
            "app_requests_in_flight",
            "Requests being answered now.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self.enter = in_flight.inc
        self.leave = in_flight.dec
        self._registry.register(self._pod_collector)
        self._observers: dict[tuple[str, str, str], tuple[Callable[[], None], Callable[[float], None]]] = {}
        # A series that begins with 1 hides its first event from rate(): these begin with 0.
        for status in ("200", "500"):
            self._observer(("GET", "/work", status))

    def _observer(self, key: tuple[str, str, str]) -> tuple[Callable[[], None], Callable[[float], None]]:
        observer = (self._requests.labels(*key).inc, self._duration.labels(*key).observe)
        self._observers[key] = observer
        return observer

    def observe(self, method: str, route: str, status: str, seconds: float) -> None:
        """Count one request and observe how long it took: both or none, whatever its outcome."""
        key = (method if method in METHODS else OTHER_METHOD, route, status)
        # labels() costs more than all the rest; the number of combinations is bounded by the routes.
        count, time_it = self._observers.get(key) or self._observer(key)
        count()
        time_it(seconds)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition of all workers' metrics in the format that `accept` prefers, and its content type."""
        registry = self._registry
        if self._metrics_dir is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=str(self._metrics_dir))  # type: ignore[no-untyped-call]
            registry.register(self._pod_collector)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type
