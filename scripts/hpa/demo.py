"""`make hpa-demo`: look, load, watch, wait for the scale-in, report; what it changes for that it puts back.

The load has three parts that follow each other without a gap: a few cheap requests before, the profile, and a few
cheap ones until the autoscaler is back at its minimum, which prove that scaling in fails none either.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from scripts import console, endpoints, keda, versions
from scripts.deploy import lab_kube
from scripts.errors import LabError, UsageError
from scripts.hpa import autoscaler, changes, facts, live, profile, reasons, report, sampling, timeline
from scripts.hpa.autoscaler import shown
from scripts.hpa.facts import Facts
from scripts.hpa.generator import CpuMeter, Load
from scripts.hpa.model import Answer, Phase, Plan, Recording, Sample
from scripts.hpa.profile import Capacity, Stage
from scripts.hpa.sampling import Sampler
from scripts.kube import Kube
from scripts.load import target
from scripts.settings import APP_NAME, MONITORING_NAMESPACE, Edge, HpaMetric, HpaSettings, Settings
from scripts.waiting import wait_for

QUIET_S = 10
TICK_S = 1.0
REASONS_EVERY_S = 3.0
# A pod's first figures come within a minute.
METRICS_TIMEOUT_S = 90
AT_REST_TIMEOUT_S = 180
SCALE_IN_TIMEOUT_S = 240
# After the minimum is reached: the last pod drains and goes, and the picture shows that it stays so.
REST_S = 8.0
SILENT_S = 30.0
WINDOW_S = 5.0
# Not faults, but they do keep pods from being added for as long as the load lasts.
LASTING = (reasons.Kind.AT_MAXIMUM, reasons.Kind.NO_METRICS, reasons.Kind.DISABLED)


def demo(settings: Settings, wanted: HpaSettings) -> int:
    """Run the demo and return its exit code: 0 if every check holds, 1 if not, 130 if it was interrupted."""
    kube, plan = prepare(settings, wanted)
    if wanted.metric is HpaMetric.LATENCY:
        keda.ensure(settings, kube, versions.load(), settings.state_dir / "logs")
    with changes.made(kube, wanted, (plan.capacity.minimum, plan.capacity.maximum)):
        plan, sampler = ready_to_run(kube, plan)
        tell(plan)
        recording = Run(settings, kube, plan, sampler).record()
        # Before anything is put back, which takes its time: who interrupts twice has the report all the same.
        summary = timeline.summarise(recording)
        report.show(recording, summary, report.write(recording, summary))
    if recording.interrupted:
        return 130
    return 0 if summary.ok else 1


def tell(plan: Plan) -> None:
    """Say what a run does."""
    wanted, capacity = plan.wanted, plan.capacity
    target = (
        f"{capacity.target_percent} %" if plan.target_ms is None else f"a p95 of {shown(plan.metric, plan.target_ms)}"
    )
    console.line(
        f"{wanted.environment}: {plan.peak} requests/s at most, {profile.CPU_MS} ms of CPU each, for {wanted.duration_s} s "
        f"({wanted.profile}); {plan.target} has {capacity.minimum} to {capacity.maximum} pods of "
        f"{capacity.request_millicores:.0f}m, target {target}"
    )
    needed = plan.peak * profile.cost_ms() / 1000
    if needed > capacity.machine_cores * 0.8:
        console.warn(f"this load needs about {needed:.1f} CPUs; the machine has {capacity.machine_cores:.0f}")


def prepare(settings: Settings, wanted: HpaSettings) -> tuple[Kube, Plan]:
    """Look at everything a run needs; raises LabError, in a line, for what would make it meaningless."""
    if settings.edge is Edge.NONE:
        raise UsageError("A load needs the edge: a port-forward would pin one pod.", "make setup-all EDGE=envoy")
    vegeta = settings.tools_dir / "vegeta"
    if not vegeta.exists():
        raise LabError("The load generator vegeta is not there.", "make setup-all")
    kube = lab_kube(settings)
    environment = wanted.environment
    if changes.left_over(kube, environment):
        console.warn(f"a run that was killed left {environment} changed")
        changes.put_back(kube, environment)
    known = measured(kube, environment)
    answer = endpoints.check_environment(settings, kube, environment, ["/work"])[0]
    if not answer.ok:
        raise LabError(f"{environment} does not answer at the edge: {answer.why}.", "make status, make test-endpoints")
    plan = plan_of(wanted, known)
    if wanted.metric is HpaMetric.LATENCY:
        require_monitoring(kube)
        changes.require_component(settings, environment)
    return kube, plan


def measured(kube: Kube, environment: str) -> Facts:
    """Return the facts of an autoscaler that can scale; pods without figures yet, young ones most often, are waited for.

    Raises:
        LabError: there is none, or someone has to mend something first.
        NotReadyError: the figures did not come.
    """
    known: Facts | None = None

    def pending() -> list[str]:
        nonlocal known
        known = facts.collect(kube, environment)
        if known is None:
            raise LabError(f"There is no HorizontalPodAutoscaler {APP_NAME} in {environment}.", "make reconcile")
        found = reasons.explain(known)
        faults = [r for r in found if r.is_fault or r.kind is reasons.Kind.DISABLED]
        if faults:
            raise LabError(
                f"The autoscaler of {environment} can't scale: {faults[0].kind}: {faults[0].what}", faults[0].mend
            )
        return [str(r) for r in found if r.kind is reasons.Kind.NO_METRICS]

    if pending():
        with console.Board() as board, board.task(f"{environment}'s pods are measured"):
            wait_for(
                f"{environment}'s pods are measured", pending, timeout_s=METRICS_TIMEOUT_S, interval_s=1,
                mend=f"make hpa-status ENV={environment}",
            )  # fmt: skip
    assert known is not None
    return known


def require_monitoring(kube: Kube) -> None:
    """Refuse a lab without Prometheus: the latency comes from it."""
    from kubernetes.client import ApiException

    try:
        kube.get(f"/api/v1/namespaces/{MONITORING_NAMESPACE}/services/prometheus-operated")
    except ApiException as error:
        if error.status != 404:
            raise
        raise LabError(
            "There is no Prometheus in this lab, and a latency comes from nowhere else.",
            "make setup-all MONITORING=lite",
        ) from None


def ready_to_run(kube: Kube, plan: Plan) -> tuple[Plan, Sampler]:
    """Wait until the environment is at rest, and return what watches the autoscaler that it has now."""
    _wait_until_at_rest(kube, plan.wanted.environment, plan)
    known = facts.collect(kube, plan.wanted.environment)
    if known is None or known.deployment is None:
        raise LabError(f"The autoscaler of {plan.wanted.environment}, or its target, is gone.", "make reconcile")
    sampler = Sampler(kube, plan.wanted.environment, known.hpa, known.deployment)
    return replace(plan, target_ms=autoscaler.target_ms(known.hpa)), sampler


def plan_of(wanted: HpaSettings, known: Facts) -> Plan:
    """Return what a run will do; raises LabError if the autoscaler is none for CPU in percent of a request."""
    spec = known.hpa["spec"]
    percent = autoscaler.target_percent(known.hpa)
    if percent is None:
        raise LabError(
            f"The autoscaler of {wanted.environment} has no CPU target in percent of the request.",
            f"give it a metric of type Resource, cpu, Utilization ({reasons.BASE}/horizontalpodautoscaler.yaml)",
        )
    asked = [request for pod in known.pods if (request := sampling.request_of(pod)) > 0]
    if not asked:
        raise LabError(f"The pods of {wanted.environment} have no CPU request.", f"{reasons.BASE}/deployment.yaml")
    capacity = Capacity(
        minimum=int(spec.get("minReplicas", 1)),
        maximum=int(spec["maxReplicas"]),
        request_millicores=max(asked),
        target_percent=percent,
        machine_cores=float(os.cpu_count() or 1),
        limit_millicores=min((sampling.limit_of(pod) for pod in known.pods), default=0.0),
    )
    if capacity.minimum >= capacity.maximum:
        raise LabError(
            f"The autoscaler of {wanted.environment} has no room: {capacity.minimum} pods are both minimum and maximum.",
            "raise maxReplicas",
        )
    peak = profile.peak_rate(wanted, capacity)
    stages = profile.stages(wanted.profile, peak, wanted.duration_s)
    profile.require_bounded(stages)
    return Plan(
        wanted=wanted,
        capacity=capacity,
        target=f"{spec['scaleTargetRef']['kind']} {spec['scaleTargetRef']['name']}",
        path=f"/work?cpu_ms={profile.CPU_MS}",
        peak=peak,
        quiet=profile.quiet_rate(capacity, peak),
        stages=stages,
    )


def _wait_until_at_rest(kube: Kube, environment: str, plan: Plan) -> None:
    """Wait until an earlier load's pods are gone: a run begins at the minimum, or its figures say nothing."""

    def pending() -> list[str]:
        known = facts.collect(kube, environment)
        if known is None or known.deployment is None:
            raise LabError(f"The autoscaler of {environment}, or its target, is gone.", "make reconcile")
        replicas = known.deployment["spec"].get("replicas", 1)
        ready = (known.deployment.get("status") or {}).get("readyReplicas") or 0
        if replicas == plan.capacity.minimum and ready == replicas:
            return []
        why = "; ".join(f"{r.kind}: {r.what}" for r in reasons.explain(known))
        return [
            f"{ready} of {replicas} pods ready, the minimum is {plan.capacity.minimum}" + (f" ({why})" if why else "")
        ]

    with console.Board() as board, board.task(f"{environment} is at its minimum"):
        wait_for(
            f"{environment} is at its minimum", pending, timeout_s=AT_REST_TIMEOUT_S, interval_s=1.0,
            mend="make status; a load that goes on elsewhere keeps it up",
        )  # fmt: skip


