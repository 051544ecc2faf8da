"""Make the levels, have snapshots taken, delete what retention lets go.

A tenant is due only when something of it was stored: its next level at the next boundary of that
level's interval, a snapshot likewise, retention when the youngest file in question is old enough.
What is on a replica is read from the catalog.  Nothing is ever looked for in all tenants.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pyrep.catalog import Catalog, LevelRow, storable_text
from pyrep.clock import Clock, to_ms
from pyrep.config.expand import describe_replica
from pyrep.errors import LTXCorruptError, LTXError, PyrepError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.log import RateLimiter
from pyrep.ltxfile import FileInfo
from pyrep.retention import Decision, Policy, clock_is_plausible, confirmed, decide
from pyrep.schedule.backoff import Backoff
from pyrep.schedule.pool import Pool
from pyrep.store.entry import CALM, ManagedTenant
from pyrep.store.report import RETENTION, complain

__all__ = ["MAINTAIN", "Host", "Maintenance", "Schedule", "forget_other_replica"]

MAINTAIN = "maintenance"
_THREADS = 2
_RETENTION = 0  # the task beside those named by the level they make
_DAY_SECONDS = 86400.0
_DELETE_BATCH = 1000
_SPREAD = 0.1  # of an interval: so far apart lie tenants that were all due long ago
_LONGEST_SPREAD_SECONDS = 600.0
_CLOCK_RETRY_SECONDS = 3600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Say what is done when; ``levels`` are intervals by level, all times are seconds.

    Without ``delete`` nothing is deleted from replicas.
    """

    levels: Mapping[int, float]
    l0_retention: float
    l0_check: float
    delete: bool = True


class Host(Protocol):
    """Be the store, as maintenance needs it."""

    def lookup(self, name: str) -> ManagedTenant | None:
        """Return a tenant, or None."""

    def schedule(self, kind: str, name: str, delay: float) -> None:
        """Let a tenant be fired in ``delay`` seconds at the latest."""

    def take_snapshot(self, name: str) -> None:
        """Let the sync pool stage a snapshot of a tenant."""

    def relist(self, name: str) -> None:
        """Let the upload pool list a tenant's replica, and wake it if that shows damage."""


_UNDAMAGED: frozenset[str] = frozenset()  # one for all: it takes 216 bytes


@dataclass(slots=True)
class _Upkeep:
    """Hold what is due for one tenant, by task, in monotonic seconds."""

    due: dict[int, float] = field(default_factory=dict)
    backoff: Backoff = CALM
    last_pass: float = float("-inf")  # that listed the replica
    suspects: dict[int, str] | None = None  # damaged when read last, by level
    damaged: frozenset[str] = _UNDAMAGED


