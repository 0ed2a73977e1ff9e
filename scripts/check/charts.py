"""Helm charts that are at hand: in the tree, in a folder that the user names, or in Helm's own cache. None is downloaded.

A chart is its files in memory, known by a digest of their contents: laid out for Helm only where something has to be
rendered. What it depends on must be at hand too: vendored in charts/, beside it in the tree (file://), or on a shelf.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from scripts.check import semver, yamlfile
from scripts.check.store import digest
from scripts.check.tree import FileKind, Tree, digest_of_entries, join

CHART_FILE = "Chart.yaml"
VALUES_FILE = "values.yaml"
# More than this is no chart: what Helm installs has to fit into a Secret.
MAX_CHART_BYTES = 64 * 1024**2
_ARCHIVE = re.compile(r"(?P<name>.+?)-(?P<version>v?[0-9]+\.[0-9]+\.[0-9]+.*)\.tgz")
_MAX_LINKS = 20

Files = Mapping[str, bytes]


class UnusableChartError(Exception):
    """A chart that can't be read; its text says why."""


@dataclass(frozen=True)
class Dependency:
    """What a chart names in its dependencies."""

    name: str
    version: str
    repository: str


@dataclass(frozen=True)
class Chart:
    """A chart at hand."""

    name: str
    version: str
    # Of all its contents.
    digest: str
    load: Callable[[], Files] = field(repr=False, compare=False)
    # Its folder in the tree; empty for one that comes from elsewhere.
    folder: str = ""

    @cached_property
    def files(self) -> Files:
        """Its files by their path within it."""
        return self.load()

    @property
    def label(self) -> str:
        """The chart as people name it."""
        return f"{self.name}-{self.version}"

    def lay_out(self, into: Path) -> Path:
        """Write it below a folder and return its own folder there."""
        top = into / (self.name or "chart")
        for name, content in self.files.items():
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return top

    def with_files(self, more: Mapping[str, bytes], *keys: str) -> Chart:
        """Return it with other files over its own; `keys` tell what they are."""
        files = {**self.files, **more}
        return replace(self, digest=digest(self.digest, keys), load=lambda: files) if more else self


def metadata_of(files: Files) -> Mapping[str, Any]:
    """Return what a chart's Chart.yaml says; raises UnusableChartError for one that can't be read."""
    try:
        found = yamlfile.load_one(files.get(CHART_FILE, b"").decode())
    except (UnicodeDecodeError, ValueError) as error:
        raise UnusableChartError(f"its {CHART_FILE} {error}") from None
    if not isinstance(found, Mapping) or not found.get("name"):
        raise UnusableChartError(f"its {CHART_FILE} names no chart")
    return found


def from_tree(tree: Tree, folder: str) -> Chart:
    """Return the chart in a folder of the tree; raises UnusableChartError for one that can't be read."""
    paths = dict(_files_below(tree, folder))
    entries = {tree.canonical(p): tree.entries[tree.canonical(p)] for p in paths.values()}

    def load() -> Files:
        return {name: tree.absolute(path).read_bytes() for name, path in paths.items()}

    if sum(e.size for e in entries.values()) > MAX_CHART_BYTES:
        raise UnusableChartError(f"its files take more than {MAX_CHART_BYTES >> 20} MB")
    content = digest(sorted(paths), digest_of_entries(entries, sorted(entries)))
    head = paths.get(CHART_FILE)
    metadata = metadata_of({CHART_FILE: tree.absolute(head).read_bytes()} if head else {})
    return Chart(str(metadata["name"]), str(metadata.get("version") or ""), content, load, folder)


