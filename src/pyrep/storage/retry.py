"""A client around a client: temporary failures are tried again, with growing, jittered waits."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeVar

from pyrep.clock import Clock, SystemClock
from pyrep.errors import ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import NO_TXID, Below, Capabilities, ReplicaClient

__all__ = ["PATIENT", "RetryPolicy", "RetryingClient"]

_READ_BUFFER = 64 << 10

T = TypeVar("T")


class _Retry(Protocol):
    def __call__(self, call: Callable[[], bytes]) -> bytes: ...


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Say how often a call is tried, and how long the waits between are.

    The wait before retry n is ``base * 2**(n-1)`` seconds, at most ``cap``, shortened at random
    by up to a half so that many tenants do not come back at once.
    """

    attempts: int = 3
    base: float = 0.1
    cap: float = 5.0

    def delay(self, failures: int, rng: random.Random) -> float:
        """Return the seconds to wait after so many failures in a row (1, 2…)."""
        return float(min(self.cap, self.base * 2 ** (failures - 1))) * rng.uniform(0.5, 1.0)


# For a command, which nobody starts again by itself: about 15 seconds.
PATIENT = RetryPolicy(attempts=9)


# Shared: there is a client for each of ten thousand tenants, and a generator takes 2.5 KB.
_POLICY = RetryPolicy()
_RNG = random.Random()


class RetryingClient:
    """Give another client's answers, after some patience.

    Only :class:`~pyrep.errors.ReplicaTemporaryError` is retried.  A write is retried if its
    source can seek, from the offset it had.  After a lost answer of a create-only write the
    retry may find the caller's own file: that ``ReplicaExistsError`` goes up, the caller
    compares.  Reads go on where they broke off.  Set ``stop`` to end all waits at once.
    """

    def __init__(
        self,
        client: ReplicaClient,
        *,
        policy: RetryPolicy | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._client = client
        self._policy = policy if policy is not None else _POLICY
        self._clock = clock if clock is not None else SystemClock()
        self._rng = rng if rng is not None else _RNG
        self._stop = stop if stop is not None else threading.Event()

    @property
    def scheme(self) -> str:
        """Return the wrapped client's scheme."""
        return self._client.scheme

    @property
    def capabilities(self) -> Capabilities:
        """Return what the wrapped client can do."""
        return self._client.capabilities

    @property
    def url(self) -> str:
        """Return the replica's place for logs and reports, without any secret."""
        return self._client.url

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        """List a level's files with min TXID >= ``seek``, sorted by (min, max)."""

        def list_from(first: TXID) -> Iterator[FileInfo]:
            return self._client.list_ltx(level, first, exact_times=exact_times)

        return self._resuming(list_from, seek, self._retry(lambda: list_from(seek)))

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``."""

        def open_from(done: int) -> BinaryIO:
            left = None if size is None else size - done
            return self._client.open_ltx(info, offset + done, left)

        stream = self._retry(lambda: open_from(0))
        return io.BufferedReader(_ResumingReader(stream, open_from, self._retry), _READ_BUFFER)

    def write_ltx(
        self,
        level: int,
        min_txid: TXID,
        max_txid: TXID,
        source: BinaryIO,
        *,
        create_only: bool = False,
    ) -> FileInfo:
        """Store a whole LTX file read from ``source`` (from its current offset to its end)."""
        start = source.tell() if source.seekable() else None

        def write() -> FileInfo:
            if start is not None:
                source.seek(start)
            return self._client.write_ltx(
                level, min_txid, max_txid, source, create_only=create_only
            )

        return write() if start is None else self._retry(write)

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; one that is missing counts as deleted."""
        self._retry(lambda: self._client.delete_ltx(infos))

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path."""
        self._retry(self._client.delete_all)

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own."""
        return self._retry(lambda: self._client.look_below(path))

    def close(self) -> None:
        """Close the wrapped client."""
        self._client.close()

    def _retry(self, call: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return call()
            except ReplicaTemporaryError:
                failures += 1
                if not self._wait(failures):
                    raise

    def _wait(self, failures: int) -> bool:
        """Wait before the next attempt; return False if there is to be none."""
        if failures >= self._policy.attempts or self._stop.is_set():
            return False
        return not self._clock.wait(self._stop, self._policy.delay(failures, self._rng))

    def _resuming(
        self,
        list_from: Callable[[TXID], Iterator[FileInfo]],
        seek: TXID,
        listing: Iterator[FileInfo] | None,
    ) -> Iterator[FileInfo]:
        """Go through a listing; after a failure list again from the last file that was given."""
        last: FileInfo | None = None
        failures = 0
        while True:
            try:
                if listing is None:
                    listing = list_from(last.min_txid if last else seek)
                for info in _rising(listing, last):
                    last, failures = info, 0
                    yield info
            except ReplicaTemporaryError:
                failures += 1
                if not self._wait(failures):
                    raise
                listing = None
            else:
                return


def _rising(listing: Iterator[FileInfo], last: FileInfo | None) -> Iterator[FileInfo]:
    """Yield what comes after ``last``, each file once."""
    for info in listing:
        if last is None or info > last:
            last = info
            yield info


class _ResumingReader(io.RawIOBase):
    """Read a stream; after a temporary failure read on from a new one."""

    def __init__(self, stream: BinaryIO, reopen: Callable[[int], BinaryIO], retry: _Retry) -> None:
        super().__init__()
        self._stream: BinaryIO | None = stream
        self._reopen = reopen
        self._retry = retry
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        data = self._retry(lambda: self._read(len(view)))
        view[: len(data)] = data
        self._done += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _read(self, size: int) -> bytes:
        if self._stream is None:
            self._stream = self._reopen(self._done)
        try:
            return self._stream.read(size)
        except ReplicaTemporaryError:
            self._drop()
            raise

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
