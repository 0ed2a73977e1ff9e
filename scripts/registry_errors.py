"""A registry's refusals in words for people: what is wrong, and which variable or command mends it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import requests

from scripts.errors import LabError
from scripts.settings import Credentials
from scripts.transfer import BrokenError, reason_of


class RegistryError(LabError):
    """A registry could not be asked, or refused."""


class MissingError(RegistryError):
    """The registry answers, and does not have it."""


@dataclass(frozen=True)
class Endpoint:
    """A registry and how to be let in.

    `variable` is what named it, for the line that tells how to mend a failure; "" for an upstream. `plain` is for the
    lab's own registry, which listens to 127.0.0.1 only, without TLS.
    """

    host: str
    ca: Path | None = None
    credentials: Credentials | None = None
    variable: str = "IMAGE_MIRROR"
    plain: bool = False

    @property
    def check(self) -> str:
        """What to look at when it is not reached."""
        own = f"that it runs, host and port of {self.variable}, " if self.variable else ""
        return f"check {own}HTTPS_PROXY and NO_PROXY"

    @property
    def login(self) -> str:
        """How a user is given."""
        own = "set IMAGE_MIRROR_USER and IMAGE_MIRROR_PASSWORD, or " if self.variable else ""
        return f"{own}docker login {self.host}"


def require(endpoint: Endpoint, response: requests.Response, what: str, status: int) -> None:
    """Raise what a person needs to know unless the answer has the expected status."""
    if response.status_code == status:
        return
    host, code = endpoint.host, response.status_code
    user = endpoint.credentials.user if endpoint.credentials else ""
    if code == 401 and user:
        raise RegistryError(f"{host} does not know the user {user} or its password (401).", endpoint.login)
    if code == 401:
        raise RegistryError(f"{host} wants a user and a password (401).", endpoint.login)
    if code == 403:
        who = f"the user {user}" if user else "everybody"
        raise RegistryError(f"{host} refuses {what} to {who} (403).", "ask for the right to read it there")
    if code == 404:
        raise missing(endpoint, what)
    raise RegistryError(
        f"{host} answered {code} {response.reason} to {what}.", "look at its logs", f"    {said(response)}"
    )


def missing(endpoint: Endpoint, what: str) -> MissingError:
    """Return the refusal of something that the registry does not have."""
    return MissingError(f"{endpoint.host} does not have {what}.", "fill the mirror: make mirror-fill MIRROR=…")


def explain(endpoint: Endpoint, error: requests.RequestException) -> Exception:
    """Return what a failed request means: something to try again, or a message for people."""
    host = endpoint.host
    text = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        if "WRONG_VERSION_NUMBER" in text or "wrong version number" in text or "record layer" in text.lower():
            return RegistryError(f"{host} does not speak TLS: no registry listens there.", endpoint.check)
        if "Hostname mismatch" in text or "doesn't match" in text or "not valid for" in text:
            return RegistryError(
                f"The certificate of {host} is for another name.", endpoint.check, f"    {reason_of(error)}"
            )
        return RegistryError(
            f"The certificate of {host} can't be trusted.",
            "name the CA that signed it: MIRROR_CA=/path/to/ca.pem",
            f"    {reason_of(error)}",
        )
    if isinstance(error, requests.Timeout) or "timed out" in text.lower():
        return BrokenError("it was silent for too long")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return BrokenError("the connection broke off")
    if isinstance(error, requests.ConnectionError):
        return BrokenError(reason_of(error))
    return RegistryError(f"{host}: {type(error).__name__}: {text}", endpoint.check)


def given_up(endpoint: Endpoint, why: str, attempts: int, answered: bool) -> RegistryError:
    """Return the refusal after the last try."""
    if not answered:
        return RegistryError(
            f"{endpoint.host} can't be reached: {why}.",
            endpoint.check,
        )
    return RegistryError(
        f"{endpoint.host} gave up: {why}, after {attempts} tries.", "run again later: what is done is kept"
    )


def altered(what: str, host: str, wanted: str, got: str) -> RegistryError:
    """Return the refusal of something that is not what its digest says."""
    return RegistryError(
        f"{what}: what {host} serves is not what its digest says; nothing of it was kept.",
        "the mirror's copy is damaged or altered: remove it there and fill it again",
        f"    expected {wanted}\n    got      {got}",
    )


def said(response: requests.Response) -> str:
    """Return the registry's own words, one line."""
    try:
        return "; ".join(f"{e.get('code', '')} {e.get('message', '')}" for e in response.json()["errors"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return " ".join(response.text.split())[:200]
