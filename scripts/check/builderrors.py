"""What kustomize says when a build fails, as findings: where it is, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.check.fluxobjects import RenderSpec
from scripts.check.graph import Graph, Kustomization
from scripts.check.model import Finding, Place, Stage
from scripts.check.references import ReferenceKind

_ID = re.compile(
    r"(?P<kind>[A-Za-z]+)\.(?P<version>\w+)\.(?:\[?(?P<group>[\w.-]+?)\]?/)?(?P<name>[\w.:-]+)\.\[?(?P<ns>[\w-]+)\]?"
)


@dataclass(frozen=True)
class _Known:
    """One kind of failure: what kustomize prints, and what it means."""

    pattern: re.Pattern[str]
    rule: str
    message: str
    mend: str
    locate: Callable[[Graph, RenderSpec, re.Match[str]], Place | None]


def explain(graph: Graph, spec: RenderSpec, output: str, staged: Path, into: Path) -> Finding:
    """Return the finding for a failed build."""
    text = _readable(output, graph, staged, into)
    built = graph.buildable(spec.folder)
    here = Place(built.place if built else spec.folder, 1 if built and built.file else 0)
    for known in _KNOWN:
        match = known.pattern.search(text)
        if match:
            values = {k: v or "" for k, v in match.groupdict().items()}
            place = known.locate(graph, spec, match) or here
            return Finding(
                Stage.BUILD,
                known.rule,
                known.message.format(**values),
                known.mend,
                place,
                _subject(values),
                spec.folder,
            )
    return Finding(
        Stage.BUILD,
        "build-failed",
        f"kustomize can't build it: {text}",
        f"kustomize build {graph.tree.absolute(spec.folder)}",
        here,
        kustomization=spec.folder,
    )


def _readable(output: str, graph: Graph, staged: Path, into: Path) -> str:
    """Return what kustomize said in one line, with paths of the tree instead of temporary ones."""
    text = output.strip().removeprefix("Error: ")
    text = text.replace(f"{staged}/", "").replace(f"{into}/", "").replace(f"{graph.tree.root}/", "")
    return " ".join(text.replace(f"{graph.tree.top}/", "").split())[:1000]


def _subject(values: dict[str, str]) -> str:
    return f"{values['kind']} {values['name']}" if values.get("kind") and values.get("name") else ""


def _closure(graph: Graph, spec: RenderSpec) -> list[Kustomization]:
    return [k for k in (graph.buildable(f) for f in graph.closure(spec.folder)) if k]


def _patch(graph: Graph, spec: RenderSpec, match: re.Match[str]) -> Place | None:
    """Find the patch whose target is the object that was looked for."""
    kind, name = match["kind"], match["name"]
    head = re.compile(rf"kind:\s*[\"']?{re.escape(kind)}\b[\s\S]*?name:\s*[\"']?{re.escape(name)}\b")
    for kustomization in _closure(graph, spec):
        for reference in kustomization.references:
            if reference.kind is ReferenceKind.PATCH and graph.tree.is_file(reference.target):
                for document in graph.tree.source(reference.target).documents:
                    if document.kind == kind and document.name == name:
                        return Place(reference.target, document.line)
        for field in ("patches", "patchesStrategicMerge"):
            for index, patch in enumerate(kustomization.data.get(field) or []):
                text = patch.get("patch") if isinstance(patch, dict) else patch
                if isinstance(text, str) and head.search(text):
                    return Place(kustomization.place, kustomization.document.line_of(f"/{field}/{index}"))
    return None


def _field(graph: Graph, spec: RenderSpec, match: re.Match[str]) -> Place | None:
    """Find a kustomization field by the name that kustomize gives: the last one of a path like `Kustomization.a.b`."""
    name = match["field"].rpartition(".")[2]
    for kustomization in _closure(graph, spec):
        for pointer, line in kustomization.document.lines.items():
            if pointer.rpartition("/")[2] == name:
                return Place(kustomization.place, line)
    return None


def _second(graph: Graph, spec: RenderSpec, match: re.Match[str]) -> Place | None:
    """Find the second place in which an object is written."""
    found = []
    for kustomization in _closure(graph, spec):
        for reference in kustomization.references:
            if reference.kind is ReferenceKind.RESOURCE and graph.tree.is_file(reference.target):
                for document in graph.tree.source(reference.target).documents:
                    if document.kind == match["kind"] and document.name and match["name"].endswith(document.name):
                        found.append(Place(reference.target, document.line))
    return found[1] if len(found) > 1 else found[0] if found else None


def _generator(graph: Graph, spec: RenderSpec, match: re.Match[str]) -> Place | None:
    for kustomization in _closure(graph, spec):
        for field in ("configMapGenerator", "secretGenerator"):
            for index, generator in enumerate(kustomization.data.get(field) or []):
                if isinstance(generator, dict) and generator.get("name") == match["name"] and "behavior" in generator:
                    return Place(kustomization.place, kustomization.document.line_of(f"/{field}/{index}"))
    return None


def _replacement(graph: Graph, spec: RenderSpec, _: re.Match[str]) -> Place | None:
    for kustomization in _closure(graph, spec):
        if kustomization.data.get("replacements"):
            return Place(kustomization.place, kustomization.document.line_of("/replacements/0"))
    return None


def _patches(graph: Graph, spec: RenderSpec, match: re.Match[str]) -> Place | None:
    """Find the patch that quotes a text, or the first of a build's patches."""
    quoted = re.sub(r"\W", "", match.groupdict().get("quoted") or "")[:40]
    first = None
    for kustomization in _closure(graph, spec):
        for field in ("patches", "patchesJson6902", "patchesStrategicMerge"):
            for index, patch in enumerate(kustomization.data.get(field) or []):
                place = Place(kustomization.place, kustomization.document.line_of(f"/{field}/{index}"))
                text = str(patch.get("patch") or "") if isinstance(patch, dict) else str(patch)
                path = patch.get("path") if isinstance(patch, dict) else None
                if isinstance(path, str):
                    target = next((r.target for r in kustomization.references if r.value == path), "")
                    place = Place(target, 1) if target else place
                    text = graph.tree.absolute(target).read_text(errors="replace") if target else text
                first = first or place
                if quoted and quoted in re.sub(r"\W", "", text):
                    return place
    return first


