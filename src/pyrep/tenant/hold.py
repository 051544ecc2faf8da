"""Hold one tenant: its position, what waits for upload, its attached database."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from dataclasses import replace

from pyrep.clock import Clock
from pyrep.config.expand import TenantSpec
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.schedule.budget import ReadBudget
from pyrep.tenant.kept import Kept
from pyrep.tenant.lineage import Action, Remote, Verdict
from pyrep.tenant.pages import LocalPages, sync_table
from pyrep.tenant.position import Fingerprint, SyncState, boot_id
from pyrep.tenant.recover import Recovered
from pyrep.tenant.session import Session
from pyrep.tenant.spool import Spool
from pyrep.tenant.statedir import StateDir
from pyrep.tenant.stream import Stream
from pyrep.tenant.trial import Trial

__all__ = ["Hold"]

_log = logging.getLogger(__name__)
_ALONE_SECONDS = 5.0
_LONGEST_IDLE_SECONDS = 3600.0
# What most tenants have alike is there once: an empty set takes 216 bytes of each.
_NO_ATTEMPTS: frozenset[int] = frozenset()
_NOTHING: frozenset[str] = frozenset()
_said = functools.lru_cache(64)(frozenset[str])


class Hold:
    """Hold what one tenant is and has; the caller holds the tenant's lock.

    ``heal_cause``, ``all_cause`` and ``diff_cause`` say why the next file is more than a range
    of the WAL: a broken chain, an unknown base, a position that cannot be proven.
    ``left_behind``: something was committed that was not staged when the database was closed.
    ``stream_wish`` says what the spool cannot hold: every page for the next TXID (``pages``), a
    ``snapshot`` of the position, or nothing; ``outgrown`` is the page count at which that was so.
    """

    def __init__(
        self,
        spec: TenantSpec,
        clock: Clock,
        folder: StateDir,
        trusted_boots: frozenset[str],
        spool: Spool,
        *,
        keep_staged: bool,
        reads: ReadBudget | None = None,
    ) -> None:
        self.spec = spec
        self.name = str(spec.db_path)
        self.clock = clock
        self.folder = folder
        self.trusted_boots = trusted_boots
        self.spool = spool
        self.reads = reads or ReadBudget(1)
        self.state = SyncState(1)
        self.pages = LocalPages(None)
        self.queue: list[FileInfo] = []  # an empty deque would take 700 bytes of each tenant
        limit = spec.settings.spool_limit
        self.kept = Kept(folder, self.name, spool, limit, only_newest=not keep_staged)
        self.staged_at: dict[TXID, float] = {}
        self.session: Session | None = None
        self.heal_cause = self.all_cause = self.diff_cause = ""
        self.remote: Remote | None = None
        self.adopting = False
        self.reached: TXID | None = None  # where a broken chain on the replica ends
        self.changed_at = clock.monotonic()
        self.idle_factor = 1.0
        self.counter: tuple[int, Fingerprint] | None = None
        self.left_behind = False
        self._logged = _NOTHING
        self.stream: Stream | None = None
        self.stream_wish = ""
        self.outgrown = 0
        self.attempted = _NO_ATTEMPTS
        self.trial = Trial()

    # --- position ---

    def save(self, *, durable: bool = False) -> None:
        """Write the position into the state directory."""
        like = None
        with contextlib.suppress(FileNotFoundError):
            like = os.stat(self.spec.db_path, follow_symlinks=False)
        self.folder.save(self.state, like, durable=durable)

    def settle(
        self, verdict: Verdict, remote: Remote, found: Recovered | None, replica: str
    ) -> None:
        """Take the decision of a survey of ``replica`` over into position, table and queue."""
        self.remote = remote
        self.adopting = verdict.action is Action.ADOPT
        self.reached = remote.head if verdict.action is Action.HEAL else None
        newest_ms = remote.header.timestamp_ms if remote.header is not None else 0
        if found is not None:
            self.pages, state = found.pages, found.state
            self.diff_cause = self.diff_cause or found.diff_cause
        else:
            self.pages.forget()
            state = replace(self.state.unsealed(), txid=verdict.base, db_checksum=0)
            if verdict.action is Action.HEAL:
                self.heal_cause = verdict.cause
            elif verdict.action in (Action.FIRST, Action.ALL_PAGES):
                self.all_cause = verdict.cause or "this is the first backup"
        newest_ms = max(state.timestamp_ms, newest_ms)
        self.state = replace(state, timestamp_ms=newest_ms, replica=replica)
        self.replace_queue(found.queue if found is not None else [])
        self.kept.adopt(found.kept if found is not None else [])
        self.kept.trim(self.queued_bytes)
        self.save()

    def replace_queue(self, queue: list[FileInfo]) -> None:
        """Let exactly these files wait for their upload."""
        self.queue = list(queue)
        self.staged_at = {info.max_txid: self.clock.monotonic() for info in queue}
        self.count_spool()

    def dequeue(self) -> FileInfo:
        """Take the oldest file out: the storage has it."""
        info = self.queue.pop(0)
        if info.level == 0:
            self.staged_at.pop(info.max_txid, None)
        self.count_spool()
        return info

    @property
    def restorable_txid(self) -> TXID:
        """Return the durable TXID, or as far as a restore gets until a lost chain is healed."""
        durable = self.state.durable_txid
        return durable if self.reached is None else min(durable, self.reached)

    @property
    def queued_bytes(self) -> int:
        """Return the bytes that wait for their upload, or are set aside for a stream."""
        aside = self.stream.ring.capacity if self.stream is not None else 0
        return sum(info.size for info in self.queue) + aside

    def count_spool(self) -> int:
        """Tell the common spool what this tenant has staged; return what it holds, in bytes.

        A stream has taken its room there by itself.
        """
        self.spool.hold(self.name, sum(info.size for info in self.queue))
        return self.queued_bytes

    def leave_spool(self) -> None:
        """Give back what is taken of the common spool: files that stay count when it comes back."""
        self.kept.adopt([])
        self.spool.hold(self.name, 0)

    def fence(self, why: str) -> None:
        """Stop for good until the operator decides."""
        self.state = replace(self.state, fenced=why)
        self.drop_stream()
        self.reads.leave(self.name)
        self.replace_queue([])
        self.detach()
        self.save()

    @property
    def healing(self) -> bool:
        """Return whether a snapshot that closes gaps is to be made or uploaded."""
        return bool(self.heal_cause) or any(info.level for info in self.queue)

    def drop_stream(self) -> None:
        """Forget a stream and the wish for one: the tenant begins anew."""
        stream, self.stream, self.stream_wish = self.stream, None, ""
        if stream is not None:
            stream.ring.give_up("the tenant begins anew")

    # --- attach, detach, park ---

    def attach(self) -> Session:
        """Open the database and begin R, or go without one if it is not in WAL mode."""
        session = Session(self.spec, self.name)
        try:
            if session.probe.links > 1:
                self.warn_once("the database file has more than one hard link")
            if session.probe.is_wal or self._to_wal(session):
                session.begin(self.state)
            else:
                session.rollback = True
            self._mark_attached(session)
        except BaseException:
            session.close()
            raise
        session.checkpointer.last = self.changed_at = self.clock.monotonic()
        self.session, self.left_behind = session, False
        return session

    def _to_wal(self, session: Session) -> bool:
        """Switch to WAL mode once; return whether the database is in WAL mode now."""
        if self.spec.settings.journal_mode == "keep":
            return False
        if self.state.converted:
            self.warn_once(
                "the application switched the database back from WAL mode; every change is found "
                "by comparing pages"
            )
            return False
        mode = session.att.enable_wal()
        if mode != "wal":
            self.warn_once(
                f"the database cannot be switched to WAL mode ({mode}); every change is found by "
                "comparing pages"
            )
            return False
        _log.info("switched database to WAL mode", extra={"db": self.name})
        self.state = replace(self.state, converted=True)
        return True

    def _mark_attached(self, session: Session) -> None:
        """Note on disk that the fingerprint does not count any more, and in which boot we are."""
        boot, before = boot_id(), self.state
        if before.txid and not self._boot_is_trusted():
            session.unbroken, self.state = False, before.unproven()
            self.diff_cause = self.diff_cause or (
                "the machine was restarted and pyrep had not been stopped cleanly"
            )
        self.state = replace(self.state.unsealed(), boot_id=boot, wal_print=None)
        if self.state == before:
            return
        try:
            self.save()
        except BaseException:
            self.state = before  # so that the next attempt does not take it for noted
            raise

    def _boot_is_trusted(self) -> bool:
        before = self.state.boot_id
        return before in {"", boot_id()} or before in self.trusted_boots

    @property
    def causes_reading(self) -> bool:
        """Return whether something is known that only a look at every page can settle."""
        causes = self.heal_cause or self.all_cause or self.diff_cause
        return bool(causes) or not self.state.page_size

    @property
    def must_read_all(self) -> bool:
        """Return whether a database that is opened now has to be read from end to end."""
        return self.adopting or self.causes_reading or not self._boot_is_trusted()

    def may_read_all(self) -> bool:
        """Take a place among those who read a whole database, or wait for it."""
        return self.reads.enter(self.name)

    def detach(self, *, keep_wal: bool = False) -> None:
        """Close the database without sealing it."""
        session, self.session = self.session, None
        if session is not None:
            session.close(keep_wal=keep_wal)

    def let_go(self, cause: str) -> None:
        """Release R rather than let the WAL fill the disk; the next sync is a diff."""
        self.diff_cause = self.diff_cause or cause
        self.detach()

    def idle_limit(self) -> float:
        """Return after how many idle seconds the tenant is to be parked."""
        limit = self.spec.settings.idle_timeout.total_seconds()
        session = self.session
        if session is not None and not session.rollback and not session.att.used_by_others():
            return min(_ALONE_SECONDS, limit)
        return min(limit * self.idle_factor, max(limit, _LONGEST_IDLE_SECONDS))

    def park(self, *, force: bool) -> bool:
        """Seal and close; False if that is not possible now and ``force`` does not insist."""
        session = self.session
        if session is None:
            return True
        if session.rollback:
            self.left_behind = self.counter != session.counter()
            self.detach()
            self._save_parked()
            return True
        seal = session.seal(self.state, self._fs_now_ns, backfill=not force)
        if seal.fingerprint is None and not force:
            return False
        self.left_behind = not seal.shipped
        self.state = session.sealed_state(self.state, seal)
        self.detach(keep_wal=not seal.shipped)
        self._save_parked()
        return True

    def _save_parked(self) -> None:
        with self.folder.base() as base:
            sync_table(base)
        self.save(durable=True)

    def _fs_now_ns(self, device: int) -> int:
        """Return the time of the file system's own clock, if the state directory lies on it."""
        self.save()
        with self.folder.base() as base:
            status = os.stat(base / "state.json")
        return status.st_mtime_ns if status.st_dev == device else time.time_ns()

    # --- log ---

    def log_why(self, what: str, cause: str) -> None:
        if cause not in self._logged:
            self._logged = _said(self._logged | {cause})
            _log.info(what, extra={"db": self.name, "cause": cause})

    def warn_once(self, message: str) -> None:
        """Log a warning once per tenant and run."""
        if message not in self._logged:
            self._logged = _said(self._logged | {message})
            _log.warning(message, extra={"db": self.name})
