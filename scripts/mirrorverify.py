"""`make mirror-verify`: is everything there, and is every digest as pinned? Every byte is read; nothing is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from scripts import console, mirrorset, pins, provide
from scripts.downloads import digest_like, find_sha256
from scripts.errors import LabError
from scripts.hostfacts import current_platform
from scripts.mirror_options import MirrorOptions
from scripts.mirrors import ImageMirror, download_bases, download_credentials
from scripts.mirrorset import ReleaseFile
from scripts.mirrortarget import mirror_of
from scripts.registry_client import RegistryClient
from scripts.registry_errors import MissingError, RegistryError
from scripts.settings import Settings
from scripts.transfer import Limits, NotFoundError, Transfer, is_loopback, size_text
from scripts.versions import Image, Versions


@dataclass
class Verdict:
    """What was looked at: how many bytes, and what is wrong, a line each."""

    things: int = 0
    read_bytes: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Verify:
    """One run over a mirror."""

    settings: Settings
    versions: Versions
    options: MirrorOptions
    mirror: ImageMirror
    limits: Limits
    verdict: Verdict = field(default_factory=Verdict)
    _seen: set[str] = field(default_factory=set)

    def image(self, client: RegistryClient, name: str, image: Image) -> None:
        """Read an image whole: its tag, its index, its manifests, every layer."""
        repository = self.mirror.repository(image.image)
        manifest = client.manifest(repository, image.digest or image.tag)
        tagged = client.digest_of(repository, image.tag)
        if tagged != manifest.digest:
            raise RegistryError(f"{image.tagged} is {tagged or 'not there'}, not {manifest.digest}.")
        parts = [manifest]
        if manifest.is_index:
            children = manifest.children(self.options.image_platforms)
            if not children:
                raise MissingError(f"{image.tagged} has nothing for {', '.join(self.options.image_platforms)}.")
            parts = [client.manifest(repository, child) for child in children]
        for part in parts:
            for digest, size in part.blobs().items():
                # A layer that several images share is read once per repository that it is served from.
                if f"{repository}@{digest}" not in self._seen:
                    self._seen.add(f"{repository}@{digest}")
                    self._note(name, 0)
                    got = client.check_blob(repository, digest, partial(self._note, name))
                    if got != size:
                        raise RegistryError(f"{image.tagged}: {digest} has {got} bytes, not {size}.")

    def file(self, file: ReleaseFile, sums: dict[str, str]) -> None:
        """Read a release file from DOWNLOAD_MIRROR, or from the folder without one, and compare its sum."""
        with tempfile.TemporaryDirectory(prefix="gitops-lab-verify-") as folder:
            path = self._brought(file, Path(folder) / "file")
            self._note(file.tool, path.stat().st_size)
            if file.is_checksums:
                sums[file.url] = path.read_text(errors="replace")
                return
            published = sums.get(self.versions.tools[file.tool].checksums_url_for(file.platform), "")
            named = find_sha256(published, Path(file.path).name)
            known = [(d, by) for d, by in ((file.digest, "the pin"), (named, "the checksum file beside it")) if d]
            got = [digest_like(path, expected) for expected, _ in known]
        if not known:
            raise LabError(f"{file.path}: no checksum is known of it.")
        for (expected, by), found in zip(known, got, strict=True):
            if expected != found:
                raise LabError(f"{file.path}: its sum is {found}, by {by} it is {expected}.")

    def _brought(self, file: ReleaseFile, scratch: Path) -> Path:
        base = self.settings.download_mirror
        if not base:
            path = self.options.files / file.path
            if not path.is_file():
                raise NotFoundError(f"{path} is not there.")
            return path
        (url,) = {
            mirror + file.url[len(upstream) :]
            for upstream, mirror in download_bases(self.settings, self.versions).items()
            if file.url.startswith(f"{upstream}/")
        }
        credentials = download_credentials(self.settings)
        Transfer(
            f"{file.tool} {file.platform}", url, scratch, self.limits,
            headers={"Authorization": credentials.basic} if credentials else None,
            verify=str(self.settings.mirror_ca) if self.settings.mirror_ca else True,
            direct=is_loopback(base.partition("://")[2].partition("/")[0].partition(":")[0]),
        ).run()  # fmt: skip
        return scratch

    def _note(self, name: str, count: int) -> None:
        self.verdict.read_bytes += count
        console.note(f"{name}: {size_text(self.verdict.read_bytes)} read so far")


def verify(settings: Settings, versions: Versions, options: MirrorOptions, limits: Limits | None = None) -> Verdict:
    """Look at everything that a lab takes from a mirror and return what is wrong with it; raises if it can't be asked."""
    mirror = mirror_of(settings, options)
    pinned = pins.effective(settings, versions)
    run = Verify(settings, pinned, options, mirror, limits or Limits())
    client = mirror.client(run.limits)
    client.ping()
    sums: dict[str, str] = {}
    with console.Board() as board, board.task(f"verifying {options.mirror}"):
        needed = {mirrorset.BASE_OF_GIT_SERVER, *mirrorset.needed_images(settings, pinned)}
        for name, image in _images(settings, versions, pinned, run, client).items():
            if options.wants(name):
                _look(run.verdict, image.tagged, partial(run.image, client, name, image), needed=name in needed)
        files = [f for f in mirrorset.release_files(pinned, options.platforms) if options.wants(f.tool)]
        for file in sorted(files, key=lambda f: not f.is_checksums):
            _look(
                run.verdict, file.path, partial(run.file, file, sums), needed=file.tool not in provide.ON_DEMAND_TOOLS
            )
    return run.verdict


