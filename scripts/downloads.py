"""Release binaries of registry mode: downloaded, verified, and put into the tools folder by one rename.

A download that breaks off goes on where it stopped (in this run and in the next one); a file whose SHA-256 is
not the expected one is thrown away. A tool that is there in the right version costs no request.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from scripts import console
from scripts.cache import lock as hold_lock
from scripts.cache import write_atomically
from scripts.hostfacts import mask_credentials
from scripts.lockfile import LockFile
from scripts.outcome import Outcome
from scripts.settings import Credentials
from scripts.transfer import DownloadError, Limits, NotFoundError, Transfer, disk_error, is_loopback, require_tls
from scripts.versions import Tool

CHUNK_BYTES = 64 * 1024
MAX_CHECKSUMS_BYTES = 1024 * 1024


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
        ca: what to trust the mirror by, instead of the usual authorities.
        credentials: the mirror's user; nobody else's server sees it.
    """

    tools_dir: Path
    platform: str
    lock_file: LockFile
    base_url: Mapping[str, str] | None = None
    limits: Limits = field(default_factory=Limits)
    ca: Path | None = None
    credentials: Credentials | None = None

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
            for program, member in tool.programs(name, self.platform).items():
                self._install(program, member, tool, part, expected)
            part.unlink()
        return Outcome(True, f"{name} {tool.version} downloaded, checked by {expected.source}")

    def published_sha256(self, name: str, tool: Tool) -> Expected:
        """Return the SHA-256 that the publisher's own checksum file gives, read over TLS."""
        url = self._mirrored(tool.checksums_url_for(self.platform))
        label = f"{name} {tool.version}: the publisher's checksums"
        require_tls(url, label)
        console.note(f"{label} from {mask_credentials(url)}")
        with tempfile.TemporaryDirectory(prefix="gitops-lab-") as folder:
            path = Path(folder) / "checksums"
            self._transfer(label, url, path, tls_only=True, max_bytes=MAX_CHECKSUMS_BYTES)
            text = path.read_text(encoding="utf-8", errors="replace")
        file_name = _file_name(tool.url_for(self.platform))
        sha256 = find_sha256(text, file_name)
        if not sha256:
            raise NotFoundError(
                f"{label} don't name {file_name}.",
                f"look at {mask_credentials(url)} and mend tools.{name} in versions.yaml",
            )
        return Expected(sha256, "the publisher's checksum file")

    def published_digest(self, name: str, tool: Tool) -> Expected:
        """Return the digest that the publisher gives; where it gives none beside the file, that of the file itself."""
        if tool.checksums:
            return self.published_sha256(name, tool)
        url = self._mirrored(tool.url_for(self.platform))
        with tempfile.TemporaryDirectory(prefix="gitops-lab-") as folder:
            path = Path(folder) / "file"
            self._transfer(f"{name} {tool.version}", url, path, tls_only=True)
            return Expected(digest_like(path, "0" * 128), "the file itself")

    def _known_digest(self, name: str, tool: Tool) -> Expected | None:
        pinned = tool.pinned(self.platform)
        if pinned:
            return Expected(pinned, "versions.yaml")
        recorded = self.lock_file.tool_digest(name, tool.version, self.platform)
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

    def _transfer(self, label: str, url: str, path: Path, tls_only: bool = False, max_bytes: int | None = None) -> None:
        mirrored = any(url.startswith(base.rstrip("/") + "/") for base in (self.base_url or {}).values())
        Transfer(
            label, url, path, self.limits, tls_only=tls_only, max_bytes=max_bytes,
            headers={"Authorization": self.credentials.basic} if mirrored and self.credentials else None,
            verify=str(self.ca) if mirrored and self.ca else True,
            direct=is_loopback(urlsplit(url).hostname or ""),
        ).run()  # fmt: skip

    def _manifest_path(self, name: str) -> Path:
        return self.tools_dir / f".{name}.json"

    def _all_installed(self, name: str, tool: Tool, expected: Expected) -> bool:
        return all(self._is_installed(program, tool, expected) for program in tool.programs(name, self.platform))

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
        if started_with and digest_like(part, expected.digest) == expected.digest:
            return part
        self._transfer(label, url, part)
        got = digest_like(part, expected.digest)
        if got != expected.digest and started_with:
            # The piece from an earlier run may have been the bad one: once more, from the first byte.
            console.note(f"{label}: what an earlier run left does not fit; downloading all of it again")
            part.unlink()
            self._transfer(label, url, part)
            got = digest_like(part, expected.digest)
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
            raise disk_error(error, self.tools_dir) from None
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


def digest_like(path: Path, expected: str) -> str:
    """Return a file's digest in the form of the expected one: SHA-512 or SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512" if len(expected) == 128 else "sha256").hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdefABCDEF" for c in text)


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])
