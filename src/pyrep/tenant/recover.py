"""Find a tenant's position again: saved state, staged files, page-checksum table."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from pyrep._ltx import HEADER_SIZE, Header
from pyrep.errors import LTXError
from pyrep.ids import TXID, Salts
from pyrep.ltxfile import FileInfo
from pyrep.tenant.pages import LocalPages, PageTable, StagedPages
from pyrep.tenant.position import SyncState
from pyrep.tenant.statedir import StateDir
from pyrep.tenant.upload import staged_pages

__all__ = ["Recovered", "StagedFile", "recover", "staged_files"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StagedFile:
    """Hold a staged level-0 file that was verified wholly."""

    info: FileInfo
    header: Header
    pages: StagedPages


@dataclass(frozen=True, slots=True)
class Recovered:
    """Hold the position to go on from, the files to upload, and why a diff is needed (or '').

    ``kept`` are files that the storage has and that stay for compaction and the next start.
    """

    state: SyncState
    pages: LocalPages
    queue: list[FileInfo]
    kept: list[FileInfo]
    diff_cause: str


def staged_files(folder: StateDir, name: str, top: TXID) -> list[StagedFile]:
    """Verify the staged level-0 files; a damaged one (a power cut) ends the list and is named.

    ``top`` is the replica's newest TXID: of the older files only those are looked at that the
    page-checksum table lacks.
    """
    found: list[StagedFile] = []
    if not folder.exists():
        return found
    with folder.base() as base:
        table = PageTable.peek(base)
        first = top if table is None else min(top, table + 1)
        for info in folder.staged():
            if info.level or info.max_txid < first:
                continue
            try:
                found.append(_verified(base, info))
            except (LTXError, OSError) as error:
                _log.info(
                    "dropping a staged file that a crash left incomplete",
                    extra={"db": name, "txid": info.max_txid, "error": str(error)},
                )
                break
    return found


def _verified(base: Path, info: FileInfo) -> StagedFile:
    with open(base / info.name, "rb") as source:
        header = Header.parse(source.read(HEADER_SIZE))
        source.seek(0)
        return StagedFile(info, header, staged_pages(source, info.size))


def recover(
    folder: StateDir, saved: SyncState, durable: TXID, staged: list[StagedFile], merged: TXID
) -> Recovered:
    """Bring position, table and upload queue to what really is there.

    ``durable`` is the replica's newest TXID, which is ours.  Files that follow it without a gap
    are uploaded; later ones are deleted: they were never uploaded, so their numbers are free.
    So are those that level 1 holds, up to ``merged``, but the newest.
    """
    by_txid = {file.info.max_txid: file for file in staged}
    pages = _pages(folder, durable, by_txid)
    follow = _following(by_txid, durable, pages.db_checksum)
    pages.staged.extend(file.pages for file in follow)
    kept, gone = [], []
    for info in folder.staged():
        stays = info.max_txid == durable or merged < info.max_txid < durable
        if stays and not info.level:
            kept.append(info)
        elif info.level or info.max_txid not in {file.info.max_txid for file in follow}:
            gone.append(info)
    folder.discard(gone)
    last = TXID(durable + len(follow))
    newest = by_txid.get(last)
    state, cause = _position(saved, last, newest)
    state = replace(state, txid=last, durable_txid=durable, db_checksum=pages.db_checksum)
    if last and not pages.usable:
        cause = cause or "the page checksums are gone"
    if pages.usable:
        state = replace(state, commit=pages.commit, page_size=pages.page_size)
    return Recovered(
        state,
        pages,
        [file.info for file in follow],
        kept,
        cause,
    )


def _following(by_txid: dict[TXID, StagedFile], durable: TXID, checksum: int) -> list[StagedFile]:
    """Return the files that go on from ``durable``, whose database checksum is given (0: unknown).

    One that goes on from another state was left by a run that gave it up and could not delete it,
    or was killed meanwhile; it, and all after it, must not follow what took its place.
    """
    follow: list[StagedFile] = []
    while (file := by_txid.get(TXID(durable + len(follow) + 1))) is not None:
        if checksum and file.pages.pre_checksum not in (0, checksum):
            break
        follow.append(file)
        checksum = file.pages.post_checksum
    return follow


def _pages(folder: StateDir, durable: TXID, by_txid: dict[TXID, StagedFile]) -> LocalPages:
    """Bring the table up to ``durable`` by redoing verified files, or drop it."""
    with folder.base() as base:
        table = PageTable.load(base)
        redo_from = table.txid if table is not None else TXID(0)
        pages = LocalPages(table)
        redo = [file.pages for txid, file in sorted(by_txid.items()) if redo_from < txid <= durable]
        whole = len(redo) == max(0, durable - redo_from)  # a TXID of the replica may be any number
        newest = by_txid.get(durable)
        if table is None or not whole:
            # A torn table is redone from the newest file only if that holds every page.
            pages = LocalPages(None)
            redo = [newest.pages] if newest is not None and newest.pages.full else []
        if table is not None and table.txid > durable:
            pages, redo = LocalPages(None), []
        for staged in redo:
            pages.staged.append(staged)
            pages.fold(base, None)
        return pages


def _position(saved: SyncState, last: TXID, newest: StagedFile | None) -> tuple[SyncState, str]:
    if saved.txid == last and saved.page_size:
        return saved, ""
    if newest is None:
        cause = "pyrep's record of its last position is gone"
        return saved.unproven(), cause
    header = newest.header
    state = replace(
        saved.unsealed(),
        page_size=header.page_size,
        salts=Salts(header.wal_salt1, header.wal_salt2),
        end_offset=header.wal_offset + header.wal_size,
        checksum=None,
        commit=header.commit,
        timestamp_ms=max(saved.timestamp_ms, header.timestamp_ms),
    )
    return state, ""
