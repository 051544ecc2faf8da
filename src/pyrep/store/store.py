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
from pyrep.errors import FencedError, PyrepError
from pyrep.log import RateLimiter
from pyrep.ltxfile import FileInfo
from pyrep.schedule.budget import AttachBudget
from pyrep.schedule.pool import Pool
from pyrep.schedule.scheduler import Scheduler
from pyrep.store.drain import Drain, Unsent, close_tenants, is_dirty
from pyrep.store.entry import Entry, ManagedTenant, ParkRequest, tenant_row
from pyrep.store.maintenance import MAINTAIN, Maintenance, Schedule, forget_other_replica
from pyrep.store.parking import Parking
from pyrep.store.report import LIST, SYNC, UPLOAD, complain, recovered
from pyrep.store.tally import Tally, fenced_matches
from pyrep.watch.base import Watcher
from pyrep.watch.polling import PollingWatcher

__all__ = ["Store"]

UPLOAD_THREADS = 8
_MAX_SYNC_THREADS = 8
_FILES_PER_TURN = 16
_RECORD_SECONDS = 1.0
_PARK_RETRY_SECONDS = 1.0
_PARK_PATIENCE_SECONDS = 3.0
_ATTACHED_RETRY_SECONDS = 2.0
_JOIN_SECONDS = 5.0
_log = logging.getLogger(__name__)

Answer = Callable[[bool, str], None]


