"""Strict YAML with positions: what a file holds, where each value stands, and what is wrong with how it is written.

The composer is libyaml's: its nodes carry lines, so nothing is parsed twice to say where something is.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from scripts.check.model import Problem
from scripts.check.sourcefile import may_expand

MAX_DEPTH = 200
# Aliases are copies once a file is read by anything but this module: more of them than this can't be meant.
MAX_COPIES = 100_000
# What a file may hold as it is written: each value takes half a kilobyte of memory.
MAX_VALUES = 300_000
# A value on its own, counted without looking into it.
_LEAF = (1, 1)
# Deeper or more brackets than this, and the depth is looked at. Brackets of lists and mappings: those of the patterns that
# definitions are full of stand after other characters.
_FLOW_START = re.compile(r"[\[{](?<![^\s:,\[{\ufeff][\[{])")
_MAYBE_DEEP = "\n" + 80 * " "
# Lists, or keys that are lists, begun in one line.
_DASHES = re.compile(f"(?:[-?] +){{{MAX_DEPTH}}}")

_SECOND_ANCHOR = ("second occurrence", "found duplicate anchor")
_STR = "tag:yaml.org,2002:str"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_BOOL = "tag:yaml.org,2002:bool"
_NULL = "tag:yaml.org,2002:null"
_SEQ = "tag:yaml.org,2002:seq"
_MAP = "tag:yaml.org,2002:map"
# What may begin a number, a merge key or the like; and the words that are no text.
_NUMERIC = frozenset("-+.0123456789<=")
_WORDS = {
    **{w: _BOOL for word in ("yes", "no", "true", "false", "on", "off") for w in (word, word.title(), word.upper())},
    **dict.fromkeys(("~", "null", "Null", "NULL"), _NULL),
}
_BOOLS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
# A number to Go's YAML, a string to Python's.
_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")


def compose(text: str) -> tuple[list[Node], list[Problem]]:
    """Return the documents of a YAML stream as nodes, up to the first that can't be read, and every problem found."""
    too_deep = _too_deep(text)
    if too_deep:
        return [], [too_deep]
    nodes: list[Node] = []
    problems: list[Problem] = []
    try:
        try:
            nodes.extend(_documents(text, _Loader))
        except yaml.composer.ComposerError as error:
            # libyaml's composer refuses an anchor that is defined anew, which YAML and Kubernetes allow.
            if not str(error.problem or error.context).startswith(_SECOND_ANCHOR):
                raise
            nodes = list(_documents(text, _AnchorsAnewLoader))
    except _TooManyValuesError:
        message = f"holds more than {MAX_VALUES} values, which no manifest does"
        return [], [Problem("file-too-large", message, "split it, or keep it out of the tree")]
    except RecursionError:
        return [], [Problem("yaml-depth", f"nests deeper than {MAX_DEPTH} levels", "flatten it")]
    except yaml.MarkedYAMLError as error:
        nodes = nodes or list(_documents_before(text))
        problems.append(_syntax_problem(error, text))
    except yaml.YAMLError as error:
        problems.append(_character_problem(error, text))
    if may_expand(text) or _MAYBE_DEEP in text or _opened(text) > MAX_DEPTH // 2:
        unusable = next(filter(None, map(_unbounded, nodes)), None)
        if unusable:
            return [], [*problems, unusable]
    for node in nodes:
        problems.extend(_duplicate_keys(node))
    return nodes, problems


class _TooManyValuesError(Exception):
    """A text that holds more than MAX_VALUES values."""


class _Loader(yaml.CSafeLoader):
    """libyaml's composer with a quick answer to what a scalar is: PyYAML's own tries patterns on every one of them."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        # Both are called for every node. No tag here depends on where a node stands: one does nothing, in C, and the other
        # counts the nodes.
        self.descend_resolver = operator.is_  # type: ignore[method-assign, assignment]
        self.ascend_resolver = _values_left().__next__  # type: ignore[method-assign]

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> str:
        """Return the tag of a node without one."""
        if kind is ScalarNode:
            if not implicit[0]:
                return _STR
            first = value[:1]
            if first in _NUMERIC or not first:
                return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]
            return _WORDS.get(value, _STR)
        return _SEQ if kind is SequenceNode else _MAP


def _values_left() -> Iterator[None]:
    """Yield once for each value that a text may hold, then raise."""
    yield from itertools.repeat(None, MAX_VALUES)
    raise _TooManyValuesError


class _AnchorsAnewLoader(yaml.composer.Composer, _Loader):
    """Composes what libyaml parses with the last definition of an anchor before each alias, as YAML has it."""

    def __init__(self, stream: str) -> None:
        _Loader.__init__(self, stream)
        yaml.composer.Composer.__init__(self)

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Return the next node, its anchor's earlier definition forgotten."""
        if not self.check_event(yaml.events.AliasEvent):
            self.anchors.pop(getattr(self.peek_event(), "anchor", None), None)
        return super().compose_node(parent, index)


