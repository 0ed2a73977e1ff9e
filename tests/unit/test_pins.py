"""What a run holds to, and `make lock`, against a mirror on 127.0.0.1."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import lockfile, pins, versions
from scripts.errors import LabError
from scripts.lockfile import LockFile
from scripts.settings import MirrorLayout, Settings
from scripts.transfer import Limits
from scripts.versions import PLATFORMS, Image, Tool, Versions
from tests.unit.fake_registry import FakeRegistry

FAST = Limits(connect_s=10, read_s=10, tries=2, backoff_s=0.001)
A, B, C = ("a" * 64, "b" * 64, "c" * 64)
NODE = "docker.io/kindest/node:v1"
OTHER = "ghcr.io/fluxcd/source-controller:v9"
SUMS = "/files/acme/{}/sums.txt"


@pytest.fixture
def these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    monkeypatch.setattr(lockfile, "LOCK_FILE", tmp_path / "versions.lock.yaml")
    monkeypatch.setattr(pins, "LOCK_FILE", tmp_path / "versions.lock.yaml")
    url = "https://publisher.invalid/acme/{version}/t-{os}-{arch}"
    tools = {
        "pinned": Tool("v1", url, sha256=dict.fromkeys(PLATFORMS, A)),
        "open": Tool("v2", url, "https://publisher.invalid/acme/{version}/sums.txt"),
    }
    images = {
        "node": Image("docker.io/kindest/node", "v1", f"sha256:{A}"),
        "source-controller": Image("ghcr.io/fluxcd/source-controller", "v9"),
    }
    return replace(versions.load(), tools=tools, images=images)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", state_root=tmp_path / "state")


@pytest.fixture
def mirrored(settings: Settings, registry: FakeRegistry) -> Settings:
    return replace(
        settings,
        image_mirror=f"{registry.host}/lab",
        image_mirror_layout=MirrorLayout.PREFIX,
        download_mirror=f"https://{registry.host}/files",
        mirror_ca=registry.authority.ca,
    )


def sums(version: str, *rows: tuple[str, str]) -> dict[str, bytes]:
    """Return a publisher's checksum file as a file server has it: a sum for each named platform."""
    return {SUMS.format(version): "\n".join(f"{s}  t-{p.replace('/', '-')}" for p, s in rows).encode()}


def file_of(settings: Settings) -> LockFile:
    return pins.lock_file(settings)


