"""A replica in a folder of a WebDAV server.

A file is written under a temporary name and moved to its own, so that it appears whole on any
server; with ``Overwrite: F`` the move refuses a name that is taken, as far as the server looks.
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
from typing import BinaryIO, cast

import urllib3

from pyrep.clock import Clock, SystemClock
from pyrep.errors import (
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import NO_TXID, Capabilities
from pyrep.storage.checks import HEADER_SIZE, IncomingFile, header_time
from pyrep.storage.http import (
    Answer,
    body_length,
    network_error,
    range_header,
    read_answer,
)
from pyrep.storage.layout import LEVELS, LTX_DIR, level_path
from pyrep.storage.objects import ObjectReplicaClient, StoredObject, each
from pyrep.storage.temp_names import is_abandoned, temp_name
from pyrep.storage.webdav_session import WebDAVSession, is_done, server_error

__all__ = ["WebDAVReplicaClient"]

log = logging.getLogger(__name__)

_MULTI_STATUS = 207
_FORBIDDEN = 403
_NOT_FOUND = 404
_EXISTS = 405
_MISSING_PARENT = (404, 409)
_TAKEN = 412
_READ_HINT = "let the server's user read the files below the replica's path."
_BATCH = 64


class WebDAVReplicaClient(ObjectReplicaClient):
    """Keep the LTX files of one replica path on a server; ``release`` is called once."""

    def __init__(
        self,
        session: WebDAVSession,
        path: str,
        *,
        release: Callable[[], None],
        clock: Clock | None = None,
    ) -> None:
        self._folder = _Folders(session, clock if clock is not None else SystemClock())
        super().__init__(self._folder, path, release=release)

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        """List a level's files with min TXID >= ``seek``, sorted by (min, max).

        The times are those of the uploads; with ``exact_times`` the files' headers are read.
        """
        found = super().list_ltx(level, seek)
        return self._with_times(found) if exact_times else found

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path, and the folders this empties."""
        super().delete_all()
        folders = [level_path(level) for level in LEVELS] + [LTX_DIR]
        for folder in folders:
            self._folder.remove_if_empty(posixpath.join(self._path, folder))
        if self._path:
            self._folder.remove_if_empty(self._path)

    def _with_times(self, found: Iterator[FileInfo]) -> Iterator[FileInfo]:
        while batch := list(islice(found, _BATCH)):
            for info in self._folder.session.workers().map(self._exact, batch):
                if info is not None:
                    yield info

    def _exact(self, info: FileInfo) -> FileInfo | None:
        """Return a file with the time of its header, None if it is gone by now."""
        answer, response = self._folder.read(self._key(info), 0, HEADER_SIZE)
        if response is None:
            return None if answer.status == _NOT_FOUND else info
        try:
            head = response.read(HEADER_SIZE, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise network_error(self._folder.where(self._key(info)), "list", error) from error
        finally:
            response.close()
        if len(head) < min(info.size, HEADER_SIZE):
            where = self._folder.where(self._key(info))
            raise ReplicaTemporaryError(f"{where}: cannot list: the answer ended early")
        time = header_time(head)
        return info if time is None else replace(info, timestamp_ms=time)


class _Folders:
    """Do to files and folders of a server what a store of objects does."""

    scheme = "webdav"
    # A server looks before it moves: of two writers at the same moment both may win.
    capabilities = Capabilities(conditional_put=False)

    def __init__(self, session: WebDAVSession, clock: Clock) -> None:
        self.session = session
        self.budget = session.budget
        self._clock = clock
        self._lock = threading.Lock()
        self._abandoned: set[str] = set()  # guarded by _lock: temporary files to be removed
        self._known: set[str] = set()  # guarded by _lock: folders that are there

    def where(self, key: str = "") -> str:
        """Return the name of a file or folder for messages."""
        return self.session.where(key)

    def list_objects(self, prefix: str, after: str) -> Iterator[StoredObject]:
        """List the files of a folder, in order of their names."""
        folder = prefix.rstrip("/")
        for entry in sorted(self.session.list_folder("list", folder), key=lambda one: one.name):
            if is_abandoned(entry.name, self._clock):
                with self._lock:
                    self._abandoned.add(f"{prefix}{entry.name}")
            elif not entry.is_folder and f"{prefix}{entry.name}" >= after:
                yield StoredObject(f"{prefix}{entry.name}", entry.size, entry.timestamp_ms)

    def list_folder(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Give the names in a folder, and whether each is a folder."""
        for entry in self.session.list_folder("look into", prefix.rstrip("/")):
            yield entry.name, entry.is_folder

    def read(
        self, key: str, offset: int, size: int | None
    ) -> tuple[Answer, urllib3.BaseHTTPResponse | None]:
        """Begin to read a file: the answer of a 200, 206, 404 or 416, and the body if any."""
        response = self.session.open("read", "GET", key, range_header(offset, size))
        if response.status in (200, 206):
            return Answer(response.status, response.headers, b""), response
        answer = read_answer(response, self.where(key), "read")
        if answer.status == _FORBIDDEN:
            answer = self._forbidden(key, answer)
        if answer.status not in (_NOT_FOUND, 416):
            raise server_error(self.where(key), "read", answer)
        return answer, None

    def size(self, key: str) -> int | None:
        """Return a file's size in bytes, None if there is none."""
        answer = self.session.request("read", "HEAD", key, accept=(_NOT_FOUND,))
        return None if answer.status == _NOT_FOUND else body_length(self.where(key), answer.headers)

    def upload(self, key: str, incoming: IncomingFile, *, create_only: bool) -> None:
        """Store all that ``incoming`` gives; nothing has the name before all of it is there.

        :raises ReplicaExistsError: ``create_only`` and there is a file of that name
        """
        self._remove_abandoned()
        temp = posixpath.join(posixpath.dirname(key), temp_name(self._clock))
        try:
            self._put(temp, key, incoming)
            self._move(temp, key, create_only)
        except BaseException:
            with self._lock:
                self._abandoned.add(temp)
            # The first error is the one to tell.
            with contextlib.suppress(ReplicaError):
                self._remove_abandoned()
            raise

    def delete(self, keys: Sequence[str]) -> None:
        """Delete files, one request for each; a missing one counts as deleted."""
        if len(keys) == 1:
            self._delete(keys[0])
        else:
            each(self.session.workers(), self._delete, keys)

    def remove_if_empty(self, folder: str) -> None:
        """Remove a folder that nothing is in; a server would remove all that is."""
        entries = self.session.list_folder("delete", folder)
        if not entries:
            self.session.request("delete", "DELETE", f"{folder}/", accept=(_NOT_FOUND,))

    def _put(self, temp: str, key: str, incoming: IncomingFile) -> None:
        """Store the bytes; the folders are made if that is why the server refuses."""
        where = self.where(key)
        body = _Body(incoming)
        headers = {"content-type": "application/octet-stream"}
        if incoming.expected is not None:
            headers["content-length"] = str(incoming.expected)
        # Nextcloud and ownCloud keep the time that they are given.
        headers["x-oc-mtime"] = str(incoming.timestamp_ms // 1000)
        self._make_folders(posixpath.dirname(temp))
        try:
            response = self.session.open(
                "write", "PUT", temp, headers, cast(BinaryIO, body), where=where
            )
            answer = read_answer(response, where, "write")
        except ReplicaError:
            if body.error is not None:
                raise body.error from None
            raise
        if body.error is not None:
            raise body.error
        if not is_done(answer):
            if answer.status in _MISSING_PARENT:
                self._forget_folders()
                raise ReplicaTemporaryError(f"{where}: cannot write: its folder was removed")
            raise server_error(where, "write", answer)

    def _move(self, temp: str, key: str, create_only: bool) -> None:
        headers = {
            "destination": self.session.address(key),
            "overwrite": "F" if create_only else "T",
        }
        where = self.where(key)
        answer = self.session.request("write", "MOVE", temp, headers, accept=(_TAKEN,), where=where)
        if answer.status == _TAKEN:
            raise ReplicaExistsError(f"{where}: the file is already there")

    def _look(self, op: str, path: str) -> bool:
        """Tell whether there is a file or folder."""
        headers = {"depth": "0", "content-length": "0"}
        accept = (_MULTI_STATUS, _NOT_FOUND)
        answer = self.session.request(op, "PROPFIND", path, headers, accept=accept)
        return answer.status != _NOT_FOUND

    def _forbidden(self, key: str, answer: Answer) -> Answer:
        """Return what a refused read means: Apache answers so too if a file goes just then."""
        if not self._look("read", key):
            return replace(answer, status=_NOT_FOUND)
        where = self.where(key)
        raise ReplicaTemporaryError(
            f"{where}: cannot read: the server answered {answer.status}",
            hint=f"If it does so again and again: {_READ_HINT}",
        )

    def _delete(self, key: str) -> None:
        self.session.request("delete", "DELETE", key, accept=(_NOT_FOUND,))

    def _make_folders(self, folder: str) -> None:
        """Make a folder and those above it, unless we know that it is there."""
        with self._lock:
            if folder in self._known:
                return
        missing = []
        at = folder
        while at and not self._make_folder(at):
            missing.append(at)
            at = posixpath.dirname(at)
        for path in reversed(missing):
            if not self._make_folder(path) and not posixpath.dirname(path):
                raise ReplicaPermanentError(
                    f"{self.where(path)}: cannot write: the folder above it is not there",
                    hint="Check that webdav-url is the address of a WebDAV folder.",
                )
        with self._lock:
            self._known.add(folder)

    def _make_folder(self, folder: str) -> bool:
        """Make a folder; return False if the one above it is missing."""
        accept = (_FORBIDDEN, _EXISTS, *_MISSING_PARENT)
        answer = self.session.request("write", "MKCOL", f"{folder}/", accept=accept)
        # So Apache answers as well if somebody else has just made it.
        if answer.status == _FORBIDDEN and not self._look("write", f"{folder}/"):
            raise server_error(self.where(folder), "write", answer)
        return answer.status not in _MISSING_PARENT

    def _forget_folders(self) -> None:
        with self._lock:
            self._known.clear()

    def _remove_abandoned(self) -> None:
        """Remove temporary files of writers that failed; they are only untidy."""
        with self._lock:
            paths, self._abandoned = sorted(self._abandoned), set()
        for path in paths:
            try:
                self._delete(path)
            except ReplicaPermanentError as error:
                log.info("left a temporary file of a failed write: path=%s error=%s", path, error)


class _Body(io.RawIOBase):
    """Give a file's bytes to a request, and keep the error of their source for the caller.

    One piece is held back until the next is there: what ends with an error is never complete.
    """

    def __init__(self, incoming: IncomingFile) -> None:
        super().__init__()
        self._chunks = incoming.chunks()
        self._pending = memoryview(b"")
        self._next: bytes | None = None
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        if not self._pending:
            self._advance()
        count = min(len(view), len(self._pending))
        view[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _advance(self) -> None:
        try:
            if self._next is None:
                self._next = next(self._chunks, b"")
            self._pending = memoryview(self._next)
            self._next = next(self._chunks, b"") if self._next else b""
        except Exception as error:
            self.error = error
            raise OSError("the source of the file failed") from error