class Store:
    """Hold the tenants; every method may be called from any thread.

    With a ``schedule`` it makes levels and snapshots and deletes what is old.
    ``on_tick`` is called by the watcher's thread after each round and returns the seconds until
    it wants to be called again (None: not before the next round).
    """

    def __init__(
        self,
        catalog: Catalog,
        clock: Clock,
        *,
        max_attached: int,
        watch_interval: float = 1.0,
        watcher: Watcher | None = None,
        random: Callable[[], float] = random_module.random,
        schedule: Schedule | None = None,
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._random = random
        self.on_tick: Callable[[], float | None] | None = None
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}  # guarded by _lock for writing
        self._limiter = RateLimiter(now=clock.monotonic)
        self._budget = AttachBudget(max_attached, clock)
        self._parking = Parking(self._budget, clock)
        self._drain: Drain | None = None
        self.closed_in_order = False
        self._stopping = threading.Event()
        self.watcher = watcher or PollingWatcher(watch_interval, self._has_changed, clock)
        self._scheduler: Scheduler[tuple[str, str]] = Scheduler(self._fire, clock)
        threads = min(_MAX_SYNC_THREADS, 2 * (os.cpu_count() or 1))
        self._syncs = Pool(SYNC, threads, self._sync_work, self._sync_failed)
        self._uploads = Pool(UPLOAD, UPLOAD_THREADS, self._upload_work, self._upload_failed)
        self._watch_thread: threading.Thread | None = None
        self._upkeep: Maintenance | None = None
        if schedule is not None:
            self._upkeep = Maintenance(schedule, catalog, clock, self, self._limiter, random)

    # --- life -----------------------------------------------------------------------------------

    def start(self, *, watch: bool = True) -> None:
        """Start the threads; their number does not depend on that of the tenants.

        Without ``watch`` nothing happens by itself: ``drain`` does it all, once.
        """
        self._scheduler.start()
        self._syncs.start()
        self._uploads.start()
        if watch:
            if self._upkeep is not None:
                self._upkeep.start()
            self._watch_thread = threading.Thread(
                target=self._watch, name="pyrep-watcher", daemon=True
            )
            self._watch_thread.start()

    def register(self, tenant: ManagedTenant) -> None:
        """Take a tenant in; the next sweep looks whether it changed.

        :raises PyrepError: there is one of that name
        """
        interval = tenant.spec.settings.replica.sync_interval.total_seconds()
        with self._lock:
            if tenant.name in self._entries:
                raise PyrepError(f"{tenant.name}: is registered already")
            self._entries[tenant.name] = entry = Entry(tenant, interval)
        moved = forget_other_replica(self._catalog, tenant)
        self._record(entry)
        if self._upkeep is not None:
            self._upkeep.registered(tenant, moved=moved)
        self.watcher.add(tenant.spec.db_path)

    def unregister(self, name: str) -> ManagedTenant | None:
        """Let go of a tenant and return it; the caller closes it."""
        with self._lock:
            entry = self._entries.pop(name, None)
        if entry is None:
            return None
        self.watcher.remove(entry.tenant.spec.db_path)
        for kind in (SYNC, UPLOAD, MAINTAIN):
            self._scheduler.cancel((kind, name))
        if self._upkeep is not None:
            self._upkeep.unregistered(name)
        self._leave(name)
        return entry.tenant

    def lookup(self, name: str) -> ManagedTenant | None:
        """Return the tenant of a database path, resolved or as configured."""
        entry = self._find(name)
        return entry.tenant if entry else None

    def tenants(self) -> list[ManagedTenant]:
        """Return all tenants."""
        with self._lock:
            return [entry.tenant for entry in self._entries.values()]

    def acknowledged(self, tenant: ManagedTenant, info: FileInfo) -> None:
        """Record a file that the storage confirmed; to be given to each tenant."""
        self._catalog.add_file(tenant.name, info)
        if self._upkeep is not None:
            self._upkeep.acknowledged(tenant, info)
        extra = {"db": tenant.name, "level": info.level, "txid": info.max_txid}
        _log.debug("ltx file uploaded", extra=extra)

    def listed(self, tenant: ManagedTenant, files: list[FileInfo]) -> None:
        """Record what a listing of a replica showed; to be given to each tenant."""
        self._catalog.replace_files(tenant.name, files)

    def _find(self, name: str) -> Entry | None:
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        real = os.path.realpath(name)
        entries = self._all_entries()
        return next(
            (e for e in entries if e.tenant.name == real or e.tenant.spec.name == name), None
        )

    def _all_entries(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())

    # --- waking -----------------------------------------------------------------------------------

    def wake(self, name: str) -> None:
        """Let a tenant be synced as soon as its interval allows."""
        entry = self._entries.get(name)
        if entry is not None and self._drain is None:
            self.watcher.remove(entry.tenant.spec.db_path)
            self._scheduler.schedule((SYNC, name), entry.next_sync - self._clock.monotonic())

    def _has_changed(self, path: Path) -> bool:
        entry = self._entries.get(str(path))
        return entry is not None and not entry.tenant.attached and entry.tenant.changed()

    def _watch(self) -> None:
        timeout: float | None = 0.0
        while not self._stopping.is_set():
            try:
                self._wake_changed(timeout)
                timeout = self.on_tick() if self.on_tick else None
            except Exception:
                _log.exception("internal error in the watcher", extra={"op": "watch"})
                timeout = _PARK_RETRY_SECONDS
                self._clock.wait(self._stopping, timeout)

    def _wake_changed(self, timeout: float | None) -> None:
        for dirty in self.watcher.poll(timeout):
            for name in [str(dirty.path)] if dirty.path else list(self._entries):
                self.wake(name)

    def _fire(self, key: tuple[str, str]) -> None:
        kind, name = key
        if kind == MAINTAIN and self._upkeep is not None:
            self._upkeep.fire(name)
        else:
            (self._syncs if kind == SYNC else self._uploads).submit(name)

    # --- what maintenance asks for ----------------------------------------------------------------

    def schedule(self, kind: str, name: str, delay: float) -> None:
        """Let a tenant be fired in ``delay`` seconds at the latest."""
        self._scheduler.schedule((kind, name), delay)

    def take_snapshot(self, name: str) -> None:
        """Let the sync pool stage a snapshot of a tenant, waking it."""
        entry = self._entries.get(name)
        if entry is not None and self._drain is None:
            entry.wants_snapshot = True
            self._scheduler.schedule((SYNC, name))

    def relist(self, name: str) -> None:
        """Let the upload pool list a tenant's replica, and wake it if that shows damage."""
        entry = self._entries.get(name)
        if entry is not None and self._drain is None:
            entry.wants_survey = True
            self._uploads.submit(name)

    # --- sync pool --------------------------------------------------------------------------------

    def _sync_work(self, name: str) -> None:
        entry = self._entries.get(name)
        if entry is None:
            return
        drain, tenant = self._drain, entry.tenant
        if self._obey(entry) and drain is None and not (tenant.attached or tenant.changed()):
            return
        if drain is not None and not drain.wants_sync(entry):
            return
        if tenant.needs_survey:
            self._uploads.submit(name)
            return
        if not tenant.attached and not self._budget.enter(name):
            return  # its turn comes when another leaves
        self._admit_next()
        now = self._clock.monotonic()
        if drain is not None or now >= entry.next_sync:
            entry.next_sync = now + entry.interval
            tenant.sync()
            self._sync_succeeded(entry, drain)
        if entry.wants_snapshot and drain is None:
            self._take_snapshot(entry)
        self._after_sync(entry)

    def _take_snapshot(self, entry: Entry) -> None:
        """Stage a snapshot; that it fails must not hold up what is committed."""
        tenant, entry.wants_snapshot = entry.tenant, False
        try:
            if tenant.snapshot():
                self._uploads.submit(tenant.name)
                return
        except PyrepError as error:
            complain(self._limiter, tenant, "snapshot", error)
        if self._upkeep is not None:
            self._upkeep.retry_snapshot(tenant)

    def _obey(self, entry: Entry) -> bool:
        """Run what operators asked for; return whether there was anything."""
        commanded = bool(entry.commands)
        while entry.commands:
            entry.commands.pop(0)()
        return commanded

    def _sync_succeeded(self, entry: Entry, drain: Drain | None) -> None:
        tenant = entry.tenant
        entry.sync_backoff = entry.sync_backoff.succeeded()
        recovered(self._limiter, tenant, SYNC)
        if drain is not None:
            drain.synced(entry)
            self._uploads.submit(tenant.name)  # also when nothing waits: it reports the end
        elif tenant.pending and not entry.upload_backoff.failures:
            self._uploads.submit(tenant.name)

    def _after_sync(self, entry: Entry) -> None:
        """Park the tenant if it is time, and say when it is looked at next."""
        tenant = entry.tenant
        wants_park = tenant.attached and self._parking.try_park(
            entry, draining=self._drain is not None
        )
        if tenant.attached and self._drain is None:
            delay = max(0.0, entry.next_sync - self._clock.monotonic())
            if wants_park:
                delay = min(delay, _PARK_RETRY_SECONDS)
            self._scheduler.schedule((SYNC, tenant.name), delay)
            self._record(entry, gently=True)
        elif not tenant.attached:
            self._rest(entry)

    def _rest(self, entry: Entry) -> None:
        """Leave a parked tenant to the sweep."""
        tenant = entry.tenant
        self._leave(tenant.name)
        park, entry.park = entry.park, None
        self._record(entry)
        if park is not None:
            park.answer(True, f"parked {tenant.name} at txid {tenant.status().local_txid}")
        self.watcher.add(tenant.spec.db_path)

    def _leave(self, name: str) -> None:
        following = self._budget.leave(name)
        if following is not None:
            self._scheduler.schedule((SYNC, following))

    def _admit_next(self) -> None:
        following = self._budget.next_waiting()
        if following is not None:
            self._scheduler.schedule((SYNC, following))

    def _sync_failed(self, name: str, error: Exception) -> None:
        entry = self._entries.get(name)
        if entry is None:
            return
        entry.error = str(error)
        complain(self._limiter, entry.tenant, SYNC, error)
        entry.sync_backoff = entry.sync_backoff.failed()
        delay = entry.sync_backoff.delay(self._random)
        attached = entry.tenant.attached
        if attached:  # while R stands still it holds the application's checkpoints up
            delay = min(delay, max(entry.interval, _ATTACHED_RETRY_SECONDS))
        else:
            self._leave(name)
        park, entry.park = entry.park, None
        if park is not None:
            park.answer(False, str(error))
        self._record(entry)
        if self._drain is not None:
            delay = self._drain.sync_failed(entry)
        if entry.tenant.pending and (self._drain is not None or not entry.upload_backoff.failures):
            self._uploads.submit(name)
        if delay >= 0 and not isinstance(error, FencedError):
            entry.next_sync = self._clock.monotonic() + delay
            self._scheduler.schedule((SYNC, name), delay)

    # --- upload pool ------------------------------------------------------------------------------

    def _upload_work(self, name: str) -> None:
        entry = self._entries.get(name)
        if entry is None:
            return
        tenant = entry.tenant
        if tenant.needs_survey or entry.wants_survey:
            tenant.survey()
            entry.wants_survey = False
            self._upload_succeeded(entry, LIST)
            self._syncs.submit(name)  # it waited for this
        for _ in range(_FILES_PER_TURN):
            if not tenant.upload_next():
                break
            self._upload_succeeded(entry, UPLOAD)
        if tenant.pending:
            self._uploads.submit(name)  # after the others
            return
        self._record(entry)
        if self._drain is not None:
            self._drain.uploaded(entry)

    def _upload_succeeded(self, entry: Entry, op: str) -> None:
        entry.upload_backoff = entry.upload_backoff.succeeded()
        recovered(self._limiter, entry.tenant, op)

    def _upload_failed(self, name: str, error: Exception) -> None:
        entry = self._entries.get(name)
        if entry is None:
            return
        entry.error = str(error)
        op = LIST if entry.tenant.needs_survey or entry.wants_survey else UPLOAD
        complain(self._limiter, entry.tenant, op, error)
        self._record(entry)
        if entry.tenant.needs_survey and entry.park is not None:
            park, entry.park = entry.park, None
            park.answer(False, str(error))
        retry = 0.0
        if self._drain is not None:
            retry = self._drain.upload_failed(entry, error)
        if isinstance(error, FencedError):
            self._leave(name)  # only take_over ends it
            return
        entry.upload_backoff = entry.upload_backoff.failed()
        delay = retry if self._drain else entry.upload_backoff.delay(self._random)
        if delay >= 0:
            self._scheduler.schedule((UPLOAD, name), delay)

    # --- what operators ask for -------------------------------------------------------------------

    def park(self, name: str, answer: Answer) -> None:
        """Sync a database and close it now; ``answer(ok, text)`` is called when that is done."""
        entry = self._find(name)
        if entry is None:
            answer(False, f"no such database: {name}")
            return
        force_at = self._clock.monotonic() + _PARK_PATIENCE_SECONDS
        self._command(entry, lambda: self._begin_park(entry, ParkRequest(answer, force_at)))

    def _begin_park(self, entry: Entry, request: ParkRequest) -> None:
        tenant = entry.tenant
        if entry.park is not None:
            request.answer(False, f"{tenant.name}: is being parked already")
        elif not tenant.attached and not tenant.changed():
            request.answer(True, f"{tenant.name} is parked")
        else:
            entry.park = request
            entry.next_sync = 0.0

    def take_over(self, pattern: str, answer: Answer) -> None:
        """End the fencing of a database, or of all fenced ones that a glob matches."""
        entry = self._find(pattern)
        chosen = [entry] if entry else fenced_matches(self._all_entries(), pattern)
        if not chosen:
            answer(False, f"no such database, and no fenced one that matches: {pattern}")
            return
        tally = Tally(len(chosen), answer)
        for entry in chosen:
            self._command(entry, lambda entry=entry: tally.run(entry.tenant))  # type: ignore[misc]
            self.wake(entry.tenant.name)

    def _command(self, entry: Entry, command: Callable[[], None]) -> None:
        entry.commands.append(command)
        self._scheduler.schedule((SYNC, entry.tenant.name))

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
        if self._upkeep is not None:
            self._upkeep.stop()
        drain = Drain(self._clock, timeout, retry_interval, once=everything)

        def more() -> bool:
            coming = latecomers()
            self._sync_last(drain, everything)
            return coming

        self._sync_last(drain, everything)
        drain.wait(interrupted, more)
        unsent = drain.unsent()
        self._close(self._all_entries(), hurry=interrupted())
        return unsent

    def _sync_last(self, drain: Drain, everything: bool) -> None:
        """Sync the tenants that the drain does not know yet, if they need it."""
        dirty = drain.begin(self._all_entries(), lambda e: everything or is_dirty(e))
        self._drain = drain
        for entry in dirty:
            entry.next_sync = 0.0
            self._scheduler.cancel((UPLOAD, entry.tenant.name))
            self._syncs.submit(entry.tenant.name)

    def stop_watching(self) -> None:
        """End the watcher's thread: from now on nothing wakes by itself."""
        self._stopping.set()
        self.watcher.wake()
        if self._watch_thread is not None:
            self._watch_thread.join()
            self._watch_thread = None
        self.watcher.close()

    def _close(self, entries: list[Entry], *, hurry: bool) -> None:
        self._scheduler.stop()
        self._uploads.close(0.0 if hurry else _JOIN_SECONDS)
        if self._upkeep is not None:
            self._upkeep.close(0.0 if hurry else _JOIN_SECONDS)
        running = set(self._syncs.close(_JOIN_SECONDS))
        idle = {e.tenant.name: e for e in entries if e.tenant.name not in running}
        closed = close_tenants(idle, self._syncs.size, self._record)
        self.closed_in_order = closed and not running

    # --- reporting --------------------------------------------------------------------------------

    def _record(self, entry: Entry, *, gently: bool = False) -> None:
        """Queue the tenant's row; ``gently``: not more often than once a second."""
        now = self._clock.monotonic()
        if gently and now - entry.recorded_at < _RECORD_SECONDS:
            return
        entry.recorded_at = now
        self._catalog.save_tenant(tenant_row(entry.tenant))
