"""The application: rate, errors and duration by environment, its SLO, its pods, and the edge in front of it."""

from __future__ import annotations

from scripts.monitoring.dashboards.build import ENVIRONMENT, RATE, Board, Row, graph, query
from scripts.monitoring.slo import load

POD = 'job="demo-app", namespace=~"$environment"'
# What people ask for; probes and scrapes are neither load nor part of the objective.
USERS = f'{POD}, route!~"/healthz|/readyz|/metrics"'
EDGE = 'envoy_cluster_name=~"httproute/($environment)/.+"'
# Envoy names them after the ports of the Gateway; its own administration is none of them.
LISTENERS = 'envoy_http_conn_manager_prefix=~"http-.+"'
WITHOUT_EDGE = "empty without the edge (EDGE=none), and until a first request has come through it"
# Recorded with the windows for people and with the short ones for tests.
WINDOW = "30m"
NO_REQUESTS = "empty while nobody asks: there is no duration of no requests"


def quantile(share: float) -> str:
    """Return the time within which this share of people's requests is answered, by environment."""
    return f"histogram_quantile({share}, sum by (namespace, le) (rate(app_request_duration_seconds_bucket{{{USERS}}}[{RATE}])))"


def requests(more: str = "") -> str:
    """Return people's requests a second, by environment."""
    return f"sum by (namespace) (rate(app_requests_total{{{USERS}{more}}}[{RATE}]))"


def of_environment(expression: str, labels: str) -> str:
    """Return a sum of the edge's series by the environment in their cluster's name."""
    named = f'label_replace({expression}, "namespace", "$1", "envoy_cluster_name", "httproute/([^/]+)/.+")'
    return f"sum by ({labels}) ({named})"


def of_slo(name: str, slo: str = "") -> str:
    """Return a recorded series of the objectives (rules/prometheusrule-slo.yaml), of one or of both."""
    matcher = f', slo="{slo}"' if slo else ""
    return f'{name}{{namespace=~"$environment"{matcher}}}'


