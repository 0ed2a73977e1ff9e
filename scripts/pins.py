"""What a run holds tools and images to, and `make lock`, which writes it down.

versions.yaml has the publishers' digests; versions.lock.yaml repeats them, so that a changed one is seen, and adds
what was looked up. A lock of one's own (VERSIONS_LOCK, for a mirror of images built from source, whose digests are
not the publishers') counts before versions.yaml; who names it says so on purpose, and every run says it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from scripts import console, mirrors
from scripts.credentials import stored_credentials
from scripts.downloads import Downloader
from scripts.errors import LabError
from scripts.lockfile import LOCK_FILE, Locked, LockFile
from scripts.registry_client import RegistryClient
from scripts.registry_errors import Endpoint
from scripts.settings import Settings
from scripts.transfer import DownloadError, Limits, NotFoundError
from scripts.versions import PLATFORMS, Image, Tool, Versions


def lock_file(settings: Settings) -> LockFile:
    """Return this run's lock file."""
    return LockFile(settings.versions_lock or LOCK_FILE, settings.cache_dir / "locks")


def effective(settings: Settings, versions: Versions) -> Versions:
    """Return the versions with the digests that this run holds to; raises LabError where pin and lock disagree."""
    file = lock_file(settings)
    locked = file.read()
    if settings.versions_lock:
        if not file.path.exists():
            raise LabError(
                f"VERSIONS_LOCK={file.path} is not there.", "make lock VERSIONS_LOCK=… writes it from the mirror"
            )
        console.note(f"digests by {file.path}, not the publishers'")
        return _with_own_lock(versions, locked)
    _require_agreement(versions, locked, file.path)
    return versions.held_to(lambda image: image.digest or locked.images.get(image.tagged, ""))


def _with_own_lock(versions: Versions, locked: Locked) -> Versions:
    tools = {}
    for name, tool in versions.tools.items():
        known = locked.tools.get(name)
        same = known is not None and known.version == tool.version
        tools[name] = _held_to(tool, known.digests) if known and same else tool
    held = versions.held_to(lambda image: locked.images.get(image.tagged, image.digest))
    return replace(held, tools=tools)


def _held_to(tool: Tool, digests: Mapping[str, str]) -> Tool:
    """Return a tool with other digests for some platforms, in whichever form they are."""
    sha256 = {p: d for p, d in tool.sha256.items() if p not in digests} | {
        p: d for p, d in digests.items() if len(d) == 64
    }
    sha512 = {p: d for p, d in tool.sha512.items() if p not in digests} | {
        p: d for p, d in digests.items() if len(d) == 128
    }
    return replace(tool, sha256=sha256, sha512=sha512)


def _pinned(tool: Tool) -> dict[str, str]:
    return {platform: tool.pinned(platform) for platform in PLATFORMS if tool.pinned(platform)}


def _require_agreement(versions: Versions, locked: Locked, path: Path) -> None:
    """Refuse a pin that was changed under an unchanged version without `make lock` having been asked about it."""
    wrong = []
    for name, tool in versions.tools.items():
        known = locked.tools.get(name)
        if known and known.version == tool.version:
            wrong += [f"{name} {p}" for p, d in _pinned(tool).items() if known.digests.get(p, d) != d]
    wrong += [
        i.tagged for i in versions.artifacts.values() if i.digest and locked.images.get(i.tagged, i.digest) != i.digest
    ]
    if wrong:
        raise LabError(
            f"versions.yaml and {path.name} disagree about {', '.join(wrong)}.",
            "a version's digest does not change: restore it, or, if you know why it did, FORCE=1 make lock",
        )


