"""Runs the check over trees that tests write."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from scripts import settings, versions
from scripts.check.model import Rendered, Report
from scripts.check.runner import Options, check
from scripts.check.validate import Definitions
from scripts.manifests import flux_definitions

HEAD = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"


@cache
def definitions() -> Definitions:
    chosen, pinned = settings.load(), versions.load()
    return Definitions(pinned.kubernetes, (flux_definitions(chosen, pinned, chosen.tools_dir),))


def options(root: Path, cache_dir: Path, **changes: Any) -> Options:
    tools = settings.load().tools_dir
    for tool in ("kustomize", "kubeconform", "flux"):
        assert (tools / tool).exists(), f"{tools / tool} is not there: `make test` brings it"
    return Options(root, cache_dir, tools / "kustomize", tools / "kubeconform", definitions=definitions, **changes)


def checked(root: Path, cache_dir: Path, **changes: Any) -> Report:
    return check(options(root, cache_dir, **changes)).report


def renderings(root: Path, cache_dir: Path) -> Mapping[str, Rendered]:
    """Render a tree and return its renderings, by Flux Kustomization or, for a plain one, by folder."""
    report = check(options(root, cache_dir), need_renderings=True).report
    return {(r.flux_kustomizations or (r.kustomization,))[0]: r for r in report.rendered}


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def config_map(name: str = "settings", data: str = "level: info", metadata: str = "") -> str:
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n{metadata}data:\n  {data}\n"


def flux(name: str, path: str, spec: str = "") -> str:
    return (
        "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\n"
        f"metadata:\n  name: {name}\n  namespace: flux-system\n"
        f"spec:\n  interval: 10m\n  path: {path}\n  prune: true\n  sourceRef:\n    kind: GitRepository\n    name: flux-system\n"
        f"{spec}"
    )
