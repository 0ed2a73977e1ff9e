"""`make hpa-status`: each autoscaler now, and what keeps it from scaling."""

from __future__ import annotations

from scripts import console
from scripts.deploy import lab_kube
from scripts.hpa import reasons
from scripts.hpa.live import percent
from scripts.hpa.reasons import Facts, Reason
from scripts.kube import Kube
from scripts.settings import APP_NAME, Settings, environments, require_environment


def status(settings: Settings, environment: str) -> int:
    """Print the state of one environment's autoscaler, or of all; return 0 only if none has a fault."""
    names = [require_environment(environment)] if environment else environments()
    kube = lab_kube(settings)
    found = {name: _look(kube, name) for name in names}
    console.table(
        "Autoscalers",
        ["environment", "pods", "ready", "wanted", "bounds", "CPU", "target", "what keeps it"],
        [_row(name, facts, why) for name, (facts, why) in found.items()],
    )
    for name, (_, why) in found.items():
        for reason in why:
            console.line(f"{'✘' if reason.is_fault else '·'} {name}: {reason}", "bold red" if reason.is_fault else "")
    for facts, _ in found.values():
        for note in facts.unread if facts else ():
            console.line(f"  {note}", style="dim")
    return 1 if any(r.is_fault for _, why in found.values() for r in why) else 0


def _look(kube: Kube, environment: str) -> tuple[Facts | None, list[Reason]]:
    facts = reasons.collect(kube, environment)
    if facts is None:
        missing = Reason(reasons.Kind.OTHER, f"there is no HorizontalPodAutoscaler {APP_NAME}.", "make reconcile")
        return None, [missing]
    return facts, reasons.explain(facts)


def _row(name: str, facts: Facts | None, why: list[Reason]) -> list[str]:
    if facts is None:
        return [name, "-", "-", "-", "-", "-", "-", "no autoscaler"]
    spec, state = facts.hpa["spec"], facts.hpa.get("status") or {}
    scaled = (facts.deployment or {}).get("status") or {}
    target = reasons.target_percent(facts.hpa)
    return [
        name,
        str(state.get("currentReplicas") or 0),
        str(scaled.get("readyReplicas") or 0),
        str(state.get("desiredReplicas") or 0),
        f"{spec.get('minReplicas', 1)} to {spec['maxReplicas']}",
        percent(reasons.cpu_percent(facts.hpa)),
        "-" if target is None else f"{target} %",
        ", ".join(str(r.kind) for r in why) or at_rest(facts),
    ]


def at_rest(facts: Facts) -> str:
    """Return what an autoscaler does that nothing keeps: it has the size that its load calls for."""
    cpu, target = reasons.cpu_percent(facts.hpa), reasons.target_percent(facts.hpa)
    if cpu is None or target is None:
        return "nothing"
    current = (facts.hpa.get("status") or {}).get("currentReplicas") or 0
    low = cpu < target * (1 - reasons.TOLERANCE)
    if low and current <= facts.hpa["spec"].get("minReplicas", 1):
        return "nothing: at its minimum, the load needs no more"
    return "nothing: about to change" if abs(cpu / target - 1) > reasons.TOLERANCE else "nothing: at its target"
