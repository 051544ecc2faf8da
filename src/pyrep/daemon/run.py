"""Run the daemon: start in order, serve until a signal or the child ends, stop cleanly."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyrep.catalog import Catalog
from pyrep.clock import Clock, SystemClock
from pyrep.config.expand import TenantSpec, tenant_for
from pyrep.config.model import Config, DatabaseConfig
from pyrep.daemon.child import Child
from pyrep.daemon.events import Event, Events
from pyrep.daemon.folder import StateFolder
from pyrep.daemon.intake import Intake
from pyrep.daemon.lookout import Lookout
from pyrep.daemon.reload import Load, reread
from pyrep.daemon.requests import serve
from pyrep.errors import PyrepError, ShutdownInterruptedError, TXNotAvailableError
from pyrep.memory import give_back
from pyrep.restore.execute import RestoreOptions, RestoreResult, restore
from pyrep.restore.state import write_tenant_state
from pyrep.schedule.budget import ReadBudget
from pyrep.storage.base import ReplicaClient
from pyrep.storage.observe import Usage
from pyrep.storage.registry import connect
from pyrep.store import ManagedTenant, Schedule, Store, Unsent
from pyrep.tenant.position import boot_id
from pyrep.tenant.spool import Spool
from pyrep.tenant.tenant import Tenant
from pyrep.watch.base import Watcher
from pyrep.watch.inotify import best_watcher

__all__ = ["run"]

_RESERVED_DESCRIPTORS = 256
_MOST_READERS = 4  # of whole databases: half of the threads that sync
_DESCRIPTORS_PER_TENANT = 8
_NAMED = 20
_NAMED_BROKEN = 5
_BROKEN = ("error", "fenced")
_SETTLE_SECONDS = 2.0  # a database made a moment before the stop is taken along
_SETTLE_ONCE_SECONDS = 40.0
_SETTLE_PAUSE_SECONDS = 0.02
_WAITS = "it waits for what was stored under another name or with other settings"
_log = logging.getLogger(__name__)

Attend = Callable[[Store, Lookout], None]


def run(
    config: Config,
    *,
    once: bool = False,
    exec_command: str | None = None,
    restore_missing: bool = False,
    events: Events | None = None,
    clock: Clock | None = None,
    attend: Attend | None = None,
    load: Load | None = None,
) -> None:
    """Replicate what a configuration says until SIGINT, SIGTERM or the end of the command.

    ``once``: sync and upload each database once, then return.  ``exec_command`` overrides the
    configured one.  ``restore_missing`` restores databases named by ``path`` that are missing,
    before anything else.  ``events`` stand in for signals.  ``attend`` is called once all is
    watched.  ``load`` reads the configuration again when SIGHUP comes.

    :raises StateLockedError: another daemon runs this configuration
    :raises ConfigError: there is nothing to do
    :raises ShutdownInterruptedError: not everything was uploaded; the text names what
    :raises PyrepError: ``once`` and a database failed, or the command failed
    """
    clock = clock or SystemClock()
    for warning in config.warnings:
        _log.warning(warning)
    with ExitStack() as stack:
        if events is None:
            events = Events()
            stack.callback(events.close)
        stack.enter_context(events.signals())
        folder = StateFolder(config, clock)
        stack.callback(folder.release)
        folder.acquire()
        catalog = Catalog(folder.catalog_path, clock=clock)
        stack.callback(catalog.close)
        daemon = _Daemon(config, catalog, events, clock, attend, load)
        daemon.run(once, exec_command, restore_missing)


class _Daemon:
    """Hold what a running daemon is made of."""

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        events: Events,
        clock: Clock,
        attend: Attend | None,
        load: Load | None,
    ) -> None:
        self._attend = attend
        self._load = load
        self._config = config
        self._catalog = catalog
        self._events = events
        self._clock = clock
        self._cut = threading.Event()  # ends the waits between attempts of the clients
        self._reads = ReadBudget(min(_MOST_READERS, os.cpu_count() or 1))
        self._trusted: frozenset[str] = frozenset()
        self._known: dict[str, int] = {}
        self._taken: set[int] = set()

    def run(self, once: bool, exec_command: str | None, restore_missing: bool) -> None:
        """Do everything between the lock and its release."""
        catalog = self._catalog
        self._restore(restore_missing)
        catalog.mark_running(boot_id())
        self._trusted = catalog.trusted_boots()
        self._known = catalog.node_ids()
        catalog.mark_absent()
        catalog.forget_requests("the daemon ended before it answered")
        catalog.start()
        store = Store(
            catalog,
            self._clock,
            max_attached=self._config.max_attached or _attach_budget(),
            watcher_for=None if once else self._watcher,
            schedule=None if once else _schedule(self._config),
            leave_timeout=self._config.shutdown_sync_timeout.total_seconds(),
            reads=self._reads,
        )
        if not self._config.retention.enabled:
            _log.warning("retention is disabled: nothing is deleted from replicas")
        with self._clients(store, keep_staged=bool(self._config.levels) and not once) as intake:
            lookout = Lookout(self._config, store, intake, self._clock)
            self._scan(lookout)
            store.on_event, store.on_tick = lookout.notice, lookout.tick
            unsent: list[Unsent] = []
            child: Child | None = None
            store.start(watch=not once)
            try:
                if not once:
                    child = self._child(exec_command)
                    if self._attend is not None:
                        self._attend(store, lookout)
                    self._serve(store, lookout, child)
            finally:
                if child is not None:
                    child.kill()
                unsent = self._stop(store, intake, once)
                _warn_of_broken(store, {each.name for each in unsent})
        self._end(child, intake, unsent, once)

    def _watcher(self, changed: Callable[[Path], bool]) -> Watcher:
        return best_watcher(_watch_interval(self._config), changed, self._clock)

    @contextmanager
    def _clients(self, store: Store, *, keep_staged: bool) -> Iterator[Intake]:
        """Yield the intake; every client that it makes is closed at the end.

        ``keep_staged``: compaction will want what was uploaded.
        """
        spool = Spool(self._config.spool_limit_total)
        clients: dict[str, ReplicaClient] = {}
        usage = Usage()

        def make(spec: TenantSpec) -> Tenant:
            path = str(spec.db_path)
            row = None if path in self._known else self._catalog.tenant(path)
            client = connect(spec.replica, clock=self._clock, stop=self._cut, observe=usage.add)
            clients[path] = client
            return Tenant(
                spec,
                client,
                known_node_id=row.node_id if row else self._known.get(path, 0),
                trusted_boots=self._trusted,
                clock=self._clock,
                spool=spool,
                reads=self._reads,
                keep_staged=keep_staged,
                on_acknowledged=store.acknowledged,
                on_listed=store.listed,
            )

        def drop(tenant: ManagedTenant) -> None:
            clients.pop(tenant.name).close()

        try:
            yield Intake(
                self._config,
                store,
                self._catalog,
                self._clock,
                known=self._known,
                make=make,
                drop=drop,
            )
        finally:
            for client in clients.values():
                client.close()
            usage.log()

    # --- before -----------------------------------------------------------------------------------

    def _restore(self, every: bool) -> None:
        for entry in self._config.dbs:
            if entry.path is not None and (every or entry.restore_if_db_not_exists):
                self._restore_one(entry)

    def _restore_one(self, entry: DatabaseConfig) -> None:
        """Restore one database if it is missing; having no backup is no error, all else is."""
        spec = tenant_for(entry, entry.path or "")
        extra = {"db": str(spec.db_path)}
        if spec.db_path.exists():
            _log.info("database exists, not restored", extra=extra)
            return
        try:
            result = self._run_restore(spec)
        except TXNotAvailableError:
            _log.info("no backup found, starting fresh", extra=extra)
            return
        try:
            write_tenant_state(spec, result)
        except OSError as error:  # the survey finds out by itself where the replica ends
            _log.warning("cannot write the state of a restored database", exc_info=error)
        _log.info("database restored", extra={**extra, "txid": result.txid})

    def _run_restore(self, spec: TenantSpec) -> RestoreResult:
        """Restore on another thread, so that a signal ends it."""
        client = connect(spec.replica, clock=self._clock, stop=self._cut)
        options = RestoreOptions(cancel=self._cut, clock=self._clock)
        try:
            with ThreadPoolExecutor(1, "pyrep-restore") as pool:
                future = pool.submit(restore, client, spec.db_path, options)
                future.add_done_callback(lambda done: self._events.put(Event.RESTORED))
                while not future.done():
                    event = self._events.get()
                    if event is not None and event[0] is Event.STOP:
                        self._cut.set()
                return future.result()
        finally:
            client.close()

    def _scan(self, lookout: Lookout) -> None:
        try:
            lookout.scan()
        except PyrepError:
            self._catalog.mark_clean_stop()  # nothing was opened
            raise
        self._known.clear()  # of a database that comes later the catalog is asked
        give_back()

    def _child(self, exec_command: str | None) -> Child | None:
        command = self._config.exec if exec_command is None else exec_command
        return Child(command, self._events) if command else None

    # --- meanwhile --------------------------------------------------------------------------------

    def _serve(self, store: Store, lookout: Lookout, child: Child | None) -> None:
        """Act on events until it is time to stop."""
        while True:
            event = self._events.get()
            if event is None:
                continue
            kind, number = event
            if kind is Event.REQUEST:
                self._answer_requests(store)
            elif kind is Event.RELOAD:
                self._reload(lookout)
            elif kind is Event.CHILD_ENDED:
                _log.info("exec process ended", extra={"op": "exec"})
                return
            elif kind is Event.STOP:
                _log.info("signal received, shutting down", extra={"signal": number})
                self._end_child(child, number or signal.SIGTERM)
                return

    def _reload(self, lookout: Lookout) -> None:
        config = reread(self._config, self._load)
        if config is not None:
            self._config = config
            lookout.reconfigure(config)

    def _answer_requests(self, store: Store) -> None:
        try:
            serve(self._catalog, store, self._taken)
        except PyrepError as error:
            _log.error("cannot read requests", extra={"op": "request", "error": str(error)})

    def _end_child(self, child: Child | None, number: int) -> None:
        """Forward the signal and wait for the command; a second signal ends it by force."""
        if child is None:
            return
        child.forward(number)
        while child.running:
            event = self._events.get()
            if event is not None and event[0] is Event.STOP:
                child.kill()

    # --- after ------------------------------------------------------------------------------------

    def _stop(self, store: Store, intake: Intake, once: bool) -> list[Unsent]:
        """Drain and close; a further signal cuts the drain."""

        def interrupted() -> bool:
            if self._events.stops > (0 if once else 1):
                self._cut.set()
            return self._cut.is_set()

        patience = _SETTLE_ONCE_SECONDS if once else _SETTLE_SECONDS
        settled_at = self._clock.monotonic() + patience
        while intake.postponed and not interrupted() and self._clock.monotonic() < settled_at:
            self._clock.wait(self._cut, _SETTLE_PAUSE_SECONDS)  # the watcher takes it in
        unsent = store.drain(
            self._config.shutdown_sync_timeout.total_seconds(),
            self._config.shutdown_sync_interval.total_seconds(),
            everything=once,
            interrupted=interrupted,
            latecomers=lambda: intake.take_late() and self._clock.monotonic() < settled_at,
        )
        self._cut.set()
        try:
            self._catalog.forget_requests("the daemon ended before it answered")
            if store.closed_in_order:
                self._catalog.mark_clean_stop()
        except PyrepError as error:  # without the mark the next boot compares pages
            _log.error("cannot write the catalog", extra={"op": "stop", "error": str(error)})
        return unsent

    def _end(self, child: Child | None, intake: Intake, unsent: list[Unsent], once: bool) -> None:
        """Say how it ended."""
        failures = [f"{each.name} ({each.reason})" for each in unsent]
        failures += [f"{p} (not looked at yet: {why})" for p, why in sorted(intake.unready.items())]
        failures += [f"{path} (not looked at yet: {_WAITS})" for path in sorted(intake.postponed)]
        if once:
            failures += [f"{path} ({reason})" for path, reason in sorted(intake.problems.items())]
        text = _listed(failures)
        if failures and once and not self._events.stops:
            raise PyrepError(f"not replicated: {text}")
        if failures:
            raise ShutdownInterruptedError(
                f"shutdown ended before everything was uploaded: {text}",
                hint="Nothing is lost: what is staged is uploaded at the next start.",
            )
        if child is not None:
            child.check()
        _log.info("pyrep shut down")


def _listed(texts: list[str], most: int = _NAMED) -> str:
    more = len(texts) - most
    return "; ".join(texts[:most]) + (f"; and {more} more" if more > 0 else "")


def _warn_of_broken(store: Store, unsent: set[str]) -> None:
    """Name the databases left in error beside the unsent; they do not change the exit code."""
    named = [tenant for tenant in store.tenants() if tenant.name not in unsent]
    states = [(tenant.name, tenant.status().state) for tenant in named]
    broken = [f"{name} ({state})" for name, state in sorted(states) if state in _BROKEN]
    if broken:
        extra = {"op": "stop", "count": len(broken), "databases": _listed(broken, _NAMED_BROKEN)}
        _log.warning("databases are left in error", extra=extra)


def _attach_budget() -> int:
    """Raise the limit of descriptors as far as allowed; return how many tenants fit in it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, (hard - _RESERVED_DESCRIPTORS) // _DESCRIPTORS_PER_TENANT)


def _schedule(config: Config) -> Schedule:
    """Return what is to be made and deleted when."""
    return Schedule(
        levels={level.level: level.interval.total_seconds() for level in config.levels},
        l0_retention=config.l0_retention.total_seconds(),
        l0_check=config.l0_retention_check_interval.total_seconds(),
        delete=config.retention.enabled,
    )


def _watch_interval(config: Config) -> float:
    """Return the shortest monitor interval in seconds; where there is none, reconciling does it."""
    intervals = [entry.monitor_interval.total_seconds() for entry in config.dbs]
    default = config.reconcile_interval.total_seconds()
    return min((seconds for seconds in intervals if seconds > 0), default=default)
