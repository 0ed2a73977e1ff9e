"""What the rules look things up in: every rendered object of the tree, its pods, and who selects whom.

Environments share a cluster: a name is looked for in its namespace, first among the objects of the same
kustomization, then among all others (a Service may come from one and its route from another).

Manifests may be wrong in any way (that is for the schemas to say), so nothing here trusts a type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scripts.check.model import Rendered, Resource, release_folder

Object = Mapping[str, Any]

# Where a workload keeps its pod's template, by group and kind.
POD_TEMPLATES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("", "Pod"): (),
    ("", "ReplicationController"): ("spec", "template"),
    ("apps", "Deployment"): ("spec", "template"),
    ("apps", "StatefulSet"): ("spec", "template"),
    ("apps", "DaemonSet"): ("spec", "template"),
    ("apps", "ReplicaSet"): ("spec", "template"),
    ("batch", "Job"): ("spec", "template"),
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
}
WORKLOADS = frozenset(kind for _, kind in POD_TEMPLATES)
SERVERS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController"})
# Custom kinds that make neither pods nor Services: a namespace that holds only these holds nothing unseen.
_PASSIVE_GROUPS = (
    "toolkit.fluxcd.io", "cert-manager.io", "external-secrets.io", "bitnami.com", "kyverno.io", "keda.sh", "cilium.io",
    "projectcalico.org", "networking.istio.io", "security.istio.io", "traefik.io", "linkerd.io",
)  # fmt: skip
_PASSIVE_KINDS = {
    "ServiceMonitor", "PodMonitor", "PrometheusRule", "Probe", "ScrapeConfig", "AlertmanagerConfig", "HTTPRoute",
    "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "ReferenceGrant", "BackendTLSPolicy", "BackendTrafficPolicy",
    "ClientTrafficPolicy", "SecurityPolicy", "GrafanaDashboard", "VerticalPodAutoscaler",
}  # fmt: skip

# Namespaces that hold more than any tree says.
_GIVEN = {"kube-system": "the cluster's own installation", "flux-system": "Flux's own installation"}


def mapping(value: object) -> Object:
    """Return a value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: object) -> list[Object]:
    """Return the mappings of a list; what isn't one is for the schemas to refuse."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def strings(value: object) -> list[str]:
    """Return the strings of a list."""
    return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []


def dig(value: object, *keys: str) -> Any:
    """Return what lies below a path of keys, or None."""
    for key in keys:
        value = mapping(value).get(key)
    return value


def number(value: object, default: int) -> int:
    """Return a value if it is an integer, else the default."""
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def labels_of(metadata: object) -> dict[str, str]:
    """Return the labels of a metadata block."""
    return {str(k): str(v) for k, v in mapping(dig(metadata, "labels")).items()}


def selects(selector: object, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector selects what carries these labels; an empty one selects everything."""
    for key, value in mapping(dig(selector, "matchLabels")).items():
        if labels.get(str(key)) != str(value):
            return False
    for expression in mappings(dig(selector, "matchExpressions")):
        key, values = str(expression.get("key")), {str(v) for v in expression.get("values") or []}
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not holds.get(str(expression.get("operator")), True):
            return False
    return True


@dataclass(frozen=True)
class Container:
    """One container of a pod; `once` for an init container that ends before the others start."""

    name: str
    spec: Object
    once: bool = False
    sidecar: bool = False


@dataclass(frozen=True)
class Pod:
    """The pod that a workload makes."""

    labels: Mapping[str, str]
    spec: Object

    @cached_property
    def containers(self) -> list[Container]:
        """All containers: init containers (sidecars among them), then the regular ones."""
        found = []
        for c in mappings(self.spec.get("initContainers")):
            sidecar = c.get("restartPolicy") == "Always"
            found.append(Container(str(c.get("name", "?")), c, once=not sidecar, sidecar=sidecar))
        found += [Container(str(c.get("name", "?")), c) for c in mappings(self.spec.get("containers"))]
        return found

    @property
    def regular(self) -> list[Container]:
        """The containers that make up the service: no init containers."""
        return [c for c in self.containers if not c.once and not c.sidecar]

    @property
    def service_account(self) -> str:
        """The service account that the pod runs as."""
        name = self.spec.get("serviceAccountName") or self.spec.get("serviceAccount")
        return name if isinstance(name, str) and name else "default"

    @property
    def port_names(self) -> set[str]:
        """The names that Services can give as a target port."""
        return {
            str(p["name"]) for c in self.containers if not c.once for p in mappings(c.spec.get("ports")) if "name" in p
        }


@dataclass(frozen=True)
class Item:
    """A rendered object and the kustomization that renders it."""

    resource: Resource
    rendered: Rendered

    @property
    def kind(self) -> str:
        """The object's kind."""
        return self.resource.kind

    @property
    def name(self) -> str:
        """The object's name."""
        return self.resource.name

    @cached_property
    def group(self) -> str:
        """The object's API group, empty for core."""
        group, slash, _ = self.resource.api_version.rpartition("/")
        return group if slash else ""

    @property
    def namespace(self) -> str:
        """The object's namespace; for namespaced kinds without one the API server takes `default`."""
        return self.resource.namespace or "default"

    @property
    def spec(self) -> Object:
        """The object's spec."""
        return mapping(self.resource.data.get("spec"))

    @property
    def labels(self) -> dict[str, str]:
        """The object's labels."""
        return labels_of(self.resource.data.get("metadata"))

    @property
    def annotations(self) -> Object:
        """The object's annotations."""
        return mapping(dig(self.resource.data, "metadata", "annotations"))

    @cached_property
    def pod(self) -> Pod | None:
        """The pod that this object makes, or None for what isn't a workload."""
        path = POD_TEMPLATES.get((self.group, self.kind))
        if path is None:
            return None
        template = dig(self.resource.data, *path)
        return Pod(labels_of(dig(template, "metadata")), mapping(dig(template, "spec")))


