"""Values of a configuration file: read from its text, or refused with field, value and line.

The nodes keep the text as it was written, so that ``password: 0123`` stays what it is and
only a key that wants a number reads one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from pyrep.config.model import Secret, SecretURL
from pyrep.config.paths import expand_path
from pyrep.errors import ConfigError
from pyrep.units import format_duration, from_ns, parse_duration, parse_size

__all__ = [
    "Block",
    "Items",
    "Node",
    "Notes",
    "Place",
    "Reader",
    "Scalar",
    "as_bool",
    "as_count",
    "as_duration",
    "as_int",
    "as_path",
    "as_secret",
    "as_secret_url",
    "as_size",
    "as_text",
    "as_texts",
    "at_least",
    "choice",
    "is_null",
    "line_hint",
    "more_than",
    "refuse",
]

_INT = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO]?[0-7_]+|[1-9][0-9_]*|0)")
_BOOLS = dict.fromkeys(("true", "yes", "on", "y"), True)
_BOOLS |= dict.fromkeys(("false", "no", "off", "n"), False)
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class Scalar:
    """Hold a scalar as written; ``plain`` means without quotes, ``line`` counts from 1."""

    text: str
    plain: bool = True
    line: int = 0


@dataclass(frozen=True, slots=True)
class Items:
    """Hold a list."""

    nodes: tuple[Node, ...]
    line: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """Hold a mapping; ``lines`` tells where each key stands."""

    nodes: Mapping[str, Node]
    lines: Mapping[str, int] = field(default_factory=dict)
    line: int = 0


Node = Scalar | Items | Block


class Notes:
    """Collect warnings; one that a key causes in several places is said once, for the first."""

    def __init__(self) -> None:
        self._fields: dict[tuple[str, str], list[str]] = {}

    def add(self, name: str, text: str) -> None:
        """Remember that field ``name`` calls for this warning."""
        self._fields.setdefault((name.rpartition(".")[2], text), []).append(name)

    def lines(self) -> tuple[str, ...]:
        """Return the warnings in the order in which they arose."""
        return tuple(_line(names, text) for (_, text), names in self._fields.items())


def _line(names: list[str], text: str) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]}{more}: {text}" if names[0] else text


@dataclass(frozen=True, slots=True)
class Place:
    """Say which field is being read, and where its warnings go."""

    field: str
    notes: Notes

    def at(self, key: str) -> Place:
        """Return the place of a key inside this one."""
        return Place(f"{self.field}.{key}" if self.field else key, self.notes)

    def nth(self, index: int) -> Place:
        """Return the place of a list's element, counted from 0."""
        return Place(f"{self.field}[{index}]", self.notes)


Reader = Callable[[Node, Place], object]
_T = TypeVar("_T")
_Number = TypeVar("_Number", int, timedelta)


def refuse(message: str, node: Node, place: Place, *, hidden: bool = False) -> ConfigError:
    """Return the error that says what is wrong with a value, and on which line."""
    value: object = None
    if isinstance(node, Scalar):
        value = None if hidden else node.text
    else:
        value = "a list" if isinstance(node, Items) else "a mapping"
    return ConfigError(message, field=place.field, value=value, hint=line_hint(node.line))


def line_hint(line: int) -> str:
    """Return the sentence that sends the operator to a line of the file."""
    return f"Correct line {line} of the configuration file." if line else ""


def is_null(node: Node) -> bool:
    """Return whether a key was given without a value; it then counts as not given."""
    return isinstance(node, Scalar) and node.plain and node.text in _NULLS


def as_text(node: Node, place: Place) -> str:
    """Return a scalar's text, numbers and booleans included."""
    if not isinstance(node, Scalar):
        raise refuse("must be a text", node, place)
    return node.text


def as_secret(node: Node, place: Place) -> Secret:
    """Return a text that is never printed."""
    return Secret(as_text(node, place))


def as_secret_url(node: Node, place: Place) -> SecretURL:
    """Return a URL that is printed without its credentials."""
    return SecretURL(as_text(node, place))


def as_path(node: Node, place: Place) -> Path:
    """Return an absolute path."""
    text = as_text(node, place)
    if not text:
        raise refuse("must not be empty", node, place)
    try:
        return Path(expand_path(text))
    except ValueError as exc:
        raise refuse(str(exc), node, place) from None


def as_texts(node: Node, place: Place) -> tuple[str, ...]:
    """Return a list of texts."""
    if not isinstance(node, Items):
        raise refuse("must be a list", node, place)
    return tuple(as_text(item, place.nth(i)) for i, item in enumerate(node.nodes))


def as_bool(node: Node, place: Place) -> bool:
    """Return a YAML boolean (true, yes, on and their opposites), not in quotes."""
    value = _BOOLS.get(node.text.lower()) if isinstance(node, Scalar) and node.plain else None
    if value is None:
        raise refuse("must be true or false", node, place)
    return value


def as_int(node: Node, place: Place) -> int:
    """Return a 64-bit integer; a leading 0 means octal, as in ``0600``."""
    value = _int(node)
    if value is None or value not in _INT64:
        raise refuse("must be an integer", node, place)
    return value


def _int(node: Node) -> int | None:
    if not isinstance(node, Scalar) or not node.plain or not _INT.fullmatch(node.text):
        return None
    text = node.text.replace("_", "").lower()
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    try:
        return int(text, 8 if octal else 0)
    except ValueError:  # nothing but underscores after the prefix
        return None


def as_duration(node: Node, place: Place) -> timedelta:
    """Return a duration; a number without a unit means nanoseconds and gives a warning."""
    number = _int(node)
    try:
        if number is not None:
            if number:
                note = f"has no unit, so {number} means {number} nanoseconds; write it like 30s"
                place.notes.add(place.field, note)
            return from_ns(number)
        return parse_duration(as_text(node, place))
    except ValueError as exc:
        raise refuse(str(exc), node, place) from None


def as_size(node: Node, place: Place) -> int:
    """Return a size in bytes."""
    try:
        return parse_size(as_text(node, place))
    except ValueError as exc:
        raise refuse(str(exc), node, place) from None


def choice(*names: str) -> Callable[[Node, Place], str]:
    """Return a reader for one of these words."""

    def read(node: Node, place: Place) -> str:
        text = as_text(node, place)
        if text not in names:
            raise refuse(f"must be {' or '.join(names)}", node, place)
        return text

    return read


def more_than(
    limit: _Number, reader: Callable[[Node, Place], _Number]
) -> Callable[[Node, Place], _Number]:
    """Return a reader that refuses what is not greater than ``limit``."""

    def read(node: Node, place: Place) -> _Number:
        value = reader(node, place)
        if value <= limit:
            message = f"must be greater than {_bound(limit)}"
            raise ConfigError(message, field=place.field, value=_bound(value, unit=True))
        return value

    return read


def at_least(
    limit: _Number, reader: Callable[[Node, Place], _Number], message: str = ""
) -> Callable[[Node, Place], _Number]:
    """Return a reader that refuses what is less than ``limit``."""

    def read(node: Node, place: Place) -> _Number:
        value = reader(node, place)
        if value < limit:
            text = message or f"must be >= {_bound(limit)}"
            raise ConfigError(text, field=place.field, value=_bound(value, unit=True))
        return value

    return read


def _bound(value: int | timedelta, *, unit: bool = False) -> str:
    if isinstance(value, timedelta):
        return format_duration(value) if value or unit else "0"
    return str(value)


as_count = at_least(1, as_int)
