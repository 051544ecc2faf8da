"""How many databases may be attached, or read wholly, at once, and whose turn it is."""

from __future__ import annotations

import itertools
import threading

from pyrep.clock import Clock

__all__ = ["AttachBudget", "ReadBudget"]


class AttachBudget:
    """Give out ``limit`` places; who finds none waits in order.  Safe for several threads."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = max(1, limit)
        self._clock = clock
        self._lock = threading.Lock()
        self._holders: set[str] = set()  # guarded by _lock
        self._waiting: dict[str, float] = {}  # name -> since when; guarded by _lock

    def enter(self, name: str) -> bool:
        """Take a place, or wait for one; return whether the tenant has a place now."""
        with self._lock:
            if name in self._holders:
                return True
            turn = next(iter(self._waiting), name) == name
            if len(self._holders) < self.limit and turn:
                self._waiting.pop(name, None)
                self._holders.add(name)
                return True
            self._waiting.setdefault(name, self._clock.monotonic())
            return False

    def leave(self, name: str) -> str | None:
        """Give the place back and stop waiting; return who may enter now, if anybody waits."""
        with self._lock:
            self._waiting.pop(name, None)
            self._holders.discard(name)
            if len(self._holders) >= self.limit:
                return None
            return next(iter(self._waiting), None)

    def next_waiting(self) -> str | None:
        """Return who may enter now: the first that waits, if a place is free."""
        with self._lock:
            if len(self._holders) >= self.limit:
                return None
            return next(iter(self._waiting), None)

    @property
    def waiting(self) -> int:
        """Return how many wait for a place."""
        return len(self._waiting)

    def longest_wait(self) -> float:
        """Return the seconds that the first in the queue has waited, 0.0 if none waits."""
        with self._lock:
            since = next(iter(self._waiting.values()), None)
        return 0.0 if since is None else self._clock.monotonic() - since


class ReadBudget:
    """Let ``limit`` databases at a time be read from end to end, so that the others are synced.

    Who finds no place waits in order.  Safe for several threads.
    """

    def __init__(self, limit: int) -> None:
        self.limit = max(1, limit)
        self._lock = threading.Lock()
        self._holders: set[str] = set()  # guarded by _lock
        self._waiting: dict[str, None] = {}  # guarded by _lock

    def enter(self, name: str) -> bool:
        """Take a place, or wait for one; return whether the tenant has a place now."""
        with self._lock:
            if name in self._holders:
                return True
            self._waiting.setdefault(name)
            if name not in self._next():
                return False
            del self._waiting[name]
            self._holders.add(name)
            return True

    def leave(self, name: str) -> None:
        """Give the place back, or stop waiting."""
        with self._lock:
            self._waiting.pop(name, None)
            self._holders.discard(name)

    def waits(self, name: str) -> bool:
        """Return whether a tenant waits for a place."""
        return name in self._waiting

    def following(self) -> list[str]:
        """Return who may enter now."""
        with self._lock:
            return self._next()

    def _next(self) -> list[str]:
        free = self.limit - len(self._holders)
        return list(itertools.islice(self._waiting, max(0, free)))
