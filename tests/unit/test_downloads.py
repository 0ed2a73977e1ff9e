"""Downloads against a real HTTP server on 127.0.0.1 that misbehaves as told."""

import errno
import hashlib
import io
import json
import socket
import stat
import tarfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import pytest

from scripts import console, downloads, transfer
from scripts.downloads import Downloader, find_sha256
from scripts.errors import LabError
from scripts.lockfile import LockFile
from scripts.outcome import Outcome
from scripts.settings import Credentials
from scripts.transfer import Limits
from scripts.versions import PLATFORMS, Tool
from tests.unit.fake_registry import FakeRegistry

PLATFORM = "linux/amd64"
BODY = bytes(range(256)) * 4096  # 1 MiB
HOST = "https://publisher.example"
FAST = Limits(connect_s=2, read_s=0.3, tries=3, backoff_s=0.001)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tar_gz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name.replace("__", "/"))
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class Publisher:
    """Serves `files` by path; `faults[path]` are used up one per request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[tuple[str, str]] = []
        self.released = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def ranges(self) -> list[str]:
        return [range_ for _, range_ in self.requests]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                publisher.requests.append((self.path, wanted))
                faults = publisher.faults[self.path]
                fault = faults.pop(0) if faults else ""
                data = publisher.files.get(self.path)
                self.close_connection = True
                if fault.isdigit() or data is None:
                    self.send_response(int(fault or 404))
                    self.send_header("Retry-After", "7")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault != "no range" else 0
                if start >= len(data) > 0:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.end_headers()
                    return
                if fault == "wrong range":
                    start = 0
                self.send_response(206 if wanted and fault != "no range" else 200)
                if wanted and fault != "no range":
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("ETag", f'"{sha(data)}"')
                if fault == "encoded":
                    self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                rest = data[start:]
                if fault in ("truncate", "stall"):
                    self.wfile.write(rest[: len(rest) // 2])
                    self.wfile.flush()
                    if fault == "stall":
                        publisher.released.wait(5)
                    return
                self.wfile.write(rest)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    server = Publisher()
    yield server
    server.close()


@pytest.fixture
def downloader(tmp_path: Path, publisher: Publisher) -> Downloader:
    return at(tmp_path, publisher.url)


def at(tmp_path: Path, url: str) -> Downloader:
    lock = LockFile(tmp_path / "versions.lock.yaml", tmp_path / "locks")
    return Downloader(tmp_path / "tools", PLATFORM, lock, {HOST: url}, FAST)


def tool(sum_of: bytes | None = BODY, version: str = "v1.2.3", member: str = "") -> Tool:
    sums = {PLATFORM: sha(sum_of)} if sum_of is not None else {}
    return Tool(version, HOST + "/{version}/t-{os}-{arch}", HOST + "/{version}/sums.txt", member, sums)


PATH = "/v1.2.3/t-linux-amd64"
SUMS = "/v1.2.3/sums.txt"


def leftovers(downloader: Downloader) -> list[str]:
    """Return what lies in the tools folder besides tools, manifests and locks."""
    names = [p for p in downloader.tools_dir.rglob("*") if p.is_file() and ".locks" not in p.parts]
    return [p.name for p in names if p.name not in ("t", ".t.json")]


def test_a_tool_is_downloaded_checked_and_made_executable(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files[PATH] = BODY
    outcome = downloader.ensure_tool("t", tool())
    assert outcome == Outcome(True, "t v1.2.3 downloaded, checked by versions.yaml")
    path = downloader.tools_dir / "t"
    assert path.read_bytes() == BODY
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert publisher.requests == [(PATH, "")]
    assert leftovers(downloader) == []
    assert not downloader.lock_file.path.exists()


def test_an_archive_is_kept_as_it_lies_there_even_if_the_server_calls_it_compressed(
    publisher: Publisher, downloader: Downloader
) -> None:
    packed = tar_gz(t=BODY)
    publisher.files[PATH] = packed
    publisher.faults[PATH] = ["encoded"]
    assert downloader.ensure_tool("t", tool(packed, member="t")).changed
    assert (downloader.tools_dir / "t").read_bytes() == BODY


def test_a_tool_that_is_there_in_the_right_version_costs_no_request(
    publisher: Publisher, downloader: Downloader
) -> None:
    publisher.files[PATH] = BODY
    downloader.ensure_tool("t", tool())
    publisher.requests.clear()
    before = (downloader.tools_dir / "t").stat().st_mtime_ns
    assert downloader.ensure_tool("t", tool()) == Outcome(False, "t v1.2.3 found")
    assert downloader.ensure_tools({"t": tool()}) == Outcome(False, "1 tools found")
    assert publisher.requests == []
    assert (downloader.tools_dir / "t").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["content", "mode", "manifest", "gone", "link"])
def test_a_file_that_is_not_what_was_installed_is_replaced(
    publisher: Publisher, downloader: Downloader, tmp_path: Path, change: str
) -> None:
    publisher.files[PATH] = BODY
    downloader.ensure_tool("t", tool())
    path = downloader.tools_dir / "t"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("built from source")
    match change:
        case "content":
            path.write_bytes(BODY + b"x")
        case "mode":
            path.chmod(0o644)
        case "manifest":
            (downloader.tools_dir / ".t.json").write_text('{"version": "v1')
        case "gone":
            path.unlink()
        case "link":
            path.unlink()
            path.symlink_to(elsewhere)
    assert downloader.ensure_tool("t", tool()).changed
    assert path.read_bytes() == BODY
    assert not path.is_symlink()
    assert elsewhere.read_text() == "built from source"


def test_another_version_replaces_the_installed_one(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files |= {PATH: BODY, "/v2/t-linux-amd64": BODY[:99]}
    downloader.ensure_tool("t", tool())
    assert downloader.ensure_tool("t", tool(BODY[:99], "v2")).changed
    assert (downloader.tools_dir / "t").read_bytes() == BODY[:99]


def test_a_wrong_checksum_discards_the_file_and_keeps_the_tool_that_is_there(
    publisher: Publisher, downloader: Downloader
) -> None:
    publisher.files[PATH] = BODY
    downloader.ensure_tool("t", tool())
    publisher.files["/v2/t-linux-amd64"] = b"evil" + BODY
    with pytest.raises(LabError) as refused:
        downloader.ensure_tool("t", tool(BODY[:99], "v2"))
    text = str(refused.value)
    assert "t v2: the downloaded file has the wrong checksum and was thrown away." in text
    assert f"expected {sha(BODY[:99])} (by versions.yaml)" in text
    assert f"got      {sha(b'evil' + BODY)}" in text
    assert f"{publisher.url}/v2/t-linux-amd64" in text
    assert refused.value.mend
    assert leftovers(downloader) == []
    assert (downloader.tools_dir / "t").read_bytes() == BODY


def test_a_broken_body_goes_on_where_it_stopped(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files[PATH] = BODY
    publisher.faults[PATH] = ["truncate", "truncate"]
    assert downloader.ensure_tool("t", tool()).changed
    half = len(BODY) // 2
    assert publisher.ranges == ["", f"bytes={half}-", f"bytes={half + half // 2}-"]
    assert (downloader.tools_dir / "t").read_bytes() == BODY


@pytest.mark.parametrize("fault", ["no range", "wrong range"])
def test_a_server_that_ignores_ranges_is_asked_for_the_whole(
    publisher: Publisher, downloader: Downloader, fault: str
) -> None:
    publisher.files[PATH] = BODY
    publisher.faults[PATH] = ["truncate", fault]
    downloader.ensure_tool("t", tool())
    assert (downloader.tools_dir / "t").read_bytes() == BODY


def test_a_body_that_always_breaks_off_is_given_up_and_the_next_run_goes_on(
    publisher: Publisher, downloader: Downloader
) -> None:
    publisher.files[PATH] = BODY
    publisher.faults[PATH] = ["truncate"] * FAST.tries
    with pytest.raises(LabError) as refused:
        downloader.ensure_tool("t", tool())
    assert "broke off, after 3 tries. 917504 bytes of 1.0 MiB are here; the next run goes on" in str(refused.value)
    assert len(publisher.requests) == FAST.tries
    assert not (downloader.tools_dir / "t").exists()
    assert downloader.ensure_tool("t", tool()).changed
    assert publisher.ranges[-1] == "bytes=917504-"
    assert (downloader.tools_dir / "t").read_bytes() == BODY


def test_a_bad_piece_of_an_earlier_run_is_thrown_away(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files[PATH] = BODY
    part = downloader.tools_dir / ".partial" / f"t-linux-amd64-{sha(BODY)[:16]}"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"not the beginning of that file")
    assert downloader.ensure_tool("t", tool()).changed
    assert publisher.ranges == ["bytes=30-", ""]
    assert (downloader.tools_dir / "t").read_bytes() == BODY


@pytest.mark.parametrize("extra", [b"", b"too long"])
def test_a_whole_or_too_long_piece_of_an_earlier_run(
    publisher: Publisher, downloader: Downloader, extra: bytes
) -> None:
    publisher.files[PATH] = BODY
    part = downloader.tools_dir / ".partial" / f"t-linux-amd64-{sha(BODY)[:16]}"
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY + extra)
    downloader.ensure_tool("t", tool())
    assert (downloader.tools_dir / "t").read_bytes() == BODY
    assert bool(publisher.requests) == bool(extra)


def test_a_piece_of_another_version_is_not_gone_on_with(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files |= {PATH: BODY, "/v2/t-linux-amd64": BODY[::-1]}
    publisher.faults[PATH] = ["truncate"] * FAST.tries
    with pytest.raises(LabError):
        downloader.ensure_tool("t", tool())
    downloader.ensure_tool("t", tool(BODY[::-1], "v2"))
    assert publisher.requests[-1] == ("/v2/t-linux-amd64", "")
    assert leftovers(downloader) == []


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("404", "t v1.2.3: not found (404) at "),
        ("410", "t v1.2.3: not found (410) at "),
        ("401", "t v1.2.3: refused (401 Unauthorized) by "),
        ("403", "t v1.2.3: refused (403 Forbidden) by "),
        ("400", "t v1.2.3: the server answered 400 Bad Request at "),
    ],
)
def test_an_answer_that_no_second_try_mends_is_said_at_once(
    publisher: Publisher, downloader: Downloader, status: str, says: str
) -> None:
    publisher.files[PATH] = BODY
    publisher.faults[PATH] = [status]
    with pytest.raises(LabError) as refused:
        downloader.ensure_tool("t", tool())
    assert f"{says}{publisher.url}{PATH}" in str(refused.value)
    assert refused.value.mend
    assert len(publisher.requests) == 1
    assert leftovers(downloader) == []


@pytest.mark.parametrize("status", ["429", "500", "502", "503"])
def test_an_overloaded_server_is_asked_again_after_the_time_it_names(
    publisher: Publisher, downloader: Downloader, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    publisher.files[PATH] = BODY
    publisher.faults[PATH] = [status]
    assert downloader.ensure_tool("t", tool()).changed
    assert pauses == [7.0]


def test_a_server_that_stays_overloaded_is_named_with_its_answer(
    publisher: Publisher, downloader: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    publisher.files[PATH] = BODY
    publisher.faults[PATH] = ["429"] * FAST.tries
    with pytest.raises(LabError, match="the server answered 429 Too Many Requests, after 3 tries"):
        downloader.ensure_tool("t", tool())


def test_no_network_is_said_after_two_tries(tmp_path: Path, publisher: Publisher) -> None:
    gone = at(tmp_path, publisher.url)
    publisher.close()
    with pytest.raises(LabError) as refused:
        gone.ensure_tool("t", tool())
    assert "no connection to 127.0.0.1 (" in str(refused.value)
    assert "Connection refused" in str(refused.value)
    assert "after 2 tries." in str(refused.value)
    assert "IMAGE_SOURCE=source" in refused.value.mend
    assert not (gone.tools_dir / "t").exists()


def test_a_name_that_does_not_resolve_is_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(LabError, match=r"no connection to nowhere\.invalid \(.*Name or service not known\)+, after 2"):
        at(tmp_path, "http://nowhere.invalid").ensure_tool("t", tool())


def test_a_stalled_body_is_given_up_after_the_time_limit(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files[PATH] = BODY
    publisher.faults[PATH] = ["stall"] * FAST.tries
    started = time.monotonic()
    with pytest.raises(LabError, match=r"127\.0\.0\.1 was silent for too long, after 3 tries"):
        downloader.ensure_tool("t", tool())
    assert time.monotonic() - started < 5, "the server would have been silent for 15 s"


def test_a_stalled_body_is_mended_by_another_try(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files[PATH] = BODY
    publisher.faults[PATH] = ["stall"]
    assert downloader.ensure_tool("t", tool()).changed
    assert publisher.ranges == ["", f"bytes={len(BODY) // 2}-"]


def test_a_proxy_that_is_gone_is_named_without_its_password(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = publisher.server.server_port
    publisher.close()
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(LabError) as refused:
        at(tmp_path, "http://publisher.example").ensure_tool("t", tool())
    assert "the proxy for publisher.example can't be used (" in str(refused.value)
    assert "Connection refused), after 2 tries" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    publisher: Publisher, downloader: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: IO[bytes], target: IO[bytes]) -> None:
        target.write(source.read(10))
        raise OSError(errno.ENOSPC, "No space left on device")

    publisher.files[PATH] = BODY
    with monkeypatch.context() as patched, pytest.raises(LabError, match=r"The disk that holds .* is full"):
        patched.setattr(downloads, "_copy", full)
        downloader.ensure_tool("t", tool())
    assert not (downloader.tools_dir / "t").exists()
    assert list(downloader.tools_dir.glob(".t-*")) == []
    publisher.requests.clear()
    assert downloader.ensure_tool("t", tool()).changed
    assert publisher.requests == [], "what was downloaded is still there"


def test_what_a_killed_run_left_is_cleared_away(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files[PATH] = BODY
    downloader.tools_dir.mkdir()
    (downloader.tools_dir / ".t-abcd1234").write_bytes(BODY[:9])
    downloader.ensure_tool("t", tool())
    assert leftovers(downloader) == []


def test_progress_is_told_in_bytes(
    publisher: Publisher, downloader: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(console, "note", notes.append)
    monkeypatch.setattr(transfer, "NOTE_EVERY_S", 0.0)
    publisher.files[PATH] = BODY
    downloader.ensure_tool("t", tool())
    assert "t v1.2.3: 65536 bytes of 1.0 MiB" in notes


def test_the_password_of_a_mirror_is_never_shown(tmp_path: Path, publisher: Publisher) -> None:
    mirror = publisher.url.replace("http://", "http://user:pa@ss@")
    with pytest.raises(LabError) as refused:
        at(tmp_path, mirror).ensure_tool("t", tool())
    assert "http://***@127.0.0.1" in str(refused.value)
    assert "pa@ss" not in str(refused.value)
    assert "ss@" not in str(refused.value)


# ------------------------------------------------------------------ archives


def test_the_member_of_an_archive_is_taken_out(publisher: Publisher, downloader: Downloader) -> None:
    archive = tar_gz(LICENSE=b"free", t=BODY)
    publisher.files[PATH] = archive
    downloader.ensure_tool("t", tool(archive, member="t"))
    assert (downloader.tools_dir / "t").read_bytes() == BODY
    manifest = json.loads((downloader.tools_dir / ".t.json").read_text())
    assert manifest["published_digest"] == sha(archive)
    assert manifest["installed_sha256"] == sha(BODY)
    publisher.requests.clear()
    assert not downloader.ensure_tool("t", tool(archive, member="t")).changed
    assert publisher.requests == []


def test_an_archive_may_bring_several_programs_and_be_pinned_by_sha512(
    publisher: Publisher, downloader: Downloader
) -> None:
    archive = tar_gz(bin__t=BODY, bin__u=b"the other")
    publisher.files[PATH] = archive
    sums = dict.fromkeys(PLATFORMS, hashlib.sha512(archive).hexdigest())
    both = Tool("v1.2.3", HOST + "/{version}/t-{os}-{arch}", member="bin/t", sha512=sums, also={"u": "bin/u"})
    assert downloader.ensure_tool("t", both).changed
    assert [(downloader.tools_dir / n).read_bytes() for n in "tu"] == [BODY, b"the other"]
    publisher.requests.clear()
    assert not downloader.ensure_tool("t", both).changed
    assert publisher.requests == []
    # One of the two is gone: both come again.
    (downloader.tools_dir / "u").unlink()
    assert downloader.ensure_tool("t", both).changed
    assert (downloader.tools_dir / "u").read_bytes() == b"the other"


def test_a_file_with_another_sha512_is_thrown_away(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files[PATH] = BODY
    wrong = Tool("v1.2.3", HOST + "/{version}/t-{os}-{arch}", sha512=dict.fromkeys(PLATFORMS, "0" * 128))
    with pytest.raises(LabError, match="wrong checksum"):
        downloader.ensure_tool("t", wrong)
    assert not (downloader.tools_dir / "t").exists()


def _archive_with(entry: tarfile.TarInfo, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _link(name: str, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.SYMTYPE
    entry.linkname = target
    return entry


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (tar_gz(other=BODY), "the archive holds no t."),
        (_archive_with(tarfile.TarInfo("../../t"), BODY), "the archive holds no t."),
        (_archive_with(tarfile.TarInfo("/t"), BODY), "the archive holds no t."),
        (_archive_with(_link("t", "/etc/passwd")), "t in the archive is not a plain file."),
        (b"no archive at all", "the file is not a readable tar.gz."),
        (tar_gz(t=BODY)[:-4000], "the file is not a readable tar.gz."),
    ],
    ids=["no member", "traversal", "absolute", "link", "not gzip", "cut"],
)
def test_an_archive_without_the_plain_member_installs_nothing(
    publisher: Publisher, downloader: Downloader, tmp_path: Path, archive: bytes, says: str
) -> None:
    publisher.files[PATH] = archive
    with pytest.raises(LabError) as refused:
        downloader.ensure_tool("t", tool(archive, member="t"))
    assert says in str(refused.value)
    assert not (downloader.tools_dir / "t").exists()
    assert [p.name for p in downloader.tools_dir.glob(".t-*")] == []
    assert not (tmp_path.parent / "t").exists()


# ------------------------------------------------------------------ without a pin


def test_a_tool_without_a_pin_is_checked_by_its_publisher_and_recorded(
    publisher: Publisher, downloader: Downloader
) -> None:
    publisher.files |= {PATH: BODY, SUMS: f"{sha(b'x')}  other\n{sha(BODY)}  t-linux-amd64\n".encode()}
    outcome = downloader.ensure_tool("t", tool(None))
    assert outcome.what == "t v1.2.3 downloaded, checked by the publisher's checksum file"
    assert downloader.lock_file.tool_digest("t", "v1.2.3", PLATFORM) == sha(BODY)
    publisher.requests.clear()
    assert not downloader.ensure_tool("t", tool(None)).changed
    assert publisher.requests == []


def test_a_body_that_its_publisher_disowns_is_neither_installed_nor_recorded(
    publisher: Publisher, downloader: Downloader
) -> None:
    publisher.files |= {PATH: b"evil", SUMS: f"{sha(BODY)}  t-linux-amd64\n".encode()}
    with pytest.raises(LabError, match="the wrong checksum"):
        downloader.ensure_tool("t", tool(None))
    assert downloader.lock_file.tool_digest("t", "v1.2.3", PLATFORM) == ""
    assert not (downloader.tools_dir / "t").exists()


def test_later_runs_hold_to_the_lock_even_against_the_publisher(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files |= {PATH: BODY, SUMS: sha(BODY).encode()}
    downloader.ensure_tool("t", tool(None))
    (downloader.tools_dir / "t").unlink()
    publisher.files |= {PATH: b"altered", SUMS: sha(b"altered").encode()}
    with pytest.raises(LabError) as refused:
        downloader.ensure_tool("t", tool(None))
    assert f"expected {sha(BODY)} (by versions.lock.yaml)" in str(refused.value)
    assert downloader.lock_file.tool_digest("t", "v1.2.3", PLATFORM) == sha(BODY)


@pytest.mark.parametrize(
    ("sums", "says"),
    [
        (None, "t v1.2.3: the publisher's checksums: not found (404)"),
        ("", "the publisher's checksums don't name t-linux-amd64"),
        ("<html>please log in</html>", "the publisher's checksums don't name t-linux-amd64"),
        ("x" * (2 * 1024 * 1024), "the publisher's checksums: larger than 1.0 MiB"),
    ],
)
def test_without_the_publishers_sum_nothing_is_downloaded(
    publisher: Publisher, downloader: Downloader, sums: str | None, says: str
) -> None:
    publisher.files[PATH] = BODY
    if sums is not None:
        publisher.files[SUMS] = sums.encode()
    with pytest.raises(LabError) as refused:
        downloader.ensure_tool("t", tool(None))
    assert says in str(refused.value)
    assert {path for path, _ in publisher.requests} == {SUMS}


def test_checksums_are_not_read_without_tls(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"would be read without TLS from http://mirror\.example/v1\.2\.3/sums\.txt"):
        at(tmp_path, "http://mirror.example").ensure_tool("t", tool(None))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{'a' * 64}  t-linux-amd64\n", "a" * 64),
        (f"{'b' * 64}  other\n{'a' * 64} *t-linux-amd64\n", "a" * 64),
        (f"{'a' * 64}  ./dist/t-linux-amd64\n", "a" * 64),
        ("a" * 64, "a" * 64),
        (f"{'A' * 64}\n\n", "a" * 64),
        (f"{'a' * 64}  t-linux-amd64.sig\n", ""),
        (f"{'a' * 64}\n{'b' * 64}\n", ""),
        (f"{'a' * 63}  t-linux-amd64\n", ""),
        (f"{'a' * 128}  t-linux-amd64\n", ""),
    ],
)
def test_checksum_files_are_read_in_their_common_forms(text: str, found: str) -> None:
    assert find_sha256(text, "t-linux-amd64") == found


# ------------------------------------------------------------------ several runs, addresses


def test_two_runs_at_once_download_once(publisher: Publisher, downloader: Downloader) -> None:
    publisher.files[PATH] = BODY
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(downloader.ensure_tool("t", tool()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(o.changed for o in outcomes) == [False, False, False, True]
    assert len(publisher.requests) == 1


def test_a_base_is_replaced_as_a_whole_and_the_longest_wins(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "lock", tmp_path)
    bases = {"https://github.com": "https://m/gh", "https://github.com/fluxcd/": "https://m/flux/"}
    mirrored = Downloader(tmp_path, PLATFORM, lock, bases)._mirrored
    assert mirrored("https://github.com/a/b%2Fc") == "https://m/gh/a/b%2Fc"
    assert mirrored("https://github.com/fluxcd/flux2") == "https://m/flux/flux2"
    assert mirrored("https://github.com.evil.example/a") == "https://github.com.evil.example/a"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_asks_for_its_own_file(tmp_path: Path, publisher: Publisher, platform: str) -> None:
    lock = LockFile(tmp_path / "versions.lock.yaml", tmp_path / "locks")
    downloader = Downloader(tmp_path / "tools", platform, lock, {HOST: publisher.url}, FAST)
    path = f"/v1.2.3/t-{platform.replace('/', '-')}"
    publisher.files |= {path: BODY, SUMS: f"{sha(BODY)}  {path.rpartition('/')[2]}\n".encode()}
    assert downloader.ensure_tool("t", tool(None)).changed
    assert downloader.lock_file.tool_digest("t", "v1.2.3", platform) == sha(BODY)


# ---------------------------------------------------------------- a mirror with a CA and a user of its own


def mirrored(
    tmp_path: Path, registry: FakeRegistry, ca: Path | None, credentials: Credentials | None = None
) -> Downloader:
    lock = LockFile(tmp_path / "versions.lock.yaml", tmp_path / "locks")
    bases = {HOST: f"https://{registry.host}/files"}
    return Downloader(tmp_path / "tools", PLATFORM, lock, bases, FAST, ca, credentials)


def test_a_mirror_is_trusted_by_its_ca(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.files |= {f"/files{PATH}": BODY, f"/files{SUMS}": f"{sha(BODY)}  t-linux-amd64\n".encode()}
    assert mirrored(tmp_path, registry, registry.authority.ca).ensure_tool("t", tool(None)).changed
    assert registry.requests == [f"GET /files{SUMS}", f"GET /files{PATH}"]


def test_a_mirror_of_another_ca_is_refused(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.files[f"/files{PATH}"] = BODY
    with pytest.raises(LabError, match=r"the certificate of 127\.0\.0\.1 can't be trusted") as refused:
        mirrored(tmp_path, registry, None).ensure_tool("t", tool())
    assert "MIRROR_CA=" in refused.value.mend
    assert not (tmp_path / "tools" / "t").exists()


def test_the_mirrors_user_is_shown_to_the_mirror_only(
    publisher: Publisher, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, object]] = []
    real = transfer.requests.Session.get

    def get(session: object, url: str, **options: object) -> object:
        shown.append((url, options["headers"].get("Authorization")))  # type: ignore[attr-defined]
        return real(session, url, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer.requests.Session, "get", get)
    registry.files[f"/files{PATH}"] = BODY
    publisher.files["/x"] = BODY
    loader = mirrored(tmp_path, registry, registry.authority.ca, Credentials("me", "secret"))
    loader.ensure_tool("t", tool())
    loader.ensure_tool("u", Tool("v1", publisher.url + "/x", publisher.url + "/y", "", {PLATFORM: sha(BODY)}))
    assert [authorization for _, authorization in shown] == [Credentials("me", "secret").basic, None]
