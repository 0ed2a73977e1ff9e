"""The node image of source mode: kind's own layout on Debian, with every image of the lab preloaded.

Preloading saves `kind load` for each node; the images are the same for all of them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from scripts import console
from scripts.cache import digest_of, digest_of_tree
from scripts.docker import containers_with_label, docker, image_exists
from scripts.images import REPOSITORY, ComponentImage, ensure_base, ensure_image, recipe_key
from scripts.settings import KIND_DIR
from scripts.sourcebuild import SourceSet
from scripts.versions import Versions

NODE_DIR = KIND_DIR / "node"
BINARIES = ("containerd/containerd", "containerd/ctr", "containerd/containerd-shim-runc-v2", "cri-tools/crictl")
CNI_PLUGINS = ("host-local", "loopback", "bridge", "ptp", "portmap")
BUILD_LABEL = "gitops-lab.build"
# The application's base: with it on the nodes, what they pull of the application is its own two layers.
APPLICATION_BASE = "rootfs-python"
_REVISION = 2


def node_image_name(
    source: SourceSet, versions: Versions, recipes: list[ComponentImage], portable: bool = False
) -> str:
    """Return the node image's name; its tag holds Kubernetes' version and the hash of all it is made from."""
    modules = ("containerd", "cri-tools", "cni", "kubernetes", "module-files")
    key = digest_of(
        _REVISION,
        digest_of_tree(NODE_DIR),
        {name: source.keys[name] for name in modules},
        source.keys["rootfs-node"],
        "" if portable else source.keys[APPLICATION_BASE],
        {recipe.name: recipe_key(recipe, source) for recipe in recipes if recipe.node},
    )
    return f"{REPOSITORY}/node:{versions.kubernetes}-{key[:12]}"


def ensure_node_image(
    source: SourceSet, versions: Versions, recipes: list[ComponentImage], portable: bool = False
) -> tuple[str, bool]:
    """Return the node image's name and whether it had to be built.

    Args:
        source: what was built from source.
        versions: the pins.
        recipes: the images; those of nodes are preloaded.
        portable: for engines that are not this one. Its images lie packed in it, as in upstream's: whether they can lie
            unpacked depends on the file system of the engine.
    """
    name = node_image_name(source, versions, recipes, portable)
    if image_exists(name):
        return name, False
    preload = [] if portable else [ensure_base(APPLICATION_BASE, source)]
    tags = []
    for recipe in recipes:
        if recipe.node:
            image, _ = ensure_image(recipe, source)
            for tag in recipe.tags:
                docker("tag", image, tag)
                tags.append(tag)
    preload += tags
    # A build that was killed leaves its container: with this one label, and never in use (callers hold a lock).
    for leftover in containers_with_label(f"{BUILD_LABEL}=node"):
        docker("rm", "--force", "--volumes", leftover)
    with tempfile.TemporaryDirectory(prefix="gitops-lab-node-") as folder:
        context = Path(folder)
        _lay_out(context, source)
        base = f"{REPOSITORY}/node-base:{name.rpartition('-')[2]}"
        console.note("node image: copying binaries")
        docker(
            "build", "--quiet", "--network", "none", "--tag", base,
            "--build-arg", f"BASE_IMAGE={ensure_base('rootfs-node', source)}", context, timeout_s=900,
        )  # fmt: skip
        console.note(f"node image: saving {len(preload)} images")
        archive = context / "images.tar"
        docker("save", "--output", archive, *preload, timeout_s=600)
        _prepare(base, archive, versions.kubernetes, name, portable)
    docker("rmi", base, *tags)
    return name, True


def _lay_out(context: Path, source: SourceSet) -> None:
    shutil.copytree(source.folders["module-files"] / "kind-node-files", context / "files")
    for path in (context / "files", *(context / "files").rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    config = context / "files" / "etc" / "containerd" / "config.toml"
    text = config.read_text()
    loose = "restrict_oom_score_adj = false"
    assert loose in text, "kind's containerd configuration has changed"
    # Without CAP_SYS_RESOURCE no score can be lowered; with it this changes nothing that a lab would notice.
    config.write_text(text.replace(loose, "restrict_oom_score_adj = true"))
    for target, paths in (("bin", BINARIES), ("cni", tuple(f"cni/{p}" for p in CNI_PLUGINS))):
        (context / target).mkdir()
        for binary_path in paths:
            module, _, binary = binary_path.partition("/")
            shutil.copy2(source.binary(module, binary), context / target / binary)
    shutil.copy2(source.binary("kubernetes", "kubernetes"), context / "kubernetes")
    shutil.copytree(NODE_DIR / "manifests", context / "manifests")
    shutil.copy2(NODE_DIR / "prepare.sh", context / "prepare.sh")
    shutil.copy2(NODE_DIR / "Dockerfile", context / "Dockerfile")
    (context / ".dockerignore").write_text("images.tar\n")


def _prepare(base: str, archive: Path, kubernetes: str, name: str, portable: bool) -> None:
    created = docker(
        "run", "--detach", "--privileged", "--network", "none", "--label", f"{BUILD_LABEL}=node",
        # What is mounted so is no part of the image's configuration, as a --volume would be.
        "--mount", "type=volume,destination=/build",
        "--entrypoint", "sleep", base, "infinity", timeout_s=120,
    )  # fmt: skip
    container = created.stdout.strip()
    try:
        docker("cp", archive, f"{container}:/images.tar", timeout_s=600)
        console.note("node image: preparing and preloading")
        how = "packed" if portable else "unpacked"
        docker("exec", container, "bash", "/kind/prepare.sh", kubernetes, how, timeout_s=900)
        console.note("node image: committing")
        docker(
            "commit",
            "--change",
            'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]',
            container,
            name,
            timeout_s=600,
        )
    finally:
        docker("rm", "--force", "--volumes", container)
