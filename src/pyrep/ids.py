"""Transaction ids, levels and other words with one text form."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["MAX_TXID", "SNAPSHOT_LEVEL", "TXID", "Salts", "lock_pgno"]

SNAPSHOT_LEVEL = 9
MAX_TXID = (1 << 64) - 1
_HEX16 = re.compile(r"[0-9a-fA-F]{16}\Z")
_LOCK_OFFSET = 0x40000000


class TXID(int):
    """Hold a transaction id: an unsigned 64-bit number whose text is 16 hex digits."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{int(self):016x}"

    def __format__(self, spec: str) -> str:
        return format(str(self) if not spec or spec.endswith("s") else int(self), spec)

    @classmethod
    def parse(cls, text: str) -> TXID:
        """Read exactly 16 hex digits; raise ``ValueError`` otherwise."""
        if not _HEX16.match(text):
            raise ValueError(f"invalid txid format: {text!r} (16 hex digits expected)")
        return cls(int(text, 16))


class Salts(NamedTuple):
    """Name a WAL generation; both numbers change when the WAL restarts."""

    salt1: int
    salt2: int


def lock_pgno(page_size: int) -> int:
    """Return the page number that holds byte 0x40000000, which SQLite never uses for data."""
    return _LOCK_OFFSET // page_size + 1
