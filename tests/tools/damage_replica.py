"""Damage one LTX file of a file replica in a named way, knowing nothing of pyrep's code.

``python tests/tools/damage_replica.py KIND FILE [OTHER|BYTE]``; prints what was done.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["KINDS", "damage"]

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx")


def _missing(file: Path, _: str) -> str:
    file.unlink()
    return f"removed {file}"


def _truncated(file: Path, _: str) -> str:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])
    return f"cut {file} to {len(data) * 2 // 3} of {len(data)} bytes"


def _flipped(file: Path, number: str) -> str:
    data, at = bytearray(file.read_bytes()), int(number)
    data[at] ^= 1 << (at % 8)
    file.write_bytes(data)
    return f"flipped bit {at % 8} of byte {at} of {file}"


def _swapped(file: Path, other: str) -> str:
    mine, its = file.read_bytes(), Path(other).read_bytes()
    file.write_bytes(its)
    Path(other).write_bytes(mine)
    return f"swapped {file} and {other}"


def _replaced(file: Path, other: str) -> str:
    file.write_bytes(Path(other).read_bytes())
    return f"replaced {file} by {other}"


def _emptied(file: Path, _: str) -> str:
    file.write_bytes(b"")
    return f"emptied {file}"


def _longer(file: Path, _: str) -> str:
    file.write_bytes(file.read_bytes() + b"\0")
    return f"added a byte to {file}"


def _gap(file: Path, _: str) -> str:
    """Remove the file's transactions from every level but those that hold only them in passing."""
    match = _NAME.fullmatch(file.name)
    if match is None:
        raise ValueError(f"{file} is not named as an ltx file")
    low, high = match[1], match[2]
    gone = []
    for path in sorted(file.parents[1].glob("*/*.ltx")):
        other = _NAME.fullmatch(path.name)
        if other and other[1] <= high and other[2] >= low:
            path.unlink()
            gone.append(path.name)
    return f"removed {', '.join(gone)}"


_WAYS: dict[str, Callable[[Path, str], str]] = {
    "missing": _missing,
    "truncated": _truncated,
    "flipped": _flipped,
    "swapped": _swapped,
    "replaced": _replaced,
    "emptied": _emptied,
    "longer": _longer,
    "gap": _gap,
}
KINDS = tuple(_WAYS)


def damage(kind: str, file: Path, argument: str = "") -> str:
    """Do the damage; return what was done."""
    return _WAYS[kind](file, argument)


if __name__ == "__main__":
    print(damage(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
