"""Look at what is configured: all of it at the start, where events point to, from time to time."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pyrep.clock import Clock
from pyrep.config.expand import (
    Expansion,
    Places,
    Problem,
    TenantSpec,
    expand,
    expand_folder,
    same_tenant,
    tenant_for,
)
from pyrep.config.model import Config, DatabaseConfig
from pyrep.daemon.intake import Intake, inode_of
from pyrep.errors import ConfigError
from pyrep.store import Store
from pyrep.watch.base import Dirty, DirtyKind
from pyrep.watch.discover import Finding, Kind

__all__ = ["Lookout"]

_LOOK_SECONDS = 1.0
_HURRY_SECONDS = 0.05
_SWEEP_SECONDS = 10.0  # where the kernel does not tell of names that come and go
_log = logging.getLogger(__name__)


class Lookout:
    """Keep the managed tenants equal to what is on disk and configured.

    ``scan`` is called once at the start, before anything else; then ``notice`` and ``tick`` by
    the watcher's thread, and at the end ``take_late``.  Only ``reconfigure``, ``awaits`` and
    ``reason`` may be called from any thread.  An event says only where to look; what is there
    now decides.
    """

    def __init__(self, config: Config, store: Store, intake: Intake, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._intake = intake
        self._clock = clock
        self._places = Places(config)
        self._orders: deque[tuple[Config, Callable[[], None]]] = deque()
        self._applied: list[tuple[frozenset[Path], Callable[[], None]]] = []  # with who must leave
        self._folders: set[str] = set()  # that were read
        self._beacons: set[str] = set()  # watched for the name of what is missing in them
        self._absent: set[str] = set()  # folders of single databases that do not exist
        self._unwatched = self._reconfigured = False
        self._scanned: set[Path] = set()  # directories of entries without watch, read once
        self._look_at = self._look_around_at = 0.0

    # --- the start, and the whole -----------------------------------------------------------------

    def scan(self) -> None:
        """Look at everything that is configured.

        :raises ConfigError: there is nothing to replicate and nothing that could appear
        """
        if not self._config.dbs:
            _log.error("no databases specified in configuration")
        findings = self._look_around(trusted=True)
        self._log_counts(findings)
        self._intake.take_all(findings)
        watched = any(entry.dir is not None and entry.watch for entry in self._config.dbs)
        nothing = not self._store.tenants() and not self._intake.candidates()
        if self._config.dbs and nothing and not watched:
            raise ConfigError(
                "the configuration yields no database, and no directory is watched",
                hint="The lines above say what is wrong with each entry.",
            )

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

    def _look_around(self, *, trusted: bool = False) -> list[Finding[TenantSpec]]:
        """Look at every folder, tenant and candidate; return what was found of new ones."""
        self._replace_places()
        self._unwatched = False
        self._folders.clear()
        self._watch_parents()
        followed = tuple(entry for entry in self._config.dbs if self._is_followed(entry))
        found = expand(replace(self._config, dbs=followed), self._visit)
        self._scanned |= {entry.dir for entry in followed if entry.dir and entry.dir.is_dir()}
        now = self._clock.monotonic()
        pause = self._config.reconcile_interval.total_seconds()
        self._look_around_at = now + (min(pause, _SWEEP_SECONDS) if self._unwatched else pause)
        self._watch_missing()
        for owner in self._intake.tenants():
            self._intake.check(owner)
        for spec in self._intake.candidates():
            self._intake.look_once_more(spec.db_path)
        return self._look_at_new(found, trusted=trusted)

    def _look_at_new(self, found: Expansion, *, trusted: bool = False) -> list[Finding[TenantSpec]]:
        for problem in found.problems:
            self._intake.report(problem)
        for link in found.links:
            self._intake.report_link(link)
        return [
            self._intake.look_at(spec, trusted=trusted)
            for spec in found.tenants
            if not self._is_known(spec)
        ]

    def _is_known(self, spec: TenantSpec) -> bool:
        owner = self._intake.owner(spec.db_path)
        known = owner is not None and same_tenant(owner, spec)
        return known or self._intake.knows(spec.db_path)

    def _is_followed(self, entry: DatabaseConfig) -> bool:
        """Return whether an entry is looked at: a directory without ``watch`` is read once."""
        return entry.watch or entry.dir is None or entry.dir not in self._scanned

    # --- folders ----------------------------------------------------------------------------------

    def _visit(self, folder: str) -> None:
        """Watch a folder before it is read: what comes later is an event."""
        self._folders.add(folder)
        if not self._store.watcher.watch_folder(folder):
            self._unwatched = True

    def _watch_parents(self) -> None:
        """Watch the folders of single databases; look every second for those that are missing."""
        parents = {os.path.dirname(path) for path in self._places.singles}
        self._absent = {parent for parent in parents if not os.path.isdir(parent)}
        for parent in parents - self._absent:
            self._visit(parent)

    def _watch_missing(self) -> None:
        """Watch the folders in which missing directories would appear."""
        beacons, self._beacons = self._beacons, set()
        for root, _ in self._places.roots:
            if not os.path.isdir(root):
                self._beacons.add(os.path.dirname(root))
                self._store.watcher.watch_folder(os.path.dirname(root))
                if os.path.isdir(root):  # it appeared just now, perhaps before the watch
                    self._look_around_at = 0.0
        for folder in beacons - self._beacons - self._folders:
            self._store.watcher.forget_folder(folder, below=False)

    def _replace_places(self) -> None:
        """Resolve the entries anew; let go of what is not configured any more."""
        before, self._places = self._places, Places(self._config)
        if not self._reconfigured and before.roots == self._places.roots:
            return
        self._reconfigured = False
        roots = {root for root, _ in self._places.roots}
        for root, _ in before.roots:
            if root not in roots:
                self._store.watcher.forget_folder(root)
        for owner in self._intake.tenants():
            if not self._is_wanted(owner):
                self._intake.dismiss(owner, "the configuration has it no more, or in another way")
        for spec in self._intake.candidates():
            if not self._is_wanted(spec):
                self._intake.forget(spec.db_path)

    def _is_wanted(self, spec: TenantSpec) -> bool:
        return any(same_tenant(spec, one) for one in self._specs(spec.db_path))

    def _specs(self, path: Path) -> list[TenantSpec]:
        """Return the tenants that a file is, one for each entry that claims it."""
        found = []
        for entry in self._places.entries_at(path):
            try:
                found.append(tenant_for(entry, path))
            except ConfigError as error:
                self._intake.report(Problem(path, entry.index, error))
        return found

    # --- events -----------------------------------------------------------------------------------

    def notice(self, dirty: Dirty) -> None:
        """Look where something happened."""
        if dirty.path is None:
            self._take(self._look_around())
        elif dirty.kind is DirtyKind.FOLDER:
            self._look_at_folder(str(dirty.path))
        else:
            self._look_at_path(dirty.path)

    def _take(self, findings: list[Finding[TenantSpec]]) -> None:
        for finding in findings:
            self._intake.take(finding)

    def _look_at_path(self, path: Path, *, again: bool = False) -> None:
        """Look at a file; ``again``: it is no new one, so it counts without ``watch`` too."""
        owner = self._intake.owner(path)
        if owner is not None:
            self._intake.check(owner)
        elif self._intake.knows(path):
            self._intake.look_once_more(path)
        elif inode_of(path) is None and str(path) not in self._places.singles:
            self._look_at_link(path)
        else:
            watched = (spec for spec in self._specs(path) if again or spec.settings.watch)
            self._take([self._intake.look_at(spec) for spec in watched])

    def _look_at_link(self, path: Path) -> None:
        """Forget what was said of a file that is gone, unless a link took its place."""
        if not path.is_symlink():
            self._intake.forget(path)
        elif path.is_file() and self._places.has_name(path):
            self._intake.report_link(path)

    def _look_at_folder(self, folder: str) -> None:
        """Read a folder that is new; what was below one that is known may be gone."""
        known = folder in self._folders
        if os.path.isdir(folder) and not os.path.islink(folder):
            self._take(self._look_at_new(expand_folder(self._places, folder, self._visit)))
        else:
            self._store.watcher.forget_folder(folder)
            self._folders.discard(folder)
        if not known:
            return
        if any(root == folder for root, _ in self._places.roots):
            self._look_around_at = 0.0  # it is said to be missing, and its return awaited
        prefix = f"{folder}/"
        for owner in self._intake.tenants():
            if str(owner.db_path).startswith(prefix):
                self._intake.check(owner)
        for spec in self._intake.candidates():
            if str(spec.db_path).startswith(prefix):
                self._intake.look_once_more(spec.db_path)

    # --- from time to time ------------------------------------------------------------------------

    def tick(self) -> float | None:
        """Do what is due; return the seconds until the next time."""
        for path in self._intake.settle():
            self._look_at_path(path, again=True)
        self._reload()
        self._tell_applied()
        now = self._clock.monotonic()
        if now >= self._look_at and self._is_restless():
            self._look_at = now + _LOOK_SECONDS
            self._intake.look_again()
            if any(map(os.path.isdir, self._absent)):
                self._look_around_at = 0.0
        if now >= self._look_around_at:
            self._take(self._look_around())
            self._store.look_at_all()
        pause = max(0.0, self._look_around_at - self._clock.monotonic())
        if self._intake.hurried:
            return min(pause, _HURRY_SECONDS)
        return min(pause, _LOOK_SECONDS) if self._is_restless() else pause

    def _is_restless(self) -> bool:
        return bool(self._absent) or self._intake.restless

    def take_late(self) -> bool:
        """Take in databases that were just being made; return whether some still are."""
        return self._intake.take_late()

    def reconfigure(self, config: Config, done: Callable[[], None] = lambda: None) -> None:
        """Go over to another configuration soon; what is the same in both goes on as it is.

        ``done`` is called by the watcher's thread when all that is new was looked at and all that
        is not wanted any more has left.  Of several in a row only the last one is looked at.
        """
        self._orders.append((config, done))
        self._store.watcher.wake()

    def awaits(self, path: str) -> bool:
        """Return whether a file that is there is, or will be looked at as, a tenant's database."""
        followed = (e.watch or e.path is not None for e in self._places.entries_at(path))
        return any(followed) and os.path.isfile(path)

    def reason(self, path: str) -> str:
        """Return why a database that is configured is not replicated, '' if nothing is known."""
        real = os.path.realpath(path)
        return self._intake.problems.get(real) or self._intake.unready.get(real, "")

    def is_refused(self, path: str) -> bool:
        """Return whether a database cannot be replicated beside the others, whatever it holds."""
        real = Path(os.path.realpath(path))
        return str(real) in self._intake.problems and not self._intake.knows(real)

    def _tell_applied(self) -> None:
        """Tell who asked for a configuration that it is reached."""
        leaving, waiting = self._intake.dismissed, []
        for going, done in self._applied:
            if leaving.isdisjoint(going):
                done()
            else:
                waiting.append((going, done))
        self._applied = waiting

    def _reload(self) -> None:
        told = []
        while self._orders:
            config, done = self._orders.popleft()
            told.append(done)
        if not told:
            return
        self._config = self._intake.config = config
        self._reconfigured = True
        self._scanned.clear()
        self._take(self._look_around())
        self._applied += [(self._intake.dismissed, done) for done in told]
        extra = {"op": "reload", "count": len(self._store.tenants())}
        _log.info("configuration read again", extra=extra)
