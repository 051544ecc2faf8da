"""A tenant's state directory: position, page-checksum table, staged LTX files.

The directory may lie in a folder that the tenant owns, so it is opened without following a
link, and everything in it is reached through that descriptor.  It is flat:

``state.json``
    the position (:class:`~pyrep.tenant.position.SyncState`)
``lock``
    held (flock) by the process that works with the database
``pages``
    the page-checksum table (:mod:`pyrep.tenant.pages`)
``<txid>-<txid>.ltx``
    staged level-0 files
``snapshot-<min>-<max>.ltx``
    staged snapshots
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pyrep import osfs
from pyrep.errors import DatabaseBusyError, DatabaseError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo, parse_name
from pyrep.tenant.position import SyncState

__all__ = ["StateDir", "create_file", "staged_name"]

_STATE = "state.json"
_LOCK = "lock"
_SNAPSHOT = "snapshot-"  # a snapshot of TXID 1 has the range of the level-0 file


def staged_name(info: FileInfo) -> str:
    """Return the name of a staged file, by the level that it is meant for."""
    return f"{_SNAPSHOT}{info.name}" if info.level == SNAPSHOT_LEVEL else info.name


def _parse_staged(name: str) -> tuple[int, TXID, TXID] | None:
    """Return level and TXIDs of a staged file's name, or None if it is not one."""
    level = SNAPSHOT_LEVEL if name.startswith(_SNAPSHOT) else 0
    txids = parse_name(name.removeprefix(_SNAPSHOT))
    if txids is None or (not level and txids[0] != txids[1]):
        return None
    return level, *txids


