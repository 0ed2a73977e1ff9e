"""The dashboards' queries before Prometheus' own eyes: each is PromQL, and those that join series come to what they should."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scripts import settings
from scripts.monitoring.dashboards import generate, panels
from scripts.process import run


@pytest.fixture(scope="module")
def promtool() -> Path:
    binary = settings.load().tools_dir / "promtool"
    assert binary.exists(), f"{binary} is not there: `make test` brings it"
    return binary


def test_prometheus_reads_every_query_of_the_dashboards(promtool, tmp_path):
    rules = []
    for board in map(panels.read, generate.boards()):
        for panel in board.panels:
            for query in panel.queries:
                name = f"query:{len(rules)}"
                rules.append({"record": name, "expr": panels.without_variables(query.expression, 15)})
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = run([promtool, "check", "rules", file], timeout_s=60, check=False)
    assert done.exit_code == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
    # And it does say no.
    file.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": [{"record": "a", "expr": "sum(rate(b[5m])"}]}]}))
    assert run([promtool, "check", "rules", file], timeout_s=60, check=False).exit_code != 0


def expression(uid: str, title: str, number: int = 0) -> str:
    """A panel's query as the page asks it."""
    (board,) = [b for b in map(panels.read, generate.boards()) if b.uid == uid]
    (panel,) = [p for p in board.panels if f"{p.row}: {p.title}" == title]
    return panels.without_variables(panel.queries[number].expression, 15)


