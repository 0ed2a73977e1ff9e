"""MONITORING=full: which images the chart's values name, and Grafana's password, which lives in the cluster only."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping

import yaml

from scripts.kube import Kube, Object
from scripts.settings import FLUX_CD

NAMESPACE = "monitoring"
GRAFANA_SECRET = "grafana-admin"
GRAFANA_USER = "admin"
_NAMESPACE_FILE = FLUX_CD / "infrastructure" / "mock-cluster-aka-namespaces" / NAMESPACE / "namespace.yaml"
# Where the chart's values name each image, by its name in versions.yaml. Setup puts these on the nodes by their digests.
IMAGES: Mapping[str, tuple[str, ...]] = {
    "prometheus-operator": ("prometheusOperator", "image"),
    "prometheus-config-reloader": ("prometheusOperator", "prometheusConfigReloader", "image"),
    "prometheus": ("prometheus", "prometheusSpec", "image"),
    "alertmanager": ("alertmanager", "alertmanagerSpec", "image"),
    "kube-state-metrics": ("kube-state-metrics", "image"),
    "node-exporter": ("prometheus-node-exporter", "image"),
    "grafana": ("grafana", "image"),
    "k8s-sidecar": ("grafana", "sidecar", "image"),
}


def grafana_objects(kube: Kube) -> list[Object]:
    """Return the namespace and the Secret of Grafana's password: the cluster's if it has one, a new one otherwise."""
    from kubernetes.client import ApiException

    password = ""
    try:
        secret = kube.call(kube.core.read_namespaced_secret, GRAFANA_SECRET, NAMESPACE)
        password = base64.b64decode((secret.data or {}).get("admin-password", "")).decode()
    except ApiException as error:
        if error.status != 404:
            raise
    return [
        yaml.load(_NAMESPACE_FILE.read_text(), yaml.CSafeLoader),
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": GRAFANA_SECRET, "namespace": NAMESPACE},
            "stringData": {"admin-user": GRAFANA_USER, "admin-password": password or secrets.token_urlsafe(18)},
        },
    ]
