"""What setup puts onto the nodes of a running cluster: only what they lack, and never an older build under the same tag."""

from dataclasses import replace

import pytest

from scripts import nodeimages, versions
from scripts.settings import Settings
from tests.unit.conftest import Programs

SETTINGS = Settings()
PINS = versions.load()
IMAGES = [PINS.images["prometheus"], PINS.images["alertmanager"]]
BUILT = {IMAGES[0].tagged: "gitops-lab/prometheus:aaaa", IMAGES[1].tagged: "gitops-lab/alertmanager:bbbb"}
IDS = {"gitops-lab/prometheus:aaaa": "sha256:111", "gitops-lab/alertmanager:bbbb": "sha256:222"}


@pytest.fixture
def nodes(programs: Programs) -> dict[str, dict[str, str]]:
    """Two nodes and what each holds, by tag; an engine that knows the built images."""
    held: dict[str, dict[str, str]] = {"one": {}, "two": {}}
    folder = programs.folder.parent / "held"
    folder.mkdir()

    def write() -> None:
        for node, images in held.items():
            entries = ",".join(f'{{"id":"{i}","repoTags":["{tag}"]}}' for tag, i in images.items())
            (folder / node).write_text(f'{{"images":[{entries}]}}')

    ids = "\n".join(f"{name}) echo {image} ;;" for name, image in IDS.items())
    programs.add(
        "docker",
        f"""PATH=/usr/bin:/bin
case "$1 $2" in
"ps --all") printf 'one\\ntwo\\n' ;;
"image inspect") shift 4; for name; do case "$name" in {ids} esac; done ;;
"save --output") : > "$3" ;;
esac
case "$3 $4" in "crictl images") cat "{folder}/$2" ;; esac""",
    )

    class Held(dict[str, dict[str, str]]):
        def __setitem__(self, node: str, images: dict[str, str]) -> None:
            super().__setitem__(node, images)
            held[node] = images
            write()

    write()
    return Held(held)


def loaded(programs: Programs) -> dict[str, list[str]]:
    """Return for each node that was loaded what the archive held."""
    (save,) = [c for c in programs.calls("docker") if c[1] == "save"]
    names = [c[2] for c in programs.calls("docker") if c[1] == "exec" and "import" in c]
    return {node: sorted(save[4:]) for node in names}


def test_a_new_cluster_is_given_all_of_it(nodes: dict[str, dict[str, str]], programs: Programs) -> None:
    outcome = nodeimages.ensure_loaded(SETTINGS, BUILT)
    assert outcome.changed
    assert loaded(programs) == {"one": sorted(BUILT), "two": sorted(BUILT)}
    calls = programs.calls("docker")
    assert [c[2:] for c in calls if c[1] == "tag"] == [[built, tag] for tag, built in BUILT.items()]
    assert [c[2:] for c in calls if c[1] == "rmi"] == [list(BUILT)], "the engine keeps its own names only"
    assert all("--label=io.cri-containerd.pinned=pinned" in c for c in calls if "import" in c)


def test_nodes_that_have_it_are_left_alone(nodes: dict[str, dict[str, str]], programs: Programs) -> None:
    for node in ("one", "two"):
        nodes[node] = {tag: IDS[built] for tag, built in BUILT.items()}
    assert not nodeimages.ensure_loaded(SETTINGS, BUILT).changed
    assert not [c for c in programs.calls("docker") if c[1] in ("save", "cp", "tag")]


@pytest.mark.parametrize("held", [{}, {IMAGES[0].tagged: "sha256:0ld"}], ids=["missing", "an older build, same tag"])
def test_only_the_node_that_lacks_an_image_is_given_it(
    nodes: dict[str, dict[str, str]], programs: Programs, held: dict[str, str]
) -> None:
    whole = {tag: IDS[built] for tag, built in BUILT.items()}
    nodes["one"], nodes["two"] = whole, {IMAGES[1].tagged: whole[IMAGES[1].tagged], **held}
    nodeimages.ensure_loaded(SETTINGS, BUILT)
    assert loaded(programs) == {"two": [IMAGES[0].tagged]}


def test_in_registry_mode_what_a_node_lacks_is_pulled_by_digest(
    nodes: dict[str, dict[str, str]], programs: Programs
) -> None:
    for node in ("one", "two"):
        nodes[node] = {IMAGES[1].tagged: "sha256:222"}
    assert nodeimages.ensure_pulled(["one", "two"], IMAGES).changed
    pulls = sorted((c[2], c[5]) for c in programs.calls("docker") if c[3:5] == ["crictl", "pull"])
    image = IMAGES[0]
    assert pulls == [(node, f"{image.image}@{image.digest}") for node in ("one", "two")]


def test_in_registry_mode_what_is_there_asks_no_registry(nodes: dict[str, dict[str, str]], programs: Programs) -> None:
    for node in ("one", "two"):
        nodes[node] = {image.tagged: "sha256:1" for image in IMAGES}
    assert not nodeimages.ensure_pulled(["one", "two"], [replace(i) for i in IMAGES]).changed
    assert not [c for c in programs.calls("docker") if "pull" in c]


def test_in_registry_mode_each_node_is_given_what_it_lacks_itself(
    nodes: dict[str, dict[str, str]], programs: Programs
) -> None:
    nodes["one"] = {image.tagged: "sha256:1" for image in IMAGES}
    assert nodeimages.ensure_pulled(["one"], IMAGES).changed is False
    assert nodeimages.ensure_pulled(["one", "two"], IMAGES).changed
    pulls = [(c[2], c[5]) for c in programs.calls("docker") if c[3:5] == ["crictl", "pull"]]
    assert pulls == [("two", f"{image.image}@{image.digest}") for image in IMAGES]
