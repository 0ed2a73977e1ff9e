import dataclasses
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from scripts import images, nodeimage, rootfs, sourcebuild, versions
from scripts.images import ComponentImage, built_name, ca_bundle, ensure_base, ensure_image, load_recipes, recipe_key
from scripts.monitoring import mode
from scripts.process import CommandError
from scripts.settings import ROOT
from scripts.sourcebuild import SourceSet
from tests.unit.conftest import Programs

PINS = versions.load()
RECIPES = {recipe.name: recipe for recipe in load_recipes(PINS)}
NAMES = sorted(RECIPES)
# What every entry of the cache offers to an image besides a module's binaries.
OTHER_BINARIES = {
    "module-files": {"pause"}, "envoy": {"envoy"}, "flux-cli": {"flux"}, "alertmanager": {"alertmanager"},
    "prometheus-ui": {"static"},
}  # fmt: skip


# ---------------------------------------------------------------- kind/images.yaml holds what versions.yaml says


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_made_of_what_source_mode_builds(name: str) -> None:
    recipe = RECIPES[name]
    keys = sourcebuild.entry_keys(PINS)
    assert recipe.base == "scratch" or recipe.base in {r.name for r in rootfs.ALL}
    assert recipe.files
    for path, target in recipe.files.items():
        module, _, binary = path.partition("/")
        assert module in keys, path
        known = set(PINS.modules[module].binaries) if module in PINS.modules else OTHER_BINARIES[module]
        assert binary in known, path
        assert target.startswith("/")
    for origin in recipe.copy:
        assert (ROOT / origin).is_file()


def test_every_image_has_a_tag_and_no_two_have_the_same() -> None:
    tags = [tag for recipe in RECIPES.values() for tag in recipe.tags]
    assert len(tags) == len(set(tags))
    assert all(recipe.tags for recipe in RECIPES.values())
    # A short name would be looked for at Docker Hub, and `latest` would always be pulled.
    assert not [
        tag for tag in tags if tag.count(":") != 1 or tag.endswith(":latest") or "." not in tag.partition("/")[0]
    ]


def test_an_image_that_versions_yaml_names_has_its_name_and_tag() -> None:
    for name in ("metrics-server", "source-controller", "envoy-gateway", "envoy", "registry", *mode.IMAGES):
        assert RECIPES[name].tags == (PINS.images[name].tagged,)


@pytest.mark.parametrize(
    ("recipe", "module"),
    [("kube-router", "kube-router"), ("coredns", "coredns"), ("etcd", "etcd"), ("kubernetes", "kubernetes")],
)
def test_a_version_in_a_tag_is_the_one_that_is_built(recipe: str, module: str) -> None:
    pins = PINS.modules[module].packages or (PINS.modules[module].module,)
    versions_built = {pin.rpartition("@")[2].removeprefix("v") for pin in pins}
    for tag in RECIPES[recipe].tags:
        number = tag.rpartition(":")[2].removeprefix("v").partition("-")[0]
        assert versions_built == {number}, tag


def test_kubernetes_is_one_image_under_the_four_names_that_kubeadm_asks_for() -> None:
    recipe = RECIPES["kubernetes"]
    assert [tag.partition("/")[2].partition(":")[0] for tag in recipe.tags] == list(recipe.links)
    assert all(tag.endswith(f":{PINS.kubernetes}") for tag in recipe.tags)


def test_what_needs_no_root_is_run_by_another_user() -> None:
    """Kubernetes refuses `runAsNonRoot` for an image whose user is a name."""
    users = {name: recipe.user for name, recipe in RECIPES.items() if recipe.user}
    assert {"pause", "metrics-server", *(f"{n}-controller" for n in ("source", "helm"))} < set(users)
    assert all(user.partition(":")[0].isdigit() and user != "0" for user in users.values())


def test_recipes_are_read_anew_for_other_versions() -> None:
    other = {r.name: r for r in load_recipes(dataclasses.replace(PINS, kubernetes="v1.99.0"))}
    assert all(tag.endswith(":v1.99.0") for tag in other["kubernetes"].tags)
    assert other["etcd"] == RECIPES["etcd"]


# ---------------------------------------------------------------- keys


RECIPE = ComponentImage(
    name="demo",
    base="rootfs-glibc",
    files={"etcd/etcd": "/usr/local/bin/etcd", "etcd/etcdctl": "/usr/local/bin/etcdctl"},
    tags=("docker.io/demo:1",),
    links=("one", "two"),
    copy={"kind/registry/config.yaml": "/etc/config.yml"},
    entrypoint=("/usr/local/bin/etcd",),
    command=("serve", 'a "quoted" word'),
    user="65534:65534",
    ca=True,
    node=True,
)


