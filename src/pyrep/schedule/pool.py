"""A fixed number of threads that work through keys."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Pool"]

K = TypeVar("K", bound=Hashable)
_JOIN_SECONDS = 60.0
_log = logging.getLogger(__name__)


class Pool(Generic[K]):
    """Call ``work(key)`` for each submitted key on one of ``size`` threads, first come first.

    A key never runs twice at once: submitted while it waits it is there already, submitted
    while it runs it runs once more afterwards.  An exception of ``work`` goes to
    ``failed(key, error)`` on the same thread.
    """

    def __init__(
        self,
        name: str,
        size: int,
        work: Callable[[K], None],
        failed: Callable[[K, Exception], None],
    ) -> None:
        self.name = name
        self.size = size
        self._work = work
        self._failed = failed
        self._lock = threading.Lock()
        self._work_waits = threading.Condition(self._lock)
        self._work_ended = threading.Condition(self._lock)
        self._waiting: deque[K] = deque()  # guarded by _lock, as all below
        self._queued: set[K] = set()
        self._running: set[K] = set()
        self._again: set[K] = set()
        self._closed = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; they are daemons, so that a hanging call cannot hold the exit."""
        for number in range(self.size):
            thread = threading.Thread(
                target=self._run, name=f"pyrep-{self.name}-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def submit(self, key: K) -> bool:
        """Let a key run as soon as a thread is free; return False if the pool is closed."""
        with self._lock:
            if self._closed:
                return False
            if key in self._running:
                self._again.add(key)
            elif key not in self._queued:
                self._queued.add(key)
                self._waiting.append(key)
                self._work_waits.notify()
            return True

    @property
    def backlog(self) -> int:
        """Return how many keys wait."""
        return len(self._waiting)

    def finish(self) -> None:
        """Run what was submitted to its end, then join the threads."""
        with self._lock:
            while self._waiting or self._running:
                self._work_ended.wait()
        self.close(_JOIN_SECONDS)

    def close(self, timeout: float) -> list[K]:
        """Drop the keys that wait, join the threads; return the keys still running then."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._queued.clear()
            self._again.clear()
            self._work_waits.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            return list(self._running)

    def _take(self) -> K | None:
        with self._lock:
            while not self._waiting and not self._closed:
                self._work_waits.wait()
            if self._closed:
                return None
            key = self._waiting.popleft()
            self._queued.discard(key)
            self._running.add(key)
            return key

    def _finish(self, key: K) -> None:
        with self._lock:
            self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                self._queued.add(key)
                self._waiting.append(key)
                self._work_waits.notify()
            self._work_ended.notify_all()

    def _run(self) -> None:
        while (key := self._take()) is not None:
            try:
                self._run_one(key)
            finally:
                self._finish(key)

    def _run_one(self, key: K) -> None:
        try:
            self._work(key)
        except Exception as error:
            self._report(key, error)

    def _report(self, key: K, error: Exception) -> None:
        try:
            self._failed(key, error)
        except Exception:
            _log.exception("internal error in pool %s", self.name, extra={"op": str(key)})