def _documents(text: str, loader: Any) -> Iterator[Node]:
    for node in yaml.compose_all(text, Loader=loader):
        # An empty document is a null without a place in the text.
        if node is not None and not (isinstance(node, ScalarNode) and node.tag == _NULL):
            yield node


def _documents_before(text: str) -> Iterator[Node]:
    """Yield the documents before the one that can't be read."""
    with contextlib.suppress(yaml.YAMLError):
        yield from _documents(text, _Loader)


def load_one(text: str) -> Any:
    """Return the first document of a text that a tool printed; raises ValueError for one that can't be read."""
    try:
        node = next(_documents(text, _Loader), None)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"is not YAML: {error.problem or error.context}") from None
    except _TooManyValuesError:
        raise ValueError(f"holds more than {MAX_VALUES} values") from None
    # A variable's value may bring aliases of its own.
    unusable = _unbounded(node) if node is not None and may_expand(text) else None
    if unusable:
        raise ValueError(unusable.message)
    return to_plain(node) if node is not None else None


def to_plain(node: Node) -> Any:
    """Return a node as plain data, read as Kubernetes reads it: dates and sexagesimals are strings."""
    if isinstance(node, ScalarNode):
        return _scalar(node)
    if isinstance(node, SequenceNode):
        return [to_plain(item) for item in node.value]
    plain: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                if isinstance(source, MappingNode):
                    merged = {**to_plain(source), **merged}
        else:
            plain[key.value if isinstance(key, ScalarNode) else str(to_plain(key))] = to_plain(value)
    return {**merged, **plain} if merged else plain


def _scalar(node: ScalarNode) -> Any:
    tag, value = node.tag, node.value
    if tag == _STR:
        if value[:1] in "-+0123456789" and not node.style and _EXPONENT.fullmatch(value):
            return float(value)
        return value
    if tag == _BOOL:
        return _BOOLS.get(value.lower(), value)
    if tag == _NULL:
        return None
    if tag in (_INT, _FLOAT) and ":" not in value:
        return _number(tag, value)
    return value


def _number(tag: str, text: str) -> Any:
    digits = text.replace("_", "")
    try:
        if tag == _FLOAT:
            return float(digits.replace(".inf", "inf").replace(".Inf", "inf").replace(".nan", "nan"))
        sign, bare = (-1, digits[1:]) if digits[0] == "-" else (1, digits.lstrip("+"))
        if len(bare) > 1 and bare[0] == "0" and bare[1].isdigit():
            return sign * int(bare, 8)
        return sign * int(bare, 0)
    except ValueError:
        return text


def lines_of(node: Node) -> dict[str, int]:
    """Return the line, from 1, of every value of a document by its JSON pointer; a mapping's is its key's."""
    lines = {"": node.start_mark.line + 1}

    def walk(current: Node, pointer: str) -> None:
        for token, key, value in _children(current):
            place = f"{pointer}/{token}"
            if place in lines:
                continue
            lines[place] = (key or value).start_mark.line + 1
            walk(value, place)

    walk(node, "")
    return lines


def line_at(node: Node, pointer: str) -> int:
    """Return the line, from 1, of the value at a JSON pointer, or of the deepest part of it that is there."""
    line = node.start_mark.line + 1
    for token in pointer.strip("/").split("/") if pointer.strip("/") else []:
        for name, key, value in _children(node):
            if name == token:
                node, line = value, (key or value).start_mark.line + 1
                break
        else:
            return int(line)
    return int(line)


def reaches(node: Node, pointer: str) -> bool:
    """Whether a document has a value at a JSON pointer."""
    for token in pointer.strip("/").split("/"):
        found = next((value for name, _, value in _children(node) if name == token), None)
        if found is None:
            return False
        node = found
    return True


def node_at(node: Node, *path: str) -> Node | None:
    """Return the node at a path of mapping keys, or None."""
    for token in path:
        found = next((value for name, _, value in _children(node) if name == token), None)
        if found is None:
            return None
        node = found
    return node


