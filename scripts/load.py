"""A steady load through the edge, by vegeta: open loop, bounded in count and time, to 127.0.0.1 only."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripts.endpoints import host_of
from scripts.errors import LabError, UsageError
from scripts.process import Background, background, run
from scripts.settings import Edge, Settings

MAX_RATE = 2000
MAX_SECONDS = 900
REQUEST_TIMEOUT_S = 10


@dataclass(frozen=True)
class LoadResult:
    """What a load met: how many requests, how many failed and how, latencies in seconds."""

    requests: int
    failed: int
    statuses: dict[str, int] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    p50_s: float = 0.0
    p95_s: float = 0.0
    p99_s: float = 0.0
    rate: float = 0.0


class Attack:
    """A load that runs beside a block of code."""

    def __init__(self, process: Background, results: Path, vegeta: Path, seconds: float) -> None:
        self._process = process
        self._results = results
        self._vegeta = vegeta
        self._seconds = seconds
        self._started = time.monotonic()

    def is_running(self) -> bool:
        """Whether requests are still being sent."""
        return self._process.process.poll() is None

    def finish(self, after_s: float | None = None) -> LoadResult:
        """End the load and return what it met: at its own end, or as soon as it has lasted `after_s` seconds.

        Requests in flight are waited for and counted either way.
        """
        process = self._process.process
        try:
            if after_s is not None:
                try:
                    process.wait(max(0.0, self._started + after_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGINT)
            code = process.wait(self._seconds + REQUEST_TIMEOUT_S + 30)
        except subprocess.TimeoutExpired:
            raise LabError("The load generator did not end in its time.", "run again on a quieter machine") from None
        if code != 0:
            self._process.require_running()
        return report(self._vegeta, self._results)


@contextmanager
def attack(settings: Settings, environment: str, path: str, rate: int, seconds: float) -> Iterator[Attack]:
    """Send `rate` requests a second for `seconds` to an environment's path while the block runs.

    A request fails unless it is answered with 2xx. The rate holds whether answers come or not (open loop), so a
    stall shows as latency, not as fewer requests.
    """
    if settings.edge is Edge.NONE:
        raise UsageError("A load needs the edge: a port-forward would pin one pod.", "make setup-all EDGE=envoy")
    if not 1 <= rate <= MAX_RATE or not 1 <= seconds <= MAX_SECONDS:
        raise UsageError(
            f"A load of {rate}/s for {seconds} s is out of bounds.",
            f"stay within 1 to {MAX_RATE} requests/s and 1 to {MAX_SECONDS} s",
        )
    vegeta = settings.tools_dir / "vegeta"
    with tempfile.TemporaryDirectory(prefix="gitops-lab-load-") as folder:
        targets = Path(folder) / "targets"
        results = Path(folder) / "results.bin"
        targets.write_text(target(settings, environment, path))
        args: list[str | Path] = [
            vegeta, "attack", f"-targets={targets}", f"-rate={rate}", f"-duration={seconds}s", f"-output={results}",
            f"-timeout={REQUEST_TIMEOUT_S}s", "-redirects=-1", "-max-workers=200",
        ]  # fmt: skip
        with background(args) as process:
            yield Attack(process, results, vegeta, seconds)


def target(settings: Settings, environment: str, path: str) -> str:
    """Return an environment's path at the edge, as vegeta reads its targets."""
    return f"GET http://127.0.0.1:{settings.edge_port}{path}\nHost: {host_of(environment)}\n"


def report(vegeta: Path, results: Path) -> LoadResult:
    """Return the summary of recorded results."""
    data = json.loads(run([vegeta, "report", "-type=json", results], timeout_s=60).stdout)
    statuses = {str(k): int(v) for k, v in (data.get("status_codes") or {}).items()}
    good = sum(count for status, count in statuses.items() if status.startswith("2"))
    latencies = data["latencies"]
    return LoadResult(
        requests=data["requests"],
        failed=data["requests"] - good,
        statuses=statuses,
        errors=tuple(data.get("errors") or ()),
        p50_s=latencies["50th"] / 1e9,
        p95_s=latencies["95th"] / 1e9,
        p99_s=latencies["99th"] / 1e9,
        rate=data["rate"],
    )
