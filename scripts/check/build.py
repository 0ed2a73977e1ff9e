"""One folder rendered as Flux applies it: kustomize's output, each object with its place, variables replaced."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from scripts.check import origin
from scripts.check.fluxobjects import RenderSpec
from scripts.check.graph import Graph
from scripts.check.model import Finding, Place, Rendered, Resource, Stage
from scripts.check.patches import unmatched_patches
from scripts.check.staging import stage
from scripts.check.store import from_record, to_record
from scripts.check.substitute import SubstitutionError, substitute
from scripts.check.variables import Variables
from scripts.process import CommandError, Completed, run

BUILD_TIMEOUT_S = 60
SUBSTITUTE_ANNOTATION = "kustomize.toolkit.fluxcd.io/substitute"
# A build lives for a tenth of a second: collecting its garbage costs a third of that, so it is done only for memory's sake.
GO_ENV = {"GOGC": "off", "GOMEMLIMIT": "90MiB", "GIT_TERMINAL_PROMPT": "0"}


@dataclass(frozen=True)
class Rendering:
    """What one folder rendered to in one way, and what went wrong on the way."""

    spec: RenderSpec
    key: str
    # One text per object, each ending with a line feed.
    texts: tuple[str, ...] = ()
    # The same as data: kept beside the text, because reading YAML takes ten times as long as reading JSON.
    objects: tuple[dict[str, Any], ...] = ()
    places: tuple[Place, ...] = ()
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    built: bool = False
    # Why it was not built, where that is no finding of its own.
    skipped: str = ""
    # The files of a chart that the objects come from; empty where kustomize rendered them.
    templates: tuple[str, ...] = ()

    @cached_property
    def resources(self) -> tuple[Resource, ...]:
        """The objects."""
        templates = self.templates or ("",) * len(self.objects)
        return tuple(Resource(o, p, t) for o, p, t in zip(self.objects, self.places, templates, strict=True))

    def rendered(self, flux_kustomizations: tuple[str, ...]) -> Rendered:
        """Return this in the words that the stages share."""
        return Rendered(self.spec.folder, self.resources, "---\n".join(self.texts), self.seconds, flux_kustomizations)

    def to_record(self) -> dict[str, Any]:
        """Return this as JSON has it."""
        return {
            "texts": self.texts,
            "objects": [None if isinstance(o, origin.LazyObject) else o for o in self.objects],
            "places": [(p.file, p.line) for p in self.places],
            "findings": [to_record(f) for f in self.findings],
            "seconds": self.seconds,
            "built": self.built,
        }

    @staticmethod
    def from_record(spec: RenderSpec, key: str, record: Mapping[str, Any]) -> Rendering:
        """Return what an earlier run rendered."""
        return Rendering(
            spec,
            key,
            tuple(record["texts"]),
            tuple(
                origin.read_object(text) if data is None else data
                for text, data in zip(record["texts"], record["objects"], strict=True)
            ),
            tuple(Place(file, line) for file, line in record["places"]),
            tuple(from_record(f) for f in record["findings"]),
            record["seconds"],
            record["built"],
        )


@dataclass(frozen=True)
class Build:
    """A build laid out and ready to run: nothing in it needs the tree's data, so builds run side by side."""

    spec: RenderSpec
    key: str
    variables: Variables
    into: Path
    staged: Path
    kustomize: Path = field(default_factory=Path)

    def run(self) -> Completed | CommandError:
        """Run kustomize."""
        try:
            return run(
                [self.kustomize, "build", self.staged, "--load-restrictor", "LoadRestrictionsNone"],
                timeout_s=BUILD_TIMEOUT_S,
                env=GO_ENV,
                check=False,
            )
        except CommandError as error:
            return error


def prepare(graph: Graph, spec: RenderSpec, key: str, variables: Variables, kustomize: Path, into: Path) -> Build:
    """Lay out a build in a new folder below a temporary one."""
    built = graph.buildable(spec.folder)
    assert built is not None, spec.folder
    # kustomize follows links in the paths it prints.
    folder = Path(os.path.realpath(tempfile.mkdtemp(dir=into)))
    return Build(spec, key, variables, folder, stage(graph, spec, built, folder), kustomize)


