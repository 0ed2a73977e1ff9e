"""Go binaries of source mode, built from locked wrapper modules (`kind/source/<name>/go.{mod,sum}`).

A wrapper module carries the replace lines that Go ignores in a dependency, and a go.sum that holds every
dependency to what was reviewed. The key of an output is everything it was built from, so a changed pin rebuilds
that one thing, and what shares its wrapper module.
"""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

from scripts import console
from scripts.cache import Cache, digest_of
from scripts.errors import LabError
from scripts.process import run
from scripts.settings import KIND_DIR
from scripts.toolchain import GoToolchain
from scripts.versions import GoModule

SOURCE_DIR = KIND_DIR / "source"
BUILD_TIMEOUT_S = 3600
# Bump when the way of building changes in a way that the inputs below don't show.
BUILD_REVISION = 1

_MEND_BUILD = "read the log; a full disk and a package mirror out of reach are the usual causes; then run again"


def lock_folder(name: str, module: GoModule) -> Path:
    """Return the folder of the wrapper module that locks a module's dependencies."""
    return SOURCE_DIR / (module.lock or name)


def module_key(name: str, module: GoModule, go_version: str) -> str:
    """Return the key of a module's binaries: a hash of all that goes into them."""
    folder = lock_folder(name, module)
    tags = [list(module.tags)] if module.tags else []
    files = {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}
    return digest_of(
        BUILD_REVISION, name, go_version, platform.machine(), files, dict(module.binaries), _stamps(module), *tags
    )


def build_module(cache: Cache, go: GoToolchain, name: str, module: GoModule, log_dir: Path) -> tuple[Path, bool]:
    """Return the folder with a module's binaries and whether it had to be built."""

    def build(folder: Path) -> None:
        workspace = cache.root / "work" / "src" / name
        if workspace.exists():
            shutil.rmtree(workspace)
        shutil.copytree(lock_folder(name, module), workspace)
        log = log_dir / f"build-{name}.log"
        log_dir.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        console.note(f"{name}: downloading modules")
        tags = _tag_options(module)
        _download(go, workspace, (*tags, *module.binaries.values()), log)
        for binary, package in module.binaries.items():
            console.note(f"{name}: compiling {binary}")
            flags = " ".join(["-s", "-w", *(f"-X {k}={v}" for k, v in _stamps(module).items())])
            run(
                [go.go, "build", *tags, "-ldflags", flags, "-o", folder / binary, package],
                timeout_s=BUILD_TIMEOUT_S,
                cwd=workspace,
                env=go.env,
                log_file=log,
                mend=_MEND_BUILD,
            )
        shutil.rmtree(workspace)

    return cache.ensure(name, module_key(name, module, go.version), build)


def _tag_options(module: GoModule) -> list[str]:
    return ["-tags", ",".join(module.tags)] if module.tags else []


def _download(go: GoToolchain, workspace: Path, arguments: tuple[str, ...], log: Path) -> None:
    # `go build` downloads what the packages need and no more; `go mod download` alone would fetch every
    # module of the graph. Listing the packages' dependencies does the former with a status line of its own.
    run(
        [go.go, "list", "-deps", "-f", "{{.ImportPath}}", *arguments],
        timeout_s=1800,
        cwd=workspace,
        env=go.env,
        log_file=log,
        mend="check that Go's module mirror can be reached (`go env GOPROXY`), then run again",
    )


def _stamps(module: GoModule) -> dict[str, str]:
    stamps = dict(module.stamps)
    if module.staging:
        # Kubernetes: the API server's version is what its clients negotiate by.
        version = module.module.rpartition("@")[2]
        major, minor, _ = version.removeprefix("v").split(".", 2)
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            stamps |= {
                f"{package}.gitVersion": version,
                f"{package}.gitMajor": major,
                f"{package}.gitMinor": minor,
                f"{package}.gitTreeState": "clean",
            }
    return stamps


def module_dir(go: GoToolchain, module_version: str) -> Path:
    """Return the unpacked source of a module (`path@version`), downloading it if needed; checked by Go's sums."""
    scratch = go.work_dir / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "go.mod").write_text("module gitops-lab.invalid/scratch\n")
    done = run(
        [go.go, "mod", "download", "-json", module_version],
        timeout_s=600,
        cwd=scratch,
        env={**go.env, "GOFLAGS": "-mod=mod -modcacherw"},
        mend="check that Go's module mirror can be reached (`go env GOPROXY`), then run again",
    )
    folder = json.loads(done.stdout).get("Dir", "")
    if not folder:
        raise LabError(f"Go downloaded {module_version} but names no folder for it.")
    return Path(folder)


def writable(tree: Path) -> None:
    """Let a copy of a module be changed: Go's module cache may be read-only."""
    for path in (tree, *tree.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