class StateDir:
    """Reach the files of one state directory; holds a descriptor only while it is owned."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd = -1
        self._lock_id: tuple[int, int] | None = None  # device and inode of the lock that is held
        self._saved: SyncState | None = None

    def exists(self) -> bool:
        """Return whether the directory is there, is no link, and is the one that is owned."""
        there = self.path.is_dir() and not self.path.is_symlink()
        return there and self._is_owned(self.path / _LOCK)

    def _is_owned(self, lock: Path) -> bool:
        """Return False for a directory that took the place of the one that is owned."""
        held = self._lock_id
        if held is None:
            return True
        try:
            return held == _identity(os.stat(lock, follow_symlinks=False))
        except OSError:
            return False

    def create(self, like: os.stat_result) -> None:
        """Create the directory with owner and mode of the database file ``like``.

        :raises DatabaseError: something else is at its place
        """
        created = osfs.make_dirs("state.mkdir", self.path)
        with self.base() as base:
            if not created:
                return
            mode = like.st_mode & 0o777
            fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                osfs.chmod("state.chmod", fd, mode | 0o700 | (mode & 0o444) >> 2)
                _follow_owner(fd, like)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def base(self) -> Iterator[Path]:
        """Yield a path that leads into this very directory, whatever is renamed meanwhile.

        :raises DatabaseError: it cannot be opened, or is not the one that is owned
        """
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags)
        except OSError as error:
            raise DatabaseError(
                f"{self.path}: state directory cannot be opened: {error.strerror}",
                hint="It must be a directory and no link; remove what is in its place.",
            ) from error
        try:
            base = Path(f"/proc/self/fd/{fd}")
            if not self._is_owned(base / _LOCK):
                raise DatabaseError(
                    f"{self.path}: another state directory took the place of the one in use",
                    hint="It was moved with its folder; pyrep begins anew with what is there.",
                )
            yield base
        finally:
            os.close(fd)

    def own(self) -> bool:
        """Take the directory for this process; return whether what we know of it may be stale.

        That is so unless the position saved there is the one that we saved last.  Held until
        :meth:`disown`; a second call changes nothing.

        :raises DatabaseBusyError: another process works with it
        """
        if self._lock_fd >= 0:
            return False
        with self.base() as base:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            fd = osfs.open_file("state.lock", base / _LOCK, flags)
            _follow_owner(fd, os.stat(base))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise DatabaseBusyError(
                f"another pyrep process works with it (state directory {self.path})",
                hint="Run one daemon for a database: stop the other, or take the database out "
                "of one of the two configurations.",
            ) from error
        self._lock_fd, self._lock_id = fd, _identity(os.fstat(fd))
        there = self.load()
        return self._saved is None or (there is not None and there != self._saved)

    @property
    def owned(self) -> bool:
        """Return whether this process has the directory."""
        return self._lock_fd >= 0

    def disown(self) -> None:
        """Let other processes use the directory."""
        fd, self._lock_fd, self._lock_id = self._lock_fd, -1, None
        if fd >= 0:
            os.close(fd)

    def load(self) -> SyncState | None:
        """Return the saved position, or None if there is none that can be read."""
        if not self.exists():
            return None
        with self.base() as base:
            try:
                return SyncState.from_json(_read_file(base / _STATE).decode())
            except (OSError, ValueError):
                return None

    def save(self, state: SyncState, like: os.stat_result | None, *, durable: bool = False) -> None:
        """Write the position whole (temporary name, rename); fsync it if ``durable``."""
        with self.base() as base:
            with create_file(base, _STATE + ".tmp", "state", like) as fd:
                osfs.write_all("state.write", fd, state.to_json().encode())
                if durable:
                    osfs.fsync("state.fsync", fd)
            osfs.replace("state.rename", base / (_STATE + ".tmp"), base / _STATE)
            if durable:
                osfs.fsync_dir("state.fsync_dir", base)
        self._saved = state

    def staged(self) -> list[FileInfo]:
        """List the staged files: level 9 first, then by TXID."""
        if not self.exists():
            return []
        found = []
        with self.base() as base, os.scandir(base) as entries:
            for entry in entries:
                place = _parse_staged(entry.name)
                if place and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    ms = status.st_mtime_ns // 1_000_000
                    found.append(FileInfo(*place, status.st_size, ms))
        return sorted(found, key=lambda info: (info.max_txid, -info.level))

    def discard(self, infos: list[FileInfo]) -> None:
        """Delete staged files."""
        with self.base() as base:
            for info in infos:
                osfs.unlink("stage.unlink", base / staged_name(info), missing_ok=True)

    def clean(self) -> None:
        """Delete temporary files that a crash left."""
        if not self.exists():
            return
        with self.base() as base:
            for entry in list(os.scandir(base)):
                if entry.name.endswith(".tmp"):
                    osfs.unlink("state.unlink", base / entry.name, missing_ok=True)

    def remove(self) -> list[str]:
        """Delete all that is in the directory; return the names."""
        if not self.exists():
            return []
        with self.base() as base:
            names = sorted(entry.name for entry in os.scandir(base) if entry.name != _LOCK)
            for name in names:
                osfs.unlink("state.unlink", base / name, missing_ok=True)
        return names


def _identity(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)


def _read_file(path: Path) -> bytes:
    """Read a small file without following a link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read()


@contextlib.contextmanager
def create_file(base: Path, name: str, op: str, like: os.stat_result | None) -> Iterator[int]:
    """Create a file anew in a state directory; yield its descriptor, remove it on failure.

    Owner and mode follow the database's status ``like``.
    """
    path = base / name
    osfs.unlink(f"{op}.unlink", path, missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    mode = like.st_mode & 0o666 if like else 0o600
    fd = osfs.open_file(f"{op}.open", path, flags, mode)
    try:
        if like is not None:
            _follow_owner(fd, like)
        yield fd
    except BaseException:
        with contextlib.suppress(OSError):
            osfs.unlink(f"{op}.unlink", path, missing_ok=True)
        raise
    finally:
        os.close(fd)


def _follow_owner(fd: int, like: os.stat_result) -> None:
    if os.geteuid() == 0 and (like.st_uid, like.st_gid) != (0, 0):
        osfs.chown("state.chown", fd, like.st_uid, like.st_gid)
