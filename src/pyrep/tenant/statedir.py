"""A tenant's state directory: position, page-checksum table, staged LTX files.

The directory may lie in a folder that the tenant owns, so it is opened without following a
link, and everything in it is reached through that descriptor.  It is flat:

``state.json``
    the position (:class:`~pyrep.tenant.position.SyncState`)
``pages``
    the page-checksum table (:mod:`pyrep.tenant.pages`)
``<min>-<max>.ltx``
    staged files; one TXID is a level-0 file, a range from 1 a level-9 file
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pyrep import osfs
from pyrep.errors import DatabaseError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo, parse_name
from pyrep.tenant.position import SyncState

__all__ = ["StateDir", "create_file", "staged_level"]

_STATE = "state.json"


def staged_level(min_txid: int, max_txid: int) -> int:
    """Return the level that a staged file is meant for."""
    return 0 if min_txid == max_txid else SNAPSHOT_LEVEL


class StateDir:
    """Reach the files of one state directory; holds no descriptor between calls."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Return whether the directory is there (and is no link)."""
        return self.path.is_dir() and not self.path.is_symlink()

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
        """Yield a path that leads into this very directory, whatever is renamed meanwhile."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags)
        except OSError as error:
            raise DatabaseError(
                f"{self.path}: state directory cannot be opened: {error.strerror}",
                hint="It must be a directory and no link; remove what is in its place.",
            ) from error
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
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

    def staged(self) -> list[FileInfo]:
        """List the staged files: level 9 first, then by TXID."""
        if not self.exists():
            return []
        found = []
        with self.base() as base, os.scandir(base) as entries:
            for entry in entries:
                txids = parse_name(entry.name)
                if txids and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    ms = status.st_mtime_ns // 1_000_000
                    found.append(
                        FileInfo(staged_level(*txids), txids[0], txids[1], status.st_size, ms)
                    )
        return sorted(found, key=lambda info: (info.max_txid, -info.level))

    def discard(self, infos: list[FileInfo]) -> None:
        """Delete staged files."""
        with self.base() as base:
            for info in infos:
                osfs.unlink("stage.unlink", base / info.name, missing_ok=True)

    def discard_after(self, txid: TXID) -> list[FileInfo]:
        """Delete the staged files past ``txid``; return those that went."""
        gone = [info for info in self.staged() if info.max_txid > txid]
        if gone:
            self.discard(gone)
        return gone

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
            names = sorted(entry.name for entry in os.scandir(base))
            for name in names:
                osfs.unlink("state.unlink", base / name, missing_ok=True)
        return names


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
