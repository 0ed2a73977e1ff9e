from typing import Any

import pytest

from scripts import bench_edge
from scripts.bench_edge import GROUP, ContainerMemory, containers, copies, heap_bytes
from scripts.errors import LabError


def test_the_copies_are_the_edges_definitions_under_a_group_of_their_own() -> None:
    found = copies()
    assert len(found) == len(list(bench_edge.DEFINITIONS.glob("*_*.yaml"))) > 0
    for thing in found:
        assert thing["kind"] == "CustomResourceDefinition"
        assert thing["metadata"] == {"name": f"{thing['spec']['names']['plural']}.{GROUP}"}
        assert thing["spec"]["group"] == GROUP
    assert len({thing["metadata"]["name"] for thing in found}) == len(found)


class Server:
    def __init__(self, *heaps: str) -> None:
        self.heaps = iter(heaps)

    def get_text(self, path: str, **query: int) -> str:
        assert (path, query) == ("/debug/pprof/heap", {"debug": 1, "gc": 1})
        return next(self.heaps)


def test_the_heap_is_the_least_of_several_reads() -> None:
    server: Any = Server(*(f"heap profile: 1\n# Alloc = 9\n# HeapAlloc = {n}\n" for n in (50, 40, 70, 41, 60)))
    assert heap_bytes(server) == 40


def test_a_server_that_shows_no_heap_is_named() -> None:
    server: Any = Server("not found")
    with pytest.raises(LabError, match="does not show its heap"):
        heap_bytes(server)


def test_containers_are_the_edges_with_their_limits() -> None:
    def pod(namespace: str, name: str, **used: int) -> dict[str, Any]:
        listed = [{"name": c, "memory": {"workingSetBytes": b}} for c, b in used.items()]
        return {"podRef": {"namespace": namespace, "name": name}, "containers": [*listed, {"name": "starting"}]}

    summaries = [
        {"pods": [pod("edge", "proxy", envoy=30, drain=10), pod("dev", "app", app=99)]},
        {"pods": [pod("edge", "controller", gateway=100), pod("edge", "gone", x=1)]},
    ]
    pods = [
        {
            "metadata": {"name": name},
            "spec": {"containers": [{"name": c, "resources": {"limits": {"memory": m} if m else {}}} for c, m in cs]},
        }
        for name, cs in (("proxy", [("envoy", "256Mi"), ("drain", "")]), ("controller", [("gateway", "1Gi")]))
    ]
    assert containers(summaries, pods) == (
        ContainerMemory("controller", "gateway", 100, 1024**3),
        ContainerMemory("proxy", "drain", 10, 0),
        ContainerMemory("proxy", "envoy", 30, 256 * 1024**2),
    )
