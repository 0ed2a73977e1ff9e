import threading
from pathlib import Path

import pytest

from scripts.check import watch
from scripts.check.model import Report
from tests.unit.conftest import Until


@pytest.mark.parametrize("change", ["changed", "new", "gone"])
def test_each_save_is_followed_by_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Until, change: str
) -> None:
    monkeypatch.setattr(watch, "INTERVAL_S", 0.01)
    (tmp_path / "a.yaml").write_text("a: 1")
    shown: list[Report] = []
    stop = threading.Event()
    thread = threading.Thread(target=watch.watch, args=(tmp_path, lambda: Report(tmp_path), shown.append, stop))
    thread.start()
    try:
        until(lambda: len(shown) == 1)
        match change:
            case "changed":
                (tmp_path / "a.yaml").write_text("a: 22")
            case "new":
                (tmp_path / "b.yaml").write_text("b: 1")
            case "gone":
                (tmp_path / "a.yaml").unlink()
        until(lambda: len(shown) == 2)
    finally:
        stop.set()
        thread.join(10)
    assert len(shown) == 2


def test_what_is_no_part_of_a_tree_is_not_watched(tmp_path: Path) -> None:
    for name in (".git/index", ".venv/x", "reports/x", "apps/x.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("x")
    assert list(watch.time_stamps(tmp_path)) == [str(tmp_path / "apps" / "x.yaml")]
