"""Make the files of many writers durable with one call.

``fsync`` of a small file costs a commit of the file system's journal and a flush of the device.
A thousand databases that write once a second would need two thousand of them a second, which few
devices give; ``syncfs`` makes durable what all of them wrote meanwhile.

Its yes counts only where it means as much as that of ``fsync``: on file systems of this machine
that are known for it, on kernels that hand their errors on, and with a look at each file's own
errors after it.  Everywhere else, and for a writer that is alone, ``fsync`` it is.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pyrep import osfs
from pyrep.sqlite import file_system_type

__all__ = ["SharedSync", "shared_sync"]

_log = logging.getLogger(__name__)

_FILE_SYSTEMS = frozenset({"ext4", "xfs"})
_KERNEL = (5, 17)  # before, syncfs kept what the file system said to itself
_FEW = 4  # so many wait for less if each syncs its own
_SLOW_SECONDS = 0.5  # it waits for what other programs wrote, too
_SLOW_IN_A_ROW = 2  # the first one may have found much to do, and left none
_REST_SECONDS = 30.0
_MOST_DOUBLINGS = 7  # about an hour


class _Round:
    """Hold those who wait to be synced together; ``together`` None: it has not begun."""

    def __init__(self, lock: threading.Lock) -> None:
        self.members = 0
        self.together: bool | None = None
        self.decided = threading.Condition(lock)


class SharedSync:
    """Let the writers on one file system share what makes their files durable.

    Who comes alone syncs at once.  Those who come while others are being synced wait for these,
    and are then synced together.  Safe for several threads.
    """

    def __init__(
        self, place: str, *, usable: bool = True, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._place = place
        self._usable = usable
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._running = 0  # how many are being synced; guarded by _lock, as all below
        self._next = _Round(self._lock)
        self._slow = 0
        self._rests_until = 0.0

    def sync(self, fd: int, alone: Callable[[], None]) -> None:
        """Return when all that this thread has changed on the file system is durable.

        ``fd`` is a file there, whose own errors count; ``alone`` makes durable what this writer
        alone has to.

        :raises OSError: it is not durable
        """
        if self._synced_together(fd):
            osfs.check_written("file.check", fd)
            return
        try:
            alone()
        finally:
            with self._lock:
                self._leave(1)

    def _synced_together(self, fd: int) -> bool:
        """Wait for a turn; return False if the caller has to sync its own, counted as running."""
        with self._lock:
            if not self._running and not self._next.members:
                self._running = 1
                return False
            mine = self._next
            mine.members += 1
            if mine.members > 1:  # the first one leads
                while mine.together is None:
                    mine.decided.wait()
                return mine.together
            while self._running:
                self._free.wait()
            self._next, self._running = _Round(self._lock), mine.members
            pays = self._pays(mine.members)
        together = False
        try:
            together = pays and self._sync_all(fd)
        finally:
            with self._lock:
                mine.together = together
                mine.decided.notify_all()
                self._leave(mine.members if together else 0)
        return together

    def _leave(self, members: int) -> None:
        self._running -= members
        if not self._running:
            self._free.notify()

    def _pays(self, members: int) -> bool:
        return self._usable and members >= _FEW and self._monotonic() >= self._rests_until

    def _sync_all(self, fd: int) -> bool:
        """Sync the file system; after a failure each writer finds out what became of its file."""
        began = self._monotonic()
        try:
            osfs.sync_file_system("file.syncfs", fd)
            if os.fstatvfs(fd).f_flag & os.ST_RDONLY:  # an error made it so: nothing was synced
                raise OSError("the file system is read-only now")
        except OSError as error:
            self._usable = False
            _log.warning("files are synced one by one now: path=%s error=%s", self._place, error)
            return False
        self._note(self._monotonic() - began)
        return True

    def _note(self, seconds: float) -> None:
        """Leave it for a while, and each time for longer, where other programs write too much."""
        if seconds < _SLOW_SECONDS:
            self._slow = 0
            return
        self._slow += 1
        if self._slow >= _SLOW_IN_A_ROW:
            rest = _REST_SECONDS * 2.0 ** min(self._slow - _SLOW_IN_A_ROW, _MOST_DOUBLINGS)
            self._rests_until = self._monotonic() + rest


_lock = threading.Lock()
_shared: dict[tuple[int, int], SharedSync] = {}  # by device and file system; guarded by _lock


def shared_sync(fd: int) -> SharedSync:
    """Return what the writers on the file system of an open file share."""
    key = (os.fstat(fd).st_dev, os.fstatvfs(fd).f_fsid)
    with _lock:
        found = _shared.get(key)
        if found is None:
            place = os.readlink(f"/proc/self/fd/{fd}")
            usable = file_system_type(Path(place)) in _FILE_SYSTEMS and _kernel() >= _KERNEL
            found = _shared[key] = SharedSync(place, usable=usable)
        return found


def _kernel() -> tuple[int, ...]:
    """Return the kernel's version, (0,) if it cannot be read."""
    words = os.uname().release.split("-")[0].split(".")[:2]
    return tuple(map(int, words)) if all(word.isdecimal() for word in words) else (0,)
