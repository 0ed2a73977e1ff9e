"""What public repositories do and the check once called an error: each made small, and nothing to be said against it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.check.model import Finding, Rendered, Severity, Stage
from scripts.check.runner import ExtraStage, Options
from tests.manifests.checking import HEAD, checked, config_map, flux, write

FLUX_SOURCE = (
    "apiVersion: source.toolkit.fluxcd.io/v1\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: flux-system\n"
    "spec:\n  interval: 10m\n  url: {url}\n"
)


def source(kind: str, name: str, url: str) -> str:
    return FLUX_SOURCE.format(kind=kind, name=name, url=url)


def of_source(text: str, kind: str, name: str) -> str:
    return text.replace("kind: GitRepository\n    name: flux-system", f"kind: {kind}\n    name: {name}")


TENANT = of_source(flux("tenant", "./deploy"), "GitRepository", "tenant")
WHOLE = of_source(flux("whole", "./"), "OCIRepository", "whole")
WIDGET = "apiVersion: shop.example/v1\nkind: Widget\nmetadata:\n  name: one\n  namespace: shop\n"
CASES = {
    # fluxcd/flux2-multi-tenancy: an overlay changes the path of a Kustomization whose files are the tenant's.
    "a patch of a Flux Kustomization": {
        "clusters/one/tenants.yaml": flux("tenants", "./tenants/one"),
        "tenants/base/kustomization.yaml": HEAD + "resources: [sync.yaml, source.yaml]\n",
        "tenants/base/sync.yaml": TENANT,
        "tenants/base/source.yaml": source("GitRepository", "tenant", "https://example.org/tenant"),
        "tenants/one/kustomization.yaml": HEAD + "resources: [../base]\npatches:\n- path: patch.yaml\n",
        "tenants/one/patch.yaml": "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\n"
        "metadata:\n  name: tenant\n  namespace: flux-system\nspec:\n  path: ./one\n",
    },
    # The same: an artifact is applied as a whole, and what it defines is used in another folder.
    "a source that is applied as a whole": {
        "clusters/one/apps.yaml": flux("apps", "./apps") + "---\n" + flux("uses", "./uses"),
        "clusters/two/apps.yaml": flux("apps", "./apps"),
        "apps/sync.yaml": WHOLE,
        "apps/source.yaml": source("OCIRepository", "whole", "oci://example.org/whole"),
        "uses/widget.yaml": WIDGET,
    },
    # A repository that applies itself as a whole, by a source of another name, is still this one.
    "a tree that is a source of its own": {
        "kustomization.yaml": HEAD + "resources: [sync.yaml, source.yaml, apps/settings.yaml]\n",
        "sync.yaml": of_source(flux("whole", "./"), "GitRepository", "fleet")
        + "---\n"
        + of_source(flux("apps", "./apps"), "GitRepository", "fleet"),
        "source.yaml": source("GitRepository", "fleet", "https://example.org/fleet"),
        "apps/settings.yaml": config_map(metadata="  namespace: shop\n"),
    },
}


@pytest.mark.parametrize("files", CASES.values(), ids=CASES)
def test_it_is_no_error(files: dict[str, str], tmp_path: Path) -> None:
    report = checked(write(tmp_path / "tree", files), tmp_path / "cache")
    wrong = [f for f in report.findings if f.severity is Severity.ERROR and f.rule not in EXPECTED]
    assert wrong == []


# The last tree applies its settings twice, which is one: it shows that the tree was taken for its own.
EXPECTED = {"applied-twice"}


def test_what_is_applied_from_elsewhere_is_named(tmp_path: Path) -> None:
    files = CASES["a source that is applied as a whole"]
    report = checked(write(tmp_path / "tree", files), tmp_path / "cache")
    found = {(f.rule, f.place.file) for f in report.findings}
    assert found == {("flux-path-elsewhere", "apps/sync.yaml"), ("schema-missing", "uses/widget.yaml")}


def test_a_version_that_flux_serves_no_more_is_an_error_whatever_comes_from_elsewhere(tmp_path: Path) -> None:
    old = source("OCIRepository", "whole", "oci://example.org/whole").replace("fluxcd.io/v1\n", "fluxcd.io/v1beta1\n")
    files = {**CASES["a source that is applied as a whole"], "apps/source.yaml": old}
    report = checked(write(tmp_path / "tree", files), tmp_path / "cache")
    assert [(f.rule, f.place.file) for f in report.findings if f.severity is Severity.ERROR] == [
        ("schema-missing", "apps/source.yaml")
    ]


def test_a_tree_that_applies_itself_is_rendered(tmp_path: Path) -> None:
    files = CASES["a tree that is a source of its own"]
    report = checked(write(tmp_path / "tree", files), tmp_path / "cache")
    assert [(f.rule, f.place.file) for f in report.findings] == [("applied-twice", "apps/settings.yaml")]


def test_that_nobody_knows_a_kind_is_told_once(tmp_path: Path) -> None:
    def unknown(rendered: Sequence[Rendered], _: Options) -> list[Finding]:
        found = [(r, resource) for r in rendered for resource in r.resources]
        return [
            Finding(Stage.DRY_RUN, "unknown-kind", "no such kind", "add it", o.place, o.subject, r.kustomization)
            for r, o in found
        ]

    files = {"kustomization.yaml": HEAD + "resources: [widget.yaml, settings.yaml]\n", "widget.yaml": WIDGET}
    files["settings.yaml"] = config_map(metadata="  namespace: shop\n")
    root = write(tmp_path / "tree", files)
    report = checked(root, tmp_path / "cache", extra=(ExtraStage(Stage.DRY_RUN, unknown),))
    assert [(f.rule, f.place.file) for f in report.findings] == [
        ("schema-missing", "widget.yaml"),
        ("unknown-kind", "settings.yaml"),
    ]