@pytest.fixture
def source(tmp_path: Path) -> SourceSet:
    """Return a set with every key, one module's binaries and one root file system."""
    folder = tmp_path / "etcd"
    folder.mkdir()
    for binary in ("etcd", "etcdctl"):
        (folder / binary).write_text(f"I am {binary}\n")
        (folder / binary).chmod(0o755)
    archive = tmp_path / "root.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in (("./etc/hostname", b"x"), ("./etc/ssl/certs/ca-certificates.crt", b"a bundle")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return SourceSet({"etcd": folder}, {"rootfs-glibc": archive}, sourcebuild.entry_keys(PINS))


def with_key(source: SourceSet, name: str) -> SourceSet:
    return dataclasses.replace(source, keys={**source.keys, name: "0" * 64})


@pytest.mark.parametrize(
    ("recipe", "changed", "same"),
    [
        (RECIPE, "", True),
        (RECIPE, "coredns", True),
        (RECIPE, "rootfs-net", True),
        (RECIPE, "etcd", False),
        (RECIPE, "rootfs-glibc", False),
        (dataclasses.replace(RECIPE, base="scratch"), "", False),
        (dataclasses.replace(RECIPE, ca=False), "", False),
        (dataclasses.replace(RECIPE, user=""), "", False),
        (dataclasses.replace(RECIPE, command=()), "", False),
        (dataclasses.replace(RECIPE, files={"etcd/etcd": "/usr/local/bin/etcd"}), "", False),
    ],
)
def test_a_key_is_of_all_that_an_image_is_made_of_and_of_nothing_else(
    source: SourceSet, recipe: ComponentImage, changed: str, same: bool
) -> None:
    other = with_key(source, changed) if changed else source
    assert (recipe_key(recipe, other) == recipe_key(RECIPE, source)) is same


def test_a_key_is_of_a_copied_files_content(source: SourceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe_key(RECIPE, source)
    copied = tmp_path / "kind" / "registry" / "config.yaml"
    copied.parent.mkdir(parents=True)
    copied.write_text((ROOT / "kind/registry/config.yaml").read_text())
    monkeypatch.setattr(images, "ROOT", tmp_path)
    assert recipe_key(RECIPE, source) == before
    copied.write_text("version: 0.2\n")
    assert recipe_key(RECIPE, source) != before


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ("etcd", False),
        ("rootfs-node", False),
        ("rootfs-python", False),
        ("containerd", False),
        ("kind", True),
        ("registry", True),
        ("rootfs-git", True),
    ],
)
def test_the_node_image_is_named_by_what_is_in_it(source: SourceSet, changed: str, same: bool) -> None:
    recipes = list(RECIPES.values())
    name = nodeimage.node_image_name(source, PINS, recipes)
    assert name.startswith(f"gitops-lab/node:{PINS.kubernetes}-")
    assert (nodeimage.node_image_name(with_key(source, changed), PINS, recipes) == name) is same


def test_a_node_image_for_other_engines_is_another_one_without_the_applications_base(source: SourceSet) -> None:
    def name(source: SourceSet, portable: bool) -> str:
        return nodeimage.node_image_name(source, PINS, list(RECIPES.values()), portable)

    assert name(source, portable=True) != name(source, portable=False)
    assert name(with_key(source, "rootfs-python"), portable=True) == name(source, portable=True)


# ---------------------------------------------------------------- building, by a fake engine


