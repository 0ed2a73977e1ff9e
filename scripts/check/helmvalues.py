"""The values that Flux gives to a chart: of references, then of the HelmRelease itself, then of those with a path.

https://fluxcd.io/flux/components/helm/helmreleases/#values. A reference with `targetPath` is read as `helm --set` reads its
argument. It goes before what the release itself has where Flux writes through to that: merged values share what only one
of them has, here as there (ChartValuesFromReferences in github.com/fluxcd/pkg/chartutil).
"""

from __future__ import annotations

import base64
import binascii
import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.check import yamlfile

DEFAULT_KEY = "values.yaml"
_MAX_INDEX = 65536
_ENCRYPTED = ("ENC[AES256_GCM,", "AGE ENCRYPTED FILE")

Values = dict[str, Any]
# Returns the ConfigMap or Secret of a kind and name in the release's namespace, or None.
Lookup = Callable[[str, str], Mapping[str, Any] | None]


class UnknownValuesError(Exception):
    """Values that can't be known here; its text says why."""


@dataclass
class WrongValuesError(Exception):
    """Values that Flux would refuse as well: what is wrong, where in the HelmRelease, and how to mend it."""

    message: str
    pointer: str
    mend: str
    rule: str = field(default="helm-values")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Return values with others over them: mappings are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def read_values(text: str) -> Values:
    """Return the values in a file's text; raises ValueError for what holds none."""
    found = yamlfile.load_one(text)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError("is not a mapping of values")
    return found


def composed(spec: Mapping[str, Any], lookup: Lookup) -> Values:
    """Return the values of a HelmRelease, in the order in which Flux merges them.

    Raises:
        UnknownValuesError: for what is not in the tree, or encrypted.
        WrongValuesError: for what Flux would refuse.
    """
    own = spec.get("values")
    # A path changes it.
    written: Values = copy.deepcopy(dict(own)) if isinstance(own, Mapping) else {}
    values: Values = {}
    references = spec.get("valuesFrom")
    for index, reference in enumerate(references if isinstance(references, list) else []):
        if not isinstance(reference, Mapping):
            continue
        pointer = f"/spec/valuesFrom/{index}"
        text = _text_of(reference, pointer, lookup)
        if text is None:
            continue
        path = str(reference.get("targetPath") or "")
        if path:
            values = merged(values, written)
            try:
                set_path(values, path, text, literal=bool(reference.get("literal")))
            except ValueError as error:
                mend = (
                    "mend targetPath, or escape the value as `helm --set` wants it; `literal: true` takes it as it is"
                )
                raise WrongValuesError(f"its value for {path} {error}", pointer, mend) from None
            continue
        try:
            values = merged(values, read_values(text))
        except ValueError as error:
            shown = f"{reference.get('kind')} {reference.get('name')}"
            key = reference.get("valuesKey") or DEFAULT_KEY
            raise WrongValuesError(f"{key} of {shown} {error}", pointer, "mend the values there") from None
    return merged(values, written)


def _text_of(reference: Mapping[str, Any], pointer: str, lookup: Lookup) -> str | None:
    """Return the text that a reference names; None where Flux goes on without it."""
    kind, name = str(reference.get("kind", "")), str(reference.get("name", ""))
    key = str(reference.get("valuesKey") or DEFAULT_KEY)
    optional = bool(reference.get("optional"))
    if kind not in ("ConfigMap", "Secret"):
        return None  # its schema says so
    found = lookup(kind, name)
    if found is None:
        if optional:
            return None
        raise UnknownValuesError(f"its values are in {kind} {name}, which is not in the tree")
    text = _value_in(found, kind, key)
    if text is None:
        if optional:
            return None
        raise WrongValuesError(
            f"{kind} {name} has no key {key}", pointer, "mend valuesKey, or add the key", "helm-values-missing"
        )
    if any(mark in text for mark in _ENCRYPTED):
        raise UnknownValuesError(f"its values are in {kind} {name}, which is encrypted")
    return text