class Inventory:
    """Every rendered object of the tree."""

    def __init__(self, rendered: Iterable[Rendered]) -> None:
        self.items = [Item(resource, r) for r in rendered for resource in r.resources]
        self._by_kind: dict[str, list[Item]] = defaultdict(list)
        self._by_place: dict[tuple[str, str], list[Item]] = defaultdict(list)
        for item in self.items:
            self._by_kind[item.kind].append(item)
            self._by_place[item.kind, item.namespace].append(item)

    @cached_property
    def definitions_with_deprecations(self) -> list[Item]:
        """The CRDs that may have a deprecated version: the text is asked first, since a CRD takes long to read."""
        found = self.all("CustomResourceDefinition")
        return [crd for crd in found if not crd.rendered.text or "deprecated: true" in crd.rendered.text]

    def all(self, *kinds: str) -> Iterator[Item]:
        """Yield every object of the kinds, wherever it is."""
        for kind in kinds:
            yield from self._by_kind.get(kind, ())

    def near(self, item: Item, *kinds: str, namespace: str = "") -> list[Item]:
        """Return the objects of the kinds in a namespace (the item's own, if none is given), each name once.

        What the item's own kustomization renders goes before what others do: a tree may hold several clusters.
        """
        found: dict[tuple[str, str, str], Item] = {}
        for kind in kinds:
            for other in self._by_place.get((kind, namespace or item.namespace), ()):
                key = (kind, other.group, other.name)
                if key not in found or (other.rendered is item.rendered and found[key].rendered is not item.rendered):
                    found[key] = other
        return list(found.values())

    def find(self, item: Item, kind: str, name: str, namespace: str = "") -> Item | None:
        """Return the object of a name, as `near` looks for it."""
        return next((o for o in self.near(item, kind, namespace=namespace) if o.name == name), None)

    def workloads(self, item: Item, namespace: str = "") -> list[Item]:
        """Return what makes pods in a namespace."""
        return [o for o in self.near(item, *sorted(WORKLOADS), namespace=namespace) if o.pod]

    def selected(self, item: Item, selector: object, namespace: str = "") -> list[Item]:
        """Return the workloads whose pods a LabelSelector selects."""
        return [o for o in self.workloads(item, namespace) if o.pod and selects(selector, o.pod.labels)]

    def scaler_of(self, workload: Item) -> Item | None:
        """Return the autoscaler that sets a workload's replicas."""
        for scaler in self.near(workload, "HorizontalPodAutoscaler", "ScaledObject"):
            target = mapping(scaler.spec.get("scaleTargetRef"))
            if (target.get("kind", "Deployment"), target.get("name")) == (workload.kind, workload.name):
                return scaler
        return None

    def maker_in(self, namespace: str) -> str:
        """Return an object that makes others in a namespace where the check can't see them, or an empty string.

        A chart that isn't rendered, a custom kind whose controller runs pods, or what made the cluster and Flux.
        """
        return self._makers.get(namespace, _GIVEN.get(namespace, ""))

    @cached_property
    def _makers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        # Of a chart from elsewhere another machine may not see what it makes: a rule is as sure there as here.
        releases = {
            i.rendered.kustomization: i.rendered for i in self.items if i.rendered.release_annotations is not None
        }
        for item in self.items:
            within = item.rendered
            folder = release_folder(within.kustomization, within.flux_kustomizations, item.resource.subject)
            seen = releases.get(folder) if item.kind == "HelmRelease" else None
            if seen and seen.own_chart:
                continue
            if item.kind in ("HelmRelease", "HelmChart") and item.group.split(".")[0] == "helm":
                target = item.spec.get("targetNamespace")
                named = item.resource.subject + (", whose chart is not in the tree" if seen else "")
                found.setdefault(target if isinstance(target, str) else item.namespace, named)
            elif (
                "." in item.group
                and (not item.group.endswith(".k8s.io") or item.kind == "Gateway")
                and item.kind not in _PASSIVE_KINDS
                and not item.group.endswith(_PASSIVE_GROUPS)
                and item.resource.namespace
            ):
                found.setdefault(item.namespace, item.resource.subject)
        return found

    @cached_property
    def granted(self) -> set[tuple[str, str]]:
        """Service accounts (namespace, name) that a binding of the tree grants something; name `*` for a whole namespace."""
        found = set()
        for binding in self.all("RoleBinding", "ClusterRoleBinding"):
            for subject in mappings(binding.resource.data.get("subjects")):
                name = str(subject.get("name"))
                if subject.get("kind") == "ServiceAccount":
                    found.add((str(subject.get("namespace") or binding.namespace), name))
                elif name == "system:serviceaccounts":
                    found.add(("*", "*"))
                elif name.startswith("system:serviceaccounts:"):
                    found.add((name.rpartition(":")[2], "*"))
        return found

    def default_resources(self, item: Item) -> tuple[Object, Object]:
        """Return the requests and limits that LimitRanges give a container that states none."""
        requests: dict[str, Any] = {}
        limits: dict[str, Any] = {}
        for limit_range in self.near(item, "LimitRange"):
            for limit in mappings(limit_range.spec.get("limits")):
                if limit.get("type") == "Container":
                    limits |= mapping(limit.get("default"))
                    # The API server fills in a missing default request from the default limit.
                    requests |= {**mapping(limit.get("default")), **mapping(limit.get("defaultRequest"))}
        return requests, limits
