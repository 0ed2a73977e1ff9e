"""What an environment may not do: privileged pods, others' host names, more rights than its own objects."""

from __future__ import annotations

import json

import pytest

from scripts import flux
from scripts.settings import APP_NAME, Edge, environments

PRIVILEGED = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "e2e-privileged"},
    "spec": {
        "containers": [
            {"name": "c", "image": "registry.k8s.io/pause:3.10", "securityContext": {"privileged": True}},
        ]
    },
}


def dry_run(kube, namespace: str, thing: dict, *extra: str):
    return kube.kubectl(
        "apply", "--dry-run=server", "--namespace", namespace, *extra, "--filename", "-",
        check=False, input_text=json.dumps(thing),
    )  # fmt: skip


@pytest.mark.parametrize("environment", environments())
def test_a_privileged_pod_is_refused(kube, environment):
    done = dry_run(kube, environment, PRIVILEGED)
    assert done.exit_code != 0
    assert 'violates PodSecurity "restricted' in done.stderr


@pytest.mark.parametrize("environment", environments())
def test_an_environment_may_take_no_other_environments_host_name(kube, settings, environment):
    if settings.edge is Edge.NONE:
        pytest.fail("host names are the edge's: run on a lab with EDGE=envoy")
    other = next(e for e in environments() if e != environment)
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "e2e-thief"},
        "spec": {
            "parentRefs": [{"name": "edge", "namespace": "edge"}],
            "hostnames": [f"{other}.localhost"],
            "rules": [{"backendRefs": [{"name": APP_NAME, "port": 8000}]}],
        },
    }
    refused = dry_run(kube, environment, route)
    assert refused.exit_code != 0
    assert f"{environment}.localhost" in refused.stderr
    route["spec"]["hostnames"] = [f"{environment}.localhost"]
    assert dry_run(kube, environment, route).exit_code == 0


def may(kube, environment: str, verb: str, resource: str, name: str = "") -> bool:
    target = f"{resource}/{name}" if name else resource
    user = f"system:serviceaccount:{environment}:{APP_NAME}"
    done = kube.kubectl("auth", "can-i", verb, target, "--namespace", environment, "--as", user, check=False)
    return done.exit_code == 0


def settings_of(kube, environment: str) -> tuple[str, str]:
    """The names of the ConfigMap and the Secret that an environment's pods get."""
    sources = flux.app_deployment(kube, environment)["spec"]["template"]["spec"]["containers"][0]["envFrom"]
    config = next(s["configMapRef"]["name"] for s in sources if "configMapRef" in s)
    secret = next(s["secretRef"]["name"] for s in sources if "secretRef" in s)
    return config, secret


@pytest.mark.parametrize("environment", environments())
def test_the_service_account_may_read_its_own_objects_and_nothing_else(kube, environment):
    config, secret = settings_of(kube, environment)
    assert may(kube, environment, "get", "configmaps", config)
    assert may(kube, environment, "get", "secrets", secret)
    for verb, resource, name in [
        ("get", "configmaps", "kube-root-ca.crt"),
        ("get", "secrets", ""),
        ("list", "secrets", ""),
        ("list", "configmaps", ""),
        ("update", "configmaps", config),
        ("delete", "secrets", secret),
        ("create", "pods", ""),
        ("list", "pods", ""),
        ("patch", "deployments.apps", APP_NAME),
        ("get", "nodes", ""),
    ]:
        assert not may(kube, environment, verb, resource, name), f"{verb} {resource} {name}"


# What Kubernetes lets every service account do: ask what it may itself and who it is, and read public certificates.
EVERYBODYS = {
    ("authorization.k8s.io", "selfsubjectaccessreviews", "", "create"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "", "create"),
    ("authentication.k8s.io", "selfsubjectreviews", "", "create"),
    *(("certificates.k8s.io", "clustertrustbundles", "", verb) for verb in ("get", "list", "watch")),
}


@pytest.mark.parametrize("environment", environments())
def test_the_rules_of_the_service_account_are_these_and_no_other(kube, environment):
    """The API server's own list of all it may, so that a right which no test thought of would show."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": environment},
    }
    done = kube.kubectl(
        "create", "--raw", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "--filename", "-",
        "--as", f"system:serviceaccount:{environment}:{APP_NAME}", input_text=json.dumps(review),
    )  # fmt: skip
    found = {
        (group, resource, name, verb)
        for rule in json.loads(done.stdout)["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
        for verb in rule["verbs"]
    }
    config, secret = settings_of(kube, environment)
    assert found == EVERYBODYS | {("", "configmaps", config, "get"), ("", "secrets", secret, "get")}


def test_the_edge_does_not_show_the_control_endpoint(settings, edge):
    if settings.edge is Edge.NONE:
        pytest.fail("what the edge shows is seen on a lab with EDGE=envoy")
    # Of dev, which follows main: the others have what was promoted to them.
    assert edge("dev", "/work").status_code == 200
    for path in ("/control/faults", "/control", "/no-such-page", "/metrics/x"):
        answer = edge("dev", path)
        # The edge's own 404 has no body; the application's would be JSON, and would have been asked.
        assert (answer.status_code, answer.content) == (404, b"")


def test_no_pod_of_an_environment_mounts_a_token(kube):
    for environment in environments():
        for pod in kube.call(kube.core.list_namespaced_pod, environment).items:
            volumes = [v.name for v in pod.spec.volumes or []]
            assert not any(v.startswith("kube-api-access") for v in volumes), pod.metadata.name
