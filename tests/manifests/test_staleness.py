"""A result kept from an earlier run is taken only where nothing it was made from has changed: each test tries to get a
stale one.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import settings
from scripts.check import runner
from scripts.check.model import Report
from tests.manifests.checking import HEAD, checked, config_map, flux, renderings, write

PATCH = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  level: {}\n"
TREE = {
    "base/kustomization.yaml": HEAD
    + "resources:\n- settings.yaml\nconfigMapGenerator:\n- name: files\n  files:\n  - app.ini\n",
    "base/settings.yaml": config_map(),
    "base/app.ini": "level=info\n",
    "dev/kustomization.yaml": HEAD + "namespace: dev\nresources:\n- ../base\npatches:\n- path: patch.yaml\n",
    "dev/patch.yaml": PATCH.format("debug"),
    "prod/kustomization.yaml": HEAD + "namespace: prod\nresources:\n- ../base\n",
    "generated/one.yaml": config_map("one", metadata="  namespace: gen\n"),
    "cluster/sync.yaml": flux("generated", "./generated")
    + "---\n"
    + flux("vars", "./vars", "  postBuild:\n    substituteFrom:\n    - kind: ConfigMap\n      name: cluster-vars\n"),
    "vars/kustomization.yaml": HEAD + "namespace: vars\nresources:\n- settings.yaml\n",
    "vars/settings.yaml": config_map(data="level: ${level}"),
    "shared/kustomization.yaml": HEAD + "namespace: flux-system\nresources:\n- vars.yaml\n",
    "shared/vars.yaml": config_map("cluster-vars", metadata="  namespace: flux-system\n"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write(tmp_path / "tree", TREE)


@pytest.fixture(scope="module")
def rendered_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree, and the cache of a run over it."""
    folder = tmp_path_factory.mktemp("rendered")
    tree, cache = write(folder / "tree", TREE), folder / "cache"
    text_of(tree, cache)
    return tree, cache


def text_of(tree: Path, cache: Path) -> str:
    return "\n".join(f"# {name}\n{r.text}" for name, r in sorted(renderings(tree, cache).items()))


