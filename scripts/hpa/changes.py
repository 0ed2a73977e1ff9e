"""What a run changes in an environment for its time, and how it is put back.

Git is not touched, and Flux is not suspended. Each change is applied server-side under a field manager of the run's own,
to fields that nobody else sets: kustomize-controller applies what Git has to the same objects, finds no field of its own
changed, and leaves these alone, at each push and every ten minutes. When the manager applies the objects again without
the fields, they are gone. What a killed run left carries the manager's name, so the next run finds it and puts it back.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from scripts import console
from scripts.errors import LabError
from scripts.git import ensure_known, environment_branch, git, remote_branches
from scripts.hpa import facts, reasons
from scripts.hpa.autoscaler import AMBIGUOUS, NAMES, metric_of
from scripts.hpa.facts import Facts
from scripts.hpa.reasons import LATENCY_SCALING, Kind
from scripts.kube import Kube, Object, condition
from scripts.settings import APP_NAME, FLUX_NAMESPACE, HpaMetric, HpaSettings, Settings
from scripts.waiting import wait_for

MANAGER = "gitops-lab-hpa-demo"
# As the environment's overlay sees it.
COMPONENT = f"../../_components/{LATENCY_SCALING.rpartition('/')[2]}"
FOLLOW_TIMEOUT_S = 120
BACK_TIMEOUT_S = 120
ROLLOUT_TIMEOUT_S = 180
# Another one takes a moment to go; a metric takes two scrapes.
PASSING = (Kind.NOT_SEEN, Kind.TWO_AUTOSCALERS, Kind.SCALED_OBJECT, Kind.NO_LATENCY, Kind.NO_METRICS)


def require_component(settings: Settings, environment: str) -> None:
    """Refuse an environment whose branch has no latency scaling yet: Flux could build nothing of it."""
    branch = environment_branch(environment)
    commit = remote_branches(settings).get(branch, "")
    if commit:
        ensure_known(settings, {branch: commit})
    if not commit or git("cat-file", "-e", f"{commit}:{LATENCY_SCALING}", check=False).exit_code != 0:
        raise LabError(
            f"The branch {branch}, which {environment} follows, has no {LATENCY_SCALING} yet.",
            f"make push, then move {branch} to a commit that has it (git push {settings.git_remote} main:{branch})",
        )


@contextlib.contextmanager
def made(kube: Kube, wanted: HpaSettings, bounds: tuple[int, int]) -> Iterator[None]:
    """Change what a run asks for, and put it back whatever happens in the block."""
    environment = wanted.environment
    if wanted.metric is HpaMetric.CPU and not wanted.fail_rate:
        yield
        return
    try:
        if wanted.fail_rate:
            _fail(kube, environment, wanted.fail_rate)
        if wanted.metric is HpaMetric.LATENCY:
            _follow_latency(kube, environment, bounds)
        yield
    finally:
        _put_back_and_say(kube, environment)


def _put_back_and_say(kube: Kube, environment: str) -> None:
    """Put back, and never hide what ended the block behind a failure to do so."""
    try:
        put_back(kube, environment)
    except LabError as error:
        console.warn(
            f"not everything could be put back ({error.what}); the next `make hpa-demo ENV={environment}` does it"
        )


def put_back(kube: Kube, environment: str) -> bool:
    """Take back what a run, this one or a killed one, has changed, wait until it is so, and return whether there was anything."""
    changed = [thing for thing in _objects(environment) if _is_ours(kube, thing)]
    if not changed:
        return False
    console.line(f"putting {environment} back as Git has it")
    kube.apply(changed, MANAGER)
    with console.Board() as board, board.task(f"{environment} as before"):
        if any(thing["kind"] == "Deployment" for thing in changed):
            _wait_for_rollout(kube, environment)
        wait_for(
            f"{environment} has its own autoscaler", lambda: _own_missing(kube, environment), timeout_s=BACK_TIMEOUT_S,
            interval_s=0.5, mend="make reconcile",
        )  # fmt: skip
    return True


def left_over(kube: Kube, environment: str) -> bool:
    """Whether a run that was killed left something changed (or one is under way)."""
    return any(_is_ours(kube, thing) for thing in _objects(environment))


def _objects(environment: str) -> list[Object]:
    """Return the objects that runs change, with nothing in them."""
    return [
        {
            "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
            "kind": "Kustomization",
            "metadata": {"name": environment, "namespace": FLUX_NAMESPACE},
        },
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": APP_NAME, "namespace": environment}},
    ]


def _is_ours(kube: Kube, thing: Object) -> bool:
    from kubernetes.client import ApiException

    group, plural = thing["apiVersion"], f"{thing['kind'].lower()}s"
    where = thing["metadata"]
    try:
        found = kube.get(f"/apis/{group}/namespaces/{where['namespace']}/{plural}/{where['name']}")
    except ApiException as error:
        if error.status != 404:
            raise
        return False
    return any(entry.get("manager") == MANAGER for entry in found["metadata"].get("managedFields") or ())


def latency_changes(environment: str, bounds: tuple[int, int]) -> Object:
    """Return the environment's Flux Kustomization with latency scaling in the place of its own autoscaler.

    The component brings the ScaledObject; the patches come after the overlay's own, one of which is about the autoscaler.
    """
    lowest, highest = bounds
    (kustomization, _) = _objects(environment)
    values = [
        {"op": "replace", "path": "/spec/minReplicaCount", "value": lowest},
        {"op": "replace", "path": "/spec/maxReplicaCount", "value": highest},
    ]
    away = "$patch: delete\nkind: all\nmetadata:\n  name: all\n"
    kustomization["spec"] = {
        "components": [COMPONENT],
        "patches": [
            {"target": {"kind": "HorizontalPodAutoscaler", "name": APP_NAME}, "patch": away},
            {"target": {"kind": "ScaledObject", "name": APP_NAME}, "patch": json.dumps(values)},
        ],
    }
    return kustomization


def failing(environment: str, rate: float) -> Object:
    """Return the Deployment with a share of requests that fail; a variable of the container beats the ConfigMap's."""
    (_, deployment) = _objects(environment)
    env = [{"name": "FAIL_RATE", "value": f"{rate:g}"}]
    deployment["spec"] = {"template": {"spec": {"containers": [{"name": "app", "env": env}]}}}
    return deployment


