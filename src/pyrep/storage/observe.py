"""A client around a client: it tells what every call was, how long it took and how it ended."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from pyrep.clock import Clock
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import NO_TXID, Below, Capabilities, ReplicaClient

__all__ = ["OK", "ObservedClient", "Operation", "Total", "Usage"]

OK = "ok"
_log = logging.getLogger(__name__)
_READ_BUFFER = 64 << 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Operation:
    """Describe one call to a replica's storage.

    ``op`` is list, read, write, delete or look; ``level`` is -1 where none is meant; ``bytes``
    are those of LTX files that came or went; ``outcome`` is ``OK`` or the error's class.
    """

    op: str
    level: int = -1
    bytes: int = 0
    seconds: float = 0.0
    outcome: str = OK


Observe = Callable[[Operation], None]


class _Watch:
    """Time one operation; ``end`` reports it, once."""

    def __init__(self, op: str, level: int, clock: Clock, observe: Observe) -> None:
        self._op = op
        self._level = level
        self._clock = clock
        self._observe: Observe | None = observe
        self._began = clock.monotonic()
        self.bytes = 0

    def end(self, error: BaseException | None = None) -> None:
        """Report the operation as it ended."""
        observe, self._observe = self._observe, None
        if observe is not None:
            seconds = self._clock.monotonic() - self._began
            outcome = OK if error is None else type(error).__name__
            observe(Operation(self._op, self._level, self.bytes, seconds, outcome))


class ObservedClient:
    """Give another client's answers and tell ``observe`` of each operation when it has ended.

    Placed inside the retries, it sees every attempt.  A reading ends when its stream is closed, a
    listing when it was gone through.  ``observe`` is called on the thread of the operation.
    """

    __slots__ = ("_client", "_clock", "_observe")  # there is one for each tenant

    def __init__(self, client: ReplicaClient, clock: Clock, observe: Observe) -> None:
        self._client = client
        self._clock = clock
        self._observe = observe

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
        watch = self._watch("list", level)
        try:
            yield from self._client.list_ltx(level, seek, exact_times=exact_times)
        except GeneratorExit:
            watch.end()
            raise
        except BaseException as error:
            watch.end(error)
            raise
        watch.end()

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``."""
        watch = self._watch("read", info.level)
        try:
            stream = self._client.open_ltx(info, offset, size)
        except BaseException as error:
            watch.end(error)
            raise
        return io.BufferedReader(_WatchedReader(stream, watch), _READ_BUFFER)

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
        return self._call(
            "write",
            level,
            lambda: self._client.write_ltx(
                level, min_txid, max_txid, source, create_only=create_only
            ),
            lambda info: info.size,
        )

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; one that is missing counts as deleted."""
        level = infos[0].level if infos else -1
        self._call("delete", level, lambda: self._client.delete_ltx(infos))

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path."""
        self._call("delete", -1, self._client.delete_all)

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own: one step of a search."""
        return self._call("look", -1, lambda: self._client.look_below(path))

    def close(self) -> None:
        """Close the wrapped client."""
        self._client.close()

    def _watch(self, op: str, level: int) -> _Watch:
        return _Watch(op, level, self._clock, self._observe)

    def _call(
        self, op: str, level: int, call: Callable[[], T], size: Callable[[T], int] = lambda _: 0
    ) -> T:
        watch = self._watch(op, level)
        try:
            answer = call()
        except BaseException as error:
            watch.end(error)
            raise
        watch.bytes = size(answer)
        watch.end()
        return answer


class _WatchedReader(io.RawIOBase):
    """Read a stream that it owns and count its bytes."""

    def __init__(self, stream: BinaryIO, watch: _Watch) -> None:
        super().__init__()
        self._stream = stream
        self._watch = watch

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        try:
            data = self._stream.read(len(view))
        except BaseException as error:
            self._watch.end(error)
            raise
        view[: len(data)] = data
        self._watch.bytes += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._watch.end()
            self._stream.close()
        super().close()


@dataclass(slots=True)
class Total:
    """Sum up the operations of one kind."""

    count: int = 0
    failed: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Usage:
    """Sum up operations by kind and level; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, int], Total] = {}  # guarded by _lock

    def add(self, operation: Operation) -> None:
        """Count an operation."""
        with self._lock:
            total = self._totals.setdefault((operation.op, operation.level), Total())
            total.count += 1
            total.failed += operation.outcome != OK
            total.bytes += operation.bytes
            total.seconds += operation.seconds

    def log(self) -> None:
        """Write a line for each kind and level."""
        for op, level, total in self.totals():
            extra: dict[str, object] = {"op": op, "count": total.count, "bytes": total.bytes}
            if level >= 0:
                extra["ltx-level"] = level
            if total.failed:
                extra["failures"] = total.failed
            extra["seconds"] = round(total.seconds, 3)
            _log.debug("storage operations", extra=extra)

    def totals(self) -> list[tuple[str, int, Total]]:
        """Return operation, level and sums, in order."""
        with self._lock:
            return [(op, level, total) for (op, level), total in sorted(self._totals.items())]
