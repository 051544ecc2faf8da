"""A watcher that the kernel tells of changes: a quiet database costs one watch and no look.

A quiet database has a one-shot watch on its ``-wal``, or, while it has none, on the file itself.
A commit is several writes: the first one ends the watch, so load causes one event.  Folders have
no watch for writes, only for names that come and go; so the appearance of a ``-wal`` is seen.

Arming and looking: whatever came before the watch is found by a look after it (``changed``),
whatever comes after it is an event.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from inotify_simple import Event, INotify, flags

from pyrep.clock import Clock
from pyrep.sqlite import REMOTE_FILE_SYSTEMS, file_system_type
from pyrep.watch.base import Dirty, DirtyKind, Watcher
from pyrep.watch.polling import PollingWatcher

__all__ = ["INotifyWatcher", "best_watcher"]

_FILE_MASK = flags.MODIFY | flags.ONESHOT | flags.DONT_FOLLOW
_FOLDER_MASK = (
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.DONT_FOLLOW
)
_SELF = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
_COMPANIONS = ("-wal", "-journal")  # of a database; what comes and goes with its use
_LOOKS_AT_ONCE = 500  # then events have their turn
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_LIMITS = {
    errno.ENOSPC: "Raise fs.inotify.max_user_watches to twice the number of databases.",
    errno.EMFILE: "Raise fs.inotify.max_user_instances, or the limit of open files.",
}
_log = logging.getLogger(__name__)

Changed = Callable[[Path], bool]


def best_watcher(interval: float, changed: Changed, clock: Clock) -> Watcher:
    """Return a watcher that the kernel tells of changes, else one that sweeps."""
    try:
        return INotifyWatcher(interval, changed, clock)
    except OSError as error:
        _warn(error, "the kernel does not report changes: files are looked at instead")
        return PollingWatcher(interval, changed, clock)


class INotifyWatcher:
    """Report what the kernel tells; sweep every ``interval`` seconds what it cannot watch.

    ``changed(path)`` is asked on the thread of ``poll``, about quiet databases only.

    :raises OSError: the kernel gives no instance
    """

    def __init__(
        self,
        interval: float,
        changed: Changed,
        clock: Clock,
        *,
        kind_of: Callable[[Path], str] = file_system_type,
    ) -> None:
        self._changed = changed
        self._kind_of = kind_of
        self._lock = threading.Lock()
        self._quiet: dict[Path, int] = {}  # path -> watch descriptor, 0: none; guarded by _lock
        self._files: dict[int, Path] = {}  # guarded by _lock
        self._to_look: dict[Path, None] = {}  # guarded by _lock
        self._folders: dict[str, int] = {}  # guarded by _lock
        self._folder_at: dict[int, str] = {}  # guarded by _lock
        self._silent: dict[int, bool] = {}  # device -> sends no events; thread of poll
        self._warned: set[int] = set()
        self._closed = False  # guarded by _lock
        self._sweep = PollingWatcher(interval, changed, clock)
        self._inotify = INotify(nonblocking=True)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller = select.poll()
        self._poller.register(self._inotify.fileno(), select.POLLIN)
        self._poller.register(self._bell, select.POLLIN)

    # --- quiet databases --------------------------------------------------------------------------

    def add(self, path: Path) -> None:
        """Arm a database's watch now and look at it in the next ``poll``."""
        with self._lock:
            if self._closed:
                return
            self._arm(path)
            self._to_look[path] = None
        self.wake()

    def remove(self, path: Path) -> None:
        """Disarm; one that is not watched is no error."""
        with self._lock:
            if not self._closed:
                self._disarm(path, self._quiet.pop(path, 0))
                self._to_look.pop(path, None)
                self._sweep.remove(path)

    def _arm(self, path: Path) -> None:
        """Watch the -wal, or the file while there is none; call with the lock."""
        before, self._quiet[path] = self._quiet.get(path, 0), 0
        armed, failure = 0, None
        for target in (f"{path}-wal", str(path)):
            try:
                armed = self._inotify.add_watch(target, _FILE_MASK)
                break
            except OSError as error:
                if error.errno not in _GONE:
                    failure = error
                    break
        if before != armed:
            self._disarm(path, before)
        if armed:
            owner = self._files.get(armed, path)
            if owner != path:  # two names of one file have one watch: the other is looked at
                self._quiet[owner] = 0
                self._sweep.add(owner)
            self._quiet[path], self._files[armed] = armed, path
        if failure is not None:
            self._complain(failure)
        if failure is None and str(path.parent) in self._folders:
            self._sweep.remove(path)
        else:
            self._sweep.add(path)

    def _disarm(self, path: Path, armed: int) -> None:
        if armed and self._files.get(armed) == path:
            del self._files[armed]
            with contextlib.suppress(OSError):  # the kernel ended it: the file went, or it fired
                self._inotify.rm_watch(armed)

    # --- folders ----------------------------------------------------------------------------------

    def watch_folder(self, folder: str) -> bool:
        """Watch the names in a folder; a watch on it that was lost is made anew.

        False if the kernel has no more watches or sends no events from there.  A folder that
        is gone is no failure: its own folder reports that.
        """
        try:
            if self._is_silent(os.stat(folder, follow_symlinks=False).st_dev, folder):
                return False
            with self._lock:
                if not self._closed:
                    self._take_folder(folder, self._inotify.add_watch(folder, _FOLDER_MASK))
        except OSError as error:
            if error.errno in _GONE:
                return True
            self._complain(error)
            return False
        return True

    def _take_folder(self, folder: str, watch: int) -> None:
        """Note the watch of a folder; a folder that was renamed keeps its watch."""
        former, before = self._folder_at.get(watch), self._folders.get(folder)
        if former is not None and former != folder:
            self._folders.pop(former, None)
        if before is not None and before != watch:
            self._drop_folder(folder)
        self._folders[folder] = watch
        self._folder_at[watch] = folder

    def forget_folder(self, folder: str, *, below: bool = True) -> None:
        """Watch a folder no longer, and those below it."""
        with self._lock:
            known = folder in self._folders
            if known:
                self._drop_folder(folder)
            if below:
                prefix = f"{folder}/"
                for inner in [name for name in self._folders if name.startswith(prefix)]:
                    self._drop_folder(inner)

    def _drop_folder(self, folder: str) -> None:
        watch = self._folders.pop(folder)
        self._folder_at.pop(watch, None)
        with contextlib.suppress(OSError):  # the kernel ended it before
            self._inotify.rm_watch(watch)

    def _is_silent(self, device: int, folder: str) -> bool:
        """Return whether others may write to a file system without this kernel's knowing."""
        if device not in self._silent:
            kind = self._kind_of(Path(folder))
            self._silent[device] = kind in REMOTE_FILE_SYSTEMS or kind.startswith("fuse.")
        return self._silent[device]

    def _complain(self, error: OSError) -> None:
        if error.errno not in self._warned:
            self._warned.add(error.errno or 0)
            _warn(error, "the kernel cannot watch everything: the rest is looked at instead")

    # --- events -----------------------------------------------------------------------------------

    def poll(self, timeout: float | None) -> list[Dirty]:
        """Wait for events, for the next sweep, or for what ``add`` left to be looked at."""
        waits = [] if timeout is None else [timeout]
        sweep = self._sweep.due_in()
        if sweep is not None:
            waits.append(sweep)
        if self._to_look:
            waits.append(0.0)
        self._poller.poll(min(waits) * 1000 if waits else None)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        found = dict.fromkeys(self._events())
        found |= dict.fromkeys(self._look())
        found |= dict.fromkeys(self._sweep.poll(0.0))
        return list(found)

    def _events(self) -> Iterator[Dirty]:
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                with self._lock:
                    lost = list(self._quiet)
                for path in lost:  # a watch may have fired unseen
                    self.add(path)
                yield Dirty(None, DirtyKind.OVERFLOW)
                continue
            with self._lock:
                folder = self._folder_at.get(event.wd)
                dirty = self._file_event(event) if folder is None else None
            if dirty is not None:
                yield dirty
            elif folder is not None:
                yield from self._folder_event(folder, event)

    def _file_event(self, event: Event) -> Dirty | None:
        """Take an event of a database's watch, which is over; call with the lock."""
        path = self._files.pop(event.wd, None)
        if path is None:
            return None
        self._quiet[path] = 0
        if event.mask & flags.MODIFY:
            return Dirty(path)
        self._arm(path)  # the file went without having been written
        self._to_look[path] = None
        return None

    def _folder_event(self, folder: str, event: Event) -> Iterator[Dirty]:
        if event.mask & _SELF:
            if event.mask & (flags.IGNORED | flags.UNMOUNT):
                with self._lock:
                    self._folder_at.pop(event.wd, None)
                    self._folders.pop(folder, None)
            yield Dirty(Path(folder), DirtyKind.FOLDER)
            return
        path = f"{folder}/{event.name}"
        if event.mask & flags.ISDIR:
            if event.mask & flags.MOVED_FROM:
                self.forget_folder(path)  # its watches go with it, under names that are wrong now
            yield Dirty(Path(path), DirtyKind.FOLDER)
        elif not path.endswith("-shm"):
            yield from self._name_event(path)

    def _name_event(self, path: str) -> Iterator[Dirty]:
        """Report a name; a quiet database's own -wal only lets it be armed and looked at."""
        for companion in _COMPANIONS:
            if path.endswith(companion):
                database = Path(path.removesuffix(companion))
                if database in self._quiet:
                    self.add(database)
                    return
                path = str(database)
                break
        yield Dirty(Path(path), DirtyKind.NAMED)

    def _look(self) -> Iterator[Dirty]:
        with self._lock:
            paths = list(self._to_look)[:_LOOKS_AT_ONCE]
            for path in paths:
                del self._to_look[path]
        for path in paths:
            if path in self._quiet and self._has_changed(path):
                yield Dirty(path)

    def _has_changed(self, path: Path) -> bool:
        try:
            return self._changed(path)
        except OSError:
            return True  # the sync that follows says what is wrong

    def wake(self) -> None:
        """Let ``poll`` return now; from any thread."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._sweep.close()
            self._inotify.close()
            os.close(self._bell)


def _warn(error: OSError, message: str) -> None:
    extra = {"op": "watch", "error": error.strerror or str(error)}
    hint = _LIMITS.get(error.errno or 0)
    if hint:
        extra["hint"] = hint
    _log.warning(message, extra=extra)
