"""The embedded cluster: a kind cluster on a network of its own, with the registry wired into its nodes."""

from __future__ import annotations

import http.client
import ipaddress
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from scripts import console
from scripts.cache import digest_of
from scripts.docker import container_state, containers_with_label, docker, inspect, is_ours
from scripts.errors import LabError, PreflightError
from scripts.kube import Kube
from scripts.outcome import Outcome
from scripts.process import run
from scripts.settings import (
    CONTROL_PLANE_LABEL,
    KIND_CLUSTER_LABEL,
    KIND_DIR,
    OWNER_LABEL,
    REGISTRY_IN_CLUSTER,
    REGISTRY_PORT_INSIDE,
    WORKER_LABEL,
    Settings,
)
from scripts.versions import Image
from scripts.waiting import wait_for

CONFIG_FILE = KIND_DIR / "cluster.yaml"
# Written inside the control plane once `kind create` has ended well: without it a cluster is half made.
MARKER = "/kind/gitops-lab-complete"
CREATE_TIMEOUT_S = 600


def ensure_network(settings: Settings) -> Outcome:
    """Create the lab's network unless it is there; a network of that name that isn't ours is refused."""
    found = inspect("network", settings.network)
    if found:
        if not is_ours(found, settings.cluster_name):
            raise PreflightError(
                f"A network {settings.network} exists that this lab did not make.",
                "take another name with CLUSTER_NAME=…, or remove that network",
            )
        return Outcome(False, f"network {settings.network}")
    args = ["network", "create", "--driver", "bridge", "--label", f"{OWNER_LABEL}={settings.cluster_name}"]
    if settings.subnet:
        args += ["--subnet", settings.subnet]
    # kind masquerades traffic of the whole node network; the name of the bridge is the engine's choice.
    docker(*args, "--opt", "com.docker.network.bridge.enable_ip_masquerade=true", settings.network)
    return Outcome(True, f"network {settings.network}")


def network_subnet(settings: Settings) -> str:
    """Return the IPv4 subnet of the lab's network."""
    found = inspect("network", settings.network) or {}
    for entry in found.get("IPAM", {}).get("Config") or []:
        subnet = ipaddress.ip_network(entry["Subnet"])
        if subnet.version == 4:
            return str(subnet)
    raise LabError(f"The network {settings.network} has no IPv4 subnet.", "make teardown, then make setup-all")


def render_config(settings: Settings, cgroup_v1: bool) -> str:
    """Return kind's configuration with this run's name, port and kubelet settings."""
    config: dict[str, Any] = yaml.load(CONFIG_FILE.read_text(), yaml.CSafeLoader)
    config["name"] = settings.cluster_name
    for node in config["nodes"]:
        for mapping in node.get("extraPortMappings", []):
            mapping["hostPort"] = settings.edge_port
    if cgroup_v1:
        config["kubeadmConfigPatches"].append("kind: KubeletConfiguration\nfailCgroupV1: false\n")
    return yaml.safe_dump(config, sort_keys=False)


def node_containers(settings: Settings) -> list[str]:
    """Return the containers of the cluster's nodes, running or not."""
    return containers_with_label(f"{KIND_CLUSTER_LABEL}={settings.cluster_name}")


def cluster_is_ours(settings: Settings) -> bool:
    """Whether the nodes of this name stand on this lab's network (or there are none)."""
    for node in node_containers(settings):
        found = inspect("container", node) or {}
        if settings.network not in found.get("NetworkSettings", {}).get("Networks", {}):
            return False
    network = inspect("network", settings.network)
    return not node_containers(settings) or bool(network and is_ours(network, settings.cluster_name))


def fingerprint(config: str, image: str) -> str:
    """Return a hash of all that a cluster is created from; an image by digest is the same wherever it came from."""
    return digest_of(config, image.rpartition("@")[2])[:16]


def ensure_cluster(
    settings: Settings, kind: Path, image: str, cgroup_v1: bool, creating: Callable[[], object] = lambda: None
) -> Outcome:
    """Create the cluster unless it is there and whole; a half-made one of ours is made anew.

    `creating` is called when a new one is about to be made: what answers from then on is no remnant of an earlier run.
    """
    config = render_config(settings, cgroup_v1)
    wanted = fingerprint(config, image)
    nodes = node_containers(settings)
    if nodes:
        if not cluster_is_ours(settings):
            raise PreflightError(
                f"A kind cluster {settings.cluster_name} exists that this lab did not make.",
                "take another name with CLUSTER_NAME=…, or delete that cluster yourself",
            )
        marker = _marker(settings)
        if marker and len(nodes) == 3:
            if marker != wanted:
                console.warn(
                    "the running cluster was created from another configuration or node image; "
                    "`make teardown` and `make setup-all` renew it"
                )
            ensure_context(settings, kind)
            return Outcome(False, "cluster is there")
        console.note("an unfinished cluster is there: making it anew")
        delete_cluster(settings, kind)
    console.note("kind create cluster")
    log = settings.state_dir / "logs" / "kind-create.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    file = settings.state_dir / "kind-cluster.yaml"
    file.write_text(config)
    creating()
    # --retain: when it fails, the nodes' logs are what one needs; the next run makes them anew.
    run(
        [kind, "create", "cluster", "--config", file, "--image", image, "--retain", "--wait", "0s",
         "--kubeconfig", kubeconfig_of(settings)],
        timeout_s=CREATE_TIMEOUT_S,
        env=_environment(settings),
        log_file=log,
        mend="see the log; `make doctor` names the usual causes",
    )  # fmt: skip
    docker("exec", "--interactive", settings.control_plane, "sh", "-c", f"cat > {MARKER}", input_text=wanted)
    ensure_context(settings, kind)
    return Outcome(True, "cluster created (1 control plane, 2 workers)")


