"""What must be in a mirror: every image, chart and release file of versions.yaml, and the Git server's image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from scripts.cache import digest_of, digest_of_tree
from scripts.monitoring import mode
from scripts.settings import KIND_DIR, REGISTRY_IN_CLUSTER, Edge, Monitoring, Settings
from scripts.versions import PLATFORMS, Image, Versions

# Only what the Git server's image is built on, where nobody has built it: not needed of a mirror that has that image.
BASE_OF_GIT_SERVER = "alpine"
GIT_SERVER = "git-server"
_EDGE_IMAGES = ("envoy-gateway", "envoy")


@dataclass(frozen=True)
class ReleaseFile:
    """One file by its upstream address: a release file, whose digest is pinned, or a publisher's checksum file."""

    tool: str
    platform: str
    url: str
    digest: str = ""
    is_checksums: bool = False

    @property
    def path(self) -> str:
        """Where it lies below a mirror's base: the upstream's path, as a server sees it."""
        return unquote(urlsplit(self.url).path).lstrip("/")


def git_server_key(versions: Versions) -> str:
    """Return the hash of all that the Git server's image of registry mode is made from."""
    return digest_of(versions.images[BASE_OF_GIT_SERVER].reference, digest_of_tree(KIND_DIR / "git-server"))


def git_server_image(versions: Versions) -> Image:
    """Return the name under which a mirror has the lab's own Git server, ready built."""
    return Image(f"{REGISTRY_IN_CLUSTER}/{GIT_SERVER}", git_server_key(versions)[:16])


def all_images(versions: Versions) -> dict[str, Image]:
    """Return every image and chart that a mirror may hold, by the name of its entry."""
    return {**versions.artifacts, GIT_SERVER: git_server_image(versions)}


def needed_images(settings: Settings, versions: Versions) -> dict[str, Image]:
    """Return the images that a lab with these settings pulls from a mirror that is whole: what it has from the start."""
    left_out = {BASE_OF_GIT_SERVER, *(_EDGE_IMAGES if settings.edge is Edge.NONE else ())}
    if settings.monitoring is not Monitoring.AUTO:
        left_out |= {*mode.artifacts(Monitoring.FULL)} - {*mode.artifacts(settings.monitoring)}
    needed = {name: image for name, image in all_images(versions).items() if name not in left_out}
    return {name: image for name, image in needed.items() if not image.on_demand}


def release_files(versions: Versions, platforms: Iterable[str] = PLATFORMS) -> list[ReleaseFile]:
    """Return the release files of the tools for platforms, each checksum file once, in the order of versions.yaml."""
    chosen = tuple(platforms)
    files: dict[str, ReleaseFile] = {}
    for name, tool in versions.tools.items():
        for platform in chosen:
            url = tool.url_for(platform)
            files[url] = ReleaseFile(name, platform, url, tool.pinned(platform))
            sums = tool.checksums_url_for(platform)
            if sums:
                files.setdefault(sums, ReleaseFile(name, platform, sums, is_checksums=True))
    return list(files.values())


def listing(versions: Versions) -> str:
    """Return what must be in a mirror as the table of how-to-run.MD, which a test holds to it."""
    rows = ["| what | name | version |", "|---|---|---|"]
    rows += [f"| image | {image.image} | {image.tag} |" for image in versions.images.values()]
    rows += [f"| chart | {chart.image} | {chart.tag} |" for chart in versions.charts.values()]
    rows.append(f"| image | {REGISTRY_IN_CLUSTER}/{GIT_SERVER} (built by `mirror-fill`) | hash of `kind/git-server/` |")
    for tool in versions.tools.values():
        for url in filter(None, (tool.url, tool.checksums)):
            rows.append(f"| file | {_template(url)} | {tool.version} |")
    return "\n".join(rows) + "\n"


def _template(url: str) -> str:
    """Return an upstream address as people read it: without https://, and with what varies in angle brackets."""
    return unquote(url.partition("://")[2]).replace("{", "<").replace("}", ">")
