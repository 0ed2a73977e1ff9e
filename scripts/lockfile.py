"""versions.lock.yaml: digests that could not be pinned by hand, recorded when first seen and held to from then on.

A digest that changes under an unchanged version is refused: published files and tags are not supposed to change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from scripts import cache, console
from scripts.errors import LabError
from scripts.settings import ROOT
from scripts.versions import Image

LOCK_FILE = ROOT / "versions.lock.yaml"

_HEADER = (
    "# Written by `make lock`, and by the first use of what versions.yaml pins without a digest. Later runs hold to it;\n"
    "# a digest that changes under an unchanged version is refused unless FORCE=1 make lock. Commit it.\n"
)
_SUM = re.compile(r"[0-9a-f]{64}|[0-9a-f]{128}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class LockedTool:
    """The SHA-256 (or SHA-512, as it was published) of a tool's release file per platform, at one version."""

    version: str
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Locked:
    """All that the lock file holds: tools by name, images by name and tag."""

    tools: Mapping[str, LockedTool] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LockFile:
    """The lock file at a path; `locks_dir` is where runs that write it wait for each other."""

    path: Path = LOCK_FILE
    locks_dir: Path = ROOT / "build"  # not in Git

    def read(self) -> Locked:
        """Return what is recorded: nothing when there is no file; raises LabError for one that is damaged."""
        try:
            data = yaml.load(self.path.read_text(encoding="utf-8"), yaml.CSafeLoader) or {}
        except FileNotFoundError:
            return Locked()
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from None
        try:
            tools = {
                name: LockedTool(tool["version"], {p: _checked(_SUM, d) for p, d in tool["digests"].items()})
                for name, tool in (data.get("tools") or {}).items()
            }
            images = {name: _checked(_DIGEST, digest) for name, digest in (data.get("images") or {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"unexpected content: {error}") from None
        return Locked(tools, images)

    def tool_digest(self, name: str, version: str, platform: str) -> str:
        """Return the recorded digest of a tool's release file, or nothing."""
        tool = self.read().tools.get(name)
        return tool.digests.get(platform, "") if tool and tool.version == version else ""

    def record_tool(self, name: str, version: str, platform: str, digest: str, *, force: bool = False) -> bool:
        """Record a tool's digest and return whether the file changed; raises LabError for a changed one."""
        with self._locked():
            locked = self.read()
            known = locked.tools.get(name)
            # A new version starts with an empty record: sums of the old one say nothing about it.
            sums = dict(known.digests) if known and known.version == version else {}
            self._refuse_change(f"{name} {version} for {platform}", sums.get(platform, ""), digest, force)
            sums[platform] = _checked(_SUM, digest)
            return self._write(locked, replace(locked, tools={**locked.tools, name: LockedTool(version, sums)}))

    def record_image(self, tagged: str, digest: str, *, force: bool = False) -> bool:
        """Record the digest of an image and return whether the file changed; raises LabError for a changed one."""
        if not _DIGEST.fullmatch(digest):
            raise LabError(f"{tagged}: {digest or '(nothing)'} is not an image digest.")
        with self._locked():
            locked = self.read()
            self._refuse_change(tagged, locked.images.get(tagged, ""), digest, force)
            return self._write(locked, replace(locked, images={**locked.images, tagged: digest}))

    def ensure_image(self, image: Image, resolve: Callable[[str], str]) -> Image:
        """Return the image with a digest: its pin, or the record, or what `resolve(name:tag)` says, then recorded."""
        digest = image.digest or self.read().images.get(image.tagged, "")
        if not digest:
            console.note(f"{image.tagged} is pinned by tag: looking up its digest")
            digest = resolve(image.tagged)
            self.record_image(image.tagged, digest)
        return replace(image, digest=digest)

    def keep_only(self, tools: Collection[str], images: Collection[str]) -> bool:
        """Drop the records of what is no longer part of the lab and return whether the file changed."""
        with self._locked():
            locked = self.read()
            kept_tools = {n: t for n, t in locked.tools.items() if n in tools}
            kept_images = {n: d for n, d in locked.images.items() if n in images}
            return self._write(locked, Locked(kept_tools, kept_images))

    def _refuse_change(self, what: str, known: str, new: str, force: bool) -> None:
        if known and known != new and not force:
            raise LabError(
                f"{what} changed under an unchanged version.",
                f"find out why before trusting it; to take the new one: FORCE=1 make lock, then review {self.path.name}",
                f"    recorded in {self.path.name}: {known}\n    seen now: {new}",
            )

    def _locked(self) -> AbstractContextManager[None]:
        return cache.lock(self.locks_dir / "versions-lock.lock", f"writing {self.path.name}", timeout_s=60)

    def _write(self, old: Locked, new: Locked) -> bool:
        if new == old:
            return False
        data = {
            "tools": {n: {"version": t.version, "digests": dict(t.digests)} for n, t in new.tools.items()},
            "images": dict(new.images),
        }
        cache.write_atomically(
            self.path, _HEADER + yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=True, width=1000)
        )
        return True

    def _damaged(self, details: str) -> LabError:
        return LabError(
            f"{self.path.name} can't be read.", f"restore it: git checkout -- {self.path.name}", f"    {details}"
        )


def _checked(pattern: re.Pattern[str], digest: str) -> str:
    if not pattern.fullmatch(digest):
        raise ValueError(f"{digest} is not a digest")
    return digest
