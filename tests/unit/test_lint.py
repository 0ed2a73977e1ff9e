"""Lint rules: a small world in which all is well, and one change per rule that breaks it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from scripts.check.lint import RULES, SILENCE, SILENCE_ALL, SILENCE_RULE, lint, rules_table
from scripts.check.model import Finding, Place, Rendered, Resource, Severity
from scripts.settings import ROOT

Object = dict[str, Any]
World = dict[str, Object]
KUBERNETES = "v1.37.0"

GOOD = """
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
automountServiceAccountToken: false
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop, labels: {app.kubernetes.io/name: web}}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: web}}
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1}}
  template:
    metadata: {labels: {app.kubernetes.io/name: web}}
    spec:
      serviceAccountName: web
      securityContext: {runAsNonRoot: true}
      volumes: [{name: tmp, emptyDir: {}}]
      containers:
      - name: web
        image: registry.example:5000/web:1.2.3
        ports: [{name: http, containerPort: 8080}]
        resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 128Mi}}
        readinessProbe: {httpGet: {path: /, port: http}}
        livenessProbe: {httpGet: {path: /, port: http}}
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities: {drop: [ALL]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {app.kubernetes.io/name: web}}
spec: {selector: {app.kubernetes.io/name: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web, namespace: shop}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, minReplicas: 2, maxReplicas: 4}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app.kubernetes.io/name: web}}, minAvailable: 1}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: web, namespace: shop}
spec: {hard: {pods: "5", requests.cpu: 500m, requests.memory: 320Mi, limits.memory: 640Mi}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec: {rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app.kubernetes.io/name: web}}, endpoints: [{port: http}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: web, namespace: shop}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
---
{apiVersion: v1, kind: Secret, metadata: {name: web, namespace: shop}, stringData: {password: "${PASSWORD}"}}
"""


_GOOD: World = {o["kind"]: o for o in yaml.load_all(GOOD, yaml.CSafeLoader)}


def good() -> World:
    return copy.deepcopy(_GOOD)


def rendered(objects: list[Object], kustomization: str = "apps/shop") -> Rendered:
    resources = tuple(Resource(o, Place(f"{o['kind'].lower()}.yaml", 1)) for o in objects)
    return Rendered(kustomization, resources, "")


def found_in(*trees: Rendered) -> list[Finding]:
    return lint(trees, KUBERNETES)


def put(path: str, value: Any) -> Callable[[Object], None]:
    """Return a change that sets what lies at a path, as in `spec/template/spec/containers/0/image`."""

    def change(thing: Any) -> None:
        *parents, last = path.split("/")
        for key in parents:
            thing = thing[int(key)] if isinstance(thing, list) else thing.setdefault(key, {})
        if value is None:
            del thing[last]
        else:
            thing[last] = value

    return change


CONTAINER = "spec/template/spec/containers/0"
POD = "spec/template/spec"


@dataclass(frozen=True)
class Case:
    rule: str
    kind: str
    path: str
    value: Any
    says: str
    # The kind whose object is found fault with, where it isn't the changed one; and whether it is a warning.
    blames: str = ""
    severity: Severity = Severity.ERROR


CASES = [
    Case("untagged-image", "Deployment", f"{CONTAINER}/image", "registry.example:5000/web", "neither tag nor digest"),
    Case("latest-tag", "Deployment", f"{CONTAINER}/image", "web:latest", "web:latest"),
    Case("unset-cpu-requirements", "Deployment", f"{CONTAINER}/resources/requests/cpu", None, "no CPU request"),
    Case("unset-memory-requirements", "Deployment", f"{CONTAINER}/resources/limits", None, "no memory limit"),
    Case("unset-memory-requirements", "Deployment", f"{CONTAINER}/resources", {"requests": {"cpu": 1}}, "request and"),
    Case("no-readiness-probe", "Deployment", f"{CONTAINER}/readinessProbe", None, "no readinessProbe"),
    Case("no-liveness-probe", "Deployment", f"{CONTAINER}/livenessProbe", None, "no livenessProbe"),
    Case("run-as-non-root", "Deployment", f"{POD}/securityContext", None, "may run as root"),
    Case("run-as-non-root", "Deployment", f"{CONTAINER}/securityContext/runAsUser", 0, "runs as user 0"),
    Case("run-as-non-root", "Deployment", f"{CONTAINER}/securityContext/runAsNonRoot", False, "may run as root"),
    Case("no-read-only-root-fs", "Deployment", f"{CONTAINER}/securityContext/readOnlyRootFilesystem", None, "writable"),
    Case("capabilities", "Deployment", f"{CONTAINER}/securityContext/capabilities", None, "doesn't drop ALL"),
    Case("capabilities", "Deployment", f"{CONTAINER}/securityContext/capabilities/add", ["SYS_ADMIN"], "SYS_ADMIN"),
    Case("privileged-container", "Deployment", f"{CONTAINER}/securityContext/privileged", True, "privileged"),
    Case(
        "privilege-escalation-container", "Deployment", f"{CONTAINER}/securityContext/allowPrivilegeEscalation", None,
        "is not false",
    ),
    Case("host-namespaces", "Deployment", f"{POD}/hostNetwork", True, "hostNetwork"),
    Case("host-namespaces", "Deployment", f"{POD}/hostPID", True, "hostPID"),
    Case("host-path", "Deployment", f"{POD}/volumes", [{"name": "v", "hostPath": {"path": "/etc"}}], "hostPath /etc"),
    Case("default-service-account", "Deployment", f"{POD}/serviceAccountName", None, "default service account"),
    Case("mounted-token", "ServiceAccount", "automountServiceAccountToken", None, "doesn't ask for it", "Deployment"),
    Case("mounted-token", "Deployment", f"{POD}/automountServiceAccountToken", True, "which no binding grants"),
    Case("dangling-service", "Service", "spec/selector", {"a": "b"}, "fits no pod in shop"),
    Case("service-target-port", "Service", "spec/ports", [{"name": "http", "port": 80, "targetPort": "web"}], "web"),
    Case("dangling-horizontalpodautoscaler", "HorizontalPodAutoscaler", "spec/scaleTargetRef/name", "wbe", "shop/wbe"),
    Case("hpa-replicas", "Deployment", "spec/replicas", 3, "fights with HorizontalPodAutoscaler shop/web"),
    Case("pdb-blocks-drains", "PodDisruptionBudget", "spec/minAvailable", 2, "2 of 2 replicas"),
    Case("pdb-blocks-drains", "PodDisruptionBudget", "spec/minAvailable", "51%", "2 of 2 replicas"),
    Case("pdb-blocks-drains", "HorizontalPodAutoscaler", "spec/minReplicas", 1, "1 of 1", "PodDisruptionBudget"),
    Case("dangling-poddisruptionbudget", "PodDisruptionBudget", "spec/selector/matchLabels", {"a": "b"}, "a=b"),
    Case("dangling-networkpolicy", "NetworkPolicy", "spec/podSelector", {"matchLabels": {"a": "b"}}, "a=b"),
    Case("no-default-deny", "NetworkPolicy", "spec/podSelector", {"matchLabels": {"a": "b"}}, "Ingress", "Namespace"),
    Case("no-default-deny", "NetworkPolicy", "spec/ingress", [{}], "no default deny for Ingress", "Namespace"),
    Case(
        "no-default-deny", "NetworkPolicy", "spec/policyTypes", ["Ingress"], "for Egress", "Namespace", Severity.WARNING
    ),
    Case("recommended-labels", "Deployment", "metadata/labels", {"app": "web"}, "on the object"),
    Case("plain-secret", "Secret", "stringData/password", "hunter2", "in plain text: password"),
    Case("plain-secret", "Secret", "data/key", "aHVudGVyMg==", "in plain text: key"),
    Case("wildcard-in-rules", "Role", "rules/0/verbs", ["*"], "verbs"),
    Case("quota-too-small", "ResourceQuota", "spec/hard/pods", 4, "takes 5, the quota allows 4"),
    Case("quota-too-small", "ResourceQuota", "spec/hard/requests.cpu", "400m", "takes 500m, the quota allows 400m"),
    Case("quota-too-small", "ResourceQuota", "spec/hard/limits.memory", "0.5Gi", "takes 640Mi, the quota allows 0.5Gi"),
    Case("quota-too-small", "HorizontalPodAutoscaler", "spec/maxReplicas", 5, "5 pods and 1 more", "ResourceQuota"),
    Case("dangling-ingress", "Ingress", "spec/defaultBackend", {"service": {"name": "wbe"}}, "shop/wbe is not there"),
    Case("dangling-ingress", "Ingress", "spec/defaultBackend", {"service": {"name": "web", "port": {"number": 8}}}, "8"),
    Case("dangling-route", "HTTPRoute", "spec/rules", [{"backendRefs": [{"name": "wbe", "port": 80}]}], "not there"),
    Case("dangling-route", "HTTPRoute", "spec/rules", [{"backendRefs": [{"name": "web", "port": 8080}]}], "port 8080"),
    Case("dangling-servicemonitor", "ServiceMonitor", "spec/selector/matchLabels", {"a": "b"}, "fits nothing in shop"),
    Case("dangling-servicemonitor", "ServiceMonitor", "spec/endpoints", [{"port": "metrics"}], "port metrics"),
    Case("non-existent-service-account", "Deployment", f"{POD}/serviceAccountName", "wbe", "shop/wbe is not there"),
    Case("deprecated-api", "PodDisruptionBudget", "apiVersion", "policy/v1beta1", "not served since Kubernetes 1.25"),
    Case(
        "deprecated-api", "Role", "apiVersion", "resource.k8s.io/v1alpha3", "goes in 1.39", severity=Severity.WARNING
    ),
]  # fmt: skip


def broken(case: Case) -> World:
    world = good()
    put(case.path, case.value)(world[case.kind])
    if case.value == "resource.k8s.io/v1alpha3":
        world[case.kind]["kind"] = "DeviceTaintRule"
    return world


def hits(case: Case, world: World) -> list[Finding]:
    return [f for f in found_in(rendered(list(world.values()))) if f.rule == case.rule]


def test_a_world_in_which_all_is_well_has_no_finding() -> None:
    assert found_in(rendered(list(good().values()))) == []


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.rule}: {c.path}")
def test_a_rule_finds_what_it_is_for(case: Case) -> None:
    found = hits(case, broken(case))
    assert {f.severity for f in found} == {case.severity}
    assert any(case.says in f.message for f in found)
    blamed = case.blames or broken(case)[case.kind]["kind"]
    assert found[0].subject.split()[0] == blamed
    assert found[0].place == Place(f"{blamed.lower()}.yaml", 1)
    assert found[0].kustomization == "apps/shop"
    assert found[0].mend


@pytest.mark.parametrize(
    ("annotations", "silent", "complains"),
    [
        ({SILENCE + "{rule}": "it has its reason"}, True, False),
        ({SILENCE_ALL: "it has its reason"}, True, False),
        ({SILENCE + "{rule}": ""}, False, True),
        ({SILENCE + "{rule}": "   "}, False, True),
        ({SILENCE_ALL: ""}, False, True),
        ({SILENCE + "another-rule": "it has its reason"}, False, False),
    ],
)
@pytest.mark.parametrize("case", {c.rule: c for c in CASES}.values(), ids=lambda c: c.rule)
def test_a_silence_needs_a_reason(case: Case, annotations: dict[str, str], silent: bool, complains: bool) -> None:
    world = broken(case)
    blamed = world[case.blames or case.kind]
    blamed["metadata"]["annotations"] = {k.replace("{rule}", case.rule): v for k, v in annotations.items()}
    found = found_in(rendered(list(world.values())))
    assert (case.rule not in {f.rule for f in found}) == silent
    assert (SILENCE_RULE in {f.rule for f in found}) == complains


def test_every_rule_has_a_case_and_a_name_of_its_own() -> None:
    ids = [r.id for r in RULES]
    assert len(set(ids)) == len(ids)
    # Two budgets are needed to overlap: that rule has a test of its own.
    assert set(ids) - {c.rule for c in CASES} == {"overlapping-poddisruptionbudgets"}


def test_the_table_in_the_documents_is_that_of_the_rules() -> None:
    assert rules_table() in (ROOT / "how-to-run.MD").read_text()


def changed(**changes: Callable[[Object], None]) -> list[Object]:
    world = good()
    for kind, change in changes.items():
        change(world[kind])
    return list(world.values())


GOOD_VARIANTS = {
    "a digest instead of a tag": changed(Deployment=put(f"{CONTAINER}/image", "web@sha256:" + "a" * 64)),
    "latest with a digest": changed(Deployment=put(f"{CONTAINER}/image", "web:latest@sha256:" + "a" * 64)),
    "a user instead of runAsNonRoot": changed(Deployment=put(f"{POD}/securityContext", {"runAsUser": 1000})),
    "requests from limits": changed(
        Deployment=put(f"{CONTAINER}/resources", {"limits": {"cpu": "100m", "memory": "64Mi"}})
    ),
    "resources of the pod": changed(
        Deployment=put(
            f"{POD}/resources", {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}}
        )
    ),
    "an allowed capability": changed(
        Deployment=put(f"{CONTAINER}/securityContext/capabilities/add", ["NET_BIND_SERVICE"])
    ),
    "maxUnavailable in percent is rounded up": changed(
        PodDisruptionBudget=put("spec", {"selector": {}, "maxUnavailable": "1%"})
    ),
    "no surge under Recreate": changed(
        Deployment=put("spec/strategy", {"type": "Recreate"}), ResourceQuota=put("spec/hard/pods", "4")
    ),
    "an address in a store of secrets": changed(Secret=put("stringData/password", "op://a shop/web/password")),
    "an encrypted secret": changed(Secret=put("stringData/password", "ENC[AES256_GCM,data:x]")),
    "a number as targetPort": changed(Service=put("spec/ports/0/targetPort", 9090)),
}


@pytest.mark.parametrize("objects", GOOD_VARIANTS.values(), ids=GOOD_VARIANTS.keys())
def test_what_is_well_in_another_way_is_left_alone(objects: list[Object]) -> None:
    assert found_in(rendered(objects)) == []


def test_a_limit_range_stands_in_for_what_a_container_does_not_say() -> None:
    world = good()
    put(f"{CONTAINER}/resources", None)(world["Deployment"])
    limits = {"type": "Container", "default": {"memory": "128Mi"}, "defaultRequest": {"cpu": "50m"}}
    put("spec/hard/requests.memory", "640Mi")(world["ResourceQuota"])
    world["LimitRange"] = {
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "d", "namespace": "shop"},
        "spec": {"limits": [limits]},
    }  # fmt: skip
    assert found_in(rendered(list(world.values()))) == []
    put("spec/hard/limits.memory", "639Mi")(world["ResourceQuota"])
    assert [f.rule for f in found_in(rendered(list(world.values())))] == ["quota-too-small"]


def test_two_budgets_for_one_pod_are_found_once() -> None:
    world = good()
    second = copy.deepcopy(world["PodDisruptionBudget"])
    second["metadata"]["name"] = "web-too"
    found = found_in(rendered([*world.values(), second]))
    assert [(f.rule, f.subject) for f in found] == [
        ("overlapping-poddisruptionbudgets", "PodDisruptionBudget shop/web")
    ]


def test_what_another_kustomization_of_the_tree_renders_is_there_too() -> None:
    world = good()
    first = [world.pop(k) for k in ("Service", "Deployment", "ServiceAccount", "Namespace")]
    assert found_in(rendered(first, "apps/base"), rendered(list(world.values()), "apps/policies")) == []
    assert found_in(rendered(list(world.values()), "apps/policies")) != []


def test_another_namespace_is_another_world() -> None:
    world = good()
    world["Service"]["metadata"]["namespace"] = "elsewhere"
    assert {"dangling-service", "dangling-ingress", "dangling-route", "dangling-servicemonitor"} == {
        f.rule for f in found_in(rendered(list(world.values())))
    }


def test_of_two_clusters_with_the_same_names_each_is_measured_by_its_own_sizes() -> None:
    small, large = good(), good()
    put("spec/maxReplicas", 40)(large["HorizontalPodAutoscaler"])
    put("spec/hard", {"pods": "41"})(large["ResourceQuota"])
    trees = rendered(list(small.values()), "staging"), rendered(list(large.values()), "production")
    assert found_in(*trees) == []
    assert found_in(*reversed(trees)) == []


def test_what_a_chart_may_make_is_missed_with_a_warning_only() -> None:
    world = good()
    world["Service"]["spec"]["selector"] = {"app.kubernetes.io/name": "chart"}
    chart = {
        "apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease", "spec": {"targetNamespace": "shop"},
        "metadata": {"name": "chart", "namespace": "flux-system"},
    }  # fmt: skip
    assert [f.severity for f in found_in(rendered(list(world.values())))] == [Severity.ERROR]
    (found,) = found_in(rendered([*world.values(), chart]))
    assert found.severity is Severity.WARNING
    assert "unless what can't be seen here makes it (HelmRelease flux-system/chart)" in found.message


@pytest.mark.parametrize("namespace", ["kube-system", "flux-system"])
def test_what_the_cluster_and_flux_bring_is_missed_with_a_warning_only(namespace: str) -> None:
    world = good()
    monitor = put("spec/namespaceSelector", {"matchNames": [namespace]})
    monitor(world["ServiceMonitor"])
    assert [(f.rule, f.severity) for f in found_in(rendered(list(world.values())))] == [
        ("dangling-servicemonitor", Severity.WARNING)
    ]


def test_a_token_with_a_binding_is_meant() -> None:
    world = good()
    put(f"{POD}/automountServiceAccountToken", True)(world["Deployment"])
    world["RoleBinding"] = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "web", "namespace": "shop"}, "subjects": [{"kind": "ServiceAccount", "name": "web"}],
        "roleRef": {"kind": "Role", "name": "web"},
    }  # fmt: skip
    assert found_in(rendered(list(world.values()))) == []


@pytest.mark.parametrize(("namespace", "folder"), [("dev", "apps/x"), ("shop", "clusters/dev/apps"), ("shop-dev", "x")])
def test_a_development_environment_may_have_its_secrets_in_the_open(namespace: str, folder: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": namespace}}
    opened = rendered([{**secret, "stringData": {"password": "hunter2"}}], folder)
    assert found_in(opened) == []
    assert [f.rule for f in found_in(rendered([{**secret, "stringData": {"a": "b"}, "metadata": {"name": "s"}}]))] == [
        "plain-secret"
    ]


@pytest.mark.parametrize("granted", [True, False])
def test_a_backend_in_another_namespace_takes_a_grant(granted: bool) -> None:
    world = good()
    route = world["HTTPRoute"]
    route["metadata"]["namespace"] = "edge"
    put("spec/rules", [{"backendRefs": [{"name": "web", "namespace": "shop", "port": 80}]}])(route)
    grant = {
        "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
        "metadata": {"name": "edge", "namespace": "shop" if granted else "elsewhere"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "edge"}],
            "to": [{"group": "", "kind": "Service"}],
        },
    }  # fmt: skip
    found = found_in(rendered([*world.values(), grant]))
    assert [f.rule for f in found] == ([] if granted else ["dangling-route"])


def test_a_version_is_deprecated_where_its_definition_says_so() -> None:
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "as.x.io"},
        "spec": {"group": "x.io", "names": {"kind": "A"}, "versions": [{"name": "v1beta1", "deprecated": True}]},
    }  # fmt: skip
    old = {"apiVersion": "x.io/v1beta1", "kind": "A", "metadata": {"name": "a"}}
    (found,) = found_in(rendered([definition, old]))
    assert (found.rule, found.severity) == ("deprecated-api", Severity.WARNING)


JUNK: list[Any] = [None, 7, True, "text", [], {}, [1, "a", None], {"a": None}, [[]], 1.5]


def test_no_shape_of_an_object_breaks_a_rule() -> None:
    """Every value of the good world, one after the other, is replaced by junk: findings are welcome, crashes aren't."""
    choose = random.Random(5)
    count = 0
    for kind, thing in good().items():
        for path in _paths(thing):
            world = good()
            _replace(world[kind], path, choose.choice(JUNK))
            # What has no kind or no metadata is no object to Kustomize, and never gets here.
            if isinstance(world[kind].get("kind"), str) and isinstance(world[kind].get("metadata"), dict):
                found_in(rendered(list(world.values())))
                count += 1
    assert count > 150


def _paths(thing: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = (
        list(thing.items()) if isinstance(thing, dict) else list(enumerate(thing)) if isinstance(thing, list) else []
    )
    return [p for key, value in pairs for p in [(*before, key), *_paths(value, (*before, key))]]


def _replace(thing: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        thing = thing[key]
    thing[path[-1]] = value