def edit(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        file = tree / path
        before = file.stat()
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        # The same size and the same time stamp: neither may be what a change is known by.
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return change


def new_file(tree: Path) -> None:
    (tree / "generated" / "two.yaml").write_text(config_map("two", metadata="  namespace: gen\n"))


def retarget(tree: Path) -> None:
    """The file is a link to another one, whose content differs."""
    (tree / "other.ini").write_text("level=warn\n")
    (tree / "base" / "app.ini").unlink()
    (tree / "base" / "app.ini").symlink_to("../other.ini")


def swap_folders(tree: Path) -> None:
    """The base is a link to a folder that is another one now."""
    shutil.copytree(tree / "base", tree / "base2")
    edit("base2/settings.yaml", "info", "trace")(tree)
    (tree / "base").rename(tree / "base1")
    (tree / "base").symlink_to("base2")


CHANGES = {
    "base": (edit("base/settings.yaml", "info", "warn"), "level: warn"),
    "patch": (edit("dev/patch.yaml", "debug", "fatal"), "level: fatal"),
    "file of a generator": (edit("base/app.ini", "info", "warn"), "level=warn"),
    "new file in a generated folder": (new_file, "name: two"),
    "values from elsewhere": (edit("shared/vars.yaml", "info", "warn"), "name: settings\n  namespace: vars"),
    "Flux Kustomization": (
        edit("cluster/sync.yaml", "  path: ./generated\n", "  path: ./generated\n  namePrefix: x-\n"), "name: x-one"
    ),
    "link to another file": (retarget, "level=warn"),
    "link to another folder": (swap_folders, "level: trace"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(rendered_once: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    change, seen = CHANGES[name]
    tree, known = rendered_once
    # Results are kept by the tree's path: it is the same one for every change, as it was before.
    shutil.rmtree(tree)
    write(tree, TREE)
    cache = Path(shutil.copytree(known, tmp_path / "cache"))
    before = text_of(tree, cache)
    change(tree)
    after = text_of(tree, cache)
    assert after == text_of(tree, tmp_path / "empty cache")
    assert after != before
    assert seen in after


def test_a_removed_file_is_missed(tree: Path, tmp_path: Path) -> None:
    assert checked(tree, tmp_path / "cache").ok
    (tree / "base" / "settings.yaml").unlink()
    report = checked(tree, tmp_path / "cache")
    assert "reference-missing" in {f.rule for f in report.findings}
    # What could be built before can't be now: the earlier rendering is not shown as if it could.
    assert not any(r.built for r in report.rows if r.kustomization in ("dev", "prod"))


def test_a_file_that_comes_where_one_was_missing_is_seen(tree: Path, tmp_path: Path) -> None:
    text = (tree / "base" / "settings.yaml").read_text()
    (tree / "base" / "settings.yaml").unlink()
    assert not checked(tree, tmp_path / "cache").ok
    (tree / "base" / "settings.yaml").write_text(text)
    assert checked(tree, tmp_path / "cache").ok


def test_what_lies_beside_the_tree_counts_too(tree: Path, tmp_path: Path) -> None:
    (tree / ".git").mkdir()
    assert not checked(tree / "dev", tmp_path / "cache").from_cache
    assert checked(tree / "dev", tmp_path / "cache").from_cache
    edit("base/settings.yaml", "level: info", "level: []")(tree)
    report = checked(tree / "dev", tmp_path / "cache")
    assert not report.from_cache


@pytest.fixture
def wrapped(tmp_path: Path) -> Path:
    """A kustomize whose output one can change: another version of it."""
    binary = tmp_path / "kustomize"
    binary.write_text(f'#!/bin/sh\nexec "{settings.load().tools_dir / "kustomize"}" "$@"\n')
    binary.chmod(0o755)
    return binary


def test_another_kustomize_renders_again(tree: Path, tmp_path: Path, wrapped: Path) -> None:
    def run() -> Report:
        chosen = runner.Options(tree, tmp_path / "cache", wrapped, wrapped, stages=(runner.Stage.BUILD,))
        return runner.check(chosen).report

    assert run().ok
    assert run().from_cache
    before = wrapped.stat()
    wrapped.write_text(wrapped.read_text().replace("exec", "echo 'Error: new version' >&2; exit 1; "))
    os.utime(wrapped, ns=(before.st_atime_ns, before.st_mtime_ns))
    report = run()
    assert {f.rule for f in report.findings} == {"build-failed"}


def test_another_definition_validates_again(tree: Path, tmp_path: Path) -> None:
    crd = (
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: widgets.example.com\n"
        "spec:\n  group: example.com\n  names:\n    kind: Widget\n    plural: widgets\n  scope: Cluster\n  versions:\n"
        "  - name: v1\n    served: true\n    storage: true\n    schema:\n      openAPIV3Schema:\n        type: object\n"
        "        properties:\n          size:\n            type: integer\n"
    )
    widget = "apiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: w\nsize: 3\n"
    write(
        tree,
        {
            "crds/kustomization.yaml": HEAD + "resources:\n- crd.yaml\n",
            "crds/crd.yaml": crd,
            "widgets/kustomization.yaml": HEAD + "resources:\n- widget.yaml\n",
            "widgets/widget.yaml": widget,
        },
    )
    assert checked(tree, tmp_path / "cache").ok
    edit("crds/crd.yaml", "type: integer", "type: boolean")(tree)
    findings = checked(tree, tmp_path / "cache").findings
    assert [(f.rule, str(f.place)) for f in findings] == [("wrong-type", "widgets/widget.yaml:5")]


def test_a_file_saved_while_the_check_runs_is_not_taken_for_what_was_checked(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = runner._run

    def run_and_save(*args: object) -> object:
        # After the tree was read, before kustomize reads it; then back again.
        edit("base/settings.yaml", "info", "oops")(tree)
        return genuine(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "_run", run_and_save)
    assert "level: oops" in text_of(tree, tmp_path / "cache")
    monkeypatch.setattr(runner, "_run", genuine)
    edit("base/settings.yaml", "oops", "info")(tree)
    assert "level: oops" not in text_of(tree, tmp_path / "cache")


def test_a_kept_record_that_is_damaged_is_made_again(tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = text_of(tree, cache)
    records = list(cache.rglob("*.json"))
    assert records
    for record in records:
        record.write_text("{half a rec")
    assert text_of(tree, cache) == before


def test_only_what_changed_is_built_again(tree: Path, tmp_path: Path, wrapped: Path) -> None:
    log = tmp_path / "builds"
    wrapped.write_text(wrapped.read_text().replace("exec", f'echo "$2" >> "{log}"; exec'))

    def run() -> list[str]:
        log.write_text("")
        chosen = runner.Options(tree, tmp_path / "cache", wrapped, wrapped, stages=(runner.Stage.BUILD,))
        assert runner.check(chosen).report.ok
        return sorted(Path(line).name for line in log.read_text().splitlines())

    assert run() == ["cluster", "dev", "generated", "prod", "shared", "vars"]
    assert run() == []
    edit("dev/patch.yaml", "debug", "fatal")(tree)
    assert run() == ["dev"]
    edit("base/settings.yaml", "info", "warn")(tree)
    assert run() == ["dev", "prod"]
