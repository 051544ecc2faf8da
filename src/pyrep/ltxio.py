"""Read and write whole LTX files: verify, apply, merge, and a writer for new ones.

Sources are binary streams (``read`` or ``readinto``) or descriptors of local files; output goes
through :mod:`pyrep.osfs`, under step names that begin with the caller's ``op``.  Memory is constant
whatever the size of a file, except where a result has an entry per page.  ``name=`` is the file
or object that errors name.
"""

from __future__ import annotations

import contextlib
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from pyrep import osfs
from pyrep._ltx import HEADER_SIZE, Decoder, Header, IndexScan, Merger
from pyrep.errors import LTXCorruptError, LTXError
from pyrep.ltxgrowth import Growth
from pyrep.ltxwriter import LTXWriter

__all__ = [
    "LTXWriter",
    "apply",
    "apply_parallel",
    "merge",
    "page_crcs",
    "pages",
    "read_header",
    "verify",
]

CHUNK_BYTES = 1 << 20  # written at once
WINDOW_BYTES = 256 << 10  # read at once, and compressed bytes held
BATCH_BYTES = 512 << 10  # decompressed pages held
MIN_SPAN_BYTES = 4 << 20
MAX_SPAN_BYTES = 16 << 20
MAX_SPANS = 1024
_TERMINATOR_SIZE = 6
_TAIL_SIZE = 24  # index size and trailer
_LEAST_SIZE = HEADER_SIZE + _TERMINATOR_SIZE + 1 + _TAIL_SIZE  # of a file without pages

Opener = Callable[[int, int], BinaryIO]


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put ``name`` into LTX errors that do not name a file yet."""
    try:
        yield
    except LTXError as error:
        if not name or error.path:
            raise
        raise type(error)(
            error.message,
            op=error.op,
            path=name,
            level=error.level,
            min_txid=error.min_txid,
            max_txid=error.max_txid,
            hint=error.hint,
        ) from error


class _Window:
    """Hold the bytes of a stream that were read and not yet consumed."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._view = memoryview(bytearray(size))
        self._start = 0
        self._end = 0
        self._readinto: Callable[[memoryview], int | None] | None = getattr(
            source, "readinto", None
        )

    def data(self) -> memoryview:
        """Return the bytes at hand."""
        return self._view[self._start : self._end]

    def consume(self, size: int) -> None:
        """Let go of the first ``size`` bytes."""
        self._start += size

    def fill(self) -> bool:
        """Read more; return False at the end of the stream.

        The window must have room: it is larger than any frame.
        """
        left = self._end - self._start
        if self._start:
            self._view[:left] = bytes(self.data())
            self._start, self._end = 0, left
        room = self._view[left:]
        if self._readinto is not None:
            got = self._readinto(room) or 0
        else:
            chunk = self._source.read(len(room))
            got = len(chunk)
            room[:got] = chunk
        self._end += got
        return got > 0

    def read(self, size: int) -> bytes:
        """Take exactly ``size`` bytes, fewer only at the end of the stream."""
        while self._end - self._start < size and self.fill():
            pass
        taken = bytes(self.data()[:size])
        self.consume(len(taken))
        return taken


class _Batch:
    """Hold decoded pages: their bytes, numbers and, if wanted, CRCs."""

    def __init__(self, page_size: int, *, with_crcs: bool = False) -> None:
        room = BATCH_BYTES // page_size
        self.page_size = page_size
        self.pages = memoryview(bytearray(room * page_size))
        self.pgnos = array("I", bytes(4 * room))
        self.crcs = array("Q", bytes(8 * room)) if with_crcs else None

    def runs(self, count: int) -> Iterator[tuple[int, memoryview]]:
        """Give the offset in a database file and the bytes of each run of adjacent pages."""
        size, numbers, start = self.page_size, self.pgnos, 0
        while start < count:
            stop = count
            if numbers[count - 1] - numbers[start] != count - 1 - start:
                stop = start + 1
                while stop < count and numbers[stop] == numbers[stop - 1] + 1:
                    stop += 1
            yield (numbers[start] - 1) * size, self.pages[start * size : stop * size]
            start = stop

    def extent(self, count: int) -> tuple[int, int]:
        """Return the offset in a database file and the length of where ``count`` pages lie."""
        first, last = self.pgnos[0], self.pgnos[count - 1]
        return (first - 1) * self.page_size, (last + 1 - first) * self.page_size


