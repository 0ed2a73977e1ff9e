"""API versions that Kubernetes deprecated or stopped serving.

From Kubernetes' deprecation guide; what the pinned API server itself calls deprecated is compared by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Release = tuple[int, int]


@dataclass(frozen=True)
class Removal:
    """Since when a version is deprecated, from when on it isn't served (None: not planned), and what to write instead."""

    deprecated: Release
    removed: Release | None
    instead: str = ""


def _of(api_version: str, kinds: str, deprecated: int, removed: int | None, instead: str = "") -> _Entries:
    removal = Removal((1, deprecated), (1, removed) if removed else None, instead)
    return {(api_version, kind): removal for kind in kinds.split()}


_Entries = dict[tuple[str, str], Removal]
_RBAC = "Role ClusterRole RoleBinding ClusterRoleBinding"
_FLOW = "FlowSchema PriorityLevelConfiguration"
_DRA = "DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice"
_POLICIES = "ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding"
_MUTATING = "MutatingAdmissionPolicy MutatingAdmissionPolicyBinding"

REMOVALS: Mapping[tuple[str, str], Removal] = {
    **_of("extensions/v1beta1", "Deployment DaemonSet ReplicaSet", 9, 16, "apps/v1"),
    **_of("extensions/v1beta1", "NetworkPolicy", 9, 16, "networking.k8s.io/v1"),
    **_of("extensions/v1beta1", "PodSecurityPolicy", 10, 16),
    **_of("extensions/v1beta1", "Ingress", 14, 22, "networking.k8s.io/v1"),
    **_of("apps/v1beta1", "Deployment StatefulSet ReplicaSet", 9, 16, "apps/v1"),
    **_of("apps/v1beta2", "Deployment StatefulSet DaemonSet ReplicaSet", 9, 16, "apps/v1"),
    **_of("networking.k8s.io/v1beta1", "Ingress IngressClass", 19, 22, "networking.k8s.io/v1"),
    **_of("networking.k8s.io/v1beta1", "IPAddress ServiceCIDR", 34, 37, "networking.k8s.io/v1"),
    **_of("policy/v1beta1", "PodDisruptionBudget", 21, 25, "policy/v1"),
    **_of("policy/v1beta1", "PodSecurityPolicy", 21, 25),
    **_of("autoscaling/v2beta1", "HorizontalPodAutoscaler", 22, 25, "autoscaling/v2"),
    **_of("autoscaling/v2beta2", "HorizontalPodAutoscaler", 23, 26, "autoscaling/v2"),
    **_of("batch/v1beta1", "CronJob", 21, 25, "batch/v1"),
    **_of("rbac.authorization.k8s.io/v1alpha1", _RBAC, 17, 22, "rbac.authorization.k8s.io/v1"),
    **_of("rbac.authorization.k8s.io/v1beta1", _RBAC, 17, 22, "rbac.authorization.k8s.io/v1"),
    **_of("apiextensions.k8s.io/v1beta1", "CustomResourceDefinition", 16, 22, "apiextensions.k8s.io/v1"),
    **_of("apiregistration.k8s.io/v1beta1", "APIService", 10, 22, "apiregistration.k8s.io/v1"),
    **_of(
        "admissionregistration.k8s.io/v1beta1", "MutatingWebhookConfiguration ValidatingWebhookConfiguration", 16, 22,
        "admissionregistration.k8s.io/v1",
    ),
    **_of("admissionregistration.k8s.io/v1beta1", _POLICIES, 31, 34, "admissionregistration.k8s.io/v1"),
    **_of("admissionregistration.k8s.io/v1beta1", _MUTATING, 37, 40, "admissionregistration.k8s.io/v1"),
    **_of("admissionregistration.k8s.io/v1alpha1", _MUTATING, 35, 38, "admissionregistration.k8s.io/v1"),
    **_of("certificates.k8s.io/v1beta1", "CertificateSigningRequest", 19, 22, "certificates.k8s.io/v1"),
    **_of("certificates.k8s.io/v1beta1", "ClusterTrustBundle PodCertificateRequest", 37, 40, "certificates.k8s.io/v1"),
    **_of("coordination.k8s.io/v1beta1", "Lease", 14, 22, "coordination.k8s.io/v1"),
    **_of("coordination.k8s.io/v1beta1", "LeaseCandidate", 36, 39),
    **_of("coordination.k8s.io/v1alpha2", "LeaseCandidate", 35, 38),
    **_of("events.k8s.io/v1beta1", "Event", 19, 25, "events.k8s.io/v1"),
    **_of("discovery.k8s.io/v1beta1", "EndpointSlice", 21, 25, "discovery.k8s.io/v1"),
    **_of("node.k8s.io/v1beta1", "RuntimeClass", 20, 25, "node.k8s.io/v1"),
    **_of("scheduling.k8s.io/v1alpha1", "PriorityClass", 14, 17, "scheduling.k8s.io/v1"),
    **_of("scheduling.k8s.io/v1beta1", "PriorityClass", 14, 22, "scheduling.k8s.io/v1"),
    **_of("storage.k8s.io/v1beta1", "StorageClass VolumeAttachment CSIDriver CSINode", 19, 22, "storage.k8s.io/v1"),
    **_of("storage.k8s.io/v1beta1", "CSIStorageCapacity", 24, 27, "storage.k8s.io/v1"),
    **_of("storage.k8s.io/v1beta1", "VolumeAttributesClass", 34, 37, "storage.k8s.io/v1"),
    **_of("storagemigration.k8s.io/v1beta1", "StorageVersionMigration", 37, 40, "storagemigration.k8s.io/v1"),
    **_of("flowcontrol.apiserver.k8s.io/v1beta1", _FLOW, 23, 26, "flowcontrol.apiserver.k8s.io/v1"),
    **_of("flowcontrol.apiserver.k8s.io/v1beta2", _FLOW, 26, 29, "flowcontrol.apiserver.k8s.io/v1"),
    **_of("flowcontrol.apiserver.k8s.io/v1beta3", _FLOW, 29, 32, "flowcontrol.apiserver.k8s.io/v1"),
    **_of("resource.k8s.io/v1beta1", _DRA, 35, 38, "resource.k8s.io/v1"),
    **_of("resource.k8s.io/v1beta2", _DRA, 36, 39, "resource.k8s.io/v1"),
    **_of("resource.k8s.io/v1alpha3", "DeviceTaintRule", 36, 39),
    **_of("v1", "ComponentStatus", 19, None),
    **_of("v1", "Endpoints", 33, None, "discovery.k8s.io/v1 EndpointSlice"),
}  # fmt: skip
