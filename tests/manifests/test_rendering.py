"""A folder is rendered as kustomize-controller applies it: what a Flux Kustomization says is done to it, in Flux's way."""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.check.commands import write_builds
from scripts.check.model import Finding, Place, Rendered, Stage
from scripts.check.runner import ExtraStage, Options, check
from scripts.errors import UsageError
from tests.manifests.checking import HEAD, checked, config_map, flux, options, renderings, write
from tests.manifests.conftest import load_all

WEB = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  selector:
    matchLabels:
      app: web
  template:
    metadata:
      labels:
        app: web
    spec:
      containers:
      - name: main
        image: registry.lab/web:1.0
"""


@pytest.fixture
def collector() -> Iterator[None]:
    was_enabled = gc.isenabled()
    yield
    (gc.enable if was_enabled else gc.disable)()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_pythons_collector_is_left_as_it_was(collector: None, is_enabled: bool, tmp_path: Path) -> None:
    tree = write(
        tmp_path / "tree", {"kustomization.yaml": HEAD + "resources: [settings.yaml]\n", "settings.yaml": config_map()}
    )
    (gc.enable if is_enabled else gc.disable)()
    seen: list[bool] = []

    def look(rendered: Sequence[Rendered], options: Options) -> list[Finding]:
        seen.append(gc.isenabled())
        return []

    assert checked(tree, tmp_path / "cache", extra=(ExtraStage(Stage.LINT, look),)).ok
    assert seen == [False], "it would go through all that was read again and again"
    assert gc.isenabled() is is_enabled
    with pytest.raises(UsageError):
        checked(tmp_path / "nowhere", tmp_path / "cache")
    assert gc.isenabled() is is_enabled


def one(rendered: Rendered, kind: str) -> dict[str, Any]:
    found = [o for o in load_all(rendered.text) if o["kind"] == kind]
    assert len(found) == 1
    return found[0]


def applied(tmp_path: Path, spec: str, kustomization: str = "resources:\n- web.yaml\n", **files: str) -> Rendered:
    more = {name.replace("__", "/").replace("_yaml", ".yaml"): text for name, text in files.items()}
    tree = {"apps/kustomization.yaml": HEAD + kustomization, "apps/web.yaml": WEB}
    write(tmp_path / "tree", {**tree, "cluster/sync.yaml": flux("apps", "./apps", spec), **more})
    return renderings(tmp_path / "tree", tmp_path / "cache")["apps"]


def test_target_namespace_prefix_and_suffix(tmp_path: Path) -> None:
    spec = "  targetNamespace: prod\n  namePrefix: a-\n  nameSuffix: -z\n"
    web = one(applied(tmp_path, spec, "namespace: dev\nnamePrefix: b-\nresources:\n- web.yaml\n"), "Deployment")
    assert (web["metadata"]["namespace"], web["metadata"]["name"]) == ("prod", "a-web-z")


def test_patches_come_after_the_folders_own(tmp_path: Path) -> None:
    patch = "patches:\n- target:\n    kind: Deployment\n  patch: |\n    - op: add\n      path: /spec/replicas\n      value: {}\n"
    indented = "".join(f"  {line}\n" for line in patch.format(3).splitlines())
    web = one(applied(tmp_path, indented, patch.format(2) + "resources:\n- web.yaml\n"), "Deployment")
    assert web["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("own", "flux_images", "expected"),
    [
        ("", "newTag: '2.0'", "registry.lab/web:2.0"),
        ("newTag: '1.5'", "newName: other/web", "other/web:1.5"),
        ("digest: sha256:abc", "newTag: '2.0'", "registry.lab/web:2.0"),
    ],
)
def test_images_are_merged_field_by_field(tmp_path: Path, own: str, flux_images: str, expected: str) -> None:
    kustomization = "resources:\n- web.yaml\n" + (f"images:\n- name: registry.lab/web\n  {own}\n" if own else "")
    spec = f"  images:\n  - name: registry.lab/web\n    {flux_images}\n"
    web = one(applied(tmp_path, spec, kustomization), "Deployment")
    assert web["spec"]["template"]["spec"]["containers"][0]["image"] == expected


def test_components_are_added_and_missing_ones_ignored_if_asked_for(tmp_path: Path) -> None:
    component = "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nresources:\n- extra.yaml\n"
    spec = "  components:\n  - ../parts/extra\n  - ../parts/none\n  ignoreMissingComponents: true\n"
    files = {"parts__extra__kustomization_yaml": component, "parts__extra__extra_yaml": config_map("extra")}
    assert one(applied(tmp_path, spec, **files), "ConfigMap")["metadata"]["name"] == "extra"


def test_common_metadata_is_put_on_everything(tmp_path: Path) -> None:
    spec = "  commonMetadata:\n    labels:\n      team: lab\n    annotations:\n      note: hello\n"
    web = one(applied(tmp_path, spec), "Deployment")
    assert web["metadata"]["labels"] == {"team": "lab"}
    assert web["metadata"]["annotations"] == {"note": "hello"}
    assert web["spec"]["template"]["metadata"]["labels"] == {"app": "web"}


def test_values_come_from_config_maps_and_secrets_and_what_is_written_wins(tmp_path: Path) -> None:
    spec = (
        "  postBuild:\n    substitute:\n      c: written\n    substituteFrom:\n"
        "    - {kind: ConfigMap, name: vars}\n    - {kind: Secret, name: secrets}\n"
    )
    secret = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: secrets\n  namespace: flux-system\ndata:\n  b: c2VjcmV0\nstringData:\n  d: plain\n"
    rendered = applied(
        tmp_path, spec, "namespace: apps\nresources:\n- text.yaml\n",
        apps__text_yaml=config_map("text", 'text: "${a} ${b} ${c} ${d} ${e:=default}"'),
        vars__kustomization_yaml=HEAD + "namespace: flux-system\nresources:\n- vars.yaml\n- secrets.yaml\n",
        vars__vars_yaml=config_map("vars", "a: from-map\n  b: overwritten\n  c: overwritten"),
        vars__secrets_yaml=secret,
    )  # fmt: skip
    assert one(rendered, "ConfigMap")["data"]["text"] == "from-map secret written plain default"


def test_an_object_can_be_left_alone(tmp_path: Path) -> None:
    annotation = "  annotations:\n    kustomize.toolkit.fluxcd.io/substitute: disabled\n"
    rendered = applied(
        tmp_path, "  postBuild:\n    substitute:\n      a: b\n", "namespace: apps\nresources:\n- text.yaml\n",
        apps__text_yaml=config_map("text", "text: ${a} ${none}", annotation),
    )  # fmt: skip
    assert one(rendered, "ConfigMap")["data"]["text"] == "${a} ${none}"
    assert checked(tmp_path / "tree", tmp_path / "cache").ok


def test_without_values_flux_leaves_the_text_alone(tmp_path: Path) -> None:
    rendered = applied(
        tmp_path, "  postBuild: {}\n", "namespace: apps\nresources:\n- text.yaml\n",
        apps__text_yaml=config_map("text", "text: ${a}"),
    )  # fmt: skip
    assert one(rendered, "ConfigMap")["data"]["text"] == "${a}"


def test_encrypted_values_are_known_by_name_and_fail_no_schema(tmp_path: Path) -> None:
    spec = "  postBuild:\n    substituteFrom:\n    - {kind: Secret, name: secrets}\n"
    sops = "sops:\n  mac: ENC[AES256_GCM,data:x]\n  version: 3.9.0\n"
    secret = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: secrets\n  namespace: flux-system\nstringData:\n  count: ENC[AES256_GCM,data:eA==]\n"
    rendered = applied(
        tmp_path, spec, "namespace: apps\nresources:\n- web.yaml\npatches:\n- patch: |-\n    apiVersion: apps/v1\n    kind: Deployment\n    metadata:\n      name: web\n    spec:\n      replicas: ${count}\n",
        vars__kustomization_yaml=HEAD + "resources:\n- secrets.yaml\n",
        vars__secrets_yaml=secret + sops,
    )  # fmt: skip
    assert one(rendered, "Deployment")["spec"]["replicas"] == "${count}"
    report = checked(tmp_path / "tree", tmp_path / "cache")
    assert report.findings == ()
    assert all("sops:" not in r.text for r in renderings(tmp_path / "tree", tmp_path / "cache").values())


def test_what_a_parent_makes_of_its_children_counts(tmp_path: Path) -> None:
    """The child is written with another path and no variables: its parent's patch gives it both."""
    patch = (
        "  patches:\n  - target:\n      kind: Kustomization\n    patch: |\n"
        "      - op: replace\n        path: /spec/path\n        value: ./apps\n"
        "      - op: add\n        path: /spec/postBuild\n        value:\n          substitute:\n            level: debug\n"
    )
    write(
        tmp_path / "tree",
        {
            "cluster/sync.yaml": flux("parent", "./parent", patch),
            "parent/kustomization.yaml": HEAD + "resources:\n- child.yaml\n",
            "parent/child.yaml": flux("child", "./nowhere"),
            "apps/kustomization.yaml": HEAD + "namespace: apps\nresources:\n- settings.yaml\n",
            "apps/settings.yaml": config_map(data="level: ${level}"),
        },
    )
    assert checked(tmp_path / "tree", tmp_path / "cache").findings == ()
    assert one(renderings(tmp_path / "tree", tmp_path / "cache")["child"], "ConfigMap")["data"]["level"] == "debug"


