"""Which kinds stand outside namespaces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from scripts.schemas import defined_kind

# Of Kubernetes' own groups: https://kubernetes.io/docs/reference/kubernetes-api/ (kinds without a namespaced path).
_CLUSTER_KINDS = {
    "APIService", "CertificateSigningRequest", "ClusterRole", "ClusterRoleBinding", "ClusterTrustBundle",
    "ComponentStatus", "CSIDriver", "CSINode", "CustomResourceDefinition", "DeviceClass", "DeviceTaintRule", "FlowSchema",
    "IngressClass", "IPAddress", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration", "Namespace", "Node", "PersistentVolume", "PriorityClass", "PriorityLevelConfiguration",
    "ResourceSlice", "RuntimeClass", "SelfSubjectAccessReview", "SelfSubjectReview", "ServiceCIDR", "StorageClass",
    "StorageVersion", "StorageVersionMigration", "SubjectAccessReview", "TokenReview", "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration", "VolumeAttachment", "VolumeAttributesClass",
}  # fmt: skip
# Groups of Kubernetes' own that don't end in .k8s.io.
_BUILT_IN = {"", "apps", "autoscaling", "batch", "extensions", "policy"}

# The name of a version, as kustomize prints the list of them.
_VERSION = re.compile(r"^(?:  - |    )name: [\"']?([a-z0-9]+)[\"']?$", re.MULTILINE)
_SCOPE = re.compile(r"^  scope: [\"']?(\w+)", re.MULTILINE)


def definitions(texts: Iterable[str]) -> dict[tuple[str, str], bool]:
    """Return, by group and kind, whether the kinds that rendered CRDs define stand outside namespaces."""
    found = {}
    for text in texts:
        if "\nkind: CustomResourceDefinition\n" in text:
            about, scope = defined_kind(text), _SCOPE.search(text)
            if about and scope:
                found[about] = scope.group(1) == "Cluster"
    return found


def api_versions(texts: Iterable[str]) -> list[str]:
    """Return what rendered CRDs let an API server serve, as Helm asks for it: `group/version` and `group/version/Kind`."""
    found: set[str] = set()
    for text in texts:
        about = defined_kind(text) if "\nkind: CustomResourceDefinition\n" in f"\n{text}" else None
        if about:
            group, kind = about
            for version in _VERSION.findall(text):
                found |= {f"{group}/{version}", f"{group}/{version}/{kind}"}
    return sorted(found)


def is_cluster_scoped(api_version: str, kind: str, crds: Mapping[tuple[str, str], bool]) -> bool | None:
    """Whether a kind stands outside namespaces; None for one that is not known here."""
    group = api_version.rpartition("/")[0]
    if (group, kind) in crds:
        return crds[(group, kind)]
    if group in _BUILT_IN or (group.endswith(".k8s.io") and group.count(".") == 2):
        return kind in _CLUSTER_KINDS
    return False if group.endswith(".toolkit.fluxcd.io") else None
