"""Read and write the catalog; writes are gathered and committed together."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import TypeVar, cast

import apsw

from pyrep.catalog.file import Access, begin_anew, decoded, is_damage, open_catalog, translated
from pyrep.catalog.rows import (
    TENANT_COLUMNS,
    Answer,
    LevelRow,
    ProofRow,
    Request,
    StoredFile,
    TenantRow,
    file_values,
    level_row,
    proof_row,
    proof_values,
    request_row,
    storable_text,
    stored_file,
    tenant_row,
    tenant_values,
)
from pyrep.clock import Clock, SystemClock, to_ms
from pyrep.errors import PyrepError
from pyrep.ltxfile import FileInfo

__all__ = ["Catalog"]

_FLUSH_SECONDS = 0.2
_RETRY_SECONDS = 5.0
_BOOTS_KEPT = 256
_TOMBSTONE_AGE = timedelta(days=30)
_PRUNE_SECONDS = 3600.0
_PRUNED_AT_ONCE = 1000
_log = logging.getLogger(__name__)

_PUT_TENANT = """
INSERT INTO tenants VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
ON CONFLICT (path) DO UPDATE SET replica = ?2, node_id = ?3, state = iif(?4 = '', state, ?4),
    status = ?5, local_txid = ?6, durable_txid = ?7, pending_files = ?8, pending_bytes = ?9,
    lag = ?10, error = ?11, updated_ms = ?12
"""
_PUT_FILE = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)"
_LIST_FILE = """
INSERT INTO files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
ON CONFLICT DO UPDATE SET size = ?5, timestamp_ms = iif(size = ?5, timestamp_ms, ?6)
"""
_UNLISTED = """
DELETE FROM files WHERE tenant = ? AND level || min_txid || max_txid NOT IN
    (SELECT value FROM json_each(?))
"""
_DROP_FILE = """
DELETE FROM files WHERE tenant = ? AND level = ? AND min_txid = ? AND max_txid = ?
"""
_LEVELS = """
SELECT tenant, level, max(max_txid), count(*), min(acked_ms), max(acked_ms)
FROM files GROUP BY tenant, level ORDER BY tenant, level
"""

_PUT_PROOF = """
INSERT INTO proofs VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (path) DO UPDATE SET txid = iif(?3, ?2, txid), proven_ms = iif(?3, ?3, proven_ms),
    verified_ms = ?4, error = ?5
