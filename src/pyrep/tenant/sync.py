"""Ship what was committed: decide between range, diff and all pages; stage; keep the position."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from pyrep.clock import to_ms
from pyrep.errors import DatabaseBusyError, DatabaseError, FencedError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.tenant.capture import Capture, OutgrownError, SnapshotSource, SpoolFullError
from pyrep.tenant.continuity import Change, WALView, decide, prove
from pyrep.tenant.hold import Hold
from pyrep.tenant.pages import StagedPages
from pyrep.tenant.position import SyncState
from pyrep.tenant.session import Session

__all__ = ["Engine", "fence_hint", "info_of"]

_log = logging.getLogger(__name__)
_ROLLBACK_WINDOW_PAGES = 256


class _Room(NamedTuple):
    """Say how many bytes may be staged, and whether that is all that ever may."""

    left: int
    whole: bool


class Engine(Hold):
    """Do the local work of one tenant; the caller holds the tenant's lock."""

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
        if self.stream is not None and not self.stream.produced:
            return staged  # R stays where the snapshot is read
        session.checkpoint(self.clock.monotonic(), lambda: self._ship(session))
        session.move()
        return staged

    def _ship(self, session: Session) -> bool:
        """Stage everything up to mxFrame, in files of bounded size."""
        if self.adopting:
            if not self.may_read_all():
                return False
            self.adopt(session)
        staged = False
        while self.stream_wish != "pages":
            if self.causes_reading:
                return (self.may_read_all() and self._ship_whole(session)) or staged
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
            try:
                self._stage_range(session, change)
            except OutgrownError:
                self.diff_cause = "what was committed does not fit into the spool"
                continue
            staged = True
            if change.scan is None or not change.scan.limited:
                return True
        return staged

    def _ship_whole(self, session: Session) -> bool:
        if self.heal_cause or self.all_cause or not self.state.page_size:
            return self.ship_all(session)
        return self.ship_diff(session)

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

    def room(self) -> _Room:
        """Return what may still be staged.

        :raises SpoolFullError: nothing may
        """
        limit = self.spec.settings.spool_limit
        held = self.count_spool()
        self.kept.trim(held)
        own, common = limit - held, self.spool.left
        if min(own, common) <= 0:
            which = (
                f"spool-limit {limit}" if own <= common else f"spool-limit-total {self.spool.limit}"
            )
            raise SpoolFullError(
                f"{self.name}: too many bytes wait for their upload ({which})",
                hint="Look at the replica: uploads fail or are too slow; then raise the limit.",
            )
        return _Room(min(own, common), not held and min(own, common) in (own, self.spool.limit))

    @contextlib.contextmanager
    def capturing(self, session: Session) -> Iterator[Capture]:
        """Yield what stages files, with the room that is left for them."""
        room = self.room()
        with self.folder.base() as base:
            capture = Capture(
                session.att,
                base,
                self.pages,
                self.state,
                session.att.stat(),
                to_ms(self.clock.now()),
                room.left,
                room.whole,
                zstd_level=self.spec.settings.replica.zstd_level,
                claim=lambda size: self.spool.claim(self.name, size),
            )
            if session.rollback:
                capture.hold = session.att.short_read
                capture.window_pages = _ROLLBACK_WINDOW_PAGES
            try:
                yield capture
            finally:
                self.spool.unclaim(self.name)

    def record(self, staged: StagedPages, state: SyncState) -> None:
        """Go on from a staged file: it is in the overlay and waits for its upload."""
        self.pages.staged.append(staged)
        self.staged_at[staged.txid] = self.clock.monotonic()
        self.enqueue(info_of(staged, 0))
        self.state = state

    def enqueue(self, info: FileInfo) -> None:
        """Let a staged file wait for its upload."""
        self.queue.append(info)
        self.count_spool()

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
            try:
                staged, state = capture.stage_diff(source)
            except OutgrownError:
                self.all_cause = f"{self.diff_cause}; what differs does not fit into the spool"
                return self.wish_stream("pages")
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
        """Stage every page; with a broken chain or a new page size a level-9 file comes first.

        What the spool cannot hold is wished for as a stream.
        """
        try:
            with self.capturing(session) as capture:
                source = capture.source()
                if self.outgrows(source):
                    return self.wish_stream("pages")
                snapshot = None
                if self.needs_snapshot(source):
                    snapshot = capture.stage_snapshot(source, following=True)
                staged, state = capture.stage_all(source)
        except OutgrownError:
            self.outgrown = source.commit
            return self.wish_stream("pages")
        # The snapshot is taken up now that both are there: they are one content.
        info = info_of(snapshot, SNAPSHOT_LEVEL) if snapshot is not None else None
        self.take_up_all(session, info, staged, state)
        self.save()
        return True

    def take_up_all(
        self, session: Session, snapshot: FileInfo | None, staged: StagedPages, state: SyncState
    ) -> None:
        """Go on from a file with every page, and the snapshot of it that goes first."""
        cause = self.heal_cause or self.all_cause or "this is the first backup"
        if snapshot is not None:
            self.enqueue(snapshot)
        self.log_why("shipping every page", cause)
        self.record(staged, replace(state, take_over=False))
        self.heal_cause = self.all_cause = self.diff_cause = self.stream_wish = ""
        session.unbroken = True

    def needs_snapshot(self, source: SnapshotSource) -> bool:
        """Return whether a level-9 file has to go before all pages at level 0."""
        size_changed = self.state.page_size not in (0, source.page_size)
        return bool(self.heal_cause or size_changed) and self.state.txid > 0

    # --- past the spool ---

    def outgrows(self, source: SnapshotSource) -> bool:
        """Return whether the spool could not hold the database when it was as large as now."""
        return 0 < self.outgrown <= source.commit

    def wish_stream(self, what: str) -> bool:
        """Let ``pages`` or a ``snapshot`` go past the spool; nothing is staged: False."""
        if what == "pages" and self.stream is not None:
            self.stream.ring.give_up("every page is to be streamed instead")
        self.stream_wish = what if self.stream_wish != "pages" else "pages"
        return False

    @property
    def waits_for_stream(self) -> bool:
        """Return whether nothing may be staged until a stream has taken all its pages up."""
        if self.stream is not None and self.stream.holds_position:
            return True
        return self.stream_wish == "pages"

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
