"""A replica in a bucket of S3, or of a storage that speaks its protocol."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import BinaryIO

from pyrep.errors import ReplicaPermanentError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo, parse_name
from pyrep.storage.base import NO_TXID, Below, Capabilities
from pyrep.storage.checks import (
    IncomingFile,
    check_file,
    check_level,
    check_range,
    file_not_found,
)
from pyrep.storage.http import (
    body_length,
    format_time,
    open_body,
    parse_time,
    range_header,
)
from pyrep.storage.layout import LEVELS, hex_level_path, hex_ltx_path
from pyrep.storage.s3_bucket import BATCH, S3Bucket
from pyrep.storage.s3_calls import S3Sender
from pyrep.storage.s3_config import S3Settings
from pyrep.storage.s3_upload import upload
from pyrep.storage.s3_xml import ListedObject
from pyrep.storage.search import look_hex

__all__ = ["S3ReplicaClient"]

_METADATA = "x-amz-meta-litestream-timestamp"


class S3ReplicaClient:
    """Keep the LTX files of one replica path in a bucket.

    Only the bucket and the path are this client's own; connections, credentials and what is
    known of the server belong to the session.  ``release`` is called once, by ``close``.
    """

    def __init__(
        self, settings: S3Settings, session: S3Sender, *, release: Callable[[], None]
    ) -> None:
        self.scheme = settings.scheme
        self._bucket = S3Bucket(settings, session)
        self._release = release
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Return what the storage can do, as far as is known by now."""
        facts = self._bucket.facts
        return Capabilities(
            connections=self._bucket.settings.concurrency,
            conditional_put=facts.conditional_put is not False,
            batch_delete=facts.batch_delete is not False,
        )

    @property
    def url(self) -> str:
        """Return the replica's place for logs and reports, without any secret."""
        return self._bucket.where(self._bucket.settings.path)

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        """List a level's files with min TXID >= ``seek``, sorted by (min, max).

        The times are those of the uploads; with ``exact_times`` those of the headers, which costs
        one request per file.
        """
        self._check_usable()
        check_level(self.url, level)
        found = self._list(level, seek)
        return self._with_times(found) if exact_times else found

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``.

        :raises LTXNotFoundError: no such file
        :raises LTXCorruptError: the range lies past the file's end
        """
        self._check_usable()
        check_file(self.url, info.level, info.min_txid, info.max_txid)
        key = self._key(info)
        where = self._bucket.where(key)
        if offset < 0 or (size is not None and size < 0):
            check_range(where, info, offset, size, 0)
        if size == 0:
            check_range(where, info, offset, size, self._size(info))
            return io.BytesIO()
        return self._open(info, key, offset, size)

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
        incoming = IncomingFile(self._bucket.where(key), info, source)
        metadata = {_METADATA: format_time(incoming.timestamp_ms)}
        upload(self._bucket, key, incoming, metadata, create_only=create_only)
        return replace(info, size=incoming.size, timestamp_ms=incoming.timestamp_ms)

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; one that is missing counts as deleted.

        Stops at the first error; what was deleted before it stays deleted.
        """
        self._check_usable()
        for info in infos:
            check_file(self.url, info.level, info.min_txid, info.max_txid)
        self._bucket.delete([self._key(info) for info in infos])

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path."""
        self._check_usable()
        for level in LEVELS:
            self.delete_ltx(list(self._list(level, NO_TXID)))

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own, folder by folder."""
        self._check_usable()
        base = self._bucket.settings.path
        place = f"{base.rstrip('/')}/" if base else ""
        if path:
            return look_hex(path, f"{place}{path}/", self._bucket.list_folder)
        # As in _key: the levels of a path that is empty or ends in a slash have one slash more.
        own = f"{base}/"
        return look_hex("", place, self._bucket.list_folder, own=own if own != place else None)

    def close(self) -> None:
        """Make further calls errors; streams that are open stay usable."""
        if not self._closed:
            self._closed = True
            self._release()

    def _check_usable(self) -> None:
        if self._closed:
            raise ReplicaPermanentError(f"{self.url}: the client is closed")

    def _key(self, info: FileInfo) -> str:
        # Litestream joins like this, whatever the path: one without a path begins with a slash.
        ltx_path = hex_ltx_path(info.level, info.min_txid, info.max_txid)
        return f"{self._bucket.settings.path}/{ltx_path}"

    # --- listing ----------------------------------------------------------------------------------

    def _list(self, level: int, seek: TXID) -> Iterator[FileInfo]:
        prefix = f"{self._bucket.settings.path}/{hex_level_path(level)}/"
        after = f"{prefix}{seek:016x}" if seek else ""
        last: FileInfo | None = None
        for item in self._bucket.list_objects(prefix, after):
            info = _file_info(level, item, prefix)
            if info is None or info.min_txid < seek:
                continue
            if last is not None and not last < info:
                raise ReplicaPermanentError(
                    f"{self._bucket.where(prefix)}: cannot list: the storage lists "
                    f"{info.name} after {last.name}",
                    hint="A replica needs a bucket whose listings are sorted by key.",
                )
            last = info
            yield info

    def _with_times(self, found: Iterator[FileInfo]) -> Iterator[FileInfo]:
        while batch := list(islice(found, BATCH)):
            workers = self._bucket.session.workers()
            for info in workers.map(self._exact, batch):
                if info is not None:
                    yield info

    def _exact(self, info: FileInfo) -> FileInfo | None:
        """Return a file with the time of its header, None if it is gone by now."""
        answer = self._bucket.head("look at", self._key(info))
        if answer is None:
            return None
        time = parse_time(answer.headers.get(_METADATA, ""))
        return info if time is None else replace(info, timestamp_ms=time)

    # --- reading ----------------------------------------------------------------------------------

    def _open(self, info: FileInfo, key: str, offset: int, size: int | None) -> BinaryIO:
        where = self._bucket.where(key)
        headers = range_header(offset, size)
        answer, response = self._bucket.stream("read", key, headers, (404, 416))
        if response is None and answer.status == 404:
            if answer.error.code == "NoSuchBucket":
                raise ReplicaPermanentError(
                    f"{where}: cannot read: there is no such bucket",
                    hint="Create the bucket, or correct its name.",
                )
            raise file_not_found(where, info)
        if response is None:
            if check_range(where, info, offset, size, self._size(info)) == 0:
                return io.BytesIO()  # what follows the last byte
            raise ReplicaTemporaryError(f"{where}: cannot read: the storage refused a good range")
        return open_body(response, where, self._bucket.session.budget, info, offset, size)

    def _size(self, info: FileInfo) -> int:
        key = self._key(info)
        where = self._bucket.where(key)
        answer = self._bucket.head("read", key)
        if answer is None:
            raise file_not_found(where, info)
        return body_length(where, answer.headers)


def _file_info(level: int, item: ListedObject, prefix: str) -> FileInfo | None:
    """Return the LTX file that an object is, or None.

    Servers differ in how they encode a listing, so only the last element of a key is read, which
    no encoding changes, and the depth of the key compared.
    """
    txids = parse_name(item.key.rpartition("/")[2])
    if txids is None or item.key.count("/") != prefix.count("/"):
        return None
    return FileInfo(level, *txids, item.size, parse_time(item.modified) or 0)
