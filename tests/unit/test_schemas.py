import json

import pytest

from scripts import versions
from scripts.errors import LabError
from scripts.schemas import CoreSchemas, ObjectKind, crd_schemas, defined_kind

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


def test_what_a_definition_defines_is_read_from_its_text() -> None:
    text = "kind: CustomResourceDefinition\nspec:\n  group: example.com\n  names:\n    categories:\n    - all\n    kind: Widget\n"
    assert defined_kind(text) == ("example.com", "Widget")
    assert defined_kind('{"kind": "CustomResourceDefinition"}') is None
