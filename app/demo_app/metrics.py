"""The app's metrics, correct with several workers and through their restarts.

With `metrics_dir` each worker writes to memory-mapped files of its own and a scrape, whichever worker it meets, adds
them up. A dead worker's histograms stay, or totals would fall; its part of the in-flight gauge goes
(`multiprocess.mark_process_dead` in gunicorn_conf). Nothing is stored that is known already: the request counter is
the histogram's own count, so that no request can be in one and not in the other, and readiness is asked for at scrape
time. This module must not be imported before PROMETHEUS_MULTIPROC_DIR is set.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
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

_DURATION = "app_request_duration_seconds"


class _PodCollector(Collector):
    """The whole pod's metrics, made when asked for: the workers' families and what follows from them."""

    def __init__(self, settings: Settings, pod: PodState, workers: Callable[[], Iterable[Metric]]) -> None:
        self._settings = settings
        self._pod = pod
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        for family in self._workers():
            yield family
            if family.name == _DURATION:
                yield _requests(family)
        ready = 0.0 if self._pod.unready_reason() else 1.0
        yield GaugeMetricFamily("app_ready", "Whether /readyz answers 200.", value=ready)
        labels = ("version", "revision", "python")
        build = GaugeMetricFamily("app_build_info", "Always 1; the labels tell the build.", labels=labels)
        build.add_metric((self._settings.version, self._settings.revision, platform.python_version()), 1.0)
        yield build


def _requests(duration: Metric) -> Metric:
    requests = CounterMetricFamily("app_requests", "Requests answered.", labels=LABELS)
    for sample in duration.samples:
        if sample.name == f"{_DURATION}_count":
            requests.add_metric([sample.labels[label] for label in LABELS], sample.value)
    return requests


def _merge(folder: Path) -> Iterable[Metric]:
    """Return all workers' families, added up.

    Files that are still empty are passed over: a worker creates its files with its first request, opening before
    filling them, and prometheus_client's own collector fails when a scrape comes between.
    """
    files = [str(file) for file in folder.glob("*.db") if _has_content(file)]
    merged: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    return merged


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # a dead worker's gauge
        return False


class Metrics:
    """The metrics of one process; `expose` answers for the whole pod."""

    def __init__(self, settings: Settings, pod: PodState) -> None:
        own = CollectorRegistry()
        self._duration = Histogram(
            _DURATION,
            "Time from the first line of the app to the last byte of the response, of every request.",
            LABELS,
            buckets=BUCKETS_S,
            registry=own,
        )
        in_flight = Gauge(
            "app_requests_in_flight", "Requests being answered now.", multiprocess_mode="livesum", registry=own
        )
        self.enter = in_flight.inc
        self.leave = in_flight.dec
        self._observers: dict[tuple[str, str, str], Callable[[float], None]] = {}
        # A series that begins with 1 hides its first event from rate(): these begin with 0.
        for status in ("200", "500"):
            self._observer(("GET", "/work", status))
        folder = settings.metrics_dir
        self._exposed = CollectorRegistry()
        self._exposed.register(_PodCollector(settings, pod, own.collect if folder is None else lambda: _merge(folder)))

    def _observer(self, key: tuple[str, str, str]) -> Callable[[float], None]:
        observe = self._observers[key] = self._duration.labels(*key).observe
        return observe

    def observe(self, method: str, route: str, status: str, seconds: float) -> None:
        """Observe one request, whatever its outcome."""
        key = (method if method in METHODS else OTHER_METHOD, route, status)
        # labels() costs more than all the rest; the number of combinations is bounded by the routes.
        (self._observers.get(key) or self._observer(key))(seconds)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition of all workers' metrics in the format that `accept` prefers, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._exposed), content_type
