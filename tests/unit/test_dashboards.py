"""The dashboards as code: what is committed is what they generate, and every query asks for what somebody exports."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml
from demo_app.factory import create_app
from demo_app.settings import Settings as AppSettings
from prometheus_client.parser import text_string_to_metric_families

from scripts.monitoring import pictures
from scripts.monitoring.dashboards import generate, panels
from scripts.monitoring.dashboards.panels import Dashboard, Panel

BOARDS = [panels.read(board) for board in generate.boards()]
PANELS = [(board, panel) for board in BOARDS for panel in board.panels]
QUERIES = [(board, panel, query) for board, panel in PANELS for query in panel.queries]

# What the dashboards ask for, by the monitor that brings it. A name that is misspelt is on nobody's list.
STACK = generate.FOLDER.parent
EXPORTED = {
    "kube-state-metrics": {
        "kube_deployment_status_replicas_ready", "kube_horizontalpodautoscaler_spec_max_replicas",
        "kube_horizontalpodautoscaler_spec_target_metric", "kube_horizontalpodautoscaler_status_condition",
        "kube_horizontalpodautoscaler_status_desired_replicas", "kube_horizontalpodautoscaler_status_target_metric",
        "kube_node_status_allocatable", "kube_node_status_condition", "kube_pod_container_resource_limits",
        "kube_pod_container_resource_requests", "kube_pod_container_status_restarts_total", "kube_pod_info",
        "kube_pod_status_phase", "kube_poddisruptionbudget_status_pod_disruptions_allowed", "kube_resourcequota",
        # As state/config.yaml tells it to look at Flux's objects.
        "gotk_artifact_updated_seconds", "gotk_first_reconciled_seconds", "gotk_resource_info",
    },
    "node-exporter": {
        "node_cpu_seconds_total", "node_filesystem_avail_bytes", "node_filesystem_size_bytes",
        "node_memory_MemAvailable_bytes", "node_memory_MemTotal_bytes",
    },
    "kubelet": {
        "container_cpu_cfs_periods_total", "container_cpu_cfs_throttled_periods_total",
        "container_cpu_usage_seconds_total", "container_memory_working_set_bytes",
        "container_network_receive_bytes_total", "container_network_transmit_bytes_total",
    },
    "flux": {
        "controller_runtime_reconcile_errors_total", "controller_runtime_reconcile_total",
        "gotk_reconcile_duration_seconds_bucket", "workqueue_depth",
    },
    "edge-proxy": {
        "envoy_cluster_upstream_rq_retry", "envoy_cluster_upstream_rq_timeout", "envoy_cluster_upstream_rq_xx",
        "envoy_http_downstream_rq_time_bucket",
    },
}  # fmt: skip


def test_what_is_committed_is_what_is_generated():
    there = {p.name: p.read_text() for p in generate.FOLDER.glob("*.yaml")}
    assert there == generate.files(), "run `make dashboards-generate` and commit what it writes"


def test_generating_again_changes_nothing_and_what_no_dashboard_has_goes(tmp_path):
    assert generate.write(tmp_path).changed
    assert not generate.write(tmp_path).changed
    (tmp_path / "gone.yaml").write_text("old")
    (tmp_path / "application.yaml").write_text("changed by hand")
    outcome = generate.write(tmp_path)
    assert "application.yaml, gone.yaml" in outcome.what
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == generate.files()


def test_each_config_map_holds_a_dashboard_for_the_sidecar_that_flux_leaves_as_it_is():
    for name, text in generate.files().items():
        thing = yaml.safe_load(text)
        if name == "kustomization.yaml":
            assert sorted(thing["resources"]) == sorted(generate.files().keys() - {name})
            assert thing["namespace"] == "monitoring"
            continue
        assert thing["kind"] == "ConfigMap"
        assert thing["metadata"]["labels"] == {"grafana_dashboard": "1"}
        assert thing["metadata"]["annotations"]["kustomize.toolkit.fluxcd.io/substitute"] == "disabled"
        ((file, text),) = thing["data"].items()
        board = json.loads(text)
        assert file == f"{board['uid']}.json"
        # The API server takes 1 MiB; what is applied server-side has no copy in an annotation.
        assert len(text) < 500_000


def test_dashboards_and_panels_can_be_told_apart():
    assert [b.uid for b in BOARDS] == ["lab-application", "lab-autoscaling", "lab-flux", "lab-capacity"]
    assert len({b.title for b in BOARDS}) == len(BOARDS)
    for board in BOARDS:
        names = [(p.row, p.title) for p in board.panels]
        assert len(set(names)) == len(names), board.title


def test_panels_lie_side_by_side_without_overlap():
    for board in generate.boards():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert at["x"] + at["w"] <= 24
            assert not cells & taken, f"{board['title']}: {panel['title']}"
            taken |= cells


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=[f"{b.uid}: {p.row}: {p.title}" for b, p in PANELS])
def test_a_panel_says_what_it_is_and_has_a_unit_that_can_be_drawn(board: Dashboard, panel: Panel):
    assert panel.description.endswith(".")
    assert panel.unit in pictures.UNITS
    assert panel.queries
    assert all(q.legend for q in panel.queries)


def exported_by_the_app() -> set[str]:
    """The names in the application's own exposition, after a request."""
    client = create_app(AppSettings(greeting="hello", readiness_delay_s=0.0)).test_client()
    client.get("/work")
    return {s.name for f in text_string_to_metric_families(client.get("/metrics").text) for s in f.samples}


