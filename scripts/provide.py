"""Step 2: tools in one folder and images under one set of names, from release files or from source.

The rest of the code doesn't know which of the two it was.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from scripts import console, images, mirror_pull, packing, pins, sourcebuild
from scripts.cache import Cache, lock
from scripts.engine import apt_install, is_root
from scripts.errors import LabError
from scripts.fluxcli import build_flux_cli
from scripts.gobuild import build_module
from scripts.hostfacts import current_platform
from scripts.mirrors import ImageMirror
from scripts.nodeimage import ensure_node_image
from scripts.outcome import Outcome
from scripts.settings import CHECK_TOOLS, DRY_RUN_TOOLS, HELM, MIRROR_SERVER, ImageSource, Monitoring, Settings
from scripts.toolchain import ensure_go
from scripts.versions import Versions

PROBE_URL = "https://registry.k8s.io/v2/"
PROBE_TIMEOUT_S = 3.0
TOOLS = ("kind", "kubectl", "kustomize", "kubeconform", "flux", "vegeta", "kube-apiserver", "promtool")
# Tools that setup does without: a command of their own brings them.
ON_DEMAND_TOOLS = (HELM,)
# In source mode: where each tool comes from.
TOOL_BINARIES = {
    "kind": ("kind", "kind"),
    "kubectl": ("kubernetes", "kubernetes"),
    "kustomize": ("kustomize", "kustomize"),
    "kubeconform": ("kubeconform", "kubeconform"),
    "flux": ("flux-cli", "flux"),
    "vegeta": ("vegeta", "vegeta"),
    "kube-apiserver": ("kubernetes", "kubernetes"),
    "etcd": ("etcd", "etcd"),
    "promtool": ("promtool", "promtool"),
    HELM: (HELM, HELM),
}
# What the engine itself runs or builds on, besides the Git server; nodes pull the rest.
ENGINE_IMAGES = ("node", "registry", "python")
# What the tests need besides: it runs the tests of alerting rules.
TEST_TOOLS = (*DRY_RUN_TOOLS, "promtool")
_SOURCE_PROGRAMS = {"mmdebstrap": "mmdebstrap", "gcc": "gcc"}
_SOURCE_PACKAGES = ("mmdebstrap", "gcc", "libc6-dev")


@dataclass(frozen=True)
class Provided:
    """What step 2 left: the same names in both modes."""

    source: ImageSource
    tools_dir: Path
    node_image: str
    registry_image: str
    git_server_image: str
    python_base: str
    # Whether manifests hold images to the publishers' digests: source-built images have digests of their own.
    pin_images: bool
    # Source mode: what monitoring runs, by the tag that manifests name; nodes are given these.
    monitoring_images: Mapping[str, str]
    # As versions.yaml has them, with the digests that this run holds to.
    versions: Versions
    mirror: ImageMirror | None = None

    def tool(self, name: str) -> Path:
        """Return the path of a tool."""
        return self.tools_dir / name


def choose_source(settings: Settings) -> tuple[ImageSource, str]:
    """Return which image source this run takes, and why, from the setting or by one short probe."""
    if settings.image_source is not ImageSource.AUTO:
        return settings.image_source, f"IMAGE_SOURCE={settings.image_source}"
    remembered = _remembered_file(settings)
    if remembered.exists():
        return ImageSource(remembered.read_text().strip()), "as this lab was set up"
    if settings.image_mirror:
        return ImageSource.REGISTRY, f"IMAGE_MIRROR={settings.image_mirror}"
    try:
        requests.head(PROBE_URL, timeout=PROBE_TIMEOUT_S, allow_redirects=True)
    except requests.RequestException as error:
        why = f"{PROBE_URL} did not answer within {PROBE_TIMEOUT_S:.0f} s ({type(error).__name__})"
        if platform.system() != "Linux" or not is_root() or not shutil.which("apt-get"):
            raise LabError(
                f"No images can be had: {why}, and building from source needs root on Debian.",
                "mend the network or its proxy, or run as root on Debian 12; IMAGE_SOURCE=registry|source decides it",
            ) from None
        return ImageSource.SOURCE, why
    return ImageSource.REGISTRY, f"{PROBE_URL} answers"


def remember_source(settings: Settings, source: ImageSource) -> None:
    """Keep the choice for later runs on the same lab; teardown forgets it."""
    path = _remembered_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{source}\n")


def forget_source(settings: Settings) -> None:
    """Forget the choice, so that the next setup probes again."""
    _remembered_file(settings).unlink(missing_ok=True)


def _remembered_file(settings: Settings) -> Path:
    return settings.state_dir / "image-source"


def _ensure_tools(settings: Settings, versions: Versions, names: Iterable[str]) -> Outcome:
    loader = pins.downloader(settings, versions, current_platform())
    return loader.ensure_tools({name: versions.tools[name] for name in names})


def ensure_check_tools(settings: Settings, versions: Versions, log_dir: Path, tests: bool = False) -> Outcome:
    """Make the tools of the check be there; needs no container engine.

    With `tests` those of the tests too, the dry run's among them: from source they take minutes, so that the check
    itself never builds them.
    """
    names = (*CHECK_TOOLS, *(TEST_TOOLS if tests else ()))
    source, why = choose_source(settings)
    if source is ImageSource.REGISTRY:
        return _ensure_tools(
            settings,
            pins.effective(settings, versions),
            (*CHECK_TOOLS, "kube-apiserver", *(["promtool"] if tests else []), *_helm_if_there(settings)),
        )
    cache = Cache(settings.cache_dir)
    built = False
    with lock(settings.cache_dir / "locks" / "source-build.lock", "building the tools and images from source"):
        keys = sourcebuild.entry_keys(versions)
        for name in names:
            module, binary = TOOL_BINARIES[name]
            folder = cache.find(module, keys[module])
            if not folder:
                console.line(f"building {module} from source: {why}")
                go = ensure_go(cache, versions.go.version, versions.go.bootstrap)
                if name == "flux":
                    folder, _ = build_flux_cli(cache, go, versions, settings.tools_dir / "kustomize", log_dir)
                else:
                    folder, _ = build_module(cache, go, module, versions.modules[module], log_dir)
                built = True
            _link(folder / binary, settings.tools_dir / name)
        for name in (*DRY_RUN_TOOLS, HELM):
            module, binary = TOOL_BINARIES[name]
            folder = cache.find(module, keys[module])
            if folder:
                _link(folder / binary, settings.tools_dir / name)
            else:
                # One of another version would judge by other rules.
                (settings.tools_dir / name).unlink(missing_ok=True)
    return Outcome(built, f"{', '.join(names)} {'built' if built else 'found'}")


def _helm_if_there(settings: Settings) -> tuple[str, ...]:
    """Return Helm's name where it was brought once: one of another version would render otherwise."""
    return (HELM,) if (settings.tools_dir / HELM).exists() else ()


