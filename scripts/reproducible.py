"""An image whose digest depends on its content alone: what a build adds of its own moment and machine is taken off.

Builders put times into layers, and times, container ids and parents' ids into the configuration; the classic builder
can't be told otherwise, and BuildKit's own way (SOURCE_DATE_EPOCH with rewrite-timestamp) needs an exporter that not
every engine has. So an image is saved, the layers above its base and its configuration are written anew, and the result
is loaded. Any engine does that. Layers below are left as they are: they are the base's, to the byte.

See https://github.com/moby/docker-image-spec/blob/main/spec.md for the archive and the configuration.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from scripts.docker import docker

# 1980: the oldest time that a zip file can hold, for tools that repack what they find.
EPOCH_S = 315532800
EPOCH = "1980-01-01T00:00:00Z"
TIMEOUT_S = 300
# What of an image's configuration says how it runs. The rest says how, when and where it was built.
_RUN_FIELDS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "Healthcheck",
    "Shell",
)  # fmt: skip
_TOP_FIELDS = ("architecture", "os", "variant")


def normalise(image: str, base: str, name: str) -> str:
    """Give the engine a normalised copy of an image under a name, and return the copy's id."""
    shown = json.loads(docker("image", "inspect", base).stdout)
    base_layers = len(shown[0]["RootFS"]["Layers"])
    with tempfile.TemporaryDirectory(prefix="gitops-lab-image-") as folder:
        saved, written = Path(folder) / "saved.tar", Path(folder) / "normalised.tar"
        docker("image", "save", "--output", saved, image, timeout_s=TIMEOUT_S)
        identity = rewrite(saved, written, base_layers, name)
        saved.unlink()
        docker("image", "load", "--quiet", "--input", written, timeout_s=TIMEOUT_S)
    return identity


def rewrite(saved: Path, written: Path, base_layers: int, name: str) -> str:
    """Write a saved image anew, under a name; the same content gives the same bytes. Returns the image's id.

    Args:
        saved: what `docker image save` wrote, of one image.
        written: the archive to write, for `docker image load`.
        base_layers: how many of the layers belong to the base and stay as they are.
        name: repository and tag.
    """
    with tarfile.open(saved) as source, tarfile.open(written, "w", format=tarfile.GNU_FORMAT) as target:
        (manifest,) = json.loads(_read(source, "manifest.json"))
        config = json.loads(_read(source, manifest["Config"]))
        diff_ids, names = [], []
        for number, path in enumerate(manifest["Layers"]):
            layer = _unpacked(_read(source, path))
            if number >= base_layers:
                layer = normalised_layer(layer)
            diff_ids.append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
            names.append(f"{number:02}-{diff_ids[-1].removeprefix('sha256:')}.tar")
            _add(target, names[-1], layer)
        wanted = json.dumps(normalised_config(config, diff_ids), sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(wanted).hexdigest()
        _add(target, f"{digest}.json", wanted)
        described = [{"Config": f"{digest}.json", "RepoTags": [name], "Layers": names}]
        _add(target, "manifest.json", json.dumps(described).encode())
    return f"sha256:{digest}"


def normalised_layer(layer: bytes) -> bytes:
    """Return a layer with its entries in the order of their names, without times and without names of users."""
    output = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(layer)) as source,
        # PAX for long names, and with nothing in its headers but what the entries need.
        tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        # A hard link comes after what it links to.
        for member in sorted(source, key=lambda m: (m.islnk(), m.name)):
            member.mtime = EPOCH_S
            member.uname = member.gname = ""
            member.pax_headers = {k: v for k, v in sorted(member.pax_headers.items()) if k.startswith("SCHILY.xattr.")}
            target.addfile(member, source.extractfile(member) if member.isreg() else None)
    return output.getvalue()


def normalised_config(config: dict[str, Any], diff_ids: list[str]) -> dict[str, Any]:
    """Return what of an image's configuration follows from its content."""
    run = {key: value for key, value in config["config"].items() if key in _RUN_FIELDS and value}
    history = [
        {key: value for key, value in entry.items() if key in ("created_by", "empty_layer")} | {"created": EPOCH}
        for entry in config.get("history", [])
    ]
    kept = {key: config[key] for key in _TOP_FIELDS if config.get(key)}
    return kept | {
        "created": EPOCH,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    }


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, f"{name} is not a file"
    return file.read()


def _unpacked(layer: bytes) -> bytes:
    """Return a layer as the configuration counts it: some engines save it compressed."""
    return gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), EPOCH_S, 0o644
    archive.addfile(member, io.BytesIO(content))
