"""A replica in a store of objects that is asked over HTTP, whoever runs it."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

import urllib3

from pyrep.errors import ReplicaPermanentError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo, parse_name
from pyrep.storage.base import NO_TXID, Below, Capabilities
from pyrep.storage.budget import Budget
from pyrep.storage.checks import (
    IncomingFile,
    check_file,
    check_level,
    check_range,
    file_not_found,
)
from pyrep.storage.http import Answer, open_body
from pyrep.storage.layout import LEVELS, level_path, ltx_path
from pyrep.storage.search import look_plain

__all__ = [
    "ObjectReplicaClient",
    "ObjectStore",
    "StoredObject",
    "clean_path",
    "each",
]

_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Describe one object of a listing; the time is the header's where the store keeps it."""

    key: str
    size: int
    timestamp_ms: int


class ObjectStore(Protocol):
    """Do to objects, named by their whole keys, what the kind of store needs for it."""

    @property
    def scheme(self) -> str:
        """Return the kind of storage, as its URLs begin."""

    @property
    def capabilities(self) -> Capabilities:
        """Return what the storage can do."""

    @property
    def budget(self) -> Budget:
        """Return what the endpoint is given."""

    def where(self, key: str = "") -> str:
        """Return the name of an object, or of the bucket, for messages."""

    def list_objects(self, prefix: str, after: str) -> Iterator[StoredObject]:
        """List the objects whose keys begin with ``prefix``, in order of their keys.

        Those before ``after`` may be left out.
        """

    def list_folder(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Give the names that follow ``prefix`` up to the next slash, and whether one follows."""

    def read(
        self, key: str, offset: int, size: int | None
    ) -> tuple[Answer, urllib3.BaseHTTPResponse | None]:
        """Begin to read an object: the answer of a 200, 206, 404 or 416, and the body if any."""

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, None if there is none."""

    def upload(self, key: str, incoming: IncomingFile, *, create_only: bool) -> None:
        """Store all that ``incoming`` gives; nothing is there before all of it is.

        :raises ReplicaExistsError: ``create_only`` and there is an object of that name
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; a missing one counts as deleted."""


class ObjectReplicaClient:
    """Keep the LTX files of one replica path in a store.

    Only the path is this client's own; connections and credentials belong to a session that
    clients share.  ``release`` is called once, by ``close``.
    """

    def __init__(self, store: ObjectStore, path: str, *, release: Callable[[], None]) -> None:
        self.scheme = store.scheme
        self._store = store
        self._path = clean_path(path)
        self._release = release
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Return what the storage can do."""
        return self._store.capabilities

    @property
    def url(self) -> str:
        """Return the replica's place for logs and reports, without any secret."""
        return self._store.where(self._path)

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        """List a level's files with min TXID >= ``seek``, sorted by (min, max).

        The times are always those of the headers: a listing has them.
        """
        self._check_usable()
        check_level(self.url, level)
        return self._list(level, seek)

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``.

        :raises LTXNotFoundError: no such file
        :raises LTXCorruptError: the range lies past the file's end
        """
        self._check_usable()
        check_file(self.url, info.level, info.min_txid, info.max_txid)
        key = self._key(info)
        where = self._store.where(key)
        if offset < 0 or (size is not None and size < 0):
            check_range(where, info, offset, size, 0)
        if size == 0:
            check_range(where, info, offset, size, self._size(info, key))
            return io.BytesIO()
        answer, response = self._store.read(key, offset, size)
        if response is not None:
            return open_body(response, where, self._store.budget, info, offset, size)
        if answer.status == _NOT_FOUND:
            raise file_not_found(where, info)
        if check_range(where, info, offset, size, self._size(info, key)) == 0:
            return io.BytesIO()  # what follows the last byte
        raise ReplicaTemporaryError(f"{where}: cannot read: the storage refused a good range")

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
        key = self._key(info)
        incoming = IncomingFile(self._store.where(key), info, source)
        self._store.upload(key, incoming, create_only=create_only)
        return replace(info, size=incoming.size, timestamp_ms=incoming.timestamp_ms)

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; one that is missing counts as deleted."""
        self._check_usable()
        for info in infos:
            check_file(self.url, info.level, info.min_txid, info.max_txid)
        self._store.delete([self._key(info) for info in infos])

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path."""
        self._check_usable()
        for level in LEVELS:
            self.delete_ltx(list(self._list(level, NO_TXID)))

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own, folder by folder."""
        self._check_usable()
        place = posixpath.join(self._path, path, "") if path or self._path else ""
        return look_plain(path, place, self._store.list_folder)

    def close(self) -> None:
        """Make further calls errors; streams that are open stay usable."""
        if not self._closed:
            self._closed = True
            self._release()

    def _check_usable(self) -> None:
        if self._closed:
            raise ReplicaPermanentError(f"{self.url}: the client is closed")

    def _key(self, info: FileInfo) -> str:
        return posixpath.join(self._path, ltx_path(info.level, info.min_txid, info.max_txid))

    def _size(self, info: FileInfo, key: str) -> int:
        size = self._store.size(key)
        if size is None:
            raise file_not_found(self._store.where(key), info)
        return size

    def _list(self, level: int, seek: TXID) -> Iterator[FileInfo]:
        prefix = posixpath.join(self._path, level_path(level), "")
        after = f"{prefix}{seek:016x}" if seek else ""
        last: FileInfo | None = None
        for item in self._store.list_objects(prefix, after):
            txids = parse_name(item.key.removeprefix(prefix))
            if txids is None or txids[0] < seek:
                continue
            info = FileInfo(level, *txids, item.size, item.timestamp_ms)
            if last is not None and not last < info:
                raise ReplicaPermanentError(
                    f"{self._store.where(prefix)}: cannot list: the storage lists "
                    f"{info.name} after {last.name}",
                    hint="A replica needs a storage whose listings are sorted by name.",
                )
            last = info
            yield info


def clean_path(path: str) -> str:
    """Return a replica path as it begins each key: cleaned as Go's path.Join does."""
    if not path:
        return ""
    cleaned = posixpath.normpath(path)
    if cleaned.startswith("//"):
        cleaned = cleaned[1:]
    return "" if cleaned == "." else cleaned


def each(workers: ThreadPoolExecutor, call: Callable[[str], None], keys: Iterable[str]) -> None:
    """Call something for every key, several at a time; the first error is raised at the end."""
    pending = [workers.submit(call, key) for key in keys]
    errors = [error for future in pending if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
