"""MONITORING=full behind a mirror: the chart from there into the lab's own registry, where Flux fetches it.

Nodes are led to the mirror by containerd's hosts.toml; Flux fetches charts by itself and knows of none. From the lab's
registry it needs neither the mirror's CA nor its user, and a lab that is up needs the mirror no more.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from scripts import console, pins
from scripts.mirrors import ImageMirror
from scripts.monitoring import mode
from scripts.outcome import Outcome
from scripts.registry_client import RegistryClient
from scripts.registry_errors import Endpoint
from scripts.settings import REGISTRY_HOST_IN_CLUSTER, REGISTRY_PORT_INSIDE, Monitoring, Settings
from scripts.versions import Image

FOLDER = "charts"
KUSTOMIZATION = "monitoring-stack"


def is_from_lab(settings: Settings) -> bool:
    """Whether Flux takes the chart from the lab's own registry."""
    return settings.monitoring is Monitoring.FULL and bool(settings.image_mirror) and settings.owns_cluster


def ensure_chart(settings: Settings, mirror: ImageMirror, chart: Image) -> Outcome:
    """Copy the chart by its digest from the mirror into the lab's registry, unless it is there.

    Raises:
        RegistryError: the mirror does not have it, or can't be asked.
    """
    lab = _registry_of(settings)
    repository = f"{FOLDER}/{mode.CHART}"
    there = lab.digest_of(repository, chart.tag)
    if there and there == (chart.digest or there):
        return Outcome(False, f"{mode.CHART} {chart.tag} is in the registry")
    console.note(f"copying the chart {chart.tagged}")
    source, name = mirror.client(), mirror.repository(chart.image)
    # Its publisher's digest is not known beforehand: the first one that is seen holds from then on.
    locked = pins.lock_file(settings).ensure_image(chart, lambda _: source.manifest(name, chart.tag).digest)
    manifest = source.manifest(name, locked.digest)
    with tempfile.TemporaryDirectory(prefix="gitops-lab-chart-") as folder:
        for digest in manifest.blobs():
            path = Path(folder) / digest.partition(":")[2]
            source.pull_blob(name, digest, path, mode.CHART)
            lab.push_blob(repository, digest, path, mode.CHART)
    lab.put_manifest(repository, chart.tag, manifest)
    return Outcome(True, f"{mode.CHART} {chart.tag} copied into the registry")


def repository_patch() -> dict[str, Any]:
    """Return the patch by which the root Kustomization lets the chart's HelmRepository be the lab's registry."""
    url = f"oci://{REGISTRY_HOST_IN_CLUSTER}:{REGISTRY_PORT_INSIDE}/{FOLDER}"
    operations = [
        {"op": "replace", "path": "/spec/url", "value": url},
        {"op": "add", "path": "/spec/insecure", "value": True},  # on the lab's own network it speaks HTTP
    ]
    patches = [{"target": {"kind": "HelmRepository"}, "patch": json.dumps(operations)}]
    return {
        "target": {"kind": "Kustomization", "name": KUSTOMIZATION},
        "patch": json.dumps([{"op": "add", "path": "/spec/patches", "value": patches}]),
    }


def _registry_of(settings: Settings) -> RegistryClient:
    return RegistryClient(Endpoint(f"127.0.0.1:{settings.registry_port}", variable="REGISTRY_PORT", plain=True))
