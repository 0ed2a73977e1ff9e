"""The one wrapper of the Kubernetes API: every call carries an explicit context.

Through the `kubernetes` client, objects as plain data. So are whole sets of objects applied, server-side: `kubectl apply`
does the same in a process of its own, which each time asks for the API's whole schema. After definitions came that costs
the API server a second of CPU time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from scripts import console, discovery
from scripts.errors import LabError
from scripts.process import Completed, run
from scripts.waiting import wait_for

FIELD_MANAGER = "gitops-lab"
REQUEST_TIMEOUT_S = 10
# A definition with a large schema takes a busy API server seconds.
APPLY_TIMEOUT_S = 60
# A kind whose definition was just established is in the API's list of kinds a moment later.
KIND_TIMEOUT_S = 15
APPLIED_AT_ONCE = 4
BUSY_S = 30.0
T = TypeVar("T")

FLUX_KINDS = {
    "GitRepository": ("source.toolkit.fluxcd.io", "v1", "gitrepositories"),
    "Kustomization": ("kustomize.toolkit.fluxcd.io", "v1", "kustomizations"),
    "Receiver": ("notification.toolkit.fluxcd.io", "v1", "receivers"),
}
Object = dict[str, Any]


class UnreachableError(LabError):
    """The API server of the context does not answer."""


class Kube:
    """The API of one context."""

    def __init__(self, context: str, kubectl: Path | str = "kubectl") -> None:
        self.context = context
        self.kubectl_path = kubectl

    @cached_property
    def _api(self) -> Any:
        from kubernetes import client, config

        settings = client.Configuration()
        # Its own retries would multiply every time limit: waiting is done by wait_for.
        settings.retries = False
        try:
            config.load_kube_config(context=self.context, client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            raise UnreachableError(
                f"kubeconfig has no context {self.context}.",
                "run `make setup-all`, or name an existing one with KUBE_CONTEXT",
            ) from None
        return client.ApiClient(settings)

    @cached_property
    def core(self) -> Any:
        """The core/v1 API."""
        from kubernetes import client

        return client.CoreV1Api(self._api)

    @cached_property
    def apps(self) -> Any:
        """The apps/v1 API."""
        from kubernetes import client

        return client.AppsV1Api(self._api)

    @cached_property
    def autoscaling(self) -> Any:
        """The autoscaling/v2 API."""
        from kubernetes import client

        return client.AutoscalingV2Api(self._api)

    @cached_property
    def custom(self) -> Any:
        """The API of custom objects."""
        from kubernetes import client

        return client.CustomObjectsApi(self._api)

    def call(
        self, method: Callable[..., T], *args: Any, request_timeout_s: float = REQUEST_TIMEOUT_S, **kwargs: Any
    ) -> T:
        """Call an API method with a time limit; an unreachable server becomes one clear line."""
        import urllib3
        from kubernetes.client import ApiException

        deadline = time.monotonic() + BUSY_S
        try:
            while True:
                try:
                    return method(*args, _request_timeout=request_timeout_s, **kwargs)
                except ApiException as error:
                    # "Try again": an API server that has just started answers so until its caches are filled.
                    if error.status != 429 or time.monotonic() >= deadline:
                        raise
                    time.sleep(0.25)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(
                f"The cluster of context {self.context} can't be reached ({_root_of(error)}).",
                "run `make resume` after a restart, `make setup-all` for a new lab, or look at `make doctor`",
            ) from None

    def is_up(self) -> bool:
        """Whether the API server says it is ready."""
        from kubernetes.client import ApiException

        try:
            self.get_text("/readyz")
        except (ApiException, LabError):
            return False
        return True

    def get_text(self, path: str, **query: str | int | bool) -> str:
        """Return what the API server answers to GET, as it is: logs, and JSON past the typed models.

        Raises UnreachableError for a server that doesn't answer, isn't ready or refuses the credentials, ApiException
        for any other refusal.
        """
        return self._get(path, "*/*", query)

    def _get(self, path: str, accept: str, query: Mapping[str, str | int | bool]) -> str:
        from kubernetes.client import ApiException

        def fetch(_request_timeout: float) -> Any:
            request = self._api.param_serialize(
                "GET",
                path,
                query_params=list(query.items()),
                header_params={"Accept": accept},
                auth_settings=["BearerToken"],
            )
            response = self._api.call_api(*request, _request_timeout=_request_timeout)
            response.read()
            return response

        try:
            answer = self.call(fetch)
        except ApiException as error:
            # The client's way to say that the server's certificate is not the one kubeconfig expects.
            raise self._refused(str(error.reason).splitlines()[-1]) from None
        text: str = answer.data.decode(errors="replace")
        if answer.status == 401 or answer.status >= 500:
            raise self._refused(f"HTTP {answer.status} {answer.reason}")
        if answer.status != 200:
            raise ApiException(status=answer.status, reason=answer.reason, body=text)
        return text

    def get(self, path: str, **query: str | int | bool) -> Object:
        """Return the JSON that the API server answers to GET; errors as those of get_text."""
        found: Object = json.loads(self.get_text(path, **query))
        return found

    def _refused(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"The cluster of context {self.context} refuses to answer ({why}).",
            "wait if it has just started; after a restart `make resume` renews certificates and kubeconfig",
        )

    def to_dict(self, thing: Any) -> Object:
        """Return an API object as plain data, as it stands in YAML."""
        plain: Object = self._api.sanitize_for_serialization(thing)
        return plain

    def list_plain(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[list[Object], str]:
        """Return what a list method lists, as plain data, and the resource version from which a watch goes on."""
        from kubernetes.client import ApiException

        answer = self.call(method, *args, _preload_content=False, **kwargs)
        if answer.status != 200:
            raise ApiException(http_resp=answer)
        found: Object = json.loads(answer.data)
        return found["items"], str(found["metadata"]["resourceVersion"])

    def watch(
        self, method: Callable[..., Any], *args: Any, version: str, timeout_s: int, **kwargs: Any
    ) -> Iterator[tuple[str, Object]]:
        """Yield changes (ADDED, MODIFIED or DELETED, and the object) after a resource version, for so many seconds.

        Raises UnreachableError when the connection breaks, ApiException (410) when the version is too old: list again.
        """
        import urllib3
        from kubernetes import watch

        # The server ends the watch; the client's own limit is for one that has gone away.
        limits = {"timeout_seconds": timeout_s, "_request_timeout": (REQUEST_TIMEOUT_S, timeout_s + REQUEST_TIMEOUT_S)}
        try:
            watcher: Any = watch.Watch(return_type="object")  # type: ignore[no-untyped-call]
            stream = watcher.stream(method, *args, resource_version=version, **limits, **kwargs)
            for event in stream:
                if event["type"] != "BOOKMARK":
                    yield event["type"], event["raw_object"]
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(
                f"A watch in context {self.context} was cut off ({_root_of(error)}).", "make status, make resume"
            ) from None

    def list_custom(self, kind: str, namespace: str = "") -> list[Object]:
        """Return all Flux objects of a kind; [] while its CRD is not installed."""
        from kubernetes.client import ApiException

        group, version, plural = FLUX_KINDS[kind]
        try:
            if namespace:
                found = self.call(self.custom.list_namespaced_custom_object, group, version, namespace, plural)
            else:
                found = self.call(self.custom.list_cluster_custom_object, group, version, plural)
        except ApiException as error:
            if error.status == 404:
                return []
            raise
        items: list[Object] = found["items"]
        return items

    def patch_custom(self, kind: str, namespace: str, name: str, patch: Object) -> None:
        """Merge a patch into a Flux object."""
        group, version, plural = FLUX_KINDS[kind]
        self.call(self.custom.patch_namespaced_custom_object, group, version, namespace, plural, name, patch)

    def kubectl(
        self, *args: str | Path, timeout_s: float = 60, check: bool = True, input_text: str | None = None
    ) -> Completed:
        """Run kubectl with this context."""
        return run(
            [self.kubectl_path, "--context", self.context, *args],
            timeout_s=timeout_s,
            check=check,
            input_text=input_text,
        )

    def apply(self, objects: Sequence[Object], manager: str = FIELD_MANAGER) -> None:
        """Apply objects server-side, what others refer to first, the rest side by side.

        This manager's fields win; those that it applied before and are no longer among them go away, so that another
        manager than the lab's own can hold parts of objects that are somebody else's. Unknown fields are refused.
        Raises LabError with the API server's own words.
        """
        with ThreadPoolExecutor(APPLIED_AT_ONCE, "apply") as pool:
            for _, group in groupby(sorted(objects, key=_rank), key=_rank):
                list(pool.map(lambda thing: self._apply_one(thing, manager), group))

    def _apply_one(self, thing: Object, manager: str) -> None:
        from kubernetes.client import ApiException

        metadata = thing["metadata"]
        path = self._kind_of(thing).path(metadata.get("namespace") or "default", metadata["name"])
        name = f"{thing['kind']} " + "/".join(filter(None, [metadata.get("namespace"), metadata["name"]]))
        request = self._api.param_serialize(
            "PATCH",
            path,
            query_params=[("fieldManager", manager), ("force", True), ("fieldValidation", "Strict")],
            header_params={"Accept": "application/json", "Content-Type": "application/apply-patch+yaml"},
            body=json.dumps(thing),  # JSON is YAML; the client would not write it under this name
            auth_settings=["BearerToken"],
        )

        def send(_request_timeout: float) -> Any:
            answer = self._api.call_api(*request, _request_timeout=_request_timeout)
            answer.read()
            if answer.status >= 300:
                raise ApiException(http_resp=answer)
            return answer

        try:
            self.call(send, request_timeout_s=APPLY_TIMEOUT_S)
        except ApiException as error:
            raise LabError(
                f"The API server of {self.context} refuses {name}: {_message_of(error)}",
                "the next run asks it again; `make diagnose` collects what the cluster says",
            ) from None
        console.debug(f"applied {name} to {self.context} as {manager}")

    def _kind_of(self, thing: Object) -> discovery.Kind:
        """Return how the API serves an object's kind; raises LabError for one that it does not serve."""
        key = thing["apiVersion"], thing["kind"]

        def pending() -> list[str]:
            if key not in self._kinds:
                self._kinds.update(self._served())
            return [] if key in self._kinds else [f"no {key[1]} of {key[0]}"]

        wait_for(
            f"the API server serves {key[1]} ({key[0]})", pending, timeout_s=KIND_TIMEOUT_S,
            mend="the definition of that kind is missing: `make setup-all` brings all that the lab has",
        )  # fmt: skip
        return self._kinds[key]

    @cached_property
    def _kinds(self) -> discovery.Kinds:
        return {}

    def _served(self) -> discovery.Kinds:
        return discovery.served(lambda path: json.loads(self._get(path, discovery.ACCEPT, {})))

    def events(self, namespace: str, limit: int = 200) -> list[Object]:
        """Return a namespace's events, oldest first."""
        found = self.call(self.core.list_namespaced_event, namespace, limit=limit)
        items = [self.to_dict(e) for e in found.items]
        return sorted(items, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")


def owner_labels(name: str, namespace: str) -> dict[str, str]:
    """Return the labels that kustomize-controller puts on all that a Kustomization applies."""
    group = FLUX_KINDS["Kustomization"][0]
    return {f"{group}/name": name, f"{group}/namespace": namespace}


def _rank(thing: Object) -> int:
    """Return where an object stands among others: a Deployment before its account is tried again only later."""
    if thing["kind"] in ("Namespace", "CustomResourceDefinition"):
        return 0
    group = thing["apiVersion"].rpartition("/")[0]
    return 1 if group in ("", "rbac.authorization.k8s.io", "networking.k8s.io") else 2


def _message_of(error: Any) -> str:
    """Return what the API server says of a refusal, in its own words."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"HTTP {error.status} {error.reason}"


def condition(thing: Object, kind: str = "Ready") -> Object:
    """Return an object's condition of a type, or {}."""
    conditions: list[Object] = thing.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == kind), {})


def is_ready(thing: Object) -> bool:
    """Whether the Ready condition is True and is about the current generation."""
    ready = condition(thing)
    observed = ready.get("observedGeneration") or thing.get("status", {}).get("observedGeneration")
    current = thing.get("metadata", {}).get("generation")
    return ready.get("status") == "True" and (observed is None or current is None or observed >= current)


def _root_of(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error).split("(Caused by")[0].strip()[:160] or type(error).__name__
