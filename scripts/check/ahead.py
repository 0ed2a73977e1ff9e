"""What a run will need later, made while it lays out its builds: what most files hold, and the schemas of definitions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from scripts.check.aside import Aside
from scripts.check.sourcefile import (
    FLUX_GROUPS,
    KUSTOMIZATION_FILES,
    MAX_YAML_BYTES,
    SourceFile,
    may_expand,
    parse_whole,
)
from scripts.check.store import Store
from scripts.check.tree import Tree

# Less than this is read sooner than another process is begun.
WORTHWHILE_BYTES = 150_000
# Nodes take thirty times their text: those of more than this are not kept for their schemas.
MAX_NODES_BYTES = 4 * 1024**2
# What leads to further builds, or decides what builds take in: Flux's objects, and generators in files of their own. What
# has aliases is read before kustomize may see it.
_LEADING = (*FLUX_GROUPS, "builtin")


def read_ahead(tree: Tree, schemas: Store | None) -> Aside | None:
    """Begin to read the files that no build waits for and then, where a store is given, make their definitions' schemas.

    Returns what is to be finished before the schemas are used, or None where nothing was begun.
    """
    later = {
        tree.source_key(path, tree.entries[path]): path
        for path in tree.yaml_files()
        if path.rpartition("/")[2] not in KUSTOMIZATION_FILES
    }
    later = {key: path for key, path in later.items() if key not in tree.known and not _is_leading(tree, path)}
    if sum(tree.entries[path].size for path in later.values()) < WORTHWHILE_BYTES:
        return None
    # Both processes read YAML: imported once.
    from scripts.check import yamlfile  # noqa: F401

    def produce() -> Iterator[dict[str, SourceFile]]:
        found: dict[str, SourceFile] = {}
        crds: list[tuple[str, Any]] = []
        kept = 0
        for key, path in later.items():
            size = tree.entries[path].size
            found[key], text, nodes = parse_whole(tree.absolute(path), size, path)
            if schemas is not None and any(d.kind == "CustomResourceDefinition" for d in found[key].documents):
                kept += size
                crds += _definitions_in(text, nodes) if kept <= MAX_NODES_BYTES else []
        yield found
        if schemas is not None:
            _make_schemas(schemas, crds, [*tree.known.values(), *found.values()])

    aside = Aside(produce)

    def take() -> Mapping[str, SourceFile]:
        try:
            return dict(aside.take())
        except StopIteration:
            # Finished before anybody asked.
            return {}

    tree.expect(later.keys(), take)
    return aside


def names_flux(tree: Tree, path: str) -> bool:
    """Whether a file can hold objects of Flux's."""
    known = tree.known.get(tree.source_key(path, tree.entries[path]))
    if known is not None:
        return any(document.group in FLUX_GROUPS for document in known.documents)
    return _is_leading(tree, path)


def _is_leading(tree: Tree, path: str) -> bool:
    """Whether a file, by its text, can hold what builds wait for."""
    if tree.entries[path].size > MAX_YAML_BYTES:
        return False
    text = tree.absolute(path).read_text(errors="replace")
    return any(word in text for word in _LEADING) or may_expand(text)


def _definitions_in(text: str, nodes: list[Any]) -> list[tuple[str, Any]]:
    """Return the text and the node of each document, where they can be told apart by the lines between them."""
    from scripts.check.origin import split

    texts = split(text.removeprefix("---\n"))
    return list(zip(texts, nodes, strict=True)) if len(texts) == len(nodes) else []


def _make_schemas(schemas: Store, crds: list[tuple[str, Any]], sources: Collection[SourceFile]) -> None:
    """Keep the schemas of the definitions whose kinds some file names."""
    from scripts.check.validate import schemas_of
    from scripts.schemas import defined_kind

    kinds = {document.kind for source in sources for document in source.documents}
    for text, node in crds:
        about = defined_kind(text)
        if about is None or about[1] in kinds:
            for _ in schemas_of(text, schemas, node):
                pass
