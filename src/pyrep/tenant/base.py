"""What a tenant knows of itself without its database and its replica."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from pyrep.clock import Clock
from pyrep.config.expand import TenantSpec
from pyrep.errors import DatabaseBusyError
from pyrep.ltxfile import FileInfo
from pyrep.schedule.budget import ReadBudget
from pyrep.storage.base import ReplicaClient
from pyrep.tenant.position import Fingerprint, SyncState, new_node_id
from pyrep.tenant.session import prints
from pyrep.tenant.spool import Spool
from pyrep.tenant.statedir import StateDir
from pyrep.tenant.status import TenantStatus, state_word
from pyrep.tenant.sync import Engine
from pyrep.tenant.trouble import explain

__all__ = ["TenantBase"]


class TenantBase:
    """Answer what others ask about one database, and hold its state directory."""

    def __init__(
        self,
        spec: TenantSpec,
        client: ReplicaClient,
        *,
        known_node_id: int = 0,
        trusted_boots: frozenset[str] = frozenset(),
        clock: Clock,
        spool: Spool | None = None,
        keep_staged: bool = True,
        reads: ReadBudget | None = None,
        on_acknowledged: Callable[[Any, FileInfo], None] | None = None,
        on_listed: Callable[[Any, list[FileInfo]], None] | None = None,
    ) -> None:
        self.spec = spec
        self.name = str(spec.db_path)
        self._client = client
        self._clock = clock
        self._on_acknowledged = on_acknowledged
        self._on_listed = on_listed
        self._lock = threading.RLock()
        self._folder = StateDir(spec.state_path)
        self._engine = Engine(
            spec,
            clock,
            self._folder,
            trusted_boots,
            spool or Spool(),
            keep_staged=keep_staged,
            reads=reads,
        )
        self._known_node_id = known_node_id
        self._known = False
        self._elsewhere = False  # what is in the state directory is of another replica
        self._loaded = False
        self._surveyed = False
        self._late_ms = 0  # the newest time that a late put of a run before the survey can have
        self._parked: tuple[Fingerprint | None, tuple[int, int, int] | None] | None = None
        self._error = ""
        self._degraded = False

    # --- what others ask ---

    @property
    def deleted(self) -> bool:
        """Return whether the database's file is gone."""
        return not os.path.lexists(self.spec.db_path)

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
        """Return whether staged files wait for their upload, and for nothing else."""
        stream = self._engine.stream
        return bool(self._engine.queue) and (stream is None or stream.of_position)

    @property
    def wants_stream(self) -> bool:
        """Return whether :meth:`stream` has something to do."""
        return bool(self._engine.stream_wish) and self._engine.stream is None

    @property
    def streaming(self) -> bool:
        """Return whether all pages have to go, or are going, past the spool."""
        stream = self._engine.stream
        return self._engine.stream_wish == "pages" or not (stream is None or stream.of_position)

    @property
    def needs_survey(self) -> bool:
        """Return whether the replica must be listed before the next file is numbered."""
        return not self._surveyed

    @property
    def caught_up(self) -> bool:
        """Return whether the last sync staged all that had been committed when it began."""
        engine = self._engine
        behind = engine.heal_cause or engine.all_cause or engine.diff_cause or engine.left_behind
        waits = engine.waits_for_stream or self.needs_survey
        return not behind and not waits and not self._state().fenced

    @property
    def waits_to_read(self) -> bool:
        """Return whether the whole database has to be read and others are read first."""
        return self._engine.reads.waits(self.name)

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
            state_word(state, self._error, degraded=self._degraded, attached=self.attached),
            state.txid,
            engine.restorable_txid,
            len(queue),
            sum(info.size for info in queue),
            lag,
            state.fenced or self._error,
            state.node_id,
        )

    def changed(self) -> bool:
        """Look at the file and its WAL without opening them; True if a parked tenant must wake."""
        state, engine = self._state(), self._engine
        if state.fenced:
            return False
        if engine.heal_cause or engine.all_cause or engine.diff_cause or state.take_over:
            return True
        if engine.left_behind:
            return True
        if not self._surveyed and state.txid > state.durable_txid:
            return True  # the last run staged what it could not upload
        database, wal = prints(self.spec.db_path)
        if self._parked is not None:
            return (database, wal) != self._parked
        if state.fingerprint is None or database != state.fingerprint:
            return True
        return wal is not None and wal != state.wal_print

    def _own(self) -> None:
        """Take the state directory; what another process did there meanwhile counts."""
        try:
            used = self._folder.own()
        except DatabaseBusyError as error:
            raise DatabaseBusyError(f"{self.name}: {error}", hint=error.hint) from error
        if used:
            self._forget_staged()
            self._loaded = False

    def _disown(self) -> None:
        """Let go of the state directory if nothing of the tenant is under way.

        The position is saved before: the next process goes by it.
        """
        if self.attached or self._engine.queue or self._engine.stream or not self._folder.owned:
            return
        try:
            if self._folder.exists():
                self._engine.save()
        except OSError as error:
            self._error = str(explain(self.spec, error))
        finally:
            self._folder.disown()

    def _state(self) -> SyncState:
        if not self._loaded:
            with self._lock:
                if not self._loaded:  # who waited for the lock must not undo what came meanwhile
                    self._engine.state = self._load()
                    self._loaded = True
        return self._engine.state

    def _load(self) -> SyncState:
        """Return the saved position, if it is one of this replica, else one to begin with.

        Of a state directory that came from another place only what is true of the database
        counts.  The lineage is that of the place: by it the files there are known as ours.
        """
        saved, converted = self._folder.load(), False
        if saved is not None:
            self._elsewhere = saved.replica not in ("", self._client.url)
            if not self._elsewhere:
                self._known, self._known_node_id = True, saved.node_id
                return saved
            converted = saved.converted
        self._known = bool(self._known_node_id)
        return SyncState(self._known_node_id or new_node_id(), converted=converted)

    def _forget_staged(self) -> None:
        engine = self._engine
        engine.pages.forget()
        engine.drop_stream()
        engine.reads.leave(engine.name)
        engine.replace_queue([])
        engine.kept.adopt([])
        engine.heal_cause = engine.all_cause = engine.diff_cause = ""
        self._surveyed, self._parked = False, None
