"""One heap of due times for everything that is to happen later."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from pyrep.clock import Clock

__all__ = ["Scheduler"]

K = TypeVar("K", bound=Hashable)
_log = logging.getLogger(__name__)
_SLACK = 64


class Scheduler(Generic[K]):
    """Call ``fire(key)`` when a key is due; each key has one pending entry at most.

    ``fire`` runs on the thread "pyrep-scheduler" and must only hand over.  Safe for use by
    several threads.
    """

    def __init__(self, fire: Callable[[K], None], clock: Clock) -> None:
        self._fire = fire
        self._clock = clock
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, K]] = []  # guarded by _lock
        self._pending: dict[K, tuple[float, int]] = {}  # guarded by _lock
        self._serial = itertools.count()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="pyrep-scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Forget all entries and end the thread."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            self._heap.clear()
            self._pending.clear()

    def schedule(self, key: K, delay: float = 0.0) -> None:
        """Make a key due in ``delay`` seconds; an entry that is due earlier stays as it is."""
        due = self._clock.monotonic() + max(0.0, delay)
        with self._lock:
            pending = self._pending.get(key)
            if pending is not None and pending[0] <= due:
                return
            self._put(key, due)
            first = self._heap[0][2] == key
        if first:
            self._wake.set()

    def cancel(self, key: K) -> None:
        """Forget a key's entry."""
        with self._lock:
            self._pending.pop(key, None)

    def _put(self, key: K, due: float) -> None:
        serial = next(self._serial)
        self._pending[key] = (due, serial)
        heapq.heappush(self._heap, (due, serial, key))
        if len(self._heap) > 2 * len(self._pending) + _SLACK:
            self._heap = [(at, number, name) for name, (at, number) in self._pending.items()]
            heapq.heapify(self._heap)

    def run_due(self) -> float | None:
        """Fire every key that is due; return the seconds until the next one, None if none."""
        while True:
            with self._lock:
                key, wait = self._next()
            if key is None:
                return wait
            self._fire_one(key)

    def _next(self) -> tuple[K | None, float | None]:
        """Take the key that is due, or return how long the first one has to wait."""
        while self._heap:
            due, serial, key = self._heap[0]
            if self._pending.get(key) != (due, serial):
                heapq.heappop(self._heap)
                continue
            wait = due - self._clock.monotonic()
            if wait > 0:
                return None, wait
            heapq.heappop(self._heap)
            del self._pending[key]
            return key, 0.0
        return None, None

    def _fire_one(self, key: K) -> None:
        try:
            self._fire(key)
        except Exception:
            _log.exception("internal error in the scheduler", extra={"op": str(key)})

    def _run(self) -> None:
        while not self._stopping:
            wait = self.run_due()
            if self._clock.wait(self._wake, wait):
                self._wake.clear()
