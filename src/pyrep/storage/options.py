"""Values of a replica's own keys, as the backends want them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

__all__ = ["seconds", "text", "texts"]


def text(values: Mapping[str, object], key: str) -> str:
    """Return a key's text, a secret revealed; empty if it is not given."""
    value = values.get(key)
    if value is None:
        return ""
    reveal = getattr(value, "reveal", None)
    return str(reveal() if reveal is not None else value)


def texts(values: Mapping[str, object], key: str) -> tuple[str, ...]:
    """Return a key's texts; empty if it is not given."""
    value = values.get(key)
    if isinstance(value, str):
        return (value,)
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def seconds(values: Mapping[str, object], key: str, default: float) -> float:
    """Return a key's duration in seconds."""
    value = values.get(key)
    if isinstance(value, timedelta):
        return value.total_seconds()
    return float(value) if isinstance(value, int | float) else default
