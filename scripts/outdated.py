"""`make outdated`: newer versions of what versions.yaml pins, as far as a registry, a publisher or Go's proxy answers."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from scripts import console, mirrors, pins
from scripts.errors import LabError
from scripts.gobuild import SOURCE_DIR
from scripts.process import run
from scripts.settings import Settings
from scripts.transfer import Limits, is_loopback
from scripts.versions import GoModule, Image, Tool, Versions

# A look, not a download: who does not answer soon is left out.
LIMITS = Limits(connect_s=4, read_s=8, tries=2, backoff_s=0.2)
KUBERNETES_STABLE = "/release/stable.txt"
_NUMBERS = re.compile(r"(?P<before>.*?)(?P<numbers>\d+(?:\.\d+)+)(?P<after>.*)")


@dataclass(frozen=True)
class Found:
    """One pinned thing, and the newest version seen of it ("" if none could be)."""

    kind: str
    name: str
    pinned: str
    newest: str = ""
    why: str = ""

    @property
    def is_newer(self) -> bool:
        """Whether there is something to move to."""
        return bool(self.newest) and self.newest != self.pinned


def newest_like(pinned: str, candidates: Iterable[str]) -> str:
    """Return the newest of the candidates that are written as the pinned one is, itself included.

    Before and after the numbers nothing may differ: v1.2 is no successor of 1.1, 3.2-alpine none of 3.1, and what is
    marked as a candidate (-rc.1) none of a release.
    """
    own = _NUMBERS.fullmatch(pinned)
    if not own:
        return pinned
    best, best_numbers = pinned, _numbers(own)
    for candidate in candidates:
        match = _NUMBERS.fullmatch(candidate)
        if match and (match["before"], match["after"]) == (own["before"], own["after"]):
            numbers = _numbers(match)
            # As many numbers as the pinned one has: 3.22 is followed by 3.23, not by 3.22.1.
            if len(numbers) == len(best_numbers) and numbers > best_numbers:
                best, best_numbers = candidate, numbers
    return best


def _numbers(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(n) for n in match["numbers"].split("."))


def look(settings: Settings, versions: Versions) -> list[Found]:
    """Ask for every image, tool and Go module; what can't be asked says why."""
    return [
        *_images(settings, versions),
        *(_tool(settings, name, tool) for name, tool in versions.tools.items()),
        *_modules(versions.modules),
    ]


def _images(settings: Settings, versions: Versions) -> list[Found]:
    silent: dict[str, str] = {}
    try:
        mirror = mirrors.open_mirror(settings, replace(versions.images["node"], digest=""), LIMITS)
    except LabError as error:
        return [Found("image", i.image, i.tag, why=error.what) for i in versions.artifacts.values()]

    def tags(image: Image) -> list[str]:
        if mirror:
            return mirror.client(LIMITS).tags(mirror.repository(image.image))
        return pins.upstream_client(image.image, LIMITS).tags(image.image.partition("/")[2])

    found = []
    for image in versions.artifacts.values():
        host = mirror.host if mirror else image.image.partition("/")[0]
        why = silent.get(host, "")
        newest = ""
        if not why:
            try:
                newest = newest_like(image.tag, tags(image))
            except LabError as error:
                why = silent[host] = error.what
        found.append(Found("image", image.image, image.tag, newest, why))
    return found


def _tool(settings: Settings, name: str, tool: Tool) -> Found:
    parts = urlsplit(tool.url)
    base = settings.download_mirror or f"{parts.scheme}://{parts.netloc}"
    owner = re.match(r"(/[^/]+/[^/]+)/releases/download/([^/]*)", parts.path)
    try:
        if owner:
            shown = _tail(_redirect(settings, f"{base}{owner[1]}/releases/latest"), unquote(owner[2]))
        else:
            shown = _text(settings, f"{base}{KUBERNETES_STABLE}")
    except (requests.RequestException, LabError) as error:
        why = error.what if isinstance(error, LabError) else f"{urlsplit(base).hostname}: {type(error).__name__}"
        return Found("tool", name, tool.version, why=why)
    return Found("tool", name, tool.version, newest_like(tool.version, [shown]))