def _nowhere(_: Graph, __: RenderSpec, ___: re.Match[str]) -> Place | None:
    return None


_OBJECT = _ID.pattern
_KNOWN = (
    _Known(
        re.compile(rf"no matches for Id {_OBJECT}; failed to find unique target for patch"),
        "patch-no-match",
        "the patch matches nothing: there is no {kind} {name} here",
        "mend kind, name or namespace in the patch, or remove it",
        _patch,
    ),
    _Known(
        re.compile(rf"may not add resource with an already registered id: {_OBJECT}"),
        "resource-twice",
        "{kind} {name} is defined twice in one build",
        "remove one of the two, or make the second a patch",
        _second,
    ),
    _Known(
        re.compile(r"unknown field \"(?P<field>[^\"]+)\""),
        "kustomization-unknown-field",
        "kustomize knows no field `{field}`",
        "mend its name or its place, or remove it",
        _field,
    ),
    _Known(
        re.compile(r"cannot unmarshal (?P<got>\w+) into Go (?:struct field |value of type )(?P<field>[\w.]+)(?: of type (?P<want>\S+))?"),
        "kustomization-type",
        "`{field}` has the wrong type: {got} instead of {want}",
        "write it as the kustomization reference has it",
        _field,
    ),
    _Known(
        re.compile(r"Kind:\"(?P<kind>\w+)\".*?Name:\"(?P<name>[^\"]+)\".*?does not exist; cannot merge or replace"),
        "generator-merge",
        "the generator merges into {kind} {name}, which does not exist",
        "mend its name, or remove `behavior`",
        _generator,
    ),
    _Known(
        re.compile(r"(?P<what>nothing selected by \S+|multiple matches for selector \S+|unable to find field \S+ in replacement target|fieldPath `[^`]*` is missing[^:]*)"),
        "replacement-no-match",
        "a replacement finds nothing to work on: {what}",
        "mend its source and targets",
        _replacement,
    ),
    _Known(
        re.compile(r"unable to parse SM or JSON patch from \[(?P<quoted>.*?)\]"),
        "patch-unreadable",
        "the patch is neither a strategic merge patch nor a JSON patch",
        "write an object with kind and name, or a list of operations",
        _patches,
    ),
    _Known(
        re.compile(r"(?P<operation>add|remove|replace|test|copy|move) operation does not apply: (?P<why>doc is missing (?:key|path): [^:]+|[^:]+)"),
        "patch-path",
        "the patch's {operation} does not apply: {why}",
        "mend its path: it must exist for replace and remove, its parent for add",
        _patches,
    ),
    _Known(
        re.compile(r"must specify --enable-helm"),
        "helm-in-kustomization",
        "inflates a Helm chart, which Flux's controllers refuse to do",
        "use a HelmRelease",
        _nowhere,
    ),
)  # fmt: skip
