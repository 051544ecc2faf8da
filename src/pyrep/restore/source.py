"""Read a replica's LTX files for a restore: whole, to their listed size, ahead of need.

A dropped connection is taken up again where it broke, so that one lost packet does not cost
a long restore; an object that is shorter or longer than the listing said is an error.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from pyrep import ltxio
from pyrep.clock import Clock
from pyrep.errors import LTXCorruptError, ReplicaTemporaryError, ShutdownInterruptedError
from pyrep.ids import SNAPSHOT_LEVEL
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.checks import MIN_LTX_SIZE
from pyrep.storage.reread import reread

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["ObjectReader", "Source", "in_order", "list_files"]

RETRY_DELAYS = (0.25, 0.5, 1.0)  # seconds; counted from the last byte that arrived
_BUFFER = 64 << 10

Item = TypeVar("Item")
Result = TypeVar("Result")


def list_files(client: ReplicaClient, *, exact_times: bool = False) -> list[FileInfo]:
    """List all levels of a replica; ``exact_times`` as :class:`ReplicaClient` has it.

    Level 0 comes first: a file is deleted only after a higher level holds its pages, so what
    disappears between two listings is found again in a later one, and no gap is seen that
    is none.
    """
    return [
        info
        for level in range(SNAPSHOT_LEVEL + 1)
        for info in client.list_ltx(level, exact_times=exact_times)
    ]


def in_order(
    pool: ThreadPoolExecutor,
    call: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
    cost: Callable[[Item], int] = lambda _: 0,
    budget: int = 0,
) -> Iterator[tuple[Item, Result]]:
    """Run ``call`` on the pool for each item and give the results in order.

    At most ``ahead`` calls are begun before their result is taken, and no more than cost
    ``budget`` together (one always is).  An error ends the iteration where its item stands.
    """
    begun: deque[tuple[Item, Future[Result]]] = deque()
    held = 0
    try:
        for item in items:
            while begun and (len(begun) >= ahead or held + cost(item) > budget):
                first, future = begun.popleft()
                yield first, future.result()
                held -= cost(first)
            begun.append((item, pool.submit(call, item)))
            held += cost(item)
        while begun:
            first, future = begun.popleft()
            yield first, future.result()
    finally:
        for _, future in begun:
            future.cancel()


class Source:
    """Open the files of one replica for one restore; used by several threads.

    ``on_bytes`` is told how many bytes arrived, ``cancel`` ends reads and waits.
    """

    def __init__(
        self,
        client: ReplicaClient,
        clock: Clock,
        cancel: threading.Event,
        on_bytes: Callable[[int], None],
    ) -> None:
        self.client = client
        self.clock = clock
        self.cancel = cancel
        self.on_bytes = on_bytes

    def name(self, info: FileInfo) -> str:
        """Return how messages name a file."""
        return f"{self.client.url} level {info.level} {info.name}"

    def check_size(self, info: FileInfo) -> None:
        """Refuse a file whose listed size no LTX file can have."""
        if info.size < MIN_LTX_SIZE:
            raise self.corrupt(info, f"only {info.size} bytes are listed, too few for an ltx file")

    def corrupt(self, info: FileInfo, message: str, hint: str = "") -> LTXCorruptError:
        """Return an error that names the file."""
        return LTXCorruptError(
            message,
            op="restore",
            path=self.name(info),
            level=info.level,
            min_txid=info.min_txid,
            max_txid=info.max_txid,
            hint=hint,
        )

    def open(self, info: FileInfo) -> io.BufferedReader:
        """Open a whole file; reading it to its end proves its listed size."""
        return io.BufferedReader(ObjectReader(self, info, 0, info.size), _BUFFER)

    def open_range(self, info: FileInfo, offset: int, size: int) -> io.BufferedReader:
        """Open ``size`` bytes of a file from ``offset``."""
        return io.BufferedReader(ObjectReader(self, info, offset, size), _BUFFER)

    def read(self, info: FileInfo) -> bytes:
        """Return the bytes of a whole file."""
        with self.open(info) as stream:
            return stream.read(info.size)

    def read_verified(self, info: FileInfo) -> bytes:
        """Return the bytes of a whole file, read again if they are damaged."""

        def read() -> bytes:
            data = self.read(info)
            ltxio.verify(io.BytesIO(data), name=self.name(info))
            return data

        return reread(read)

    def verify(self, info: FileInfo) -> None:
        """Read a whole file and check it.

        :raises LTXCorruptError: it is damaged
        """
        with self.open(info) as stream:
            ltxio.verify(stream, name=self.name(info))


class ObjectReader(io.RawIOBase):
    """Read a range of one file; a range that ends at the listed size must end the object."""

    def __init__(self, source: Source, info: FileInfo, offset: int, size: int) -> None:
        self._source = source
        self._info = info
        self._at = offset
        self._end = offset + size
        self._whole = offset == 0 and self._end == info.size
        self._stream: BinaryIO | None = None
        self._failures = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer; fewer bytes only at the end of the range, where 0 follows.

        :raises LTXCorruptError: the object is shorter or longer than listed
        :raises ReplicaError: the storage failed for good, or again and again
        """
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and self._at < self._end:
            count = self._next(view[filled : filled + self._end - self._at])
            filled += count
            self._at += count
        if self._at == self._end and self._whole:
            self._check_end()
        return filled

    def close(self) -> None:
        """Let go of the connection."""
        self._drop()
        super().close()

    def _next(self, view: memoryview) -> int:
        """Read 1 byte or more, up to all that fit; none after a failure that may be tried again."""
        if self._source.cancel.is_set():
            raise ShutdownInterruptedError(f"{self._name}: reading was interrupted")
        try:
            count = _read_some(self._opened(), view)
        except ReplicaTemporaryError as error:
            self._pause(error)
            return 0
        if not count:
            total = f"the object ends after {self._at} of {self._info.size} listed bytes"
            self._pause(self._source.corrupt(self._info, total))
            return 0
        self._failures = 0
        self._source.on_bytes(count)
        return count

    def _opened(self) -> BinaryIO:
        if self._stream is None:
            size = None if self._whole else self._end - self._at
            self._stream = self._source.client.open_ltx(self._info, self._at, size)
        return self._stream

    def _check_end(self) -> None:
        self._whole = False
        extra = b""
        if self._stream is not None:
            # Every listed byte is here: a connection that breaks now takes nothing away.
            with contextlib.suppress(ReplicaTemporaryError):
                extra = self._stream.read(1)
        self._drop()
        if extra:
            message = f"the object is longer than the {self._info.size} listed bytes"
            raise self._source.corrupt(self._info, message)

    def _pause(self, error: Exception) -> None:
        """Drop the stream and wait, or raise ``error`` if that was tried often enough."""
        self._drop()
        if self._failures == len(RETRY_DELAYS):
            raise error
        self._source.clock.wait(self._source.cancel, RETRY_DELAYS[self._failures])
        self._failures += 1

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    @property
    def _name(self) -> str:
        return self._source.name(self._info)


def _read_some(stream: BinaryIO, view: memoryview) -> int:
    """Read from a stream, without a copy where it is a plain buffer; 0 at its end."""
    if type(stream) is io.BufferedReader:
        return stream.readinto(view)
    data = stream.read(len(view))
    view[: len(data)] = data
    return len(data)
