"""What nodes and namespaces use of what they have."""

from __future__ import annotations

from scripts.monitoring.dashboards.build import RATE, Board, Row, Variable, graph, query

NAMESPACE = Variable("namespace", "namespace", "label_values(kube_pod_info, namespace)")
CONTAINERS = 'namespace=~"$namespace", container!=""'
# Volumes that hold data: not those in memory, and not the images that hosts mount to read from.
DISKS = 'fstype!~"tmpfs|ramfs|squashfs|iso9660|erofs", mountpoint!~"/boot.*"'


def of_allocatable(resource: str) -> str:
    """Return what running pods request of a resource, as a share of what each node has to give."""
    return f"""sum by (node) (kube_pod_container_resource_requests{{resource="{resource}"}}
    * on (namespace, pod) group_left () max by (namespace, pod) (kube_pod_status_phase{{phase="Running"}}))
    / sum by (node) (kube_node_status_allocatable{{resource="{resource}"}})"""


def board() -> Board:
    """Return the dashboard."""
    return Board(
        uid="lab-capacity",
        title="Nodes and namespaces",
        description="kind's nodes are containers of one machine: what node-exporter tells of a node is the machine's.",
        variables=(NAMESPACE,),
        rows=(
            Row(
                "The machine",
                (
                    graph(
                        "CPU", "Share of the machine's cores that work, as each node sees it.", "percentunit",
                        query(
                            f'1 - avg by (node) (rate(node_cpu_seconds_total{{mode="idle"}}[{RATE}]))', "{{node}}"
                        ),
                        maximum=1,
                    ),
                    graph(
                        "Memory", "Share that is not available to new processes.", "percentunit",
                        query("1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes", "{{node}}"),
                        maximum=1, limit=0.9,
                    ),
                    graph(
                        "Disk", "The fullest volume of each node.", "percentunit",
                        query(
                            f"""max by (node) (1 - node_filesystem_avail_bytes{{{DISKS}}}
                            / node_filesystem_size_bytes{{{DISKS}}})""",
                            "{{node}}",
                        ),
                        maximum=1, limit=0.85,
                    ),
                ),
            ),
            Row(
                "Nodes",
                (
                    graph(
                        "CPU of pods", "In cores, by node.", "short",
                        query(
                            f'sum by (node) (rate(container_cpu_usage_seconds_total{{container!=""}}[{RATE}]))', "{{node}}"
                        ),
                    ),
                    graph(
                        "Memory of pods", "Working sets, by node.", "bytes",
                        query('sum by (node) (container_memory_working_set_bytes{container!=""})', "{{node}}"),
                    ),
                    graph(
                        "Pods", "Running, by node.", "short",
                        query(
                            """sum by (node) (kube_pod_info
                            * on (namespace, pod) group_left () max by (namespace, pod) (kube_pod_status_phase{phase="Running"}))""",
                            "{{node}}",
                        ),
                        steps=True,
                    ),
                    graph(
                        "CPU requested", "Share of what a node has to give; at 100 % it takes no more pods.", "percentunit",
                        query(of_allocatable("cpu"), "{{node}}"), limit=1, steps=True,
                    ),
                    graph(
                        "Memory requested", "Share of what a node has to give; at 100 % it takes no more pods.", "percentunit",
                        query(of_allocatable("memory"), "{{node}}"), limit=1, steps=True,
                    ),
                    graph(
                        "Not as it should be", "1 for a node that is not Ready or under pressure.", "short",
                        query(
                            """max by (node) (kube_node_status_condition{condition="Ready", status!="true"}
                            or kube_node_status_condition{condition=~".+Pressure", status="true"})""",
                            "{{node}}",
                        ),
                        maximum=1.05, limit=1, steps=True,
                    ),
                ),
            ),
            Row(
                "Namespaces",
                (
                    graph(
                        "CPU", "In cores.", "short",
                        query(f"sum by (namespace) (rate(container_cpu_usage_seconds_total{{{CONTAINERS}}}[{RATE}]))", "{{namespace}}"),
                        stacked=True,
                    ),
                    graph(
                        "Memory", "Working sets.", "bytes",
                        query(f"sum by (namespace) (container_memory_working_set_bytes{{{CONTAINERS}}})", "{{namespace}}"),
                        stacked=True,
                    ),
                    graph(
                        "Quota used", "Share of each namespace's quota; at 100 % no pod more is admitted.", "percentunit",
                        query(
                            """max by (namespace, resource) (kube_resourcequota{namespace=~"$namespace", type="used"}
                            / ignoring (type) (kube_resourcequota{namespace=~"$namespace", type="hard"} > 0))""",
                            "{{namespace}} {{resource}}",
                        ),
                        limit=1, steps=True,
                    ),
                    graph(
                        "Restarts", "Of containers, within the hour before.", "short",
                        query(
                            'sum by (namespace) (increase(kube_pod_container_status_restarts_total{namespace=~"$namespace"}[1h]))',
                            "{{namespace}}",
                        ),
                        steps=True,
                    ),
                    graph(
                        "Received", "Bytes a second that pods get.", "Bps",
                        query(
                            f'sum by (namespace) (rate(container_network_receive_bytes_total{{namespace=~"$namespace"}}[{RATE}]))',
                            "{{namespace}}",
                        ),
                    ),
                    graph(
                        "Sent", "Bytes a second that pods send.", "Bps",
                        query(
                            f'sum by (namespace) (rate(container_network_transmit_bytes_total{{namespace=~"$namespace"}}[{RATE}]))',
                            "{{namespace}}",
                        ),
                    ),
                ),
            ),
        ),
    )  # fmt: skip
