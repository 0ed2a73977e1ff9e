"""What Flux is told in a tree: its Kustomizations and their sources, and which folder each of them applies."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from scripts.check.model import Place, Resource
from scripts.check.sourcefile import FLUX_GROUPS, FLUX_KUSTOMIZE_GROUP, Document
from scripts.check.store import digest
from scripts.check.tree import Tree, join

DEFAULT_NAMESPACE = "flux-system"
SOURCE_KINDS = ("GitRepository", "OCIRepository", "Bucket", "ExternalArtifact", "HelmRepository", "HelmChart")
# What of a Flux Kustomization changes what its folder renders to.
_RENDERED_BY: Mapping[str, type[Any]] = {
    "targetNamespace": str,
    "namePrefix": str,
    "nameSuffix": str,
    "patches": list,
    "patchesStrategicMerge": list,
    "patchesJson6902": list,
    "images": list,
    "components": list,
    "ignoreMissingComponents": bool,
    "commonMetadata": dict,
    "postBuild": dict,
}
# What the items of its lists are.
_ITEMS: Mapping[str, type[Any]] = {"patches": dict, "patchesJson6902": dict, "images": dict, "components": str}


@dataclass(frozen=True)
class FluxObject:
    """An object of Flux's: as rendered where something renders it, otherwise as it is written."""

    data: Mapping[str, Any]
    place: Place
    # Line of a value by its JSON pointer, where the file still says it as rendered.
    lines: Mapping[str, int] = field(default_factory=dict)
    # What renders it: the root that it follows from, so that two clusters' objects are told apart.
    scope: str = ""

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.data.get("kind", ""))

    @property
    def name(self) -> str:
        """The object's name."""
        return str(_mapping(self.data.get("metadata")).get("name", ""))

    @property
    def namespace(self) -> str:
        """The object's namespace; Flux's own where none is written."""
        return str(_mapping(self.data.get("metadata")).get("namespace") or DEFAULT_NAMESPACE)

    @property
    def spec(self) -> Mapping[str, Any]:
        """The object's spec."""
        return _mapping(self.data.get("spec"))

    @property
    def subject(self) -> str:
        """The object as findings name it."""
        return f"{self.kind} {self.namespace}/{self.name}"

    @property
    def is_kustomization(self) -> bool:
        """Whether it is a Flux Kustomization."""
        return self.kind == "Kustomization" and _group(self.data) == FLUX_KUSTOMIZE_GROUP

    def place_of(self, pointer: str) -> Place:
        """Return where a field stands, or the object's own place."""
        while pointer and pointer not in self.lines:
            pointer = pointer.rpartition("/")[0]
        line = self.lines.get(pointer, 0) if pointer else 0
        return Place(self.place.file, line) if line else self.place


@dataclass(frozen=True)
class RenderSpec:
    """How a folder is rendered: what a Flux Kustomization says, or nothing for a plain kustomization."""

    folder: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = DEFAULT_NAMESPACE
    # The file of the Flux Kustomization, where it matters: of several ConfigMaps of a name the nearest is taken.
    near: str = ""

    @cached_property
    def key(self) -> str:
        """What tells it from other renderings."""
        return digest(self.folder, self.settings, self.namespace, self.near)

    @property
    def targets_namespace(self) -> bool:
        """Whether Flux puts everything into one namespace."""
        return bool(self.settings.get("targetNamespace"))


def is_flux(data: Mapping[str, Any]) -> bool:
    """Whether an object is one of Flux's that this check understands."""
    return _group(data) in FLUX_GROUPS


def from_document(file: str, document: Document) -> FluxObject:
    """Return a Flux object as it is written."""
    return FluxObject(document.data or {}, Place(file, document.line), document.lines, file)


def from_resource(tree: Tree, resource: Resource, scope: str) -> FluxObject:
    """Return a Flux object as it was rendered, with the lines of the file it was written in."""
    lines: Mapping[str, int] = {}
    for document in tree.source(resource.place.file).documents if tree.is_file(resource.place.file) else ():
        if document.line == resource.place.line:
            lines = document.lines
    return FluxObject(resource.data, resource.place, lines, scope)


def render_spec(flux: FluxObject, folder: str) -> RenderSpec:
    """Return how Flux renders the folder of a Kustomization."""
    settings: dict[str, Any] = {}
    for key, kind in _RENDERED_BY.items():
        value: Any = flux.spec.get(key)
        # A value of another type is a finding of its schema, and nothing that could be rendered by.
        if value and isinstance(value, kind):
            settings[key] = [i for i in value if isinstance(i, _ITEMS[key])] if key in _ITEMS else value
    post_build = _mapping(settings.get("postBuild"))
    near = flux.place.file if post_build.get("substituteFrom") else ""
    return RenderSpec(folder, settings, flux.namespace if post_build else DEFAULT_NAMESPACE, near)


