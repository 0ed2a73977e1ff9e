"""What registries keep, as data: manifests and their digests.

https://github.com/opencontainers/image-spec
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
INDEX_TYPES = (OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = (*INDEX_TYPES, OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")


@dataclass(frozen=True)
class Manifest:
    """A manifest or index as it was served: its bytes are what its digest is of."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        """The digest of the bytes."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests of several platforms."""
        return self.media_type in INDEX_TYPES

    @property
    def content(self) -> dict[str, Any]:
        """The parsed document."""
        parsed: dict[str, Any] = json.loads(self.data)
        return parsed

    def children(self, platforms: tuple[str, ...] = ()) -> list[str]:
        """Return the digests of an index's manifests: of the named platforms (`os/arch`), or of all."""
        found = []
        for entry in self.content.get("manifests", []):
            place = entry.get("platform") or {}
            name = f"{place.get('os', '')}/{place.get('architecture', '')}"
            if not platforms or name in platforms:
                found.append(str(entry["digest"]))
        return found

    def blobs(self) -> dict[str, int]:
        """Return the blobs of an image manifest, digest to size: its configuration and its layers."""
        content = self.content
        return {str(b["digest"]): int(b["size"]) for b in (content["config"], *content["layers"])}


def file_digest(path: Path) -> str:
    """Return a file's digest as registries write it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
