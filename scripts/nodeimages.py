"""Images that setup puts onto the nodes of a running cluster: monitoring's, which the node image doesn't hold."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts import console
from scripts.cluster import node_containers, preload
from scripts.docker import docker
from scripts.outcome import Outcome
from scripts.settings import Settings
from scripts.versions import Image

_ARCHIVE = "/gitops-lab-images.tar"


def ensure_pulled(nodes: Sequence[str], images: Sequence[Image]) -> Outcome:
    """Make nodes have the images under the tags that manifests name, pulled by digest; looks first."""
    missing = {node: [i for i in images if i.tagged not in ids] for node, ids in _held(nodes).items()}
    preload({node: lacking for node, lacking in missing.items() if lacking})
    return _outcome(len({image.tagged for lacking in missing.values() for image in lacking}), len(images))


def ensure_loaded(settings: Settings, images: Mapping[str, str]) -> Outcome:
    """Make every node have what the engine built, by the tag that manifests name; looks first.

    Args:
        settings: the run's names.
        images: the name of the built image by tag. Another build under the same tag replaces what a node has.
    """
    if not images:
        return Outcome(False, "no images to load")
    wanted = dict(zip(images, _ids(list(images.values())), strict=True))
    held = _held(node_containers(settings))
    missing = [tag for tag, image in wanted.items() if any(ids.get(tag) != image for ids in held.values())]
    if missing:
        nodes = [node for node, ids in held.items() if any(ids.get(tag) != wanted[tag] for tag in missing)]
        _load(nodes, {tag: images[tag] for tag in missing})
    return _outcome(len(missing), len(images))


def _outcome(missing: int, count: int) -> Outcome:
    return Outcome(
        bool(missing), f"{missing} of {count} images loaded" if missing else f"{count} images are on the nodes"
    )


def _ids(names: Sequence[str]) -> list[str]:
    """Return the ids of images of the engine: the digest of their configuration, as containerd has it too."""
    return docker("image", "inspect", "--format", "{{.Id}}", *names).stdout.split() if names else []


def _held(nodes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return for each node the ids of its images by tag."""

    def look(node: str) -> dict[str, str]:
        found = json.loads(docker("exec", node, "crictl", "images", "--output", "json").stdout)["images"]
        return {tag: image["id"] for image in found for tag in image.get("repoTags") or []}

    with ThreadPoolExecutor(3, "images") as pool:
        return dict(zip(nodes, pool.map(look, nodes), strict=True))


def _load(nodes: Sequence[str], images: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="gitops-lab-images-") as folder:
        archive = Path(folder) / "images.tar"
        for tag, built in images.items():
            docker("tag", built, tag)
        try:
            console.note(f"saving {len(images)} images")
            docker("save", "--output", archive, *images, timeout_s=600)
        finally:
            docker("rmi", *images)

        def load(node: str) -> None:
            console.note(f"{node}: loading {len(images)} images")
            docker("cp", archive, f"{node}:{_ARCHIVE}", timeout_s=600)
            # Pinned: a node that runs short of disk must not drop what it can't pull again.
            docker(
                "exec", node, "ctr", "--namespace", "k8s.io", "images", "import",
                "--label=io.cri-containerd.pinned=pinned", "--all-platforms", "--digests", _ARCHIVE,
                timeout_s=600,
            )  # fmt: skip
            docker("exec", node, "rm", "-f", _ARCHIVE)

        with ThreadPoolExecutor(3, "load") as pool:
            list(pool.map(load, nodes))
