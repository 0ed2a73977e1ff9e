"""What really has to exist on the dry run's API server before the rest can be judged there.

Namespaces and definitions first, then what admission looks at: classes, service accounts, quotas, limit ranges, policies.

A server that is kept warm keeps them. A record beside it says what earlier runs made: what is no longer wanted goes, what
is as it was stays, and what a killed run may have left half made is in the record too, since that is written first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from scripts.cache import digest_of, write_atomically
from scripts.check.dryrun_api import Answer, Api, Object
from scripts.check.dryrun_markers import markers_for
from scripts.check.model import Rendered, Resource
from scripts.discovery import Kind
from scripts.waiting import wait_for

POLICIES = frozenset(
    {
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
    }
)
# Group of each kind that is really made, in steps: what comes later is judged by what comes before.
_STEPS: Sequence[Mapping[str, str]] = (
    {"Namespace": ""},
    {"CustomResourceDefinition": "apiextensions.k8s.io"},
    {
        "PriorityClass": "scheduling.k8s.io",
        "RuntimeClass": "node.k8s.io",
        "ServiceAccount": "",
        "LimitRange": "",
        "ResourceQuota": "",
    },
    dict.fromkeys(POLICIES, "admissionregistration.k8s.io"),
)
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_NAMESPACES = "/api/v1/namespaces"
_TIMEOUT_S = 20
_INTERVAL_S = 0.03


@dataclass(frozen=True)
class Thing:
    """An object that is really made, and what rendered it: nothing, for one that only stands in."""

    data: Object
    resource: Resource | None = None
    rendered: Rendered | None = None
    # A parameter of a policy, of whatever kind.
    last: bool = False

    @property
    def kind(self) -> tuple[str, str]:
        """Its apiVersion and kind."""
        return str(self.data.get("apiVersion")), str(self.data.get("kind"))

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.data["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.data["metadata"].get("namespace") or "default")

    @property
    def step(self) -> int:
        """When it is made."""
        return len(_STEPS) if self.last else next(i for i, step in enumerate(_STEPS) if self.kind[1] in step)


@dataclass
class Made:
    """What the server said to each, and the kinds that it serves afterwards."""

    answers: list[tuple[Thing, Answer]] = field(default_factory=list)
    kinds: dict[tuple[str, str], Kind] = field(default_factory=dict)


def is_real(thing: Object) -> bool:
    """Whether an object has to exist for others to be judged."""
    group = str(thing.get("apiVersion")).rpartition("/")[0]
    return any(step.get(str(thing.get("kind"))) == group for step in _STEPS)


class World:
    """What exists on one server."""

    def __init__(self, api: Api, record: Path, pool: ThreadPoolExecutor) -> None:
        self._api = api
        self._record = record
        self._pool = pool
        # Path and digest of what is there; no digest for what may be there in part, or only for one run.
        self._there: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}

    def make(self, things: Sequence[Thing]) -> Made:
        """Make exactly these exist, and wait until admission goes by them."""
        made = Made(kinds=self._api.kinds())
        made.answers = [(t, _not_served(t)) for t in things if t.kind not in made.kinds and not t.last]
        things = [t for t in things if t.kind in made.kinds or t.last]
        digests = {self._path(t, made): digest_of(t.data) for t in things if not t.last}
        stale = [p for p, digest in reversed(self._there.items()) if digests.get(p) != digest]
        for path in stale:
            self._remove(path, changes=path in digests)
        if any(p.startswith(_DEFINITIONS) for p in stale):
            made.kinds = self._api.kinds()
        self._remember(dict.fromkeys(digests, "") | self._there)
        changed = set[str]()
        for step in range(len(_STEPS) + 1):
            # The kind of a parameter may be known only now, or not at all.
            here = [t for t in things if t.step == step and t.kind in made.kinds]
            fresh = [t for t in here if self._there.get(p := self._path(t, made)) != digests.get(p) or t.last]
            changed |= {t.kind[1] for t in fresh}
            paths = [self._path(t, made) for t in fresh]
            for thing, path, answer in zip(fresh, paths, self._pool.map(self._put, fresh, paths), strict=True):
                made.answers.append((thing, answer))
                if answer.ok:
                    self._there[path] = digests.get(path, "")
            if any(t.kind[1] == "CustomResourceDefinition" for t in here):
                self._wait_for_definitions(here, made)
        self._remember(self._there)
        for marker in markers_for(changed):
            for path, data in marker.things:
                self.add(path, data)
            wait_for(
                f"admission goes by the new {marker.what}",
                lambda m=marker: [] if m.is_seen(self._api.create(m.path, m.probe, dry_run=True)) else [m.what],  # type: ignore[misc]
                timeout_s=_TIMEOUT_S,
                interval_s=_INTERVAL_S,
            )
        return made

    def add(self, path: str, thing: Object) -> Answer:
        """Make one more object exist, until the next run."""
        self._remember(self._there | {path: ""})
        return self._apply(path, thing)

    def _apply(self, path: str, thing: Object) -> Answer:
        answer = self._api.apply(path, thing, dry_run=False)
        return self._count_nothing(path, thing) if answer.ok and thing.get("kind") == "ResourceQuota" else answer

    def _remember(self, there: Mapping[str, str]) -> None:
        self._there = dict(there)
        write_atomically(self._record, json.dumps(self._there), mode=0o600)

    @staticmethod
    def _path(thing: Thing, made: Made) -> str:
        return made.kinds[thing.kind].path(thing.namespace, thing.name)

    def _put(self, thing: Thing, path: str) -> Answer:
        if path.startswith("unknown"):
            return Answer(
                404, {"reason": "NotFound", "message": f"no matches for kind {thing.kind[1]} in {thing.kind[0]}"}
            )
        if path.startswith(_DEFINITIONS):
            return self._put_definition(thing, path)
        return self._apply(path, thing.data)

    def _count_nothing(self, path: str, quota: Object) -> Answer:
        """Write a quota's status, which a controller would: without one nothing is enforced."""
        hard = (quota.get("spec") or {}).get("hard") or {}
        status = {"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}}
        return self._api.request("PATCH", f"{path}/status", status, content_type="application/merge-patch+json")

    def _put_definition(self, thing: Thing, path: str) -> Answer:
        """Create a definition or change it; one that can't be changed into the other is made anew."""
        answer = self._api.create(_DEFINITIONS, thing.data, dry_run=False)
        if answer.status != 409:
            return answer
        known = self._api.request("GET", path).body.get("metadata") or {}
        metadata = {**thing.data["metadata"], "resourceVersion": known.get("resourceVersion")}
        answer = self._api.request("PUT", path, {**thing.data, "metadata": metadata}, fieldValidation="Strict")
        if answer.ok:
            return answer
        self._remove(path, changes=False)
        return self._api.create(_DEFINITIONS, thing.data, dry_run=False)

    def _remove(self, path: str, changes: bool) -> None:
        """Delete an object; a namespace or a definition that only changes is changed in place."""
        is_namespace = path.startswith(_NAMESPACES) and path.count("/") == 4
        is_definition = path.startswith(_DEFINITIONS)
        if changes and (is_namespace or is_definition):
            return
        self._api.request("DELETE", path)
        if is_namespace:
            # What its controller would do: nothing is in it but what is recorded, and that goes too.
            namespace = self._api.request("GET", path).body
            if namespace.get("kind") == "Namespace":
                self._api.request("PUT", f"{path}/finalize", {**namespace, "spec": {"finalizers": []}})
        if is_definition:
            name = path.rpartition("/")[2]
            wait_for(
                f"{name} is forgotten",
                lambda: [name] if self._api.request("GET", path).ok or self._is_served(name) else [],
                timeout_s=_TIMEOUT_S,
                interval_s=_INTERVAL_S,
            )
        del self._there[path]

    def _is_served(self, definition: str) -> bool:
        """Whether the server still offers what a definition, named <plural>.<group>, defined."""
        kinds = self._api.kinds().values()
        return any(definition == f"{k.plural}.{k.api_version.rpartition('/')[0]}" for k in kinds)

    def _wait_for_definitions(self, things: Sequence[Thing], made: Made) -> None:
        """Wait until the server serves what was defined; one that it doesn't take up gets its reason as an answer."""
        refused = {t.name for t, answer in made.answers if not answer.ok}

        def pending() -> list[str]:
            made.kinds = self._api.kinds()
            missing = [t for t in things if t.name not in refused and not _served(t.data) <= set(made.kinds)]
            for thing in missing:
                status = self._api.request("GET", f"{_DEFINITIONS}/{thing.name}").body.get("status") or {}
                for condition in status.get("conditions") or []:
                    if condition.get("type") == "NamesAccepted" and condition.get("status") == "False":
                        refused.add(thing.name)
                        made.answers.append((thing, Answer(422, {"reason": "Invalid", **condition})))
            return [t.name for t in missing if t.name not in refused]

        wait_for("the definitions are served", pending, timeout_s=_TIMEOUT_S, interval_s=_INTERVAL_S)


def _not_served(thing: Thing) -> Answer:
    api_version, kind = thing.kind
    return Answer(404, {"reason": "NotFound", "message": f"the API server knows no {kind} in {api_version}"})


def _served(definition: Object) -> set[tuple[str, str]]:
    spec = definition["spec"]
    return {(f"{spec['group']}/{v['name']}", spec["names"]["kind"]) for v in spec["versions"] if v.get("served")}
