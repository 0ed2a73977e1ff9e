"""An image's archive written anew: the same content gives the same bytes, whoever built it and when."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import appimage
from scripts.reproducible import EPOCH, EPOCH_S, normalised_layer, rewrite

BASE = {"etc/": b"", "etc/passwd": b"root:x:0:0\n"}
APP = {"app/": b"", "app/main.py": b"print(1)\n", "app/" + "long/" * 40 + "x.py": b"x\n"}
NAME = "localhost:5001/demo-app:abc"


def layer(files: dict[str, bytes], moment: int, backwards: bool = False) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(files.items(), reverse=backwards):
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size, member.mtime, member.uid, member.uname = len(content), moment, 1001, f"builder-{moment}"
            member.pax_headers = {"atime": str(moment), "SCHILY.xattr.user.kept": "yes"}
            archive.addfile(member, io.BytesIO(content))
    return output.getvalue()


def config(layers: list[bytes], moment: int) -> dict[str, Any]:
    """What the classic builder writes, moment and machine included."""
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": f"2026-01-01T00:00:{moment:02}Z",
        "container": f"{moment:064}",
        "container_config": {"Hostname": f"{moment:012}"},
        "docker_version": f"20.10.{moment}",
        "config": {
            "User": "1001:1001",
            "Env": ["A=1"],
            "Labels": {"revision": "abc"},
            "Cmd": None,
            "Hostname": f"{moment:012}",
            "Image": f"sha256:{moment:064}",
        },
        "history": [
            {"created": f"2026-01-01T00:00:{moment:02}Z", "created_by": "COPY", "comment": f"by {moment}"},
            {"created": f"2026-01-01T00:00:{moment:02}Z", "created_by": "USER", "empty_layer": True},
        ],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers]},
    }


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def save_classic(path: Path, layers: list[bytes], described: dict[str, Any]) -> None:
    """As engines before 25 save."""
    with tarfile.open(path, "w") as archive:
        names = [f"{number:064}/layer.tar" for number, _ in enumerate(layers)]
        for name, content in zip(names, layers, strict=True):
            add(archive, name, content)
        add(archive, "c.json", json.dumps(described).encode())
        add(archive, "manifest.json", json.dumps([{"Config": "c.json", "RepoTags": None, "Layers": names}]).encode())


def save_oci(path: Path, layers: list[bytes], described: dict[str, Any]) -> None:
    """As later engines save, with compressed layers as the containerd store has them."""
    with tarfile.open(path, "w") as archive:
        names = []
        for content in layers:
            blob = gzip.compress(content)
            names.append(f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}")
            add(archive, names[-1], blob)
        add(archive, "blobs/sha256/c", json.dumps(described).encode())
        manifest = [{"Config": "blobs/sha256/c", "RepoTags": ["x:y"], "Layers": names}]
        add(archive, "manifest.json", json.dumps(manifest).encode())
        add(archive, "index.json", b"{}")


Save = Callable[[Path, list[bytes], dict[str, Any]], None]


def written(folder: Path, save: Save, moment: int, app: dict[str, bytes] = APP) -> tuple[bytes, str]:
    layers = [layer(BASE, 7), layer(app, moment, backwards=moment % 2 == 0)]
    save(folder / "saved.tar", layers, config(layers, moment))
    identity = rewrite(folder / "saved.tar", folder / "written.tar", 1, NAME)
    return (folder / "written.tar").read_bytes(), identity


@pytest.mark.parametrize("save", [save_classic, save_oci])
def test_two_builds_of_the_same_content_are_the_same_to_the_byte(tmp_path: Path, save: Save) -> None:
    assert written(tmp_path, save_classic, 10) == written(tmp_path, save, 21)


def test_another_content_is_another_image(tmp_path: Path) -> None:
    one = written(tmp_path, save_classic, 10)[1]
    assert one != written(tmp_path, save_classic, 10, {**APP, "app/main.py": b"print(2)\n"})[1]


def test_the_archive_is_one_that_an_engine_loads(tmp_path: Path) -> None:
    content, identity = written(tmp_path, save_oci, 10)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        (manifest,) = json.loads(read("manifest.json"))
        assert manifest["RepoTags"] == [NAME]
        described = read(manifest["Config"])
        assert identity == f"sha256:{hashlib.sha256(described).hexdigest()}"
        layers = [read(name) for name in manifest["Layers"]]
    image = json.loads(described)
    assert image["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers]
    assert layers[0] == layer(BASE, 7), "the base's layers stay as they are"
    assert image["config"] == {"User": "1001:1001", "Env": ["A=1"], "Labels": {"revision": "abc"}}
    assert {entry["created"] for entry in image["history"]} | {image["created"]} == {EPOCH}
    assert [entry.get("empty_layer", False) for entry in image["history"]] == [False, True]


def test_a_layer_keeps_what_is_in_it(tmp_path: Path) -> None:
    links = io.BytesIO()
    with tarfile.open(fileobj=links, mode="w") as archive:
        add(archive, "b-target", b"content")
        for name, kind in (("a-hard", tarfile.LNKTYPE), ("c-soft", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode, member.uid = kind, "b-target", 0o4755, 1001
            archive.addfile(member)
        add(archive, "app/.wh.gone", b"")
    with tarfile.open(fileobj=io.BytesIO(normalised_layer(links.getvalue()))) as archive:
        members = {m.name: m for m in archive}
        assert list(members) == ["app/.wh.gone", "b-target", "c-soft", "a-hard"]
        assert {m.mtime for m in members.values()} == {EPOCH_S}
        hard = members["a-hard"]
        assert (hard.linkname, hard.mode, hard.uid, hard.islnk()) == ("b-target", 0o4755, 1001, True)
        file = archive.extractfile("b-target")
        assert file is not None and file.read() == b"content"
    with tarfile.open(fileobj=io.BytesIO(normalised_layer(layer(APP, 1)))) as archive:
        assert {tuple(m.pax_headers) for m in archive if len(m.name) < 100} == {("SCHILY.xattr.user.kept",)}
        assert [m.name for m in archive] == sorted(name.rstrip("/") for name in APP)


def test_dependencies_say_nothing_of_the_machine_that_installed_them(tmp_path: Path) -> None:
    info = tmp_path / "flask-3.dist-info"
    for path in (tmp_path / "bin" / "flask", info / "RECORD", info / "INSTALLER", info / "METADATA", info / "LICENSE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/home/me/.venv/bin/python\n")
    appimage.remove_traces(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["flask-3.dist-info/LICENSE", "flask-3.dist-info/METADATA"]
