"""The manifests in Git, proven before they reach a cluster: step 4 of setup is the check of every kustomization.

The check itself is `scripts/check/`; here stands what setup asks of it, and where Flux's own definitions come from.
"""

from __future__ import annotations

from pathlib import Path

from scripts import console
from scripts.cache import Cache
from scripts.errors import LabError
from scripts.fluxcli import CONTROLLERS
from scripts.fluxinstall import exported
from scripts.outcome import Outcome
from scripts.settings import FLUX_CD, Settings
from scripts.versions import Versions


def validate(settings: Settings, versions: Versions, tools_dir: Path, root: Path = FLUX_CD) -> Outcome:
    """Build and validate everything below a root; raises LabError that lists each finding."""
    from scripts.check.commands import check_cache
    from scripts.check.model import Severity, Stage
    from scripts.check.runner import Options, check
    from scripts.check.store import digest
    from scripts.check.validate import Definitions

    console.note("building and validating every kustomization")
    stages = (Stage.STRUCTURE, Stage.BUILD, Stage.SCHEMA)
    options = Options(
        root,
        check_cache(settings),
        tools_dir / "kustomize",
        tools_dir / "kubeconform",
        stages,
        lambda: Definitions(versions.kubernetes, (flux_definitions(settings, versions, tools_dir),)),
        digest(versions.kubernetes, versions.flux, CONTROLLERS),
    )
    report = check(options).report
    errors = [f for f in report.findings if f.severity is Severity.ERROR]
    if errors:
        lines = "\n".join(f"    {f.place}: {f.subject + ': ' if f.subject else ''}{f.message}" for f in errors)
        raise LabError(
            f"{len(errors)} of the manifests' checks failed; the cluster was not touched by them.",
            "mend these files; `make kustomize-check` says how",
            lines,
        )
    built = sum(r.built for r in report.rows)
    return Outcome(False, f"{built} kustomizations build and are valid")


def flux_definitions(settings: Settings, versions: Versions, tools_dir: Path) -> Path:
    """Return the file with Flux's own definitions, as its tool prints them."""
    return exported(Cache(settings.cache_dir), tools_dir / "flux", versions) / "flux.yaml"
