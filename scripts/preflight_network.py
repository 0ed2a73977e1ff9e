"""Preflight's checks of what the lab shares with others: subnets, ports, proxies, the cluster's name."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from scripts.hostfacts import LOOPBACK_LISTENERS, HostFacts, Network, PortHolder, Route
from scripts.preconditions import ClusterState, Finding, LabFacts, Level, error, ok, warning
from scripts.settings import REGISTRY_IN_CLUSTER, WORKER_LABEL, Edge, Settings


def wanted_ports(settings: Settings) -> dict[str, int]:
    """Return the host ports that setup will take, by the variable that changes each."""
    ports = {}
    if settings.owns_cluster:
        ports["REGISTRY_PORT"] = settings.registry_port
        if settings.edge is not Edge.NONE:
            ports["EDGE_PORT"] = settings.edge_port
    if settings.owns_git:
        ports["GIT_PORT"] = settings.git_port
    return ports


def subnet_findings(settings: Settings, host: HostFacts, lab: LabFacts) -> list[Finding]:
    """Check the lab network's subnet against routes and the engine's other networks."""
    existing = [n for text in lab.networks.get(settings.network, ()) if (n := _ipv4(text))]
    wanted = existing
    if settings.subnet:
        subnet = _ipv4(settings.subnet)
        if subnet is None or not subnet.is_private or not 16 <= subnet.prefixlen <= 26:
            what = f"SUBNET={settings.subnet} is no private IPv4 subnet of /16 to /26."
            return [error("subnet", what, "give one as in SUBNET=172.30.0.0/24")]
        if existing and subnet not in existing:
            what = f"The lab's network has {', '.join(map(str, existing))}, not SUBNET={subnet}."
            return [error("subnet", what, "make teardown first, or leave SUBNET out")]
        wanted = [subnet]
    for subnet in wanted:
        clash = _clash(subnet, settings, host.routes, lab, set(existing))
        if clash:
            return [clash]
    return [ok("subnet", ", ".join(map(str, wanted)) or "the engine chooses a free one")]


def _clash(
    subnet: Network, settings: Settings, routes: Sequence[Route], lab: LabFacts, own: set[Network]
) -> Finding | None:
    mend = "choose another one, as in SUBNET=172.30.0.0/24" + (" (after make teardown)" if own else "")
    for name, texts in lab.networks.items():
        for text in texts:
            other = _ipv4(text)
            if name != settings.network and other and other.overlaps(subnet):
                return error("subnet", f"{subnet} is taken by the engine's network {name} ({other}).", mend)
    for route in routes:
        # Halves of the internet are how a VPN takes over the default route; the lab's own bridge is no clash.
        if route.network.prefixlen < 2 or not route.network.overlaps(subnet) or route.network in own:
            continue
        where = f"{route.network} by {route.interface}"
        if route.network.prefixlen >= subnet.prefixlen:
            what = f"{subnet} clashes with a route of this machine ({where}; a VPN?): the nodes would not be reached."
            return error("subnet", what, mend)
        what = f"{subnet} lies within a route of this machine ({where}; a VPN?): hosts of that range will be hidden."
        return warning("subnet", what, mend)
    return None


def port_findings(settings: Settings, host: HostFacts, lab: LabFacts) -> list[Finding]:
    """Name each port that somebody else holds, and who."""
    found = []
    for variable, port in wanted_ports(settings).items():
        holder = next((h for h in host.port_holders if h.port == port and h.address in LOOPBACK_LISTENERS), None)
        if port in lab.own_ports:
            found.append(ok("port", f"{port} is held by this lab"))
        elif port in lab.container_ports:
            container = lab.container_ports[port]
            what = f"Port {port} ({variable}) is taken by the container {container}."
            found.append(error("port", what, f"docker stop {container}, or {variable}=<another port>"))
        elif holder:
            found.append(_port_taken(variable, port, holder))
        else:
            found.append(ok("port", f"{port} is free ({variable})"))
    return found


def _port_taken(variable: str, port: int, holder: PortHolder) -> Finding:
    mend = f"{variable}=<another port>"
    if holder.process.startswith("ControlCe"):
        mend = f"{mend}, or switch off AirPlay Receiver in System Settings"
    elif holder.pid:
        mend = f"end that process, or {mend}"
    return error("port", f"Port {port} ({variable}) is taken by {holder}.", mend)


def proxy_findings(settings: Settings, host: HostFacts) -> list[Finding]:
    """Check that a proxy leaves out what the lab talks to itself."""
    if not host.proxies:
        return [ok("proxy", "none")]
    shown = ", ".join(f"{name}={value}" for name, value in host.proxies.items())
    hosts = ["127.0.0.1", "localhost"]
    if settings.owns_cluster:
        hosts += [REGISTRY_IN_CLUSTER, settings.registry_container]
    if settings.owns_git:
        hosts.append(settings.git_container)
    entries = [e.strip() for e in host.no_proxy.split(",") if e.strip()]
    missing = [name for name in hosts if not any(_covers(entry, name) for entry in entries)]
    if not missing:
        return [ok("proxy", shown)]
    value = ",".join([*entries, *missing])
    what = f"A proxy is set ({shown}), and NO_PROXY leaves out {', '.join(missing)}: calls to the lab would go there."
    return [error("proxy", what, f"export NO_PROXY={value} no_proxy={value}")]


def _covers(entry: str, host: str) -> bool:
    """Whether a NO_PROXY entry covers a host: its name, a parent domain, an address range, or everything."""
    if entry == "*" or entry == host:
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.endswith("." + entry.lstrip("*").lstrip("."))


def cluster_finding(settings: Settings, lab: LabFacts) -> Finding:
    """Check that no cluster or context of the name is somebody else's."""
    if not settings.owns_cluster:
        if lab.context_problem:
            what = f"The cluster of KUBE_CONTEXT={settings.kube_context} can't be used: {lab.context_problem}"
            return error("context", what, "kubectl config get-contexts shows those that there are")
        if lab.unlabelled:
            what = f"No node of KUBE_CONTEXT={settings.kube_context} has the label {WORKER_LABEL}, which the application asks for."
            nodes = " ".join(lab.unlabelled)
            return error(
                "context", what, f"kubectl --context {settings.kube_context} label nodes {nodes} {WORKER_LABEL}="
            )
        return ok("context", f"{settings.kube_context} answers")
    name = settings.cluster_name
    if lab.cluster is ClusterState.FOREIGN:
        what = f"A kind cluster named {name} is there that this lab did not make; it is left alone."
        return error("cluster", what, "CLUSTER_NAME=<another name> make setup-all")
    if lab.cluster is ClusterState.OURS:
        return ok("cluster", f"{name} is there")
    if lab.context_server:
        what = f"The kubeconfig has a context {settings.context} ({lab.context_server}), but there is no such cluster."
        # kind's own leftovers point at this machine and may go; anything else is somebody's way to a cluster.
        level = Level.WARNING if _is_local(lab.context_server) else Level.ERROR
        return Finding(
            "cluster", level, what, f"kubectl config delete-context {settings.context}, or CLUSTER_NAME=<another name>"
        )
    return ok("cluster", f"{name} is free")


def _is_local(server: str) -> bool:
    return any(f"//{host}" in server for host in ("127.0.0.1", "localhost", "0.0.0.0"))


def _ipv4(text: str) -> Network | None:
    try:
        return Network(text)
    except ValueError:
        return None