def kubeconfig_of(settings: Settings) -> Path:
    """Return the lab's own kubeconfig: kind writes there, so that a killed run can't lock the user's file."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    return settings.state_dir / "kubeconfig"


def _marker(settings: Settings) -> str:
    """Return the fingerprint the cluster was finished with, or "" if it is half made; starts stopped nodes."""
    if container_state(settings.control_plane) != "running":
        for node in node_containers(settings):
            if container_state(node) != "running":
                docker("start", node, timeout_s=120)
    done = docker("exec", settings.control_plane, "cat", MARKER, check=False)
    return done.stdout.strip() if done.exit_code == 0 else ""


def _environment(settings: Settings) -> dict[str, str]:
    return {"KIND_EXPERIMENTAL_PROVIDER": "docker", "KIND_EXPERIMENTAL_DOCKER_NETWORK": settings.network}


def api_port(settings: Settings) -> str:
    """Return the port on 127.0.0.1 at which the cluster's API server is reached, or "" as long as it has none."""
    bindings = (inspect("container", settings.control_plane) or {}).get("HostConfig", {}).get("PortBindings", {})
    return str((bindings.get("6443/tcp") or [{}])[0].get("HostPort", ""))


def api_answers(port: str) -> bool:
    """Whether an API server on 127.0.0.1 says that it is ready, whoever asks: before there is a kubeconfig for it."""
    if not port:
        return False
    # The certificate is not verified: nothing but this one word is asked for, and nothing sent.
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", int(port), timeout=2, context=unverified)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def ensure_context(settings: Settings, kind: Path) -> None:
    """Write the context into the user's kubeconfig unless it is there and points at this cluster."""
    if _context_is_current(settings):
        return
    run(
        [kind, "export", "kubeconfig", "--name", settings.cluster_name],
        timeout_s=60,
        env=_environment(settings),
        mend="if it says the file is locked, remove the file ending in .lock beside your kubeconfig",
    )


def context_server(context: str) -> str:
    """Return the API server that a kubeconfig context points to, or "" if there is no such context."""
    from kubernetes import config

    try:
        api = config.new_client_from_config(context=context)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError, ValueError):
        return ""
    return str(api.configuration.host)


def _context_is_current(settings: Settings) -> bool:
    server, port = context_server(settings.context), api_port(settings)
    return bool(port) and server.endswith(f":{port}") and Kube(settings.context).is_up()


def export_kubeconfig(settings: Settings, kind: Path) -> None:
    """Write the context into the user's kubeconfig anew (after a restart its certificates may be others)."""
    run([kind, "export", "kubeconfig", "--name", settings.cluster_name], timeout_s=60, env=_environment(settings))


def delete_cluster(settings: Settings, kind: Path) -> None:
    """Delete the cluster's nodes and its entries in kubeconfig."""
    run([kind, "delete", "cluster", "--name", settings.cluster_name], timeout_s=180, env=_environment(settings))
    kubeconfig_of(settings).unlink(missing_ok=True)


