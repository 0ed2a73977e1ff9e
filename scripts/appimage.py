"""The application's image: built from `app/`, pushed to the lab's registry under a tag of its content.

The tag is a hash of the sources alone, so the same sources have the same tag in every image source, and what
Git asks for can be built from Git on any machine.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import requests

from scripts import console
from scripts.cache import Cache, digest_of, digest_of_tree
from scripts.docker import docker, image_exists, inspect
from scripts.errors import LabError
from scripts.images import REPOSITORY
from scripts.outcome import Outcome
from scripts.process import run
from scripts.reproducible import normalise
from scripts.settings import APP_DIR, APP_NAME, FLUX_CD, REGISTRY_IN_CLUSTER, ROOT, Settings
from scripts.transfer import direct_session

IMAGE_IN_CLUSTER = f"{REGISTRY_IN_CLUSTER}/{APP_NAME}"
BASE_KUSTOMIZATION = FLUX_CD / "applications" / "_base-app-config" / "kustomization.yaml"
# The receiver of alerts runs on the same image, for its Python: both ask for the one tag that a lab is sure to have.
RECEIVER_KUSTOMIZATION = (
    FLUX_CD / "infrastructure" / "_components" / "_prometheus-stack" / "rules" / "receiver" / "kustomization.yaml"
)
TAGGED = (BASE_KUSTOMIZATION, RECEIVER_KUSTOMIZATION)
_TAG = re.compile(rf"(- name: {re.escape(IMAGE_IN_CLUSTER)}\n\s+newTag: )(\S+)")
_IGNORED = ("__pycache__", "*.pyc", ".*")
# Wheels of the image's platform, whatever the host is (a Mac builds for the engine's Linux).
_PLATFORMS = {
    "x86_64": ("manylinux2014_x86_64", "manylinux_2_28_x86_64"),
    "aarch64": ("manylinux2014_aarch64", "manylinux_2_28_aarch64"),
}
ACCEPT = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class AppImage:
    """What was built: the tag of its content and, once pushed, its digest."""

    tag: str
    digest: str


def content_tag(app_dir: Path = APP_DIR) -> str:
    """Return the tag of the sources' content: the same for the same files."""
    with tempfile.TemporaryDirectory(prefix="gitops-lab-app-") as folder:
        clean = Path(folder) / "app"
        shutil.copytree(app_dir, clean, ignore=shutil.ignore_patterns(*_IGNORED))
        return digest_of_tree(clean)[:12]


def ensure_app_image(
    settings: Settings, base: str, python: str, architecture: str, revision: str
) -> tuple[AppImage, Outcome]:
    """Build and push the image of the current sources unless the registry has it already.

    Args:
        settings: the lab.
        base: the base image that step 2 left in the engine.
        python: the Python version of that base, as in "3.11".
        architecture: the engine's, as `docker info` names it.
        revision: the Git commit, for the image's labels.
    """
    tag = content_tag()
    digest = pushed_digest(settings, tag) if not settings.image_repository else ""
    if digest:
        return AppImage(tag, digest), Outcome(False, f"{APP_NAME}:{tag} is in the registry")
    local = f"{settings.push_repository}:{tag}"
    if not image_exists(local):
        build_image(settings, local, tag, base, python, architecture, revision)
    console.note(f"pushing {APP_NAME}:{tag}")
    docker("push", "--quiet", local, timeout_s=600)
    if settings.image_repository:
        # The user's own registry: the engine's login holds, and its answer to the push is what there is to know.
        return AppImage(tag, ""), Outcome(True, f"{local} pushed")
    digest = pushed_digest(settings, tag)
    if not digest:
        raise LabError(f"{APP_NAME}:{tag} was pushed, but the registry does not have it.", "make setup-all")
    return AppImage(tag, digest), Outcome(True, f"{APP_NAME}:{tag} built and pushed")


