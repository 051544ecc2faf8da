"""A client around a client: each call waits for its turn in a budget.

For storages whose requests cannot be told apart from outside: every call, and every file of a
deletion, counts as one request.  Those that send HTTP requests themselves ask the budget for
each one where they send it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar, cast

from pyrep.errors import ReplicaThrottledError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import NO_TXID, Below, Capabilities, ReplicaClient
from pyrep.storage.budget import Budget, PacedReader

__all__ = ["LimitedClient"]

_READ_BUFFER = 64 << 10

T = TypeVar("T")


class LimitedClient:
    """Give another client's answers as fast as a budget allows.

    ``release`` is called once, by ``close``.
    """

    def __init__(
        self, client: ReplicaClient, budget: Budget, *, release: Callable[[], None] = lambda: None
    ) -> None:
        self._client = client
        self._budget = budget
        self._release: Callable[[], None] | None = release

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
        return self._call(lambda: self._client.list_ltx(level, seek, exact_times=exact_times))

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``."""
        stream = self._call(lambda: self._client.open_ltx(info, offset, size))
        return io.BufferedReader(
            PacedReader(stream, self._budget, self.url, owned=True), _READ_BUFFER
        )

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
        paced = cast(BinaryIO, PacedReader(source, self._budget, self.url))
        return self._call(
            lambda: self._client.write_ltx(
                level, min_txid, max_txid, paced, create_only=create_only
            )
        )

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; one that is missing counts as deleted."""
        for info in infos:
            self._call(lambda info=info: self._client.delete_ltx([info]))  # type: ignore[misc]

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path."""
        self._call(self._client.delete_all)

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own: one step of a search."""
        return self._call(lambda: self._client.look_below(path))

    def close(self) -> None:
        """Close the wrapped client and let go of the budget."""
        self._client.close()
        release, self._release = self._release, None
        if release is not None:
            release()

    def _call(self, call: Callable[[], T]) -> T:
        asked = self._budget.request(self.url)
        try:
            return call()
        except ReplicaThrottledError:
            self._budget.throttled(asked)
            raise
