"""Rules about sizes, budgets, permissions, labels, secrets and API versions."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from fractions import Fraction

from scripts.check.lint_inventory import SERVERS, WORKLOADS, Item, dig, mapping, mappings, number, strings
from scripts.check.lint_quantity import quantity, share_of, shown
from scripts.check.lint_removed import REMOVALS
from scripts.check.lint_room import needs_of
from scripts.check.lint_rule import Context, Rule, Warn, rule

_DEV = re.compile(r"(^|[-/_.])(dev|development)([-/_.]|$)")
# Types whose data others fill in, or that hold no secret.
_FILLED_SECRETS = {"kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token"}
# A variable, or the address of a secret in a store: nothing to hide.
_STANDS_FOR = re.compile(r"\s*(\$\{[^}]*\}|(op|vault|ref\+[\w.-]+)://[^\n]+|<path:\S+>)\s*")
_NAME_LABEL = "app.kubernetes.io/name"


@rule(
    "hpa-replicas",
    kinds=SERVERS,
    reason="Flux puts spec.replicas back at each reconcile and undoes what the autoscaler did",
    mend="take spec.replicas out; the autoscaler's minReplicas is the size",
)
def hpa_replicas(item: Item, context: Context) -> Iterator[str]:
    """Find workloads that state replicas though an autoscaler sets them."""
    scaler = context.seen.scaler_of(item)
    if scaler and item.spec.get("replicas") is not None:
        yield f"spec.replicas: {item.spec['replicas']} fights with {scaler.resource.subject}"


def _least_replicas(workload: Item, context: Context) -> int:
    scaler = context.seen.scaler_of(workload)
    if scaler:
        return number(scaler.spec.get("minReplicas", scaler.spec.get("minReplicaCount")), 1)
    return number(workload.spec.get("replicas"), 1)


@rule(
    "pdb-blocks-drains",
    kinds={"PodDisruptionBudget"},
    reason="a node with such a pod can't be drained: upgrades stop there until somebody deletes the budget",
    mend="allow one: maxUnavailable 1 (or a percentage, which is rounded up), or a minAvailable below the least replicas",
)
def pdb_blocks_drains(item: Item, context: Context) -> Iterator[str]:
    """Find budgets that never let a pod go."""
    if item.spec.get("selector") is None:
        return
    covered = [w for w in context.seen.selected(item, item.spec["selector"]) if w.kind in SERVERS - {"DaemonSet"}]
    total = sum(_least_replicas(w, context) for w in covered)
    most, least = item.spec.get("maxUnavailable"), item.spec.get("minAvailable")
    if most is not None and share_of(most, max(total, 1)) == 0:
        yield f"maxUnavailable: {most} lets no pod go"
    if least is not None and total:
        stay = share_of(least, total)
        if stay is not None and stay >= total:
            yield f"minAvailable: {least} keeps {stay} of {total} replicas at the least size, so none may go"


@rule(
    "overlapping-poddisruptionbudgets",
    kinds={"PodDisruptionBudget"},
    reason="a pod that two budgets cover can't be evicted at all: the API server refuses it with an error",
    mend="leave one of them, or make their selectors exclude each other",
)
def overlapping_poddisruptionbudgets(item: Item, context: Context) -> Iterator[str]:
    """Find budgets that cover pods of another budget."""
    own = {w.resource.subject for w in context.seen.selected(item, item.spec.get("selector"))}
    for other in context.seen.near(item, "PodDisruptionBudget"):
        if other.name > item.name and other.spec.get("selector") is not None:
            shared = own & {w.resource.subject for w in context.seen.selected(other, other.spec["selector"])}
            if shared:
                yield f"{', '.join(sorted(shared))} is also covered by {other.resource.subject}"


@rule(
    "quota-too-small",
    kinds={"ResourceQuota"},
    reason="under load the autoscaler asks for pods that the quota refuses, and a rollout stands still at full size",
    mend="raise the quota, or lower the autoscaler's maximum, the requests or maxSurge",
)
def quota_too_small(item: Item, context: Context) -> Iterator[str]:
    """Find quotas that the namespace outgrows at its autoscalers' maximum, with the surge of a rollout on top."""
    if item.spec.get("scopes") or item.spec.get("scopeSelector"):
        return
    needs = [needs_of(w, context.seen) for w in context.seen.workloads(item)]
    for resource, hard in mapping(item.spec.get("hard")).items():
        allowed = quantity(hard)
        parts = [(n, n.amount(str(resource))) for n in needs]
        needed = sum((amount for _, amount in parts), Fraction(0))
        if allowed is not None and needed > allowed:
            largest = max(parts, key=lambda part: part[1])[0]
            yield (
                f"{resource}: at full size the namespace takes {shown(needed, str(resource))}, the quota allows {hard} "
                f"({largest.explained})"
            )


