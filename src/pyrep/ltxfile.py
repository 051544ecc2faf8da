"""Names and places of LTX files, the same on every replica (superfly/ltx, ``FormatFilename``)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyrep.ids import TXID

__all__ = ["FileInfo", "format_name", "parse_name"]

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx\Z")


@dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """Describe one LTX file of a replica; sorts by level, min TXID, max TXID.

    ``size`` is in bytes, ``timestamp_ms`` in milliseconds since the epoch: the time in the
    file's header where the storage keeps it, else the storage's own.
    """

    level: int
    min_txid: TXID
    max_txid: TXID
    size: int = 0
    timestamp_ms: int = 0

    @property
    def name(self) -> str:
        """Return the file's name."""
        return format_name(self.min_txid, self.max_txid)


def format_name(min_txid: int, max_txid: int) -> str:
    """Return ``<16 hex>-<16 hex>.ltx``."""
    return f"{min_txid:016x}-{max_txid:016x}.ltx"


def parse_name(name: str) -> tuple[TXID, TXID] | None:
    """Return the TXIDs in an LTX file name, or None if it is not one."""
    match = _NAME.match(name)
    if match is None:
        return None
    low, high = TXID(int(match[1], 16)), TXID(int(match[2], 16))
    return (low, high) if 0 < low <= high else None
