"""Rules about objects that mean another one: a selector, a target, a backend that is not there."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.check.lint_inventory import WORKLOADS, Item, Object, dig, mapping, mappings, selects, strings
from scripts.check.lint_rule import Context, Rule, Warn, rule

_ROUTES = frozenset({"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute"})
_FOREIGN_POLICIES = (
    "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy", "GlobalNetworkPolicy", "AdminNetworkPolicy",
    "BaselineAdminNetworkPolicy", "ClusterNetworkPolicy",
)  # fmt: skip


def _written(selector: object) -> str:
    labels = [f"{k}={v}" for k, v in mapping(dig(selector, "matchLabels")).items()]
    labels += [
        f"{e.get('key')} {e.get('operator')} {','.join(strings(e.get('values')))}".strip()
        for e in mappings(dig(selector, "matchExpressions"))
    ]
    return ", ".join(labels) or "everything"


def _service_selector(item: Item) -> Object | None:
    """Return a Service's selector as a LabelSelector, or None where it has none to judge."""
    selector = mapping(item.spec.get("selector"))
    if item.group or not selector or item.spec.get("type") == "ExternalName":
        return None
    return {"matchLabels": selector}


@rule(
    "dangling-service",
    kinds={"Service"},
    reason="a Service without pods answers nobody, and says so only as a timeout or a 503",
    mend="make the selector fit the labels of the pods' template (mind labels that an overlay adds)",
)
def dangling_service(item: Item, context: Context) -> Iterator[str]:
    """Find Services that select no pod."""
    selector = _service_selector(item)
    if selector and not context.seen.selected(item, selector):
        yield context.missing(item.namespace, f"its selector {_written(selector)} fits no pod in {item.namespace}")


@rule(
    "service-target-port",
    kinds={"Service"},
    reason="a target port by a name that no container gives makes a Service without endpoints",
    mend="give the container's port that name, or name the one it has in targetPort",
)
def service_target_port(item: Item, context: Context) -> Iterator[str]:
    """Find Services whose named target port no selected pod has."""
    selector = _service_selector(item)
    workloads = context.seen.selected(item, selector) if selector else []
    known = set[str]().union(*(w.pod.port_names for w in workloads if w.pod))
    for port in mappings(item.spec.get("ports")):
        target = port.get("targetPort")
        if workloads and isinstance(target, str) and not target.isdigit() and target not in known:
            yield f"targetPort {target} is no port of {', '.join(w.resource.subject for w in workloads)}"


@rule(
    "dangling-horizontalpodautoscaler",
    kinds={"HorizontalPodAutoscaler"},
    reason="an autoscaler without its target scales nothing, and says so only in its status",
    mend="name a workload of the same namespace in scaleTargetRef",
)
def dangling_horizontalpodautoscaler(item: Item, context: Context) -> Iterator[str]:
    """Find autoscalers whose target doesn't exist."""
    target = mapping(item.spec.get("scaleTargetRef"))
    kind, name = str(target.get("kind")), str(target.get("name"))
    if target and not context.seen.find(item, kind, name):
        yield context.missing(item.namespace, f"its target {kind} {item.namespace}/{name} is not there")


@rule(
    "dangling-poddisruptionbudget",
    kinds={"PodDisruptionBudget"},
    reason="a budget that covers no pod protects none",
    mend="make the selector fit the labels of the pods' template",
)
def dangling_poddisruptionbudget(item: Item, context: Context) -> Iterator[str]:
    """Find budgets that select no pod."""
    selector = item.spec.get("selector")
    if selector is not None and not context.seen.selected(item, selector):
        yield context.missing(item.namespace, f"its selector {_written(selector)} fits no pod in {item.namespace}")


@rule(
    "dangling-networkpolicy",
    kinds={"NetworkPolicy"},
    reason="a policy that covers no pod opens or closes nothing: what it was meant for is as it was",
    mend="make podSelector fit the labels of the pods' template",
)
def dangling_networkpolicy(item: Item, context: Context) -> Iterator[str]:
    """Find network policies that select no pod; one for every pod of a namespace is always meant."""
    selector = mapping(item.spec.get("podSelector"))
    if item.group == "networking.k8s.io" and selector and not context.seen.selected(item, selector):
        yield context.missing(item.namespace, f"its podSelector {_written(selector)} fits no pod in {item.namespace}")


@rule(
    "dangling-servicemonitor",
    kinds={"ServiceMonitor", "PodMonitor"},
    reason="a monitor that fits nothing is a gap in the graphs that nobody notices until they are needed",
    mend="make the selector fit the labels of the Service (PodMonitor: of the pods), and name a port that it has",
)
def dangling_servicemonitor(item: Item, context: Context) -> Iterator[str]:
    """Find monitors that select nothing, or a port that nothing they select has."""
    where = mapping(item.spec.get("namespaceSelector"))
    if where.get("any") is True:
        return
    selector = item.spec.get("selector")
    namespaces = strings(where.get("matchNames")) or [item.namespace]
    ports: set[str] = set()
    found = False
    for namespace in namespaces:
        if item.kind == "PodMonitor":
            workloads = context.seen.selected(item, selector, namespace)
            found = found or bool(workloads)
            ports |= set[str]().union(*(w.pod.port_names for w in workloads if w.pod))
            continue
        for service in context.seen.near(item, "Service", namespace=namespace):
            if not service.group and selects(selector, service.labels):
                found = True
                ports |= {str(p["name"]) for p in mappings(service.spec.get("ports")) if "name" in p}
    if not found:
        yield context.missing(
            namespaces[0], f"its selector {_written(selector)} fits nothing in {', '.join(namespaces)}"
        )
        return
    for endpoint in mappings(item.spec.get("endpoints") or item.spec.get("podMetricsEndpoints")):
        port = endpoint.get("port")
        if isinstance(port, str) and port not in ports:
            yield f"port {port} is none of those that it selects ({', '.join(sorted(ports)) or 'they have no names'})"


