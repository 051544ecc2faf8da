"""Attach a live database: two connections that take turns as the holder of a read transaction."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import apsw

from pyrep.errors import DatabaseBusyError, DatabaseError
from pyrep.sqlite import files

__all__ = ["MIN_SQLITE_VERSION", "Attachment", "CheckpointState", "integrity_check"]

_NOOP_ATTEMPTS = 50
_NOOP_PAUSE_SECONDS = 0.002
MIN_SQLITE_VERSION = (3, 51, 3)  # the WAL-reset race of 3.7.0 to 3.51.2 loses commits
_version = tuple(int(x) for x in apsw.sqlite_lib_version().split("."))
if _version < MIN_SQLITE_VERSION:
    raise ImportError(
        f"pyrep needs SQLite >= {'.'.join(map(str, MIN_SQLITE_VERSION))} in apsw, "
        f"found {apsw.sqlite_lib_version()}: older ones can lose commits when another process "
        "checkpoints; upgrade apsw"
    )
if not list(apsw.connections()):
    # A connection costs 26 KB instead of 183 KB without its lookaside buffer.
    apsw.shutdown()
    apsw.config(apsw.SQLITE_CONFIG_LOOKASIDE, 0, 0)
    apsw.initialize()


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """Hold a checkpoint's answer: frames in the WAL (mxFrame) and frames backfilled."""

    log: int
    backfilled: int


