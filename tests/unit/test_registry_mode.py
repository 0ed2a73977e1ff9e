"""Step 2 in registry mode through a mirror that fails in one way at a time: its line, and nothing half written."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import mirrorset, pins, provide, transfer, versions
from scripts.errors import LabError
from scripts.hostfacts import current_platform
from scripts.process import CommandError
from scripts.settings import ImageSource, Settings
from scripts.transfer import Limits
from scripts.versions import Tool, Versions
from tests.unit.conftest import Programs
from tests.unit.fake_registry import FakeRegistry, make_authority
from tests.unit.test_mirror_pull import Engine

PROGRAM = b"#!/bin/sh\n" * 40_000
SHA = hashlib.sha256(PROGRAM).hexdigest()
FAST = Limits(connect_s=10, read_s=10, tries=3, backoff_s=0.001)
FILE = "/files/acme/kubectl"


class Lab:
    """A mirror with everything, an engine with nothing, and the settings that bring them together."""

    def __init__(self, registry: FakeRegistry, engine: Engine, folder: Path) -> None:
        self.registry = registry
        self.engine = engine
        self.folder = folder
        url = "https://publisher.invalid/acme/"
        pinned = {current_platform(): SHA}
        tools = {name: Tool("v1", url + name, url + "sums", sha256=pinned) for name in provide.TOOLS}
        registry.files |= {f"/files/acme/{name}": PROGRAM for name in provide.TOOLS}
        these = versions.load()
        images = {}
        for name, image in mirrorset.all_images(these).items():
            digest = registry.add_image(f"lab/{image.image}", image.tag, name.encode())
            if name in these.images:
                images[name] = replace(image, digest=digest)
        self.versions: Versions = replace(these, tools=tools, images=images)
        # The Git server's tag is a hash of, among others, the base's digest.
        ready = mirrorset.git_server_image(self.versions)
        registry.add_image(f"lab/{ready.image}", ready.tag, b"git server")
        self.settings = Settings(
            image_source=ImageSource.REGISTRY,
            cache_dir=folder / "cache",
            state_root=folder / "state",
            image_mirror=f"{registry.host}/lab",
            download_mirror=f"https://{registry.host}/files",
            mirror_ca=registry.authority.ca,
        )

    def provide(self, **changes: object) -> provide.Provided:
        settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        return provide.provide(settings, self.versions, ImageSource.REGISTRY, self.folder / "logs")[0]

    def half_written(self) -> list[str]:
        """Return what is in the tools folder besides whole tools: what an earlier run left is for the next one."""
        tools = self.settings.tools_dir
        files = [p for p in tools.rglob("*") if p.is_file() and not {".locks", ".partial"} & set(p.parts)]
        return [p.name for p in files if p.name.lstrip(".").removesuffix(".json") not in provide.TOOLS]


@pytest.fixture
def lab(registry: FakeRegistry, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
    for name in ("IMAGE_MIRROR_USER", "IMAGE_MIRROR_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pins, "LOCK_FILE", tmp_path / "versions.lock.yaml")
    monkeypatch.setattr(pins, "Limits", lambda: FAST)
    return Lab(registry, Engine(programs, tmp_path), tmp_path)


def test_all_of_it_comes_from_the_mirror_once(lab: Lab) -> None:
    found = lab.provide()
    host = lab.registry.host
    assert (
        found.node_image
        == f"{host}/lab/docker.io/kindest/node:{lab.versions.images['node'].tag}@{lab.versions.images['node'].digest}"
    )
    assert found.mirror is not None
    assert found.pin_images
    assert found.versions.images["source-controller"].reference.startswith("ghcr.io/fluxcd/"), (
        "no manifest names the mirror"
    )
    assert all((lab.settings.tools_dir / name).read_bytes() == PROGRAM for name in provide.TOOLS)
    assert len(lab.engine.pulled()) == 4
    assert all(name.startswith(host) for name in lab.engine.pulled())
    lab.registry.requests.clear()
    assert lab.provide() == found
    assert lab.registry.requests == [], "what is there is not asked about again"


def unreachable(lab: Lab) -> dict[str, object]:
    return {"image_mirror": "127.0.0.1:1/lab"}


def files_unreachable(lab: Lab) -> dict[str, object]:
    return {"download_mirror": "https://127.0.0.1:1/files"}


def wrong_path(lab: Lab) -> dict[str, object]:
    return {"image_mirror": f"{lab.registry.host}/other"}


def not_a_registry(lab: Lab) -> dict[str, object]:
    lab.registry.fault("GET", "/v2/$", "404", times=99)
    return {}


def wants_a_user(lab: Lab) -> dict[str, object]:
    lab.registry.auth = "bearer"
    return {}


def forbidden(lab: Lab) -> dict[str, object]:
    lab.registry.fault("HEAD", "manifests", "403", times=99)
    return {}


def other_ca(lab: Lab) -> dict[str, object]:
    return {"mirror_ca": make_authority(lab.folder / "other").ca, "download_mirror": ""}


def other_ca_for_files(lab: Lab) -> dict[str, object]:
    return {"mirror_ca": make_authority(lab.folder / "other").ca}


def one_missing(lab: Lab) -> dict[str, object]:
    del lab.registry.manifests["lab/docker.io/envoyproxy/envoy", lab.versions.images["envoy"].digest]
    return {}


def digest_differs(lab: Lab) -> dict[str, object]:
    image = lab.versions.images["node"]
    lab.registry.manifests.pop((f"lab/{image.image}", image.digest))
    lab.registry.add_image(f"lab/{image.image}", image.tag, b"altered")
    return {}


def file_altered(lab: Lab) -> dict[str, object]:
    lab.registry.files[FILE] = PROGRAM[:-1] + b"!"
    return {}


def file_cut(lab: Lab) -> dict[str, object]:
    lab.registry.files[FILE] = PROGRAM[: len(PROGRAM) // 2]
    return {}


def file_missing(lab: Lab) -> dict[str, object]:
    del lab.registry.files[FILE]
    return {}


def file_refused(lab: Lab) -> dict[str, object]:
    lab.registry.fault("GET", FILE, "403", times=99)
    return {}


def busy(lab: Lab) -> dict[str, object]:
    lab.registry.fault("HEAD", "manifests", "429", times=99)
    return {}


def files_busy(lab: Lab) -> dict[str, object]:
    lab.registry.fault("GET", FILE, "429", times=99)
    return {}


def hangs_up(lab: Lab) -> dict[str, object]:
    lab.registry.fault("GET", FILE, "hang up", times=99)
    return {}


@pytest.mark.parametrize(
    ("breaks", "says", "mends"),
    [
        (unreachable, "127.0.0.1:1 can't be reached", "IMAGE_MIRROR"),
        (files_unreachable, "no connection to 127.0.0.1", "check the network"),
        (wrong_path, "has neither other/docker.io/kindest/node nor other/kindest/node", "IMAGE_MIRROR_LAYOUT"),
        (not_a_registry, "is no image registry", "IMAGE_MIRROR"),
        (wants_a_user, "wants a user and a password (401)", "IMAGE_MIRROR_USER"),
        (forbidden, "(403)", "ask for the right"),
        (other_ca, "can't be trusted", "MIRROR_CA="),
        (other_ca_for_files, "can't be trusted", "MIRROR_CA="),
        (one_missing, "lacks one image", "mirror-fill"),
        (digest_differs, "lab/docker.io/kindest/node", "IMAGE_MIRROR_LAYOUT"),
        (file_altered, "kubectl v1: the downloaded file has the wrong checksum", "a mirror alters the file"),
        (file_cut, "kubectl v1: the downloaded file has the wrong checksum", "a mirror alters the file"),
        (file_missing, "kubectl v1: not found (404)", "a mirror, if one is set"),
        (file_refused, "kubectl v1: refused (403 Forbidden)", "user and password"),
        (busy, "429 Too Many Requests, after", "run again later"),
        (files_busy, "429 Too Many Requests, after 3 tries", "check the network"),
        (hangs_up, "no connection to 127.0.0.1", "check the network"),
    ],
)
def test_each_failure_has_its_line_and_leaves_nothing_half_written(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[Lab], dict[str, object]], says: str, mends: str
) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    changes = breaks(lab)
    if changes.get("download_mirror") == "":
        del changes["download_mirror"]
        monkeypatch.setattr(provide, "_ensure_tools", lambda *_: provide.Outcome(False, "tools found"))
    with pytest.raises(LabError) as refused:
        lab.provide(**changes)
    assert says in str(refused.value)
    assert mends in refused.value.mend
    assert len(refused.value.what.splitlines()) == 1
    assert lab.engine.pulled() == [], "no pull before everything is known to be there"
    assert lab.half_written() == []


def test_an_altered_layer_is_refused_by_the_engine_itself(lab: Lab) -> None:
    (lab.engine.folder / "refuse").write_text("filesystem layer verification failed for digest sha256:0123\n")
    with pytest.raises(CommandError, match="layer verification failed") as refused:
        lab.provide()
    assert "mirror-verify" in refused.value.mend


def test_after_a_failure_the_next_run_brings_only_what_is_missing(lab: Lab) -> None:
    lab.registry.fault("GET", "/files/acme/flux", "403")
    with pytest.raises(LabError):
        lab.provide()
    first = lab.registry.asked("GET /files")
    lab.registry.requests.clear()
    lab.provide()
    again = lab.registry.asked("GET /files")
    assert not {line for line in first if "flux" not in line} & set(again)
    assert len(set(first) | set(again)) == len(provide.TOOLS)
