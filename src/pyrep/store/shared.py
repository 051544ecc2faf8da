"""What the parts of a store share: the tenants, whose turn it is, and where work is handed to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from pyrep.catalog import Catalog
from pyrep.clock import Clock
from pyrep.log import RateLimiter
from pyrep.schedule.budget import AttachBudget, ReadBudget
from pyrep.schedule.pool import Pool
from pyrep.schedule.scheduler import Scheduler
from pyrep.store.drain import Drain
from pyrep.store.entry import Entry, tenant_row
from pyrep.store.maintenance import MAINTAIN, Maintenance
from pyrep.store.report import SYNC
from pyrep.store.waiting import Waiting

__all__ = ["Shared"]

_RECORD_SECONDS = 1.0


class Shared:
    """Hold the tenants of a store and its machinery; every method may be called from any thread.

    ``pools`` and ``upkeep`` are filled before anything starts.  ``drain`` is set once the way
    to the stop has begun.
    """

    def __init__(
        self,
        catalog: Catalog,
        clock: Clock,
        random: Callable[[], float],
        max_attached: int,
        reads: ReadBudget,
    ) -> None:
        self.catalog = catalog
        self.clock = clock
        self.random = random
        self.lock = threading.Lock()
        self.entries: dict[str, Entry] = {}  # guarded by lock for writing
        self.limiter = RateLimiter(now=clock.monotonic)
        self.budget = AttachBudget(max_attached, clock)
        self.reads = reads
        self.scheduler: Scheduler[tuple[str, str]] = Scheduler(self._fire, clock)
        self.pools: dict[str, Pool[str]] = {}
        self.upkeep: Maintenance | None = None
        self.drain: Drain | None = None
        self.waiting = Waiting()

    # --- the tenants ------------------------------------------------------------------------------

    def find(self, name: str) -> Entry | None:
        """Return the entry of a database path, resolved or as configured."""
        entry = self.entries.get(name)
        if entry is not None:
            return entry
        real = os.path.realpath(name)
        entries = self.all_entries()
        return next(
            (e for e in entries if e.tenant.name == real or e.tenant.spec.name == name), None
        )

    def all_entries(self) -> list[Entry]:
        """Return the entries of all tenants."""
        with self.lock:
            return list(self.entries.values())

    def record(self, entry: Entry, *, gently: bool = False) -> None:
        """Queue the tenant's row; ``gently``: not more often than once a second."""
        now = self.clock.monotonic()
        if gently and now - entry.recorded_at < _RECORD_SECONDS:
            return
        entry.recorded_at = now
        row = tenant_row(entry.tenant)
        with self.lock:  # the last word on a tenant that went is that it is absent
            if self.entries.get(entry.tenant.name) is entry:
                self.catalog.save_tenant(row)

    # --- their turns ------------------------------------------------------------------------------

    def submit(self, kind: str, name: str, *, patient: bool = False) -> None:
        """Let a pool work on a tenant as soon as one of its threads is free.

        ``patient``: of those there may be very many at once, and they are not to delay the rest.
        """
        self.pools[kind].submit(name, patient=patient)

    def schedule(self, kind: str, name: str, delay: float = 0.0) -> None:
        """Let a tenant be fired in ``delay`` seconds at the latest."""
        self.scheduler.schedule((kind, name), delay)

    def _fire(self, key: tuple[str, str]) -> None:
        kind, name = key
        if kind == MAINTAIN and self.upkeep is not None:
            self.upkeep.fire(name)
        else:
            self.submit(kind, name)

    def leave(self, name: str) -> None:
        """Give a tenant's place back, and let the next one have it."""
        self._admit(self.budget.leave(name))

    def admit_next(self) -> None:
        """Let the first that waits for a place try, if one is free."""
        self._admit(self.budget.next_waiting())

    def admit_readers(self) -> None:
        """Let those be synced whose turn it is to have their whole database read."""
        for name in self.reads.following():
            self.schedule(SYNC, name)

    def _admit(self, name: str | None) -> None:
        if name is not None:
            self.schedule(SYNC, name)
