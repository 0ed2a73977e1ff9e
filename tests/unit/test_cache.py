import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import cache as cache_module
from scripts import console
from scripts.cache import Cache, digest_of, digest_of_tree, lock, write_atomically
from scripts.errors import LabError
from scripts.settings import ROOT
from tests.unit.conftest import Until

KEY, OTHER, THIRD, FOURTH = (letter * 64 for letter in "abcd")

# Builds one entry in a process of its own: says when the build began, waits until it may end, counts the builds.
BUILDER = """
import sys, time
from pathlib import Path
from scripts.cache import Cache
root, here = Path(sys.argv[1]), Path(sys.argv[2])
def build(folder):
    (folder / "half").write_text("half")
    with (here / "builds").open("a") as file:
        file.write("built\\n")
    (here / "began").touch()
    while not (here / "may-end").exists():
        time.sleep(0.01)
    (folder / "rest").write_text("rest")
(here / f"up-{sys.argv[3]}").touch()
path, built = Cache(root).ensure("tool", "a" * 64, build)
print(path.name, built, sorted(p.name for p in path.iterdir()))
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def file_of(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "file").write_text(text) and None  # type: ignore[func-returns-value]


def in_another_process(cache: Cache, here: Path, name: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-c", BUILDER, str(cache.root), str(here), name]
    return subprocess.Popen(argv, cwd=ROOT, text=True, stdout=subprocess.PIPE)


def names(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.entries.iterdir())


def test_an_entry_is_built_once_and_found_after_that(cache: Cache) -> None:
    assert cache.find("tool", KEY) is None
    path, built = cache.ensure("tool", KEY, file_of("1"))
    assert (path, built) == (cache.entries / f"tool-{KEY[:16]}", True)
    assert cache.ensure("tool", KEY, file_of("2")) == (path, False)
    assert (path / "file").read_text() == "1"
    assert cache.find("tool", KEY) == path
    assert cache.find("tool", OTHER) is None
    assert cache.find("another", KEY) is None


def test_an_entry_can_be_read_by_the_engine_and_by_other_users(cache: Cache) -> None:
    path, _ = cache.ensure("tool", KEY, file_of("1"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [LabError("no"), OSError("disk full"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing_and_is_tried_again(cache: Cache, error: BaseException) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        cache.ensure("tool", KEY, build)
    assert names(cache) == []
    assert cache.ensure("tool", KEY, file_of("1"))[1]


def test_what_stood_there_before_survives_a_build_that_fails(cache: Cache) -> None:
    cache.ensure("tool", OTHER, file_of("1"))

    def build(folder: Path) -> None:
        raise LabError("no")

    with pytest.raises(LabError):
        cache.ensure("tool", KEY, build)
    assert names(cache) == [f"tool-{OTHER[:16]}"]


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(cache: Cache, tmp_path: Path, until: Until) -> None:
    process = in_another_process(cache, tmp_path, "first")
    until((tmp_path / "began").exists)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (leftover,) = names(cache)
    assert leftover.startswith(".tool-")
    assert cache.find("tool", KEY) is None
    # The lock died with its holder, and what was left is removed by the next build.
    path, built = cache.ensure("tool", KEY, file_of("whole"))
    assert built
    assert names(cache) == [path.name]
    assert [p.name for p in path.iterdir()] == ["file"]


def test_two_processes_that_want_the_same_entry_build_it_once(cache: Cache, tmp_path: Path, until: Until) -> None:
    builders = [in_another_process(cache, tmp_path, name) for name in ("one", "two")]
    until((tmp_path / "began").exists)
    until(lambda: all((tmp_path / f"up-{name}").exists() for name in ("one", "two")))
    (tmp_path / "may-end").touch()
    outputs = sorted(process.communicate(timeout=60)[0] for process in builders)
    assert (tmp_path / "builds").read_text() == "built\n"
    assert outputs == [f"tool-{KEY[:16]} {built} ['half', 'rest']\n" for built in (False, True)]


def test_the_two_newest_entries_are_kept(cache: Cache) -> None:
    for age, key in ((400, KEY), (300, OTHER), (200, THIRD)):
        path, _ = cache.ensure("tool", key, file_of(key))
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert names(cache) == sorted(f"tool-{key[:16]}" for key in (OTHER, THIRD))
    cache.ensure("tool", FOURTH, file_of("4"))
    assert names(cache) == sorted(f"tool-{key[:16]}" for key in (THIRD, FOURTH))


def test_an_entry_that_was_gone_back_to_is_one_of_the_newest(cache: Cache) -> None:
    for age, key in ((400, KEY), (300, OTHER)):
        path, _ = cache.ensure("tool", key, file_of(key))
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    cache.ensure("tool", KEY, file_of("again"))
    cache.ensure("tool", THIRD, file_of("3"))
    assert names(cache) == sorted(f"tool-{key[:16]}" for key in (KEY, THIRD))


def test_entries_of_a_longer_name_are_left_alone(cache: Cache) -> None:
    for name in ("flux-cli", "flux-cli2", "flux"):
        cache.ensure(name, KEY, file_of(name))
        (cache.entries / f".{name}-abcdefgh").mkdir()
    for key in (OTHER, THIRD):
        cache.ensure("flux", key, file_of(key))
    assert names(cache) == sorted(
        [
            *(f".{name}-abcdefgh" for name in ("flux-cli", "flux-cli2")),
            *(f"{name}-{KEY[:16]}" for name in ("flux-cli", "flux-cli2")),
            *(f"flux-{key[:16]}" for key in (OTHER, THIRD)),
        ]
    )


def test_an_old_entry_that_was_half_removed_is_not_taken_for_whole(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_files(folder: Path) -> None:
        (folder / "one").touch()
        (folder / "two").touch()

    def killed_half_way(folder: Path, ignore_errors: bool = False) -> None:
        next(p for p in folder.rglob("*") if p.is_file()).unlink()
        raise KeyboardInterrupt

    for age, key in ((400, KEY), (300, OTHER)):
        path, _ = cache.ensure("tool", key, two_files)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    monkeypatch.setattr(cache_module.shutil, "rmtree", killed_half_way)
    with pytest.raises(KeyboardInterrupt):
        cache.ensure("tool", THIRD, two_files)
    found = cache.find("tool", KEY)
    assert found is None or len(list(found.iterdir())) == 2


def test_waiting_for_another_run_says_so_and_gives_up_with_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "note", said.append)
    path = tmp_path / "locks" / "x.lock"
    with (
        lock(path, "building x"),
        pytest.raises(LabError, match="busy with building x") as refused,
        lock(path, "building x", timeout_s=0.05),
    ):
        raise AssertionError("two holders")
    assert said == ["waiting for another run that is busy with building x"]
    assert str(path) in refused.value.mend


def test_a_lock_is_free_after_an_error_and_passes_on_to_who_waits(tmp_path: Path, until: Until) -> None:
    path = tmp_path / "x.lock"
    with pytest.raises(ValueError, match="inside"), lock(path, "x"):
        raise ValueError("inside")
    order: list[str] = []

    def second() -> None:
        with lock(path, "x", timeout_s=10):
            order.append("second")

    with lock(path, "x"):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_a_file_is_replaced_whole_with_its_mode_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token.json"
    write_atomically(path, "one", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open() as reader:
        write_atomically(path, "two")
        assert reader.read() == "one"
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["token.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"


def test_a_write_that_fails_leaves_nothing_beside_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "\ud800")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (({"a": 1, "b": 2},), ({"b": 2, "a": 1},), True),
        ((["a", "b"],), (("a", "b"),), True),
        (("ab", "c"), ("a", "bc"), False),
        (("a",), ("a", ""), False),
        ((1,), ("1",), False),
        ((["a", "b"],), (["b", "a"],), False),
    ],
)
def test_a_digest_is_of_the_data_not_of_how_it_lies_in_memory(
    one: tuple[object, ...], two: tuple[object, ...], same: bool
) -> None:
    assert (digest_of(*one) == digest_of(*two)) is same


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda folder: (folder / "sub" / "file").write_text("two"), False),
        (lambda folder: (folder / "run").chmod(0o644), False),
        (lambda folder: (folder / "run").rename(folder / "ran"), False),
        (lambda folder: (folder / "more").touch(), False),
        (lambda folder: (folder / "sub" / "file").chmod(0o600), True),
        (lambda folder: os.utime(folder / "run", (1, 1)), True),
        (lambda folder: (folder / "__pycache__" / "x.pyc").write_text("2"), True),
    ],
    ids=["content", "executable bit", "name", "another file", "other mode bits", "time", "tool's cache"],
)
def test_a_folders_digest_is_of_names_executable_bits_and_contents(
    tmp_path: Path, change: Callable[[Path], object], same: bool
) -> None:
    for folder in (tmp_path / "sub", tmp_path / "__pycache__"):
        folder.mkdir()
    (tmp_path / "sub" / "file").write_text("one")
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    before = digest_of_tree(tmp_path)
    assert digest_of_tree(tmp_path) == before
    change(tmp_path)
    assert (digest_of_tree(tmp_path) == before) is same
