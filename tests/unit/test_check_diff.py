import json
from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from scripts.check.build import Rendering
from scripts.check.diff import EnvironmentChange, against_cluster, as_markdown, as_text, compare
from scripts.check.fluxobjects import FluxObject, RenderSpec
from scripts.check.model import Place, Rendered, Resource
from scripts.check.renderer import Applied
from scripts.kube import Kube
from scripts.process import Completed


def rendered(folder: str, *objects: dict[str, Any]) -> Rendered:
    texts = [yaml.safe_dump(o, sort_keys=False) for o in objects]
    resources = tuple(Resource(o, Place("x.yaml", 1)) for o in objects)
    return Rendered(folder, resources, "---\n".join(texts), flux_kustomizations=(folder,))


def thing(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "dev"}, **fields}


def text_of(before: list[Rendered], after: list[Rendered]) -> str:
    return "\n".join(as_text(compare(before, after), "main"))


def test_nothing_that_differs_says_so() -> None:
    same = [rendered("dev", thing("ConfigMap", "a", data={"x": "1"}))]
    assert compare(same, same) == []
    assert text_of(same, same) == "Nothing that is applied differs from main."


def test_added_removed_and_changed_objects_are_told_by_environment() -> None:
    before = [rendered("dev", thing("ConfigMap", "a", data={"x": "1"}), thing("Service", "s"))]
    after = [rendered("dev", thing("ConfigMap", "a", data={"x": "2"}), thing("Role", "r"))]
    change = compare(before, after)[0]
    assert [(o.subject, o.verb) for o in change.objects] == [
        ("ConfigMap dev/a", "changed"), ("Role dev/r", "added"), ("Service dev/s", "removed"),
    ]  # fmt: skip
    assert "-  x: '1'" in change.objects[0].lines
    assert "+  x: '2'" in change.objects[0].lines


def test_an_environment_that_comes_or_goes_is_told() -> None:
    changes = compare([rendered("old", thing("Service", "s"))], [rendered("new", thing("Service", "s"))])
    assert [(c.name, c.objects[0].verb) for c in changes] == [("new", "added"), ("old", "removed")]


def test_an_object_whose_name_ends_with_the_hash_of_its_content_is_the_same_object() -> None:
    before = [rendered("dev", thing("ConfigMap", "settings-6mf7d29bfm", data={"x": "1"}))]
    after = [rendered("dev", thing("ConfigMap", "settings-kghhkfcdk7", data={"x": "2"}))]
    assert [o.verb for o in compare(before, after)[0].objects] == ["changed"]


def test_values_of_secrets_are_never_shown_and_a_change_of_one_is() -> None:
    before = [
        rendered("dev", thing("Secret", "s", data={"token": "b2xk", "same": "c2FtZQ=="}, stringData={"p": "old"}))
    ]
    after = [rendered("dev", thing("Secret", "s", data={"token": "bmV3", "same": "c2FtZQ=="}, stringData={"p": "new"}))]
    for told in (
        text_of(before, after),
        text_of([], after),
        text_of(before, []),
        as_markdown(compare(before, after), "main"),
    ):
        for value in ("b2xk", "bmV3", "c2FtZQ==", "p: old", "p: new"):
            assert value not in told
    changed = text_of(before, after)
    assert "token: '*** (before)'" in changed
    assert "token: '*** (after)'" in changed
    assert "same: '***'" in changed


def test_markdown_folds_each_environment_and_survives_fences_in_the_text() -> None:
    after = [
        rendered("dev", thing("ConfigMap", "a", data={"x": "```\ninner\n```"})),
        rendered("prod", thing("Service", "s")),
    ]
    text = as_markdown(compare([], after), "main")
    assert text.count("<details>") == text.count("</details>") == 2
    assert "````diff" in text
    assert "2 added in 2 kustomizations, against main." in text


def test_a_long_difference_is_cut_in_markdown() -> None:
    after = [rendered("dev", thing("ConfigMap", "a", data={f"k{i}": "v" for i in range(1000)}))]
    text = as_markdown(compare([], after), "main")
    assert "more lines" in text
    assert len(text.splitlines()) < 450


