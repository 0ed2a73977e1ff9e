"""`make debug-metrics`: what a request tells, what is made of it, and pods that are gone however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiException

from scripts.errors import LabError, NotReadyError
from scripts.monitoring import debug_metrics, probe
from scripts.monitoring.debug_metrics import CONTROL, Look, Outcome
from tests.manifests.podsecurity import violations

METRICS = "# HELP app_ready Whether\n# TYPE app_ready gauge\napp_ready 1.0\n" + "".join(
    f'app_x{{n="{n}"}} 1\n' for n in range(9)
)


class Server(ThreadingHTTPServer):
    """An application, or what else may answer in its place."""

    status, text = 200, METRICS
    refusals = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.server.refusals:
            self.server.refusals -= 1
            self.send_response(503)
            self.end_headers()
            return
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.text.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def closed() -> Iterator[int]:
    """A port that nobody listens on, held so that nobody takes it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_an_answer_brings_the_first_lines_of_the_applications_metrics(server):
    found = probe.look("localhost", server.server_port)
    assert found["outcome"] == "answered"
    assert found["lines"] == ["app_ready 1.0", 'app_x{n="0"} 1', 'app_x{n="1"} 1', 'app_x{n="2"} 1']
    assert "HTTP 200, 12 lines" in found["detail"]


@pytest.mark.parametrize(
    ("status", "text"), [(404, "nothing here"), (200, "<html>somebody else</html>"), (500, METRICS)]
)
def test_an_answer_of_another_kind_is_none(server, status, text):
    server.status, server.text = status, text
    found = probe.look("127.0.0.1", server.server_port)
    assert (found["outcome"], found["detail"].endswith(f"HTTP {status}, no metrics of the application")) == (
        "wrong answer",
        True,
    )


def test_refused_and_timed_out_and_an_unknown_name_are_told_apart(closed, silent, monkeypatch):
    monkeypatch.setattr(probe, "ATTEMPT_S", 0.2)
    assert probe.look("127.0.0.1", closed)["outcome"] == "refused"
    assert probe.look("127.0.0.1", silent)["outcome"] == "timed out"
    assert probe.look("no-such-name.invalid", 80)["outcome"] == "dns"


def test_a_control_is_only_connected_to(silent, closed):
    assert probe.look("127.0.0.1", silent, control=True)["outcome"] == "answered"
    assert probe.look("127.0.0.1", closed, control=True)["outcome"] == "refused"


def test_where_an_answer_is_expected_it_asks_again(server, monkeypatch):
    monkeypatch.setattr(probe, "PAUSE_S", 0.01)
    server.refusals = 3
    assert probe.ask("127.0.0.1", server.server_port, opens=True, control=False)["outcome"] == "answered"
    server.refusals = 3
    assert probe.ask("127.0.0.1", server.server_port, opens=False, control=False)["outcome"] == "wrong answer"
    assert server.refusals == 2


def test_it_gives_up_at_its_deadline(closed, monkeypatch):
    monkeypatch.setattr(probe, "PAUSE_S", 0.01)
    monkeypatch.setattr(probe, "DEADLINE_S", 0.1)
    found = probe.ask("127.0.0.1", closed, opens=True, control=False)
    assert found["outcome"] == "refused"
    assert 0.1 <= found["seconds"] < 5


def test_the_pods_own_command_prints_what_is_read_back(server, closed):
    """The pod's command as it is, with this machine's Python in place of the image's."""
    asked = [
        {"name": "dev", "host": "127.0.0.1", "port": server.server_port, "opens": True, "control": False},
        {"name": "qa", "host": "127.0.0.1", "port": closed, "opens": False, "control": False},
    ]
    command = debug_metrics.pod_object("registry.lab/demo-app:1", asked)["spec"]["containers"][0]["command"]
    done = subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, timeout=30, check=True, env={}
    )
    looks = debug_metrics.read_looks(({"status": {"phase": "Succeeded"}}, done.stdout))
    assert {name: look.outcome for name, look in looks.items()} == {"dev": Outcome.ANSWERED, "qa": Outcome.REFUSED}
    assert looks["dev"].lines[0] == "app_ready 1.0"


