"""Large files are read, and their definitions' schemas made, beside the run; builds begin before their turn."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.check.runner import check
from tests.manifests.checking import HEAD, config_map, flux, options, write

ROOT = Path(__file__).resolve().parents[2]
MANY = "".join(f"              field{n:05}:\n                type: string\n" for n in range(4000))
DEFINITION = (
    "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: things.example.org\n"
    "spec:\n  group: example.org\n  names:\n    kind: Thing\n    listKind: ThingList\n    plural: things\n"
    "    singular: thing\n  scope: Namespaced\n  versions:\n  - name: v1\n    schema:\n      openAPIV3Schema:\n"
    "        properties:\n          spec:\n            properties:\n" + MANY + "            type: object\n"
    "        type: object\n    served: true\n    storage: true\n"
)
THING = "apiVersion: example.org/v1\nkind: Thing\nmetadata:\n  name: {name}\nspec:\n  {field}: a\n"
TREE = {
    "kustomization.yaml": HEAD + "namespace: own\nresources:\n- things.yaml\n- definition.yaml\n",
    "things.yaml": THING.format(name="good", field="field00001") + "---\n" + THING.format(name="bad", field="fielt"),
    "definition.yaml": DEFINITION,
    # Nobody builds it, so that the rest is built although it is broken.
    "broken/definition.yaml": DEFINITION.replace("  scope: Namespaced\n", "  scope: Namespaced\n  scope: Cluster\n"),
}
SCRIPT = """
import json, sys
from pathlib import Path
from scripts.check import aside
from tests.manifests.checking import checked
children, fork = [], aside._fork
def counted(produce):
    made = fork(produce)
    children.append(made[0])
    return made
aside._fork = counted
aside._can_fork = lambda: sys.argv[3] == "aside"
report = checked(Path(sys.argv[1]), Path(sys.argv[2]))
found = [[f.rule, str(f.place), f.subject, f.message] for f in report.findings]
print(json.dumps([len(children), found]))
"""


def findings(tree: Path, cache: Path, way: str) -> tuple[int, list[list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tree, cache, way], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    children, found = json.loads(done.stdout)
    return children, found


@pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")
def test_the_findings_are_the_same_beside_the_run_and_in_it(tmp_path: Path) -> None:
    tree = write(tmp_path / "tree", TREE)
    children, beside = findings(tree, tmp_path / "one", "aside")
    assert children == 1
    assert findings(tree, tmp_path / "two", "here") == (0, beside)
    told = {(rule, place) for rule, place, *_ in beside}
    assert {("yaml-duplicate-key", "broken/definition.yaml:13"), ("unknown-field", "things.yaml:13")} <= told, beside
    assert not [f for f in beside if "Thing own/good" in f], "its schema is there"
    # With everything known no other process is begun; a definition that changed gives another schema.
    (tree / "things.yaml").write_text(
        (tree / "things.yaml").read_text() + "---\n" + config_map(metadata="  namespace: x\n")
    )
    assert findings(tree, tmp_path / "one", "aside")[0] == 0
    (tree / "definition.yaml").write_text(DEFINITION.replace("field00001:", "fielt:"))
    children, after = findings(tree, tmp_path / "one", "aside")
    assert children == 1
    assert [f for f in after if "Thing own/good" in f]
    assert not [f for f in after if "Thing own/bad" in f]


PATCH = "patches:\n- target: {{kind: {0}, name: child}}\n  patch: |\n    - {{op: add, path: {1}, value: patched}}\n"
ALL = "patches:\n- path: patch.yaml\n"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core builds one after the other")
@pytest.mark.parametrize(
    ("parent", "child", "early", "namespace"),
    [
        ("", "", True, "as-written"),
        (PATCH.format("ConfigMap", "/data/x"), "", True, "as-written"),
        # What may be changed is built as the parent has it, once.
        (PATCH.format("Kustomization", "/spec/targetNamespace"), "", False, "patched"),
        (PATCH.format("Kust.*", "/spec/targetNamespace"), "", False, "patched"),
        (ALL, "", False, "patched"),
        ("", "  postBuild:\n    substitute:\n      name: ${name}\n", False, "as-written"),
    ],
    ids=["as written", "another kind", "a patch", "a pattern", "a file", "a variable"],
)
def test_builds_begin_before_their_turn_unless_something_may_change_them(
    parent: str, child: str, early: bool, namespace: str, tmp_path: Path
) -> None:
    """The parent's build waits for the child's to begin, as long as it takes to be sure that it won't."""
    log = tmp_path / "builds"
    log.touch()
    real = options(tmp_path, tmp_path).kustomize
    counting = tmp_path / "kustomize"
    counting.write_text(
        f'#!/bin/sh\nname=$(basename "$2")\necho "$name" >> {log}\nn=0\n'
        f'while [ "$name" = cluster ] && ! grep -q child {log} && [ $n -lt 100 ]; do n=$((n+1)); sleep 0.02; done\n'
        f'[ "$name" = cluster ] && echo done >> {log}\nexec {real} "$@"\n'
    )
    counting.chmod(0o755)
    tree = write(
        tmp_path / "tree",
        {
            "cluster/kustomization.yaml": HEAD + "resources: [child.yaml, settings.yaml]\n" + parent,
            "cluster/child.yaml": flux("child", "./child", "  targetNamespace: as-written\n" + child),
            "cluster/settings.yaml": config_map("child", metadata="  namespace: flux-system\n"),
            "cluster/patch.yaml": flux("child", "./child", "  targetNamespace: patched\n"),
            "child/settings.yaml": config_map(),
        },
    )
    if parent != ALL:
        (tree / "cluster" / "patch.yaml").unlink()
    report = check(replace(options(tree, tmp_path / "cache"), kustomize=counting), need_renderings=True).report
    namespaces = {r.flux_kustomizations: r.resources[0].namespace for r in report.rendered if r.flux_kustomizations}
    assert namespaces == {("child",): namespace}
    said = log.read_text().split()
    assert sorted(said) == ["child", "cluster", "done"], "each is built once"
    assert (said.index("child") < said.index("done")) is early


