"""Values put where a path leads, as `helm --set` reads it: https://helm.sh/docs/intro/using_helm/."""

from collections.abc import Mapping
from typing import Any

import pytest

from scripts.check.helmvalues import UnknownValuesError, WrongValuesError, composed, merged, set_path

SET: list[tuple[str, str, dict[str, Any]]] = [
    ("a", "text", {"a": "text"}), ("a", "3", {"a": 3}), ("a", "-3", {"a": -3}), ("a", "03", {"a": "03"}), ("a", "0", {"a": 0}),
    ("a", "1.5", {"a": "1.5"}), ("a", "true", {"a": True}), ("a", "null", {"a": None}), ("a", "", {"a": ""}),
    ("a", "'3'", {"a": "3"}), ("a", '"true"', {"a": "true"}), ("a.b.c", "x", {"a": {"b": {"c": "x"}}}),
    (r"a\.b.c", "x", {"a.b": {"c": "x"}}), ("a[1]", "x", {"a": [None, "x"]}), ("a[0].b", "x", {"a": [{"b": "x"}]}),
    ("a[0][1]", "x", {"a": [[None, "x"]]}), ("a", "{x,2}", {"a": ["x", 2]}), ("a", "x,b=y", {"a": "x", "b": "y"}),
    ("a", r"x\,y", {"a": "x,y"}), ("a", "b=c", {"a": "b=c"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "wanted"), SET, ids=[f"{p}={v}" for p, v, _ in SET])
def test_a_value_is_put_where_its_path_leads(path: str, value: str, wanted: dict[str, Any]) -> None:
    values: dict[str, Any] = {}
    set_path(values, path, value)
    assert values == wanted


def test_a_literal_value_is_taken_as_it_is() -> None:
    values: dict[str, Any] = {}
    set_path(values, r"files.app\.yml", "a: [1, 2]\nb: {c: d=e}\n\\", literal=True)
    assert values == {"files": {"app.yml": "a: [1, 2]\nb: {c: d=e}\n\\"}}


@pytest.mark.parametrize(
    ("path", "value"), [("a", "x,y"), ("a", "{x"), ("a[x]", "1"), ("a[-1]", "1"), ("a[70000]", "1"), ("b.c", "1")]
)
def test_what_helm_refuses_is_refused(path: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        set_path({"b": "text"}, path, value)


def test_what_is_there_stays() -> None:
    values = {"a": {"b": [1, 2], "c": 3}}
    set_path(values, "a.b[1]", "x")
    set_path(values, "a.b[3].d", "y")
    assert values == {"a": {"b": [1, "x", None, {"d": "y"}], "c": 3}}


def test_mappings_are_merged_and_everything_else_replaced() -> None:
    assert merged({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "d": {"e": None}}) == {
        "a": {"b": 1, "c": [2]}, "d": {"e": None},
    }  # fmt: skip


OBJECTS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("ConfigMap", "all"): {"data": {"values.yaml": "flat: value\nnested:\n  list: [one, two, three]\n"}},
    ("Secret", "one"): {"data": {"key": "dmFsdWU=", "bytes": "/w=="}},
    ("Secret", "text"): {"stringData": {"values.yaml": "flat: secret\n"}},
}


def values_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    return composed(spec, lambda kind, name: OBJECTS.get((kind, name)))


def test_a_path_goes_over_the_releases_own_values_as_flux_has_it() -> None:
    """The case is Flux's own: 'target path precedence over all'."""
    spec = {
        "valuesFrom": [
            {"kind": "Secret", "name": "one", "valuesKey": "key", "targetPath": "nested.list[0]"},
            {"kind": "ConfigMap", "name": "all"},
        ],
        "values": {"nested": {"list": ["x", "y", "z"]}},
    }
    assert values_of(spec) == {"flat": "value", "nested": {"list": ["value", "y", "z"]}}
    # What is written in the release itself is left as it is.
    assert spec["values"] == {"nested": {"list": ["x", "y", "z"]}}


def test_a_secrets_text_goes_before_its_data() -> None:
    assert values_of({"valuesFrom": [{"kind": "Secret", "name": "text"}]}) == {"flat": "secret"}


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ({"kind": "Secret", "name": "none"}, UnknownValuesError),
        ({"kind": "Secret", "name": "one", "valuesKey": "bytes"}, UnknownValuesError),
        ({"kind": "Secret", "name": "one"}, WrongValuesError),
        ({"kind": "Secret", "name": "one", "valuesKey": "key"}, WrongValuesError),
        ({"kind": "Secret", "name": "one", "valuesKey": "key", "targetPath": "a[x]"}, WrongValuesError),
    ],
)
def test_values_that_can_not_be_had_are_told_from_those_that_are_wrong(
    reference: Mapping[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        values_of({"valuesFrom": [reference]})
    if error is UnknownValuesError and reference["name"] == "none":
        assert values_of({"valuesFrom": [{**reference, "optional": True}], "values": {"a": 1}}) == {"a": 1}