def test_the_pod_has_no_rights_and_an_end_of_its_own():
    asked = debug_metrics.targets(["dev", "staging"], opens=False)
    pod = debug_metrics.pod_object("registry.lab/demo-app:1", asked)
    assert violations(pod["spec"]) == []
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["restartPolicy"] == "Never"
    container = pod["spec"]["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert set(container["resources"]) == {"requests", "limits"}
    # Longer than all its requests can take, or the kubelet would end a pod that is still asking.
    longest = probe.DEADLINE_S + 2 * probe.ATTEMPT_S * len(asked)
    assert longest < pod["spec"]["activeDeadlineSeconds"] < 300


def test_only_the_pod_that_should_be_kept_out_looks_at_its_own_network_first():
    assert [t["name"] for t in debug_metrics.targets(["dev", "qa"], opens=True)] == ["dev", "qa"]
    outside = debug_metrics.targets(["dev", "qa"], opens=False)
    assert [(t["name"], t["opens"], t["control"]) for t in outside] == [
        (CONTROL, True, True), ("dev", False, False), ("qa", False, False),
    ]  # fmt: skip
    assert {(t["host"], t["port"]) for t in outside[1:]} == {("demo-app.dev.svc", 8000), ("demo-app.qa.svc", 8000)}


YES = Look(Outcome.ANSWERED, "10.0.0.1:8000: HTTP 200", lines=("app_ready 1",))
DROPPED, REFUSED = Look(Outcome.TIMED_OUT, "no answer"), Look(Outcome.REFUSED, "connection refused")
NO_NAME = Look(Outcome.DNS, "demo-app.dev.svc: Name or service not known")


@pytest.mark.parametrize(
    ("inside", "outside", "control", "ok", "why"),
    [
        (YES, DROPPED, YES, (True, True), ""),
        (YES, REFUSED, YES, (True, True), ""),
        (YES, Look(Outcome.UNREACHABLE, "No route to host"), YES, (True, True), ""),
        (YES, YES, YES, (True, False), "any pod gets in"),
        (DROPPED, DROPPED, YES, (False, False), "monitoring must be let in: no answer"),
        (REFUSED, YES, YES, (False, False), "any pod gets in"),
        (YES, NO_NAME, YES, (True, False), "nothing was found out: demo-app.dev.svc: Name or service not known"),
        (YES, Look(Outcome.WRONG_ANSWER, "HTTP 404"), YES, (True, False), "nothing was found out: HTTP 404"),
        (YES, DROPPED, DROPPED, (True, False), "the pod's own network does not work (no answer)"),
        (YES, DROPPED, None, (True, False), "the pod's own network does not work"),
        (NO_NAME, NO_NAME, YES, (False, False), "monitoring must be let in: demo-app.dev.svc"),
        (YES, None, YES, (True, False), "nothing was found out: the pod printed nothing of it"),
    ],
)
def test_the_verdict(inside, outside, control, ok, why):
    looks = {
        "monitoring": {k: v for k, v in {"dev": inside}.items() if v},
        "default": {k: v for k, v in {"dev": outside, CONTROL: control}.items() if v},
    }
    verdicts = debug_metrics.judge(["dev"], looks)
    assert [(v.environment, v.origin, v.should_open) for v in verdicts] == [
        ("dev", "monitoring", True),
        ("dev", "default", False),
    ]
    assert tuple(v.ok for v in verdicts) == ok
    assert why in " ".join(v.why for v in verdicts)
    assert bool(why) == (not all(ok))


def test_a_pod_that_failed_leaves_what_it_had_not_asked_open():
    log = json.dumps({"name": "dev", "outcome": "answered", "detail": "d", "seconds": 0.1, "lines": ["app_ready 1"]})
    looks = debug_metrics.read_looks(
        ({"status": {"phase": "Failed", "reason": "DeadlineExceeded"}}, log + "\nnot JSON\n")
    )
    assert looks["dev"].outcome is Outcome.ANSWERED
    verdicts = debug_metrics.judge(["dev", "qa"], {"monitoring": looks, "default": {}})
    assert [v.ok for v in verdicts] == [True, False, False, False]
    assert "DeadlineExceeded" in verdicts[2].why


def test_the_table_shows_each_verdict_and_the_proof(capsys):
    verdicts = debug_metrics.judge(["dev"], {"monitoring": {"dev": YES}, "default": {"dev": YES, CONTROL: YES}})
    debug_metrics.show(verdicts)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:6] for line in lines if line.startswith("dev  ")] == [
        ["dev", "pod", "in", "monitoring", "yes", "yes"], ["dev", "pod", "in", "default", "no", "yes"],
    ]  # fmt: skip
    assert "  app_ready 1" in lines
    assert any("✘ any pod gets in" in line for line in lines)


class FakeKube:
    """As much of the API as making, watching and removing a pod uses."""

    context = "kind-test"

    def __init__(
        self, changes: Sequence[Any] = (), left: Sequence[tuple[str, str]] = (), refuse: ApiException | None = None
    ):
        self.changes = list(changes)
        self.left = left
        self.refuse = refuse
        self.made: list[str] = []
        self.removed: list[str] = []
        self.listed = 0
        self.core = SimpleNamespace(
            list_namespaced_pod=self.list, create_namespaced_pod=self.create, delete_namespaced_pod=self.delete
        )

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    def list(self, _: str, label_selector: str) -> Any:
        assert label_selector == "app.kubernetes.io/name=metrics-probe"
        return SimpleNamespace(
            items=[
                SimpleNamespace(metadata=SimpleNamespace(name=name), status=SimpleNamespace(phase=phase))
                for name, phase in self.left
            ]
        )

    def create(self, _: str, pod: Any) -> None:
        if self.refuse:
            raise self.refuse
        self.made.append(pod["metadata"]["name"])

    def delete(self, name: str, _: str, grace_period_seconds: int) -> None:
        assert grace_period_seconds == 0
        self.removed.append(name)
        if name not in self.made and name not in [n for n, _ in self.left]:
            raise ApiException(status=404)

    def list_plain(self, *_: Any, **__: Any) -> tuple[list[Any], str]:
        self.listed += 1
        return [pod_now("Pending")], "1"

    def watch(self, *_: Any, **__: Any) -> Iterator[tuple[str, Any]]:
        while self.changes:
            change = self.changes.pop(0)
            if isinstance(change, ApiException):
                raise change
            if change is None:
                return
            yield change

    def get_text(self, path: str) -> str:
        return f"log of {path}"


