"""The pictures of a run, drawn by matplotlib without a display. Time is in seconds since the load began."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.hpa.histograms import Wish
from scripts.hpa.model import Moments, PodLife, Recording
from scripts.hpa.timeline import Second, Summary, by_second, rolling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666",
)  # fmt: skip
NODE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
DPI = 130
# Room between a title and its axes for the names of moments, on three lines.
TITLE_PAD = 44
STYLE: dict[str, Any] = {
    "font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "legend.frameon": False, "legend.fontsize": 10, "figure.facecolor": "white", "lines.linewidth": 1.8,
}  # fmt: skip
MARKS = (
    ("load_began", "load"), ("decision", "decision"), ("new_pod", "new pod"), ("new_ready", "Ready"),
    ("latency_back", "latency back"), ("load_ended", "load ends"), ("at_minimum", "at minimum"),
)  # fmt: skip


def pyplot() -> Any:
    """Return matplotlib's pyplot, set up to draw into files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plt: Any = pyplot
    plt.rcParams.update(STYLE)
    return plt


def draw(recording: Recording, summary: Summary, folder: Path) -> list[Path]:
    """Draw a run's pictures into a folder and return their files."""
    plt = pyplot()
    origin = recording.load_began or recording.started
    seconds = by_second(recording.answers, origin)
    followed = recording.plan.target_ms is not None
    count = 5 if followed else 4
    figure, axes = plt.subplots(
        count, 1, figsize=(11, 0.3 + 3.05 * count), sharex=True, height_ratios=(1, *([1.2] * (count - 1))),
        layout="constrained",
    )  # fmt: skip
    load_panel(axes[0], recording, seconds, origin)
    latency_panel(axes[1], recording, summary, origin)
    if followed:
        followed_panel(axes[2], recording, origin)
    cpu_panel(axes[-2], recording, origin)
    replicas_panel(axes[-1], recording, origin, summary.replay.failed_only)
    axes[-1].set_xlabel("seconds since the load began")
    axes[-1].set_xlim(recording.started - origin, max(recording.ended, recording.started + 1) - origin)
    mark_moments(axes, summary.moments, origin)
    wanted = recording.plan.wanted
    figure.suptitle(
        f"{wanted.environment}: {wanted.profile} load, {recording.plan.peak}/s at its peak", x=0.01, ha="left"
    )
    overview = _save(plt, figure, folder / "overview.png")
    figure, axis = plt.subplots(figsize=(11, 2.2 + 0.42 * max(3, len(recording.pods))), layout="constrained")
    pods_panel(axis, recording, origin)
    mark_moments([axis], summary.moments, origin)
    return [overview, _save(plt, figure, folder / "pods.png")]


