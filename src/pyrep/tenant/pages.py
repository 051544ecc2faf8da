"""The page-checksum table and the overlay of staged files over it.

The table holds the CRC-64 of every page as the *replica* has it: it is updated when a TXID is
acknowledged, never when it is staged.  The pages of staged, unacknowledged files form an
overlay, so that both the replica's and the local view are known.

File layout (little-endian), documented in docs/formats.md::

    0   4  magic "PYRT"          4   4  version 1
    8   4  page size, bytes      12  4  page count
    16  8  TXID                  24  8  database checksum at that TXID
    32  8  CRC-64 of bytes 0-31  40  24 zero
    64  8 x page count: CRC-64 of page 1, 2, ... (0 for the lock page)

The table is used only if the XOR over its entries equals its database checksum, so an entry
that a crash left behind or ahead is never trusted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyrep import _checksum, osfs
from pyrep.ids import TXID, lock_pgno
from pyrep.tenant.statedir import create_file

__all__ = [
    "TABLE_NAME",
    "WINDOW_PAGES",
    "LocalPages",
    "PageTable",
    "StagedPages",
    "TableLostError",
    "sync_table",
]

TABLE_NAME = "pages"
WINDOW_PAGES = 65536
_HEADER = struct.Struct("<4sIIIQQ")
_HEADER_SIZE = 64
_MAGIC = b"PYRT"
_VERSION = 1
_ENTRY = 8


class TableLostError(OSError):
    """Somebody removed the table while its checksums were counted on."""


@dataclass(frozen=True, slots=True)
class PageTable:
    """Describe the table file as its header does; entries are read on demand."""

    page_size: int
    page_count: int
    txid: TXID
    db_checksum: int

    def pack(self) -> bytes:
        """Return the 64 header bytes."""
        head = _HEADER.pack(
            _MAGIC, _VERSION, self.page_size, self.page_count, self.txid, self.db_checksum
        )
        return (head + struct.pack("<Q", _checksum.crc64(head))).ljust(_HEADER_SIZE, b"\0")

    @classmethod
    def load(cls, base: Path) -> PageTable | None:
        """Read and prove the table; None if it is missing, torn or does not add up."""
        with _table_fd(base, os.O_RDONLY) as fd:
            if fd is None:
                return None
            head = os.pread(fd, _HEADER_SIZE, 0)
            table = cls._parse(head)
            if table is None or os.fstat(fd).st_size < _offset(table.page_count + 1):
                return None
            checksum = 0
            for first in range(1, table.page_count + 1, WINDOW_PAGES):
                count = min(WINDOW_PAGES, table.page_count + 1 - first)
                entries = _read(fd, first, count)
                checksum ^= _checksum.database_checksum(entries, first, table.page_size)
            return table if checksum == table.db_checksum else None

    @classmethod
    def peek(cls, base: Path) -> TXID | None:
        """Return the TXID that the table's header names, unproven; None without a table."""
        with _table_fd(base, os.O_RDONLY) as fd:
            table = None if fd is None else cls._parse(os.pread(fd, _HEADER_SIZE, 0))
        return table.txid if table is not None else None

    def write(self, base: Path, windows: Iterable[array[int]], like: os.stat_result | None) -> None:
        """Write the table whole; ``windows`` are the checksums of page 1 and on."""
        with create_file(base, TABLE_NAME + ".tmp", "table", like) as fd:
            osfs.write_all("table.write", fd, self.pack())
            for window in windows:
                osfs.write_all("table.write", fd, memoryview(window))
        osfs.replace("table.rename", base / (TABLE_NAME + ".tmp"), base / TABLE_NAME)

    @classmethod
    def _parse(cls, head: bytes) -> PageTable | None:
        if len(head) < _HEADER_SIZE:
            return None
        magic, version, page_size, page_count, txid, checksum = _HEADER.unpack_from(head)
        stored = int.from_bytes(head[32:40], "little")
        if (magic, version) != (_MAGIC, _VERSION) or stored != _checksum.crc64(head[:32]):
            return None
        return cls(page_size, page_count, TXID(txid), checksum)


