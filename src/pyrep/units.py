"""Durations and sizes as configuration files write them, read and written.

Durations are Go's (``300ms``, ``1.5h``, ``2h45m``), sizes those of go-humanize (``5MiB``,
``1.5 GB``).  Everything here raises ``ValueError``; a caller that knows the field adds it.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal, InvalidOperation

__all__ = [
    "format_duration",
    "format_size",
    "from_ns",
    "parse_duration",
    "parse_size",
    "round_size",
]

_MAX_INT64 = (1 << 63) - 1
_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, micro sign
    "μs": 1_000,  # U+03BC, Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([^\d.]*)", re.ASCII)
_US_PER_HOUR = 3_600_000_000
_US_PER_MINUTE = 60_000_000
_US_PER_SECOND = 1_000_000
_LETTERS = "kmgtpe"
_SIZES: dict[str, int] = {"": 1, "b": 1}
for _power, _letter in enumerate(_LETTERS, start=1):
    _SIZES |= dict.fromkeys((_letter, f"{_letter}b"), 1000**_power)
    _SIZES |= dict.fromkeys((f"{_letter}i", f"{_letter}ib"), 1024**_power)
_SIZE = re.compile(r"([\d.,]+)\s*(\S*)", re.ASCII)


def from_ns(ns: int) -> timedelta:
    """Return a duration of ``ns`` nanoseconds.

    The resolution is a microsecond; what is shorter but not zero becomes one microsecond,
    because zero often means something else.
    """
    if abs(ns) > _MAX_INT64:
        raise ValueError("duration is longer than 292 years")
    whole = abs(ns) // 1000 or min(abs(ns), 1)
    return timedelta(microseconds=whole if ns >= 0 else -whole)


def parse_duration(text: str) -> timedelta:
    """Read a Go duration such as ``1.5h`` or ``2h45m``; ``0`` needs no unit."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return timedelta()
    total, end = Decimal(0), 0
    while part := _PART.match(rest, end):
        total += Decimal(part[1]) * _unit_ns(part[2], text)
        end = part.end()
    if end == 0 or end != len(rest):
        raise ValueError(f"invalid duration {text!r} (write it like 300ms, 1.5h or 2h45m)")
    return from_ns(sign * int(total))


def _unit_ns(unit: str, text: str) -> int:
    if not unit:
        raise ValueError(f"missing unit in duration {text!r} (ns, us, ms, s, m or h)")
    if unit == "d":
        raise ValueError(f"unknown unit 'd' in duration {text!r} (write days in hours: 7d is 168h)")
    if unit not in _NS:
        raise ValueError(f"unknown unit {unit!r} in duration {text!r} (ns, us, ms, s, m or h)")
    return _NS[unit]


def format_duration(duration: timedelta) -> str:
    """Write a duration so that :func:`parse_duration` gives the same one: ``24h``, ``1m30s``."""
    us = duration // timedelta(microseconds=1)
    sign, us = ("-", -us) if us < 0 else ("", us)
    if us == 0:
        return "0s"
    if us < 1000:
        return f"{sign}{us}us"
    if us < _US_PER_SECOND:
        return f"{sign}{_decimal(us, 1000)}ms"
    hours, us = divmod(us, _US_PER_HOUR)
    minutes, us = divmod(us, _US_PER_MINUTE)
    text = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
    return sign + text + (f"{_decimal(us, _US_PER_SECOND)}s" if us else "")


def _decimal(value: int, unit: int) -> str:
    return f"{(Decimal(value) / unit).normalize():f}"


def parse_size(text: str) -> int:
    """Read a size in bytes; ``K KB M MB…`` are powers of 1000, ``Ki KiB Mi…`` of 1024.

    Units are case-insensitive, a space before them and decimals are allowed; a part of a
    byte is cut off.
    """
    text = text.strip()
    if not text:
        raise ValueError("empty size string")
    match = _SIZE.fullmatch(text)
    factor = _SIZES.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"invalid size format: {text!r} (write it like 512KiB, 5MB or 1.5GiB)")
    try:
        size = int(Decimal(match[1].replace(",", "")) * factor)
    except InvalidOperation:
        raise ValueError(f"invalid size format: {text!r} (not a number)") from None
    if size > _MAX_INT64:
        raise ValueError(f"size {size} exceeds maximum allowed value ({_MAX_INT64})")
    return size


def format_size(size: int) -> str:
    """Write a size exactly, in the largest unit that divides it: ``1GiB``, ``5MB``, ``4097B``."""
    for base, tail in ((1024, "iB"), (1000, "B")):
        for power in range(len(_LETTERS), 0, -1):
            if size and size % base**power == 0:
                return f"{size // base**power}{_prefix(power, base)}{tail}"
    return f"{size}B"


def round_size(size: int) -> str:
    """Write a size for people, rounded to one decimal: ``4.2MiB``; not for reading back."""
    power = 0
    while power < len(_LETTERS) and round(size / 1024**power, 1) >= 1024:
        power += 1
    if power == 0:
        return f"{size}B"
    return f"{size / 1024**power:.1f}".removesuffix(".0") + f"{_prefix(power, 1024)}iB"


def _prefix(power: int, base: int) -> str:
    letter = _LETTERS[power - 1]
    return letter if base == 1000 and power == 1 else letter.upper()
