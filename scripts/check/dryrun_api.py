"""The few requests that a dry run needs of an API server, by the Kubernetes client's own transport.

Raw REST: the objects are plain data, and what the server says to a refusal or a warning is kept word for word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts import discovery
from scripts.check.apiserver import Server, ServerGoneError
from scripts.discovery import Kinds

Object = Mapping[str, Any]
FIELD_MANAGER = "kustomize-controller"
REQUEST_TIMEOUT_S = 30
CONNECTIONS = 8


@dataclass(frozen=True)
class Answer:
    """What the server said: the object, or a Status with the reason of a refusal, and its warnings."""

    status: int
    body: Object
    warnings: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether the request was accepted."""
        return 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """The machine-readable reason of a refusal, as in Invalid or Forbidden."""
        return str(self.body.get("reason") or "")

    @property
    def message(self) -> str:
        """The server's own words."""
        return str(self.body.get("message") or f"HTTP {self.status}")


class Api:
    """One server, over connections that threads share."""

    def __init__(self, server: Server) -> None:
        from kubernetes import client

        settings = client.Configuration()
        settings.host = server.url
        settings.ssl_ca_cert = str(server.ca)
        settings.api_key = {"authorization": f"Bearer {server.token}"}
        settings.proxy = None
        settings.retries = False
        settings.connection_pool_maxsize = CONNECTIONS
        self._client = client.ApiClient(settings)

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        **query: str | bool,
    ) -> Answer:
        """Send one request; raises ServerGoneError where there is no answer at all."""
        import urllib3

        parts = self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": accept, "Content-Type": content_type},
            # The client writes JSON by itself, but not under the name of YAML.
            body=json.dumps(body) if content_type.endswith("yaml") else body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._client.call_api(*parts, _request_timeout=REQUEST_TIMEOUT_S)
            text = response.read()  # type: ignore[no-untyped-call]
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerGoneError(
                f"The dry run's API server went away ({type(error).__name__}).",
                "run again; DRY_RUN=0 leaves the dry run out",
                str(error),
            ) from None
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"message": text.decode(errors="replace")[:500]}
        return Answer(response.status, answer, tuple(_warnings(response.headers.getlist("Warning"))))

    def apply(self, path: str, thing: Object, *, dry_run: bool) -> Answer:
        """Apply an object server-side and strictly, as Flux does."""
        return self.request(
            "PATCH", path, thing, content_type="application/apply-patch+yaml",
            fieldManager=FIELD_MANAGER, force=True, fieldValidation="Strict", **_dry(dry_run),
        )  # fmt: skip

    def create(self, path: str, thing: Object, *, dry_run: bool) -> Answer:
        """Create an object, strictly."""
        return self.request("POST", path, thing, fieldManager=FIELD_MANAGER, fieldValidation="Strict", **_dry(dry_run))

    def kinds(self) -> Kinds:
        """Return every kind that the server serves, by apiVersion and kind, in two requests."""
        return discovery.served(lambda path: self.request("GET", path, accept=discovery.ACCEPT).body)


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry_run else {}


def _warnings(headers: list[str]) -> list[str]:
    """Return the texts of Warning headers: `299 - "text"` (RFC 7234)."""
    return [h.partition('"')[2].rpartition('"')[0].replace('\\"', '"').replace("\\\\", "\\") for h in headers]
