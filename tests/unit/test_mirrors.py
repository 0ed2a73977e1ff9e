"""A mirror of one's own: names, the look for its layout, what nodes are told, what is refused before anything is pulled."""

import platform
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import mirrors, mirrorset, versions
from scripts.errors import LabError
from scripts.mirrors import ImageMirror, hosts_files, open_mirror, require_images
from scripts.settings import ROOT, Credentials, Edge, MirrorLayout, Monitoring, Settings
from scripts.transfer import Limits
from scripts.versions import PLATFORMS, Image
from tests.unit.fake_registry import PASSWORD, USER, FakeRegistry

FAST = Limits(connect_s=10, read_s=10, tries=2, backoff_s=0.001)
D = f"sha256:{'d' * 64}"
ALPINE = Image("docker.io/library/alpine", "3.22", D)
FLUX = Image("ghcr.io/fluxcd/source-controller", "v1", D)


@pytest.mark.parametrize(
    ("layout", "prefix", "alpine", "flux"),
    [
        ("prefix", "", "docker.io/library/alpine", "ghcr.io/fluxcd/source-controller"),
        ("prefix", "team/lab", "team/lab/docker.io/library/alpine", "team/lab/ghcr.io/fluxcd/source-controller"),
        ("flat", "", "library/alpine", "fluxcd/source-controller"),
        ("flat", "lab", "lab/library/alpine", "lab/fluxcd/source-controller"),
    ],
)
def test_an_image_has_its_place_in_each_layout(layout: str, prefix: str, alpine: str, flux: str) -> None:
    mirror = ImageMirror("mirror.example:5443", prefix, MirrorLayout(layout))
    assert mirror.repository(ALPINE.image) == alpine
    assert mirror.repository(FLUX.image) == flux
    assert mirror.reference(ALPINE) == f"mirror.example:5443/{alpine}:3.22@{D}"


