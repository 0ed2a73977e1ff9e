"""An image registry on 127.0.0.1 that misbehaves as told, over TLS with a CA made by openssl."""

import base64
import hashlib
import json
import re
import shutil
import ssl
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from scripts.oci import OCI_INDEX, OCI_MANIFEST

# Found before a test puts another PATH in place.
OPENSSL = shutil.which("openssl") or "openssl"
USER, PASSWORD = "lab-user", "s3cret-of-the-mirror"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Authority:
    """A CA, and a server certificate of it for 127.0.0.1."""

    ca: Path
    certificate: Path
    key: Path


def make_authority(folder: Path, names: str = "IP:127.0.0.1,DNS:localhost") -> Authority:
    folder.mkdir(parents=True, exist_ok=True)
    new = [
        OPENSSL,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]

    def openssl(*args: str) -> None:
        subprocess.run([*new, *args], cwd=folder, check=True, capture_output=True)

    openssl("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test CA")
    openssl(
        "-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=test", "-CA", "ca.pem", "-CAkey", "ca.key",
        "-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    return Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")


@dataclass
class Fault:
    """What to do instead of the right answer to the next requests that fit."""

    method: str
    path: str  # a pattern
    does: str  # a status, or: truncate, stall, alter, hang up
    times: int = 1
    retry_after: str = ""


@dataclass
class FakeRegistry:
    authority: Authority
    auth: str = "none"  # basic or bearer
    plain: bool = False  # without TLS, as the lab's own
    strict: bool = False  # refuse an index of which a platform is missing
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def start(self) -> "FakeRegistry":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        if not self.plain:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.authority.certificate, self.authority.key)
            # The handshake belongs to the connection's thread: a client that drops it must not stop the server.
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def add_image(self, repository: str, tag: str, *layers: bytes, platform: str = "linux/amd64") -> str:
        """Store an image under a tag and return its digest."""
        system, _, machine = platform.partition("/")
        config = json.dumps({"os": system, "architecture": machine}).encode()
        for data in (config, *layers):
            self.blobs[digest(data)] = data

        def entry(data: bytes, kind: str) -> dict[str, object]:
            return {"mediaType": kind, "digest": digest(data), "size": len(data)}

        body = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": entry(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [entry(layer, "application/vnd.oci.image.layer.v1.tar+gzip") for layer in layers],
        }
        return self.put(repository, tag, OCI_MANIFEST, json.dumps(body).encode())

    def add_index(self, repository: str, tag: str, children: dict[str, str]) -> str:
        """Store an index (platform to digest) under a tag and return its digest."""
        entries = []
        for platform, child in children.items():
            system, _, machine = platform.partition("/")
            size = len(self.manifests[repository, child][1])
            place = {"os": system, "architecture": machine}
            entries.append({"mediaType": OCI_MANIFEST, "digest": child, "size": size, "platform": place})
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        return self.put(repository, tag, OCI_INDEX, json.dumps(body).encode())

    def put(self, repository: str, tag: str, media_type: str, data: bytes) -> str:
        self.manifests[repository, digest(data)] = self.manifests[repository, tag] = (media_type, data)
        return digest(data)

    def fault(self, method: str, path: str, does: str, times: int = 1, retry_after: str = "") -> None:
        self.faults.append(Fault(method, path, does, times, retry_after))

    def asked(self, pattern: str) -> list[str]:
        return [line for line in self.requests if re.search(pattern, line)]


