"""How much of a quota a workload takes at its largest: the autoscaler's maximum, and a rollout's surge on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from scripts.check.lint_inventory import Inventory, Item, Pod, dig, mapping, number
from scripts.check.lint_quantity import quantity, share_of

# Names in a quota, and the part of a pod's resources that each counts.
_COUNTED = {
    "cpu": ("requests", "cpu"),
    "requests.cpu": ("requests", "cpu"),
    "memory": ("requests", "memory"),
    "requests.memory": ("requests", "memory"),
    "limits.cpu": ("limits", "cpu"),
    "limits.memory": ("limits", "memory"),
}
_ZERO = Fraction(0)


@dataclass(frozen=True)
class Needs:
    """A workload's pods at its largest, and what each of them takes."""

    subject: str
    replicas: int
    surge: int
    per_pod: Mapping[tuple[str, str], Fraction]

    def amount(self, resource: str) -> Fraction:
        """Return how much of a quota's resource the workload takes; 0 for what isn't counted here."""
        pods = self.replicas + self.surge
        if resource in ("pods", "count/pods"):
            return Fraction(pods)
        return pods * self.per_pod.get(_COUNTED.get(resource, ("", "")), _ZERO)

    @property
    def explained(self) -> str:
        """How the number of pods comes about."""
        surge = f" and {self.surge} more in a rollout" if self.surge else ""
        return f"{self.subject}: {self.replicas} pods{surge}"


def needs_of(workload: Item, seen: Inventory) -> Needs:
    """Return what a workload takes at its largest. A DaemonSet counts once: its number of nodes isn't known here."""
    scaler = seen.scaler_of(workload)
    replicas = number(workload.spec.get("replicas"), 1)
    if scaler:
        replicas = number(scaler.spec.get("maxReplicas", scaler.spec.get("maxReplicaCount")), replicas)
    elif workload.kind == "Job":
        replicas = number(workload.spec.get("parallelism"), 1)
    elif workload.kind == "CronJob":
        replicas = number(dig(workload.spec, "jobTemplate", "spec", "parallelism"), 1)
    elif workload.kind in ("Pod", "DaemonSet"):
        replicas = 1
    surge = 0
    if workload.kind == "Deployment" and dig(workload.spec, "strategy", "type") != "Recreate":
        stated = dig(workload.spec, "strategy", "rollingUpdate", "maxSurge")
        surge = share_of("25%" if stated is None else stated, replicas) or 0
    per_pod = {
        (what, resource): _per_pod(workload, seen, what, resource)
        for what in ("requests", "limits")
        for resource in ("cpu", "memory")
    }
    return Needs(workload.resource.subject, replicas, surge, per_pod)


def _per_pod(workload: Item, seen: Inventory, what: str, resource: str) -> Fraction:
    """Return a pod's requests or limits as a quota counts them: all that run at once, or the largest that runs before."""
    pod = workload.pod or Pod({}, {})
    stated = quantity(dig(pod.spec, "resources", what, resource))
    if stated is not None:
        return stated
    defaults = dict(zip(("requests", "limits"), seen.default_resources(workload), strict=True))
    together, first = _ZERO, _ZERO
    for container in pod.containers:
        own = mapping(container.spec.get("resources"))
        # A missing request is filled in from the container's own limit, before any LimitRange.
        sources = [own.get(what), own.get("limits") if what == "requests" else None, defaults[what]]
        amounts = [quantity(mapping(s).get(resource)) for s in sources]
        amount = next((a for a in amounts if a is not None), _ZERO)
        if container.once:
            first = max(first, together + amount)
        else:
            together += amount
    return max(together, first)
