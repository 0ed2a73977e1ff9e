"""Flux's own objects: sources, what is built from them, and in which order."""

import json
import os
import shutil
from collections.abc import Callable
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from scripts import flux, git, settings
from scripts.settings import FLUX_CD, FLUX_NAMESPACE, MAIN_BRANCH
from tests.manifests.conftest import Build, Object, Tree, load_all
from tests.manifests.paths import APPLICATIONS, ROOTS

SOURCES = {
    "flux-system": MAIN_BRANCH,
    "applications": MAIN_BRANCH,
    "infrastructure": MAIN_BRANCH,
    "dev-environment": MAIN_BRANCH,
    "staging-environment": "env/staging",
    "production-environment": "env/production",
}
NEVER_SLOWER_THAN_S = 600
_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(duration: str) -> int:
    return int(duration[:-1]) * _UNITS[duration[-1]]


@pytest.fixture
def sources(render: Callable[[Path], Tree]) -> dict[str, Object]:
    found = [*render(FLUX_CD).all("GitRepository"), *render(APPLICATIONS).all("GitRepository")]
    return {o["metadata"]["name"]: o for o in found}


def test_the_missions_six_sources_stand_in_the_bootstrap(render: Callable[[Path], Tree]) -> None:
    assert {o["metadata"]["name"] for o in render(FLUX_CD).all("GitRepository")} == set(SOURCES)


def test_the_receiver_reaches_every_source_once(sources: dict[str, Object]) -> None:
    objects = flux.receiver_objects(settings.Settings(), "a token", "")
    (receiver,) = (o for o in objects if o["kind"] == "Receiver")
    reached = [
        name
        for resource in receiver["spec"]["resources"]
        for name, source in sources.items()
        if resource["name"] == name
        or (resource["name"] == "*" and resource["matchLabels"].items() <= source["metadata"].get("labels", {}).items())
    ]
    assert sorted(reached) == sorted(sources)
    assert reached[0] == "dev-environment"


@pytest.fixture
def syncs(render: Callable[[Path], Tree]) -> dict[str, Object]:
    found = [*render(FLUX_CD).all("Kustomization"), *render(APPLICATIONS).all("Kustomization")]
    return {o["metadata"]["name"]: o for o in found}


def test_the_sources_follow_their_branches_of_the_labs_repository(sources: dict[str, Object]) -> None:
    added = {
        settings.source_name(e): git.environment_branch(e)
        for e in settings.environments()
        if e not in settings.OWN_ENVIRONMENTS
    }
    assert {name: o["spec"]["ref"]["branch"] for name, o in sources.items()} == SOURCES | added
    assert all(set(o["spec"]["ref"]) == {"branch"} for o in sources.values())
    assert {o["spec"]["url"] for o in sources.values()} == {settings.Settings().git_fetch_url}
    # By that address the Git server leaves out what lies elsewhere: a source that checked it out would fail.
    assert {folder.split("/")[0] for o in sources.values() for folder in o["spec"]["sparseCheckout"]} == {"flux-cd"}
    for o in sources.values():
        assert o["metadata"]["namespace"] == FLUX_NAMESPACE
        assert seconds(o["spec"]["timeout"]) < seconds(o["spec"]["interval"]) <= NEVER_SLOWER_THAN_S


def test_every_sync_has_its_source_its_folder_and_its_limits(
    syncs: dict[str, Object], sources: dict[str, Object]
) -> None:
    for name, sync in syncs.items():
        spec = sync["spec"]
        assert sync["metadata"]["namespace"] == FLUX_NAMESPACE, name
        assert spec["sourceRef"]["kind"] == "GitRepository" and spec["sourceRef"]["name"] in sources, name
        assert (settings.ROOT / spec["path"] / "kustomization.yaml").is_file(), name
        assert spec["prune"] is True, name
        assert seconds(spec["retryInterval"]) <= 10, name
        assert seconds(spec["timeout"]) < seconds(spec["interval"]) <= NEVER_SLOWER_THAN_S, name


def test_every_root_is_built_by_one_sync(syncs: dict[str, Object]) -> None:
    built = [(settings.ROOT / s["spec"]["path"]).resolve() for s in syncs.values()]
    assert sorted(built) == sorted(root.resolve() for root in ROOTS if root != FLUX_CD)  # setup makes the root's


def test_a_source_keeps_what_is_built_from_it(
    syncs: dict[str, Object],
    sources: dict[str, Object],
    build: Build,
    render: Callable[[Path], Tree],
    tmp_path: Path,
) -> None:
    """Build every path from a tree that holds only what the source's `ignore` leaves in, as Flux will."""
    tree = tmp_path / "tree"
    files = git.git("ls-files", "flux-cd").stdout.splitlines()
    for name, sync in syncs.items():
        if tree.exists():
            shutil.rmtree(tree)
        patterns = tmp_path / "patterns"
        patterns.write_text(sources[sync["spec"]["sourceRef"]["name"]]["spec"]["ignore"])
        found = git.git("-c", f"core.excludesFile={patterns}", "check-ignore", "--no-index", *files, check=False)
        assert found.exit_code in (0, 1), found.stderr  # 1: none of them is
        for file in set(files) - set(found.stdout.splitlines()):
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(settings.ROOT / file, tree / file)
        assert build(tree / sync["spec"]["path"]) == render(settings.ROOT / sync["spec"]["path"]).text, name


def test_each_environment_has_a_sync_with_health_checks_from_its_own_source(syncs: dict[str, Object]) -> None:
    for environment in settings.environments():
        spec = syncs[environment]["spec"]
        assert spec["sourceRef"]["name"] == settings.source_name(environment)
        assert spec["path"].endswith(f"/{environment}")
        assert spec["wait"] is True


