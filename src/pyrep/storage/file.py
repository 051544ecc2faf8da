"""A replica in a directory of this machine, or of a file system mounted on it.

A file is written under a temporary name in the directory of its level, synced, and only then
published; a crash at any point leaves no file or a whole one under an LTX name.  Temporary files
are locked (``flock``) while somebody writes them: one that can be locked belongs to a dead
process and is removed by the next client that writes to the level, whatever host or container
the dead one ran in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO
from urllib.parse import quote_from_bytes

from pyrep import osfs
from pyrep.errors import ReplicaExistsError, ReplicaPermanentError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo, parse_name
from pyrep.storage.base import NO_TXID, Below, Capabilities
from pyrep.storage.checks import IncomingFile, check_file, check_level, check_range
from pyrep.storage.file_link import link_file, linkable, seal
from pyrep.storage.file_read import RangeReader, open_regular
from pyrep.storage.file_sync import shared_sync
from pyrep.storage.layout import LEVELS, LTX_DIR, level_path
from pyrep.storage.oserrors import os_errors
from pyrep.storage.search import look_plain

__all__ = ["FileReplicaClient"]

log = logging.getLogger(__name__)

_TEMP = re.compile(r"\.pyrep-[0-9a-f]{16}\.tmp\Z")
_OPEN_ATTEMPTS = 5
_READ_BUFFER = 64 << 10
_MODE = 0o600
_DIR_MODE = 0o700
# What most clients have alike is there once: an empty set takes 216 bytes of each tenant.
_CAPABILITIES = Capabilities()
_NO_LEVELS: frozenset[int] = frozenset()
_NO_NAMES: frozenset[str] = frozenset()
_levels = functools.cache(frozenset[int])

# What link() says where the file system has no hard links.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
# What rmdir() says of a directory that is gone, not empty, mounted or behind a link.
_NOT_REMOVABLE = frozenset(
    {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.ENOTDIR}
)


class FileReplicaClient:
    """Keep the LTX files of one replica path in a directory.

    New directories get ``dir_mode``, new files ``mode``, both of them ``owner`` (uid and gid) if
    given; what exists keeps what it has.  A create-only write of a file that exists fails even
    if the bytes are the same: the caller compares.  When it fails, the existing name is durable.
    """

    scheme = "file"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        mode: int = _MODE,
        dir_mode: int = _DIR_MODE,
        owner: tuple[int, int] | None = None,
    ) -> None:
        self.capabilities = _CAPABILITIES
        place = os.path.abspath(root)
        self._root = root if root == place and isinstance(root, str) else place
        self._mode = mode
        self._dir_mode = dir_mode
        self._owner = owner
        self._closed = False
        self._links = True  # staged files may be linked
        self._lock = threading.Lock()
        self._ready = _NO_LEVELS  # guarded by _lock: levels whose directory we have seen
        self._unsynced = _NO_NAMES  # guarded by _lock: directories with names not durable

    @property
    def url(self) -> str:
        """Return the replica's place for logs and reports."""
        return f"file://{quote_from_bytes(os.fsencode(self._root))}"

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        """List a level's files with min TXID >= ``seek``, sorted by (min, max)."""
        self._check_usable()
        check_level(self._root, level)
        folder = self._level_dir(level)
        found = []
        with os_errors("list", folder):
            for name in _names(folder):
                txids = parse_name(name)
                if txids is not None and txids[0] >= seek:
                    found.append(FileInfo(level, *txids))
        found.sort()
        return self._with_stat(folder, found)

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``.

        :raises LTXNotFoundError: no such file
        :raises LTXCorruptError: the range lies past the file's end
        """
        self._check_usable()
        check_file(self._root, info.level, info.min_txid, info.max_txid)
        path = os.path.join(self._level_dir(info.level), info.name)
        with os_errors("open", path):
            fd = open_regular(path, info)
        try:
            with os_errors("open", path):
                total = os.fstat(fd).st_size
                length = check_range(path, info, offset, size, total)
                os.lseek(fd, offset, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        return io.BufferedReader(RangeReader(fd, path, info, length), _READ_BUFFER)

    def write_ltx(
        self,
        level: int,
        min_txid: TXID,
        max_txid: TXID,
        source: BinaryIO,
        *,
        create_only: bool = False,
    ) -> FileInfo:
        """Store a whole LTX file read from ``source`` (from its current offset to its end).

        Returns when content, name and time are durable.

        :raises ReplicaExistsError: ``create_only`` and a file of that name is there
        """
        self._check_usable()
        info = check_file(self._root, level, min_txid, max_txid)
        folder = self._level_dir(level)
        target = os.path.join(folder, info.name)
        incoming = IncomingFile(target, info, source)
        if create_only and self._link_source(level, target, source, incoming):
            size = incoming.expected or 0  # a file knows
            return replace(info, size=size, timestamp_ms=incoming.timestamp_ms)
        temp, fd = self._open_temp(level, folder)
        try:
            self._fill(fd, target, incoming)
            with os_errors("publish", target):
                self._publish(fd, temp, target, create_only)
        except BaseException:
            # The first error is the one to tell; what is left is removed by a later write.
            with contextlib.suppress(OSError):
                osfs.unlink("file.unlink", temp, missing_ok=True)
            raise
        finally:
            # Only now: without the lock another process takes the file for abandoned.
            os.close(fd)
        return replace(info, size=incoming.size, timestamp_ms=incoming.timestamp_ms)

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files, durably; one that is missing counts as deleted.

        Stops at the first error; what was deleted before it stays deleted.
        """
        self._check_usable()
        folders = set()
        for info in infos:
            check_file(self._root, info.level, info.min_txid, info.max_txid)
            folder = self._level_dir(info.level)
            path = os.path.join(folder, info.name)
            with os_errors("delete", path), contextlib.suppress(FileNotFoundError):
                osfs.unlink("file.delete", path)
                folders.add(folder)
        for folder in folders:
            with os_errors("delete", folder), contextlib.suppress(FileNotFoundError):
                osfs.fsync_dir("file.fsync_dir", folder)

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path, and the directories this empties."""
        self._check_usable()
        for level in LEVELS:
            folder = self._level_dir(level)
            self.delete_ltx(list(self.list_ltx(level)))
            _remove_abandoned(folder)
            with self._lock:
                self._ready -= {level}
            _remove_if_empty(folder)
        _remove_if_empty(os.path.join(self._root, LTX_DIR))
        _remove_if_empty(self._root)

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own; links are not followed."""
        self._check_usable()
        return look_plain(path, f"{path}/" if path else "", self._entries)

    def close(self) -> None:
        """Make further calls errors; streams that are open stay usable."""
        self._closed = True

    def _check_usable(self) -> None:
        if self._closed:
            raise ReplicaPermanentError(f"{self._root}: the client is closed")

    def _level_dir(self, level: int) -> str:
        return os.path.join(self._root, level_path(level))

    def _entries(self, place: str) -> Iterator[tuple[str, bool]]:
        folder = os.path.join(self._root, place)
        with os_errors("look into", folder), contextlib.suppress(FileNotFoundError):
            with os.scandir(folder) as children:
                found = [(child.name, child.is_dir(follow_symlinks=False)) for child in children]
            yield from sorted(found)

    def _with_stat(self, folder: str, infos: list[FileInfo]) -> Iterator[FileInfo]:
        for info in infos:
            path = os.path.join(folder, info.name)
            with os_errors("list", path):
                try:
                    status = os.lstat(path)
                except FileNotFoundError:
                    continue  # deleted since the directory was read
            if stat.S_ISREG(status.st_mode):
                timestamp_ms = status.st_mtime_ns // 1_000_000
                yield replace(info, size=status.st_size, timestamp_ms=timestamp_ms)

    def _prepare(self, level: int, folder: str) -> None:
        """Make the directory of a level at the first write, and note whose names are to be synced.

        Our own two directories are synced once even if they exist: whoever made them may have
        been killed before the sync.
        """
        with self._lock:
            if level in self._ready:
                return
            missing = _missing_dirs(folder)
            self._unsynced |= {os.path.dirname(path) for path in missing}
            osfs.make_dirs("file.mkdir", folder, self._dir_mode)
            self._unsynced |= {self._root, os.path.join(self._root, LTX_DIR)}
            for path in missing if self._owner is not None else ():
                self._give_dir(path)
            self._ready = _levels(self._ready | {level})
        _remove_abandoned(folder)

    def _give_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._give(fd)
        finally:
            os.close(fd)

    def _give(self, fd: int) -> None:
        if self._owner is not None:
            osfs.chown("file.chown", fd, *self._owner)

    def _link_source(self, level: int, target: str, source: BinaryIO, file: IncomingFile) -> bool:
        """Store a staged file by giving it its name here; False: it is to be copied."""
        folder = os.path.dirname(target)
        with os_errors("create", folder):
            self._prepare(level, folder)
            links = self._links and self._owner is None
            if not (links and linkable(source, folder, file.expected)):
                return False
        # After a failed sync nothing is linked any more: the next one would say yes to pages that
        # the first one lost, while a copy is read from memory and written anew.
        self._links = seal(source, self._mode, file.timestamp_ms)
        with os_errors("publish", target), self._claiming(source.fileno(), folder, target):
            return self._links and link_file(source, target)

    def _open_temp(self, level: int, folder: str) -> tuple[str, int]:
        """Create a temporary file and lock it; return its path and descriptor."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        for _ in range(_OPEN_ATTEMPTS):
            path = os.path.join(folder, f".pyrep-{secrets.token_hex(8)}.tmp")
            with os_errors("create", folder):
                self._prepare(level, folder)
                try:
                    fd = osfs.open_file("file.open", path, flags, self._mode)
                except FileNotFoundError:  # somebody removed the directory
                    with self._lock:
                        self._ready -= {level}
                    continue
            # A cleaner that came between open and lock has removed the file or is about to.
            if _try_lock(fd) and os.fstat(fd).st_nlink:
                return path, fd
            os.close(fd)
        raise ReplicaTemporaryError(
            f"{folder}: temporary files or their directory are removed as fast as they are made",
            hint="Find out what else deletes files in the replica's directory.",
        )

    def _fill(self, fd: int, target: str, incoming: IncomingFile) -> None:
        for chunk in incoming.chunks():
            with os_errors("write", target):
                osfs.write_all("file.write", fd, chunk)
        with os_errors("write", target):
            if self._mode & ~_MODE:  # the umask may have taken these bits away
                osfs.chmod("file.chmod", fd, self._mode)
            self._give(fd)
            osfs.utime_ns("file.utime", fd, incoming.timestamp_ms * 1_000_000)
            shared_sync(fd).sync(fd, lambda: osfs.fsync("file.fsync", fd))

    def _publish(self, fd: int, temp: str, target: str, create_only: bool) -> None:
        folder = os.path.dirname(target)
        if not create_only:
            osfs.replace("file.replace", temp, target)
            self._sync_names(fd, folder)
            return
        with self._claiming(fd, folder, target):
            self._link(folder, temp, target)

    @contextlib.contextmanager
    def _claiming(self, fd: int, folder: str, target: str) -> Iterator[None]:
        """Make the name durable that the block publishes."""
        try:
            yield
        except FileExistsError as error:
            # It may be our own file from before a failed sync of the directory, and the caller
            # will take it for stored once the content is compared: then its name must last.
            self._sync_names(fd, folder)
            raise ReplicaExistsError(f"{target}: the file is already there") from error
        self._sync_names(fd, folder)

    def _link(self, folder: str, temp: str, target: str) -> None:
        """Publish under a free name; raise ``FileExistsError`` if it is taken."""
        try:
            osfs.link("file.link", temp, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._rename_to_free_name(folder, temp, target)
            return
        osfs.unlink("file.unlink", temp)

    def _rename_to_free_name(self, folder: str, temp: str, target: str) -> None:
        """Look, then rename, both under a lock that every pyrep on this machine takes."""
        if self.capabilities.conditional_put:
            self.capabilities = replace(self.capabilities, conditional_put=False)
            log.warning(
                "file system has no hard links: create-only writes are atomic only between "
                "processes of this machine: replica=%s",
                self._root,
            )
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # no locks either: best effort, as warned
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            osfs.replace("file.replace", temp, target)
        finally:
            os.close(fd)

    def _sync_names(self, fd: int, folder: str) -> None:
        """Make the names in ``folder`` durable, and the directories above that are new.

        ``fd`` is a file that has a name there.
        """
        new = self._unsynced
        device = os.fstat(fd).st_dev
        if any(os.stat(path).st_dev != device for path in new):
            self._fsync_names(folder)
            return
        shared_sync(fd).sync(fd, lambda: self._fsync_names(folder))
        if new:
            with self._lock:
                self._unsynced = self._unsynced - new or _NO_NAMES

    def _fsync_names(self, folder: str) -> None:
        osfs.fsync_dir("file.fsync_dir", folder)
        if not self._unsynced:
            return
        with self._lock:  # held during the sync, so that nobody reports success before it
            for path in sorted(self._unsynced):
                # A directory above the replica may be writable and not readable: then its new
                # name becomes durable when its file system says so.
                with contextlib.suppress(PermissionError):
                    osfs.fsync_dir("file.fsync_dir", path)
            self._unsynced = _NO_NAMES


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _missing_dirs(folder: str) -> list[str]:
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def _try_lock(fd: int) -> bool:
    """Lock a temporary file; return False if another process holds it.

    Where a file system has no locks, nobody can take a file for abandoned either.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _remove_abandoned(folder: str) -> None:
    """Remove temporary files whose writers are dead.

    They are only untidy, so one that resists (another user's, say) is left and told at INFO.
    """
    for name in filter(_TEMP.match, _names(folder)):
        path = os.path.join(folder, name)
        try:
            _remove_if_abandoned(path)
        except OSError as error:
            log.info("left a temporary file of a dead process: path=%s error=%s", path, error)


def _remove_if_abandoned(path: str) -> None:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        osfs.unlink("file.unlink", path, missing_ok=True)
    except BlockingIOError:
        log.debug("a temporary file is being written: path=%s", path)
    finally:
        os.close(fd)


def _remove_if_empty(folder: str) -> None:
    with os_errors("delete", folder):
        try:
            osfs.rmdir("file.rmdir", folder)
        except OSError as error:
            if error.errno not in _NOT_REMOVABLE:
                raise
