"""The check again at each save.

The tree is looked at twice a second by its time stamps: a scan of a thousand files takes some milliseconds, works on every
file system (also those of virtual machines, which report no changes), and needs no library. What counts is decided by
contents, in the check itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from scripts import console
from scripts.check.model import Report

INTERVAL_S = 0.5
_SKIPPED = {".git", "node_modules", "__pycache__", ".venv", "reports"}


def watch(root: Path, look: Callable[[], Report], show: Callable[[Report], None], stop: threading.Event) -> None:
    """Check a tree, then again after each change, until told to stop."""
    seen: dict[str, tuple[int, int]] = {}
    first = True
    while not stop.is_set():
        now = time_stamps(root)
        if first or now != seen:
            changed = sorted(p for p in {*seen, *now} if seen.get(p) != now.get(p))
            if not first:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                console.raw(f"── {os.path.relpath(changed[0], root)}{more} changed")
            seen, first = now, False
            show(look())
        stop.wait(INTERVAL_S)


def time_stamps(root: Path) -> dict[str, tuple[int, int]]:
    """Return modification time and size of every file below a folder."""
    found: dict[str, tuple[int, int]] = {}
    pending = [str(root)]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name in _SKIPPED:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        stat = entry.stat(follow_symlinks=False)
                        found[entry.path] = (stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            # Removed while it was being looked at: the next look sees what is left.
            continue
    return found