def pod_now(phase: str, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "metrics-probe-1", "resourceVersion": "2"},
        "spec": {"activeDeadlineSeconds": 100},
        "status": {"phase": phase, **status},
    }


POD = {"metadata": {"name": "metrics-probe-1"}}


def test_a_pod_is_removed_when_the_block_ends_and_so_is_what_an_earlier_run_left():
    kube = FakeKube(left=[("metrics-probe-old", "Failed"), ("metrics-probe-busy", "Running")])
    with debug_metrics.running_pod(kube, "default", POD) as name:
        assert (name, kube.made) == ("metrics-probe-1", ["metrics-probe-1"])
        assert kube.removed == ["metrics-probe-old"]
    assert kube.removed == ["metrics-probe-old", "metrics-probe-1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pod_is_removed_when_the_command_is_interrupted_or_terminated(number):
    kube = FakeKube()
    with (
        pytest.raises(KeyboardInterrupt),
        debug_metrics._terminated_like_interrupted(),
        debug_metrics.running_pod(kube, "default", POD),
    ):
        os.kill(os.getpid(), number)
        threading.Event().wait(5)
    assert kube.removed == ["metrics-probe-1"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_keep_the_pod():
    kube = FakeKube()
    original = kube.core.delete_namespaced_pod

    def delete(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(*args, **kwargs)

    kube.core.delete_namespaced_pod = delete
    with pytest.raises(KeyboardInterrupt), debug_metrics.running_pod(kube, "default", POD):
        raise KeyboardInterrupt
    assert kube.removed == ["metrics-probe-1"]


def test_a_pod_that_may_not_be_made_is_said_with_the_api_servers_words():
    refusal = ApiException(status=403, reason="Forbidden")
    refusal.body = json.dumps({"message": "exceeded quota: demo"})
    kube = FakeKube(refuse=refusal)
    with (
        pytest.raises(LabError, match="No pod can be made in default: exceeded quota: demo"),
        debug_metrics.running_pod(kube, "default", POD),
    ):
        pytest.fail("there is no pod")
    assert kube.removed == ["metrics-probe-1"]


@pytest.mark.parametrize(
    ("changes", "phase", "listed"),
    [
        ([("MODIFIED", pod_now("Running")), ("MODIFIED", pod_now("Succeeded"))], "Succeeded", 1),
        ([("MODIFIED", pod_now("Failed"))], "Failed", 1),
        ([("MODIFIED", pod_now("Running")), None, ("MODIFIED", pod_now("Succeeded"))], "Succeeded", 1),
        ([ApiException(status=410), ("MODIFIED", pod_now("Succeeded"))], "Succeeded", 2),
    ],
    ids=["runs and ends", "fails", "the server ends the watch", "the version is too old"],
)
def test_a_pod_is_watched_until_it_has_ended(changes, phase, listed):
    kube = FakeKube(changes)
    pod, log = debug_metrics.wait_until_over(kube, "default", "metrics-probe-1")
    assert pod["status"]["phase"] == phase
    assert log == "log of /api/v1/namespaces/default/pods/metrics-probe-1/log"
    assert kube.listed == listed


def test_a_pod_that_somebody_removed_is_said():
    kube = FakeKube([("DELETED", pod_now("Running"))])
    with pytest.raises(LabError, match="Somebody removed pod metrics-probe-1 in default"):
        debug_metrics.wait_until_over(kube, "default", "metrics-probe-1")


def test_a_pod_that_does_not_get_on_is_named_with_its_cause(monkeypatch):
    moments = iter([0.0, 1.0, 1000.0])
    monkeypatch.setattr(debug_metrics.time, "monotonic", lambda: next(moments))
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}}
    kube = FakeKube([("MODIFIED", pod_now("Pending", containerStatuses=[waiting])), None])
    with pytest.raises(NotReadyError, match="has not ended: ImagePullBackOff no such tag"):
        debug_metrics.wait_until_over(kube, "default", "metrics-probe-1")


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]},
            "0/3 nodes",
        ),
        ({}, "Pending"),
    ],
)
def test_why_a_pod_does_not_get_on(status, why):
    assert why in debug_metrics.blocked_by(pod_now("Pending", **status))