def _tail(location: str, tag: str) -> str:
    """Return the version in a release's address; `tag` is how this tool's tags are written, as in v{version}."""
    before, _, after = tag.partition("{version}")
    found = unquote(urlsplit(location).path).partition("/releases/tag/")[2]
    if not (found.startswith(before) and found.endswith(after)):
        raise LabError(f"the latest release there is {found}, which is another tool's")
    return found.removeprefix(before).removesuffix(after)


def _redirect(settings: Settings, url: str) -> str:
    return _get(settings, url, lambda r: r.headers.get("Location", ""), 302)


def _text(settings: Settings, url: str) -> str:
    return _get(settings, url, lambda r: r.text.strip(), 200)


def _get(settings: Settings, url: str, read: Callable[[requests.Response], str], status: int) -> str:
    credentials = mirrors.download_credentials(settings)
    with requests.Session() as session:
        session.trust_env = not is_loopback(urlsplit(url).hostname or "")
        response = session.get(
            url,
            timeout=(LIMITS.connect_s, LIMITS.read_s),
            allow_redirects=False,
            verify=str(settings.mirror_ca) if settings.mirror_ca and settings.download_mirror else True,
            headers={"Authorization": credentials.basic} if credentials else {},
        )
    if response.status_code != status:
        raise LabError(f"{urlsplit(url).hostname} answered {response.status_code}")
    return read(response)


def _modules(modules: Mapping[str, GoModule], source_dir: Path = SOURCE_DIR) -> list[Found]:
    pinned: dict[str, str] = {}
    for name, module in modules.items():
        locked = (source_dir / (module.lock or name) / "go.mod").read_text()
        for entry in (*module.packages, *filter(None, [module.module])):
            package, _, version = entry.partition("@")
            pinned[module_of(package, locked)] = version
    go = shutil.which("go")
    if not go:
        return [Found("Go module", path, version, why="no Go on PATH") for path, version in pinned.items()]
    with tempfile.TemporaryDirectory(prefix="gitops-lab-outdated-") as folder:
        (Path(folder) / "go.mod").write_text("module gitops-lab.invalid/outdated\n")
        done = run(
            [go, "list", "-m", "-e", "-versions", "-json=Path,Versions,Error", *pinned],
            timeout_s=120,
            cwd=Path(folder),
            env={"GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"},
            check=False,
        )
    answers = {answer["Path"]: answer for answer in _json_stream(done.stdout)}
    found = []
    for path, version in pinned.items():
        answer = answers.get(path, {"Error": {"Err": (done.stderr.strip().splitlines() or ["no answer"])[-1]}})
        why = answer.get("Error", {}).get("Err", "").strip().partition("\n")[0]
        newest = "" if why else newest_like(version, answer.get("Versions") or [])
        found.append(Found("Go module", path, version, newest, why))
    return found


def module_of(package: str, go_mod: str) -> str:
    """Return the module that a package is in: the longest one of a go.mod that its path begins with."""
    required = re.findall(r"^(?:require )?\s*(\S+\.\S+/\S+) v\S+", go_mod, re.MULTILINE)
    fitting = [path for path in required if package == path or package.startswith(f"{path}/")]
    return max(fitting, key=len, default=package)


def _json_stream(text: str) -> Iterator[dict[str, Any]]:
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:].lstrip()


def render(found: list[Found]) -> None:
    """Print what is newer, and in a few lines what could not be asked."""
    newer = [f for f in found if f.is_newer]
    if newer:
        console.table(
            "Newer versions",
            ("kind", "name", "pinned", "newest"),
            [(f.kind, f.name, f.pinned, f.newest) for f in newer],
        )
    asked = [f for f in found if f.newest]
    console.line(f"{len(asked)} of {len(found)} asked, {len(newer)} newer")
    for why in dict.fromkeys(f.why for f in found if f.why):
        names = [f.name for f in found if f.why == why]
        shown = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        console.line(f"  not asked: {shown}: {why}", "dim")
