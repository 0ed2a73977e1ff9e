"""Which chart a HelmRelease means, and whether it is at hand.

A chart that Flux takes from a Git repository or a bucket is a path of the tree, if the source is the tree's own. One of a
HelmRepository or an OCIRepository is looked for on the shelves (charts.py), by name and version.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.check import semver
from scripts.check.charts import (
    CHART_FILE,
    VALUES_FILE,
    Chart,
    Shelves,
    UnusableChartError,
    completed,
    from_archive,
    from_tree,
)
from scripts.check.fluxobjects import DEFAULT_NAMESPACE, FluxObject
from scripts.check.helmvalues import WrongValuesError, merged, read_values
from scripts.check.store import digest_of_text
from scripts.check.tree import Tree, join

Source = tuple[str, str, str]
_IN_FILES = ("GitRepository", "Bucket")


@dataclass
class NotAtHandError(Exception):
    """A chart that can't be had here: why, and what brings it."""

    why: str
    mend: str


@dataclass
class WrongChartError(Exception):
    """A chart that Flux couldn't have either."""

    rule: str
    message: str
    mend: str
    pointer: str


@dataclass(frozen=True)
class Finder:
    """Finds charts for the HelmReleases of a tree."""

    tree: Tree
    shelves: Shelves
    objects: Sequence[FluxObject]
    # Whether a source holds something else than this tree, and whether it is the tree's own for sure.
    is_elsewhere: Callable[[Source], bool]
    is_own: Callable[[Source], bool]
    # Whether something was looked for outside the tree: then what lies there counts too.
    looked: list[str] = field(default_factory=list)

    def chart_of(self, release: FluxObject) -> Chart:
        """Return a HelmRelease's chart with all it depends on.

        Raises:
            NotAtHandError, WrongChartError, WrongValuesError
        """
        reference = release.spec.get("chartRef")
        inner = release.spec.get("chart")
        template = inner.get("spec") if isinstance(inner, Mapping) else None
        pointer, namespace = "/spec/chart/spec", release.namespace
        if isinstance(reference, Mapping):
            kind, pointer = str(reference.get("kind", "")), "/spec/chartRef"
            key = (kind, str(reference.get("namespace") or namespace), str(reference.get("name", "")))
            source = self._object(key, release)
            if kind == "OCIRepository":
                return self._whole(self._of_oci(key, source), pointer)
            if kind != "HelmChart" or source is None:
                raise _elsewhere(key)
            template, namespace = source.spec, source.namespace
        if not isinstance(template, Mapping) or not template.get("chart"):
            raise WrongChartError("helm-chart-missing", "names no chart", "write spec.chart or spec.chartRef", "/spec")
        return self._of_template(template, namespace, release, pointer)

    def _of_template(self, template: Mapping[str, Any], namespace: str, release: FluxObject, pointer: str) -> Chart:
        sought = template.get("sourceRef")
        reference: Mapping[str, Any] = sought if isinstance(sought, Mapping) else {}
        key = (
            str(reference.get("kind", "")),
            str(reference.get("namespace") or namespace),
            str(reference.get("name", "")),
        )
        name, wanted = str(template["chart"]), str(template.get("version") or "*")
        if key[0] in _IN_FILES:
            chart = self._in_tree(key, name, pointer)
        elif key[0] == "HelmRepository":
            chart = self._on_shelf(name, wanted, key[2], self._object(key, release))
        else:
            raise _elsewhere(key)
        return self._with_values_files(self._whole(chart, pointer), template, key[0] in _IN_FILES, pointer)

    def _object(self, key: Source, near: FluxObject) -> FluxObject | None:
        """Return an object of Flux's, that of the same cluster first."""
        found = [o for o in self.objects if (o.kind, o.namespace, o.name) == key]
        return max(found, key=lambda o: o.scope == near.scope, default=None)

    def _in_tree(self, key: Source, path: str, pointer: str) -> Chart:
        if self.is_elsewhere(key):
            raise NotAtHandError(
                f"its chart {path} lies in {key[0]} {key[2]}, which is not this tree",
                "check it where that source's files are",
            )
        try:
            for candidate in self._at(path):
                if self.tree.is_file(join(candidate, CHART_FILE)):
                    return from_tree(self.tree, candidate)
                if self.tree.is_file(candidate) and candidate.endswith(".tgz"):
                    return from_archive(self.tree.absolute(candidate).read_bytes())
        except UnusableChartError as error:
            raise WrongChartError(
                "helm-chart-broken", f"its chart {path} can't be used: {error}", "mend it", pointer
            ) from None
        if not self.is_own(key):
            raise _elsewhere(key, path)
        message = f"its chart {path} does not exist in the tree"
        mend = "mend the path: it starts at the root of the source; or add the chart"
        raise WrongChartError("helm-chart-missing", message, mend, f"{pointer}/chart")

    def _at(self, path: str) -> list[str]:
        """Return what a path below a source's root may mean: the tree may be a folder of its repository."""
        clean = posixpath.normpath("/" + path).lstrip("/")
        place, found = self.tree.root, []
        while True:
            found.append(self.tree.canonical(join(self.tree.relative(place), clean)))
            if place == self.tree.top or place == place.parent:
                return found
            place = place.parent

    def _of_oci(self, key: Source, source: FluxObject | None) -> Chart:
        if source is None:
            raise _elsewhere(key)
        url = str(source.spec.get("url") or "")
        name = url.rstrip("/").rpartition("/")[2]
        reference = source.spec.get("ref")
        asked: Mapping[str, Any] = reference if isinstance(reference, Mapping) else {}
        wanted = str(asked.get("semver") or str(asked.get("tag") or "").replace("_", "+"))
        if not wanted:
            how = "by a digest alone" if asked.get("digest") else "by no version"
            raise NotAtHandError(
                f"its chart {name} is named {how}, so that none can be told to be it",
                f"give {key[0]} {key[2]} a tag or a semver range",
            )
        return self._on_shelf(name, wanted, key[2], source)

    def _on_shelf(self, name: str, wanted: str, repository: str, source: FluxObject | None) -> Chart:
        self.looked.append(name)
        found = self.shelves.find(name, wanted, repository)
        if found:
            return found
        url = str(source.spec.get("url") or "") if source else ""
        where = url if source and source.kind == "OCIRepository" else f"{url.rstrip('/')}/{name}"
        what = where if url.startswith("oci://") else f"{name} --repo {url}" if url else name
        version = f" --version '{wanted}'" if wanted != "*" else ""
        have = self.shelves.versions(name, repository)
        others = f"; at hand: {', '.join(have)}" if have else ""
        exact = semver.is_exact(wanted) or wanted == "*"
        range_ = "" if wanted == "*" else f" {wanted}" if exact else f" in {wanted}"
        raise NotAtHandError(
            f"its chart {name}{range_} is not at hand{others}",
            f"`helm pull {what}{version} --destination charts`, then check with CHARTS=charts",
        )

    def _whole(self, chart: Chart, pointer: str) -> Chart:
        try:
            whole, missing = completed(chart, self.tree, self.shelves)
        except UnusableChartError as error:
            raise WrongChartError(
                "helm-chart-broken", f"its chart {chart.label} can't be used: {error}", "mend it", pointer
            ) from None
        if whole is not chart or missing:
            self.looked.append(chart.name)
        if missing:
            raise NotAtHandError(
                f"its chart {chart.label} depends on {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not at hand",
                "`helm dependency build` in the chart's folder, or put the archives into CHARTS=<folder>",
            )
        return whole

    def _with_values_files(self, chart: Chart, template: Mapping[str, Any], of_source: bool, pointer: str) -> Chart:
        """Return a chart whose own values are those of other files, which its source or it holds itself."""
        listed = template.get("valuesFiles")
        names = [n for n in listed if isinstance(n, str)] if isinstance(listed, list) else []
        if not names:
            return chart
        values: dict[str, Any] = {}
        for index, name in enumerate(names):
            where = f"{pointer}/valuesFiles/{index}"
            content = self._values_file(chart, name, of_source)
            if content is None:
                if template.get("ignoreMissingValuesFiles"):
                    continue
                mend = "mend the path: it starts at the root of the " + ("source" if of_source else "chart")
                raise WrongValuesError(f"its values file {name} does not exist", where, mend, "helm-values-missing")
            try:
                values = merged(values, read_values(content.decode()))
            except (ValueError, UnicodeDecodeError) as error:
                raise WrongValuesError(f"its values file {name} {error}", where, "mend that file") from None
        from scripts.check.build import dump

        text = dump(values)
        return chart.with_files({VALUES_FILE: text.encode()}, digest_of_text(text))

    def _values_file(self, chart: Chart, name: str, of_source: bool) -> bytes | None:
        if not of_source:
            return chart.files.get(posixpath.normpath("/" + name).lstrip("/"))
        found = next((p for p in self._at(name) if self.tree.is_file(p)), "")
        return self.tree.absolute(found).read_bytes() if found else None


def _elsewhere(key: Source, path: str = "") -> NotAtHandError:
    what = f"its chart{' ' + path if path else ''} comes from {key[0]} {key[2]}"
    return NotAtHandError(f"{what}, which is not at hand", "check it where that source's files are")


def is_flux_source(key: Source) -> bool:
    """Whether a source is the one that `flux bootstrap` makes: the tree itself."""
    return key[1:] == (DEFAULT_NAMESPACE, DEFAULT_NAMESPACE)
