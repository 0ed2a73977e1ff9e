"""Two labs side by side on one engine, the second out of a VPN's way: neither knows of the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from scripts import cluster, docker, git, teardown
from scripts.kube import Kube
from scripts.settings import Monitoring
from tests.e2e.conftest import OtherLab, other_lab

pytestmark = pytest.mark.long

NAME = "lab-e2e-second"
SUBNET = "10.213.0.0/16"
DEV = "flux-cd/applications/mock-cluster-aka-namespaces/dev/kustomization.yaml"


@pytest.fixture(scope="module")
def second(settings):
    """Settings of a second lab: other ports, without monitoring."""
    return replace(
        settings, cluster_name=NAME, git_remote="second", monitoring=Monitoring.NONE, subnet=SUBNET,
        edge_port=settings.edge_port + 7, registry_port=settings.registry_port + 7, git_port=settings.git_port + 7,
    )  # fmt: skip


@pytest.fixture(scope="module")
def beside(second, kube, tmp_path_factory) -> Iterator[OtherLab]:
    """The second lab's clone; the lab is taken down at the end with all that it kept."""
    lab = other_lab(tmp_path_factory.mktemp("second") / "clone", second, SUBNET=SUBNET)
    yield lab
    assert lab.make("teardown", PURGE="volumes").code == 0


def test_a_second_lab_comes_up_in_the_subnet_that_was_asked_for(beside, second, settings):
    before = git.remote_branches(settings)
    result = beside.make("setup-all")
    assert result.code == 0, result.output
    assert cluster.network_subnet(second) == SUBNET
    assert cluster.network_subnet(settings) != SUBNET
    endpoints = beside.make("test-endpoints")
    assert endpoints.code == 0, endpoints.output
    assert git.remote_branches(settings) == before, "the first lab's Git was not touched"


def test_both_are_well(make, beside):
    for lab in (make, beside.make):
        result = lab("status")
        assert result.code == 0, result.output


def test_a_push_to_one_is_not_seen_by_the_other(beside, second, settings):
    kubes = {s.cluster_name: Kube(s.context, s.tools_dir / "kubectl") for s in (second, settings)}

    def fail_rates(name: str) -> set[str]:
        kube = kubes[name]
        found = kube.call(kube.core.list_namespaced_config_map, "dev", label_selector="app.kubernetes.io/part-of=demo")
        return {c.data.get("FAIL_RATE", "") for c in found.items}

    beside.commit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.003")
    result = beside.make("push")
    assert result.code == 0, result.output
    assert "0.003" in fail_rates(NAME)
    assert "0.003" not in fail_rates(settings.cluster_name)


def test_teardown_of_the_second_leaves_the_first(beside, make, second):
    assert beside.make("teardown", PURGE="volumes").code == 0
    assert docker.inspect("network", second.network) is None
    assert docker.inspect("volume", second.git_volume) is None
    assert teardown.is_down(second)
    result = make("status")
    assert result.code == 0, result.output
