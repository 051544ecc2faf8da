"""From candidates to running tenants and back: probe, claim, register; let go of what went."""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pyrep.catalog import Catalog, TenantRow
from pyrep.clock import Clock
from pyrep.config.claims import Claims, Inode
from pyrep.config.expand import Problem, TenantSpec, describe_replica
from pyrep.config.model import Config
from pyrep.errors import ConfigError, PyrepError
from pyrep.log import OncePer
from pyrep.sqlite import is_attached
from pyrep.storage.registry import parse_url
from pyrep.store import ManagedTenant, Store
from pyrep.units import format_duration
from pyrep.watch.discover import Discovery, Finding, Kind

__all__ = ["Intake", "inode_of"]

_log = logging.getLogger(__name__)


def inode_of(path: Path | str) -> Inode | None:
    """Return device and number of a regular file, None if there is none."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


class Intake:
    """Turn candidates into registered tenants; one thread at a time uses it.

    ``problems`` and ``unready`` say by path why something configured is not replicated, and
    what is just being made.  ``drop`` is called with each tenant that the store let go of.
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
        drop: Callable[[ManagedTenant], None],
    ) -> None:
        self.config = config
        self._store = store
        self._catalog = catalog
        self._known = known
        self._make = make
        self._drop = drop
        self._claims = Claims()
        self._resolve: Callable[[str], str] = os.path.realpath
        self._discovery: Discovery[TenantSpec] = Discovery(clock)
        self._once = OncePer()
        self._leaving: dict[Path, list[Path]] = {}  # with those that wait for what it owns
        self._dismissed: set[Path] = set()  # leaving though the file may be there
        self._left: deque[ManagedTenant] = deque()  # filled by the store's threads
        self._freed: list[Path] = []  # waited for a tenant that came back
        self._deferred: list[Path] = []  # another tenant has their inode open, for a moment
        self.problems: dict[str, str] = {}
        self.unready: dict[str, str] = {}

    # --- what is known ----------------------------------------------------------------------------

    def owner(self, path: Path) -> TenantSpec | None:
        """Return the tenant whose database is at a path."""
        return self._claims.owner(path)

    def tenants(self) -> list[TenantSpec]:
        """Return what is registered or being let go of."""
        return self._claims.tenants()

    def knows(self, path: Path) -> bool:
        """Return whether a candidate is not ready."""
        return self._discovery.knows(path)

    def candidates(self) -> list[TenantSpec]:
        """Return the candidates that are not ready."""
        return self._discovery.candidates()

    @property
    def postponed(self) -> list[Path]:
        """Return the files that wait until a tenant has gone; from any thread."""
        waiting = [*self._freed, *self._deferred]
        for paths in list(self._leaving.values()):
            waiting += paths
        return [path for path in waiting if os.path.lexists(path)]

    # --- candidates -------------------------------------------------------------------------------

    def take_all(self, findings: Iterable[Finding[TenantSpec]]) -> None:
        """Take many at once: the folders that they share are resolved once."""
        self._resolve = functools.cache(os.path.realpath)
        try:
            for finding in findings:
                self.take(finding)
        finally:
            self._resolve = os.path.realpath

    def look_at(self, spec: TenantSpec, *, trusted: bool = False) -> Finding[TenantSpec]:
        """Probe a candidate for the first time.

        ``trusted``: one that the catalog knows is taken for what it was; that costs one stat.
        """
        inode = None
        if trusted and self._known.get(str(spec.db_path)):
            inode = inode_of(spec.db_path)
        if inode is not None:
            return Finding(spec, Kind.READY, inode=inode)
        return self._discovery.offer(spec)

    def take(self, finding: Finding[TenantSpec]) -> None:
        """Register what is ready; say of the rest why it is not."""
        spec = finding.candidate
        self.unready.pop(str(spec.db_path), None)
        if finding.kind is Kind.READY:
            self._discovery.forget(spec.db_path)
            self._accept(spec, finding.inode)
            return
        explicit = spec.relpath is None
        if finding.kind is Kind.MISSING and not explicit:
            self._save(spec, "absent", "")
            self.forget(spec.db_path)
            return
        broken = finding.kind is Kind.UNREADABLE or (explicit and finding.kind is Kind.REJECTED)
        if broken or finding.kind is not Kind.REJECTED:
            self._save(spec, "error" if broken else "waiting", finding.reason)
        if broken or finding.kind is Kind.MISSING:
            self.problems[str(spec.db_path)] = finding.reason
        elif finding.kind is Kind.WAITING:
            self.problems.pop(str(spec.db_path), None)
            self.unready[str(spec.db_path)] = finding.reason
        else:  # in place it becomes a database by being written, which no name tells
            self._store.watcher.add(spec.db_path)
        self._say(finding, broken=broken)

    def _say(self, finding: Finding[TenantSpec], *, broken: bool) -> None:
        path = finding.candidate.db_path
        if not self._once.first(path, (finding.kind, finding.reason)):
            return
        missing = finding.kind is Kind.MISSING
        extra = {"db": str(path), "cause" if missing else "error": finding.reason}
        if finding.hint:
            extra["hint"] = finding.hint
        if broken:
            _log.error("database cannot be replicated yet", extra=extra)
        elif finding.kind is Kind.REJECTED:
            _log.warning("file is no database and left out", extra=extra)
        else:
            level = logging.INFO if missing else logging.DEBUG
            _log.log(level, "waiting for database", extra=extra)

    def forget(self, path: Path) -> None:
        """Forget a candidate, and what was said of it."""
        self._discovery.forget(path)
        self._store.watcher.remove(path)
        self._once.forget(path)
        self.problems.pop(str(path), None)
        self.unready.pop(str(path), None)

    @property
    def hurried(self) -> bool:
        """Return whether something is only waiting for a tenant's next turn."""
        return bool(self._deferred or self._freed)

    @property
    def restless(self) -> bool:
        """Return whether a candidate may become ready, or readable, without any event."""
        return self._discovery.restless

    def look_again(self) -> None:
        """Look again at what was not ready."""
        for finding in self._discovery.look_again():
            self.take(finding)

    def take_late(self) -> bool:
        """Take in databases that were just being made; return whether some still are."""
        if self._discovery.waiting:
            self.look_again()
        return self._discovery.waiting > 0

    def look_once_more(self, path: Path) -> None:
        """Look again at one candidate: something happened to its name or its content."""
        finding = self._discovery.look(path)
        if finding is not None:
            self.take(finding)

    def _accept(self, spec: TenantSpec, inode: Inode | None) -> None:
        """Claim what the tenant owns and register it, or say why not."""
        if not self._claim(spec, inode):
            return
        made = None
        try:
            made = self._make(spec)
            self._store.register(made)
        except PyrepError as error:
            if made is not None:
                self._drop(made)
            self._claims.discard(spec)
            wrapped = ConfigError(str(error), hint=error.hint)
            self.report(Problem(spec.db_path, spec.index, wrapped))
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

    def _claim(self, spec: TenantSpec, inode: Inode | None) -> bool:
        """Claim what a tenant owns; False if it has to wait for it, or may not have it.

        Of a rename both names may be looked at in any order, and the number of an inode is used
        again: so those that have it are looked at first.
        """
        rivals = self._claims.rivals(spec, inode, resolve=self._resolve)
        if any([self._is_going(rival, spec) for rival in rivals]):
            return False
        try:
            self._claims.add(spec, inode, resolve=self._resolve)
        except ConfigError as error:
            self.report(Problem(spec.db_path, spec.index, error))
            return False
        if inode is not None and is_attached(inode):  # by a tenant whose file it was
            self._claims.discard(spec)
            self._deferred.append(spec.db_path)
            return False
        return True

    def _is_going(self, rival: TenantSpec, waiting: TenantSpec) -> bool:
        """Look at a rival; one that is going is waited for."""
        if rival.db_path not in self._leaving:
            self.check(rival)
        going = rival.db_path in self._leaving
        if going:
            self._leaving[rival.db_path].append(waiting.db_path)
        return going

    # --- tenants ----------------------------------------------------------------------------------

    def check(self, owner: TenantSpec) -> None:
        """Look whether a tenant's file is there, and still the same one."""
        if owner.db_path in self._dismissed:
            return
        inode = inode_of(owner.db_path)
        if inode is None:
            if _is_gone(owner.db_path):
                self.let_go(owner, "its file is gone")
            return
        came_back = owner.db_path in self._leaving and self._store.keep(str(owner.db_path))
        if came_back:
            self._freed += self._leaving.pop(owner.db_path)
        if not self._claims.has_inode(owner, inode):
            self._claims.drop_inode(owner)
            rival = self._claims.inode_owner(inode)
            if rival is not None and self._is_going(rival, owner):
                return
            try:
                self._claims.take_inode(owner, inode)
            except ConfigError as error:
                self.report(Problem(owner.db_path, owner.index, error))
            came_back = True
        if came_back:
            self._store.wake(str(owner.db_path))

    def dismiss(self, owner: TenantSpec, cause: str) -> None:
        """Let go of a tenant whether its file is there or not."""
        self._dismissed.add(owner.db_path)
        self.let_go(owner, cause)

    def let_go(self, owner: TenantSpec, cause: str) -> None:
        """Let the store sync a tenant once more, if that is possible, and forget it."""
        if owner.db_path in self._leaving:
            return
        self._leaving[owner.db_path] = []
        extra = {"db": str(owner.db_path), "cause": cause}
        _log.info("database is no longer replicated", extra=extra)
        self._store.remove(str(owner.db_path), self._has_left)

    def _has_left(self, tenant: ManagedTenant) -> None:
        self._left.append(tenant)
        self._store.watcher.wake()

    @property
    def dismissed(self) -> frozenset[Path]:
        """Return the tenants that are leaving because they were told to."""
        return frozenset(self._dismissed)

    def settle(self) -> list[Path]:
        """Give up what tenants owned that left; return the paths that may be taken in now."""
        paths, self._freed, self._deferred = self._freed + self._deferred, [], []
        while self._left:
            tenant = self._left.popleft()
            path = tenant.spec.db_path
            owner = self._claims.owner(path)
            if owner is not None:
                self._claims.discard(owner)
            self._dismissed.discard(path)
            self.forget(path)
            paths += [path, *self._leaving.pop(path, [])]
            self._drop(tenant)
        return paths

    # --- reporting --------------------------------------------------------------------------------

    def report(self, problem: Problem) -> None:
        """Say once why something is not replicated."""
        text = str(problem.error)
        self.problems[str(problem.path)] = text
        if not self._once.first(problem.path, text):
            return
        # By path: the number of an entry may be another one since the problem's was made.
        is_dir = any(entry.dir and _same(problem.path, entry.dir) for entry in self.config.dbs)
        key = "dir" if is_dir else "db"
        extra = {key: str(problem.path), "error": text}
        if problem.error.hint:
            extra["hint"] = problem.error.hint
        _log.error("not replicated", extra=extra)

    def report_link(self, link: Path) -> None:
        """Say once that a link to a file is not followed."""
        if self._once.first(link, "link"):
            _log.info("link to a file is not followed", extra={"path": str(link)})

    def _save(self, spec: TenantSpec, status: str, reason: str) -> None:
        path = str(spec.db_path)
        row = self._catalog.tenant(path) or TenantRow(path=path)
        replica = describe_replica(spec.replica)
        changes = replace(row, replica=replica, state="", status=status, error=reason)
        self._catalog.save_tenant(replace(changes, updated_at=None))


def _is_gone(path: Path) -> bool:
    """Return whether no file is there; one that cannot be looked at just now is not gone."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return not stat.S_ISREG(status.st_mode)


def _same(path: Path, folder: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(folder)


def _replica_path(spec: TenantSpec) -> str:
    """Return where the tenant's files go, as its log line shows it."""
    if spec.replica.url and spec.settings.replica.type == "file":
        return parse_url(spec.replica.url).path
    return describe_replica(spec.replica) if spec.replica.url else spec.replica.path
