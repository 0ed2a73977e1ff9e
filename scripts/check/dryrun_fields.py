"""Which field the API server means: its paths (`spec.containers[0].image`) as JSON pointers into the object."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_STEP = re.compile(r"\.?(?P<name>[^.\[\]]+)|\[(?P<key>(?:\"[^\"]*\"|[^\]\"])*)\]")
# Server-side apply says `.spec.x: reason`, strict decoding `unknown field "spec.x"`.
_IN_WORDS = re.compile(r"(?:^|\s)\.(?P<applied>[^\s:]+): |unknown field \"(?P<decoded>[^\"]+)\"")
_SEVERAL = "errors:\n"


def pointer_of(field: str, thing: Any) -> str:
    """Return the JSON pointer of a field as the API server names it; where the object ends, the names are kept."""
    pointer = ""
    for step in _STEP.finditer(field):
        token = step["name"] if step["name"] is not None else _token(step["key"], thing)
        pointer += "/" + token.replace("~", "~0").replace("/", "~1")
        if isinstance(thing, list):
            thing = thing[int(token)] if token.isdigit() and int(token) < len(thing) else None
        else:
            thing = thing.get(token) if isinstance(thing, Mapping) else None
    return pointer


def _token(key: str, holder: Any) -> str:
    """Return an index for what stands in brackets: one, a key of a mapping, or the keys that tell an item of a list."""
    if not isinstance(holder, list):
        return key.strip('"')
    wanted = dict(pair.partition("=")[::2] for pair in key.split(","))
    for index, item in enumerate(holder):
        if isinstance(item, Mapping) and all(str(item.get(k)) == v.strip('"') for k, v in wanted.items()):
            return str(index)
    return key


def field_in(message: str) -> str:
    """Return the field that a message names in its words, or empty."""
    found = _IN_WORDS.search(message)
    return (found["applied"] or found["decoded"] or "") if found else ""


def each_error(message: str) -> Iterator[str]:
    """Yield each of the errors that server-side apply puts into one message, with what they have in common before them."""
    head, several, rest = message.partition(_SEVERAL)
    for line in rest.splitlines() if several else [message]:
        yield head + line.strip() if several else line
