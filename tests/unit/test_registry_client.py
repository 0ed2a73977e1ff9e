"""The registry client against a registry that misbehaves as told."""

import http.server
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import registry_client
from scripts.errors import LabError
from scripts.oci import OCI_INDEX, Manifest, file_digest
from scripts.registry_client import RegistryClient
from scripts.registry_errors import Endpoint, MissingError, RegistryError
from scripts.settings import Credentials
from scripts.transfer import DownloadError, Limits
from tests.unit.fake_registry import PASSWORD, USER, Authority, FakeRegistry, digest, make_authority

FAST = Limits(connect_s=10, read_s=10, tries=3, backoff_s=0.001)
LAYER = bytes(range(256)) * 1024
NAME = "docker.io/library/alpine"
ME = Credentials(USER, PASSWORD)


def client(registry: FakeRegistry, credentials: Credentials | None = None, ca: Path | None = None) -> RegistryClient:
    return RegistryClient(Endpoint(registry.host, ca or registry.authority.ca, credentials), FAST)


def test_an_image_is_found_by_tag_and_by_digest(registry: FakeRegistry) -> None:
    wanted = registry.add_image(NAME, "3", LAYER)
    speaking = client(registry)
    speaking.ping()
    assert speaking.digest_of(NAME, "3") == wanted
    assert speaking.digest_of(NAME, wanted) == wanted
    assert speaking.digest_of(NAME, "4") == ""
    found = speaking.manifest(NAME, wanted)
    assert found.digest == wanted
    assert found.blobs()[digest(LAYER)] == len(LAYER)
    with pytest.raises(MissingError, match=rf"{registry.host} does not have {NAME}:4"):
        speaking.manifest(NAME, "4")


def test_an_index_names_its_platforms(registry: FakeRegistry) -> None:
    amd = registry.add_image(NAME, "amd", LAYER)
    arm = registry.add_image(NAME, "arm", LAYER[1:], platform="linux/arm64")
    registry.add_index(NAME, "3", {"linux/amd64": amd, "linux/arm64": arm})
    found = client(registry).manifest(NAME, "3")
    assert found.is_index
    assert found.children(("linux/arm64",)) == [arm]
    assert found.children() == [amd, arm]


def test_a_manifest_that_is_not_its_digest_is_refused(registry: FakeRegistry) -> None:
    wanted = registry.add_image(NAME, "3", LAYER)
    registry.fault("GET", "manifests", "alter")
    with pytest.raises(RegistryError, match="is not what its digest says"):
        client(registry).manifest(NAME, wanted)


# ---------------------------------------------------------------- being let in


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_a_user_is_let_in_by_password_or_by_token(
    new_registry: Callable[..., FakeRegistry], auth: str, tmp_path: Path
) -> None:
    registry = new_registry(auth=auth)
    wanted = registry.add_image(NAME, "3", LAYER)
    speaking = client(registry, ME)
    assert speaking.digest_of(NAME, "3") == wanted
    speaking.pull_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer")
    (tmp_path / "new").write_bytes(b"new")
    assert speaking.push_blob(NAME, digest(b"new"), tmp_path / "new", "new")
    if auth == "bearer":
        assert sorted(set(registry.scopes)) == [f"repository:{NAME}:pull", f"repository:{NAME}:pull,push"]


@pytest.mark.parametrize(
    ("auth", "credentials", "says", "mend"),
    [
        ("basic", None, "wants a user and a password (401)", "docker login"),
        ("bearer", None, "wants a user and a password (401)", "IMAGE_MIRROR_USER and IMAGE_MIRROR_PASSWORD"),
        ("basic", Credentials(USER, "wrong-password"), f"does not know the user {USER} or its password (401)", "IMAGE_MIRROR_USER"),
        ("bearer", Credentials(USER, "wrong-password"), f"does not know the user {USER} or its password (401)", "IMAGE_MIRROR_USER"),
    ],
)  # fmt: skip
def test_who_is_not_let_in_is_told_so_at_once(
    new_registry: Callable[..., FakeRegistry], auth: str, credentials: Credentials | None, says: str, mend: str
) -> None:
    registry = new_registry(auth=auth)
    registry.add_image(NAME, "3", LAYER)
    with pytest.raises(RegistryError) as refused:
        client(registry, credentials).digest_of(NAME, "3")
    assert says in refused.value.what
    assert mend in refused.value.mend
    assert "wrong-password" not in str(refused.value)
    assert len(registry.asked("/v2/")) <= 2, "a refused password is not tried again and again"


