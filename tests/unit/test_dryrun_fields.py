import pytest

from scripts.check.dryrun_fields import each_error, field_in, pointer_of

THING = {
    "metadata": {"labels": {"app.kubernetes.io/name": "web"}},
    "spec": {"containers": [{"name": "first"}, {"name": "web", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]},
}


@pytest.mark.parametrize(
    ("field", "pointer"),
    [
        ("spec.containers[1].ports[0].containerPort", "/spec/containers/1/ports/0/containerPort"),
        ('spec.containers[name="web"].ports[containerPort=80,protocol="TCP"].name', "/spec/containers/1/ports/0/name"),
        ("metadata.labels[app.kubernetes.io/name]", "/metadata/labels/app.kubernetes.io~1name"),
        ("spec.replicas", "/spec/replicas"),
        ('spec.containers[name="none"].image', '/spec/containers/name="none"/image'),
        ("spec.containers[7].image", "/spec/containers/7/image"),
    ],
)
def test_a_field_is_found_in_the_object(field: str, pointer: str) -> None:
    assert pointer_of(field, THING) == pointer


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (
            "failed to create typed patch object (shop/web; apps/v1): .spec.replicaz: field not declared in schema",
            "spec.replicaz",
        ),
        ('strict decoding error: unknown field "spec.template.x"', "spec.template.x"),
        ("exceeded quota: room, requested: pods=4", ""),
        ('pods "web" is forbidden: no PriorityClass with name high was found', ""),
    ],
)
def test_the_field_that_a_message_names(message: str, field: str) -> None:
    assert field_in(message) == field


def test_each_of_several_errors_stands_alone() -> None:
    message = "failed to apply (shop/web): errors:\n  .spec.a: not declared\n  .spec.b: not declared"
    assert list(each_error(message)) == [
        "failed to apply (shop/web): .spec.a: not declared",
        "failed to apply (shop/web): .spec.b: not declared",
    ]
    assert list(each_error("one")) == ["one"]
