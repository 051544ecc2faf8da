"""A file that a storage gives piece by piece, read as a stream."""

from __future__ import annotations

import io
from abc import abstractmethod

__all__ = ["PieceReader"]


class PieceReader(io.RawIOBase):
    """Read a promised number of bytes, of which ``_fetch`` takes the next ones when none are left.

    ``_take`` is given a piece; what it has beyond the promise is left out.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self._left = length
        self._data = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        if not view or not (self._data or self._left):
            return 0
        if not self._data:
            self._fetch()
        count = min(len(view), len(self._data))
        view[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    @abstractmethod
    def _fetch(self) -> None:
        """Take the next bytes; called only while some of the promise are left."""

    def _take(self, data: bytes) -> None:
        self._data = memoryview(data)[: self._left]
        self._left -= len(self._data)