def ensure_helm(settings: Settings, versions: Versions, log_dir: Path) -> Outcome:
    """Make Helm be there, which renders HelmReleases for the check; needs no container engine."""
    source, _ = choose_source(settings)
    if source is ImageSource.REGISTRY:
        return _ensure_tools(settings, pins.effective(settings, versions), (HELM,))
    module, binary = TOOL_BINARIES[HELM]
    built = sourcebuild.ensure_on_demand(Cache(settings.cache_dir), versions, module, log_dir)
    _link(built.binary(module, binary), settings.tools_dir / HELM)
    return Outcome(bool(built.built), f"{HELM} {'built' if built.built else 'found'}")


def provide(settings: Settings, versions: Versions, source: ImageSource, log_dir: Path) -> tuple[Provided, Outcome]:
    """Make every tool and image be there."""
    if source is ImageSource.REGISTRY:
        return _provide_from_registry(settings, versions)
    return _provide_from_source(settings, versions, log_dir)


def _provide_from_source(settings: Settings, versions: Versions, log_dir: Path) -> tuple[Provided, Outcome]:
    ensure_source_programs()
    cache = Cache(settings.cache_dir)
    monitored = settings.monitoring is not Monitoring.NONE
    built = sourcebuild.ensure_source_set(cache, versions, log_dir, monitored)
    for tool, (module, binary) in TOOL_BINARIES.items():
        if module in built.folders:
            _link(built.binary(module, binary), settings.tools_dir / tool)
    recipes = images.load_recipes(versions)
    by_name = {recipe.name: recipe for recipe in recipes}
    with lock(settings.cache_dir / "locks" / "images.lock", "building images"):
        node, node_new = ensure_node_image(built, versions, recipes)
        registry, registry_new = images.ensure_image(by_name["registry"], built)
        git_server = images.ensure_git_server(built)
        python_base = images.ensure_base("rootfs-python", built)
        monitoring = {r.tags[0]: images.ensure_image(r, built)[0] for r in recipes if r.monitoring and monitored}
        if node_new:
            # What lies in the node image is not kept beside it: another one is made from the cache's binaries.
            kept = {images.built_name(recipe, built) for recipe in recipes if not recipe.node}
            bases = {images.ensure_base(f"rootfs-{name}", built) for name in ("node", "git")}
            images.prune_superseded({node, registry, git_server, python_base, *bases, *kept})
        packing.pack(only_in_images(built.folders))
    did = [f"{len(built.built)} things built from source"] if built.built else []
    did += ["node image built"] if node_new else []
    return (
        Provided(
            ImageSource.SOURCE, settings.tools_dir, node, registry, git_server, python_base, False, monitoring, versions
        ),
        Outcome(bool(did or registry_new), ", ".join(did) or "tools and images are in the cache"),
    )


