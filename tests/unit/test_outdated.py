from dataclasses import replace
from pathlib import Path

import pytest

from scripts import outdated, versions
from scripts.errors import LabError
from scripts.outdated import Found, module_of, newest_like
from scripts.settings import MirrorLayout, Settings
from scripts.versions import Image, Tool
from tests.unit.conftest import Programs
from tests.unit.fake_registry import FakeRegistry


@pytest.mark.parametrize(
    ("pinned", "candidates", "newest"),
    [
        ("v1.37.0", ["v1.37.2", "v1.37.1", "v1.9.9"], "v1.37.2"),
        ("v1.9.4", ["v1.10.1"], "v1.10.1"),
        ("v1.9.4", ["v1.10.0-rc.1", "1.11.0", "v2"], "v1.9.4"),
        ("3.22", ["3.22.1", "3.23", "3.21", "edge"], "3.23"),
        ("3.22", ["3.22.1"], "3.22"),
        ("distroless-v1.39.1", ["v1.40.0", "distroless-v1.39.2", "distroless-v1.40.0-rc1"], "distroless-v1.39.2"),
        ("3.2-alpine", ["3.4-alpine", "3.5"], "3.4-alpine"),
        ("nonroot", ["latest", "debug"], "nonroot"),
        ("v1.2.3", [], "v1.2.3"),
    ],
)
def test_a_successor_is_written_as_what_it_follows(pinned: str, candidates: list[str], newest: str) -> None:
    assert newest_like(pinned, candidates) == newest


@pytest.mark.parametrize(
    ("package", "module"),
    [
        ("github.com/containerd/containerd/v2/cmd/ctr", "github.com/containerd/containerd/v2"),
        ("go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
        ("example.com/nobody/has/this", "example.com/nobody/has/this"),
    ],
)
def test_a_package_belongs_to_the_longest_module_of_the_go_mod(package: str, module: str) -> None:
    go_mod = "go 1.26.0\n\nrequire (\n\tgithub.com/containerd/containerd/v2 v2.3.7 // indirect\n\tgithub.com/containerd v1.0.0\n)\nrequire go.etcd.io/etcd/server/v3 v3.7.0\n"
    assert module_of(package, go_mod) == module


def test_newer_versions_are_seen_in_the_mirror(
    registry: FakeRegistry, tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(
        cache_dir=tmp_path,
        image_mirror=registry.host,
        image_mirror_layout=MirrorLayout.FLAT,
        download_mirror=f"https://{registry.host}/files",
        mirror_ca=registry.authority.ca,
    )
    for tag in ("v1.37.0", "v1.38.0", "v1.39.0-rc.0"):
        registry.add_image("kindest/node", tag, b"layer")
    registry.files["/files/release/stable.txt"] = b"v1.37.2\n"
    programs.add("go", """cat <<'END'
{"Path": "k8s.io/kubernetes", "Versions": ["v1.37.0", "v1.37.3"]}
{"Path": "example.com/gone", "Error": {"Err": "not found\\nmore"}}
END""".replace("cat", "/bin/cat"))  # fmt: skip
    kubernetes = replace(versions.load().modules["kubernetes"], module="k8s.io/kubernetes@v1.37.0")
    gone = replace(versions.load().modules["kind"], packages=("example.com/gone@v1.0.0",))
    these = replace(
        versions.load(),
        images={"node": Image("docker.io/kindest/node", "v1.37.0"), "x": Image("docker.io/library/x", "1.0")},
        charts={},
        tools={
            "kubectl": Tool("v1.37.0", "https://dl.k8s.io/release/{version}/kubectl", "https://dl.k8s.io/x"),
            "kind": Tool(
                "v0.1.0", "https://github.com/o/kind/releases/download/{version}/kind", "https://github.com/x"
            ),
        },
        modules={"kubernetes": kubernetes, "kind": gone},
    )
    found = {f.name: f for f in outdated.look(settings, these)}
    assert found["docker.io/kindest/node"] == Found("image", "docker.io/kindest/node", "v1.37.0", "v1.38.0")
    assert not found["docker.io/library/x"].is_newer
    assert found["kubectl"].newest == "v1.37.2"
    assert found["kind"].why == "127.0.0.1 answered 404"
    assert found["k8s.io/kubernetes"].newest == "v1.37.3"
    assert found["example.com/gone"].why == "not found"
    outdated.render(list(found.values()))
    out = capsys.readouterr().out
    assert "4 of 6 asked, 3 newer" in out
    assert "not asked: kind: 127.0.0.1 answered 404" in out


@pytest.mark.parametrize(
    ("tag", "latest", "found"),
    [
        ("v{version}", "v2.9.6", "2.9.6"),
        ("{version}", "v0.34.0", "v0.34.0"),
        ("kustomize/{version}", "kustomize%2Fv5.9.0", "v5.9.0"),
        ("kustomize/{version}", "kyaml%2Fv0.21.0", None),
        ("envtest-{version}", "v0.21.0", None),
    ],
)
def test_a_release_is_read_from_where_latest_leads(tag: str, latest: str, found: str | None) -> None:
    location = f"https://github.com/o/r/releases/tag/{latest}"
    if found:
        assert outdated._tail(location, tag) == found
    else:
        with pytest.raises(LabError, match="another tool's"):
            outdated._tail(location, tag)
