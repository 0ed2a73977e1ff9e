from dataclasses import replace
from pathlib import Path

import pytest

from scripts import provide, settings, sourcebuild, versions
from scripts.cache import Cache
from scripts.outcome import Outcome
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


def test_helm_is_taken_where_it_was_brought_and_never_built_by_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = versions.load()
    chosen = replace(settings.Settings(), image_source=ImageSource.SOURCE, cache_dir=tmp_path, state_root=tmp_path)
    cache, keys = Cache(tmp_path), sourcebuild.entry_keys(pinned)
    for name in ("kustomize", "kubeconform", "flux-cli", "kubernetes", "etcd", "promtool"):
        cache.path(name, keys[name]).mkdir(parents=True)
    linked = chosen.tools_dir / "helm"
    calls: list[str] = []

    def build(_cache: Cache, _go: object, name: str, *_: object) -> tuple[Path, bool]:
        calls.append(name)
        cache.path(name, keys[name]).mkdir(parents=True)
        (cache.path(name, keys[name]) / "helm").write_text("helm")
        return cache.path(name, keys[name]), True

    monkeypatch.setattr(sourcebuild, "build_module", build)
    monkeypatch.setattr(sourcebuild, "ensure_go", lambda *_: None)
    for tests in (False, True):
        provide.ensure_check_tools(chosen, pinned, tmp_path / "logs", tests)
        assert not linked.is_symlink()
    assert provide.ensure_helm(chosen, pinned, tmp_path / "logs").what == "helm built"
    assert linked.read_text() == "helm"
    assert provide.ensure_helm(chosen, pinned, tmp_path / "logs").what == "helm found"
    assert calls == ["helm"]
    # A link that went is put back from the cache; one to another version's goes.
    linked.unlink()
    provide.ensure_check_tools(chosen, pinned, tmp_path / "logs")
    assert linked.read_text() == "helm"
    (cache.path("helm", keys["helm"]) / "helm").unlink()
    cache.path("helm", keys["helm"]).rename(tmp_path / "gone")
    provide.ensure_check_tools(chosen, pinned, tmp_path / "logs")
    assert not linked.is_symlink()


def test_in_registry_mode_helm_is_kept_at_its_version_once_it_was_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(settings.Settings(), image_source=ImageSource.REGISTRY, cache_dir=tmp_path, state_root=tmp_path)
    asked: list[str] = []

    def ensure(_settings: object, _versions: object, names: tuple[str, ...]) -> Outcome:
        asked.extend(names)
        return Outcome(False, "")

    monkeypatch.setattr(provide, "_ensure_tools", ensure)
    provide.ensure_check_tools(chosen, versions.load(), tmp_path / "logs", tests=True)
    assert "helm" not in asked
    provide.ensure_helm(chosen, versions.load(), tmp_path / "logs")
    assert asked[-1] == "helm"
    asked.clear()
    chosen.tools_dir.mkdir()
    (chosen.tools_dir / "helm").write_text("helm")
    provide.ensure_check_tools(chosen, versions.load(), tmp_path / "logs")
    assert "helm" in asked


def test_what_is_started_from_the_cache_is_not_packed_there(tmp_path: Path) -> None:
    """Tools are linked to, and mirror-serve starts the registry; anything else is in images alone."""
    folders = {name: tmp_path / name for name in sourcebuild.expected_entries(versions.load())}
    packed = {folder.name for folder in provide.only_in_images(folders)}
    started = {"kind", "kubernetes", "kustomize", "kubeconform", "flux-cli", "vegeta", "etcd", "promtool", "registry"}
    assert not packed & started
    assert {"flux", "containerd", "cni", "envoy", "prometheus"} <= packed
