"""JSON schemas on disk for kubeconform: Kubernetes' own from a Python package, and those of CRDs in files.

Nothing is downloaded at check time. A folder of schemas is a cache entry keyed by what it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from scripts.cache import Cache, digest_of
from scripts.errors import LabError

_REVISION = 1


def ensure_schemas(cache: Cache, kubernetes: str, definitions: Iterable[Path]) -> Path:
    """Return a folder of schemas for a Kubernetes version and the CRDs in the given files.

    File names fit kubeconform's template `{{.ResourceKind}}{{.KindSuffix}}.json`.
    """
    files = sorted(definitions)
    key = digest_of(_REVISION, kubernetes, _package_version(), [f.read_text() for f in files])

    def build(folder: Path) -> None:
        for path in _core_folder(kubernetes).glob("*.json"):
            schema = json.loads(path.read_text())
            # As shipped, these send references to a web address.
            schema.pop("$id", None)
            schema.pop("$schema", None)
            text = json.dumps(schema, separators=(",", ":")).replace('"/api/_definitions.json', '"_definitions.json')
            (folder / path.name).write_text(text)
        for file in files:
            for name, schema in crd_schemas(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)):
                (folder / name).write_text(json.dumps(schema, separators=(",", ":")))

    entry, _ = cache.ensure("schemas", key, build)
    return entry


def crd_schemas(documents: Iterable[Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield file name and strict JSON schema of every served version of the CRDs among YAML documents."""
    for document in documents:
        if not isinstance(document, dict) or document.get("kind") != "CustomResourceDefinition":
            continue
        group = document["spec"]["group"]
        kind = document["spec"]["names"]["kind"]
        for version in document["spec"]["versions"]:
            schema = version.get("schema", {}).get("openAPIV3Schema")
            if schema and version.get("served", True):
                strict = _strict(schema)
                # Every object carries these, whether a definition spells them out or not.
                strict.setdefault("properties", {}).update(
                    {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
                )
                yield f"{kind}-{group.partition('.')[0]}-{version['name']}.json".lower(), strict


def _strict(schema: Any) -> Any:
    """Refuse fields that a structural schema doesn't name, as the API server's strict validation does."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if strict.pop("x-kubernetes-int-or-string", False):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    open_ended = strict.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in strict
    if isinstance(strict.get("properties"), dict) and not open_ended:
        strict["additionalProperties"] = False
    if strict.pop("nullable", False) and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    return strict


def _core_folder(kubernetes: str) -> Path:
    import kubernetes_validate

    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"{kubernetes}-local-strict"
    if not folder.is_dir():
        raise LabError(
            f"The package kubernetes-validate has no schemas for {kubernetes}.",
            "raise it in requirements.in and run `make lock`",
        )
    return folder


def _package_version() -> str:
    from importlib.metadata import version

    return version("kubernetes-validate")
