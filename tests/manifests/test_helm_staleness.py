"""A release that was rendered before is taken only where nothing it was made from has changed: each test tries to get a
stale one, and `make kustomize-diff` shows what a change does to what Helm renders.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.check.diff import against_revision, as_text
from scripts.check.model import Report, Stage
from scripts.check.runner import Options, check
from scripts.git import git
from tests.manifests.checking import options
from tests.manifests.helmtrees import (
    REPOSITORY,
    SETTINGS,
    archive,
    below,
    chart,
    from_repository,
    from_tree,
    release,
    tree,
)
from tests.manifests.test_helm_releases import CRD, ROW, values_map

FROM = "  valuesFrom:\n  - {kind: ConfigMap, name: values}\n"
Change = Callable[[Path], None]


def edit(path: str, old: str, new: str) -> Change:
    """Return a change that leaves size and time stamp as they were: neither may be what it is known by."""

    def change(root: Path) -> None:
        file = root / path
        before = file.stat()
        text = file.read_text()
        assert old in text
        assert len(old) == len(new)
        file.write_text(text.replace(old, new))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return change


def rewrite_archive(root: Path) -> None:
    path = root / "shelf" / "web-1.2.0.tgz"
    before = path.stat()
    archive(root / "shelf", chart(values_yaml="level: warn\n"), path.name)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def add_archive(root: Path) -> None:
    archive(root / "shelf", chart("1.3.0", values_yaml="level: newer\n"), "web-1.3.0.tgz")


def define(root: Path) -> None:
    (root / "tree" / "apps" / "crd.yaml").write_text(CRD.format("Cluster"))
    edited = (root / "tree" / "apps" / "kustomization.yaml").read_text() + "- crd.yaml\n"
    (root / "tree" / "apps" / "kustomization.yaml").write_text(edited)


IN_TREE, SHELVED = release(from_tree(), FROM), release(from_repository("1.x"), FROM)
CHANGES: dict[str, tuple[str, Change, str]] = {
    "a template": (IN_TREE, edit("tree/charts/web/templates/settings.yaml", "-settings", "-edited00"[:9]), "name: web-edited00"),
    "the chart's values": (IN_TREE, edit("tree/charts/web/values.yaml", "b: chart", "b: other"), "inner: other"),
    "the release's values": (IN_TREE.replace("valuesFrom", "values: {a: {b: 1}}\n  valuesFrom"),
                             edit("tree/apps/release.yaml", "b: 1", "b: 2"), "inner: '2'"),
    "values elsewhere": (IN_TREE, edit("tree/apps/values.yaml", "debug", "error"), "level: error"),
    "a definition": (IN_TREE, define, "has: 'true'"),
    "an archive's content": (release(from_repository("1.x")), rewrite_archive, "level: warn"),
    "an archive of a newer version": (release(from_repository("1.x")), add_archive, "level: newer"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(tmp_path: Path, helm: Path, name: str) -> None:
    text, change, seen = CHANGES[name]
    shown = SETTINGS + '  has: {{ .Capabilities.APIVersions.Has "example.com/v1/Widget" | quote }}\n'
    charts = below("charts/web", chart(templates__settings_yaml=shown))
    tree(tmp_path / "tree", text, charts, values=values_map("level: debug\n"), repository=REPOSITORY)
    archive(tmp_path / "shelf", chart(), "web-1.2.0.tgz")

    def rendered(cache: str) -> str:
        chosen = options(tmp_path / "tree", tmp_path / cache, helm=helm, charts=(tmp_path / "shelf",))
        # The report alone, as the commands ask for it: known from an earlier run, or made anew.
        fresh = check(chosen).report
        report = check(chosen, need_renderings=True).report
        assert [r.note for r in fresh.rows] == [r.note for r in report.rows]
        return "\n".join(r.text for r in report.rendered if r.kustomization == ROW)

    before = rendered("cache")
    change(tmp_path)
    after = rendered("cache")
    assert after != before
    assert seen in after
    assert after == rendered("empty cache")


def run(tmp_path: Path, helm: Path, **changes: Any) -> Report:
    chosen = {"helm": helm, "charts": (tmp_path / "shelf",), "stages": (Stage.STRUCTURE, Stage.BUILD), **changes}
    return check(options(tmp_path / "tree", tmp_path / "cache", **chosen)).report


def test_what_lies_on_the_shelves_counts_in_a_run_that_knows_everything_else(tmp_path: Path, helm: Path) -> None:
    tree(tmp_path / "tree", release(from_repository("1.x")), {}, repository=REPOSITORY)
    assert [f.rule for f in run(tmp_path, helm).findings] == ["helm-not-rendered"]
    assert run(tmp_path, helm).from_cache
    path = archive(tmp_path / "shelf", chart(), "web-1.2.0.tgz")
    assert [r.note for r in run(tmp_path, helm).rows if r.release] == ["web-1.2.0"]
    assert run(tmp_path, helm).from_cache
    path.unlink()
    assert [f.rule for f in run(tmp_path, helm).findings] == ["helm-not-rendered"]


def test_a_tree_without_charts_from_elsewhere_does_not_care_for_shelves(tmp_path: Path, helm: Path) -> None:
    tree(tmp_path / "tree", release(from_tree()))
    run(tmp_path, helm)
    archive(tmp_path / "shelf", chart(), "web-1.2.0.tgz")
    assert run(tmp_path, helm).from_cache


def test_another_helm_renders_again_and_the_same_one_does_not(tmp_path: Path, helm: Path) -> None:
    tree(tmp_path / "tree", release(from_tree()))
    wrapper, log = tmp_path / "wrapper", tmp_path / "calls"
    wrapper.write_text(f'#!/bin/sh\necho called >> "{log}"\nexec "{helm}" "$@"\n')
    wrapper.chmod(0o755)
    assert run(tmp_path, wrapper).ok
    # Another file of the tree: what Helm made is taken over.
    (tmp_path / "tree" / "notes.txt").write_text("no manifest")
    assert not run(tmp_path, wrapper).from_cache
    assert log.read_text().splitlines() == ["called"]
    before = wrapper.stat()
    wrapper.write_text('#!/bin/sh\necho "Error: another one" >&2; exit 1\n')
    os.utime(wrapper, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [f.message for f in run(tmp_path, wrapper).findings] == ["web-1.2.0: another one"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    text = release(from_repository("1.2.0"), "  values: {level: debug}\n")
    tree(root, text, {}, repository=REPOSITORY)
    archive(tmp_path / "shelf", chart(), "web-1.2.0.tgz")
    git("init", "--quiet", "--initial-branch=main", root=root)
    git("config", "user.name", "test", root=root)
    git("config", "user.email", "test@example.com", root=root)
    git("add", "--all", root=root)
    git("commit", "--quiet", "--message", "first", root=root)
    return root


@pytest.fixture
def chosen(repository: Path, tmp_path: Path, helm: Path) -> Options:
    return options(repository, tmp_path / "cache", helm=helm, charts=(tmp_path / "shelf",))


def test_a_changed_value_is_told_as_what_it_does_to_the_rendered_objects(repository: Path, chosen: Options) -> None:
    assert against_revision(chosen, "main") == []
    edit("apps/release.yaml", "debug", "trace")(repository)
    changes = against_revision(chosen, "main")
    assert [(c.name, [o.subject for o in c.objects]) for c in changes] == [
        ("apps", ["HelmRelease apps/web"]),
        (ROW, ["ConfigMap apps/web-settings"]),
    ]
    text = list(as_text(changes, "main"))
    assert "  -  level: debug" in text
    assert "  +  level: trace" in text


def test_a_version_that_is_not_at_hand_is_not_told_as_if_everything_went(repository: Path, chosen: Options) -> None:
    edit("apps/release.yaml", "1.2.0", "1.3.0")(repository)
    changes = against_revision(chosen, "main")
    assert [(c.name, [(o.verb, o.subject) for o in c.objects]) for c in changes] == [
        ("apps", [("changed", "HelmRelease apps/web")]),
        (ROW, [("not compared", "in the tree")]),
    ]
    assert "1 changed, 1 not compared in 2 kustomizations" in list(as_text(changes, "main"))[-1]
