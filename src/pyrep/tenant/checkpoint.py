"""When a checkpoint of ours is due, and how one is run without a write lock."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pyrep.config.model import DatabaseConfig
from pyrep.errors import DatabaseBusyError
from pyrep.sqlite import Attachment, CheckpointState

__all__ = ["DEFAULT_TRUNCATE_PAGES", "Checkpointer", "wal_bytes"]

_log = logging.getLogger(__name__)
_ROUNDS_BEFORE_EMERGENCY = 5
_PINNED_LOG_SECONDS = 60.0
DEFAULT_TRUNCATE_PAGES = 121359


def wal_bytes(frames: int, page_size: int) -> int:
    """Return the logical size of a WAL with so many frames, in bytes."""
    return 32 + frames * (24 + page_size)


@dataclass(slots=True)
class Checkpointer:
    """Keep one attached tenant's WAL short; thresholds are Litestream's, on the logical size.

    A checkpoint is: sync, move R, sync, PASSIVE on the idle connection, move R.  R's mark stops a
    restart until the last move, so no write lock is needed.
    """

    settings: DatabaseConfig
    name: str
    last: float = 0.0
    short_rounds: int = 0
    pinned_since: float = 0.0
    pinned_logged: float = float("-inf")

    def due(self, log: int, backfilled: int, now: float) -> bool:
        """Return whether frames wait for a checkpoint that is due; ``now`` in seconds."""
        if log == backfilled:
            return False
        interval = self.settings.checkpoint_interval.total_seconds()
        by_size = log >= self.settings.min_checkpoint_page_count
        return by_size or (interval > 0 and log > 1 and now - self.last >= interval)

    def run(self, att: Attachment, now: float) -> CheckpointState | None:
        """Backfill what R and other readers allow; None if somebody else checkpoints."""
        self.last = now
        try:
            return att.passive()
        except DatabaseBusyError:
            return None

    def judge(self, state: CheckpointState, now: float, mark: int) -> None:
        """Count a checkpoint that fell short, and report a reader that has pinned the WAL.

        ``mark`` is a frame that R's own mark does not lie below: what is missing up to there,
        another reader holds back; what is missing above was committed a moment ago.
        """
        complete = state.log <= 0 or state.backfilled >= state.log
        self.short_rounds = 0 if complete else self.short_rounds + 1
        if complete or state.backfilled >= mark:
            self.pinned_since = 0.0
            return
        self.pinned_since = self.pinned_since or now
        waited = now - self.pinned_since
        if waited < _PINNED_LOG_SECONDS or now - self.pinned_logged < _PINNED_LOG_SECONDS:
            return
        self.pinned_logged = now
        _log.warning(
            "a reader of the application keeps the WAL from being checkpointed",
            extra={"db": self.name, "frames": state.log - state.backfilled, "seconds": int(waited)},
        )

    def emergency(self, log: int) -> bool:
        """Return whether checkpoints fell short for rounds and the WAL is past its limit.

        Not while a reader pins the WAL: a write lock would not move it.
        """
        limit = self.settings.truncate_page_n or DEFAULT_TRUNCATE_PAGES
        late = self.short_rounds >= _ROUNDS_BEFORE_EMERGENCY and not self.pinned_since
        return limit > 0 and log >= limit and late