@rule(
    "non-existent-service-account",
    kinds=WORKLOADS,
    reason="pods of a service account that isn't there are refused, one by one, without a word on the Deployment",
    mend="add the ServiceAccount to the kustomization, or name one that exists",
)
def non_existent_service_account(item: Item, context: Context) -> Iterator[str]:
    """Find workloads whose service account nothing in the tree makes."""
    account = item.pod.service_account if item.pod else "default"
    if account != "default" and not context.seen.find(item, "ServiceAccount", account):
        yield context.missing(item.namespace, f"service account {item.namespace}/{account} is not there")


def _missing_service(item: Item, context: Context, namespace: str, name: str, port: object) -> Iterator[str]:
    """Yield what is wrong with a backend: no such Service, or it has no such port (by number or by name)."""
    service = next(
        (s for s in context.seen.near(item, "Service", namespace=namespace) if s.name == name and not s.group), None
    )
    if not service:
        yield context.missing(namespace, f"its backend Service {namespace}/{name} is not there")
        return
    ports = mappings(service.spec.get("ports"))
    if port is not None and port not in [p.get("port") for p in ports] + [p.get("name") for p in ports]:
        yield f"Service {namespace}/{name} has no port {port}"


@rule(
    "dangling-ingress",
    kinds={"Ingress"},
    reason="requests for that host and path end in a 503",
    mend="name a Service of the same namespace, and a port that it has",
)
def dangling_ingress(item: Item, context: Context) -> Iterator[str]:
    """Find Ingresses whose backend isn't there."""
    paths = [p for r in mappings(item.spec.get("rules")) for p in mappings(dig(r, "http", "paths"))]
    backends = [mapping(item.spec.get("defaultBackend")), *(mapping(p.get("backend")) for p in paths)]
    for service in [mapping(b.get("service")) for b in backends]:
        if service:
            port = mapping(service.get("port"))
            yield from _missing_service(
                item, context, item.namespace, str(service.get("name")), port.get("number", port.get("name"))
            )


@rule(
    "dangling-route",
    kinds=_ROUTES,
    reason="requests for that route end in a 500, and only the route's status says why",
    mend="name a Service that exists and a port that it has; in another namespace it takes a ReferenceGrant there",
)
def dangling_route(item: Item, context: Context) -> Iterator[str]:
    """Find Gateway API routes whose backend isn't there, or may not be referred to."""
    if item.group != "gateway.networking.k8s.io":
        return
    for backend in [b for r in mappings(item.spec.get("rules")) for b in mappings(r.get("backendRefs"))]:
        if (backend.get("group") or "", backend.get("kind") or "Service") != ("", "Service"):
            continue
        namespace, name = str(backend.get("namespace") or item.namespace), str(backend.get("name"))
        if namespace != item.namespace and not _granted(item, context, namespace, name):
            yield f"no ReferenceGrant in {namespace} lets a {item.kind} of {item.namespace} use Service {name}"
        yield from _missing_service(item, context, namespace, name, backend.get("port"))


def _granted(item: Item, context: Context, namespace: str, name: str) -> bool:
    for grant in context.seen.near(item, "ReferenceGrant", namespace=namespace):
        comes_from = any(
            (f.get("group"), f.get("kind"), f.get("namespace")) == (item.group, item.kind, item.namespace)
            for f in mappings(grant.spec.get("from"))
        )
        goes_to = any(
            (t.get("group") or "", t.get("kind")) == ("", "Service") and t.get("name") in (None, name)
            for t in mappings(grant.spec.get("to"))
        )
        if comes_from and goes_to:
            return True
    return False


@rule(
    "no-default-deny",
    kinds={"Namespace"},
    reason="without a policy for every pod, each pod that no policy names can be reached by everything in the cluster",
    mend="add a NetworkPolicy with an empty podSelector and policyTypes [Ingress, Egress], then open what is needed",
)
def no_default_deny(item: Item, context: Context) -> Iterator[str]:
    """Find namespaces that hold pods and no policy that covers all of them."""
    namespace = item.name
    maker = context.seen.maker_in(namespace)
    if any(context.seen.all(*_FOREIGN_POLICIES)) or not (context.seen.workloads(item, namespace) or maker):
        return
    covered = set()
    for policy in context.seen.near(item, "NetworkPolicy", namespace=namespace):
        if policy.group == "networking.k8s.io" and not mapping(policy.spec.get("podSelector")):
            egress = ["Egress"] if "egress" in policy.spec else []
            for direction in strings(policy.spec.get("policyTypes")) or ["Ingress", *egress]:
                rules = policy.spec.get(direction.lower())
                # One empty rule allows everything, which is the opposite of a default deny.
                if not (isinstance(rules, list) and {} in rules):
                    covered.add(direction)
    missing = [d for d in ("Ingress", "Egress") if d not in covered]
    if missing:
        message = f"namespace {namespace} has no default deny for {' and '.join(missing)}"
        # Many leave the way out open on purpose; the way in is what keeps neighbours apart.
        yield context.missing(namespace, message) if "Ingress" in missing else Warn(message)


RULES: tuple[Rule, ...] = (
    dangling_service,
    service_target_port,
    dangling_horizontalpodautoscaler,
    dangling_poddisruptionbudget,
    dangling_networkpolicy,
    dangling_servicemonitor,
    non_existent_service_account,
    dangling_ingress,
    dangling_route,
    no_default_deny,
)
