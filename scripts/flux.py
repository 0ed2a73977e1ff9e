"""Flux in the cluster: its controllers, the Receiver, and the root that everything follows from."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from scripts import console
from scripts.appimage import IMAGE_IN_CLUSTER
from scripts.cache import Cache, digest_of
from scripts.fluxinstall import install_manifests
from scripts.kube import FLUX_KINDS, Kube, Object, condition, is_ready, owner_labels
from scripts.monitoring import chart, full
from scripts.outcome import Outcome
from scripts.process import run
from scripts.settings import (
    APP_NAME,
    FLUX_CD,
    FLUX_NAMESPACE,
    RECEIVER_NAME,
    RECEIVER_NODE_PORT,
    ROOT,
    Edge,
    Monitoring,
    Settings,
)
from scripts.sidecars import connect_receiver, git_service_objects, registry_service_objects
from scripts.sources import PROMOTED, hook_scopes, source_scopes
from scripts.versions import Versions
from scripts.waiting import wait_for

ROOT_NAME = "flux-system"
GIT_SECRET = "git-credentials"
RECEIVER_SECRET = "git-push-token"
STATE_CONFIG_MAP = "gitops-lab"
WITHOUT_EDGE = "bootstrap/without-edge"
# What the root Kustomization takes in for a lab without monitoring, and for one with the whole stack; lite is Git's own.
MONITORING_COMPONENTS = {
    Monitoring.NONE: "bootstrap/without-monitoring",
    Monitoring.FULL: "bootstrap/monitoring-full",
}
MONITORING_SYNCS = ("monitoring-definitions", "monitoring-stack", "monitoring-rules")


def receiver_objects(settings: Settings, token: str, subnet: str) -> list[Object]:
    """Return what lets the Git server beside the cluster call Flux: token, Receiver, node port, policy."""
    objects: list[Object] = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": RECEIVER_SECRET, "namespace": FLUX_NAMESPACE},
            "stringData": {"token": token},
        },
        {
            "apiVersion": "notification.toolkit.fluxcd.io/v1",
            "kind": "Receiver",
            "metadata": {"name": RECEIVER_NAME, "namespace": FLUX_NAMESPACE},
            "spec": {
                "type": "generic-hmac",
                "interval": "10m",
                "secretRef": {"name": RECEIVER_SECRET},
                # In this order they are told: what people wait for comes first. Those that move by promotion are found
                # by their label, so that an environment which is added needs nothing here.
                "resources": [
                    *({"kind": "GitRepository", "name": s.name} for s in source_scopes() if not s.promoted),
                    {"kind": "GitRepository", "name": "*", "matchLabels": PROMOTED},
                ],
                # The hook names the sources whose files a push changed. Every other one would fetch, build and apply
                # what it has already, the large definitions among them, beside the change that somebody waits for.
                "resourceFilter": "res.metadata.name in req.sources",
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "receiver-node-port", "namespace": FLUX_NAMESPACE},
            "spec": {
                "type": "NodePort",
                "selector": {"app": "notification-controller"},
                "ports": [{"name": "http", "port": 80, "targetPort": 9292, "nodePort": RECEIVER_NODE_PORT}],
            },
        },
    ]
    if subnet:
        # Flux's own allow-webhooks lets pods in, but not a Git server beside the cluster: without this policy the
        # hook's call is refused without a word, and each push waits for the interval.
        objects.append(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": "allow-git-server-hook", "namespace": FLUX_NAMESPACE},
                "spec": {
                    "podSelector": {"matchLabels": {"app": "notification-controller"}},
                    "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"ipBlock": {"cidr": subnet}}], "ports": [{"port": 9292}]}],
                },
            }
        )
    return objects


def root_objects(settings: Settings, with_credentials: bool) -> list[Object]:
    """Return the root source and the root Kustomization, which carries what depends on this machine as patches.

    Git holds plain values; the address of another remote, another image repository, a chart's own copy and a lab without
    an edge are patched on the way into the cluster.
    """
    source = _root_source()
    source["spec"]["url"] = settings.git_fetch_url
    spec: Object = {
        "interval": "10m",
        "retryInterval": "10s",
        "timeout": "3m",
        "path": "./flux-cd",
        "prune": True,
        "sourceRef": {"kind": "GitRepository", "name": ROOT_NAME},
    }
    patches: list[Object] = []
    # What applications-sync applies is patched by it in turn: the sources of added environments, and each environment.
    inner: list[Object] = []
    if not settings.owns_git:
        operations: list[Object] = [{"op": "replace", "path": "/spec/url", "value": settings.git_fetch_url}]
        if with_credentials:
            source["spec"]["secretRef"] = {"name": GIT_SECRET}
            operations.append({"op": "add", "path": "/spec/secretRef", "value": {"name": GIT_SECRET}})
        patches.append({"target": {"kind": "GitRepository"}, "patch": json.dumps(operations)})
        inner.append(patches[0])
    if settings.image_repository:
        inner.append(_repository_patch(settings.image_repository))
    if inner:
        patches.append(_applications_patch(inner, settings.edge))
    if settings.image_repository:
        # The receiver of alerts runs on the application's image.
        patches.append(_repository_patch(settings.image_repository, name="monitoring-rules"))
    if chart.is_from_lab(settings):
        patches.append(chart.repository_patch())
    if patches:
        spec["patches"] = patches
    components = [WITHOUT_EDGE] if settings.edge is Edge.NONE else []
    components += filter(None, [MONITORING_COMPONENTS.get(settings.monitoring)])
    if components:
        spec["components"] = components
    kustomization = {
        "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
        "kind": "Kustomization",
        "metadata": {"name": ROOT_NAME, "namespace": FLUX_NAMESPACE},
        "spec": spec,
    }
    return [source, kustomization]


def _root_source() -> Object:
    """Return the root source as Git has it: applied first by setup, from then on kept by Flux itself."""
    documents = yaml.load_all((FLUX_CD / "bootstrap" / "sources.yaml").read_text(), yaml.CSafeLoader)
    return next(d for d in documents if d and d["metadata"]["name"] == ROOT_NAME)


def _repository_patch(repository: str, **target: str) -> Object:
    """Let every Flux Kustomization, or the one named, take the application from another repository."""
    # An entry of the overlay's own name would replace the overlay's, tag and all; Kustomize takes the name as a
    # regular expression, so the same image can be meant by another entry.
    pattern = IMAGE_IN_CLUSTER.replace(".", "[.]")
    images = [{"op": "add", "path": "/spec/images", "value": [{"name": pattern, "newName": repository}]}]
    return {"target": {"kind": "Kustomization", **target}, "patch": json.dumps(images)}


def _applications_patch(inner: Sequence[Object], edge: Edge) -> Object:
    """Let applications-sync carry patches, after those that it has without an edge."""
    if edge is Edge.NONE:
        operations: list[Object] = [{"op": "add", "path": "/spec/patches/-", "value": patch} for patch in inner]
    else:
        operations = [{"op": "add", "path": "/spec/patches", "value": list(inner)}]
    return {"target": {"kind": "Kustomization", "name": "applications-sync"}, "patch": json.dumps(operations)}


def ensure_flux(settings: Settings, kube: Kube, flux: Path, versions: Versions, pin_images: bool) -> Outcome:
    """Install or update the controllers; unchanged ones are left alone."""
    objects = install_manifests(Cache(settings.cache_dir), flux, versions, pin_images, settings.owns_cluster)
    wanted = digest_of(objects)
    if _applied(kube).get("flux") == wanted:
        return Outcome(False, f"Flux {versions.flux} is installed")
    console.note("installing Flux")
    kube.apply(objects)
    wait_for_definitions(kube)
    _remember(kube, {"flux": wanted})
    return Outcome(True, f"Flux {versions.flux} installed")


def wait_for_definitions(kube: Kube, timeout_s: float = 60) -> None:
    """Wait until the API server serves Flux's kinds."""

    def pending() -> list[str]:
        names = [f"{plural}.{group}" for group, _, plural in FLUX_KINDS.values()]
        found = [kube.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}") for name in names]
        return [
            f"{thing['metadata']['name']} is not established"
            for thing in found
            if condition(thing, "Established").get("status") != "True"
        ]

    wait_for("the API server serves Flux's kinds", pending, timeout_s=timeout_s)


