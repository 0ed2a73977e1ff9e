"""Definitions of kinds that a tree uses without bringing them: Flux's own, and those that the schemas know too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.check.dryrun_api import Object
from scripts.check.lint_inventory import dig
from scripts.check.model import Resource
from scripts.check.origin import read_object, split
from scripts.check.validate import BUNDLED_DEFINITIONS
from scripts.manifests import flux_definitions
from scripts.schemas import defined_kind
from scripts.settings import Settings
from scripts.versions import Versions


def missing_definitions(resources: Sequence[Resource], settings: Settings, versions: Versions) -> Iterator[Object]:
    """Yield the known definitions of custom kinds that are used and that none of the objects defines."""
    used = {(r.api_version.rpartition("/")[0], r.kind) for r in resources if "." in r.api_version}
    for resource in resources:
        if resource.kind == "CustomResourceDefinition":
            used.discard((str(dig(resource.data, "spec", "group")), str(dig(resource.data, "spec", "names", "kind"))))
    flux = flux_definitions(settings, versions, settings.tools_dir)
    bundled = [p for folder in BUNDLED_DEFINITIONS for p in sorted(Path(folder).glob("*_*.yaml"))]
    for path in (flux, *bundled):
        for text in split(path.read_text().removeprefix("---\n")):
            if "\nkind: CustomResourceDefinition\n" in f"\n{text}" and (kind := defined_kind(text)) in used:
                used.discard(kind)
                yield read_object(text)
