"""Objects and recordings that the tests of scripts/hpa share; each is healthy unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from scripts.hpa.facts import Facts
from scripts.hpa.model import Answer, Event, Plan, PodLife, PodView, Recording, Sample
from scripts.hpa.profile import Capacity, stages
from scripts.settings import HpaMetric, HpaSettings, Profile

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
BEGAN = 1_000_000.0
WANTED = HpaSettings(environment="staging", duration_s=60)
CAPACITY = Capacity(minimum=2, maximum=5, request_millicores=100, target_percent=70, machine_cores=2)
PLAN = Plan(
    wanted=WANTED, capacity=CAPACITY, target="Deployment demo-app", path="/work?cpu_ms=20", peak=10, quiet=2,
    stages=stages(Profile.CONSTANT, 10, 60),
)  # fmt: skip


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def cond(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


ABLE = cond("AbleToScale", "True", "ReadyForNewScale", "recommended size matches current size")
ACTIVE = cond("ScalingActive", "True", "ValidMetricFound")
WITHIN = cond("ScalingLimited", "False", "DesiredWithinRange")


def hpa(*conditions: dict[str, Any], percent: int | None = 40, current: int = 2, **spec: Any) -> dict[str, Any]:
    """Return an autoscaler of 2 to 5 pods with a target of 70 %; conditions replace those of their type."""
    by_type = {c["type"]: c for c in (ABLE, ACTIVE, WITHIN, *conditions)}
    measured = [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]
    return {
        "metadata": {"name": "demo-app", "namespace": "staging"},
        "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "demo-app"},
            "minReplicas": 2,
            "maxReplicas": 5,
            "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}
            ],
            "behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0},
                "scaleDown": {
                    "stabilizationWindowSeconds": 30,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 10}],
                },
            },
        } | spec,
        "status": {
            "currentReplicas": current,
            "desiredReplicas": current,
            "currentMetrics": None if percent is None else measured,
            "conditions": list(by_type.values()),
        },
    }  # fmt: skip


def latency_hpa(*conditions: dict[str, Any], ms: float | None = 100, target: int = 150, **more: Any) -> dict[str, Any]:
    """Return the autoscaler that KEDA makes: as `hpa`, on the external metric."""
    metric = {"name": "s0-prometheus", "selector": {"matchLabels": {"scaledobject.keda.sh/name": "demo-app"}}}
    wanted = {"type": "External", "external": {"metric": metric, "target": {"type": "Value", "value": str(target)}}}
    made = hpa(*conditions, metrics=[wanted], **more)
    made["metadata"]["name"] = "keda-hpa-demo-app"
    found = {"metric": metric, "current": {"value": f"{round((ms or 0) * 1000)}m"}}
    made["status"]["currentMetrics"] = [{"type": ""}] if ms is None else [{"type": "External", "external": found}]
    return made


def deployment(*conditions: dict[str, Any], replicas: int = 2, ready: int = 2) -> dict[str, Any]:
    return {
        "metadata": {"name": "demo-app", "namespace": "staging"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app.kubernetes.io/name": "demo-app"}}},
        "status": {"readyReplicas": ready, "conditions": list(conditions)},
    }


def pod(name: str = "demo-app-1-a", *conditions: dict[str, Any], ready: bool = True, **more: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "staging", "creationTimestamp": more.get("created", ago(600))}
    if more.get("deleted"):
        meta["deletionTimestamp"] = ago(1)
    return {
        "metadata": meta,
        "spec": {
            "nodeName": more.get("node", "lab-worker"),
            "containers": [
                {
                    "name": "app",
                    "resources": {
                        "requests": {"cpu": more.get("cpu", "100m")},
                        **({"limits": {"cpu": more["limit"]}} if "limit" in more else {}),
                    },
                }
            ],
        },
        "status": {"phase": more.get("phase", "Running"), "conditions": [cond("Ready", str(ready)), *conditions]},
    }


def rescale(size: int, seconds_ago: float, count: int = 1) -> dict[str, Any]:
    return {
        "metadata": {"name": f"demo-app.{size}", "uid": f"uid-{size}"},
        "reason": "SuccessfulRescale",
        "message": f"New size: {size}; reason: All metrics below target",
        "lastTimestamp": ago(seconds_ago),
        "type": "Normal",
        "count": count,
    }


def facts(**more: Any) -> Facts:
    healthy: dict[str, Any] = {"hpa": hpa(), "deployment": deployment(), "pods": (pod(), pod("demo-app-1-b"))}
    return Facts(now=NOW, environment="staging", **healthy | more)


def answers(start: float, end: float, rate: int, latency_s: float, code: int = 200) -> list[Answer]:
    """Return answers to an even load, sent when due; times are seconds since the load began."""
    count = int((end - start) * rate)
    dues = [BEGAN + start + (i + 1) / rate for i in range(count)]
    return [Answer(due, due, latency_s, code, "" if code == 200 else f"{code} Broken") for due in dues]


def sample(t: float, desired: int, ready: int, current: int | None = None, cpu: int | None = 50) -> Sample:
    pods = tuple(PodView(f"demo-app-1-{i}", f"worker{i % 2}", "Ready") for i in range(ready))
    return Sample(BEGAN + t, desired, desired if current is None else current, ready, cpu, float(cpu or 0), pods)


LATENCY_PLAN = replace(PLAN, wanted=replace(WANTED, metric=HpaMetric.LATENCY, fail_rate=0.05), target_ms=150)


def latency_recording(**more: Any) -> Recording:
    """Return the same run on latency, under failures: every twentieth request fails on purpose, at no other cost."""
    good = recording()
    loaded = [replace(a, code=500, error="500 Broken") if i % 20 == 7 else a for i, a in enumerate(good.during)]
    samples = [
        replace(s, hpa_cpu_percent=None, hpa_latency_ms=290.0 if s.ready < s.desired else 60.0, latency_ms=61.0)
        for s in good.samples
    ]
    before, after = (
        tuple(replace(a, code=500) if i % 20 == 3 else a for i, a in enumerate(x)) for x in (good.before, good.after)
    )
    made: dict[str, Any] = {
        "plan": LATENCY_PLAN, "before": before, "during": tuple(loaded), "after": after, "samples": tuple(samples),
    }  # fmt: skip
    return replace(good, **made | more)


def recording(**more: Any) -> Recording:
    """Return a run that went well: decision at 15 s, Ready at 30 s, latency back at 35 s, the minimum at 60 + 50 s."""
    during = [
        *answers(0, 30, 10, 0.300),
        *answers(30, 60, 10, 0.030),
    ]
    samples = [
        *(sample(t, 2, 2) for t in range(-10, 15)),
        *(sample(t, 4, 2, cpu=150) for t in range(15, 30)),
        *(sample(t, 4, 4) for t in range(30, 100)),
        *(sample(t, 3, 3, cpu=5) for t in range(100, 110)),
        *(sample(t, 2, 2, cpu=5) for t in range(110, 120)),
    ]
    good = Recording(
        plan=PLAN,
        started=BEGAN - 10,
        load_began=BEGAN,
        load_ended=BEGAN + 60,
        ended=BEGAN + 120,
        planned=600,
        before=tuple(answers(-10, 0, 2, 0.028)),
        during=tuple(during),
        after=tuple(answers(60, 120, 2, 0.028)),
        samples=tuple(samples),
        events=(
            Event("SuccessfulRescale", "New size: 4; reason: cpu above target", "Normal", 1, "2026-05-01T12:00:00Z", BEGAN + 14.8),
            Event("SuccessfulRescale", "New size: 3; reason: below", "Normal", 1, "2026-05-01T12:01:00Z", BEGAN + 99.8),
        ),
        pods=(
            PodLife("demo-app-1-0", "worker0", BEGAN - 600, BEGAN - 590),
            PodLife("demo-app-1-2", "worker1", BEGAN + 15.2, BEGAN + 29.5, BEGAN + 99.9, BEGAN + 108),
            PodLife("demo-app-1-3", "worker0", BEGAN + 15.3, BEGAN + 30.5),
        ),
        generator_cores=0.1,
    )  # fmt: skip
    return replace(good, **more)