@contextlib.contextmanager
def _table_fd(base: Path, flags: int) -> Iterator[int | None]:
    try:
        fd = osfs.open_file("table.open", base / TABLE_NAME, flags | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _known_table_fd(base: Path) -> Iterator[int]:
    """Open a table that is there by all that is known: zeros must not stand for its entries."""
    with _table_fd(base, os.O_RDONLY) as fd:
        if fd is None:
            raise TableLostError(errno.ENOENT, "the page checksums were removed")
        yield fd


def _offset(pgno: int) -> int:
    return _HEADER_SIZE + (pgno - 1) * _ENTRY


def _read(fd: int, first: int, count: int) -> array[int]:
    raw = os.pread(fd, count * _ENTRY, _offset(first))
    entries = array("Q", raw[: len(raw) // _ENTRY * _ENTRY])
    entries.extend([0] * (count - len(entries)))
    return entries


@dataclass(slots=True)
class StagedPages:
    """Hold the page checksums of one staged file.

    ``full``: the file holds every page, and ``crcs[pgno - 1]`` is that of page ``pgno``;
    otherwise ``crcs`` runs beside the ascending ``pgnos``.
    """

    txid: TXID
    page_size: int
    commit: int
    pgnos: array[int]
    crcs: array[int]
    full: bool
    pre_checksum: int
    post_checksum: int
    timestamp_ms: int
    size: int

    def find(self, pgno: int) -> int | None:
        """Return the checksum of a page, or None if the file does not hold it."""
        if self.full:
            return self.crcs[pgno - 1] if pgno <= len(self.crcs) else None
        at = bisect_left(self.pgnos, pgno)
        return self.crcs[at] if at < len(self.pgnos) and self.pgnos[at] == pgno else None

    def overlay(self, first: int, window: array[int]) -> None:
        """Put this file's checksums over those of ``window``, which begins at page ``first``."""
        if self.full:
            part = self.crcs[first - 1 : first - 1 + len(window)]
            window[: len(part)] = part
            return
        low = bisect_left(self.pgnos, first)
        high = bisect_left(self.pgnos, first + len(window))
        for at in range(low, high):
            window[self.pgnos[at] - first] = self.crcs[at]

    @property
    def memory(self) -> int:
        """Return the bytes that the arrays take."""
        return len(self.crcs) * 8 + len(self.pgnos) * 4


class LocalPages:
    """Answer which checksum each page has at the local position: the table and the overlay."""

    def __init__(self, table: PageTable | None) -> None:
        self.table = table
        self.staged: list[StagedPages] = []

    @property
    def usable(self) -> bool:
        """Return whether every page's checksum is known."""
        return self.table is not None or bool(self.staged and self.staged[0].full)

    @property
    def commit(self) -> int:
        """Return the database size in pages at the local position, 0 if not known."""
        if self.staged:
            return self.staged[-1].commit
        return self.table.page_count if self.table is not None else 0

    @property
    def page_size(self) -> int:
        """Return the page size in bytes, 0 if not known."""
        if self.staged:
            return self.staged[-1].page_size
        return self.table.page_size if self.table is not None else 0

    @property
    def db_checksum(self) -> int:
        """Return the database checksum at the local position, 0 if not known."""
        if self.staged:
            return self.staged[-1].post_checksum
        return self.table.db_checksum if self.table is not None else 0

    def forget(self) -> None:
        """Drop everything: the replica's content is not known any more."""
        self.table = None
        self.staged.clear()

    def window(self, base: Path, first: int, count: int) -> array[int]:
        """Return the checksums of ``count`` pages from page ``first``.

        :raises TableLostError: the table is gone
        """
        start = max((i for i, s in enumerate(self.staged) if s.full), default=-1)
        window = array("Q", bytes(count * _ENTRY))
        if start < 0 and self.table is not None:
            with _known_table_fd(base) as fd:
                window = _read(fd, first, count)
        for staged in self.staged[max(start, 0) :]:
            staged.overlay(first, window)
        return window

    def lookup(self, base: Path, pgnos: Sequence[int]) -> array[int]:
        """Return the checksums of these pages (ascending), 0 for one that is not known.

        :raises TableLostError: the table is gone
        """
        found = array("Q", bytes(len(pgnos) * _ENTRY))
        missing = []
        for at, pgno in enumerate(pgnos):
            crc = next((c for s in reversed(self.staged) if (c := s.find(pgno)) is not None), None)
            if crc is None:
                missing.append(at)
            else:
                found[at] = crc
        if not missing or self.table is None:
            return found
        with _known_table_fd(base) as fd:
            for at in missing:
                if pgnos[at] <= self.table.page_count:
                    found[at] = _read(fd, pgnos[at], 1)[0]
        return found

    def terms(self, base: Path, pgnos: Sequence[int]) -> int:
        """Return the XOR of these pages' terms in the database checksum."""
        total = 0
        for pgno, crc in zip(pgnos, self.lookup(base, pgnos), strict=True):
            total ^= _checksum.page_term(crc, pgno)
        return total

    def range_terms(self, base: Path, first: int, last: int, page_size: int) -> int:
        """Return the XOR of the terms of the pages ``first`` to ``last``."""
        total = 0
        for start in range(first, last + 1, WINDOW_PAGES):
            window = self.window(base, start, min(WINDOW_PAGES, last + 1 - start))
            total ^= _checksum.database_checksum(window, start, page_size)
        return total

    def fold(self, base: Path, like: os.stat_result | None) -> None:
        """Take the oldest staged file into the table: the storage has it.

        Entries first, header last: a table that a crash left between the two does not add up
        and is brought up by redoing the file, or dropped.
        """
        staged = self.staged.pop(0)
        table = PageTable(staged.page_size, staged.commit, staged.txid, staged.post_checksum)
        if staged.full:
            table.write(base, [staged.crcs], like)
        elif self.table is not None:
            self._write_changes(base, table, staged)
        if staged.full or self.table is not None:
            self.table = table if staged.post_checksum else None

    def _write_changes(self, base: Path, table: PageTable, staged: StagedPages) -> None:
        with _table_fd(base, os.O_RDWR) as fd:
            if fd is None:
                self.table = None
                return
            for low, high in _runs(staged.pgnos):
                entries = memoryview(staged.crcs)[low:high]
                osfs.pwrite_all("table.write", fd, entries, _offset(staged.pgnos[low]))
            if self.table is not None and staged.commit != self.table.page_count:
                osfs.truncate("table.truncate", fd, _offset(staged.commit + 1))
                lock = lock_pgno(staged.page_size)
                if self.table.page_count < lock <= staged.commit:
                    osfs.pwrite_all("table.write", fd, bytes(_ENTRY), _offset(lock))
            osfs.pwrite_all("table.write", fd, table.pack(), 0)


def _runs(pgnos: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield index ranges [low, high) of consecutive page numbers."""
    low = 0
    for at in range(1, len(pgnos) + 1):
        if at == len(pgnos) or pgnos[at] != pgnos[at - 1] + 1:
            yield low, at
            low = at


def sync_table(base: Path) -> None:
    """Make the table durable (at each park, and now and then under load)."""
    with _table_fd(base, os.O_RDWR) as fd:
        if fd is not None:
            osfs.fsync("table.fsync", fd)
