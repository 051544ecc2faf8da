"""Write a new LTX file; many pages at once are compressed on every core.

The bytes are the same however many threads took part: page frames do not depend on each other,
and they are put together in the order of the pages.
"""

from __future__ import annotations

import contextlib
import os
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pyrep import osfs
from pyrep._ltx import HEADER_SIZE, Encoder, Header

__all__ = ["LTXWriter"]

CHUNK_BYTES = 1 << 20  # written at once
PARALLEL_BYTES = 8 << 20  # of pages; fewer are compressed where they are
PART_BYTES = 1 << 20  # of pages
WRITEBACK_BYTES = 8 << 20

# Threads that compress for writers, in the whole process: thousands of tenants may write at once.
_cores = len(os.sched_getaffinity(0))
_helpers = threading.BoundedSemaphore(_cores)


@contextlib.contextmanager
def _helping(wanted: int) -> Iterator[int]:
    """Yield how many threads may be started now, none if one core is all there is."""
    got = 0
    try:
        while got < wanted and _cores > 1 and _helpers.acquire(blocking=False):
            got += 1
        yield got
    finally:
        for _ in range(got):
            _helpers.release()


@dataclass(frozen=True, slots=True)
class _Pages:
    """Hold what ``add_pages`` of an encoder takes, and gives (``crcs``), for a run of pages."""

    db_fd: int
    wal_fd: int
    pgnos: memoryview
    offsets: memoryview
    crcs: memoryview

    def cut(self, count: int) -> Iterator[_Pages]:
        """Give parts of ``count`` pages each."""
        for at in range(0, len(self.pgnos), count):
            part = slice(at, at + count)
            yield _Pages(
                self.db_fd, self.wal_fd, self.pgnos[part], self.offsets[part], self.crcs[part]
            )


def _encode(encoder: Encoder, pages: _Pages, room: memoryview) -> int:
    """Encode all pages, for which there is room; return the number of bytes."""
    return encoder.add_pages(
        pages.db_fd, pages.wal_fd, pages.pgnos, pages.offsets, 0, room, pages.crcs
    )[1]


def _encode_parts(
    encoder: Encoder, pages: _Pages, count: int, threads: int
) -> Iterator[memoryview]:
    """Encode parts of ``count`` pages on some threads; give their bytes in order.

    What is given is good until the next is asked for.
    """
    size = count * encoder.max_frame_size()
    free = [memoryview(bytearray(size)) for _ in range(2 * threads)]
    begun: deque[tuple[Encoder, memoryview, Future[int]]] = deque()
    last_pgno = encoder.last_pgno
    parts = pages.cut(count)
    with ThreadPoolExecutor(threads, "ltx-encode") as pool:
        try:
            while True:
                while free and (part := next(parts, None)) is not None:
                    other, room = encoder.part(last_pgno), free.pop()
                    begun.append((other, room, pool.submit(_encode, other, part, room)))
                    last_pgno = part.pgnos[-1]
                if not begun:
                    return
                other, room, future = begun.popleft()
                used = future.result()
                encoder.join(other)
                yield room[:used]
                free.append(room)
        finally:
            pool.shutdown(cancel_futures=True)


class LTXWriter:
    """Write one LTX file to an open, empty file.

    The header goes in last, so a file that was not finished is never taken for one.  After an
    error the file must be thrown away.  ``zstd_level`` is for headers with ``FLAG_ZSTD``.
    ``claim`` is called with the size of each piece before it is written; it may refuse by an error.
    """

    def __init__(
        self,
        fd: int,
        header: Header,
        op: str = "stage",
        *,
        zstd_level: int | None = None,
        claim: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._fd = fd
        self._op = op
        self._claim = claim
        self._page_size = header.page_size
        self._encoder = Encoder(header, zstd_level=zstd_level)
        self._frame = self._encoder.max_frame_size()
        self._chunk = memoryview(bytearray())
        self._used = 0
        self._written = HEADER_SIZE
        self._written_back = 0

    @property
    def size(self) -> int:
        """Return the bytes so far, header included, page index not."""
        return self._encoder.offset

    @property
    def pages(self) -> int:
        """Return how many pages were added."""
        return self._encoder.pages

    def add_pages(
        self, db_fd: int, wal_fd: int, pgnos: array[int], offsets: array[int]
    ) -> array[int]:
        """Read pages in ascending order, add them, and return the CRC-64 (``Q``) of each.

        ``offsets`` (``q``) are those of WAL frame headers, -1 means the database file.

        :raises WALError: the WAL was overwritten since the offsets were taken
        :raises LTXError: a page may not come next
        """
        crcs = array("Q", bytes(8 * len(pgnos)))
        many = len(pgnos) * self._page_size >= PARALLEL_BYTES
        with _helping(_cores if many else 0) as threads:
            if threads:
                pages = _Pages(
                    db_fd, wal_fd, memoryview(pgnos), memoryview(offsets), memoryview(crcs)
                )
                count = PART_BYTES // self._page_size
                for data in _encode_parts(self._encoder, pages, count, threads):
                    self._flush()
                    self._write(data)
            else:
                self._add_here(db_fd, wal_fd, pgnos, offsets, crcs)
        return crcs

    def add_page(self, pgno: int, data: bytes | bytearray | memoryview) -> None:
        """Add one page.

        :raises LTXError: it may not come next, or ``data`` is no page
        """
        room = self._room(1)  # this may reset what is used
        self._used += self._encoder.add_page(pgno, data, room)

    def finish(self, pre: int, post: int) -> int:
        """Write what follows the pages, then the header; return the file's size in bytes.

        ``pre`` and ``post`` are the database checksums before and after (0: unknown).

        :raises LTXError: a snapshot lacks pages
        """
        size = self._encoder.index(self._room(1))
        while size:
            self._used += size
            size = self._encoder.index(self._room(1))
        header, tail = self._encoder.finish(pre, post)
        room = self._room(1)
        room[: len(tail)] = tail
        self._used += len(tail)
        self._flush()
        self._claim(len(header))
        osfs.pwrite_all(f"{self._op}.write", self._fd, header, 0)
        return self._written

    def _add_here(
        self, db_fd: int, wal_fd: int, pgnos: array[int], offsets: array[int], crcs: array[int]
    ) -> None:
        start = 0
        while start < len(pgnos):
            room = self._room(len(pgnos) - start)
            start, size = self._encoder.add_pages(db_fd, wal_fd, pgnos, offsets, start, room, crcs)
            self._used += size

    def _room(self, wanted: int) -> memoryview:
        """Return where the next frames go: room for one at least, for ``wanted`` if possible."""
        if len(self._chunk) - self._used < self._frame:
            self._flush()
            size = max(self._frame, min(CHUNK_BYTES, wanted * self._frame))
            if len(self._chunk) < size:
                self._chunk = memoryview(bytearray(size))
        return self._chunk[self._used :]

    def _flush(self) -> None:
        if self._used:
            self._write(self._chunk[: self._used])
            self._used = 0

    def _write(self, data: memoryview) -> None:
        """Append; a large file is written back on the way, so that a later sync is short."""
        self._claim(len(data))
        osfs.pwrite_all(f"{self._op}.write", self._fd, data, self._written)
        self._written += len(data)
        if self._written - self._written_back >= WRITEBACK_BYTES:
            size = self._written - self._written_back
            osfs.start_writeback(self._fd, self._written_back, size)
            self._written_back = self._written
