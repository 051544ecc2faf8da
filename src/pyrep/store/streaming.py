"""What the stream pool does with a tenant: upload what its spool cannot hold."""

from __future__ import annotations

from pyrep.errors import FencedError
from pyrep.store.entry import Entry
from pyrep.store.report import STREAM, SYNC, UPLOAD, complain, recovered
from pyrep.store.shared import Shared

__all__ = ["STREAM_THREADS", "StreamWork"]

STREAM_THREADS = 2  # each holds up a WAL and as much of the network as it gets


class StreamWork:
    """Give a tenant its turn; the pool lets one thread at a time have the same tenant."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def run(self, name: str) -> None:
        """Stream a tenant's pages, and let it be synced again."""
        entry = self._shared.entries.get(name)
        if entry is None or not entry.tenant.wants_stream:
            return
        tenant = entry.tenant
        if tenant.stream():
            entry.sync_backoff = entry.sync_backoff.succeeded()
            recovered(self._shared.limiter, tenant, STREAM)
            if self._shared.waiting.is_covered(name):
                self._shared.waiting.settle(name, tenant.status().durable_txid)
        elif tenant.wants_stream:
            self._shared.submit(UPLOAD, name)  # what is staged goes first
            return
        self._shared.record(entry)
        if self._shared.drain is not None:
            self._shared.drain.streamed(entry)
        entry.next_sync = 0.0
        self._shared.submit(SYNC, name)
        self._shared.submit(UPLOAD, name)

    def failed(self, name: str, error: Exception) -> None:
        """Say what is wrong and when it is tried again."""
        shared = self._shared
        entry = shared.entries.get(name)
        if entry is None:
            return
        complain(shared.limiter, entry.tenant, STREAM, error)
        shared.record(entry)
        if not entry.tenant.streaming:
            self._snapshot_failed(entry)
        else:
            self._pages_failed(entry, error)

    def _snapshot_failed(self, entry: Entry) -> None:
        """Take the snapshot later; what is committed goes on at once, and R may move."""
        if self._shared.upkeep is not None:
            self._shared.upkeep.retry_snapshot(entry.tenant)
        self._shared.submit(SYNC, entry.tenant.name)

    def _pages_failed(self, entry: Entry, error: Exception) -> None:
        shared, name = self._shared, entry.tenant.name
        entry.error = str(error)
        shared.leave(name)
        park, entry.park = entry.park, None
        if park is not None:
            park.answer(False, str(error))
        if shared.drain is not None:
            delay = shared.drain.stream_failed(entry, error)
            if delay >= 0:
                shared.schedule(STREAM, name, delay)
            return
        entry.sync_backoff = entry.sync_backoff.failed()
        delay = entry.sync_backoff.delay(shared.random)
        entry.next_sync = shared.clock.monotonic() + delay
        if isinstance(error, FencedError):
            shared.waiting.fail(name, error)
        else:
            shared.schedule(SYNC, name, delay)
