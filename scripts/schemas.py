"""JSON schemas on disk for kubeconform: Kubernetes' own from a Python package, and those of CRDs.

Nothing is downloaded at check time, and only the schemas of kinds that are used are made: one file per kind, with what it
refers to inside, so that kubeconform reads little. File names fit kubeconform's template `TEMPLATE`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scripts.errors import LabError

TEMPLATE = "{{.Group}}_{{.ResourceKind}}_{{.ResourceAPIVersion}}.json"
# Keywords that hold schemas: those that say which fields there are, and those that only judge values.
_STRUCTURE = ("properties", "items", "additionalProperties")
_JUNCTORS = ("anyOf", "oneOf", "allOf", "not")
_REFERENCE = re.compile(r"^(?:/api/_definitions\.json)?#/\$defs/")
# As kustomize and `flux install` print a CRD: good enough to know which one to read, which is then read properly.
_GROUP = re.compile(r"^  group: [\"']?([\w.-]+)", re.MULTILINE)
_DESCRIPTION = re.compile(r"^( *)description: \S.*\n(?:\1 +.*\n|\n)*", re.MULTILINE)
_KIND = re.compile(r"^  names:\n(?:    .*\n)*?    kind: [\"']?(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class ObjectKind:
    """A kind in one version of its group."""

    group: str
    version: str
    kind: str

    @property
    def file_name(self) -> str:
        """The schema's file as kubeconform asks for it: to it, the core group's name is its version."""
        return f"{self.group or self.version}_{self.kind.lower()}_{self.version}.json"

    @staticmethod
    def of(api_version: str, kind: str) -> ObjectKind:
        """Return the kind of an object."""
        group, _, version = api_version.rpartition("/")
        return ObjectKind(group, version, kind)


class CoreSchemas:
    """The schemas of Kubernetes' own kinds in one version, strict ones."""

    def __init__(self, kubernetes: str) -> None:
        import importlib.util

        found = importlib.util.find_spec("kubernetes_validate")
        package = Path(found.origin).parent if found and found.origin else Path()
        self.folder = package / "kubernetes-json-schema" / f"{kubernetes}-local-strict"
        if not self.folder.is_dir():
            raise LabError(
                f"The package kubernetes-validate has no schemas for {kubernetes}.",
                "raise it in requirements.in and run `make lock`",
            )

    @cached_property
    def _definitions(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "_definitions.json").read_text())["$defs"]
        return found

    def schema(self, kind: ObjectKind) -> dict[str, Any] | None:
        """Return a kind's schema, all that it refers to inside; None for a kind that Kubernetes doesn't have."""
        # The files are named by the group's first label, which other groups may share.
        if kind.group and "." in kind.group and not kind.group.endswith(".k8s.io"):
            return None
        path = self._file_of(kind)
        if not path.is_file():
            return None
        schema: dict[str, Any] = json.loads(path.read_text())
        versions = schema.get("properties", {}).get("apiVersion", {}).get("enum") or []
        if versions and f"{kind.group}/{kind.version}".lstrip("/") not in versions:
            return None
        for field in ("$id", "$schema"):
            # As shipped, these send references to a web address.
            schema.pop(field, None)
        needed = _referred(schema, self._definitions, lambda found: found)
        whole = _local({**schema, "$defs": needed})
        return dict(whole)

    def kinds(self) -> Iterator[ObjectKind]:
        """Yield every kind that `schema` has an answer for, lists of others left out."""
        for path in sorted(self.folder.glob("*.json")):
            properties = json.loads(path.read_text()).get("properties", {})
            versions, names = (properties.get(field, {}).get("enum", []) for field in ("apiVersion", "kind"))
            for kind in (ObjectKind.of(version, name) for version in versions for name in names):
                # Options and answers of every group share a file.
                if not kind.kind.endswith("List") and self._file_of(kind) == path:
                    yield kind

    def _file_of(self, kind: ObjectKind) -> Path:
        parts = [kind.kind.lower(), kind.group.partition(".")[0], kind.version]
        return self.folder / ("-".join(p for p in parts if p) + ".json")


