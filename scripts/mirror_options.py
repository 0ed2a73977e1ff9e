"""What the commands that keep a mirror are told by the environment: where it is, for which platforms, how it is served."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.errors import UsageError
from scripts.hostfacts import current_platform
from scripts.settings import folder_of, image_mirror, port
from scripts.versions import PLATFORMS

IMAGES_PORT = 5443
FILES_PORT = 5444
ALL = "all"


@dataclass(frozen=True)
class MirrorOptions:
    """One run's mirror.

    Attributes:
        mirror: the registry to fill or verify: host[:port][/prefix].
        folder: what `mirror-serve` serves, and where `mirror-fill` puts files.
        platforms: for which machines (`os/arch`).
        whole_indexes: copy every platform of an image, also those that no machine of this lab has.
        only: names of images and tools to fill or verify; empty for all.
        images_port: where the registry listens.
        files_port: where the file server listens.
        bind: addresses to listen on besides 127.0.0.1.
    """

    mirror: str
    folder: Path
    platforms: tuple[str, ...]
    whole_indexes: bool = False
    only: tuple[str, ...] = ()
    images_port: int = IMAGES_PORT
    files_port: int = FILES_PORT
    bind: tuple[str, ...] = ()

    @property
    def files(self) -> Path:
        """The folder of the release files."""
        return self.folder / "files"

    @property
    def image_platforms(self) -> tuple[str, ...]:
        """The platforms of the images that these machines run: containers are Linux everywhere."""
        if self.whole_indexes:
            return ()
        return tuple(dict.fromkeys(f"linux/{p.partition('/')[2]}" for p in self.platforms))

    def wants(self, name: str) -> bool:
        """Whether an image or tool is part of this run."""
        return not self.only or name in self.only


def load(environ: Mapping[str, str]) -> MirrorOptions:
    """Return the options that the environment asks for; raises UsageError for a value that can't be used."""
    listed = _words(environ.get("PLATFORMS", ""))
    unknown = [p for p in listed if p not in PLATFORMS and p != ALL]
    if unknown:
        raise UsageError(f"PLATFORMS: {unknown[0]} is not known.", f"take some of {','.join(PLATFORMS)}, or {ALL}")
    folder = environ.get("MIRROR_DIR", "")
    ports = port(environ, "MIRROR_PORT", IMAGES_PORT), port(environ, "MIRROR_FILES_PORT", FILES_PORT)
    if ports[0] == ports[1]:
        raise UsageError(f"MIRROR_PORT and MIRROR_FILES_PORT are both {ports[0]}.", "give each a number of its own")
    return MirrorOptions(
        mirror=image_mirror(environ.get("MIRROR", ""), "MIRROR"),
        # Not in the cache: `make clean CACHE=1` and PURGE=1 must not take what others may be served from.
        folder=Path(folder).expanduser().absolute() if folder else _data_home(environ) / "gitops-lab" / "mirror",
        platforms=PLATFORMS if ALL in listed else listed or (current_platform(),),
        whole_indexes=ALL in listed,
        only=_words(environ.get("ONLY", "")),
        images_port=ports[0],
        files_port=ports[1],
        bind=tuple(_address(text) for text in _words(environ.get("BIND", ""))),
    )


def require_mirror(options: MirrorOptions) -> None:
    """Refuse a run that was not told which mirror."""
    if not options.mirror:
        raise UsageError(
            "MIRROR is not set.", "as in MIRROR=127.0.0.1:5443 (make mirror-serve) or MIRROR=mirror.example/lab"
        )


def _data_home(environ: Mapping[str, str]) -> Path:
    home = Path(environ.get("HOME", "") or Path.home())
    return folder_of(environ, "XDG_DATA_HOME", home / ".local" / "share")


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.replace(",", " ").split()))


def _address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise UsageError(f"BIND={text} is not an address.", "give this machine's own, as in BIND=192.168.1.5") from None
    if address.is_unspecified:
        # A certificate can't name "any address", and 127.0.0.1 is served apart (others may only read).
        raise UsageError(f"BIND={text} is no single address.", "give the one that the others know this machine by")
    return text
