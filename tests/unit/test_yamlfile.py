from typing import Any

import pytest

from scripts.check import yamlfile

TEXT = """\
# a comment
metadata:
  name: web
  labels:
    app.kubernetes.io/name: web
spec:
  ports:
  - port: 80
    name: http
  - port: 81
"""


def node(text: str) -> Any:
    nodes, problems = yamlfile.compose(text)
    assert problems == []
    return nodes[0]


@pytest.mark.parametrize(
    ("pointer", "line"),
    [
        ("", 2),
        ("/metadata", 2),
        ("/metadata/labels/app.kubernetes.io~1name", 5),
        ("/spec/ports/0/port", 8),
        ("/spec/ports/1", 10),
        ("/spec/ports/7/port", 7),
        ("/spec/nothing", 6),
    ],
)
def test_a_pointer_leads_to_its_line_or_to_the_deepest_part_that_is_there(pointer: str, line: int) -> None:
    assert yamlfile.line_at(node(TEXT), pointer) == line


def test_every_value_has_a_line() -> None:
    lines = yamlfile.lines_of(node(TEXT))
    assert lines["/spec/ports/1/port"] == 10
    assert lines["/metadata/name"] == 3


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("yes", True),
        ("off", False),
        ("12", 12),
        ("-7", -7),
        ("0o17", "0o17"),
        ("017", 15),
        ("0x1f", 31),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("~", None),
        ("'12'", "12"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_are_read_as_kubernetes_reads_them(written: str, meant: Any) -> None:
    assert yamlfile.to_plain(node(f"a: {written}")) == {"a": meant}


def test_merge_keys_give_way_to_what_is_written() -> None:
    assert yamlfile.to_plain(node("base: &b {x: 1, y: 1}\nown:\n  <<: *b\n  y: 2\n"))["own"] == {"x": 1, "y": 2}


def test_documents_before_a_broken_one_are_kept() -> None:
    nodes, problems = yamlfile.compose("a: 1\n---\nb: 2\n---\nc: [\n")
    assert [yamlfile.to_plain(n) for n in nodes] == [{"a": 1}, {"b": 2}]
    assert [p.rule for p in problems] == ["yaml-syntax"]


def test_empty_documents_are_no_documents() -> None:
    assert len(yamlfile.compose("---\n# nothing\n---\na: 1\n---\n")[0]) == 1


def test_every_duplicate_is_told_with_the_line_of_the_first() -> None:
    problems = yamlfile.compose("a: 1\nb:\n  c: 1\n  c: 2\na: 2\n")[1]
    assert sorted((p.line, "in line" in p.message) for p in problems) == [(4, True), (5, True)]


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 5_000, "- " * 5_000, "? " * 5_000])
def test_nesting_without_end_is_told_not_followed(text: str) -> None:
    nodes, problems = yamlfile.compose(text)
    assert nodes == []
    assert [p.rule for p in problems] == ["yaml-depth"]
