"""The words that the modules share: what was seen, when, and what it came to. All times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scripts.hpa.profile import Capacity, Stage
from scripts.settings import HpaMetric, HpaSettings


class Phase(StrEnum):
    """The parts of a run."""

    QUIET = "quiet"  # the level before the load
    LOAD = "load"
    SCALE_IN = "scale-in"


@dataclass(frozen=True)
class Answer:
    """One request: when it was due and when it was sent, and how long after it was *due* its answer was there.

    Counting from the due time is what makes it open loop: a request that the generator could not send in time has
    waited as a user would have.
    """

    due: float
    sent: float
    latency_s: float
    code: int
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was answered with 2xx."""
        return 200 <= self.code < 300

    @property
    def answered(self) -> float:
        """When the answer was there."""
        return self.due + self.latency_s


@dataclass(frozen=True)
class PodView:
    """A pod of the target at one moment."""

    name: str
    node: str
    phase: str  # Pending, Running, Ready, Terminating
    cpu_millicores: float | None = None

    @property
    def ready(self) -> bool:
        """Whether the pod takes requests."""
        return self.phase == "Ready"


@dataclass(frozen=True)
class Sample:
    """The autoscaler and its target at one moment; None where the cluster doesn't say."""

    at: float
    desired: int
    current: int
    ready: int
    hpa_cpu_percent: int | None  # what the autoscaler saw
    cpu_percent: float | None  # what the metrics API says now: use of all pods over their requests
    pods: tuple[PodView, ...] = ()
    conditions: tuple[str, ...] = ()
    generator_cores: float | None = None
    due: int = 0  # requests due so far
    answered: int = 0
    hpa_latency_ms: float | None = None  # the p95 that the autoscaler saw, where it follows it
    latency_ms: float | None = None  # what the external metrics API says now


@dataclass(frozen=True)
class Event:
    """An event of the autoscaler, as the API server has it (to the second), and when it was seen here."""

    reason: str
    message: str
    kind: str  # Normal or Warning
    count: int
    last: str  # the API server's own timestamp
    seen: float


@dataclass(frozen=True)
class PodLife:
    """When a pod was first seen, Ready, asked to end, and gone."""

    name: str
    node: str
    created: float
    ready: float | None = None
    ending: float | None = None
    gone: float | None = None


@dataclass(frozen=True)
class Moments:
    """When things happened; None where they did not."""

    load_began: float | None = None
    decision: float | None = None
    new_pod: float | None = None
    new_ready: float | None = None
    at_highest: float | None = None
    latency_back: float | None = None
    load_ended: float | None = None
    at_minimum: float | None = None


@dataclass(frozen=True)
class Check:
    """One question at the end, and its answer."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Plan:
    """What a run will do: the load before, during and after, and against what."""

    wanted: HpaSettings
    capacity: Capacity
    target: str
    path: str
    peak: int
    quiet: int
    stages: tuple[Stage, ...]
    target_ms: float | None = None  # the latency that is kept, where the autoscaler follows it

    @property
    def metric(self) -> HpaMetric:
        """What the autoscaler follows."""
        return self.wanted.metric


@dataclass(frozen=True)
class Recording:
    """All that was seen in a run."""

    plan: Plan
    started: float
    load_began: float | None
    load_ended: float | None
    ended: float
    planned: int  # requests that the load was to send
    before: tuple[Answer, ...] = ()
    during: tuple[Answer, ...] = ()
    after: tuple[Answer, ...] = ()
    samples: tuple[Sample, ...] = ()
    events: tuple[Event, ...] = ()
    pods: tuple[PodLife, ...] = ()
    obstacles: tuple[str, ...] = ()  # why it did not scale (further), while the load was on
    generator_cores: float = 0.0
    interrupted: bool = False
    lost: bool = False  # the cluster stopped answering, which ended the run
    notes: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[Answer, ...]:
        """All answers of the run."""
        return (*self.before, *self.during, *self.after)
