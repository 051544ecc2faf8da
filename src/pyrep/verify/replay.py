"""Follow a database through its LTX files by the checksums of its pages alone.

The state of a database is the CRC-64 of each page; the database checksum over them names it.
Eight bytes a page are held, never a page.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

from pyrep import _checksum
from pyrep._ltx import Header
from pyrep.errors import LTXCorruptError
from pyrep.ids import lock_pgno

__all__ = ["FilePages", "PageState"]


@dataclass(frozen=True, slots=True)
class FilePages:
    """Hold what one verified LTX file says: its header, page numbers and their CRC-64."""

    header: Header
    pgnos: array[int]
    crcs: array[int]

    @property
    def is_whole(self) -> bool:
        """Return whether the file holds every page of the database."""
        commit = self.header.commit
        return len(self.pgnos) == commit - (lock_pgno(self.header.page_size) <= commit)


@dataclass(slots=True)
class PageState:
    """Hold the CRC-64 of every page of a database (0 for the lock page) and their checksum.

    Without pages it is the database before its first file.
    """

    page_size: int = 0
    crcs: array[int] = field(default_factory=lambda: array("Q"))
    checksum: int = 0

    def after(self, file: FilePages) -> int:
        """Return the database checksum that a file leads to from here; nothing is changed.

        :raises LTXCorruptError: it cannot be applied to this state
        """
        header = file.header
        if file.is_whole:
            return _checksum.database_checksum(_with_lock(file), 1, header.page_size)
        self._check(file)
        held, total = len(self.crcs), self.checksum
        for pgno, crc in zip(file.pgnos, file.crcs, strict=True):
            if pgno <= held:
                total ^= _checksum.page_term(self.crcs[pgno - 1], pgno)
            total ^= _checksum.page_term(crc, pgno)
        if header.commit < held:
            cut = self.crcs[header.commit :]
            total ^= _checksum.database_checksum(cut, header.commit + 1, header.page_size)
        return total

    def apply(self, file: FilePages) -> None:
        """Go on to the state after a file.

        :raises LTXCorruptError: it cannot be applied to this state
        """
        self.checksum = self.after(file)
        self.page_size = file.header.page_size
        if file.is_whole:
            self.crcs = _with_lock(file)
            return
        commit, held = file.header.commit, len(self.crcs)
        del self.crcs[commit:]
        self.crcs.extend(array("Q", bytes(8 * max(0, commit - held))))
        for pgno, crc in zip(file.pgnos, file.crcs, strict=True):
            self.crcs[pgno - 1] = crc

    def _check(self, file: FilePages) -> None:
        header, held = file.header, len(self.crcs)
        if self.page_size and header.page_size != self.page_size:
            raise LTXCorruptError(
                f"its pages have {header.page_size} bytes, those before it {self.page_size}"
            )
        lock = lock_pgno(header.page_size)
        wanted = max(0, header.commit - held) - (held < lock <= header.commit)
        found = len(file.pgnos) - bisect_right(file.pgnos, held)
        if found != wanted:
            raise LTXCorruptError(
                f"the database grows from {held} to {header.commit} pages here, and of {wanted} "
                f"new ones it holds {found}"
            )


def _with_lock(file: FilePages) -> array[int]:
    """Return the CRC of each page from the first, with a zero for the lock page."""
    lock = lock_pgno(file.header.page_size)
    crcs = array("Q", file.crcs)
    if lock <= file.header.commit:
        crcs.insert(lock - 1, 0)
    return crcs