def define_early(kube: Kube, kustomize: Path) -> None:
    """Apply the definitions that Flux would apply first, under its name and with its marks, so that they are its own.

    In a new cluster the API server has next to nothing to do while kubeadm waits for the control plane, and is busiest when
    Flux begins. Flux compares them with Git like everything else, and takes them away when Git no longer has them.
    """
    documents = yaml.load_all((FLUX_CD / "bootstrap" / "infrastructure.yaml").read_text(), yaml.CSafeLoader)
    sync = next(d for d in documents if d["metadata"]["name"] == "infrastructure-sync")
    built = run([kustomize, "build", ROOT / sync["spec"]["path"]], timeout_s=60).stdout
    objects = [o for o in yaml.load_all(built, yaml.CSafeLoader) if o["kind"] == "CustomResourceDefinition"]
    for thing in objects:
        thing["metadata"].setdefault("labels", {}).update(owner_labels(sync["metadata"]["name"], FLUX_NAMESPACE))
    console.note("applying the definitions of the infrastructure")
    kube.apply(objects, "kustomize-controller")


def ensure_bootstrap(
    settings: Settings,
    kube: Kube,
    subnet: str,
    credentials: Mapping[str, str] | None,
    before_root: Callable[[], object] = lambda: None,
) -> Outcome:
    """Make the cluster follow the Git repository, and the Git server tell it of each push.

    `before_root` is called when all but the root is there.
    """
    token = _receiver_token(kube)
    objects: list[Object] = []
    if credentials:
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": GIT_SECRET, "namespace": FLUX_NAMESPACE},
                "stringData": dict(credentials),
            }
        )
    objects += receiver_objects(settings, token, subnet)
    if settings.owns_git:
        objects += git_service_objects(settings)
    if chart.is_from_lab(settings):
        objects += registry_service_objects(settings)
    if settings.monitoring is Monitoring.FULL:
        objects += full.grafana_objects(kube)
    root = root_objects(settings, bool(credentials))
    wanted = digest_of(objects + root)
    changed = _applied(kube).get("bootstrap") != wanted
    if changed:
        console.note("applying the root")
        kube.apply(objects)
        before_root()
        kube.apply(root)
        _remember(kube, {"bootstrap": wanted})
    return Outcome(changed, "bootstrapped from flux-cd/" if changed else "bootstrap is in place")


