"""A mirror of one's own: what images and files are called there, and how nodes are told.

Manifests always name the upstream; only the engine's pulls and containerd's hosts.toml know of the mirror.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.credentials import credentials_for
from scripts.docker import inspect
from scripts.errors import LabError
from scripts.registry_client import RegistryClient
from scripts.registry_errors import Endpoint
from scripts.settings import Credentials, MirrorLayout, Settings
from scripts.transfer import Limits, is_loopback
from scripts.versions import Image, Versions

# What manifests of a cluster commonly name; those of versions.yaml come to it.
UPSTREAMS = ("docker.io", "ghcr.io", "quay.io", "registry.k8s.io")
# Where nodes find what this machine listens to on 127.0.0.1, with an engine in a virtual machine.
HOST_IN_CONTAINERS = "host.docker.internal"
CERTS_DIR = "/etc/containerd/certs.d"
CA_ON_NODES = f"{CERTS_DIR}/gitops-lab-mirror-ca.crt"


@dataclass(frozen=True)
class ImageMirror:
    """A registry that has the lab's images below `prefix`, in a known layout."""

    host: str
    prefix: str = ""
    layout: MirrorLayout = MirrorLayout.PREFIX
    ca: Path | None = None
    credentials: Credentials | None = None
    variable: str = "IMAGE_MIRROR"

    @property
    def endpoint(self) -> Endpoint:
        """How to speak to it."""
        return Endpoint(self.host, self.ca, self.credentials, self.variable)

    def client(self, limits: Limits | None = None) -> RegistryClient:
        """Return a client of it."""
        return RegistryClient(self.endpoint, limits)

    def below(self, upstream: str) -> str:
        """Return the path below which an upstream's repositories lie."""
        own = upstream if self.layout is MirrorLayout.PREFIX else ""
        return "/".join(part for part in (self.prefix, own) if part)

    def repository(self, image: str) -> str:
        """Return the repository of an upstream image, as in docker.io/library/alpine."""
        upstream, _, name = image.partition("/")
        below = self.below(upstream)
        return f"{below}/{name}" if below else name

    def reference(self, image: Image) -> str:
        """Return the name by which the engine pulls an image from here."""
        digest = f"@{image.digest}" if image.digest else ""
        return f"{self.host}/{self.repository(image.image)}:{image.tag}{digest}"


def split(mirror: str) -> tuple[str, str]:
    """Return host[:port] and prefix of a mirror as the variable holds it."""
    host, _, prefix = mirror.partition("/")
    return host, prefix


def open_mirror(settings: Settings, probe: Image, limits: Limits | None = None) -> ImageMirror | None:
    """Return the mirror of IMAGE_MIRROR, its layout found by one look where it isn't named; None without a mirror.

    Raises:
        RegistryError: it can't be reached or does not let this user in.
        LabError: it has `probe` in neither layout.
    """
    if not settings.image_mirror:
        return None
    host, prefix = split(settings.image_mirror)
    credentials = credentials_for(host)
    if settings.image_mirror_layout is not MirrorLayout.AUTO:
        return ImageMirror(host, prefix, settings.image_mirror_layout, settings.mirror_ca, credentials)
    client = RegistryClient(Endpoint(host, settings.mirror_ca, credentials), limits)
    client.ping()
    for layout in (MirrorLayout.PREFIX, MirrorLayout.FLAT):
        mirror = ImageMirror(host, prefix, layout, settings.mirror_ca, credentials)
        if client.digest_of(mirror.repository(probe.image), probe.digest or probe.tag):
            return mirror
    names = " nor ".join(
        ImageMirror(host, prefix, layout).repository(probe.image) for layout in (MirrorLayout.PREFIX, MirrorLayout.FLAT)
    )
    raise LabError(
        f"{settings.image_mirror} has neither {names} ({probe.digest or probe.tag}).",
        "fill it (make mirror-fill MIRROR=…), or check the prefix, or say how it is laid out: IMAGE_MIRROR_LAYOUT=prefix|flat",
    )


