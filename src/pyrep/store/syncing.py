"""What the sync pool does with a tenant: sync it, and park it when it is quiet."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from pyrep.errors import FencedError, PyrepError
from pyrep.memory import give_back
from pyrep.store.drain import Drain
from pyrep.store.entry import Entry
from pyrep.store.leaving import Departures
from pyrep.store.parking import Parking
from pyrep.store.report import SNAPSHOT, STREAM, SYNC, UPLOAD, complain, recovered
from pyrep.store.shared import Shared
from pyrep.store.waiting import Waiter

__all__ = ["EAGER_SECONDS", "SyncWork"]

EAGER_SECONDS = 0.25  # how long after the first write of a change its commit is awaited
_EAGER_PAUSE_SECONDS = 0.01
_PARK_RETRY_SECONDS = 1.0
_ATTACHED_RETRY_SECONDS = 2.0
_CATCH_UP_SECONDS = 0.1
_MOST_HELD_INTERVALS = 10  # R stands still, and the WAL grows, as long as nothing is staged
_TRIM_AFTER = 100  # so many closed databases leave some megabytes behind


class SyncWork:
    """Give a tenant its turn; the pool lets one thread at a time have the same tenant.

    ``watch`` is called with the path of each database that is parked.
    """

    def __init__(
        self, shared: Shared, watch: Callable[[Path], None], departures: Departures
    ) -> None:
        self._shared = shared
        self._departures = departures
        self._parking = Parking(shared.budget, shared.clock)
        self._watch = watch
        self._parked = itertools.count(1)

    def run(self, name: str) -> None:
        """Do what is due for a tenant: obey, sync, take a snapshot, park."""
        entry = self._shared.entries.get(name)
        if entry is None:
            return
        drain, tenant = self._shared.drain, entry.tenant
        commanded = self._obey(entry) and not self._shared.waiting.wants_sync(name)
        if entry.leaving is not None and drain is None:
            self._departures.close(entry, entry.leaving)
            return
        if commanded and drain is None and not (tenant.attached or tenant.changed()):
            return
        if drain is not None and not drain.wants_sync(entry):
            return
        if tenant.needs_survey:  # as all newcomers do, and after a restart whatever changed
            self._shared.submit(UPLOAD, name, patient=True)
            return
        if not tenant.attached and not self._shared.budget.enter(name):
            return  # its turn comes when another leaves
        self._shared.admit_next()
        if tenant.streaming and tenant.wants_stream:
            self._hand_over(entry)
            return
        now = self._shared.clock.monotonic()
        waiters = self._shared.waiting.take(name)
        if drain is not None or waiters or self._is_due(entry, now):
            try:
                staged = self._sync(entry, waiters)
            finally:
                self._shared.admit_readers()
            if tenant.waits_to_read:
                self._give_way(entry)
                return
            if staged:
                entry.may_stage_at = now + entry.interval
            entry.next_sync = now + self._pause(entry, now, staged=staged)
            self._sync_succeeded(entry, drain, urgent=bool(waiters))
        if entry.wants_snapshot and drain is None:
            self._take_snapshot(entry)
        self._after_sync(entry)

    def _is_due(self, entry: Entry, now: float) -> bool:
        """Return whether a tenant's tick has come, or a change was seen and may be staged now.

        The interval spaces what is staged: a quiet tenant's ticks do not put off its next change.
        """
        seen = now < entry.eager_until and not entry.sync_backoff.failures
        if now < entry.next_sync and not (seen and now >= entry.may_stage_at):
            return False
        return not self._is_held(entry, now)

    def _is_held(self, entry: Entry, now: float) -> bool:
        """Return whether a tenant is synced when its files of before are uploaded, not now.

        Where there is more to do than can be done, what is committed meanwhile goes into one
        file; files would wait in ever longer lines else.  Uploads that fail hold nothing.
        """
        if not entry.tenant.pending or entry.upload_backoff.failures:
            entry.held_since = 0.0
            return False
        began = entry.held_since or now
        if now - began >= _MOST_HELD_INTERVALS * entry.interval:
            entry.held_since = 0.0
            return False
        entry.held_since = began
        entry.next_sync = now + entry.interval
        self._shared.submit(UPLOAD, entry.tenant.name)
        return True

    def _sync(self, entry: Entry, waiters: list[Waiter]) -> bool:
        """Sync, also for those who wait; they go on waiting if it did not get so far."""
        tenant, waiting = entry.tenant, self._shared.waiting
        try:
            staged = self._sync_and_arm(entry)
        except BaseException:
            waiting.put_back(tenant.name, waiters)
            raise
        if not waiters:
            return staged
        status = tenant.status()
        if status.state == "fenced":
            waiting.put_back(tenant.name, waiters)
            waiting.fail(tenant.name, FencedError(f"{tenant.name}: {status.error}"))
        elif not tenant.caught_up:
            waiting.put_back(tenant.name, waiters)
            self._shared.schedule(SYNC, tenant.name, _CATCH_UP_SECONDS)
        else:
            waiting.cover(tenant.name, waiters, status.local_txid)
            waiting.settle(tenant.name, tenant.status().durable_txid)
        return staged

    def _sync_and_arm(self, entry: Entry) -> bool:
        """Sync; one who finds nothing lets the watcher tell of the next change, and looks again.

        Armed first and looked at then, no commit comes between the two.
        """
        tenant = entry.tenant
        if tenant.sync():
            return True
        if entry.armed or not tenant.attached or self._shared.drain is not None:
            return False
        entry.armed = True
        self._watch(tenant.spec.db_path)
        return tenant.sync()

    def _pause(self, entry: Entry, now: float, *, staged: bool) -> float:
        """Return the seconds until the next sync.

        The event of a change comes with its first write; its commit may be a moment away.
        """
        if staged or now >= entry.eager_until:
            entry.eager_until = 0.0
            return entry.interval
        return min(_EAGER_PAUSE_SECONDS, entry.interval)

    def _take_snapshot(self, entry: Entry) -> None:
        """Stage a snapshot; that it fails must not hold up what is committed."""
        tenant, entry.wants_snapshot = entry.tenant, False
        try:
            if tenant.snapshot():
                self._shared.submit(UPLOAD, tenant.name)
                return
        except PyrepError as error:
            complain(self._shared.limiter, tenant, SNAPSHOT, error)
        if self._shared.upkeep is not None:
            self._shared.upkeep.retry_snapshot(tenant)

    def _give_way(self, entry: Entry) -> None:
        """Let others have the place of one who may not be read yet; it is called when it may."""
        entry.next_sync = 0.0
        self._shared.leave(entry.tenant.name)
        self._shared.record(entry)

    def _hand_over(self, entry: Entry) -> None:
        """Let the stream pool have a tenant whose pages have to go past the spool.

        It keeps its place meanwhile.
        """
        delay = entry.next_sync - self._shared.clock.monotonic()
        if delay > 0 and self._shared.drain is None:
            self._shared.schedule(SYNC, entry.tenant.name, delay)
        else:
            self._shared.submit(STREAM, entry.tenant.name)

    def _obey(self, entry: Entry) -> bool:
        """Run what operators asked for; return whether there was anything."""
        commanded = bool(entry.commands)
        while entry.commands:
            entry.commands.pop(0)()
        return commanded

    def _sync_succeeded(self, entry: Entry, drain: Drain | None, *, urgent: bool) -> None:
        tenant = entry.tenant
        entry.sync_backoff = entry.sync_backoff.succeeded()
        recovered(self._shared.limiter, tenant, SYNC)
        if drain is not None:
            drain.synced(entry)
            self._shared.submit(UPLOAD, tenant.name)  # also when nothing waits: it reports the end
        elif tenant.pending and (urgent or not entry.upload_backoff.failures):
            first = not tenant.status().durable_txid
            self._shared.submit(UPLOAD, tenant.name, patient=first and not urgent)

    def _after_sync(self, entry: Entry) -> None:
        """Park the tenant if it is time, and say when it is looked at next."""
        tenant = entry.tenant
        if tenant.wants_stream:
            self._shared.submit(STREAM, tenant.name)
            if tenant.streaming:
                return  # it keeps its place
        wants_park = tenant.attached and self._parking.try_park(
            entry, draining=self._shared.drain is not None
        )
        if tenant.attached and self._shared.drain is None:
            delay = max(0.0, entry.next_sync - self._shared.clock.monotonic())
            if wants_park:
                delay = min(delay, _PARK_RETRY_SECONDS)
            self._shared.schedule(SYNC, tenant.name, delay)
            self._shared.record(entry, gently=True)
        elif not tenant.attached:
            self._rest(entry)

    def _rest(self, entry: Entry) -> None:
        """Leave a parked tenant to the sweep."""
        tenant = entry.tenant
        self._shared.leave(tenant.name)
        if next(self._parked) % _TRIM_AFTER == 0:
            give_back()
        park, entry.park = entry.park, None
        self._shared.record(entry)
        if park is not None:
            park.answer(True, f"parked {tenant.name} at txid {tenant.status().local_txid}")
        self._watch(tenant.spec.db_path)

    def failed(self, name: str, error: Exception) -> None:
        """Say what is wrong and when it is tried again."""
        shared = self._shared
        entry = shared.entries.get(name)
        if entry is None:
            return
        entry.error = str(error)
        complain(shared.limiter, entry.tenant, SYNC, error)
        entry.sync_backoff = entry.sync_backoff.failed()
        delay = entry.sync_backoff.delay(shared.random)
        attached = entry.tenant.attached
        if attached:  # while R stands still it holds the application's checkpoints up
            delay = min(delay, max(entry.interval, _ATTACHED_RETRY_SECONDS))
        else:
            shared.leave(name)
        park, entry.park = entry.park, None
        if park is not None:
            park.answer(False, str(error))
        if isinstance(error, FencedError):
            shared.waiting.fail(name, error)
        shared.record(entry)
        if shared.drain is not None:
            delay = shared.drain.sync_failed(entry, error)
            if entry.tenant.pending or shared.drain.wants_upload(entry):
                shared.submit(UPLOAD, name)
        elif entry.tenant.pending and not entry.upload_backoff.failures:
            shared.submit(UPLOAD, name)
        if delay >= 0 and not isinstance(error, FencedError):
            entry.next_sync = shared.clock.monotonic() + delay
            shared.schedule(SYNC, name, delay)
