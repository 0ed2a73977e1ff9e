"""The engine's pulls through a mirror: a fake engine, a real registry on 127.0.0.1."""

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import mirror_pull, mirrorset, provide, versions
from scripts.errors import LabError
from scripts.mirror_pull import open_pull
from scripts.mirrors import ImageMirror
from scripts.process import CommandError
from scripts.settings import ImageSource, MirrorLayout, Settings
from scripts.versions import Image, Versions
from tests.unit.conftest import Programs
from tests.unit.fake_registry import PASSWORD, USER, FakeRegistry


class Engine:
    """A fake `docker` that keeps which images it has, and what its configuration was at a pull."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self.programs = programs
        self.folder = folder / "engine"
        self.folder.mkdir()
        programs.add(
            "docker",
            f"""PATH=/usr/bin:/bin; cd "{self.folder}"; last=$(eval echo "\\${{$#}}"); name() {{ echo "$1" | tr / _; }}
            case "$1" in
            image) [ -e "$(name "$last")" ] || {{ echo "Error: No such image" >&2; exit 1; }};;
            pull) [ ! -e refuse ] || {{ cat refuse >&2; exit 1; }}; touch "$(name "$last")"
              [ -z "$DOCKER_CONFIG" ] || cat "$DOCKER_CONFIG/config.json" > given 2>/dev/null;;
            tag|build) touch "$(name "$last")";;
            esac; exit 0""",
        )

    def has(self, *names: str) -> None:
        for name in names:
            (self.folder / name.replace("/", "_")).touch()

    def pulled(self) -> list[str]:
        return [call[-1] for call in self.programs.calls("docker") if call[1] == "pull"]

    def did(self, verb: str) -> list[list[str]]:
        return [call[2:] for call in self.programs.calls("docker") if call[1] == verb]


@pytest.fixture
def engine(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
    for name in ("IMAGE_MIRROR_USER", "IMAGE_MIRROR_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return Engine(programs, tmp_path)


@pytest.fixture
def settings(tmp_path: Path, registry: FakeRegistry) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", image_mirror=f"{registry.host}/lab", mirror_ca=registry.authority.ca)


def filled(registry: FakeRegistry, without: tuple[str, ...] = ()) -> Versions:
    """Fill the registry and return the versions with the digests that it has."""
    these = versions.load()
    images = {}
    for name, image in mirrorset.all_images(these).items():
        digest = ""
        if name not in without:
            digest = registry.add_image(f"lab/{image.image}", image.tag, name.encode())
        if name in these.images:
            images[name] = replace(image, digest=digest or image.digest)
    return replace(these, images=images)


def test_images_are_pulled_by_the_mirrored_name_and_digest(
    engine: Engine, settings: Settings, registry: FakeRegistry
) -> None:
    pinned = filled(registry)
    pull = open_pull(settings, versions.load(), pinned)
    assert pull.ensure(provide.ENGINE_IMAGES) == [pinned.images[n].tagged for n in provide.ENGINE_IMAGES]
    node = pinned.images["node"]
    assert (
        engine.pulled()[0]
        == f"{registry.host}/lab/docker.io/kindest/node:{node.tag}@{node.digest}"
        == pull.reference("node")
    )
    assert pull.ensure(provide.ENGINE_IMAGES) == []
    assert len(engine.pulled()) == 3


def test_a_lab_that_has_its_images_asks_no_mirror(engine: Engine, settings: Settings, registry: FakeRegistry) -> None:
    pinned = filled(registry)
    flat = ImageMirror(registry.host, "lab", MirrorLayout.FLAT)
    engine.has(*(flat.reference(pinned.images[name]) for name in provide.ENGINE_IMAGES))
    pull = open_pull(settings, versions.load(), pinned)
    assert pull.mirror is not None
    assert pull.mirror.layout is MirrorLayout.FLAT
    assert pull.ensure(provide.ENGINE_IMAGES) == []
    assert registry.requests == []


def test_without_a_mirror_the_upstream_is_pulled_from(engine: Engine, tmp_path: Path) -> None:
    these = versions.load()
    pull = open_pull(Settings(cache_dir=tmp_path), these, these)
    assert pull.ensure(["registry"]) == [these.images["registry"].tagged]
    assert engine.pulled() == [these.images["registry"].reference]


@pytest.mark.parametrize("missing", ["node", "envoy", "source-controller"])
def test_nothing_is_pulled_while_one_image_is_missing(
    engine: Engine, settings: Settings, registry: FakeRegistry, missing: str
) -> None:
    pinned = filled(registry, without=(missing,))
    with pytest.raises(LabError) as refused:
        open_pull(replace(settings, image_mirror_layout=MirrorLayout.PREFIX), versions.load(), pinned)
    assert "lacks one image" in refused.value.what
    assert pinned.images[missing].tag in str(refused.value)
    assert engine.pulled() == []


def test_the_mirrors_user_lets_the_engine_in_and_is_in_no_command(
    engine: Engine, settings: Settings, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_MIRROR_USER", USER)
    monkeypatch.setenv("IMAGE_MIRROR_PASSWORD", PASSWORD)
    registry.auth = "basic"
    pull = open_pull(settings, versions.load(), filled(registry))
    pull.ensure(["registry"])
    given = json.loads((engine.folder / "given").read_text())
    assert list(given["auths"]) == [registry.host]
    shown = json.dumps(engine.programs.calls())
    assert PASSWORD not in shown
    assert given["auths"][registry.host]["auth"] not in shown


def test_the_engines_own_words_are_shown_when_it_refuses(
    engine: Engine, settings: Settings, registry: FakeRegistry
) -> None:
    pull = open_pull(settings, versions.load(), filled(registry))
    (engine.folder / "refuse").write_text("filesystem layer verification failed for digest sha256:ab\n")
    with pytest.raises(CommandError) as failed:
        pull.ensure(["node"])
    assert "layer verification failed" in str(failed.value)
    assert "mirror-verify" in failed.value.mend


# ---------------------------------------------------------------- the Git server


def git_server() -> Image:
    return mirrorset.git_server_image(versions.load())


def test_the_git_server_comes_ready_built_from_the_mirror(
    engine: Engine, settings: Settings, registry: FakeRegistry
) -> None:
    pull = open_pull(settings, versions.load(), filled(registry))
    name, pulled = pull.ensure_git_server()
    assert name == f"gitops-lab/git-server:{git_server().tag}"
    assert pulled == [git_server().tagged]
    (tagged,) = engine.did("tag")
    assert tagged[0].startswith(f"{registry.host}/lab/registry.lab/git-server:{git_server().tag}@sha256:")
    assert engine.did("build") == []
    engine.has(name)
    assert pull.ensure_git_server() == (name, [])


def test_a_git_server_that_changed_in_the_mirror_is_refused(
    engine: Engine, settings: Settings, registry: FakeRegistry
) -> None:
    pull = open_pull(settings, versions.load(), filled(registry))
    pull.ensure_git_server()
    (engine.folder / pull.ensure_git_server()[0].replace("/", "_")).unlink()
    del registry.manifests[
        f"lab/{git_server().image}", registry.add_image(f"lab/{git_server().image}", git_server().tag, b"new")
    ]
    for key in [k for k in registry.manifests if "git-server" in k[0] and k[1].startswith("sha256:")]:
        del registry.manifests[key]
    with pytest.raises(LabError, match="of the digest that was seen there first"):
        pull.ensure_git_server()


def test_without_a_ready_one_the_git_server_is_built_on_the_mirrors_alpine(
    engine: Engine, settings: Settings, registry: FakeRegistry
) -> None:
    pinned = filled(registry, without=("git-server",))
    pull = open_pull(settings, versions.load(), pinned)
    name, pulled = pull.ensure_git_server()
    assert pulled == [pinned.images["alpine"].tagged]
    (built,) = engine.did("build")
    assert f"BASE_IMAGE={pull.reference('alpine')}" in built
    assert name == f"gitops-lab/git-server:{git_server().tag}" in built
    with pytest.raises(LabError, match="lacks one image"):
        open_pull(
            settings, versions.load(), filled(registry_without_alpine(registry), without=("git-server", "alpine"))
        )


def registry_without_alpine(registry: FakeRegistry) -> FakeRegistry:
    for key in [k for k in registry.manifests if "alpine" in k[0]]:
        del registry.manifests[key]
    return registry


# ---------------------------------------------------------------- the engine's trust


def test_root_tells_the_engine_of_the_ca(
    engine: Engine, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_pull, "_certificates", lambda: tmp_path / "certs.d")
    monkeypatch.setattr(mirror_pull, "is_root", lambda: True)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    mirror = ImageMirror("mirror.example:5443", ca=registry.authority.ca)
    mirror_pull.trust(mirror)
    assert (tmp_path / "certs.d" / "mirror.example:5443" / "ca.crt").read_text() == registry.authority.ca.read_text()
    mirror_pull.trust(ImageMirror("127.0.0.1:5443", ca=registry.authority.ca))
    assert len(list((tmp_path / "certs.d").iterdir())) == 1, "an engine takes what is on 127.0.0.1 without it"


@pytest.mark.parametrize(("system", "says"), [("Linux", "sudo cp "), ("Darwin", "restart the engine")])
def test_others_are_told_the_command(
    engine: Engine, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, says: str
) -> None:
    monkeypatch.setattr(mirror_pull, "_certificates", lambda: tmp_path / "certs.d")
    monkeypatch.setattr(mirror_pull, "is_root", lambda: False)
    monkeypatch.setattr(platform, "system", lambda: system)
    mirror = ImageMirror("mirror.example:5443", ca=registry.authority.ca)
    with pytest.raises(LabError, match="does not know the CA of mirror") as refused:
        mirror_pull.trust(mirror)
    assert says in refused.value.mend
    target = tmp_path / "certs.d" / "mirror.example:5443" / "ca.crt"
    target.parent.mkdir(parents=True)
    target.write_text(registry.authority.ca.read_text())
    mirror_pull.trust(mirror)


# ---------------------------------------------------------------- which source


def test_a_mirror_means_registry_mode_unless_the_lab_is_another_one(tmp_path: Path) -> None:
    settings = Settings(image_mirror="mirror.example", state_root=tmp_path)
    assert provide.choose_source(settings) == (ImageSource.REGISTRY, "IMAGE_MIRROR=mirror.example")
    provide.remember_source(settings, ImageSource.SOURCE)
    assert provide.choose_source(settings) == (ImageSource.SOURCE, "as this lab was set up")
