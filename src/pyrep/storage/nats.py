"""A replica in a bucket of NATS JetStream's object store.

A single database has Litestream's names and subjects.  A tenant of a directory has its path in
the objects' names and, so that its files can be listed without those of all others, in their
subjects: ``$O.<bucket>.M.<path in base64>.<level>.<file>``.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import contextlib
import hashlib
import io
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import BinaryIO

from nats.js import JetStreamContext
from nats.js.errors import APIError

from pyrep.errors import (
    LTXNotFoundError,
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import NO_TXID, Below, Capabilities
from pyrep.storage.checks import (
    IncomingFile,
    check_file,
    check_level,
    check_range,
    file_not_found,
)
from pyrep.storage.layout import LEVELS, ltx_path, parse_ltx_path
from pyrep.storage.nats_bucket import (
    CHUNK,
    Bucket,
    Described,
    Messages,
    TakenError,
    subject_token,
)
from pyrep.storage.nats_config import NATSSettings
from pyrep.storage.nats_session import NATSSession
from pyrep.storage.pieces import PieceReader

__all__ = ["NATSReplicaClient"]

log = logging.getLogger(__name__)

_CONNECTIONS = 8
_WINDOW = 8 * CHUNK  # bytes on their way at once
_READ_BUFFER = 64 << 10
_REMOVED_AT_ONCE = 1000
_ATTEMPTS = 5


class NATSReplicaClient:
    """Keep the LTX files of one replica path in a bucket.

    Only bucket and path are this client's own, the connection belongs to the session.
    ``release`` is called once, by ``close``.
    """

    scheme = "nats"

    def __init__(
        self, settings: NATSSettings, session: NATSSession, *, release: Callable[[], None]
    ) -> None:
        self.capabilities = Capabilities(connections=_CONNECTIONS)
        self._settings = settings
        self._session = session
        self._release = release
        self._bucket = Bucket(settings.bucket)
        self._closed = False

    @property
    def url(self) -> str:
        """Return the replica's place for logs and reports, without any secret."""
        return self._where(self._settings.path)

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        """List a level's files with min TXID >= ``seek``, sorted by (min, max)."""
        self._check_usable()
        check_level(self.url, level)
        return iter([info for info in self._list(level) if info.min_txid >= seek])

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``.

        :raises LTXNotFoundError: no such file
        :raises LTXCorruptError: the range lies past the file's end
        """
        self._check_usable()
        check_file(self.url, info.level, info.min_txid, info.max_txid)
        where = self._where(self._name(info))
        if offset < 0 or (size is not None and size < 0):
            check_range(where, info, offset, size, 0)
        for _ in range(_ATTEMPTS):
            one = self._look("read", info)
            if one is None or one.deleted:
                raise file_not_found(where, info)
            length = check_range(where, info, offset, size, one.size)
            look = partial(self._look, "read", info)
            reader = _Reader(self._session, self._bucket, one, where, info, length, look)
            if reader.begin(offset):
                return io.BufferedReader(reader, _READ_BUFFER)
            reader.close()  # replaced between the look and the read
        raise ReplicaTemporaryError(f"{where}: cannot read: it is replaced again and again")

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
        where = self._where(self._name(info))
        incoming = IncomingFile(where, info, source)
        old = self._look("write", info)
        is_there = old is not None and not old.deleted
        if create_only and is_there:
            raise ReplicaExistsError(f"{where}: the object is already there")
        nuid = secrets.token_hex(11)
        last = (old.sequence if old is not None else 0) if create_only else None
        try:
            digest = self._send(where, nuid, incoming)
        except BaseException:
            self._purge_quietly(where, nuid)
            raise
        try:
            self._describe(info, nuid, incoming, digest, last)
        except ReplicaError as error:
            # Without an answer the file may be there: whoever sees it needs its bytes.
            if isinstance(error.__cause__, APIError | TakenError):
                self._purge_quietly(where, nuid)
            raise
        if old is not None and is_there:
            self._purge_quietly(where, old.nuid)
        return replace(info, size=incoming.size, timestamp_ms=incoming.timestamp_ms)

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; one that is missing counts as deleted."""
        self._check_usable()
        for info in infos:
            check_file(self.url, info.level, info.min_txid, info.max_txid)
        places = [self._place(info) for info in infos]
        for start in range(0, len(places), _REMOVED_AT_ONCE):
            batch = places[start : start + _REMOVED_AT_ONCE]
            where = self._where(self._name(infos[start]))
            self._session.run("delete", where, partial(self._bucket.remove, places=batch))

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path."""
        self._check_usable()
        for level in LEVELS:
            self.delete_ltx(self._list(level))

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own, and at all below it."""
        self._check_usable()
        places = self._session.run("look into", self.url, self._bucket.places)
        base = self._settings.path
        start = "/".join(part for part in (base, path) if part)
        found = set()
        for place in set(map(_replica_of, places)) - {None}:
            replica = place or ""
            if not start or replica == start or replica.startswith(f"{start}/"):
                found.add(replica[len(base) :].lstrip("/") if base else replica)
        return Below(tuple(sorted(found)))

    def close(self) -> None:
        """Make further calls errors."""
        if not self._closed:
            self._closed = True
            self._release()

    def _check_usable(self) -> None:
        if self._closed:
            raise ReplicaPermanentError(f"{self.url}: the client is closed")

    # --- names ------------------------------------------------------------------------------------

    def _name(self, info: FileInfo) -> str:
        name = ltx_path(info.level, info.min_txid, info.max_txid)
        return f"{self._settings.path}/{name}" if self._settings.path else name

    def _place(self, info: FileInfo) -> str:
        """Return the last part of the subject of a file's description."""
        if not self._settings.path:
            return subject_token(self._name(info))
        return f"{subject_token(self._settings.path)}.{info.level}.{info.name}"

    def _where(self, name: str) -> str:
        servers = ",".join(one.partition("://")[2] for one in self._settings.account.servers)
        return f"nats://{servers}/{self._settings.bucket}/{name}".rstrip("/")

    # --- steps ------------------------------------------------------------------------------------

    def _list(self, level: int) -> list[FileInfo]:
        path = self._settings.path
        places = f"{subject_token(path)}.{level}.>" if path else "*"
        head = f"{path}/" if path else ""
        objects = self._session.run("list", self.url, lambda js: self._bucket.find(js, places))
        found = []
        for one in objects:
            info = parse_ltx_path(one.name.removeprefix(head))
            if info is not None and info.level == level:
                found.append(replace(info, size=one.size, timestamp_ms=one.timestamp_ms))
        return sorted(found)

    def _look(self, op: str, info: FileInfo) -> Described | None:
        where, place = self._where(self._name(info)), self._place(info)
        return self._session.run(op, where, lambda js: self._bucket.look(js, place))

    def _send(self, where: str, nuid: str, incoming: IncomingFile) -> bytes:
        """Store a file's bytes; return their digest."""
        digest = hashlib.sha256()
        for chunk in _windows(incoming.chunks()):
            digest.update(chunk)
            self._session.run("write", where, partial(self._bucket.send, nuid=nuid, data=chunk))
        return digest.digest()

    def _describe(
        self, info: FileInfo, nuid: str, incoming: IncomingFile, digest: bytes, last: int | None
    ) -> None:
        """Make a file visible, with ``last`` only if nobody else has been quicker."""
        name, place = self._name(info), self._place(info)
        one = Described(
            name=name,
            nuid=nuid,
            size=incoming.size,
            chunks=-(-incoming.size // CHUNK),
            timestamp_ms=incoming.timestamp_ms,
        )
        try:
            self._session.run(
                "write",
                self._where(name),
                lambda js: self._bucket.describe(js, place, one, digest, last=last),
            )
        except TakenError as error:
            now = self._look("write", info)
            if now is not None and not now.deleted:
                where = self._where(name)
                raise ReplicaExistsError(f"{where}: the object is already there") from error
            raise ReplicaTemporaryError(
                f"{self._where(name)}: cannot write: it was deleted meanwhile"
            ) from error

    def _purge_quietly(self, where: str, nuid: str) -> None:
        """Remove the bytes of an object that nobody can see; they are only untidy."""
        subject = self._bucket.chunk_subject(nuid)
        try:
            self._session.run("write", where, lambda js: self._bucket.purge(js, subject))
        except ReplicaError as error:
            log.info("left the bytes of a failed write: subject=%s error=%s", subject, error)


def _windows(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Give the same bytes in whole windows, so that every chunk but the last one is full."""
    pending = bytearray()
    for piece in pieces:
        pending += piece
        while len(pending) >= _WINDOW:
            yield bytes(pending[:_WINDOW])
            del pending[:_WINDOW]
    if pending:
        yield bytes(pending)


def _replica_of(place: str) -> str | None:
    """Return the replica path of a file, None if a subject's last part does not tell one."""
    token, _, rest = place.partition(".")
    try:
        text = base64.urlsafe_b64decode(token).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    if rest:
        level, _, name = rest.partition(".")
        return text if parse_ltx_path(f"ltx/{level}/{name}") else None
    return "" if parse_ltx_path(text) else None


class _Reader(PieceReader):
    """Read a promised number of bytes of an object, some chunks at a time."""

    def __init__(
        self,
        session: NATSSession,
        bucket: Bucket,
        one: Described,
        where: str,
        info: FileInfo,
        length: int,
        look: Callable[[], Described | None],
    ) -> None:
        super().__init__(length)
        self._look = look
        self._session = session
        self._bucket = bucket
        self._one = one
        self._where = where
        self._info = info
        self._messages: Messages | None = None
        # As many chunks at once as a window has; other programs make them of any size.
        self._count = max(1, _WINDOW * one.chunks // max(1, one.size))

    def begin(self, offset: int) -> bool:
        """Fetch the first bytes; return False if the object's chunks are gone."""
        if not self._left:
            return True
        work = self._only_chunk if self._one.chunks == 1 else self._first_chunks
        return self._session.run("read", self._where, lambda js: work(js, offset))

    def close(self) -> None:
        if not self.closed and self._messages is not None:
            messages, self._messages = self._messages, None
            # The server forgets by itself what cannot be closed now.
            with contextlib.suppress(ReplicaError):
                self._session.run("read", self._where, lambda js: messages.close())
        super().close()

    async def _only_chunk(self, js: JetStreamContext, offset: int) -> bool:
        data = await self._bucket.only_chunk(js, self._one.nuid)
        if data is None:
            return False
        self._take(data[offset:])
        return not self._left

    async def _first_chunks(self, js: JetStreamContext, offset: int) -> bool:
        nuid, skipped = self._one.nuid, 0
        sequence = 0
        if offset:
            places = await self._bucket.chunk_places(js, nuid)
            number = bisect.bisect_right(places.starts, offset) - 1
            if number < 0 or len(places.starts) != self._one.chunks:
                return False
            sequence, skipped = places.sequences[number], places.starts[number]
        self._messages = await self._bucket.chunks_from(js, nuid, sequence)
        data = b"".join(message.data for message in await self._messages.fetch(self._count))
        self._take(data[offset - skipped :])
        return bool(self._data)

    def _fetch(self) -> None:
        messages = self._messages
        batch = (
            self._session.run("read", self._where, lambda js: messages.fetch(self._count))
            if messages is not None
            else []
        )
        if not batch:
            now = self._look()
            if now is not None and not now.deleted:
                raise ReplicaTemporaryError(
                    f"{self._where}: cannot read: it was replaced while it was read"
                )
            raise LTXNotFoundError(
                f"deleted while it was read, {self._left} bytes before its end",
                op="read",
                path=self._where,
                level=self._info.level,
                min_txid=self._info.min_txid,
                max_txid=self._info.max_txid,
            )
        self._take(b"".join(message.data for message in batch))
