"""Which monitoring a lab has: what setup was asked for, kept beside the lab's state so that every command knows it."""

from __future__ import annotations

from pathlib import Path

from scripts.errors import UsageError
from scripts.settings import MONITORING_BY_SOURCE, ImageSource, Monitoring, Settings

# As entries of versions.yaml: what a lab with monitoring has on its nodes.
IMAGES = (
    "prometheus-operator",
    "prometheus-config-reloader",
    "prometheus",
    "alertmanager",
    "node-exporter",
    "kube-state-metrics",
)
ON_EVERY_NODE = ("node-exporter",)
# And what MONITORING=full has besides.
FULL_IMAGES = ("grafana", "k8s-sidecar")
CHART = "kube-prometheus-stack"


def images(monitoring: Monitoring) -> tuple[str, ...]:
    """Return the images that a lab has on its nodes for its monitoring, as entries of versions.yaml."""
    if monitoring is Monitoring.NONE:
        return ()
    return (*IMAGES, *FULL_IMAGES) if monitoring is Monitoring.FULL else IMAGES


def artifacts(monitoring: Monitoring) -> tuple[str, ...]:
    """Return all that a lab takes from registries for its monitoring, as entries of versions.yaml."""
    return (*images(monitoring), *([CHART] if monitoring is Monitoring.FULL else []))


def choose(settings: Settings, source: ImageSource) -> Monitoring:
    """Return the monitoring that setup brings: as asked for, as the lab has it already, or what the source allows."""
    wanted = settings.monitoring
    if wanted is Monitoring.AUTO:
        wanted = _remembered(settings) or (MONITORING_BY_SOURCE[source] if settings.owns_cluster else Monitoring.NONE)
    if wanted is Monitoring.FULL and source is ImageSource.SOURCE:
        raise UsageError(
            "MONITORING=full needs a chart and images (Grafana) that can't be built from source.",
            "take MONITORING=lite: the same rules and targets, and `make dashboards` draws the same dashboards",
        )
    return wanted


def in_lab(settings: Settings) -> Monitoring:
    """Return the monitoring that the lab was set up with; before setup what is asked for, none if nothing is."""
    found = _remembered(settings) or settings.monitoring
    return Monitoring.NONE if found is Monitoring.AUTO else found


def remember(settings: Settings, mode: Monitoring) -> None:
    """Keep the choice for later commands on the same lab; teardown forgets it."""
    path = _file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{mode}\n")


def forget(settings: Settings) -> None:
    """Forget the choice, so that the next setup takes the default again."""
    _file(settings).unlink(missing_ok=True)


def _remembered(settings: Settings) -> Monitoring | None:
    path = _file(settings)
    return Monitoring(path.read_text().strip()) if path.exists() else None


def _file(settings: Settings) -> Path:
    return settings.state_dir / "monitoring"