def _images(
    settings: Settings, versions: Versions, pinned: Versions, run: Verify, client: RegistryClient
) -> dict[str, Image]:
    """Return the images that have to be there: the Git server ready built, or else what it is built on."""
    ready = mirrorset.git_server_image(versions)
    locked = pins.lock_file(settings).read().images.get(ready.tagged, "") if settings.versions_lock else ""
    ready = Image(ready.image, ready.tag, locked)
    wanted = mirrorset.all_images(pinned) | {mirrorset.GIT_SERVER: ready}
    if client.digest_of(run.mirror.repository(ready.image), ready.tag):
        base = wanted[mirrorset.BASE_OF_GIT_SERVER]
        if not client.digest_of(run.mirror.repository(base.image), base.tag):
            console.line(f"  {base.tagged} is not there, nor needed: the Git server is there ready built", "dim")
            del wanted[mirrorset.BASE_OF_GIT_SERVER]
    else:
        del wanted[mirrorset.GIT_SERVER]
        console.line(f"  {ready.tagged} is not there: setup builds it, with packages from Alpine's mirrors", "dim")
    return wanted


def _look(verdict: Verdict, what: str, read: Callable[[], None], *, needed: bool) -> None:
    """Look at one thing; what is wrong with it is noted, and the rest is looked at all the same.

    Not to be there is wrong only of what setup takes from a mirror: a lab does without the rest, or without what it
    has it for.
    """
    try:
        read()
    except LabError as error:
        if not needed and isinstance(error, (MissingError, NotFoundError)):
            console.line(f"  {what} is not there, nor needed for a lab with these settings", "dim")
            return
        details = f"\n{error.details}" if error.details else ""
        verdict.wrong.append(f"{what}: {error.what}{details}" if what not in error.what else error.what + details)
    verdict.things += 1


def platforms_line(options: MirrorOptions) -> str:
    """Return for which machines was looked."""
    images = ", ".join(options.image_platforms) or "every platform"
    own = "" if options.platforms != (current_platform(),) else " (this machine's; others: PLATFORMS=…)"
    return f"images for {images}, files for {', '.join(options.platforms)}{own}"
