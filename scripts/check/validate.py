"""Every rendered object against its schema: kubeconform, strict, with schemas on disk only.

A schema is Kubernetes' own of the pinned version, that of a CRD which the tree itself renders, Flux's, or one of the
bundled definitions below. A kind that none of them knows is a finding.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml.nodes import Node

from scripts.check.build import GO_ENV, Rendering
from scripts.check.graph import Graph
from scripts.check.locate import line_of_field
from scripts.check.model import Finding, Resource, Severity, Stage
from scripts.check.origin import split
from scripts.check.scratch import scratch
from scripts.check.store import Store, code_digest, digest, digest_of_text, identity_of
from scripts.check.yamlfile import load_one, to_plain
from scripts.process import CommandError, Completed, run
from scripts.schemas import TEMPLATE, CoreSchemas, ObjectKind, crd_schemas, defined_kind, pruned, without_descriptions
from scripts.settings import FLUX_CD

KUBECONFORM_TIMEOUT_S = 120
# Definitions of operators that trees use without defining their kinds: folders of CRD files.
BUNDLED_DEFINITIONS = (FLUX_CD / "infrastructure" / "_components" / "_prometheus-stack" / "crds",)
DEFINITION = "CustomResourceDefinition"
_AT = re.compile(r"- at '(?P<pointer>[^']*)': (?P<message>.*?)(?=\s+- at '|$)", re.DOTALL)
_UNKNOWN = re.compile(r"additional propert(?:y|ies) (?P<names>.*) not allowed")


@dataclass(frozen=True)
class Definitions:
    """Where schemas come from besides the tree."""

    kubernetes: str
    # Files with CRDs: Flux's own.
    files: tuple[Path, ...] = ()


# Objects in one file by apiVersion, kind and name.
_Batch = dict[tuple[str, str, str], str]


@dataclass(frozen=True)
class _Message:
    """What kubeconform says of one object."""

    pointer: str
    text: str
    no_schema: bool = False


@dataclass(frozen=True)
class _Elsewhere:
    """Whether definitions come to the cluster from where this check can't look, so that it can't be sure of them."""

    others: bool
    flux_operator: bool

    @staticmethod
    def of(renderings: Iterable[Rendering], others: bool) -> _Elsewhere:
        """Return what of a tree's objects brings definitions of its own: what is not rendered, charts among it."""
        operator = False
        for rendering in renderings:
            others = others or bool(rendering.skipped)
            for text in rendering.texts:
                operator = operator or ("kind: HelmRelease\n" in text and "\n  name: flux-operator\n" in text)
                operator = operator or "\nkind: FluxInstance\n" in f"\n{text}"
        return _Elsewhere(others, operator)

    def doubt(self, message: _Message, resource: Resource) -> str:
        """Return what to look at instead, where a finding is only a warning; empty where it is sure."""
        group = resource.api_version.rpartition("/")[0]
        is_flux = group.endswith(".toolkit.fluxcd.io")
        # A group without a dot is Kubernetes' own: no definition can add to it.
        if message.no_schema and self.others and "." in group and not is_flux:
            return "check that a chart or another source brings its definition"
        if self.flux_operator and is_flux:
            return "compare with the definitions of flux-operator, which changes Flux's own"
        return ""