def _files_below(tree: Tree, folder: str, within: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield the files of a chart, by their path within it; links are followed as far as they stay in the repository."""
    for path in tree.paths_below(folder):
        name = posixpath.normpath(posixpath.join(within, posixpath.relpath(path, folder or ".")))
        entry = tree.entries[path]
        if entry.kind is FileKind.FILE:
            yield name, path
        elif entry.kind is FileKind.FOLDER and entry.link and depth < _MAX_LINKS:
            yield from _files_below(tree, tree.canonical(path), name, depth + 1)


def from_archive(content: bytes, folder: str = "") -> Chart:
    """Return the chart in an archive; raises UnusableChartError for what is none."""
    files = _unpacked(content)
    metadata = metadata_of(files)
    name, version = str(metadata["name"]), str(metadata.get("version") or "")
    return Chart(name, version, hashlib.sha256(content).hexdigest(), lambda: files, folder)


def _unpacked(content: bytes) -> Files:
    files: dict[str, bytes] = {}
    left = MAX_CHART_BYTES
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                # Its first step is the chart's name, and nothing may lead out of it.
                name = posixpath.normpath(member.name).partition("/")[2]
                left -= member.size
                if left < 0:
                    raise UnusableChartError(f"it unpacks to more than {MAX_CHART_BYTES >> 20} MB")
                opened = (
                    archive.extractfile(member) if member.isfile() and name and ".." not in name.split("/") else None
                )
                if opened:
                    files[name] = opened.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UnusableChartError(f"it is no chart archive: {error}") from None
    return files


def _from_folder(folder: Path) -> Chart:
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    if sum(p.stat().st_size for p in files.values()) > MAX_CHART_BYTES:
        raise UnusableChartError(f"its files take more than {MAX_CHART_BYTES >> 20} MB")
    contents = {name: path.read_bytes() for name, path in files.items()}
    metadata = metadata_of(contents)
    content = digest({name: hashlib.sha256(c).hexdigest() for name, c in contents.items()})
    return Chart(str(metadata["name"]), str(metadata.get("version") or ""), content, lambda: contents)


class Shelves:
    """Folders outside the tree that hold charts: `<name>-<version>.tgz`, or a folder per chart.

    A folder of a shelf that is named after a HelmRepository is looked into first: two publishers may use one name.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self.folders = tuple(folders)

    def find(self, name: str, wanted: str, repository: str = "") -> Chart | None:
        """Return the highest version of a chart that a range takes; None if there is none."""
        for within in dict.fromkeys((repository, "")):
            versions: dict[str, Path] = {}
            for folder in self.folders:
                for version, path in _candidates(folder / within if within else folder, name):
                    versions.setdefault(version, path)
            while versions:
                highest = semver.best(versions, wanted)
                if highest is None:
                    break
                path = versions.pop(highest)
                try:
                    chart = _from_folder(path) if path.is_dir() else from_archive(path.read_bytes())
                except (OSError, UnusableChartError):
                    continue
                # A name may lie.
                if chart.name == name and semver.parse(chart.version) == semver.parse(highest):
                    return chart
        return None

    def versions(self, name: str, repository: str = "") -> list[str]:
        """Return the versions of a chart that are at hand."""
        found = {v for f in self.folders for w in {repository, ""} for v, _ in _candidates(f / w if w else f, name)}
        return sorted(found, key=lambda v: (semver.parse(v) or semver.Version((0, 0, 0)), v))


def _candidates(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    if not name or "/" in name:
        return
    for path in sorted(folder.glob(f"{glob_escaped(name)}*")):
        match = _ARCHIVE.fullmatch(path.name)
        if path.is_dir() and (path / CHART_FILE).is_file():
            try:
                metadata = metadata_of({CHART_FILE: (path / CHART_FILE).read_bytes()})
            except (OSError, UnusableChartError):
                continue
            if metadata["name"] == name:
                yield str(metadata.get("version") or ""), path
        elif match and path.name.startswith(f"{name}-"):
            version = path.name.removeprefix(f"{name}-").removesuffix(".tgz")
            if semver.parse(version):
                yield version, path


def glob_escaped(text: str) -> str:
    """Return a text that a pattern takes for nothing but itself."""
    return re.sub(r"[*?\[]", r"[\g<0>]", text)


def dependencies_of(files: Files) -> list[Dependency]:
    """Return what a chart depends on, as its Chart.yaml has it (requirements.yaml, in charts of Helm 2)."""
    listed = metadata_of(files).get("dependencies")
    if not listed and "requirements.yaml" in files:
        try:
            older = yamlfile.load_one(files["requirements.yaml"].decode())
        except (UnicodeDecodeError, ValueError) as error:
            raise UnusableChartError(f"its requirements.yaml {error}") from None
        listed = older.get("dependencies") if isinstance(older, Mapping) else None
    return [
        Dependency(str(d["name"]), str(d.get("version") or ""), str(d.get("repository") or ""))
        for d in (listed if isinstance(listed, list) else [])
        if isinstance(d, Mapping) and d.get("name")
    ]


def completed(chart: Chart, tree: Tree, shelves: Shelves, depth: int = 0) -> tuple[Chart, list[str]]:
    """Return a chart with all it depends on, and the names of what is not at hand."""
    more: dict[str, bytes] = {}
    keys: list[str] = []
    missing: list[str] = []
    vendored = set(_vendored(chart.files))
    for dependency in dependencies_of(chart.files):
        if dependency.name in vendored:
            continue
        found = _beside(chart, dependency, tree) or shelves.find(dependency.name, dependency.version)
        if found is None or depth > _MAX_LINKS:
            missing.append(f"{dependency.name} {dependency.version}".strip())
            continue
        whole, lacking = completed(found, tree, shelves, depth + 1)
        missing += lacking
        more |= {f"charts/{found.name}/{name}": content for name, content in whole.files.items()}
        keys.append(whole.digest)
    return chart.with_files(more, *keys), missing


def _vendored(files: Files) -> Iterator[str]:
    for name, content in files.items():
        parts = name.split("/")
        if parts[0] != "charts":
            continue
        if len(parts) == 2 and (match := _ARCHIVE.fullmatch(parts[1])):
            yield match["name"]
        elif len(parts) == 3 and parts[2] == CHART_FILE:
            yield str(metadata_of({CHART_FILE: content})["name"])


def _beside(chart: Chart, dependency: Dependency, tree: Tree) -> Chart | None:
    """Return a dependency that lies in the tree."""
    if not chart.folder or not dependency.repository.startswith("file://"):
        return None
    folder = tree.canonical(join(chart.folder, dependency.repository.removeprefix("file://")))
    found = from_tree(tree, folder) if tree.is_file(join(folder, CHART_FILE)) else None
    fits = found is not None and (not dependency.version or semver.satisfies(found.version, dependency.version))
    return found if fits else None
