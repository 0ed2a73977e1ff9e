"""MONITORING=full behind a mirror: the chart's way into the lab's own registry, and what Flux is told of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from scripts import flux, pins, versions
from scripts.mirrors import ImageMirror
from scripts.monitoring import chart, mode
from scripts.registry_errors import RegistryError
from scripts.settings import FLUX_CD, Monitoring, Settings
from scripts.versions import Image
from tests.unit.fake_registry import FakeRegistry, Fault

ARCHIVE = b"a chart's archive"
BEHIND = Settings(monitoring=Monitoring.FULL, image_mirror="mirror.example/lab")
IN_LAB = (f"charts/{mode.CHART}", versions.load().charts[mode.CHART].tag)


@pytest.fixture
def lab(new_registry: Callable[..., FakeRegistry]) -> FakeRegistry:
    return new_registry(plain=True)


@pytest.fixture
def settings(lab: FakeRegistry, tmp_path: Path) -> Settings:
    return replace(
        BEHIND, registry_port=lab.server.server_port, versions_lock=tmp_path / "lock.yaml", cache_dir=tmp_path
    )


@pytest.fixture
def mirror(registry: FakeRegistry) -> ImageMirror:
    return ImageMirror(registry.host, "lab", ca=registry.authority.ca)


@pytest.fixture
def pinned(registry: FakeRegistry) -> Image:
    image = versions.load().charts[mode.CHART]
    return replace(image, digest=registry.add_image(f"lab/{image.image}", image.tag, ARCHIVE))


def test_the_chart_is_copied_by_its_digest_once(
    settings: Settings, lab: FakeRegistry, mirror: ImageMirror, pinned: Image, registry: FakeRegistry
) -> None:
    assert chart.ensure_chart(settings, mirror, pinned).changed
    assert ARCHIVE in lab.blobs.values()
    assert lab.manifests[IN_LAB] == registry.manifests[f"lab/{pinned.image}", pinned.digest]
    registry.requests.clear()
    assert not chart.ensure_chart(settings, mirror, pinned).changed
    assert registry.requests == [], "a lab that is up needs its mirror no more"


def test_another_digest_under_the_tag_is_replaced(
    settings: Settings, lab: FakeRegistry, mirror: ImageMirror, pinned: Image
) -> None:
    lab.add_image(*IN_LAB, b"an older one")
    assert chart.ensure_chart(settings, mirror, pinned).changed
    assert ARCHIVE in lab.blobs.values()


def test_a_digest_that_is_not_known_is_the_first_that_is_seen(
    settings: Settings, lab: FakeRegistry, mirror: ImageMirror, pinned: Image, registry: FakeRegistry
) -> None:
    tagged = replace(pinned, digest="")
    assert chart.ensure_chart(settings, mirror, tagged).changed
    assert pins.lock_file(settings).read().images == {pinned.tagged: pinned.digest}
    lab.manifests.clear()
    registry.add_image(f"lab/{pinned.image}", pinned.tag, b"another chart under the same tag")
    assert chart.ensure_chart(settings, mirror, tagged).changed
    assert lab.manifests[IN_LAB] == registry.manifests[f"lab/{pinned.image}", pinned.digest]


@pytest.mark.parametrize(
    ("does", "said"), [("alter", "not what its digest says"), ("404", "does not have"), ("403", "403")]
)
def test_what_the_mirror_refuses_or_alters_leaves_nothing_behind(
    settings: Settings, lab: FakeRegistry, mirror: ImageMirror, pinned: Image, registry: FakeRegistry,
    does: str, said: str,
) -> None:  # fmt: skip
    registry.faults.append(Fault("GET", "manifests", does))
    with pytest.raises(RegistryError, match=said):
        chart.ensure_chart(settings, mirror, pinned)
    assert not lab.manifests


def test_the_root_leads_the_charts_source_to_the_lab() -> None:
    _, root = flux.root_objects(BEHIND, with_credentials=False)
    (patch,) = [p for p in root["spec"]["patches"] if p["target"].get("name") == chart.KUSTOMIZATION]
    (added,) = json.loads(patch["patch"])
    (inner,) = added["value"]
    operations = {o["path"]: o["value"] for o in json.loads(inner["patch"])}
    assert operations == {
        "/spec/url": "oci://registry.flux-system.svc.cluster.local:5000/charts",
        "/spec/insecure": True,
    }
    documents = yaml.safe_load_all((FLUX_CD / "bootstrap" / "monitoring.yaml").read_text())
    (target,) = [d for d in documents if d["metadata"]["name"] == chart.KUSTOMIZATION]
    assert "patches" not in target["spec"], "the patch adds the list"


@pytest.mark.parametrize(
    "settings",
    [
        replace(BEHIND, monitoring=Monitoring.LITE),
        replace(BEHIND, image_mirror=""),
        replace(BEHIND, kube_context="theirs", image_repository="registry.example/app"),
    ],
    ids=["lite", "no mirror", "another cluster"],
)
def test_elsewhere_flux_asks_the_publisher(settings: Settings) -> None:
    _, root = flux.root_objects(settings, with_credentials=False)
    assert not any(p["target"].get("name") == chart.KUSTOMIZATION for p in root["spec"].get("patches", []))