class Validator:
    """Validates renderings; what was said of an object's text is kept by the text and its schema's sources."""

    def __init__(self, graph: Graph, kubeconform: Path, store: Store, schemas: Store, definitions: Definitions) -> None:
        self.graph = graph
        self.kubeconform = kubeconform
        self.store = store
        # Of all trees together: a schema is the same for each.
        self.schemas = schemas
        self.definitions = definitions

    @contextmanager
    def validating(
        self, renderings: Sequence[Rendering], elsewhere: bool = False
    ) -> Iterator[Callable[[], list[Finding]]]:
        """Begin to validate some renderings; what is yielded waits, and returns what is wrong with the objects.

        Args:
            renderings: what was rendered.
            elsewhere: whether what is applied is not all in the tree.
        """
        tree_definitions = {t for r in renderings for t in r.texts if f"kind: {DEFINITION}\n" in t}
        sources = digest(
            code_digest(), self.definitions.kubernetes, identity_of(self.kubeconform),
            sorted(digest_of_text(t) for t in tree_definitions),
            [f"{f} {identity_of(f)}" for f in (*self.definitions.files, *_bundled())],
        )  # fmt: skip
        # An object's text is looked at once, however often it is rendered and in whichever run.
        known: dict[str, list[_Message]] = {
            key: [_Message(*m) for m in found] for key, found in (self.store.get("schema", sources) or {}).items()
        }
        keys = {text: digest_of_text(text) for rendering in renderings for text in rendering.texts}
        missing = [r for r in renderings if any(keys[t] not in known for t in r.texts)]
        self.store.drop_old("schema", [sources])

        with self._running(missing, tree_definitions, known, keys) as running:

            def findings() -> list[Finding]:
                said = {key: known[key] for key in keys.values() if key in known}
                if missing:
                    said |= {keys[text]: found for text, found in running().items()}
                    record = {key: [(m.pointer, m.text, m.no_schema) for m in found] for key, found in said.items()}
                    self.store.put("schema", sources, record)
                doubts = _Elsewhere.of(renderings, elsewhere)
                return [
                    finding
                    for rendering in renderings
                    for finding in self._findings(rendering, {t: said[keys[t]] for t in rendering.texts}, doubts)
                ]

            yield findings

    @contextmanager
    def _running(
        self,
        renderings: Iterable[Rendering],
        definitions: Iterable[str],
        known: Mapping[str, object],
        keys: Mapping[str, str],
    ) -> Iterator[Callable[[], dict[str, list[_Message]]]]:
        """Run kubeconform on the objects that are not known yet; what is yielded returns its messages by their texts."""
        objects: dict[str, Resource] = {}
        found: dict[str, list[_Message]] = {}
        for rendering in renderings:
            for text, resource in zip(rendering.texts, rendering.resources, strict=True):
                if keys[text] in known:
                    continue
                found[text] = []
                # A CRD describes itself; the API server is the judge of it (see the dry run).
                if resource.kind != DEFINITION:
                    objects[text] = resource
        if not objects:
            yield lambda: found
            return
        batches = _batched(objects)
        with (
            scratch("schema") as folder,
            ThreadPoolExecutor(1, "kubeconform") as pool,
        ):
            schemas, files = Path(folder) / "schemas", Path(folder) / "objects"
            schemas.mkdir()
            files.mkdir()
            self._write_schemas(schemas, _fields_of(objects.values()), definitions)
            for index, batch in enumerate(batches):
                (files / f"{index}.yaml").write_text("---\n".join(batch.values()))
            done = pool.submit(
                run,
                [self.kubeconform, "-strict", "-output", "json", "-schema-location", f"{schemas}/{TEMPLATE}", files],
                timeout_s=KUBECONFORM_TIMEOUT_S,
                check=False,
                env=GO_ENV,
            )

            def messages() -> dict[str, list[_Message]]:
                for result in _results(done.result()):
                    batch = batches[int(Path(result["filename"]).stem)]
                    named = (str(result.get("version")), str(result.get("kind")), str(result.get("name")))
                    text = batch.get(named) or next(iter(batch.values()))
                    found[text].extend(_messages(str(result.get("msg") or result.get("status"))))
                return found

            yield messages

    def _write_schemas(
        self, folder: Path, fields: Mapping[ObjectKind, Collection[str]], definitions: Iterable[str]
    ) -> None:
        """Write the schemas of some kinds, each as far as the fields that their objects have need it."""
        wanted = {(k.group, k.kind) for k in fields}
        found: dict[ObjectKind, str] = {}
        for text in (*definitions, *definition_texts(self.definitions)):
            about = defined_kind(text)
            if about is not None and about not in wanted:
                continue
            for kind, schema in schemas_of(text, self.schemas):
                if kind in fields:
                    found.setdefault(kind, schema)
        core = CoreSchemas(self.definitions.kubernetes)
        for kind, names in fields.items():
            whole = found.get(kind) or _core_schema(core, kind, self.schemas)
            if whole:
                (folder / kind.file_name).write_text(_as_json(pruned(json.loads(whole), names)))

    def _findings(
        self, rendering: Rendering, messages: dict[str, list[_Message]], elsewhere: _Elsewhere
    ) -> Iterator[Finding]:
        for text, resource in zip(rendering.texts, rendering.resources, strict=True):
            found = messages.get(text)
            if not found:
                continue
            for message in found:
                if _is_stand_in(resource, message):
                    continue
                where = line_of_field(self.graph, rendering.spec.folder, resource, message.pointer)
                rule, what, mend = _explained(message, resource)
                doubt = elsewhere.doubt(message, resource)
                yield Finding(
                    Stage.SCHEMA, rule, what, doubt or mend, where, resource.subject, rendering.spec.folder,
                    Severity.WARNING if doubt else Severity.ERROR,
                )  # fmt: skip