@pytest.fixture
def settings(registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker-config"))
    return Settings(cache_dir=tmp_path, image_mirror=f"{registry.host}/lab", mirror_ca=registry.authority.ca)


@pytest.mark.parametrize(
    ("layout", "repository"), [("prefix", "lab/docker.io/library/alpine"), ("flat", "lab/library/alpine")]
)
def test_the_layout_is_found_by_a_look(
    registry: FakeRegistry, settings: Settings, layout: str, repository: str
) -> None:
    probe = replace(ALPINE, digest=registry.add_image(repository, "3.22", b"layer"))
    found = open_mirror(settings, probe, FAST)
    assert found is not None
    assert (found.layout, found.prefix, found.host) == (layout, "lab", registry.host)


def test_a_named_layout_is_taken_without_a_look(registry: FakeRegistry, settings: Settings) -> None:
    found = open_mirror(replace(settings, image_mirror_layout=MirrorLayout.FLAT), ALPINE, FAST)
    assert found is not None
    assert found.layout is MirrorLayout.FLAT
    assert registry.requests == []


def test_a_mirror_that_has_it_nowhere_is_refused(settings: Settings) -> None:
    with pytest.raises(LabError) as refused:
        open_mirror(settings, ALPINE, FAST)
    assert "has neither lab/docker.io/library/alpine nor lab/library/alpine" in refused.value.what
    assert "IMAGE_MIRROR_LAYOUT" in refused.value.mend


def test_there_is_no_mirror_without_the_variable() -> None:
    assert open_mirror(Settings(), ALPINE) is None


def test_all_missing_images_are_named_at_once(registry: FakeRegistry) -> None:
    mirror = ImageMirror(registry.host, "", MirrorLayout.PREFIX, registry.authority.ca)
    there = replace(ALPINE, digest=registry.add_image("docker.io/library/alpine", "3.22", b"layer"))
    require_images(mirror, [there], FAST)
    with pytest.raises(LabError) as refused:
        require_images(mirror, [there, FLUX, replace(FLUX, image="quay.io/x/y")], FAST)
    assert "lacks 2 images" in refused.value.what
    assert f"{registry.host}/ghcr.io/fluxcd/source-controller:v1@{D}" in str(refused.value)
    assert "quay.io/x/y" in str(refused.value)
    assert "alpine" not in str(refused.value)
    assert "mirror-fill" in refused.value.mend


def test_a_tag_that_has_another_digest_is_a_missing_image(registry: FakeRegistry) -> None:
    registry.add_image("ghcr.io/fluxcd/source-controller", "v1", b"altered")
    mirror = ImageMirror(registry.host, "", MirrorLayout.PREFIX, registry.authority.ca)
    with pytest.raises(LabError, match="lacks one image"):
        require_images(mirror, [FLUX], FAST)


# ---------------------------------------------------------------- nodes


def test_nodes_are_led_to_the_mirror_with_no_way_past_it(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    mirror = ImageMirror("mirror.example:5443", "lab", MirrorLayout.PREFIX, ca, Credentials(USER, PASSWORD))
    files = hosts_files(mirror, ["docker.io", "quay.io"], "172.17.0.1:5443")
    docker_io = tomllib.loads(files["/etc/containerd/certs.d/docker.io/hosts.toml"])
    assert docker_io == {
        "server": "https://172.17.0.1:5443/v2/lab/docker.io",
        "capabilities": ["pull", "resolve"],
        "override_path": True,
        "ca": "/etc/containerd/certs.d/gitops-lab-mirror-ca.crt",
        "header": {"Authorization": Credentials(USER, PASSWORD).basic},
    }
    assert files["/etc/containerd/certs.d/gitops-lab-mirror-ca.crt"] == ca.read_text()
    assert PASSWORD not in "".join(files.values())


def test_a_flat_mirror_without_ca_and_user() -> None:
    (text,) = hosts_files(ImageMirror("m.example", "", MirrorLayout.FLAT), ["ghcr.io"], "m.example").values()
    assert tomllib.loads(text) == {
        "server": "https://m.example/v2",
        "capabilities": ["pull", "resolve"],
        "override_path": True,
    }


def test_every_upstream_of_the_lab_and_of_clusters_is_led_there() -> None:
    found = mirrors.upstreams(versions.load())
    assert {"docker.io", "ghcr.io", "quay.io", "registry.k8s.io"} <= set(found)
    assert {image.image.partition("/")[0] for image in versions.load().images.values()} <= set(found)


@pytest.mark.parametrize(
    ("host", "system", "gateway", "wanted"),
    [
        ("mirror.example:5443", "Linux", "", "mirror.example:5443"),
        ("mirror.example", "Darwin", "", "mirror.example"),
        ("127.0.0.1:5443", "Linux", "172.17.0.1", "172.17.0.1:5443"),
        ("localhost:5443", "Darwin", "172.17.0.1", "host.docker.internal:5443"),
    ],
)
def test_nodes_reach_this_machine_by_another_name(
    monkeypatch: pytest.MonkeyPatch, host: str, system: str, gateway: str, wanted: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(
        mirrors, "inspect", lambda *_: {"IPAM": {"Config": [{"Subnet": "fd00::/8"}, {"Gateway": gateway}]}}
    )
    assert mirrors.host_for_nodes(host) == wanted


def test_a_mirror_that_nodes_can_not_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(mirrors, "inspect", lambda *_: None)
    with pytest.raises(LabError, match="Nodes can't reach a mirror on 127"):
        mirrors.host_for_nodes("127.0.0.1:5443")


# ---------------------------------------------------------------- files


def test_release_files_come_from_the_mirror_by_their_upstream_paths() -> None:
    bases = mirrors.download_bases(Settings(download_mirror="https://mirror.example/files"), versions.load())
    assert bases == {
        "https://github.com": "https://mirror.example/files",
        "https://dl.k8s.io": "https://mirror.example/files",
        "https://get.helm.sh": "https://mirror.example/files",
    }
    assert mirrors.download_bases(Settings(), versions.load()) == {}


@pytest.mark.parametrize(
    ("image_mirror", "download_mirror", "known"),
    [
        ("mirror.example:5443/lab", "https://mirror.example/files", True),
        ("mirror.example", "https://files.example", False),
        ("", "https://mirror.example/files", False),
    ],
)
def test_the_mirrors_user_is_shown_to_its_own_host_only(
    monkeypatch: pytest.MonkeyPatch, image_mirror: str, download_mirror: str, known: bool
) -> None:
    monkeypatch.setenv("IMAGE_MIRROR_USER", USER)
    monkeypatch.setenv("IMAGE_MIRROR_PASSWORD", PASSWORD)
    found = mirrors.download_credentials(Settings(image_mirror=image_mirror, download_mirror=download_mirror))
    assert found == (Credentials(USER, PASSWORD) if known else None)


def test_what_a_mirror_must_hold() -> None:
    these = versions.load()
    assert set(mirrorset.all_images(these)) == {*these.images, "kube-prometheus-stack", "git-server"}
    needed = mirrorset.needed_images(Settings(), these)
    assert "kube-prometheus-stack" in needed
    lite = mirrorset.needed_images(Settings(monitoring=Monitoring.LITE), these)
    assert set(needed) - set(lite) == {"kube-prometheus-stack", "grafana", "k8s-sidecar"}
    on_demand = {name for name, image in these.images.items() if image.on_demand}
    assert {"keda", "keda-adapter"} <= on_demand
    assert set(these.images) - set(needed) - on_demand == {"alpine"}, "the Git server comes ready built"
    assert not on_demand & set(needed), "a mirror that was filled before somebody had a demand is whole"
    assert "envoy" not in mirrorset.needed_images(Settings(edge=Edge.NONE), these)
    files = mirrorset.release_files(these)
    paths = [f.path for f in files]
    assert len(set(paths)) == len(paths)
    for name, tool in these.tools.items():
        for place in PLATFORMS:
            (file,) = [f for f in files if f.url == tool.url_for(place)]
            assert (file.tool, file.platform, file.digest) == (name, place, tool.pinned(place))
            assert not tool.checksums or tool.checksums_url_for(place) in {f.url for f in files if f.is_checksums}
    assert "kubernetes-sigs/kustomize/releases/download/kustomize/v5.8.1/checksums.txt" in paths


def test_the_git_servers_name_follows_what_it_is_made_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    these = versions.load()
    first = mirrorset.git_server_image(these)
    moved = replace(these, images={**these.images, "alpine": replace(these.images["alpine"], digest=D)})
    assert mirrorset.git_server_image(moved).tag != first.tag
    assert mirrorset.git_server_image(replace(these, images={**these.images, "node": ALPINE})) == first


def test_a_closed_mirror_names_the_user(new_registry: Callable[..., FakeRegistry], settings: Settings) -> None:
    closed = new_registry(auth="basic")
    with pytest.raises(LabError, match="wants a user and a password"):
        open_mirror(replace(settings, image_mirror=closed.host), ALPINE, FAST)


def test_the_documents_list_what_a_mirror_must_hold() -> None:
    """After a change of versions.yaml: put the output of `python -m scripts mirror-list` between the marks."""
    page = (ROOT / "how-to-run.MD").read_text()
    assert page.partition("<!-- mirror-list -->\n")[2].partition("<!-- /mirror-list -->")[0] == mirrorset.listing(
        versions.load()
    )


def test_the_list_names_everything_once() -> None:
    these = versions.load()
    rows = mirrorset.listing(these).splitlines()[2:]
    assert (
        len(set(rows))
        == len(rows)
        == len(these.artifacts) + 1 + sum(1 + bool(t.checksums) for t in these.tools.values())
    )
    for image in these.images.values():
        assert f"| image | {image.image} | {image.tag} |" in rows
