"""The words that the checks of manifests share: findings, rendered objects, what was rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class Stage(Enum):
    """The part of the check that a finding comes from, in the order in which they run."""

    STRUCTURE = "structure"
    BUILD = "build"
    SCHEMA = "schema"
    LINT = "lint"
    DRY_RUN = "dry-run"


class Severity(Enum):
    """An error fails the check; a warning is shown and does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Place:
    """Where something stands: a file relative to the tree's root, and its line from 1 (0: the file as a whole)."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """What is wrong with how a file is written, apart from what it says."""

    rule: str
    message: str
    mend: str
    line: int = 0


@dataclass(frozen=True)
class Finding:
    """Something wrong with the manifests: which rule, where, what, and how to mend it."""

    stage: Stage
    rule: str
    message: str
    mend: str
    place: Place
    # `Kind namespace/name`, or empty where the finding is about a file.
    subject: str = ""
    # The folder, relative to the root, of the kustomization that was being looked at; empty for the tree as a whole.
    kustomization: str = ""
    severity: Severity = Severity.ERROR
    # The field of a rendered object that it is about, until somebody has looked up its line.
    pointer: str = ""


@dataclass(frozen=True)
class Resource:
    """One rendered object, and the place in the tree where it was written (not where a patch changed it)."""

    data: Mapping[str, Any]
    place: Place
    # The file of a chart that Helm rendered it from, as Helm names it; empty for what kustomize rendered.
    template: str = ""

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.data.get("kind", ""))

    @property
    def api_version(self) -> str:
        """The object's group and version."""
        return str(self.data.get("apiVersion", ""))

    @property
    def name(self) -> str:
        """The object's name."""
        return str((self.data.get("metadata") or {}).get("name", ""))

    @property
    def namespace(self) -> str:
        """The object's namespace, or empty."""
        return str((self.data.get("metadata") or {}).get("namespace") or "")

    @property
    def subject(self) -> str:
        """The object as findings name it: `Kind namespace/name`."""
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"


def release_folder(folder: str, names: tuple[str, ...], subject: str) -> str:
    """Return what stands for a kustomization's folder where a HelmRelease in it was rendered."""
    by = f" ({', '.join(names)})" if names and names != (folder.rpartition("/")[2],) else ""
    return f"{folder or '.'}{by}: {subject}"


@dataclass(frozen=True)
class Rendered:
    """What one kustomization renders to, as Flux would apply it; or one HelmRelease, as Helm would."""

    # The kustomization's folder, relative to the tree's root; what release_folder returns for a HelmRelease.
    kustomization: str
    resources: tuple[Resource, ...]
    # The YAML stream, byte for byte the same for the same tree.
    text: str
    seconds: float = 0.0
    # The Flux Kustomizations that apply this folder, by name; empty for one that only others include.
    flux_kustomizations: tuple[str, ...] = ()
    # The annotations of the HelmRelease that it is what Helm renders of, and that there is one.
    release_annotations: Mapping[str, Any] | None = None
    # Whether the chart of that HelmRelease is in the tree, and so the same for whoever checks.
    own_chart: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the summary: a kustomization and what became of it."""

    kustomization: str
    # The Flux Kustomizations that apply it.
    flux: tuple[str, ...] = ()
    # Of what it is a part, where it is not built by itself; why it could not be built, where it could not; its chart.
    note: str = ""
    resources: int = 0
    seconds: float = 0.0
    built: bool = False
    # Whether it is a HelmRelease.
    release: bool = False


@dataclass(frozen=True)
class Report:
    """All that one run of the check found."""

    root: Path
    rendered: tuple[Rendered, ...] = ()
    findings: tuple[Finding, ...] = ()
    # Seconds by stage.
    seconds: Mapping[Stage, float] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    # Seconds of the whole run, and whether everything in it was known from an earlier one.
    total_s: float = 0.0
    from_cache: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is an error."""
        return all(f.severity is not Severity.ERROR for f in self.findings)


@dataclass
class Structure:
    """What a look at the files found."""

    findings: list[Finding] = field(default_factory=list)
    # Files and folders that no build can use: what includes them is not built.
    broken: set[str] = field(default_factory=set)

    def add(
        self,
        rule: str,
        message: str,
        mend: str,
        place: Place,
        kustomization: str = "",
        severity: Severity = Severity.ERROR,
        subject: str = "",
    ) -> None:
        """Add a finding; an error makes its file useless to builds."""
        self.findings.append(Finding(Stage.STRUCTURE, rule, message, mend, place, subject, kustomization, severity))
        if severity is Severity.ERROR:
            self.broken.add(place.file)
