"""Who waits until what was committed is on the replica."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from pyrep.errors import PyrepError
from pyrep.ids import TXID

__all__ = ["Told", "Waiter", "Waiting", "gone"]

_TIDY_AT = 64

Told = Callable[[TXID, PyrepError | None], None]


@dataclass(slots=True, eq=False)
class Waiter:
    """Be told once: the TXID that is durable, or why it will not be.

    ``tell`` is called by a thread of the pools and must only hand over; not at all once ``over``
    was set.
    """

    tell: Told
    over: bool = False

    def end(self, txid: TXID, error: PyrepError | None) -> None:
        """Tell, if nobody did."""
        if not self.over:
            self.over = True
            self.tell(txid, error)


class Waiting:
    """Hold the waiters of all tenants, by name; safe for several threads.

    One who waits is covered by the next sync that begins, and is told when everything up to the
    position after that sync is durable: so all who wait for a tenant share its sync and upload.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fresh: dict[str, list[Waiter]] = {}  # guarded by _lock
        self._covered: dict[str, list[tuple[TXID, Waiter]]] = {}  # guarded by _lock

    def add(self, name: str, waiter: Waiter) -> None:
        """Wait for the next sync."""
        with self._lock:
            waiters = self._fresh.setdefault(name, [])
            if len(waiters) % _TIDY_AT == _TIDY_AT - 1:
                waiters[:] = [each for each in waiters if not each.over]
            waiters.append(waiter)

    def wants_sync(self, name: str) -> bool:
        """Return whether somebody waits for the next sync."""
        return name in self._fresh

    def take(self, name: str) -> list[Waiter]:
        """Return those whom a sync covers that begins now."""
        with self._lock:
            return [each for each in self._fresh.pop(name, ()) if not each.over]

    def put_back(self, name: str, waiters: list[Waiter]) -> None:
        """Let them wait for another sync: this one failed."""
        if waiters:
            with self._lock:
                self._fresh[name] = waiters + self._fresh.get(name, [])

    def cover(self, name: str, waiters: list[Waiter], txid: TXID) -> None:
        """Let them wait until ``txid`` is durable, which has all they wait for."""
        if waiters:
            with self._lock:
                self._covered.setdefault(name, []).extend((txid, each) for each in waiters)

    def is_covered(self, name: str) -> bool:
        """Return whether somebody waits for an upload."""
        return name in self._covered

    def settle(self, name: str, durable: TXID) -> None:
        """Tell those whose TXID is durable."""
        with self._lock:
            covered = self._covered.pop(name, [])
            left = [(txid, each) for txid, each in covered if txid > durable and not each.over]
            if left:
                self._covered[name] = left
        for txid, waiter in covered:
            if txid <= durable:
                waiter.end(durable, None)

    def fail(self, name: str, error: PyrepError) -> None:
        """Tell all who wait for a tenant that it is in vain."""
        with self._lock:
            waiters = self._fresh.pop(name, [])
            waiters += [waiter for _, waiter in self._covered.pop(name, [])]
        for waiter in waiters:
            waiter.end(TXID(0), error)

    def fail_all(self, error: PyrepError) -> None:
        """Tell everybody that it is in vain."""
        for name in {*self._fresh, *self._covered}:
            self.fail(name, error)


def gone(name: str) -> PyrepError:
    """Return the error for a database that was let go of while somebody waited."""
    return PyrepError(f"{name}: is not replicated any more")