def connect_git_server(settings: Settings, kube: Kube) -> None:
    """Hand the Receiver's address and token to the Git server's hook."""

    def pending() -> list[str]:
        path = _webhook_path(kube)
        return [] if path else ["the Receiver has no address yet"]

    wait_for(
        "Flux's Receiver is ready", pending, timeout_s=90, interval_s=0.3, explain=lambda: not_ready_controllers(kube)
    )
    scopes = [asdict(scope) for scope in hook_scopes()]
    connect_receiver(settings, _webhook_path(kube), _receiver_token(kube), scopes)


def _webhook_path(kube: Kube) -> str:
    for receiver in kube.list_custom("Receiver", FLUX_NAMESPACE):
        if receiver["metadata"]["name"] == RECEIVER_NAME and is_ready(receiver):
            return str(receiver["status"].get("webhookPath", ""))
    return ""


def not_ready_controllers(kube: Kube) -> str:
    """Return which of Flux's controllers are not available, in words."""
    lines = []
    for deployment in kube.call(kube.apps.list_namespaced_deployment, FLUX_NAMESPACE).items:
        if not deployment.status.available_replicas:
            lines.append(f"{deployment.metadata.name} is not available")
    return "\n".join(lines)


def _receiver_token(kube: Kube) -> str:
    """Return the Receiver's token: the cluster's if it has one, a new one otherwise."""
    import base64

    from kubernetes.client import ApiException

    try:
        secret = kube.call(kube.core.read_namespaced_secret, RECEIVER_SECRET, FLUX_NAMESPACE)
    except ApiException as error:
        if error.status != 404:
            raise
        return secrets.token_hex(32)
    return base64.b64decode(secret.data["token"]).decode()


def _applied(kube: Kube) -> dict[str, str]:
    """Return the hashes of what setup applied last, kept in the cluster itself."""
    from kubernetes.client import ApiException

    try:
        found = kube.call(kube.core.read_namespaced_config_map, STATE_CONFIG_MAP, "kube-system")
    except ApiException as error:
        if error.status != 404:
            raise
        return {}
    return dict(found.data or {})


def _remember(kube: Kube, values: Mapping[str, str]) -> None:
    data = {**_applied(kube), **values}
    kube.apply(
        [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": STATE_CONFIG_MAP, "namespace": "kube-system"},
                "data": data,
            }
        ]
    )


def app_deployment(kube: Kube, environment: str) -> Object:
    """Return an environment's Deployment as plain data."""
    return kube.to_dict(kube.call(kube.apps.read_namespaced_deployment, APP_NAME, environment))
