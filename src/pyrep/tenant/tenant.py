"""A tenant as the store sees it: sync and park locally, survey and upload on the network."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from pyrep.clock import Clock
from pyrep.config.expand import TenantSpec
from pyrep.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseNotReadyError,
    FencedError,
    PyrepError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.tenant import lineage, recover, upload
from pyrep.tenant.capture import SpoolFullError
from pyrep.tenant.lineage import Action
from pyrep.tenant.pages import sync_table
from pyrep.tenant.position import Fingerprint, SyncState, new_node_id
from pyrep.tenant.session import wal_print
from pyrep.tenant.spool import Spool
from pyrep.tenant.statedir import StateDir
from pyrep.tenant.sync import Engine, fence_hint

__all__ = ["Tenant", "TenantStatus"]

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

_TABLE_SYNC_TXIDS = 1000  # and at each park


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """Describe a tenant for reports; ``lag_seconds`` is the age of the oldest staged file."""

    path: str
    replica: str
    state: str
    local_txid: TXID
    durable_txid: TXID
    pending_files: int
    pending_bytes: int
    lag_seconds: float
    error: str
    node_id: int


class Tenant:
    """Replicate one database.

    ``sync``, ``park``, ``close``, ``take_over`` and ``reset`` hold the tenant's lock and do local
    work only; ``survey`` and ``upload_next`` go to the network and hold no lock there.  At most
    one thread at a time runs the latter two.
    """

    def __init__(
        self,
        spec: TenantSpec,
        client: ReplicaClient,
        *,
        known_node_id: int = 0,
        trusted_boots: frozenset[str] = frozenset(),
        clock: Clock,
        spool: Spool | None = None,
        on_acknowledged: Callable[[Tenant, FileInfo], None] | None = None,
    ) -> None:
        self.spec = spec
        self.name = str(spec.db_path)
        self._client = client
        self._clock = clock
        self._on_acknowledged = on_acknowledged
        self._lock = threading.RLock()
        self._folder = StateDir(spec.state_path)
        self._engine = Engine(spec, clock, self._folder, trusted_boots, spool or Spool())
        self._known_node_id = known_node_id
        self._known = False
        self._loaded = False
        self._surveyed = False
        self._kept: FileInfo | None = None
        self._parked: tuple[Fingerprint | None, tuple[int, int, int] | None] | None = None
        self._error = ""
        self._degraded = False

    # --- what others ask ---

    @property
    def attached(self) -> bool:
        """Return whether the tenant holds connections."""
        return self._engine.session is not None

    @property
    def node_id(self) -> int:
        """Return the tenant's lineage."""
        return self._state().node_id

    @property
    def pending(self) -> bool:
        """Return whether staged files wait for their upload."""
        return bool(self._engine.queue)

    @property
    def needs_survey(self) -> bool:
        """Return whether the replica must be listed before the next file is numbered."""
        return not self._surveyed

    def state_json(self) -> str:
        """Return the position as text for the catalog."""
        return self._state().to_json()

    def idle_seconds(self) -> float:
        """Return the seconds since a change was last seen."""
        return self._clock.monotonic() - self._engine.changed_at

    def idle_limit(self) -> float:
        """Return after how many idle seconds the tenant is to be parked."""
        with self._lock:
            return self._engine.idle_limit()

    def status(self) -> TenantStatus:
        """Return what is known without any I/O on the database or the replica."""
        state, engine = self._state(), self._engine
        queue = list(engine.queue)
        oldest = min(list(engine.staged_at.values()), default=None)
        lag = 0.0 if oldest is None else max(0.0, self._clock.monotonic() - oldest)
        return TenantStatus(
            self.name,
            self._client.url,
            self._word(state),
            state.txid,
            state.durable_txid,
            len(queue),
            sum(info.size for info in queue),
            lag,
            state.fenced or self._error,
            state.node_id,
        )

    def _word(self, state: SyncState) -> str:
        if state.fenced:
            return "fenced"
        if self._error:
            return "degraded" if self._degraded else "error"
        if self.attached:
            return "attached"
        return "parked" if state.txid else "new"

    def changed(self) -> bool:
        """Look at the file and its WAL without opening them; True if a parked tenant must wake."""
        state, engine = self._state(), self._engine
        if state.fenced:
            return False
        if engine.heal_cause or engine.all_cause or engine.diff_cause or state.take_over:
            return True
        if engine.left_behind:
            return True
        database, wal = self._prints()
        if self._parked is not None:
            return (database, wal) != self._parked
        if state.fingerprint is None or database != state.fingerprint:
            return True
        return wal is not None and wal != state.wal_print

    def _prints(self) -> tuple[Fingerprint | None, tuple[int, int, int] | None]:
        # What cannot be looked at is a change too: waking the tenant names the reason.
        database, wal = None, None
        with contextlib.suppress(OSError):
            database = Fingerprint.of(os.stat(self.spec.db_path, follow_symlinks=False))
        with contextlib.suppress(OSError):
            wal = wal_print(os.stat(f"{self.spec.db_path}-wal", follow_symlinks=False))
        return database, wal

    def _state(self) -> SyncState:
        if not self._loaded:
            with self._lock:
                saved = self._folder.load()
                self._known = saved is not None or bool(self._known_node_id)
                self._engine.state = saved or SyncState(self._known_node_id or new_node_id())
                self._loaded = True
        return self._engine.state

    # --- survey: network ---

    def survey(self) -> None:
        """List the replica once and decide at which TXID, and how, to go on.

        :raises DatabaseNotReadyError: the database file does not exist (yet)
        :raises FencedError: another live lineage writes there
        :raises ReplicaError: the storage failed
        """
        if not os.path.lexists(self.spec.db_path):
            raise DatabaseNotReadyError(f"{self.name}: database file does not exist")
        remote = lineage.survey(self._client)
        with self._lock:
            state = self._state()
            if state.fenced:
                raise FencedError(f"{self.name}: {state.fenced}", hint=fence_hint(self.name))
            self._take(remote, state)

    def _take(self, remote: lineage.Remote, state: SyncState) -> None:
        try:
            self._folder.create(os.stat(self.spec.db_path, follow_symlinks=False))
            self._folder.clean()
            staged = recover.staged_files(self._folder, self.name)
            headers = [file.header for file in staged]
            verdict = lineage.judge(state, self._known, headers, remote)
            found = None
            if verdict.action is Action.CONTINUE:
                found = recover.recover(self._folder, state, verdict.base, staged)
            else:
                self._folder.discard(self._folder.staged())
            self._engine.settle(verdict, remote, found)
        except OSError as error:
            raise self._failed(self._os_error(error)) from error
        self._known = self._surveyed = True
        kept = [f.info for f in staged if found is not None and f.info.max_txid == verdict.base]
        self._kept = kept[0] if kept else None
        if verdict.action is Action.FENCED:
            self._engine.fence(verdict.cause)
            raise FencedError(f"{self.name}: {verdict.cause}", hint=fence_hint(self.name))

    # --- sync and park: local ---

    def sync(self) -> bool:
        """Ship what was committed since the last call into staged files.

        Attaches a parked tenant first; afterwards checkpoints and moves R.  Returns whether
        something was staged.

        :raises DatabaseError: the database, or the staging of its changes, failed; the caller
            tries again with backoff
        :raises FencedError: another live lineage writes to the replica
        """
        with self._lock:
            if self._state().fenced:
                return False
            if not self._surveyed:
                raise ReplicaTemporaryError(f"{self.name}: the replica was not listed yet")
            if not self._folder.exists():
                raise self._folder_lost(f"{self.spec.state_path} was removed")
            try:
                staged = self._engine.sync()
            except OSError as error:
                raise self._failed(self._os_error(error)) from error
            except PyrepError as error:
                raise self._failed(error) from error.__cause__
            self._parked = None
            self._error, self._degraded = "", False
            return staged

    def _failed(self, error: PyrepError) -> PyrepError:
        """Note an error; R stays where it is only if the same proof can be tried again."""
        self._error = str(error)
        self._degraded = isinstance(error, SpoolFullError)
        if self._degraded:
            self._engine.let_go("staging had stopped, there was no space")
        elif not isinstance(error, DatabaseBusyError):
            self._engine.detach(keep_wal=True)
        return error

    def _os_error(self, error: OSError) -> DatabaseError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return SpoolFullError(
                f"{self.name}: no space left to stage changes in {self.spec.state_path}",
                hint="Free space there; nothing is lost: pyrep compares every page afterwards.",
            )
        where = str(error.filename or "")
        reason = (error.strerror or str(error)).lower()
        if error.errno in _NOT_ALLOWED and not where.startswith(self.name):
            return DatabaseError(
                f"{self.name}: state directory {self.spec.state_path} cannot be written: {reason}",
                hint="Give the user that runs pyrep write access there, or set meta-dir to a "
                "folder in which it has it.",
            )
        return DatabaseError(f"{self.name}: {reason}{where and f' ({where})'}")

    def park(self, *, force: bool = False) -> bool:
        """Seal and close the database; False if it must stay attached for now."""
        with self._lock:
            if not self.attached:
                return True  # what was noted when it was parked still counts
            before = self._prints()
            try:
                if not self._engine.park(force=force):
                    return False
            except OSError as error:
                self._engine.detach(keep_wal=True)
                raise self._failed(self._os_error(error)) from error
            after = self._prints()
            sealed = self._engine.state.fingerprint is not None
            # Only the last connection removes a WAL; any other move is a commit that came between.
            quiet = after == before or (before[1] is not None and after[1] is None)
            self._parked = after if quiet and not sealed else None
            return True

    def close(self) -> None:
        """Park, whatever the seal says, and let go of everything."""
        with self._lock:
            if self.attached:
                self.park(force=True)
            elif self._loaded and self._folder.exists():
                try:
                    self._engine.save()
                except OSError as error:
                    raise self._failed(self._os_error(error)) from error

    # --- upload: network ---

    def upload_next(self) -> bool:
        """Put the oldest staged file on the replica; False if there is none.

        :raises FencedError: another writer's file is there under that name
        :raises ReplicaError: the storage failed; the file stays staged
        """
        with self._lock:
            if not self._engine.queue or self._state().fenced:
                return False
            info = self._engine.queue[0]
        try:
            with self._folder.base() as base:
                result = upload.put(self._client, base, info)
        except FileNotFoundError as error:
            with self._lock:
                if self._is_next(info):
                    raise self._folder_lost(f"staged file {info.name} was removed") from error
                return True
        except OSError as error:
            raise self._os_error(error) from error
        with self._lock:
            if not self._is_next(info):
                return True  # a reset came between
            if result.outcome is upload.Outcome.FENCED:
                self._engine.fence(result.text)
                raise FencedError(f"{self.name}: {result.text}", hint=fence_hint(self.name))
            if result.outcome is upload.Outcome.SUPERSEDED:
                self._superseded(result)
            else:
                self._acknowledged(info)
        if self._on_acknowledged is not None:
            self._on_acknowledged(self, result.info)
        return True

    def _is_next(self, info: FileInfo) -> bool:
        return bool(self._engine.queue) and self._engine.queue[0] is info

    def _folder_lost(self, why: str) -> DatabaseError:
        """Begin again from the replica: somebody removed what pyrep had noted."""
        self._engine.detach(keep_wal=True)
        self._forget_staged()
        self._error = f"{self.name}: {why}; the replica is listed again"
        return DatabaseError(
            self._error,
            hint="Leave the state directory alone; to forget it: pyrep reset.",
        )

    def _acknowledged(self, info: FileInfo) -> None:
        """Advance the durable position; the newest staged file stays for the next start."""
        engine = self._engine
        engine.dequeue()
        if info.level == 0:
            engine.state = replace(engine.state, durable_txid=info.max_txid)
            self._fold()
        gone = [info] if info.level else [self._kept] if self._kept else []
        if info.level == 0:
            self._kept = info
        try:
            self._folder.discard(gone)
        except OSError as error:
            self._error = str(self._os_error(error))

    def _fold(self) -> None:
        engine = self._engine
        like = None
        with contextlib.suppress(FileNotFoundError):
            like = os.stat(self.spec.db_path, follow_symlinks=False)
        try:
            with self._folder.base() as base:
                engine.pages.fold(base, like)
                if engine.state.durable_txid % _TABLE_SYNC_TXIDS == 0:
                    sync_table(base)
        except OSError as error:
            # The table is a means: without it the next diff ships every page.
            engine.pages.table = None
            self._error = str(self._os_error(error))

    def _superseded(self, result: upload.PutResult) -> None:
        """Take an earlier put of ours as that TXID: killed after the put, its staged file lost."""
        engine, found = self._engine, result.found
        if found is None:
            raise DatabaseError(f"{self.name}: nothing is known of the file on the replica")
        self._folder.discard(list(engine.queue))
        engine.replace_queue([])
        engine.pages.staged[:] = [found]
        self._fold()
        engine.state = replace(
            engine.state.unsealed(),
            txid=found.txid,
            durable_txid=found.txid,
            commit=found.commit,
            db_checksum=found.post_checksum,
        )
        engine.diff_cause = f"txid {found.txid} was uploaded by a run of pyrep that was killed"
        engine.save()

    # --- the operator ---

    def take_over(self) -> None:
        """End fencing: all pages go to the replica at the next number."""
        with self._lock:
            self._state()
            self._engine.detach()
            self._engine.state = replace(self._engine.state, fenced="", take_over=True)
            self._start_anew()

    def reset(self) -> list[str]:
        """Forget the local position, keep the lineage; return the names that were removed."""
        with self._lock:
            state = self._state()
            self._engine.detach()
            names = self._folder.remove()
            self._engine.state = SyncState(state.node_id, fenced=state.fenced)
            self._start_anew()
            return names

    def _start_anew(self) -> None:
        self._forget_staged()
        self._error, self._degraded = "", False
        if self._folder.exists():
            self._engine.save()

    def _forget_staged(self) -> None:
        engine = self._engine
        engine.pages.forget()
        engine.replace_queue([])
        engine.heal_cause = engine.all_cause = engine.diff_cause = ""
        self._surveyed, self._parked, self._kept = False, None, None
