"""Flux is told at once that what it waits for is healthy: only then, and once for each revision."""

from __future__ import annotations

from typing import Any

import pytest

from scripts import flux_sync, health

ENTRIES = ("dev_demo-app_apps_Deployment", "dev_demo-app-config__ConfigMap")
EDGE = ("edge_envoy-gateway_apps_Deployment", "edge_edge_gateway.networking.k8s.io_Gateway")


def kustomization(name: str, *entries: str, healthy: str = "Unknown", revision: str = "main@sha1:1") -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "status": {
            "conditions": [{"type": "Healthy", "status": healthy}] if healthy else [],
            "lastAttemptedRevision": revision,
            "inventory": {"entries": [{"id": entry, "v": "v1"} for entry in entries]},
        },
    }


def deployment(
    name: str = "demo-app", namespace: str = "dev", *, replicas: int = 2, seen: int = 3, **status: int
) -> dict[str, Any]:
    counts = {"replicas": replicas, "updatedReplicas": replicas, "availableReplicas": replicas, **status}
    return {
        "metadata": {"name": name, "namespace": namespace, "generation": 3},
        "spec": {"replicas": replicas},
        "status": {"observedGeneration": seen, **counts},
    }


def gateway(status: str, seen: int = 2) -> dict[str, Any]:
    condition = {"type": "Programmed", "status": status, "observedGeneration": seen}
    metadata = {"name": "edge", "namespace": "edge", "generation": 2}
    return {"metadata": metadata, "status": {"conditions": [condition]}}


class Cluster:
    """An API with some Deployments and Gateways, which notes what it is asked and what it is patched with."""

    def __init__(self, *things: dict[str, Any]) -> None:
        self.things = list(things)
        self.gets: list[str] = []
        self.asked: list[str] = []

    def get(self, path: str) -> dict[str, Any]:
        self.gets.append(path)
        return {"items": [t for t in self.things if ("spec" in t) == path.endswith("deployments")]}

    def patch_custom(self, kind: str, namespace: str, name: str, patch: dict[str, Any]) -> None:
        assert (kind, namespace) == ("Kustomization", "flux-system")
        assert flux_sync.REQUESTED_AT in patch["metadata"]["annotations"]
        self.asked.append(name)


def names(cluster: Cluster, *kustomizations: dict[str, Any]) -> list[str]:
    return [k["metadata"]["name"] for k in health.healthy_already(cluster, kustomizations)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "healthy"),
    [
        (deployment(), True),
        (deployment(replicas=0), True),
        (deployment(availableReplicas=1), False),
        (deployment(updatedReplicas=1), False),
        (deployment(replicas=2) | {"status": {"observedGeneration": 3}}, False),
        (deployment(seen=2), False),
        (deployment() | {"spec": {"replicas": 1}}, False),
        (deployment(namespace="staging"), False),
    ],
    ids=["all", "none wanted", "one not available", "one not updated", "no pods yet", "a change not seen", "an old pod left",
         "another's"],
)  # fmt: skip
def test_a_deployment_is_healthy_once_it_is_rolled_out(found: dict[str, Any], healthy: bool) -> None:
    assert names(Cluster(found), kustomization("dev", *ENTRIES)) == (["dev"] if healthy else [])


@pytest.mark.parametrize(("status", "seen", "healthy"), [("True", 2, True), ("True", 1, False), ("False", 2, False)])
def test_a_gateway_is_healthy_once_it_is_programmed(status: str, seen: int, healthy: bool) -> None:
    cluster = Cluster(deployment("envoy-gateway", "edge"), gateway(status, seen))
    assert names(cluster, kustomization("edge-sync", *EDGE)) == (["edge-sync"] if healthy else [])


def test_what_has_neither_is_left_to_flux_and_asks_nothing() -> None:
    cluster = Cluster()
    assert names(cluster, kustomization("infrastructure-sync", "_dev__Namespace")) == []
    assert cluster.gets == []


@pytest.mark.parametrize("healthy", ["True", "False", ""])
def test_only_a_check_that_is_running_is_ended(healthy: str) -> None:
    cluster = Cluster(deployment())
    flux_sync._hurry(cluster, [kustomization("dev", *ENTRIES, healthy=healthy)], set())  # type: ignore[arg-type]
    assert (cluster.asked, cluster.gets) == ([], [])


def test_each_revision_is_asked_for_once() -> None:
    cluster, hurried = Cluster(deployment()), set[tuple[str, str]]()
    for revision in ("main@sha1:1", "main@sha1:1", "main@sha1:2"):
        things = [kustomization("dev", *ENTRIES, revision=revision), kustomization("edge-sync", *EDGE)]
        flux_sync._hurry(cluster, things, hurried)  # type: ignore[arg-type]
    assert cluster.asked == ["dev", "dev"]
