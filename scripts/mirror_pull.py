"""The engine's pulls in registry mode: by digest, from upstream or by the mirrored name.

A mirror is asked only when the engine lacks something, so a lab that is up needs it no more. Before the first pull
it is asked for everything at once: what is missing there is said before anything is changed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from scripts import console, images, mirrors, mirrorset, pins
from scripts.cache import write_atomically
from scripts.credentials import credentials_for, engine_environment
from scripts.docker import docker, image_exists
from scripts.engine import is_root
from scripts.errors import LabError
from scripts.lockfile import LockFile
from scripts.mirrors import ImageMirror
from scripts.monitoring import mode
from scripts.process import run
from scripts.settings import ImageSource, MirrorLayout, Monitoring, Settings
from scripts.transfer import is_loopback
from scripts.versions import Image, Versions

PULL_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Pull:
    """Brings images into the engine."""

    settings: Settings
    versions: Versions
    mirror: ImageMirror | None
    # The Git server's image where a mirror has it ready built; its tag is the hash of all it is made from.
    git_server: Image

    def reference(self, name: str) -> str:
        """Return the name under which the engine has an image of versions.yaml once it is pulled."""
        return self._reference(self.versions.images[name])

    def ensure(self, names: Iterable[str]) -> list[str]:
        """Pull what the engine lacks, by digest, and return what was pulled."""
        return self._ensure([self.versions.images[name] for name in names])

    def ensure_git_server(self) -> tuple[str, list[str]]:
        """Return the Git server's image and what was pulled for it: ready built from a mirror, else built on Alpine."""
        name = f"{images.REPOSITORY}/{mirrorset.GIT_SERVER}:{self.git_server.tag}"
        if image_exists(name):
            return name, []
        ready = self._ready_git_server()
        if ready:
            pulled = self._ensure([ready])
            docker("tag", self._reference(ready), name)
            return name, pulled
        pulled = self.ensure([mirrorset.BASE_OF_GIT_SERVER])
        base = self.reference(mirrorset.BASE_OF_GIT_SERVER)
        return images.build_git_server("alpine.Dockerfile", base, self.git_server.tag), pulled

    def _ready_git_server(self) -> Image | None:
        """Return the mirror's own image of the Git server, held to the digest that was seen first."""
        if not self.mirror:
            return None
        image, repository = self.git_server, self.mirror.repository(self.git_server.image)
        # Each mirror builds its own: such a digest is no matter of versions.lock.yaml, which is in Git.
        own = self.settings.versions_lock is not None
        file = pins.lock_file(self.settings) if own else LockFile(self.settings.cache_dir / "mirrors.lock.yaml")
        named = image if own else replace(image, image=f"{self.mirror.host}/{repository}")
        locked = file.read().images.get(named.tagged, "")
        found = self.mirror.client().digest_of(repository, locked or image.tag)
        if locked and not found:
            raise LabError(
                f"{self.mirror.host} has no {image.tagged} of the digest that was seen there first.",
                f"make mirror-fill MIRROR=…; if it was filled anew on purpose, take its line out of {file.path}",
                f"    seen first: {locked}",
            )
        return replace(image, digest=file.ensure_image(named, lambda _: found).digest) if found else None

    def _reference(self, image: Image) -> str:
        return self.mirror.reference(image) if self.mirror else image.reference

    def _ensure(self, wanted: list[Image]) -> list[str]:
        pulled = []
        for image in wanted:
            reference = self._reference(image)
            if image_exists(reference):
                continue
            console.note(f"pulling {image.tagged}")
            host = self.mirror.host if self.mirror else ""
            mend = "check the network and its proxy (the engine has settings of its own), then run again"
            if self.mirror:
                mend = "make mirror-verify MIRROR=… says what is wrong there; see the engine's own words above"
            with engine_environment(host) as environment:
                run(["docker", "pull", "--quiet", reference], timeout_s=PULL_TIMEOUT_S, env=environment, mend=mend)
            pulled.append(image.tagged)
        return pulled


def open_pull(settings: Settings, versions: Versions, pinned: Versions) -> Pull:
    """Return what pulls for this run; a mirror is opened, and asked for all it must have, if something is lacking.

    Args:
        settings: the lab.
        versions: versions.yaml as it is.
        pinned: the same with the digests that this run holds to.
    """
    git_server = mirrorset.git_server_image(versions)
    if not settings.image_mirror:
        return Pull(settings, pinned, None, git_server)
    host, prefix = mirrors.split(settings.image_mirror)
    auto = settings.image_mirror_layout is MirrorLayout.AUTO
    layouts = (MirrorLayout.PREFIX, MirrorLayout.FLAT) if auto else (settings.image_mirror_layout,)
    for layout in layouts:
        mirror = ImageMirror(host, prefix, layout, settings.mirror_ca, credentials_for(host))
        if all(image_exists(mirror.reference(pinned.images[name])) for name in ("node", "registry", "python")):
            return Pull(settings, pinned, mirror, git_server)
    opened = mirrors.open_mirror(settings, pinned.images["node"])
    assert opened is not None
    _require_everything(opened, settings, pinned, git_server)
    trust(opened)
    return Pull(settings, pinned, opened, git_server)


def _require_everything(mirror: ImageMirror, settings: Settings, versions: Versions, git_server: Image) -> None:
    chosen = replace(settings, monitoring=mode.choose(settings, ImageSource.REGISTRY))
    needed = mirrorset.needed_images(chosen, versions)
    del needed[mirrorset.GIT_SERVER]
    if not mirror.client().digest_of(mirror.repository(git_server.image), git_server.tag):
        # Then it is built, on what the mirror has of its base.
        name = mirrorset.BASE_OF_GIT_SERVER
        needed[name] = versions.images[name]
    extra = {*mode.artifacts(Monitoring.FULL)} - {*mode.artifacts(Monitoring.LITE)}
    mirrors.require_images(mirror, (image for name, image in needed.items() if name not in extra))
    mirrors.require_images(
        mirror,
        (image for name, image in needed.items() if name in extra),
        mend="MONITORING=lite does without them; or fill it from upstream: make mirror-fill MIRROR=… IMAGE_SOURCE=registry",
    )


def trust(mirror: ImageMirror) -> None:
    """Make the engine trust the mirror's CA: as root by itself, else by saying the command.

    https://docs.docker.com/engine/security/certificates/. An engine takes what is on 127.0.0.1 without it.
    """
    if not mirror.ca or is_loopback(mirror.host.partition(":")[0]):
        return
    wanted = mirror.ca.read_text()
    target = _certificates() / mirror.host / "ca.crt"
    if target.exists() and target.read_text() == wanted:
        return
    if platform.system() == "Linux" and is_root() and not os.environ.get("DOCKER_HOST"):
        write_atomically(target, wanted)
        console.line(f"  the engine is told of the mirror's CA: {target}")
        return
    again = " and restart the engine" if platform.system() == "Darwin" else ""
    sudo = "" if platform.system() == "Darwin" else "sudo "
    raise LabError(
        f"The engine does not know the CA of {mirror.host} (MIRROR_CA).",
        f"{sudo}mkdir -p {target.parent} && {sudo}cp {mirror.ca} {target}{again}",
    )


def _certificates() -> Path:
    if platform.system() == "Darwin":
        return Path.home() / ".docker" / "certs.d"
    return Path("/etc/docker/certs.d")
