"""A bounded pipe of bytes through a file: what is written lies there until it is read."""

from __future__ import annotations

import io
import os
import threading

from pyrep import osfs
from pyrep.errors import DatabaseError

__all__ = ["Ring", "StreamEndedError"]


class StreamEndedError(DatabaseError):
    """Say that what was being streamed will not be complete."""


class Ring:
    """Hold at most ``capacity`` bytes between one writer and one reader, in the file ``fd``.

    Several files go through one after the other, each ended by :meth:`end_file`.  The reader
    never sees the end of a file that was not ended: after :meth:`give_up` it gets an error.
    """

    def __init__(self, fd: int, capacity: int) -> None:
        self.capacity = capacity
        self._fd = fd
        self._changed = threading.Condition()
        self._written = 0  # bytes in all, guarded by _changed, as all below
        self._taken = 0
        self._ends: list[int] = []
        self._given_up = ""

    @property
    def held(self) -> int:
        """Return how many bytes wait to be read."""
        return self._written - self._taken

    @property
    def taken(self) -> int:
        """Return how many bytes were read."""
        return self._taken

    def write_some(self, data: memoryview) -> int:
        """Write what there is room for; return how many bytes that was.

        :raises StreamEndedError: it was given up
        """
        with self._changed:
            self._check()
            at = self._written % self.capacity
            room = min(self.capacity - self.held, self.capacity - at, len(data))
        if room:
            osfs.pwrite_all("stream.write", self._fd, data[:room], at)
            with self._changed:
                self._written += room
                self._changed.notify_all()
        return room

    def wait_room(self, timeout: float) -> bool:
        """Wait until there is room for at least one byte; return whether there is.

        :raises StreamEndedError: it was given up
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self.held < self.capacity or bool(self._given_up), timeout
            )
            self._check()
            return self.held < self.capacity

    def end_file(self) -> None:
        """Say that what was written until now completes a file."""
        with self._changed:
            self._check()
            self._ends.append(self._written)
            self._changed.notify_all()

    def give_up(self, why: str) -> None:
        """Let both sides fail from now on."""
        with self._changed:
            self._given_up = self._given_up or why
            self._changed.notify_all()

    def wait_given_up(self, timeout: float) -> bool:
        """Wait until it is given up; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._given_up), timeout)

    def wait_bytes(self) -> None:
        """Wait until something was written.

        :raises StreamEndedError: it was given up before
        """
        with self._changed:
            self._changed.wait_for(lambda: self._written > 0 or bool(self._given_up))
            self._check()

    def close(self) -> None:
        """Give the file back; neither side may use it any more."""
        os.close(self._fd)

    def _check(self) -> None:
        if self._given_up:
            raise StreamEndedError(self._given_up)

    def reader(self, number: int) -> io.RawIOBase:
        """Return a stream of the bytes of the file ``number``, from 0; it cannot seek."""
        return _Reader(self, number)

    def read_into(self, view: memoryview, number: int) -> int:
        """Read some bytes of a file, waiting for them; 0 at its end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.held > 0 or len(self._ends) > number or bool(self._given_up)
            )
            self._check()
            end = self._ends[number] if len(self._ends) > number else self._written
            at = self._taken % self.capacity
            count = min(len(view), end - self._taken, self.capacity - at)
        if count:
            count = os.preadv(self._fd, [view[:count]], at)
            if not count:
                raise StreamEndedError("the spool file was cut off by another program")
            with self._changed:
                self._taken += count
                self._changed.notify_all()
        return count


class _Reader(io.RawIOBase):
    def __init__(self, ring: Ring, number: int) -> None:
        super().__init__()
        self._ring = ring
        self._number = number

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        return self._ring.read_into(memoryview(buffer).cast("B"), self._number)
