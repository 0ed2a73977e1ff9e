"""The pinned versions: versions.yaml as frozen dataclasses, refused with file and key when something is off.

For one version: `load().tools["kubectl"].version`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

try:  # libyaml reads this file in 4 ms instead of 60
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

from scripts.errors import LabError
from scripts.settings import ROOT

VERSIONS_FILE = ROOT / "versions.yaml"
PLATFORMS = ("linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA512 = re.compile(r"[0-9a-f]{128}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_EMPTY: Mapping[str, str] = types.MappingProxyType({})


@dataclass(frozen=True)
class Go:
    """The Go toolchain, and the Python package that brings a first Go."""

    version: str
    bootstrap: str


@dataclass(frozen=True)
class GoModule:
    """One thing that source mode builds from Go modules: what it requires and the binaries that come of it.

    `lock` names the wrapper module (kind/source/<lock>) of those that share one, so that what they have in common is
    compiled once; without it the wrapper is the module's own. `on_demand` names the command that brings what setup
    does without.
    """

    binaries: Mapping[str, str]
    packages: tuple[str, ...] = ()
    module: str = ""
    staging: str = ""
    replace: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    stamps: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    tags: tuple[str, ...] = ()
    lock: str = ""
    on_demand: str = ""

    def __post_init__(self) -> None:
        if bool(self.packages) == bool(self.module):
            raise ValueError("needs either `packages` or `module`")
        for entry in (*self.packages, *filter(None, [self.module])):
            _require_version(entry, "@")


@dataclass(frozen=True)
class FluxCli:
    """The module that Flux's command-line tool is built in."""

    module: str

    def __post_init__(self) -> None:
        _require_version(self.module, "@")


@dataclass(frozen=True)
class Alertmanager:
    """The module that Alertmanager is built in."""

    module: str

    def __post_init__(self) -> None:
        _require_version(self.module, "@")


@dataclass(frozen=True)
class PrometheusUi:
    """The module that holds Prometheus's user interface, and the packages that build it."""

    module: str
    pnpm: str
    node: str

    def __post_init__(self) -> None:
        _require_version(self.module, "@")
        _require_version(self.pnpm, "@")
        _require_version(self.node, "==")


@dataclass(frozen=True)
class EnvoyWheel:
    """The Python package that brings Envoy's release binary."""

    package: str
    version: str

    def __post_init__(self) -> None:
        _require_version(self.package, "==")


@dataclass(frozen=True)
class Tool:
    """A release binary: where it is published for a platform, and its SHA-256 (of the file as published).

    Where the publisher gives a SHA-512 instead, that is pinned. `also` are other programs of the same archive.
    """

    version: str
    url: str
    checksums: str = ""
    member: str = ""
    sha256: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    sha512: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    also: Mapping[str, str] = field(default_factory=lambda: _EMPTY)

    def __post_init__(self) -> None:
        for name, sums, pattern, digits in (
            ("sha256", self.sha256, _SHA256, 64),
            ("sha512", self.sha512, _SHA512, 128),
        ):
            for platform, digest in sums.items():
                if platform not in PLATFORMS:
                    raise ValueError(f"{name}: {platform} is no platform; known are {', '.join(PLATFORMS)}")
                if not pattern.fullmatch(digest):
                    raise ValueError(f"{name}: {platform}: {digest} is not {digits} hexadecimal digits")
        if self.also and not self.member:
            raise ValueError("`also` names programs of an archive, so `member` has to name one too")
        missing = [p for p in PLATFORMS if not self.pinned(p)]
        if missing and not self.checksums:
            raise ValueError(f"has no sha256 for {', '.join(missing)} and no `checksums` to verify by")
        for template in (self.url, self.checksums, self.member, *self.also.values()):
            try:
                self._fill(template, PLATFORMS[0])
            except (KeyError, IndexError, ValueError):
                raise ValueError(
                    f"{template}: only {{version}}, {{number}}, {{os}} and {{arch}} can stand in it"
                ) from None

    def pinned(self, platform: str) -> str:
        """Return the digest that is pinned for a platform, or nothing."""
        return self.sha256.get(platform) or self.sha512.get(platform, "")

    def url_for(self, platform: str) -> str:
        """Return the address of the release file for a platform (`os/arch`)."""
        return self._fill(self.url, platform)

    def checksums_url_for(self, platform: str) -> str:
        """Return the address of the publisher's own checksum file, or nothing."""
        return self._fill(self.checksums, platform)

    def programs(self, name: str, platform: str) -> dict[str, str]:
        """Return what the file brings: names in the tools folder, and what each is called in the archive."""
        return {program: self._fill(member, platform) for program, member in {name: self.member, **self.also}.items()}

    def _fill(self, template: str, platform: str) -> str:
        system, _, machine = platform.partition("/")
        return template.format(version=self.version, number=self.version.removeprefix("v"), os=system, arch=machine)


