"""Turn a proven change, a diff or the whole database into staged LTX files."""

from __future__ import annotations

import contextlib
import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyrep import _checksum, _ltx, _wal, osfs
from pyrep.errors import DatabaseBusyError, DatabaseError, WALError
from pyrep.ids import SNAPSHOT_LEVEL, TXID, lock_pgno
from pyrep.ltxfile import FileInfo, format_name
from pyrep.ltxio import LTXWriter
from pyrep.sqlite import Attachment
from pyrep.tenant.continuity import Change, WALView, needs_file, range_floor, read_snapshot_map
from pyrep.tenant.pages import WINDOW_PAGES, LocalPages, PageTable, StagedPages
from pyrep.tenant.position import SyncState
from pyrep.tenant.statedir import create_file, staged_name

__all__ = ["Capture", "OutgrownError", "SnapshotSource", "SpoolFullError"]

_FIRST = _wal.WAL_HEADER_SIZE
_FROM_FILE = -1


class SpoolFullError(DatabaseError):
    """Say that a staged file would not fit into the tenant's spool."""


class OutgrownError(SpoolFullError):
    """Say that a file is larger than all that the tenant may ever stage."""


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    """Say where R's snapshot lies: pages in the WAL by offset, the rest in the file."""

    view: WALView
    fresh: dict[int, int]
    commit: int
    page_size: int
    checksum: tuple[int, int]
    change_counter: int
    order: array[int]

    def fresh_between(self, first: int, stop: int) -> Sequence[int]:
        """Return the pages from ``first`` to before ``stop`` that are in the WAL."""
        order = self.order
        return order[bisect_left(order, first) : bisect_left(order, stop)]

    def offsets(self, pgnos: array[int]) -> array[int]:
        """Return where these pages are: the offset of a frame, -1 for the file."""
        if not self.fresh:
            return array("q", [_FROM_FILE]) * len(pgnos)
        return array("q", (self.fresh.get(pgno, _FROM_FILE) for pgno in pgnos))


