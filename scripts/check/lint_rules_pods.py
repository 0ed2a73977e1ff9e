"""Rules about the pods that workloads make: images, resources, probes, and what a pod may do to its node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.check.lint_inventory import SERVERS, WORKLOADS, Container, Item, Pod, dig, mapping, mappings, strings
from scripts.check.lint_rule import Context, Rule, rule

# The one capability that the restricted Pod Security standard lets a container add.
HARMLESS_CAPABILITIES = {"NET_BIND_SERVICE"}


def _pod(item: Item) -> Pod:
    return item.pod or Pod({}, {})


def _tag(image: str) -> tuple[str, bool]:
    """Return an image's tag, and whether a digest pins it."""
    name, at, _ = image.partition("@")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    return tag if colon else "", bool(at)


@rule(
    "untagged-image",
    kinds=WORKLOADS,
    reason="without a tag or digest the registry decides what runs, and a restart may bring another program",
    mend="name a version: a tag that never moves, or a digest (`images:` in the kustomization)",
)
def untagged_image(item: Item, _: Context) -> Iterator[str]:
    """Find images that nothing pins."""
    for container in _pod(item).containers:
        image = container.spec.get("image")
        if isinstance(image, str) and image and "$" not in image and _tag(image) == ("", False):
            yield f"container {container.name}: image {image} has neither tag nor digest"


@rule(
    "latest-tag",
    kinds=WORKLOADS,
    reason="`latest` moves: the same commit runs different programs on different days, and can't be rolled back",
    mend="name a version: a tag that never moves, or a digest (`images:` in the kustomization)",
)
def latest_tag(item: Item, _: Context) -> Iterator[str]:
    """Find images at `latest`."""
    for container in _pod(item).containers:
        image = container.spec.get("image")
        if isinstance(image, str) and _tag(image) == ("latest", False):
            yield f"container {container.name}: image {image}"


def _amount(item: Item, container: Container, what: str, resource: str, context: Context) -> Any:
    """Return what a container requests or is limited to, by itself, its pod, or the namespace's LimitRange."""
    own = mapping(container.spec.get("resources"))
    pod = mapping(_pod(item).spec.get("resources"))
    requests, limits = context.seen.default_resources(item)
    given = [dig(own, "limits"), dig(pod, "limits"), limits]
    if what == "requests":
        # A missing request is filled in from the limit.
        given = [dig(own, "requests"), dig(own, "limits"), dig(pod, "requests"), dig(pod, "limits"), requests, limits]
    return next((value for source in given if (value := mapping(source).get(resource)) is not None), None)


@rule(
    "unset-cpu-requirements",
    kinds=WORKLOADS,
    reason="without a CPU request the scheduler packs by nothing, and an autoscaler has nothing to take a share of",
    mend="set resources.requests.cpu; a CPU limit is a choice (it throttles), so none is asked for",
)
def unset_cpu_requirements(item: Item, context: Context) -> Iterator[str]:
    """Find containers without a CPU request."""
    for container in _pod(item).containers:
        if _amount(item, container, "requests", "cpu", context) is None:
            yield f"container {container.name}: no CPU request"


@rule(
    "unset-memory-requirements",
    kinds=WORKLOADS,
    reason="a container without a memory limit takes its neighbours down with it; without a request it is the first to go",
    mend="set resources.requests.memory and resources.limits.memory",
)
def unset_memory_requirements(item: Item, context: Context) -> Iterator[str]:
    """Find containers without a memory request or limit."""
    for container in _pod(item).containers:
        missing = [w for w in ("requests", "limits") if _amount(item, container, w, "memory", context) is None]
        if missing:
            yield f"container {container.name}: no memory {' and '.join(w.removesuffix('s') for w in missing)}"


@rule(
    "no-readiness-probe",
    kinds=SERVERS,
    reason="without it a pod gets requests before it can answer them, and a rollout goes on over broken pods",
    mend="add a readinessProbe that asks what a request needs",
)
def no_readiness_probe(item: Item, _: Context) -> Iterator[str]:
    """Find containers that are never asked whether they are ready."""
    for container in _pod(item).regular:
        if not mapping(container.spec.get("readinessProbe")):
            yield f"container {container.name}: no readinessProbe"


@rule(
    "no-liveness-probe",
    kinds=SERVERS,
    reason="a process that hangs stays, and nobody restarts it",
    mend="add a livenessProbe that is slower to give up than readiness, and asks nothing of other services",
)
def no_liveness_probe(item: Item, _: Context) -> Iterator[str]:
    """Find containers that are never asked whether they still live."""
    for container in _pod(item).regular:
        if not mapping(container.spec.get("livenessProbe")):
            yield f"container {container.name}: no livenessProbe"


def _secured(item: Item, container: Container, field: str) -> Any:
    """Return a field of the security context, the container's before the pod's."""
    own = mapping(container.spec.get("securityContext"))
    return own[field] if field in own else dig(_pod(item).spec, "securityContext", field)


def _is_windows(item: Item) -> bool:
    return bool(dig(_pod(item).spec, "os", "name") == "windows")


@rule(
    "run-as-non-root",
    kinds=WORKLOADS,
    reason="root in a container is root on the node as soon as anything lets it out",
    mend="set securityContext.runAsNonRoot: true (and runAsUser, where the image names no number)",
)
def run_as_non_root(item: Item, _: Context) -> Iterator[str]:
    """Find containers that run as root or may."""
    for container in _pod(item).containers:
        user, non_root = (_secured(item, container, f) for f in ("runAsUser", "runAsNonRoot"))
        if user == 0 and user is not False:
            yield f"container {container.name}: runs as user 0"
        elif non_root is not True and not user and not _is_windows(item):
            yield f"container {container.name}: may run as root (neither runAsNonRoot nor a runAsUser)"


