"""The way to the stop: one last sync of each dirty tenant, uploads until the deadline."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pyrep.clock import Clock
from pyrep.errors import DatabaseError, FencedError, ReplicaPermanentError
from pyrep.store.entry import Entry, Final

__all__ = ["Drain", "Unsent"]

_SLICE_SECONDS = 0.1
_PROGRESS_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unsent:
    """Name a tenant whose newest state is not on its replica, and why."""

    name: str
    reason: str


class Drain:
    """Follow the dirty tenants until each is done, failed, or the time is over.

    The pools call it from their threads; each answers the seconds until the next try, -1.0 for
    none.
    """

    def __init__(self, clock: Clock, timeout: float, retry_interval: float, *, once: bool) -> None:
        self._clock = clock
        self._deadline = clock.monotonic() + timeout
        self._retry_interval = retry_interval
        self._once = once
        self._changed = threading.Condition()
        self._entries: list[Entry] = []

    def begin(self, entries: list[Entry]) -> None:
        """Expect a last sync of these tenants."""
        for entry in entries:
            entry.final = Final.SYNC
            entry.error = ""
        self._entries = entries

    def wants_sync(self, entry: Entry) -> bool:
        """Return whether a tenant's last sync is still to come."""
        return entry.final is Final.SYNC

    def synced(self, entry: Entry) -> None:
        """Note a tenant's last sync."""
        self._move(entry, Final.UPLOAD if entry.tenant.pending else Final.DONE)

    def sync_failed(self, entry: Entry) -> float:
        """Note a failure; what is attached is tried again, what cannot be opened is not."""
        tenant = entry.tenant
        if tenant.attached:
            return self._retry(entry, hopeless=False)
        self._move(entry, Final.UPLOAD if tenant.pending else Final.BROKEN)
        return -1.0

    def uploaded(self, entry: Entry) -> None:
        """Note that nothing waits any more."""
        if entry.final is Final.UPLOAD:
            self._move(entry, Final.BROKEN if self._once and entry.error else Final.DONE)

    def upload_failed(self, entry: Entry, error: Exception) -> float:
        """Note a failure of a survey or an upload."""
        if isinstance(error, FencedError | DatabaseError):
            self._move(entry, Final.BROKEN)  # nothing waits that could be uploaded
            return -1.0
        return self._retry(entry, hopeless=isinstance(error, ReplicaPermanentError))

    def _retry(self, entry: Entry, *, hopeless: bool) -> float:
        left = self._deadline - self._clock.monotonic()
        if hopeless or self._once or left <= 0:
            self._move(entry, Final.FAILED)
            return -1.0
        return min(self._retry_interval, left)

    def _move(self, entry: Entry, final: Final) -> None:
        with self._changed:
            entry.final = final
            self._changed.notify_all()

    def wait(self, interrupted: Callable[[], bool]) -> None:
        """Return when nothing is left to do, the time is over, or somebody cuts it short."""
        said_at = self._clock.monotonic()
        with self._changed:
            while (left := self._left()) and not interrupted():
                now = self._clock.monotonic()
                if now >= self._deadline:
                    return
                if now - said_at >= _PROGRESS_SECONDS:
                    said_at = now
                    extra = {"pending": left, "of": len(self._entries)}
                    extra["seconds-left"] = round(self._deadline - now)
                    _log.info("waiting for the last uploads", extra=extra)
                self._changed.wait(_SLICE_SECONDS)

    def _left(self) -> int:
        return sum(entry.final in (Final.SYNC, Final.UPLOAD) for entry in self._entries)

    def unsent(self) -> list[Unsent]:
        """Return the tenants whose last state was not stored, by name."""
        fine = (Final.DONE,) if self._once else (Final.DONE, Final.BROKEN)
        left = [entry for entry in self._entries if entry.final not in fine]
        found = [Unsent(entry.tenant.name, self._why(entry)) for entry in left]
        return sorted(found, key=lambda unsent: unsent.name)

    def _why(self, entry: Entry) -> str:
        files = entry.tenant.status().pending_files
        waiting = f"{files} file{'s' * (files != 1)} not uploaded" if files else "not synced"
        return f"{waiting}: {entry.error}" if entry.error else waiting
