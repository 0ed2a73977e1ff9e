"""`make mirror-serve` with a stand-in for the registry's program; the file server is the real one."""

import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import yaml

from scripts import mirrorserve, versions
from scripts.cache import Cache
from scripts.certificates import ensure_certificate, fingerprint
from scripts.errors import LabError
from scripts.fileserver import app_for
from scripts.gobuild import module_key
from scripts.mirror_options import MirrorOptions
from scripts.mirrorserve import CA_FILE, listening, registry_config, serve
from scripts.process import CommandError
from scripts.settings import Settings
from tests.unit.conftest import Programs

REGISTRY = """#!{python}
import http.server, ssl, sys, yaml
config = yaml.safe_load(open(sys.argv[2]))
host, _, port = config["http"]["addr"].rpartition(":")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(config["http"]["tls"]["certificate"], config["http"]["tls"]["key"])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    found = Settings(cache_dir=tmp_path / "cache")
    these = versions.load()
    key = module_key("registry", these.modules["registry"], these.go.version)
    entry = Cache(found.cache_dir).path("registry", key)
    entry.mkdir(parents=True)
    (entry / "registry").write_text(REGISTRY.format(python=sys.executable))
    (entry / "registry").chmod(0o755)
    monkeypatch.setattr(mirrorserve, "listening", lambda options: ["127.0.0.1", *options.bind])
    return found


@pytest.fixture
def options(tmp_path: Path) -> MirrorOptions:
    return MirrorOptions("", tmp_path / "mirror", ("linux/amd64",), images_port=free_port(), files_port=free_port())


def children() -> set[int]:
    done = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False)
    return {int(pid) for pid in done.stdout.split()}


def test_it_serves_images_and_files_until_it_is_told_to_stop(
    settings: Settings, options: MirrorOptions, capsys: pytest.CaptureFixture[str], is_running: Callable[[int], bool]
) -> None:
    seen: list[object] = []

    def look() -> None:
        session = requests.Session()
        session.trust_env = False
        ca = str(options.files / CA_FILE)
        (options.files / "acme").mkdir()
        (options.files / "acme" / "tool%v1").write_bytes(b"0123456789")
        seen.append(session.get(f"https://127.0.0.1:{options.images_port}/v2/", verify=ca, timeout=5).status_code)
        url = f"https://127.0.0.1:{options.files_port}/acme/tool%25v1"
        part = session.get(url, verify=ca, timeout=5, headers={"Range": "bytes=4-"})
        seen.append((part.status_code, part.content, part.headers["Content-Range"]))
        seen.append(session.get(f"https://127.0.0.1:{options.files_port}/tls/ca.key", verify=ca, timeout=5).status_code)
        seen.append(children())
        os.kill(os.getpid(), signal.SIGTERM)

    serve(settings, versions.load(), options, look)
    assert seen[:3] == [200, (206, b"456789", "bytes 4-9/10"), 404]
    started = seen[3]
    assert isinstance(started, set)
    assert len(started) == 2
    assert not [pid for pid in started if is_running(pid)]
    out, err = capsys.readouterr()
    assert ("nodes on this machine can't reach the mirror" in err) == (platform.system() == "Linux")
    assert f"MIRROR=127.0.0.1:{options.images_port}" in out
    assert f"DOWNLOAD_MIRROR=https://127.0.0.1:{options.files_port}" in out
    assert "the mirror has stopped" in out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_port_that_is_taken_is_said_and_nothing_left_running(
    settings: Settings, options: MirrorOptions, is_running: Callable[[int], bool]
) -> None:
    before = children()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", options.images_port))
        listener.listen()
        with pytest.raises(CommandError, match="Address already in use"):
            serve(settings, versions.load(), options)
    assert not [pid for pid in children() - before if is_running(pid)]


@pytest.mark.parametrize("read_only", [False, True])
def test_only_this_machine_may_fill_it(read_only: bool) -> None:
    found = yaml.safe_load(registry_config("/m", "192.168.1.5", 5443, "/m/tls", read_only))
    assert found["storage"]["maintenance"]["readonly"]["enabled"] is read_only
    assert found["http"]["addr"] == "192.168.1.5:5443"
    assert found["http"]["tls"] == {"certificate": "/m/tls/server.pem", "key": "/m/tls/server.key"}
    assert found["validation"]["manifests"]["indexes"]["platforms"] == "none"


def test_other_addresses_are_read_only(settings: Settings, options: MirrorOptions) -> None:
    options.folder.mkdir()
    programs = mirrorserve.registries(settings, versions.load(), options, ["127.0.0.1", "192.168.1.5"])
    texts = [yaml.safe_load(Path(p.args[-1]).read_text()) for p in programs]
    assert [t["storage"]["maintenance"]["readonly"]["enabled"] for t in texts] == [False, True]
    assert [t["http"]["addr"].rpartition(":")[0] for t in texts] == ["127.0.0.1", "192.168.1.5"]


def test_without_a_program_the_pinned_image_is_run(tmp_path: Path, options: MirrorOptions, programs: Programs) -> None:
    programs.add("docker", """[ "$1" != info ] || echo '{"ServerVersion": "28"}'""")
    options.folder.mkdir()
    these = versions.load()
    (found,) = mirrorserve.registries(Settings(cache_dir=tmp_path / "c"), these, options, ["127.0.0.1"])
    assert these.images["registry"].reference in found.args
    assert f"127.0.0.1:{options.images_port}:5000" in found.args
    text = (options.folder / "registry-0.yaml").read_text()
    assert "rootdirectory: /mirror/registry" in text


def test_with_neither_a_program_nor_an_engine_it_is_said(
    tmp_path: Path, options: MirrorOptions, programs: Programs
) -> None:
    options.folder.mkdir()
    with pytest.raises(LabError, match="There is no registry to serve"):
        mirrorserve.registries(Settings(cache_dir=tmp_path / "c"), versions.load(), options, ["127.0.0.1"])


@pytest.mark.parametrize(("system", "gateway", "found"), [
    ("Linux", "172.17.0.1", ["127.0.0.1", "172.17.0.1", "10.0.0.5"]),
    ("Linux", "", ["127.0.0.1", "10.0.0.5"]),
    ("Darwin", "172.17.0.1", ["127.0.0.1", "10.0.0.5"]),
])  # fmt: skip
def test_it_listens_where_nodes_of_this_machine_look(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch, system: str, gateway: str, found: list[str]
) -> None:
    programs.add("docker", """[ "$1" != info ] || echo '{"ServerVersion": "28"}'""")
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(mirrorserve.mirrors, "bridge_gateway", lambda: gateway)
    assert listening(MirrorOptions("", tmp_path, (), bind=("10.0.0.5",))) == found


# ---------------------------------------------------------------- certificates


def verified(certificate: Path, ca: Path, *options: str) -> bool:
    done = subprocess.run(["openssl", "verify", "-CAfile", ca, *options, certificate], capture_output=True, check=False)
    return done.returncode == 0


def test_a_certificate_is_of_the_ca_and_for_its_names(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path / "tls", ["127.0.0.1", "laptop.local"])
    assert made.renewed
    assert verified(made.certificate, made.ca, "-x509_strict", "-verify_ip", "127.0.0.1", "-purpose", "sslserver")
    assert verified(made.certificate, made.ca, "-verify_hostname", "laptop.local")
    assert not verified(made.certificate, made.ca, "-verify_hostname", "other.local")
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "tls").glob("*.key")} == {0o600}
    assert len(fingerprint(made.ca)) == 95


def test_it_stays_until_a_name_or_the_date_asks_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ensure_certificate(tmp_path, ["127.0.0.1"])
    ca, server = first.ca.read_text(), first.certificate.read_text()
    assert not ensure_certificate(tmp_path, ["127.0.0.1"]).renewed
    assert ensure_certificate(tmp_path, ["127.0.0.1", "10.0.0.5"]).renewed
    assert (first.ca.read_text() == ca, first.certificate.read_text() == server) == (True, False), (
        "who has the CA trusts on"
    )
    monkeypatch.setattr("scripts.certificates.RENEW_BEFORE_S", 400 * 24 * 3600)
    assert ensure_certificate(tmp_path, ["127.0.0.1", "10.0.0.5"]).renewed


def test_the_file_server_serves_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_text("a")
    (tmp_path / "secret").write_text("s")
    client = app_for(str(tmp_path / "files")).test_client()
    assert client.get("/a").data == b"a"
    for path in ("/", "/../secret", "/%2e%2e/secret", "/b"):
        assert client.get(path).status_code == 404
    assert client.put("/a", data=b"x").status_code == 405
    (tmp_path / "files" / "a.tar.gz").write_bytes(b"packed")
    archive = client.get("/a.tar.gz")
    assert archive.data == b"packed"
    assert "Content-Encoding" not in archive.headers, "clients would unpack it on the way"