def test_each_object_has_the_place_where_it_was_written(tmp_path: Path) -> None:
    rendered = applied(
        tmp_path, "", "namePrefix: a-\nnamespace: apps\nresources:\n- two.yaml\n- ../base\nconfigMapGenerator:\n- name: made\n  literals:\n  - a=b\n",
        apps__two_yaml="# first\n" + config_map("one") + "---\n" + config_map("two"),
        base__kustomization_yaml=HEAD + "resources:\n- web.yaml\n",
        base__web_yaml=WEB,
    )  # fmt: skip
    places = {r.name.removeprefix("a-").partition("-")[0]: str(r.place) for r in rendered.resources}
    assert places == {
        "one": "apps/two.yaml:2",
        "two": "apps/two.yaml:9",
        "web": "base/web.yaml:1",
        "made": "apps/kustomization.yaml:9",
    }
    assert "config.kubernetes.io/origin" not in rendered.text


def test_a_tree_within_a_repository_finds_the_paths_that_start_at_its_top(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "deploy/cluster/sync.yaml": flux("apps", "./deploy/apps"),
            "deploy/apps/kustomization.yaml": HEAD + "namespace: apps\nresources:\n- ../../shared\n",
            "shared/kustomization.yaml": HEAD + "resources:\n- settings.yaml\n",
            "shared/settings.yaml": config_map(),
        },
    )
    (tmp_path / ".git").mkdir()
    rendered = renderings(tmp_path / "deploy", tmp_path / "cache")["apps"]
    assert [str(r.place) for r in rendered.resources] == ["../shared/settings.yaml:1"]


