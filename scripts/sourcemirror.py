"""What a mirror is filled with in source mode: the source-built set under the upstreams' names.

The node image holds what the upstream's holds (Kubernetes, its CNI, CoreDNS, etcd), not the lab's own images: a lab
that is set up from such a mirror pulls those as it would from upstream.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts import images, mirrorset, nodeimage
from scripts.cache import digest_of, digest_of_tree
from scripts.errors import LabError
from scripts.images import ComponentImage
from scripts.ociimage import GZIP_LEVEL, BuiltImage, FileInImage, ImageSpec, assemble, from_engine
from scripts.settings import KIND_DIR, ROOT
from scripts.sourcebuild import SourceSet
from scripts.versions import Image, Versions

PATH = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
GIT_USER = 1001
_REVISION = 1


@dataclass(frozen=True)
class SourceImage:
    """An image that can be built here: its upstream name, the hash of what it is made from, and how it is made."""

    image: Image
    key: str
    build: Callable[[Path], BuiltImage]


def source_images(source: SourceSet, versions: Versions, architecture: str) -> dict[str, SourceImage]:
    """Return the images of a mirror that source mode can build, by the name of their entry."""
    recipes = images.load_recipes(versions)
    made: dict[str, SourceImage] = {}
    for name, image in versions.images.items():
        recipe = next((r for r in recipes if image.tagged in r.tags), None)
        # What is built on demand is in the mirror of one who had a demand for it.
        if recipe and all(path.partition("/")[0] in source.folders for path in recipe.files):
            key = digest_of(_REVISION, images.recipe_key(recipe, source), architecture)
            made[name] = SourceImage(image, key, _component(recipe, source, architecture))
    upstream_names = {image.tagged for image in versions.images.values()}
    of_node = [r for r in recipes if r.node and not upstream_names & set(r.tags)]
    made["node"] = SourceImage(
        versions.images["node"],
        nodeimage.node_image_name(source, versions, of_node, portable=True),
        lambda folder: from_engine(nodeimage.ensure_node_image(source, versions, of_node, portable=True)[0], folder),
    )
    python = ImageSpec(architecture, source.rootfs["rootfs-python"], config={"Env": [PATH]})
    made["python"] = SourceImage(
        versions.images["python"],
        digest_of(_REVISION, source.keys["rootfs-python"], architecture),
        lambda folder: assemble(python, folder),
    )
    git_server = git_server_spec(source, architecture)
    made[mirrorset.GIT_SERVER] = SourceImage(
        mirrorset.git_server_image(versions),
        digest_of(_REVISION, source.keys["rootfs-git"], digest_of_tree(KIND_DIR / "git-server"), architecture),
        lambda folder: assemble(git_server, folder),
    )
    return made


def _component(recipe: ComponentImage, source: SourceSet, architecture: str) -> Callable[[Path], BuiltImage]:
    return lambda folder: assemble(component_spec(recipe, source, architecture), folder)


def component_spec(recipe: ComponentImage, source: SourceSet, architecture: str) -> ImageSpec:
    """Return a recipe of kind/images.yaml as the engine would build it."""
    files = []
    for path, target in recipe.files.items():
        module, _, binary = path.partition("/")
        built = source.binary(module, binary)
        if built.is_dir():
            inner = sorted(p for p in built.rglob("*") if p.is_file())
            files += [FileInImage(f"{target}/{p.relative_to(built)}", p) for p in inner]
        else:
            files.append(FileInImage(target, built, executable=True))
    if recipe.ca:
        files.append(FileInImage("/etc/ssl/certs/ca-certificates.crt", images.ca_bundle(source)))
    files += [FileInImage(target, ROOT / origin) for origin, target in recipe.copy.items()]
    config: dict[str, object] = {"Env": [PATH]}
    if recipe.workdir:
        config["WorkingDir"] = recipe.workdir
    if recipe.user:
        config["User"] = recipe.user
    if recipe.entrypoint:
        config["Entrypoint"] = list(recipe.entrypoint)
    if recipe.command:
        config["Cmd"] = list(recipe.command)
    base = None if recipe.base == "scratch" else source.rootfs[recipe.base]
    return ImageSpec(architecture, base, files, config)


def git_server_spec(source: SourceSet, architecture: str) -> ImageSpec:
    """Return the Git server's image as kind/git-server/Dockerfile describes it."""
    folder = KIND_DIR / "git-server"
    return ImageSpec(
        architecture,
        source.rootfs["rootfs-git"],
        [
            FileInImage("/srv/git", None, owner=GIT_USER),
            FileInImage("/etc/lighttpd-git.conf", folder / "lighttpd.conf"),
            FileInImage("/usr/local/share/git-hooks/post-receive", folder / "post-receive", executable=True),
            FileInImage("/usr/local/lib/entrypoint.sh", folder / "entrypoint.sh", executable=True),
            FileInImage("/usr/local/lib/git-http-backend", folder / "git-http-backend", executable=True),
            FileInImage("/usr/local/lib/pack-objects", folder / "pack-objects", executable=True),
        ],
        {
            "Env": [PATH],
            "User": f"{GIT_USER}:{GIT_USER}",
            "Volumes": {"/srv/git": {}},
            "Entrypoint": ["/usr/local/lib/entrypoint.sh"],
        },
    )


def release_file(programs: Mapping[str, Path]) -> bytes:
    """Return a tool's release file as its publisher packs it: the program itself (under no name), or an archive."""
    if "" in programs:
        return programs[""].read_bytes()
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", GZIP_LEVEL, packed, mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for member, program in programs.items():
            entry = tarfile.TarInfo(member)
            entry.size, entry.mode = program.stat().st_size, 0o755
            with program.open("rb") as content:
                tar.addfile(entry, content)
    return packed.getvalue()


def checksums_of(sums: Mapping[str, str]) -> str:
    """Return a checksum file as publishers write it, of SHA-256 by file name."""
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items())


def require_platforms(platforms: tuple[str, ...], own: str) -> None:
    """Refuse platforms that can't be built here."""
    others = [p for p in platforms if p != own]
    if others:
        raise LabError(
            f"Source mode builds for {own} only, not for {', '.join(others)}.",
            "leave PLATFORMS out, or fill from upstream (IMAGE_SOURCE=registry)",
        )