def _fail(kube: Kube, environment: str, rate: float) -> None:
    console.line(f"{environment}'s pods are to fail {rate:.1%} of /work, on purpose: they roll")
    kube.apply([failing(environment, rate)], MANAGER)
    with console.Board() as board, board.task(f"{environment} rolls"):
        _wait_for_rollout(kube, environment)


def _wait_for_rollout(kube: Kube, environment: str) -> None:
    def pending() -> list[str]:
        found = kube.get(f"/apis/apps/v1/namespaces/{environment}/deployments/{APP_NAME}")
        status, wanted = found.get("status") or {}, found["spec"].get("replicas", 1)
        if (status.get("observedGeneration") or 0) < found["metadata"]["generation"]:
            return ["the Deployment's controller has not looked at it yet"]
        new, ready, all_pods = (status.get(k) or 0 for k in ("updatedReplicas", "readyReplicas", "replicas"))
        done = new >= wanted and ready >= wanted and all_pods <= wanted
        return [] if done else [f"{new} of {wanted} pods are new, {ready} ready, {all_pods} in all"]

    wait_for(f"{environment}'s pods are new", pending, timeout_s=ROLLOUT_TIMEOUT_S, interval_s=0.5, mend="make status")


def _follow_latency(kube: Kube, environment: str, bounds: tuple[int, int]) -> None:
    console.line(f"{environment} is to scale on the latency: {LATENCY_SCALING} goes into its Flux Kustomization")
    kube.apply([latency_changes(environment, bounds)], MANAGER)

    def pending() -> list[str]:
        return not_following(facts.collect(kube, environment))

    with console.Board() as board, board.task(f"{environment} scales on latency"):
        wait_for(
            f"{environment}'s autoscaler follows the latency", pending, timeout_s=FOLLOW_TIMEOUT_S, interval_s=0.5,
            mend="see what is still missing above; make hpa-status, while it is so",
            explain=lambda: flux_message(kube, environment),
        )  # fmt: skip


def not_following(known: Facts | None) -> list[str]:
    """Return why an environment's autoscaler does not follow the latency yet; raises LabError for what does not pass."""
    if known is None:
        return ["it has no autoscaler yet"]
    if metric_of(known.hpa) is not HpaMetric.LATENCY:
        return ["its own autoscaler is still there"]
    found = [r for r in reasons.explain(known) if r.is_fault or r.kind in PASSING]
    lasting = [r for r in found if r.kind not in PASSING]
    if lasting:
        raise LabError(
            f"The autoscaler can't follow the latency: {lasting[0].kind}: {lasting[0].what}", lasting[0].mend
        )
    return [str(r) for r in found]


def flux_message(kube: Kube, environment: str) -> str:
    """Return what Flux says of an environment, where it is not Ready."""
    for thing in kube.list_custom("Kustomization", FLUX_NAMESPACE):
        if thing["metadata"]["name"] == environment:
            told = [c for c in (thing.get("status") or {}).get("conditions") or [] if c["type"] == "Ready"]
            return "\n".join(
                f"Kustomization {environment}: {c.get('message', '')}" for c in told if c["status"] != "True"
            )
    return ""


def _own_missing(kube: Kube, environment: str) -> list[str]:
    from kubernetes.client import ApiException

    scalers = f"/apis/autoscaling/v2/namespaces/{environment}/horizontalpodautoscalers"
    there = {hpa["metadata"]["name"]: hpa for hpa in kube.get(scalers)["items"]}
    own = there.get(NAMES[HpaMetric.CPU])
    missing = [] if own else ["Flux has not brought its own autoscaler back yet"]
    if own and condition(own, "ScalingActive").get("reason") == AMBIGUOUS:
        missing.append("its own autoscaler has not looked again since KEDA's went")
    if NAMES[HpaMetric.LATENCY] in there:
        missing.append("KEDA's autoscaler is still there")
    try:
        left = kube.get(f"/apis/keda.sh/v1alpha1/namespaces/{environment}/scaledobjects")["items"]
    except ApiException as error:
        if error.status != 404:
            raise
        left = []
    return missing + ["its ScaledObject is still there" for _ in left[:1]]