def _batched(objects: Mapping[str, Resource]) -> list[_Batch]:
    """Put objects into as few files as kubeconform can tell them apart in, which is by apiVersion, kind and name.

    A file for each would be what takes longest in a tree of many overlays.
    """
    batches: list[_Batch] = []
    alone: list[_Batch] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for text, resource in objects.items():
        metadata = resource.data.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        key = (resource.api_version, resource.kind, str(name))
        # Of a list it names the items.
        if resource.kind.endswith("List") or not all(key) or not isinstance(name, str):
            alone.append({key: text})
            continue
        if seen[key] == len(batches):
            batches.append({})
        batches[seen[key]][key] = text
        seen[key] += 1
    return [*batches, *alone]


def _results(done: Completed) -> list[dict[str, Any]]:
    try:
        return json.loads(done.stdout)["resources"] or []
    except (ValueError, KeyError):
        raise CommandError(done.args, done.exit_code, done.stdout + done.stderr, "printed no result") from None


def schemas_of(text: str, store: Store, node: Node | None = None) -> Iterator[tuple[ObjectKind, str]]:
    """Yield the kinds and schemas of a definition, from the store if they were made before.

    Args:
        text: the definition.
        store: where schemas are kept. A definition's are kept by its spec, so those of a file are those of what
            kustomize prints of it, unless it changed more than metadata.
        node: the same as yamlfile.compose returns it, where that was done already.
    """
    key = digest("crd", code_digest(), text[max(text.find("\nspec:\n"), 0) :])
    record = store.get("schemas", key)
    if record is None:
        try:
            definition = load_one(without_descriptions(text)) if node is None else to_plain(node)
            made = list(crd_schemas(definition))
        except (KeyError, TypeError, ValueError):
            # Not a definition that the API server would take: its own check says so.
            made = []
        record = [[k.group, k.version, k.kind, _as_json(s)] for k, s in made]
        store.put("schemas", key, record)
    for group, version, kind, schema in record:
        yield ObjectKind(group, version, kind), schema


def _core_schema(core: CoreSchemas, kind: ObjectKind, store: Store) -> str:
    """Return the schema of a kind of Kubernetes' own, from the store if it was made before; empty of another kind."""
    key = digest("core", code_digest(), str(core.folder), kind.file_name)
    text = store.get("schemas", key)
    if text is None:
        found = core.schema(kind)
        text = _as_json(found) if found is not None else ""
        store.put("schemas", key, text)
    return str(text)


def _as_json(schema: Any) -> str:
    return json.dumps(schema, separators=(",", ":"))