def test_who_may_not_read_it_is_told_so(registry: FakeRegistry) -> None:
    registry.fault("HEAD", "manifests", "403")
    with pytest.raises(RegistryError, match=rf"refuses {NAME}:3 to everybody \(403\)"):
        client(registry).digest_of(NAME, "3")


def test_a_password_is_in_no_printed_form() -> None:
    assert PASSWORD not in repr(Endpoint("mirror.example", None, ME))
    assert PASSWORD not in f"{ME} {ME!r}"


# ---------------------------------------------------------------- not reached


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_nobody_there(authority: Authority) -> None:
    with pytest.raises(RegistryError) as refused:
        RegistryClient(Endpoint(f"127.0.0.1:{free_port()}", authority.ca), FAST).ping()
    assert "can't be reached" in refused.value.what
    assert "refused" in refused.value.what
    assert "IMAGE_MIRROR" in refused.value.mend


def test_a_port_that_speaks_no_tls(authority: Authority) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        with pytest.raises(RegistryError, match="does not speak TLS"):
            RegistryClient(Endpoint(f"127.0.0.1:{server.server_port}", authority.ca), FAST).ping()
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_where_something_else_listens(registry: FakeRegistry) -> None:
    registry.fault("GET", "/v2/$", "404")
    with pytest.raises(RegistryError, match="is no image registry"):
        client(registry).ping()


def test_a_ca_that_did_not_sign_it(registry: FakeRegistry, tmp_path: Path) -> None:
    other = make_authority(tmp_path / "other")
    for ca in (other.ca, None):
        speaking = RegistryClient(Endpoint(registry.host, ca), FAST)
        with pytest.raises(RegistryError, match="can't be trusted") as refused:
            speaking.ping()
        assert "MIRROR_CA=" in refused.value.mend


def test_a_certificate_for_another_name(authority: Authority, tmp_path: Path) -> None:
    other = FakeRegistry(make_authority(tmp_path / "other", "DNS:mirror.example")).start()
    try:
        with pytest.raises(RegistryError, match="is for another name"):
            client(other).ping()
    finally:
        other.close()