def test_objects_of_a_kind_and_name_are_told_apart(tmp_path: Path) -> None:
    """kubeconform does not say which of them it means: each stands in a file of its own."""
    service = (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: {0}\nspec:\n  ports:\n  - port: {1}\n"
    )
    tree = write(
        tmp_path / "tree",
        {
            "kustomization.yaml": HEAD + "resources: [services.yaml, list.yaml]\n",
            "services.yaml": "---\n".join(service.format(n, p) for n, p in (("a", 80), ("b", "eighty"), ("c", 81))),
            "list.yaml": "apiVersion: example.org/v1\nkind: ThingList\nmetadata:\n  name: web\n",
        },
    )
    told = {
        (f.rule, f.subject)
        for f in check(options(tree, tmp_path / "cache")).report.findings
        if f.stage.value == "schema"
    }
    assert told == {("wrong-type", "Service b/web"), ("schema-missing", "ThingList web")}


@pytest.mark.parametrize("order", ["deployment.yaml, typo.yaml", "typo.yaml, deployment.yaml"])
def test_a_kind_in_the_wrong_case_hides_no_error_of_another_object(order: str, tmp_path: Path) -> None:
    """To kubeconform both are the same kind, with one file for its schema."""
    meta = "metadata:\n  name: {}\n  namespace: a\n"
    tree = write(
        tmp_path / "tree",
        {
            "kustomization.yaml": HEAD + f"resources: [{order}]\n",
            "deployment.yaml": "apiVersion: apps/v1\nkind: Deployment\n"
            + meta.format("a")
            + 'spec:\n  replicas: "4"\n',
            "typo.yaml": "apiVersion: apps/v1\nkind: deployment\n" + meta.format("b"),
        },
    )
    said = [f.message for f in check(options(tree, tmp_path / "cache")).report.findings if f.stage.value == "schema"]
    assert any(m.startswith("spec.replicas: got string") for m in said), said
    (tree / "typo.yaml").write_text("apiVersion: v1\nkind: ConfigMap\n" + meta.format("b"))
    said = [f.message for f in check(options(tree, tmp_path / "cache")).report.findings if f.stage.value == "schema"]
    assert any(m.startswith("spec.replicas: got string") for m in said), said
