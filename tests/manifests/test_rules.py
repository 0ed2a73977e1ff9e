"""Alerts: what they are made from, that they fire and don't (promtool's own tests), and that each has its runbook."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import appimage, settings
from scripts.monitoring import rules, slo
from scripts.process import run
from scripts.settings import ROOT
from tests.manifests.conftest import Build, Object, Tree, load_all, load_file

CASES = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
HOW_TO_RUN = ROOT / "how-to-run.MD"
# What an alert's description may take from its series; `value` is not a label.
_LABEL = re.compile(r"\$labels\.(\w+)")


@pytest.fixture(scope="session")
def promtool() -> Path:
    binary = settings.load().tools_dir / "promtool"
    assert binary.exists(), f"{binary} is not there: `make test` brings it"
    return binary


def rule_objects(tree: Tree) -> dict[str, Object]:
    return {o["metadata"]["name"]: o["spec"] for o in tree.all("PrometheusRule")}


@pytest.fixture(scope="session")
def groups(render: Callable[[Path], Tree], build: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Object]:
    """The rendered rules by their object's name; those of the short windows as `slo-short`."""
    wrapper = tmp_path_factory.mktemp("short") / "kustomization.yaml"
    # kustomize takes relative paths only, and none out of a folder it doesn't know.
    relative = Path("/".join([".."] * (len(wrapper.parent.parts) - 1))) / slo.RULES.relative_to("/")
    wrapper.write_text(yaml.safe_dump({"resources": [str(relative)], "components": [str(relative / "short-windows")]}))
    short = {o["metadata"]["name"]: o["spec"] for o in load_all(build(wrapper.parent)) if o["kind"] == "PrometheusRule"}
    found = rule_objects(render(slo.RULES))
    assert set(short) == set(found)
    assert {n: s for n, s in short.items() if n != "slo"} == {n: s for n, s in found.items() if n != "slo"}
    return {**found, "slo-short": short["slo"]}


def alerts_of(specs: dict[str, Object]) -> dict[str, Object]:
    return {r["alert"]: r for s in specs.values() for g in s["groups"] for r in g["rules"] if "alert" in r}


@pytest.fixture
def alerts(groups: dict[str, Object]) -> dict[str, Object]:
    return alerts_of(groups)


def expectations() -> dict[str, list[list[Any]]]:
    """What the cases expect of each alert, one list of alerts per look."""
    found: dict[str, list[list[Any]]] = {}
    for case in CASES:
        for test in load_file(case)["tests"]:
            for look in test.get("alert_rule_test", []):
                found.setdefault(look["alertname"], []).append(look["exp_alerts"])
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_alerts_fire_when_they_should_and_only_then(
    case: Path, promtool: Path, groups: dict[str, Object], tmp_path: Path
) -> None:
    for name, spec in groups.items():
        # promtool compares annotations as well; they are looked at below.
        bare = {
            "groups": [
                {**g, "rules": [{k: v for k, v in r.items() if k != "annotations"} for r in g["rules"]]}
                for g in spec["groups"]
            ]
        }
        (tmp_path / name).write_text(yaml.dump(bare, Dumper=yaml.CSafeDumper))
    (tmp_path / case.name).write_text(case.read_text())
    done = run([promtool, "test", "rules", tmp_path / case.name], timeout_s=280, check=False)
    assert done.exit_code == 0, done.stdout + done.stderr


def test_promtool_takes_every_rule_with_its_templates(
    promtool: Path, groups: dict[str, Object], tmp_path: Path
) -> None:
    for name, spec in groups.items():
        (tmp_path / name).write_text(yaml.dump({"groups": spec["groups"]}, Dumper=yaml.CSafeDumper))
    done = run([promtool, "check", "rules", "--lint=all", "--lint-fatal", *sorted(tmp_path.iterdir())], timeout_s=60, check=False)  # fmt: skip
    assert done.exit_code == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alerts: dict[str, Object]) -> None:
    looks = expectations()
    assert set(looks) == set(alerts)
    always = {"Watchdog"}
    for name, expected in looks.items():
        assert any(expected), f"no case in which {name} fires"
        assert name in always or not all(expected), f"no case in which {name} does not fire"


def test_each_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(alerts: dict[str, Object]) -> None:
    for name, alert in alerts.items():
        assert alert["labels"]["severity"] in {"critical", "warning", "none"}, name
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert alert["annotations"]["runbook_url"] == f"{HOW_TO_RUN.name}#{name.lower()}", name


def test_a_text_takes_only_labels_that_its_alert_has(alerts: dict[str, Object]) -> None:
    for name, looks in expectations().items():
        texts = " ".join(alerts[name]["annotations"].values())
        for alert in (a for look in looks for a in look):
            missing = set(_LABEL.findall(texts)) - set(alert["exp_labels"])
            assert not missing, f"{name} speaks of {missing}"