def board() -> Board:
    """Return the dashboard."""
    objective = load().default
    return Board(
        uid="lab-application",
        title="Application",
        description="Rate, errors and duration of people's requests by environment; probes and scrapes are left out.",
        variables=(ENVIRONMENT,),
        rows=(
            Row(
                "Requests",
                (
                    graph("Rate", "Requests a second.", "reqps", query(requests(), "{{namespace}}")),
                    graph(
                        "Errors", "Share of requests answered with 5xx, and the share that each environment's promise allows.",
                        "percentunit",
                        query(f"""{requests(', status=~"5.."')} / clamp_min({requests()}, 1e-9)""", "{{namespace}}"),
                        query(f'1 - {of_slo("slo:objective:ratio", "availability")}', "{{namespace}} limit"),
                    ),
                    graph(
                        "Duration, 95 %", "95 % of the requests are answered within this time; dashed, what is promised by default.",
                        "s", query(quantile(0.95), "{{namespace}}"), limit=objective.threshold_s, when_empty=NO_REQUESTS,
                    ),
                    graph(
                        "Duration, 50 %", "Half of the requests are answered within this time.", "s",
                        query(quantile(0.5), "{{namespace}}"), when_empty=NO_REQUESTS,
                    ),
                    graph(
                        "Duration, 99 %", "One request in a hundred takes longer.", "s",
                        query(quantile(0.99), "{{namespace}}"), when_empty=NO_REQUESTS,
                    ),
                    graph(
                        "By route and status", "Everything that pods answer, probes and scrapes too.", "reqps",
                        query(
                            f"sum by (namespace, route, status) (rate(app_requests_total{{{POD}}}[{RATE}])) > 0",
                            "{{namespace}} {{route}} {{status}}",
                        ),
                    ),
                ),
            ),
            Row(
                "Objectives",
                (
                    graph(
                        "Budget left", "Of the bad requests that 30 days may have; below 0 the promise is broken.", "percentunit",
                        query(of_slo("slo:error_budget:remaining"), "{{namespace}} {{slo}}"), minimum=None, maximum=1, limit=0,
                    ),
                    graph(
                        "Speed of spending", f"""At 1 the budget lasts exactly as long as it must; over {WINDOW}.""", "short",
                        query(
                            f"""{of_slo(f"slo:errors:ratio_rate{WINDOW}")}
                            / on (namespace, slo) (1 - {of_slo("slo:objective:ratio")})""",
                            "{{namespace}} {{slo}}",
                        ),
                        limit=1,
                    ),
                    graph(
                        "Alerts", "That fire, about this environment or about none.", "short",
                        query(
                            """sum by (namespace, alertname) (ALERTS{alertstate="firing", namespace=~"$environment"})
                            or vector(0)""",
                            "{{namespace}} {{alertname}}",
                        ),
                        steps=True,
                    ),
                ),
            ),
            Row(
                "Pods",
                (
                    graph(
                        "Ready", "Pods whose /readyz answers 200.", "short",
                        query(f"sum by (namespace) (app_ready{{{POD}}})", "{{namespace}}"), steps=True,
                    ),
                    graph(
                        "In flight", "Requests being answered at the moment of the scrape, the scrape itself among them.", "short",
                        query(f"sum by (namespace) (app_requests_in_flight{{{POD}}})", "{{namespace}}"),
                    ),
                    graph(
                        "Versions", "Pods by what they run: during a rollout two versions.", "short",
                        query(f"count by (namespace, version) (app_build_info{{{POD}}})", "{{namespace}} {{version}}"),
                        steps=True,
                    ),
                    graph(
                        "CPU", "In cores, of all pods.", "short",
                        query(
                            f"""sum by (namespace) (rate(container_cpu_usage_seconds_total{{namespace=~"$environment",
                            container="app"}}[{RATE}]))""",
                            "{{namespace}}",
                        ),
                    ),
                    graph(
                        "Memory", "The largest pod's working set; at its limit a pod is killed.", "bytes",
                        query(
                            'max by (namespace) (container_memory_working_set_bytes{namespace=~"$environment", container="app"})',
                            "{{namespace}}",
                        ),
                        query(
                            """max by (namespace) (kube_pod_container_resource_limits{namespace=~"$environment",
                            container="app", resource="memory"})""",
                            "{{namespace}} limit",
                        ),
                    ),
                    graph(
                        "Restarts", "Of containers, within the hour before.", "short",
                        query(
                            """sum by (namespace) (increase(kube_pod_container_status_restarts_total{namespace=~"$environment",
                            container="app"}[1h]))""",
                            "{{namespace}}",
                        ),
                        steps=True,
                    ),
                ),
            ),
            Row(
                "Edge",
                (
                    graph(
                        "Through the edge", "Requests a second that Envoy passes on, by the class of their status.", "reqps",
                        query(
                            of_environment(
                                f"rate(envoy_cluster_upstream_rq_xx{{{EDGE}}}[{RATE}])",
                                "namespace, envoy_response_code_class",
                            ),
                            "{{namespace}} {{envoy_response_code_class}}xx",
                        ),
                        when_empty=WITHOUT_EDGE,
                    ),
                    graph(
                        "Duration at the edge, 95 %", "Of all environments together, as Envoy measures it: queue and network included.", "ms",
                        query(
                            f"""histogram_quantile(0.95, sum by (le) (rate(envoy_http_downstream_rq_time_bucket{{{LISTENERS}}}
                            [{RATE}])))""",
                            "all",
                        ),
                        when_empty=WITHOUT_EDGE,
                    ),
                    graph(
                        "Sent again or given up", "Requests a second that Envoy sent to another pod, or got no answer to in time.", "reqps",
                        query(
                            of_environment(f"rate(envoy_cluster_upstream_rq_retry{{{EDGE}}}[{RATE}])", "namespace"),
                            "{{namespace}} sent again",
                        ),
                        query(
                            of_environment(f"rate(envoy_cluster_upstream_rq_timeout{{{EDGE}}}[{RATE}])", "namespace"),
                            "{{namespace}} given up",
                        ),
                        when_empty=WITHOUT_EDGE,
                    ),
                ),
            ),
        ),
    )  # fmt: skip
