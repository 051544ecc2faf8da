"""A bounded number of threads that work through keys."""

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
_SPARE_SECONDS = 2.0
_log = logging.getLogger(__name__)


class Pool(Generic[K]):
    """Call ``work(key)`` for each submitted key on one of ``size`` threads, first come first.

    A key never runs twice at once: submitted while it waits it is there already, submitted
    while it runs it runs once more afterwards.  An exception of ``work`` goes to
    ``failed(key, error)`` on the same thread.

    Many keys that were submitted as ``patient`` do not hold up the others: while both wait, each
    kind has every second turn.

    While keys wait it has up to ``most`` threads; those above ``size`` end when they have had
    nothing to do for ``spare_seconds``.
    """

    def __init__(
        self,
        name: str,
        size: int,
        work: Callable[[K], None],
        failed: Callable[[K, Exception], None],
        *,
        most: int = 0,
        spare_seconds: float = _SPARE_SECONDS,
    ) -> None:
        self.name = name
        self.size = size
        self.most = max(size, most)
        self._spare_seconds = spare_seconds
        self._work = work
        self._failed = failed
        self._lock = threading.Lock()
        self._work_waits = threading.Condition(self._lock)
        self._work_ended = threading.Condition(self._lock)
        self._waiting: deque[K] = deque()  # guarded by _lock, as all below
        self._patient: deque[K] = deque()
        self._patient_turn = False
        self._queued: set[K] = set()
        self._running: set[K] = set()
        self._again: set[K] = set()
        self._idle = 0
        self._closed = False
        self._threads: dict[int, threading.Thread] = {}  # by number

    def start(self) -> None:
        """Start the threads; they are daemons, so that a hanging call cannot hold the exit."""
        with self._lock:
            for number in range(self.size):
                self._start_thread(number)

    def _start_thread(self, number: int) -> None:
        thread = threading.Thread(
            target=self._run, args=(number,), name=f"pyrep-{self.name}-{number}", daemon=True
        )
        self._threads[number] = thread
        thread.start()

    def _start_spare(self) -> None:
        """Start a thread more if keys wait that none of those there will take; under the lock."""
        if not 0 < len(self._threads) < self.most or self.backlog <= self._idle:
            return
        number = next(n for n in range(self.most) if n not in self._threads)
        try:
            self._start_thread(number)
        except RuntimeError as error:  # the system has no more: those that are there go on
            del self._threads[number]
            _log.debug("no thread more", extra={"op": self.name, "error": str(error)})

    def submit(self, key: K, *, patient: bool = False) -> bool:
        """Let a key run as soon as a thread is free; return False if the pool is closed.

        One that waits already keeps its place.
        """
        with self._lock:
            if self._closed:
                return False
            if key in self._running:
                self._again.add(key)
            elif key not in self._queued:
                self._enqueue(key, self._patient if patient else self._waiting)
            return True

    def _enqueue(self, key: K, queue: deque[K]) -> None:
        self._queued.add(key)
        queue.append(key)
        self._work_waits.notify()
        self._start_spare()

    @property
    def backlog(self) -> int:
        """Return how many keys wait."""
        return len(self._waiting) + len(self._patient)

    def finish(self) -> None:
        """Run what was submitted to its end, then join the threads."""
        with self._lock:
            while self.backlog or self._running:
                self._work_ended.wait()
        self.close(_JOIN_SECONDS)

    def close(self, timeout: float) -> list[K]:
        """Drop the keys that wait, join the threads; return the keys still running then."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._patient.clear()
            self._queued.clear()
            self._again.clear()
            self._work_waits.notify_all()
        deadline = time.monotonic() + timeout
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            return list(self._running)

    def _take(self, number: int) -> K | None:
        """Wait for a key; None: the thread is to end."""
        patience = None if number < self.size else self._spare_seconds
        with self._lock:
            told = True
            self._idle += 1
            while told and not self.backlog and not self._closed:
                told = self._work_waits.wait(patience)
            self._idle -= 1
            if self._closed or not self.backlog:
                self._threads.pop(number)
                return None
            key = self._next()
            self._queued.discard(key)
            self._running.add(key)
            return key

    def _next(self) -> K:
        """Take the first key of the kind whose turn it is; there is one."""
        self._patient_turn = bool(self._patient) and not (self._waiting and self._patient_turn)
        return (self._patient if self._patient_turn else self._waiting).popleft()

    def _finish(self, key: K) -> None:
        with self._lock:
            self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                self._enqueue(key, self._waiting)
            self._work_ended.notify_all()

    def _run(self, number: int) -> None:
        while (key := self._take(number)) is not None:
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
