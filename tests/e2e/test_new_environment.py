"""An environment is added by one command and one push, lives like the others, and is taken back without a trace."""

from __future__ import annotations

import time

import pytest

from scripts import flux, git
from scripts.settings import FLUX_NAMESPACE, Edge, environments, source_name
from scripts.waiting import wait_for

NAME = "qa"
OVERLAY = f"flux-cd/applications/mock-cluster-aka-namespaces/{NAME}/kustomization.yaml"

pytestmark = pytest.mark.long


def uids(kube) -> dict[str, str]:
    """What a Deployment of the other environments is known by."""
    return {e: flux.app_deployment(kube, e)["metadata"]["uid"] for e in environments() if e != NAME}


def test_an_environment_is_added_lives_and_is_taken_back(clone, make, kube, settings, edge):
    before = git.git("rev-parse", "HEAD^{tree}", root=clone.path).stdout
    others = uids(kube)

    added = make("new-environment", root=clone.path, NAME=NAME)
    assert added.code == 0, added.output
    pushed = make("push", root=clone.path, GIT_REMOTE="lab")
    assert pushed.code == 0, pushed.output
    assert f"env/{NAME} created" in pushed.output
    kustomizations = {k["metadata"]["name"]: k for k in kube.list_custom("Kustomization", FLUX_NAMESPACE)}
    assert flux.is_ready(kustomizations[NAME])
    endpoints = make("test-endpoints", root=clone.path)
    assert endpoints.code == 0, endpoints.output
    assert endpoints.output.count(" ok") == 4 * (len(environments()) + 1)
    if settings.edge is not Edge.NONE:
        assert edge(NAME, "/work").json()["environment"] == NAME
    quotas = kube.call(kube.core.list_namespaced_resource_quota, NAME).items
    assert [q.spec.hard["pods"] for q in quotas] == ["10"]

    # Its branch is announced like staging's: found by a label and a pattern, not by a list that setup would have to renew.
    clone.edit(OVERLAY, "Hello from qa", "Hello again from qa")
    commit = clone.commit("Test: another greeting in qa")
    started = time.monotonic()
    clone.push(f"env/{NAME}")
    wait_for(
        "the source holds what was promoted",
        lambda: [] if held(kube).endswith(commit) else [f"it holds {held(kube)}"],
        timeout_s=30,
        interval_s=0.1,
    )
    assert time.monotonic() - started < 10, "only the interval of ten minutes would have brought it"
    clone.push()

    removed = make("new-environment", root=clone.path, NAME=NAME, DELETE="1")
    assert removed.code == 0, removed.output
    assert git.git("rev-parse", "HEAD^{tree}", root=clone.path).stdout == before
    pushed = make("push", root=clone.path, GIT_REMOTE="lab")
    assert pushed.code == 0, pushed.output
    assert f"env/{NAME} removed" in pushed.output
    wait_for("the namespace is gone", lambda: left(kube), timeout_s=120)
    assert f"env/{NAME}" not in git.remote_branches(settings)
    assert uids(kube) == others


def held(kube) -> str:
    (source,) = (
        g for g in kube.list_custom("GitRepository", FLUX_NAMESPACE) if g["metadata"]["name"] == source_name(NAME)
    )
    return source["status"].get("artifact", {}).get("revision", "")


def left(kube) -> list[str]:
    found = [
        f"namespace {n.metadata.name}" for n in kube.call(kube.core.list_namespace).items if n.metadata.name == NAME
    ]
    for kind in ("GitRepository", "Kustomization"):
        found += [
            f"{kind} {thing['metadata']['name']}"
            for thing in kube.list_custom(kind, FLUX_NAMESPACE)
            if thing["metadata"]["name"] in (NAME, source_name(NAME))
        ]
    return found


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"NAME": "QA_1"}, "NAME=QA_1 can't name an environment"),
        ({"NAME": ""}, "NAME=(empty) can't name an environment"),
        ({"NAME": "kube-system"}, "NAME=kube-system is taken"),
        ({"NAME": "production"}, "NAME=production is taken"),
        ({"NAME": "production", "DELETE": "1"}, "production is one of the lab's own environments"),
        ({"NAME": "nobody", "DELETE": "1"}, "NAME=nobody is not an environment that was added"),
    ],
)
def test_a_name_is_refused_in_a_line_and_nothing_is_written(clone, make, variables, what):
    result = make("new-environment", root=clone.path, **variables)
    assert result.code != 0
    assert what in result.output
    assert "Traceback" not in result.output
    assert git.git("status", "--porcelain", root=clone.path).stdout.replace("?? .venv\n", "") == ""


def test_a_namespace_that_the_cluster_has_is_taken(clone, make, kube):
    name = "by-hand"
    kube.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}])
    try:
        result = make("new-environment", root=clone.path, NAME=name)
    finally:
        kube.call(kube.core.delete_namespace, name)
    assert result.code != 0
    assert f"NAME={name} is taken: the cluster has a namespace of that name" in result.output
