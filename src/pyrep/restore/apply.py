"""Apply LTX files one after another to a growing database file.

Each file must be what its name says, whole by its own checksums, and, where both sides are
known, continue the database that the file before it left.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass

from pyrep import ltxio, osfs
from pyrep._ltx import HEADER_SIZE, Header
from pyrep.errors import LTXChecksumError, LTXCorruptError
from pyrep.ltxfile import FileInfo
from pyrep.restore.proof import database_checksum, prove
from pyrep.restore.source import Source
from pyrep.restore.target import TempFile, describe_os_errors

__all__ = ["LARGE", "SMALL", "Applier"]

SMALL = 4 << 20  # bytes; up to here a file is read whole, ahead of need
LARGE = 16 << 20  # bytes; above, a file is decoded by spans on several threads

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """Hold a file that was applied, and its header."""

    info: FileInfo
    header: Header


class Applier:
    """Write the pages of a plan's files, in order, to one temporary file.

    ``verify``: small files are checked, and if need be read again, before they are applied.
    """

    def __init__(
        self, source: Source, temp: TempFile, threads: int, *, verify: bool = False
    ) -> None:
        self._read = source.read_verified if verify else source.read
        self._source = source
        self._temp = temp
        self._threads = threads
        self._last: _Step | None = None

    def bytes_ahead(self, info: FileInfo) -> int:
        """Return how many bytes :meth:`read_ahead` of a file holds."""
        return info.size if info.size <= SMALL else 0

    def read_ahead(self, info: FileInfo) -> bytes | None:
        """Return a small file's bytes for :meth:`apply`; None if it is to be streamed."""
        return self._read(info) if info.size <= SMALL else None

    def apply(self, info: FileInfo, data: bytes | None) -> Header:
        """Verify a file (its bytes, or None to read it now) and write its pages.

        Returns its header.

        :raises LTXCorruptError: it is damaged, or not the file that its name says
        :raises LTXChecksumError: it follows another lineage than the file before
        """
        with self._open(info, data) as stream:
            header = self._parse(info, stream.peek(HEADER_SIZE)[:HEADER_SIZE])
            self._check_name(info, header)
            self._check_lineage(info, header)
            resized = self._resized(info, header)
            with describe_os_errors(self._temp.path, "writing the database"):
                if resized:
                    osfs.truncate("restore.truncate", self._temp.fd, 0)
                self._write(info, data, stream)
        if resized:
            self._prove_now(info, header)
        self._last = _Step(info, header)
        return header

    def _open(self, info: FileInfo, data: bytes | None) -> io.BufferedReader:
        if data is not None:
            return io.BufferedReader(io.BytesIO(data))
        if self._by_spans(info):
            return self._source.open_range(info, 0, HEADER_SIZE)
        return self._source.open(info)

    def _by_spans(self, info: FileInfo) -> bool:
        ranged = self._source.client.capabilities.ranged_read
        return info.size > LARGE and self._threads > 1 and ranged

    def _write(self, info: FileInfo, data: bytes | None, stream: io.BufferedReader) -> None:
        name = self._source.name(info)
        if data is None and self._by_spans(info):
            threads = min(self._threads, self._source.client.capabilities.connections)
            ltxio.apply_parallel(
                lambda offset, size: self._source.open_range(info, offset, size),
                info.size,
                self._temp.fd,
                max(1, threads),
                op="restore",
                name=name,
            )
        else:
            ltxio.apply(stream, self._temp.fd, op="restore", name=name)

    def _parse(self, info: FileInfo, head: bytes) -> Header:
        try:
            return Header.parse(head)
        except LTXCorruptError as error:
            raise self._source.corrupt(info, error.message) from error

    def _check_name(self, info: FileInfo, header: Header) -> None:
        if (header.min_txid, header.max_txid) != (info.min_txid, info.max_txid):
            message = f"the header says txids {header.min_txid:016x} to {header.max_txid:016x}"
            raise self._source.corrupt(info, message)

    def _check_lineage(self, info: FileInfo, header: Header) -> None:
        """Refuse a file that was made from another database than the one restored so far."""
        if self._last is None or info.min_txid != self._last.info.max_txid + 1:
            return
        before, after = header.pre_checksum, self._last.header.post_checksum
        if before and after and before != after:
            last = self._last.info
            raise LTXChecksumError(
                f"the file belongs to another lineage: it continues a database with the checksum "
                f"{before:016x}, but after {last.name} (level {last.level}) it is {after:016x}",
                op="restore",
                path=self._source.name(info),
                level=info.level,
                min_txid=info.min_txid,
                max_txid=info.max_txid,
                hint=f"Two writers have used this replica. Restore what precedes the break with "
                f"-txid {last.max_txid}.",
            )

    def _resized(self, info: FileInfo, header: Header) -> bool:
        """Return whether the page size changes here; refuse that where it cannot be proven."""
        if self._last is None or self._last.header.page_size == header.page_size:
            return False
        if not header.post_checksum:
            message = (
                f"the page size changes from {self._last.header.page_size} to "
                f"{header.page_size} bytes in the middle of the plan"
            )
            raise self._source.corrupt(info, message)
        _log.info("%s: page size is now %d", self._source.name(info), header.page_size)
        return True

    def _prove_now(self, info: FileInfo, header: Header) -> None:
        """Prove that a file of another page size held every page: nothing older shows through."""
        found = database_checksum(self._temp, header, self._threads)
        prove(self._temp, self._source.name(info), found, header.post_checksum)