def test_each_alert_has_its_runbook_and_each_runbook_its_alert(alerts: dict[str, Object]) -> None:
    text = HOW_TO_RUN.read_text().partition("\n## Runbooks\n")[2].partition("\n## ")[0]
    sections = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert sorted(sections) == sorted(alerts)
    for section in text.split("\n### ")[1:]:
        assert len(section.splitlines()) > 2, f"nothing stands in {section.splitlines()[0]}"


def test_the_rules_of_the_service_levels_are_what_make_rules_writes() -> None:
    for path, text in rules.rendered().items():
        assert path.read_text() == text, f"{path.name} is not what slo.yaml asks for: `make rules`"


def test_the_short_windows_change_nothing_but_windows(groups: dict[str, Object]) -> None:
    normal, short = alerts_of({"slo": groups["slo"]}), alerts_of({"slo": groups["slo-short"]})
    assert set(normal) == set(short)
    for name in normal:
        assert normal[name]["labels"] == short[name]["labels"]
        assert normal[name].get("for") == short[name].get("for")
    assert [b.rate for b in slo.NORMAL.burns] == [b.rate for b in slo.SHORT.burns]


def test_a_threshold_is_a_bound_of_the_applications_histogram() -> None:
    from demo_app.metrics import BUCKETS_S

    objectives = slo.load()
    for objective in (objectives.default, *objectives.environments.values()):
        assert objective.threshold_s in BUCKETS_S


def test_alertmanager_tells_the_receiver_that_runs_here_and_the_address_of_a_person(
    render: Callable[[Path], Tree],
) -> None:
    tree = render(slo.RULES)
    config = yaml.safe_load(tree.one("Secret", "alertmanager-lab")["stringData"]["alertmanager.yaml"])
    hooks = {r["name"]: [h.get("url") or h["url_file"] for h in r["webhook_configs"]] for r in config["receivers"]}
    service = tree.one("Service", "alert-receiver")
    (port,) = (p["port"] for p in service["spec"]["ports"])
    here = f"http://alert-receiver.{service['metadata']['namespace']}.svc:{port}/alerts"
    assert hooks == {"here": [here], "people": [here, "/etc/alertmanager/webhook/url"]}
    assert {config["route"]["receiver"], *(r["receiver"] for r in config["route"]["routes"])} == set(hooks)
    webhook = tree.one("Secret", "alert-webhook")
    # Flux makes it where it is missing and leaves a person's own alone.
    assert webhook["metadata"]["annotations"]["kustomize.toolkit.fluxcd.io/ssa"] == "IfNotPresent"
    assert webhook["stringData"] == {"url": here.replace("/alerts", "/nowhere")}


def test_the_receiver_runs_on_the_image_that_the_lab_has(render: Callable[[Path], Tree]) -> None:
    (container,) = render(slo.RULES).one("Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{appimage.IMAGE_IN_CLUSTER}:{appimage.manifest_tag()}"


def test_a_release_moves_the_receiver_along(tmp_path: Path) -> None:
    for file in appimage.TAGGED:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True)
        copy.write_text(file.read_text())
    assert appimage.set_manifest_tag("0123456789ab", tmp_path)
    assert not appimage.set_manifest_tag("0123456789ab", tmp_path)
    for file in appimage.TAGGED:
        text = (tmp_path / file.relative_to(ROOT)).read_text()
        assert "newTag: 0123456789ab" in text
        assert text.replace("0123456789ab", appimage.manifest_tag()) == file.read_text()


def test_an_inhibition_names_alerts_that_exist(render: Callable[[Path], Tree], alerts: dict[str, Object]) -> None:
    secret = render(slo.RULES).one("Secret", "alertmanager-lab")
    config = yaml.safe_load(secret["stringData"]["alertmanager.yaml"])
    for rule in config["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            names = re.fullmatch(r'alertname=~?"(.*)"', matcher)
            assert names and set(names[1].split("|")) <= set(alerts)


def test_kube_state_metrics_may_read_what_it_is_asked_to_tell(render: Callable[[Path], Tree]) -> None:
    tree = render(slo.STACK / "state")
    config = yaml.safe_load(tree.one("ConfigMap", "kube-state-metrics-config")["data"]["config.yaml"])
    told = {(r["groupVersionKind"]["group"], r["groupVersionKind"]["kind"]) for r in config["spec"]["resources"]}
    # Flux's plurals, as its definitions have them.
    plurals = {"GitRepository": "gitrepositories", "HelmRepository": "helmrepositories"}
    allowed = {
        (g, resource) for r in tree.one("ClusterRole")["rules"] for g in r["apiGroups"] for resource in r["resources"]
    }
    wanted = {(group, plurals.get(kind, f"{kind.lower()}s")) for group, kind in told}
    assert allowed == wanted | {("apiextensions.k8s.io", "customresourcedefinitions")}
    assert {"Kustomization", "GitRepository", "HelmRelease"} <= {kind for _, kind in told}
