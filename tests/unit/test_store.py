"""What earlier runs of the check left, and what of it goes."""

import os
import time
from pathlib import Path

from scripts.check.store import KEEP_S, SHARED, Store, drop_unused, store_of


def age(folder: Path, seconds: float) -> None:
    """Make everything below a folder, and the folder, as old as that."""
    then = time.time() - seconds
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def test_a_trees_records_go_a_fortnight_after_the_last_new_one(tmp_path: Path) -> None:
    gone, alive, mixed = (store_of(tmp_path, name) for name in ("/gone", "/alive", "/mixed"))
    for store in (gone, alive, mixed):
        store.put("results", "a", 1)
        store.put("renders", "b", 2)
        age(store.folder, KEEP_S + 60)
    age(alive.folder, KEEP_S - 60)
    mixed.put("results", "c", 3)
    os.utime(mixed.folder, (0, 0))
    Store(tmp_path).put("tools", "current", 4)
    age(tmp_path / "tools", KEEP_S + 60)
    drop_unused(tmp_path)
    assert not gone.folder.exists()
    assert alive.get("renders", "b") == 2
    assert mixed.get("renders", "b") == 2, "its tree was checked since"
    assert Store(tmp_path).get("tools", "current") == 4, "which is no tree's"


def test_schemas_go_by_their_age(tmp_path: Path) -> None:
    shared = Store(tmp_path / SHARED)
    shared.put("schemas", "old", 1)
    age(shared.folder, KEEP_S + 60)
    shared.put("schemas", "new", 2)
    drop_unused(tmp_path)
    assert (shared.get("schemas", "old"), shared.get("schemas", "new")) == (None, 2)


def test_what_holds_nothing_goes_unless_it_was_just_begun(tmp_path: Path) -> None:
    drop_unused(tmp_path / "nowhere")
    begun, left = tmp_path / f"{1:016x}", tmp_path / f"{2:016x}"
    begun.mkdir()
    left.mkdir()
    age(left, KEEP_S + 60)
    drop_unused(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [begun.name]
