"""Trees with HelmReleases and charts, as the tests of their rendering write them."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.check.model import Report
from tests.manifests.checking import HEAD, write

Look = Callable[..., Report]

CHART = "apiVersion: v2\nname: web\nversion: {}\n"
SETTINGS = (
    "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-settings\n"
    "data:\n  level: {{ .Values.level | quote }}\n  inner: {{ .Values.a.b | quote }}\n  kube: {{ .Capabilities.KubeVersion.Version | quote }}\n"
)
FLUX_SOURCE = "{kind: GitRepository, name: flux-system, namespace: flux-system}"
REPOSITORY = (
    "apiVersion: source.toolkit.fluxcd.io/v1\nkind: HelmRepository\nmetadata:\n  name: charts\n  namespace: apps\n"
    "spec:\n  interval: 1h\n  url: https://example.com/charts\n"
)


def chart(version: str = "1.2.0", **files: str) -> dict[str, str]:
    """Return a chart's files: one ConfigMap that shows its values; others by their path, `__` for `/` and `_` for `.`."""
    if "values_yaml" in files:
        files["values_yaml"] += "a:\n  b: chart\n"
    more = {name.replace("__", "/").replace("_yaml", ".yaml"): text for name, text in files.items()}
    return {
        "Chart.yaml": CHART.format(version),
        "values.yaml": "level: info\na:\n  b: chart\n",
        "templates/settings.yaml": SETTINGS,
        **more,
    }


def below(folder: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


def archive(folder: Path, files: Mapping[str, str], name: str) -> Path:
    """Write a chart archive, the same for the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with tarfile.open(path, "w:gz") as tar:
        for file, text in files.items():
            member = tarfile.TarInfo(f"web/{file}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def from_tree(path: str = "./charts/web", more: str = "") -> str:
    return f"  chart:\n    spec:\n      chart: {path}\n      sourceRef: {FLUX_SOURCE}\n{more}"


def from_repository(version: str = "", more: str = "") -> str:
    pin = f"      version: '{version}'\n" if version else ""
    return (
        f"  chart:\n    spec:\n      chart: web\n      sourceRef: {{kind: HelmRepository, name: charts}}\n{pin}{more}"
    )


def release(source: str, spec: str = "", name: str = "web", metadata: str = "") -> str:
    return (
        "apiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\n"
        f"metadata:\n  name: {name}\n  namespace: apps\n{metadata}spec:\n  interval: 10m\n{source}{spec}"
    )


def tree(root: Path, text: str, charts: Mapping[str, str] | None = None, **files: str) -> Path:
    """Write a tree: a kustomization with a HelmRelease and other objects, and charts beside it."""
    others = {f"apps/{name}.yaml": text for name, text in files.items()}
    listed = "".join(f"- {name}.yaml\n" for name in ("release", *files))
    more = below("charts/web", chart()) if charts is None else charts
    return write(
        root, {"apps/kustomization.yaml": HEAD + f"resources:\n{listed}", "apps/release.yaml": text, **others, **more}
    )