def wire_registry(settings: Settings) -> None:
    """Tell each node's containerd where the lab's registry is (certs.d/hosts.toml).

    https://kind.sigs.k8s.io/docs/user/local-registry/
    """
    hosts = (
        f'[host."http://{settings.registry_container}:{REGISTRY_PORT_INSIDE}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    names = (REGISTRY_IN_CLUSTER, f"localhost:{settings.registry_port}")
    script = "; ".join(
        f'mkdir -p /etc/containerd/certs.d/{name} && printf %s "$hosts" > /etc/containerd/certs.d/{name}/hosts.toml'
        for name in names
    )

    def wire(node: str) -> None:
        docker(
            "exec",
            "--interactive",
            node,
            "sh",
            "-euc",
            f"hosts=$(cat; echo .); hosts=${{hosts%.}}; {script}",
            input_text=hosts,
        )

    with ThreadPoolExecutor(3, "wire") as pool:
        list(pool.map(wire, node_containers(settings)))


# Reads files from standard input, each after a line "<number of lines> <path>".
_UNPACK = """umask 077
while read -r count path; do
  mkdir -p "${path%/*}"
  while [ "$count" -gt 0 ]; do IFS= read -r line; printf '%s\\n' "$line"; count=$((count-1)); done > "$path.new"
  mv "$path.new" "$path"
done"""


def put_files(settings: Settings, files: Mapping[str, str]) -> None:
    """Put text files onto every node, readable by root only; what they hold is in no command line."""
    packed = "".join(
        f"{len(text.splitlines())} {path}\n" + "\n".join([*text.splitlines(), ""]) for path, text in files.items()
    )

    def put(node: str) -> None:
        docker("exec", "--interactive", node, "sh", "-euc", _UNPACK, input_text=packed)

    with ThreadPoolExecutor(3, "files") as pool:
        list(pool.map(put, node_containers(settings)))


def preload(wanted: Mapping[str, Sequence[Image]]) -> None:
    """Put images into nodes by digest, under the tag that manifests name: what is there is not pulled by tag."""

    def pull(node: str) -> None:
        for image in wanted[node]:
            console.note(f"{node}: {image.tagged}")
            by_digest = f"{image.image}@{image.digest}" if image.digest else image.tagged
            docker("exec", node, "crictl", "pull", by_digest, timeout_s=600)
            docker("exec", node, "ctr", "--namespace", "k8s.io", "images", "tag", "--force", by_digest, image.tagged)

    with ThreadPoolExecutor(3, "preload") as pool:
        list(pool.map(pull, wanted))


def label_workers(kube: Kube) -> None:
    """Give the workers their role label."""
    for node in kube.call(kube.core.list_node).items:
        if not _is_control_plane(node) and WORKER_LABEL not in (node.metadata.labels or {}):
            kube.call(kube.core.patch_node, node.metadata.name, {"metadata": {"labels": {WORKER_LABEL: ""}}})


def without_workers(kube: Kube) -> tuple[str, ...]:
    """Return the nodes that could be workers if none has the role's label: the others, or all of a single node."""
    nodes = kube.call(kube.core.list_node).items
    if any(WORKER_LABEL in (node.metadata.labels or {}) for node in nodes):
        return ()
    workers = [node for node in nodes if not _is_control_plane(node)]
    return tuple(node.metadata.name for node in workers or nodes)


def _is_control_plane(node: Any) -> bool:
    return CONTROL_PLANE_LABEL in (node.metadata.labels or {})


def not_ready_nodes(kube: Kube, expected: int) -> list[str]:
    """Return what keeps the nodes from being Ready, one line each."""
    nodes = [kube.to_dict(n) for n in kube.call(kube.core.list_node).items]
    lines = []
    for node in nodes:
        ready: dict[str, Any] = next((c for c in node["status"].get("conditions", []) if c["type"] == "Ready"), {})
        if ready.get("status") != "True":
            lines.append(f"node {node['metadata']['name']}: {ready.get('message', 'has not reported yet')}")
    if len(nodes) < expected:
        lines.append(f"{len(nodes)} of {expected} nodes have joined")
    return lines


def not_ready_pods(kube: Kube) -> list[str]:
    """Return the pods that are neither Ready nor done."""
    lines = []
    for pod in kube.call(kube.core.list_pod_for_all_namespaces).items:
        ready = any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])
        if not ready and pod.status.phase != "Succeeded":
            lines.append(f"pod {pod.metadata.namespace}/{pod.metadata.name} is not Ready")
    return lines


def wait_for_nodes(kube: Kube, expected: int, timeout_s: float = 180) -> None:
    """Wait until every node is Ready."""
    wait_for(
        "every node is Ready",
        lambda: not_ready_nodes(kube, expected),
        timeout_s=timeout_s,
        interval_s=0.5,
        mend="`make diagnose` collects the nodes' logs",
    )


def dns_answers(kube: Kube) -> bool:
    """Whether the cluster's DNS has somebody to answer, who knows its Services (CoreDNS is Ready once it does)."""
    found = kube.get(
        "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices",
        labelSelector="kubernetes.io/service-name=kube-dns",
    )
    ends = [end for piece in found["items"] for end in piece.get("endpoints") or []]
    return any(end.get("conditions", {}).get("ready") for end in ends)


def hosting_config_map(settings: Settings) -> dict[str, Any]:
    """Return the ConfigMap that tells tools where the local registry is (KEP-1755)."""
    value = f'host: "localhost:{settings.registry_port}"\nhelp: "https://kind.sigs.k8s.io/docs/user/local-registry/"\n'
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "local-registry-hosting", "namespace": "kube-public"},
        "data": {"localRegistryHosting.v1": value},
    }


def engine_addresses(settings: Settings) -> dict[str, str]:
    """Return each node's address on the lab's network, as the engine has it."""
    done = docker("inspect", *node_containers(settings))
    return {
        c["Name"].lstrip("/"): c["NetworkSettings"]["Networks"].get(settings.network, {}).get("IPAddress", "")
        for c in json.loads(done.stdout)
    }
