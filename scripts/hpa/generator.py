"""The load: each stage is one vegeta, whose results are read as they come.

vegeta measures a request from the moment at which it is sent. If the machine sends it late, that wait is part of what
a user would feel, so latencies are counted here from the moment at which the request was due.
"""

from __future__ import annotations

import csv
import os
import resource
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.errors import LabError
from scripts.hpa.model import Answer
from scripts.hpa.profile import Stage
from scripts.load import REQUEST_TIMEOUT_S
from scripts.process import Pipeline, start_pipeline

NS = 1_000_000_000
# Requests that may be unanswered at once: enough that none waits for a free worker before the time limit ends it.
MAX_WORKERS = 4000
END_S = REQUEST_TIMEOUT_S + 20
MAX_ERROR = 200


class Hit(NamedTuple):
    """A result as vegeta prints it; times in nanoseconds."""

    sequence: int
    sent_ns: int
    latency_ns: int
    code: int
    error: str


def parse(lines: Iterable[str]) -> Iterator[Hit]:
    """Yield the results that `vegeta encode -to csv` prints."""
    for row in csv.reader(lines):
        yield Hit(int(row[8]), int(row[0]), int(row[2]), int(row[1]), row[5][:MAX_ERROR])


class Schedule:
    """When requests are due: vegeta sends request n (from 0) n + 1 intervals after it begins.

    It doesn't say when that was: it is the moment that fits the request which was sent with the least delay so far.
    """

    def __init__(self, rate: int) -> None:
        self._interval = NS // rate
        self._began: int | None = None

    def learn(self, hit: Hit) -> None:
        """Take a request into account."""
        began = hit.sent_ns - (hit.sequence + 1) * self._interval
        self._began = began if self._began is None else min(began, self._began)

    def due_by(self, now: float, started: float) -> int:
        """Return how many requests are due by now, for an attack that was started about then."""
        began = int(started * NS) if self._began is None else self._began
        return max(0, (int(now * NS) - began) // self._interval)

    def answer(self, hit: Hit) -> Answer:
        """Return a result, counted from the moment at which it was due."""
        due = (self._began or 0) + (hit.sequence + 1) * self._interval
        return Answer(due / NS, hit.sent_ns / NS, (hit.sent_ns + hit.latency_ns - due) / NS, hit.code, hit.error)


class Burst:
    """One stage under way."""

    def __init__(self, vegeta: Path, targets: Path, stage: Stage) -> None:
        self.stage = stage
        self.hits: list[Hit] = []
        self.failed = 0
        self._schedule = Schedule(stage.rate)
        self._started = time.time()
        workers = min(MAX_WORKERS, stage.rate * REQUEST_TIMEOUT_S + 10)
        self._pipeline: Pipeline = start_pipeline(
            [
                vegeta, "attack", f"-targets={targets}", f"-rate={stage.rate}", f"-duration={stage.seconds:.3f}s",
                f"-timeout={REQUEST_TIMEOUT_S}s", "-redirects=-1", f"-max-workers={workers}", "-max-body=0",
            ],
            [vegeta, "encode", "-to", "csv"],
        )  # fmt: skip
        self.pids = self._pipeline.pids
        self._broken: Exception | None = None
        self._interrupted_at: float | None = None
        self._reader = threading.Thread(target=self._read, daemon=True, name="load-results")
        self._reader.start()

    def _read(self) -> None:
        try:
            for hit in parse(self._pipeline.lines):
                self._schedule.learn(hit)
                self.hits.append(hit)
                self.failed += not 200 <= hit.code < 300
        except (ValueError, IndexError, csv.Error) as error:
            self._broken = error

    @property
    def is_running(self) -> bool:
        """Whether results may still come."""
        return self._reader.is_alive()

    def due(self, now: float) -> int:
        """Return how many requests are due by now."""
        until = min(now, self._interrupted_at or now)
        return max(len(self.hits), min(self.stage.requests, self._schedule.due_by(until, self._started)))

    def answers(self, since: float) -> list[Answer]:
        """Return what was answered after a moment, in the order in which answers came."""
        found: list[Answer] = []
        for hit in reversed(self.hits[:]):
            answer = self._schedule.answer(hit)
            # They come almost in order: past the margin there is no later one.
            if answer.answered < since - 1.0:
                break
            found.append(answer)
        return [a for a in reversed(found) if a.answered >= since]

    def interrupt(self) -> None:
        """Send nothing more; requests under way are still answered."""
        if self._interrupted_at is None:
            self._interrupted_at = time.time()
        self._pipeline.interrupt()

    def finish(self) -> None:
        """Wait until the last answer is there; raises LabError if vegeta failed."""
        self._reader.join(END_S)
        try:
            if self._reader.is_alive():
                raise LabError("The load generator did not end in its time.", "run again on a quieter machine")
            if self._broken:
                raise LabError(f"The load generator's results can't be read: {self._broken}.", "make clean CACHE=1")
            # One that is interrupted before it listens to signals just ends.
            said = self._pipeline.failure(END_S)
            if said and self._interrupted_at is None:
                raise LabError(
                    f"The load generator failed ({said}).", "look at the log of this command, and at make doctor"
                )
        finally:
            self._pipeline.close()


class Load:
    """A profile's stages, one after the other, each begun at its own time whether or not the last has all its answers."""

    def __init__(self, vegeta: Path, targets: Path, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self._vegeta = vegeta
        self._targets = targets
        self._bursts: list[Burst] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: LabError | None = None
        self.began = time.time()
        self._thread = threading.Thread(target=self._run, daemon=True, name="load")
        self._thread.start()

    def _run(self) -> None:
        try:
            for stage in self.stages:
                if self._stop.wait(max(0.0, self.began + stage.start_s - time.time())):
                    break
                with self._lock:
                    if self._stop.is_set():
                        break
                    self._bursts.append(Burst(self._vegeta, self._targets, stage))
            self._stop.wait(max(0.0, self.began + self.stages[-1].end_s - time.time()))
            for burst in self._bursts:
                burst.finish()
        except LabError as error:
            self._error = error
            self.stop()

    @property
    def is_running(self) -> bool:
        """Whether requests are being sent or answers are still to come."""
        return self._thread.is_alive()

    @property
    def is_sending(self) -> bool:
        """Whether the profile is not over yet and was not stopped."""
        over = time.time() >= self.began + self.stages[-1].end_s
        return self.is_running and not over and not self._stop.is_set()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of stages under way."""
        return tuple(pid for burst in self._running() for pid in burst.pids)

    def _running(self) -> list[Burst]:
        with self._lock:
            return [b for b in self._bursts if b.is_running]

    def wanted_rate(self, now: float) -> int:
        """Return the rate that the profile asks for now."""
        for stage in self.stages:
            if stage.start_s <= now - self.began < stage.end_s:
                return stage.rate
        return 0

    def due(self, now: float) -> int:
        """Return how many requests are due by now."""
        with self._lock:
            return sum(b.due(now) for b in self._bursts)

    def answered(self) -> int:
        """Return how many have their answer."""
        with self._lock:
            return sum(len(b.hits) for b in self._bursts)

    def failed(self) -> int:
        """Return how many were not answered with 2xx."""
        with self._lock:
            return sum(b.failed for b in self._bursts)

    def answers(self, since: float = 0.0) -> list[Answer]:
        """Return what was answered after a moment."""
        with self._lock:
            bursts = list(self._bursts)
        return [answer for burst in bursts for answer in burst.answers(since)]

    def stop(self) -> None:
        """Send nothing more, at once."""
        self._stop.set()
        for burst in self._running():
            burst.interrupt()

    def finish(self) -> None:
        """Wait until the last answer is there; raises LabError if a vegeta failed."""
        self._thread.join()
        if self._error:
            raise self._error


class CpuMeter:
    """The CPU that the generator takes: its processes, and this one, which reads their results."""

    def __init__(self) -> None:
        self._first = self._last = (time.monotonic(), self._used(()))

    @staticmethod
    def _used(pids: Sequence[int]) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + ended.ru_utime + ended.ru_stime + sum(_cpu_seconds(pid) for pid in pids)

    def cores(self, pids: Sequence[int]) -> float:
        """Return the cores used since the last call; where there is no /proc, processes count when they end."""
        now = (time.monotonic(), self._used(pids))
        before, self._last = self._last, now
        return max(0.0, (now[1] - before[1]) / max(0.001, now[0] - before[0]))

    def cores_so_far(self, pids: Sequence[int] = ()) -> float:
        """Return the cores used on average since the beginning."""
        return max(0.0, (self._used(pids) - self._first[1]) / max(0.001, time.monotonic() - self._first[0]))


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, or 0 where it is gone or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))
