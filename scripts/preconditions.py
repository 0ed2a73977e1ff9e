"""The words of preflight: what a finding is, and what is known of the lab before anything is created."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is; only an error stops the setup."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its id, how bad it is, what was found, and the line that mends it."""

    id: str
    level: Level
    what: str
    mend: str = ""


def ok(id: str, what: str) -> Finding:
    """Return the finding of a check that holds."""
    return Finding(id, Level.OK, what)


def info(id: str, what: str) -> Finding:
    """Return a finding that is only worth knowing."""
    return Finding(id, Level.INFO, what)


def warning(id: str, what: str, mend: str) -> Finding:
    """Return a finding that may hurt later, and what mends it."""
    return Finding(id, Level.WARNING, what, mend)


def error(id: str, what: str, mend: str) -> Finding:
    """Return a finding that stops the setup, and what mends it."""
    return Finding(id, Level.ERROR, what, mend)


class ClusterState(StrEnum):
    """Whether a cluster of the wanted name is there, and whose it is."""

    ABSENT = "absent"
    OURS = "ours"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class LabFacts:
    """What is there of this lab already, as engine and kubeconfig know it.

    Args:
        cluster: whether a kind cluster of the wanted name is there.
        context_server: the API server that the kubeconfig context of the lab's name points to; "" without one.
        context_problem: for KUBE_CONTEXT, why the cluster can't be reached; "" when it can.
        unlabelled: for KUBE_CONTEXT, the nodes that applications may run on, if none has a worker's label.
        own_ports: host ports that containers of this lab hold.
        container_ports: host ports that other containers hold, with the container's name.
        networks: subnets of the engine's networks by name.
        can_start_engine: whether setup can install or start an engine by itself.
    """

    cluster: ClusterState = ClusterState.ABSENT
    context_server: str = ""
    context_problem: str = ""
    unlabelled: tuple[str, ...] = ()
    own_ports: frozenset[int] = frozenset()
    container_ports: Mapping[int, str] = field(default_factory=dict)
    networks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    can_start_engine: bool = False


def unless_running(lab: LabFacts, level: Level) -> Level:
    """Return a level, or one that doesn't stop a second run: a lab that is there has taken its share already."""
    return Level.INFO if lab.cluster is ClusterState.OURS else level
