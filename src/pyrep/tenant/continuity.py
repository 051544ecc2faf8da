"""Prove that nothing was missed since the last sync, or say why a diff is needed.

Within one WAL generation (named by both salts) the log is append-only up to its last commit.
What counts as committed is ``mxFrame`` of the wal-index, never the file: a commit frame above it
may be that of a writer that died before it updated the index.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from pyrep import _checksum, _wal
from pyrep.errors import DatabaseBusyError, WALError
from pyrep.ids import Salts, lock_pgno
from pyrep.sqlite import Attachment
from pyrep.tenant.position import SyncState

__all__ = [
    "Change",
    "WALView",
    "decide",
    "look",
    "needs_file",
    "prove",
    "range_floor",
    "read_snapshot_map",
]

_ATTEMPTS = 60
_PAUSE_SECONDS = 0.001
_FIRST = _wal.WAL_HEADER_SIZE


@dataclass(frozen=True, slots=True)
class WALView:
    """Hold one look at the WAL: its header, mxFrame and the frames backfilled.

    ``log`` is 0 when no frame counts (no WAL, or a restart without frames yet).
    """

    raw: bytes
    header: _wal.WALHeader | None
    log: int
    backfilled: int

    @property
    def salts(self) -> Salts:
        """Return the generation's name, (0, 0) when no frame counts."""
        if self.header is None or self.log == 0:
            return Salts(0, 0)
        return Salts(self.header.salt1, self.header.salt2)

    @property
    def end_offset(self) -> int:
        """Return the offset just past the frame at mxFrame, in bytes."""
        if self.header is None:
            return _FIRST
        return _FIRST + self.log * (_wal.FRAME_HEADER_SIZE + self.header.page_size)


@dataclass(frozen=True, slots=True)
class Change:
    """Say what is to be shipped: ``none``, ``range`` (with ``scan``) or ``diff`` (with why)."""

    kind: str
    view: WALView
    scan: _wal.WALScan | None = None
    reason: str = ""


def look(att: Attachment) -> WALView:
    """Read the WAL header, then ask for mxFrame; the caller reads the header once more after.

    :raises WALError: the bytes are no WAL of SQLite
    """
    raw = att.wal_header()
    state = att.noop()
    header = _wal.parse_header(raw) if len(raw) >= _FIRST else None
    log = max(state.log, 0) if header is not None else 0
    return WALView(raw, header, log, max(state.backfilled, 0))


def prove(
    att: Attachment,
    state: SyncState,
    *,
    unbroken: bool,
    page_crc: Callable[[int], int],
    max_bytes: int,
) -> Change:
    """Decide how the database moved on since ``state``, under R.

    ``unbroken``: R was held without a gap since the position, or the fingerprint of a sealed
    tenant was unchanged after R began; then another generation is exactly one restart away.
    ``page_crc`` gives the CRC-64 that a page has at the position.

    :raises DatabaseBusyError: the WAL moved at every look; R stays where it is
    """
    if not state.end_offset:
        return Change("diff", look(att), reason="the place in the WAL is not known")
    stable = 0
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        view = look(att)
        change = decide(att, state, view, unbroken, page_crc, max_bytes)
        if att.wal_header() != view.raw:
            stable = 0
            continue
        if change is not None:
            return change
        stable += 1
    if stable > _ATTEMPTS // 2:
        return Change("diff", view, reason="frames of the WAL are damaged")
    raise DatabaseBusyError(f"{att.path}: the WAL moves faster than it can be read")


def decide(
    att: Attachment,
    state: SyncState,
    view: WALView,
    unbroken: bool,
    page_crc: Callable[[int], int],
    max_bytes: int,
) -> Change | None:
    """Decide how the database moved on from ``state`` to exactly ``view``, under R.

    None if frames are not there as the index says.
    """
    header = view.header
    if header is None or view.log == 0:
        if unbroken:
            return Change("none", view)
        return Change("diff", view, reason="the WAL no longer holds the place of the last sync")
    if header.page_size != state.page_size:
        return Change("diff", view, reason="the page size changed")
    if view.salts != state.salts:
        if not unbroken:
            return Change("diff", view, reason="the WAL was restarted while nobody watched")
        return _scan(att, view, _FIRST, (header.checksum1, header.checksum2), state, max_bytes)
    frame_size = _wal.FRAME_HEADER_SIZE + header.page_size
    if view.log < (state.end_offset - _FIRST) // frame_size:
        return Change("diff", view, reason="the WAL ends before the last synced frame")
    seed = _seed(att, state, header, page_crc)
    if seed is None:
        return Change("diff", view, reason="the last synced frame was overwritten")
    return _scan(att, view, state.end_offset, seed, state, max_bytes)


