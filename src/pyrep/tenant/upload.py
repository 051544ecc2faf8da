"""Bring staged files to the replica, and find out who wrote a file that is there already."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from pyrep import ltxio
from pyrep._ltx import HEADER_SIZE, Header
from pyrep.errors import LTXCorruptError, ReplicaExistsError
from pyrep.ids import TXID, lock_pgno
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.file_link import StableFile
from pyrep.storage.reread import reread
from pyrep.tenant.lineage import describe_twin, describe_writer
from pyrep.tenant.pages import StagedPages
from pyrep.tenant.statedir import staged_name

__all__ = ["Outcome", "PutResult", "put", "put_stream", "staged_pages"]

_CHUNK = 1 << 20


class Outcome(Enum):
    """Say what the replica holds under a staged file's name now."""

    STORED = "stored"  # our content
    SUPERSEDED = "superseded"  # our lineage, same base, other content: killed after an earlier put
    FENCED = "fenced"  # somebody else's


@dataclass(frozen=True, slots=True)
class PutResult:
    """Hold the outcome of a put; ``found`` are the pages of the object that superseded ours.

    ``other`` is the header of a snapshot that was there already.
    """

    outcome: Outcome
    info: FileInfo
    text: str = ""
    found: StagedPages | None = None
    other: Header | None = None


def put(client: ReplicaClient, base: Path, info: FileInfo, *, late_ms: int = 0) -> PutResult:
    """Upload one staged file, create-only; returns when the storage said yes.

    A name that is taken is ours only if its content is, or if it may be a put of a killed run
    that arrived late: no newer than ``late_ms``, milliseconds since the epoch.
    """
    path = base / staged_name(info)
    try:
        with StableFile(path) as source:
            stored = client.write_ltx(
                info.level, info.min_txid, info.max_txid, source, create_only=True
            )
    except ReplicaExistsError:
        there = _remote_info(client, info)
        if _same_bytes(client, there, path):
            return PutResult(Outcome.STORED, there)
        mine = Header.parse(_first_bytes(path))
        return _compare(client, there, mine, lambda other: other.timestamp_ms <= late_ms)
    return PutResult(Outcome.STORED, stored)


def put_stream(
    client: ReplicaClient,
    info: FileInfo,
    header: Header,
    source: BinaryIO,
    *,
    late_ms: int,
    earlier: Collection[int],
) -> PutResult:
    """Upload a file that is being made, create-only; its bytes are nowhere else.

    ``earlier`` are the database checksums of this run's attempts that failed: their answers may
    have been lost.  A snapshot of another state is SUPERSEDED, with nothing found in it: its
    TXID is used up.
    """
    try:
        stored = client.write_ltx(
            info.level, info.min_txid, info.max_txid, source, create_only=True
        )
    except ReplicaExistsError:
        there = _remote_info(client, info)
        result = _compare(
            client,
            there,
            header,
            lambda other: other.timestamp_ms <= late_ms or other.post_checksum in earlier,
        )
        if result.other is not None and result.other.post_checksum != header.post_checksum:
            return replace(result, outcome=Outcome.SUPERSEDED)
        return result
    return PutResult(Outcome.STORED, stored)


def _compare(
    client: ReplicaClient, there: FileInfo, mine: Header, may_be_ours: Callable[[Header], bool]
) -> PutResult:
    """Find out whose the object under our name is; it is read as a stream.

    ``may_be_ours`` says of one with our lineage and base whether an earlier put explains it.
    """
    try:
        other = reread(lambda: _verify(client, there))
    except LTXCorruptError as error:
        return PutResult(Outcome.FENCED, there, f"{there.name} is there and damaged: {error}")
    if there.level > 0:  # an existing valid file of the same range
        return PutResult(Outcome.STORED, there, other=other)
    if other.node_id != mine.node_id or not other.is_pyrep:
        return PutResult(Outcome.FENCED, there, describe_writer(other))
    same_base = other.pre_checksum == mine.pre_checksum
    if same_base and other.post_checksum == mine.post_checksum and mine.post_checksum:
        return PutResult(Outcome.STORED, there)
    if same_base and may_be_ours(other):
        with client.open_ltx(there) as source:
            return PutResult(Outcome.SUPERSEDED, there, found=staged_pages(source, there.size))
    return PutResult(Outcome.FENCED, there, describe_twin(other))


def _verify(client: ReplicaClient, info: FileInfo) -> Header:
    with client.open_ltx(info) as source:
        return ltxio.verify(source, name=info.name)


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEADER_SIZE)


def _same_bytes(client: ReplicaClient, there: FileInfo, path: Path) -> bool:
    if there.size != path.stat().st_size:
        return False
    with client.open_ltx(there) as theirs, open(path, "rb") as ours:
        while mine := ours.read(_CHUNK):
            if theirs.read(len(mine)) != mine:
                return False
    return True


def _remote_info(client: ReplicaClient, info: FileInfo) -> FileInfo:
    for there in client.list_ltx(info.level, info.min_txid):
        if (there.min_txid, there.max_txid) == (info.min_txid, info.max_txid):
            return there
        if there.min_txid > info.min_txid:
            break
    return info


def staged_pages(source: BinaryIO, size: int) -> StagedPages:
    """Verify an LTX file wholly and return the checksums of its pages.

    :raises LTXCorruptError: it is damaged
    """
    header, pgnos, crcs = ltxio.page_crcs(source)
    lock = lock_pgno(header.page_size)
    everything = header.commit - (1 if lock <= header.commit else 0)
    full = len(pgnos) == everything
    if full:
        if lock <= header.commit:
            crcs.insert(lock - 1, 0)
        pgnos = array("I")
    return StagedPages(
        TXID(header.max_txid),
        header.page_size,
        header.commit,
        pgnos,
        crcs,
        full,
        header.pre_checksum,
        header.post_checksum,
        header.timestamp_ms,
        size,
    )
