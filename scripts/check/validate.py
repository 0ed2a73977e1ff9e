"""Every rendered object against its schema: kubeconform, strict, with schemas on disk only.

A schema is Kubernetes' own of the pinned version, that of a CRD which the tree itself renders, Flux's, or one of the
bundled definitions below. A kind that none of them knows is a finding.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.check.build import GO_ENV, Rendering
from scripts.check.graph import Graph
from scripts.check.locate import line_of_field
from scripts.check.model import Finding, Resource, Severity, Stage
from scripts.check.origin import split
from scripts.check.store import Store, code_digest, digest, digest_of_text, identity_of
from scripts.check.yamlfile import load_one
from scripts.process import CommandError, run
from scripts.schemas import TEMPLATE, CoreSchemas, ObjectKind, crd_schemas, defined_kind, without_descriptions
from scripts.settings import FLUX_CD

KUBECONFORM_TIMEOUT_S = 120
# Definitions of operators that trees use without defining their kinds: folders of CRD files.
BUNDLED_DEFINITIONS = (FLUX_CD / "infrastructure" / "_components" / "_prometheus-stack" / "crds",)
_DEFINITION = "CustomResourceDefinition"
_AT = re.compile(r"- at '(?P<pointer>[^']*)': (?P<message>.*?)(?=\s+- at '|$)", re.DOTALL)
_UNKNOWN = re.compile(r"additional propert(?:y|ies) (?P<names>.*) not allowed")


@dataclass(frozen=True)
class Definitions:
    """Where schemas come from besides the tree."""

    kubernetes: str
    # Files with CRDs: Flux's own.
    files: tuple[Path, ...] = ()


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

    def validate(self, renderings: Sequence[Rendering], elsewhere: bool = False) -> list[Finding]:
        """Return what is wrong with the objects of some renderings; `elsewhere` if what is applied is not all in the tree."""
        tree_definitions = {t for r in renderings for t in r.texts if f"kind: {_DEFINITION}\n" in t}
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
        if missing:
            known = {key: known[key] for key in keys.values() if key in known}
            known |= {keys[text]: found for text, found in self._run(missing, tree_definitions, known, keys).items()}
            record = {key: [(m.pointer, m.text, m.no_schema) for m in found] for key, found in known.items()}
            self.store.put("schema", sources, record)
        self.store.drop_old("schema", [sources])
        doubts = _Elsewhere.of(renderings, elsewhere)
        return [
            finding
            for rendering in renderings
            for finding in self._findings(rendering, {t: known[keys[t]] for t in rendering.texts}, doubts)
        ]

    def _run(
        self,
        renderings: Iterable[Rendering],
        definitions: Iterable[str],
        known: Mapping[str, object],
        keys: Mapping[str, str],
    ) -> dict[str, list[_Message]]:
        """Return kubeconform's messages by the texts of objects that are not known yet."""
        objects: dict[str, ObjectKind] = {}
        found: dict[str, list[_Message]] = {}
        for rendering in renderings:
            for text, resource in zip(rendering.texts, rendering.resources, strict=True):
                if keys[text] in known:
                    continue
                found[text] = []
                # A CRD describes itself; the API server is the judge of it (see the dry run).
                if resource.kind != _DEFINITION:
                    objects[text] = ObjectKind.of(resource.api_version, resource.kind)
        if not objects:
            return found
        texts = list(objects)
        with tempfile.TemporaryDirectory(prefix="gitops-lab-schema-") as folder:
            schemas, files = Path(folder) / "schemas", Path(folder) / "objects"
            schemas.mkdir()
            files.mkdir()
            self._write_schemas(schemas, set(objects.values()), definitions)
            for index, text in enumerate(texts):
                (files / f"{index}.yaml").write_text(text)
            done = run(
                [self.kubeconform, "-strict", "-output", "json", "-schema-location", f"{schemas}/{TEMPLATE}", files],
                timeout_s=KUBECONFORM_TIMEOUT_S,
                check=False,
                env=GO_ENV,
            )
        try:
            results = json.loads(done.stdout)["resources"] or []
        except (ValueError, KeyError):
            raise CommandError(done.args, done.exit_code, done.stdout + done.stderr, "printed no result") from None
        for result in results:
            text = texts[int(Path(result["filename"]).stem)]
            found[text].extend(_messages(str(result.get("msg") or result.get("status"))))
        return found

    def _write_schemas(self, folder: Path, kinds: set[ObjectKind], definitions: Iterable[str]) -> None:
        core = CoreSchemas(self.definitions.kubernetes)
        wanted = {(k.group, k.kind) for k in kinds}
        written: set[ObjectKind] = set()
        for text in self._definition_texts(definitions):
            about = defined_kind(text)
            if about is not None and about not in wanted:
                continue
            for kind, schema in self._schemas_of(text):
                if kind in kinds and kind not in written:
                    written.add(kind)
                    (folder / kind.file_name).write_text(schema)
        for kind in kinds - written:
            key = digest("core", code_digest(), self.definitions.kubernetes, str(core.folder), kind.file_name)
            schema_text = self.schemas.get("schemas", key)
            if schema_text is None:
                found = core.schema(kind)
                schema_text = json.dumps(found, separators=(",", ":")) if found is not None else ""
                self.schemas.put("schemas", key, schema_text)
            if schema_text:
                (folder / kind.file_name).write_text(schema_text)

    def _schemas_of(self, text: str) -> Iterator[tuple[ObjectKind, str]]:
        key = digest("crd", code_digest(), text)
        record = self.schemas.get("schemas", key)
        if record is None:
            try:
                made = list(crd_schemas(load_one(without_descriptions(text))))
            except (KeyError, TypeError, ValueError):
                # Not a definition that the API server would take: its own check says so.
                made = []
            record = [[k.group, k.version, k.kind, json.dumps(s, separators=(",", ":"))] for k, s in made]
            self.schemas.put("schemas", key, record)
        for group, version, kind, schema in record:
            yield ObjectKind(group, version, kind), schema

    def _definition_texts(self, of_tree: Iterable[str]) -> Iterator[str]:
        yield from of_tree
        for path in (*self.definitions.files, *_bundled()):
            for text in split(path.read_text().removeprefix("---\n")):
                if f"\nkind: {_DEFINITION}\n" in f"\n{text}":
                    yield text

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