@rule(
    "no-read-only-root-fs",
    kinds=WORKLOADS,
    reason="a writable root lets an intruder leave a program behind, and hides what should be a volume",
    mend="set securityContext.readOnlyRootFilesystem: true, with an emptyDir where the program writes",
)
def no_read_only_root_fs(item: Item, _: Context) -> Iterator[str]:
    """Find containers that can write to their root file system."""
    for container in _pod(item).containers:
        if dig(container.spec, "securityContext", "readOnlyRootFilesystem") is not True and not _is_windows(item):
            yield f"container {container.name}: its root file system is writable"


@rule(
    "capabilities",
    kinds=WORKLOADS,
    reason="the default set holds what almost no service needs (raw sockets, changing owners); an added one is worse",
    mend="set securityContext.capabilities.drop: [ALL] and add back none, or NET_BIND_SERVICE at most",
)
def capabilities(item: Item, _: Context) -> Iterator[str]:
    """Find containers that keep or add capabilities."""
    for container in _pod(item).containers:
        chosen = dig(container.spec, "securityContext", "capabilities")
        if "ALL" not in {c.upper() for c in strings(dig(chosen, "drop"))} and not _is_windows(item):
            yield f"container {container.name}: doesn't drop ALL capabilities"
        added = sorted(set(strings(dig(chosen, "add"))) - HARMLESS_CAPABILITIES)
        if added:
            yield f"container {container.name}: adds {', '.join(added)}"


@rule(
    "privileged-container",
    kinds=WORKLOADS,
    reason="a privileged container owns its node",
    mend="take securityContext.privileged out; most needs have a capability or a device of their own",
)
def privileged_container(item: Item, _: Context) -> Iterator[str]:
    """Find privileged containers."""
    for container in _pod(item).containers:
        if dig(container.spec, "securityContext", "privileged") is True:
            yield f"container {container.name}: privileged"


@rule(
    "privilege-escalation-container",
    kinds=WORKLOADS,
    reason="a setuid program in the image could give back what was dropped",
    mend="set securityContext.allowPrivilegeEscalation: false",
)
def privilege_escalation_container(item: Item, _: Context) -> Iterator[str]:
    """Find containers whose processes can gain privileges."""
    for container in _pod(item).containers:
        if dig(container.spec, "securityContext", "allowPrivilegeEscalation") is not False and not _is_windows(item):
            yield f"container {container.name}: allowPrivilegeEscalation is not false"


@rule(
    "host-namespaces",
    kinds=WORKLOADS,
    reason="in the host's network, process or IPC namespace no NetworkPolicy holds, and other pods' processes are in reach",
    mend="take hostNetwork, hostPID and hostIPC out",
)
def host_namespaces(item: Item, _: Context) -> Iterator[str]:
    """Find pods in namespaces of the host."""
    shared = [f for f in ("hostNetwork", "hostPID", "hostIPC") if _pod(item).spec.get(f) is True]
    if shared:
        yield f"the pod shares with its node: {', '.join(shared)}"


@rule(
    "host-path",
    kinds=WORKLOADS,
    reason="a path of the host is a way out of the container, and ties the pod to what one node has",
    mend="use an emptyDir, a ConfigMap or a PersistentVolumeClaim",
)
def host_path(item: Item, _: Context) -> Iterator[str]:
    """Find volumes that are paths of the host."""
    for volume in mappings(_pod(item).spec.get("volumes")):
        if "hostPath" in volume:
            yield f"volume {volume.get('name')}: hostPath {dig(volume, 'hostPath', 'path')}"


@rule(
    "default-service-account",
    kinds=WORKLOADS,
    reason="what is granted to `default` one day is granted to every pod of the namespace that names no other",
    mend="give it a ServiceAccount of its own and name it in serviceAccountName",
)
def default_service_account(item: Item, _: Context) -> Iterator[str]:
    """Find pods that run as the namespace's default service account."""
    if _pod(item).spec and _pod(item).service_account == "default":
        yield "runs as the default service account"


@rule(
    "mounted-token",
    kinds=WORKLOADS,
    reason="a token that nobody uses is one that an intruder will",
    mend="set automountServiceAccountToken: false on the pod (or its ServiceAccount); "
    "a pod that calls the API server says `true` itself and has a binding",
)
def mounted_token(item: Item, context: Context) -> Iterator[str]:
    """Find pods that get a token without asking, or ask for one that may do nothing."""
    pod = _pod(item)
    account = context.seen.find(item, "ServiceAccount", pod.service_account)
    asked = pod.spec.get("automountServiceAccountToken")
    if asked is None and (not account or account.resource.data.get("automountServiceAccountToken") is not False):
        yield f"the token of service account {pod.service_account} is mounted though the pod doesn't ask for it"
    granted = context.seen.granted
    holders = {(item.namespace, pod.service_account), (item.namespace, "*"), ("*", "*")}
    if asked is True and not holders & granted:
        yield context.missing(
            item.namespace,
            f"mounts the token of service account {pod.service_account}, which no binding grants anything",
        )


RULES: tuple[Rule, ...] = (
    untagged_image,
    latest_tag,
    unset_cpu_requirements,
    unset_memory_requirements,
    no_readiness_probe,
    no_liveness_probe,
    run_as_non_root,
    no_read_only_root_fs,
    capabilities,
    privileged_container,
    privilege_escalation_container,
    host_namespaces,
    host_path,
    default_service_account,
    mounted_token,
)
