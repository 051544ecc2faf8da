"""Open a catalog's file: create it, check it, move a damaged one aside."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TypeVar, cast

import apsw

from pyrep import osfs
from pyrep.catalog.rows import TENANT_COLUMNS, proof_row, request_row, tenant_row
from pyrep.errors import PyrepError

__all__ = ["SCHEMA_VERSION", "Access", "begin_anew", "decoded", "is_damage", "open_catalog"]
__all__ += ["translated"]

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x50595243  # "PYRC"
_BUSY_MS = 5000
_CREATION_ATTEMPTS = 40
_CREATION_PAUSE_SECONDS = 0.05
_WRITABLE = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
_ASIDE = ".aside"
_log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE tenants (
    path BLOB PRIMARY KEY, replica TEXT NOT NULL, node_id TEXT NOT NULL, state TEXT NOT NULL,
    status TEXT NOT NULL, local_txid TEXT NOT NULL, durable_txid TEXT NOT NULL,
    pending_files INTEGER NOT NULL, pending_bytes INTEGER NOT NULL, lag REAL NOT NULL,
    error TEXT NOT NULL, updated_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE files (
    tenant BLOB NOT NULL, level INTEGER NOT NULL, min_txid TEXT NOT NULL, max_txid TEXT NOT NULL,
    size INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL, acked_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, level, min_txid, max_txid)
) WITHOUT ROWID;
CREATE TABLE boots (
    number INTEGER PRIMARY KEY, boot_id TEXT NOT NULL UNIQUE, clean INTEGER NOT NULL
);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT, verb TEXT NOT NULL, argument BLOB NOT NULL,
    created_ms INTEGER NOT NULL, answered_ms INTEGER, ok INTEGER, answer TEXT
);
"""

# What came later and is empty at first: an older catalog gets it and stays.
_ADDED = """
CREATE TABLE IF NOT EXISTS proofs (
    path BLOB PRIMARY KEY, txid TEXT NOT NULL, proven_ms INTEGER NOT NULL,
    verified_ms INTEGER NOT NULL, error TEXT NOT NULL
) WITHOUT ROWID;
"""


# What no pyrep wrote, though the pages of the file are in order: bytes were changed in place.
_FOREIGN_FILE = """
SELECT 1 FROM files WHERE typeof(tenant) != 'blob' OR level NOT BETWEEN 0 AND 9
    OR typeof(level) != 'integer' OR length(min_txid) != 16 OR length(max_txid) != 16
    OR min_txid GLOB '*[^0-9a-f]*' OR max_txid GLOB '*[^0-9a-f]*'
    OR typeof(size) != 'integer' OR size < 0
    OR typeof(timestamp_ms) != 'integer' OR typeof(acked_ms) != 'integer'
    OR acked_ms NOT BETWEEN 0 AND ?1 LIMIT 1
"""
_FOREIGN = (
    "SELECT 1 FROM boots WHERE clean NOT IN (0, 1) OR typeof(boot_id) != 'text' LIMIT 1",
    "SELECT 1 FROM tenants WHERE typeof(path) != 'blob' LIMIT 1",
)
_END_OF_TIME_MS = 253402300799999  # of the last year that has four digits
_DECODED: tuple[tuple[str, Callable[[apsw.SQLiteValues], object]], ...] = (
    (f"SELECT {TENANT_COLUMNS} FROM tenants", tenant_row),
    ("SELECT path, txid, proven_ms, verified_ms, error FROM proofs", proof_row),
    ("SELECT id, verb, argument FROM requests", request_row),
)
_DAMAGE = (apsw.NotADBError, apsw.CorruptError)
T = TypeVar("T")


class Access(Enum):
    """Say who opens a catalog and why."""

    OWN = "own"  # the daemon: creates it, or begins a damaged one anew
    JOIN = "join"  # another process that writes a request for the daemon
    READ = "read"  # a report, with or without a daemon


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, with the catalog's name."""
    try:
        yield
    except apsw.Error as error:
        raise PyrepError(
            f"{path}: catalog cannot be used: {error}",
            hint="It is a cache: with the daemon stopped it may be deleted.",
        ) from error


def is_damage(error: PyrepError) -> bool:
    """Return whether a catalog that led to an error has to be begun anew."""
    return isinstance(error.__cause__, _DAMAGE)


def decoded(rows: Iterable[apsw.SQLiteValues], decode: Callable[[apsw.SQLiteValues], T]) -> list[T]:
    """Return rows as values.

    :raises apsw.CorruptError: one holds what was never written there
    """
    try:
        return [decode(row) for row in rows]
    except (ValueError, TypeError, OverflowError) as error:
        raise apsw.CorruptError(f"it has a row that cannot be read: {error}") from error


