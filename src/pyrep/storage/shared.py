"""Things that several clients use and the last one to close ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["Closeable", "Shared"]


class Closeable(Protocol):
    """Be ended by ``close``."""

    def close(self) -> None:
        """End it."""


Thing = TypeVar("Thing", bound=Closeable)


class Shared(Generic[Thing]):
    """Keep one thing per key for as long as somebody uses it; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._things: dict[Hashable, tuple[Thing, int]] = {}  # guarded by _lock

    def acquire(self, key: Hashable, make: Callable[[], Thing]) -> Thing:
        """Return the thing of a key, made now if nobody has it; ``release`` it once."""
        with self._lock:
            thing, users = self._things.get(key) or (make(), 0)
            self._things[key] = (thing, users + 1)
            return thing

    def release(self, key: Hashable) -> None:
        """Say that one user less has the thing of a key; the last one closes it."""
        with self._lock:
            thing, users = self._things[key]
            if users > 1:
                self._things[key] = (thing, users - 1)
                return
            del self._things[key]
        thing.close()

    def __len__(self) -> int:
        return len(self._things)
