"""Binaries that only images hold lie packed in the cache, and come out as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import packing
from scripts.cache import Cache
from scripts.sourcebuild import SourceSet

CONTENT = b"\x7fELF" + bytes(range(256)) * 8192


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    folder = Cache(tmp_path).path("flux", "0123456789abcdef")
    folder.mkdir(parents=True)
    (folder / "source-controller").write_bytes(CONTENT)
    (folder / "source-controller").chmod(0o755)
    (folder / "small").write_text("a page")
    (folder / "static").mkdir()
    (folder / "static" / "index.html").write_bytes(CONTENT)
    return folder


def left_behind(entry: Path) -> list[Path]:
    folder = entry.parents[1] / "unpacked"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_large_binaries_are_packed_once_and_small_files_and_folders_are_not(entry: Path) -> None:
    assert packing.pack([entry]) == [entry / "source-controller"]
    assert {path.name for path in entry.iterdir()} == {"source-controller.gz", "small", "static"}
    assert (entry / "source-controller.gz").stat().st_size < len(CONTENT) / 3
    assert packing.pack([entry]) == []


def test_a_packed_binary_is_asked_for_like_any_other(entry: Path) -> None:
    packing.pack([entry])
    source = SourceSet(folders={"flux": entry})
    binary = source.binary("flux", "source-controller")
    assert binary.read_bytes() == CONTENT
    assert os.access(binary, os.X_OK)
    assert source.binary("flux", "source-controller") == binary
    assert source.binary("flux", "small") == entry / "small"
    del source
    assert not binary.exists(), "unpacked copies go with the set they belong to"
    assert left_behind(entry) == []


def test_the_same_binary_gives_the_same_bytes(entry: Path) -> None:
    packing.pack([entry])
    first = (entry / "source-controller.gz").read_bytes()
    (entry / "source-controller").write_bytes(CONTENT)
    os.utime(entry / "source-controller", (1, 1))
    (entry / "source-controller.gz").unlink()
    packing.pack([entry])
    assert (entry / "source-controller.gz").read_bytes() == first


def test_a_binary_survives_a_packing_that_fails(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("scripts.packing.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="no space left"):
        packing.pack([entry])
    assert (entry / "source-controller").read_bytes() == CONTENT
    assert {path.name for path in entry.iterdir()} == {"source-controller", "small", "static"}


def test_what_a_killed_packing_left_is_taken_for_nothing(entry: Path) -> None:
    (entry / ".source-controller.gz").write_bytes(b"half")
    source = SourceSet(folders={"flux": entry})
    assert source.binary("flux", "source-controller") == entry / "source-controller"
    packing.pack([entry])
    assert {path.name for path in entry.iterdir()} == {"source-controller.gz", "small", "static"}
    assert source.binary("flux", "source-controller").read_bytes() == CONTENT


def test_what_a_killed_process_unpacked_goes_and_what_a_living_one_has_stays(entry: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    root = entry.parents[1] / "unpacked"
    (root / f"{int(done.stdout)}-dead").mkdir(parents=True)
    (root / f"{os.getppid()}-alive").mkdir()
    folder = packing.scratch(root)
    assert {path.name.partition("-")[0] for path in root.iterdir()} == {str(os.getppid()), str(os.getpid())}
    folder.cleanup()
