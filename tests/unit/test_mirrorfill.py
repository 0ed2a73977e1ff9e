"""Filling and verifying a mirror: an upstream and a mirror on 127.0.0.1 that misbehave as told."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import mirror_options, mirrorfill, mirrorset, mirrorverify, pins, provide, versions
from scripts.errors import LabError, UsageError
from scripts.mirror_options import MirrorOptions
from scripts.mirrorfill import fill
from scripts.mirrortarget import Tally
from scripts.mirrorverify import verify
from scripts.oci import OCI_MANIFEST, Manifest
from scripts.ociimage import BuiltImage
from scripts.registry_client import RegistryClient
from scripts.registry_errors import Endpoint
from scripts.settings import ImageSource, Settings
from scripts.sourcebuild import SourceSet
from scripts.sourcemirror import SourceImage
from scripts.transfer import Limits
from scripts.versions import PLATFORMS, Image, Tool, Versions
from tests.unit.fake_registry import FakeRegistry, digest

FAST = Limits(connect_s=10, read_s=10, tries=2, backoff_s=0.001)
CHART = b"a chart's archive"
AMD, ARM = b"amd64 layer" * 40_000, b"arm64 layer" * 1000
TOOL = b"a program" * 1000
SHA = hashlib.sha256(TOOL).hexdigest()


@pytest.fixture
def upstream(new_registry: Callable[..., FakeRegistry], monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    """Every upstream at once: images by name, files below /files."""
    found = new_registry()

    def client(image: str, limits: Limits | None = None) -> RegistryClient:
        return RegistryClient(Endpoint(found.host, found.authority.ca, None, ""), limits)

    monkeypatch.setattr(pins, "upstream_client", client)
    # Publishers are trusted by the usual authorities: here, by this one.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(found.authority.ca))
    return found


@pytest.fixture
def these(upstream: FakeRegistry) -> Versions:
    amd = upstream.add_image("library/x", "amd", AMD)
    arm = upstream.add_image("library/x", "arm", ARM, platform="linux/arm64")
    index = upstream.add_index("library/x", "1", {"linux/amd64": amd, "linux/arm64": arm})
    plain = upstream.add_image("fluxcd/y", "v2", b"one layer", b"two layers")
    chart = upstream.add_image("acme/charts/stack", "1.2.3", CHART)
    base = f"https://{upstream.host}/files"
    upstream.files |= {f"/files/acme/v1/t-{p}": TOOL for p in ("linux-amd64", "darwin-arm64")}
    upstream.files["/files/acme/v1/sums.txt"] = "".join(
        f"{SHA}  t-{p}\n" for p in ("linux-amd64", "darwin-arm64")
    ).encode()
    return replace(
        versions.load(),
        images={
            "x": Image("docker.io/library/x", "1", index),
            "y": Image("ghcr.io/fluxcd/y", "v2", plain),
            "alpine": Image("docker.io/library/x", "1", index),
        },
        charts={"stack": Image("ghcr.io/acme/charts/stack", "1.2.3", chart)},
        tools={"t": Tool("v1", base + "/acme/{version}/t-{os}-{arch}", base + "/acme/{version}/sums.txt")},
    )


@pytest.fixture
def settings(tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
    monkeypatch.setattr(pins, "LOCK_FILE", tmp_path / "versions.lock.yaml")
    # The Git server's image is another story: it needs an engine.
    ready = mirrorset.git_server_image(versions.load())
    monkeypatch.setattr(mirrorset, "git_server_image", lambda _: ready)
    registry.add_image(f"lab/{ready.image}", ready.tag, b"git server")
    return Settings(
        image_source=ImageSource.REGISTRY, cache_dir=tmp_path / "cache", state_root=tmp_path / "state",
        mirror_ca=registry.authority.ca,
    )  # fmt: skip


@pytest.fixture
def options(tmp_path: Path, registry: FakeRegistry) -> MirrorOptions:
    return MirrorOptions(f"{registry.host}/lab", tmp_path / "mirror", ("linux/amd64",))


def wrong(settings: Settings, these: Versions, options: MirrorOptions) -> list[str]:
    return verify(settings, these, options, FAST).wrong


def test_a_mirror_is_filled_with_all_and_verified(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry
) -> None:
    tally = fill(settings, these, options, FAST)
    assert (tally.sent, tally.found) == (5, 2), (
        "two images, a chart, a file and its checksums; a name that is there twice, the Git server"
    )
    amd = these.images["x"]
    assert registry.manifests["lab/docker.io/library/x", "1"][1]
    assert digest(AMD) in registry.blobs
    assert registry.blobs[digest(CHART)] == CHART
    assert digest(ARM) not in registry.blobs, "only the chosen platform"
    assert amd.digest == digest(registry.manifests["lab/docker.io/library/x", "1"][1])
    assert (options.files / "files/acme/v1/t-linux-amd64").read_bytes() == TOOL
    assert not list((options.folder / "partial").iterdir())
    assert wrong(settings, these, options) == []


def test_every_platform_is_copied_when_asked(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry
) -> None:
    everything = replace(options, whole_indexes=True, platforms=("linux/amd64", "darwin/arm64"))
    fill(settings, these, everything, FAST)
    assert {digest(AMD), digest(ARM)} <= set(registry.blobs)
    assert (options.files / "files/acme/v1/t-darwin-arm64").read_bytes() == TOOL
    assert wrong(settings, these, everything) == []


def test_a_second_run_sends_nothing(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry
) -> None:
    fill(settings, these, options, FAST)
    registry.requests.clear()
    tally = fill(settings, these, options, FAST)
    assert tally.found >= 5
    assert registry.asked("PUT|POST|PATCH") == []


def test_an_interrupted_run_is_finished_by_the_next_which_brings_only_what_is_missing(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry, upstream: FakeRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real = RegistryClient.push_blob
    calls = []

    def interrupted(self: RegistryClient, repository: str, wanted: str, path: Path, label: str) -> bool:
        calls.append(wanted)
        if wanted == digest(b"two layers"):
            raise KeyboardInterrupt
        return real(self, repository, wanted, path, label)

    with monkeypatch.context() as patch:
        patch.setattr(RegistryClient, "push_blob", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill(settings, these, options, FAST)
    assert ("lab/ghcr.io/fluxcd/y", "v2") not in registry.manifests, "half an image is no image"
    upstream.requests.clear()
    fill(settings, these, options, FAST)
    assert upstream.asked("GET .*fluxcd/y/blobs") == [], "the last blob had been brought, but not sent"
    assert digest(b"two layers") in registry.blobs
    assert wrong(settings, these, options) == []


def test_a_blob_that_breaks_off_goes_on_in_the_next_run(
    settings: Settings, these: Versions, options: MirrorOptions, upstream: FakeRegistry
) -> None:
    upstream.fault("GET", "blobs/" + digest(AMD), "truncate", times=2)
    with pytest.raises(LabError, match="the next run goes on from there"):
        fill(settings, these, options, FAST)
    fill(settings, these, options, FAST)
    assert "bytes=" in upstream.asked(f"GET .*{digest(AMD)}")[-1], "not from the first byte again"


@pytest.mark.parametrize("does", ["alter", "403", "404", "429"])
def test_what_goes_wrong_upstream_is_said_and_leaves_no_half_image(
    settings: Settings,
    these: Versions,
    options: MirrorOptions,
    upstream: FakeRegistry,
    registry: FakeRegistry,
    does: str,
) -> None:
    for method in ("GET", "HEAD"):
        upstream.fault(method, "library/x/blobs/" + digest(AMD), does, times=99)
    with pytest.raises(LabError) as refused:
        fill(settings, these, options, FAST)
    says = {"alter": "is not what its digest says", "403": "(403)", "404": "does not have", "429": "429"}[does]
    assert says in str(refused.value)
    assert ("lab/docker.io/library/x", "1") not in registry.manifests


def test_a_tag_that_moved_upstream_is_not_followed(
    settings: Settings, these: Versions, options: MirrorOptions, upstream: FakeRegistry, registry: FakeRegistry
) -> None:
    upstream.add_image("fluxcd/y", "v2", b"another")
    fill(settings, these, options, FAST)
    assert digest(registry.manifests["lab/ghcr.io/fluxcd/y", "v2"][1]) == these.images["y"].digest


def test_a_registry_that_wants_whole_indexes_says_so(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry
) -> None:
    registry.strict = True
    with pytest.raises(LabError) as refused:
        fill(settings, these, options, FAST)
    assert "PLATFORMS=all" in refused.value.mend


def test_a_platform_that_an_image_lacks_is_said(settings: Settings, these: Versions, options: MirrorOptions) -> None:
    with pytest.raises(LabError, match=r"docker\.io/library/x:1 has nothing for linux/riscv64"):
        fill(settings, these, replace(options, platforms=("linux/riscv64",)), FAST)


# ---------------------------------------------------------------- files


def test_an_altered_file_is_thrown_away(
    settings: Settings, these: Versions, options: MirrorOptions, upstream: FakeRegistry
) -> None:
    upstream.files["/files/acme/v1/t-linux-amd64"] = b"evil" + TOOL
    with pytest.raises(LabError, match="has the wrong checksum and was thrown away"):
        fill(settings, these, options, FAST)
    assert not (options.files / "files/acme/v1/t-linux-amd64").exists()
    assert not [p for p in (options.folder / "partial").iterdir() if "file-" in p.name]


def test_a_file_pinned_by_sha512_is_brought_and_verified(
    settings: Settings, these: Versions, options: MirrorOptions, upstream: FakeRegistry
) -> None:
    sums = dict.fromkeys(PLATFORMS, hashlib.sha512(TOOL).hexdigest())
    tool = replace(these.tools["t"], checksums="", sha512=sums)
    only = replace(these, tools={"t": tool})
    fill(settings, only, options, FAST)
    assert wrong(settings, only, options) == []
    (options.files / "files/acme/v1/t-linux-amd64").write_bytes(TOOL[:-1])
    (found,) = wrong(settings, only, options)
    assert "by the pin it is" in found


def test_a_file_that_its_publisher_does_not_list_is_refused(
    settings: Settings, these: Versions, options: MirrorOptions, upstream: FakeRegistry
) -> None:
    upstream.files["/files/acme/v1/sums.txt"] = b"nothing here\n"
    with pytest.raises(LabError, match="No checksum is known of files/acme/v1/t-linux-amd64"):
        fill(settings, these, options, FAST)


def test_files_are_sent_to_a_mirror_that_takes_them(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry
) -> None:
    there = replace(settings, download_mirror=f"https://{registry.host}/files/raw")
    fill(there, these, options, FAST)
    assert registry.files["/files/raw/files/acme/v1/t-linux-amd64"] == TOOL
    registry.requests.clear()
    fill(there, these, options, FAST)
    assert registry.asked("PUT /files") == []
    assert wrong(there, these, options) == []
    registry.files["/files/raw/files/acme/v1/t-linux-amd64"] = TOOL[:-1] + b"!"
    (found,) = wrong(there, these, options)
    assert "its sum is" in found
    registry.fault("PUT", "raw", "405", times=9)
    registry.files.clear()
    with pytest.raises(LabError, match="answered 405") as refused:
        fill(there, these, options, FAST)
    assert str(options.files) in refused.value.mend


# ---------------------------------------------------------------- verify


def test_everything_that_is_wrong_is_named(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry
) -> None:
    fill(settings, these, options, FAST)
    registry.blobs[digest(AMD)] = AMD[:-1] + b"!"
    registry.add_image("lab/ghcr.io/fluxcd/y", "v2", b"another")
    (options.files / "files/acme/v1/t-linux-amd64").write_bytes(TOOL[:-1])
    found = "\n".join(wrong(settings, these, options))
    assert "docker.io/library/x:1: " in found
    assert "is not what its digest says" in found
    assert f"ghcr.io/fluxcd/y:v2 is {digest(registry.manifests['lab/ghcr.io/fluxcd/y', 'v2'][1])}" in found
    assert f"not {these.images['y'].digest}" in found
    assert "files/acme/v1/t-linux-amd64: its sum is" in found


def test_what_is_missing_is_named(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry
) -> None:
    fill(settings, these, options, FAST)
    for key in [k for k in registry.manifests if k[0].endswith("fluxcd/y")]:
        del registry.manifests[key]
    (options.files / "files/acme/v1/sums.txt").unlink()
    found = "\n".join(wrong(settings, these, options))
    assert f"{registry.host} does not have lab/ghcr.io/fluxcd/y" in found
    assert "sums.txt is not there" in found
    assert verify(settings, these, replace(options, only=("x",)), FAST).wrong == []


def test_what_only_a_demand_needs_may_be_missing_but_not_be_another(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    demanded = replace(these.images["y"], on_demand="make keda")
    these = replace(these, images=these.images | {"y": demanded})
    monkeypatch.setattr(provide, "ON_DEMAND_TOOLS", ("t",))
    fill(settings, these, options, FAST)
    for file in (options.files / "files/acme/v1").iterdir():
        file.unlink()
    (manifest,) = [key for key in registry.manifests if key[0].endswith("fluxcd/y") and key[1].startswith("sha256:")]
    kept = registry.manifests.pop(manifest)
    assert wrong(settings, these, options) == []
    told = capsys.readouterr().out
    assert "ghcr.io/fluxcd/y:v2 is not there, nor needed" in told
    assert "files/acme/v1/t-linux-amd64 is not there, nor needed" in told
    registry.manifests[manifest] = kept
    (options.files / "files/acme/v1/t-linux-amd64").write_bytes(b"another")
    (options.files / "files/acme/v1/sums.txt").write_text(f"{SHA}  t-linux-amd64\n")
    assert [line.partition(":")[0] for line in wrong(settings, these, options)] == ["files/acme/v1/t-linux-amd64"]


def test_nothing_is_verified_in_a_mirror_that_is_not_reached(
    settings: Settings, these: Versions, options: MirrorOptions
) -> None:
    with pytest.raises(LabError, match="can't be reached"):
        verify(settings, these, replace(options, mirror="127.0.0.1:1"), FAST)
    with pytest.raises(LabError, match="can't be reached"):
        fill(settings, these, replace(options, mirror="127.0.0.1:1"), FAST)


def test_the_git_server_may_be_missing_where_its_base_is_there(
    settings: Settings,
    these: Versions,
    options: MirrorOptions,
    registry: FakeRegistry,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(settings, these, options, FAST)
    for key in [k for k in registry.manifests if "git-server" in k[0]]:
        del registry.manifests[key]
    assert wrong(settings, these, options) == []
    assert "setup builds it, with packages" in capsys.readouterr().out


# ---------------------------------------------------------------- from the source-built set


def test_a_mirror_is_filled_from_the_source_built_set(
    settings: Settings, these: Versions, options: MirrorOptions, registry: FakeRegistry, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    built: list[str] = []

    def image(name: str) -> SourceImage:
        def build(folder: Path) -> BuiltImage:
            built.append(name)
            (folder / "config").write_bytes(b"{}")
            body = f'{{"config": {{"digest": "{digest(b"{}")}", "size": 2}}, "layers": []}}'
            return BuiltImage(Manifest(body.encode(), OCI_MANIFEST), {digest(b"{}"): folder / "config"})

        return SourceImage(these.images[name], f"key of {name}", build)

    (tmp_path / "program").write_bytes(TOOL)
    source = SourceSet({"kind": tmp_path}, keys={"kind": "key of kind"})
    (tmp_path / "kind").write_bytes(TOOL)
    monkeypatch.setattr(mirrorfill.sourcebuild, "ensure_source_set", lambda *_: source)
    monkeypatch.setattr(mirrorfill.sourcemirror, "source_images", lambda *_: {"x": image("x"), "y": image("y")})
    monkeypatch.setitem(provide.TOOL_BINARIES, "t", ("kind", "kind"))
    monkeypatch.setattr(mirrorfill, "current_platform", lambda: "linux/amd64")
    here = replace(settings, image_source=ImageSource.SOURCE)
    tally = fill(here, these, options, FAST)
    assert (tally.sent, tally.left_out, built) == (4, ["alpine", "stack"], ["x", "y"])
    assert (options.files / "files/acme/v1/t-linux-amd64").read_bytes() == TOOL
    assert SHA in (options.files / "files/acme/v1/sums.txt").read_text()
    again = fill(here, these, options, FAST)
    assert (again.sent, again.found, again.sent_bytes, built) == (0, 4, 0, ["x", "y"])
    (options.files / "files/acme/v1/t-linux-amd64").write_bytes(b"damaged")
    assert fill(here, these, options, FAST).sent == 1
    assert (options.files / "files/acme/v1/t-linux-amd64").read_bytes() == TOOL
    del registry.manifests["lab/ghcr.io/fluxcd/y", "v2"]
    fill(here, these, options, FAST)
    assert built == ["x", "y", "y"]
    assert not (options.folder / "scratch").exists()
    with pytest.raises(LabError, match="builds for linux/amd64 only"):
        fill(here, these, replace(options, platforms=("linux/arm64",)), FAST)


# ---------------------------------------------------------------- options


def test_options_have_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_options, "current_platform", lambda: "darwin/arm64")
    found = mirror_options.load({"HOME": str(tmp_path)})
    assert found == MirrorOptions("", tmp_path / ".local" / "share" / "gitops-lab" / "mirror", ("darwin/arm64",))
    assert found.image_platforms == ("linux/arm64",), "containers are Linux everywhere"
    assert found.wants("anything")
    with pytest.raises(UsageError, match="MIRROR is not set"):
        mirror_options.require_mirror(found)


def test_options_are_read(tmp_path: Path) -> None:
    found = mirror_options.load(
        {"MIRROR": "m.example/lab", "PLATFORMS": "linux/amd64, darwin/arm64", "ONLY": "kind,node", "BIND": "192.168.1.5", "MIRROR_DIR": str(tmp_path)}
    )  # fmt: skip
    assert (found.mirror, found.folder, found.bind) == ("m.example/lab", tmp_path, ("192.168.1.5",))
    assert found.image_platforms == ("linux/amd64", "linux/arm64")
    assert found.wants("kind")
    assert not found.wants("kubectl")
    everything = mirror_options.load({"PLATFORMS": "all"})
    assert (everything.image_platforms, len(everything.platforms)) == ((), 4)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"MIRROR": "https://m.example"}, "MIRROR is not host"),
        ({"PLATFORMS": "linux/arm"}, "PLATFORMS: linux/arm is not known"),
        ({"BIND": "0.0.0.0"}, "is no single address"),
        ({"BIND": "laptop"}, "is not an address"),
        ({"MIRROR_PORT": "5444"}, "are both 5444"),
        ({"MIRROR_PORT": "x"}, "MIRROR_PORT=x is not a port"),
    ],
)
def test_options_that_can_not_be_used_are_refused(environ: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        mirror_options.load(environ)
    assert says in str(refused.value)
    assert refused.value.mend


def test_a_tally_speaks_of_bytes() -> None:
    assert str(Tally(2, 3, 5 * 1024**2)) == "2 things sent (5.0 MiB), 3 were there"


def test_the_platforms_of_a_verdict_are_said(options: MirrorOptions) -> None:
    assert "images for linux/amd64, files for linux/amd64" in mirrorverify.platforms_line(options)
