"""Definitions without their schemas' descriptions: what is left out, what stays, and how the files are written anew."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import definitions, settings, versions
from scripts.definitions import Source, derived, folders, renew, sha256, sources, stripped, write
from scripts.errors import LabError
from scripts.process import CommandError
from tests.unit.conftest import Programs

MODULE, PATH, NAME = "example.com/widgets@v1.2.0", "config/widgets.yaml", "example.com_widgets.yaml"
UPSTREAM = """\
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  annotations:
    description: an annotation of this name
  name: widgets.example.com
spec:
  group: example.com
  names:
    kind: Widget
    plural: widgets
  versions:
  - additionalPrinterColumns:
    - description: Whether it turns.
      jsonPath: .spec.turns
      name: Turns
      type: string
    name: v1
    schema:
      openAPIV3Schema:
        description: |-
          A widget.

          It turns.
        properties:
          spec:
            properties:
              most:
                description: 'as upstream spells it: not 1000000.0'
                maximum: 1e+06
                type: number
              operator:
                enum:
                - =
                - "yes"
                type: string
            type: object
        type: object
    served: true
    storage: true
  - name: v1alpha1
    schema:
      openAPIV3Schema:
        description: An earlier widget.
        type: object
    served: false
    storage: false
"""
# The same by hand: lines left out, none changed.
HERE = """\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  annotations:
    description: an annotation of this name
  name: widgets.example.com
spec:
  group: example.com
  names:
    kind: Widget
    plural: widgets
  versions:
  - additionalPrinterColumns:
    - description: Whether it turns.
      jsonPath: .spec.turns
      name: Turns
      type: string
    name: v1
    schema:
      openAPIV3Schema:
        properties:
          spec:
            properties:
              most:
                maximum: 1e+06
                type: number
              operator:
                enum:
                - =
                - "yes"
                type: string
            type: object
        type: object
    served: true
    storage: true
  - name: v1alpha1
    schema:
      openAPIV3Schema:
        type: object
    served: false
    storage: false
"""


# ---------------------------------------------------------------- what is left out

TEXT = {"description": "what a person reads", "type": "string"}
BARE = {"type": "string"}


def definition(schema: Any) -> str:
    version = {"name": "v1", "schema": {"openAPIV3Schema": schema}}
    return yaml.safe_dump({"kind": "CustomResourceDefinition", "spec": {"versions": [version]}}, sort_keys=False)


@pytest.mark.parametrize(
    ("schema", "left"),
    [
        (TEXT, BARE),
        ({"description": "and nothing else"}, {}),
        ({"properties": {"a": TEXT}}, {"properties": {"a": BARE}}),
        ({"properties": {"description": TEXT}}, {"properties": {"description": BARE}}),
        (
            {
                "properties": {
                    "properties": {"description": "of a property of that name", "properties": {"items": TEXT}}
                }
            },
            {"properties": {"properties": {"properties": {"items": BARE}}}},
        ),
        ({"items": {"items": TEXT}}, {"items": {"items": BARE}}),
        ({"items": [TEXT, TEXT]}, {"items": [BARE, BARE]}),
        ({"additionalItems": TEXT}, {"additionalItems": BARE}),
        ({"additionalProperties": TEXT}, {"additionalProperties": BARE}),
        ({"additionalProperties": {"properties": {"a": TEXT}}}, {"additionalProperties": {"properties": {"a": BARE}}}),
        ({"patternProperties": {"^description$": TEXT}}, {"patternProperties": {"^description$": BARE}}),
        ({"definitions": {"description": TEXT}}, {"definitions": {"description": BARE}}),
        ({"dependencies": {"a": TEXT, "b": ["description"]}}, {"dependencies": {"a": BARE, "b": ["description"]}}),
        *[({key: [TEXT, {"not": TEXT}]}, {key: [BARE, {"not": BARE}]}) for key in ("allOf", "anyOf", "oneOf")],
    ],
)
def test_every_schemas_description_is_left_out(schema: Any, left: Any) -> None:
    assert stripped(definition(schema)) == definition(left)


@pytest.mark.parametrize(
    "schema",
    [
        {"default": {"description": "a value"}, "type": "object"},
        {"enum": ["description", {"description": "a value"}]},
        {"example": {"items": {"description": "a value"}}},
        {"required": ["description"], "additionalProperties": True},
        {"x-kubernetes-validations": [{"rule": "has(self.description)", "message": "say what it is", "reason": "X"}]},
        {"x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-list-map-keys": ["description"], "maxLength": 9},
        {"externalDocs": {"description": "a page's title", "url": "https://example.com"}},
    ],
    ids=lambda schema: next(iter(schema)),
)
def test_what_is_no_schemas_description_stays(schema: dict[str, Any]) -> None:
    assert stripped(definition({"properties": {"a": schema}})) == definition({"properties": {"a": schema}})


def test_what_is_left_are_upstreams_own_lines_in_their_order() -> None:
    assert stripped(UPSTREAM) == HERE
    assert stripped(HERE) == HERE


@pytest.mark.parametrize(
    "text",
    ["", "a: b\n", "- a\n", "spec:\n  versions:\n  - name: v1\n", "spec: {versions: [1]}\n"],
    ids=["nothing", "something else", "a list", "no schema", "a version that is none"],
)
def test_what_is_no_definition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is missing"):
        stripped(text)


# ---------------------------------------------------------------- writing the files


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """Where Go has unpacked the module."""
    folder = tmp_path / "module"
    (folder / PATH).parent.mkdir(parents=True)
    (folder / PATH).write_text(UPSTREAM)
    return folder


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A folder whose record names a definition that is not there yet."""
    folder = tmp_path / "tree" / "crds"
    folder.mkdir(parents=True)
    record(folder, f"module: {MODULE}\n    path: {PATH}")
    return folder