def test_a_stall_is_bounded(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(NAME, "3", LAYER)
    registry.fault("GET", "blobs", "stall", times=9)
    started = time.monotonic()
    impatient = RegistryClient(Endpoint(registry.host, registry.authority.ca), replace(FAST, read_s=0.5))
    with pytest.raises(DownloadError, match=r"silent for too long, after 3 tries.*are here; the next run goes on"):
        impatient.pull_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer")
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("status", ["429", "503"])
def test_a_busy_registry_is_asked_again_after_the_time_it_names(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    wanted = registry.add_image(NAME, "3", LAYER)
    registry.fault("HEAD", "manifests", status, times=2, retry_after="7")
    assert client(registry).digest_of(NAME, "3") == wanted
    assert pauses == [7.0, 7.0]


def test_a_registry_that_stays_busy_is_given_up(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    registry.fault("HEAD", "manifests", "429", times=99)
    with pytest.raises(RegistryError, match="gave up: it answered 429 Too Many Requests, after 3 tries"):
        client(registry).digest_of(NAME, "3")
    assert len(registry.asked("HEAD")) == 3


# ---------------------------------------------------------------- blobs


def test_a_broken_blob_goes_on_where_it_stopped(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(NAME, "3", LAYER)
    registry.fault("GET", "blobs", "truncate")
    client(registry).pull_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer")
    assert (tmp_path / "layer").read_bytes() == LAYER
    assert registry.asked("GET .*blobs")[-1].endswith(f"bytes={len(LAYER) // 2}-")


def test_a_whole_blob_is_not_brought_again(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(NAME, "3", LAYER)
    (tmp_path / "layer").write_bytes(LAYER)
    client(registry).pull_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer")
    assert registry.asked("GET .*blobs") == []


def test_an_altered_blob_is_refused_and_thrown_away(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add_image(NAME, "3", LAYER)
    registry.fault("GET", "blobs", "alter", times=9)
    with pytest.raises(RegistryError, match="is not what its digest says"):
        client(registry).pull_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer")
    assert not (tmp_path / "layer").exists()
    with pytest.raises(RegistryError, match="is not what its digest says"):
        client(registry).check_blob(NAME, digest(LAYER), lambda _: None)


def test_a_full_disk_is_said_and_the_next_run_goes_on(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add_image(NAME, "3", LAYER)
    with monkeypatch.context() as patch, Path("/dev/full").open("r+b", buffering=0) as full:
        patch.setattr(Path, "open", lambda *_: full)
        with pytest.raises(LabError, match=rf"The disk that holds {tmp_path} is full") as refused:
            client(registry).pull_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer")
    assert "nothing was lost" in refused.value.mend
    client(registry).pull_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer")
    assert (tmp_path / "layer").read_bytes() == LAYER


def test_a_blob_is_checked_without_being_kept(registry: FakeRegistry) -> None:
    registry.add_image(NAME, "3", LAYER)
    seen: list[int] = []
    assert client(registry).check_blob(NAME, digest(LAYER), seen.append) == len(LAYER)
    assert sum(seen) == len(LAYER)


@pytest.mark.parametrize("fault", ["", "half", "hang up", "404", "503"])
def test_an_upload_that_breaks_off_goes_on_where_the_registry_is(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(registry_client, "UPLOAD_CHUNK_BYTES", len(LAYER) // 4 + 1)
    (tmp_path / "layer").write_bytes(LAYER)
    if fault:
        registry.fault("PATCH", "uploads", fault)
    speaking = client(registry)
    assert speaking.push_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer")
    assert registry.blobs[digest(LAYER)] == LAYER
    assert not speaking.push_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer"), "what is there is not sent"
    assert len(registry.asked("POST")) == (2 if fault in ("404", "hang up", "503") else 1)


def test_an_upload_that_always_breaks_off_is_given_up(registry: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(LAYER)
    registry.fault("PATCH", "uploads", "hang up", times=99)
    with pytest.raises(RegistryError, match="after 3 tries"):
        client(registry).push_blob(NAME, digest(LAYER), tmp_path / "layer", "a layer")
    assert registry.blobs == {}


def test_a_manifest_whose_blobs_are_not_there_is_refused(
    registry: FakeRegistry, new_registry: Callable[..., FakeRegistry]
) -> None:
    other = new_registry()
    wanted = other.add_image(NAME, "3", LAYER)
    manifest = client(other).manifest(NAME, wanted)
    with pytest.raises(RegistryError) as refused:
        client(registry).put_manifest(NAME, "3", manifest)
    assert "MANIFEST_BLOB_UNKNOWN" in str(refused.value)
    registry.blobs |= other.blobs
    client(registry).put_manifest(NAME, "3", manifest)
    assert client(registry).digest_of(NAME, "3") == wanted


def test_an_index_of_some_platforms_is_refused_with_its_mend(registry: FakeRegistry) -> None:
    registry.strict = True
    index = Manifest(b'{"manifests":[{"digest":"sha256:00"}]}', OCI_INDEX)
    with pytest.raises(RegistryError, match="wants every platform") as refused:
        client(registry).put_manifest(NAME, "3", index)
    assert "PLATFORMS=all" in refused.value.mend


def test_tags_are_listed(registry: FakeRegistry) -> None:
    for tag in ("1", "2"):
        registry.add_image(NAME, tag, LAYER)
    assert client(registry).tags(NAME) == ["1", "2"]
    assert client(registry).tags("nobody/has-this") == []


def test_a_files_digest(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(LAYER)
    assert file_digest(tmp_path / "f") == digest(LAYER)
