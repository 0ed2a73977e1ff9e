"""What an API server serves: its kinds and their paths, as its aggregated discovery lists them in two requests.

https://kubernetes.io/docs/concepts/overview/kubernetes-api/#aggregated-discovery
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

ACCEPT = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@dataclass(frozen=True)
class Kind:
    """How the server serves a kind: its path, and whether its objects are in namespaces."""

    api_version: str
    plural: str
    namespaced: bool

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of an object, or of all of them."""
        start = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        # A name that can't be one is for the server to refuse, not for the path to break.
        where = f"/namespaces/{quote(namespace, safe=':')}" if self.namespaced else ""
        return f"{start}{where}/{self.plural}{'/' + quote(name, safe=':') if name else ''}"


Kinds = dict[tuple[str, str], Kind]


def served(get: Callable[[str], Mapping[str, Any]]) -> Kinds:
    """Return every kind that a server serves, by apiVersion and kind; `get` asks it for a path, accepting ACCEPT."""
    return {key: kind for path in ("/api", "/apis") for key, kind in _kinds_in(get(path))}


def _kinds_in(listed: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Kind]]:
    """Yield the kinds of one of the two lists, by apiVersion and kind."""
    for group in listed.get("items", []):
        name = group.get("metadata", {}).get("name", "")
        for version in group.get("versions", []):
            api_version = f"{name}/{version['version']}" if name else version["version"]
            for resource in version.get("resources", []):
                kind = Kind(api_version, resource["resource"], resource["scope"] == "Namespaced")
                yield (api_version, resource["responseKind"]["kind"]), kind
