"""JSON and YAML from files that nobody vouches for: plain values, in bounded time and memory.

Nothing here builds objects: no tag, no alias and no constructor of YAML is followed. What a
document may not hold is refused, since each has a way of being read as something else than was
meant, or of growing on reading: a key twice, numbers that are not finite, nesting beyond
``DEEPEST`` and, in YAML, anchors, aliases and tags.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import yaml

DEEPEST = 32
# Far more than a configuration takes; YAML is read at under a megabyte a second.
LARGEST = 1 << 18


class DocumentError(ValueError):
    """A text that is no document of plain values; the message says what is wrong."""


def read_text(path: Path, largest: int | None = LARGEST) -> str:
    """The text of a file of at most ``largest`` bytes.

    Raises:
        DocumentError: it is larger, or not UTF-8.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(-1 if largest is None else largest + 1)
    if largest is not None and len(content) > largest:
        raise DocumentError(f"holds more than {largest} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 at byte {error.start}") from None


def parse_json(text: str) -> Any:
    """A JSON value.

    Raises:
        DocumentError: it does not parse, or holds what the module refuses.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_not_finite,
        )
    except RecursionError:
        raise DocumentError(f"nested more than {DEEPEST} deep") from None
    except DocumentError:
        raise
    except ValueError as error:  # malformed, or an integer of thousands of digits
        raise DocumentError(f"does not parse as JSON: {error}") from None
    if text.count("[") + text.count("{") > DEEPEST:
        _check_depth(value)
    return value


def parse_yaml(text: str) -> Any:
    """A YAML value, of the tags that plain scalars, lists and mappings have.

    Raises:
        DocumentError: it does not parse, or holds what the module refuses.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise DocumentError(f"does not parse as YAML: {error}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise DocumentError(f"does not parse as YAML: {error}") from None


def shown(value: object, longest: int = 80) -> str:
    """A value for a message: its ``repr``, or the beginning of it; never itself an error."""
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)) and len(value) > longest:
        return f"{value[:longest]!r}…"
    return repr(value)


class _PlainLoader(yaml.SafeLoader):
    """YAML without anchors, aliases, tags, dates, repeated keys and deep nesting."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self._refuse("anchors and aliases are not read", event.start_mark)
        if getattr(event, "tag", None) not in (None, "!"):
            self._refuse(f"the tag {event.tag!r} is not read", event.start_mark)
        if self._depth == DEEPEST:
            self._refuse(f"nested more than {DEEPEST} deep", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        assert isinstance(node, yaml.MappingNode)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    self._refuse(f"the key {shown(key.value)} occurs twice", key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def _refuse(self, problem: str, mark: Any) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

    def construct_timestamp(self, node: yaml.ScalarNode) -> str:
        """A date stays the text that it is, as JSON would have it."""
        return str(self.construct_scalar(node))


_PlainLoader.add_constructor("tag:yaml.org,2002:timestamp", _PlainLoader.construct_timestamp)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DocumentError(f"the key {shown(key)} occurs twice")
            seen.add(key)
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DocumentError(f"the number {text[:40]} is out of range")
    return value


def _not_finite(text: str) -> NoReturn:
    raise DocumentError(f"{text} is not a finite number")


def _check_depth(value: Any) -> None:
    """Refuse deep nesting, without recursion."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise DocumentError(f"nested more than {DEEPEST} deep")
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        depth += 1
