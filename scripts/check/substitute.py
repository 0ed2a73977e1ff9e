"""Variables in manifests, replaced as Flux's postBuild does it: `${name}`, defaults, and bash's text functions.

The grammar and its oddities are those of Flux's envsubst: `$name` without braces stays, `$$` is a dollar, and every
operator with `-`, `=`, `?` or `+` gives its word if the variable is unset or empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate

from scripts.errors import LabError

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"\w+")
_DEFAULTS = (":=", ":-", ":?", ":+", "=")


class SubstitutionError(LabError):
    """Text that Flux's envsubst refuses, which fails the whole Kustomization."""


@dataclass
class Substituted:
    """A text with its variables replaced, and which names had no value and no default."""

    text: str = ""
    unset: set[str] = field(default_factory=set)


def substitute(
    text: str, variables: Mapping[str, str], unknown: Callable[[str], str | None] | None = None
) -> Substituted:
    """Replace the variables in a text.

    Args:
        text: the text.
        variables: the values that are known.
        unknown: gives the stand-in for a name whose value can't be known here, or None for one that is unset.
    """
    if "$" not in text:
        return Substituted(text)
    reader = _Reader(text, variables, unknown or (lambda _: None))
    return Substituted(reader.read_all(), reader.unset)


class _Reader:
    def __init__(self, text: str, variables: Mapping[str, str], unknown: Callable[[str], str | None]) -> None:
        self.text = text
        self.at = 0
        self.variables = variables
        self.unknown = unknown
        self.unset: set[str] = set()

    def read_all(self) -> str:
        parts = []
        while True:
            dollar = self.text.find("$", self.at)
            if dollar < 0:
                parts.append(self.text[self.at :])
                return "".join(parts)
            parts.append(self.text[self.at : dollar])
            self.at = dollar + 1
            if self.text.startswith("$", self.at):
                parts.append("$")
                self.at += 1
            elif self.text.startswith("{", self.at):
                self.at += 1
                parts.append(self.read_expression())
            else:
                parts.append("$")

    def read_expression(self) -> str:
        """Read what stands between `${` and `}`, the latter included, and return its value."""
        if self.text.startswith("#", self.at):
            self.at += 1
            name = self.read_name()
            self.expect("}")
            return str(len(self.value_of(name).encode()))
        name = self.read_name()
        rest = self.text[self.at : self.at + 2]
        if rest[:1] == "}":
            self.at += 1
            return self.value_of(name)
        default = next((d for d in _DEFAULTS if rest.startswith(d)), None)
        if default:
            self.at += len(default)
            word = self.read_words("}")
            return self.value_of(name, has_default=True) or word
        if rest[:1] == ":":
            return self.read_slice(name)
        if rest[:1] in ",^":
            operator = rest if rest[1:] == rest[:1] else rest[:1]
            self.at += len(operator)
            self.expect("}")
            return _in_case(self.value_of(name), operator)
        if rest[:1] == "/":
            return self.read_replacement(name, rest)
        if rest[:1] in "#%":
            operator = rest if rest[1:] == rest[:1] else rest[:1]
            self.at += len(operator)
            pattern = self.read_words("}")
            return _trimmed(self.value_of(name), operator, pattern)
        raise self.refused("missing closing brace")

    def read_slice(self, name: str) -> str:
        self.at += 1
        start = self.read_words(":}", keep=True)
        value = self.value_of(name)
        if self.text.startswith(":", self.at):
            self.at += 1
            return _slice(value, start, self.read_words("}"))
        self.expect("}")
        return _slice(value, start, None)

    def read_replacement(self, name: str, rest: str) -> str:
        operator = rest if rest[1:] in ("/", "#", "%") else "/"
        self.at += len(operator)
        pattern = self.read_words("/", keep=True)
        self.expect("/")
        replacement = self.read_words("}")
        value = self.value_of(name)
        if operator == "//":
            return value.replace(pattern, replacement) if pattern else value
        if operator == "/#":
            return replacement + value[len(pattern) :] if value.startswith(pattern) else value
        if operator == "/%":
            return value.removesuffix(pattern) + replacement if value.endswith(pattern) else value
        return value.replace(pattern, replacement, 1)

    def read_words(self, ends: str, keep: bool = False) -> str:
        """Read text with expressions in it up to one of some characters, which is taken too unless kept."""
        parts: list[str] = []
        while True:
            if self.at >= len(self.text):
                raise self.refused("missing closing brace")
            character = self.text[self.at]
            if character in ends:
                self.at += 0 if keep else 1
                return "".join(parts)
            self.at += 1
            if character == "$" and self.text.startswith("{", self.at):
                self.at += 1
                parts.append(self.read_expression())
            else:
                parts.append(character)

    def read_name(self) -> str:
        match = _NAME.match(self.text, self.at)
        if not match:
            raise self.refused("unable to parse variable name")
        self.at = match.end()
        return match.group()

    def value_of(self, name: str, has_default: bool = False) -> str:
        if name in self.variables:
            return self.variables[name]
        stand_in = self.unknown(name)
        if stand_in is not None:
            return "" if has_default else stand_in
        if not has_default:
            self.unset.add(name)
        return ""

    def expect(self, character: str) -> None:
        if not self.text.startswith(character, self.at):
            raise self.refused("bad substitution")
        self.at += 1

    def refused(self, why: str) -> SubstitutionError:
        start = max(self.text.rfind("\n", 0, self.at), self.text.rfind("${", 0, self.at))
        shown = self.text[max(start, 0) :].strip().splitlines()[0][:60] if self.text[max(start, 0) :].strip() else ""
        return SubstitutionError(
            f"postBuild can't read `{shown}`: {why}",
            "write $${…} for text that is not a variable of Flux's, or annotate the object with "
            "kustomize.toolkit.fluxcd.io/substitute: disabled",
        )


def _in_case(value: str, operator: str) -> str:
    if operator == "^^":
        return value.upper()
    if operator == ",,":
        return value.lower()
    return (value[:1].upper() if operator == "^" else value[:1].lower()) + value[1:]


def _slice(value: str, start: str, length: str | None) -> str:
    try:
        first = int(start)
    except ValueError:
        return value
    if first < 0:
        first = max(0, len(value) + first)
    if length is None:
        return value[first:]
    try:
        count = int(length)
    except ValueError:
        return value
    return value[first : first + count] if first + count < len(value) else value[first:]


def _trimmed(value: str, operator: str, pattern: str) -> str:
    matches = re.compile(translate(pattern)).match
    lengths = range(1, len(value) + 1)
    # Doubled operators take away as much as matches, single ones as little.
    for length in reversed(lengths) if len(operator) == 2 else lengths:
        if operator[0] == "#" and matches(value[:length]):
            return value[length:]
        if operator[0] == "%" and matches(value[len(value) - length :]):
            return value[: len(value) - length]
    return value
