"""Release binaries of registry mode: downloaded, verified, and put into the tools folder by one rename.

A download that breaks off goes on where it stopped (in this run and in the next one); a file whose SHA-256 is
not the expected one is thrown away. A tool that is there in the right version costs no request.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import ipaddress
import json
import os
import tarfile
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import requests

from scripts import console
from scripts.cache import lock as hold_lock
from scripts.cache import write_atomically
from scripts.errors import LabError
from scripts.hostfacts import mask_credentials
from scripts.lockfile import LockFile
from scripts.outcome import Outcome
from scripts.versions import Tool

# What is lost of a body that breaks off is less than one chunk.
CHUNK_BYTES = 64 * 1024
NOTE_EVERY_S = 0.2
MAX_CHECKSUMS_BYTES = 1024 * 1024
LONGEST_RETRY_AFTER_S = 30.0

_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
_MEND_NETWORK = (
    "check the network, HTTPS_PROXY and NO_PROXY, then run again; IMAGE_SOURCE=source needs package mirrors only"
)


class DownloadError(LabError):
    """A file could not be had as published."""


@dataclass(frozen=True)
class Limits:
    """Seconds until a connection or a silent body is given up, and how often a download is tried."""

    connect_s: float = 10.0
    read_s: float = 30.0
    tries: int = 5
    backoff_s: float = 0.5


@dataclass(frozen=True)
class Expected:
    """The digest a file must have (SHA-256, or SHA-512 where that is what its publisher gives), and who says so."""

    digest: str
    source: str


@dataclass(frozen=True)
class _Manifest:
    """What was installed: written beside the tool, so that a later run knows it without running it."""

    version: str
    platform: str
    published_digest: str
    installed_sha256: str


@dataclass(frozen=True)
class Downloader:
    """Puts release binaries into `tools_dir`.

    Args:
        tools_dir: the folder of the finished tools.
        platform: `os/arch`, as in `linux/amd64`.
        lock_file: where digests that versions.yaml doesn't pin are recorded.
        base_url: what the start of an address is replaced by, as in {"https://github.com": "https://mirror.example/gh"}.
        limits: time limits and number of tries.
    """

    tools_dir: Path
    platform: str
    lock_file: LockFile
    base_url: Mapping[str, str] | None = None
    limits: Limits = Limits()

    def ensure_tools(self, tools: Mapping[str, Tool]) -> Outcome:
        """Make every tool be there in its pinned version."""
        done = {name: self.ensure_tool(name, tool) for name, tool in tools.items()}
        new = [name for name, outcome in done.items() if outcome.changed]
        return Outcome(bool(new), f"downloaded {', '.join(new)}" if new else f"{len(done)} tools found")

    def ensure_tool(self, name: str, tool: Tool) -> Outcome:
        """Make one tool be there in its pinned version; raises LabError when it can't be had as published."""
        expected = self._known_digest(name, tool)
        if expected and self._all_installed(name, tool, expected):
            return Outcome(False, f"{name} {tool.version} found")
        with hold_lock(self.tools_dir / ".locks" / f"{name}.lock", f"downloading {name}"):
            expected = self._known_digest(name, tool) or self.published_sha256(name, tool)
            if self._all_installed(name, tool, expected):
                self._record(name, tool, expected)
                return Outcome(False, f"{name} {tool.version} found")
            part = self._fetch_verified(name, tool, expected)
            self._record(name, tool, expected)
            for program, member in _programs(name, tool).items():
                self._install(program, member, tool, part, expected)
            part.unlink()
        return Outcome(True, f"{name} {tool.version} downloaded, checked by {expected.source}")

    def published_sha256(self, name: str, tool: Tool) -> Expected:
        """Return the SHA-256 that the publisher's own checksum file gives, read over TLS."""
        url = self._mirrored(tool.checksums_url_for(self.platform))
        label = f"{name} {tool.version}: the publisher's checksums"
        _require_tls(url, label)
        console.note(f"{label} from {mask_credentials(url)}")
        with tempfile.TemporaryDirectory(prefix="gitops-lab-") as folder:
            path = Path(folder) / "checksums"
            _Transfer(label, url, path, self.limits, tls_only=True, max_bytes=MAX_CHECKSUMS_BYTES).run()
            text = path.read_text(encoding="utf-8", errors="replace")
        file_name = _file_name(tool.url_for(self.platform))
        sha256 = find_sha256(text, file_name)
        if not sha256:
            raise DownloadError(
                f"{label} don't name {file_name}.",
                f"look at {mask_credentials(url)} and mend tools.{name} in versions.yaml",
            )
        return Expected(sha256, "the publisher's checksum file")

    def _known_digest(self, name: str, tool: Tool) -> Expected | None:
        pinned = tool.pinned(self.platform)
        if pinned:
            return Expected(pinned, "versions.yaml")
        recorded = self.lock_file.tool_sha256(name, tool.version, self.platform)
        return Expected(recorded, self.lock_file.path.name) if recorded else None

    def _record(self, name: str, tool: Tool, expected: Expected) -> None:
        if not tool.pinned(self.platform):
            self.lock_file.record_tool(name, tool.version, self.platform, expected.digest)

    def _mirrored(self, url: str) -> str:
        bases = self.base_url or {}
        for base in sorted(bases, key=len, reverse=True):
            if url.startswith(base.rstrip("/") + "/"):
                return bases[base].rstrip("/") + url[len(base.rstrip("/")) :]
        return url

    def _manifest_path(self, name: str) -> Path:
        return self.tools_dir / f".{name}.json"

    def _all_installed(self, name: str, tool: Tool, expected: Expected) -> bool:
        return all(self._is_installed(program, tool, expected) for program in _programs(name, tool))

    def _is_installed(self, name: str, tool: Tool, expected: Expected) -> bool:
        path = self.tools_dir / name
        try:
            manifest = _Manifest(**json.loads(self._manifest_path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return False
        if (manifest.version, manifest.platform, manifest.published_digest) != (
            tool.version,
            self.platform,
            expected.digest,
        ):
            return False
        return path.is_file() and os.access(path, os.X_OK) and _sha256_of(path) == manifest.installed_sha256

    def _fetch_verified(self, name: str, tool: Tool, expected: Expected) -> Path:
        url = self._mirrored(tool.url_for(self.platform))
        label = f"{name} {tool.version}"
        system, _, machine = self.platform.partition("/")
        # The expected sum is in the name: what an earlier run left is only gone on with if it is the same file.
        part = self.tools_dir / ".partial" / f"{name}-{system}-{machine}-{expected.digest[:16]}"
        part.parent.mkdir(parents=True, exist_ok=True)
        for other in part.parent.glob(f"{name}-{system}-{machine}-*"):
            if other != part:
                other.unlink()
        started_with = part.stat().st_size if part.exists() else 0
        if started_with and _digest_of(part, expected) == expected.digest:
            return part
        _Transfer(label, url, part, self.limits).run()
        got = _digest_of(part, expected)
        if got != expected.digest and started_with:
            # The piece from an earlier run may have been the bad one: once more, from the first byte.
            console.note(f"{label}: what an earlier run left does not fit; downloading all of it again")
            part.unlink()
            _Transfer(label, url, part, self.limits).run()
            got = _digest_of(part, expected)
        if got != expected.digest:
            size = part.stat().st_size
            part.unlink()
            raise DownloadError(
                f"{label}: the downloaded file has the wrong checksum and was thrown away.",
                "run again; if it stays so, a proxy or a mirror alters the file, "
                f"or the sum in {expected.source} is not that of {tool.version}: compare with the publisher's",
                f"    from     {mask_credentials(url)} ({size} bytes)\n"
                f"    expected {expected.digest} (by {expected.source})\n"
                f"    got      {got}",
            )
        return part

    def _install(self, name: str, member: str, tool: Tool, part: Path, expected: Expected) -> None:
        target = self.tools_dir / name
        if target.is_dir() and not target.is_symlink():
            raise DownloadError(f"{target} is a folder, where the tool {name} belongs.", f"move {target} away")
        for leftover in self.tools_dir.glob(f".{name}-????????"):  # of a run that was killed: the lock is held
            leftover.unlink()
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=self.tools_dir)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if member:
                    _extract(part, member, file, f"{name} {tool.version}")
                else:
                    with part.open("rb") as source:
                        _copy(source, file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o755)
            installed = _sha256_of(Path(temporary))
            Path(temporary).rename(target)
        except OSError as error:
            raise _disk_error(error, self.tools_dir) from None
        finally:
            Path(temporary).unlink(missing_ok=True)
        # After the rename: a run killed in between finds a manifest that doesn't fit, and installs again.
        manifest = _Manifest(tool.version, self.platform, expected.digest, installed)
        write_atomically(self._manifest_path(name), json.dumps(asdict(manifest), indent=2) + "\n")


def find_sha256(text: str, file_name: str) -> str:
    """Return a file's SHA-256 from a checksum file: `<hex>  <name>` per line, or one bare `<hex>`."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and len(lines[0]) == 1 and _is_sha256(lines[0][0]):
        return lines[0][0].lower()
    for words in lines:
        if len(words) == 2 and _is_sha256(words[0]) and words[1].lstrip("*").rpartition("/")[2] == file_name:
            return words[0].lower()
    return ""


class _Broken(Exception):  # noqa: N818 - control flow of _Transfer, never seen outside it
    """An attempt that failed in a way that another one may mend."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class _Transfer:
    """One file on its way to `path`, in as many requests as it takes."""

    def __init__(
        self, label: str, url: str, path: Path, limits: Limits, *, tls_only: bool = False, max_bytes: int | None = None
    ) -> None:
        self._label = label
        self._url = url
        self._path = path
        self._limits = limits
        self._tls_only = tls_only
        self._max_bytes = max_bytes
        self._etag = ""
        self._total: int | None = None
        self._answered = False
        self._noted_at = 0.0

    def run(self) -> None:
        """Bring the whole file; raises DownloadError saying what stands in the way."""
        limits = self._limits
        with requests.Session() as session:
            for attempt in range(1, limits.tries + 1):
                try:
                    self._attempt(session)
                    return
                except _Broken as broken:
                    # A host that never answered won't for the fifth time either: say so soon.
                    if attempt == limits.tries or (not self._answered and attempt == 2):
                        raise self._given_up(str(broken), attempt) from None
                    pause = broken.retry_after_s or limits.backoff_s * 2 ** (attempt - 1)
                    console.note(f"{self._label}: {broken}; trying again in {pause:.1f} s")
                    time.sleep(pause)

    def _attempt(self, session: requests.Session) -> None:
        offset = self._path.stat().st_size if self._path.exists() else 0
        headers = {"Accept-Encoding": "identity", "User-Agent": "gitops-lab"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self._etag:
                headers["If-Range"] = self._etag
        try:
            with session.get(
                self._url, headers=headers, stream=True, timeout=(self._limits.connect_s, self._limits.read_s)
            ) as response:
                self._answered = True
                self._receive(response, offset)
        except requests.RequestException as error:
            raise self._explain(error) from None

    def _receive(self, response: requests.Response, offset: int) -> None:
        if self._tls_only:
            _require_tls(response.url, self._label)
        if response.status_code == 416:
            # Nothing lies beyond what is here. Whether it is the right file, its checksum says.
            if response.headers.get("Content-Range", "").endswith(f"/{offset}"):
                return
            self._path.unlink(missing_ok=True)
            raise _Broken("what was already here doesn't fit the file")
        if response.status_code not in (200, 206):
            raise self._refused(response)
        if response.status_code == 200:
            offset = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            self._path.unlink(missing_ok=True)
            raise _Broken("the server answered with another part of the file than the one asked for")
        etag = response.headers.get("ETag", "")
        self._etag = "" if etag.startswith("W/") else etag
        length = response.headers.get("Content-Length", "")
        self._total = offset + int(length) if length.isdigit() else None
        try:
            with self._path.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    offset += len(chunk)
                    if self._max_bytes and offset > self._max_bytes:
                        raise DownloadError(
                            f"{self._label}: larger than {_size(self._max_bytes)}; that is no such file."
                        )
                    self._note(offset)
        except requests.RequestException:
            raise
        except OSError as error:
            raise _disk_error(error, self._path.parent) from None
        if self._total is not None and offset < self._total:
            raise _Broken(f"the connection broke off after {_size(offset)} of {_size(self._total)}")

    def _note(self, offset: int) -> None:
        now = time.monotonic()
        if now - self._noted_at >= NOTE_EVERY_S:
            self._noted_at = now
            of_total = f" of {_size(self._total)}" if self._total else ""
            console.note(f"{self._label}: {_size(offset)}{of_total}")

    def _refused(self, response: requests.Response) -> Exception:
        status = response.status_code
        shown = mask_credentials(response.url)
        if status in _RETRIED_STATUS:
            seconds = response.headers.get("Retry-After", "")
            wait_s = min(float(seconds), LONGEST_RETRY_AFTER_S) if seconds.isdigit() else 0.0
            return _Broken(f"the server answered {status} {response.reason}", wait_s)
        if status in (404, 410):
            return DownloadError(
                f"{self._label}: not found ({status}) at {shown}.",
                "check the version and the url of this tool in versions.yaml, and that a mirror, if one is set, holds it",
            )
        if status in (401, 403, 407):
            return DownloadError(
                f"{self._label}: refused ({status} {response.reason}) by {shown}.",
                "check the user and password of the mirror or proxy, or a rule there that blocks this address",
            )
        return DownloadError(
            f"{self._label}: the server answered {status} {response.reason} at {shown}.", _MEND_NETWORK
        )

    def _explain(self, error: requests.RequestException) -> Exception:
        """Return what a failed request means: something to try again, or a message for people."""
        host = urlsplit(self._url).hostname or self._url
        if isinstance(error, requests.exceptions.SSLError):
            return DownloadError(
                f"{self._label}: the certificate of {host} can't be trusted.",
                "if a proxy or mirror has a private CA, name its file: export REQUESTS_CA_BUNDLE=/path/to/ca.pem",
                f"    {error}",
            )
        if isinstance(error, requests.exceptions.ProxyError):
            return _Broken(f"the proxy for {host} can't be used ({mask_credentials(_reason(error))})")
        if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
            return _Broken(f"{host} was silent for too long")
        if isinstance(error, requests.exceptions.ChunkedEncodingError):
            return _Broken(f"the connection to {host} broke off")
        if isinstance(error, requests.ConnectionError):
            return _Broken(f"no connection to {host} ({_reason(error)})")
        return DownloadError(f"{self._label}: {mask_credentials(str(error))}", _MEND_NETWORK)

    def _given_up(self, why: str, attempts: int) -> DownloadError:
        here = self._path.stat().st_size if self._path.exists() else 0
        of_total = f" of {_size(self._total)}" if self._total else ""
        kept = f" {_size(here)}{of_total} are here; the next run goes on from there." if here else ""
        return DownloadError(
            f"{self._label}: {why}, after {attempts} tries.{kept}",
            _MEND_NETWORK,
            f"    from {mask_credentials(self._url)}",
        )


def _require_tls(url: str, label: str) -> None:
    """Refuse an address without TLS: a checksum that anybody on the way can change verifies nothing."""
    parts = urlsplit(url)
    if parts.scheme == "https" or _is_loopback(parts.hostname or ""):
        return
    raise DownloadError(
        f"{label} would be read without TLS from {mask_credentials(url)}.",
        "give the mirror an https address, or pin the sums in versions.yaml",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _extract(archive: Path, member: str, file: IO[bytes], label: str) -> None:
    """Write one file of a tar.gz; the archive's names choose what is read, never where it is written."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                if entry.name.removeprefix("./") != member:
                    continue
                source = tar.extractfile(entry) if entry.isreg() else None
                if source is None:
                    raise DownloadError(f"{label}: {member} in the archive is not a plain file.")
                return _copy(source, file)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DownloadError(f"{label}: the file is not a readable tar.gz.", "", f"    {error}") from None
    raise DownloadError(
        f"{label}: the archive holds no {member}.", "check the tool's `member` in versions.yaml against the archive"
    )


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)


def _programs(name: str, tool: Tool) -> dict[str, str]:
    """Return what a tool's file brings: names in the tools folder, and what each is called in the archive."""
    return {name: tool.member, **tool.also}


def _digest_of(path: Path, expected: Expected) -> str:
    """Return a file's digest in the form of the expected one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512" if len(expected.digest) == 128 else "sha256").hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdefABCDEF" for c in text)


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])


def _disk_error(error: OSError, folder: Path) -> LabError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LabError(
            f"The disk that holds {folder} is full.", "free some space there and run again; nothing was lost"
        )
    return LabError(f"{folder} can't be written: {error.strerror or error}.", f"check who owns {folder}")


def _reason(error: requests.RequestException) -> str:
    """Return the innermost reason of a failed connection, without object addresses."""
    text = str(getattr(error.args[0], "reason", error.args[0]) if error.args else error).rpartition(": ")[2]
    while text.endswith(("'", '"')) or (text.endswith(")") and text.count(")") > text.count("(")):
        text = text[:-1]
    return text or type(error).__name__


def _size(count: int) -> str:
    return f"{count} bytes" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"
