"""The order of a run, with a small fake load generator and a fake sampler; and what is refused before it begins."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiException

from scripts.endpoints import EndpointResult
from scripts.errors import LabError, NotReadyError
from scripts.hpa import demo
from scripts.hpa.model import Event, Phase, PodLife, PodView, Sample
from scripts.hpa.profile import Capacity, Stage
from scripts.hpa.reasons import Kind, Reason
from scripts.hpa.timeline import summarise
from scripts.settings import Edge, HpaMetric, HpaSettings, Settings
from scripts.waiting import wait_for
from tests.unit.hpa_facts import PLAN, WANTED, cond, deployment, facts, hpa, latency_hpa, pod, recording
from tests.unit.test_hpa_generator import FAKE

# --- what is refused


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A lab in which all is well; what is put into the dictionary is what is found."""
    found: dict[str, Any] = {"facts": facts(), "answer": EndpointResult("staging", "/work", True, 200, 0.01, "")}
    monkeypatch.setattr(demo, "lab_kube", lambda _: found.get("kube"))
    monkeypatch.setattr(demo.facts, "collect", lambda *_: found["facts"])
    monkeypatch.setattr(demo.endpoints, "check_environment", lambda *_: [found["answer"]])
    monkeypatch.setattr(demo, "Sampler", lambda *_: "sampler")
    monkeypatch.setattr(demo.changes, "left_over", lambda *_: False)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "vegeta").touch()
    found["settings"] = Settings(cache_dir=tmp_path)
    return found


def test_a_lab_in_which_all_is_well_gets_a_plan(lab: dict[str, Any]) -> None:
    _, plan = demo.prepare(lab["settings"], WANTED)
    assert plan.capacity == Capacity(2, 5, 100, 70, float(os.cpu_count() or 1))
    assert (plan.target, plan.path, plan.metric) == ("Deployment demo-app", "/work?cpu_ms=20", "cpu")
    assert plan.stages == (Stage(0, 60, plan.peak),)


