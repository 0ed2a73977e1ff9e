"""Bad input: one clear line, one line how to mend it, exit code not 0, and nothing changed."""

from __future__ import annotations

import json
import socket
from contextlib import closing

import pytest

from scripts import docker, git

BAD_INPUT = [
    ("setup-all", {"IMAGE_SOURCE": "cloud"}, "IMAGE_SOURCE=cloud is not known", "auto, registry, source"),
    ("setup-all", {"EDGE_PORT": "http"}, "EDGE_PORT=http is not a port", "1 to 65535"),
    ("setup-all", {"EDGE_PORT": "5001", "REGISTRY_PORT": "5001"}, "Two ports are the same", "a number of its own"),
    ("setup-all", {"CLUSTER_NAME": "My_Lab"}, "CLUSTER_NAME=My_Lab can't name a cluster", "lower-case"),
    ("setup-all", {"EDGE": "nginx"}, "EDGE=nginx is not known", "envoy, none"),
    ("setup-all", {"KUBE_CONTEXT": "no-such-context"}, "no-such-context", ""),
    ("status", {"CLUSTER_NAME": "nobody-has-this"}, "There is no cluster nobody-has-this", "make setup-all"),
    ("push", {"CLUSTER_NAME": "nobody-has-this"}, "kind-nobody-has-this", "make setup-all"),
    ("logs", {"ENV": "qa"}, "ENV=qa is not an environment", "dev, staging, production"),
    ("port-forward", {"ENV": ""}, "is not an environment", "dev, staging, production"),
    ("hpa-demo", {"ENV": "qa"}, "ENV=qa is not an environment", "dev, staging, production"),
    ("hpa-demo", {"HPA_DURATION": "long"}, "HPA_DURATION=long is not a whole number", "HPA_DURATION=120"),
    ("hpa-demo", {"HPA_RATE": "2000", "HPA_DURATION": "900"}, "1800000 requests are more than", "HPA_RATE"),
    ("hpa-compare", {"RUNS": "one two three"}, "names 3 runs", "RUNS="),
]  # fmt: skip


@pytest.mark.parametrize(("target", "variables", "what", "mend"), BAD_INPUT)
def test_bad_input_is_refused_in_a_line(make, target, variables, what, mend):
    result = make(target, **variables)
    assert result.code != 0
    assert what in result.output
    assert mend in result.output
    assert "Traceback" not in result.output


def test_a_busy_port_is_named_with_its_holder_before_anything_is_created(make):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        result = make(
            "setup-all", CLUSTER_NAME="lab-e2e-busy", EDGE_PORT=str(port), REGISTRY_PORT="15991", GIT_PORT="15992",
            GIT_REMOTE="lab-e2e-busy",
        )  # fmt: skip
    assert result.code != 0
    assert str(port) in result.output
    assert "python" in result.output or "pytest" in result.output
    assert docker.inspect("network", "lab-e2e-busy") is None


def test_an_invalid_manifest_stops_setup_before_the_cluster_is_touched(clone, make, kube, settings):
    before = git.remote_branches(settings)
    clone.edit(
        "flux-cd/applications/_base-app-config/deployment.yaml", "revisionHistoryLimit:", "revisionHistoryLimits:"
    )
    clone.commit("Test: a misspelt field")
    result = make("setup-all", root=clone.path, GIT_REMOTE="origin")
    assert result.code != 0
    assert "revisionHistoryLimits" in result.output
    assert "the cluster was not touched" in result.output
    assert git.remote_branches(settings) == before


def test_a_remote_of_that_name_that_points_elsewhere_is_left_alone(clone, make):
    git.git("remote", "add", "elsewhere", "https://example.org/other.git", root=clone.path)
    result = make("setup-all", root=clone.path, GIT_REMOTE="elsewhere")
    assert result.code != 0
    assert "points at https://example.org/other.git" in result.output
    url = git.git("remote", "get-url", "elsewhere", root=clone.path).stdout.strip()
    assert url == "https://example.org/other.git"


def test_status_says_what_is_unhealthy_and_why(clone, make, kube):
    clone.edit("flux-cd/applications/_base-app-config/kustomization.yaml", "newTag: ", "newTag: no-such-tag-")
    clone.commit("Test: an image that does not exist")
    clone.push()
    from scripts.waiting import wait_for

    def pending() -> list[str]:
        pods = kube.call(kube.core.list_namespaced_pod, "dev").items
        reasons = [s.state.waiting.reason for p in pods for s in p.status.container_statuses or [] if s.state.waiting]
        return [] if any(r in ("ErrImagePull", "ImagePullBackOff") for r in reasons) else ["no failed pull yet"]

    wait_for("dev's new pod fails to pull", pending, timeout_s=60)
    table = make("status")
    assert table.code != 0
    assert "no-such-tag-" in table.output
    as_json = make("status", OUTPUT="json")
    assert as_json.code != 0
    assert "no-such-tag-" in json.dumps(json.loads(as_json.output.partition("\nmake")[0]))


def test_doctor_finds_nothing_in_the_way_of_a_running_lab(make):
    result = make("doctor")
    assert result.code == 0, result.output