"""
_MARK_ABSENT = """
UPDATE tenants SET status = 'absent', pending_files = 0, pending_bytes = 0, updated_ms = ?
WHERE status != 'absent'
"""
_LONG_GONE = "SELECT path FROM tenants WHERE status = 'absent' AND updated_ms < ? LIMIT ?"
_FORGET = (
    "DELETE FROM files WHERE tenant = ?",
    "DELETE FROM proofs WHERE path = ?",
    "DELETE FROM tenants WHERE path = ?",
)
_HAS_PROOFS = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'proofs'"

Row = TypeVar("Row")


class Catalog:
    """Read and write a catalog; safe for use by several threads.

    Writes that are queued become durable together, at the latest ``flush_seconds`` later once
    ``start`` was called, or by ``flush``; reads see what was flushed.  Tenants that have been
    absent for 30 days are forgotten meanwhile, with their files.

    If the file turns out to be damaged while it is in use, the thread begins a new one and calls
    ``on_renewed``: what was known is to be said again.
    """

    def __init__(
        self,
        path: Path,
        *,
        access: Access = Access.OWN,
        clock: Clock | None = None,
        flush_seconds: float = _FLUSH_SECONDS,
    ) -> None:
        self.path = path
        self.on_renewed: Callable[[], None] | None = None
        self._access = access
        self._damage: PyrepError | None = None  # what to begin anew for
        self._boot_id = ""
        self._prune_at = float("-inf")
        self._clock = clock or SystemClock()
        self._flush_seconds = flush_seconds
        self._queue_lock = threading.Lock()
        self._tenants: dict[str, TenantRow] = {}  # guarded by _queue_lock
        self._queue: deque[tuple[str, tuple[apsw.SQLiteValue, ...]]] = (
            deque()
        )  # guarded by _queue_lock
        self._db_lock = threading.RLock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._db = open_catalog(path, access)

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread that flushes."""
        self._thread = threading.Thread(target=self._run, name="pyrep-catalog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Flush what is queued, end the thread and close the database; safe to call twice."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._db_lock:
            try:
                self.flush()
            except PyrepError as error:  # it is a cache: its loss is no failure of the daemon
                _log.error("cannot write the catalog", extra={"op": "close", "error": str(error)})
            finally:
                self._db.close()

    def flush(self) -> None:
        """Write what is queued in one transaction.

        :raises PyrepError: it cannot be written; it stays queued
        """
        with self._db_lock:
            with self._queue_lock:
                tenants, self._tenants = self._tenants, {}
                queue, self._queue = self._queue, deque()
            if not tenants and not queue:
                return
            try:
                with translated(self.path), self._db:
                    now = self._clock.now()
                    rows = (tenant_values(row, now) for row in tenants.values())
                    self._db.executemany(_PUT_TENANT, rows)
                    for sql, values in queue:
                        self._db.execute(sql, values)
                    if self._clock.monotonic() >= self._prune_at:
                        self._prune(now)
            except PyrepError as error:
                self._put_back(tenants, queue)
                self._doubt(error)
                raise

    def _prune(self, now: datetime) -> None:
        """Forget tenants that went long ago, a bounded number in one transaction."""
        before = to_ms(now - _TOMBSTONE_AGE)
        gone = [row for row in self._db.execute(_LONG_GONE, (before, _PRUNED_AT_ONCE))]
        for sql in _FORGET:
            self._db.executemany(sql, gone)
        pause = 0.0 if len(gone) == _PRUNED_AT_ONCE else _PRUNE_SECONDS
        self._prune_at = self._clock.monotonic() + pause

    def _put_back(
        self, tenants: dict[str, TenantRow], queue: deque[tuple[str, tuple[apsw.SQLiteValue, ...]]]
    ) -> None:
        """Queue again what could not be written, before what came since."""
        with self._queue_lock:
            for path, row in tenants.items():
                later = self._tenants.get(path, row)
                self._tenants[path] = replace(later, state=later.state or row.state)
            self._queue.extendleft(reversed(queue))

    def _run(self) -> None:
        pause = self._flush_seconds
        while not self._stop.is_set():
            self._clock.wait(self._wake, None)
            self._clock.wait(self._stop, pause)  # what comes meanwhile is written together
            self._wake.clear()
            pause = self._flush_quietly(pause)

    def _flush_quietly(self, pause: float) -> float:
        """Flush; return the seconds to gather before the next time.  A failure is said once."""
        try:
            self._renew()
            self.flush()
        except PyrepError as error:
            if self._damage is error:
                self._wake.set()
                return self._flush_seconds
            if pause == self._flush_seconds:
                _log.error("cannot write the catalog", extra={"op": "flush", "error": str(error)})
            self._wake.set()
            return _RETRY_SECONDS
        return self._flush_seconds

    # --- damage ---------------------------------------------------------------------------------

    def _doubt(self, error: PyrepError) -> None:
        """Let the thread begin a new catalog if an error shows damage."""
        if self._access is Access.OWN and is_damage(error):
            self._damage = error
            self._wake.set()

    def _renew(self) -> None:
        """Begin a new catalog in the place of one that is damaged.

        :raises PyrepError: that is not possible now
        """
        with self._db_lock:
            damage = self._damage
            if damage is None:
                return
            self._db.close()
            self._db = begin_anew(self.path, str(damage))
            self._damage = None
            if self._boot_id:
                self.mark_running(self._boot_id)
        if self.on_renewed is not None:
            self.on_renewed()

    # --- tenants and files ----------------------------------------------------------------------

    def save_tenant(self, row: TenantRow) -> None:
        """Queue a tenant's row; of several between two flushes the last one is written."""
        with self._queue_lock:
            before = self._tenants.get(row.path)
            if before is not None and before.state and not row.state:
                row = replace(row, state=before.state)
            self._tenants[row.path] = row
        self._wake.set()

    def add_file(self, tenant: str, info: FileInfo) -> None:
        """Queue a file that the storage acknowledged just now."""
        now = to_ms(self._clock.now())
        self._put(_PUT_FILE, *file_values(tenant, info, now))

    def replace_files(self, tenant: str, listing: Iterable[FileInfo]) -> None:
        """Queue that exactly these files are on a tenant's replica.

        Of files that are known, the times stay: a listing may show only the storage's own.
        """
        now = to_ms(self._clock.now())
        keys = []
        for info in listing:
            keys.append(f"{info.level}{info.min_txid:016x}{info.max_txid:016x}")
            acked_ms = max(0, min(info.timestamp_ms, now))
            self._put(_LIST_FILE, *file_values(tenant, info, acked_ms))
        self._put(_UNLISTED, os.fsencode(tenant), json.dumps(keys))

    def remove_files(self, tenant: str, files: Iterable[FileInfo]) -> None:
        """Forget files, before they are deleted; returns when that is written.

        :raises PyrepError: it cannot be written
        """
        for info in files:
            self._put(_DROP_FILE, *file_values(tenant, info, 0)[:4])
        self.flush()

    def mark_absent(self) -> None:
        """Record that no tenant is managed, until its row is saved again.

        Rows stay for 30 days: a tenant's lineage is kept for the day it comes back.
        """
        self._put(_MARK_ABSENT, to_ms(self._clock.now()))
        self.flush()

    def tenants(self) -> list[TenantRow]:
        """Return all tenants' rows, by path."""
        return self._all(tenant_row, f"SELECT {TENANT_COLUMNS} FROM tenants ORDER BY path")

    def tenant(self, path: str) -> TenantRow | None:
        """Return one tenant's row, also one that was not flushed yet, or None."""
        with self._queue_lock:
            queued = self._tenants.get(path)
        if queued is not None:
            return queued
        sql = f"SELECT {TENANT_COLUMNS} FROM tenants WHERE path = ?"
        rows = self._all(tenant_row, sql, os.fsencode(path))
        return rows[0] if rows else None

    def node_ids(self) -> dict[str, int]:
        """Return the lineage of every tenant that has one."""
        found = self._all(_lineage, "SELECT path, node_id FROM tenants")
        return {path: node_id for path, node_id in found if node_id}

    def files(self, tenant: str) -> list[StoredFile]:
        """Return the acknowledged files of a tenant, by level and TXID."""
        return self._all(
            stored_file,
            "SELECT level, min_txid, max_txid, size, timestamp_ms, acked_ms FROM files"
            " WHERE tenant = ? ORDER BY level, min_txid, max_txid",
            os.fsencode(tenant),
        )

    def levels(self) -> Iterator[tuple[str, dict[int, LevelRow]]]:
        """Give, tenant by tenant, what is known of each level that has files."""
        try:
            with self._db_lock, translated(self.path):
                cursor = self._db.execute(_LEVELS)
                for _, rows in itertools.groupby(cursor, itemgetter(0)):
                    found = decoded(rows, _tenant_and_level)
                    yield found[0][0], dict(level for _, level in found)
        except PyrepError as error:
            self._doubt(error)
            raise

    def save_proof(self, row: ProofRow) -> None:
        """Queue a verification; one that proved nothing leaves what was proven before."""
        self._put(_PUT_PROOF, *proof_values(row))

    def proofs(self) -> dict[str, ProofRow]:
        """Return the last verification of every tenant that had one, by path."""
        if not self._all(itemgetter(0), _HAS_PROOFS):
            return {}  # no verification was ever written here
        rows = self._all(proof_row, "SELECT path, txid, proven_ms, verified_ms, error FROM proofs")
        return {row.path: row for row in rows}

    # --- boots ----------------------------------------------------------------------------------

    def mark_running(self, boot_id: str) -> None:
        """Record, durably, that a run began in this boot.

        The chain of trusted boots goes on if the run before stopped cleanly or was in this
        very boot; else it begins anew with this boot.
        """
        self._boot_id = boot_id
        with self._durable() as db:
            last = list(db.execute("SELECT boot_id, clean FROM boots ORDER BY number DESC LIMIT 1"))
            if last and not last[0][1] and last[0][0] != boot_id:
                db.execute("DELETE FROM boots")
            db.execute(
                "INSERT INTO boots (boot_id, clean) VALUES (?, 0)"
                " ON CONFLICT (boot_id) DO UPDATE SET clean = 0",
                (boot_id,),
            )
            db.execute(
                "DELETE FROM boots WHERE number <= (SELECT max(number) FROM boots) - ?",
                (_BOOTS_KEPT,),
            )

    def mark_clean_stop(self) -> None:
        """Record, durably, that everything is closed and in order."""
        with self._durable() as db:
            db.execute("UPDATE boots SET clean = 1")

    def trusted_boots(self) -> frozenset[str]:
        """Return the boots that a clean stop ended, and the current one."""
        return frozenset(map(str, self._all(itemgetter(0), "SELECT boot_id FROM boots")))

    # --- requests -------------------------------------------------------------------------------

    def submit_request(self, verb: str, argument: str) -> int:
        """Write a request for the daemon; return its number."""
        with self._durable() as db:
            db.execute(
                "INSERT INTO requests (verb, argument, created_ms) VALUES (?, ?, ?)",
                (verb, os.fsencode(argument), to_ms(self._clock.now())),
            )
            return db.last_insert_rowid()

    def open_requests(self) -> list[Request]:
        """Return the requests without an answer, oldest first."""
        sql = "SELECT id, verb, argument FROM requests WHERE ok IS NULL ORDER BY id"
        return self._all(request_row, sql)

    def answer_request(self, request_id: int, ok: bool, text: str) -> None:
        """Queue the answer to a request; ``text`` is an error unless ``ok``."""
        now = to_ms(self._clock.now())
        sql = "UPDATE requests SET ok = ?, answer = ?, answered_ms = ? WHERE id = ? AND ok IS NULL"
        self._put(sql, int(ok), storable_text(text), now, request_id)

    def answer(self, request_id: int) -> Answer | None:
        """Return the answer to a request, None while there is none."""
        sql = "SELECT ok, answer FROM requests WHERE id = ? AND ok IS NOT NULL"
        rows = self._all(lambda row: Answer(bool(row[0]), str(row[1])), sql, request_id)
        return rows[0] if rows else None

    def forget_requests(self, reason: str) -> None:
        """Answer every open request with an error and delete those answered before."""
        self._put("DELETE FROM requests WHERE ok IS NOT NULL")
        for request in self.open_requests():
            self.answer_request(request.id, False, reason)
        self.flush()

    # --- inside ---------------------------------------------------------------------------------

    def _put(self, sql: str, *values: apsw.SQLiteValue) -> None:
        with self._queue_lock:
            self._queue.append((sql, values))
        self._wake.set()

    def _all(
        self, decode: Callable[[apsw.SQLiteValues], Row], sql: str, *values: apsw.SQLiteValue
    ) -> list[Row]:
        try:
            with self._db_lock, translated(self.path):
                return decoded(self._db.execute(sql, values), decode)
        except PyrepError as error:
            self._doubt(error)
            raise

    @contextlib.contextmanager
    def _durable(self) -> Iterator[apsw.Connection]:
        """Yield the connection inside a transaction that survives a power cut."""
        with self._db_lock, translated(self.path):
            self._db.execute("PRAGMA synchronous=FULL")
            try:
                with self._db:
                    yield self._db
            finally:
                self._db.execute("PRAGMA synchronous=NORMAL")


def _tenant_and_level(row: apsw.SQLiteValues) -> tuple[str, tuple[int, LevelRow]]:
    return os.fsdecode(cast(bytes, row[0])), level_row(row)


def _lineage(row: apsw.SQLiteValues) -> tuple[str, int]:
    path, node_id = row
    return os.fsdecode(cast(bytes, path)), int(str(node_id), 16)