def test_builds_are_written_the_same_twice_and_what_is_gone_is_gone(tmp_path: Path) -> None:
    applied(tmp_path, "")
    out = tmp_path / "out"

    def build(cache: str) -> dict[str, str]:
        done = check(options(tmp_path / "tree", tmp_path / cache, everything=True), need_renderings=True)
        write_builds(done, out)
        return {str(p.relative_to(out)): p.read_text() for p in sorted(out.rglob("*.yaml"))}

    first = build("a")
    assert set(first) == {"apps.yaml", "cluster.yaml"}
    (out / "old.yaml").write_text("left from before")
    assert build("b") == first


def test_stages_see_everything_in_the_order_in_which_flux_applies_it(tmp_path: Path) -> None:
    def depends(name: str) -> str:
        return f"  dependsOn:\n  - name: {name}\n"

    folders = ["a", "b", "c", "child"]
    tree = {
        f"{f}/kustomization.yaml": HEAD + f"namespace: {f if f != 'c' else 'flux-system'}\nresources:\n- x.yaml\n"
        for f in folders
    }
    tree |= {f"{f}/x.yaml": config_map() for f in folders}
    tree["c/x.yaml"] += "---\n" + flux("child", "./child")
    tree["cluster/sync.yaml"] = "---\n".join(
        [flux("a", "./a", depends("b")), flux("b", "./b", depends("c")), flux("c", "./c")]
    )
    write(tmp_path / "tree", tree)
    seen: list[str] = []

    def look(rendered: Sequence[Rendered], chosen: Options) -> list[Finding]:
        seen.extend(r.kustomization for r in rendered)
        return [Finding(Stage.LINT, "x", "y", "z", Place("a/x.yaml", 1), kustomization="a")]

    stage = ExtraStage(Stage.LINT, look)
    report = checked(tmp_path / "tree", tmp_path / "cache", extra=(stage,))
    assert seen == ["cluster", "c", "b", "child", "a"]
    assert [f.rule for f in report.findings] == ["x"]
    # Known by what was rendered: asked again only when that changed.
    write(tmp_path / "tree", {"a/notes.txt": "no manifest"})
    assert not checked(tmp_path / "tree", tmp_path / "cache", extra=(stage,)).from_cache
    assert len(seen) == 5