class Maintenance:
    """Run compaction and retention of all tenants on two threads; safe for use by several."""

    def __init__(
        self,
        schedule: Schedule,
        catalog: Catalog,
        clock: Clock,
        host: Host,
        limiter: RateLimiter,
        random: Callable[[], float],
    ) -> None:
        self._schedule = schedule
        self._catalog = catalog
        self._clock = clock
        self._host = host
        self._limiter = limiter
        self._random = random
        self._began_ms = to_ms(clock.now())
        self._began = clock.monotonic()
        self._lock = threading.Lock()
        self._upkeeps: dict[str, _Upkeep] = {}  # guarded by _lock
        self._backlog = {n: rows for n, rows in catalog.levels() if self._has_backlog(rows)}
        self._stopping = False
        self._pool: Pool[str] = Pool("maintenance", _THREADS, self._work, self._failed)

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads."""
        self._pool.start()

    def stop(self) -> None:
        """Begin nothing new; what runs goes on."""
        self._stopping = True

    def close(self, timeout: float) -> None:
        """Join the threads; what still runs then is abandoned: it leaves nothing half done."""
        self.stop()
        self._pool.close(timeout)

    def fire(self, name: str) -> None:
        """Let a tenant have its turn."""
        if not self._stopping:
            self._pool.submit(name)

    # --- what makes a tenant due ------------------------------------------------------------------

    def registered(self, tenant: ManagedTenant, *, moved: bool) -> None:
        """Take a tenant in: what a run before left to do is due.

        ``moved``: its replica is another one than before, so what is known of it does not count.
        """
        rows = self._backlog.pop(tenant.name, None)
        if rows is None or moved:
            return
        phase = _phase(tenant)
        for task, since_ms in self._left_to_do(rows).items():
            interval = self._interval(tenant, task)
            self._want(tenant.name, task, self._delay(interval, phase, since_ms))

    def unregistered(self, name: str) -> None:
        """Forget a tenant."""
        with self._lock:
            self._upkeeps.pop(name, None)

    def acknowledged(self, tenant: ManagedTenant, info: FileInfo) -> None:
        """Note a file that was stored: what rests on it becomes due."""
        wanted = {info.level + 1: 0.0} if info.level + 1 in self._schedule.levels else {}
        if info.level == 0:
            wanted[SNAPSHOT_LEVEL] = 0.0
        elif info.level == 1 and self._schedule.l0_retention > 0:
            wanted[_RETENTION] = self._schedule.l0_retention
        elif info.level == SNAPSHOT_LEVEL:
            wanted[_RETENTION] = _seconds_kept(tenant)
        for task, delay in wanted.items():
            if task == _RETENTION and not self._schedule.delete:
                continue
            if not self._is_wanted(tenant.name, task, delay):
                self._want(tenant.name, task, delay or self._next(tenant, task))

    def retry_snapshot(self, tenant: ManagedTenant) -> None:
        """Note that a snapshot could not be staged."""
        self._want(tenant.name, SNAPSHOT_LEVEL, _spread(self._interval(tenant, SNAPSHOT_LEVEL)))

    def _has_backlog(self, rows: Mapping[int, LevelRow]) -> bool:
        return bool(self._left_to_do(rows))

    def _left_to_do(self, rows: Mapping[int, LevelRow]) -> dict[int, int]:
        """Return the tasks that a replica's levels call for, with the time of the last one."""
        first_ms = min((row.first_acked_ms for row in rows.values()), default=0)
        found = {}
        for task in (*self._schedule.levels, SNAPSHOT_LEVEL):
            below = range(SNAPSHOT_LEVEL) if task == SNAPSHOT_LEVEL else (task - 1,)
            top = max((rows[level].top for level in below if level in rows), default=0)
            there = rows.get(task)
            if top > (there.top if there else 0):
                found[task] = there.last_acked_ms if there else first_ms
        several = [level for level, row in rows.items() if row.count > 1]
        if several and self._schedule.delete:
            found[_RETENTION] = to_ms(self._clock.now())
        return found

    def _interval(self, tenant: ManagedTenant, task: int) -> float:
        if task == _RETENTION:
            return self._schedule.l0_check
        if task == SNAPSHOT_LEVEL:
            return tenant.spec.settings.snapshot.interval.total_seconds()
        return self._schedule.levels[task]

    def _next(self, tenant: ManagedTenant, task: int) -> float:
        now_ms = to_ms(self._clock.now())
        return self._delay(self._interval(tenant, task), _phase(tenant), now_ms)

    def _delay(self, interval: float, phase: float, since_ms: int) -> float:
        """Return the seconds to the first boundary after ``since_ms``, soon if that is over.

        Boundaries lie on the wall clock, so that restarts do not move them; each tenant has its
        own.
        """
        now = to_ms(self._clock.now()) / 1000.0
        since = min(since_ms / 1000.0, now)
        left = since + interval - (since - phase * interval) % interval - now
        return left if left > 0 else phase * _spread(interval)

    def _is_wanted(self, name: str, task: int, delay: float) -> bool:
        """Return whether a task is due as early already; without ``delay`` any time counts."""
        upkeep = self._upkeeps.get(name)
        at = upkeep.due.get(task) if upkeep is not None else None
        return at is not None and (not delay or at <= self._clock.monotonic() + delay)

    def _want(self, name: str, task: int, delay: float) -> None:
        due = self._clock.monotonic() + delay
        with self._lock:
            upkeep = self._upkeeps.setdefault(name, _Upkeep())
            upkeep.due[task] = min(due, upkeep.due.get(task, due))
        self._host.schedule(MAINTAIN, name, delay)

    # --- the pool ---------------------------------------------------------------------------------

    def _work(self, name: str) -> None:
        tenant, upkeep = self._host.lookup(name), self._upkeeps.get(name)
        if tenant is None or upkeep is None or self._stopping:
            return
        tasks = self._take_due(upkeep)
        if tenant.status().state == "fenced":
            return
        files = self._files(name) if tasks else []
        if self._host.lookup(name) is not tenant:
            return  # these may be the files of the one that took its place
        failure: Exception | None = None
        for task in tasks:
            try:
                self._run(tenant, upkeep, task, files)
            except Exception as error:
                failure = failure or error
                self._put_back(upkeep, task)
        if failure is not None:
            raise failure
        if tasks:
            upkeep.backoff = upkeep.backoff.succeeded()
        if files and self._limiter.recovered((name, MAINTAIN)):
            _log.info("maintenance goes on", extra={"db": name, "op": MAINTAIN})
        self._sleep(name, upkeep)

    def _take_due(self, upkeep: _Upkeep) -> list[int]:
        """Take what is due now: levels from the lowest, snapshots, retention last."""
        now = self._clock.monotonic()
        with self._lock:
            tasks = [task for task, at in upkeep.due.items() if at <= now]
            for task in tasks:
                del upkeep.due[task]
        return sorted(tasks, key=lambda task: task or SNAPSHOT_LEVEL + 1)

    def _put_back(self, upkeep: _Upkeep, task: int) -> None:
        """Leave a task that failed to be done; the others go on."""
        with self._lock:
            upkeep.due[task] = self._clock.monotonic()

    def _sleep(self, name: str, upkeep: _Upkeep, at_least: float = 0.0) -> None:
        """Be fired again when the next task is due; what has none is forgotten."""
        with self._lock:
            due = min(upkeep.due.values(), default=None)
            if due is None and upkeep.last_pass == float("-inf") and not upkeep.damaged:
                self._upkeeps.pop(name, None)
        if due is not None:
            delay = max(due - self._clock.monotonic(), at_least)
            self._host.schedule(MAINTAIN, name, delay)

    def _files(self, name: str) -> list[FileInfo]:
        self._catalog.flush()
        return [stored.info for stored in self._catalog.files(name)]

    def _run(
        self, tenant: ManagedTenant, upkeep: _Upkeep, task: int, files: list[FileInfo]
    ) -> None:
        if task == _RETENTION:
            self._retain(tenant, upkeep, files)
        elif task != SNAPSHOT_LEVEL:
            self._compact(tenant, upkeep, task, files)
        elif _top(files, snapshots=True) < _top(files, snapshots=False):
            self._host.take_snapshot(tenant.name)

    def _compact(
        self, tenant: ManagedTenant, upkeep: _Upkeep, level: int, files: list[FileInfo]
    ) -> None:
        usable = [info for info in files if _place(info.level, info.name) not in upkeep.damaged]
        try:
            made = tenant.compact(level, usable)
        except LTXCorruptError as error:
            self._suspect(tenant, upkeep, level - 1, error.path)
            raise
        if upkeep.suspects:
            upkeep.suspects.pop(level - 1, None)
        if made is None:
            return
        files.append(made)
        if any(i.level == level - 1 and i.max_txid > made.max_txid for i in usable):
            self._want(tenant.name, level, 0.0)  # there was too much for one file

    def _failed(self, name: str, error: Exception) -> None:
        tenant, upkeep = self._host.lookup(name), self._upkeeps.get(name)
        if tenant is None or upkeep is None or self._stopping:
            return
        complain(self._limiter, tenant, MAINTAIN, error)
        upkeep.backoff = upkeep.backoff.failed()
        if isinstance(error, LTXError) and not isinstance(error, LTXCorruptError):
            self._host.relist(name)
        delay = upkeep.backoff.delay(self._random)
        with self._lock:
            now = self._clock.monotonic()
            upkeep.due = {task: max(at, now + delay) for task, at in upkeep.due.items()}
        self._sleep(name, upkeep, delay)

    def _suspect(self, tenant: ManagedTenant, upkeep: _Upkeep, level: int, name: str) -> None:
        """Note a damaged input; one that is damaged twice is passed over, and its chain healed."""
        suspects = upkeep.suspects = upkeep.suspects or {}
        if suspects.get(level) != name:
            suspects[level] = name
            return
        place = _place(level, name)
        upkeep.damaged |= {place}
        tenant.heal(f"{place} of the replica is damaged")
        self._host.relist(tenant.name)

    # --- retention --------------------------------------------------------------------------------

    def decide(self, tenant: ManagedTenant) -> Decision:
        """Return what may be deleted now, deleting nothing."""
        return self._decide(tenant, self._files(tenant.name))

    def _decide(self, tenant: ManagedTenant, files: Sequence[FileInfo]) -> Decision:
        now_ms = to_ms(self._clock.now())
        elapsed_ms = int((self._clock.monotonic() - self._began) * 1000)
        if not clock_is_plausible(now_ms, self._began_ms, elapsed_ms):
            return Decision(refused="the clock was set while pyrep was running")
        kept_ms = int(_seconds_kept(tenant) * 1000)
        return decide(files, now_ms, Policy(kept_ms, int(self._schedule.l0_retention * 1000)))

    def _retain(self, tenant: ManagedTenant, upkeep: _Upkeep, files: list[FileInfo]) -> None:
        """Delete what may go, and be due again when more may."""
        decision = self._decide(tenant, files)
        if decision.refused:
            if self._limiter.failed((tenant.name, RETENTION)):
                extra = {"db": tenant.name, "cause": decision.refused}
                _log.warning("nothing is deleted from the replica", extra=extra)
            self._want(tenant.name, _RETENTION, _CLOCK_RETRY_SECONDS)
            return
        self._limiter.recovered((tenant.name, RETENTION))
        self._delete(tenant, decision.merged)
        if decision.superseded:
            self._supersede(tenant, upkeep, files, decision)
        if decision.next_ms is not None:
            left = (decision.next_ms - to_ms(self._clock.now())) / 1000.0
            self._want(tenant.name, _RETENTION, max(left, self._schedule.l0_check))

    def _supersede(
        self,
        tenant: ManagedTenant,
        upkeep: _Upkeep,
        files: Sequence[FileInfo],
        decision: Decision,
    ) -> None:
        """Delete what the floor makes needless, once a listing shows all that is to stay."""
        now = self._clock.monotonic()
        next_pass = upkeep.last_pass + min(_DAY_SECONDS, _seconds_kept(tenant))
        if now < next_pass:
            self._want(tenant.name, _RETENTION, next_pass - now)
            return
        upkeep.last_pass = now
        listing = tenant.listing()
        if confirmed(decision, files, listing):
            self._delete(tenant, decision.superseded)
            return
        _log.warning(
            "the replica is not as it was left; nothing is deleted and it is looked at again",
            extra={"db": tenant.name, "replica": tenant.status().replica},
        )
        self._catalog.replace_files(tenant.name, listing)
        self._host.relist(tenant.name)

    def _delete(self, tenant: ManagedTenant, files: Sequence[FileInfo]) -> None:
        """Forget files, then delete them: a kill between the two leaves no file in the way.

        What the storage refused is known again, so that it is tried again.
        """
        for at in range(0, len(files), _DELETE_BATCH):
            batch = files[at : at + _DELETE_BATCH]
            self._catalog.remove_files(tenant.name, batch)
            try:
                tenant.delete(batch)
            except PyrepError:
                for info in batch:
                    self._catalog.add_file(tenant.name, info)
                raise
        if files:
            _log.debug("deleted from the replica", extra={"db": tenant.name, "count": len(files)})


def forget_other_replica(catalog: Catalog, tenant: ManagedTenant) -> bool:
    """Forget the files of the replica that a tenant had before; return whether it had another."""
    row = catalog.tenant(tenant.name)
    here = (tenant.status().replica, describe_replica(tenant.spec.replica))
    if row is None or row.replica in map(storable_text, here):
        return False
    catalog.replace_files(tenant.name, ())
    return True


def _phase(tenant: ManagedTenant) -> float:
    """Return a tenant's place between two boundaries, from 0 to 1: its lineage is random."""
    return tenant.status().node_id % 65521 / 65521


def _place(level: int, name: str) -> str:
    return f"{name} at level {level}"


def _spread(interval: float) -> float:
    return min(interval * _SPREAD, _LONGEST_SPREAD_SECONDS)


def _seconds_kept(tenant: ManagedTenant) -> float:
    return tenant.spec.settings.snapshot.retention.total_seconds()


def _top(files: Sequence[FileInfo], *, snapshots: bool) -> TXID:
    chosen = [i.max_txid for i in files if (i.level == SNAPSHOT_LEVEL) == snapshots]
    return max(chosen, default=TXID(0))
