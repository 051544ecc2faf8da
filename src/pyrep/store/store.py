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
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from pyrep.catalog import Catalog
from pyrep.clock import Clock
from pyrep.errors import FencedError, PyrepError
from pyrep.log import RateLimiter
from pyrep.ltxfile import FileInfo
from pyrep.schedule.budget import AttachBudget
from pyrep.schedule.pool import Pool
from pyrep.schedule.scheduler import Scheduler
from pyrep.store.drain import Drain, Unsent
from pyrep.store.entry import Entry, ManagedTenant, ParkRequest, tenant_row
from pyrep.store.report import complain
from pyrep.store.tally import Tally
from pyrep.watch.base import Watcher
from pyrep.watch.polling import PollingWatcher

__all__ = ["Store"]

UPLOAD_THREADS = 8
_MAX_SYNC_THREADS = 8
_FILES_PER_TURN = 16
_RECORD_SECONDS = 1.0
_PARK_RETRY_SECONDS = 1.0
_PARK_PATIENCE_SECONDS = 3.0
_SEAL_PATIENCE_SECONDS = 10.0  # what cannot be sealed for so long parks without a fingerprint
_ATTACHED_RETRY_SECONDS = 2.0
_JOIN_SECONDS = 5.0
_log = logging.getLogger(__name__)

SYNC = "sync"
UPLOAD = "upload"
Answer = Callable[[bool, str], None]


