"""What a run changes and puts back, against a small API server: it keeps each manager's fields as the real one does."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes.client import ApiException

from scripts.errors import LabError, NotReadyError
from scripts.hpa import changes
from scripts.hpa.changes import COMPONENT, MANAGER, latency_changes, made, not_following, put_back
from scripts.settings import FLUX_CD, FLUX_NAMESPACE, HpaMetric, HpaSettings, Settings
from tests.unit.hpa_facts import cond, facts, hpa, latency_hpa

SYNC = f"/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/{FLUX_NAMESPACE}/kustomizations/staging"
APP = "/apis/apps/v1/namespaces/staging/deployments/demo-app"
SCALERS = "/apis/autoscaling/v2/namespaces/staging/horizontalpodautoscalers"
SCALED = "/apis/keda.sh/v1alpha1/namespaces/staging/scaledobjects"
LATENCY = HpaSettings(environment="staging", metric=HpaMetric.LATENCY)


class Cluster:
    """Objects by path; `follows` says what Flux and KEDA make of the environment's Flux Kustomization."""

    def __init__(self) -> None:
        self.specs: dict[str, dict[str, Any]] = {SYNC: {}, APP: {}}
        self.applied: list[tuple[str, dict[str, Any]]] = []
        self.slow = 0
        self.says_two = 0  # how many more looks show what the controller said while there were two autoscalers

    @property
    def follows_latency(self) -> bool:
        return bool(self.specs[SYNC])

    def apply(self, objects: list[dict[str, Any]], manager: str) -> None:
        for thing in objects:
            assert manager == MANAGER, "another manager's fields would be Flux's to undo, or ours to keep"
            path = SYNC if thing["kind"] == "Kustomization" else APP
            self.specs[path] = thing.get("spec", {})
            self.applied.append((thing["kind"], thing.get("spec", {})))

    def get(self, path: str, **_: Any) -> Any:
        if path in self.specs:
            managed = [{"manager": "kustomize-controller"}, *([{"manager": MANAGER}] if self.specs[path] else [])]
            status = {"observedGeneration": 1, "updatedReplicas": 2, "readyReplicas": 2, "replicas": 2 + self.slow}
            self.slow = max(0, self.slow - 1)
            return {
                "metadata": {"generation": 1, "managedFields": managed}, "spec": {"replicas": 2}, "status": status,
            }  # fmt: skip
        if path == SCALERS:
            self.says_two, before = max(0, self.says_two - 1), self.says_two
            own = hpa(AMBIGUOUS) if before else hpa()
            return {"items": [latency_hpa() if self.follows_latency else own]}
        if path == SCALED:
            raise ApiException(status=404)
        raise AssertionError(path)

    def list_custom(self, kind: str, namespace: str) -> list[dict[str, Any]]:
        status = {
            "conditions": [{"type": "Ready", "status": "False", "message": "kustomize build failed: no such folder"}]
        }
        return [{"metadata": {"name": "staging"}, "status": status}]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = Cluster()
    monkeypatch.setattr(
        changes.facts, "collect", lambda *_: facts(hpa=latency_hpa() if found.follows_latency else hpa())
    )
    return found


def test_cpu_without_failures_changes_nothing(cluster: Any) -> None:
    with made(cluster, HpaSettings(environment="staging"), (2, 5)):
        pass
    assert cluster.applied == []


def test_latency_is_followed_within_the_block_and_not_after_it(cluster: Any) -> None:
    with made(cluster, LATENCY, (2, 5)):
        assert cluster.follows_latency
        assert changes.left_over(cluster, "staging")
    assert not cluster.follows_latency
    assert not changes.left_over(cluster, "staging")
    assert [kind for kind, spec in cluster.applied if not spec] == ["Kustomization"], "the Deployment was not touched"


def test_it_is_as_before_once_the_autoscaler_no_longer_speaks_of_two(cluster: Any) -> None:
    cluster.says_two = 2
    with made(cluster, LATENCY, (2, 5)):
        assert cluster.says_two == 2
    assert cluster.says_two == 0, "a demo that follows would have been refused for it"


@pytest.mark.parametrize("error", [KeyboardInterrupt, LabError("broken", "mend it")], ids=["Ctrl-C", "an error"])
def test_whatever_ends_the_block_all_is_put_back(cluster: Any, error: Any) -> None:
    wanted = HpaSettings(environment="staging", metric=HpaMetric.LATENCY, fail_rate=0.05)
    cluster.slow = 2
    with pytest.raises(type(error) if isinstance(error, LabError) else error), made(cluster, wanted, (2, 5)):
        raise error
    assert cluster.specs == {SYNC: {}, APP: {}}
    assert {kind for kind, _ in cluster.applied} == {"Kustomization", "Deployment"}


