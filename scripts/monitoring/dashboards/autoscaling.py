"""The autoscalers: pods between their bounds, CPU against its target, and what could keep them."""

from __future__ import annotations

from scripts.monitoring.dashboards.application import POD
from scripts.monitoring.dashboards.build import ENVIRONMENT, RATE, Board, Row, graph, query

HPA = 'namespace=~"$environment"'
APP = f'{HPA}, container="app"'
CPU = f'{HPA}, metric_name="cpu", metric_target_type="utilization"'


def board() -> Board:
    """Return the dashboard."""
    return Board(
        uid="lab-autoscaling",
        title="Autoscaling",
        description="What the autoscalers see and do; make hpa-status says what keeps them.",
        variables=(ENVIRONMENT,),
        rows=(
            Row(
                "Pods",
                (
                    graph(
                        "Desired", "What the autoscaler asks for.", "short",
                        query(f"kube_horizontalpodautoscaler_status_desired_replicas{{{HPA}}}", "{{namespace}}"),
                        steps=True,
                    ),
                    graph(
                        "Ready", "What there is to serve requests.", "short",
                        query(f'kube_deployment_status_replicas_ready{{{HPA}, deployment="demo-app"}}', "{{namespace}}"),
                        steps=True,
                    ),
                    graph(
                        "Share of the maximum", "At 100 % there is no pod more to be had.", "percentunit",
                        query(
                            f"""kube_horizontalpodautoscaler_status_desired_replicas{{{HPA}}}
                            / kube_horizontalpodautoscaler_spec_max_replicas{{{HPA}}}""",
                            "{{namespace}}",
                        ),
                        maximum=1.05, limit=1, steps=True,
                    ),
                ),
            ),
            Row(
                "Load",
                (
                    graph(
                        "CPU that the autoscaler sees", "In percent of the request; above the target it adds pods.", "percent",
                        query(f"kube_horizontalpodautoscaler_status_target_metric{{{CPU}}}", "{{namespace}}"),
                        query(f"kube_horizontalpodautoscaler_spec_target_metric{{{CPU}}}", "{{namespace}} target"),
                        steps=True,
                        when_empty="empty for the first minute of an autoscaler, and while the metrics API does not answer",
                    ),
                    graph(
                        "CPU that the kubelets see", "Of all pods, in parts of their request.", "percentunit",
                        query(
                            f"""sum by (namespace) (rate(container_cpu_usage_seconds_total{{{APP}}}[{RATE}]))
                            / sum by (namespace) (kube_pod_container_resource_requests{{{APP}, resource="cpu"}})""",
                            "{{namespace}}",
                        ),
                    ),
                    graph(
                        "Requests per Ready pod", "A second, of people's requests and probes together.", "reqps",
                        query(
                            f"""sum by (namespace) (rate(app_requests_total{{{POD}}}[{RATE}]))
                            / clamp_min(sum by (namespace) (app_ready{{{POD}}}), 1)""",
                            "{{namespace}}",
                        ),
                    ),
                ),
            ),
            Row(
                "What keeps it",
                (
                    graph(
                        "Limited", "1 while the autoscaler would go past one of its bounds.", "short",
                        query(
                            f"""kube_horizontalpodautoscaler_status_condition{{{HPA}, condition="ScalingLimited",
                            status="true"}}""",
                            "{{namespace}}",
                        ),
                        maximum=1.05, steps=True,
                    ),
                    graph(
                        "Not scaling", "1 while it can't read what it scales by.", "short",
                        query(
                            f"""kube_horizontalpodautoscaler_status_condition{{{HPA}, condition="ScalingActive",
                            status="false"}}""",
                            "{{namespace}}",
                        ),
                        maximum=1.05, limit=1, steps=True,
                    ),
                    graph(
                        "CPU held back", "Share of the scheduler's periods in which a pod ran into its CPU limit.", "percentunit",
                        query(
                            f"""sum by (namespace) (rate(container_cpu_cfs_throttled_periods_total{{{APP}}}[{RATE}]))
                            / clamp_min(sum by (namespace) (rate(container_cpu_cfs_periods_total{{{APP}}}[{RATE}])), 1e-9)""",
                            "{{namespace}}",
                        ),
                    ),
                    graph(
                        "Waiting pods", "Pods that are on no node or not started yet.", "short",
                        query(f'sum by (namespace) (kube_pod_status_phase{{{HPA}, phase="Pending"}})', "{{namespace}}"),
                        steps=True,
                    ),
                    graph(
                        "Pods that may be away", "What the disruption budget allows: at 0 a node can't be drained.", "short",
                        query(f"kube_poddisruptionbudget_status_pod_disruptions_allowed{{{HPA}}}", "{{namespace}}"),
                        steps=True,
                    ),
                    graph(
                        "Pods by node", "Where they run.", "short",
                        query(
                            f'count by (namespace, node) (kube_pod_info{{{HPA}, created_by_kind="ReplicaSet"}})',
                            "{{namespace}} {{node}}",
                        ),
                        steps=True,
                    ),
                ),
            ),
        ),
    )  # fmt: skip
