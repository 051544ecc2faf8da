"""When an attached tenant is parked."""

from __future__ import annotations

import logging

from pyrep.clock import Clock
from pyrep.schedule.budget import AttachBudget
from pyrep.store.entry import Entry

__all__ = ["Parking"]

_SEAL_PATIENCE_SECONDS = 10.0  # what cannot be sealed for so long parks without a fingerprint
_log = logging.getLogger(__name__)


class Parking:
    """Decide for each tenant after its sync; only the sync pool calls it."""

    def __init__(self, budget: AttachBudget, clock: Clock) -> None:
        self._budget = budget
        self._clock = clock
        self._crowded = False

    def try_park(self, entry: Entry, *, draining: bool) -> bool:
        """Park if somebody asked, the place is needed or nothing happens; True: it is wanted."""
        tenant = entry.tenant
        now = self._clock.monotonic()
        if entry.park is not None:
            tenant.park(force=now >= entry.park.force_at)
            return True
        if draining:
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