def _scan(
    att: Attachment,
    view: WALView,
    start: int,
    seed: tuple[int, int],
    state: SyncState,
    max_bytes: int,
) -> Change | None:
    if view.header is None:
        return None
    for limit in (max_bytes, 0):
        scan = _wal.scan(
            att.wal_fd,
            view.header,
            start_offset=start,
            checksum1=seed[0],
            checksum2=seed[1],
            max_frame=view.log,
            max_bytes=limit,
            commit=state.commit,
        )
        # A range that was cut short may not read the file: that may be ahead of the range's end.
        if not (scan.limited and needs_file(scan, state.commit, view.header.page_size)):
            break
    if not (scan.complete or scan.limited):
        return None
    return Change("range" if scan.frames else "none", view, scan)


def needs_file(scan: _wal.WALScan, commit: int, page_size: int) -> bool:
    """Return whether pages of the range are to be looked for outside its own frames.

    These are pages in (``commit``, new commit] without a frame, and, where the database shrank
    inside the range, every page above the smallest size: a checkpoint may have cut it off the
    file after its frame was written.
    """
    floor = range_floor(scan, commit)
    lock = lock_pgno(page_size)
    wanted = scan.commit - floor - (1 if floor < lock <= scan.commit else 0)
    held = len(scan.pgnos) - bisect_right(scan.pgnos, floor)
    return scan.commit > floor and wanted > 0 and (bool(scan.shrunk_to) or held != wanted)


def range_floor(scan: _wal.WALScan, commit: int) -> int:
    """Return the page up to which a range's own frames are the whole truth."""
    return min(commit, scan.shrunk_to) if scan.shrunk_to else commit


def _seed(
    att: Attachment,
    state: SyncState,
    header: _wal.WALHeader,
    page_crc: Callable[[int], int],
) -> tuple[int, int] | None:
    """Return the running checksum after our last frame, or None if that frame is not ours."""
    if state.end_offset <= _FIRST:
        return header.checksum1, header.checksum2
    size = _wal.FRAME_HEADER_SIZE + header.page_size
    frame = os.pread(att.wal_fd, size, state.end_offset - size)
    if len(frame) < size:
        return None
    pgno, commit, salt1, salt2, check1, check2 = (
        int.from_bytes(frame[at : at + 4], "big") for at in range(0, 24, 4)
    )
    if (salt1, salt2) != (header.salt1, header.salt2) or commit != state.commit:
        return None
    if state.checksum is not None:
        return (check1, check2) if (check1, check2) == state.checksum else None
    # After an unclean stop: within a generation, the frame whose page is what we staged is ours.
    ours = _checksum.crc64(frame[_wal.FRAME_HEADER_SIZE :]) == page_crc(pgno)
    return (check1, check2) if ours else None


def read_snapshot_map(att: Attachment) -> tuple[WALView, _wal.WALScan | None, dict[int, int]]:
    """Return where R's snapshot has its pages: a look, the whole generation, page -> offset.

    The truth of a page is its newest frame up to mxFrame if that frame was not backfilled yet,
    else the file (a frame that was backfilled may have been cut off the file since, by a shrink,
    and the page grown again).  Frames above the backfill mark cannot be overwritten: a mark of R
    above 0 forbids a restart, and on mark 0 nothing is backfilled.

    :raises DatabaseBusyError: the WAL moved at every look
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        view = look(att)
        if view.header is None or view.log == 0:
            if att.wal_header() == view.raw:
                return view, None, {}
            continue
        try:
            scan = _wal.scan(
                att.wal_fd,
                view.header,
                checksum1=view.header.checksum1,
                checksum2=view.header.checksum2,
                max_frame=view.log,
            )
        except WALError:
            continue
        if not scan.complete or att.wal_header() != view.raw:
            continue
        size = _wal.FRAME_HEADER_SIZE + view.header.page_size
        floor = _FIRST + view.backfilled * size
        fresh = {
            pgno: offset
            for pgno, offset in zip(scan.pgnos, scan.offsets, strict=True)
            if offset >= floor
        }
        return view, scan, fresh
    raise DatabaseBusyError(f"{att.path}: the WAL moves faster than it can be read")