def _referred(schema: Any, definitions: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the definitions, each changed, that a schema refers to, and those that they do then."""
    needed: dict[str, Any] = {}
    pending = list(_references(schema))
    while pending:
        name = pending.pop()
        # A default may hold what looks like a reference.
        if name in definitions and name not in needed:
            needed[name] = change(definitions[name])
            pending.extend(_references(needed[name]))
    return needed


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield _REFERENCE.sub("", value)
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


def _local(schema: Any) -> Any:
    """Return a schema with references to its own definitions, and without what only people read."""
    if isinstance(schema, list):
        return [_local(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _REFERENCE.sub("#/$defs/", value) if key == "$ref" and isinstance(value, str) else _local(value)
        for key, value in schema.items()
        # A property of this name is a schema, not a text.
        if not (key == "description" and isinstance(value, str))
    }


def pruned(schema: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a schema that says the same as another of objects which have, at any depth, no other fields than some.

    kubeconform reads all of a schema before it looks at the first object, and what most of them say is of fields that
    nobody sets.

    Args:
        schema: the schema, with all that it refers to in `$defs`.
        names: the fields' names.
    """
    definitions = schema.get("$defs", {})
    slim = _pruned({key: value for key, value in schema.items() if key != "$defs"}, names)
    needed = _referred(slim, definitions, lambda found: _pruned(found, names))
    return {**slim, "$defs": needed} if needed else dict(slim)


def _pruned(schema: Any, names: Collection[str]) -> Any:
    if isinstance(schema, dict) and "properties" in schema:
        # Known by its name still: what isn't named at all is refused.
        schema = {**schema, "properties": {n: s if n in names else {} for n, s in schema["properties"].items()}}
    return _with_inner(schema, lambda inner: _pruned(inner, names), _STRUCTURE + _JUNCTORS)


def _with_inner(schema: Any, change: Callable[[Any], Any], keywords: Collection[str]) -> Any:
    """Return a schema with the schemas changed that some of its keywords hold; fields named like one are fields."""
    if not isinstance(schema, dict):
        return schema
    changed = dict(schema)
    for keyword in keywords:
        value = schema.get(keyword)
        if isinstance(value, list):
            changed[keyword] = [change(each) for each in value]
        elif isinstance(value, dict) and keyword == "properties":
            changed[keyword] = {name: change(each) for name, each in value.items()}
        elif isinstance(value, dict):
            changed[keyword] = change(value)
    return changed


def without_descriptions(text: str) -> str:
    """Return a CRD's text in the usual layout without what only people read: most of it.

    A property of this name has nothing behind its colon, and one that begins a list's item has a dash before it.
    """
    return _DESCRIPTION.sub("", text)


def defined_kind(text: str) -> tuple[str, str] | None:
    """Return group and kind of what a CRD defines, from its text in the usual layout; None where it has another."""
    group, kind = _GROUP.search(text), _KIND.search(text)
    return (group.group(1), kind.group(1)) if group and kind else None


def crd_schemas(definition: Mapping[str, Any]) -> Iterator[tuple[ObjectKind, dict[str, Any]]]:
    """Yield kind and strict JSON schema of every served version of a CRD."""
    spec = definition["spec"]
    group, kind = spec["group"], spec["names"]["kind"]
    for version in spec["versions"]:
        schema = version.get("schema", {}).get("openAPIV3Schema")
        if schema and version.get("served", True):
            strict = _strict(schema)
            # Every object carries these, whether a definition spells them out or not.
            strict.setdefault("properties", {}).update(
                {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
            )
            yield ObjectKind(group, version["name"], kind), strict


def _strict(schema: Any) -> Any:
    """Refuse fields that a structural schema doesn't name, as the API server's strict validation does.

    What stands under anyOf and the like only judges values: which fields there are is said beside it.
    """
    strict = _with_inner(schema, _strict, _STRUCTURE)
    if not isinstance(strict, dict):
        return strict
    strict.pop("description", None)
    if strict.pop("x-kubernetes-int-or-string", False) is True:
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    open_ended = strict.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in strict
    if strict.get("x-kubernetes-embedded-resource") is True and isinstance(strict.get("properties"), dict):
        strict["properties"].update(
            {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
        )
    if isinstance(strict.get("properties"), dict) and not open_ended:
        strict["additionalProperties"] = False
    if strict.pop("nullable", False) is True and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    return strict
