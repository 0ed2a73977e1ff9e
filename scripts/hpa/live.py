"""The live view: one screen in a terminal, plain lines in a pipe. Both are drawn from a `View`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from scripts.hpa.autoscaler import shown
from scripts.hpa.model import Event, Phase, Plan, PodView, Sample

BARS = "▁▂▃▄▅▆▇█"
GLYPHS = {"Ready": ("●", "green"), "Running": ("◐", "yellow"), "Pending": ("○", "yellow"), "Terminating": ("✕", "dim")}
TREND = 60
LINE_EVERY_S = 5.0
SHOWN_EVENTS = 4
TITLES = {Phase.QUIET: "before the load", Phase.LOAD: "load", Phase.SCALE_IN: "after the load"}


@dataclass(frozen=True)
class View:
    """What is shown at one moment; latencies in seconds."""

    plan: Plan
    phase: Phase
    phase_s: float  # seconds since this phase began
    clock_s: float  # seconds since the load began, negative before
    wanted_rate: int
    rate: float
    failed: int
    unanswered: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    sample: Sample
    generator_cores: float
    behind: bool = False  # the generator doesn't reach the rate
    reasons: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    milestones: tuple[tuple[float, str], ...] = ()


@dataclass
class Trends:
    """The last figures, for the small curves beside them."""

    rate: deque[float] = field(default_factory=lambda: deque(maxlen=TREND))
    p95: deque[float] = field(default_factory=lambda: deque(maxlen=TREND))
    cpu: deque[float] = field(default_factory=lambda: deque(maxlen=TREND))
    ready: deque[float] = field(default_factory=lambda: deque(maxlen=TREND))
    seen: deque[float] = field(default_factory=lambda: deque(maxlen=TREND))

    def add(self, view: View) -> None:
        """Take a moment's figures."""
        self.rate.append(view.rate)
        self.p95.append((view.p95_s or 0.0) * 1000)
        self.cpu.append(float(view.sample.hpa_cpu_percent or view.sample.cpu_percent or 0))
        self.ready.append(float(view.sample.ready))
        self.seen.append(view.sample.hpa_latency_ms or 0.0)


def sparkline(values: Sequence[float], highest: float = 0.0) -> str:
    """Return values as a row of bars, from 0 to the highest of them (or to `highest`, if that is more)."""
    top = max([highest, *values])
    if top <= 0:
        return BARS[0] * len(values)
    return "".join(BARS[min(len(BARS) - 1, int(v / top * (len(BARS) - 1) + 0.5))] for v in values)


def milliseconds(seconds: float | None) -> str:
    """Return a latency as people read it."""
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def percent(value: float | None) -> str:
    """Return a percentage, or that it is unknown."""
    return "<unknown>" if value is None else f"{value:.0f} %"


def by_node(pods: Sequence[PodView]) -> dict[str, list[PodView]]:
    """Return pods by node, those without one last."""
    found: dict[str, list[PodView]] = {}
    for pod in sorted(pods, key=lambda p: (not p.node, p.node, p.name)):
        found.setdefault(pod.node or "no node yet", []).append(pod)
    return found


