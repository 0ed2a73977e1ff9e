"""`make debug-metrics`: what NetworkPolicy lets through to each environment's metrics, seen from two namespaces.

A pod in `monitoring` has to get them, a pod in `default` must not. Its "no" counts only if it can be told from a broken
network: the same address answers monitoring, and the pod in default reaches the API server.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from scripts import console, deploy, flux
from scripts.errors import LabError, NotReadyError, UsageError
from scripts.kube import Kube, Object
from scripts.monitoring import probe
from scripts.settings import APP_NAME, APP_PORT, MONITORING_NAMESPACE, Settings, environments

OUTSIDE = "default"
PROBE = "metrics-probe"
# netpols/metrics-probe.yaml lets pods with this label out, as another does Prometheus.
LABELS = {"app.kubernetes.io/name": PROBE, "app.kubernetes.io/part-of": "monitoring"}
CONTROL = "control"
CONTROL_HOST, CONTROL_PORT = "kubernetes.default.svc", 443
OVER = ("Succeeded", "Failed")
START_S = 60


class Outcome(StrEnum):
    """What became of a request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    TIMED_OUT = "timed out"
    UNREACHABLE = "unreachable"
    DNS = "dns"
    WRONG_ANSWER = "wrong answer"
    NOT_ASKED = "not asked"


# A policy shows as silence, as a refusal or as an ICMP message, depending on what enforces it.
KEPT_OUT = frozenset({Outcome.REFUSED, Outcome.TIMED_OUT, Outcome.UNREACHABLE})


@dataclass(frozen=True)
class Look:
    """One request from a pod: what became of it, and the first lines of what it got."""

    outcome: Outcome
    detail: str
    seconds: float = 0.0
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What NetworkPolicy does between a namespace and an environment, and whether it should."""

    environment: str
    origin: str
    should_open: bool
    look: Look
    ok: bool
    why: str


def debug_metrics(settings: Settings, output: str) -> int:
    """Look from both namespaces, print the verdicts; 1 if one is not as it should be."""
    if output not in ("", "table", "json"):
        raise UsageError(f"OUTPUT={output} is not known.", "take one of: table, json")
    kube = deploy.lab_kube(settings)
    known = environments()
    verdicts = judge(known, look_from_both(kube, known))
    if output == "json":
        console.raw(json.dumps({"ok": all(v.ok for v in verdicts), "looks": [asdict(v) for v in verdicts]}, indent=1))
    else:
        show(verdicts)
    return 0 if all(v.ok for v in verdicts) else 1


def look_from_both(kube: Kube, known: Sequence[str]) -> dict[str, dict[str, Look]]:
    """Return what a pod in each of the two namespaces finds, by namespace and environment."""
    image = image_on_nodes(kube, known)
    with _terminated_like_interrupted(), contextlib.ExitStack() as stack:
        pods = {}
        for origin in (MONITORING_NAMESPACE, OUTSIDE):
            asked = targets(known, opens=origin == MONITORING_NAMESPACE)
            pods[origin] = stack.enter_context(running_pod(kube, origin, pod_object(image, asked)))
        return {origin: read_looks(wait_until_over(kube, origin, name)) for origin, name in pods.items()}


def image_on_nodes(kube: Kube, known: Sequence[str]) -> str:
    """Return the application's image as an environment runs it: nodes have it, and it has Python."""
    from kubernetes.client import ApiException

    for environment in known:
        try:
            deployment = flux.app_deployment(kube, environment)
        except ApiException as error:
            if error.status != 404:
                raise
            continue
        image: str = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
        return image
    raise LabError(f"No environment runs {APP_NAME}: there are no metrics to reach.", "make status")


