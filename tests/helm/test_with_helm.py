"""The tests of HelmReleases with Helm itself instead of what stands in for it in `make test`, and what only Helm does.

Run by `make test-helm`, which brings Helm.
"""

import subprocess
from pathlib import Path

import pytest

from scripts import versions
from tests.manifests import helmtrees
from tests.manifests.helmtrees import Look
from tests.manifests.test_helm_releases import *  # noqa: F403
from tests.manifests.test_helm_releases import data, objects, told
from tests.manifests.test_helm_staleness import *  # noqa: F403


def test_it_is_the_pinned_one(helm: Path) -> None:
    done = subprocess.run([helm, "version", "--short"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().partition("+")[0] == versions.load().tools["helm"].version


SCHEMA = '{"type": "object", "properties": {"level": {"enum": ["info", "debug"]}}}'
FUNCTIONS = helmtrees.SETTINGS + (
    '  named: {{ include "web.name" . }}\n  keys: {{ keys .Values.a | sortAlpha | join "," }}\n'
    '  looked: {{ (lookup "v1" "Namespace" "" "kube-system") | len | quote }}\n'
)
HELPERS = '{{- define "web.name" -}}\n{{ .Release.Name }}-{{ .Values.must.be.there }}\n{{- end }}\n'


def test_helpers_functions_and_no_cluster(tmp_path: Path, look: Look) -> None:
    made = helmtrees.chart(templates__settings_yaml=FUNCTIONS) | {"templates/_helpers.tpl": HELPERS}
    spec = "  values: {must: {be: {there: here}}}\n"
    helmtrees.tree(
        tmp_path / "tree", helmtrees.release(helmtrees.from_tree(), spec), helmtrees.below("charts/web", made)
    )
    found = data(look())
    assert (found["named"], found["keys"], found["looked"]) == ("web-here", "b", "0")


def test_a_helper_that_fails_is_found_where_it_is_written(tmp_path: Path, look: Look) -> None:
    made = helmtrees.chart(templates__settings_yaml=FUNCTIONS) | {"templates/_helpers.tpl": HELPERS}
    helmtrees.tree(tmp_path / "tree", helmtrees.release(helmtrees.from_tree()), helmtrees.below("charts/web", made))
    (found,) = told(look())
    assert found[:2] == ("helm-template", "charts/web/templates/_helpers.tpl:2")
    assert "nil pointer" in found[2]


BROKEN = {
    "syntax": (helmtrees.SETTINGS + "  x: {{ .Values.a\n", "charts/web/templates/settings.yaml:9"),
    "what it renders to": (helmtrees.SETTINGS + "  a: b: c\n", "charts/web/templates/settings.yaml"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_template_that_is_none_is_found(tmp_path: Path, look: Look, case: str) -> None:
    text, place = BROKEN[case]
    made = helmtrees.chart(templates__settings_yaml=text)
    helmtrees.tree(tmp_path / "tree", helmtrees.release(helmtrees.from_tree()), helmtrees.below("charts/web", made))
    (found,) = told(look())
    assert found[0] == "helm-template"
    assert found[1].startswith(place)


@pytest.mark.parametrize("checked", [True, False])
def test_values_are_held_to_the_charts_schema_unless_flux_is_told_not_to(
    tmp_path: Path, look: Look, checked: bool
) -> None:
    made = helmtrees.chart() | {"values.schema.json": SCHEMA}
    spec = "  values:\n    level: loud\n" + ("" if checked else "  install: {disableSchemaValidation: true}\n")
    helmtrees.tree(
        tmp_path / "tree", helmtrees.release(helmtrees.from_tree(), spec), helmtrees.below("charts/web", made)
    )
    report = look()
    if checked:
        (found,) = told(report)
        assert found[:2] == ("helm-values-schema", "apps/release.yaml:13")
    else:
        assert data(report)["level"] == "loud"


def test_a_chart_for_another_kubernetes_is_refused(tmp_path: Path, look: Look) -> None:
    made = helmtrees.chart(Chart_yaml=helmtrees.CHART.format("1.2.0") + "kubeVersion: '<1.30.0'\n")
    helmtrees.tree(tmp_path / "tree", helmtrees.release(helmtrees.from_tree()), helmtrees.below("charts/web", made))
    (found,) = told(look())
    assert found[0] == "helm-kubernetes"
    assert "incompatible with Kubernetes v1.37.0" in found[2]


def test_nothing_of_the_users_helm_is_used(tmp_path: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """A settings file that can't be read and a cluster that is not there would stop it."""
    for name in ("HELM_REPOSITORY_CONFIG", "HELM_REGISTRY_CONFIG", "KUBECONFIG"):
        (tmp_path / name).write_text("{broken")
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HELM_NAMESPACE", "elsewhere")
    monkeypatch.setenv("HELM_KUBECONTEXT", "none")
    helmtrees.tree(tmp_path / "tree", helmtrees.release(helmtrees.from_tree()))
    (found,) = objects(look())
    assert found["metadata"]["namespace"] == "apps"