def _fields_of(resources: Iterable[Resource]) -> dict[ObjectKind, set[str]]:
    """Return the names of all fields, at any depth, that the objects of each kind have.

    Kinds that kubeconform takes for the same (`Deployment` and `deployment`) share a schema's file, so they share the names.
    """
    found: dict[ObjectKind, set[str]] = {}
    by_file: dict[str, set[str]] = {}
    for resource in resources:
        kind = ObjectKind.of(resource.api_version, resource.kind)
        names = found[kind] = by_file.setdefault(kind.file_name, set())
        pending: list[Any] = [resource.data]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                names.update(value)
                pending += value.values()
            elif isinstance(value, list):
                pending += value
    return found


def definition_texts(definitions: Definitions) -> Iterator[str]:
    """Yield the definitions from besides the tree."""
    for path in (*definitions.files, *_bundled()):
        for text in split(path.read_text().removeprefix("---\n")):
            if f"\nkind: {DEFINITION}\n" in f"\n{text}":
                yield text


def make_schemas(definitions: Definitions, store: Store) -> None:
    """Keep the schemas that are the same for every tree: Kubernetes' own, and those of the definitions from besides it."""
    for text in definition_texts(definitions):
        for _ in schemas_of(text, store):
            pass
    core = CoreSchemas(definitions.kubernetes)
    for kind in core.kinds():
        _core_schema(core, kind, store)


def _bundled() -> list[Path]:
    return [p for folder in BUNDLED_DEFINITIONS for p in sorted(folder.glob("*_*.yaml"))]


def _messages(text: str) -> list[_Message]:
    """Return each of the faults in kubeconform's one text, the innermost ones."""
    if "could not find schema" in text:
        return [_Message("", text, True)]
    by_pointer: dict[str, list[str]] = {}
    for match in _AT.finditer(text):
        message = " ".join(match["message"].split())
        if message in ("validation failed", "anyOf failed", "oneOf failed", "allOf failed"):
            continue
        by_pointer.setdefault(match["pointer"], []).append(message)
    found = []
    for pointer, several in by_pointer.items():
        unknown = [_UNKNOWN.search(m) for m in several]
        for match in filter(None, unknown):
            for name in re.findall(r"'([^']*)'", match["names"]):
                found.append(_Message(f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", "unknown field"))
        rest = [m for m, is_unknown in zip(several, unknown, strict=True) if not is_unknown]
        if rest:
            found.append(_Message(pointer, " or ".join(dict.fromkeys(rest))))
    return found or [_Message("", " ".join(text.split()))]


def _explained(message: _Message, resource: Resource) -> tuple[str, str, str]:
    """Return rule, message and how to mend it."""
    path = message.pointer.strip("/").replace("/", ".").replace("~1", "/").replace("~0", "~")
    if message.no_schema:
        what = f"there is no schema for {resource.kind} of {resource.api_version}"
        return "schema-missing", what, "mend kind or apiVersion, or add its CustomResourceDefinition to the tree"
    if message.text == "unknown field":
        return "unknown-field", f"there is no field {path}", "mend its name or indentation, or remove it"
    if message.pointer == "/kind":
        return "schema-missing", f"there is no kind {resource.kind}: {message.text}", "mend kind"
    if message.text.startswith("missing propert"):
        return "missing-field", f"{path or 'it'}: {message.text}", "add it"
    if message.text.startswith("got "):
        return "wrong-type", f"{path}: {message.text}", "write a value of the type that is wanted"
    if "missing 'apiVersion' key" in message.text or "missing 'kind' key" in message.text:
        return "object-incomplete", message.text, "add it"
    return "schema", f"{path}: {message.text}" if path else message.text, "write what the schema allows"


def _is_stand_in(resource: Resource, message: _Message) -> bool:
    """Whether a fault is about a value that isn't known here: encrypted, or a variable of a cluster's own."""
    value: object = resource.data
    for token in message.pointer.strip("/").split("/") if message.pointer.strip("/") else []:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return False
    return isinstance(value, str) and ("${" in value or value.startswith("ENC["))
