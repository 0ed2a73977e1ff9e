"""The application's image: what is built again from the same input is the same image."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts import appimage, docker, provide, versions
from scripts.images import REPOSITORY
from scripts.settings import APP_NAME
from scripts.transfer import direct_session

pytestmark = pytest.mark.long


@pytest.fixture
def name() -> Iterator[str]:
    name = f"{REPOSITORY}/{APP_NAME}-e2e:test"
    yield name
    docker.docker("image", "rm", name, check=False)


@pytest.fixture
def rebuild(settings, name):
    pins = versions.load()
    source, _ = provide.choose_source(settings)
    provided, _ = provide.provide(settings, pins, source, settings.state_dir / "logs")
    architecture = str(docker.engine_info()["Architecture"])

    def build(revision: str) -> str:
        tag = appimage.content_tag()
        return appimage.build_image(
            settings, name, tag, provided.python_base, pins.python_in_image, architecture, revision, use_cache=False
        )

    return build


def test_two_builds_of_the_same_input_are_the_same_image(rebuild, name):
    first = rebuild("a-revision")
    assert docker.inspect("image", name)["Config"]["Labels"]["org.opencontainers.image.revision"] == "a-revision"
    assert rebuild("a-revision") == first
    assert rebuild("another-revision") != first


def test_the_registry_has_what_its_sources_give(settings, rebuild):
    session = direct_session()
    base = f"http://127.0.0.1:{settings.registry_port}/v2/{APP_NAME}"
    tag = appimage.content_tag()
    manifest = session.get(f"{base}/manifests/{tag}", headers={"Accept": appimage.ACCEPT}, timeout=10).json()
    config = manifest["config"]["digest"]
    labels = session.get(f"{base}/blobs/{config}", timeout=10).json()["config"]["Labels"]
    assert rebuild(labels["org.opencontainers.image.revision"]) == config


def test_the_image_runs_as_nobody_in_particular_and_has_no_shell(rebuild, name):
    rebuild("a-revision")
    assert docker.inspect("image", name)["Config"]["User"] == "1001:1001"
    for shell in ("/bin/sh", "/bin/bash", "/bin/busybox"):
        done = docker.docker("run", "--rm", "--network", "none", "--entrypoint", shell, name, "-c", "true", check=False)
        assert done.exit_code == 127, done.stderr


def test_no_start_of_the_application_compiles_a_module(rebuild, name):
    rebuild("a-revision")
    program = """
import os, sys
from importlib.util import cache_from_source
import gunicorn.app.wsgiapp, gunicorn.workers.gthread, demo_app.factory, demo_app.gunicorn_conf, http.server
"".encode("idna")
loaded = [m for m in list(sys.modules.values()) if (getattr(m, "__file__", None) or "").endswith(".py")]
print(len(loaded), [m.__file__ for m in loaded if not os.path.exists(cache_from_source(m.__file__))])
"""
    given = ("--env", "GREETING=hello", "--entrypoint", "/usr/bin/python3")
    done = docker.docker("run", "--rm", "--network", "none", *given, name, "-c", program)
    count, _, uncompiled = done.stdout.strip().partition(" ")
    assert int(count) > 100
    assert uncompiled == "[]"