class _Reader:
    """Decode one stream from its beginning to its end."""

    def __init__(self, source: BinaryIO, *, with_crcs: bool = False) -> None:
        self._window = _Window(source, WINDOW_BYTES)
        self.header = Header.parse(self._window.read(HEADER_SIZE))
        self._decoder = Decoder(self.header)
        self.batch = _Batch(self.header.page_size, with_crcs=with_crcs)

    def batches(self) -> Iterator[int]:
        """Give how many pages ``batch`` holds, again and again; at the end all is verified.

        :raises LTXCorruptError: the file breaks the format or a checksum
        """
        done = False
        while not done:
            count, done = _decode_some(self._window, self._decoder, self.batch)
            if count:
                yield count
            elif not done and not self._window.fill():
                raise _cut_off(self.header)
        self._decoder.tail(self._window.data())
        self._window.consume(len(self._window.data()))
        while self._window.fill():
            self._decoder.tail(self._window.data())
            self._window.consume(len(self._window.data()))
        self._decoder.close()


def _decode_some(window: _Window, decoder: Decoder, batch: _Batch) -> tuple[int, bool]:
    """Decode what the window holds, as far as the batch has room."""
    used, count, done = decoder.decode(window.data(), batch.pages, batch.pgnos, batch.crcs)
    window.consume(used)
    return count, done


def _cut_off(header: Header) -> LTXCorruptError:
    return LTXCorruptError(
        "the file is cut off", op="decode", min_txid=header.min_txid, max_txid=header.max_txid
    )


def read_header(source: BinaryIO, *, name: str = "") -> Header:
    """Read the header at the stream's place; nothing after it is read or verified.

    :raises LTXCorruptError: there is none
    """
    data = b""
    while len(data) < HEADER_SIZE:
        chunk = source.read(HEADER_SIZE - len(data))
        if not chunk:
            break
        data += chunk
    with _named(name):
        return Header.parse(data)


def verify(source: BinaryIO, *, name: str = "") -> Header:
    """Decode a whole file and check it against its index and checksums.

    :raises LTXCorruptError: it breaks the format or a checksum
    """
    with _named(name):
        reader = _Reader(source)
        for _ in reader.batches():
            pass
        return reader.header


def pages(source: BinaryIO, *, name: str = "") -> Iterator[tuple[int, bytes]]:
    """Give the number and bytes of each page in ascending order.

    The pages are proven only when the iteration has ended without an error.

    :raises LTXCorruptError: the file breaks the format or a checksum
    """
    with _named(name):
        reader = _Reader(source)
        batch = reader.batch
        for count in reader.batches():
            for i in range(count):
                start = i * batch.page_size
                yield batch.pgnos[i], bytes(batch.pages[start : start + batch.page_size])


def page_crcs(source: BinaryIO, *, name: str = "") -> tuple[Header, array[int], array[int]]:
    """Verify a whole file; return its header, page numbers (``I``) and their CRC-64 (``Q``).

    :raises LTXCorruptError: the file breaks the format or a checksum
    """
    pgnos, crcs = array("I"), array("Q")
    with _named(name):
        reader = _Reader(source, with_crcs=True)
        batch = reader.batch
        for count in reader.batches():
            pgnos.extend(batch.pgnos[:count])
            crcs.extend(batch.crcs[:count] if batch.crcs is not None else ())
        return reader.header, pgnos, crcs


def apply(source: BinaryIO, fd: int, *, op: str = "restore", name: str = "") -> Header:
    """Write a file's pages into the database file ``fd`` and give that its size after the file.

    The file is verified on the way: after an error the content of ``fd`` means nothing.

    :raises LTXCorruptError: the file breaks the format or a checksum
    """
    with _named(name):
        reader = _Reader(source)
        growth = Growth(fd, reader.header)
        for count in reader.batches():
            growth.add(reader.batch.pgnos, count)
            _write_pages(fd, reader.batch, count, op)
        growth.check()
        _set_size(fd, reader.header, op)
        return reader.header


def _write_pages(fd: int, batch: _Batch, count: int, op: str) -> None:
    for offset, data in batch.runs(count):
        osfs.pwrite_all(f"{op}.write", fd, data, offset)


def _set_size(fd: int, header: Header, op: str) -> None:
    osfs.truncate(f"{op}.truncate", fd, header.commit * header.page_size)