def test_pins_are_written_down_without_a_network(
    these: Versions, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    only = replace(these, tools={"pinned": these.tools["pinned"]}, images={"node": these.images["node"]})
    pins.lock_pins(settings, only, limits=FAST)
    found = file_of(settings).read()
    assert dict(found.images) == {NODE: f"sha256:{A}"}
    assert dict(found.tools["pinned"].digests) == dict.fromkeys(PLATFORMS, A)
    assert f"{NODE}: new -> {A[:12]}" in capsys.readouterr().out
    pins.lock_pins(settings, only, limits=FAST)
    assert "5 digests, none changed" in capsys.readouterr().out


def test_what_is_not_pinned_is_looked_up_in_the_mirror(
    these: Versions, mirrored: Settings, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.add_image("lab/docker.io/kindest/node", "v1", b"node")
    digest = registry.add_image("lab/ghcr.io/fluxcd/source-controller", "v9", b"layer")
    registry.files |= sums("v2", ("linux/amd64", B), ("darwin/arm64", C))
    pins.lock_pins(mirrored, these, limits=FAST)
    found = file_of(mirrored).read()
    assert dict(found.images) == {NODE: f"sha256:{A}", OTHER: digest}, "a pin is not asked about"
    assert dict(found.tools["open"].digests) == {"linux/amd64": B, "darwin/arm64": C}
    assert "open v2: no checksum for linux/arm64, darwin/amd64" in capsys.readouterr().out


def test_a_look_up_that_fails_leaves_the_record(
    these: Versions, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    file_of(settings).record_image(OTHER, f"sha256:{B}")
    pins.lock_pins(
        settings, replace(these, images={"s": Image("registry.invalid/x", "v9")} | dict(these.images)), limits=FAST
    )
    assert file_of(settings).read().images[OTHER] == f"sha256:{B}"
    assert "registry.invalid/x:v9: not looked up (registry.invalid can't be reached" in capsys.readouterr().out


def test_what_changed_is_shown_and_what_is_gone_is_dropped(
    these: Versions, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    only = replace(these, tools={"pinned": these.tools["pinned"]}, images={"node": these.images["node"]})
    pins.lock_pins(settings, only, limits=FAST)
    newer = Image("docker.io/kindest/node", "v2", f"sha256:{B}")
    capsys.readouterr()
    pins.lock_pins(settings, replace(only, images={"node": newer}), limits=FAST)
    out = capsys.readouterr().out
    assert f"docker.io/kindest/node:v1: {A[:12]} -> gone" in out
    assert f"docker.io/kindest/node:v2: new -> {B[:12]}" in out
    assert dict(file_of(settings).read().images) == {newer.tagged: newer.digest}


@pytest.mark.parametrize("what", ["image", "tool"])
def test_a_changed_pin_under_an_unchanged_version_is_refused_unless_forced(
    these: Versions, settings: Settings, what: str
) -> None:
    only = replace(these, tools={"pinned": these.tools["pinned"]}, images={"node": these.images["node"]})
    pins.lock_pins(settings, only, limits=FAST)
    changed = (
        replace(only, images={"node": replace(only.images["node"], digest=f"sha256:{B}")})
        if what == "image"
        else replace(only, tools={"pinned": replace(only.tools["pinned"], sha256=dict.fromkeys(PLATFORMS, B))})
    )
    with pytest.raises(LabError, match="changed under an unchanged version") as refused:
        pins.lock_pins(settings, changed, limits=FAST)
    assert "FORCE=1" in refused.value.mend
    with pytest.raises(LabError, match="disagree about") as stopped:
        pins.effective(settings, changed)
    assert "FORCE=1 make lock" in stopped.value.mend
    pins.lock_pins(settings, changed, force=True, limits=FAST)
    assert pins.effective(settings, changed).images["node"].digest == changed.images["node"].digest


def test_a_run_holds_an_open_image_to_the_lock(these: Versions, settings: Settings) -> None:
    assert pins.effective(settings, these).images["source-controller"].digest == ""
    file_of(settings).record_image(OTHER, f"sha256:{B}")
    assert pins.effective(settings, these).images["source-controller"].digest == f"sha256:{B}"


# ---------------------------------------------------------------- a lock of one's own


@pytest.fixture
def own(mirrored: Settings, tmp_path: Path, registry: FakeRegistry) -> Settings:
    registry.add_image("lab/docker.io/kindest/node", "v1", b"built from source")
    registry.files |= sums("v1", ("linux/amd64", B)) | sums("v2", ("linux/amd64", C))
    return replace(mirrored, versions_lock=tmp_path / "mirror.lock.yaml")


def test_a_lock_of_ones_own_counts_before_the_pins(
    these: Versions, own: Settings, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    with_sums = {
        n: replace(t, checksums="https://publisher.invalid/acme/{version}/sums.txt") for n, t in these.tools.items()
    }
    these = replace(these, tools=with_sums)
    git_server = Image("registry.lab/git-server", "0123")
    built = registry.add_image("lab/registry.lab/git-server", "0123", b"git")
    pins.lock_pins(own, these, [git_server], limits=FAST)
    assert f"{OTHER}: not in {registry.host}" in capsys.readouterr().out
    node = registry.manifests["lab/docker.io/kindest/node", "v1"]
    found = pins.effective(own, these)
    assert found.images["node"].digest != these.images["node"].digest
    assert file_of(own).read().images[git_server.tagged] == built
    assert found.images["node"].digest in {d for (r, d), v in registry.manifests.items() if v == node}
    assert found.tools["pinned"].sha256["linux/amd64"] == B
    assert found.tools["pinned"].sha256["darwin/arm64"] == A, "what the mirror lacks stays the publisher's"
    registry.add_image("lab/docker.io/kindest/node", "v1", b"built anew")
    with pytest.raises(LabError, match="changed under an unchanged version"):
        pins.lock_pins(own, these, limits=FAST)
    pins.lock_pins(own, these, limits=FAST, force=True)


def test_a_file_without_a_publishers_checksum_is_locked_by_its_own(
    these: Versions, own: Settings, registry: FakeRegistry
) -> None:
    pinned = Tool(
        "v1", "https://publisher.invalid/acme/{version}/t-{os}-{arch}", sha512=dict.fromkeys(PLATFORMS, A * 2)
    )
    registry.files["/files/acme/v1/t-linux-amd64"] = b"archive"
    only = replace(these, tools={"kube-apiserver": pinned})
    pins.lock_pins(own, only, limits=FAST)
    sha512 = hashlib.sha512(b"archive").hexdigest()
    assert dict(file_of(own).read().tools["kube-apiserver"].digests) == {"linux/amd64": sha512}
    found = pins.effective(own, only).tools["kube-apiserver"]
    assert found.pinned("linux/amd64") == sha512
    assert found.pinned("darwin/arm64") == A * 2


def test_a_lock_of_ones_own_without_a_mirror_is_refused(these: Versions, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="VERSIONS_LOCK is for a mirror"):
        pins.lock_pins(replace(settings, versions_lock=tmp_path / "l"), these, limits=FAST)
    with pytest.raises(LabError, match="is not there"):
        pins.effective(replace(settings, versions_lock=tmp_path / "l"), these)


def test_a_mirror_that_is_not_reached_stops_its_lock(
    these: Versions, own: Settings, new_registry: Callable[..., FakeRegistry]
) -> None:
    with pytest.raises(LabError, match="can't be reached"):
        pins.lock_pins(replace(own, image_mirror="127.0.0.1:1"), these, limits=FAST)
    assert not file_of(own).read().images