class ClusterLostError(LabError):
    """The API server has not answered for so long that what is known of the cluster says nothing any more."""


class Run:
    """One run under way."""

    def __init__(self, settings: Settings, kube: Kube, plan: Plan, sampler: Sampler) -> None:
        self._vegeta = settings.tools_dir / "vegeta"
        self._target = target(settings, plan.wanted.environment, plan.path)
        self._kube = kube
        self._plan = plan
        self._sampler = sampler
        self._meter = CpuMeter()
        self._loads: dict[Phase, Load] = {}
        self._samples: list[Sample] = []
        self._obstacles: dict[reasons.Kind, str] = {}
        self._reasons: tuple[str, ...] = ()
        self._reasons_at = 0.0
        self._load_began: float | None = None
        self._load_ended: float | None = None
        self._generator_cores = 0.0
        self._view: live.View | None = None
        self._trends = live.Trends()
        self._teller = live.Teller()

    def record(self) -> Recording:
        """Do the run and return all that was seen; Ctrl-C stops the load at once and ends the recording."""
        started = time.time()
        interrupted = lost = False
        with tempfile.TemporaryDirectory(prefix="gitops-lab-hpa-") as folder:
            targets = Path(folder) / "targets"
            targets.write_text(self._target)
            self._sampler.start()
            try:
                with self._shown():
                    self._phases(targets)
            except KeyboardInterrupt:
                interrupted = True
            except ClusterLostError as error:
                lost = True
                console.warn(error.what)
            finally:
                for load in self._loads.values():
                    load.stop()
                if interrupted:
                    console.warn("interrupted: the load is stopped, the report follows")
                for load in self._loads.values():
                    load.finish()
        self._sampler.stop()
        ended = time.time()
        return Recording(
            plan=self._plan,
            started=started,
            load_began=self._load_began,
            load_ended=self._load_ended,
            ended=ended,
            planned=self._planned(interrupted or lost),
            before=self._all(Phase.QUIET),
            during=self._all(Phase.LOAD),
            after=self._all(Phase.SCALE_IN),
            samples=tuple(self._samples),
            events=self._sampler.events(),
            pods=self._sampler.lives(),
            obstacles=tuple(self._obstacles.values()),
            generator_cores=self._generator_cores,
            interrupted=interrupted,
            lost=lost,
            notes=self._sampler.troubles(),
        )

    def _phases(self, targets: Path) -> None:
        plan = self._plan
        self._part(Phase.QUIET, targets, [Stage(0, QUIET_S, plan.quiet)], lambda load: not load.is_sending)
        meter = CpuMeter()
        self._load_began = time.time()
        try:
            self._part(Phase.LOAD, targets, plan.stages, lambda load: not load.is_sending)
        finally:
            self._load_ended = time.time()
            load = self._loads.get(Phase.LOAD)
            self._generator_cores = meter.cores_so_far(load.pids if load else ())
        if plan.wanted.wait_scale_in:
            rest = [Stage(0, SCALE_IN_TIMEOUT_S, plan.quiet)]
            self._part(Phase.SCALE_IN, targets, rest, self._is_back).stop()

    def _part(
        self, phase: Phase, targets: Path, stages: tuple[Stage, ...] | list[Stage], is_over: Callable[[Load], bool]
    ) -> Load:
        load = Load(self._vegeta, targets, stages)
        self._loads[phase] = load
        next_tick = load.began
        while True:
            self._tick(phase, load)
            if is_over(load):
                return load
            if self._sampler.silent_s() > SILENT_S:
                raise ClusterLostError(
                    f"The cluster has not answered for {SILENT_S:.0f} s: the run ends here.", "make status"
                )
            next_tick += TICK_S
            time.sleep(max(0.0, min(next_tick, _end_of(load)) - time.time()))

    def _is_back(self, load: Load) -> bool:
        """Whether the autoscaler has been at its minimum for a while, with the load seen to be over; or the time is up."""
        minimum = self._plan.capacity.minimum
        last = self._samples[-1]
        away = (s.at for s in reversed(self._samples) if s.current != minimum or s.ready != minimum)
        rested_s = last.at - max(load.began, next(away, load.began))
        # Right after a load the autoscaler may not have seen it at all yet.
        if self._plan.target_ms is not None:
            calm = (last.hpa_latency_ms or 0) <= self._plan.target_ms
        else:
            calm = (last.hpa_cpu_percent or 0) <= self._plan.capacity.target_percent
        return (rested_s >= REST_S and calm) or not load.is_sending

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        if not console.is_live():
            yield
            return
        with console.live(lambda: live.render(self._view, self._trends) if self._view else ""):
            yield

    def _tick(self, phase: Phase, load: Load) -> None:
        """Take a sample, and show it."""
        now = time.time()
        cores = self._meter.cores(load.pids)
        due, answered = load.due(now), load.answered()
        sample = replace(self._sampler.sample(), generator_cores=round(cores, 3), due=due, answered=answered)
        self._samples.append(sample)
        if now - self._reasons_at >= REASONS_EVERY_S:
            self._reasons_at = now
            self._look_for_reasons(phase)
        recent = [a for part in self._loads.values() for a in part.answers(now - WINDOW_S)]
        began = self._loads[Phase.QUIET].began
        origin = self._load_began or began + QUIET_S
        latencies = [a.latency_s for a in recent]
        late = timeline.percentile([a.sent - a.due for a in recent], 0.5)
        self._view = live.View(
            plan=self._plan,
            phase=phase,
            phase_s=now - load.began,
            clock_s=now - origin,
            wanted_rate=load.wanted_rate(now),
            rate=len(recent) / min(WINDOW_S, max(TICK_S, now - began)),
            failed=sum(part.failed() for part in self._loads.values()),
            unanswered=max(0, due - answered),
            p50_s=timeline.percentile(latencies, 0.5),
            p95_s=timeline.percentile(latencies, 0.95),
            p99_s=timeline.percentile(latencies, 0.99),
            sample=sample,
            generator_cores=cores,
            behind=late is not None and late > timeline.LATE_S,
            reasons=self._reasons,
            events=self._sampler.events(),
            milestones=self._milestones(origin),
        )
        self._trends.add(self._view)
        if not console.is_live():
            for line in self._teller.lines(self._view):
                console.line(line)

    def _look_for_reasons(self, phase: Phase) -> None:
        found = self._sampler.explain()
        self._reasons = tuple(f"{r.kind}: {r.what}" for r in found)
        if phase is Phase.LOAD:
            # One of each kind, in its latest words: faults that were seen at all, the rest if it stood at the end.
            kept = {kind: text for kind, text in self._obstacles.items() if kind in reasons.FAULTS}
            self._obstacles = kept | {r.kind: str(r) for r in found if r.is_fault or r.kind in LASTING}

    def _milestones(self, origin: float) -> tuple[tuple[float, str], ...]:
        began = self._load_began
        if began is None:
            return ()
        found = [(0.0, f"the load begins: {self._plan.wanted.profile}, {self._plan.peak}/s at its peak")]
        found += [(e.seen - origin, e.message) for e in self._sampler.events() if e.reason == "SuccessfulRescale"]
        for pod in self._sampler.lives():
            if pod.created >= began and pod.ready is not None:
                found.append((pod.ready - origin, f"{pod.name} is ready on {pod.node}"))
        if self._load_ended is not None:
            found.append((self._load_ended - origin, "the load ends"))
        return tuple(sorted(found))

    def _all(self, phase: Phase) -> tuple[Answer, ...]:
        load = self._loads.get(phase)
        return tuple(sorted(load.answers(), key=lambda a: a.due)) if load else ()

    def _planned(self, cut_short: bool) -> int:
        """Return how many requests the load was to send, up to its end."""
        load = self._loads.get(Phase.LOAD)
        if load is None:
            return 0
        return load.due(time.time()) if cut_short else sum(stage.requests for stage in self._plan.stages)


def _end_of(load: Load) -> float:
    return load.began + load.stages[-1].end_s