def test_a_deployment_gives_up_before_its_environment_does(
    syncs: dict[str, Object], render: Callable[[Path], Tree]
) -> None:
    for environment in settings.environments():
        deployment = render(settings.OVERLAYS / environment).one("Deployment")
        assert deployment["spec"]["progressDeadlineSeconds"] < seconds(syncs[environment]["spec"]["timeout"])


def test_dependencies_exist_and_have_no_cycle(syncs: dict[str, Object]) -> None:
    graph = {name: {d["name"] for d in s["spec"].get("dependsOn", [])} for name, s in syncs.items()}
    assert {d for depends in graph.values() for d in depends} <= set(graph)
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("infrastructure-sync") < order.index("applications-sync")


def test_the_edge_is_ready_only_when_its_gateway_serves(syncs: dict[str, Object]) -> None:
    spec = syncs["edge-sync"]["spec"]
    assert spec["wait"] is True
    assert {e["kind"] for e in spec["healthCheckExprs"]} == {"Gateway"}


@pytest.fixture
def build_as_flux_does(build: Build, copy_of_tree: Path) -> Callable[[str, Object], list[Object]]:
    """Builds a folder with the patches and components of a Flux Kustomization around it."""

    def built(path: str, sync: Object) -> list[Object]:
        folder = copy_of_tree.parent / path
        wrapper = copy_of_tree.parent / "wrapped" / folder.name
        wrapper.mkdir(parents=True)
        kustomization = {
            "resources": [os.path.relpath(folder, wrapper)],
            "components": [os.path.relpath(folder / c, wrapper) for c in sync["spec"].get("components", [])],
            "patches": sync["spec"].get("patches", []),
        }
        (wrapper / "kustomization.yaml").write_text(json.dumps(kustomization))
        return load_all(build(wrapper))

    return built


def test_a_cluster_with_metrics_of_its_own_keeps_them(
    build_as_flux_does: Callable[[str, Object], list[Object]], render: Callable[[Path], Tree]
) -> None:
    root = build_as_flux_does("flux-cd", {"spec": {"components": ["bootstrap/without-metrics-server"]}})
    left_out = [o["metadata"]["name"] for o in render(FLUX_CD).objects if o not in root]
    assert left_out == ["metrics-server-sync"]


def test_without_monitoring_the_root_lacks_its_three_steps_and_nothing_else(
    build_as_flux_does: Callable[[str, Object], list[Object]], render: Callable[[Path], Tree]
) -> None:
    _, sync = flux.root_objects(settings.Settings(monitoring=settings.Monitoring.NONE), with_credentials=False)
    root = build_as_flux_does("flux-cd", sync)
    left_out = [o["metadata"]["name"] for o in render(FLUX_CD).objects if o not in root]
    assert sorted(left_out) == sorted(flux.MONITORING_SYNCS)


def test_the_whole_stack_takes_the_place_of_the_small_one_under_the_same_name(
    build_as_flux_does: Callable[[str, Object], list[Object]], render: Callable[[Path], Tree]
) -> None:
    _, sync = flux.root_objects(settings.Settings(monitoring=settings.Monitoring.FULL), with_credentials=False)
    root = build_as_flux_does("flux-cd", sync)
    changed = [o for o in root if o not in render(FLUX_CD).objects]
    assert [o["metadata"]["name"] for o in changed] == ["monitoring-stack"]
    assert changed[0]["spec"]["path"].endswith("/_prometheus-stack")


def test_monitoring_waits_for_its_definitions_and_what_is_watched_for_the_stack(syncs: dict[str, Object]) -> None:
    graph = {name: {d["name"] for d in s["spec"].get("dependsOn", [])} for name, s in syncs.items()}
    order = ["infrastructure-sync", *flux.MONITORING_SYNCS]
    for earlier, later in pairwise(order):
        assert graph[later] == {earlier}
    waiting = {name for name, depends in graph.items() if depends & set(flux.MONITORING_SYNCS)}
    assert waiting <= set(flux.MONITORING_SYNCS), "nobody else's start waits for monitoring"
    exprs = syncs["monitoring-stack"]["spec"]["healthCheckExprs"]
    assert {e["kind"] for e in exprs} == {"Prometheus", "Alertmanager"}


def test_without_the_edge_nothing_of_it_is_applied(build_as_flux_does: Callable[[str, Object], list[Object]]) -> None:
    root = build_as_flux_does("flux-cd", {"spec": {"components": ["bootstrap/without-edge"]}})
    assert set(SOURCES) == {o["metadata"]["name"] for o in root if o["kind"] == "GitRepository"}
    pending, applied = [o for o in root if o["kind"] == "Kustomization"], []
    built = set()
    while pending:
        sync = pending.pop()
        built.add(sync["metadata"]["name"])
        objects = build_as_flux_does(sync["spec"]["path"], sync)
        pending += [o for o in objects if o["kind"] == "Kustomization"]
        applied += objects
    assert built == {
        "infrastructure-sync", "metrics-server-sync", "applications-sync", *flux.MONITORING_SYNCS, *settings.environments(),
    }  # fmt: skip
    parts = {o["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") for o in applied}
    assert "edge" not in parts and "demo" in parts
    groups = {o["apiVersion"].rpartition("/")[0] for o in applied}
    groups |= {o["spec"]["group"] for o in applied if o["kind"] == "CustomResourceDefinition"}
    assert not groups & {"gateway.networking.k8s.io", "gateway.envoyproxy.io"}