@dataclass(slots=True)
class Capture:
    """Build staged files of one tenant; the caller holds R and the tenant's lock.

    ``limit`` is how many bytes may still be staged (``roomy``: as many as ever), each of which
    ``claim`` must grant before it is written, ``like`` the
    database file's status (owner and mode of what is created), ``timestamp_ms`` the time for the
    next file.  A database without WAL is read in short transactions: ``hold`` around each window
    of ``window_pages``.
    With a ``zstd_level`` snapshots are compressed with zstd; level 0 is always LZ4.
    """

    att: Attachment
    base: Path
    pages: LocalPages
    state: SyncState
    like: os.stat_result
    timestamp_ms: int
    limit: int
    roomy: bool = False
    hold: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    window_pages: int = WINDOW_PAGES
    zstd_level: int | None = None
    claim: Callable[[int], bool] = lambda size: True
    written: int = 0

    # --- a range of the WAL ---

    def stage_range(self, change: Change) -> tuple[StagedPages, SyncState]:
        """Stage the committed frames that ``change`` proved, as the next TXID."""
        scan, header = change.scan, change.view.header
        if scan is None or header is None:
            raise DatabaseError(f"{self.att.path}: a change without frames cannot be staged")
        pgnos, offsets = self._complete(scan, change.view, header.page_size)
        staged = self._write(
            self._header(
                scan.commit,
                header.page_size,
                wal=(scan.start_offset, scan.end_offset - scan.start_offset, change.view),
            ),
            pgnos,
            offsets,
        )
        if self.att.wal_header() != change.view.raw:
            self._drop(staged.txid)
            raise DatabaseBusyError(f"{self.att.path}: the WAL was restarted by another program")
        state = replace(
            self._advanced(staged),
            salts=change.view.salts,
            end_offset=scan.end_offset,
            checksum=(scan.checksum1, scan.checksum2),
        )
        return staged, state

    def _complete(
        self, scan: _wal.WALScan, view: WALView, page_size: int
    ) -> tuple[array[int], array[int]]:
        """Add the pages that the range needs and its frames do not hold.

        These are the pages in (old commit, new commit] without a frame, and, where the database
        shrank inside the range, every page above the smallest size: a checkpoint may have cut
        it off the file after its frame was written.
        """
        if not needs_file(scan, self.state.commit, page_size):
            return scan.pgnos, scan.offsets
        floor, lock = range_floor(scan, self.state.commit), lock_pgno(page_size)
        newest = dict(zip(scan.pgnos, scan.offsets, strict=True))
        unfiled = self._frames_not_backfilled(scan, view)
        for pgno in range(floor + 1, scan.commit + 1):
            if pgno != lock:
                newest[pgno] = unfiled.get(pgno, _FROM_FILE)
        pgnos = array("I", sorted(newest))
        return pgnos, array("q", [newest[pgno] for pgno in pgnos])

    def _frames_not_backfilled(self, scan: _wal.WALScan, view: WALView) -> dict[int, int]:
        """Map the pages of this generation up to the range's end whose frames are in the WAL only.

        The truth of a page is its newest frame if that was not backfilled yet, else the file.
        """
        if view.header is None:
            return {}
        size = _wal.FRAME_HEADER_SIZE + view.header.page_size
        if scan.start_offset > _FIRST:
            scan = _wal.scan(
                self.att.wal_fd, view.header, max_frame=(scan.end_offset - _FIRST) // size
            )
            if not scan.complete:
                raise DatabaseBusyError(f"{self.att.path}: the WAL was restarted while it was read")
        floor = _FIRST + view.backfilled * size
        return {p: o for p, o in zip(scan.pgnos, scan.offsets, strict=True) if o >= floor}

    # --- the whole database ---

    def source(self) -> SnapshotSource:
        """Find R's snapshot: which pages are to be read from the WAL, and how many there are."""
        view, scan, fresh = read_snapshot_map(self.att)
        head = self.att.header()
        raw_size = int.from_bytes(head[16:18], "big")
        page_size = 65536 if raw_size == 1 else raw_size
        if view.header is not None and view.log:
            page_size = view.header.page_size
        if scan is not None and scan.frames:
            sums = (scan.checksum1, scan.checksum2)
            order = array("I", sorted(fresh))
            return SnapshotSource(view, fresh, scan.commit, page_size, sums, 0, order)
        counter = int.from_bytes(head[24:28], "big")
        count = self.att.page_count()
        return SnapshotSource(view, {}, count, page_size, (0, 0), counter, array("I"))

    def stage_all(self, source: SnapshotSource) -> tuple[StagedPages, SyncState]:
        """Stage every page as the next TXID."""
        header = self.header_of_all(source, 0)
        staged = self._write_windows(header, source, self.all_pages(source), full=True)
        return staged, self.at_source(staged, source)

    def stage_snapshot(self, source: SnapshotSource, *, following: bool) -> StagedPages:
        """Stage every page as a level-9 file.

        It is the state of the position, with the time of that; ``following``: that of the next
        TXID, which is staged after it.
        """
        header = self.header_of_all(source, SNAPSHOT_LEVEL, following=following)
        pages = self.all_pages(source)
        return self._write_windows(header, source, pages, full=True, level=SNAPSHOT_LEVEL)

    def header_of_all(
        self, source: SnapshotSource, level: int, *, following: bool = True, post: int = 0
    ) -> _ltx.Header:
        """Return the header of a file with every page; ``post`` is its database checksum."""
        return self._header(
            source.commit,
            source.page_size,
            wal=self._wal_fields(source),
            snapshot_of=self.state.txid + following if level else 0,
            post=post,
        )

    def stage_diff(self, source: SnapshotSource) -> tuple[StagedPages | None, SyncState]:
        """Stage the pages that differ from the page-checksum table; None if none does."""
        changed = array("I")
        for first, count in self.windows(source.commit):
            with self.hold():
                now = self.current_crcs(source, first, count)
            before = self.pages.window(self.base, first, count)
            before_count = max(0, min(count, self.state.commit + 1 - first))
            changed.extend(
                first + at
                for at in range(count)
                if (at >= before_count or now[at] != before[at])
                and first + at != lock_pgno(source.page_size)
            )
        self.recheck(source)
        if not changed and source.commit == self.state.commit:
            return None, self._at(source)
        if not changed:
            changed = array("I", [1])
        header = self._header(source.commit, source.page_size, wal=self._wal_fields(source))
        windows = [
            changed[at : at + self.window_pages] for at in range(0, len(changed), self.window_pages)
        ]
        staged = self._write_windows(header, source, windows, full=False)
        return staged, self.at_source(staged, source)

    def current_crcs(self, source: SnapshotSource, first: int, count: int) -> array[int]:
        """Return the CRC-64 of each of ``count`` pages from page ``first`` in R's snapshot."""
        crcs = array("Q", bytes(count * 8))
        _checksum.crc64_pages_fd(self.att.db_fd, first, source.page_size, crcs)
        for pgno in source.fresh_between(first, first + count):
            crcs[pgno - first] = self._frame_crc(pgno, source.fresh[pgno], source)
        return crcs

    def _frame_crc(self, pgno: int, offset: int, source: SnapshotSource) -> int:
        size = _wal.FRAME_HEADER_SIZE + source.page_size
        frame = os.pread(self.att.wal_fd, size, offset)
        salts = b"".join(salt.to_bytes(4, "big") for salt in source.view.salts)
        if len(frame) < size or frame[8:16] != salts or int.from_bytes(frame[:4], "big") != pgno:
            raise WALError(f"{self.att.path}: the WAL was overwritten during a diff")
        return _checksum.crc64(frame[_wal.FRAME_HEADER_SIZE :])

    def windows(self, commit: int) -> Iterator[tuple[int, int]]:
        """Give the first page and the number of pages of each window."""
        for first in range(1, commit + 1, self.window_pages):
            yield first, min(self.window_pages, commit + 1 - first)

    def matching_position(self, header: _ltx.Header) -> tuple[SyncState, PageTable] | None:
        """Return position and table at the end of a replica whose newest file has ``header``.

        None if the database is not exactly the state that the file leads to.
        """
        source = self.source()
        if (source.page_size, source.commit) != (header.page_size, header.commit):
            return None
        crcs = array("Q")
        for first, count in self.windows(source.commit):
            with self.hold():
                crcs.extend(self.current_crcs(source, first, count))
        self.recheck(source)
        total = _checksum.database_checksum(crcs, 1, source.page_size)
        if not total or total != header.post_checksum:
            return None
        txid = TXID(header.max_txid)
        table = PageTable(source.page_size, source.commit, txid, total)
        table.write(self.base, [crcs], self.like)
        state = replace(
            self._at(source),
            node_id=header.node_id,
            txid=txid,
            durable_txid=txid,
            page_size=source.page_size,
            commit=source.commit,
            db_checksum=total,
        )
        return state, table

    def all_pages(self, source: SnapshotSource) -> Iterator[array[int]]:
        """Give the numbers of all pages but the lock page, window by window."""
        lock = lock_pgno(source.page_size)
        for first, count in self.windows(source.commit):
            yield array("I", (p for p in range(first, first + count) if p != lock))

    def _wal_fields(self, source: SnapshotSource) -> tuple[int, int, WALView]:
        return (_FIRST, source.view.end_offset - _FIRST if source.view.log else 0, source.view)

    # --- writing ---

    def _header(
        self,
        commit: int,
        page_size: int,
        *,
        wal: tuple[int, int, WALView],
        snapshot_of: int = 0,
        post: int = 0,
    ) -> _ltx.Header:
        txid = TXID(snapshot_of or self.state.txid + 1)
        new = txid > self.state.txid
        offset, size, view = wal
        salts = view.salts if size else (0, 0)
        zstd = snapshot_of and self.zstd_level is not None
        return _ltx.Header(
            page_size=page_size,
            commit=commit,
            min_txid=1 if snapshot_of else txid,
            max_txid=txid,
            timestamp_ms=max(self.timestamp_ms if new else 0, self.state.timestamp_ms),
            wal_offset=offset,
            wal_size=size,
            wal_salt1=salts[0],
            wal_salt2=salts[1],
            node_id=self.state.node_id,
            flags=_ltx.FLAG_NO_CHECKSUM | (_ltx.FLAG_ZSTD if zstd else 0),
            post_checksum=post,
        )

    def _write(self, header: _ltx.Header, pgnos: array[int], offsets: array[int]) -> StagedPages:
        self._prove_complete(header, pgnos)
        name = format_name(header.min_txid, header.max_txid)
        with create_file(self.base, name + ".tmp", "stage", self.like) as fd:
            writer = LTXWriter(fd, header, op="stage", claim=self._take)
            crcs = writer.add_pages(self.att.db_fd, self.att.wal_fd, pgnos, offsets)
            pre, post = self._checksums(header, pgnos, crcs)
            size = writer.finish(pre, post)
        osfs.replace("stage.rename", self.base / (name + ".tmp"), self.base / name)
        return self._pages_of(header, pgnos, crcs, pre, post, size, full=False)

    def _write_windows(
        self,
        header: _ltx.Header,
        source: SnapshotSource,
        windows: Iterable[array[int]],
        *,
        full: bool,
        level: int = 0,
    ) -> StagedPages:
        name = staged_name(FileInfo(level, TXID(header.min_txid), TXID(header.max_txid)))
        pgnos, crcs = array("I"), array("Q")
        with create_file(self.base, name + ".tmp", "stage", self.like) as fd:
            writer = LTXWriter(fd, header, op="stage", zstd_level=self.zstd_level, claim=self._take)
            for window in windows:
                offsets = source.offsets(window)
                with self.hold():
                    found = writer.add_pages(self.att.db_fd, self.att.wal_fd, window, offsets)
                crcs.extend(found)
                if not full:
                    pgnos.extend(window)
            self.recheck(source)
            if full:
                lock = lock_pgno(header.page_size)
                if lock <= header.commit:
                    crcs.insert(lock - 1, 0)
                pre, post = 0, _checksum.database_checksum(crcs, 1, header.page_size)
            else:
                self._prove_complete(header, pgnos)
                pre, post = self._checksums(header, pgnos, crcs)
            size = writer.finish(pre, post)
        osfs.replace("stage.rename", self.base / (name + ".tmp"), self.base / name)
        return self._pages_of(header, pgnos, crcs, pre, post, size, full=full)

    def recheck(self, source: SnapshotSource) -> None:
        """Refuse what was read if its ground moved meanwhile."""
        if source.fresh and self.att.wal_header() != source.view.raw:
            raise DatabaseBusyError(f"{self.att.path}: the WAL was restarted under a snapshot")
        if self.hold is contextlib.nullcontext:
            return
        with self.hold():
            moved = self.att.change_counter() != source.change_counter
        if moved:
            raise DatabaseBusyError(f"{self.att.path}: was written while it was being read")

    def _take(self, size: int) -> None:
        """Take the room for what is about to be written, or refuse it."""
        self.written += size
        outgrown = self.written > self.limit
        if outgrown or not self.claim(size):
            kind = OutgrownError if outgrown and self.roomy else SpoolFullError
            raise kind(
                f"{self.att.path}: the next file needs more than the {self.limit} bytes that "
                "spool-limit leaves for staging",
                hint="Look at the replica: uploads fail or are too slow; then raise the limit.",
            )

    def _prove_complete(self, header: _ltx.Header, pgnos: array[int]) -> None:
        """Refuse a file that lacks a page of (old commit, new commit]."""
        old, new = self.state.commit, header.commit
        if new <= old:
            return
        lock = lock_pgno(header.page_size)
        wanted = new - old - (1 if old < lock <= new else 0)
        if len(pgnos) - _count_up_to(pgnos, old) != wanted:
            raise DatabaseError(
                f"{self.att.path}: txid {TXID(header.max_txid)} would lack pages between {old} "
                f"and {new}; nothing was staged"
            )

    def _checksums(
        self, header: _ltx.Header, pgnos: array[int], crcs: array[int]
    ) -> tuple[int, int]:
        """Return the database checksum before and after the file, (0, 0) where unknown."""
        before = self.state.db_checksum
        if not before or not self.pages.usable:
            return 0, 0
        after = before
        old = pgnos[: _count_up_to(pgnos, self.state.commit)]
        after ^= self.pages.terms(self.base, old)
        for pgno, crc in zip(pgnos, crcs, strict=True):
            after ^= _checksum.page_term(crc, pgno)
        if header.commit < self.state.commit:
            after ^= self.pages.range_terms(
                self.base, header.commit + 1, self.state.commit, header.page_size
            )
        return before, after

    def _pages_of(
        self,
        header: _ltx.Header,
        pgnos: array[int],
        crcs: array[int],
        pre: int,
        post: int,
        size: int,
        *,
        full: bool,
    ) -> StagedPages:
        return StagedPages(
            TXID(header.max_txid),
            header.page_size,
            header.commit,
            pgnos,
            crcs,
            full,
            pre,
            post,
            header.timestamp_ms,
            size,
        )

    def _drop(self, txid: TXID) -> None:
        osfs.unlink("stage.unlink", self.base / format_name(txid, txid), missing_ok=True)

    # --- positions ---

    def _advanced(self, staged: StagedPages) -> SyncState:
        return replace(
            self.state,
            txid=staged.txid,
            page_size=staged.page_size,
            commit=staged.commit,
            db_checksum=staged.post_checksum,
            timestamp_ms=staged.timestamp_ms,
            fingerprint=None,
        )

    def _at(self, source: SnapshotSource) -> SyncState:
        return replace(
            self.state,
            salts=source.view.salts,
            end_offset=source.view.end_offset if source.view.log else _FIRST,
            checksum=source.checksum,
            fingerprint=None,
        )

    def at_source(self, staged: StagedPages, source: SnapshotSource) -> SyncState:
        """Return the position after a file that holds ``source``."""
        return replace(
            self._advanced(staged),
            salts=source.view.salts,
            end_offset=source.view.end_offset if source.view.log else _FIRST,
            checksum=source.checksum,
        )


def _count_up_to(pgnos: array[int], limit: int) -> int:
    return bisect_right(pgnos, limit)