def test_what_cannot_be_put_back_does_not_hide_why_the_run_ended(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(changes, "BACK_TIMEOUT_S", 0.0)
    monkeypatch.setattr(changes, "_own_missing", lambda *_: ["KEDA's autoscaler is still there"])
    with pytest.raises(ZeroDivisionError), made(cluster, LATENCY, (2, 5)):
        raise ZeroDivisionError
    assert "the next `make hpa-demo ENV=staging` does it" in capsys.readouterr().err


def test_failures_are_a_variable_of_the_container_and_go_with_it(cluster: Any) -> None:
    with made(cluster, HpaSettings(environment="staging", fail_rate=0.05), (2, 5)):
        (container,) = cluster.specs[APP]["template"]["spec"]["containers"]
        assert container == {"name": "app", "env": [{"name": "FAIL_RATE", "value": "0.05"}]}
        assert not cluster.follows_latency
    assert put_back(cluster, "staging") is False, "nothing is left to put back"


def test_a_flux_that_cannot_build_it_is_quoted(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "FOLLOW_TIMEOUT_S", 0.0)
    monkeypatch.setattr(changes.facts, "collect", lambda *_: facts())
    with pytest.raises(NotReadyError) as late, made(cluster, LATENCY, (2, 5)):
        raise AssertionError("the run began")
    assert "its own autoscaler is still there" in late.value.details
    assert "kustomize build failed: no such folder" in late.value.details
    assert not cluster.follows_latency


NO_DATA = cond("ScalingActive", "False", "FailedGetExternalMetric", "unable to get external metric")
AMBIGUOUS = cond("ScalingActive", "False", "AmbiguousSelector", "controlled by multiple HPAs")
SERVES = {"status": {"conditions": [cond("Available", "True")]}}
READY = {"status": {"conditions": [cond("Ready", "True")]}}
EMPTY = {"message": "target may be lost, the result is empty", "lastTimestamp": "2026-05-01T11:59:59Z"}
STILL: list[tuple[str, Any, str]] = [
    ("no autoscaler", None, "no autoscaler yet"),
    ("Flux has not come to it", facts(), "its own autoscaler is still there"),
    ("both for a moment", facts(hpa=latency_hpa(AMBIGUOUS)), "two autoscalers"),
    ("no data yet", facts(hpa=latency_hpa(NO_DATA, ms=None), api_service=SERVES, scaled_object=READY, trigger_events=(EMPTY,)), "Prometheus has no data of staging"),
]  # fmt: skip


@pytest.mark.parametrize(("known", "told"), [s[1:] for s in STILL], ids=[s[0] for s in STILL])
def test_what_passes_is_waited_for(known: Any, told: str) -> None:
    (line,) = not_following(known)
    assert told in line


def test_what_does_not_pass_ends_the_wait() -> None:
    assert not_following(facts(hpa=latency_hpa())) == []
    with pytest.raises(LabError, match="there is no KEDA"):
        not_following(facts(hpa=latency_hpa(NO_DATA, ms=None)))


def test_the_component_is_where_an_environments_overlay_looks_for_it() -> None:
    overlay = FLUX_CD / "applications" / "mock-cluster-aka-namespaces" / "staging"
    assert (overlay / COMPONENT / "kustomization.yaml").is_file()
    made_of = latency_changes("staging", (2, 5))["spec"]
    assert made_of["components"] == [COMPONENT]
    values = json.loads(made_of["patches"][1]["patch"])
    assert [(v["path"], v["value"]) for v in values] == [("/spec/minReplicaCount", 2), ("/spec/maxReplicaCount", 5)]


@pytest.mark.parametrize(("commit", "has"), [("", False), ("abc", False), ("abc", True)])
def test_an_environment_whose_branch_lacks_the_component_is_refused(
    monkeypatch: pytest.MonkeyPatch, commit: str, has: bool
) -> None:
    monkeypatch.setattr(changes, "remote_branches", lambda _: {"env/staging": commit} if commit else {})
    monkeypatch.setattr(changes, "ensure_known", lambda *_: None)
    done: Callable[..., Any] = lambda *_, **__: type("Done", (), {"exit_code": 0 if has else 1})  # noqa: E731
    monkeypatch.setattr(changes, "git", done)
    if has:
        changes.require_component(Settings(), "staging")
        return
    with pytest.raises(LabError) as refused:
        changes.require_component(Settings(), "staging")
    assert "The branch env/staging, which staging follows, has no" in refused.value.what
    assert "git push lab main:env/staging" in refused.value.mend
