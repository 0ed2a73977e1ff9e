"""HelmReleases rendered as Flux installs them: their values, their charts, what is wrong with them, and what is not at hand.

Here a small program stands in for Helm; tests/helm runs these tests with Helm itself.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.check.commands import extra_stages, write_builds
from scripts.check.model import Report, Severity, Stage
from scripts.check.outputs import as_json
from scripts.check.report import closing_line
from scripts.check.runner import check
from scripts.settings import Settings
from tests.manifests.checking import config_map, options, write
from tests.manifests.conftest import load_all
from tests.manifests.helmtrees import (
    CHART,
    REPOSITORY,
    SETTINGS,
    Look,
    archive,
    below,
    chart,
    from_repository,
    from_tree,
    release,
    tree,
)

Object = dict[str, Any]
ROW = "apps: HelmRelease apps/web"
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: apps\n"


def objects(report: Report, row: str = ROW) -> list[Object]:
    assert [f.message for f in report.findings if f.severity is Severity.ERROR] == []
    (found,) = [r for r in report.rendered if r.kustomization == row]
    return load_all(found.text)


def data(report: Report) -> Object:
    (found,) = [o for o in objects(report) if o["kind"] == "ConfigMap"]
    return dict(found["data"])


def told(report: Report) -> list[tuple[str, str, str]]:
    return [(f.rule, str(f.place), f.message) for f in report.findings]


def values_map(text: str, name: str = "values", key: str = "values.yaml") -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "apps"},
            "data": {key: text},
        }
    )


def test_a_chart_in_the_tree_is_rendered_in_the_cluster_that_is_pinned(tmp_path: Path, look: Look) -> None:
    tree(tmp_path / "tree", release(from_tree()))
    report = look()
    (found,) = objects(report)
    assert found["metadata"] == {"name": "web-settings", "namespace": "apps"}
    assert found["data"] == {"level": "info", "inner": "chart", "kube": "v1.37.0"}
    (row,) = [r for r in report.rows if r.kustomization == ROW]
    assert (row.built, row.release, row.resources, row.note) == (True, True, 1, "web-1.2.0")
    assert "1 kustomizations, 1 HelmRelease, 2 resources" in closing_line(report)
    assert '"kustomization": "apps: HelmRelease apps/web"' in as_json(report)


FROM = "  valuesFrom:\n  - {kind: ConfigMap, name: values}\n"
PATH = "  valuesFrom:\n  - {kind: ConfigMap, name: values, valuesKey: one, targetPath: a.b}\n"
VALUES = {
    "of the release": ("  values: {level: debug}\n", {}, ("debug", "chart")),
    "of a reference": (FROM, {"values": values_map("level: ref\na: {b: ref}\n")}, ("ref", "ref")),
    "the release over a reference": (
        FROM + "  values: {level: own}\n", {"values": values_map("level: ref\na: {b: ref}\n")}, ("own", "ref"),
    ),
    "a path over the release": (
        PATH + "  values: {a: {b: own}}\n", {"values": values_map("path", key="one")}, ("info", "path"),
    ),
    "a later reference over an earlier": (
        FROM + "  - {kind: ConfigMap, name: second}\n",
        {"values": values_map("level: first\n"), "second": values_map("level: second\n", "second")}, ("second", "chart"),
    ),
    "of a Secret": (
        "  valuesFrom:\n  - {kind: Secret, name: values}\n",
        {"values": "apiVersion: v1\nkind: Secret\nmetadata: {name: values, namespace: apps}\ndata: {values.yaml: bGV2ZWw6IHNlY3JldAo=}\n"},
        ("secret", "chart"),
    ),
    "without an optional one": ("  valuesFrom:\n  - {kind: Secret, name: none, optional: true}\n", {}, ("info", "chart")),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_values_are_those_that_flux_gives(tmp_path: Path, look: Look, case: str) -> None:
    spec, files, wanted = VALUES[case]
    tree(tmp_path / "tree", release(from_tree(), spec), **files)
    found = data(look())
    assert (found["level"], found["inner"]) == wanted


def test_values_files_take_the_place_of_the_charts_own(tmp_path: Path, look: Look) -> None:
    files = "      valuesFiles: [charts/one.yaml, ./charts/two.yaml]\n"
    more = {"charts/one.yaml": "level: one\na: {b: one}\n", "charts/two.yaml": "level: two\n"}
    tree(tmp_path / "tree", release(from_tree(more=files)), {**below("charts/web", chart()), **more})
    assert (data(look())["level"], data(look())["inner"]) == ("two", "one")
    write(tmp_path / "tree", {"charts/two.yaml": "level: three\n"})
    assert data(look())["level"] == "three"


NAMES = {
    "": ("web", "apps"),
    "  releaseName: shop\n": ("shop", "apps"),
    "  targetNamespace: other\n": ("other-web", "other"),
    "  releaseName: shop\n  targetNamespace: other\n  storageNamespace: third\n": ("shop", "other"),
}


@pytest.mark.parametrize("spec", NAMES)
def test_name_and_namespace_are_those_of_the_release(tmp_path: Path, look: Look, spec: str) -> None:
    tree(tmp_path / "tree", release(from_tree(), spec))
    (found,) = objects(look())
    assert (found["metadata"]["name"].removesuffix("-settings"), found["metadata"]["namespace"]) == NAMES[spec]


def test_a_long_name_is_shortened_as_flux_does_it(tmp_path: Path, look: Look) -> None:
    name = "a-name-of-a-release-that-is-longer-than-helm-takes-one-to-be"
    tree(tmp_path / "tree", release(from_tree(), name=name))
    (found,) = objects(look(), f"apps: HelmRelease apps/{name}")
    assert found["metadata"]["name"] == "a-name-of-a-release-that-is-longer-than--c8bda2cee9f9-settings"


def test_the_namespace_that_helm_makes_is_there(tmp_path: Path, look: Look) -> None:
    spec = "  targetNamespace: other\n  install: {createNamespace: true}\n"
    root = tree(tmp_path / "tree", release(from_tree(), spec))
    assert [(o["kind"], o["metadata"]["name"]) for o in objects(look())] == [
        ("Namespace", "other"), ("ConfigMap", "other-web-settings"),
    ]  # fmt: skip
    tree(root, release(from_tree(), spec), other=NAMESPACE.replace("apps", "other"))
    assert [o["kind"] for o in objects(look())] == ["ConfigMap"]


CRD = (
    "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata:\n  name: widgets.example.com\n"
    "spec:\n  group: example.com\n  names:\n    kind: Widget\n    plural: widgets\n  scope: {}\n  versions:\n"
    "  - name: v1\n    served: true\n    storage: true\n    schema:\n      openAPIV3Schema:\n        type: object\n"
    "        properties:\n          size:\n            type: integer\n"
)
WIDGET = "apiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: w\nsize: {{ .Values.size }}\n"


@pytest.mark.parametrize(("crds", "there"), [("Create", True), ("Skip", False)])
def test_definitions_come_with_the_chart_unless_they_are_skipped(
    tmp_path: Path, look: Look, crds: str, there: bool
) -> None:
    made = chart(crds__crd_yaml=CRD.format("Cluster"), templates__widget_yaml=WIDGET, values_yaml="size: 3\n")
    tree(tmp_path / "tree", release(from_tree(), f"  install: {{crds: {crds}}}\n"), below("charts/web", made))
    found = objects(look())
    assert any(o["kind"] == "CustomResourceDefinition" for o in found) is there
    # What is outside namespaces is known by the definition; without one it is taken for being in one, as most are.
    assert [o["metadata"].get("namespace") for o in found if o["kind"] == "Widget"] == [None if there else "apps"]


def test_a_charts_definition_is_what_its_objects_are_held_to(tmp_path: Path, look: Look) -> None:
    made = chart(crds__crd_yaml=CRD.format("Cluster"), templates__widget_yaml=WIDGET, values_yaml="size: big\n")
    tree(tmp_path / "tree", release(from_tree()), below("charts/web", made))
    report = look(stages=(Stage.STRUCTURE, Stage.BUILD, Stage.SCHEMA))
    assert told(report) == [
        ("wrong-type", "charts/web/templates/widget.yaml:2",
         "size: got string, want integer (HelmRelease apps/web: web/templates/widget.yaml)")
    ]  # fmt: skip


def test_each_item_of_a_list_that_a_chart_makes_is_held_to_its_own_schema(tmp_path: Path, look: Look) -> None:
    items = "".join(
        f"- apiVersion: v1\n  kind: {kind}\n  metadata:\n    name: {kind.lower()}\n  {field}:\n    a: b\n"
        for kind, field in (("ConfigMap", "dat"), ("Secret", "stringDate"))
    )
    made = chart(templates__list_yaml=f"apiVersion: v1\nkind: List\nmetadata: {{}}\nitems:\n{items}")
    tree(tmp_path / "tree", release(from_tree()), below("charts/web", made))
    report = look(stages=(Stage.STRUCTURE, Stage.BUILD, Stage.SCHEMA))
    assert {rule for rule, _, _ in told(report)} == {"unknown-field"}
    assert {message.partition(" (")[0] for _, _, message in told(report)} == {
        "there is no field dat",
        "there is no field stringDate",
    }


def test_what_the_tree_defines_is_what_a_chart_is_told_that_the_cluster_serves(tmp_path: Path, look: Look) -> None:
    shown = SETTINGS + '  has: {{ .Capabilities.APIVersions.Has "example.com/v1/Widget" | quote }}\n'
    root = tree(tmp_path / "tree", release(from_tree()), below("charts/web", chart(templates__settings_yaml=shown)))
    assert data(look())["has"] == "false"
    tree(root, release(from_tree()), below("charts/web", {}), crd=CRD.format("Cluster"))
    assert data(look())["has"] == "true"


def test_hooks_are_there_and_tests_are_not(tmp_path: Path, look: Look) -> None:
    def hook(name: str) -> str:
        return config_map(name, metadata=f"  annotations:\n    helm.sh/hook: {name}\n")

    made = chart(templates__a_yaml=hook("pre-install"), templates__b_yaml=hook("test"))
    tree(tmp_path / "tree", release(from_tree()), below("charts/web", made))
    assert sorted(o["metadata"]["name"] for o in objects(look())) == ["pre-install", "web-settings"]
    tree(tmp_path / "tree", release(from_tree(), "  install: {disableHooks: true}\n"), {})
    assert [o["metadata"]["name"] for o in objects(look())] == ["web-settings"]


PATCH = (
    "  postRenderers:\n  - kustomize:\n      patches:\n      - target: {kind: ConfigMap}\n"
    '        patch: \'[{"op": "add", "path": "/data/patched", "value": "yes"}]\'\n'
)


def test_post_renderers_and_common_metadata_change_what_helm_made(tmp_path: Path, look: Look) -> None:
    tree(tmp_path / "tree", release(from_tree(), PATCH + "  commonMetadata: {labels: {team: shop}}\n"))
    (found,) = objects(look())
    assert found["data"]["patched"] == "yes"
    assert found["metadata"] == {"name": "web-settings", "namespace": "apps", "labels": {"team": "shop"}}


def test_a_post_renderer_that_fails_is_an_error(tmp_path: Path, look: Look) -> None:
    tree(tmp_path / "tree", release(from_tree(), PATCH.replace("/data/patched", "/none/patched")))
    (found,) = told(look())
    assert found[:2] == ("helm-post-render", "apps/release.yaml:12")


SHELVED = {
    "exact": ("1.2.0", "1.2.0"),
    "a range takes the highest": ("1.x", "1.10.0"),
    "none given": ("", "2.0.0"),
    "before a release": (">=2.0.0-0", "2.1.0-rc.1"),
    "not there": ("3.0.0", ""),
}


@pytest.mark.parametrize("case", SHELVED)
def test_a_charts_archive_is_taken_by_its_version(tmp_path: Path, look: Look, case: str) -> None:
    wanted, taken = SHELVED[case]
    for version in ("1.2.0", "1.10.0", "2.0.0", "2.1.0-rc.1"):
        archive(tmp_path / "shelf", chart(version), f"web-{version}.tgz")
    tree(tmp_path / "tree", release(from_repository(wanted)), {}, repository=REPOSITORY)
    report = look()
    (row,) = [r for r in report.rows if r.kustomization == ROW]
    if taken:
        assert row.note == f"web-{taken}"
        assert report.findings == ()
    else:
        assert row.note == "not rendered: its chart web 3.0.0 is not at hand; at hand: 1.2.0, 1.10.0, 2.0.0, 2.1.0-rc.1"
        (finding,) = report.findings
        assert (finding.rule, finding.severity, str(finding.place)) == (
            "helm-not-rendered", Severity.WARNING, "apps/release.yaml:1",
        )  # fmt: skip
        assert "helm pull web --repo https://example.com/charts --version '3.0.0'" in finding.mend


def test_a_repositorys_own_folder_goes_first_and_a_name_that_lies_is_passed_over(tmp_path: Path, look: Look) -> None:
    archive(tmp_path / "shelf", chart("1.0.0", values_yaml="level: others\n"), "web-1.0.0.tgz")
    archive(tmp_path / "shelf" / "charts", chart("1.0.0", values_yaml="level: ours\n"), "web-1.0.0.tgz")
    archive(tmp_path / "shelf" / "charts", chart("1.0.0"), "web-1.5.0.tgz")
    tree(tmp_path / "tree", release(from_repository("1.x")), {}, repository=REPOSITORY)
    assert data(look())["level"] == "ours"


def test_a_folder_of_a_chart_will_do(tmp_path: Path, look: Look) -> None:
    write(tmp_path / "shelf" / "web", chart("1.0.0"))
    tree(tmp_path / "tree", release(from_repository("1.0.0")), {}, repository=REPOSITORY)
    assert data(look())["level"] == "info"


def test_a_chart_may_be_named_by_reference(tmp_path: Path, look: Look) -> None:
    archive(tmp_path / "shelf", chart("1.2.0"), "web-1.2.0.tgz")
    oci = (
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: OCIRepository\nmetadata: {name: web, namespace: apps}\n"
        "spec:\n  interval: 1h\n  url: oci://example.com/charts/web\n  ref: {%s}\n"
    )
    named = "  chartRef: {kind: OCIRepository, name: web}\n"
    for reference in ("tag: 1.2.0", "semver: 1.x"):
        tree(tmp_path / "tree", release(named), {}, source=oci % reference)
        assert data(look())["level"] == "info"
    tree(tmp_path / "tree", release(named), {}, source=oci % f"digest: sha256:{'0' * 64}")
    (found,) = told(look())
    assert "its chart web is named by a digest alone" in found[2]
    helm_chart = (
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: HelmChart\nmetadata: {name: web, namespace: apps}\n"
        "spec:\n  interval: 1h\n  chart: ./charts/web\n  sourceRef: {kind: GitRepository, name: flux-system}\n"
    )
    source = (
        "apiVersion: source.toolkit.fluxcd.io/v1\nkind: GitRepository\nmetadata: {name: flux-system, namespace: apps}\n"
        "spec:\n  interval: 1h\n  url: https://example.com/tree\n"
    )
    named = "  chartRef: {kind: HelmChart, name: web}\n"
    tree(tmp_path / "tree", release(named), None, source=helm_chart, git=source)
    assert data(look())["level"] == "info"


DEPENDS = CHART.format("1.2.0") + "dependencies:\n- {{name: inner, version: 1.x, repository: '{}'}}\n"
INNER = {
    "Chart.yaml": "apiVersion: v2\nname: inner\nversion: 1.0.0\n",
    "templates/inner.yaml": config_map("inner", data="size: {{ .Values.size | quote }}"),
}


def test_what_a_chart_depends_on_may_be_in_it_beside_it_or_on_a_shelf(tmp_path: Path, look: Look) -> None:
    values = "  values: {inner: {size: 3}}\n"
    outer = below("charts/web", chart(Chart_yaml=DEPENDS.format("https://example.com")))
    root = tree(tmp_path / "tree", release(from_tree(), values), outer)
    (found,) = told(look())
    assert found[0] == "helm-not-rendered"
    assert "its chart web-1.2.0 depends on inner 1.x, which is not at hand" in found[2]
    write(tmp_path / "shelf" / "inner", INNER)
    assert {o["metadata"]["name"]: o["data"] for o in objects(look())}["inner"] == {"size": "3"}
    (tmp_path / "shelf").rename(tmp_path / "no shelf")
    assert [f[0] for f in told(look())] == ["helm-not-rendered"]
    write(root, {"charts/web/Chart.yaml": DEPENDS.format("file://../inner"), **below("charts/inner", INNER)})
    assert [o["metadata"]["name"] for o in objects(look())].count("inner") == 1
    edited = INNER["templates/inner.yaml"].replace("name: inner", "name: edited")
    write(root, {"charts/inner/templates/inner.yaml": edited})
    assert "edited" in [o["metadata"]["name"] for o in objects(look())]


SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {name: values, namespace: apps}\nstringData: {values.yaml: 'ENC[AES256_GCM,data:x]'}\nsops: {mac: x}\n"
UNKNOWN = {
    "a Secret that is not there": (release(from_tree(), "  valuesFrom:\n  - {kind: Secret, name: values}\n"), {},
                                   "its values are in Secret values, which is not in the tree"),
    "an encrypted Secret": (release(from_tree(), "  valuesFrom:\n  - {kind: Secret, name: values}\n"), {"values": SECRET},
                            "its values are in Secret values, which is encrypted"),
    "another repository": (
        release(from_tree().replace("name: flux-system", "name: other")),
        {"git": "apiVersion: source.toolkit.fluxcd.io/v1\nkind: GitRepository\nmetadata: {name: other, namespace: flux-system}\n"
                "spec: {interval: 1h, url: 'https://example.com/other'}\n"},
        "its chart ./charts/none comes from GitRepository other, which is not at hand",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_can_not_be_known_is_named(tmp_path: Path, look: Look, case: str) -> None:
    text, files, why = UNKNOWN[case]
    tree(tmp_path / "tree", text.replace("charts/web", "charts/none") if "none" in why else text, **files)
    report = look()
    assert [(f.rule, f.severity, f.message) for f in report.findings] == [
        ("helm-not-rendered", Severity.WARNING, f"not rendered: {why}")
    ]
    assert [r.note for r in report.rows if r.kustomization == ROW] == [f"not rendered: {why}"]


def test_without_helm_it_is_said_what_brings_it(tmp_path: Path, look: Look, helm: Path) -> None:
    tree(tmp_path / "tree", release(from_tree()))
    (finding,) = look(helm=tmp_path / "nowhere").findings
    assert (finding.message, finding.mend) == ("not rendered: helm is not here", "`make helm` brings it")
    assert look().findings == ()


NEEDS = SETTINGS + '  needed: {{ required "say how much" .Values.needed | quote }}\n'
WRONG = {
    "no such path": (from_tree("./charts/none"), "", {}, "helm-chart-missing", "apps/release.yaml:10"),
    "a broken chart": (from_tree(), "", {"charts/web/Chart.yaml": "name: [\n"}, "helm-chart-broken", "apps/release.yaml:9"),
    "a template that fails": (
        from_tree(), "", {"charts/web/templates/settings.yaml": NEEDS}, "helm-template", "charts/web/templates/settings.yaml:9",
    ),
    "a key that is not there": (
        from_tree(), "  valuesFrom:\n  - {kind: ConfigMap, name: values, valuesKey: other}\n", {}, "helm-values-missing",
        "apps/release.yaml:13",
    ),
    "values that are none": (
        from_tree(), "  valuesFrom:\n  - {kind: ConfigMap, name: values, valuesKey: one}\n", {}, "helm-values", "apps/release.yaml:13",
    ),
    "no values file": (from_tree(more="      valuesFiles: [none.yaml]\n"), "", {}, "helm-values-missing", "apps/release.yaml:12"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_flux_would_fail_at_is_an_error_with_its_place(tmp_path: Path, look: Look, case: str) -> None:
    source, spec, files, rule, place = WRONG[case]
    charts = {**below("charts/web", chart()), **files}
    tree(tmp_path / "tree", release(source, spec), charts, values=values_map("just a word", key="one"))
    report = look()
    assert [(f.rule, str(f.place), f.severity) for f in report.findings] == [(rule, place, Severity.ERROR)]
    assert not report.ok
    assert [r.built for r in report.rows if r.kustomization == ROW] == [False]


def test_a_template_of_a_chart_from_elsewhere_is_named_beside_the_release(tmp_path: Path, look: Look) -> None:
    archive(tmp_path / "shelf", chart("1.0.0", templates__settings_yaml=NEEDS), "web-1.0.0.tgz")
    tree(tmp_path / "tree", release(from_repository("1.0.0")), {}, repository=REPOSITORY)
    (found,) = told(look())
    assert found[:2] == ("helm-template", "apps/release.yaml:1")
    assert "web-1.0.0: " in found[2]
    assert "web/templates/settings.yaml:9" in found[2]
    assert "say how much" in found[2]


def test_with_values_that_only_the_cluster_knows_a_failure_is_no_error(tmp_path: Path, look: Look) -> None:
    charts = below("charts/web", chart(templates__settings_yaml=NEEDS))
    tree(tmp_path / "tree", release(from_tree(), "  values: {level: '${level}'}\n"), charts)
    (finding,) = look().findings
    assert (finding.rule, finding.severity) == ("helm-not-rendered", Severity.WARNING)
    assert "say how much" in finding.message


DEPLOYMENT = (
    "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  selector:\n    matchLabels:\n      app: web\n"
    "  template:\n    metadata:\n      labels:\n        app: web\n    spec:\n      containers:\n      - name: web\n        image: web:latest\n"
)


@pytest.mark.parametrize(("own", "severity"), [(True, Severity.ERROR), (False, Severity.WARNING)])
def test_rules_judge_charts_and_only_warn_of_those_from_elsewhere(
    tmp_path: Path, look: Look, own: bool, severity: Severity
) -> None:
    made = chart("1.0.0", templates__deployment_yaml=DEPLOYMENT)
    archive(tmp_path / "shelf", made, "web-1.0.0.tgz")
    source = from_tree() if own else from_repository("1.0.0")
    text = release(source, metadata='  annotations:\n    ignore-check.kube-linter.io/run-as-non-root: "it must"\n')
    tree(tmp_path / "tree", text, below("charts/web", made) if own else {}, repository=REPOSITORY)
    linter = [e for e in extra_stages(Settings()) if e.stage is Stage.LINT]
    found = {f.rule: f for f in look(stages=(Stage.BUILD, Stage.LINT), extra=tuple(linter)).findings}
    assert found["latest-tag"].severity is severity
    assert str(found["latest-tag"].place) == (
        "charts/web/templates/deployment.yaml:2" if own else "apps/release.yaml:1"
    )
    assert found["latest-tag"].message.endswith("(HelmRelease apps/web: web/templates/deployment.yaml)")
    # What the release gives a reason for is silent in all that its chart renders.
    assert "run-as-non-root" not in found
    assert "no-read-only-root-fs" in found


def test_a_service_that_a_chart_makes_is_seen_by_what_refers_to_it(tmp_path: Path, look: Look) -> None:
    ingress = (
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web, namespace: apps}\n"
        "spec:\n  defaultBackend:\n    service: {name: web, port: {number: 80}}\n"
    )
    tree(tmp_path / "tree", release(from_tree()), ingress=ingress)
    linter = tuple(e for e in extra_stages(Settings()) if e.stage is Stage.LINT)

    def missing() -> list[Severity]:
        found = look(stages=(Stage.BUILD, Stage.LINT), extra=linter).findings
        return [f.severity for f in found if "Service" in f.message and f.subject == "Ingress apps/web"]

    # All that the release installs is seen, so what is not there is missing for sure.
    assert missing() == [Severity.ERROR]
    service = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}], selector: {app: web}}\n"
    )
    write(tmp_path / "tree", {"charts/web/templates/service.yaml": service})
    assert missing() == []
    # A chart from elsewhere, at hand or not: another machine may see it otherwise.
    write(tmp_path / "tree", {"apps/release.yaml": release(from_repository("1.0.0"))})
    assert missing() == [Severity.WARNING]
    archive(tmp_path / "shelf", chart("1.0.0"), "web-1.0.0.tgz")
    assert missing() == [Severity.WARNING]
    archive(tmp_path / "shelf", chart("1.0.0", templates__service_yaml=service), "web-1.0.0.tgz")
    assert missing() == []


def test_a_release_within_a_chart_is_rendered_too(tmp_path: Path, look: Look) -> None:
    inner = release(from_tree("./charts/inner"), name="inner").replace("  namespace: apps\n", "", 1)
    charts = {**below("charts/web", chart(templates__inner_yaml=inner)), **below("charts/inner", INNER)}
    tree(tmp_path / "tree", release(from_tree()), charts)
    (found,) = objects(look(), f"{ROW}: HelmRelease apps/inner")
    assert found["metadata"] == {"name": "inner", "namespace": "apps"}


def test_builds_are_written_beside_those_of_kustomizations(tmp_path: Path, look: Look, helm: Path) -> None:
    tree(tmp_path / "tree", release(from_tree()))
    chosen = options(tmp_path / "tree", tmp_path / "cache", helm=helm)
    write_builds(check(chosen, need_renderings=True), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["apps--HelmRelease-apps-web.yaml", "apps.yaml"]