def finish(graph: Graph, build: Build, done: Completed | CommandError) -> Rendering:
    """Return the rendering that kustomize's output makes."""
    spec = build.spec
    if isinstance(done, CommandError) or done.exit_code != 0:
        return _failed(graph, build, done)
    texts: list[str] = []
    objects: list[dict[str, Any]] = []
    places: list[Place] = []
    problems: list[Finding] = []
    of_tree = cache(partial(_of_tree, graph, build))
    for printed in origin.split(done.stdout):
        text, source = origin.take_origin(printed)
        text = origin.drop_sops(text)
        data = origin.read_object(text)
        source_path = source.path
        if source_path and not source.repository:
            source = origin.Origin(of_tree(source_path), "", "")
        elif source.configured_in:
            source = origin.Origin("", "", of_tree(source.configured_in))
        place = origin.place_of(graph, spec.folder, source, data)
        if build.variables.active and "$" in text and not _is_left_alone(data):
            text, data, found = _substituted(graph, spec, text, data, place, build.variables)
            problems += found
        if spec.settings.get("commonMetadata"):
            data = with_metadata(data, spec.settings["commonMetadata"])
            text = dump(data)
        texts.append(text)
        objects.append(data)
        places.append(place)
    rendering = Rendering(
        spec, build.key, tuple(texts), tuple(objects), tuple(places), tuple(problems), done.seconds, built=True
    )
    unmatched = unmatched_patches(graph, spec, rendering.resources)
    return replace(rendering, findings=(*problems, *unmatched))


def _failed(graph: Graph, build: Build, done: Completed | CommandError) -> Rendering:
    # Imported here: its many patterns are compiled only where something failed.
    from scripts.check.builderrors import explain

    spec = build.spec
    if isinstance(done, CommandError):
        return Rendering(spec, build.key, findings=(explain(graph, spec, done.what, build.staged, build.into),))
    findings = [explain(graph, spec, done.stderr, build.staged, build.into)]
    if findings[0].rule == "patch-no-match":
        # kustomize stops at the first.
        findings += [f for f in unmatched_patches(graph, spec, None) if f.place != findings[0].place]
    return Rendering(spec, build.key, findings=tuple(findings), seconds=done.seconds)


def _of_tree(graph: Graph, build: Build, path: str) -> str:
    """Return a path that kustomize gives, relative to the folder it built, as one relative to the tree's folder."""
    place = os.path.normpath(os.path.join(build.staged, path))  # noqa: PTH118
    into = f"{build.into}{os.sep}"
    if place.startswith(into):
        place = f"{graph.tree.top}{os.sep}{place.removeprefix(into)}"
    return os.path.relpath(place, graph.tree.absolute(build.spec.folder))


def _is_left_alone(data: Mapping[str, Any]) -> bool:
    metadata = data.get("metadata") or {}
    kept = [metadata.get(f) for f in ("labels", "annotations")]
    return any(isinstance(k, Mapping) and k.get(SUBSTITUTE_ANNOTATION) == "disabled" for k in kept)


def _substituted(
    graph: Graph, spec: RenderSpec, text: str, data: dict[str, Any], place: Place, variables: Variables
) -> tuple[str, dict[str, Any], list[Finding]]:
    subject = Resource(data, place).subject

    def finding(rule: str, message: str, mend: str, where: Place) -> Finding:
        return Finding(Stage.BUILD, rule, message, mend, where, subject, spec.folder)

    try:
        done = substitute(text, variables.values, variables.stand_in)
    except SubstitutionError as error:
        shown = error.what.partition("`")[2].partition("`")[0]
        return text, data, [finding("substitution-syntax", error.what, error.mend, _line_of_text(graph, place, shown))]
    findings = [
        finding(
            "substitution-unset",
            f"${{{name}}} has no value and no default: Flux puts an empty text there",
            "give it in postBuild.substitute or substituteFrom, write ${"
            + name
            + ":=default}, or $${"
            + name
            + "} for text",
            _line_of_text(graph, place, f"${{{name}"),
        )
        for name in sorted(done.unset)
    ]
    try:
        return done.text, origin.read_object(done.text), findings
    except ValueError as error:
        mend = "quote the value in postBuild"
        message = f"with its variables replaced it {error}"
        return text, data, [*findings, finding("substitution-breaks-yaml", message, mend, place)]


def _line_of_text(graph: Graph, place: Place, text: str) -> Place:
    """Return the line in which a text stands at or after a place, or the place."""
    path = graph.tree.absolute(place.file)
    if graph.tree.is_file(place.file):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if number >= place.line and text in line:
                return Place(place.file, number)
    return place


def with_metadata(data: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with the labels and annotations that Flux gives to all."""
    metadata = dict(data.get("metadata") or {})
    for name in ("labels", "annotations"):
        if isinstance(common.get(name), Mapping):
            metadata[name] = dict(sorted({**(metadata.get(name) or {}), **common[name]}.items()))
    return {**data, "metadata": metadata}


def dump(data: Mapping[str, Any]) -> str:
    """Return an object as YAML, laid out as kustomize does it."""
    import yaml

    return yaml.dump(dict(data), Dumper=yaml.CSafeDumper, sort_keys=False, width=10_000, allow_unicode=True)
