"""The OCI distribution API of one registry: manifests, blobs, tags, resumed uploads; every refusal in words.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md. Over TLS, but to the lab's own registry on this
machine; a blob or manifest that is not what its digest says is never handed on.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import requests

from scripts import console
from scripts.oci import MANIFEST_TYPES, Manifest, file_digest
from scripts.registry_errors import (
    Endpoint,
    RegistryError,
    altered,
    explain,
    given_up,
    missing,
    require,
    said,
)
from scripts.transfer import (
    RETRIED_STATUS,
    BrokenError,
    Limits,
    Transfer,
    broken_by_status,
    is_loopback,
    size_text,
)

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
UPLOAD_CHUNK_BYTES = 16 * 1024 * 1024
# Docker Hub's API lives under another name than its images.
_API_HOSTS = {"docker.io": "registry-1.docker.io"}
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class RegistryClient:
    """Speaks to one registry; keeps its connection and its tokens."""

    def __init__(self, endpoint: Endpoint, limits: Limits | None = None) -> None:
        self.endpoint = endpoint
        self._limits = limits or Limits()
        scheme = "http" if endpoint.plain else "https"
        self._base = f"{scheme}://{_API_HOSTS.get(endpoint.host, endpoint.host)}/v2/"
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "gitops-lab"
        # Without this, requests would put a password of ~/.netrc over the registry's token.
        self._session.auth = lambda request: request
        # A proxy is never between this machine and itself.
        self._session.trust_env = not is_loopback(urlsplit(self._base).hostname or "")
        self._authorization: dict[str, str] = {}
        self._answered = False

    def ping(self) -> None:
        """Raise RegistryError unless a registry answers that lets this user in."""
        response = self._send("GET", self._base, "")
        if response.status_code == 404:
            raise RegistryError(
                f"{self.endpoint.host} answers, but is no image registry (no /v2/ there).",
                self.endpoint.check,
            )
        require(self.endpoint, response, "the registry", 200)

    def digest_of(self, repository: str, reference: str) -> str:
        """Return the digest of a tag or digest, or "" where the registry does not have it."""
        what = _named(repository, reference)
        response = self._send("HEAD", self._url(repository, "manifests", reference), repository, _accept())
        if response.status_code == 404:
            return ""
        require(self.endpoint, response, what, 200)
        digest = response.headers.get("Docker-Content-Digest", "")
        return digest or self.manifest(repository, reference).digest

    def manifest(self, repository: str, reference: str) -> Manifest:
        """Return a manifest, checked against the digest it is asked by."""
        what = _named(repository, reference)
        response = self._send("GET", self._url(repository, "manifests", reference), repository, _accept())
        require(self.endpoint, response, what, 200)
        if len(response.content) > MAX_MANIFEST_BYTES:
            raise RegistryError(f"{what}: larger than {size_text(MAX_MANIFEST_BYTES)}; that is no manifest.")
        media_type = response.headers.get("Content-Type", "").partition(";")[0]
        if media_type not in MANIFEST_TYPES:
            raise RegistryError(
                f"{what}: {self.endpoint.host} answered with {media_type or 'nothing'}, not with an image manifest.",
                self.endpoint.check,
            )
        found = Manifest(response.content, media_type)
        if reference.startswith("sha256:") and found.digest != reference:
            raise altered(what, self.endpoint.host, reference, found.digest)
        return found

    def put_manifest(self, repository: str, reference: str, manifest: Manifest) -> None:
        """Store a manifest under a tag or its digest; what it names has to be there already."""
        headers = {"Content-Type": manifest.media_type}
        url = self._url(repository, "manifests", reference)
        response = self._send("PUT", url, repository, headers, data=manifest.data, push=True)
        if response.status_code in (400, 404) and manifest.is_index:
            raise RegistryError(
                f"{_named(repository, reference)}: {self.endpoint.host} wants every platform of an index.",
                "fill it with PLATFORMS=all",
                f"    {said(response)}",
            )
        require(self.endpoint, response, _named(repository, reference), 201)

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether the registry has a blob in this repository."""
        response = self._send("HEAD", self._url(repository, "blobs", digest), repository)
        if response.status_code == 404:
            return False
        require(self.endpoint, response, _named(repository, digest), 200)
        return True

    def pull_blob(self, repository: str, digest: str, path: Path, label: str) -> None:
        """Bring a blob to a file, going on with what is there of it already; raises unless its digest is right."""
        # The HEAD request brings the token, where one is needed, and tells a missing blob apart.
        if not self.has_blob(repository, digest):
            raise missing(self.endpoint, _named(repository, digest))
        transfer = Transfer(
            label, self._url(repository, "blobs", digest), path, self._limits,
            headers=self._authorized(self._scope(repository)), verify=self._verify, direct=not self._session.trust_env,
        )  # fmt: skip
        if not path.exists() or file_digest(path) != digest:
            transfer.run()
        got = file_digest(path)
        if got != digest:
            path.unlink()
            raise altered(label, self.endpoint.host, digest, got)

    def check_blob(self, repository: str, digest: str, note: Callable[[int], None]) -> int:
        """Read a whole blob, raise unless it is what its digest says, and return its size; nothing is kept."""
        total = hashlib.sha256()
        size = 0
        response = self._send("GET", self._url(repository, "blobs", digest), repository, stream=True)
        with response:
            require(self.endpoint, response, _named(repository, digest), 200)
            response.raw.headers.pop("Content-Encoding", None)  # the digest is of what lies there
            try:
                for chunk in response.iter_content(1024 * 1024):
                    total.update(chunk)
                    size += len(chunk)
                    note(len(chunk))
            except requests.RequestException as error:
                raise given_up(self.endpoint, str(explain(self.endpoint, error)), 1, self._answered) from None
        got = f"sha256:{total.hexdigest()}"
        if got != digest:
            raise altered(_named(repository, digest), self.endpoint.host, digest, got)
        return size

    def push_blob(self, repository: str, digest: str, path: Path, label: str) -> bool:
        """Store a file as a blob unless it is there, and return whether it was sent.

        An upload that breaks off goes on at the byte that the registry says it has.
        """
        if self.has_blob(repository, digest):
            return False
        size = path.stat().st_size
        limits = self._limits
        location, offset = "", 0
        failures = 0
        with path.open("rb") as file:
            while True:
                try:
                    if not location:
                        location, offset = self._begin_upload(repository, label), 0
                    if offset < size:
                        file.seek(offset)
                        location, offset = self._send_chunk(repository, location, offset, file.read(UPLOAD_CHUNK_BYTES))
                        console.note(f"{label}: {size_text(offset)} of {size_text(size)} sent")
                        failures = 0
                        continue
                    self._finish_upload(repository, location, digest, label)
                    return True
                except BrokenError as broken:
                    failures += 1
                    if failures == limits.tries:
                        raise given_up(self.endpoint, f"{label}: {broken}", failures, self._answered) from None
                    time.sleep(limits.pause_s(broken, failures))
                    location, offset = self._upload_state(repository, location)

    def tags(self, repository: str) -> list[str]:
        """Return the tags of a repository, as many as the registry lists; none where it lists nothing."""
        found: list[str] = []
        url = self._url(repository, "tags", "list") + "?n=1000"
        for _ in range(20):
            response = self._send("GET", url, repository)
            if response.status_code == 404:
                return found
            require(self.endpoint, response, f"the tags of {repository}", 200)
            found += response.json().get("tags") or []
            if "next" not in response.links:
                return found
            url = urljoin(url, response.links["next"]["url"])
        return found

    def _url(self, repository: str, kind: str, reference: str) -> str:
        return f"{self._base}{repository}/{kind}/{reference}"

    @property
    def _verify(self) -> str | bool:
        return str(self.endpoint.ca) if self.endpoint.ca else True

    # ------------------------------------------------------------ uploads

    def _begin_upload(self, repository: str, label: str) -> str:
        url = f"{self._base}{repository}/blobs/uploads/"
        response = self._once("POST", url, repository, {"Content-Length": "0"}, push=True)
        require(self.endpoint, response, label, 202)
        return self._location(url, response)

    def _location(self, asked: str, response: requests.Response) -> str:
        if "Location" not in response.headers:
            raise RegistryError(f"{self.endpoint.host} does not say where an upload goes on.", self.endpoint.check)
        return urljoin(asked, response.headers["Location"])

    def _send_chunk(self, repository: str, location: str, offset: int, chunk: bytes) -> tuple[str, int]:
        end = offset + len(chunk) - 1
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{offset}-{end}"}
        response = self._once("PATCH", location, repository, headers, data=chunk, push=True)
        if response.status_code in (404, 416):
            raise BrokenError("the registry lost the upload")
        require(self.endpoint, response, "an upload", 202)
        return self._location(location, response), end + 1

    def _finish_upload(self, repository: str, location: str, digest: str, label: str) -> None:
        parts = urlsplit(location)
        query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), ("digest", digest)])
        url = urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
        response = self._once("PUT", url, repository, {"Content-Length": "0"}, push=True)
        if response.status_code in (404, 416):
            raise BrokenError("the registry lost the upload")
        require(self.endpoint, response, label, 201)

    def _upload_state(self, repository: str, location: str) -> tuple[str, int]:
        """Return where an upload goes on: the registry is asked; one that it lost begins anew."""
        if not location:
            return "", 0
        try:
            response = self._once("GET", location, repository, push=True)
        except BrokenError:
            return "", 0
        match = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("Range", ""))
        if response.status_code != 204 or not match:
            return "", 0
        if match[1] == "0":
            return "", 0  # an upload without a byte is said so too: to begin anew costs nothing then
        return urljoin(location, response.headers.get("Location", location)), int(match[1]) + 1

    # ------------------------------------------------------------ requests

    def _send(
        self, method: str, url: str, repository: str, headers: Mapping[str, str] | None = None, *, data: bytes = b"",
        push: bool = False, stream: bool = False,
    ) -> requests.Response:  # fmt: skip
        """Send a request until it is answered; raises RegistryError in words for people."""
        limits = self._limits
        for attempt in range(1, limits.tries + 1):
            try:
                return self._once(method, url, repository, headers, data=data, push=push, stream=stream)
            except BrokenError as broken:
                # A host that never answered won't for the fifth time either: say so soon.
                if attempt == limits.tries or (not self._answered and attempt == 2):
                    raise given_up(self.endpoint, str(broken), attempt, self._answered) from None
                pause = limits.pause_s(broken, attempt)
                console.note(f"{self.endpoint.host}: {broken}; trying again in {pause:.1f} s")
                time.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _once(
        self, method: str, url: str, repository: str, headers: Mapping[str, str] | None = None, *, data: bytes = b"",
        push: bool = False, stream: bool = False,
    ) -> requests.Response:  # fmt: skip
        scope = self._scope(repository, push)
        response = self._request(method, url, {**(headers or {}), **self._authorized(scope)}, data, stream)
        if response.status_code == 401 and self._authorize(scope, response.headers.get("WWW-Authenticate", "")):
            response = self._request(method, url, {**(headers or {}), **self._authorized(scope)}, data, stream)
        if response.status_code in RETRIED_STATUS:
            raise broken_by_status(response, "it")
        return response

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes, stream: bool
    ) -> requests.Response:
        timeout = (self._limits.connect_s, self._limits.read_s)
        try:
            response = self._session.request(
                method, url, headers=dict(headers), data=data, timeout=timeout, verify=self._verify, stream=stream
            )
        except requests.RequestException as error:
            raise explain(self.endpoint, error) from None
        self._answered = True
        return response

    def _scope(self, repository: str, push: bool = False) -> str:
        return f"repository:{repository}:{'pull,push' if push else 'pull'}" if repository else ""

    def _authorized(self, scope: str) -> dict[str, str]:
        return {"Authorization": self._authorization[scope]} if scope in self._authorization else {}

    def _authorize(self, scope: str, challenge: str) -> bool:
        """Answer a challenge and return whether a second try is worth it."""
        kind, _, rest = challenge.partition(" ")
        fields = dict(_CHALLENGE.findall(rest))
        credentials = self.endpoint.credentials
        if kind.lower() == "basic" and credentials:
            self._authorization[scope] = credentials.basic
        elif kind.lower() == "bearer" and fields.get("realm", "").startswith("https://"):
            self._authorization[scope] = f"Bearer {self._token(fields, scope)}"
        else:
            return False
        return True

    def _token(self, fields: Mapping[str, str], scope: str) -> str:
        query = {k: v for k, v in (("service", fields.get("service", "")), ("scope", scope)) if v}
        url = f"{fields['realm']}?{urlencode(query)}"
        credentials = self.endpoint.credentials
        # The token's server is the registry's word: it may get the password only over TLS (see above).
        response = self._request("GET", url, {"Authorization": credentials.basic} if credentials else {}, b"", False)
        require(self.endpoint, response, "a token", 200)
        answer = response.json()
        return str(answer.get("token") or answer.get("access_token") or "")


def _accept() -> dict[str, str]:
    return {"Accept": ", ".join(MANIFEST_TYPES)}


def _named(repository: str, reference: str) -> str:
    return f"{repository}@{reference}" if reference.startswith("sha256:") else f"{repository}:{reference}"