def lock_pins(
    settings: Settings,
    versions: Versions,
    extra: Iterable[Image] = (),
    *,
    force: bool = False,
    limits: Limits | None = None,
) -> None:
    """Write the lock file anew and say what changed; raises LabError for a digest changed under its version."""
    file = lock_file(settings)
    before = file.read()
    own = settings.versions_lock is not None
    if own and not settings.image_mirror:
        raise LabError(
            "VERSIONS_LOCK is for a mirror, and there is none.", "set IMAGE_MIRROR (and DOWNLOAD_MIRROR) too"
        )
    images = [*versions.artifacts.values(), *extra]
    for name, tool in versions.tools.items():
        for platform, digest in _digests(settings, versions, name, tool, own, limits).items():
            file.record_tool(name, tool.version, platform, digest, force=force)
    for image in images:
        digest = image.digest if image.digest and not own else _look_up(settings, versions, image, limits)
        if digest:
            file.record_image(image.tagged, digest, force=force)
    file.keep_only(set(versions.tools), {image.tagged for image in images})
    _say(file.path, before, file.read())


def _digests(
    settings: Settings, versions: Versions, name: str, tool: Tool, own: bool, limits: Limits | None
) -> dict[str, str]:
    """Return a tool's digest per platform: as pinned, else (or for a lock of one's own) as published."""
    sums = {} if own else _pinned(tool)
    if own and not settings.download_mirror:
        return sums
    silent = []
    for platform in PLATFORMS:
        if platform in sums:
            continue
        try:
            sums[platform] = downloader(settings, versions, platform, limits).published_digest(name, tool).digest
        except NotFoundError:
            silent.append(platform)
        except DownloadError as error:
            console.line(f"  {name} {tool.version}: not looked up ({error.what})", "dim")
            break  # a host that does not answer for one platform does not for the next
    if silent:
        console.line(f"  {name} {tool.version}: no checksum for {', '.join(silent)}", "dim")
    return sums


def _look_up(settings: Settings, versions: Versions, image: Image, limits: Limits | None) -> str:
    """Return the digest that a tag has now, in the mirror or upstream; "" (and a line) where it can't be had."""
    untied = replace(image, digest="")
    try:
        if settings.image_mirror:
            probe = replace(versions.images["node"], digest="")
            mirror = mirrors.open_mirror(settings, probe, limits)
            assert mirror is not None
            found = mirror.client(limits).digest_of(mirror.repository(untied.image), untied.tag)
            where = mirror.host
        else:
            where, _, repository = image.image.partition("/")
            found = upstream_client(image.image, limits).digest_of(repository, untied.tag)
    except LabError as error:
        if settings.image_mirror:
            raise
        console.line(f"  {image.tagged}: not looked up ({error.what})", "dim")
        return ""
    if not found:
        console.line(f"  {image.tagged}: not in {where}", "dim")
    return found


def upstream_client(image: str, limits: Limits | None = None) -> RegistryClient:
    """Return a client of the registry that an image name names, with what `docker login` keeps for it."""
    host = image.partition("/")[0]
    return RegistryClient(Endpoint(host, None, stored_credentials(host), ""), limits)


def downloader(settings: Settings, versions: Versions, platform: str, limits: Limits | None = None) -> Downloader:
    """Return what brings release files, from the publishers or from DOWNLOAD_MIRROR."""
    return Downloader(
        settings.tools_dir,
        platform,
        lock_file(settings),
        mirrors.download_bases(settings, versions),
        limits or Limits(),
        settings.mirror_ca,
        mirrors.download_credentials(settings),
    )


def _say(path: Path, before: Locked, after: Locked) -> None:
    old, new = _flat(before), _flat(after)
    if old == new:
        console.line(f"{path.name}: {len(new)} digests, none changed")
        return
    console.line(f"{path.name} changed:")
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            was, now = (_short(side.get(key, "")) for side in (old, new))
            console.line(f"  {key}: {was or 'new'} -> {now or 'gone'}")


def _flat(locked: Locked) -> dict[str, str]:
    sums = {f"{n} {t.version} {p}": s for n, t in locked.tools.items() for p, s in t.digests.items()}
    return {**sums, **locked.images}


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
