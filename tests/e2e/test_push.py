"""git push is live: the path from a commit to the cluster, and what is refused on it."""

from __future__ import annotations

import re
import select
import socket
import time

import pytest

from scripts import appimage, flux, flux_sync, git
from scripts.settings import APP_NAME, FLUX_NAMESPACE, MAIN_BRANCH
from scripts.waiting import wait_for

DEV = "flux-cd/applications/mock-cluster-aka-namespaces/dev/kustomization.yaml"


def config_values(kube, environment: str) -> list[dict[str, str]]:
    found = kube.call(
        kube.core.list_namespaced_config_map, environment, label_selector="app.kubernetes.io/part-of=demo"
    )
    return [c.data for c in found.items]


def test_a_pushed_value_of_devs_config_is_live_within_seconds_and_staging_is_not_touched(clone, kube):
    clone.edit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.001")
    clone.commit("Test: another FAIL_RATE in dev")
    started = time.monotonic()
    clone.push()
    wait_for(
        "the new value is in dev",
        lambda: [] if any(c.get("FAIL_RATE") == "0.001" for c in config_values(kube, "dev")) else ["the old value"],
        timeout_s=30,
        interval_s=0.02,
    )
    # The safety net is an interval of 10 minutes: within these seconds only the Receiver can have done it.
    assert time.monotonic() - started < 10
    assert all(c.get("FAIL_RATE") != "0.001" for c in config_values(kube, "staging"))


def test_the_receiver_refuses_a_caller_without_the_token(kube, settings):
    from scripts.docker import docker
    from scripts.settings import RECEIVER_NODE_PORT

    (receiver,) = [r for r in kube.list_custom("Receiver", FLUX_NAMESPACE) if r["metadata"]["name"] == "git-push"]
    url = f"http://{settings.control_plane}:{RECEIVER_NODE_PORT}{receiver['status']['webhookPath']}"
    script = (
        "use HTTP::Tiny; my $r = HTTP::Tiny->new(timeout => 5)->post($ARGV[0], {content => '{}', "
        "headers => {'X-Signature' => 'sha256=' . ('0' x 64)}}); print $r->{status};"
    )
    done = docker("exec", settings.git_container, "perl", "-e", script, url)
    assert done.stdout.startswith("4")


def test_a_push_that_comes_in_pieces_is_waited_for(settings):
    """A large push is sent in chunks: one whose end is still on its way must not be refused for want of a length."""
    with socket.create_connection(("127.0.0.1", settings.git_port), timeout=10) as connection:
        connection.sendall(
            b"POST /lab.git/git-receive-pack HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n"
            b"Content-Type: application/x-git-receive-pack-request\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n00\r\n"
        )
        early, _, _ = select.select([connection], [], [], 1.0)
        assert not early, connection.recv(1000)
        connection.sendall(b"2\r\n00\r\n0\r\n\r\n")  # together the packet that says: nothing to push
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 200 "), answer


def test_a_push_over_somebody_elses_commits_is_refused_by_the_server(clone):
    clone.edit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.002")
    clone.commit("Test: first")
    clone.push()
    git.git("reset", "--quiet", "--hard", "HEAD~1", root=clone.path)
    clone.edit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.003")
    clone.commit("Test: second, from before the first")
    forced = git.git("push", "--force", "origin", f"HEAD:{MAIN_BRANCH}", root=clone.path, check=False, timeout_s=60)
    assert forced.exit_code != 0
    assert "non-fast-forward" in forced.stderr


def test_make_push_refuses_uncommitted_manifests(clone, make):
    clone.edit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.004")
    result = make("push", root=clone.path, GIT_REMOTE="lab")
    assert result.code != 0
    assert "Uncommitted changes in flux-cd" in result.output
    assert "git commit" in result.output


def test_make_push_refuses_when_the_remote_moved_on(clone, make, settings):
    base = git.git("rev-parse", "HEAD", root=clone.path).stdout.strip()
    clone.edit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.005")
    clone.commit("Test: theirs")
    clone.push()
    git.git("reset", "--quiet", "--hard", base, root=clone.path)
    clone.edit(DEV, "FAIL_RATE=0", "FAIL_RATE=0.006")
    ours = clone.commit("Test: ours")
    result = make("push", root=clone.path, GIT_REMOTE="lab")
    assert result.code != 0
    assert "has commits that this clone lacks" in result.output
    assert "git pull --rebase" in result.output
    assert git.remote_branches(settings)[MAIN_BRANCH] != ours


def test_deploy_builds_the_application_and_moves_dev_only(clone, make, kube):
    before = {
        e: flux.app_deployment(kube, e)["spec"]["template"]["spec"]["containers"][0]["image"]
        for e in ("dev", "staging")
    }
    (clone.path / "app" / "demo_app" / "e2e_marker.py").write_text(f'"""Made by a test at {time.time_ns()}."""\n')
    git.git("add", "app", root=clone.path)
    clone.commit("Test: another version of the application")
    tag = appimage.content_tag(clone.path / "app")
    result = make("deploy", root=clone.path, GIT_REMOTE="lab")
    assert result.code == 0, result.output
    image = flux.app_deployment(kube, "dev")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert re.search(rf"/{APP_NAME}:{tag}$", image)
    assert image != before["dev"]
    staging = flux.app_deployment(kube, "staging")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert staging == before["staging"]


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_promotion_is_a_fast_forward_of_the_environments_branch(clone, kube, settings, environment):
    branch = git.environment_branch(environment)
    clone.edit(
        DEV.replace("/dev/", f"/{environment}/"), "configMapGenerator:", "# promoted by a test\nconfigMapGenerator:"
    )
    commit = clone.commit(f"Test: promote to {environment}")
    clone.push()
    clone.push(branch)
    wait_for(
        f"{environment} is Ready at the promoted commit",
        lambda: flux_sync.pending_kustomizations(kube, {environment: flux_sync.Expected(commit)}),
        timeout_s=60,
    )
    assert git.remote_branches(settings)[branch] == commit


def test_reconcile_ends_with_everything_ready(make):
    result = make("reconcile")
    assert result.code == 0, result.output
    assert "Kustomizations Ready" in result.output


def test_a_change_by_hand_is_put_back_by_reconcile(kube, make):
    kube.call(kube.core.delete_namespaced_service, APP_NAME, "dev")
    result = make("reconcile")
    assert result.code == 0, result.output
    wait_for(
        "the Service is back",
        lambda: (
            []
            if any(s.metadata.name == APP_NAME for s in kube.call(kube.core.list_namespaced_service, "dev").items)
            else ["gone"]
        ),
        timeout_s=30,
    )
