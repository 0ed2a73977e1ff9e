"""`make kustomize-dry-run`: the API server's own verdict on every rendered object.

A real, empty API server is started for it (apiserver.py). What others depend on really gets made there (dryrun_world.py),
everything else is sent as a server-side dry run, strictly, as Flux would apply it. Pod Security, quotas and limit ranges
judge pods only, so the pod of each workload's template is sent too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from scripts.check import dryrun_verdict as verdict
from scripts.check.apiserver import any_server, find_binaries
from scripts.check.dryrun_api import CONNECTIONS, Answer, Api, Object
from scripts.check.dryrun_definitions import missing_definitions
from scripts.check.dryrun_world import Thing, World, is_real
from scripts.check.lint_inventory import POD_TEMPLATES, dig, mapping, mappings
from scripts.check.lint_removed import REMOVALS
from scripts.check.model import Finding, Rendered, Resource, Severity
from scripts.discovery import Kind
from scripts.settings import FLUX_NAMESPACE, Settings
from scripts.versions import Versions

# Namespaces that are there before any tree is applied.
_GIVEN_NAMESPACES = frozenset({"default", "kube-system", "kube-public", "kube-node-lease", FLUX_NAMESPACE})
_GIVEN_CLASSES = frozenset({"system-cluster-critical", "system-node-critical"})
_PODS = Kind("v1", "pods", namespaced=True)
_FLUX_GROUPS = (".toolkit.fluxcd.io", ".extensions.fluxcd.io")
_FORCE = "kustomize.toolkit.fluxcd.io/force"


@dataclass(frozen=True)
class Applied:
    """A rendered object and what renders it."""

    resource: Resource
    rendered: Rendered

    @property
    def kind(self) -> tuple[str, str]:
        """Its apiVersion and kind."""
        return self.resource.api_version, self.resource.kind

    @property
    def namespace(self) -> str:
        """Its namespace, as the API server takes it."""
        return self.resource.namespace or "default"

    @property
    def group(self) -> str:
        """Its API group."""
        return self.resource.api_version.rpartition("/")[0]


def dry_run(
    rendered: Sequence[Rendered],
    settings: Settings,
    versions: Versions,
    before: Sequence[Rendered] = (),
) -> list[Finding]:
    """Return what a real API server says against the rendered objects.

    Args:
        rendered: every kustomization that is applied by itself, in the order in which Flux applies them.
        settings: where the binaries and a warm server are found.
        versions: the pinned version.
        before: what is there already: each object is then judged as a change of it (immutable fields).
    """
    binaries = find_binaries(settings.tools_dir)
    if not binaries:
        return []
    objects, old = _objects(rendered), _objects(before)
    with (
        any_server(settings, binaries) as (server, wait_until_ready),
        ThreadPoolExecutor(CONNECTIONS, "dry-run") as pool,
    ):
        # Done while the server starts: definitions are read here, and its client is half a second of imports.
        definitions = missing_definitions([o.resource for o in objects], settings, versions)
        things, findings = _things(objects, [Thing(d) for d in definitions])
        import kubernetes.client  # noqa: F401

        wait_until_ready()
        api = Api(server)
        run = _Run(api, World(api, server.folder / "made.json", pool), pool)
        return [*findings, *run.judge(objects, old, things)]


def _objects(rendered: Sequence[Rendered]) -> list[Applied]:
    return [Applied(resource, r) for r in rendered for resource in r.resources if resource.name]


class _Run:
    """One dry run on one server."""

    def __init__(self, api: Api, world: World, pool: ThreadPoolExecutor) -> None:
        self._api = api
        self._world = world
        self._pool = pool
        self._kinds: Mapping[tuple[str, str], Kind] = {}
        self._others_flux = False

    def judge(self, objects: Sequence[Applied], before: Sequence[Applied], things: Sequence[Thing]) -> list[Finding]:
        """Make what has to exist, send everything else, and return what the server says against any of it."""
        findings: list[Finding] = []
        # The operator installs a Flux of its own, whose definitions may take more than those of the pinned version.
        self._others_flux = any(
            o.resource.kind == "FluxInstance" or (o.resource.kind, o.resource.name) == ("HelmRelease", "flux-operator")
            for o in objects
        )
        made = self._world.make(things)
        self._kinds = made.kinds
        for thing, answer in made.answers:
            if thing.resource and thing.rendered:
                findings += self._verdict(answer, Applied(thing.resource, thing.rendered))
        for old in before:
            if not is_real(old.resource.data) and old.kind in self._kinds:
                kind = self._kinds[old.kind]
                self._world.add(kind.path(old.namespace, old.resource.name), _sendable(old))
        real = {id(t.resource) for t in things}
        rest = [o for o in objects if id(o.resource) not in real]
        for found in self._pool.map(self._send, rest):
            findings += found
        return findings

    def _send(self, item: Applied) -> list[Finding]:
        """Send one object, and the pod that it would make."""
        kind = self._kinds.get(item.kind)
        if not kind:
            return [self._unknown_kind(item)]
        if item.kind != ("v1", "Secret") and _mentions(item.resource.data, "ENC[AES256_GCM,"):
            return [
                verdict.finding(
                    "encrypted", "its values are encrypted, so the API server can't judge them",
                    "nothing has to be mended", item.resource, item.rendered,
                )
            ]  # fmt: skip
        answer = self._api.apply(kind.path(item.namespace, item.resource.name), _sendable(item), dry_run=True)
        pod = _pod_of(answer.body, item) if answer.ok else None
        if pod is None:
            return list(self._verdict(answer, item))
        pods = self._api.create(_PODS.path(item.namespace), pod, dry_run=True)
        if pods.ok:
            return list(self._verdict(answer, item))
        # That the workload's pods would be refused is a warning on the workload and an error on the pod: one is enough.
        told = Answer(answer.status, answer.body, tuple(w for w in answer.warnings if "PodSecurity" not in w))
        return [
            *self._verdict(told, item),
            *verdict.refusal(
                pods, item.resource, item.rendered, "its pods are refused: ",
                within=POD_TEMPLATES[item.group, item.resource.kind],
            ),
        ]  # fmt: skip

    def _verdict(self, answer: Answer, item: Applied) -> Iterator[Finding]:
        if answer.ok:
            if item.resource.kind != "CustomResourceDefinition":
                yield from verdict.warnings(answer, item.resource, item.rendered)
            return
        annotations = mapping(dig(item.resource.data, "metadata", "annotations"))
        if "field is immutable" in answer.message and annotations.get(_FORCE) == "enabled":
            return  # Flux deletes it and makes it anew
        # A variable that only the cluster knows stands for a value that is not seen here.
        unsure = _mentions(item.resource.data, "${") or (self._others_flux and item.group.endswith(_FLUX_GROUPS))
        yield from verdict.refusal(
            answer, item.resource, item.rendered, severity=Severity.WARNING if unsure else Severity.ERROR
        )

    def _unknown_kind(self, item: Applied) -> Finding:
        """Return that a kind isn't served: an error where its group is, or was, in other versions or kinds."""
        groups = {api_version.rpartition("/")[0] for api_version, _ in (*self._kinds, *REMOVALS)}
        foreign = item.group not in groups
        return verdict.finding(
            "unknown-kind",
            f"the API server knows no {item.resource.kind} in {item.resource.api_version}"
            + ("; its definition is not in the tree, so it can't be judged" if foreign else ""),
            "add its CustomResourceDefinition to the tree" if foreign else "write a kind and version that are served",
            item.resource,
            item.rendered,
            Severity.WARNING if foreign or self._others_flux else Severity.ERROR,
        )