def only_in_images(folders: Mapping[str, Path]) -> list[Path]:
    """Return the entries whose binaries nothing starts from the cache: they are asked for when an image is made anew."""
    started = {module for module, _ in TOOL_BINARIES.values()} | {MIRROR_SERVER}
    return [folder for module, folder in folders.items() if module not in started]


def ensure_source_programs() -> None:
    """Make the programs that source mode calls be there: as root with apt they are installed, saying so."""
    missing = [name for name in _SOURCE_PROGRAMS if not shutil.which(name)]
    if not missing:
        return
    if not is_root() or not shutil.which("apt-get"):
        raise LabError(
            f"Building from source needs {', '.join(missing)}.",
            f"sudo apt-get install -y --no-install-recommends {' '.join(_SOURCE_PACKAGES)}",
        )
    console.line(f"  {', '.join(missing)} not installed: installing {', '.join(_SOURCE_PACKAGES)} with apt-get")
    apt_install(_SOURCE_PACKAGES)


def _provide_from_registry(settings: Settings, versions: Versions) -> tuple[Provided, Outcome]:
    pinned = pins.effective(settings, versions)
    tools = _ensure_tools(settings, pinned, TOOLS)
    pull = mirror_pull.open_pull(settings, versions, pinned)
    pulled = pull.ensure(ENGINE_IMAGES)
    git_server, pulled_too = pull.ensure_git_server()
    provided = Provided(
        ImageSource.REGISTRY,
        settings.tools_dir,
        pull.reference("node"),
        pull.reference("registry"),
        git_server,
        pull.reference("python"),
        pin_images=True,
        monitoring_images={},
        versions=pinned,
        mirror=pull.mirror,
    )
    count = len(pulled) + len(pulled_too)
    return provided, Outcome(tools.changed or bool(count), f"{tools.what}, {count} images pulled")


def _link(binary: Path, target: Path) -> None:
    """Point a name in the tools folder at a binary, by one rename."""
    if target.is_symlink() and target.readlink() == binary:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(binary)
    temporary.rename(target)
