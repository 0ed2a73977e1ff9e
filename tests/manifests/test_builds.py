from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.settings import FLUX_CD
from tests.manifests.conftest import Build, Tree, load_file
from tests.manifests.paths import KEDA, ROOTS

FOLDERS = sorted(p.parent for p in FLUX_CD.rglob("kustomization.yaml") if load_file(p)["kind"] == "Kustomization")
# Read by people, by tests or by another folder's kustomization, not by their own.
NOT_LISTED = {"kustomization.yaml", "upstream.yaml", "sync.yaml", "slo.yaml"}


def name(folder: Path) -> str:
    return str(folder.relative_to(FLUX_CD))


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_every_kustomization_builds(folder: Path, render: Callable[[Path], Tree]) -> None:
    assert render(folder).text


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_every_file_is_listed_in_its_kustomization(folder: Path) -> None:
    kustomization = load_file(folder / "kustomization.yaml")
    listed = {r for field in ("resources", "generators") for r in kustomization.get(field, [])}
    listed |= {f for g in kustomization.get("configMapGenerator", []) for f in g.get("files", [])}
    present = {p.name for p in folder.glob("*.yaml")} - NOT_LISTED
    assert present == {r for r in listed if "/" not in r and r.endswith(".yaml")}


# The others are built anew, and compared, by test_a_source_keeps_what_is_built_from_it.
@pytest.mark.parametrize("folder", [FLUX_CD, KEDA], ids=name)
def test_two_builds_are_byte_identical(folder: Path, build: Build, render: Callable[[Path], Tree]) -> None:
    assert build(folder) == render(folder).text


def test_no_object_belongs_to_two_kustomizations(render: Callable[[Path], Tree]) -> None:
    owners = Counter(
        (o["apiVersion"].partition("/")[0], o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"])
        for root in (*ROOTS, KEDA)
        for o in render(root).objects
    )
    assert [key for key, count in owners.items() if count > 1] == []


@pytest.mark.parametrize("folder", [*ROOTS, KEDA], ids=name)
def test_every_object_says_what_it_is_part_of(folder: Path, render: Callable[[Path], Tree]) -> None:
    assert [
        o["metadata"]["name"]
        for o in render(folder).objects
        if "app.kubernetes.io/part-of" not in o["metadata"].get("labels", {})
    ] == []


def test_every_custom_kind_is_defined(render: Callable[[Path], Tree]) -> None:
    defined = {
        (c["spec"]["group"], c["spec"]["names"]["kind"])
        for root in ROOTS
        for c in render(root).all("CustomResourceDefinition")
    }
    built_in = (".k8s.io", "toolkit.fluxcd.io")  # the API server's own groups, and Flux's, which `flux install` defines
    for root in ROOTS:
        for o in render(root).objects:
            group = o["apiVersion"].rpartition("/")[0]
            own = "." not in group or (group.endswith(built_in) and group != "gateway.networking.k8s.io")
            assert own or (group, o["kind"]) in defined, f"{o['kind']} of {group} has no definition"
