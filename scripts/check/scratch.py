"""A folder for what a run writes only to hand it to a program: hundreds of small files."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")  # each folder in it is made by tempfile, for its owner alone
_MOST_BYTES = 256 * 1024**2


def memory_for(size: int) -> Path | None:
    """Return a folder in memory that has twice as much room as that many bytes; None where TMPDIR names another place."""
    if "TMPDIR" in os.environ or not _IN_MEMORY.is_dir() or not os.access(_IN_MEMORY, os.W_OK | os.X_OK):
        return None
    return _IN_MEMORY if size <= shutil.disk_usage(_IN_MEMORY).free // 2 else None


def scratch(purpose: str, size: int = 0) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder, in memory where there is such a place.

    A small file on a disk's file system takes 20 times as long, which for 100 overlays adds up to a second.

    Args:
        purpose: a word of the folder's name.
        size: how many bytes will be written, where that may be many: too many, and it is a folder on a disk.
    """
    place = memory_for(size) if size <= _MOST_BYTES else None
    return tempfile.TemporaryDirectory(prefix=f"gitops-lab-{purpose}-", dir=place)
