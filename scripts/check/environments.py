"""Environments side by side: overlays of one base that differ in which objects they hold."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from scripts.check.graph import Graph
from scripts.check.model import Finding, Place, Severity, Stage
from scripts.check.renderer import Applied

_HASH = re.compile(r"-[a-z0-9]{10}$")
_SHOWN = 3


@dataclass(frozen=True)
class _Environment:
    folder: str
    place: Place
    objects: frozenset[str]


def check_environments(graph: Graph, applied: Iterable[Applied]) -> list[Finding]:
    """Warn of each environment that lacks objects which most of its siblings have."""
    siblings: dict[tuple[str, frozenset[str]], dict[str, _Environment]] = {}
    for each in applied:
        folder = each.rendering.spec.folder
        built = graph.buildable(folder)
        if built is None or not each.rendering.built or not folder:
            continue
        parent = posixpath.dirname(folder)
        bases = frozenset(t for _, t in graph.included(built) if not t.startswith(f"{folder}/"))
        objects = frozenset(_name(r.kind, r.name, posixpath.basename(folder)) for r in each.rendering.resources)
        place = Place(built.place, 1 if built.file else 0)
        if bases:
            siblings.setdefault((parent, bases), {})[folder] = _Environment(folder, place, objects)
    findings = []
    for group in siblings.values():
        environments = list(group.values())
        everything = frozenset().union(*(e.objects for e in environments))
        for environment in environments:
            lacking = sorted(everything - environment.objects)
            if lacking:
                others = sorted(posixpath.basename(e.folder) for e in environments if set(lacking) & e.objects)
                more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
                findings.append(
                    Finding(
                        Stage.STRUCTURE,
                        "environments-differ",
                        f"has no {', '.join(lacking[:_SHOWN])}{more}, which {', '.join(others)} has",
                        "add it here, or move what all have to the base",
                        environment.place,
                        kustomization=environment.folder,
                        severity=Severity.WARNING,
                    )
                )
    return findings


def _name(kind: str, name: str, environment: str) -> str:
    """Return an object as all environments name it: without its hash, and without the environment's own name."""
    bare = _HASH.sub("", name) if kind in ("ConfigMap", "Secret") else name
    words = [w for w in re.split(r"[-.]", bare) if w != environment]
    return f"{kind} {'-'.join(words) or '(its own name)'}"
