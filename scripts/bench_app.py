"""What the app's instrumentation costs a request: the same app with and without it, in one run.

Without a server: the WSGI app is called, the variants in turn, so that whatever else the machine does hits all alike.
With `--throughput` also under gunicorn with the image's default settings, two servers that get load in turn::

    python -m scripts.bench_app
    python -m scripts.bench_app --throughput
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts import console
from scripts.settings import APP_DIR

if TYPE_CHECKING:
    from flask import Flask

GOAL_US = 50.0
GOAL_THROUGHPUT = 0.9
PATH = "/work"
BATCH = 50
CLIENTS = 4
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Cost:
    """Median microseconds of one request, by variant."""

    requests: int
    bare_us: float
    metrics_us: float
    metrics_and_log_us: float

    @property
    def instrumentation_us(self) -> float:
        """What the metrics add."""
        return self.metrics_us - self.bare_us


@dataclass(frozen=True)
class Load:
    """Medians under gunicorn; CPU time is the server's alone, which the load's own cost doesn't blur."""

    rounds: int
    bare_per_s: float
    metrics_per_s: float
    bare_cpu_us: float
    metrics_cpu_us: float
    pairs_ratio: float


def measure_cost(requests: int) -> Cost:
    """Call the app's variants in turn and return the median of each."""
    with tempfile.TemporaryDirectory() as folder:
        # As in the image: metrics in memory-mapped files. prometheus_client reads this when first imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        sys.path.insert(0, str(APP_DIR))
        from demo_app.factory import create_app
        from demo_app.logs import request_log
        from demo_app.settings import Settings

        settings = Settings(greeting="hello", metrics_dir=Path(folder))
        with Path(os.devnull).open("w") as nowhere:
            variants = [
                create_app(settings, with_metrics=False),
                create_app(settings),
                create_app(settings, request_log=request_log(nowhere)),
            ]
            calls = [_caller(app) for app in variants]
            for call in calls:
                for _ in range(BATCH):
                    call()
            samples: list[list[float]] = [[] for _ in calls]
            for turn in range(max(1, requests // BATCH)):
                for i in range(len(calls)):
                    # Each variant is first, second and last equally often.
                    which = (i + turn) % len(calls)
                    samples[which] += [calls[which]() for _ in range(BATCH)]
    medians = [statistics.median(s) / 1000 for s in samples]
    return Cost(len(samples[0]), medians[0], medians[1], medians[2])


def _caller(app: Flask) -> Callable[[], float]:
    """Return a function that sends one request through the whole app, as a server would, and returns nanoseconds."""
    from werkzeug.test import EnvironBuilder

    environ = EnvironBuilder(path=PATH).get_environ()

    def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
        if status[:3] != "200":
            raise AssertionError(status)
        return lambda data: None

    def call() -> float:
        fresh = dict(environ)
        started = time.perf_counter_ns()
        body: Any = app(fresh, start_response)
        for _ in body:
            pass
        body.close()
        return time.perf_counter_ns() - started

    return call


@contextlib.contextmanager
def _gunicorn(with_metrics: bool) -> Iterator[tuple[int, int]]:
    """Run the app as its image does; yields the port and the master's process id."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "log"
        command = [sys.executable, "-m", "gunicorn", "--config", "python:demo_app.gunicorn_conf"]
        command += ["--bind", "127.0.0.1:0", f"demo_app.factory:from_environment(with_metrics={with_metrics})"]
        env = {"PATH": os.defpath, "PYTHONPATH": str(APP_DIR), "GREETING": "hello", "READINESS_DELAY_SEC": "0"}
        env |= {"DRAIN_SEC": "0", "PROMETHEUS_MULTIPROC_DIR": f"{folder}/metrics", "PYTHONDONTWRITEBYTECODE": "1"}
        with output.open("wb") as out:
            process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 20
            while not (found := _LISTENING.search(output.read_text())):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"gunicorn doesn't listen:\n{output.read_text()}")
                time.sleep(0.05)
            yield int(found[1]), process.pid
        finally:
            process.terminate()
            process.wait(timeout=30)


def _cpu_s(master: int) -> float:
    """Return the CPU seconds that gunicorn's master and workers have used."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    total = 0
    for pid in [str(master), *children]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def _load(port: int, seconds: float) -> int:
    """Send requests on kept-alive connections for so long; return how many were answered 200."""
    end = time.monotonic() + seconds
    answered = [0] * CLIENTS

    def client(index: int) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            while time.monotonic() < end:
                connection.request("GET", PATH)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    raise AssertionError(response.status)
                answered[index] += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answered)


def measure_load(rounds: int, seconds: float) -> Load:
    """Load a server with and one without metrics in turn and return the medians."""
    per_s: tuple[list[float], list[float]] = ([], [])
    cpu_us: tuple[list[float], list[float]] = ([], [])
    with _gunicorn(with_metrics=False) as bare, _gunicorn(with_metrics=True) as metrics:
        for turn in range(rounds + 1):
            for which in (0, 1) if turn % 2 else (1, 0):
                port, master = (bare, metrics)[which]
                before = _cpu_s(master)
                answered = _load(port, seconds)
                if turn:  # the first warms up
                    per_s[which].append(answered / seconds)
                    cpu_us[which].append((_cpu_s(master) - before) / answered * 1e6)
    ratios = [m / b for b, m in zip(*per_s, strict=True)]
    medians = [statistics.median(values) for values in (*per_s, *cpu_us, ratios)]
    return Load(rounds, *medians)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_app", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=6000, help="requests of each variant (%(default)s)")
    parser.add_argument("--throughput", action="store_true", help="also under gunicorn")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of --throughput (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of load in a round (%(default)s)")
    options = parser.parse_args(argv)
    cost = measure_cost(options.requests)
    load = measure_load(options.rounds, options.seconds) if options.throughput else None
    rows = [
        ["no instrumentation", f"{cost.bare_us:.1f} µs", "", ""],
        ["metrics", f"{cost.metrics_us:.1f} µs", f"+{cost.instrumentation_us:.1f} µs", f"<= {GOAL_US:g} µs"],
        [
            "metrics and log",
            f"{cost.metrics_and_log_us:.1f} µs",
            f"+{cost.metrics_and_log_us - cost.bare_us:.1f} µs",
            "",
        ],
    ]
    if load is not None:
        added = load.metrics_cpu_us - load.bare_cpu_us
        rows += [
            ["gunicorn, log only", f"{load.bare_per_s:.0f}/s", "", ""],
            [
                "gunicorn, metrics and log",
                f"{load.metrics_per_s:.0f}/s",
                f"x {load.pairs_ratio:.3f}",
                f">= {GOAL_THROUGHPUT:g}",
            ],
            ["its CPU time a request", f"{load.metrics_cpu_us:.0f} µs", f"+{added:.0f} µs", ""],
        ]
    console.table(f"GET {PATH}, medians of {cost.requests} requests each", ["variant", "median", "added", "goal"], rows)
    found: dict[str, Any] = {"cost": asdict(cost) | {"instrumentation_us": cost.instrumentation_us}}
    if load is not None:
        found["load"] = asdict(load)
    console.raw(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
