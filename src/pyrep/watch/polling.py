"""A watcher that looks at every file once per interval."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from pyrep.clock import Clock
from pyrep.watch.base import Dirty

__all__ = ["PollingWatcher"]


class PollingWatcher:
    """Ask ``changed(path)`` for each watched database every ``interval`` seconds.

    A look is a few calls of ``stat``; nothing is opened and nothing is kept between looks.
    What is added is looked at by the next sweep, whatever happened before.
    """

    def __init__(self, interval: float, changed: Callable[[Path], bool], clock: Clock) -> None:
        self._interval = interval
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._paths: dict[Path, None] = {}  # guarded by _lock
        self._sweep: tuple[Path, ...] | None = ()  # _paths as a tuple; None: made anew
        self._due = clock.monotonic()
        self._wake = threading.Event()

    def add(self, path: Path) -> None:
        """Look at a database from the next sweep on."""
        with self._lock:
            if path not in self._paths:
                self._paths[path] = None
                self._sweep = None

    def remove(self, path: Path) -> None:
        """Look at it no longer; one that is not watched is no error."""
        with self._lock:
            if path in self._paths:
                del self._paths[path]
                self._sweep = None

    def watch_folder(self, folder: str) -> bool:
        """Say that names which come and go are not seen."""
        return False

    def forget_folder(self, folder: str, *, below: bool = True) -> None:
        """Do nothing: no folder is watched."""

    def due_in(self) -> float | None:
        """Return the seconds until the next sweep, None if there is nothing to look at."""
        return max(0.0, self._due - self._clock.monotonic()) if self._paths else None

    def poll(self, timeout: float | None) -> list[Dirty]:
        """Wait for the next sweep, ``timeout`` seconds at most, and return what it found."""
        wait = max(0.0, self._due - self._clock.monotonic())
        if timeout is not None:
            wait = min(wait, timeout)
        if self._clock.wait(self._wake, wait):
            self._wake.clear()
        now = self._clock.monotonic()
        if now < self._due:
            return []
        self._due = now + self._interval
        return [Dirty(path) for path in self._snapshot() if self._has_changed(path)]

    def _snapshot(self) -> tuple[Path, ...]:
        with self._lock:
            if self._sweep is None:
                self._sweep = tuple(self._paths)
            return self._sweep

    def _has_changed(self, path: Path) -> bool:
        try:
            return self._changed(path)
        except OSError:
            return True  # the sync that follows says what is wrong

    def wake(self) -> None:
        """Let ``poll`` return now; from any thread."""
        self._wake.set()

    def close(self) -> None:
        """Forget the databases."""
        with self._lock:
            self._paths.clear()
            self._sweep = ()
        self._wake.set()
