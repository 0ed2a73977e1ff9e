"""The manifests in Git, proven before they reach a cluster: every kustomization builds, every object is valid."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts import console
from scripts.cache import Cache, digest_of
from scripts.errors import LabError
from scripts.fluxcli import CONTROLLERS
from scripts.outcome import Outcome
from scripts.process import CommandError, run
from scripts.schemas import ensure_schemas
from scripts.settings import FLUX_CD, ROOT, Settings
from scripts.versions import Versions

BUILD_TIMEOUT_S = 60


@dataclass(frozen=True)
class Finding:
    """Something wrong with the manifests: where, and what."""

    where: str
    what: str


def kustomization_folders(root: Path = FLUX_CD) -> list[Path]:
    """Return every folder below a root that holds a kustomization which builds by itself (components don't)."""
    folders = []
    for path in sorted(root.rglob("kustomization.yaml")):
        if "\nkind: Component" not in f"\n{path.read_text()}":
            folders.append(path.parent)
    return folders


def validate(settings: Settings, versions: Versions, tools_dir: Path, root: Path = FLUX_CD) -> Outcome:
    """Build and validate everything below a root; raises LabError that lists each finding."""
    folders = kustomization_folders(root)
    with tempfile.TemporaryDirectory(prefix="gitops-lab-manifests-") as output:
        findings = build_all(folders, tools_dir / "kustomize", Path(output))
        if not findings:
            console.note("validating against schemas")
            schemas = ensure_schemas(
                Cache(settings.cache_dir), versions.kubernetes, definition_files(settings, versions, tools_dir, root)
            )
            findings = validate_files(sorted(Path(output).glob("*.yaml")), tools_dir / "kubeconform", schemas)
    if findings:
        lines = "\n".join(f"    {f.where}: {f.what}" for f in findings)
        raise LabError(
            f"{len(findings)} of the manifests' checks failed; the cluster was not touched by them.",
            "mend these files",
            lines,
        )
    return Outcome(False, f"{len(folders)} kustomizations build and are valid")


def build_all(folders: Sequence[Path], kustomize: Path, output: Path) -> list[Finding]:
    """Build kustomizations side by side, each into a file of the output folder, and return what failed."""

    def build(folder: Path) -> Finding | None:
        name = _relative(folder)
        try:
            done = run([kustomize, "build", folder], timeout_s=BUILD_TIMEOUT_S)
        except CommandError as error:
            return Finding(name, error.output.strip().replace(str(ROOT) + os.sep, "") or error.what)
        (output / f"{name.replace('/', '__')}.yaml").write_text(done.stdout)
        return None

    with ThreadPoolExecutor(os.cpu_count(), "kustomize") as pool:
        return [finding for finding in pool.map(build, folders) if finding]


def validate_files(files: Sequence[Path], kubeconform: Path, schemas: Path) -> list[Finding]:
    """Validate rendered files strictly; a kind without a schema is a finding, not a skip."""
    template = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    done = run(
        [
            kubeconform, "-strict", "-output", "json", "-schema-location", template,
            # A CRD describes itself: kubeconform has no schema for it, and the API server checks it when it is applied.
            "-skip", "CustomResourceDefinition", *files,
        ],
        timeout_s=60,
        check=False,
    )  # fmt: skip
    try:
        resources = json.loads(done.stdout)["resources"]
    except (ValueError, KeyError):
        raise CommandError(done.args, done.exit_code, done.stdout + done.stderr, "printed no result") from None
    return [
        Finding(
            Path(r["filename"]).stem.replace("__", "/"),
            f"{r.get('kind', '?')}/{r.get('name', '?')}: {r.get('msg', r['status'])}",
        )
        for r in resources or []
    ]


def definition_files(settings: Settings, versions: Versions, tools_dir: Path, root: Path) -> list[Path]:
    """Return the files that hold CRDs: the tree's own, and Flux's as its own tool prints them."""
    crds = [p for p in root.rglob("*.yaml") if "kind: CustomResourceDefinition" in p.read_text()]
    cache = Cache(settings.cache_dir)

    def export(folder: Path) -> None:
        done = run(
            [tools_dir / "flux", "install", "--export", f"--components={','.join(CONTROLLERS)}",
             f"--version=v{versions.flux}"],
            timeout_s=60,
        )  # fmt: skip
        (folder / "flux.yaml").write_text(done.stdout)

    entry, _ = cache.ensure("flux-manifests", digest_of(versions.flux, CONTROLLERS), export)
    return [*crds, entry / "flux.yaml"]


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