def render(view: View, trends: Trends) -> RenderableType:
    """Return the screen."""
    plan, sample = view.plan, view.sample
    capacity = plan.capacity
    until = plan.wanted.duration_s if view.phase is Phase.LOAD else None
    clock = f"{view.phase_s:.0f} s" + (f" of {until} s" if until else "")
    head = Text.assemble(
        (plan.wanted.environment, "bold"), f"  {plan.wanted.profile}, peak {plan.peak}/s of {plan.path}  ",
        (f"{TITLES[view.phase]} {clock}", "bold cyan"),
    )  # fmt: skip
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="dim", no_wrap=True)
    figures.add_column(no_wrap=True, min_width=46)
    figures.add_column(style="cyan", no_wrap=True, overflow="crop")
    failed = (f"{view.failed} failed", "bold red" if view.failed else "green")
    behind = ("  the machine can't reach this rate", "bold red") if view.behind else ""
    figures.add_row(
        "load",
        Text.assemble(f"{view.rate:.0f}/s of {view.wanted_rate}/s  ", failed, f"  {view.unanswered} under way", behind),
        sparkline(trends.rate, plan.peak),
    )
    figures.add_row(
        "latency",
        f"p50 {milliseconds(view.p50_s)}  p95 {milliseconds(view.p95_s)}  p99 {milliseconds(view.p99_s)}",
        sparkline(trends.p95),
    )
    if plan.target_ms is not None:
        late = (sample.hpa_latency_ms or 0) > plan.target_ms
        figures.add_row(
            "p95 of the app",
            Text.assemble(
                (shown(plan.metric, sample.hpa_latency_ms), "bold yellow" if late else ""),
                f", target {shown(plan.metric, plan.target_ms)}  (now {shown(plan.metric, sample.latency_ms)})",
            ),
            sparkline(trends.seen, plan.target_ms),
        )
        figures.add_row("CPU", f"{percent(sample.cpu_percent)} of the request", sparkline(trends.cpu))
    else:
        over = (sample.hpa_cpu_percent or 0) > capacity.target_percent
        figures.add_row(
            "CPU",
            Text.assemble(
                (percent(sample.hpa_cpu_percent), "bold yellow" if over else ""),
                f" of the request, target {capacity.target_percent} %  (now {percent(sample.cpu_percent)})",
            ),
            sparkline(trends.cpu, capacity.target_percent),
        )
    short = sample.ready < sample.current
    figures.add_row(
        "pods",
        Text.assemble(
            ("desired ", ""), (str(sample.desired), "bold"), "  ready ",
            (str(sample.ready), "bold yellow" if short else "bold green"),
            f"  bounds {capacity.minimum} to {capacity.maximum}",
        ),
        sparkline(trends.ready, capacity.maximum),
    )  # fmt: skip
    figures.add_row("generator", f"{view.generator_cores:.2f} of {capacity.machine_cores:.0f} CPUs", "")
    for node, pods in by_node(sample.pods).items():
        marks = Text()
        for pod in pods:
            glyph, style = GLYPHS.get(pod.phase, ("?", "red"))
            cpu = f" {pod.cpu_millicores:.0f}m" if pod.cpu_millicores is not None else ""
            marks.append(f"{glyph} {pod.name.rpartition('-')[2]}{cpu}   ", style=style)
        figures.add_row(node, marks, "")
    parts: list[RenderableType] = [head, Text(), figures]
    if sample.conditions:
        parts.append(
            Text(f"conditions  {'; '.join(sample.conditions)}", style="dim", overflow="ellipsis", no_wrap=True)
        )
    parts += [Text(f"! {reason}", style="yellow") for reason in view.reasons]
    parts.append(Text())
    parts += [Text(f"{_clock(at)}  {what}", style="bold") for at, what in view.milestones]
    parts += [
        Text(f"         {e.reason}: {e.message}", style="dim", overflow="ellipsis", no_wrap=True)
        for e in other_events(view)[-SHOWN_EVENTS:]
    ]
    return Panel(Group(*parts), title="hpa-demo", title_align="left", border_style="blue")


def other_events(view: View) -> list[Event]:
    """Return the events that are no milestones."""
    return [e for e in view.events if e.reason != "SuccessfulRescale"]


def _clock(seconds: float) -> str:
    return f"{seconds:+6.1f} s"


def plain(view: View) -> str:
    """Return the moment as one line."""
    sample = view.sample
    nodes = ", ".join(f"{node} {len(pods)}" for node, pods in by_node(sample.pods).items())
    parts = [
        f"{_clock(view.clock_s)} {TITLES[view.phase]}",
        f"{view.rate:.0f}/s of {view.wanted_rate}/s, {view.failed} failed, {view.unanswered} under way",
        f"p50 {milliseconds(view.p50_s)} p95 {milliseconds(view.p95_s)} p99 {milliseconds(view.p99_s)}",
        followed(view),
        f"desired {sample.desired} ready {sample.ready} ({nodes})",
        f"generator {view.generator_cores:.2f} CPUs",
    ]
    if view.behind:
        parts.append("the machine can't reach this rate")
    return " | ".join(parts + [f"! {reason}" for reason in view.reasons])


def followed(view: View) -> str:
    """Return what the autoscaler sees, and beside a latency the CPU."""
    plan, sample = view.plan, view.sample
    if plan.target_ms is None:
        return f"CPU {percent(sample.hpa_cpu_percent)} (target {plan.capacity.target_percent} %)"
    seen = f"the app's p95 {shown(plan.metric, sample.hpa_latency_ms)} (target {shown(plan.metric, plan.target_ms)})"
    return f"{seen} CPU {percent(sample.cpu_percent)}"


class Teller:
    """Says in lines what a screen would show: figures now and then, and each thing that happens once."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._last = -LINE_EVERY_S * 1000

    def lines(self, view: View) -> list[str]:
        """Return what is new."""
        found = []
        for at, what in view.milestones:
            found += self._once(f"{_clock(at)} » {what}")
        for event in other_events(view):
            found += self._once(
                f"{_clock(view.clock_s)}   {event.reason}: {event.message}", f"{event.last}{event.message}"
            )
        if view.clock_s - self._last >= LINE_EVERY_S:
            self._last = view.clock_s
            found.append(plain(view))
        return found

    def _once(self, line: str, key: str = "") -> list[str]:
        if (key or line) in self._told:
            return []
        self._told.add(key or line)
        return [line]
