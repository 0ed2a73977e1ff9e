"""Images without an engine: put together from root file systems and binaries, the same bytes for the same input.

What the engine would build from kind/images.yaml, but with no time in it: a mirror filled twice has the same digests.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from scripts.docker import docker
from scripts.oci import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Manifest, file_digest
from scripts.transfer import disk_error

CHUNK_BYTES = 1024 * 1024
# Level 3: a third of level 6's time for a tenth more bytes, which stay on this machine or in its network.
GZIP_LEVEL = 3
_EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class FileInImage:
    """A file or, without content, a folder: where it is in the image, who owns it, whether it can be run."""

    path: str
    content: Path | bytes | None
    executable: bool = False
    owner: int = 0


@dataclass(frozen=True)
class ImageSpec:
    """An image: a base's root file system, files over it, and how it is run."""

    architecture: str
    base: Path | None = None
    files: Sequence[FileInImage] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BuiltImage:
    """An image as a registry takes it: its manifest, and a file for every blob that the manifest names."""

    manifest: Manifest
    blobs: Mapping[str, Path]


def assemble(spec: ImageSpec, folder: Path) -> BuiltImage:
    """Put an image together in a folder."""
    layers: list[tuple[Path, str]] = []
    try:
        if spec.base:
            layers.append((spec.base, _uncompressed_digest(spec.base)))
        if spec.files:
            layers.append(_write_layer(spec.files, folder / "layer"))
        return _describe(folder, layers, spec.config, spec.architecture)
    except OSError as error:
        raise disk_error(error, folder) from None


def from_engine(name: str, folder: Path) -> BuiltImage:
    """Take an image out of the engine (`docker save`), its layers compressed."""
    archive = folder / "saved.tar"
    docker("save", "--output", archive, name, timeout_s=900)
    try:
        with tarfile.open(archive) as tar:
            (described,) = json.loads(_member(tar, "manifest.json").read())
            config = json.loads(_member(tar, described["Config"]).read())
            layers = []
            for number, path in enumerate(described["Layers"]):
                layers.append(_compress(_member(tar, path), folder / f"layer{number}"))
        archive.unlink()
        (folder / "config.json").write_text(json.dumps(config))
        return _manifest(folder / "config.json", [path for path, _ in layers])
    except OSError as error:
        raise disk_error(error, folder) from None


def _describe(
    folder: Path, layers: Sequence[tuple[Path, str]], config: Mapping[str, Any], architecture: str
) -> BuiltImage:
    document = {
        "architecture": architecture,
        "os": "linux",
        "created": _EPOCH,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(document, sort_keys=True))
    return _manifest(path, [layer for layer, _ in layers])


def _manifest(config: Path, layers: Sequence[Path]) -> BuiltImage:
    blobs: dict[str, Path] = {}

    def entry(path: Path, media_type: str) -> dict[str, object]:
        digest = file_digest(path)
        blobs[digest] = path
        return {"mediaType": media_type, "digest": digest, "size": path.stat().st_size}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": entry(config, OCI_CONFIG),
        "layers": [entry(layer, OCI_LAYER) for layer in layers],
    }
    return BuiltImage(Manifest(json.dumps(document).encode(), OCI_MANIFEST), blobs)


def _write_layer(files: Sequence[FileInImage], target: Path) -> tuple[Path, str]:
    """Write a layer and return it with the digest of its uncompressed form."""
    with target.open("wb") as raw, gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as packed:
        hashed = _Hashing(packed)
        with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            known: set[str] = set()
            for file in files:
                for folder in reversed(PurePosixPath(file.path.lstrip("/")).parents):
                    if str(folder) not in (".", *known):
                        known.add(str(folder))
                        tar.addfile(_entry(str(folder), tarfile.DIRTYPE, 0o755, 0))
                _add(tar, file)
                known.add(file.path.lstrip("/"))
    return target, f"sha256:{hashed.total.hexdigest()}"


def _add(tar: tarfile.TarFile, file: FileInImage) -> None:
    name = file.path.strip("/")
    if file.content is None:
        tar.addfile(_entry(name, tarfile.DIRTYPE, 0o755, file.owner))
        return
    entry = _entry(name, tarfile.REGTYPE, 0o755 if file.executable else 0o644, file.owner)
    if isinstance(file.content, bytes):
        entry.size = len(file.content)
        tar.addfile(entry, io.BytesIO(file.content))
        return
    entry.size = file.content.stat().st_size
    with file.content.open("rb") as content:
        tar.addfile(entry, content)


def _entry(name: str, kind: bytes, mode: int, owner: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = kind, mode, owner, owner
    return entry


class _Hashing:
    """A file to write to that keeps the hash of what passed."""

    def __init__(self, target: IO[bytes] | gzip.GzipFile) -> None:
        self.total = hashlib.sha256()
        self._target = target

    def write(self, data: bytes) -> int:
        self.total.update(data)
        return self._target.write(data)


def _compress(source: IO[bytes], target: Path) -> tuple[Path, str]:
    with target.open("wb") as raw, gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as packed:
        hashed = _Hashing(packed)
        shutil.copyfileobj(source, hashed, CHUNK_BYTES)
    return target, f"sha256:{hashed.total.hexdigest()}"


def _uncompressed_digest(path: Path) -> str:
    total = hashlib.sha256()
    with gzip.open(path) as packed:
        while chunk := packed.read(CHUNK_BYTES):
            total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    """Open a member; a layer that two images share stands there once, and as a link after that."""
    entry = tar.getmember(name)
    if entry.issym():
        entry = tar.getmember(str(PurePosixPath(name).parent.parent / PurePosixPath(entry.linkname).relative_to("..")))
    file = tar.extractfile(entry)
    assert file is not None, f"{name} in a saved image is no file"
    return file