def _value_in(data: Mapping[str, Any], kind: str, key: str) -> str | None:
    plain = data.get("stringData") if kind == "Secret" else None
    if isinstance(plain, Mapping) and key in plain:
        return _as_text(plain[key])
    values = data.get("data")
    if not isinstance(values, Mapping) or key not in values:
        return None
    text = _as_text(values[key])
    if kind == "ConfigMap" or any(text.startswith(mark) for mark in _ENCRYPTED):
        return text
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise UnknownValuesError("its values are in a Secret that holds no text") from None


def _as_text(value: Any) -> str:
    return "" if value is None else str(value)


def set_path(values: Values, path: str, value: str, literal: bool = False) -> None:
    """Put a value where a path leads, as `helm --set path=value` does; raises ValueError for what Helm refuses."""
    quoted = any(value.startswith(q) and value.endswith(q) for q in ("'", '"'))
    if literal:
        value = re.sub(r"[\\,\[\]{}]", r"\\\g<0>", value)
    elif quoted:
        value = value.strip("'\"")
    _Setter(f"{path}={value}", literal or quoted).apply(values)


class _Setter:
    """Reads `a.b[0]=value,c={x,y}`: Helm's own language for values on the command line."""

    def __init__(self, text: str, as_strings: bool) -> None:
        self._text = text
        self._at = 0
        self._as_strings = as_strings

    def apply(self, values: Values) -> None:
        while self._at < len(self._text):
            self._key(values)

    def _until(self, stop: str) -> tuple[str, str]:
        """Return the text before the next of some characters, and that character; a backslash takes the next as it is."""
        found: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character in stop:
                return "".join(found), character
            if character == "\\" and self._at < len(self._text):
                character = self._text[self._at]
                self._at += 1
            found.append(character)
        return "".join(found), ""

    def _key(self, values: Values) -> None:
        name, end = self._until("=[,.")
        if end == "=":
            _put(values, name, self._value())
        elif end == ".":
            inner = values.get(name)
            if name in values and not isinstance(inner, dict):
                raise ValueError(f"can't be put below {name}, which is no mapping")
            inner = {} if inner is None else inner
            self._key(inner)
            if inner:
                _put(values, name, inner)
        elif end == "[":
            present = values.get(name)
            if name in values and not isinstance(present, list):
                raise ValueError(f"can't be put into {name}, which is no list")
            _put(values, name, self._item(present or []))
        else:
            raise ValueError(f"has no value for the key {name}")

    def _item(self, items: list[Any]) -> list[Any]:
        text, _ = self._until("]")
        if not text.isdigit() or int(text) > _MAX_INDEX:
            raise ValueError(f"has the index [{text}], which is none")
        index = int(text)
        rest, end = self._until("[.=")
        if rest:
            raise ValueError(f"has {rest} after an index")
        present = items[index] if index < len(items) else None
        value: Any
        if end == "=":
            value = self._value()
        elif end == "[":
            value = self._item(present if isinstance(present, list) else [])
        elif end == ".":
            value = present if isinstance(present, dict) else {}
            self._key(value)
        else:
            raise ValueError("has no value for an index")
        if index >= len(items):
            items = [*items, *[None] * (index + 1 - len(items))]
        items[index] = value
        return items

    def _value(self) -> Any:
        if self._text[self._at : self._at + 1] != "{":
            return self._typed(self._until(",")[0])
        self._at += 1
        items = []
        while True:
            text, end = self._until(",}")
            if not end:
                raise ValueError("has a list without its closing brace")
            items.append(self._typed(text))
            if end == "}":
                if self._text[self._at : self._at + 1] == ",":
                    self._at += 1
                return items

    def _typed(self, text: str) -> Any:
        if self._as_strings:
            return text
        words = {"true": True, "false": False, "null": None, "0": 0}
        if text.lower() in words:
            return words[text.lower()]
        is_number = text[:1] != "0" and re.fullmatch(r"[-+]?[0-9]+", text) and abs(int(text)) < 2**63
        return int(text) if is_number else text


def _put(values: Values, name: str, value: Any) -> None:
    if name:
        values[name] = value
