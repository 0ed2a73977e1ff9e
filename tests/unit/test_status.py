import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scripts import endpoints, status
from scripts.endpoints import EndpointResult
from scripts.errors import UsageError
from scripts.kube import Kube, UnreachableError
from scripts.settings import Settings
from scripts.snapshot import Snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"
READY = {"type": "Ready", "status": "True", "message": "Applied revision"}
NOT_READY = {"type": "Ready", "status": "False", "message": "kustomize build failed: bad", "reason": "BuildFailed"}
OK = EndpointResult("dev", "/healthz", True, 200, 0.012, "")
REFUSED = EndpointResult("dev", "/work", False, 503, 0.5, "HTTP 503: no healthy upstream")


def node(**more: Any) -> dict[str, Any]:
    labels = {"node-role.kubernetes.io/worker": "", "topology.kubernetes.io/zone": "zone-a"}
    state = {"conditions": [READY | more], "nodeInfo": {"kubeletVersion": "v1.37.0"}}
    return {"kind": "Node", "metadata": {"name": "lab-worker", "labels": labels}, "status": state}


def flux(kind: str, name: str, ready: dict[str, Any] = READY, **state: Any) -> dict[str, Any]:
    state = {"conditions": [ready], "observedGeneration": 1} | state
    return {
        "kind": kind,
        "metadata": {"name": name, "namespace": "flux-system", "generation": 1},
        "spec": {},
        "status": state,
    }


def pod(namespace: str, name: str, ready: bool = True, image: str = "registry.lab/demo-app:3f2a") -> dict[str, Any]:
    container = {
        "name": "app",
        "ready": ready,
        "restartCount": 2,
        "state": {"running": {}} if ready else {"waiting": {"reason": "ErrImagePull"}},
    }
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": "lab-worker", "containers": [{"name": "app", "image": image}]},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [container]},
    }  # fmt: skip


def hpa(namespace: str, percent: int | None = 40) -> dict[str, Any]:
    metrics = (
        [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]
        if percent
        else None
    )
    target = [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 70}}}]
    return {
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "demo-app", "namespace": namespace},
        "spec": {"minReplicas": 1, "maxReplicas": 5, "metrics": target},
        "status": {
            "currentReplicas": 2, "desiredReplicas": 3, "currentMetrics": metrics,
            "conditions": [{"type": "ScalingActive", "status": "True" if percent else "False", "message": "no metrics yet"}],
        },
    }  # fmt: skip


def taken(**more: Any) -> Snapshot:
    """Return a healthy lab with the environments dev and staging, unless told otherwise."""
    things: dict[str, Any] = {
        "nodes": (node(),),
        "sources": (flux("GitRepository", "dev-environment", artifact={"revision": f"main@sha1:{COMMIT}"}),),
        "kustomizations": tuple(
            flux("Kustomization", n, lastAppliedRevision=f"main@sha1:{COMMIT}") for n in ("dev", "staging")
        ),
        "pods": (pod("staging", "b"), pod("dev", "a"), pod("kube-system", "not-shown")),
        "autoscalers": (hpa("staging"), hpa("dev")),
    }
    return Snapshot(taken_at=datetime.now(UTC), **things | more)


def of(snapshot: Snapshot, *results: EndpointResult) -> status.Status:
    return status.from_snapshot("kind-lab", snapshot, ["dev", "staging"], results or (OK,))


def test_a_healthy_lab_is_shown_as_it_is() -> None:
    found = of(taken())
    assert status.unhealthy(found) == []
    assert found.nodes == (status.NodeRow("lab-worker", "worker", "zone-a", True, "True", "v1.37.0"),)
    assert [(f.kind, f.name, f.revision, f.ready) for f in found.flux][:2] == [
        ("GitRepository", "dev-environment", "main@0123456789", "True"),
        ("Kustomization", "dev", "main@0123456789", "True"),
    ]
    assert found.pods == (
        status.PodRow("dev", "a", True, "1/1", "Running", 2, "lab-worker", "3f2a"),
        status.PodRow("staging", "b", True, "1/1", "Running", 2, "lab-worker", "3f2a"),
    )
    assert found.autoscalers[0] == status.AutoscalerRow("dev", "demo-app", True, 2, 3, 1, 5, 40, 70)


UNHEALTHY = [
    ("node", taken(nodes=(node(status="False", message="kubelet is down"),)), ["node lab-worker: not Ready: kubelet is down"]),
    ("build", taken(kustomizations=(flux("Kustomization", "dev", NOT_READY), flux("Kustomization", "staging"))), ["Kustomization dev: kustomize build failed: bad"]),
    ("pod", taken(pods=(pod("dev", "a", ready=False), pod("staging", "b"))), ["pod dev/a: image (none) can't be pulled: ErrImagePull"]),
    ("pod elsewhere", taken(pods=(pod("dev", "a"), pod("staging", "b"), pod("edge", "c", ready=False))), ["pod edge/c: image (none) can't be pulled: ErrImagePull"]),
    ("autoscaler", taken(autoscalers=(hpa("dev", None), hpa("staging"))), ["HPA dev/demo-app: no metrics yet"]),
    ("no pods", taken(pods=(pod("dev", "a"),)), ["environment staging: there are no pods"]),
    ("no kustomization", taken(kustomizations=(flux("Kustomization", "dev"),)), ["environment staging: there is no Kustomization staging yet"]),
    ("nothing", Snapshot(taken_at=datetime.now(UTC)), ["There are no Kustomizations in flux-system: setup has not come that far (make setup-all)"]),
]  # fmt: skip


