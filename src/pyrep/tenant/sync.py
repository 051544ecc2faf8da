"""Ship what was committed: decide between range, diff and all pages; stage; keep the position."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from pyrep.clock import Clock, to_ms
from pyrep.config.expand import TenantSpec
from pyrep.errors import DatabaseBusyError, DatabaseError, FencedError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.tenant.capture import Capture, SpoolFullError
from pyrep.tenant.continuity import Change, WALView, decide, prove
from pyrep.tenant.kept import Kept
from pyrep.tenant.lineage import Action, Remote, Verdict
from pyrep.tenant.pages import LocalPages, StagedPages, sync_table
from pyrep.tenant.position import Fingerprint, SyncState, boot_id
from pyrep.tenant.recover import Recovered
from pyrep.tenant.session import Session
from pyrep.tenant.spool import Spool
from pyrep.tenant.statedir import StateDir

__all__ = ["Engine", "fence_hint", "info_of"]

_log = logging.getLogger(__name__)
_ALONE_SECONDS = 5.0
_LONGEST_IDLE_SECONDS = 3600.0
_ROLLBACK_WINDOW_PAGES = 256


class Engine:
    """Do the local work of one tenant; the caller holds the tenant's lock.

    ``heal_cause``, ``all_cause`` and ``diff_cause`` say why the next file is more than a range
    of the WAL: a broken chain, an unknown base, a position that cannot be proven.
    ``left_behind``: something was committed that was not staged when the database was closed.
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
    ) -> None:
        self.spec = spec
        self.name = str(spec.db_path)
        self.clock = clock
        self.folder = folder
        self.trusted_boots = trusted_boots
        self.spool = spool
        self.state = SyncState(1)
        self.pages = LocalPages(None)
        self.queue: deque[FileInfo] = deque()
        limit = spec.settings.spool_limit
        self.kept = Kept(folder, self.name, spool, limit, only_newest=not keep_staged)
        self.staged_at: dict[TXID, float] = {}
        self.session: Session | None = None
        self.heal_cause = self.all_cause = self.diff_cause = ""
        self.remote: Remote | None = None
        self.adopting = False
        self.changed_at = clock.monotonic()
        self.idle_factor = 1.0
        self.counter: tuple[int, Fingerprint] | None = None
        self.left_behind = False
        self._logged: set[str] = set()

    # --- position ---

    def save(self, *, durable: bool = False) -> None:
        """Write the position into the state directory."""
        like = None
        with contextlib.suppress(FileNotFoundError):
            like = os.stat(self.spec.db_path, follow_symlinks=False)
        self.folder.save(self.state, like, durable=durable)

    def settle(self, verdict: Verdict, remote: Remote, found: Recovered | None) -> None:
        """Take the decision of a survey over into position, table and upload queue."""
        self.remote = remote
        self.adopting = verdict.action is Action.ADOPT
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
        self.state = replace(state, timestamp_ms=max(state.timestamp_ms, newest_ms))
        self.replace_queue(found.queue if found is not None else [])
        self.kept.adopt(found.kept if found is not None else [])
        self.kept.trim(self.queued_bytes)
        self.save()

    def replace_queue(self, queue: list[FileInfo]) -> None:
        """Let exactly these files wait for their upload."""
        self.queue = deque(queue)
        self.staged_at = {info.max_txid: self.clock.monotonic() for info in queue}
        self._count_spool()

    def dequeue(self) -> FileInfo:
        """Take the oldest file out: the storage has it."""
        info = self.queue.popleft()
        if info.level == 0:
            self.staged_at.pop(info.max_txid, None)
        self._count_spool()
        return info

    @property
    def queued_bytes(self) -> int:
        """Return the bytes that wait for their upload."""
        return sum(info.size for info in self.queue)

    def _count_spool(self) -> int:
        held = self.queued_bytes
        self.spool.hold(self.name, held)
        return held

    def fence(self, why: str) -> None:
        """Stop for good until the operator decides."""
        self.state = replace(self.state, fenced=why)
        self.replace_queue([])
        self.detach()
        self.save()

    @property
    def healing(self) -> bool:
        """Return whether a snapshot that closes gaps is to be made or uploaded."""
        return bool(self.heal_cause) or any(info.level for info in self.queue)

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
        trusted = before.boot_id in {"", boot} or before.boot_id in self.trusted_boots
        if before.txid and not trusted:
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

    # --- sync ---

    def ready(self) -> Session:
        """Return the session, attaching; anew if another hand touched the files."""
        session = self.session or self.attach()
        wrong = session.foreign_write()
        if wrong:
            self.diff_cause, self.state = wrong, self.state.unproven()
            self.detach()
            self.save()
            session = self.attach()
        return session

    def sync(self, session: Session) -> bool:
        """Stage all that was committed, checkpoint, move R; return whether there was something."""
        staged = self._ship(session)
        if staged:
            self.changed_at = self.clock.monotonic()
        session.checkpoint(self.clock.monotonic(), lambda: self._ship(session))
        session.move()
        return staged

    def _ship(self, session: Session) -> bool:
        """Stage everything up to mxFrame, in files of bounded size."""
        if self.adopting:
            self.adopt(session)
        staged = False
        while True:
            if self.heal_cause or self.all_cause or not self.state.page_size:
                return self.ship_all(session)
            if self.diff_cause:
                return self.ship_diff(session) or staged
            change = prove(
                session.att,
                self.state,
                unbroken=session.unbroken,
                page_crc=self._page_crc,
                max_bytes=self.spec.settings.max_sync_wal_bytes,
            )
            if change.kind == "diff":
                self.diff_cause = change.reason
                continue
            session.unbroken = True
            if change.kind == "none":
                return staged
            self._stage_range(session, change)
            staged = True
            if change.scan is None or not change.scan.limited:
                return True

    def ship_to(self, session: Session, view: WALView) -> bool:
        """Stage what was committed up to exactly ``view``; False if that cannot be done."""
        limit = self.spec.settings.max_sync_wal_bytes
        change = decide(session.att, self.state, view, session.unbroken, self._page_crc, limit)
        if change is None or change.kind == "diff":
            return False
        if change.scan is None or not change.scan.frames:
            return True
        self._stage_range(session, change)
        return not change.scan.limited

    def _stage_range(self, session: Session, change: Change) -> None:
        try:
            with self.capturing(session) as capture:
                self.record(*capture.stage_range(change))
        except DatabaseBusyError:
            # R forbids a restart here: somebody reset the WAL without asking SQLite.
            session.unbroken = False
            raise

    def _page_crc(self, pgno: int) -> int:
        with self.folder.base() as base:
            return self.pages.lookup(base, [pgno])[0]

    @contextlib.contextmanager
    def capturing(self, session: Session) -> Iterator[Capture]:
        """Yield what stages files, with the room that is left for them."""
        limit = self.spec.settings.spool_limit
        held = self._count_spool()
        self.kept.trim(held)
        own, common = limit - held, self.spool.left
        left = min(own, common)
        if left <= 0:
            which = (
                f"spool-limit {limit}" if own <= common else f"spool-limit-total {self.spool.limit}"
            )
            raise SpoolFullError(
                f"{self.name}: too many bytes wait for their upload ({which})",
                hint="Look at the replica: uploads fail or are too slow; then raise the limit.",
            )
        with self.folder.base() as base:
            capture = Capture(
                session.att,
                base,
                self.pages,
                self.state,
                session.att.stat(),
                to_ms(self.clock.now()),
                left,
                zstd_level=self.spec.settings.replica.zstd_level,
            )
            if session.rollback:
                capture.hold = session.att.short_read
                capture.window_pages = _ROLLBACK_WINDOW_PAGES
            yield capture

    def record(self, staged: StagedPages, state: SyncState) -> None:
        """Go on from a staged file: it is in the overlay and waits for its upload."""
        self.pages.staged.append(staged)
        self.staged_at[staged.txid] = self.clock.monotonic()
        self.enqueue(info_of(staged, 0))
        self.state = state

    def enqueue(self, info: FileInfo) -> None:
        """Let a staged file wait for its upload."""
        self.queue.append(info)
        self._count_spool()

    def ship_diff(self, session: Session) -> bool:
        """Compare every page with the page-checksum table and stage what differs."""
        if not self.pages.usable:
            self.all_cause = f"{self.diff_cause}; there are no page checksums to compare with"
            return self.ship_all(session)
        with self.capturing(session) as capture:
            source = capture.source()
            if source.page_size != self.state.page_size:
                self.heal_cause = "the page size changed"
                return self.ship_all(session)
            staged, state = capture.stage_diff(source)
        self.log_why("comparing every page with the replica", self.diff_cause)
        if staged is not None:
            self.record(staged, state)
        else:
            self.state = state
        self.diff_cause = ""
        session.unbroken = True
        self.idle_factor *= 2
        return staged is not None

    def ship_all(self, session: Session) -> bool:
        """Stage every page; with a broken chain or a new page size a level-9 file comes first."""
        cause = self.heal_cause or self.all_cause or "this is the first backup"
        with self.capturing(session) as capture:
            source = capture.source()
            size_changed = self.state.page_size not in (0, source.page_size)
            snapshot = None
            if (self.heal_cause or size_changed) and self.state.txid:
                snapshot = capture.stage_snapshot(source, following=True)
            staged, state = capture.stage_all(source)
        if snapshot is not None:  # not before both are there: they are one content
            self.enqueue(info_of(snapshot, SNAPSHOT_LEVEL))
        self.log_why("shipping every page", cause)
        self.record(staged, replace(state, take_over=False))
        self.heal_cause = self.all_cause = self.diff_cause = ""
        session.unbroken = True
        self.save()
        return True

    def adopt(self, session: Session) -> None:
        """Go on where the replica ends if the database is exactly that state; else fence."""
        header = self.remote.header if self.remote else None
        if header is None:
            raise DatabaseError(f"{self.name}: there is nothing to adopt on the replica")
        with self.capturing(session) as capture:
            found = capture.matching_position(header)
        self.adopting = False
        if found is None:
            why = f"it belongs to lineage {header.node_id:016x} and pyrep's own record is lost"
            self.fence(f"the replica is not ours: {why}")
            raise FencedError(f"{self.name}: {self.state.fenced}", hint=fence_hint(self.name))
        self.state, self.pages.table = found
        self.diff_cause = ""
        session.unbroken = True
        self.save()
        _log.info(
            "adopted the replica: its newest state equals the database",
            extra={"db": self.name, "txid": self.state.txid},
        )

    # --- log ---

    def log_why(self, what: str, cause: str) -> None:
        if cause not in self._logged:
            self._logged.add(cause)
            _log.info(what, extra={"db": self.name, "cause": cause})

    def warn_once(self, message: str) -> None:
        """Log a warning once per tenant and run."""
        if message not in self._logged:
            self._logged.add(message)
            _log.warning(message, extra={"db": self.name})


def info_of(staged: StagedPages, level: int) -> FileInfo:
    """Return what a staged file will be on the replica."""
    first = TXID(1) if level else staged.txid
    return FileInfo(level, first, staged.txid, staged.size, staged.timestamp_ms)


def fence_hint(name: str) -> str:
    """Return what an operator does about a fenced tenant."""
    return (
        "Stop the other writer, or give this database a replica path of its own; if the other "
        f"is gone for good: pyrep reset -take-over {name}"
    )
