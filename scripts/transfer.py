"""One file over HTTP, in as many requests as it takes: resumed where it broke off, bounded in tries and time."""

from __future__ import annotations

import errno
import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from scripts import console
from scripts.errors import LabError
from scripts.hostfacts import mask_credentials

# What is lost of a body that breaks off is less than one chunk.
CHUNK_BYTES = 64 * 1024
NOTE_EVERY_S = 0.2
LONGEST_RETRY_AFTER_S = 30.0

RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
_MEND_NETWORK = (
    "check the network, HTTPS_PROXY and NO_PROXY, then run again; IMAGE_SOURCE=source needs package mirrors only"
)


class DownloadError(LabError):
    """A file could not be had as published."""


class NotFoundError(DownloadError):
    """The server answers, and does not have it."""


@dataclass(frozen=True)
class Limits:
    """Seconds until a connection or a silent body is given up, and how often a download is tried."""

    connect_s: float = 10.0
    read_s: float = 30.0
    tries: int = 5
    backoff_s: float = 0.5

    def pause_s(self, broken: BrokenError, failures: int) -> float:
        """Return the seconds until the next try after so many failures: what the server asks for, or longer each time."""
        return broken.retry_after_s or self.backoff_s * 2 ** (failures - 1)


class BrokenError(Exception):
    """An attempt that failed in a way that another one may mend: control flow of a client, people never see it."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


def broken_by_status(response: requests.Response, who: str) -> BrokenError:
    """Return why an answer with one of RETRIED_STATUS is tried again, and when the server wants that."""
    seconds = response.headers.get("Retry-After", "")
    wait_s = min(float(seconds), LONGEST_RETRY_AFTER_S) if seconds.isdigit() else 0.0
    return BrokenError(f"{who} answered {response.status_code} {response.reason}", wait_s)


class Transfer:
    """One file on its way to `path`, in as many requests as it takes."""

    def __init__(
        self, label: str, url: str, path: Path, limits: Limits, *, tls_only: bool = False, max_bytes: int | None = None,
        headers: Mapping[str, str] | None = None, verify: str | bool = True, direct: bool = False,
    ) -> None:  # fmt: skip
        """Say what to bring.

        Args:
            label: what people call it.
            url: where it is.
            path: where it goes; what is there already is gone on with.
            limits: tries and times.
            tls_only: refuse a redirect to an address without TLS.
            max_bytes: give up beyond this size.
            headers: more request headers (an Authorization is not sent on to another host).
            verify: a file with the CA to trust instead of the usual ones.
            direct: no proxy.
        """
        self._label = label
        self._url = url
        self._path = path
        self._limits = limits
        self._tls_only = tls_only
        self._max_bytes = max_bytes
        self._headers = dict(headers or {})
        self._verify = verify
        self._direct = direct
        self._etag = ""
        self._total: int | None = None
        self._answered = False
        self._noted_at = 0.0

    def run(self) -> None:
        """Bring the whole file; raises DownloadError saying what stands in the way."""
        limits = self._limits
        with requests.Session() as session:
            session.trust_env = not self._direct
            for attempt in range(1, limits.tries + 1):
                try:
                    self._attempt(session)
                    return
                except BrokenError as broken:
                    # A host that never answered won't for the fifth time either: say so soon.
                    if attempt == limits.tries or (not self._answered and attempt == 2):
                        raise self._given_up(str(broken), attempt) from None
                    pause = limits.pause_s(broken, attempt)
                    console.note(f"{self._label}: {broken}; trying again in {pause:.1f} s")
                    time.sleep(pause)

    def _attempt(self, session: requests.Session) -> None:
        offset = self._path.stat().st_size if self._path.exists() else 0
        headers = {"Accept-Encoding": "identity", "User-Agent": "gitops-lab", **self._headers}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self._etag:
                headers["If-Range"] = self._etag
        try:
            with session.get(
                self._url, headers=headers, stream=True, timeout=(self._limits.connect_s, self._limits.read_s),
                verify=self._verify,
            ) as response:  # fmt: skip
                self._answered = True
                self._receive(response, offset)
        except requests.RequestException as error:
            raise self._explain(error) from None

    def _receive(self, response: requests.Response, offset: int) -> None:
        if self._tls_only:
            require_tls(response.url, self._label)
        if response.status_code == 416:
            # Nothing lies beyond what is here. Whether it is the right file, its checksum says.
            if response.headers.get("Content-Range", "").endswith(f"/{offset}"):
                return
            self._path.unlink(missing_ok=True)
            raise BrokenError("what was already here doesn't fit the file")
        if response.status_code not in (200, 206):
            raise self._refused(response)
        if response.status_code == 200:
            offset = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            self._path.unlink(missing_ok=True)
            raise BrokenError("the server answered with another part of the file than the one asked for")
        etag = response.headers.get("ETag", "")
        self._etag = "" if etag.startswith("W/") else etag
        length = response.headers.get("Content-Length", "")
        self._total = offset + int(length) if length.isdigit() else None
        # Some servers say of a .tar.gz that it is a tar, sent compressed: what is wanted is the file as it lies there.
        response.raw.headers.pop("Content-Encoding", None)
        try:
            with self._path.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    offset += len(chunk)
                    if self._max_bytes and offset > self._max_bytes:
                        raise DownloadError(
                            f"{self._label}: larger than {size_text(self._max_bytes)}; that is no such file."
                        )
                    self._note(offset)
        except requests.RequestException:
            raise
        except OSError as error:
            raise disk_error(error, self._path.parent) from None
        if self._total is not None and offset < self._total:
            raise BrokenError(f"the connection broke off after {size_text(offset)} of {size_text(self._total)}")

    def _note(self, offset: int) -> None:
        now = time.monotonic()
        if now - self._noted_at >= NOTE_EVERY_S:
            self._noted_at = now
            of_total = f" of {size_text(self._total)}" if self._total else ""
            console.note(f"{self._label}: {size_text(offset)}{of_total}")

    def _refused(self, response: requests.Response) -> Exception:
        status = response.status_code
        shown = mask_credentials(response.url)
        if status in RETRIED_STATUS:
            return broken_by_status(response, "the server")
        if status in (404, 410):
            return NotFoundError(
                f"{self._label}: not found ({status}) at {shown}.",
                "check the version and the url of this tool in versions.yaml, and that a mirror, if one is set, holds it",
            )
        if status in (401, 403, 407):
            return DownloadError(
                f"{self._label}: refused ({status} {response.reason}) by {shown}.",
                "check the user and password of the mirror or proxy, or a rule there that blocks this address",
            )
        return DownloadError(
            f"{self._label}: the server answered {status} {response.reason} at {shown}.", _MEND_NETWORK
        )

    def _explain(self, error: requests.RequestException) -> Exception:
        """Return what a failed request means: something to try again, or a message for people."""
        host = urlsplit(self._url).hostname or self._url
        if isinstance(error, requests.exceptions.SSLError):
            return DownloadError(
                f"{self._label}: the certificate of {host} can't be trusted.",
                "if a mirror has a private CA, name it: MIRROR_CA=/path/to/ca.pem; for a proxy: export REQUESTS_CA_BUNDLE=…",
                f"    {error}",
            )
        if isinstance(error, requests.exceptions.ProxyError):
            return BrokenError(f"the proxy for {host} can't be used ({mask_credentials(reason_of(error))})")
        if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
            return BrokenError(f"{host} was silent for too long")
        if isinstance(error, requests.exceptions.ChunkedEncodingError):
            return BrokenError(f"the connection to {host} broke off")
        if isinstance(error, requests.ConnectionError):
            return BrokenError(f"no connection to {host} ({reason_of(error)})")
        return DownloadError(f"{self._label}: {mask_credentials(str(error))}", _MEND_NETWORK)

    def _given_up(self, why: str, attempts: int) -> DownloadError:
        here = self._path.stat().st_size if self._path.exists() else 0
        of_total = f" of {size_text(self._total)}" if self._total else ""
        kept = f" {size_text(here)}{of_total} are here; the next run goes on from there." if here else ""
        return DownloadError(
            f"{self._label}: {why}, after {attempts} tries.{kept}",
            _MEND_NETWORK,
            f"    from {mask_credentials(self._url)}",
        )


def disk_error(error: OSError, folder: Path) -> LabError:
    """Return what a person needs to know of a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LabError(
            f"The disk that holds {folder} is full.", "free some space there and run again; nothing was lost"
        )
    return LabError(f"{folder} can't be written: {error.strerror or error}.", f"check who owns {folder}")


def reason_of(error: requests.RequestException) -> str:
    """Return the innermost reason of a failed connection, without object addresses."""
    text = str(getattr(error.args[0], "reason", error.args[0]) if error.args else error).rpartition(": ")[2]
    while text.endswith(("'", '"')) or (text.endswith(")") and text.count(")") > text.count("(")):
        text = text[:-1]
    return text or type(error).__name__


def size_text(count: int) -> str:
    """Return a size as people write it."""
    return f"{count} bytes" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def require_tls(url: str, label: str) -> None:
    """Refuse an address without TLS: a checksum that anybody on the way can change verifies nothing."""
    parts = urlsplit(url)
    if parts.scheme == "https" or is_loopback(parts.hostname or ""):
        return
    raise DownloadError(
        f"{label} would be read without TLS from {mask_credentials(url)}.",
        "give the mirror an https address, or pin the sums in versions.yaml",
    )


def direct_session() -> requests.Session:
    """Return a session for this machine itself, which no proxy is ever asked for."""
    session = requests.Session()
    session.trust_env = False
    return session


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
