"""Flux's command-line tool, built from its module.

The release embeds install manifests that its build downloads; the module lacks them. Here they are made from
the controllers' own modules (config/crd and config/manager), as the release's `bundle.sh` does from their
release files, so that `flux install` works without the network.
"""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from scripts import console
from scripts.cache import Cache, digest_of
from scripts.errors import LabError
from scripts.gobuild import module_dir, writable
from scripts.process import run
from scripts.toolchain import GoToolchain
from scripts.versions import Versions

CONTROLLERS = ("source-controller", "kustomize-controller", "helm-controller", "notification-controller")
_REMOTE = re.compile(r"^- https?://\S+/([a-z-]+)\.(crds|deployment)\.yaml$", re.MULTILINE)


def flux_cli_key(versions: Versions) -> str:
    """Return the key of the tool: its module, the controllers whose manifests it embeds, the toolchain."""
    return digest_of(
        1, versions.flux_cli.module, versions.modules["flux"].packages, versions.go.version, platform.machine()
    )


def build_flux_cli(
    cache: Cache, go: GoToolchain, versions: Versions, kustomize: Path, log_dir: Path
) -> tuple[Path, bool]:
    """Return the folder that holds `flux` and whether it had to be built."""

    def build(folder: Path) -> None:
        console.note("flux-cli: preparing manifests")
        tree = cache.root / "work" / "src" / "flux-cli"
        if tree.exists():
            shutil.rmtree(tree)
        shutil.copytree(module_dir(go, versions.flux_cli.module), tree)
        writable(tree)
        out = tree / "cmd" / "flux" / "manifests"
        out.mkdir()
        for controller in CONTROLLERS:
            base = tree / "manifests" / "bases" / controller
            _localise(base, module_dir(go, _module_of(versions, controller)))
            _render(kustomize, base, out / f"{controller}.yaml")
        for extra in ("rbac", "policies"):
            _render(kustomize, tree / "manifests" / extra, out / f"{extra}.yaml")
        log_dir.mkdir(parents=True, exist_ok=True)
        log = log_dir / "build-flux-cli.log"
        version = versions.flux_cli.module.rpartition("@v")[2]
        log.write_text("")
        console.note("flux-cli: compiling")
        run(
            [go.go, "build", "-ldflags", f"-s -w -X main.VERSION={version}", "-o", folder / "flux", "./cmd/flux"],
            timeout_s=3600,
            cwd=tree,
            env=go.env,
            log_file=log,
            mend="read the log, then run again",
        )
        shutil.rmtree(tree)

    return cache.ensure("flux-cli", flux_cli_key(versions), build)


def _module_of(versions: Versions, controller: str) -> str:
    return next(p for p in versions.modules["flux"].packages if p.partition("@")[0].endswith(f"/{controller}"))


def _localise(base: Path, controller_module: Path) -> None:
    """Replace the release files that a base names by the same trees of the controller's module."""
    shutil.copytree(controller_module / "config", base / "config")
    writable(base / "config")
    path = base / "kustomization.yaml"
    text = path.read_text()
    local = {"crds": "config/crd", "deployment": "config/manager"}
    mended, count = _REMOTE.subn(lambda m: f"- {local[m[2]]}", text)
    if count != 2:
        raise LabError(f"{base.name}: expected two release files in its kustomization, found {count}.", "report this")
    path.write_text(mended)


def _render(kustomize: Path, folder: Path, target: Path) -> None:
    target.write_text(run([kustomize, "build", folder], timeout_s=60).stdout)