class _Spans:
    """Decode a large file by spans on several threads, each writing its own pages."""

    def __init__(self, opener: Opener, size: int, fd: int, op: str) -> None:
        self._opener = opener
        self._size = size
        self._fd = fd
        self._op = op
        self._stop = threading.Event()
        if size < _LEAST_SIZE:
            raise LTXCorruptError(f"the file is cut off: {size} bytes", op="decode")
        with opener(0, HEADER_SIZE) as source:
            self.header = read_header(source)
        self._growth = Growth(fd, self.header)
        self._decoder = Decoder(self.header)
        self._index_size = self._read_index_size()
        self._end = size - _TAIL_SIZE - self._index_size - _TERMINATOR_SIZE

    @property
    def possible(self) -> bool:
        """Return whether the file can be decoded by spans: not with a rolling checksum."""
        return not self._decoder.tracks

    def _read_index_size(self) -> int:
        with self._opener(self._size - _TAIL_SIZE, _TAIL_SIZE) as source:
            tail = _Window(source, _TAIL_SIZE).read(8)
        index_size = int.from_bytes(tail, "big")
        if not 0 < index_size <= self._size - _LEAST_SIZE + 1:
            raise LTXCorruptError(f"impossible page index size: {index_size}", op="index")
        return index_size

    def run(self, threads: int) -> None:
        """Decode all spans and verify the whole."""
        points = self._points(threads)
        stops = [offset for offset, _ in points[1:]] + [self._end]
        with ThreadPoolExecutor(threads, thread_name_prefix="ltx-span") as pool:
            try:
                parts = pool.map(self._span, points, stops)
                for part in parts:
                    self._decoder.join(part)
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        self._read_tail()
        self._growth.check()

    def _points(self, threads: int) -> list[tuple[int, int]]:
        """Return where spans begin, and the page before each."""
        every = min(max(self._size // (threads * 4), MIN_SPAN_BYTES), MAX_SPAN_BYTES)
        scan = IndexScan(self.header, self._end, max(every, self._size // MAX_SPANS))
        start = self._end + _TERMINATOR_SIZE
        with self._opener(start, self._index_size) as source:
            window = _Window(source, WINDOW_BYTES)
            while window.fill():
                scan.feed(window.data())
                window.consume(len(window.data()))
        scan.close()
        return scan.points

    def _span(self, point: tuple[int, int], stop: int) -> Decoder:
        start, last_pgno = point
        part = Decoder.part(self.header, start, last_pgno)
        batch = _Batch(self.header.page_size)
        with self._opener(start, stop - start) as source:
            window = _Window(source, WINDOW_BYTES)
            while not self._stop.is_set() and part.offset < stop:
                count, done = _decode_some(window, part, batch)
                self._growth.add(batch.pgnos, count)
                _write_pages(self._fd, batch, count, self._op)
                if count:  # what is large is written back on the way: the sync at the end is short
                    osfs.start_writeback(self._fd, *batch.extent(count))
                if done or (not count and not window.fill()):
                    raise _cut_off(self.header)
        return part

    def _read_tail(self) -> None:
        size = self._size - self._decoder.offset
        with self._opener(self._decoder.offset, size) as source:
            window = _Window(source, WINDOW_BYTES)
            head = window.read(_TERMINATOR_SIZE)
            room = bytearray(self.header.page_size)
            if not self._decoder.decode(head, room, array("I", [0]))[2]:
                raise _cut_off(self.header)
            while window.data() or window.fill():
                self._decoder.tail(window.data())
                window.consume(len(window.data()))
        self._decoder.close()


def apply_parallel(
    opener: Opener, size: int, fd: int, threads: int, *, op: str = "restore", name: str = ""
) -> Header:
    """Do what :func:`apply` does, on several threads.

    ``opener(offset, size)`` opens so many bytes of the file; it is called from all threads.
    ``size`` is the file's, in bytes.  Each thread holds less than two megabytes.

    :raises LTXCorruptError: the file breaks the format or a checksum
    """
    with _named(name):
        spans = _Spans(opener, size, fd, op)
        if not spans.possible:
            with opener(0, size) as source:
                return apply(source, fd, op=op, name=name)
        spans.run(max(1, threads))
        _set_size(fd, spans.header, op)
        return spans.header


def merge(
    sources: Sequence[int],
    fd: int,
    *,
    op: str = "merge",
    names: Sequence[str] = (),
    zstd_level: int | None = None,
) -> tuple[Header, int]:
    """Merge LTX files, the oldest first, into the empty file ``fd``.

    ``sources`` are descriptors of local files, ``names`` what errors call them.  With a
    ``zstd_level`` the merged file is zstd, else LZ4, whatever the inputs are.  Every input is
    verified.  Returns the header and the size in bytes of the merged file.

    :raises LTXGapError: the files do not follow each other
    :raises LTXCorruptError: one of them breaks the format or a checksum
    """
    sizes = [os.fstat(source).st_size for source in sources]
    merger = Merger(sources, sizes, names, zstd_level=zstd_level)
    chunk = memoryview(bytearray(CHUNK_BYTES))
    written = HEADER_SIZE
    for step in (merger.pages_into, merger.index):
        size = step(chunk)
        while size:
            osfs.pwrite_all(f"{op}.write", fd, chunk[:size], written)
            written += size
            size = step(chunk)
    header, tail = merger.finish()
    osfs.pwrite_all(f"{op}.write", fd, tail, written)
    osfs.pwrite_all(f"{op}.write", fd, header, 0)
    return merger.header, written + len(tail)