class Cluster(Kube):
    """A cluster that answers a comparison as told, and applies one Kustomization."""

    def __init__(self, answer: Completed, inventory: Sequence[str] = (), prune: bool = True) -> None:
        super().__init__("test")
        self.answer = answer
        self.sent: list[dict[str, Any]] = []
        self.live: dict[str, Any] = {
            "metadata": {"name": "apps", "namespace": "flux-system"},
            "spec": {"prune": prune},
            "status": {"inventory": {"entries": [{"id": i, "v": "v1"} for i in inventory]}} if inventory else {},
        }

    def list_custom(self, kind: str, namespace: str = "") -> list[dict[str, Any]]:
        assert kind == "Kustomization"
        return [self.live]

    def kubectl(self, *args: Any, **kwargs: Any) -> Completed:
        self.sent.append(json.loads(kwargs["input_text"]))
        assert args[:3] == ("diff", "--server-side", "--force-conflicts")
        return self.answer


def applied(*things: dict[str, Any], by: str = "apps") -> Applied:
    flux = FluxObject({"metadata": {"name": by, "namespace": "flux-system"}}, Place("x.yaml"))
    texts = tuple(yaml.safe_dump(t) for t in things)
    places = tuple(Place("x.yaml", n) for n in range(len(things)))
    return Applied(Rendering(RenderSpec(by), "key", texts, things, places, built=True), [flux])


def objects_of(changes: list[EnvironmentChange]) -> list[tuple[str, str]]:
    return [(o.subject, o.verb) for c in changes for o in c.objects]


def test_the_labels_that_flux_adds_are_no_difference() -> None:
    cluster = Cluster(Completed((), 1, DIFF, "", 0.0))
    changes = against_cluster(cluster, [applied(thing("ConfigMap", "a", data={"x": "1"}))])
    assert cluster.sent[0]["items"][0]["metadata"]["labels"] == {
        "kustomize.toolkit.fluxcd.io/name": "apps",
        "kustomize.toolkit.fluxcd.io/namespace": "flux-system",
    }
    assert objects_of(changes) == [("v1.ConfigMap.dev.a", "changed")]
    assert '+  x: "1"' in changes[0].objects[0].lines


def test_what_a_cluster_leaves_out_or_refuses_is_named_and_the_rest_compared() -> None:
    refusal = Completed((), 2, "", 'warning\nno matches for kind "Thing" in version "example.org/v1"\n', 0.0)
    things = [applied(thing("ConfigMap", "a"), by="elsewhere"), applied(thing("Thing", "b"), thing("Thing", "c"))]
    left_out, refused = against_cluster(Cluster(refusal), things)
    assert objects_of([left_out, refused]) == [("1 object", "not compared"), ("2 objects", "not compared")]
    assert "no Kustomization flux-system/elsewhere" in left_out.objects[0].lines[0]
    assert refused.objects[0].lines == ('the cluster refuses: no matches for kind "Thing" in version "example.org/v1"',)


INVENTORY = [
    "dev_a__ConfigMap",
    "dev_gone_apps_Deployment",
    "_edge_gateway.networking.k8s.io_GatewayClass",
    "_system__gone_rbac.authorization.k8s.io_ClusterRole",
]


@pytest.mark.parametrize("prune", [True, False])
def test_what_flux_would_prune_is_removed(prune: bool) -> None:
    same = Completed((), 0, "", "", 0.0)
    # As kustomize renders what it does not know to stand outside namespaces.
    gateway = {**thing("GatewayClass", "edge"), "apiVersion": "gateway.networking.k8s.io/v1"}
    changes = against_cluster(Cluster(same, INVENTORY, prune), [applied(thing("ConfigMap", "a"), gateway)])
    gone = ["apps.v1.Deployment.dev.gone", "rbac.authorization.k8s.io.v1.ClusterRole.system:gone"]
    assert objects_of(changes) == ([(name, "removed") for name in gone] if prune else [])


# As `kubectl diff` prints it.
DIFF = """\
diff -u -N /tmp/LIVE-1/v1.ConfigMap.dev.a /tmp/MERGED-2/v1.ConfigMap.dev.a
--- /tmp/LIVE-1/v1.ConfigMap.dev.a\t2026-11-25 01:00:00
+++ /tmp/MERGED-2/v1.ConfigMap.dev.a\t2026-11-25 01:00:00
@@ -1,4 +1,4 @@
 apiVersion: v1
 data:
-  x: "0"
+  x: "1"
"""
