from pathlib import Path

import pytest

from scripts.check.graph import Graph
from scripts.check.tree import FileKind, Tree, join
from scripts.errors import UsageError


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_yaml", ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


KUSTOMIZATION = "kind: Kustomization\nresources:\n- {}\n"
CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {}\n"


def test_a_tree_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Tree(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("folder", "name", "path"),
    [
        ("", "a", "a"),
        ("a", ".", "a"),
        ("a", "..", ""),
        ("a/b", "../c", "a/c"),
        ("", "../c", "../c"),
        ("a", "./b/", "a/b"),
    ],
)
def test_paths_have_one_name(folder: str, name: str, path: str) -> None:
    assert join(folder, name) == path


def test_a_path_that_leaves_the_root_and_returns_is_the_path_inside(tmp_path: Path) -> None:
    write(tmp_path, tree__a__x_yaml="a: 1")
    assert Tree(tmp_path / "tree").canonical("../tree/a/x.yaml") == "a/x.yaml"


def test_what_lies_beside_the_root_is_read_when_asked_for_within_the_repository_only(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write(repository, base__x_yaml="a: 1", tree__y_yaml="b: 1")
    write(tmp_path, outside__z_yaml="c: 1")
    (repository / ".git").mkdir()
    tree = Tree(repository / "tree")
    before = tree.content_digest()
    assert tree.is_file("../base/x.yaml")
    assert tree.entry("../../outside/z.yaml") is None
    assert tree.content_digest() != before


def test_links_to_folders_are_followed_by_name_and_not_walked(tmp_path: Path) -> None:
    write(tmp_path, real__x_yaml="a: 1")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "up").symlink_to("..")
    tree = Tree(tmp_path)
    assert tree.canonical("link/x.yaml") == "real/x.yaml"
    assert tree.canonical("link/up/real/x.yaml") == "real/x.yaml"
    assert tree.entries["link"].kind is FileKind.FOLDER
    assert len(tree.entries) == 5


@pytest.mark.parametrize("change", ["content", "new", "gone", "link", "renamed"])
def test_any_change_changes_the_digest(tmp_path: Path, change: str) -> None:
    write(tmp_path, a__x_yaml="a: 1", a__y_yaml="a: 1", b__x_yaml="a: 1")
    link = tmp_path / "link"
    link.symlink_to("a/x.yaml")
    before = Tree(tmp_path).content_digest()
    match change:
        case "content":
            write(tmp_path, a__x_yaml="a: 2")
        case "new":
            write(tmp_path, a__z_yaml="")
        case "gone":
            (tmp_path / "a" / "y.yaml").unlink()
        case "link":
            # The same content, from another file.
            link.unlink()
            link.symlink_to("b/x.yaml")
        case "renamed":
            (tmp_path / "a" / "y.yaml").rename(tmp_path / "a" / "w.yaml")
    assert Tree(tmp_path).content_digest() != before


def test_charts_and_hidden_folders_are_left_out_until_referred_to(tmp_path: Path) -> None:
    write(tmp_path, chart__Chart_yaml="name: x", chart__templates__x_yaml="{{ broken", x_yaml="a: 1")
    write(tmp_path / ".hidden", part_yaml="a: 1")
    tree = Tree(tmp_path)
    assert tree.yaml_files() == ["x.yaml"]
    assert tree.is_file(".hidden/part.yaml")


def test_a_graph_knows_who_includes_whom_and_what_a_build_takes_in(tmp_path: Path) -> None:
    write(
        tmp_path,
        base__kustomization_yaml=KUSTOMIZATION.format("x.yaml"),
        base__x_yaml=CONFIG.format("x"),
        dev__kustomization_yaml=KUSTOMIZATION.format("../base"),
    )
    graph = Graph(Tree(tmp_path))
    assert graph.closure("dev") == ("dev", "base")
    assert sorted(graph.files_of("dev")) == ["base/kustomization.yaml", "base/x.yaml", "dev/kustomization.yaml"]
    assert [k.folder for k in graph.includers["base"]] == ["dev"]


def test_a_folder_without_a_kustomization_gets_the_one_that_flux_generates(tmp_path: Path) -> None:
    write(
        tmp_path,
        apps__b_yaml=CONFIG.format("b"),
        apps__more__a_yaml=CONFIG.format("a"),
        apps__own__kustomization_yaml=KUSTOMIZATION.format("x.yaml"),
        apps__own__x_yaml=CONFIG.format("x"),
    )
    (tmp_path / "apps" / ".sops.yaml").write_text("creation_rules: []")
    (tmp_path / "apps" / "notes.txt").write_text("no manifest")
    built = Graph(Tree(tmp_path)).buildable("apps")
    assert built is not None
    assert built.data["resources"] == ["b.yaml", "more/a.yaml", "own"]
