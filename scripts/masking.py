"""Secrets taken out of what people pass on: by their values, by the names they go under, by their shape."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from scripts.causes import mask_urls
from scripts.kube import Object
from scripts.settings import FLUX_NAMESPACE

MASK = "***"

_SENSITIVE = r"(?i:token|passw(?:or)?d|passphrase|secret|credential|api[-_]?key)|[a-z0-9]Key|[_-](?:key|Key|KEY)"
_SENSITIVE_NAME = re.compile(_SENSITIVE)
_ASSIGNED = re.compile(
    rf"(?<![\w.-])(?P<name>[\w.-]{{0,60}}?(?:{_SENSITIVE})[\w.-]{{0,60}})(?P<sign>[\"']?[ \t]*[:=][ \t]*)"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;}&\"']+)"
)
_AUTHORIZATION = re.compile(
    r"(?i)(authorization[\"']?[ \t]*[:=][ \t]*[\[\"']{0,2}(?:(?:basic|bearer|token) +)?)[^\s\"',\]}]+"
)
_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]+|\b(?:gh[pousr]|github_pat)_\w{16,}|\bglpat-[\w-]{16,}",
    re.DOTALL,
)
# Fields of Kubernetes' API that name a thing and hold no secret: without them taints and volumes could not be read.
_STRUCTURE = {
    "key", "keys", "topologykey", "matchlabelkeys", "mismatchlabelkeys", "secretname", "secretref", "secretkeyref", "secret",
    "secrets", "imagepullsecrets", "automountserviceaccounttoken", "serviceaccounttoken", "tokenrequests", "nodepublishsecretref",
    "certsecretref",
}  # fmt: skip
_PLAIN_VALUES = {"true", "false", "null", "{}", "[]", "{", "[", "|", "|-", ">", ">-", '""', "''", MASK}
_SHOWN_VARIABLES = {"path", "http_proxy", "https_proxy", "all_proxy", "no_proxy"}
# What a Secret holds beside its secret: masking it would take the word "git" out of every log.
_PUBLIC_KEYS = {"username", "known_hosts", "ca.crt", "identity.pub", "type", "url"}
_MIN_SECRET = {FLUX_NAMESPACE: 4}
_MIN_SECRET_ELSEWHERE = 8


class Masker:
    """Takes secrets out of texts and objects: by their values, by the names they go under, by their shape."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms = {form for value in values for form in _forms(value)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._values = re.compile("|".join(re.escape(f) for f in longest_first)) if forms else None

    def text(self, text: str) -> str:
        """Return a text without secrets."""
        if self._values:
            text = self._values.sub(MASK, text)
        text = _SHAPES.sub(MASK, text)
        text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
        return mask_urls(_ASSIGNED.sub(_mask_assigned, text))

    def plain(self, thing: Any, name: str = "") -> Any:
        """Return plain data without secrets and without what only machines read (managedFields)."""
        if isinstance(thing, dict):
            if thing.get("kind") == "Secret" and isinstance(thing.get("metadata"), dict):
                return _names_of_secret(thing)
            variable = str(thing.get("name", "")) if "value" in thing else ""
            return {
                key: MASK if key == "value" and _is_sensitive(variable) else self.plain(value, str(key))
                for key, value in thing.items()
                if key not in ("managedFields", "kubectl.kubernetes.io/last-applied-configuration")
            }
        if isinstance(thing, list):
            return [_mask_variable(v) if name == "Env" and isinstance(v, str) else self.plain(v) for v in thing]
        if isinstance(thing, str) and thing and _is_sensitive(name):
            return MASK
        return self.text(thing) if isinstance(thing, str) else thing


def _is_sensitive(name: str) -> bool:
    return bool(_SENSITIVE_NAME.search(name)) and name.lower() not in _STRUCTURE


def _mask_assigned(match: re.Match[str]) -> str:
    if match["value"] in _PLAIN_VALUES or not _is_sensitive(match["name"]):
        return match[0]
    mark = match["value"][0] if match["value"][0] in "\"'" else ""
    return f"{match['name']}{match['sign']}{mark}{MASK}{mark}"


def _mask_variable(text: str) -> str:
    """Mask the value of a container's NAME=value, whatever its name, but for those that explain a network."""
    name, _, value = text.partition("=")
    return f"{name}={mask_urls(value) if name.lower() in _SHOWN_VARIABLES else MASK}"


def _names_of_secret(secret: Object) -> Object:
    meta = secret["metadata"]
    kept = {"namespace": meta.get("namespace", ""), "name": meta.get("name", "")}
    keys = sorted({**(secret.get("data") or {}), **(secret.get("stringData") or {})})
    return {"kind": "Secret", "metadata": kept, "type": secret.get("type", ""), "keys": keys}


def _forms(value: str) -> Iterable[str]:
    """Yield the ways in which a value may stand in a text: plain, by line, in JSON, in a URL, in base64 at any offset."""
    value = value.strip()
    lines = [line.strip() for line in value.splitlines()]
    yield from (line for line in lines if len(line) >= 16 and not line.startswith("-----"))
    yield from (value, json.dumps(value)[1:-1], quote(value, safe=""))
    data = value.encode()
    yield base64.b64encode(data).decode().rstrip("=")
    for shift in (1, 2):
        # The characters of base64 that are the value's own when something stands before it, as in user:password.
        shifted = base64.b64encode(b"\0" * shift + data).decode().rstrip("=")
        own = shifted[shift + 1 : len(shifted) - (1 if (shift + len(data)) % 3 else 0)]
        if len(own) >= 8:
            yield own


def secret_values(secrets: Iterable[Object], spared: Iterable[str] = ()) -> list[str]:
    """Return the values of Secrets that must not be seen; names that every text is full of are spared."""
    plain = set(spared)
    found = []
    for secret in secrets:
        least = _MIN_SECRET.get(secret["metadata"].get("namespace", ""), _MIN_SECRET_ELSEWHERE)
        for key, encoded in (secret.get("data") or {}).items():
            try:
                value = base64.b64decode(encoded).decode().strip()
            except (binascii.Error, UnicodeDecodeError):
                value = encoded  # binary: in a text it can only stand encoded
            if len(value) >= least and key not in _PUBLIC_KEYS and value not in plain:
                found.append(value)
    return found
