"""`make mirror-serve`: a mirror on this machine, for a room without internet: a registry and a file server over TLS.

On 127.0.0.1 it is filled; on every other address (the engine's bridge, for this machine's own nodes, and what BIND
names) it can only be read.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import requests
import yaml

from scripts import console, mirrors, pins
from scripts.cache import Cache, lock
from scripts.certificates import ServerCertificate, ensure_certificate, fingerprint
from scripts.docker import docker, engine_info, image_exists
from scripts.errors import LabError
from scripts.gobuild import module_key
from scripts.mirror_options import MirrorOptions
from scripts.process import Background, background
from scripts.settings import MIRROR_SERVER, Settings
from scripts.transfer import direct_session
from scripts.versions import Versions
from scripts.waiting import wait_for

LOOPBACK = "127.0.0.1"
READY_TIMEOUT_S = 60
STOP_GRACE_S = 10.0
CA_FILE = "mirror-ca.pem"
# The paths inside the registry's container.
_INSIDE = "/mirror"


@dataclass(frozen=True)
class Program:
    """One server to run: what people call it, and its command."""

    what: str
    args: Sequence[str | Path]
    env: dict[str, str]


def serve(
    settings: Settings, versions: Versions, options: MirrorOptions, on_ready: Callable[[], None] | None = None
) -> None:
    """Serve until interrupted or terminated; what was served stays in the folder."""
    stop = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with lock(options.folder / "serve.lock", "serving this folder", timeout_s=1), ExitStack() as running:
            addresses = listening(options)
            certificate = ensure_certificate(options.folder / "tls", certificate_names(addresses))
            options.files.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(certificate.ca, options.files / CA_FILE)
            programs = [
                *registries(settings, versions, options, addresses),
                file_server(options, addresses, certificate),
            ]
            started = [running.enter_context(background(p.args, env=p.env, grace_s=STOP_GRACE_S)) for p in programs]
            for url in (
                f"https://{LOOPBACK}:{options.images_port}/v2/",
                f"https://{LOOPBACK}:{options.files_port}/{CA_FILE}",
            ):
                _wait_until_it_answers(url, certificate.ca, started)
            _say(options, addresses, certificate)
            if on_ready:
                on_ready()
            _until(stop, started)
    except KeyboardInterrupt:
        console.note("interrupted")
    finally:
        signal.signal(signal.SIGTERM, previous)
    console.line(f"the mirror has stopped; what it holds stays in {options.folder}")


def listening(options: MirrorOptions) -> list[str]:
    """Return the addresses to listen on: this machine, its own containers, and whom BIND lets in."""
    bridge = ""
    if platform.system() == "Linux" and shutil.which("docker") and engine_info():
        bridge = mirrors.bridge_gateway()
    return list(dict.fromkeys([LOOPBACK, *filter(None, [bridge]), *options.bind]))


def certificate_names(addresses: Sequence[str]) -> list[str]:
    """Return what a server may be called: its addresses, and the names by which it is reached from containers."""
    return list(dict.fromkeys([*addresses, "localhost", mirrors.HOST_IN_CONTAINERS, platform.node() or "localhost"]))


def registry_config(folder: str, address: str, port: int, tls: str, read_only: bool) -> str:
    """Return the registry's configuration for one address."""
    storage = {
        "filesystem": {"rootdirectory": f"{folder}/registry"},
        "delete": {"enabled": not read_only},
        "maintenance": {"readonly": {"enabled": read_only}},
    }
    return yaml.safe_dump(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": storage,
            # An index names every platform; here may be those that somebody chose.
            "validation": {"manifests": {"indexes": {"platforms": "none"}}},
            "http": {
                "addr": f"{address}:{port}",
                "tls": {"certificate": f"{tls}/server.pem", "key": f"{tls}/server.key"},
                "headers": {"X-Content-Type-Options": ["nosniff"]},
            },
        }
    )


