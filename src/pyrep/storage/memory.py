"""A replica in this process's memory, for tests: the contract, and failures on demand."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

from pyrep.errors import LTXNotFoundError, ReplicaExistsError, ReplicaPermanentError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import NO_TXID, Below, Capabilities
from pyrep.storage.checks import IncomingFile, check_file, check_level, check_range
from pyrep.storage.layout import level_path, ltx_path, parse_ltx_path
from pyrep.storage.search import look_at_keys

__all__ = ["Faults", "MemoryReplicaClient", "MemoryStorage"]

Faults = Callable[[str, FileInfo | None], None]


def _no_faults(op: str, info: FileInfo | None) -> None:
    """Let every call pass."""


class MemoryStorage:
    """Hold objects by name, each with its time; clients of several replica paths may share one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, int]] = {}  # guarded by lock


class MemoryReplicaClient:
    """Keep the LTX files of one replica path in a :class:`MemoryStorage`.

    ``faults`` is called before each step with its name and, where there is one, the file; what
    it raises is what the caller gets.  The steps are ``list``, ``open``, ``write`` (nothing is
    stored yet), ``write-answer`` (the file is stored, the caller does not know it), ``delete``
    (once per file), ``delete_all`` and ``look``.
    """

    scheme = "memory"

    def __init__(
        self,
        storage: MemoryStorage | None = None,
        path: str = "",
        *,
        faults: Faults = _no_faults,
    ) -> None:
        self.capabilities = Capabilities()
        self.faults = faults
        self.storage = storage if storage is not None else MemoryStorage()
        self._prefix = f"{path}/" if path else ""
        self._closed = False

    @property
    def url(self) -> str:
        """Return the replica's place for logs and reports, without any secret."""
        return f"memory://{self._prefix.removesuffix('/')}"

    def list_ltx(
        self, level: int, seek: TXID = NO_TXID, *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        """List a level's files with min TXID >= ``seek``, sorted by (min, max)."""
        self._begin("list", None)
        check_level(self.url, level)
        prefix = f"{self._prefix}{level_path(level)}/"
        with self.storage.lock:
            found = [item for item in self.storage.objects.items() if item[0].startswith(prefix)]
        infos = []
        for name, (data, timestamp_ms) in found:
            info = parse_ltx_path(name.removeprefix(self._prefix))
            if info is not None and info.min_txid >= seek:
                infos.append(replace(info, size=len(data), timestamp_ms=timestamp_ms))
        return iter(sorted(infos))

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        """Open ``size`` bytes (None: all) of a file from ``offset``.

        :raises LTXNotFoundError: no such file
        :raises LTXCorruptError: the range lies past the file's end
        """
        self._begin("open", info)
        key = self._key(info)
        with self.storage.lock:
            found = self.storage.objects.get(key)
        if found is None:
            raise LTXNotFoundError(
                "no such ltx file",
                op="open",
                path=f"memory://{key}",
                level=info.level,
                min_txid=info.min_txid,
                max_txid=info.max_txid,
            )
        data = found[0]
        length = check_range(f"memory://{key}", info, offset, size, len(data))
        return io.BytesIO(data[offset : offset + length])

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
        info = check_file(self.url, level, min_txid, max_txid)
        self._begin("write", info)
        key = self._key(info)
        incoming = IncomingFile(f"memory://{key}", info, source)
        data = b"".join(incoming.chunks())
        with self.storage.lock:
            if create_only and key in self.storage.objects:
                raise ReplicaExistsError(f"memory://{key}: the object is already there")
            self.storage.objects[key] = (data, incoming.timestamp_ms)
        info = replace(info, size=len(data), timestamp_ms=incoming.timestamp_ms)
        self.faults("write-answer", info)
        return info

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        """Delete files; one that is missing counts as deleted."""
        for info in infos:
            self._begin("delete", info)
            key = self._key(info)
            with self.storage.lock:
                self.storage.objects.pop(key, None)

    def delete_all(self) -> None:
        """Delete every LTX file below the replica path."""
        self._begin("delete_all", None)
        with self.storage.lock:
            for key in [key for key in self.storage.objects if self._is_ours(key)]:
                del self.storage.objects[key]

    def look_below(self, path: str = "") -> Below:
        """Look for replicas at a path below the client's own, and at all below it."""
        self._begin("look", None)
        prefix = self._prefix + (f"{path}/" if path else "")
        with self.storage.lock:
            keys = [key for key in self.storage.objects if key.startswith(prefix)]
        return look_at_keys((key.removeprefix(self._prefix) for key in keys), parse_ltx_path)

    def close(self) -> None:
        """Make further calls errors."""
        self._closed = True

    def _begin(self, op: str, info: FileInfo | None) -> None:
        if self._closed:
            raise ReplicaPermanentError(f"{self.url}: the client is closed")
        self.faults(op, info)

    def _key(self, info: FileInfo) -> str:
        check_file(self.url, info.level, info.min_txid, info.max_txid)
        return self._prefix + ltx_path(info.level, info.min_txid, info.max_txid)

    def _is_ours(self, key: str) -> bool:
        return (
            key.startswith(self._prefix)
            and parse_ltx_path(key.removeprefix(self._prefix)) is not None
        )