@dataclass(frozen=True)
class Image:
    """A container image: by tag and index digest, or by tag alone, which is locked on first use.

    `on_demand` names the command that brings what setup does without.
    """

    image: str
    tag: str
    digest: str = ""
    on_demand: str = ""

    def __post_init__(self) -> None:
        if self.digest and not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"digest: {self.digest} is not `sha256:` and 64 hexadecimal digits")
        if "@" in self.image or ":" in self.image.rpartition("/")[2]:
            raise ValueError(f"image: {self.image} must be a name only; tag and digest have keys of their own")

    @property
    def tagged(self) -> str:
        """The name with the tag, as manifests and people write it."""
        return f"{self.image}:{self.tag}"

    @property
    def reference(self) -> str:
        """The name to pull by: with the digest where it is pinned."""
        return f"{self.tagged}@{self.digest}" if self.digest else self.tagged


@dataclass(frozen=True)
class Versions:
    """All of versions.yaml."""

    kubernetes: str
    flux: str
    python_in_image: str
    go: Go
    debian: str
    modules: Mapping[str, GoModule]
    flux_cli: FluxCli
    alertmanager: Alertmanager
    prometheus_ui: PrometheusUi
    envoy_wheel: EnvoyWheel
    tools: Mapping[str, Tool]
    images: Mapping[str, Image]
    charts: Mapping[str, Image]

    @property
    def artifacts(self) -> dict[str, Image]:
        """All that comes from a registry: images, and the charts that lie beside them."""
        return {**self.images, **self.charts}

    def held_to(self, digest: Callable[[Image], str]) -> Versions:
        """Return the same with another digest for each image and chart."""
        return dataclasses.replace(
            self,
            images={name: dataclasses.replace(i, digest=digest(i)) for name, i in self.images.items()},
            charts={name: dataclasses.replace(c, digest=digest(c)) for name, c in self.charts.items()},
        )


@cache
def load(path: Path = VERSIONS_FILE) -> Versions:
    """Return the pinned versions; raises LabError naming file and key for a missing, misspelt or malformed one."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise LabError(f"{path.name} is not there.", f"git checkout -- {path.name}") from None
    except yaml.YAMLError as error:
        raise LabError(f"{path.name} is not valid YAML.", "mend the line named above", str(error)) from None
    versions = _Reader(path.name).read(Versions, data, "")
    assert isinstance(versions, Versions)
    return versions


class _UniqueKeyLoader(SafeLoader):
    """YAML lets a later key silently win over an earlier one; a pin written twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Reader:
    """Turns plain data into the dataclasses by their type hints; every complaint names file and key."""

    def __init__(self, file: str) -> None:
        self._file = file

    def read(self, kind: Any, data: object, key: str) -> Any:
        origin = typing.get_origin(kind)
        if dataclasses.is_dataclass(kind):
            return self._dataclass(kind, data, key)
        if origin is tuple:
            if not isinstance(data, list):
                raise self._error(key, f"must be a list, not {data!r}")
            (item, _) = typing.get_args(kind)
            return tuple(self.read(item, value, f"{key}[{index}]") for index, value in enumerate(data))
        if origin is Mapping:
            (_, item) = typing.get_args(kind)
            pairs = self._mapping(data, key)
            return types.MappingProxyType({k: self.read(item, v, _join(key, k)) for k, v in pairs.items()})
        if not isinstance(data, str) or not data:
            hint = f'; write it in quotes: "{data}"' if isinstance(data, int | float) else ""
            raise self._error(key, f"must be text, not {data!r}{hint}")
        return data

    def _dataclass(self, kind: Any, data: object, key: str) -> object:
        pairs = self._mapping(data, key)
        hints = typing.get_type_hints(kind)
        for name in pairs:
            if name not in hints:
                close = difflib.get_close_matches(name, list(hints), n=1)
                guess = f"; did you mean `{close[0]}`?" if close else f"; known are {', '.join(hints)}"
                raise self._error(_join(key, name), f"is not a key of this file{guess}")
        for name_field in dataclasses.fields(kind):
            required = name_field.default is dataclasses.MISSING and name_field.default_factory is dataclasses.MISSING
            if required and name_field.name not in pairs:
                raise self._error(_join(key, name_field.name), "is missing")
        values = {name: self.read(hints[name], value, _join(key, name)) for name, value in pairs.items()}
        try:
            built: object = kind(**values)
        except ValueError as error:
            raise self._error(key, str(error)) from None
        return built

    def _mapping(self, data: object, key: str) -> dict[str, object]:
        if not isinstance(data, dict):
            raise self._error(key, f"must be a mapping, not {data!r}")
        for name in data:
            if not isinstance(name, str):
                raise self._error(_join(key, str(name)), f'must have text as its key; write it in quotes: "{name}"')
        return data

    def _error(self, key: str, why: str) -> LabError:
        return LabError(f"{self._file}: {key or 'the file'}: {why}", f"mend that key in {self._file}")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _require_version(entry: str, separator: str) -> None:
    name, found, version = entry.partition(separator)
    if not (name and found and version):
        raise ValueError(f"{entry} names no version (name{separator}version)")
