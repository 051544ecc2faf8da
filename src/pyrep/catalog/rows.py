"""What the catalog holds, as values, and how SQLite stores it.

TXIDs and node ids are unsigned 64-bit numbers, which SQLite's integers are not: they are 16 hex
digits, which sort the same.  Paths are bytes, because a file name need not be text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import apsw

from pyrep.clock import from_ms, to_ms
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo

__all__ = ["TENANT_COLUMNS", "Answer", "LevelRow", "ProofRow", "Request", "StoredFile"]
__all__ += ["TenantRow", "file_values", "level_row", "proof_row", "proof_values"]
__all__ += ["request_row", "storable_text", "stored_file", "tenant_row", "tenant_values"]

TENANT_COLUMNS = (
    "path, replica, node_id, state, status, local_txid, durable_txid, pending_files, "
    "pending_bytes, lag, error, updated_ms"
)
NO_TXID = TXID(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRow:
    """Hold what the catalog knows of a tenant.

    ``state`` is the sync state as text; an empty one leaves the stored one as it is.
    ``status`` is the word of a report, ``lag_seconds`` was true at ``updated_at``.
    """

    path: str
    replica: str = ""
    node_id: int = 0
    state: str = ""
    status: str = "new"
    local_txid: TXID = NO_TXID
    durable_txid: TXID = NO_TXID
    pending_files: int = 0
    pending_bytes: int = 0
    lag_seconds: float = 0.0
    error: str = ""
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Describe an LTX file that the storage acknowledged, and when."""

    info: FileInfo
    acked_at: datetime


@dataclass(frozen=True, slots=True)
class LevelRow:
    """Sum up one level of a replica: newest TXID, files, first and last acknowledgement in ms."""

    top: TXID
    count: int
    first_acked_ms: int
    last_acked_ms: int


@dataclass(frozen=True, slots=True)
class ProofRow:
    """Remember a verification: when, what was wrong, and what was last proven restorable when."""

    path: str
    txid: TXID
    proven_at: datetime | None
    verified_at: datetime
    error: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """Hold what somebody asks of the running daemon."""

    id: int
    verb: str
    argument: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold the daemon's answer; ``ok`` False: the text is an error."""

    ok: bool
    text: str


def storable_text(text: str) -> str:
    """Return text that SQLite can hold: bytes of a path that are no text are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def tenant_row(row: apsw.SQLiteValues) -> TenantRow:
    """Return a row of the table of tenants as a value."""
    path, replica, node_id, state, status, local, durable, files, size, lag, error, updated = row
    return TenantRow(
        path=os.fsdecode(cast(bytes, path)),
        replica=str(replica),
        node_id=int(str(node_id), 16),
        state=str(state),
        status=str(status),
        local_txid=TXID(int(str(local), 16)),
        durable_txid=TXID(int(str(durable), 16)),
        pending_files=cast(int, files),
        pending_bytes=cast(int, size),
        lag_seconds=cast(float, lag),
        error=str(error),
        updated_at=from_ms(cast(int, updated)),
    )


def tenant_values(row: TenantRow, now: datetime) -> tuple[apsw.SQLiteValue, ...]:
    """Return a tenant's row as SQLite stores it; ``now`` counts if it has no time."""
    return (
        os.fsencode(row.path),
        storable_text(row.replica),
        f"{row.node_id:016x}",
        storable_text(row.state),
        row.status,
        str(row.local_txid),
        str(row.durable_txid),
        row.pending_files,
        row.pending_bytes,
        row.lag_seconds,
        storable_text(row.error),
        to_ms(row.updated_at or now),
    )


def stored_file(row: apsw.SQLiteValues) -> StoredFile:
    """Return a row of the table of files as a value."""
    level, low, high, size, timestamp_ms, acked_ms = row
    info = FileInfo(
        cast(int, level),
        TXID(int(str(low), 16)),
        TXID(int(str(high), 16)),
        cast(int, size),
        cast(int, timestamp_ms),
    )
    return StoredFile(info, from_ms(cast(int, acked_ms)))


def file_values(tenant: str, info: FileInfo, acked_ms: int) -> tuple[apsw.SQLiteValue, ...]:
    """Return a file as the table of files stores it."""
    return (
        os.fsencode(tenant),
        info.level,
        f"{info.min_txid:016x}",
        f"{info.max_txid:016x}",
        info.size,
        info.timestamp_ms,
        acked_ms,
    )


def level_row(row: apsw.SQLiteValues) -> tuple[int, LevelRow]:
    """Return a level and its sum from a row of the grouped table of files."""
    _, level, top, count, first, last = row
    summary = LevelRow(TXID(int(str(top), 16)), cast(int, count), cast(int, first), cast(int, last))
    return cast(int, level), summary


def proof_row(row: apsw.SQLiteValues) -> ProofRow:
    """Return a row of the table of verifications as a value."""
    path, txid, proven_ms, verified_ms, error = row
    return ProofRow(
        os.fsdecode(cast(bytes, path)),
        TXID(int(str(txid), 16)),
        from_ms(cast(int, proven_ms)) if proven_ms else None,
        from_ms(cast(int, verified_ms)),
        str(error),
    )


def request_row(row: apsw.SQLiteValues) -> Request:
    """Return a row of the table of requests as a value."""
    number, verb, argument = row
    return Request(cast(int, number), str(verb), os.fsdecode(cast(bytes, argument)))


def proof_values(row: ProofRow) -> tuple[apsw.SQLiteValue, ...]:
    """Return a verification as SQLite stores it."""
    return (
        os.fsencode(row.path),
        str(row.txid),
        to_ms(row.proven_at) if row.proven_at else 0,
        to_ms(row.verified_at),
        storable_text(row.error),
    )
