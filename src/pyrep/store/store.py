"""Register tenants, wake them when they change, and give each its turn.

A parked tenant costs the sweep's look at its files and nothing else.  One that changed is
surveyed (upload pool, once a run), synced (sync pool, at most once per sync interval) and its
staged files uploaded in order (upload pool), until it is quiet and parked again.
"""

from __future__ import annotations

import logging
import os
import random as random_module
import threading
from collections.abc import Callable
from pathlib import Path

from pyrep.catalog import Catalog
from pyrep.clock import Clock
from pyrep.errors import ConfigError, PyrepError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.schedule.budget import ReadBudget
from pyrep.schedule.pool import Pool
from pyrep.store.drain import Drain, Unsent, close_tenants, is_dirty
from pyrep.store.entry import Entry, ManagedTenant
from pyrep.store.leaving import Departures
from pyrep.store.maintenance import MAINTAIN, Maintenance, Schedule, forget_other_replica
from pyrep.store.operators import Answer, Operators
from pyrep.store.report import LIST, RETENTION, SNAPSHOT, STREAM, SYNC, UPLOAD
from pyrep.store.shared import Shared
from pyrep.store.streaming import STREAM_THREADS, StreamWork
from pyrep.store.syncing import EAGER_SECONDS, SyncWork
from pyrep.store.uploading import UploadWork
from pyrep.store.waiting import Told, Waiter, gone
from pyrep.watch.base import Dirty, DirtyKind, Watcher
from pyrep.watch.polling import PollingWatcher

__all__ = ["Store"]

UPLOAD_THREADS = 8
_MOST_UPLOAD_THREADS = 32  # as many connections as a storage over HTTP keeps
_MAX_SYNC_THREADS = 8
_WATCH_RETRY_SECONDS = 1.0
_JOIN_SECONDS = 5.0
_log = logging.getLogger(__name__)

Changed = Callable[[Path], bool]