def begin_anew(path: Path, reason: str) -> apsw.Connection:
    """Move a damaged catalog aside, that nobody has open here, and return an empty one."""
    _move_aside(path)
    _log.warning(
        "catalog moved aside, beginning a new one",
        extra={"op": "open", "error": reason, "path": f"{path}{_ASIDE}"},
    )
    return _create(path, new=True)


def open_catalog(path: Path, access: Access) -> apsw.Connection:
    """Open a catalog.

    :raises PyrepError: it is not there, cannot be used, or belongs to a newer pyrep
    """
    if access is Access.OWN:
        return _own(path)
    if not path.exists():
        raise PyrepError(
            f"{path}: there is no catalog",
            hint="The daemon has not run with this configuration yet.",
        )
    readonly = access is Access.READ
    db = _connect(path, apsw.SQLITE_OPEN_READONLY if readonly else apsw.SQLITE_OPEN_READWRITE)
    try:
        with translated(path):
            _await_schema(db)
            if not _check_version(path, db):
                raise PyrepError(
                    f"{path}: catalog is of an older version",
                    hint="The next start of the daemon begins a new one.",
                )
            if not readonly:
                db.execute(_ADDED)
    except BaseException:
        db.close()
        raise
    return db


def _connect(path: Path, flags: int) -> apsw.Connection:
    with translated(path):
        db = apsw.Connection(str(path), flags=flags)
        db.set_busy_timeout(_BUSY_MS)
    return db


def _await_schema(db: apsw.Connection) -> None:
    """Give a daemon that starts just now the time to create its catalog."""
    for _ in range(_CREATION_ATTEMPTS):
        if db.pragma("user_version"):
            return
        time.sleep(_CREATION_PAUSE_SECONDS)


def _check_version(path: Path, db: apsw.Connection) -> bool:
    """Return whether the schema is ours; refuse one of the future."""
    version = int(cast(int, db.pragma("user_version")))
    if version > SCHEMA_VERSION:
        raise PyrepError(
            f"{path}: catalog has version {version}, this pyrep knows {SCHEMA_VERSION}",
            hint="Run the newer pyrep again, or move the file away: it is a cache.",
        )
    return version == SCHEMA_VERSION


def _own(path: Path) -> apsw.Connection:
    """Open a catalog for writing; one that is damaged or of an older version is begun anew."""
    there = path.exists() and path.stat().st_size > 0
    reason = _damage(path) if there else ""
    if reason:
        return begin_anew(path, reason)
    return _create(path, new=not there)


def _create(path: Path, *, new: bool) -> apsw.Connection:
    """Open a catalog that is in order, or make a new one."""
    db = _connect(path, _WRITABLE)
    try:
        with translated(path):
            db.pragma("journal_mode", "wal")
            db.pragma("synchronous", "NORMAL")
            if new:
                with db:
                    db.execute(_SCHEMA)
                    db.pragma("application_id", _APPLICATION_ID)
                    db.pragma("user_version", SCHEMA_VERSION)
            db.execute(_ADDED)
    except BaseException:
        db.close()
        raise
    return db


def _damage(path: Path) -> str:
    """Return why an existing file cannot be used as a catalog, '' if it can."""
    db = _connect(path, _WRITABLE)
    try:
        with translated(path):
            return _look(path, db)
    finally:
        db.close()


def _look(path: Path, db: apsw.Connection) -> str:
    try:
        if not _check_version(path, db):
            return "it has an older version, or another format"
        if db.pragma("application_id") != _APPLICATION_ID:
            return "it is not a catalog"
        rows = [str(row[0]) for row in db.execute("PRAGMA quick_check(1)")]
        return _find_foreign(db) if rows == ["ok"] else rows[0]
    except _DAMAGE as error:
        return str(error)


def _find_foreign(db: apsw.Connection) -> str:
    """Return what in a file without damaged pages was not written by us, '' for nothing."""
    db.execute(_ADDED)
    files = list(db.execute(_FOREIGN_FILE, (_END_OF_TIME_MS,)))
    if files or any(list(db.execute(sql)) for sql in _FOREIGN):
        return "it has a row that is none of ours"
    for sql, decode in _DECODED:
        decoded(db.execute(sql), decode)
    return ""


def _move_aside(path: Path) -> None:
    """Rename a catalog; what belongs to it goes, or it would be applied to its successor."""
    try:
        osfs.replace("catalog.rename", path, f"{path}{_ASIDE}")
        for suffix in ("-wal", "-shm", "-journal"):
            osfs.unlink("catalog.unlink", f"{path}{suffix}", missing_ok=True)
    except OSError as error:
        raise PyrepError(
            f"{path}: damaged catalog cannot be moved aside: {error.strerror}",
            hint="It is a cache: delete it and start again.",
        ) from error