class Engine:
    """A fake `docker` that keeps the last build's context and knows images by their names."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self.programs = programs
        self.context = folder / "context"
        self.images = folder / "images"
        self.images.mkdir()
        programs.add(
            "docker",
            f"""PATH=/usr/bin:/bin
            image() {{ echo "{self.images}/$(echo "$1" | tr /: __)"; }}
            for last; do :; done
            case "$1" in
            image) [ -e "$(image "$last")" ] || {{ echo "Error: No such image: $last" >&2; exit 1; }};;
            import) : > "$(image "$last")";;
            build) [ ! -e "{folder}/refuse" ] || {{ echo "no space left on device" >&2; exit 1; }}
              rm -rf "{self.context}"; cp -a "$last" "{self.context}"
              while [ "$1" != --tag ]; do shift; done; : > "$(image "$2")";;
            esac""",
        )

    def verbs(self) -> list[str]:
        return [call[1] for call in self.programs.calls("docker") if call[1] != "image"]


@pytest.fixture
def engine(programs: Programs, tmp_path: Path) -> Engine:
    return Engine(programs, tmp_path)


def test_an_image_is_built_of_its_recipe_once(engine: Engine, source: SourceSet, tmp_path: Path) -> None:
    name, built = ensure_image(RECIPE, source)
    assert (name, built) == (built_name(RECIPE, source), True)
    assert name == f"gitops-lab/demo:{recipe_key(RECIPE, source)[:16]}"
    base = f"gitops-lab/rootfs-glibc:{source.keys['rootfs-glibc'][:16]}"
    assert (engine.context / "Dockerfile").read_text().splitlines() == [
        f"FROM {base}",
        "COPY 0 /usr/local/bin/etcd",
        "COPY 1 /usr/local/bin/etcdctl",
        "COPY ca.crt /etc/ssl/certs/ca-certificates.crt",
        "COPY c0 /etc/config.yml",
        "COPY links/ /usr/local/bin/",
        "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
        "USER 65534:65534",
        'ENTRYPOINT ["/usr/local/bin/etcd"]',
        'CMD ["serve", "a \\"quoted\\" word"]',
    ]
    assert (engine.context / "1").read_text() == "I am etcdctl\n"
    assert (engine.context / "ca.crt").read_bytes() == b"a bundle"
    assert (engine.context / "links" / "two").readlink() == Path("etcd")
    assert engine.verbs() == ["import", "build"]
    build = engine.programs.calls("docker")[-1]
    assert build[build.index("--network") + 1] == "none", "nothing is downloaded by a build"
    assert ensure_image(RECIPE, source) == (name, False)
    assert engine.verbs() == ["import", "build"]


def test_an_image_from_scratch_needs_no_root_file_system(engine: Engine, source: SourceSet) -> None:
    recipe = ComponentImage(name="bare", base="scratch", files={"etcd/etcd": "/etcd"}, tags=("x.io/y:1",))
    ensure_image(recipe, source)
    assert (engine.context / "Dockerfile").read_text().splitlines() == [
        "FROM scratch",
        "COPY 0 /etcd",
        "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]
    assert engine.verbs() == ["build"]


def test_the_caches_binaries_are_unharmed_by_a_build(engine: Engine, source: SourceSet) -> None:
    ensure_image(RECIPE, source)
    assert source.binary("etcd", "etcd").read_text() == "I am etcd\n"


def test_a_build_that_fails_is_tried_again(engine: Engine, source: SourceSet, tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    with pytest.raises(CommandError, match="no space left on device"):
        ensure_image(RECIPE, source)
    (tmp_path / "refuse").unlink()
    assert ensure_image(RECIPE, source)[1]


def test_a_root_file_system_is_imported_once(engine: Engine, source: SourceSet) -> None:
    assert ensure_base("rootfs-glibc", source) == ensure_base("rootfs-glibc", source)
    assert engine.verbs() == ["import"]


def test_the_git_servers_image_is_built_on_debian_once(engine: Engine, source: SourceSet, tmp_path: Path) -> None:
    with_git = dataclasses.replace(source, rootfs={"rootfs-git": tmp_path / "root.tar.gz"})
    name = images.ensure_git_server(with_git)
    build = engine.programs.calls("docker")[-1]
    assert f"BASE_IMAGE=gitops-lab/rootfs-git:{source.keys['rootfs-git'][:16]}" in build
    assert {"Dockerfile", "post-receive", "srv-git"} <= {path.name for path in engine.context.iterdir()}
    assert images.ensure_git_server(with_git) == name
    assert engine.verbs() == ["import", "build"]
    assert images.ensure_git_server(with_key(with_git, "rootfs-git")) != name


def test_the_certificates_are_debians(source: SourceSet) -> None:
    assert ca_bundle(source) == b"a bundle"


def test_every_recipe_can_be_built(
    engine: Engine, source: SourceSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(SourceSet, "binary", lambda self, module, name: source.folders["etcd"] / "etcd")
    archive = source.rootfs["rootfs-glibc"]
    everything: Any = dataclasses.replace(source, rootfs={recipe.name: archive for recipe in rootfs.ALL})
    for recipe in RECIPES.values():
        ensure_image(recipe, everything)
        lines = (engine.context / "Dockerfile").read_text().splitlines()
        assert len([line for line in lines if line.startswith("COPY ") and "{" in line]) == 0
        assert (recipe.user == "") == (not [line for line in lines if line.startswith("USER ")])
    assert engine.verbs().count("build") == len(RECIPES)
