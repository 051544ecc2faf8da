"""The time during which a database is attached: R, its moves, checkpoints, the seal at the end."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pyrep.config.expand import TenantSpec
from pyrep.errors import DatabaseBusyError
from pyrep.sqlite import Attachment
from pyrep.tenant.checkpoint import Checkpointer
from pyrep.tenant.continuity import look
from pyrep.tenant.opening import check_openable
from pyrep.tenant.position import Fingerprint, SyncState

__all__ = ["Seal", "Session", "prints", "wal_print"]

_log = logging.getLogger(__name__)
_REST_NS = 1_050_000_000  # a fingerprint counts only if its mtime was over a second old when taken
_TRUNCATE_WAL_BYTES = 64 << 20
_CHECKPOINT_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Seal:
    """Say how a parking attempt ended.

    ``fingerprint`` is set only if everything is shipped and backfilled and the file's time is
    old enough (``wait``: that alone is missing, ask again in a second).  ``shipped``: no frame
    is in the WAL that was not staged.
    """

    fingerprint: Fingerprint | None = None
    wal_print: tuple[int, int, int] | None = None
    shipped: bool = False
    wait: bool = False


def wal_print(status: os.stat_result) -> tuple[int, int, int] | None:
    """Return what identifies a WAL that is not empty: inode, size, mtime in ns."""
    return (status.st_ino, status.st_size, status.st_mtime_ns) if status.st_size else None


def prints(path: Path) -> tuple[Fingerprint | None, tuple[int, int, int] | None]:
    """Return what identifies a database file and a WAL that is not empty, without opening them.

    What cannot be looked at is None, which is a change too: waking the tenant names the reason.
    """
    database, wal = None, None
    with contextlib.suppress(OSError):
        database = Fingerprint.of(os.stat(path, follow_symlinks=False))
    with contextlib.suppress(OSError):
        wal = wal_print(os.stat(f"{path}-wal", follow_symlinks=False))
    return database, wal


class Session:
    """Hold one attached database.

    ``unbroken``: R was held without a gap since the position, so another generation is exactly
    one restart away.  ``rollback``: the database is not in WAL mode; no R is ever held, since it
    would block every commit.
    """

    def __init__(self, spec: TenantSpec, name: str) -> None:
        settings = spec.settings
        self.name = name
        self.probe = check_openable(spec.db_path, same_host=settings.same_host)
        timeout_ms = int(settings.busy_timeout.total_seconds() * 1000)
        self.att = Attachment(spec.db_path, busy_timeout_ms=timeout_ms)
        self.rollback = False
        self.unbroken = False
        self._zero: Fingerprint | None = None
        self.checkpointer = Checkpointer(settings, name)

    def begin(self, state: SyncState) -> None:
        """Begin R, then compare the fingerprint: in any other order a commit may slip between.

        SQLite opens the -wal by its name at the first read: if the database was replaced before
        that, the one of the new file.

        :raises DatabaseBusyError: so it was
        """
        self.att.begin()
        wrong = self.att.identity_error()
        if wrong:
            raise DatabaseBusyError(f"{self.name}: {wrong} while it was being opened")
        now = Fingerprint.of(self.att.stat())
        self.unbroken = state.fingerprint is not None and now == state.fingerprint

    def foreign_write(self) -> str:
        """Return what other hand touched the files that are attached, else ''."""
        wrong = self.att.identity_error()
        if wrong:
            self.att.keep_wal_on_close()
            return wrong
        if self._zero is not None and Fingerprint.of(self.att.stat()) != self._zero:
            return "the database file was written by something other than SQLite"
        return ""

    def counter(self) -> tuple[int, Fingerprint]:
        """Return what tells of every change while the database is not in WAL mode.

        SQLite counts its commits; a file that something else wrote shows by its times.
        """
        return self.att.change_counter(), Fingerprint.of(self.att.stat())

    def move(self) -> None:
        """Move R after a successful sync, unless it stands where it blocks nobody.

        On mark 0 with nothing new R stops no restart and no reader of mark 0 needs to move.
        """
        raw = self.att.wal_header()
        before = self.att.noop()
        settled = before.log <= 0 or before.log == before.backfilled
        if self._zero is not None and settled:
            return
        self.att.move()
        same = self.att.noop() == before and self.att.wal_header() == raw
        self._zero = Fingerprint.of(self.att.stat()) if settled and same else None

    def checkpoint(self, now: float, ship: Callable[[], bool]) -> None:
        """Run a checkpoint if one is due; ``ship`` stages what was committed meanwhile.

        R is moved and the tail shipped first: with R's mark where it stood at the last tick, a
        writer that never rests would keep every checkpoint short and the WAL from restarting.  A
        commit during the PASSIVE does so too, hence the attempts.  Nothing is backfilled that
        was not staged, since R's mark bounds it.
        """
        state = self.att.noop()
        if not self.checkpointer.due(state.log, state.backfilled, now):
            return
        for _ in range(_CHECKPOINT_ATTEMPTS):
            mark = state.log
            self.move()
            ship()
            done = self.checkpointer.run(self.att, now)
            state = self.att.noop()
            if done is None or done.backfilled < mark or state.log == state.backfilled:
                break
        if done is None:
            return
        self.checkpointer.judge(state, now, mark)
        if self.checkpointer.emergency(state.log):
            self._emergency(ship)

    def _emergency(self, ship: Callable[[], bool]) -> None:
        """Backfill everything under a short write lock: several rounds fell short.

        Order: write lock on the idle connection (no restart, no commit from here), end R, sync
        the tail, PASSIVE on R's connection, begin R.
        """
        _log.warning(
            "the WAL is past truncate-page-n; checkpointing under a short write lock",
            extra={"db": self.name},
        )
        self.checkpointer.short_rounds = 0
        self._zero = None
        with self.att.write_lock():
            self.att.end()
            try:
                ship()
                self.att.passive()
            finally:
                self.att.begin()

    def seal(self, state: SyncState, fs_now_ns: Callable[[int], int], *, backfill: bool) -> Seal:
        """Try to reach the state in which nothing of the database is in the WAL alone.

        ``fs_now_ns`` gives the time of the file system's own clock for a device.  Without
        ``backfill`` (a stop that cannot wait) the WAL stays as it is: a generation that goes on
        proves more than a file whose time is too young.
        """
        try:
            if backfill:
                self.att.passive()
            self.move()
            if self._zero is not None and self._wal_size() > _TRUNCATE_WAL_BYTES:
                self.att.truncate()
            left = wal_print(os.fstat(self.att.wal_fd)) if self.att.wal_fd >= 0 else None
            view = look(self.att)
        except DatabaseBusyError:
            return Seal()
        shipped = view.log == 0 or (
            view.salts == state.salts and view.end_offset == state.end_offset
        )
        zero = self._zero
        if zero is None or not shipped or view.log not in (0, view.backfilled):
            return Seal(shipped=shipped)
        now = fs_now_ns(zero.device)
        youngest = max(zero.mtime_ns, left[2] if left else 0)
        if youngest > now or Fingerprint.of(self.att.stat()) != zero:
            return Seal(shipped=shipped)  # times in the future prove nothing
        if now - youngest < _REST_NS:
            return Seal(shipped=shipped, wait=True)
        return Seal(zero, left, shipped=shipped)

    def _wal_size(self) -> int:
        return os.fstat(self.att.wal_fd).st_size if self.att.wal_fd >= 0 else 0

    def sealed_state(self, state: SyncState, seal: Seal) -> SyncState:
        """Return the position with the seal in it."""
        return replace(state, fingerprint=seal.fingerprint, wal_print=seal.wal_print)

    def close(self, *, keep_wal: bool = False) -> None:
        """Close connections, then descriptors.

        ``keep_wal``: frames in the WAL were not shipped, so the last close must not checkpoint
        it away.  Nor may it where the names lead to other files by now: SQLite would delete the
        -wal by its name.
        """
        if keep_wal or self.att.identity_error():
            self.att.keep_wal_on_close()
        self.att.close()
