"""Open and read live database files below SQLite, without disturbing any lock.

POSIX locks belong to a process: closing any descriptor of a database file drops every lock this
process holds on it, SQLite's own included.  So every open goes through this package, and one
entry per (device, inode) is kept under a mutex: an attached inode is never opened again, and a
probe and an attach never overlap.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyrep import _checksum
from pyrep.errors import DatabaseBusyError, DatabaseError, DatabaseNotReadyError

__all__ = [
    "HEADER_SIZE",
    "REMOTE_FILE_SYSTEMS",
    "WAL_VERSIONS",
    "Probe",
    "attached_count",
    "claim",
    "file_system_type",
    "guard_unused",
    "is_attached",
    "page_crcs",
    "probe",
    "release",
    "used_by_others",
]

HEADER_SIZE = 100
WAL_VERSIONS = b"\x02\x02"  # bytes 18 and 19 of a database in WAL mode
REMOTE_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "fuse", "ceph", "glusterfs", "afs")
)
_MAGIC = b"SQLite format 3\0"
_SHARED_FIRST = 0x40000002  # SQLite's shared-lock range: PENDING_BYTE + 2, 510 bytes
_SHARED_SIZE = 510

_mutex = threading.Lock()
_open: dict[tuple[int, int], int] = {}  # guarded by _mutex: (device, inode) -> our descriptor


@dataclass(frozen=True, slots=True)
class Probe:
    """Describe a database file as its first 100 bytes and its inode show it.

    ``page_size`` in bytes, ``page_count`` in pages (0 when the header's count is not valid),
    ``size`` in bytes, times in nanoseconds.
    """

    device: int
    inode: int
    links: int
    size: int
    mtime_ns: int
    ctime_ns: int
    uid: int
    gid: int
    mode: int
    header: bytes

    @property
    def is_database(self) -> bool:
        """Return whether the file begins like a SQLite database of a possible page size."""
        return (
            len(self.header) == HEADER_SIZE
            and self.header.startswith(_MAGIC)
            and self.page_size in {1 << n for n in range(9, 17)}
        )

    @property
    def page_size(self) -> int:
        """Return the page size in bytes."""
        raw = int.from_bytes(self.header[16:18], "big")
        return 65536 if raw == 1 else raw

    @property
    def page_count(self) -> int:
        """Return the header's page count, or that of the file size where it is not valid."""
        if self.header[24:28] == self.header[92:96]:
            count = int.from_bytes(self.header[28:32], "big")
            if count:
                return count
        return self.size // self.page_size

    @property
    def is_wal(self) -> bool:
        """Return whether the header says WAL mode (write and read version 2)."""
        return self.header[18:20] == WAL_VERSIONS

    @property
    def change_counter(self) -> int:
        """Return the change counter; reliable in rollback-journal modes only."""
        return int.from_bytes(self.header[24:28], "big")


@contextlib.contextmanager
def _path_fd(path: Path) -> Iterator[int]:
    """Open without access (O_PATH): closing such a descriptor drops no lock."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DatabaseNotReadyError(f"{path}: database file does not exist") from error
    except OSError as error:
        raise DatabaseError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _reopen(path: Path, fd: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DatabaseError(
            f"{path}: cannot be read: {error.strerror}",
            hint="Give the user that runs pyrep read and write access to the file.",
        ) from error


def _regular(path: Path, fd: int) -> os.stat_result:
    status = os.fstat(fd)
    if (status.st_mode & 0o170000) != 0o100000:
        raise DatabaseError(f"{path}: is not a regular file")
    return status


def probe(path: Path) -> Probe:
    """Read the header and inode of a database file without disturbing any lock.

    :raises DatabaseNotReadyError: the file does not exist
    :raises DatabaseError: it cannot be read or is no regular file
    """
    with _mutex, _path_fd(path) as path_fd:
        status = _regular(path, path_fd)
        attached = _open.get((status.st_dev, status.st_ino))
        fd = _reopen(path, path_fd) if attached is None else attached
        try:
            header = os.pread(fd, HEADER_SIZE, 0)
        except OSError as error:
            raise DatabaseError(f"{path}: cannot be read: {error.strerror}") from error
        finally:
            if attached is None:
                os.close(fd)
    return Probe(
        status.st_dev,
        status.st_ino,
        status.st_nlink,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_uid,
        status.st_gid,
        status.st_mode & 0o7777,
        header,
    )


def attached_count() -> int:
    """Return how many databases are attached in this process."""
    with _mutex:
        return len(_open)


def is_attached(inode: tuple[int, int]) -> bool:
    """Return whether the database with this device and number is attached in this process."""
    with _mutex:
        return inode in _open


def file_system_type(path: Path) -> str:
    """Return the type of the file system that holds ``path`` as the kernel names it."""
    real = os.path.realpath(path)
    best, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split(" ")[4].encode("latin-1", "replace").decode("unicode_escape")
        inside = mount in ("/", real) or real.startswith(mount + "/")
        if inside and len(mount) >= best:
            best, kind = len(mount), right.split(" ")[0]
    return kind


def used_by_others(fd: int) -> bool:
    """Return whether another process holds SQLite's shared lock on the file of ``fd``."""
    ask = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _SHARED_FIRST, _SHARED_SIZE, 0)
    answer = fcntl.fcntl(fd, fcntl.F_GETLK, ask)
    return int(struct.unpack("hhqqi4x", answer)[0]) != fcntl.F_UNLCK


def guard_unused(path: Path) -> None:
    """Raise ``DatabaseBusyError`` if any process has the database at ``path`` open.

    A connection of SQLite in WAL mode holds a shared lock for its whole life.  In rollback
    mode an idle connection holds none and is not seen.
    """
    with _mutex, _path_fd(path) as path_fd:
        status = _regular(path, path_fd)
        if (status.st_dev, status.st_ino) in _open:
            raise DatabaseBusyError(f"{path}: database is attached by this process")
        fd = _reopen(path, path_fd)
        try:
            busy = used_by_others(fd)
        finally:
            os.close(fd)
    if busy:
        raise DatabaseBusyError(
            f"{path}: another process has the database open",
            hint="Stop the application (and the daemon) that uses it, then restore again.",
        )


def page_crcs(path: Path, page_size: int, first: int, count: int) -> array[int]:
    """Return the CRC-64 of pages of a database file that nobody has attached in this process."""
    crcs = array("Q", bytes(8 * count))
    with _mutex, _path_fd(path) as path_fd:
        status = _regular(path, path_fd)
        if (status.st_dev, status.st_ino) in _open:
            raise DatabaseBusyError(f"{path}: database is attached by this process")
        fd = _reopen(path, path_fd)
        try:
            _checksum.crc64_pages_fd(fd, first, page_size, crcs)
        finally:
            os.close(fd)
    return crcs


def claim(path: Path) -> tuple[tuple[int, int], int]:
    """Open a database file for as long as it is attached; return (device, inode), descriptor.

    :raises DatabaseError: the inode is attached already, under this name or another
    """
    with _mutex, _path_fd(path) as path_fd:
        status = _regular(path, path_fd)
        key = (status.st_dev, status.st_ino)
        if key in _open:
            raise DatabaseError(
                f"{path}: is a second name of a database that is already attached",
                hint="Remove one of the two names from the configuration, or the hard link.",
            )
        fd = _reopen(path, path_fd)
        _open[key] = fd
        return key, fd


def release(key: tuple[int, int]) -> None:
    """Close the descriptor of a claim; SQLite's connections must be closed before."""
    with _mutex:
        os.close(_open.pop(key))
