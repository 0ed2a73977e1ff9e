"""What earlier runs found, kept by what it was made from: a changed input is another key, never a stale answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from scripts.check.model import Finding, Place, Severity, Stage

# Below the check's cache: what is the same for every tree.
SHARED = "shared"
KEEP_S = 14 * 24 * 3600
_OF_TREE = re.compile(r"[0-9a-f]{16}")
_SCRIPTS = Path(__file__).resolve().parent.parent


def store_of(cache: Path, tree: str) -> Store:
    """Return the store of a tree's records, by the tree's name."""
    return Store(cache / digest(tree)[:16])


class Store:
    """JSON records below one folder of the user's cache; one that can't be read is as good as none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, kind: str, key: str) -> Any:
        """Return a record, or None."""
        try:
            return json.loads((self.folder / kind / f"{key}.json").read_text())
        except (OSError, ValueError):
            return None

    def has(self, kind: str, key: str) -> bool:
        """Whether there is a record."""
        return (self.folder / kind / f"{key}.json").is_file()

    def put(self, kind: str, key: str, record: Any) -> None:
        """Keep a record; a full disk costs the next run some time and this one nothing."""
        folder = self.folder / kind
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".", dir=folder)
            try:
                with os.fdopen(descriptor, "w") as file:
                    # In one piece: json.dump encodes piece by piece, in Python.
                    file.write(json.dumps(record, separators=(",", ":")))
                Path(temporary).rename(folder / f"{key}.json")
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def drop_old(self, kind: str, used: Iterable[str]) -> None:
        """Remove records that nobody asked for in a fortnight."""
        used_files = {f"{key}.json" for key in used}
        limit = time.time() - KEEP_S
        with contextlib.suppress(OSError), os.scandir(self.folder / kind) as records:
            for record in records:
                if record.name not in used_files and record.stat().st_mtime < limit:
                    Path(record.path).unlink(missing_ok=True)


def drop_unused(cache: Path) -> None:
    """Remove what is left of trees that nothing new was found of in a fortnight: most of them are gone themselves.

    Schemas are dropped by their age too, since those of earlier code are never asked for: who still needs one makes it.
    """
    limit = time.time() - KEEP_S
    Store(cache / SHARED).drop_old("schemas", ())
    with contextlib.suppress(OSError), os.scandir(cache) as folders:
        for folder in folders:
            if _OF_TREE.fullmatch(folder.name) and _last_change(folder.path) < limit:
                shutil.rmtree(folder.path, ignore_errors=True)


def _last_change(folder: str) -> float:
    with os.scandir(folder) as kinds:
        return max(Path(folder).stat().st_mtime, *(kind.stat().st_mtime for kind in kinds), 0.0)


def digest(*parts: object) -> str:
    """Return a key for plain data."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def digest_of_text(text: str) -> str:
    """Return a key for a text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


@cache
def code_digest() -> str:
    """Return a digest of the code that makes the records, and of the libraries it stands on."""
    total = hashlib.sha256(sys.version.encode())
    files = [*sorted((_SCRIPTS / "check").glob("*.py")), _SCRIPTS / "schemas.py", _SCRIPTS.parent / "requirements.lock"]
    for path in files:
        total.update(path.name.encode())
        total.update(path.read_bytes() if path.exists() else b"-")
    return total.hexdigest()


def identity_of(tool: Path) -> str:
    """Return what tells one build of a tool from another, without reading all of it."""
    try:
        real = tool.resolve(strict=True)
        found = real.stat()
    except OSError:
        return f"{tool} is missing"
    return f"{real} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def identity_below(folders: Iterable[Path]) -> str:
    """Return what tells one content of some folders from another, without reading it."""
    found = []
    for folder in folders:
        for top, _, names in os.walk(folder):
            found += sorted(identity_of(Path(top, name)) for name in names)
    return digest(found)


def to_record(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON has it."""
    place = {"file": finding.place.file, "line": finding.place.line}
    return {**vars(finding), "stage": finding.stage.value, "severity": finding.severity.value, "place": place}


def from_record(record: Mapping[str, Any]) -> Finding:
    """Return the finding of a record."""
    fields = dict(record)
    fields.update(stage=Stage(record["stage"]), severity=Severity(record["severity"]), place=Place(**record["place"]))
    return Finding(**fields)
