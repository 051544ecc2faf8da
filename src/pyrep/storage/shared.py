"""Things that several clients use and the last one to close ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from pyrep.errors import ReplicaPermanentError

__all__ = ["Closeable", "Current", "Shared"]


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


class Current(Generic[Thing]):
    """Keep one connection that several threads use, made anew after it was dropped.

    The first who needs it makes it; who comes meanwhile waits for the outcome of that attempt,
    so that a server that is down is asked once and not by each thread in turn.
    """

    def __init__(self, make: Callable[[], Thing]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._thing: Thing | None = None  # guarded by _lock
        self._attempt: Future[Thing] | None = None  # guarded by _lock
        self._closed = False  # guarded by _lock

    def get(self) -> Thing:
        """Return the connection; raise what its maker raised, to all who waited for it."""
        with self._lock:
            if self._closed:
                raise ReplicaPermanentError("the connection was closed by its last user")
            if self._thing is not None:
                return self._thing
            attempt, is_mine = self._attempt, self._attempt is None
            if attempt is None:
                attempt = self._attempt = Future()
        if is_mine:
            self._try(attempt)
        return attempt.result()

    def drop(self, thing: Thing) -> None:
        """Close a connection that is of no use any more; the next ``get`` makes another."""
        with self._lock:
            if self._thing is thing:
                self._thing = None
        thing.close()

    def close(self) -> None:
        """Close the connection; one that is being made is closed when it is there."""
        with self._lock:
            self._closed = True
            thing, self._thing = self._thing, None
        if thing is not None:
            thing.close()

    def _try(self, attempt: Future[Thing]) -> None:
        try:
            thing = self._make()
        except BaseException as error:
            with self._lock:
                self._attempt = None
            attempt.set_exception(error)
            return
        with self._lock:
            self._attempt = None
            is_late = self._closed
            self._thing = None if is_late else thing
        if is_late:
            thing.close()
        attempt.set_result(thing)
