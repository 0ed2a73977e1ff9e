"""Images put together without an engine."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from scripts import images, sourcemirror, versions
from scripts.downloads import _extract, find_sha256
from scripts.errors import LabError
from scripts.images import ComponentImage
from scripts.ociimage import FileInImage, ImageSpec, assemble, from_engine
from scripts.settings import KIND_DIR
from scripts.sourcebuild import SourceSet
from tests.unit.conftest import Programs
from tests.unit.fake_registry import digest


def root(folder: Path) -> Path:
    path = folder / "root.tar.gz"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("etc/base"))
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=5))
    return path


def spec(folder: Path) -> ImageSpec:
    (folder / "binary").write_bytes(b"\x7fELF" * 500)
    files = [
        FileInImage("/usr/local/bin/server", folder / "binary", executable=True),
        FileInImage("/usr/local/lib/x.conf", b"a = 1\n"),
        FileInImage("/srv/data", None, owner=1001),
    ]
    return ImageSpec("amd64", root(folder), files, {"Entrypoint": ["/usr/local/bin/server"], "User": "1001:1001"})


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_the_manifest_names_blobs_that_are_there(tmp_path: Path, work: Path) -> None:
    built = assemble(spec(tmp_path), work)
    assert built.manifest.blobs() == {d: p.stat().st_size for d, p in built.blobs.items()}
    assert {digest(p.read_bytes()) for p in built.blobs.values()} == set(built.blobs)
    content = built.manifest.content
    config = json.loads(built.blobs[content["config"]["digest"]].read_bytes())
    assert (config["architecture"], config["os"]) == ("amd64", "linux")
    assert config["config"] == {"Entrypoint": ["/usr/local/bin/server"], "User": "1001:1001"}
    layers = [gzip.decompress(built.blobs[entry["digest"]].read_bytes()) for entry in content["layers"]]
    assert config["rootfs"]["diff_ids"] == [digest(layer) for layer in layers]
    assert built.blobs[content["layers"][0]["digest"]] == tmp_path / "root.tar.gz", "the base is sent as it lies there"


def test_files_have_their_place_mode_and_owner(tmp_path: Path, work: Path) -> None:
    built = assemble(spec(tmp_path), work)
    layer = built.blobs[built.manifest.content["layers"][-1]["digest"]]
    with tarfile.open(layer) as tar:
        found = {m.name: (m.isdir(), oct(m.mode), m.uid) for m in tar}
        assert tar.extractfile("usr/local/lib/x.conf").read() == b"a = 1\n"  # type: ignore[union-attr]
        names = [m.name for m in tar]
    assert found == {
        "usr": (True, "0o755", 0),
        "usr/local": (True, "0o755", 0),
        "usr/local/bin": (True, "0o755", 0),
        "usr/local/bin/server": (False, "0o755", 0),
        "usr/local/lib": (True, "0o755", 0),
        "usr/local/lib/x.conf": (False, "0o644", 0),
        "srv": (True, "0o755", 0),
        "srv/data": (True, "0o755", 1001),
    }
    assert len(set(names)) == len(names)


def test_the_same_input_gives_the_same_digest(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "work").mkdir(parents=True)
        made.append(assemble(spec(folder), folder / "work").manifest.digest)
    assert made[0] == made[1]


def test_a_full_disk_is_said(tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "layer").symlink_to("/dev/full")
    with pytest.raises(LabError, match="is full"):
        assemble(spec(tmp_path), work)


@pytest.mark.parametrize("linked", [False, True], ids=["as saved today", "with a layer that stands there as a link"])
def test_an_image_is_taken_out_of_the_engine(tmp_path: Path, work: Path, programs: Programs, linked: bool) -> None:
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digest(b"one"), digest(b"two")]}}
    ).encode()
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))

        add("a/layer.tar", b"one")
        add("b/real.tar" if linked else "b/layer.tar", b"two")
        if linked:
            link = tarfile.TarInfo("c/layer.tar")
            link.type, link.linkname = tarfile.SYMTYPE, "../b/real.tar"
            tar.addfile(link)
        add("config.json", config)
        layers = ["a/layer.tar", "c/layer.tar" if linked else "b/layer.tar"]
        add("manifest.json", json.dumps([{"Config": "config.json", "Layers": layers}]).encode())
    programs.add("docker", f'PATH=/usr/bin:/bin; cp "{archive}" "$3"')
    built = from_engine("gitops-lab/node:1", work)
    (call,) = programs.calls("docker")
    assert call[1:3] == ["save", "--output"]
    assert call[-1] == "gitops-lab/node:1"
    content = built.manifest.content
    assert json.loads(built.blobs[content["config"]["digest"]].read_bytes()) == json.loads(config)
    assert [gzip.decompress(built.blobs[e["digest"]].read_bytes()) for e in content["layers"]] == [b"one", b"two"]
    assert not (work / "saved.tar").exists()


# ---------------------------------------------------------------- the source-built set


@pytest.fixture
def source(tmp_path: Path) -> SourceSet:
    """A source-built set with a few bytes for every binary."""
    these = versions.load()
    folders, keys = {}, {}
    others = dict.fromkeys(("envoy", "module-files", "flux-cli", "alertmanager", "prometheus-ui"))
    for name, module in {**these.modules, **others}.items():
        folders[name] = tmp_path / "entries" / name
        folders[name].mkdir(parents=True)
        keys[name] = f"key of {name}"
        for binary in module.binaries if module else ("envoy", "pause", "flux", "alertmanager"):
            (folders[name] / binary).write_bytes(f"program {binary}".encode())
    (folders["prometheus-ui"] / "static" / "mantine-ui").mkdir(parents=True)
    (folders["prometheus-ui"] / "static" / "mantine-ui" / "index.html").write_text("a page")
    rootfs = {}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("etc/ssl/certs/ca-certificates.crt")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"CAs"))
    for name in ("glibc", "net", "git", "python", "node"):
        rootfs[f"rootfs-{name}"] = tmp_path / f"{name}.tar.gz"
        rootfs[f"rootfs-{name}"].write_bytes(packed.getvalue())
        keys[f"rootfs-{name}"] = f"key of {name}"
    return SourceSet(folders, rootfs, keys)


def test_the_source_built_set_has_every_image_but_those_that_only_upstream_has(source: SourceSet) -> None:
    these = versions.load()
    made = sourcemirror.source_images(source, these, "amd64")
    assert set(these.images) - set(made) == {"alpine", "grafana", "k8s-sidecar"}
    assert "git-server" in made
    for name, entry in made.items():
        if name != "git-server":
            assert entry.image == these.images[name]
    assert len({entry.key for entry in made.values()}) == len(made)


def test_an_image_is_as_its_recipe_says(source: SourceSet, work: Path) -> None:
    recipe = next(r for r in images.load_recipes(versions.load()) if r.name == "registry")
    made = sourcemirror.component_spec(recipe, source, "amd64")
    assert made.base is None
    assert {f.path for f in made.files} == {
        "/bin/registry",
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/distribution/config.yml",
    }
    assert made.config["Cmd"] == ["serve", "/etc/distribution/config.yml"]
    built = sourcemirror.source_images(source, versions.load(), "amd64")["registry"].build(work)
    assert len(built.blobs) == 2


def test_a_folder_of_a_recipe_is_laid_out_in_the_image(source: SourceSet) -> None:
    recipe = next(r for r in images.load_recipes(versions.load()) if r.name == "prometheus")
    made = sourcemirror.component_spec(recipe, source, "amd64")
    (page,) = (f for f in made.files if f.path.endswith("index.html"))
    assert page.path == f"{recipe.workdir}/static/mantine-ui/index.html", "where Prometheus looks for it"
    assert not page.executable and made.config["WorkingDir"] == recipe.workdir


def test_the_node_image_of_a_mirror_holds_none_of_the_labs_own_images(
    source: SourceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def ensure(source: SourceSet, versions: object, recipes: list[ComponentImage], portable: bool) -> tuple[str, bool]:
        assert portable, "it may go to an engine in which images can't lie unpacked"
        seen.append(recipes)
        return "n:1", True

    monkeypatch.setattr(sourcemirror.nodeimage, "ensure_node_image", ensure)
    monkeypatch.setattr(sourcemirror, "from_engine", lambda name, folder: name)
    assert sourcemirror.source_images(source, versions.load(), "amd64")["node"].build(tmp_path) == "n:1"
    assert {r.name for r in seen[0]} == {"kubernetes", "etcd", "coredns", "pause", "kube-router"}


def test_the_git_server_is_what_its_dockerfile_describes(source: SourceSet) -> None:
    made = sourcemirror.git_server_spec(source, "amd64")
    lines = [line.split() for line in (KIND_DIR / "git-server" / "Dockerfile").read_text().splitlines() if line.strip()]
    copied = set()
    for _, *words in (line for line in lines if line[0] == "COPY"):
        *origins, goal = [w for w in words if not w.startswith("--")]
        copied |= {goal.rstrip("/") if o == "srv-git/" else goal + (o if goal.endswith("/") else "") for o in origins}
    assert {f.path for f in made.files} == copied
    assert made.config["User"] == next(line[1] for line in lines if line[0] == "USER")
    assert list(made.config["Volumes"]) == [line[1] for line in lines if line[0] == "VOLUME"]
    assert made.config["Entrypoint"] == json.loads(next(line[1] for line in lines if line[0] == "ENTRYPOINT"))
    for file in made.files:
        if isinstance(file.content, Path):
            assert file.executable == bool(file.content.stat().st_mode & 0o100), file.path


def test_a_program_is_published_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"program")
    assert sourcemirror.release_file({"": tmp_path / "binary"}) == b"program"


def test_an_archive_holds_every_program_under_its_published_name(tmp_path: Path) -> None:
    members = ("controller-tools/envtest/kube-apiserver", "controller-tools/envtest/etcd")
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(f"program {name}".encode())
    data = sourcemirror.release_file(dict(zip(members, (tmp_path / "a", tmp_path / "b"), strict=True)))
    (tmp_path / "file").write_bytes(data)
    for member, content in zip(members, (b"program a", b"program b"), strict=True):
        with (tmp_path / "out").open("wb") as out:
            _extract(tmp_path / "file", member, out, "tools")
        assert (tmp_path / "out").read_bytes() == content
    text = sourcemirror.checksums_of({"y.tar.gz": hashlib.sha256(data).hexdigest()})
    assert find_sha256(text, "y.tar.gz") == hashlib.sha256(data).hexdigest()


def test_other_platforms_can_not_be_built_here() -> None:
    sourcemirror.require_platforms(("linux/amd64",), "linux/amd64")
    with pytest.raises(LabError, match="builds for linux/amd64 only, not for darwin/arm64"):
        sourcemirror.require_platforms(("linux/amd64", "darwin/arm64"), "linux/amd64")