RECONCILED = 'gotk_first_reconciled_seconds{kind="Kustomization",namespace="flux-system",'
FETCHED = 'gotk_artifact_updated_seconds{kind="GitRepository",namespace="flux-system",'
EDGE = 'envoy_cluster_upstream_rq_xx{namespace="edge",envoy_cluster_name="httproute/%s/demo-app/rule/0",envoy_response_code_class="%s"}'
REQUESTS = 'app_requests_total{job="demo-app",namespace="%s",route="%s",status="%s",pod="a"}'
RUNNING = 'kube_pod_status_phase{namespace="dev",pod="%s",phase="Running"}'
# What is asked, series (what they begin with, what they grow by at each of ten minutes), what it comes to after them.
CASES = {
    "the last commit's way from its source, by Kustomization; one that it didn't change has none": (
        ("lab-flux", "Push to Ready: Fetched to Ready"),
        {
            RECONCILED + 'name="dev",source_name="dev-environment"}': "1003+0x10",
            RECONCILED + 'name="apps",source_name="applications"}': "900+0x10",
            FETCHED + 'name="dev-environment"}': "1000+0x10",
            FETCHED + 'name="applications"}': "1000+0x10",
        },
        {'{name="dev"}': 3},
    ),
    "nothing is a zero, so that the panel isn't empty": (
        ("lab-flux", "Objects: Not Ready"),
        {'gotk_resource_info{kind="Kustomization",name="dev",ready="True",suspended="false"}': "1+0x10"},
        {"{}": 0},
    ),
    "what is not Ready has its name": (
        ("lab-flux", "Objects: Not Ready"),
        {
            'gotk_resource_info{kind="Kustomization",name="dev",ready="False",suspended="false"}': "1+0x10",
            'gotk_resource_info{kind="GitRepository",name="dev-environment",ready="True"}': "1+0x10",
        },
        {'{kind="Kustomization",name="dev"}': 1, "{}": 0},
    ),
    "errors are a share of people's requests; without requests there are none": (
        ("lab-application", "Requests: Errors"),
        {
            REQUESTS % ("dev", "/work", "200"): "0+30x10", REQUESTS % ("dev", "/work", "500"): "0+10x10",
            REQUESTS % ("dev", "/healthz", "200"): "0+60x10", REQUESTS % ("qa", "/work", "200"): "0+0x10",
            REQUESTS % ("qa", "/work", "500"): "0+0x10",
        },
        {'{namespace="dev"}': 0.25, '{namespace="qa"}': 0},
    ),
    "the edge's requests belong to the environment in the cluster's name": (
        ("lab-application", "Edge: Through the edge"),
        {EDGE % ("dev", "2"): "0+60x10", EDGE % ("staging", "5"): "0+120x10",
         'envoy_cluster_upstream_rq_xx{namespace="edge",envoy_cluster_name="xds_cluster",envoy_response_code_class="2"}': "0+60x10"},
        {'{namespace="dev",envoy_response_code_class="2"}': 1, '{namespace="staging",envoy_response_code_class="5"}': 2},
    ),
    "requests of pods that have ended take no room on a node": (
        ("lab-capacity", "Nodes: CPU requested"),
        {
            'kube_pod_container_resource_requests{namespace="dev",pod="a",node="n",resource="cpu"}': "0.5+0x10",
            'kube_pod_container_resource_requests{namespace="dev",pod="b",node="n",resource="cpu"}': "0.5+0x10",
            RUNNING % "a": "1+0x10", RUNNING % "b": "0+0x10",
            'kube_node_status_allocatable{node="n",resource="cpu"}': "2+0x10",
        },
        {'{node="n"}': 0.25},
    ),
    "each resource of a quota is measured by itself": (
        ("lab-capacity", "Namespaces: Quota used"),
        {
            'kube_resourcequota{namespace="dev",resourcequota="demo",resource="pods",type="used"}': "5+0x10",
            'kube_resourcequota{namespace="dev",resourcequota="demo",resource="pods",type="hard"}': "10+0x10",
            'kube_resourcequota{namespace="dev",resourcequota="demo",resource="limits.cpu",type="used"}': "3+0x10",
            'kube_resourcequota{namespace="dev",resourcequota="demo",resource="limits.cpu",type="hard"}': "4+0x10",
        },
        {'{namespace="dev",resource="pods"}': 0.5, '{namespace="dev",resource="limits.cpu"}': 0.75},
    ),
    "a node that is as it should be is a zero, whatever its conditions are called": (
        ("lab-capacity", "Nodes: Not as it should be"),
        {
            'kube_node_status_condition{node="n",condition="Ready",status="true"}': "1+0x10",
            'kube_node_status_condition{node="n",condition="Ready",status="false"}': "0+0x10",
            'kube_node_status_condition{node="n",condition="Ready",status="unknown"}': "0+0x10",
            'kube_node_status_condition{node="m",condition="Ready",status="false"}': "0+0x10",
            'kube_node_status_condition{node="m",condition="DiskPressure",status="true"}': "1+0x10",
        },
        {'{node="n"}': 0, '{node="m"}': 1},
    ),
    "a budget is spent at the speed of the errors over what is allowed": (
        ("lab-application", "Objectives: Speed of spending"),
        {
            'slo:errors:ratio_rate30m{namespace="dev",slo="availability"}': "0.02+0x10",
            'slo:objective:ratio{namespace="dev",slo="availability"}': "0.99+0x10",
        },
        {'{namespace="dev",slo="availability"}': 2},
    ),
    "the autoscaler's pods are a share of what it may have": (
        ("lab-autoscaling", "Pods: Share of the maximum"),
        {
            'kube_horizontalpodautoscaler_status_desired_replicas{namespace="dev",horizontalpodautoscaler="demo-app"}': "3+0x10",
            'kube_horizontalpodautoscaler_spec_max_replicas{namespace="dev",horizontalpodautoscaler="demo-app"}': "4+0x10",
        },
        {'{namespace="dev",horizontalpodautoscaler="demo-app"}': 0.75},
    ),
}  # fmt: skip


def test_what_joins_series_comes_to_what_it_should(promtool, tmp_path):
    cases = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": s, "values": values} for s, values in series.items()],
            "promql_expr_test": [
                {
                    # Rounded: a rate's last digits are no matter of the query.
                    "expr": f"round({expression(*asked)}, 1e-6)",
                    "eval_time": "10m",
                    "exp_samples": [{"labels": labels, "value": value} for labels, value in comes_to.items()],
                }
            ],
        }
        for name, (asked, series, comes_to) in CASES.items()
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": cases}))
    done = run([promtool, "test", "rules", file], timeout_s=60, check=False)
    assert done.exit_code == 0, done.stdout + done.stderr
