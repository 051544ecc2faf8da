"""What is known of a stream of every page that is under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyrep._ltx import Header
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.tenant.capture import Capture, SnapshotSource
from pyrep.tenant.position import SyncState
from pyrep.tenant.ring import Ring
from pyrep.tenant.session import Session
from pyrep.tenant.trial import Progress

__all__ = ["Stream"]


@dataclass(slots=True, eq=False)
class Stream:
    """Hold one attempt; the tenant's lock guards it.

    ``levels`` are those of its files, in order, all of one content.  ``before`` and ``causes``
    (heal, all pages) are where the tenant goes back to if it fails.  ``produced``: the last page
    is in the spool and R may move.  ``uncertain``: the storage has failed, and may have a file all
    the same.  R is let go if the WAL passes ``wal_limit`` frames while the
    spool is full.
    """

    ring: Ring
    session: Session
    capture: Capture
    source: SnapshotSource
    levels: tuple[int, ...]
    before: SyncState
    causes: tuple[str, str]
    wal_limit: int
    progress: Progress
    headers: list[Header] = field(default_factory=list)
    produced: bool = False
    snapshot_stored: bool = False
    uncertain: bool = False

    @property
    def of_position(self) -> bool:
        """Return whether it is a snapshot of a TXID that is there already: others go on."""
        return self.levels == (SNAPSHOT_LEVEL,)

    @property
    def holds_position(self) -> bool:
        """Return whether nothing else may be staged before the last page is in the spool."""
        return not self.produced and not self.of_position

    def info(self, number: int) -> FileInfo:
        """Return which file the header ``number`` is of, its size unknown."""
        header = self.headers[number]
        txids = TXID(header.min_txid), TXID(header.max_txid)
        return FileInfo(self.levels[number], *txids, 0, header.timestamp_ms)
