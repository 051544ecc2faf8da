"""The configuration as it is in effect, for people and programs to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta
from pathlib import Path

from pyrep.config.model import CompactionLevel, Config, DatabaseConfig, Secret
from pyrep.units import format_duration

__all__ = ["effective"]

_NOT_KEYS = frozenset(("index", "excluded", "state_roots", "warnings"))
_OCTAL = frozenset(("permissions",))
_ONLY_DIRECTORIES = frozenset(("pattern", "recursive", "watch"))


def effective(config: Config) -> dict[str, object]:
    """Return every key with the value in effect, defaults included and secrets hidden.

    The names are those of the file.  Only JSON types are used: durations and paths are texts,
    sizes are numbers of bytes.
    """
    shown: dict[str, object] = {}
    if config.source:
        shown["config"] = str(config.source)
    shown |= _block(config)
    shown["warnings"] = list(config.warnings)
    return shown


def _block(value: object) -> dict[str, object]:
    shown: dict[str, object] = {}
    if not is_dataclass(value):
        return shown
    for field in fields(value):
        item = getattr(value, field.name)
        if item is None or field.name in _hidden(value):
            continue
        if field.name == "options":
            shown |= _mapping(item)
        elif field.name in _OCTAL:
            shown[_key(field.name)] = f"{item:#o}"
        else:
            shown[_key(field.name)] = _value(item)
    return shown


def _hidden(value: object) -> frozenset[str]:
    """Return the fields that are no keys of the file, or say nothing there."""
    if isinstance(value, Config):
        return _NOT_KEYS | {"source"}
    if isinstance(value, CompactionLevel):
        return frozenset(("level",))
    if isinstance(value, DatabaseConfig) and value.path:
        return _NOT_KEYS | _ONLY_DIRECTORIES
    return _NOT_KEYS


def _key(name: str) -> str:
    return name.replace("_", "-")


def _mapping(items: Mapping[str, object]) -> dict[str, object]:
    return {key: _value(item) for key, item in items.items()}


def _value(value: object) -> object:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, Path | Secret):
        return str(value)
    if isinstance(value, tuple):
        return [_value(item) for item in value]
    return _block(value) if is_dataclass(value) else value