def record(folder: Path, entry: str) -> None:
    (folder / "upstream.yaml").write_text(f"files:\n  {NAME}:\n    {entry}\n")


def edit(path: Path, find: str, put: str) -> None:
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, put))


def test_a_definition_is_written_with_where_it_is_from_and_both_sums(copies: Path, module: Path) -> None:
    assert folders(copies.parent) == [copies]
    assert write(derived(copies, lambda _: module)) == [copies / NAME, copies / "upstream.yaml"]
    text = (copies / NAME).read_text()
    assert text == f"# From Go module {MODULE}: {PATH}; schemas' descriptions left out by `make definitions`.\n{HERE}"
    found = Source(MODULE, PATH, sha256(UPSTREAM.encode()), sha256(text.encode()))
    assert sources(copies) == {NAME: found}
    assert found.sha256_upstream != found.sha256_here


def test_a_second_time_nothing_is_written(copies: Path, module: Path) -> None:
    write(derived(copies, lambda _: module))
    assert write(derived(copies, lambda _: module)) == []


def test_another_release_is_another_header_and_other_sums(copies: Path, module: Path) -> None:
    write(derived(copies, lambda _: module))
    edit(copies / "upstream.yaml", "@v1.2.0", "@v1.3.0")
    edit(module / PATH, "kind: Widget", "kind: Gadget")
    assert write(derived(copies, lambda _: module)) == [copies / NAME, copies / "upstream.yaml"]
    assert "kind: Gadget" in (copies / NAME).read_text()
    assert sources(copies)[NAME].sha256_upstream == sha256((module / PATH).read_bytes())


def test_a_definition_that_somebody_changed_is_put_back(copies: Path, module: Path) -> None:
    write(derived(copies, lambda _: module))
    edit(copies / NAME, "kind: Widget", "kind: Gadget")
    assert write(derived(copies, lambda _: module)) == [copies / NAME]


def test_a_file_that_changed_under_an_unchanged_version_is_refused_until_somebody_says_so(
    copies: Path, module: Path
) -> None:
    write(derived(copies, lambda _: module))
    edit(module / PATH, "kind: Widget", "kind: Gadget")
    with pytest.raises(LabError, match="changed under an unchanged version") as refused:
        derived(copies, lambda _: module)
    assert "remove its sha256_upstream from" in refused.value.mend
    record(copies, f"module: {MODULE}\n    path: {PATH}")
    assert write(derived(copies, lambda _: module)) == [copies / NAME, copies / "upstream.yaml"]


