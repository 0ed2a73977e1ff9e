"""`make mirror-fill`: everything that versions.yaml names into a mirror, from upstream or from the source-built set.

What is there is not sent again, what broke off goes on: a run that ended early is finished by the next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from scripts import console, mirror_pull, mirrorset, pins, provide, sourcebuild, sourcemirror
from scripts.cache import Cache, digest_of, lock, write_atomically
from scripts.downloads import find_sha256
from scripts.hostfacts import current_platform
from scripts.mirror_options import MirrorOptions
from scripts.mirrorset import ReleaseFile
from scripts.mirrortarget import Tally, Target, sha256_of
from scripts.ociimage import from_engine
from scripts.settings import ImageSource, Settings
from scripts.sourcebuild import SourceSet
from scripts.sourcemirror import SourceImage
from scripts.transfer import DownloadError, Limits, size_text
from scripts.versions import Image, Versions


@dataclass(frozen=True)
class Step:
    """One thing to bring, and what people call it."""

    label: str
    bring: Callable[[], None]


def fill(settings: Settings, versions: Versions, options: MirrorOptions, limits: Limits | None = None) -> Tally:
    """Fill the mirror; raises LabError naming the first thing that could not be brought there."""
    target = Target(settings, options, limits or Limits())
    target.client.ping()
    source, why = provide.choose_source(settings)
    console.line(f"filling {options.mirror} from {source} ({why})")
    with lock(options.folder / "fill.lock", "filling this mirror"), console.Board() as board:
        steps = _from_source if source is ImageSource.SOURCE else _from_upstream
        for step in steps(target, versions):
            started, before = time.monotonic(), target.tally.sent_bytes
            with board.task(step.label):
                step.bring()
            sent = target.tally.sent_bytes - before
            console.done(step.label, time.monotonic() - started, f"{size_text(sent)} sent" if sent else "was there")
    return target.tally


def _from_upstream(target: Target, versions: Versions) -> Iterator[Step]:
    wants = target.options.wants
    pinned = pins.effective(target.settings, versions)
    for name, image in pinned.artifacts.items():
        if wants(name):
            yield Step(
                f"{'chart' if name in pinned.charts else 'image'} {image.tagged}",
                partial(target.copy_image, name, image),
            )
    git_server = mirrorset.git_server_image(versions)
    if wants(mirrorset.GIT_SERVER):
        yield Step(f"image {git_server.tagged}", partial(_build_git_server, target, versions, pinned, git_server))
    published: dict[str, str] = {}
    files = [f for f in mirrorset.release_files(pinned, target.options.platforms) if wants(f.tool)]
    for file in sorted(files, key=lambda f: not f.is_checksums):
        yield Step(f"file {file.path}", partial(_fetch, target, versions, file, published))


def _fetch(target: Target, versions: Versions, file: ReleaseFile, published: dict[str, str]) -> None:
    """Bring a publisher's file, checked by the pin, or by the publisher's checksum file, which comes before it."""
    if file.is_checksums:
        published[file.url] = target.fetch_file(file, "").read_text(errors="replace")
        return
    sums = published.get(versions.tools[file.tool].checksums_url_for(file.platform), "")
    digest = file.digest or find_sha256(sums, Path(file.path).name)
    if not digest:
        raise DownloadError(f"No checksum is known of {file.path}.", f"mend tools.{file.tool} in versions.yaml")
    target.fetch_file(file, digest)


def _build_git_server(target: Target, versions: Versions, pinned: Versions, image: Image) -> None:
    """Build the Git server's image where its packages can be had, so that a lab behind the mirror need not."""
    if target.client.digest_of(target.mirror.repository(image.image), image.tag):
        target.tally.found += 1
        return
    name, _ = mirror_pull.open_pull(target.settings, versions, pinned).ensure_git_server()
    with target.scratch() as folder:
        target.push_image(image, from_engine(name, folder))


def _from_source(target: Target, versions: Versions) -> Iterator[Step]:
    own = current_platform()
    sourcemirror.require_platforms(target.options.platforms, own)
    settings, wants = target.settings, target.options.wants
    built = sourcebuild.ensure_source_set(Cache(settings.cache_dir), versions, settings.state_dir / "logs")
    made = sourcemirror.source_images(built, versions, own.partition("/")[2])
    tools = {name: tool for name, tool in versions.tools.items() if name not in provide.ON_DEMAND_TOOLS}
    target.tally.left_out += [name for name in versions.artifacts if name not in made]
    target.tally.left_out += [name for name in versions.tools if name not in tools]
    known = _Known(target.options.folder / "source.json")
    for name, entry in made.items():
        if wants(name):
            yield Step(f"image {entry.image.tagged}", partial(_push_built, target, entry, known))
    for name, tool in tools.items():
        if wants(name):
            yield Step(f"file {name} {tool.version}", partial(_keep_built, target, versions, name, own, built, known))


def _push_built(target: Target, entry: SourceImage, known: _Known) -> None:
    recorded = known.get(entry.key)
    there = target.client.digest_of(target.mirror.repository(entry.image.image), entry.image.tag)
    if recorded and there == recorded:
        target.tally.found += 1
        return
    with target.scratch() as folder:
        console.note(f"putting {entry.image.tagged.rpartition('/')[2]} together")
        image = entry.build(folder)
        target.push_image(entry.image, image)
    known.put(entry.key, image.manifest.digest)


def _keep_built(target: Target, versions: Versions, name: str, platform: str, built: SourceSet, known: _Known) -> None:
    tool = versions.tools[name]
    programs = {member: provide.TOOL_BINARIES[program] for program, member in tool.programs(name, platform).items()}
    file, *checksums = mirrorset.release_files(replace(versions, tools={name: tool}), (platform,))
    key = digest_of({member: (built.keys[module], binary) for member, (module, binary) in programs.items()})
    path = target.options.files / file.path
    if path.is_file() and sha256_of(path) == known.get(key):
        target.keep_file(file, None)
    else:
        target.keep_file(file, sourcemirror.release_file({m: built.binary(*origin) for m, origin in programs.items()}))
        known.put(key, sha256_of(path))
    for sums in checksums:
        target.keep_file(sums, sourcemirror.checksums_of({path.name: known.get(key)}).encode())


class _Known:
    """The digests of what was put together here, by what it was made from: to know it again without making it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, str] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            self._known = {}

    def get(self, key: str) -> str:
        return self._known.get(key, "")

    def put(self, key: str, digest: str) -> None:
        self._known[key] = digest
        write_atomically(self._path, json.dumps(self._known, indent=2))