def registries(
    settings: Settings, versions: Versions, options: MirrorOptions, addresses: Sequence[str]
) -> list[Program]:
    """Return the registry on each address: the source-built program, or the pinned image where there is none."""
    env = {"OTEL_TRACES_EXPORTER": "none"}
    name = MIRROR_SERVER
    entry = Cache(settings.cache_dir).find(name, module_key(name, versions.modules[name], versions.go.version))
    image = "" if entry else _registry_image(settings, versions)
    programs = []
    for number, address in enumerate(addresses):
        read_only = address != LOOPBACK
        config = options.folder / f"registry-{number}.yaml"
        if entry:
            folder = str(options.folder)
            config.write_text(registry_config(folder, address, options.images_port, f"{folder}/tls", read_only))
            args: list[str | Path] = [entry / "registry", "serve", config]
        else:
            config.write_text(registry_config(_INSIDE, "", 5000, f"{_INSIDE}/tls", read_only))
            args = [
                "docker", "run", "--rm", "--user", f"{os.getuid()}:{os.getgid()}", "--env", "OTEL_TRACES_EXPORTER=none",
                "--publish", f"{address}:{options.images_port}:5000", "--volume", f"{options.folder}:{_INSIDE}",
                image, "serve", f"{_INSIDE}/{config.name}",
            ]  # fmt: skip
        programs.append(Program(f"the registry on {address}", args, env))
    return programs


def _registry_image(settings: Settings, versions: Versions) -> str:
    reference = pins.effective(settings, versions).images["registry"].reference
    if not shutil.which("docker") or not engine_info():
        raise LabError(
            "There is no registry to serve: neither built from source nor a container engine to run its image.",
            "make setup-all builds it (source mode), or start the engine",
        )
    if not image_exists(reference):
        console.line(f"  pulling {reference.partition('@')[0]}")
        docker("pull", "--quiet", reference, timeout_s=600)
    return reference


def file_server(options: MirrorOptions, addresses: Sequence[str], certificate: ServerCertificate) -> Program:
    """Return the file server on every address."""
    args: list[str | Path] = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--log-level", "warning"]
    args += ["--threads", "8"]
    for address in addresses:
        shown = f"[{address}]" if ":" in address else address
        args += ["--bind", f"{shown}:{options.files_port}"]
    args += ["--certfile", certificate.certificate, "--keyfile", certificate.key, "--chdir", Path(__file__).parents[1]]
    return Program("the file server", [*args, f"scripts.fileserver:app_for({str(options.files)!r})"], {})


def _wait_until_it_answers(url: str, ca: Path, started: Sequence[Background]) -> None:
    session = direct_session()

    def pending() -> list[str]:
        for program in started:
            program.require_running()
        try:
            answer = session.get(url, verify=str(ca), timeout=5)
        except requests.RequestException as error:
            return [f"{url}: {type(error).__name__}"]
        return [] if answer.status_code == 200 else [f"{url}: HTTP {answer.status_code}"]

    wait_for(
        "the mirror answers", pending, timeout_s=READY_TIMEOUT_S, mend="look whether another program holds the port"
    )


def _until(stop: threading.Event, started: Sequence[Background]) -> None:
    while not stop.wait(1.0):
        for program in started:
            program.require_running()


def _say(options: MirrorOptions, addresses: Sequence[str], certificate: ServerCertificate) -> None:
    here = f"{LOOPBACK}:{options.images_port}"
    ca = options.files / CA_FILE
    console.line("The mirror is up, until Ctrl-C.", "bold")
    if platform.system() == "Linux" and not set(addresses) - {LOOPBACK, *options.bind}:
        console.warn(
            "no engine answers: nodes on this machine can't reach the mirror; start the engine, then this again"
        )
    console.line(f"  fill it:   make mirror-fill MIRROR={here} MIRROR_CA={ca}")
    for address in options.bind:
        console.line(
            f"  others:    IMAGE_MIRROR={address}:{options.images_port} DOWNLOAD_MIRROR=https://{address}:{options.files_port} MIRROR_CA=…"
        )
    console.line(
        f"  this one:  IMAGE_MIRROR={here} DOWNLOAD_MIRROR=https://{LOOPBACK}:{options.files_port} MIRROR_CA={ca}"
    )
    console.line(f"  its CA:    {ca}, SHA-256 {fingerprint(certificate.ca)}", "dim")