def wrong_path(copies: Path, module: Path) -> None:
    record(copies, f"module: {MODULE}\n    path: config/gadgets.yaml")


def two_documents(copies: Path, module: Path) -> None:
    (module / PATH).write_text(f"{UPSTREAM}---\n{UPSTREAM}")


def another_kind(copies: Path, module: Path) -> None:
    (module / PATH).write_text("kind: ConfigMap\n")


def not_utf8(copies: Path, module: Path) -> None:
    (module / PATH).write_bytes(b"\xff")


def no_path(copies: Path, module: Path) -> None:
    record(copies, f"module: {MODULE}")


def unknown_key(copies: Path, module: Path) -> None:
    record(copies, f"module: {MODULE}\n    path: {PATH}\n    sha256: abc")


def no_files(copies: Path, module: Path) -> None:
    (copies / "upstream.yaml").write_text("# nothing\n")


def not_yaml(copies: Path, module: Path) -> None:
    (copies / "upstream.yaml").write_text("files: [\n")


@pytest.mark.parametrize(
    ("break_it", "what", "mend"),
    [
        (wrong_path, "has no file config/gadgets.yaml", f"correct the path of {NAME} in"),
        (two_documents, "is not one CustomResourceDefinition", f"correct the path of {NAME} in"),
        (another_kind, "is not one CustomResourceDefinition", f"correct the path of {NAME} in"),
        (not_utf8, "is not one CustomResourceDefinition", f"correct the path of {NAME} in"),
        (no_path, "upstream.yaml can't be read", "give each file `module`"),
        (unknown_key, "upstream.yaml can't be read", "git checkout -- "),
        (no_files, "upstream.yaml can't be read", "git checkout -- "),
        (not_yaml, "upstream.yaml can't be read", "git checkout -- "),
    ],
)
def test_what_cannot_be_is_said_in_a_line_with_one_how_to_mend_it(
    copies: Path, module: Path, break_it: Callable[[Path, Path], None], what: str, mend: str
) -> None:
    break_it(copies, module)
    with pytest.raises(LabError) as error:
        derived(copies, lambda _: module)
    assert what in error.value.what and "\n" not in error.value.what
    assert mend in error.value.mend and "\n" not in error.value.mend


# ---------------------------------------------------------------- the command, with a fake Go

GO = """
PATH=/usr/bin:/bin
case "$1" in
env) echo go{version};;
mod) [ -d "{folder}" ] || exit 1; echo '{{"Dir": "{folder}"}}';;
esac
"""


@pytest.fixture
def command(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: Path, module: Path
) -> Callable[[], list[str]]:
    pinned = versions.load()
    programs.add("go", GO.format(version=pinned.go.version, folder=module))
    monkeypatch.setattr(definitions, "folders", lambda: folders(copies.parent))
    chosen = replace(settings.load({}), cache_dir=tmp_path / "cache")
    return lambda: renew(chosen, pinned)


def test_the_command_reads_each_module_once_and_says_what_it_wrote(
    command: Callable[[], list[str]], programs: Programs, copies: Path
) -> None:
    other = copies.parent / "others"
    shutil.copytree(copies, other)
    files = (NAME, "upstream.yaml")
    assert command() == [str(folder / name) for folder in (copies, other) for name in files]
    downloads = [call[1:] for call in programs.calls("go") if call[1] == "mod"]
    assert downloads == [["mod", "download", "-json", MODULE]]
    assert command() == []


def test_what_is_out_of_reach_leaves_all_as_it_was(
    command: Callable[[], list[str]], copies: Path, module: Path
) -> None:
    other = copies.parent / "others"
    shutil.copytree(copies, other)
    wrong_path(other, module)
    with pytest.raises(LabError, match="has no file"):
        command()
    assert not (copies / NAME).exists()
    shutil.rmtree(module)
    with pytest.raises(CommandError) as failed:
        command()
    assert "module mirror can be reached" in failed.value.mend
    assert [p.name for p in copies.iterdir()] == ["upstream.yaml"]
