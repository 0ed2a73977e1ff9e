"""What the edge costs: the memory of its pods, and that which its definitions cost the API server.

The definitions' cost is measured without touching the edge: copies of them under another group are applied, the API
server's live heap is read before and after, and the copies are deleted again::

    python -m scripts.bench_edge
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts import console, settings
from scripts.deploy import lab_kube
from scripts.errors import LabError
from scripts.kube import Kube, Object, condition
from scripts.settings import EDGE_NAMESPACE, FLUX_CD
from scripts.waiting import wait_for

DEFINITIONS = FLUX_CD / "infrastructure" / "_components" / "ingress-controllers" / "crds"
GROUP = "bench.gitops-lab.example"
MIB = 1024**2
# Each read collects garbage first; the least of several is what is really live.
READS = 5
_HEAP = re.compile(r"^# HeapAlloc = (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class ContainerMemory:
    """What a container of the edge holds, and what it may."""

    pod: str
    container: str
    working_set_bytes: int
    limit_bytes: int


@dataclass(frozen=True)
class Found:
    """All that was measured, in bytes."""

    containers: tuple[ContainerMemory, ...]
    definitions: int
    definitions_file_bytes: int
    heap_before_bytes: int
    heap_with_copies_bytes: int

    @property
    def definitions_heap_bytes(self) -> int:
        """What the definitions cost the API server's live heap."""
        return self.heap_with_copies_bytes - self.heap_before_bytes


def copies(folder: Path = DEFINITIONS) -> list[Object]:
    """Return the edge's definitions under a group of the bench's own, which nobody watches."""
    found = []
    for path in sorted(folder.glob("*_*.yaml")):
        thing = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
        thing["metadata"] = {"name": f"{thing['spec']['names']['plural']}.{GROUP}"}
        thing["spec"]["group"] = GROUP
        thing.pop("status", None)
        found.append(thing)
    return found


def heap_bytes(kube: Kube) -> int:
    """Return the API server's live heap, after a garbage collection of its own."""

    def read() -> int:
        match = _HEAP.search(kube.get_text("/debug/pprof/heap", debug=1, gc=1))
        if not match:
            raise LabError("The API server does not show its heap.", "it needs --profiling, which is its default")
        return int(match[1])

    return min(read() for _ in range(READS))


def containers(summaries: Iterable[Mapping[str, Any]], pods: Iterable[Object]) -> tuple[ContainerMemory, ...]:
    """Return the memory of the edge's containers out of the kubelets' summaries."""
    limits = {
        (pod["metadata"]["name"], c["name"]): c.get("resources", {}).get("limits", {}).get("memory", "")
        for pod in pods
        for c in pod["spec"]["containers"]
    }
    found = [
        ContainerMemory(pod["podRef"]["name"], c["name"], int(c["memory"]["workingSetBytes"]), _quantity(limit))
        for summary in summaries
        for pod in summary["pods"]
        if pod["podRef"]["namespace"] == EDGE_NAMESPACE
        for c in pod.get("containers", [])
        if "memory" in c and (limit := limits.get((pod["podRef"]["name"], c["name"]))) is not None
    ]
    return tuple(sorted(found, key=lambda c: (c.pod, c.container)))


def _quantity(text: str) -> int:
    from kubernetes.utils.quantity import parse_quantity

    return int(parse_quantity(text)) if text else 0  # type: ignore[no-untyped-call]


def measure(kube: Kube) -> Found:
    """Measure; the copies are gone at the end."""
    nodes = [n.metadata.name for n in kube.call(kube.core.list_node).items]
    pods = [kube.to_dict(p) for p in kube.call(kube.core.list_namespaced_pod, EDGE_NAMESPACE).items]
    if not pods:
        raise LabError("This lab has no edge.", "make setup-all EDGE=envoy")
    found = containers((kube.get(f"/api/v1/nodes/{node}/proxy/stats/summary") for node in nodes), pods)
    things = copies()
    names = [thing["metadata"]["name"] for thing in things]
    before = heap_bytes(kube)
    try:
        kube.apply(things)
        wait_for("the copies are served", lambda: _unserved(kube, names), timeout_s=60)
        # As every kubectl does: it makes the API server render and keep their OpenAPI documents.
        kube.get_text("/openapi/v2")
        kube.get_text(f"/openapi/v3/apis/{GROUP}/v1")
        after = heap_bytes(kube)
    finally:
        kube.kubectl("delete", "crd", "--ignore-not-found", *names)
    size = sum(path.stat().st_size for path in DEFINITIONS.glob("*_*.yaml"))
    return Found(found, len(things), size, before, after)


def _unserved(kube: Kube, names: Sequence[str]) -> list[str]:
    done = json.loads(kube.kubectl("get", "crd", *names, "-o", "json").stdout)
    return [i["metadata"]["name"] for i in done["items"] if condition(i, "Established").get("status") != "True"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table and one line of JSON."""
    argparse.ArgumentParser(prog="python -m scripts.bench_edge", description=__doc__.splitlines()[0]).parse_args(argv)
    found = measure(lab_kube(settings.load()))
    rows = [
        [f"{c.pod}/{c.container}", f"{c.working_set_bytes / MIB:.0f} MiB", f"{c.limit_bytes / MIB:.0f} MiB"]
        for c in found.containers
    ]
    total = sum(c.working_set_bytes for c in found.containers)
    rows += [
        ["the edge's pods together", f"{total / MIB:.0f} MiB", ""],
        [
            f"API server's heap for {found.definitions} definitions of {found.definitions_file_bytes / MIB:.1f} MiB",
            f"{found.definitions_heap_bytes / MIB:.1f} MiB",
            "",
        ],
    ]
    console.table("What the edge costs", ["what", "memory", "limit"], rows)
    console.raw(json.dumps(asdict(found) | {"definitions_heap_bytes": found.definitions_heap_bytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