def recorded(file: str) -> set[str]:
    """The series that a PrometheusRule records."""
    groups = yaml.safe_load((STACK / "rules" / file).read_text())["spec"]["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def test_every_metric_is_one_that_somebody_exports():
    # With the windows for people and with those for tests.
    rules = recorded("prometheusrule-slo.yaml") & recorded("short-windows/prometheusrule-slo.yaml")
    known = exported_by_the_app().union(*EXPORTED.values(), rules, {"ALERTS"})
    asked = {name for _, _, query in QUERIES for name in panels.metrics_of(query.expression)}
    assert asked <= known
    unused = {name for names in EXPORTED.values() for name in names} - asked
    assert not unused, "nobody asks for these any more"


@pytest.mark.parametrize("monitor", EXPORTED)
def test_no_monitor_drops_what_a_dashboard_asks_for(monitor):
    spec = yaml.safe_load((STACK / "monitors" / f"{monitor}.yaml").read_text())["spec"]
    endpoints = spec.get("endpoints") or spec["podMetricsEndpoints"]
    keeps = [
        [re.compile(r["regex"]) for r in e.get("metricRelabelings", []) if r["action"] == "keep"] for e in endpoints
    ]
    dropped = {m for m in EXPORTED[monitor] if not any(all(k.fullmatch(m) for k in own) for own in keeps)}
    assert not dropped


def test_flux_objects_are_looked_at_as_the_dashboards_ask():
    config = yaml.safe_load((STACK / "state" / "config.yaml").read_text())
    told: dict[str, set[str]] = {}
    for resource in config["spec"]["resources"]:
        for metric in resource["metrics"]:
            labels = {*metric.get("labelsFromPath", {}), *metric.get("commonLabels", {})}
            labels |= set(metric["each"].get("info", {}).get("labelsFromPath", {}))
            told.setdefault(f"{resource['metricNamePrefix']}_{metric['name']}", set()).update(labels)
    assert {m for m in EXPORTED["kube-state-metrics"] if m.startswith("gotk_")} <= told.keys()
    assert {"kind", "name", "ready", "suspended"} <= told["gotk_resource_info"]
    assert {"name", "source_name"} <= told["gotk_first_reconciled_seconds"]
    assert {"name"} <= told["gotk_artifact_updated_seconds"]


def test_every_label_of_the_applications_series_is_one_that_it_has():
    client = create_app(AppSettings(greeting="hello", readiness_delay_s=0.0)).test_client()
    client.get("/work")
    families = text_string_to_metric_families(client.get("/metrics").text)
    own = {label for f in families for s in f.samples for label in s.labels}
    for _, panel, query in QUERIES:
        for name, matchers in re.findall(r"\b(app_\w+)\{([^}]*)\}", query.expression):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|=|!=)", matchers))
            assert labels <= own | {"job", "namespace", "pod"}, f"{panel.title}: {name}"


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up", ["up"]),
        ('sum by (a, b) (rate(x_total{c="d", e=~"f|g"}[5m])) / on (h) group_left (i) y', ["x_total", "y"]),
        ('label_replace(a:b:c, "x", "$1", "y", "(z.+)") or vector(0)', ["a:b:c"]),
        ("histogram_quantile(0.95, sum(rate(h_bucket[1m])) by (le))", ["h_bucket"]),
        ("a unless on (b) c and ignoring (d) e offset 5m", ["a", "c", "e"]),
        ("clamp_min(a, 1e-9) > bool 2", ["a"]),
        ("max_over_time(rate(a[5m])[1h:1m])", ["a"]),
        ('1 - a{b="c{d}"}', ["a"]),
    ],
)
def test_the_metrics_of_an_expression(expression, names):
    found = panels.metrics_of(expression)
    assert found == names


@pytest.mark.parametrize(
    ("step_s", "expression", "asked"),
    [
        (15, "rate(x[$__rate_interval])", "rate(x[120s])"),
        (360, "rate(x[$__rate_interval])", "rate(x[390s])"),
        (15, 'x{namespace=~"$environment"}', 'x{namespace=~".+"}'),
        (15, 'x{namespace=~"$namespace", a=~"b/($environment)/.+"}', 'x{namespace=~".+", a=~"b/(.+)/.+"}'),
        (15, 'label_replace(x, "a", "$1", "b", "(.+)")', 'label_replace(x, "a", "$1", "b", "(.+)")'),
        (15, "$environments", "$environments"),
    ],
)
def test_grafanas_variables_are_filled_in_where_there_is_no_grafana(step_s, expression, asked):
    assert panels.without_variables(expression, step_s) == asked


def test_no_query_has_a_variable_that_nobody_fills_in():
    for _, panel, query in QUERIES:
        left = re.findall(r"\$(?!1\b)\w+", panels.without_variables(query.expression, 15))
        assert not left, panel.title


@pytest.mark.parametrize(
    ("legend", "labels", "name"),
    [
        ("{{namespace}}", {"namespace": "dev"}, "dev"),
        ("{{ namespace }} {{status}}xx", {"namespace": "dev", "status": "2"}, "dev 2xx"),
        ("{{namespace}}", {}, "all"),
        ("target", {"a": "b"}, "target"),
    ],
)
def test_the_name_of_a_series(legend, labels, name):
    assert panels.name_of(legend, labels) == name


def test_no_other_command_imports_the_sdk_or_matplotlib():
    """Each takes a good part of a second, which `make status` would pay for."""
    done = subprocess.run(
        [
            sys.executable, "-c",
            "import sys, scripts.cli, scripts.monitoring.query, scripts.monitoring.forward, scripts.monitoring.debug_metrics;"
            "print([m for m in sys.modules if m.split('.')[0] in ('grafana_foundation_sdk', 'matplotlib')])",
        ],
        capture_output=True, text=True, timeout=60, check=True, cwd=generate.FLUX_CD.parent,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
