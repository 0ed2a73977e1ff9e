"""`make hpa-status`: each autoscaler now, and what keeps it from scaling."""

from __future__ import annotations

from scripts import console
from scripts.deploy import lab_kube
from scripts.hpa import autoscaler, facts, reasons
from scripts.hpa.facts import Facts
from scripts.hpa.reasons import Reason
from scripts.kube import Kube
from scripts.settings import APP_NAME, Settings, environments, require_environment


def status(settings: Settings, environment: str) -> int:
    """Print the state of one environment's autoscaler, or of all; return 0 only if none has a fault."""
    names = [require_environment(environment)] if environment else environments()
    kube = lab_kube(settings)
    found = {name: _look(kube, name) for name in names}
    console.table(
        "Autoscalers",
        ["environment", "pods", "ready", "wanted", "bounds", "CPU or p95", "target", "what keeps it"],
        [_row(name, known, why) for name, (known, why) in found.items()],
    )
    for name, (_, why) in found.items():
        for reason in why:
            console.line(f"{'✘' if reason.is_fault else '·'} {name}: {reason}", "bold red" if reason.is_fault else "")
    for known, _ in found.values():
        for note in known.unread if known else ():
            console.line(f"  {note}", style="dim")
    return 1 if any(r.is_fault for _, why in found.values() for r in why) else 0


def _look(kube: Kube, environment: str) -> tuple[Facts | None, list[Reason]]:
    known = facts.collect(kube, environment)
    if known is None:
        missing = Reason(reasons.Kind.OTHER, f"there is no HorizontalPodAutoscaler {APP_NAME}.", "make reconcile")
        return None, [missing]
    return known, reasons.explain(known)


def _row(name: str, known: Facts | None, why: list[Reason]) -> list[str]:
    if known is None:
        return [name, "-", "-", "-", "-", "-", "-", "no autoscaler"]
    spec, state = known.hpa["spec"], known.hpa.get("status") or {}
    scaled = (known.deployment or {}).get("status") or {}
    metric, (value, target) = autoscaler.metric_of(known.hpa), autoscaler.seen(known.hpa)
    return [
        name,
        str(state.get("currentReplicas") or 0),
        str(scaled.get("readyReplicas") or 0),
        str(state.get("desiredReplicas") or 0),
        f"{spec.get('minReplicas', 1)} to {spec['maxReplicas']}",
        autoscaler.shown(metric, value),
        "-" if target is None else autoscaler.shown(metric, target),
        ", ".join(str(r.kind) for r in why) or at_rest(known),
    ]


def at_rest(known: Facts) -> str:
    """Return what an autoscaler does that nothing keeps: it has the size that its load calls for."""
    value, target = autoscaler.seen(known.hpa)
    if value is None or not target:
        return "nothing"
    current = (known.hpa.get("status") or {}).get("currentReplicas") or 0
    low = value < target * (1 - autoscaler.TOLERANCE)
    if low and current <= known.hpa["spec"].get("minReplicas", 1):
        return "nothing: at its minimum, the load needs no more"
    return "nothing: about to change" if abs(value / target - 1) > autoscaler.TOLERANCE else "nothing: at its target"
