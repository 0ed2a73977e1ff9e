from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scripts import flux, flux_sync, mirrorset, preflight, settings, versions
from scripts.errors import UsageError
from scripts.hostfacts import HostFacts
from scripts.monitoring import mode
from scripts.preconditions import LabFacts, Level
from scripts.settings import ImageSource, Monitoring, Settings

NOW = datetime(2026, 12, 1, tzinfo=UTC)
REGISTRY, SOURCE = ImageSource.REGISTRY, ImageSource.SOURCE
AUTO, FULL, LITE, NONE = Monitoring.AUTO, Monitoring.FULL, Monitoring.LITE, Monitoring.NONE


@pytest.fixture
def lab(tmp_path: Path) -> Settings:
    return Settings(state_root=tmp_path)


@pytest.mark.parametrize(
    ("asked", "source", "remembered", "context", "found"),
    [
        (AUTO, REGISTRY, None, "", FULL),
        (AUTO, SOURCE, None, "", LITE),
        (AUTO, REGISTRY, LITE, "", LITE),
        (AUTO, SOURCE, NONE, "", NONE),
        (LITE, REGISTRY, FULL, "", LITE),
        (NONE, SOURCE, LITE, "", NONE),
        (AUTO, REGISTRY, None, "theirs", NONE),
        (LITE, REGISTRY, None, "theirs", LITE),
    ],
)
def test_setup_brings_what_is_asked_for_or_there_or_else_the_sources_default(
    lab: Settings,
    asked: Monitoring,
    source: ImageSource,
    remembered: Monitoring | None,
    context: str,
    found: Monitoring,
) -> None:
    if remembered:
        mode.remember(lab, remembered)
    # A cluster of one's own has a state folder of its own name too.
    assert mode.choose(replace(lab, monitoring=asked, kube_context=context), source) is found


def test_a_mirror_changes_nothing_about_it(lab: Settings) -> None:
    assert mode.choose(replace(lab, image_mirror="mirror.example:5000"), REGISTRY) is FULL


@pytest.mark.parametrize("remembered", [None, FULL])
def test_the_whole_stack_is_refused_where_grafana_cannot_be_had(lab: Settings, remembered: Monitoring | None) -> None:
    asked = FULL
    if remembered:
        mode.remember(lab, remembered)
        asked = AUTO
    with pytest.raises(UsageError, match="MONITORING=lite"):
        mode.choose(replace(lab, monitoring=asked), SOURCE)


def test_every_later_command_knows_what_setup_brought_until_teardown_forgets_it(lab: Settings) -> None:
    assert mode.in_lab(lab) is NONE
    mode.remember(lab, LITE)
    assert mode.in_lab(lab) is LITE
    assert mode.in_lab(replace(lab, monitoring=FULL)) is LITE, "what is there, not what a variable says"
    mode.forget(lab)
    mode.forget(lab)
    assert mode.in_lab(lab) is NONE


@pytest.mark.parametrize(
    ("monitoring", "edge", "components"),
    [
        (LITE, settings.Edge.ENVOY, None),
        (NONE, settings.Edge.ENVOY, ["bootstrap/without-monitoring"]),
        (FULL, settings.Edge.ENVOY, ["bootstrap/monitoring-full"]),
        (NONE, settings.Edge.NONE, ["bootstrap/without-edge", "bootstrap/without-monitoring"]),
    ],
)
def test_the_root_takes_in_the_component_of_its_monitoring(
    monitoring: Monitoring, edge: settings.Edge, components: list[str] | None
) -> None:
    _, root = flux.root_objects(Settings(monitoring=monitoring, edge=edge), with_credentials=False)
    assert root["spec"].get("components") == components
    for folder in components or []:
        assert (settings.FLUX_CD / folder / "kustomization.yaml").is_file()


@pytest.mark.parametrize(("monitoring", "expected"), [(LITE, True), (FULL, True), (NONE, False)])
def test_setup_waits_for_monitoring_where_the_lab_has_it(
    lab: Settings, monitoring: Monitoring, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flux_sync, "ensure_known", lambda *_: None)
    mode.remember(lab, monitoring)
    waited = flux_sync.expected_kustomizations(lab, {"main": "abc"})
    assert (set(flux.MONITORING_SYNCS) <= set(waited)) == expected
    assert not expected or {waited[name].commit for name in flux.MONITORING_SYNCS} == {"abc"}


def test_a_mirror_for_a_lab_without_monitoring_needs_none_of_its_images() -> None:
    pinned = versions.load()
    assert set(mode.IMAGES) <= set(pinned.images)
    assert set(mode.IMAGES) <= set(mirrorset.needed_images(Settings(monitoring=AUTO), pinned))
    assert not set(mode.IMAGES) & set(mirrorset.needed_images(Settings(monitoring=NONE), pinned))


@pytest.mark.parametrize(
    ("monitoring", "gib", "level"),
    [(FULL, 8, Level.OK), (FULL, 7, Level.WARNING), (LITE, 7, Level.OK), (NONE, 6, Level.OK), (FULL, 4, Level.ERROR)],
)
def test_preflight_warns_of_a_stack_that_the_machine_has_no_memory_for(
    monitoring: Monitoring, gib: int, level: Level
) -> None:
    facts = HostFacts("linux", NOW, memory_total_bytes=gib * 1024**3, memory_available_bytes=gib * 1024**3)
    found = preflight.check(Settings(monitoring=monitoring), facts, None, LabFacts(), source=REGISTRY)
    (memory,) = (f for f in found if f.id == "memory")
    assert memory.level is level
    assert level is not Level.WARNING or "MONITORING=lite" in memory.mend
