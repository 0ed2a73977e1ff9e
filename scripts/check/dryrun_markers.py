"""How the dry run knows that admission has seen what was just made.

Admission learns of changes by watches, each of which keeps the order. So a marker is made after the last change of a kind,
and asked for until the answer shows that it is known: then all that was made before it is known as well.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.check.dryrun_api import Answer, Object

_NAMESPACE = "gitops-lab-marker"
_PATH = f"/api/v1/namespaces/{_NAMESPACE}"


@dataclass(frozen=True)
class Marker:
    """What is made (path and object), what is then asked for by a dry run, and how its answer shows that it is known."""

    what: str
    kinds: frozenset[str]
    things: tuple[tuple[str, Object], ...]
    path: str
    probe: Object
    is_seen: Callable[[Answer], bool]


def markers_for(changed: set[str]) -> Iterator[Marker]:
    """Yield a marker for each watch that has something new to see."""
    mark = str(secrets.randbelow(9 * 10**8) + 10**8)
    for marker in (_quota(mark), _limits(mark), _priority(mark), _policy(mark)):
        if marker.kinds & changed:
            yield marker


def _namespace(mark: str) -> tuple[str, Object]:
    metadata = {"name": _NAMESPACE, "annotations": {"mark": mark}}
    return _PATH, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _object(kind: str, name: str, api_version: str = "v1", **fields: object) -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": _NAMESPACE}, **fields}


def _quota(mark: str) -> Marker:
    name = f"marker-{mark}"
    return Marker(
        "quotas",
        frozenset({"ResourceQuota"}),
        (
            _namespace(mark),
            (f"{_PATH}/resourcequotas/{name}", _object("ResourceQuota", name, spec={"hard": {"secrets": "0"}})),
        ),
        f"{_PATH}/secrets",
        _object("Secret", "marker"),
        # Quotas come last: where a policy of the tree refuses the probe, this can't be known, and policies are awaited.
        lambda answer: name in answer.message or "AdmissionPolicy" in answer.message,
    )


def _limits(mark: str) -> Marker:
    limits = [{"type": "PersistentVolumeClaim", "max": {"storage": mark}}]
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Ti"}}}
    return Marker(
        "limit ranges",
        frozenset({"LimitRange"}),
        (
            _namespace(mark),
            (f"{_PATH}/limitranges/marker", _object("LimitRange", "marker", spec={"limits": limits})),
        ),
        f"{_PATH}/persistentvolumeclaims",
        _object("PersistentVolumeClaim", "marker", spec=claim),
        lambda answer: mark in answer.message,
    )


def _priority(mark: str) -> Marker:
    name = f"marker-{mark}"
    group = "scheduling.k8s.io/v1"
    spec = {"priorityClassName": name, "containers": [{"name": "marker", "image": "marker:1"}]}
    return Marker(
        "priority classes",
        frozenset({"PriorityClass"}),
        (
            _namespace(mark),
            (f"{_PATH}/serviceaccounts/default", _object("ServiceAccount", "default")),
            (
                f"/apis/{group}/priorityclasses/{name}",
                {"apiVersion": group, "kind": "PriorityClass", "metadata": {"name": name}, "value": 1},
            ),
        ),
        f"{_PATH}/pods",
        _object("Pod", "marker", spec=spec),
        lambda answer: "no PriorityClass" not in answer.message,
    )


def _policy(mark: str) -> Marker:
    """Make a marker for policies, and for namespaces: all of admission learns of those by the same watch."""
    name = f"marker-{mark}.gitops-lab"
    group = "admissionregistration.k8s.io/v1"
    leases = {
        "apiGroups": ["coordination.k8s.io"],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["leases"],
    }
    policy = {
        "matchConstraints": {"resourceRules": [leases]},
        "validations": [
            {"expression": f"namespaceObject.metadata.annotations['mark'] != '{mark}'", "message": f"mark {mark}"}
        ],
    }
    # It warns instead of refusing: a warning is told even where a policy of the tree refuses the probe.
    binding = {"policyName": name, "validationActions": ["Warn"]}
    return Marker(
        "policies and namespaces",
        frozenset({"Namespace"})
        | {f"{k}AdmissionPolicy{b}" for k in ("Validating", "Mutating") for b in ("", "Binding")},
        (
            _namespace(mark),
            (
                f"/apis/{group}/validatingadmissionpolicies/{name}",
                {"apiVersion": group, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name}, "spec": policy},
            ),
            (
                f"/apis/{group}/validatingadmissionpolicybindings/{name}",
                {
                    "apiVersion": group,
                    "kind": "ValidatingAdmissionPolicyBinding",
                    "metadata": {"name": name},
                    "spec": binding,
                },
            ),
        ),
        f"/apis/coordination.k8s.io/v1/namespaces/{_NAMESPACE}/leases",
        _object("Lease", "marker", "coordination.k8s.io/v1", spec={}),
        lambda answer: any(f"mark {mark}" in warning for warning in answer.warnings),
    )
