"""What Flux's sources read of the repository, as Git has them: who has to be told of a push, and who not."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from scripts.git import environment_branch
from scripts.settings import FLUX_CD, OVERLAYS, source_name

# The label of sources whose branch moves by promotion: every environment's but dev's.
PROMOTED = {"gitops-lab/moves-by": "promotion"}


@dataclass(frozen=True)
class SourceScope:
    """What a source reads of the repository: a branch, and the paths that its `ignore` leaves in."""

    name: str
    branch: str
    paths: tuple[str, ...]
    promoted: bool = False


def source_scopes() -> list[SourceScope]:
    """Return the scope of every source that the tree has, dev's first: the platform's, and added environments' own."""
    files = [FLUX_CD / "bootstrap" / "sources.yaml", *sorted(OVERLAYS.glob("*/sync.yaml"))]
    documents = (d for file in files for d in yaml.load_all(file.read_text(), yaml.CSafeLoader))
    scopes = []
    for source in documents:
        if source and source["kind"] == "GitRepository":
            lines = source["spec"].get("ignore", "").split()
            included = [line.removeprefix("!/") for line in lines if line.startswith("!/")]
            deepest = [p for p in included if not any(o.startswith(f"{p}/") for o in included)]
            promoted = PROMOTED.items() <= source["metadata"].get("labels", {}).items()
            meta, ref = source["metadata"], source["spec"]["ref"]
            scopes.append(SourceScope(meta["name"], ref["branch"], tuple(deepest), promoted))
    return sorted(scopes, key=lambda scope: scope.name != source_name("dev"))


def hook_scopes() -> list[SourceScope]:
    """Return what the Git server's hook has to know; one pattern covers all that move by promotion, and later ones."""
    scopes = source_scopes()
    paths = sorted({path for s in scopes if s.promoted for path in s.paths})
    pattern = SourceScope(source_name("*"), environment_branch("*"), tuple(paths), promoted=True)
    return [*(s for s in scopes if not s.promoted), pattern]
