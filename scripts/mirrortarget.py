"""A mirror that is being filled: images and files brought to it, what is there left alone, in bytes and in words."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

from scripts import console, mirrors, pins
from scripts.credentials import credentials_for
from scripts.downloads import digest_like
from scripts.errors import LabError
from scripts.mirror_options import MirrorOptions, require_mirror
from scripts.mirrors import ImageMirror
from scripts.mirrorset import ReleaseFile
from scripts.oci import file_digest
from scripts.ociimage import BuiltImage
from scripts.registry_client import RegistryClient
from scripts.settings import MirrorLayout, Settings
from scripts.transfer import DownloadError, Limits, Transfer, disk_error, is_loopback, size_text
from scripts.versions import Image


@dataclass
class Tally:
    """What a run did, in things and in bytes."""

    sent: int = 0
    found: int = 0
    sent_bytes: int = 0
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.sent} things sent ({size_text(self.sent_bytes)}), {self.found} were there"


@dataclass
class Target:
    """A mirror, and the folder of its files."""

    settings: Settings
    options: MirrorOptions
    limits: Limits = field(default_factory=Limits)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.mirror = mirror_of(self.settings, self.options)
        self.client = self.mirror.client(self.limits)

    # ------------------------------------------------------------ images from upstream

    def copy_image(self, name: str, image: Image) -> None:
        """Copy an image of an upstream by its digest: of an index the chosen platforms, as they are."""
        upstream, source = pins.upstream_client(image.image, self.limits), image.image.partition("/")[2]
        repository = self.mirror.repository(image.image)
        manifest = source_manifest = upstream.manifest(source, image.digest or image.tag)
        if manifest.is_index:
            children = manifest.children(self.options.image_platforms)
            if not children:
                wanted = ", ".join(self.options.image_platforms)
                raise LabError(f"{image.tagged} has nothing for {wanted}.", "choose other PLATFORMS")
        else:
            children = [manifest.digest]
        if self.client.digest_of(repository, image.tag) == manifest.digest and all(
            self.client.digest_of(repository, child) for child in children
        ):
            self.tally.found += 1
            return
        for child in children:
            part = upstream.manifest(source, child) if manifest.is_index else source_manifest
            for digest, size in part.blobs().items():
                self._copy_blob(upstream, source, repository, digest, f"{name}: {size_text(size)} {digest[7:19]}")
            self.client.put_manifest(repository, child if manifest.is_index else image.tag, part)
        if manifest.is_index:
            self.client.put_manifest(repository, image.tag, manifest)
        self.tally.sent += 1

    def _copy_blob(self, upstream: RegistryClient, source: str, repository: str, digest: str, label: str) -> None:
        if self.client.has_blob(repository, digest):
            return
        path = self._partial / digest.partition(":")[2]
        upstream.pull_blob(source, digest, path, label)
        self.client.push_blob(repository, digest, path, label)
        self.tally.sent_bytes += path.stat().st_size
        path.unlink()

    # ------------------------------------------------------------ images built here

    def push_image(self, image: Image, built: BuiltImage) -> None:
        """Store an image that was put together here under its upstream name."""
        repository = self.mirror.repository(image.image)
        for digest, path in built.blobs.items():
            label = f"{image.tagged.rpartition('/')[2]}: {size_text(path.stat().st_size)} {digest[7:19]}"
            if self.client.push_blob(repository, digest, path, label):
                self.tally.sent_bytes += path.stat().st_size
        self.client.put_manifest(repository, image.tag, built.manifest)
        self.tally.sent += 1

    # ------------------------------------------------------------ files

    def keep_file(self, file: ReleaseFile, data: bytes | None) -> None:
        """Put a file that was made here (None: it is there already) where the file server finds it."""
        path = self.options.files / file.path
        if data is None or (path.is_file() and path.read_bytes() == data):
            self.tally.found += 1
        else:
            _write(path, data)
            self.tally.sent += 1
            self.tally.sent_bytes += len(data)
        self._upload(file, path)

    def fetch_file(self, file: ReleaseFile, digest: str) -> Path:
        """Bring a file of a publisher into the folder, checked; what is there and right is left alone."""
        path = self.options.files / file.path
        if path.is_file() and (not digest or digest_like(path, digest) == digest) and not file.is_checksums:
            self.tally.found += 1
        else:
            part = self._partial / f"file-{file.tool}-{file.platform.replace('/', '-')}-{path.name}"
            if file.is_checksums:
                part.unlink(missing_ok=True)  # a publisher may add to it: never the end of an older one
            Transfer(f"{file.tool} {file.platform}", file.url, part, self.limits, tls_only=file.is_checksums).run()
            got = digest_like(part, digest)
            if digest and got != digest:
                part.unlink()
                raise DownloadError(
                    f"{file.tool} for {file.platform}: the downloaded file has the wrong checksum and was thrown away.",
                    "run again; if it stays so, a proxy alters the file, or the pin is wrong",
                    f"    expected {digest}\n    got      {got}",
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            self.tally.sent_bytes += part.stat().st_size
            self.tally.sent += 1
            shutil.move(part, path)
        self._upload(file, path)
        return path

    def _upload(self, file: ReleaseFile, path: Path) -> None:
        """Send a file to DOWNLOAD_MIRROR by PUT, as raw repositories take it, unless one of its size is there."""
        base = self.settings.download_mirror
        if not base:
            return
        credentials = mirrors.download_credentials(self.settings) or credentials_for(self.mirror.host)
        headers = {"Authorization": credentials.basic} if credentials else {}
        url, size = f"{base}/{file.path}", path.stat().st_size
        with requests.Session() as session:
            session.trust_env = not is_loopback(urlsplit(url).hostname or "")
            verify = str(self.settings.mirror_ca) if self.settings.mirror_ca else True
            timeout = (self.limits.connect_s, self.limits.read_s)
            try:
                there = session.head(url, headers=headers, timeout=timeout, verify=verify, allow_redirects=True)
                if there.status_code == 200 and there.headers.get("Content-Length") == str(size):
                    return
                console.note(f"{file.path}: {size_text(size)} to {base}")
                with path.open("rb") as data:
                    done = session.put(url, data=data, headers=headers, timeout=timeout, verify=verify)
            except requests.RequestException as error:
                raise DownloadError(
                    f"{file.path} can't be sent to DOWNLOAD_MIRROR ({type(error).__name__}).",
                    "check that address, MIRROR_CA and the network; the files are also in the folder MIRROR_DIR",
                ) from None
        if done.status_code not in (200, 201, 204):
            raise DownloadError(
                f"DOWNLOAD_MIRROR answered {done.status_code} {done.reason} to {file.path}.",
                "check that it takes files by PUT and the user's rights there, or copy the folder yourself "
                f"({self.options.files}) and leave DOWNLOAD_MIRROR out",
            )

    @property
    def _partial(self) -> Path:
        folder = self.options.folder / "partial"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a folder for an image's blobs, on the mirror's own disk, which has room for them anyway."""
        folder = self.options.folder / "scratch"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed: the lock is held
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def mirror_of(settings: Settings, options: MirrorOptions) -> ImageMirror:
    """Return the mirror that MIRROR names; it is laid out by upstream unless IMAGE_MIRROR_LAYOUT says otherwise."""
    require_mirror(options)
    host, prefix = mirrors.split(options.mirror)
    flat = settings.image_mirror_layout is MirrorLayout.FLAT
    layout = MirrorLayout.FLAT if flat else MirrorLayout.PREFIX
    return ImageMirror(host, prefix, layout, settings.mirror_ca, credentials_for(host), "MIRROR")


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                Path(file.name).chmod(0o644)
                Path(file.name).rename(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise disk_error(error, path.parent) from None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as checksum files write it."""
    return file_digest(path).removeprefix("sha256:")
