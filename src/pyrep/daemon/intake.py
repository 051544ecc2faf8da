"""From a configuration to running tenants: scan, probe, claim, register; look again later."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from pyrep.catalog import Catalog, TenantRow
from pyrep.clock import Clock
from pyrep.config.claims import Claims
from pyrep.config.expand import Problem, TenantSpec, describe_replica, expand
from pyrep.config.model import Config
from pyrep.errors import ConfigError, PyrepError
from pyrep.log import OncePer
from pyrep.storage.registry import parse_url
from pyrep.store import ManagedTenant, Store
from pyrep.units import format_duration
from pyrep.watch.discover import Discovery, Finding, Kind

__all__ = ["Intake"]

_LOOK_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Intake:
    """Turn what a configuration stands for into registered tenants.

    ``scan`` is called once at the start, then ``tick`` by the watcher's thread: it takes in what
    was not ready, and looks for directories that were missing.  ``problems`` and ``unready`` say
    by path why something configured is not replicated, and what is just being made.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        catalog: Catalog,
        clock: Clock,
        *,
        known: Mapping[str, int],
        make: Callable[[TenantSpec], ManagedTenant],
    ) -> None:
        self._config = config
        self._store = store
        self._catalog = catalog
        self._clock = clock
        self._known = known
        self._make = make
        self._claims = Claims()
        self._discovery: Discovery[TenantSpec] = Discovery(clock)
        self._once = OncePer()
        self._missing = False
        self._look_at = self._reconcile_at = 0.0
        self.problems: dict[str, str] = {}
        self.unready: dict[str, str] = {}

    def scan(self) -> None:
        """Look at everything that is configured.

        :raises ConfigError: there is nothing to replicate and nothing that could appear
        """
        if not self._config.dbs:
            _log.error("no databases specified in configuration")
        findings = self._look_around()
        self._log_counts(findings)
        for finding in findings:
            self._handle(finding)
        now = self._clock.monotonic()
        self._look_at = now + _LOOK_SECONDS
        self._reconcile_at = now + self._config.reconcile_interval.total_seconds()
        watched = any(entry.dir is not None and entry.watch for entry in self._config.dbs)
        nothing = not self._store.tenants() and not self._discovery.pending
        if self._config.dbs and nothing and not watched:
            raise ConfigError(
                "the configuration yields no database, and no directory is watched",
                hint="The lines above say what is wrong with each entry.",
            )

    def tick(self) -> float | None:
        """Look again at what was not ready; return the seconds until the next look is due."""
        now = self._clock.monotonic()
        if self._discovery.pending and now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            for finding in self._discovery.look_again():
                self._handle(finding)
        if self._missing and now >= self._reconcile_at:
            self._reconcile_at = now + self._config.reconcile_interval.total_seconds()
            for finding in self._look_around():
                self._handle(finding)
        return _LOOK_SECONDS if self._discovery.pending or self._missing else None

    def take_late(self) -> bool:
        """Take in databases that were just being made; return whether some still are."""
        if self._discovery.waiting:
            for finding in self._discovery.look_again():
                self._handle(finding)
        return self._discovery.waiting > 0

    def _look_around(self) -> list[Finding[TenantSpec]]:
        """Expand the configuration; return what a look at each new candidate found."""
        found = expand(self._config)
        self._missing = any(not e.dir.is_dir() for e in self._config.dbs if e.dir is not None)
        for problem in found.problems:
            self._report(problem)
        for link in found.links:
            if self._once.first(link, "link"):
                _log.info("link to a file is not followed", extra={"path": str(link)})
        return [
            self._look_at_first(spec)
            for spec in found.tenants
            if self._claims.owner(spec.db_path) != spec and not self._discovery.knows(spec.db_path)
        ]

    def _log_counts(self, findings: list[Finding[TenantSpec]]) -> None:
        good: Counter[int] = Counter()
        other: Counter[int] = Counter()
        for finding in findings:
            ours = finding.kind in (Kind.READY, Kind.WAITING)
            (good if ours else other)[finding.candidate.index] += 1
        for entry in self._config.dbs:
            if entry.dir is not None and entry.dir.is_dir():
                extra = {"dir": str(entry.dir), "count": good[entry.index]}
                if other[entry.index]:
                    extra["left-out"] = other[entry.index]
                _log.info("found databases in directory", extra=extra)

    def _look_at_first(self, spec: TenantSpec) -> Finding[TenantSpec]:
        """Probe a candidate, unless it is one that the catalog knows: that costs one stat."""
        if self._known.get(str(spec.db_path)):
            try:
                status = os.stat(spec.db_path, follow_symlinks=False)
            except OSError:
                return self._discovery.offer(spec)
            return Finding(spec, Kind.READY, inode=(status.st_dev, status.st_ino))
        return self._discovery.offer(spec)

    def _handle(self, finding: Finding[TenantSpec]) -> None:
        spec = finding.candidate
        self.unready.pop(str(spec.db_path), None)
        if finding.kind is Kind.READY:
            self._discovery.forget(spec.db_path)
            self._accept(spec, finding.inode)
            return
        explicit = spec.relpath is None
        broken = finding.kind is Kind.UNREADABLE or (explicit and finding.kind is Kind.REJECTED)
        if broken or finding.kind is not Kind.REJECTED:
            self._save(spec, "error" if broken else "waiting", finding.reason)
        if broken or finding.kind is Kind.MISSING:
            self.problems[str(spec.db_path)] = finding.reason
        elif finding.kind is Kind.WAITING:
            self.problems.pop(str(spec.db_path), None)
            self.unready[str(spec.db_path)] = finding.reason
        if not self._once.first(spec.db_path, (finding.kind, finding.reason)):
            return
        missing = finding.kind is Kind.MISSING
        extra = {"db": str(spec.db_path), "cause" if missing else "error": finding.reason}
        if finding.hint:
            extra["hint"] = finding.hint
        if broken:
            _log.error("database cannot be replicated yet", extra=extra)
        elif finding.kind is Kind.REJECTED:
            _log.warning("file is no database and left out", extra=extra)
        else:
            level = logging.INFO if missing else logging.DEBUG
            _log.log(level, "waiting for database", extra=extra)

    def _accept(self, spec: TenantSpec, inode: tuple[int, int] | None) -> None:
        """Claim what the tenant owns and register it, or say why not."""
        try:
            self._claims.add(spec, inode)
        except ConfigError as error:
            self._report(Problem(spec.db_path, spec.index, error))
            return
        try:
            self._store.register(self._make(spec))
        except PyrepError as error:
            self._claims.discard(spec)
            wrapped = ConfigError(str(error), hint=error.hint)
            self._report(Problem(spec.db_path, spec.index, wrapped))
            return
        self.problems.pop(str(spec.db_path), None)
        self._once.forget(spec.db_path)
        replica = spec.settings.replica
        _log.info(
            "replicating to",
            extra={
                "db": str(spec.db_path),
                "type": replica.type,
                "path": _replica_path(spec),
                "sync-interval": format_duration(replica.sync_interval),
            },
        )

    def _report(self, problem: Problem) -> None:
        text = str(problem.error)
        self.problems[str(problem.path)] = text
        if not self._once.first(problem.path, text):
            return
        entry = self._config.dbs[problem.index - 1]
        key = "dir" if entry.dir is not None and _same(problem.path, entry.dir) else "db"
        extra = {key: str(problem.path), "error": text}
        if problem.error.hint:
            extra["hint"] = problem.error.hint
        _log.error("not replicated", extra=extra)

    def _save(self, spec: TenantSpec, status: str, reason: str) -> None:
        path = str(spec.db_path)
        row = TenantRow(
            path=path,
            replica=describe_replica(spec.replica),
            node_id=self._known.get(path, 0),
            status=status,
            error=reason,
        )
        self._catalog.save_tenant(row)


def _same(path: Path, folder: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(folder)


def _replica_path(spec: TenantSpec) -> str:
    """Return where the tenant's files go, as its log line shows it."""
    if spec.replica.url and spec.settings.replica.type == "file":
        return parse_url(spec.replica.url).path
    return describe_replica(spec.replica) if spec.replica.url else spec.replica.path