def _save(plt: Any, figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return path


def load_panel(axis: Axes, recording: Recording, seconds: Sequence[Second], origin: float) -> None:
    """Draw what was asked for, what was sent, and what failed."""
    plan = recording.plan
    edges = [recording.started - origin, 0.0]
    rates = [float(plan.quiet), float(plan.quiet)]
    over = (recording.load_ended or recording.ended) - origin
    for stage in plan.stages:
        if stage.start_s < over:
            edges += [stage.start_s, min(stage.end_s, over)]
            rates += [float(stage.rate)] * 2
    if recording.after:
        edges += [over, recording.ended - origin]
        rates += [float(plan.quiet)] * 2
    axis.plot(edges, rates, color=GREY, linestyle="--", linewidth=1.2, label="asked for")
    whole = seconds[:-1]  # the last second is cut off by the end
    axis.step([s.at - origin for s in whole], [s.sent for s in whole], where="post", color=BLUE, label="sent")
    failed = [s for s in seconds if s.failed]
    if failed:
        axis.bar(
            [s.at - origin + 0.5 for s in failed], [s.failed for s in failed], width=1.0, color=RED, label="failed"
        )
    axis.set_title("Load" if failed else "Load, no request failed", pad=TITLE_PAD)
    axis.set_ylabel("requests/s")
    axis.set_ylim(bottom=0)
    _legend(axis)


def latency_panel(axis: Axes, recording: Recording, summary: Summary, origin: float) -> None:
    """Draw the percentiles of the answers due in the 5 s before each moment."""
    windows: dict[float, str] = {0.5: SKY, 0.95: BLUE, 0.99: PURPLE}
    for share, colour in windows.items():
        points = rolling(recording.answers, share)
        axis.plot(
            [at - origin for at, _ in points], [p * 1000 for _, p in points], color=colour, label=f"p{share * 100:.0f}"
        )
    if summary.level_before_s is not None:
        axis.axhline(
            summary.level_before_s * 1000, color=GREY, linestyle="--", linewidth=1.2, label="p95 before the load"
        )
    axis.set_title("Latency, from the moment a request was due (5 s windows)")
    axis.set_ylabel("ms")
    axis.set_ylim(bottom=0)
    _legend(axis)


def tells_of_histograms(recording: Recording) -> bool:
    """Whether what the histograms would have called for is a part of the report."""
    return recording.plan.target_ms is not None or recording.plan.wanted.fail_rate > 0


def followed_panel(axis: Axes, recording: Recording, origin: float) -> None:
    """Draw the latency that the autoscaler follows against its target."""
    seen = [(s.at - origin, s.hpa_latency_ms) for s in recording.samples if s.hpa_latency_ms is not None]
    served = [(s.at - origin, s.latency_ms) for s in recording.samples if s.latency_ms is not None]
    target = recording.plan.target_ms
    axis.plot([t for t, _ in served], [v for _, v in served], color=SKY, linewidth=1.2, label="external metrics API")
    axis.step([t for t, _ in seen], [v for _, v in seen], where="post", color=BLUE, label="the autoscaler saw")
    if target is not None:
        axis.axhline(target, color=ORANGE, linewidth=1.4, label=f"target {target:.0f} ms")
    axis.set_title("Latency, p95 of the application's own histogram")
    axis.set_ylabel("ms")
    axis.set_ylim(bottom=0)
    _legend(axis)


def wishes_of(wishes: Sequence[Wish], origin: float) -> tuple[list[float], list[float]]:
    """Return times and pods of what a histogram called for; where it had nothing to tell by there is a gap."""
    return [w.at - origin for w in wishes], [float("nan") if w.replicas is None else float(w.replicas) for w in wishes]


def cpu_panel(axis: Axes, recording: Recording, origin: float) -> None:
    """Draw the CPU against the target."""
    seen = [(s.at - origin, s.hpa_cpu_percent) for s in recording.samples if s.hpa_cpu_percent is not None]
    used = [(s.at - origin, s.cpu_percent) for s in recording.samples if s.cpu_percent is not None]
    target = recording.plan.capacity.target_percent
    axis.plot([t for t, _ in used], [c for _, c in used], color=SKY, linewidth=1.2, label="metrics API")
    if recording.plan.target_ms is None:
        axis.step([t for t, _ in seen], [c for _, c in seen], where="post", color=BLUE, label="the autoscaler saw")
        axis.axhline(target, color=ORANGE, linewidth=1.4, label=f"target {target} %")
    axis.set_title("CPU of all pods, in percent of their request")
    axis.set_ylabel("%")
    axis.set_ylim(bottom=0)
    _legend(axis)


def replicas_panel(axis: Axes, recording: Recording, origin: float, old: Sequence[Wish] = ()) -> None:
    """Draw desired and ready pods between the bounds, with the autoscaler's events, and what the old histogram wished."""
    capacity = recording.plan.capacity
    times = [s.at - origin for s in recording.samples]
    axis.step(times, [s.desired for s in recording.samples], where="post", color=ORANGE, label="desired")
    axis.step(times, [s.ready for s in recording.samples], where="post", color=GREEN, label="ready")
    axis.fill_between(times, [s.ready for s in recording.samples], step="post", color=GREEN, alpha=0.12)
    for bound, name in ((capacity.minimum, "minimum"), (capacity.maximum, "maximum")):
        axis.axhline(bound, color=GREY, linestyle=":", linewidth=1.2)
        axis.annotate(
            name, (1.005, bound), xycoords=("axes fraction", "data"), va="center", fontsize=10, color=GREY
        )  # fmt: skip
    for event in recording.events:
        if event.reason == "SuccessfulRescale":
            size = event.message.removeprefix("New size: ").partition(";")[0]
            axis.annotate(
                f"to {size}", (event.seen - origin, float(size) if size.isdigit() else 0), xytext=(4, 4),
                textcoords="offset points", fontsize=9, color=ORANGE,
            )  # fmt: skip
    if tells_of_histograms(recording):
        axis.step(
            *wishes_of(old, origin), where="post", color=RED, linestyle="--", linewidth=1.2,
            label="old histogram (failed only) would ask for",
        )  # fmt: skip
    axis.set_title("Pods")
    axis.set_ylim(0, capacity.maximum + 0.9)
    axis.set_yticks(range(capacity.maximum + 1))
    axis.legend(loc="upper right", ncols=3, bbox_to_anchor=(1, 1.16))


def pods_panel(axis: Axes, recording: Recording, origin: float) -> None:
    """Draw each pod's life, coloured by its node: light until it is Ready and after it was asked to end."""
    from matplotlib.patches import Patch

    end = recording.ended
    nodes = sorted({p.node for p in recording.pods})
    colours = {node: NODE_COLOURS[i % len(NODE_COLOURS)] for i, node in enumerate(nodes)}
    start = recording.started - origin
    for row, pod in enumerate(recording.pods):
        colour = colours[pod.node]
        for begin, stop, alpha in _lives(pod, end):
            left = max(begin - origin, start)
            axis.barh(row, max(0.0, stop - origin - left), left=left, height=0.62, color=colour, alpha=alpha)
    axis.set_yticks(range(len(recording.pods)), [p.name.rpartition("-")[2] for p in recording.pods])
    axis.invert_yaxis()
    axis.set_xlabel("seconds since the load began")
    axis.set_xlim(start, max(end, recording.started + 1) - origin)
    axis.set_title("Pods by node: pale while starting or ending, full while Ready", pad=TITLE_PAD)
    axis.grid(axis="y", visible=False)
    handles = [Patch(color=colours[n], label=n or "no node") for n in nodes]
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.005, 1))


def _lives(pod: PodLife, end: float) -> list[tuple[float, float, float]]:
    stop = pod.ending or pod.gone or end
    gone = pod.gone or end
    ready = pod.ready if pod.ready is not None else stop
    return [(pod.created, ready, 0.3), (ready, stop, 0.95), (stop, gone, 0.3)]


def mark_moments(axes: Sequence[Axes], moments: Moments, origin: float) -> None:
    """Draw a line through all axes at each moment, with its name above the first."""
    last = -1e9
    level = 0
    for name, label in MARKS:
        at = getattr(moments, name)
        if at is None:
            continue
        for axis in axes:
            axis.axvline(at - origin, color="#333333", linewidth=0.9, alpha=0.55)
        # Names of moments close to each other go on lines of their own.
        span = axes[0].get_xlim()[1] - axes[0].get_xlim()[0]
        level = (level + 1) % 3 if (at - last) / span < 0.09 else 0
        last = at
        axes[0].annotate(
            label, (at - origin, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3 + 13 * level),
            textcoords="offset points", fontsize=9, color="#333333",
        )  # fmt: skip


def _legend(axis: Axes) -> None:
    axis.legend(loc="upper left", bbox_to_anchor=(1.005, 1))