class Store:
    """Hold the tenants; every method may be called from any thread.

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
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._random = random
        self.on_tick: Callable[[], float | None] | None = None
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}  # guarded by _lock for writing
        self._limiter = RateLimiter(now=clock.monotonic)
        self._budget = AttachBudget(max_attached, clock)
        self._crowded = False
        self._drain: Drain | None = None
        self.closed_in_order = False
        self._stopping = threading.Event()
        self.watcher = watcher or PollingWatcher(watch_interval, self._has_changed, clock)
        self._scheduler: Scheduler[tuple[str, str]] = Scheduler(self._fire, clock)
        threads = min(_MAX_SYNC_THREADS, 2 * (os.cpu_count() or 1))
        self._syncs = Pool(SYNC, threads, self._sync_work, self._sync_failed)
        self._uploads = Pool(UPLOAD, UPLOAD_THREADS, self._upload_work, self._upload_failed)
        self._watch_thread: threading.Thread | None = None

    # --- life -----------------------------------------------------------------------------------

    def start(self, *, watch: bool = True) -> None:
        """Start the threads; their number does not depend on that of the tenants.

        Without ``watch`` nothing happens by itself: ``drain`` does it all, once.
        """
        self._scheduler.start()
        self._syncs.start()
        self._uploads.start()
        if watch:
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
        self._record(entry)
        self.watcher.add(tenant.spec.db_path)

    def unregister(self, name: str) -> ManagedTenant | None:
        """Let go of a tenant and return it; the caller closes it."""
        with self._lock:
            entry = self._entries.pop(name, None)
        if entry is None:
            return None
        self.watcher.remove(entry.tenant.spec.db_path)
        self._scheduler.cancel((SYNC, name))
        self._scheduler.cancel((UPLOAD, name))
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
        extra = {"db": tenant.name, "level": info.level, "txid": info.max_txid}
        _log.debug("ltx file uploaded", extra=extra)

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
                for dirty in self.watcher.poll(timeout):
                    self._wake_all([str(dirty.path)] if dirty.path else list(self._entries))
                timeout = self.on_tick() if self.on_tick else None
            except Exception:
                _log.exception("internal error in the watcher", extra={"op": "watch"})
                timeout = _PARK_RETRY_SECONDS
                self._clock.wait(self._stopping, timeout)

    def _wake_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.wake(name)

    def _fire(self, key: tuple[str, str]) -> None:
        kind, name = key
        pool = self._syncs if kind == SYNC else self._uploads
        pool.submit(name)

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
        self._after_sync(entry)

    def _obey(self, entry: Entry) -> bool:
        """Run what operators asked for; return whether there was anything."""
        commanded = bool(entry.commands)
        while entry.commands:
            entry.commands.pop(0)()
        return commanded

    def _sync_succeeded(self, entry: Entry, drain: Drain | None) -> None:
        tenant = entry.tenant
        entry.sync_backoff = entry.sync_backoff.succeeded()
        if self._limiter.recovered((tenant.name, SYNC)):
            _log.info("database can be synced again", extra={"db": tenant.name, "op": SYNC})
        if drain is not None:
            drain.synced(entry)
            self._uploads.submit(tenant.name)  # also when nothing waits: it reports the end
        elif tenant.pending and not entry.upload_backoff.failures:
            self._uploads.submit(tenant.name)

    def _after_sync(self, entry: Entry) -> None:
        """Park the tenant if it is time, and say when it is looked at next."""
        tenant = entry.tenant
        wants_park = tenant.attached and self._try_park(entry)
        if tenant.attached and self._drain is None:
            delay = max(0.0, entry.next_sync - self._clock.monotonic())
            if wants_park:
                delay = min(delay, _PARK_RETRY_SECONDS)
            self._scheduler.schedule((SYNC, tenant.name), delay)
            self._record(entry, gently=True)
        elif not tenant.attached:
            self._rest(entry)

    def _try_park(self, entry: Entry) -> bool:
        """Park if somebody asked, the place is needed or nothing happens; True: it is wanted."""
        tenant = entry.tenant
        now = self._clock.monotonic()
        if entry.park is not None:
            tenant.park(force=now >= entry.park.force_at)
            return True
        if self._drain is not None:
            return tenant.park(force=True)  # others may wait for its place
        if self._budget.waiting:
            return self._yield_place(entry)
        idle = tenant.idle_seconds() - tenant.idle_limit()
        if idle < 0:
            return False
        tenant.park(force=idle >= _SEAL_PATIENCE_SECONDS)
        return True

    def _yield_place(self, entry: Entry) -> bool:
        """Give the place up to one that waits: quiet tenants at once, all when none is quiet."""
        tenant = entry.tenant
        starving = self._budget.longest_wait() > entry.interval
        quiet = tenant.idle_seconds() >= entry.interval
        if not quiet and not starving:
            return False
        if not quiet and not self._crowded:
            self._crowded = True
            _log.warning(
                "more databases are busy than may be attached; they take turns and lag more",
                extra={"op": "attach", "max-attached": self._budget.limit},
            )
        if not tenant.park() and starving:
            tenant.park(force=True)
        return True

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
        if tenant.needs_survey:
            tenant.survey()
            self._upload_succeeded(entry)
            self._syncs.submit(name)  # it waited for this
        for _ in range(_FILES_PER_TURN):
            if not tenant.upload_next():
                break
            self._upload_succeeded(entry)
        if tenant.pending:
            self._uploads.submit(name)  # after the others
            return
        self._record(entry)
        if self._drain is not None:
            self._drain.uploaded(entry)

    def _upload_succeeded(self, entry: Entry) -> None:
        entry.upload_backoff = entry.upload_backoff.succeeded()
        if self._limiter.recovered((entry.tenant.name, UPLOAD)):
            extra = {"db": entry.tenant.name, "op": UPLOAD}
            _log.info("replica accepts files again", extra=extra)

    def _upload_failed(self, name: str, error: Exception) -> None:
        entry = self._entries.get(name)
        if entry is None:
            return
        entry.error = str(error)
        complain(self._limiter, entry.tenant, UPLOAD, error)
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
        if entry is not None:
            chosen = [entry]
        else:
            chosen = [
                other
                for other in self._all_entries()
                if fnmatchcase(other.tenant.name, pattern)
                and other.tenant.status().state == "fenced"
            ]
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
    ) -> list[Unsent]:
        """Sync what is dirty once more, upload until the time is over, close all tenants.

        ``everything`` takes every tenant and tries each once.  Returns what was not uploaded.
        """
        self.stop_watching()
        entries = self._all_entries()
        drain = Drain(self._clock, timeout, retry_interval, once=everything)
        dirty = [entry for entry in entries if everything or self._is_dirty(entry)]
        drain.begin(dirty)
        self._drain = drain
        for entry in dirty:
            entry.next_sync = 0.0
            self._scheduler.cancel((UPLOAD, entry.tenant.name))
            self._syncs.submit(entry.tenant.name)
        drain.wait(interrupted)
        unsent = drain.unsent()
        self._close(entries, hurry=interrupted())
        return unsent

    def stop_watching(self) -> None:
        """End the watcher's thread: from now on nothing wakes by itself."""
        self._stopping.set()
        self.watcher.wake()
        if self._watch_thread is not None:
            self._watch_thread.join()
            self._watch_thread = None
        self.watcher.close()

    def _is_dirty(self, entry: Entry) -> bool:
        tenant = entry.tenant
        try:
            return tenant.attached or tenant.pending or tenant.changed()
        except OSError:
            return True

    def _close(self, entries: list[Entry], *, hurry: bool) -> None:
        self._scheduler.stop()
        self._uploads.close(0.0 if hurry else _JOIN_SECONDS)
        running = set(self._syncs.close(_JOIN_SECONDS))
        self.closed_in_order = not running
        closing = Pool("close", self._syncs.size, self._close_one, self._close_failed)
        closing.start()
        for entry in entries:
            if entry.tenant.name not in running:
                closing.submit(entry.tenant.name)
        closing.finish()

    def _close_one(self, name: str) -> None:
        entry = self._entries[name]
        entry.tenant.close()
        self._record(entry)

    def _close_failed(self, name: str, error: Exception) -> None:
        self.closed_in_order = False
        extra = {"db": name, "op": "close", "error": str(error)}
        _log.error("cannot close database in order", extra=extra)

    # --- reporting --------------------------------------------------------------------------------

    def _record(self, entry: Entry, *, gently: bool = False) -> None:
        """Queue the tenant's row; ``gently``: not more often than once a second."""
        now = self._clock.monotonic()
        if gently and now - entry.recorded_at < _RECORD_SECONDS:
            return
        entry.recorded_at = now
        self._catalog.save_tenant(tenant_row(entry.tenant))