def targets(known: Sequence[str], opens: bool) -> list[dict[str, Any]]:
    """Return what a pod is to ask; one that should be let in nowhere first shows that its network works."""
    control = {"name": CONTROL, "host": CONTROL_HOST, "port": CONTROL_PORT, "opens": True, "control": True}
    asked = [
        {"name": e, "host": f"{APP_NAME}.{e}.svc", "port": APP_PORT, "opens": opens, "control": False} for e in known
    ]
    return asked if opens else [control, *asked]


def lifetime_s(asked: Sequence[dict[str, Any]]) -> int:
    """Return the longest that a pod can need: the kubelet ends it then, whatever happened to this process."""
    longest = [probe.DEADLINE_S if t["opens"] else 0.0 for t in asked]
    return int(START_S + sum(longest) + len(asked) * 2 * probe.ATTEMPT_S)


def pod_object(image: str, asked: Sequence[dict[str, Any]]) -> Object:
    """Return the pod: no token, no privileges, a file system that can't be written, an end of its own."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{PROBE}-{secrets.token_hex(3)}", "labels": LABELS},
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": lifetime_s(asked),
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1001,
                "runAsGroup": 1001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "probe",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/usr/bin/python3", "-I", "-c", Path(probe.__file__).read_text(), json.dumps(asked)],
                    "resources": {
                        "requests": {"cpu": "10m", "memory": "32Mi"},
                        "limits": {"cpu": "200m", "memory": "64Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


@contextlib.contextmanager
def running_pod(kube: Kube, namespace: str, pod: Object) -> Iterator[str]:
    """Make a pod, yield its name, and remove it however the block ends; what an earlier run left goes first."""
    from kubernetes.client import ApiException

    selector = f"app.kubernetes.io/name={PROBE}"
    for left in kube.call(kube.core.list_namespaced_pod, namespace, label_selector=selector).items:
        if left.status.phase in OVER:
            _remove(kube, namespace, left.metadata.name)
    name: str = pod["metadata"]["name"]
    try:
        try:
            kube.call(kube.core.create_namespaced_pod, namespace, pod)
        except ApiException as error:
            raise LabError(f"No pod can be made in {namespace}: {_message(error)}", "make status") from None
        yield name
    finally:
        with _uninterrupted():
            _remove(kube, namespace, name)


def _remove(kube: Kube, namespace: str, name: str) -> None:
    from kubernetes.client import ApiException

    try:
        kube.call(kube.core.delete_namespaced_pod, name, namespace, grace_period_seconds=0)
    except ApiException as error:
        if error.status != 404:
            raise


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"HTTP {error.status} {error.reason}"


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let a SIGTERM end the block as Ctrl-C does, so that what it made is removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C not keep the block from its end: it is bounded by the API's time limits."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def wait_until_over(kube: Kube, namespace: str, name: str) -> tuple[Object, str]:
    """Watch a pod until it has ended, and return it with its log."""
    from kubernetes.client import ApiException

    only = {"field_selector": f"metadata.name={name}"}
    pods, version = kube.list_plain(kube.core.list_namespaced_pod, namespace, **only)
    pod = pods[0] if pods else {}
    limit_s = int(pod.get("spec", {}).get("activeDeadlineSeconds", 0)) + START_S
    deadline = time.monotonic() + limit_s
    while pod and pod["status"].get("phase") not in OVER:
        left = int(deadline - time.monotonic())
        if left <= 0:
            raise NotReadyError(f"Pod {name} in {namespace} has not ended: {blocked_by(pod)}", "make status")
        try:
            for change, seen in kube.watch(
                kube.core.list_namespaced_pod, namespace, version=version, timeout_s=left, **only
            ):
                version = seen["metadata"]["resourceVersion"]
                pod = {} if change == "DELETED" else seen
                if not pod or pod["status"].get("phase") in OVER:
                    break
        except ApiException as error:
            if error.status != 410:
                raise
            pods, version = kube.list_plain(kube.core.list_namespaced_pod, namespace, **only)
            pod = pods[0] if pods else {}
    if not pod:
        raise LabError(f"Somebody removed pod {name} in {namespace} before it had ended.", "run it again")
    return pod, kube.get_text(f"/api/v1/namespaces/{namespace}/pods/{name}/log")


def blocked_by(pod: Object) -> str:
    """Return why a pod does not get on, in the words of its status."""
    status = pod["status"]
    for container in status.get("containerStatuses") or []:
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return f"{waiting.get('reason', 'waiting')} {waiting.get('message', '')}".strip()
    for condition in status.get("conditions") or []:
        if condition.get("status") == "False" and condition.get("message"):
            return str(condition["message"])
    return str(status.get("phase", "no status"))


def read_looks(ended: tuple[Object, str]) -> dict[str, Look]:
    """Return what a pod found, from the lines it printed; why it ended early under "", if it did."""
    pod, log = ended
    looks = {}
    for line in log.splitlines():
        try:
            found = json.loads(line)
            looks[found["name"]] = Look(
                Outcome(found["outcome"]), found["detail"], found["seconds"], tuple(found.get("lines", ()))
            )
        except (ValueError, KeyError, TypeError):
            console.debug(f"{PROBE}: {line}")
    if pod["status"]["phase"] != "Succeeded":
        why = pod["status"].get("reason") or (log.strip().splitlines() or ["without a word"])[-1]
        looks[""] = Look(Outcome.NOT_ASKED, f"the pod failed: {why}")
    return looks


def judge(known: Sequence[str], looks: dict[str, dict[str, Look]]) -> list[Verdict]:
    """Return a verdict for each environment and namespace."""
    inside, outside = looks[MONITORING_NAMESPACE], looks[OUTSIDE]
    verdicts = []
    for environment in known:
        seen = _look_at(inside, environment)
        opened = seen.outcome is Outcome.ANSWERED
        why = "" if opened else f"monitoring must be let in: {seen.detail}"
        verdicts.append(Verdict(environment, MONITORING_NAMESPACE, True, seen, opened, why))
        refused = _look_at(outside, environment)
        why = _doubt(refused, opened, outside)
        verdicts.append(Verdict(environment, OUTSIDE, False, refused, not why, why))
    return verdicts


def _look_at(looks: dict[str, Look], environment: str) -> Look:
    return looks.get(environment) or looks.get("") or Look(Outcome.NOT_ASKED, "the pod printed nothing of it")


def _doubt(look: Look, monitoring_opened: bool, outside: dict[str, Look]) -> str:
    """Return what keeps a "no" from being the policy's, or ""."""
    if look.outcome is Outcome.ANSWERED:
        return "any pod gets in: no NetworkPolicy keeps it out, or nothing enforces them"
    if look.outcome not in KEPT_OUT:
        return f"nothing was found out: {look.detail}"
    control = _look_at(outside, CONTROL)
    if control.outcome is not Outcome.ANSWERED:
        return f"the pod's own network does not work ({control.detail}), so its no proves nothing"
    if not monitoring_opened:
        return "monitoring gets no answer either, so this no proves nothing"
    return ""


def show(verdicts: Sequence[Verdict]) -> None:
    """Print the verdicts as a table, and below it the first lines of each environment's metrics."""
    rows = []
    for v in verdicts:
        rows.append(
            [
                v.environment,
                f"pod in {v.origin}",
                "yes" if v.should_open else "no",
                "yes" if v.look.outcome is Outcome.ANSWERED else f"no: {v.look.outcome}",
                f"{v.look.seconds:.1f} s",
                "✔" if v.ok else f"✘ {v.why}",
            ]
        )
    console.table("Who gets the metrics", ["environment", "from", "should", "does", "time", ""], rows)
    for v in verdicts:
        if v.look.lines:
            console.line()
            console.line(f"{v.environment}, as {v.origin} gets it ({v.look.detail}):", style="bold")
            for line in v.look.lines:
                console.line(f"  {line}")
