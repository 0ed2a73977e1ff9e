"""`make port-forward-prometheus`, `-grafana`, `-alertmanager`: their pages on 127.0.0.1 until Ctrl-C."""

from __future__ import annotations

from scripts import console, deploy
from scripts.kube import Kube
from scripts.monitoring.full import GRAFANA_SECRET, GRAFANA_USER
from scripts.monitoring.prometheus import GRAFANA, Tool, reached
from scripts.settings import MONITORING_NAMESPACE, Settings


def port_forward(settings: Settings, tool: Tool, port: int) -> int:
    """Forward a local port to a tool until Ctrl-C."""
    kube = deploy.lab_kube(settings)
    with reached(kube, tool, port) as tunnel:
        console.line(f"http://127.0.0.1:{tunnel.port}/ is {tool.name}; Ctrl-C ends it")
        if tool is GRAFANA:
            console.line(f"user {GRAFANA_USER}; its password: {password_command(kube)}")
        try:
            tunnel.wait()
        except KeyboardInterrupt:
            console.line("ended")
    return 0


def password_command(kube: Kube) -> str:
    """Return the command that prints Grafana's password: the password itself is never in a log."""
    return (
        f"kubectl --context {kube.context} --namespace {MONITORING_NAMESPACE} get secret {GRAFANA_SECRET} "
        '--output go-template=\'{{index .data "admin-password" | base64decode}}{{"\\n"}}\''
    )
