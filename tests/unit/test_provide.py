from dataclasses import replace
from pathlib import Path

import pytest

from scripts import provide, settings, sourcebuild, versions
from scripts.cache import Cache
from scripts.settings import ImageSource


def test_in_source_mode_each_check_tool_comes_from_its_own_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flux's tool and Flux's controllers are two entries, and only one of them holds a program named flux."""
    pinned = versions.load()
    chosen = replace(settings.Settings(), image_source=ImageSource.SOURCE, cache_dir=tmp_path, state_root=tmp_path)
    chosen.tools_dir.mkdir()
    cache = Cache(tmp_path)
    for name, key in sourcebuild.expected_entries(pinned).items():
        cache.path(name, key).mkdir(parents=True)
    programs = {
        "kustomize": "kustomize", "kubeconform": "kubeconform", "flux-cli": "flux", "kubernetes": "kubernetes", "etcd": "etcd",
    }  # fmt: skip
    for entry, binary in programs.items():
        (cache.path(entry, sourcebuild.expected_entries(pinned)[entry]) / binary).write_text(entry)
    outcome = provide.ensure_check_tools(chosen, pinned, tmp_path / "logs")
    assert not outcome.changed
    assert {p.name: p.read_text() for p in chosen.tools_dir.iterdir()} == {
        "kustomize": "kustomize", "kubeconform": "kubeconform", "flux": "flux-cli", "kube-apiserver": "kubernetes",
        "etcd": "etcd",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tests", "built"),
    [(False, []), (True, ["kubernetes", "etcd", "promtool"])],
    ids=["the check builds no API server", "the tests do"],
)
def test_the_dry_runs_programs_are_built_for_the_tests_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tests: bool, built: list[str]
) -> None:
    pinned = versions.load()
    chosen = replace(settings.Settings(), image_source=ImageSource.SOURCE, cache_dir=tmp_path, state_root=tmp_path)
    cache, keys = Cache(tmp_path), sourcebuild.expected_entries(pinned)
    for name in ("kustomize", "kubeconform", "flux-cli"):
        cache.path(name, keys[name]).mkdir(parents=True)
    calls: list[str] = []

    def build(_cache: Cache, _go: object, name: str, *_: object) -> tuple[Path, bool]:
        calls.append(name)
        cache.path(name, keys[name]).mkdir(parents=True)
        return cache.path(name, keys[name]), True

    monkeypatch.setattr(provide, "build_module", build)
    monkeypatch.setattr(provide, "ensure_go", lambda *_: None)
    outcome = provide.ensure_check_tools(chosen, pinned, tmp_path / "logs", tests)
    assert calls == built
    assert outcome.changed == bool(built)
    assert (chosen.tools_dir / "kube-apiserver").is_symlink() == tests