def build_image(
    settings: Settings,
    name: str,
    tag: str,
    base: str,
    python: str,
    architecture: str,
    revision: str,
    use_cache: bool = True,
) -> str:
    """Build the image under a name and return its id, which is the same for the same input.

    The build needs no network: dependencies are put in on the host.
    """
    packages = site_packages(Cache(settings.cache_dir), python, architecture)
    with tempfile.TemporaryDirectory(prefix="gitops-lab-app-") as folder:
        context = Path(folder)
        shutil.copytree(APP_DIR / "demo_app", context / "demo_app", ignore=shutil.ignore_patterns(*_IGNORED))
        shutil.copytree(packages, context / "site-packages")
        for file in ("Dockerfile", "precompile.py"):
            shutil.copy2(APP_DIR / file, context / file)
        console.note(f"building {APP_NAME}:{tag}")
        # Under a name of its own it keeps the layers of the dependencies for the next build.
        raw = layers_of(settings)
        earlier = inspect("image", raw)
        built = docker(
            "build", "--quiet", "--network", "none", "--tag", raw, "--build-arg", f"BASE_IMAGE={base}",
            "--build-arg", f"VERSION={tag}", "--build-arg", f"REVISION={revision}",
            *([] if use_cache else ["--no-cache"]), context, timeout_s=600,
        ).stdout.strip()  # fmt: skip
        identity = normalise(built, base, name)
        if earlier and earlier["Id"] != built:
            docker("image", "rm", earlier["Id"], check=False)  # a container may still use it
        return identity


def layers_of(settings: Settings) -> str:
    """Return the name under which the engine keeps the layers of the last build."""
    return f"{REPOSITORY}/{APP_NAME}-build:{settings.cluster_name}"


def built_images(settings: Settings) -> list[str]:
    """Return what the engine has of this lab's application: each release that was pushed from here, and the layers."""
    names = (settings.push_repository, layers_of(settings))
    filters = [word for name in names for word in ("--filter", f"reference={name}")]
    listed = docker("images", *filters, "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    # One that was built again under the same tag has lost its name.
    return [name for name in listed if not name.endswith(":<none>")]


def site_packages(cache: Cache, python: str, architecture: str) -> Path:
    """Return a folder with the locked dependencies as wheels of the image's platform install them."""
    lock = APP_DIR / "requirements.lock"
    platforms = _PLATFORMS.get(architecture)
    if not platforms:
        raise LabError(f"The engine's architecture {architecture} is not supported.", "use x86_64 or aarch64")

    def build(folder: Path) -> None:
        console.note("the application's dependencies")
        args: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
        args += ["--disable-pip-version-check", "--require-hashes", "--only-binary=:all:", "--implementation", "cp"]
        args += ["--python-version", python, "--target", folder / "site-packages", "--requirement", lock]
        for platform in (*platforms, "any"):
            args += ["--platform", platform]
        run(args, timeout_s=600, mend="check that pip can reach its package index, then run again")
        remove_traces(folder / "site-packages")

    entry, _ = cache.ensure("app-packages", digest_of(3, lock.read_text(), python, architecture), build)
    return entry / "site-packages"


def remove_traces(packages: Path) -> None:
    """Remove what an installation says of the machine it was made on, and what the image has no use for."""
    shutil.rmtree(packages / "bin", ignore_errors=True)  # scripts that begin with this interpreter's path
    for pattern in ("*.dist-info/RECORD", "*.dist-info/INSTALLER", "*.dist-info/REQUESTED"):
        for path in packages.glob(pattern):
            path.unlink()


def pushed_digest(settings: Settings, tag: str, repository: str = APP_NAME) -> str:
    """Return the digest of a tag in the lab's registry, or "" if it is not there."""
    session = direct_session()
    url = f"http://127.0.0.1:{settings.registry_port}/v2/{repository}/manifests/{tag}"
    try:
        answer = session.head(url, headers={"Accept": ACCEPT}, timeout=10)
    except requests.RequestException as error:
        raise LabError(
            f"The lab's registry on port {settings.registry_port} does not answer ({type(error).__name__}).",
            "make setup-all",
        ) from None
    return answer.headers.get("Docker-Content-Digest", "") if answer.status_code == 200 else ""


def manifest_tag(root: Path = ROOT) -> str:
    """Return the tag that the base in Git asks for; environments have it once their branch has that commit."""
    return _tag_entry(root, BASE_KUSTOMIZATION)[1]


def set_manifest_tag(tag: str, root: Path = ROOT) -> bool:
    """Write a tag into the manifests that name one, leaving the rest as it is; return whether anything changed."""
    changed = False
    for file in TAGGED:
        path, current = _tag_entry(root, file)
        if current != tag:
            path.write_text(_TAG.sub(lambda m: m[1] + tag, path.read_text()))
            changed = True
    return changed


def _tag_entry(root: Path, file: Path) -> tuple[Path, str]:
    path = root / file.relative_to(ROOT)
    found = _TAG.findall(path.read_text())
    if len(found) != 1:
        raise LabError(f"{path.relative_to(root)} names no tag for {IMAGE_IN_CLUSTER}.", "restore its `images:` entry")
    return path, found[0][1]