@pytest.mark.parametrize(("snapshot", "lines"), [case[1:] for case in UNHEALTHY], ids=[case[0] for case in UNHEALTHY])
def test_what_is_not_healthy_is_told_once(snapshot: Snapshot, lines: list[str]) -> None:
    assert status.unhealthy(of(snapshot)) == lines


def test_a_failing_endpoint_is_not_healthy() -> None:
    assert status.unhealthy(of(taken(), OK, REFUSED)) == ["endpoint dev/work: HTTP 503: no healthy upstream"]


def test_what_could_not_be_read_is_a_note_not_a_fault() -> None:
    found = of(taken(nodes=(), unread=("Node objects can't be read: Forbidden",)))
    assert status.unhealthy(found) == []
    assert found.notes == ("Node objects can't be read: Forbidden",)


def test_the_table_begins_with_what_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    status.show(of(taken(pods=(pod("dev", "a"), pod("staging", "b", ready=False))), OK, REFUSED))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "✘ kind-lab: 2 things are not healthy"
    assert lines[1] == "  pod staging/b: image (none) can't be pulled: ErrImagePull"
    assert lines[2] == "  endpoint dev/work: HTTP 503: no healthy upstream"
    first_pod = lines[lines.index("Pods") + 2].split()
    assert first_pod == ["✘", "staging", "b", "0/1", "ErrImagePull", "2", "lab-worker", "3f2a"]
    scaler = lines[lines.index("Autoscalers") + 2].split()
    assert scaler == ["✔", "dev", "demo-app", "2", "3", "1-5", "40", "%", "70", "%"]


def test_the_table_of_a_healthy_lab_says_so_first(capsys: pytest.CaptureFixture[str]) -> None:
    status.show(of(taken()))
    assert capsys.readouterr().out.splitlines()[0] == "✔ kind-lab: all is healthy"


def test_json_holds_all_rows_and_the_verdict() -> None:
    found = json.loads(status.as_json(of(taken(), REFUSED)))
    assert found["healthy"] is False
    assert found["unhealthy"] == ["endpoint dev/work: HTTP 503: no healthy upstream"]
    assert found["endpoints"][0]["status"] == 503
    assert {len(found[k]) for k in ("nodes", "flux", "pods", "autoscalers")} == {1, 3, 2}


@pytest.mark.parametrize(
    ("image", "tag"),
    [
        ("registry.lab/demo-app:3f2a", "3f2a"),
        ("localhost:5001/demo-app", "latest"),
        ("localhost:5001/demo-app:v1@sha256:" + "ab" * 32, "v1"),
        ("demo-app@sha256:" + "ab" * 32, "abababababab"),
        ("", "latest"),
    ],
)
def test_an_images_tag_is_found_beside_ports_and_digests(image: str, tag: str) -> None:
    assert status.image_tag(image) == tag


@pytest.mark.parametrize(
    ("revision", "short"),
    [(f"main@sha1:{COMMIT}", "main@0123456789"), (f"env/staging@sha1:{COMMIT}", "env/staging@0123456789"), (f"sha1:{COMMIT}", "0123456789"), ("", "-")],
)  # fmt: skip
def test_a_revision_is_shortened_to_what_people_compare(revision: str, short: str) -> None:
    assert status.short_revision(revision) == short


# --- the exit code, and a cluster that doesn't answer


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(Kube, "get_text", lambda *a, **k: "{}")
    monkeypatch.setattr(status, "collect", lambda kube: taken())
    monkeypatch.setattr(status, "environments", lambda: ["dev", "staging"])
    monkeypatch.setattr(endpoints, "check_all", lambda settings, kube: [OK])
    return Settings(cluster_name="lab", cache_dir=tmp_path, state_root=tmp_path)


def test_the_exit_code_is_0_only_when_all_is_healthy(lab: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status.main(lab, "table") == 0
    assert status.main(lab, "json") == 0
    monkeypatch.setattr(endpoints, "check_all", lambda settings, kube: [OK, REFUSED])
    assert status.main(lab, "table") == 1
    assert status.main(lab, "json") == 1


def test_an_unknown_output_is_refused(lab: Settings) -> None:
    with pytest.raises(UsageError, match="OUTPUT=yaml"):
        status.main(lab, "yaml")


DOWN = UnreachableError("The cluster of context kind-lab can't be reached (refused).", "…")
ENGINES = [
    (None, {}, "The container engine doesn't answer"),
    ({"ServerVersion": "29"}, {}, "There is no cluster lab"),
    ({"ServerVersion": "29"}, {"lab-control-plane": "exited", "lab-worker": "running"}, "do not run: lab-control-plane (exited)."),
    ({"ServerVersion": "29"}, {"lab-control-plane": "running"}, "the API server is at fault"),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "nodes", "what"), ENGINES)
def test_a_cluster_that_does_not_answer_is_told_with_its_cause(
    lab: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: dict[str, str] | None,
    nodes: dict[str, str],
    what: str,
) -> None:
    def down(*args: object, **query: object) -> str:
        raise DOWN

    monkeypatch.setattr(Kube, "get_text", down)
    monkeypatch.setattr(status, "engine_info", lambda: engine)
    monkeypatch.setattr(status, "node_containers", lambda settings: list(nodes))
    monkeypatch.setattr(status, "container_state", lambda name: nodes[name])
    with pytest.raises(UnreachableError) as raised:
        status.main(lab, "table")
    assert what in raised.value.what
    assert "make " in raised.value.mend
    assert status.main(lab, "json") == 1
    assert what in json.loads(capsys.readouterr().out)["unhealthy"][0]
    assert status.why_unreachable(Settings(kube_context="theirs"), DOWN) is DOWN
