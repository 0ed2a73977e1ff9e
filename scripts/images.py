"""Component images of source mode, built by the engine from binaries of the cache.

An image's tag ends in the hash of all it was made from; the tag is given by the engine as its last act, so an
image under it is whole. The recipes are data: kind/images.yaml.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scripts import console
from scripts.cache import digest_of, digest_of_tree
from scripts.docker import docker, image_exists
from scripts.settings import KIND_DIR, ROOT
from scripts.sourcebuild import SourceSet
from scripts.versions import Versions

RECIPES_FILE = KIND_DIR / "images.yaml"
REPOSITORY = "gitops-lab"
_REVISION = 1
# Fields that recipes got later: where they are empty, images that were built before are still the right ones.
_LATER = ("workdir", "monitoring")


@dataclass(frozen=True)
class ComponentImage:
    """A recipe of kind/images.yaml with its names filled in."""

    name: str
    base: str
    files: Mapping[str, str]
    tags: tuple[str, ...]
    links: tuple[str, ...] = ()
    copy: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    ca: bool = False
    node: bool = False
    workdir: str = ""
    monitoring: bool = False


def load_recipes(versions: Versions) -> list[ComponentImage]:
    """Return the component images of source mode with the names and tags that manifests use."""
    data: dict[str, dict[str, Any]] = yaml.load(RECIPES_FILE.read_text(), yaml.CSafeLoader)
    recipes = []
    for name, raw in data.items():
        if "image" in raw:
            raw["tags"] = [versions.images[raw.pop("image")].tagged]
        raw["tags"] = tuple(tag.format(kubernetes=versions.kubernetes) for tag in raw["tags"])
        for key in ("links", "entrypoint", "command"):
            if key in raw:
                raw[key] = tuple(raw[key])
        recipes.append(ComponentImage(name=name, **raw))
    return recipes


def recipe_key(recipe: ComponentImage, source: SourceSet) -> str:
    """Return the hash of all that an image is made from."""
    inputs = {path: source.keys[path.partition("/")[0]] for path in recipe.files}
    base = source.keys.get(recipe.base, recipe.base)
    ca = source.keys["rootfs-glibc"] if recipe.ca else ""
    copied = {path: (ROOT / path).read_text() for path in recipe.copy}
    own = {key: value for key, value in recipe.__dict__.items() if value or key not in _LATER}
    return digest_of(_REVISION, own, inputs, base, ca, copied)


def built_name(recipe: ComponentImage, source: SourceSet) -> str:
    """Return the name under which the engine keeps the built image."""
    return f"{REPOSITORY}/{recipe.name}:{recipe_key(recipe, source)[:16]}"


def ensure_image(recipe: ComponentImage, source: SourceSet) -> tuple[str, bool]:
    """Return the built image's name and whether it had to be built."""
    name = built_name(recipe, source)
    if image_exists(name):
        return name, False
    console.note(f"image {recipe.name}")
    with tempfile.TemporaryDirectory(prefix="gitops-lab-image-") as folder:
        context = Path(folder)
        lines = [f"FROM {'scratch' if recipe.base == 'scratch' else ensure_base(recipe.base, source)}"]
        for number, (path, target) in enumerate(recipe.files.items()):
            module, _, binary = path.partition("/")
            built = source.binary(module, binary)
            if built.is_dir():
                shutil.copytree(built, context / f"{number}")
            else:
                _link_or_copy(built, context / f"{number}")
            lines.append(f"COPY {number} {target}")
        if recipe.ca:
            (context / "ca.crt").write_bytes(ca_bundle(source))
            lines.append("COPY ca.crt /etc/ssl/certs/ca-certificates.crt")
        for number, (origin, target) in enumerate(recipe.copy.items()):
            shutil.copy(ROOT / origin, context / f"c{number}")
            lines.append(f"COPY c{number} {target}")
        if recipe.links:
            (context / "links").mkdir()
            binary = Path(next(iter(recipe.files.values()))).name
            for link in recipe.links:
                (context / "links" / link).symlink_to(binary)
            lines.append("COPY links/ /usr/local/bin/")
        lines.append("ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
        if recipe.workdir:
            lines.append(f"WORKDIR {recipe.workdir}")
        if recipe.user:
            lines.append(f"USER {recipe.user}")
        lines += [
            f"{word} {_json(value)}"
            for word, value in (("ENTRYPOINT", recipe.entrypoint), ("CMD", recipe.command))
            if value
        ]
        (context / "Dockerfile").write_text("\n".join(lines) + "\n")
        docker("build", "--quiet", "--network", "none", "--tag", name, context, timeout_s=600)
    return name, True


def ensure_base(rootfs: str, source: SourceSet) -> str:
    """Import a root file system as an image unless the engine has it, and return its name."""
    name = f"{REPOSITORY}/{rootfs}:{source.keys[rootfs][:16]}"
    if not image_exists(name):
        console.note(f"importing {rootfs}")
        docker("import", source.rootfs[rootfs], name, timeout_s=600)
    return name


def ensure_git_server(source: SourceSet) -> str:
    """Return the name of the Git server's image, building it if needed."""
    folder = KIND_DIR / "git-server"
    key = digest_of(_REVISION, digest_of_tree(folder), source.keys["rootfs-git"])
    return build_git_server("Dockerfile", ensure_base("rootfs-git", source), key)


def build_git_server(dockerfile: str, base: str, key: str) -> str:
    """Build the Git server's image on a base with the given recipe, unless the engine has it."""
    name = f"{REPOSITORY}/git-server:{key[:16]}"
    if not image_exists(name):
        console.note("image git-server")
        with tempfile.TemporaryDirectory(prefix="gitops-lab-image-") as folder:
            context = Path(folder) / "context"
            shutil.copytree(KIND_DIR / "git-server", context)
            (context / "srv-git").mkdir()
            docker(
                "build", "--quiet", "--tag", name, "--file", context / dockerfile, "--build-arg", f"BASE_IMAGE={base}",
                context, timeout_s=900,
            )  # fmt: skip
    return name


def prune_superseded(keep: set[str]) -> list[str]:
    """Remove images of earlier recipes that no container uses, and return which; the cache can build them again."""
    listed = docker("images", "--filter", f"reference={REPOSITORY}/*", "--format", "{{.Repository}}:{{.Tag}}").stdout
    removed = []
    for name in sorted(set(listed.split()) - keep):
        done = docker("rmi", name, check=False, timeout_s=300)
        if done.exit_code == 0:
            removed.append(name)
        else:
            console.debug(f"{name} stays: {done.stderr.strip()}")
    return removed


def ca_bundle(source: SourceSet) -> bytes:
    """Return Debian's CA bundle out of a root file system of the cache."""
    with tarfile.open(source.rootfs["rootfs-glibc"]) as archive:
        member = next(m for m in archive if m.name.removeprefix("./") == "etc/ssl/certs/ca-certificates.crt")
        file = archive.extractfile(member)
        assert file is not None
        return file.read()


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a large binary into a build context where the file system allows it."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def _json(values: tuple[str, ...]) -> str:
    return json.dumps(list(values))