class Attachment:
    """Hold a live database: two connections that take turns as the reader R.

    One connection holds a read transaction (R), the other is idle and runs checkpoints, which
    fail inside a transaction.  ``db_fd`` and ``wal_fd`` are for ``pread`` only.  Used by one
    thread at a time.  Our connections never run synchronous=OFF and never autocheckpoint.
    """

    def __init__(self, path: Path, *, busy_timeout_ms: int = 1000) -> None:
        # SQLite's NOFOLLOW refuses a link anywhere in the path; only the last name must be none.
        self.path = Path(os.path.realpath(path.parent)) / path.name
        self.busy_timeout_ms = busy_timeout_ms
        self.db_fd = -1
        self.wal_fd = -1
        self.wal_path = self.path.with_name(path.name + "-wal")
        self._connections: list[apsw.Connection] = []
        self._reader = 0
        self._key, self.db_fd = files.claim(self.path)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        for _ in range(2):
            with self._translated():
                connection = apsw.Connection(
                    str(self.path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
                )
                self._connections.append(connection)
                connection.set_busy_timeout(self.busy_timeout_ms)
                connection.wal_autocheckpoint(0)
                connection.execute("PRAGMA synchronous=FULL; PRAGMA mmap_size=0")
                connection.execute("PRAGMA cache_size=1")
                connection.release_memory()
        status = os.stat(self.path)
        if (status.st_dev, status.st_ino) != self._key:
            raise DatabaseBusyError(f"{self.path}: was replaced while it was being opened")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (apsw.BusyError, apsw.LockedError) as error:
            raise DatabaseBusyError(
                f"{self.path}: database is locked by another process",
                hint="An application in exclusive locking mode keeps every backup out; "
                "set PRAGMA locking_mode=NORMAL in it.",
            ) from error
        except apsw.CantOpenError as error:
            raise DatabaseError(
                f"{self.path}: cannot be opened ({error})",
                hint="The user that runs pyrep must be able to write the file and its folder: "
                "SQLite creates the -wal and -shm files there.",
            ) from error
        except apsw.ReadOnlyError as error:
            raise DatabaseError(
                f"{self.path}: is read-only for pyrep",
                hint="Give the user that runs pyrep write access to the file and its folder.",
            ) from error
        except apsw.NotADBError as error:
            raise DatabaseError(f"{self.path}: is not a database or is encrypted") from error
        except apsw.CorruptError as error:
            raise DatabaseError(f"{self.path}: is malformed: {error}") from error
        except apsw.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error

    @property
    def key(self) -> tuple[int, int]:
        """Return (device, inode) of the attached file."""
        return self._key

    @property
    def _idle(self) -> apsw.Connection:
        return self._connections[1 - self._reader]

    @property
    def _free(self) -> apsw.Connection:
        """Return a connection that is in no transaction: only there a checkpoint works."""
        idle = self._idle
        return self._connections[self._reader] if idle.in_transaction else idle

    def enable_wal(self) -> str:
        """Switch to WAL mode; return the mode that is in effect after the attempt."""
        try:
            with self._translated():
                return str(self._idle.execute("PRAGMA journal_mode=wal").get)
        except DatabaseBusyError:
            return "locked"

    def _begin(self, connection: apsw.Connection) -> None:
        with self._translated():
            connection.execute("BEGIN")
            try:
                connection.execute("PRAGMA schema_version").get  # noqa: B018  takes the read mark
            except apsw.Error:
                connection.execute("ROLLBACK")
                raise

    def begin(self) -> None:
        """Begin R's read transaction and open the WAL that it uses."""
        self._begin(self._connections[self._reader])
        self._open_wal()

    def _open_wal(self) -> None:
        name = self._connections[0].filename_wal
        if name:
            self.wal_path = Path(name)
        if self.wal_fd >= 0:
            os.close(self.wal_fd)  # the WAL carries no locks
            self.wal_fd = -1
        with contextlib.suppress(FileNotFoundError):
            self.wal_fd = os.open(self.wal_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def end(self) -> None:
        """End R's read transaction."""
        connection = self._connections[self._reader]
        if connection.in_transaction:
            with self._translated():
                connection.execute("ROLLBACK")

    def move(self) -> None:
        """Let the idle connection begin a read transaction before the old R ends its own.

        So no WAL restart can fall between.  A gap between end and begin loses whole WAL
        generations without any check failing.
        """
        self._begin(self._idle)
        self.end()
        self._reader = 1 - self._reader

    def _checkpoint(self, mode: int, connection: apsw.Connection) -> CheckpointState:
        with self._translated():
            log, backfilled = connection.wal_checkpoint(mode=mode)
        return CheckpointState(log, backfilled)

    def noop(self) -> CheckpointState:
        """Ask the wal-index for mxFrame and the backfilled frames; changes nothing.

        BUSY means that a writer is at the index just now: again, with patience.
        """
        for _ in range(_NOOP_ATTEMPTS):
            with contextlib.suppress(DatabaseBusyError):
                return self._noop()
            time.sleep(_NOOP_PAUSE_SECONDS)
        return self._noop()

    def _noop(self) -> CheckpointState:
        free = self._free
        state = self._checkpoint(apsw.SQLITE_CHECKPOINT_NOOP, free)
        if state.log < 0:  # a connection that has never read knows nothing
            self._begin(free)
            free.execute("ROLLBACK")
            state = self._checkpoint(apsw.SQLITE_CHECKPOINT_NOOP, free)
        return state

    def passive(self) -> CheckpointState:
        """Backfill what readers allow, without blocking anybody."""
        return self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE, self._free)

    def truncate(self) -> bool:
        """Cut a fully backfilled WAL to nothing; return whether it was done.

        Runs without waiting: it succeeds only if nobody else reads or writes the WAL.
        """
        idle = self._idle
        idle.set_busy_timeout(0)
        try:
            self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE, idle)
        except DatabaseBusyError:
            return False
        finally:
            idle.set_busy_timeout(self.busy_timeout_ms)
        return True

    @contextlib.contextmanager
    def write_lock(self) -> Iterator[None]:
        """Hold SQLite's write lock on the idle connection (emergency checkpoint only)."""
        idle = self._idle
        with self._translated():
            idle.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            with self._translated():
                idle.execute("ROLLBACK")

    @contextlib.contextmanager
    def short_read(self) -> Iterator[None]:
        """Hold a read transaction on the idle connection for a moment (rollback-journal mode)."""
        idle = self._idle
        self._begin(idle)
        try:
            yield
        finally:
            with self._translated():
                idle.execute("ROLLBACK")

    def change_counter(self) -> int:
        """Return the file's change counter; it tells of every commit in rollback-journal mode."""
        return int.from_bytes(os.pread(self.db_fd, 4, 24), "big")

    def page_count(self) -> int:
        """Return the number of pages in R's snapshot."""
        with self._translated():
            connection = self._connections[self._reader]
            return int(cast(int, connection.execute("PRAGMA page_count").get))

    def journal_mode(self) -> str:
        """Return the journal mode in effect."""
        with self._translated():
            return str(self._idle.execute("PRAGMA journal_mode").get)

    def wal_header(self) -> bytes:
        """Return the first 32 bytes of the WAL, fewer if it is shorter or missing."""
        return os.pread(self.wal_fd, 32, 0) if self.wal_fd >= 0 else b""

    def header(self) -> bytes:
        """Return the first 100 bytes of the database file."""
        return os.pread(self.db_fd, files.HEADER_SIZE, 0)

    def stat(self) -> os.stat_result:
        """Return the status of the attached file, whatever is at its path now."""
        return os.fstat(self.db_fd)

    def identity_error(self) -> str:
        """Return what is wrong if the paths no longer lead to the attached files, else ''."""
        try:
            status = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return "the database file was removed"
        if (status.st_dev, status.st_ino) != self._key:
            return "the database file was replaced by another one"
        if self.wal_fd < 0:
            return ""
        try:
            at_path = os.stat(self.wal_path, follow_symlinks=False)
        except FileNotFoundError:
            return "the WAL was removed while the database was open"
        ours = os.fstat(self.wal_fd)
        if (at_path.st_dev, at_path.st_ino) != (ours.st_dev, ours.st_ino):
            return "the WAL was replaced by another one"
        return ""

    def used_by_others(self) -> bool:
        """Return whether another process has the database open (WAL mode)."""
        return files.used_by_others(self.db_fd)

    def keep_wal_on_close(self) -> None:
        """Leave the WAL as it is when the last connection closes: it holds unshipped frames."""
        for connection in self._connections:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)

    def close(self) -> None:
        """Close the connections first, then the descriptors; safe to call twice."""
        connections, self._connections = self._connections, []
        for connection in connections:
            if connection.in_transaction:
                with contextlib.suppress(apsw.Error):
                    connection.execute("ROLLBACK")
            connection.close()
        if self.wal_fd >= 0:
            os.close(self.wal_fd)
            self.wal_fd = -1
        if self.db_fd >= 0:
            files.release(self._key)
            self.db_fd = -1


def integrity_check(path: Path, mode: str) -> list[str]:
    """Run ``quick_check`` or ``integrity_check`` on a file that no live application uses.

    Returns the rows that are not ``ok``.
    """
    pragma = {"quick": "quick_check", "full": "integrity_check"}[mode]
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    uri = "file:" + "".join(
        c if c.isalnum() or c in "/._-" else "".join(f"%{b:02X}" for b in os.fsencode(c))
        for c in str(path.absolute())
    )
    connection = apsw.Connection(uri + "?immutable=1", flags=flags)
    try:
        rows = [str(row[0]) for row in connection.execute(f"PRAGMA {pragma}")]
    except apsw.Error as error:
        rows = [str(error)]
    finally:
        connection.close()
    return [row for row in rows if row != "ok"]