FILL = "make mirror-fill MIRROR=… with this version of the lab; a mirror of source-built images needs its VERSIONS_LOCK"


def require_images(
    mirror: ImageMirror, images: Iterable[Image], limits: Limits | None = None, mend: str = FILL
) -> None:
    """Raise, naming all that are missing at once, unless the mirror has every image by its digest."""
    client = mirror.client(limits)
    missing = []
    for image in images:
        if not client.digest_of(mirror.repository(image.image), image.digest or image.tag):
            missing.append(mirror.reference(image))
    if missing:
        count = "one image" if len(missing) == 1 else f"{len(missing)} images"
        raise LabError(
            f"The mirror {mirror.host} lacks {count} of this lab.",
            mend,
            "\n".join(f"    {name}" for name in missing),
        )


def download_bases(settings: Settings, versions: Versions) -> dict[str, str]:
    """Return what each upstream address of a release file begins with, and the mirror that stands for it."""
    if not settings.download_mirror:
        return {}
    bases = {}
    for tool in versions.tools.values():
        for url in filter(None, (tool.url, tool.checksums)):
            parts = urlsplit(url)
            bases[f"{parts.scheme}://{parts.netloc}"] = settings.download_mirror
    return bases


def download_credentials(settings: Settings) -> Credentials | None:
    """Return the image mirror's user for files of the same host; elsewhere ~/.netrc holds, as for any program."""
    host, _ = split(settings.image_mirror)
    same = host and urlsplit(f"//{host}").hostname == urlsplit(settings.download_mirror).hostname
    return credentials_for(host) if same else None


def upstreams(versions: Versions) -> list[str]:
    """Return the registries that nodes are led to the mirror for."""
    return sorted({*UPSTREAMS, *(image.image.partition("/")[0] for image in versions.images.values())})


def host_for_nodes(host: str) -> str:
    """Return a mirror's host[:port] as containers reach it: what is on this machine's 127.0.0.1 has another name there."""
    parts = urlsplit(f"//{host}")
    if not is_loopback(parts.hostname or ""):
        return host
    name = bridge_gateway() if platform.system() == "Linux" else HOST_IN_CONTAINERS
    if not name:
        raise LabError(
            f"Nodes can't reach a mirror on {host}: the engine has no default bridge.",
            "serve it on an address that containers reach: make mirror-serve BIND=<address>",
        )
    return f"{name}:{parts.port}" if parts.port else name


def bridge_gateway() -> str:
    """Return this machine's address on the engine's default bridge, or "" if there is none."""
    found = inspect("network", "bridge") or {}
    for entry in found.get("IPAM", {}).get("Config") or []:
        if entry.get("Gateway") and ":" not in entry["Gateway"]:
            return str(entry["Gateway"])
    return ""


def hosts_files(mirror: ImageMirror, names: Iterable[str], node_host: str) -> Mapping[str, str]:
    """Return hosts.toml per upstream: the mirror in the upstream's place, with no way past it.

    https://github.com/containerd/containerd/blob/main/docs/hosts.md. The header also goes to the token server that
    the mirror names, so registries with and without tokens let a node in.
    """
    files = {}
    for upstream in names:
        lines = [
            f'server = "https://{node_host}/v2{_slash(mirror.below(upstream))}"',
            'capabilities = ["pull", "resolve"]',
            "override_path = true",
        ]
        if mirror.ca:
            lines.append(f'ca = "{CA_ON_NODES}"')
        if mirror.credentials:
            lines += ["[header]", f'Authorization = "{mirror.credentials.basic}"']
        files[f"{CERTS_DIR}/{upstream}/hosts.toml"] = "\n".join(lines) + "\n"
    if mirror.ca:
        files[CA_ON_NODES] = mirror.ca.read_text()
    return files


def _slash(path: str) -> str:
    return f"/{path}" if path else ""
