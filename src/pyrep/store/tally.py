"""One command on several tenants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from pyrep.errors import PyrepError
from pyrep.store.entry import Entry, ManagedTenant

__all__ = ["Tally", "fenced_matches"]


class Tally:
    """Gather the outcomes of one command on several tenants, and answer when all are in."""

    def __init__(self, count: int, answer: Callable[[bool, str], None]) -> None:
        self._left = count
        self._answer = answer
        self._lock = threading.Lock()
        self._done: list[str] = []  # guarded by _lock
        self._failed: list[str] = []  # guarded by _lock

    def run(self, tenant: ManagedTenant) -> None:
        """Take a tenant over."""
        try:
            tenant.take_over()
            failure = ""
        except PyrepError as error:
            failure = str(error)
        with self._lock:
            (self._failed if failure else self._done).append(failure or tenant.name)
            self._left -= 1
            last = self._left == 0
        if last:
            text = f"taken over: {', '.join(self._done)}" if self._done else ""
            self._answer(not self._failed, "; ".join(filter(None, [text, *self._failed])))


def fenced_matches(entries: Iterable[Entry], pattern: str) -> list[Entry]:
    """Return the fenced tenants whose names a glob matches."""
    matching = (entry for entry in entries if fnmatchcase(entry.tenant.name, pattern))
    return [entry for entry in matching if entry.tenant.status().state == "fenced"]