def folder_of(tree: Tree, flux: FluxObject) -> str | None:
    """Return the folder that a Flux Kustomization applies; None if the tree has no such folder.

    Its path starts at the source's root, which is the repository's: the tree may be a folder of it.
    """
    clean = path_of(flux)
    if source_of(flux)[0] == "ExternalArtifact":
        return _folder_in_artifact(tree, flux, clean)
    if not clean and _is_anothers(tree, flux):
        return None
    return _folder_at(tree, clean)


def path_of(flux: FluxObject) -> str:
    """Return the path of a Flux Kustomization below its source's root, empty for all of it."""
    return posixpath.normpath("/" + str(flux.spec.get("path") or "./")).lstrip("/")


def _is_anothers(tree: Tree, flux: FluxObject) -> bool:
    """Whether a source that is applied as a whole holds other files than this tree.

    It does if the tree brings it, beside the one that Flux was bootstrapped with, and nothing takes a path of this tree
    from it.
    """
    kind, namespace, name = source_of(flux)
    if name == DEFAULT_NAMESPACE:
        return False
    sources = {(d.name, d.namespace or namespace): d.data or {} for _, d in tree.documents_of_kind(kind)}
    if (name, namespace) not in sources:
        return False
    own = _mapping(sources.get((DEFAULT_NAMESPACE, DEFAULT_NAMESPACE), {}).get("spec")).get("url")
    if own and own == _mapping(sources[name, namespace].get("spec")).get("url"):
        return False
    for file, document in tree.documents_of_kind("Kustomization"):
        other = from_document(file, document)
        if other.is_kustomization and source_of(other)[::2] == (kind, name):
            path = path_of(other)
            if path and _folder_at(tree, path) is not None:
                return False
    return True


def _folder_at(tree: Tree, clean: str) -> str | None:
    place = tree.root
    while True:
        candidate = tree.canonical(join(tree.relative(place), clean))
        if tree.is_folder(candidate):
            return candidate
        if place == tree.top or place == place.parent:
            return None
        place = place.parent


def _folder_in_artifact(tree: Tree, flux: FluxObject, path: str) -> str | None:
    """Return the folder of the tree that an ArtifactGenerator copies to a path of the artifact that it makes."""
    _, namespace, name = source_of(flux)
    generators = [
        (len(posixpath.commonpath([f"/{file}", f"/{flux.place.file}"])), file, document)
        for file, document in tree.documents_of_kind("ArtifactGenerator")
        if (document.namespace or DEFAULT_NAMESPACE) == namespace and _artifact(document, name) is not None
    ]
    for _, _, document in sorted(generators, key=lambda g: g[:2], reverse=True):
        artifact = _artifact(document, name) or {}
        for rule in artifact.get("copy") or []:
            if not isinstance(rule, Mapping):
                continue
            copied_from = posixpath.normpath(str(rule.get("from", "")).partition("/")[2].removesuffix("**") or ".")
            copied_to = posixpath.normpath(str(rule.get("to", "")).partition("/")[2] or ".")
            inner = posixpath.relpath(path or ".", copied_to)
            if not inner.startswith(".."):
                candidate = tree.canonical(join(copied_from if copied_from != "." else "", inner))
                if tree.is_folder(candidate):
                    return candidate
    return None


def _artifact(document: Document, name: str) -> Mapping[str, Any] | None:
    artifacts = _mapping((document.data or {}).get("spec")).get("artifacts")
    return next((a for a in artifacts or [] if isinstance(a, Mapping) and a.get("name") == name), None)


def artifacts_of(flux: FluxObject) -> list[str]:
    """Return the names of the ExternalArtifacts that an ArtifactGenerator makes."""
    artifacts = flux.spec.get("artifacts") if flux.kind == "ArtifactGenerator" else None
    return [str(a.get("name")) for a in artifacts or [] if isinstance(a, Mapping)]


def source_of(flux: FluxObject) -> tuple[str, str, str]:
    """Return kind, namespace and name of a Flux Kustomization's source."""
    reference = _mapping(flux.spec.get("sourceRef"))
    return (
        str(reference.get("kind", "")),
        str(reference.get("namespace") or flux.namespace),
        str(reference.get("name", "")),
    )


def dependencies_of(flux: FluxObject) -> list[tuple[str, str, str]]:
    """Return namespace, name and JSON pointer of each Kustomization that another depends on."""
    found = []
    depends_on = flux.spec.get("dependsOn")
    for index, item in enumerate(depends_on if isinstance(depends_on, list) else []):
        if isinstance(item, Mapping) and item.get("name"):
            found.append((str(item.get("namespace") or flux.namespace), str(item["name"]), f"/spec/dependsOn/{index}"))
    return found


def written_objects(tree: Tree, files: Iterable[str]) -> list[FluxObject]:
    """Return every Flux object in some files, as written."""
    found = []
    for path in files:
        for document in tree.source(path).documents:
            if document.data is not None and document.group in FLUX_GROUPS and document.name:
                found.append(from_document(path, document))
    return found


def _group(data: Mapping[str, Any]) -> str:
    return str(data.get("apiVersion", "")).rpartition("/")[0]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