class Store:
    """Hold the tenants; every method may be called from any thread.

    With a ``schedule`` it makes levels and snapshots and deletes what is old.
    ``reads`` is what the tenants share who have to read a whole database.
    ``leave_timeout`` is for how many seconds the uploads of a tenant that leaves are tried.
    ``watcher_for`` makes the watcher, given what says whether a parked database has changed;
    without it every ``watch_interval`` seconds that is asked of each.
    The watcher's thread calls ``on_event`` with what it sees and is no tenant's change, and
    ``on_tick`` after each round, which returns the seconds until it wants to be called again
    (None: not before the next round).
    """

    def __init__(
        self,
        catalog: Catalog,
        clock: Clock,
        *,
        max_attached: int,
        watch_interval: float = 1.0,
        watcher_for: Callable[[Changed], Watcher] | None = None,
        random: Callable[[], float] = random_module.random,
        schedule: Schedule | None = None,
        leave_timeout: float = 30.0,
        reads: ReadBudget | None = None,
    ) -> None:
        self._clock = clock
        self._catalog = catalog
        self.on_event: Callable[[Dirty], None] | None = None
        self.on_tick: Callable[[], float | None] | None = None
        self.closed_in_order = False
        self._stopping = threading.Event()
        self._shared = shared = Shared(catalog, clock, random, max_attached, reads or ReadBudget(1))
        if watcher_for is None:
            self.watcher: Watcher = PollingWatcher(watch_interval, self._has_changed, clock)
        else:
            self.watcher = watcher_for(self._has_changed)
        self._operators = Operators(shared, self.wake, self.relist)
        threads = min(_MAX_SYNC_THREADS, 2 * (os.cpu_count() or 1))
        self._departures = Departures(shared, self._forget, leave_timeout)
        syncs = SyncWork(shared, self.watcher.add, self._departures)
        uploads = UploadWork(shared, self._departures)
        self._syncs = Pool(SYNC, threads, syncs.run, syncs.failed)
        self._uploads = Pool(
            UPLOAD, UPLOAD_THREADS, uploads.run, uploads.failed, most=_MOST_UPLOAD_THREADS
        )
        streams = StreamWork(shared)
        self._streams = Pool(STREAM, STREAM_THREADS, streams.run, streams.failed)
        shared.pools = {SYNC: self._syncs, UPLOAD: self._uploads, STREAM: self._streams}
        self._watch_thread: threading.Thread | None = None
        catalog.on_renewed = self._say_all_again
        if schedule is not None:
            shared.upkeep = Maintenance(schedule, catalog, clock, self, shared.limiter, random)

    # --- life -----------------------------------------------------------------------------------

    def start(self, *, watch: bool = True) -> None:
        """Start the threads; their number does not depend on that of the tenants.

        Without ``watch`` nothing happens by itself: ``drain`` does it all, once.
        """
        self._shared.scheduler.start()
        self._syncs.start()
        self._uploads.start()
        self._streams.start()
        if watch:
            if self._shared.upkeep is not None:
                self._shared.upkeep.start()
            self._watch_thread = threading.Thread(
                target=self._watch, name="pyrep-watcher", daemon=True
            )
            self._watch_thread.start()

    def register(self, tenant: ManagedTenant) -> None:
        """Take a tenant in; the next sweep looks whether it changed.

        :raises PyrepError: there is one of that name, or the catalog cannot be read
        """
        interval = tenant.spec.settings.replica.sync_interval.total_seconds()
        with self._shared.lock:
            if tenant.name in self._shared.entries:
                raise PyrepError(f"{tenant.name}: is registered already")
            self._shared.entries[tenant.name] = entry = Entry(tenant, interval)
        try:
            moved = forget_other_replica(self._catalog, tenant)
        except PyrepError:
            self.unregister(tenant.name)
            raise
        self._shared.record(entry)
        if self._shared.upkeep is not None:
            self._shared.upkeep.registered(tenant, moved=moved)
        if moved:
            self.relist(tenant.name)  # it is not there yet, changed or not
        self.watcher.add(tenant.spec.db_path)

    def unregister(self, name: str) -> ManagedTenant | None:
        """Let go of a tenant and return it; the caller closes it."""
        with self._shared.lock:
            entry = self._shared.entries.pop(name, None)
        if entry is None:
            return None
        self._forget(entry)
        return entry.tenant

    def _forget(self, entry: Entry) -> None:
        name = entry.tenant.name
        self.watcher.remove(entry.tenant.spec.db_path)
        for kind in (SYNC, UPLOAD, STREAM, MAINTAIN):
            self._shared.scheduler.cancel((kind, name))
        if self._shared.upkeep is not None:
            self._shared.upkeep.unregistered(name)
        for op in (SYNC, UPLOAD, LIST, STREAM, SNAPSHOT, MAINTAIN, RETENTION):
            self._shared.limiter.recovered((name, op))
        self._shared.leave(name)
        self._shared.waiting.fail(name, gone(name))

    def remove(self, name: str, done: Callable[[ManagedTenant], None]) -> None:
        """Store what can still be had of a tenant, close it and forget it; its replica stays.

        ``done`` is called by another thread when it is gone, unless ``keep`` or the stop comes
        before that.
        """
        entry = self._shared.entries.get(name)
        if entry is not None:
            self.watcher.remove(entry.tenant.spec.db_path)
            self._departures.begin(entry, done)

    def keep(self, name: str) -> bool:
        """Let a tenant that is leaving stay after all; False if it is gone, or soon told to be."""
        return self._departures.keep(name)

    def lookup(self, name: str) -> ManagedTenant | None:
        """Return the tenant of a database path, resolved or as configured."""
        entry = self._shared.find(name)
        return entry.tenant if entry else None

    def tenants(self) -> list[ManagedTenant]:
        """Return all tenants."""
        with self._shared.lock:
            return [entry.tenant for entry in self._shared.entries.values()]

    def acknowledged(self, tenant: ManagedTenant, info: FileInfo) -> None:
        """Record a file that the storage confirmed; to be given to each tenant.

        A merge may outlast its tenant: of the one that came in its place, perhaps with another
        replica, it says nothing.
        """
        with self._shared.lock:
            entry = self._shared.entries.get(tenant.name)
            if entry is None or entry.tenant is not tenant:
                return
            self._catalog.add_file(tenant.name, info)
        if self._shared.upkeep is not None:
            self._shared.upkeep.acknowledged(tenant, info)
        extra = {"db": tenant.name, "level": info.level, "txid": info.max_txid}
        _log.debug("ltx file uploaded", extra=extra)

    def listed(self, tenant: ManagedTenant, files: list[FileInfo]) -> None:
        """Record what a listing of a replica showed; to be given to each tenant."""
        self._catalog.replace_files(tenant.name, files)

    def _say_all_again(self) -> None:
        """Let a catalog that was begun anew know all tenants, and what their replicas hold."""
        for entry in self._shared.all_entries():
            self._shared.record(entry)
            self.relist(entry.tenant.name)

    # --- waking -----------------------------------------------------------------------------------

    def wake(self, name: str) -> None:
        """Let a tenant be synced as soon as its interval allows."""
        entry = self._shared.entries.get(name)
        if entry is not None and entry.leaving is None and self._shared.drain is None:
            self.watcher.remove(entry.tenant.spec.db_path)
            entry.armed = False
            now = self._clock.monotonic()
            soonest = max(now, entry.may_stage_at)
            entry.eager_until = soonest + EAGER_SECONDS
            self._shared.schedule(SYNC, name, soonest - now)

    def look_at_all(self) -> None:
        """Let the watcher look at every parked tenant: has it changed unseen?"""
        for entry in self._shared.all_entries():
            if not entry.tenant.attached:
                self.watcher.add(entry.tenant.spec.db_path)

    def _has_changed(self, path: Path) -> bool:
        entry = self._shared.entries.get(str(path))
        return entry is not None and not entry.tenant.attached and entry.tenant.changed()

    def _watch(self) -> None:
        timeout: float | None = 0.0
        lost = False
        while not self._stopping.is_set():
            try:
                if lost:  # what was told in a round that failed is not told again
                    self._notice(Dirty(None, DirtyKind.OVERFLOW))
                    lost = False
                for dirty in self.watcher.poll(timeout):
                    self._notice(dirty)
                timeout = self.on_tick() if self.on_tick else None
            except Exception:
                _log.exception("internal error in the watcher", extra={"op": "watch"})
                timeout, lost = 0.0, True
                self._clock.wait(self._stopping, _WATCH_RETRY_SECONDS)

    def _notice(self, dirty: Dirty) -> None:
        tenant = dirty.kind is DirtyKind.CHANGED and str(dirty.path) in self._shared.entries
        if tenant:
            self.wake(str(dirty.path))
        elif dirty.kind is DirtyKind.OVERFLOW:
            self.look_at_all()
        if not tenant and self.on_event is not None:
            self.on_event(dirty)

    def wait(self, name: str, tell: Told) -> Waiter:
        """Let ``tell`` know when every commit that returned before this call is on the replica.

        The database is looked at, whatever events said.  Set ``over`` of the result to be told
        no more.
        """
        waiter = Waiter(tell)
        entry = self._shared.find(name)
        if entry is None:
            waiter.end(TXID(0), ConfigError(f"no such database: {name}"))
            return waiter
        self._shared.waiting.add(entry.tenant.name, waiter)
        self._shared.schedule(SYNC, entry.tenant.name)
        if entry.tenant.name not in self._shared.entries:
            waiter.end(TXID(0), gone(name))
        return waiter

    def trouble(self, name: str) -> str:
        """Return what keeps a database from being replicated just now, '' if nothing does."""
        entry = self._shared.find(name)
        if entry is None:
            return ""
        failing = entry.sync_backoff.failures or entry.upload_backoff.failures
        return entry.tenant.status().error or (entry.error if failing else "")

    # --- what maintenance asks for ----------------------------------------------------------------

    def schedule(self, kind: str, name: str, delay: float) -> None:
        """Let a tenant be fired in ``delay`` seconds at the latest."""
        self._shared.schedule(kind, name, delay)

    def take_snapshot(self, name: str) -> None:
        """Let the sync pool stage a snapshot of a tenant, waking it."""
        entry = self._shared.entries.get(name)
        if entry is not None and self._shared.drain is None:
            entry.wants_snapshot = True
            self._shared.schedule(SYNC, name)

    def relist(self, name: str) -> None:
        """Let the upload pool list a tenant's replica, and wake it if that shows damage."""
        entry = self._shared.entries.get(name)
        if entry is not None and self._shared.drain is None:
            entry.wants_survey = True
            self._shared.submit(UPLOAD, name)

    # --- what operators ask for -------------------------------------------------------------------

    def park(self, name: str, answer: Answer) -> None:
        """Sync a database and close it now; ``answer(ok, text)`` is called when that is done."""
        self._operators.park(name, answer)

    def list_again(self, name: str, answer: Answer) -> None:
        """List a replica, so that the catalog says what is there; ``answer`` is called after."""
        self._operators.list_again(name, answer)

    def take_over(self, pattern: str, answer: Answer) -> None:
        """End the fencing of a database, or of all fenced ones that a glob matches."""
        self._operators.take_over(pattern, answer)

    # --- the end ----------------------------------------------------------------------------------

    def drain(
        self,
        timeout: float,
        retry_interval: float,
        *,
        everything: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
        latecomers: Callable[[], bool] = lambda: False,
    ) -> list[Unsent]:
        """Sync what is dirty once more, upload until the time is over, close all tenants.

        ``everything`` takes every tenant and tries each once.  ``latecomers`` is called
        meanwhile until it says that no more tenants are to come; it registers those that do.
        Returns what was not uploaded.
        """
        self.stop_watching()
        if self._shared.upkeep is not None:
            self._shared.upkeep.stop()
        drain = Drain(self._clock, timeout, retry_interval, once=everything)

        def more() -> bool:
            coming = latecomers()
            self._sync_last(drain, everything)
            return coming

        self._sync_last(drain, everything)
        drain.wait(interrupted, more)
        unsent = drain.unsent()
        self._close(self._shared.all_entries(), hurry=interrupted())
        return unsent

    def _sync_last(self, drain: Drain, everything: bool) -> None:
        """Sync the tenants that the drain does not know yet, if they need it."""
        dirty = drain.begin(self._shared.all_entries(), lambda e: everything or is_dirty(e))
        self._shared.drain = drain
        for entry in dirty:
            entry.next_sync = 0.0
            self._shared.scheduler.cancel((UPLOAD, entry.tenant.name))
            self._shared.submit(SYNC, entry.tenant.name)

    def stop_watching(self) -> None:
        """End the watcher's thread: from now on nothing wakes by itself."""
        self._stopping.set()
        self.watcher.wake()
        if self._watch_thread is not None:
            self._watch_thread.join()
            self._watch_thread = None
        self.watcher.close()

    def _close(self, entries: list[Entry], *, hurry: bool) -> None:
        self._shared.scheduler.stop()
        self._uploads.close(0.0 if hurry else _JOIN_SECONDS)
        if self._shared.upkeep is not None:
            self._shared.upkeep.close(0.0 if hurry else _JOIN_SECONDS)
        self._streams.close(0.0)  # closing the tenant ends what still runs
        running = set(self._syncs.close(_JOIN_SECONDS))
        idle = {e.tenant.name: e for e in entries if e.tenant.name not in running}
        closed = close_tenants(idle, self._syncs.size, self._shared.record)
        self.closed_in_order = closed and not running
        self._shared.waiting.fail_all(PyrepError("the replication has been stopped"))
