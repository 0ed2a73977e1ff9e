import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from scripts import versions
from scripts.errors import LabError
from scripts.schemas import CoreSchemas, ObjectKind, crd_schemas, defined_kind, pruned

CRD = {
    "spec": {
        "group": "example.com",
        "names": {"kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "description": {"type": "string", "description": "a property of this name stays"},
                            "port": {"x-kubernetes-int-or-string": True},
                            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {}},
                            "closed": {"type": "object", "properties": {"a": {"type": "string", "nullable": True}}},
                            "pairs": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                    }
                },
            },
            {"name": "v1alpha1", "served": False, "schema": {"openAPIV3Schema": {"type": "object"}}},
        ],
    }
}


@pytest.fixture(scope="module")
def core() -> CoreSchemas:
    return CoreSchemas(versions.load().kubernetes)


def test_a_version_without_schemas_is_refused_with_the_way_to_get_them() -> None:
    with pytest.raises(LabError, match=r"v9\.9\.9"):
        CoreSchemas("v9.9.9")


@pytest.mark.parametrize(
    ("api_version", "kind", "file_name"),
    [
        ("v1", "Service", "v1_service_v1.json"),
        ("apps/v1", "Deployment", "apps_deployment_v1.json"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute", "gateway.networking.k8s.io_httproute_v1.json"),
    ],
)
def test_a_schema_has_the_name_that_kubeconform_asks_for(api_version: str, kind: str, file_name: str) -> None:
    assert ObjectKind.of(api_version, kind).file_name == file_name


def test_a_core_schema_holds_all_that_it_refers_to(core: CoreSchemas) -> None:
    schema = core.schema(ObjectKind.of("apps/v1", "Deployment"))
    assert schema is not None
    text = json.dumps(schema)
    names = {part.partition('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert names
    assert names <= set(schema["$defs"])
    assert "/api/" not in text
    assert "Deployment enables declarative updates" not in text


@pytest.mark.parametrize(
    ("api_version", "kind"),
    [
        ("apps/v1beta1", "Deployment"),
        ("example.com/v1", "Deployment"),
        # The file of apps/v1 is named by the group's first label only.
        ("apps.example.com/v1", "Deployment"),
        ("v1", "Widget"),
    ],
)
def test_a_kind_that_kubernetes_does_not_have_has_no_schema(core: CoreSchemas, api_version: str, kind: str) -> None:
    assert core.schema(ObjectKind.of(api_version, kind)) is None


def test_a_definition_gives_strict_schemas_of_its_served_versions() -> None:
    (kind, schema), *more = crd_schemas(CRD)
    assert more == []
    assert kind == ObjectKind("example.com", "v1", "Widget")
    properties = schema["properties"]
    assert schema["additionalProperties"] is False
    assert properties["closed"]["additionalProperties"] is False
    assert properties["closed"]["properties"]["a"]["type"] == ["string", "null"]
    assert "additionalProperties" not in properties["free"]
    assert properties["pairs"]["additionalProperties"] == {"type": "string"}
    assert properties["port"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert properties["description"] == {"type": "string"}
    assert {"apiVersion", "kind", "metadata"} <= set(properties)


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the strict schema of a definition's `spec`."""
    whole = {"type": "object", "properties": {"spec": schema}}
    version = {"name": "v1", "schema": {"openAPIV3Schema": whole}}
    ((_, made),) = crd_schemas({"spec": {**CRD["spec"], "versions": [version]}})
    return dict(made["properties"]["spec"])


def test_a_field_named_like_a_keyword_is_a_field() -> None:
    fields = (
        "properties",
        "additionalProperties",
        "description",
        "nullable",
        "items",
        "not",
        "x-kubernetes-int-or-string",
    )
    of_text = {"type": "object", "properties": {name: {"type": "string", "description": "a text"} for name in fields}}
    made = strict({**of_text, "description": "a text"})
    assert made["properties"] == {name: {"type": "string"} for name in fields}
    assert made["additionalProperties"] is False


def test_what_only_judges_values_does_not_say_which_fields_there_are() -> None:
    either = [{"properties": {"kind": {"enum": ["a"]}}, "required": ["a"]}, {"properties": {"kind": {"enum": ["b"]}}}]
    names = ("kind", "a", "b")
    made = strict({"type": "object", "properties": {n: {"type": "string"} for n in names}, "oneOf": either})
    validator = Draft202012Validator(made)
    assert validator.is_valid({"kind": "a", "a": "x"})
    assert validator.is_valid({"kind": "b", "b": "x"})
    assert not validator.is_valid({"kind": "a", "b": "x"})
    assert not validator.is_valid({"kind": "b", "c": "x"})


def test_what_a_definition_defines_is_read_from_its_text() -> None:
    text = "kind: CustomResourceDefinition\nspec:\n  group: example.com\n  names:\n    categories:\n    - all\n    kind: Widget\n"
    assert defined_kind(text) == ("example.com", "Widget")
    assert defined_kind('{"kind": "CustomResourceDefinition"}') is None


def deployment(**container: Any) -> dict[str, Any]:
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", **container}]}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}


def fields_of(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(fields_of, value))
    return set(value).union(*map(fields_of, value.values())) if isinstance(value, dict) else set()


DEPLOYMENTS = {
    "in order": deployment(image="web:1", ports=[{"containerPort": 80}]),
    "unknown field": deployment(image="web:1", imagePullPolice="Always"),
    "wrong type deep inside": deployment(ports=[{"containerPort": "eighty"}], resources={"limits": {"cpu": 1}}),
    "field missing": deployment(ports=[{"name": "http"}], env=[{"value": "1"}]),
    "a field of another place": deployment(matchLabels={"app": "web"}),
    "a probe with nothing in it": deployment(livenessProbe={"httpGet": {"path": "/"}}),
    "not an object": deployment(securityContext="none"),
    "a list where an object is wanted": deployment(resources=[]),
}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pruned_schema_says_of_an_object_what_the_whole_one_says(core: CoreSchemas, name: str) -> None:
    whole = core.schema(ObjectKind.of("apps/v1", "Deployment"))
    assert whole is not None
    slim = pruned(whole, fields_of(DEPLOYMENTS[name]))

    def said(schema: dict[str, Any]) -> list[tuple[str, str]]:
        return sorted((e.json_path, e.message) for e in Draft202012Validator(schema).iter_errors(DEPLOYMENTS[name]))

    assert said(slim) == said(whole)
    assert bool(said(whole)) is (name != "in order")
    assert len(json.dumps(slim)) < len(json.dumps(whole)) / 2


def test_pruning_knows_a_field_from_a_keyword_of_schemas() -> None:
    _, whole = next(crd_schemas({"spec": {**CRD["spec"], "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {
        "type": "object",
        "properties": {
            "properties": {"type": "object", "properties": {"not": {"type": "string"}, "b": {"type": "string"}}},
            "items": {"type": "array", "items": {"type": "object", "properties": {"c": {"type": "integer"}}}},
            "not": {"type": "object", "default": {"$ref": "other"}, "x-kubernetes-preserve-unknown-fields": True},
        },
    }}}]}}))  # fmt: skip
    slim = pruned(whole, {"properties", "not", "items"})
    assert slim["properties"]["properties"]["properties"] == {"not": {"type": "string"}, "b": {}}
    assert slim["properties"]["items"]["items"]["properties"] == {"c": {}}
    assert slim["properties"]["items"]["items"]["additionalProperties"] is False
    assert slim["properties"]["not"]["default"] == {"$ref": "other"}


def test_every_kind_of_kubernetes_has_a_schema_and_a_file_of_its_own(core: CoreSchemas) -> None:
    kinds = list(core.kinds())
    assert {ObjectKind("apps", "v1", "Deployment"), ObjectKind("", "v1", "Pod")} <= set(kinds)
    assert ObjectKind("", "v1", "PodList") not in kinds
    assert len({k.file_name for k in kinds}) == len(kinds) > 80
    assert all(core.schema(kind) for kind in kinds)
