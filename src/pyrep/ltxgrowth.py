"""Prove that a file that grows a database holds every new page."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Sequence

from pyrep._ltx import Header
from pyrep.errors import LTXCorruptError
from pyrep.ids import lock_pgno

__all__ = ["Growth"]


class Growth:
    """Count the pages beyond the end that a database file has before a file is applied.

    A file that grows the database and lacks new pages would leave zeros there, unnoticed:
    Litestream wrote such files (its issue 1198).
    """

    def __init__(self, fd: int, header: Header) -> None:
        self._header = header
        self._base = os.fstat(fd).st_size // header.page_size
        self._lock = threading.Lock()
        self._found = 0  # guarded by _lock

    def add(self, pgnos: Sequence[int], count: int) -> None:
        """Count the new ones among the first ``count`` page numbers (ascending)."""
        new = count - bisect_right(pgnos, self._base, 0, count)
        if new:
            with self._lock:
                self._found += new

    def check(self) -> None:
        """Refuse a file that lacks new pages.

        :raises LTXCorruptError: it does
        """
        commit, lock = self._header.commit, lock_pgno(self._header.page_size)
        wanted = max(0, commit - self._base) - (self._base < lock <= commit)
        if self._found != wanted:
            raise LTXCorruptError(
                f"pages are missing: the database grows from {self._base} to {commit} pages, "
                f"of {wanted} new ones the file holds {self._found}",
                op="apply",
                min_txid=self._header.min_txid,
                max_txid=self._header.max_txid,
            )
