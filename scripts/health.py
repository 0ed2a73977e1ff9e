"""When what a Kustomization has applied is healthy already, and kustomize-controller does not know it yet.

Its health check looks every five seconds, which nothing can set. A reconcile that is asked for while it waits ends that
check and begins with a look (its feature CancelHealthCheckOnNewRevision, which the lab's Flux has on).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scripts.kube import Kube, Object, condition
from scripts.reasons import inventory

DEPLOYMENTS = "/apis/apps/v1/deployments"
GATEWAYS = "/apis/gateway.networking.k8s.io/v1/gateways"


def revision_in_check(kustomization: Object) -> str:
    """Return the revision whose health check is running, or "" if none is."""
    if condition(kustomization, "Healthy").get("status") != "Unknown":
        return ""
    return str(kustomization["status"].get("lastAttemptedRevision", ""))


def healthy_already(kube: Kube, kustomizations: Sequence[Object]) -> list[Object]:
    """Return those whose Deployments and Gateways, of which they have some, are all up to date and ready."""
    wanted = [{thing for thing in inventory(k) if thing[0] in ("Deployment", "Gateway")} for k in kustomizations]
    kinds = {kind for things in wanted for kind, _, _ in things}
    ready = set()
    if "Deployment" in kinds:
        ready |= {_key("Deployment", d) for d in kube.get(DEPLOYMENTS)["items"] if _is_rolled_out(d)}
    if "Gateway" in kinds:
        ready |= {_key("Gateway", g) for g in kube.get(GATEWAYS)["items"] if _is_programmed(g)}
    return [k for k, things in zip(kustomizations, wanted, strict=True) if things and things <= ready]


def _key(kind: str, thing: Object) -> tuple[str, str, str]:
    return kind, thing["metadata"]["namespace"], thing["metadata"]["name"]


def _is_rolled_out(deployment: Object) -> bool:
    """Whether every replica is of the current template and available, and no other is left, as `kubectl rollout` has it."""
    status: Mapping[str, int] = deployment.get("status", {})
    wanted = deployment["spec"]["replicas"]
    return status.get("observedGeneration", 0) >= deployment["metadata"]["generation"] and all(
        status.get(field, 0) == wanted for field in ("updatedReplicas", "availableReplicas", "replicas")
    )


def _is_programmed(gateway: Object) -> bool:
    programmed = condition(gateway, "Programmed")
    return programmed.get("status") == "True" and programmed["observedGeneration"] == gateway["metadata"]["generation"]
