"""The dry run on a real API server: one is kept for this module, each case is a small tree of its own."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import settings, versions
from scripts.cache import write_atomically
from scripts.check import apiserver
from scripts.check.apiserver import find_binaries, find_warm, kept_warm, running
from scripts.check.dryrun import dry_run
from scripts.check.dryrun_api import Api
from scripts.check.lint_removed import REMOVALS
from scripts.check.model import Finding, Place, Rendered, Resource, Severity, Stage
from scripts.check.runner import ExtraStage, check
from scripts.settings import Settings
from tests.manifests.checking import HEAD, options, write
from tests.manifests.conftest import Tree
from tests.manifests.paths import ROOTS

Object = dict[str, Any]
Judge = Callable[..., list[Finding]]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The user's tools, and a state folder that no other run shares."""
    real = settings.load()
    return Settings(cache_dir=real.cache_dir, state_root=tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def judge(chosen: Settings) -> Iterator[Judge]:
    assert find_binaries(chosen.tools_dir), "kube-apiserver and etcd are not there: `make setup-all` brings them"
    with kept_warm(chosen):

        def run(
            *objects: Object, before: Sequence[Object] = (), namespaces: Sequence[Object] = NAMESPACES
        ) -> list[Finding]:
            return dry_run([rendered([*namespaces, *objects])], chosen, versions.load(), [rendered(before)])

        yield run


def rendered(objects: Sequence[Object], kustomization: str = "apps/shop") -> Rendered:
    resources = tuple(Resource(o, Place(f"{o['kind'].lower()}.yaml", 3)) for o in objects)
    return Rendered(kustomization, resources, "")


def parse(text: str) -> list[Object]:
    return [d for d in yaml.load_all(text, yaml.CSafeLoader) if d]


# A namespace that takes every pod, and one that takes only restricted ones: the same in most runs, which is quick.
NAMESPACES = parse("""
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: strict, labels: {pod-security.kubernetes.io/enforce: restricted}}}
""")
(DEPLOYMENT,) = parse("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: web
        image: web:1
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
""")
DEFINITION, WIDGET = parse("""
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.shop.example}
spec:
  group: shop.example
  names: {kind: Widget, plural: widgets}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            x-kubernetes-validations:
            - {rule: self.least <= self.most, message: least is at most most}
            properties: {least: {type: integer}, most: {type: integer}}
---
apiVersion: shop.example/v1
kind: Widget
metadata: {name: w, namespace: shop}
spec: {least: 1, most: 2}
""")
(QUOTA,) = parse("""
apiVersion: v1
kind: ResourceQuota
metadata: {name: room, namespace: shop}
spec: {hard: {pods: "3", requests.memory: 100Mi}}
""")


def changed(thing: Object, path: str, value: Any) -> Object:
    result = copy.deepcopy(thing)
    *parents, last = path.split("/")
    place: Any = result
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[last] = value
    return result


def strict(thing: Object) -> Object:
    return changed(thing, "metadata/namespace", "strict")


def workload(kind: str) -> Object:
    """Return the Deployment's pod as another kind of workload makes it."""
    template = copy.deepcopy(DEPLOYMENT["spec"]["template"])
    spec: Object = {"selector": DEPLOYMENT["spec"]["selector"], "template": template}
    if kind in ("Job", "CronJob"):
        template["spec"]["restartPolicy"] = "Never"
        spec = {"template": template}
    if kind == "CronJob":
        spec = {"schedule": "0 * * * *", "jobTemplate": {"spec": spec}}
    if kind == "StatefulSet":
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        spec["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": claim}]
        template["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    version = "batch/v1" if kind in ("Job", "CronJob") else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "web", "namespace": "shop"}, "spec": spec}


CONTAINER = "spec/template/spec/containers/0"
# What is rendered; what is then said, as rule and words of the message, of an object of which kind.
CASES: dict[str, tuple[list[Object], str, str, str]] = {
    "a CEL rule of a definition": (
        [DEFINITION, changed(WIDGET, "spec/least", 3)], "invalid", "least is at most most", "Widget",
    ),
    "an unknown field": ([changed(DEPLOYMENT, "spec/replcas", 3)], "unknown-field", ".spec.replcas", "Deployment"),
    "an unknown field of a custom kind": (
        [DEFINITION, changed(WIDGET, "spec/lest", 3)], "unknown-field", "lest", "Widget",
    ),
    "a wrong type": ([changed(DEPLOYMENT, "spec/replicas", "three")], "refused", "expected numeric", "Deployment"),
    "a value out of range": ([changed(DEPLOYMENT, "spec/replicas", -1)], "invalid", "spec.replicas: ", "Deployment"),
    "a selector that its own pods don't fit": (
        [changed(DEPLOYMENT, "spec/selector/matchLabels", {"app": "wbe"})], "invalid", "does not match template", "Deployment",
    ),
    "a port twice": (
        [changed(DEPLOYMENT, f"{CONTAINER}/env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}])],
        "refused", "duplicate entries for key", "Deployment",
    ),
    "Pod Security": (
        [strict(changed(DEPLOYMENT, f"{CONTAINER}/securityContext", {"privileged": True}))],
        "pod-security", "its pods are refused: ", "Deployment",
    ),
    "a quota that one pod is too large for": (
        [QUOTA, changed(DEPLOYMENT, f"{CONTAINER}/resources", {"requests": {"memory": "200Mi"}})],
        "quota", "exceeded quota: room", "Deployment",
    ),
    "a quota and a pod that says nothing": ([QUOTA, DEPLOYMENT], "quota", "must specify requests.memory", "Deployment"),
    "a definition that isn't structural": (
        [changed(DEFINITION, "spec/versions/0/schema/openAPIV3Schema/properties/spec/type", None)],
        "invalid", "Required value: must not be empty for specified object fields", "CustomResourceDefinition",
    ),
    "a rule in CEL that doesn't compile": (
        [changed(DEFINITION, "spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations",
                 [{"rule": "self.leest > 1"}])],
        "invalid", "undefined field 'leest'", "CustomResourceDefinition",
    ),
    "a name that can't be one": (
        [changed(DEPLOYMENT, "metadata/name", "my web")], "invalid", "metadata.name: ", "Deployment",
    ),
    "a version that is no longer served": (
        [{"apiVersion": "batch/v1beta1", "kind": "CronJob", "metadata": {"name": "c", "namespace": "default"}}],
        "unknown-kind", "knows no CronJob in batch/v1beta1", "CronJob",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_api_servers_refusal_is_a_finding(case: tuple[list[Object], str, str, str], judge: Judge) -> None:
    objects, rule, words, kind = case
    errors = [f for f in judge(*objects) if f.severity is Severity.ERROR]
    assert {(f.rule, f.subject.split()[0]) for f in errors} == {(rule, kind)}
    assert words in errors[0].message
    assert errors[0].place == Place(f"{kind.lower()}.yaml", 3)
    assert errors[0].kustomization == "apps/shop"
    assert errors[0].mend


def test_a_refused_field_is_named_by_its_own_line(judge: Judge, chosen: Settings, tmp_path: Path) -> None:
    deployment = yaml.dump(DEPLOYMENT, sort_keys=False)
    files = {
        "kustomization.yaml": HEAD + "resources: [namespace.yaml, web.yaml]\npatches:\n- path: replicas.yaml\n",
        "namespace.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
        "web.yaml": "# a comment\n"
        + deployment.replace("image: web:1", "image: web:1\n        ports:\n        - containerPort: 70000"),
        "replicas.yaml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec:\n  replicas: -1\n",
    }
    root = write(tmp_path / "tree", files)
    stage = ExtraStage(Stage.DRY_RUN, lambda found, _: dry_run(found, chosen, versions.load()))
    for comment in ("", "# one more line\n"):
        # The objects are the same as before, their lines are not.
        (root / "web.yaml").write_text(comment + files["web.yaml"])
        report = check(options(root, tmp_path / "cache", stages=(Stage.DRY_RUN,), extra=(stage,))).report
        port = 1 + next(n for n, line in enumerate((root / "web.yaml").read_text().splitlines()) if "70000" in line)
        assert {str(f.place) for f in report.findings} == {"replicas.yaml:5", f"web.yaml:{port}"}


def test_what_is_well_is_not_refused(judge: Judge) -> None:
    small = changed(DEPLOYMENT, f"{CONTAINER}/resources", {"requests": {"memory": "50Mi"}})
    assert judge(DEFINITION, WIDGET, QUOTA, small, strict(DEPLOYMENT)) == []


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"])
def test_every_kind_of_workload_is_judged_by_its_pod(kind: str, judge: Judge) -> None:
    assert judge(strict(workload(kind))) == []
    path = "jobTemplate/spec/" if kind == "CronJob" else ""
    bad = changed(workload(kind), f"spec/{path}template/spec/hostNetwork", True)
    (found,) = judge(strict(bad))
    assert (found.rule, found.subject) == ("pod-security", f"{kind} strict/web")
    assert "host namespaces" in found.message


def test_nothing_is_left_from_one_run_to_the_next(judge: Judge) -> None:
    large = changed(DEPLOYMENT, f"{CONTAINER}/resources", {"requests": {"memory": "200Mi"}})
    assert [f.rule for f in judge(QUOTA, large)] == ["quota"]
    # Without the quota it fits, without the namespace it has none, without the definition the kind is unknown.
    assert judge(large) == []
    assert [(f.rule, f.severity) for f in judge(large, namespaces=[])] == [("not-in-tree", Severity.WARNING)]
    assert judge(DEFINITION, WIDGET) == []
    assert [(f.rule, f.severity) for f in judge(WIDGET)] == [("unknown-kind", Severity.WARNING)]


def test_a_namespaces_level_is_that_of_this_run(judge: Judge) -> None:
    bad = changed(DEPLOYMENT, f"{CONTAINER}/securityContext", {"privileged": True})
    shop, restricted = NAMESPACES
    closed = changed(shop, "metadata/labels", restricted["metadata"]["labels"])
    for _ in range(2):
        assert [f.rule for f in judge(bad, namespaces=[closed])] == ["pod-security"]
        assert judge(bad) == []


def test_a_definition_that_can_not_be_changed_into_the_other_is_made_anew(judge: Judge) -> None:
    cluster_wide = changed(changed(DEFINITION, "spec/scope", "Cluster"), "spec/versions/0/name", "v2")
    alone = {**WIDGET, "apiVersion": "shop.example/v2", "metadata": {"name": "w"}}
    for _ in range(2):
        assert judge(DEFINITION, WIDGET) == []
        assert judge(cluster_wide, alone) == []


def test_what_is_there_already_can_not_be_changed_where_it_is_immutable(judge: Judge) -> None:
    other = changed(
        changed(DEPLOYMENT, "spec/selector/matchLabels", {"app": "web2"}),
        "spec/template/metadata/labels",
        {"app": "web2"},
    )
    (found,) = judge(other, before=[DEPLOYMENT])
    assert (found.rule, found.subject) == ("immutable-field", "Deployment shop/web")
    assert judge(other) == []
    forced = changed(other, "metadata/annotations", {"kustomize.toolkit.fluxcd.io/force": "enabled"})
    assert judge(forced, before=[DEPLOYMENT]) == []


def test_stand_ins_for_what_others_make_are_named(judge: Judge) -> None:
    odd = changed(DEPLOYMENT, "spec/template/spec/priorityClassName", "high")
    odd = changed(odd, "spec/template/spec/serviceAccountName", "web")
    odd = changed(odd, "spec/template/spec/runtimeClassName", "gvisor")
    found = judge(odd)
    assert {f.rule for f in found} == {"not-in-tree"}
    assert {f.severity for f in found} == {Severity.WARNING}
    assert sorted(f.message.split(" is not")[0] for f in found) == [
        "PriorityClass high", "RuntimeClass gvisor", "ServiceAccount web",
    ]  # fmt: skip


def test_an_encrypted_secret_and_an_address_of_the_cluster_are_not_held_against_anybody(judge: Judge) -> None:
    secret = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "shop"},
        "data": {"password": "ENC[AES256_GCM,data:abc,iv:x,tag:y,type:str]"}, "sops": {"mac": "x"},
    }  # fmt: skip
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "shop"},
        "spec": {"clusterIP": "10.43.0.10", "ports": [{"port": 53}]},
    }  # fmt: skip
    assert judge(secret, service) == []


# ---------------------------------------------------------------- this tree


@pytest.fixture(scope="module")
def whole_tree(render: Callable[[Path], Tree]) -> list[Rendered]:
    return [rendered(render(folder).objects, folder.name) for folder in ROOTS]


def test_the_good_tree_has_no_finding(judge: Judge, chosen: Settings, whole_tree: list[Rendered]) -> None:
    assert dry_run(whole_tree, chosen, versions.load()) == []


def test_the_trees_own_policy_refuses_a_foreign_host_name(
    judge: Judge, chosen: Settings, whole_tree: list[Rendered], render: Callable[[Path], Tree]
) -> None:
    def taken(r: Rendered) -> Rendered:
        resources = [
            Resource(changed(dict(x.data), "spec/hostnames", ["production.localhost"]), x.place)
            if x.kind == "HTTPRoute" and x.namespace == "dev" else x
            for x in r.resources
        ]  # fmt: skip
        return Rendered(r.kustomization, tuple(resources), "")

    (found,) = dry_run([taken(r) for r in whole_tree], chosen, versions.load())
    assert (found.rule, found.subject, found.kustomization) == ("admission-policy", "HTTPRoute dev/demo-app", "dev")
    assert "the host name of a route in namespace dev is dev.localhost" in found.message


# ---------------------------------------------------------------- the server


def test_the_table_of_deprecated_versions_is_what_the_server_says(judge: Judge, chosen: Settings) -> None:
    """Every served version is asked for: what it says of itself has to be in the table, and nothing removed is served."""
    pinned = tuple(int(n) for n in versions.load().kubernetes.lstrip("v").split(".")[:2])
    binaries = find_binaries(chosen.tools_dir)
    assert binaries
    server = find_warm(chosen, binaries)
    assert server
    api = Api(server)
    served = api.kinds()
    wrong = []
    for (api_version, kind), how in served.items():
        answer = api.request("GET", how.path("default"), limit="1")
        deprecated = [w for w in answer.warnings if f"{api_version} {kind} is deprecated" in w]
        known = REMOVALS.get((api_version, kind))
        for warning in deprecated:
            expected = f"deprecated in v{known.deprecated[0]}.{known.deprecated[1]}+" if known else "no entry"
            until = f"unavailable in v{known.removed[0]}.{known.removed[1]}+" if known and known.removed else ""
            if expected not in warning or until not in warning:
                wrong.append(warning)
        if known and known.removed and known.removed <= pinned:
            wrong.append(f"{api_version} {kind} is served")
    assert wrong == []
    assert len(served) > 50


@pytest.fixture
def near() -> Iterator[Path]:
    """Return a folder with a short path: a Unix socket's may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        yield Path(folder)


def test_only_its_owner_gets_in_and_nothing_is_left_behind(chosen: Settings, near: Path, monkeypatch: Any) -> None:
    import urllib.error
    import urllib.request

    binaries = find_binaries(chosen.tools_dir)
    assert binaries
    monkeypatch.setattr(apiserver.tempfile, "gettempdir", lambda: str(near))
    monkeypatch.setattr(apiserver.tempfile, "tempdir", str(near))
    dead = near / "gitops-lab-dry-run-00000000"
    dead.mkdir()
    (dead / "alive.lock").touch()
    with running(binaries) as server:
        assert not dead.exists()
        folder = server.folder
        assert (folder.stat().st_mode & 0o777, (folder / "tokens.csv").stat().st_mode & 0o777) == (0o700, 0o600)
        context = apiserver.ssl.create_default_context(cafile=str(server.ca))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{server.url}/api", context=context, timeout=10)
        assert server.problem() == ""
    assert not folder.exists()
    assert "does not answer" in server.problem() or "certificate" in server.problem()


def test_a_warm_server_that_is_gone_or_of_another_version_is_not_used(chosen: Settings, tmp_path: Path) -> None:
    own = Settings(cache_dir=chosen.cache_dir, state_root=tmp_path)
    binaries = find_binaries(own.tools_dir)
    assert binaries
    assert find_warm(own, binaries) is None
    state = tmp_path / "dry-run-server.json"
    for text in ("", "[]", "{}", json.dumps({"port": 1, "folder": "/nowhere", "identity": binaries.identity})):
        write_atomically(state, text)
        assert find_warm(own, binaries) is None
