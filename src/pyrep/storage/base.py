"""The contract of a replica's storage, in terms of LTX files.

Contracts, proved by the conformance suite: ``write_ltx`` is all-or-nothing (no reader ever
sees a short file), idempotent for the same bytes, reads ``source`` to its end and nothing
else; ``open_ltx`` with a range past the end is an error, never a short read; a missing file
is :class:`~pyrep.errors.LTXNotFoundError`; names that are not LTX names are ignored in
listings and never deleted by ``delete_ltx``; a backend raises only classes of
:mod:`pyrep.errors`, split into temporary and permanent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo

__all__ = ["NO_TXID", "Below", "Capabilities", "ReplicaClient"]

NO_TXID = TXID(0)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Say what a storage can do.

    ``connections``: how many calls may run side by side.  ``conditional_put``: whether
    create-only writes are atomic; where not, fencing is best effort.
    """

    connections: int = 8
    ranged_read: bool = True
    conditional_put: bool = True
    batch_delete: bool = False


@dataclass(frozen=True, slots=True)
class Below:
    """Hold what one look below a replica path found, as paths relative to the client's own.

    ``replicas`` have LTX files ('' is the client's path itself); ``folders`` may have replicas at
    or below them and are to be looked into.  No element of a path is empty, ``.`` or ``..``.
    """

    replicas: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


class ReplicaClient(Protocol):
    """Read and write the LTX files below one replica path; safe for use by several threads."""

    @property
    def scheme(self) -> str:
        """Return the kind of storage, as its URLs begin."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what the storage can do, as far as is known by now."""

    @property
    def url(self) -> str:
        """Return the replica's place for logs and reports, without any secret."""

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        """List a level's files with min TXID >= ``seek``, sorted by (min, max).

        ``exact_times``: the times are those of the files' headers.  Else a storage that would
        need a request for each may give its own, of when the file was stored.
        """

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``.

        :raises LTXNotFoundError: no such file
        :raises LTXCorruptError: the range lies past the file's end
        """

    def write_ltx(
        self,
        level: int,
        min_txid: TXID,
        max_txid: TXID,
        source: BinaryIO,
        *,
        create_only: bool = False,
    ) -> FileInfo:
        """Store a whole LTX file read from ``source`` (from its current offset to its end).

        Returns only when the storage said yes.  The header's timestamp is kept with the file.

        :raises ReplicaExistsError: ``create_only`` and a file of that name is there
        """

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; one that is missing counts as deleted."""

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path."""

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own: one step of a search.

        A storage with folders looks into this one only; one without may answer for all below it.
        Nothing there is no error.  :func:`pyrep.storage.search.find_replicas` goes all the way.
        """

    def close(self) -> None:
        """Let go of connections; further calls are errors."""
