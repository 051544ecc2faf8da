"""Acknowledged level-0 files that stay staged until level 1 holds them, so that compaction need
not download them.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.tenant.spool import Spool
from pyrep.tenant.statedir import StateDir

__all__ = ["Kept"]

_MAX_FILES = 1024


class Kept:
    """Hold one tenant's acknowledged staged files; the newest stays for the next start.

    They take the room that files to be uploaded leave of ``limit`` (bytes) and of the common
    spool; when it gets narrow the oldest go.  With ``only_newest`` no other is kept.
    """

    def __init__(
        self, folder: StateDir, name: str, spool: Spool, limit: int, *, only_newest: bool
    ) -> None:
        self._folder = folder
        self._name = name
        self._spool = spool
        self._limit = limit
        self._most = 1 if only_newest else _MAX_FILES
        self._files: list[FileInfo] = []
        self._bytes = 0

    def add(self, info: FileInfo, queued_bytes: int) -> None:
        """Keep a file that was acknowledged just now; ``queued_bytes`` wait for their upload."""
        self._files.append(info)
        self._count(info.size)
        self.trim(queued_bytes)

    def trim(self, queued_bytes: int) -> None:
        """Delete the oldest files that there is no room for, never the newest."""
        while len(self._files) > 1 and self._too_much(queued_bytes):
            self._delete_oldest()

    def release(self, txid: TXID) -> None:
        """Delete the files up to ``txid``, which level 1 holds; never the newest."""
        while len(self._files) > 1 and self._files[0].max_txid <= txid:
            self._delete_oldest()

    def clear(self) -> None:
        """Delete all files, the newest too: what follows does not rest on them."""
        while self._files:
            self._delete_oldest()

    @property
    def newest_bytes(self) -> int:
        """Return the size of the file that stays whatever comes."""
        return self._files[-1].size if self._files else 0

    def adopt(self, infos: Iterable[FileInfo]) -> None:
        """Take over what a start found, by TXID."""
        self._files = list(infos)
        self._count(sum(info.size for info in self._files) - self._bytes)

    def _too_much(self, queued_bytes: int) -> bool:
        if len(self._files) > self._most or self._bytes + queued_bytes > self._limit:
            return True
        return self._spool.crowded

    def _delete_oldest(self) -> None:
        info = self._files.pop(0)
        self._count(-info.size)
        self._folder.discard([info])

    def _count(self, size: int) -> None:
        self._bytes += size
        self._spool.keep(self._name, self._bytes)