NO_REQUEST = cond(
    "ScalingActive", "False", "FailedGetResourceMetric", "missing request for cpu in container app of Pod x"
)
NO_API = cond("ScalingActive", "False", "FailedGetResourceMetric", "unable to fetch metrics")
VALUE = [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "70m"}}}]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no autoscaler", {"facts": None}, "There is no HorizontalPodAutoscaler demo-app in staging."),
    ("metrics-server down", {"facts": facts(hpa=hpa(NO_API, percent=None))}, "can't scale: metrics API absent: "),
    ("no request", {"facts": facts(hpa=hpa(NO_REQUEST, percent=None))}, "can't scale: no CPU request: "),
    ("another target", {"facts": facts(hpa=hpa(metrics=VALUE))}, "has no CPU target in percent"),
    ("no room", {"facts": facts(hpa=hpa(maxReplicas=2))}, "has no room: 2 pods are both"),
    ("no answer", {"answer": EndpointResult("staging", "/work", False, 503, 0.1, "HTTP 503: no upstream")}, "staging does not answer at the edge: HTTP 503"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "told"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_would_make_a_run_meaningless_is_refused_in_a_line(
    lab: dict[str, Any], found: dict[str, Any], told: str
) -> None:
    lab |= found
    with pytest.raises(LabError) as refused:
        demo.prepare(lab["settings"], WANTED)
    assert told in refused.value.what
    assert refused.value.mend
    assert "\n" not in refused.value.what


SERVES = {"status": {"conditions": [cond("Available", "True")]}}
NO_FIGURES = cond("ScalingActive", "False", "FailedGetResourceMetric", "no metrics returned from resource metrics API")
YOUNG = facts(hpa=hpa(NO_FIGURES, percent=None), api_service=SERVES, pods=(pod(),))


def test_pods_without_figures_yet_are_waited_for(lab: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [YOUNG, YOUNG, facts()]
    monkeypatch.setattr(demo.facts, "collect", lambda *_: found.pop(0))
    monkeypatch.setattr(demo, "wait_for", lambda *args, **options: wait_for(*args, **{**options, "interval_s": 0.001}))
    _, plan = demo.prepare(lab["settings"], WANTED)
    assert (found, plan.capacity.minimum) == ([], 2)


def test_figures_that_do_not_come_end_the_wait(lab: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lab["facts"] = YOUNG
    monkeypatch.setattr(demo, "METRICS_TIMEOUT_S", 0.0)
    with pytest.raises(NotReadyError) as late:
        demo.prepare(lab["settings"], WANTED)
    assert "metrics not there yet" in f"{late.value.what}{late.value.details}"
    assert late.value.mend == "make hpa-status ENV=staging"


def test_a_lab_without_edge_or_generator_is_refused(lab: dict[str, Any]) -> None:
    with pytest.raises(LabError, match="needs the edge"):
        demo.prepare(replace(lab["settings"], edge=Edge.NONE), WANTED)
    (lab["settings"].tools_dir / "vegeta").unlink()
    with pytest.raises(LabError, match="vegeta is not there"):
        demo.prepare(lab["settings"], WANTED)


class NoPrometheus:
    def get(self, path: str) -> Any:
        assert path == "/api/v1/namespaces/monitoring/services/prometheus-operated"
        raise ApiException(status=404)


def test_a_latency_without_monitoring_is_refused_before_anything_is_changed(lab: dict[str, Any]) -> None:
    lab["kube"] = NoPrometheus()
    lab["facts"] = facts(pods=(pod(limit="500m"), pod("b", limit="500m")))
    with pytest.raises(LabError) as refused:
        demo.prepare(lab["settings"], replace(WANTED, metric=HpaMetric.LATENCY, rate=10))
    assert "There is no Prometheus" in refused.value.what
    assert refused.value.mend == "make setup-all MONITORING=lite"


def test_what_a_killed_run_left_is_put_back_first(lab: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    put_back: list[str] = []
    monkeypatch.setattr(demo.changes, "left_over", lambda *_: True)
    monkeypatch.setattr(demo.changes, "put_back", lambda _, environment: put_back.append(environment))
    demo.prepare(lab["settings"], WANTED)
    assert put_back == ["staging"]


def test_a_run_on_latency_knows_its_target(lab: dict[str, Any]) -> None:
    lab["facts"] = facts(hpa=latency_hpa())
    no_kube: Any = None
    plan, sampler = demo.ready_to_run(no_kube, replace(PLAN, wanted=replace(WANTED, metric=HpaMetric.LATENCY)))
    assert (plan.metric, plan.target_ms, sampler) == (HpaMetric.LATENCY, 150, "sampler")


def test_more_requests_than_a_run_may_send_are_refused(lab: dict[str, Any]) -> None:
    with pytest.raises(LabError, match="are more than the 300000"):
        demo.prepare(lab["settings"], replace(WANTED, rate=2000, duration_s=900))


def test_a_run_waits_for_an_earlier_loads_pods_and_says_what_it_waits_for(
    lab: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "AT_REST_TIMEOUT_S", 0.1)
    down = cond("AbleToScale", "True", "ScaleDownStabilized")
    lab["facts"] = facts(hpa=hpa(down, current=4, percent=5), deployment=deployment(replicas=4, ready=4))
    no_kube: Any = None
    with pytest.raises(NotReadyError) as late:
        demo.ready_to_run(no_kube, PLAN)
    assert "4 of 4 pods ready, the minimum is 2 (stabilising: " in late.value.details


# --- a run


class FakeSampler:
    """An autoscaler that scales out soon after the load began and in soon after it ended."""

    def __init__(self) -> None:
        self.started = time.time()
        self.up: float | None = None
        self.stopped = False
        self.reasons: list[Reason] = []
        self.replicas = 2
        self.silent = 0.0
        self.behave: Callable[[], None] = lambda: None

    def start(self) -> None:
        self.started = time.time()

    def stop(self) -> None:
        self.stopped = True

    def sample(self) -> Sample:
        self.behave()
        count = self.replicas
        pods = tuple(PodView(f"demo-app-1-{i}", f"worker{i % 2}", "Ready") for i in range(count))
        return Sample(time.time(), count, count, count, 60, 61.0, pods)

    def explain(self) -> list[Reason]:
        return self.reasons

    def silent_s(self) -> float:
        return self.silent

    def events(self) -> tuple[Event, ...]:
        return (Event("SuccessfulRescale", "New size: 4; reason: x", "Normal", 1, "", self.up),) if self.up else ()

    def lives(self) -> tuple[PodLife, ...]:
        return (PodLife("demo-app-1-3", "worker1", self.up, self.up),) if self.up else ()

    def troubles(self) -> tuple[str, ...]:
        return ()

    def scale(self, count: int) -> None:
        self.replicas = count
        if count > 2:
            self.up = time.time()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[demo.Run, FakeSampler]]:
    for name, value in {
        "QUIET_S": 0.4,
        "TICK_S": 0.05,
        "REST_S": 0.2,
        "REASONS_EVERY_S": 0.05,
        "SCALE_IN_TIMEOUT_S": 20,
    }.items():
        monkeypatch.setattr(demo, name, value)
    (tmp_path / "tools").mkdir()
    vegeta = tmp_path / "tools" / "vegeta"
    text = FAKE.format(python=os.path.realpath("/proc/self/exe"), broken="")
    vegeta.write_text(text.replace("code = 200 if n % 10 != 9 else 503", "code = 200"))
    vegeta.chmod(0o755)

    def make(seconds: float = 0.6, **wanted: Any) -> tuple[demo.Run, FakeSampler]:
        plan = replace(
            PLAN, wanted=replace(WANTED, **wanted), stages=(Stage(0, seconds / 2, 40), Stage(seconds / 2, seconds / 2, 80)),
            peak=80, quiet=20,
        )  # fmt: skip
        sampler = FakeSampler()
        fake: Any = sampler
        no_kube: Any = None
        return demo.Run(Settings(cache_dir=tmp_path), no_kube, plan, fake), sampler

    return make


def test_a_run_has_its_three_parts_and_ends_when_the_minimum_is_reached(
    run: Callable[..., tuple[demo.Run, FakeSampler]], capsys: pytest.CaptureFixture[str]
) -> None:
    under_way, sampler = run()
    sampler.reasons = [
        Reason(Kind.QUOTA, "exceeded quota: demo.", "raise it"),
        Reason(Kind.NOT_READY, "1 new pod is starting."),
    ]

    def behave() -> None:
        """Scale out once the load is met, in once the load is over, however slow the machine."""
        met = [under_way._loads[p].answered() if p in under_way._loads else 0 for p in (Phase.QUIET, Phase.LOAD)]
        if sampler.up is None and met[1] > 5:
            sampler.scale(4)
        if met == [8, 36] and under_way._loads.get(Phase.SCALE_IN) and sampler.replicas == 4:
            sampler.scale(2)

    sampler.behave = behave
    found = under_way.record()
    assert sampler.stopped
    assert found.load_began is not None and found.load_ended is not None
    assert found.load_began - found.started > 0.35
    assert len(found.before) == 8 and len(found.during) == found.planned == 36
    assert found.after and all(a.due >= found.load_ended - 0.01 for a in found.after)
    assert not found.interrupted
    assert {s.current for s in found.samples} == {2, 4}
    assert found.samples[-1].current == 2
    assert found.obstacles == ("quota: exceeded quota: demo. To mend it: raise it",)
    assert found.generator_cores > 0
    lines = capsys.readouterr().out
    for words in (
        "» the load begins: constant, 80/s",
        "» New size: 4; reason: x",
        "» demo-app-1-3 is ready on worker1",
        "» the load ends",
    ):
        assert words in lines


def test_a_run_that_does_not_wait_ends_with_the_load(run: Callable[..., tuple[demo.Run, FakeSampler]]) -> None:
    under_way, sampler = run(wait_scale_in=False)
    sampler.scale(4)
    found = under_way.record()
    assert found.after == ()
    assert found.load_ended is not None and found.ended - found.load_ended < 5


def test_a_scale_in_that_does_not_come_is_not_waited_for_for_ever(
    run: Callable[..., tuple[demo.Run, FakeSampler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SCALE_IN_TIMEOUT_S", 0.5)
    under_way, sampler = run()
    sampler.scale(4)
    assert under_way.record().samples[-1].current == 4


def test_an_interrupt_stops_the_load_at_once_and_keeps_what_was_seen(
    run: Callable[..., tuple[demo.Run, FakeSampler]], until: Callable[[Callable[[], object]], None]
) -> None:
    under_way, _ = run(seconds=60)

    def interrupt() -> None:
        until(lambda: Phase.LOAD in under_way._loads and under_way._loads[Phase.LOAD].answered() > 5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    started = time.monotonic()
    found = under_way.record()
    assert time.monotonic() - started < 20
    assert found.interrupted
    assert found.load_ended is not None
    assert 0 < len(found.during) < 500
    assert abs(found.planned - len(found.during)) <= 5, "what was not sent any more was not planned"


def test_a_cluster_that_no_longer_answers_ends_the_run_and_is_told(
    run: Callable[..., tuple[demo.Run, FakeSampler]], capsys: pytest.CaptureFixture[str]
) -> None:
    under_way, sampler = run(seconds=60)

    def behave() -> None:
        if Phase.LOAD in under_way._loads and under_way._loads[Phase.LOAD].answered() > 5:
            sampler.silent = demo.SILENT_S + 1

    sampler.behave = behave
    found = under_way.record()
    assert found.lost and not found.interrupted
    assert 0 < len(found.during) < 1000
    assert "The cluster has not answered for 30 s: the run ends here." in capsys.readouterr().err
    names = [c.name for c in summarise(found).checks if not c.ok]
    assert "the cluster answered" in names and "back at its minimum" not in names


def test_the_exit_code_tells_whether_the_checks_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[Any] = []

    def write(*report: Any) -> Path:
        written.append(report)
        return tmp_path

    monkeypatch.setattr(demo.report, "write", write)
    monkeypatch.setattr(demo, "prepare", lambda *_: (None, PLAN))
    monkeypatch.setattr(demo, "ready_to_run", lambda *_: (PLAN, None))
    outcome: dict[str, Any] = {"recording": recording()}
    monkeypatch.setattr(demo.Run, "record", lambda _: outcome["recording"])
    settings, wanted = Settings(cache_dir=tmp_path), HpaSettings()
    assert demo.demo(settings, wanted) == 0
    outcome["recording"] = recording(during=recording().during[:100])
    assert demo.demo(settings, wanted) == 1
    outcome["recording"] = recording(interrupted=True)
    assert demo.demo(settings, wanted) == 130
    assert len(written) == 3, "a report is written whatever the outcome"
