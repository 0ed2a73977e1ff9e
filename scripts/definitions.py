"""`make definitions`: the CustomResourceDefinitions under flux-cd/, which are upstream's without their schemas' descriptions.

Beside each folder of them an upstream.yaml names the Go module and the file in it that each is made from, and two sums:
of upstream's file and of the one here. For another release, change the `module` lines there and run the command again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache as remembered
from pathlib import Path

import yaml

from scripts import console
from scripts.cache import Cache, lock, write_atomically
from scripts.errors import LabError
from scripts.gobuild import module_dir
from scripts.settings import FLUX_CD, ROOT, Settings
from scripts.sourcebuild import drop_build_caches
from scripts.toolchain import ensure_go
from scripts.versions import Versions

UPSTREAM = "upstream.yaml"
_UPSTREAM_HEADER = (
    "# Where each file comes from: change a module's version and run `make definitions`, which writes files and sums\n"
    "# (SHA-256 of the whole file, upstream's and the one here). A test holds them together.\n"
)
# Where a schema (JSONSchemaProps of apiextensions.k8s.io/v1) holds others: directly or in a list, and by free names.
_SCHEMAS = frozenset({"items", "additionalItems", "additionalProperties", "allOf", "anyOf", "oneOf", "not"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "definitions", "dependencies"})
# Where upstream's generators fold long lines: so a file here is upstream's with lines left out, and no line is another.
_WIDTH = 80


@dataclass(frozen=True)
class Source:
    """What a definition is made from: a file of a Go module (`path@version`), and the SHA-256 of that and of ours."""

    module: str
    path: str
    sha256_upstream: str = ""
    sha256_here: str = ""

    @property
    def header(self) -> str:
        """The first line of the definition."""
        return f"# From Go module {self.module}: {self.path}; schemas' descriptions left out by `make definitions`.\n"


def folders(root: Path = FLUX_CD) -> list[Path]:
    """Return the folders whose definitions are made from upstream's."""
    return sorted(path.parent for path in root.rglob(UPSTREAM))


def sources(folder: Path) -> dict[str, Source]:
    """Return what a folder's definitions are made from, by file name; raises LabError for a record that is damaged."""
    record = folder / UPSTREAM
    try:
        files = yaml.load(record.read_text(encoding="utf-8"), yaml.CSafeLoader)["files"]
        return {str(name): Source(**entry) for name, entry in files.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise LabError(
            f"{_shown(record)} can't be read.",
            f"give each file `module` (path@version) and `path`, or restore it: git checkout -- {_shown(record)}",
            f"    {error}",
        ) from None


def renew(settings: Settings, versions: Versions) -> list[str]:
    """Write all definitions and their records anew from upstream's, and return what changed, one line a file."""
    cache = Cache(settings.cache_dir)
    with lock(cache.root / "locks" / "source-build.lock", "building the tools and images from source"):
        go = ensure_go(cache, versions.go.version, versions.go.bootstrap)

        @remembered
        def unpacked(module: str) -> Path:
            console.note(f"reading {module}")
            return module_dir(go, module)

        # All of them before the first is written: a module out of reach leaves everything as it was.
        texts = {path: text for folder in folders() for path, text in derived(folder, unpacked).items()}
        drop_build_caches(cache)
    return [_shown(path) for path in write(texts)]


def derived(folder: Path, unpacked: Callable[[str], Path]) -> dict[Path, str]:
    """Return a folder's definitions and its record as upstream's files have them; `unpacked` is where a module lies."""
    texts: dict[Path, str] = {}
    records: dict[str, Source] = {}
    for name, source in sources(folder).items():
        file = folder / name
        raw = _read(file, source, unpacked(source.module))
        try:
            text = source.header + stripped(raw.decode())
        except (ValueError, yaml.YAMLError) as error:
            raise LabError(
                f"{source.path} of {source.module} is not one CustomResourceDefinition.",
                f"correct the path of {name} in {_shown(folder / UPSTREAM)}",
                f"    {error}",
            ) from None
        texts[file] = text
        records[name] = Source(source.module, source.path, sha256(raw), sha256(text.encode()))
    return texts | {folder / UPSTREAM: _record(records)}


def write(texts: Mapping[Path, str]) -> list[Path]:
    """Write the files that differ, and return them."""
    changed = [path for path, text in texts.items() if not path.exists() or path.read_bytes() != text.encode()]
    for path in changed:
        write_atomically(path, texts[path])
    return changed


def stripped(definition: str) -> str:
    """Return a definition's YAML without its schemas' descriptions; raises ValueError for what isn't a definition.

    What else is called so stays: properties of that name, defaults, and the texts of printer columns, which `kubectl get`
    is sent with its tables. Nodes are left out, not values read and written: a number keeps upstream's spelling.
    """
    root = yaml.compose(definition, Loader=yaml.CSafeLoader)
    for version in _field(_field(root, "spec"), "versions").value:
        _strip(_field(_field(version, "schema"), "openAPIV3Schema"))
    text: str = yaml.serialize(root, Dumper=yaml.CSafeDumper, width=_WIDTH, allow_unicode=True)
    return text


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's content, as upstream.yaml has it."""
    return hashlib.sha256(content).hexdigest()


def _read(file: Path, source: Source, module: Path) -> bytes:
    try:
        raw = (module / source.path).read_bytes()
    except OSError as error:
        raise LabError(
            f"{source.module} has no file {source.path} ({error.strerror}).",
            f"correct the path of {file.name} in {_shown(file.parent / UPSTREAM)}",
        ) from None
    found, known = sha256(raw), source.sha256_upstream
    # The file's first line still tells which version the recorded sum is of.
    if known and known != found and file.exists() and file.read_text().startswith(source.header):
        raise LabError(
            f"{source.path} changed under an unchanged version of {source.module}.",
            f"find out why before trusting it; to take it, remove its sha256_upstream from {_shown(file.parent / UPSTREAM)}",
            f"    recorded: {known}\n    seen now: {found}",
        )
    return raw


def _record(records: Mapping[str, Source]) -> str:
    data = {"files": {name: asdict(source) for name, source in records.items()}}
    body: str = yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False, width=1000)
    return _UPSTREAM_HEADER + body


def _strip(schema: yaml.Node) -> None:
    """Leave descriptions out of a schema, of each in a list, and of all within; other nodes (`true`, names) stay."""
    if isinstance(schema, yaml.SequenceNode):
        for item in schema.value:
            _strip(item)
    elif isinstance(schema, yaml.MappingNode):
        schema.value = [(key, value) for key, value in schema.value if key.value != "description"]
        for key, value in schema.value:
            if key.value in _SCHEMAS:
                _strip(value)
            elif key.value in _NAMED_SCHEMAS:
                for _, named in value.value:
                    _strip(named)


def _field(node: yaml.Node | None, name: str) -> yaml.Node:
    found: list[yaml.Node] = [v for k, v in node.value if k.value == name] if isinstance(node, yaml.MappingNode) else []
    if not found:
        raise ValueError(f"`{name}` is missing")
    return found[0]


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
