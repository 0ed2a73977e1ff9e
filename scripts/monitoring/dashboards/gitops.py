"""Flux: from a push to Ready, how long reconciling takes, what is not Ready."""

from __future__ import annotations

from scripts.monitoring.dashboards.build import RATE, Board, Row, graph, query

OBJECTS = 'kind=~"Kustomization|GitRepository|HelmRelease|HelmRepository"'
# Reconciles are minutes apart: over a scrape or two most objects have none.
WINDOW = "30m"


def duration(share: float, by: str) -> str:
    """Return the time within which this share of reconciles was done."""
    buckets = f"rate(gotk_reconcile_duration_seconds_bucket[{WINDOW}])"
    return f"histogram_quantile({share}, sum by ({by}, le) ({buckets}))"


def board() -> Board:
    """Return the dashboard."""
    return Board(
        uid="lab-flux",
        title="Flux",
        description="From a push to Ready; make status says more of what is not.",
        rows=(
            Row(
                "Push to Ready",
                (
                    graph(
                        "Fetched to Ready",
                        """From the moment a source held a commit until what it changes was applied and healthy; whole seconds,
                        as Flux notes them. It keeps its value until the next commit that changes something.""", "s",
                        query(
                            """max by (name) (gotk_first_reconciled_seconds - on (source_name) group_left ()
                            max by (source_name) (label_replace(gotk_artifact_updated_seconds, "source_name", "$1", "name", "(.+)"))
                            >= 0)""",
                            "{{name}}",
                        ),
                        steps=True,
                        when_empty="empty where the last commit changed nothing that a Kustomization applies",
                    ),
                    graph(
                        "Fetching a push", f"Reconciling a source, 95 %, over {WINDOW}.", "s",
                        query(
                            f"""histogram_quantile(0.95, sum by (name, le)
                            (rate(gotk_reconcile_duration_seconds_bucket{{kind="GitRepository"}}[{WINDOW}])))""",
                            "{{name}}",
                        ),
                    ),
                    graph(
                        "Applying it", f"Reconciling a Kustomization, 95 %, over {WINDOW}: applied, and its objects healthy.", "s",
                        query(
                            f"""histogram_quantile(0.95, sum by (name, le)
                            (rate(gotk_reconcile_duration_seconds_bucket{{kind="Kustomization"}}[{WINDOW}])))""",
                            "{{name}}",
                        ),
                    ),
                ),
            ),
            Row(
                "Objects",
                (
                    graph(
                        "Not Ready", "1 for each object that is not.", "short",
                        query(
                            f"""max by (kind, name) (gotk_resource_info{{{OBJECTS}, ready!="True"}}
                            unless gotk_resource_info{{kind="HelmRepository", ready=""}})
                            or vector(0)""",
                            "{{kind}} {{name}}",
                        ),
                        maximum=1.05, limit=1, steps=True,
                    ),
                    graph(
                        "Suspended", "1 for each object that is: nothing reaches the cluster through it.", "short",
                        query(
                            f"""max by (kind, name) (gotk_resource_info{{{OBJECTS}, suspended="true"}})
                            or vector(0)""",
                            "{{kind}} {{name}}",
                        ),
                        maximum=1.05, steps=True,
                    ),
                    graph(
                        "How many", "Objects by kind.", "short",
                        query(f"count by (kind) (gotk_resource_info{{{OBJECTS}}})", "{{kind}}"),
                        steps=True,
                    ),
                ),
            ),
            Row(
                "Controllers",
                (
                    graph(
                        "Reconciles", f"A second, by controller and outcome, over {WINDOW}.", "ops",
                        query(
                            f"sum by (controller, result) (rate(controller_runtime_reconcile_total[{WINDOW}])) > 0",
                            "{{controller}} {{result}}",
                        ),
                    ),
                    graph(
                        "Failing reconciles", "A second, by controller.", "ops",
                        query(f"sum by (controller) (rate(controller_runtime_reconcile_errors_total[{RATE}]))", "{{controller}}"),
                    ),
                    graph(
                        "Waiting", "Objects in a controller's queue.", "short",
                        query('sum by (name) (workqueue_depth{namespace="flux-system"})', "{{name}}"), steps=True,
                    ),
                    graph(
                        "Duration of reconciles, 95 %", f"By kind, over {WINDOW}.", "s", query(duration(0.95, "kind"), "{{kind}}"),
                    ),
                    graph(
                        "Memory", "Working sets of the controllers.", "bytes",
                        query(
                            """sum by (pod) (container_memory_working_set_bytes{namespace="flux-system", container!=""})""",
                            "{{pod}}",
                        ),
                    ),
                    graph(
                        "CPU", "In cores.", "short",
                        query(
                            f"""sum by (pod) (rate(container_cpu_usage_seconds_total{{namespace="flux-system",
                            container!=""}}[{RATE}]))""",
                            "{{pod}}",
                        ),
                    ),
                ),
            ),
        ),
    )  # fmt: skip
