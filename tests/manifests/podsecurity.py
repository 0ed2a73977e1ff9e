"""The Pod Security standard "restricted", as far as a rendered pod can break it."""

from __future__ import annotations

from typing import Any

HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")
VOLUME_KINDS = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
ADDABLE = {"NET_BIND_SERVICE"}


def violations(pod: dict[str, Any]) -> list[str]:
    """Return what the standard would refuse in a pod's spec."""
    found = [field for field in HOST_FIELDS if pod.get(field)]
    found += [f"volume {v['name']}" for v in pod.get("volumes", []) if not set(v) - {"name"} <= VOLUME_KINDS]
    outer = pod.get("securityContext", {})
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        name, own = container["name"], container.get("securityContext", {})
        capabilities = own.get("capabilities", {})
        checks = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities.drop": "ALL" in capabilities.get("drop", []),
            "capabilities.add": set(capabilities.get("add", [])) <= ADDABLE,
            "runAsNonRoot": own.get("runAsNonRoot", outer.get("runAsNonRoot")) is True,
            "runAsUser": own.get("runAsUser", outer.get("runAsUser")) != 0,
            "seccompProfile": own.get("seccompProfile", outer.get("seccompProfile", {})).get("type")
            in {"RuntimeDefault", "Localhost"},
            "hostPort": not any(p.get("hostPort") for p in container.get("ports", [])),
        }
        found += [f"{name}: {check}" for check, kept in checks.items() if not kept]
    return found