@rule(
    "recommended-labels",
    kinds=WORKLOADS,
    reason="tools and people find what belongs together by these labels, on the workload and on its pods",
    mend="add app.kubernetes.io/name (in the kustomization: `labels:` with includeTemplates)",
)
def recommended_labels(item: Item, _: Context) -> Iterator[str]:
    """Find workloads and pods without the label that names the application."""
    places = {"the object": item.labels, "its pods": item.pod.labels if item.pod else {}}
    missing = [where for where, labels in places.items() if not labels.get(_NAME_LABEL)]
    if missing and item.kind == "Pod":
        missing = missing[:1]
    if missing:
        yield f"no label {_NAME_LABEL} on {' and '.join(missing)}"


def _is_readable(value: object, encoded: bool) -> bool:
    """Whether a value of a Secret can be read by whoever reads the file: not empty, not encrypted, not filled in later."""
    text = str(value)
    if encoded:
        try:
            text = base64.b64decode(text, validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            text = str(value)
    if not text.strip() or "ENC[AES256_GCM," in text or '"sops"' in text or "-----BEGIN AGE ENCRYPTED" in text:
        return False
    return not _STANDS_FOR.fullmatch(text)


@rule(
    "plain-secret",
    kinds={"Secret"},
    reason="who may read the repository, or ever could, has the secret; taking it out later doesn't take it back",
    mend="encrypt it (SOPS with Flux's decryption, Sealed Secrets), or fetch it (External Secrets); "
    "a value that is no secret says so in the silencing annotation",
)
def plain_secret(item: Item, _: Context) -> Iterator[str]:
    """Find Secrets in plain text anywhere but in a development environment."""
    data = item.resource.data
    where = f"{item.namespace}/{item.rendered.kustomization}"
    if item.group or "sops" in data or data.get("type") in _FILLED_SECRETS or _DEV.search(where):
        return
    keys = [str(k) for k, v in mapping(data.get("data")).items() if _is_readable(v, encoded=True)]
    keys += [str(k) for k, v in mapping(data.get("stringData")).items() if _is_readable(v, encoded=False)]
    if keys:
        yield f"in plain text: {', '.join(sorted(keys))}"


@rule(
    "wildcard-in-rules",
    kinds={"Role", "ClusterRole"},
    reason="a wildcard grants what doesn't exist yet: the next kind that is installed, the next verb",
    mend="list the API groups, resources and verbs that are used",
)
def wildcard_in_rules(item: Item, _: Context) -> Iterator[str]:
    """Find roles that grant by wildcard."""
    for index, granted in enumerate(mappings(item.resource.data.get("rules"))):
        fields = ("apiGroups", "resources", "verbs", "nonResourceURLs")
        wild = [f for f in fields if "*" in strings(granted.get(f))]
        if wild:
            yield f"rules[{index}] grants every one of: {', '.join(wild)}"


@rule(
    "deprecated-api",
    kinds={"*"},
    reason="an API version that Kubernetes stops serving takes its objects out of reach at the next upgrade",
    mend="write the object in the version named (the fields may differ: see Kubernetes' deprecation guide)",
)
def deprecated_api(item: Item, context: Context) -> Iterator[str]:
    """Find objects in API versions that the pinned Kubernetes no longer serves, or will stop serving."""
    removal = REMOVALS.get((item.resource.api_version, item.kind))
    if removal:
        instead = f"; write {removal.instead}" if removal.instead else ""
        if removal.removed and removal.removed <= context.kubernetes:
            yield f"{item.resource.api_version} is not served since Kubernetes {_version(removal.removed)}{instead}"
        elif removal.deprecated <= context.kubernetes:
            until = f" and goes in {_version(removal.removed)}" if removal.removed else ""
            yield Warn(
                f"{item.resource.api_version} is deprecated since Kubernetes {_version(removal.deprecated)}{until}{instead}"
            )
        return
    group, _, version = item.resource.api_version.rpartition("/")
    for crd in context.seen.definitions_with_deprecations if "." in group else ():
        if dig(crd.spec, "group") == group and dig(crd.spec, "names", "kind") == item.kind:
            for served in mappings(crd.spec.get("versions")):
                if served.get("name") == version and served.get("deprecated") is True:
                    yield Warn(f"{item.resource.api_version} is deprecated by its definition {crd.name}")


def _version(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"


RULES: tuple[Rule, ...] = (
    hpa_replicas,
    pdb_blocks_drains,
    overlapping_poddisruptionbudgets,
    quota_too_small,
    recommended_labels,
    plain_secret,
    wildcard_in_rules,
    deprecated_api,
)
