"""How sets of objects reach an API server: in which order, under whose name, and what is said when one is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from scripts import kube as kube_module
from scripts.errors import LabError
from scripts.kube import Kube

CONTEXT = "kind-applied-to"
SERVED = {
    ("", "v1"): {"Namespace": ("namespaces", False), "Secret": ("secrets", True), "ServiceAccount": ("serviceaccounts", True)},
    ("apps", "v1"): {"Deployment": ("deployments", True)},
    ("rbac.authorization.k8s.io", "v1"): {"ClusterRole": ("clusterroles", False)},
    ("apiextensions.k8s.io", "v1"): {"CustomResourceDefinition": ("customresourcedefinitions", False)},
}  # fmt: skip
FLUX = {("source.toolkit.fluxcd.io", "v1"): {"GitRepository": ("gitrepositories", True)}}


class ApiServer(ThreadingHTTPServer):
    """Serves the discovery of some kinds, takes patches, refuses those it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.served = dict(SERVED)
        self.looks = 0
        self.later: dict[tuple[str, str], Any] = {}
        self.refused: dict[str, tuple[int, bytes]] = {}
        self.patches: list[tuple[str, dict[str, list[str]], str, Any]] = []

    def discovery(self, core: bool) -> dict[str, Any]:
        self.looks += 1
        if self.looks > 2:  # the two lists of the first look
            self.served |= self.later
        groups: dict[str, list[Any]] = {}
        for (group, version), kinds in self.served.items():
            resources = [
                {"resource": plural, "scope": "Namespaced" if inside else "Cluster", "responseKind": {"kind": kind}}
                for kind, (plural, inside) in kinds.items()
            ]
            if bool(group) != core:
                groups.setdefault(group, []).append({"version": version, "resources": resources})
        return {"items": [{"metadata": {"name": name}, "versions": versions} for name, versions in groups.items()]}


class Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        self.answer(200, json.dumps(self.server.discovery(self.path == "/api")).encode())

    def do_PATCH(self) -> None:
        asked = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.patches.append((asked.path, parse_qs(asked.query), self.headers["Content-Type"], body))
        self.answer(*self.server.refused.get(body["metadata"]["name"], (200, b"{}")))

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def kube(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kube:
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "another",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }  # fmt: skip
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    # The client reads its default location when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    return Kube(CONTEXT)


def thing(kind: str, name: str, api_version: str = "v1", namespace: str = "", **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


SECRET = thing("Secret", "token", namespace="dev", stringData={"token": "tr0ub4dor-and-3"})
DEPLOYMENT = thing("Deployment", "web", "apps/v1", "dev")
ROLE = thing("ClusterRole", "system:reader", "rbac.authorization.k8s.io/v1")
SOURCE = thing("GitRepository", "apps", "source.toolkit.fluxcd.io/v1", "flux-system")


def test_each_object_is_patched_strictly_at_its_own_path_under_the_labs_name(kube: Kube, server: ApiServer) -> None:
    kube.apply([SECRET, ROLE, DEPLOYMENT, thing("Secret", "no-namespace")])
    assert {path: body for path, _, _, body in server.patches} == {
        "/api/v1/namespaces/dev/secrets/token": SECRET,
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:reader": ROLE,
        "/apis/apps/v1/namespaces/dev/deployments/web": DEPLOYMENT,
        "/api/v1/namespaces/default/secrets/no-namespace": thing("Secret", "no-namespace"),
    }
    for _, query, content_type, _ in server.patches:
        assert query == {"fieldManager": ["gitops-lab"], "force": ["true"], "fieldValidation": ["Strict"]}
        assert content_type == "application/apply-patch+yaml"


def test_another_manager_applies_under_its_own_name(kube: Kube, server: ApiServer) -> None:
    kube.apply([DEPLOYMENT], "gitops-lab-demo")
    assert server.patches[0][1]["fieldManager"] == ["gitops-lab-demo"]


def test_nothing_to_apply_asks_nothing(kube: Kube, server: ApiServer) -> None:
    kube.apply([])
    assert server.looks == 0


def test_what_others_refer_to_comes_first(kube: Kube, server: ApiServer) -> None:
    account = thing("ServiceAccount", "web", namespace="dev")
    definition = thing("CustomResourceDefinition", "shops.example.org", "apiextensions.k8s.io/v1")
    kube.apply([DEPLOYMENT, account, SECRET, definition, ROLE, thing("Namespace", "dev")])
    kinds = [body["kind"] for *_, body in server.patches]
    assert set(kinds[:2]) == {"Namespace", "CustomResourceDefinition"}
    assert set(kinds[2:5]) == {"ServiceAccount", "Secret", "ClusterRole"}
    assert kinds[5:] == ["Deployment"]


def test_a_kind_that_has_just_been_defined_is_waited_for(kube: Kube, server: ApiServer) -> None:
    server.later = FLUX
    kube.apply([SECRET, SOURCE])
    assert server.patches[-1][0] == "/apis/source.toolkit.fluxcd.io/v1/namespaces/flux-system/gitrepositories/apps"


def test_a_kind_that_nobody_defines_is_named(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_module, "KIND_TIMEOUT_S", 0)
    with pytest.raises(LabError) as caught:
        kube.apply([SOURCE])
    assert "no GitRepository of source.toolkit.fluxcd.io/v1" in str(caught.value.details)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (422, b'{"kind": "Status", "message": "spec.replicas: must be a number"}', "spec.replicas: must be a number"),
        (403, b'{"kind": "Status", "message": "you may not"}', "you may not"),
        (500, b"<html>", "HTTP 500 Internal Server Error"),
    ],
)
def test_a_refusal_is_said_in_the_api_servers_words_and_nothing_of_a_secret(
    kube: Kube, server: ApiServer, status: int, body: bytes, says: str
) -> None:
    server.refused["token"] = status, body
    with pytest.raises(LabError) as caught:
        kube.apply([SECRET, DEPLOYMENT])
    assert caught.value.what == f"The API server of {CONTEXT} refuses Secret dev/token: {says}"
    assert "tr0ub4dor" not in f"{caught.value} {caught.value.details}"
    assert [body["kind"] for *_, body in server.patches] == ["Secret"], "what comes after it has not been sent"