def _sendable(item: Applied) -> Object:
    """Return an object as Flux would send it, less what only the real cluster can judge."""
    data: dict[str, Any] = dict(item.resource.data)
    if item.kind == ("v1", "Secret"):
        # Flux decrypts before it applies: encrypted values are not what the API server would see.
        data.pop("sops", None)
        for field in ("data", "stringData"):
            if isinstance(data.get(field), Mapping):
                data[field] = {k: "" if _mentions(v, "ENC[AES256_GCM,") else v for k, v in data[field].items()}
    if item.kind == ("v1", "Service") and dig(data, "spec", "clusterIP") not in (None, "", "None"):
        # Which addresses there are depends on the cluster.
        data["spec"] = {k: v for k, v in data["spec"].items() if k not in ("clusterIP", "clusterIPs")}
    return data


def _mentions(value: object, text: str) -> bool:
    """Whether a text stands in any of the strings of a value."""
    if isinstance(value, Mapping):
        return any(_mentions(v, text) for v in value.values())
    if isinstance(value, list):
        return any(_mentions(v, text) for v in value)
    return isinstance(value, str) and text in value


def _pod_of(workload: Object, item: Applied) -> Object | None:
    """Return the pod that a workload's controller would make, from the workload as the API server has completed it."""
    path = POD_TEMPLATES.get((item.group, item.resource.kind))
    template = mapping(dig(workload, *path)) if path else {}
    if not template:
        return None
    spec = dict(mapping(template.get("spec")))
    claims = [
        {"name": name, "persistentVolumeClaim": {"claimName": name}}
        for claim in mappings(dig(workload, "spec", "volumeClaimTemplates"))
        if (name := dig(claim, "metadata", "name"))
    ]
    if claims:
        spec["volumes"] = [*mappings(spec.get("volumes")), *claims]
    metadata = {k: v for k, v in mapping(template.get("metadata")).items() if k in ("labels", "annotations")}
    metadata |= {"name": f"{item.resource.name[:240]}-dry-run", "namespace": item.namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _things(objects: Sequence[Applied], definitions: Sequence[Thing]) -> tuple[list[Thing], list[Finding]]:
    """Return what has to exist, each once, stand-ins for what others make, and a warning for each of those."""
    parameters = _parameter_kinds(objects)
    things: dict[tuple[str, str, str], Thing] = {}
    findings: list[Finding] = []

    def add(thing: Thing) -> bool:
        namespace = thing.namespace if thing.kind[1] in ("ServiceAccount", "LimitRange", "ResourceQuota") else ""
        key = (thing.kind[1], namespace or (thing.namespace if thing.last else ""), thing.name)
        if key in things:
            return False
        things[key] = thing
        return True

    for definition in definitions:
        add(definition)
    for item in objects:
        if is_real(item.resource.data):
            add(Thing(item.resource.data, item.resource, item.rendered))
        elif item.kind in parameters:
            add(Thing(item.resource.data, item.resource, item.rendered, last=True))
    for item in objects:
        for stand_in, is_given in _stand_ins(item):
            if add(Thing(stand_in)) and not is_given:
                kind, name = stand_in["kind"], stand_in["metadata"]["name"]
                findings.append(
                    verdict.finding(
                        "not-in-tree", f"{kind} {name} is not in the tree; the dry run went on as if it were there",
                        f"add the {kind}, or make sure that it is there before Flux applies this",
                        item.resource, item.rendered,
                    )
                )  # fmt: skip
    return list(things.values()), findings


def _stand_ins(item: Applied) -> Iterator[tuple[Object, bool]]:
    """Yield what an object needs to be judged at all, and whether it is always there without the tree."""
    namespaced = item.resource.namespace
    path = POD_TEMPLATES.get((item.group, item.resource.kind))
    if namespaced or path is not None:
        namespace = item.namespace
        yield (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
            namespace in _GIVEN_NAMESPACES,
        )
        # Its controller makes this one in every namespace.
        yield _service_account(namespace, "default"), True
    if path is None:
        return
    spec = mapping(dig(item.resource.data, *path, "spec"))
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if isinstance(account, str) and account:
        yield _service_account(item.namespace, account), False
    priority, runtime = spec.get("priorityClassName"), spec.get("runtimeClassName")
    if isinstance(priority, str) and priority and priority not in _GIVEN_CLASSES:
        metadata = {"name": priority}
        yield {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": metadata, "value": 0}, False
    if isinstance(runtime, str) and runtime:
        metadata = {"name": runtime}
        yield {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": metadata, "handler": runtime}, False


def _service_account(namespace: str, name: str) -> Object:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}


def _parameter_kinds(objects: Sequence[Applied]) -> set[tuple[str, str]]:
    """Return the kinds that admission policies read their parameters from: a policy without them can't be asked."""
    kinds = [
        mapping(dig(item.resource.data, "spec", "paramKind"))
        for item in objects
        if item.resource.kind in ("ValidatingAdmissionPolicy", "MutatingAdmissionPolicy")
    ]
    return {(str(k.get("apiVersion")), str(k.get("kind"))) for k in kinds if k}