def _handler(registry: FakeRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10
        # An answer's head and body go out apart: the second would wait until the first is acknowledged.
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0") or 0))
            parts = urlsplit(self.path)
            registry.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            does = self.next_fault(parts.path)
            if does is not None and does.does.isdigit():
                self.answer(int(does.does), b"", {"Retry-After": does.retry_after} if does.retry_after else {})
            elif does is not None and does.does == "hang up":
                self.close_connection = True
                self.connection.close()
            elif parts.path == "/token":
                self.token(parse_qs(parts.query))
            elif parts.path.startswith("/files/"):
                self.send_file(parts.path, body)
            elif not self.let_in():
                challenge = (
                    'Basic realm="mirror"'
                    if registry.auth == "basic"
                    else f'Bearer realm="https://{registry.host}/token",service="mirror",scope="{self.scope()}"'
                )
                self.answer(401, b"", {"WWW-Authenticate": challenge})
            else:
                self.serve(parts.path, parse_qs(parts.query, keep_blank_values=True), body, does.does if does else "")

        def next_fault(self, path: str) -> Fault | None:
            for fault in registry.faults:
                if fault.times > 0 and fault.method == self.command and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
            return None

        def scope(self) -> str:
            match = re.match(r"/v2/(.+)/(?:manifests|blobs|tags)/", urlsplit(self.path).path)
            action = "pull" if self.command in ("GET", "HEAD") else "pull,push"
            return f"repository:{match[1]}:{action}" if match else ""

        def basic(self) -> str:
            return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

        def let_in(self) -> bool:
            shown = self.headers.get("Authorization", "")
            if registry.auth == "none":
                return True
            if registry.auth == "basic":
                return shown == self.basic()
            granted = shown.removeprefix("Bearer ").split("|")
            return self.scope() in granted or (self.scope().replace(":pull", ":pull,push") in granted)

        def token(self, query: dict[str, list[str]]) -> None:
            if self.headers.get("Authorization", "") != self.basic():
                return self.answer(401, b"", {})
            scopes = query.get("scope", [""])
            registry.scopes += scopes
            return self.answer(200, json.dumps({"token": "|".join(scopes)}).encode(), {})

        def send_file(self, path: str, body: bytes) -> None:
            if self.command == "PUT":
                registry.files[path] = body
                return self.answer(201, b"", {})
            data = registry.files.get(path)
            return self.answer(404, b"", {}) if data is None else self.answer(200, data, {})

        def serve(self, path: str, query: dict[str, list[str]], body: bytes, fault: str) -> None:
            if path == "/v2/":
                return self.answer(200, b"{}", {})
            if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
                return self.manifest(match[1], match[2], body, fault)
            if match := re.fullmatch(r"/v2/(.+)/tags/list", path):
                tags = sorted(t for r, t in registry.manifests if r == match[1] and not t.startswith("sha256:"))
                return self.answer(200, json.dumps({"tags": tags}).encode(), {}) if tags else self.answer(404, b"", {})
            if match := re.fullmatch(r"/v2/(.+)/blobs/uploads/(.*)", path):
                return self.upload(match[1], match[2], query, body, fault)
            if match := re.fullmatch(r"/v2/(.+)/blobs/(sha256:.+)", path):
                return self.blob(match[2], fault)
            return self.answer(404, b"", {})

        def manifest(self, repository: str, reference: str, body: bytes, fault: str) -> None:
            if self.command == "PUT":
                named = json.loads(body)
                blobs = [b["digest"] for b in (*named.get("layers", []), *filter(None, [named.get("config")]))]
                if any(b not in registry.blobs for b in blobs):
                    return self.answer(
                        400, b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}', {}
                    )
                children = [m["digest"] for m in named.get("manifests", [])]
                if any((repository, c) not in registry.manifests for c in children) and registry.strict:
                    return self.answer(400, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}', {})
                registry.put(repository, reference, self.headers["Content-Type"], body)
                return self.answer(201, b"", {"Docker-Content-Digest": digest(body)})
            found = registry.manifests.get((repository, reference))
            if not found:
                return self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}', {})
            data = found[1] + b" " if fault == "alter" else found[1]
            return self.answer(200, data, {"Content-Type": found[0], "Docker-Content-Digest": digest(found[1])})

        def blob(self, wanted: str, fault: str) -> None:
            data = registry.blobs.get(wanted)
            if data is None:
                return self.answer(404, b"", {})
            if fault == "alter":
                data = data[:-1] + bytes([data[-1] ^ 1])
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            rest = data[start:]
            if fault in ("truncate", "stall"):
                self.answer(206 if start else 200, rest, headers, sent=len(rest) // 2)
                self.wfile.flush()
                if fault == "stall":
                    registry.released.wait(5)
                self.close_connection = True
                return None
            return self.answer(206 if start else 200, rest, headers)

        def upload(self, repository: str, name: str, query: dict[str, list[str]], body: bytes, fault: str) -> None:
            if self.command == "POST":
                name = uuid.uuid4().hex
                registry.uploads[name] = bytearray()
                return self.answer(202, b"", {"Location": f"/v2/{repository}/blobs/uploads/{name}?state=1"})
            if name not in registry.uploads or query.get("state") != ["1"]:
                return self.answer(404, b"", {})
            data = registry.uploads[name]
            where = {
                "Location": f"/v2/{repository}/blobs/uploads/{name}?state=1",
                "Range": f"0-{max(len(data) - 1, 0)}",
            }
            if self.command == "GET":
                return self.answer(204, b"", where)
            if self.command == "PATCH":
                if fault == "half":
                    data += body[: len(body) // 2]
                    self.close_connection = True
                    return self.connection.close()
                if self.headers["Content-Range"] != f"{len(data)}-{len(data) + len(body) - 1}":
                    return self.answer(416, b"", {})
                data += body
                return self.answer(202, b"", {**where, "Range": f"0-{len(data) - 1}"})
            whole = bytes(registry.uploads.pop(name)) + body
            if digest(whole) != query["digest"][0]:
                return self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"digest invalid"}]}', {})
            registry.blobs[digest(whole)] = whole
            return self.answer(201, b"", {"Docker-Content-Digest": digest(whole)})

        def answer(self, status: int, body: bytes, headers: dict[str, str], sent: int | None = None) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if sent is None else body[:sent])

        def log_message(self, format: str, *args: object) -> None:
            pass

    for method in ("GET", "HEAD", "PUT", "POST", "PATCH"):
        setattr(Handler, f"do_{method}", Handler.handle_any)
    return Handler


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def new_registry(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeRegistry]]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    running: list[FakeRegistry] = []

    def start(**options: object) -> FakeRegistry:
        running.append(FakeRegistry(authority, **options).start())  # type: ignore[arg-type]
        return running[-1]

    yield start
    for registry in running:
        registry.close()


@pytest.fixture
def registry(new_registry: Callable[..., FakeRegistry]) -> FakeRegistry:
    return new_registry()
