"""A replica in a directory of an SFTP server.

A file is written under a temporary name in the directory of its level, made durable where the
server can (``fsync@openssh.com``), and published by a plain rename, which refuses a name that is
taken; so a write is all or nothing, and create-only is atomic.
"""

from __future__ import annotations

import contextlib
import io
import logging
import posixpath
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import BinaryIO

from pyrep.clock import Clock, SystemClock
from pyrep.errors import (
    LTXCorruptError,
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo, parse_name
from pyrep.storage.base import NO_TXID, Below, Capabilities
from pyrep.storage.checks import (
    HEADER_SIZE,
    IncomingFile,
    check_file,
    check_level,
    check_range,
    file_not_found,
    header_time,
)
from pyrep.storage.layout import LEVELS, LTX_DIR, level_path
from pyrep.storage.pieces import PieceReader
from pyrep.storage.search import look_plain
from pyrep.storage.sftp_config import SFTPSettings
from pyrep.storage.sftp_protocol import (
    BLOCK,
    Attributes,
    Code,
    Request,
    Requests,
    SFTPChannel,
    StatusError,
)
from pyrep.storage.sftp_session import CHANNELS, SFTPSession, translated
from pyrep.storage.temp_names import is_abandoned, temp_name

__all__ = ["SFTPReplicaClient"]

log = logging.getLogger(__name__)

_MODE = 0o600
_DIR_MODE = 0o700
_BATCH = 64
_READ_BUFFER = 64 << 10
_MAX_WINDOW = 512 << 10


class SFTPReplicaClient:
    """Keep the LTX files of one replica path on a server.

    Only the path is this client's own, the connection belongs to the session.  ``release`` is
    called once, by ``close``.
    """

    scheme = "sftp"

    def __init__(
        self,
        settings: SFTPSettings,
        session: SFTPSession,
        *,
        release: Callable[[], None],
        clock: Clock | None = None,
    ) -> None:
        self.capabilities = Capabilities(connections=CHANNELS)
        self._settings = settings
        self._session = session
        self._release = release
        self._clock = clock if clock is not None else SystemClock()
        self._lock = threading.Lock()
        self._abandoned: set[str] = set()  # guarded by _lock: temporary files to be removed
        self._closed = False

    @property
    def url(self) -> str:
        """Return the replica's place for logs and reports, without any secret."""
        return self._where(self._settings.path)

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        """List a level's files with min TXID >= ``seek``, sorted by (min, max).

        The times are whole seconds; with ``exact_times`` the files' headers are read.
        """
        self._check_usable()
        check_level(self.url, level)
        found = self._list(level, seek)
        return self._with_times(found) if exact_times else iter(found)

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``.

        :raises LTXNotFoundError: no such file
        :raises LTXCorruptError: the range lies past the file's end
        """
        self._check_usable()
        check_file(self.url, info.level, info.min_txid, info.max_txid)
        path = self._path(info)
        where = self._where(path)
        if offset < 0 or (size is not None and size < 0):
            check_range(where, info, offset, size, 0)
        first = BLOCK if size is None else min(size, 2 * BLOCK)
        with self._session.channel("read", where) as channel:
            try:
                handle = channel.open(path)
            except StatusError as error:
                if error.code != Code.NO_SUCH_FILE:
                    raise
                raise file_not_found(where, info) from error
            try:
                attributes, data = channel.stat_and_read(handle, offset, first)
                if not attributes.is_file:
                    raise file_not_found(where, info)
                length = check_range(where, info, offset, size, attributes.size)
            except BaseException:
                _close_quietly(channel, handle)
                raise
        reader = _Reader(channel, handle, where, info, (offset, length), data)
        return io.BufferedReader(reader, _READ_BUFFER)

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

        :raises ReplicaExistsError: ``create_only`` and a file of that name is there
        """
        self._check_usable()
        info = check_file(self.url, level, min_txid, max_txid)
        target = self._path(info)
        where = self._where(target)
        incoming = IncomingFile(where, info, source)
        self._remove_abandoned()
        temp = posixpath.join(posixpath.dirname(target), temp_name(self._clock))
        with self._session.channel("write", where) as channel:
            handle = self._create(channel, temp)
            try:
                self._fill(channel, handle, incoming)
                self._publish(channel, temp, target, create_only)
            except BaseException:
                self._give_up(channel, handle, temp)
                raise
        return replace(info, size=incoming.size, timestamp_ms=incoming.timestamp_ms)

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; one that is missing counts as deleted."""
        self._check_usable()
        for info in infos:
            check_file(self.url, info.level, info.min_txid, info.max_txid)
        self._remove([self._path(info) for info in infos])

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path, and the directories this empties."""
        self._check_usable()
        for level in LEVELS:
            self.delete_ltx(self._list(level, NO_TXID))
        self._remove_abandoned()
        folders = [self._join(level_path(level)) for level in LEVELS] + [self._join(LTX_DIR)]
        folders.append(self._settings.path)
        with self._session.channel("delete", self.url) as channel:
            for folder in folders:
                # One that is missing or not empty stays as it is.
                with contextlib.suppress(StatusError):
                    channel.remove_dir(folder)

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own; links are not followed."""
        self._check_usable()
        return look_plain(path, f"{path}/" if path else "", self._entries)

    def close(self) -> None:
        """Make further calls errors."""
        if not self._closed:
            self._closed = True
            self._release()

    def _check_usable(self) -> None:
        if self._closed:
            raise ReplicaPermanentError(f"{self.url}: the client is closed")

    # --- names ------------------------------------------------------------------------------------

    def _join(self, path: str) -> str:
        return posixpath.join(self._settings.path, path)

    def _path(self, info: FileInfo) -> str:
        return self._join(f"{level_path(info.level)}/{info.name}")

    def _where(self, path: str) -> str:
        account = self._settings.account
        return f"sftp://{account.user}@{account.address}/{path.removeprefix('/')}"

    # --- listing ----------------------------------------------------------------------------------

    def _list(self, level: int, seek: TXID) -> list[FileInfo]:
        folder = self._join(level_path(level))
        found = []
        for name, attributes in self._read_dir("list", folder):
            txids = parse_name(name)
            if txids is None:
                self._note_abandoned(folder, name)
            elif txids[0] >= seek and attributes.is_file:
                found.append(FileInfo(level, *txids, attributes.size, attributes.mtime * 1000))
        found.sort()
        return found

    def _entries(self, place: str) -> list[tuple[str, bool]]:
        found = self._read_dir("look into", self._join(place))
        return sorted((name, attributes.is_directory) for name, attributes in found)

    def _read_dir(self, op: str, folder: str) -> list[tuple[str, Attributes]]:
        """Return what is in a directory; one that is missing is empty.

        A name that is not UTF-8 is none of ours.
        """
        found = []
        with self._session.channel(op, self._where(folder)) as channel:
            try:
                for raw, attributes in channel.list_dir(folder.rstrip("/") or folder[:1] or "."):
                    with contextlib.suppress(UnicodeDecodeError):
                        found.append((raw.decode(), attributes))
            except StatusError as error:
                if error.code != Code.NO_SUCH_FILE:
                    raise
        return found

    def _note_abandoned(self, folder: str, name: str) -> None:
        """Remember a temporary file of a dead writer; the next write or deletion removes it."""
        if is_abandoned(name, self._clock):
            with self._lock:
                self._abandoned.add(f"{folder}/{name}")

    def _with_times(self, found: list[FileInfo]) -> Iterator[FileInfo]:
        rest = iter(found)
        while batch := list(islice(rest, _BATCH)):
            with self._session.channel("list", self.url) as channel:
                heads = channel.heads([self._path(info) for info in batch], HEADER_SIZE)
            for info, head in zip(batch, heads, strict=True):
                if head is not None:  # else it was deleted since the directory was read
                    time = header_time(head)
                    yield info if time is None else replace(info, timestamp_ms=time)

    # --- writing ----------------------------------------------------------------------------------

    def _create(self, channel: SFTPChannel, path: str) -> bytes:
        """Create a file, and its directories if they are missing; return its handle."""
        try:
            return channel.create(path, _MODE)
        except StatusError as error:
            if error.code != Code.NO_SUCH_FILE:
                raise
        self._make_dirs(channel, posixpath.dirname(path))
        return channel.create(path, _MODE)

    def _make_dirs(self, channel: SFTPChannel, folder: str) -> None:
        missing = []
        while folder not in ("", "/"):
            missing.append(folder)
            try:
                channel.make_dir(folder, _DIR_MODE)
                break
            except StatusError as error:
                if error.code == Code.NO_SUCH_FILE:
                    folder = posixpath.dirname(folder)
                    continue
                self._expect_directory(channel, folder, error)
                break
        for path in reversed(missing[:-1]):
            try:
                channel.make_dir(path, _DIR_MODE)
            except StatusError as error:
                self._expect_directory(channel, path, error)

    def _expect_directory(self, channel: SFTPChannel, folder: str, error: StatusError) -> None:
        """Raise a refusal to make a directory, unless somebody else has made it."""
        try:
            attributes = channel.lstat(folder)
        except StatusError:
            raise error from None
        if attributes.is_file:
            raise ReplicaPermanentError(
                f"{self._where(folder)}: is not a directory",
                hint="Move the file away that stands where the replica needs a directory.",
            ) from error

    def _fill(self, channel: SFTPChannel, handle: bytes, incoming: IncomingFile) -> None:
        """Write, date and close a file; the last requests go out with the last bytes."""
        pending: list[Request] = []
        at = 0
        for chunk in incoming.chunks():
            self._run(channel, pending)
            pending = Requests.write(handle, at, chunk)
            at += len(chunk)
        pending.append(Requests.set_mtime(handle, incoming.timestamp_ms // 1000))
        if channel.can_fsync:
            pending.append(Requests.fsync(handle))
        self._run(channel, [*pending, Requests.close(handle)])

    def _run(self, channel: SFTPChannel, requests: list[Request]) -> None:
        if self._settings.concurrent_writes:
            channel.run(requests)
            return
        for request in requests:
            channel.run([request])

    def _publish(self, channel: SFTPChannel, temp: str, target: str, create_only: bool) -> None:
        if not create_only and channel.can_replace:
            channel.move_over(temp, target)
            return
        try:
            channel.move(temp, target)
        except StatusError as error:
            if not self._is_there(channel, target):
                raise
            if create_only:
                where = self._where(target)
                raise ReplicaExistsError(f"{where}: the file is already there") from error
            channel.try_each([Requests.remove(target)])
            channel.move(temp, target)

    def _is_there(self, channel: SFTPChannel, path: str) -> bool:
        try:
            channel.lstat(path)
        except StatusError:
            return False
        return True

    def _give_up(self, channel: SFTPChannel, handle: bytes, temp: str) -> None:
        """Remove a temporary file, now if the connection lasts, else with the next write."""
        with self._lock:
            self._abandoned.add(temp)
        # The first error is the one to tell.
        with contextlib.suppress(ReplicaError):
            if not channel.broken:
                _close_quietly(channel, handle)
                self._remove_abandoned()

    # --- removing ---------------------------------------------------------------------------------

    def _remove(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            with self._session.channel("delete", self._where(batch[0])) as channel:
                refusals = channel.try_each(list(map(Requests.remove, batch)))
            for path, error in zip(batch, refusals, strict=True):
                if error is not None and error.code != Code.NO_SUCH_FILE:
                    with translated("delete", self._where(path)):
                        raise error

    def _remove_abandoned(self) -> None:
        """Remove temporary files of writers that failed; they are only untidy."""
        with self._lock:
            paths, self._abandoned = sorted(self._abandoned), set()
        for path in paths:
            try:
                self._remove([path])
            except ReplicaPermanentError as error:
                log.info("left a temporary file of a failed write: path=%s error=%s", path, error)


def _close_quietly(channel: SFTPChannel, handle: bytes) -> None:
    """Close a file of which nothing more is wanted."""
    with contextlib.suppress(Exception):
        channel.try_each([Requests.close(handle)])


class _Reader(PieceReader):
    """Read a promised number of bytes of an open file, in windows that grow while it goes on."""

    def __init__(
        self,
        channel: SFTPChannel,
        handle: bytes,
        where: str,
        info: FileInfo,
        span: tuple[int, int],
        data: bytes,
    ) -> None:
        super().__init__(span[1])
        self._channel = channel
        self._handle = handle
        self._where = where
        self._info = info
        self._at = span[0]
        self._window = 2 * BLOCK
        self._take(data)

    def close(self) -> None:
        if not self.closed and not self._channel.broken:
            _close_quietly(self._channel, self._handle)
        super().close()

    def _fetch(self) -> None:
        with translated("read", self._where):
            data = self._channel.read(self._handle, self._at, min(self._window, self._left))
        if not data:
            raise LTXCorruptError(
                f"file ended {self._left} bytes early",
                op="read",
                path=self._where,
                level=self._info.level,
                min_txid=self._info.min_txid,
                max_txid=self._info.max_txid,
            )
        self._window = min(2 * self._window, _MAX_WINDOW)
        self._take(data)

    def _take(self, data: bytes) -> None:
        super()._take(data)
        self._at += len(self._data)
