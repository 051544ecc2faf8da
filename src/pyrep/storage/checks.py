"""What every backend checks before it trusts a name, a range or the bytes it is to store."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from pyrep.errors import LTXCorruptError, LTXNotFoundError, ReplicaPermanentError
from pyrep.ids import MAX_TXID, TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.layout import LEVELS

__all__ = [
    "CHUNK_SIZE",
    "HEADER_SIZE",
    "MAX_TIMESTAMP_MS",
    "MIN_LTX_SIZE",
    "IncomingFile",
    "check_file",
    "check_level",
    "check_range",
    "file_not_found",
    "header_time",
]

CHUNK_SIZE = 1 << 20
# Header, end of pages, an empty page index with its length, trailer.
MIN_LTX_SIZE = 100 + 6 + 1 + 8 + 16
# File systems and clients keep times as signed 64-bit nanoseconds: April 2262.
MAX_TIMESTAMP_MS = ((1 << 63) - 1) // 1_000_000
HEADER_SIZE = 100
_HEAD = struct.Struct(">4s12xQQQ")
_MAGIC = b"LTX1"


def check_level(where: str, level: int) -> None:
    """Refuse a level that does not exist.

    :raises ReplicaPermanentError: it is not one of 0 to 9
    """
    if level not in LEVELS:
        raise ReplicaPermanentError(f"{where}: level {level} is not one of 0 to {LEVELS[-1]}")


def check_file(where: str, level: int, min_txid: int, max_txid: int) -> FileInfo:
    """Return the place of a file, size and time unknown.

    :raises ReplicaPermanentError: no LTX file can have this level and these TXIDs
    """
    check_level(where, level)
    if not 0 < min_txid <= max_txid <= MAX_TXID:
        raise ReplicaPermanentError(
            f"{where}: no ltx file can hold transactions {min_txid} to {max_txid}"
        )
    return FileInfo(level, TXID(min_txid), TXID(max_txid))


def check_range(path: str, info: FileInfo, offset: int, size: int | None, total: int) -> int:
    """Return how many bytes a read gives, of a file of ``total`` bytes.

    :raises LTXCorruptError: the range lies past the file's end
    :raises ReplicaPermanentError: the range is negative
    """
    if offset < 0 or (size is not None and size < 0):
        raise ReplicaPermanentError(f"{path}: negative range: {size} bytes from {offset}")
    end = total if size is None else offset + size
    if offset > total or end > total:
        raise LTXCorruptError(
            f"range {offset} to {end} lies past the end of {total} bytes",
            op="read",
            path=path,
            level=info.level,
            min_txid=info.min_txid,
            max_txid=info.max_txid,
        )
    return end - offset


def file_not_found(path: str, info: FileInfo) -> LTXNotFoundError:
    """Return the error for a file that is not there."""
    return LTXNotFoundError(
        "no such ltx file",
        op="open",
        path=path,
        level=info.level,
        min_txid=info.min_txid,
        max_txid=info.max_txid,
    )


def header_time(head: bytes) -> int | None:
    """Return the timestamp (ms) in the first bytes of an LTX file, None if they are not that."""
    if len(head) < HEADER_SIZE:
        return None
    magic, _, _, timestamp_ms = _HEAD.unpack_from(head)
    return int(timestamp_ms) if magic == _MAGIC and timestamp_ms <= MAX_TIMESTAMP_MS else None


class IncomingFile:
    """Read a file that is to be stored, and prove on the way that it is what its name says.

    The header is looked at before the first chunk is given out; after the last one, the total is
    compared with what the source had when it can tell (a seekable one can).  Errors of the
    source itself pass through as they are: they are not the storage's.  ``expected`` is the total
    as far as the source can tell it, else None.
    """

    def __init__(self, path: str, info: FileInfo, source: BinaryIO) -> None:
        """Read the first chunk.

        :raises LTXCorruptError: this is no LTX file, or another one than ``info`` names
        """
        self._path = path
        self._info = info
        self._source = source
        self.expected = _remaining(source)
        self._first = self._read_head()
        self.timestamp_ms = self._check_head()
        self.size = 0

    def chunks(self) -> Iterator[bytes]:
        """Give all bytes in pieces, once; ``size`` is right when this ends.

        :raises LTXCorruptError: the source ended early
        """
        chunk = self._first
        self._first = b""
        while chunk:
            self.size += len(chunk)
            yield chunk
            chunk = self._source.read(CHUNK_SIZE)
        if self.expected is not None and self.size != self.expected:
            raise self._corrupt(f"source gave {self.size} of {self.expected} bytes")
        if self.size < MIN_LTX_SIZE:
            raise self._corrupt(f"source of {self.size} bytes is too short for an ltx file")

    def _read_head(self) -> bytes:
        head = self._source.read(CHUNK_SIZE)
        while len(head) < HEADER_SIZE:
            more = self._source.read(HEADER_SIZE - len(head))
            if not more:
                raise self._corrupt(f"source of {len(head)} bytes is too short for an ltx header")
            head += more
        return head

    def _check_head(self) -> int:
        magic, low, high, timestamp_ms = _HEAD.unpack_from(self._first)
        if magic != _MAGIC:
            raise self._corrupt(f"source is not an ltx file: it begins with {magic!r}")
        if (low, high) != (self._info.min_txid, self._info.max_txid):
            raise self._corrupt(f"header says transactions {low:016x} to {high:016x}")
        if timestamp_ms > MAX_TIMESTAMP_MS:
            raise self._corrupt(f"header has an impossible time: {timestamp_ms} ms")
        return int(timestamp_ms)

    def _corrupt(self, message: str) -> LTXCorruptError:
        return LTXCorruptError(
            message,
            op="write",
            path=self._path,
            level=self._info.level,
            min_txid=self._info.min_txid,
            max_txid=self._info.max_txid,
        )


def _remaining(source: BinaryIO) -> int | None:
    if not source.seekable():
        return None
    here = source.tell()
    end = source.seek(0, 2)
    source.seek(here)
    return end - here
