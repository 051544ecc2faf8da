"""The way to the stop: one last sync of each dirty tenant, uploads until the deadline."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyrep.clock import Clock
from pyrep.errors import DatabaseError, FencedError, ReplicaPermanentError
from pyrep.schedule.pool import Pool
from pyrep.store.entry import Entry, Final
from pyrep.tenant.capture import SpoolFullError

__all__ = ["Drain", "Unsent", "close_tenants", "is_dirty"]

_SLICE_SECONDS = 0.1
_PROGRESS_SECONDS = 5.0
_COMING = (Final.SYNC, Final.ROOM, Final.UPLOAD)
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
        self._timeout = timeout
        self._deadline = 0.0
        self._retry_interval = retry_interval
        self._once = once
        self._single = once or timeout <= 0  # one attempt for each, however long it takes
        self._changed = threading.Condition()
        self._entries: list[Entry] = []
        self._said_at = 0.0
        self._roomless: set[str] = set()  # once had no room though nothing was seen to wait

    def begin(self, entries: list[Entry], needed: Callable[[Entry], bool]) -> list[Entry]:
        """Expect a last sync of the tenants that need one; return those not expected before.

        They have the whole time before them, so that one that comes late is not cut off.
        """
        fresh = [entry for entry in entries if entry.final is Final.RUNNING]
        dirty = [entry for entry in fresh if needed(entry)]
        for entry in fresh:
            entry.final = Final.DONE
        for entry in dirty:
            entry.final = Final.SYNC
            entry.error = ""
        if dirty or not self._deadline:
            self._said_at = self._clock.monotonic()
            self._deadline = math.inf if self._single else self._said_at + self._timeout
        self._entries += dirty
        return dirty

    def wants_sync(self, entry: Entry) -> bool:
        """Return whether a tenant's last sync is still to come."""
        return entry.final is Final.SYNC

    def synced(self, entry: Entry) -> None:
        """Note a tenant's last sync."""
        waits = entry.tenant.pending or entry.tenant.streaming
        self._move(entry, Final.UPLOAD if waits else Final.DONE)

    def wants_upload(self, entry: Entry) -> bool:
        """Return whether a tenant's uploads are waited for, or the word that there are none."""
        return entry.final in (Final.ROOM, Final.UPLOAD)

    def sync_failed(self, entry: Entry, error: Exception) -> float:
        """Note a failure; what is attached is tried again, what cannot be opened is not.

        What had no room in the spool is tried again when the uploads before it have made some.
        """
        tenant = entry.tenant
        full = isinstance(error, SpoolFullError)
        # The last upload may have ended since, so the first of these failures proves nothing.
        if full and (tenant.pending or tenant.name not in self._roomless):
            if not tenant.pending:
                self._roomless.add(tenant.name)
            self._move(entry, Final.ROOM)
            return -1.0
        if full or tenant.attached:
            return self._retry(entry, hopeless=False)
        self._move(entry, Final.UPLOAD if tenant.pending else Final.BROKEN)
        return -1.0

    def uploaded(self, entry: Entry) -> bool:
        """Note that nothing waits any more; return whether the tenant is to be synced again."""
        if entry.final is Final.ROOM:
            entry.error = ""
            self._move(entry, Final.SYNC)
            return True
        if entry.final is Final.UPLOAD and not entry.tenant.streaming:
            self._move(entry, Final.BROKEN if self._once and entry.error else Final.DONE)
        return False

    def upload_failed(self, entry: Entry, error: Exception) -> float:
        """Note a failure of a survey or an upload."""
        if isinstance(error, FencedError | DatabaseError):
            self._move(entry, Final.BROKEN)  # nothing waits that could be uploaded
            return -1.0
        return self._retry(entry, hopeless=isinstance(error, ReplicaPermanentError))

    def streamed(self, entry: Entry) -> None:
        """Note that all pages were streamed: what was committed meanwhile is to be synced."""
        if entry.final is Final.UPLOAD:
            self._move(entry, Final.SYNC)

    def stream_failed(self, entry: Entry, error: Exception) -> float:
        """Note that all pages could not be streamed."""
        return self._retry(entry, hopeless=isinstance(error, ReplicaPermanentError))

    def _retry(self, entry: Entry, *, hopeless: bool) -> float:
        left = self._deadline - self._clock.monotonic()
        if hopeless or self._single or left <= 0:
            self._move(entry, Final.FAILED)
            return -1.0
        return min(self._retry_interval, left)

    def _move(self, entry: Entry, final: Final) -> None:
        with self._changed:
            entry.final = final
            self._changed.notify_all()

    def wait(self, interrupted: Callable[[], bool], more: Callable[[], bool]) -> None:
        """Return when nothing is left to do, the time is over, or somebody cuts it short.

        As long as ``more`` says so, others may still join by ``begin``, which it calls itself.
        """
        coming = True
        while not interrupted():
            coming = coming and more()
            with self._changed:
                left = self._left()
                now = self._clock.monotonic()
                if not coming and (not left or now >= self._deadline):
                    return
                self._say(left, now)
                self._changed.wait(_SLICE_SECONDS)

    def _say(self, left: int, now: float) -> None:
        """Log every few seconds how many are left."""
        if not left or now - self._said_at < _PROGRESS_SECONDS:
            return
        self._said_at = now
        extra = {"pending": left, "of": len(self._entries)}
        if not self._single:
            extra["seconds-left"] = max(0, round(self._deadline - now))
        _log.info("waiting for the last uploads", extra=extra)

    def _left(self) -> int:
        return sum(entry.final in _COMING for entry in self._entries)

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


def is_dirty(entry: Entry) -> bool:
    """Return whether a tenant may have something that is not on its replica."""
    tenant = entry.tenant
    try:
        waits = tenant.attached or tenant.pending or tenant.streaming
        return waits or tenant.changed()
    except OSError:
        return True


def close_tenants(
    entries: Mapping[str, Entry], threads: int, record: Callable[[Entry], None]
) -> bool:
    """Close tenants side by side and record each; return whether all closed in order."""
    failed: list[str] = []

    def close(name: str) -> None:
        entries[name].tenant.close()
        record(entries[name])

    def complain(name: str, error: Exception) -> None:
        failed.append(name)
        extra = {"db": name, "op": "close", "error": str(error)}
        _log.error("cannot close database in order", extra=extra)

    pool = Pool("close", threads, close, complain)
    pool.start()
    for name in entries:
        pool.submit(name)
    pool.finish()
    return not failed