def _children(node: Node) -> Iterator[tuple[str, Node | None, Node]]:
    """Yield the token of a JSON pointer, the key's node and the value's node of each child."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield str(key.value).replace("~", "~0").replace("/", "~1"), key, value
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), None, value


def _duplicate_keys(root: Node) -> Iterator[Problem]:
    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        # An alias is the same node again.
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            pending.extend(item for item in node.value if not isinstance(item, ScalarNode))
        elif isinstance(node, MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, ScalarNode)]
            if len(set(names)) < len(names):
                yield from _repeated(node)
            pending.extend(value for _, value in node.value if not isinstance(value, ScalarNode))


def _repeated(node: MappingNode) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in first and key.value != "<<":
            yield Problem(
                "yaml-duplicate-key",
                f"the key `{key.value}` stands twice, first in line {first[key.value]}; only one of the two counts",
                "remove one of them",
                line,
            )
        first.setdefault(key.value, line)


def _unbounded(root: Node) -> Problem | None:
    """Return why a document can't be read as plain data: its aliases make it too large, or too deep."""
    known: dict[int, tuple[int, int]] = {}
    written = 0
    pending = [(root, False)]
    while pending:
        node, is_done = pending.pop()
        inner = _values_of(node)
        if is_done:
            extents = [known.get(id(value), _LEAF) for value in inner]
            known[id(node)] = (
                min(1 + sum(values for values, _ in extents), 10**9),
                min(1 + max((depth for _, depth in extents), default=0), 10**9),
            )
        elif id(node) not in known:
            # An anchor that contains itself meets this.
            known[id(node)] = (10**9, 1)
            written += 1 + sum(isinstance(value, ScalarNode) for value in inner)
            pending.append((node, True))
            pending.extend((value, False) for value in inner if not isinstance(value, ScalarNode))
    values, depth = known[id(root)]
    line = root.start_mark.line + 1
    if values > written + MAX_COPIES:
        return Problem(
            "yaml-alias", f"its aliases expand to more than {MAX_COPIES} values", "write the values out", line
        )
    if depth > MAX_DEPTH:
        return Problem("yaml-depth", f"nests deeper than {MAX_DEPTH} levels", "flatten it", line)
    return None


def _values_of(node: Node) -> list[Node]:
    """Return what a node holds: items, or values and those keys that hold something themselves."""
    if isinstance(node, SequenceNode):
        return list(node.value)
    if isinstance(node, MappingNode):
        return [
            *(value for _, value in node.value),
            *(key for key, _ in node.value if not isinstance(key, ScalarNode)),
        ]
    return []


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    what = str(error.problem or error.context or error)
    lines = text.splitlines()
    written = lines[mark.line] if mark and mark.line < len(lines) else ""
    at_tab = mark is not None and written[mark.column : mark.column + 1] == "\t"
    if "\\t" in what or ("cannot start any token" in what and at_tab):
        return Problem("yaml-tab", "a tab where YAML allows only blanks", "indent with blanks", line)
    if "alias" in what or "anchor" in what:
        return Problem("yaml-anchor", what, "define the anchor (&name) before it is used (*name), once", line)
    context = f" ({error.context})" if error.context else ""
    return Problem("yaml-syntax", f"is not YAML: {what}{context}", "mend the syntax in this line or just above", line)


def _character_problem(error: yaml.YAMLError, text: str) -> Problem:
    position = getattr(error, "position", None)
    line = text.count("\n", 0, position) + 1 if isinstance(position, int) else 0
    return Problem(
        "yaml-syntax",
        f"is not YAML: {str(error).splitlines()[0]}",
        "remove the characters that YAML doesn't allow",
        line,
    )


def _too_deep(text: str) -> Problem | None:
    """Find nesting that no manifest has, before the composer, which recurses, meets it."""
    if text.count("[") + text.count("{") > MAX_DEPTH:
        depth = 0
        for match in re.finditer(r"[\[{\]}]", text):
            depth = depth + 1 if match.group() in "[{" else max(0, depth - 1)
            if depth > MAX_DEPTH:
                line = text.count("\n", 0, match.start()) + 1
                return Problem("yaml-depth", f"nests deeper than {MAX_DEPTH} levels", "flatten it", line)
    for number, line_text in enumerate(text.split("\n"), 1):
        # Each takes two characters at least.
        if len(line_text) >= 2 * MAX_DEPTH and _DASHES.search(line_text):
            return Problem("yaml-depth", f"nests deeper than {MAX_DEPTH} levels", "flatten it", number)
    return None


def _opened(text: str) -> int:
    """Return how many lists and mappings in brackets a text begins, about; none where that are few brackets anyway."""
    many = text.count("[") + text.count("{") > MAX_DEPTH // 2
    return len(_FLOW_START.findall(text)) if many else 0
