"""A tenant as the store sees it: sync and park locally, survey and upload on the network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from pyrep import compactor
from pyrep.clock import to_ms
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
from pyrep.tenant import lineage, recover, streaming, turn, upload
from pyrep.tenant.acknowledge import acknowledge, finish, supersede
from pyrep.tenant.base import TenantBase
from pyrep.tenant.capture import SpoolFullError
from pyrep.tenant.farewell import farewell
from pyrep.tenant.lineage import Action
from pyrep.tenant.pages import TableLostError
from pyrep.tenant.position import SyncState
from pyrep.tenant.ring import StreamEndedError
from pyrep.tenant.session import prints
from pyrep.tenant.snapshot import stage_snapshot
from pyrep.tenant.status import TenantStatus
from pyrep.tenant.stream import Stream
from pyrep.tenant.sync import fence_hint
from pyrep.tenant.trouble import explain

__all__ = ["Tenant", "TenantStatus"]

_SNAPSHOT_ATTEMPTS = 4


class Tenant(TenantBase):
    """Replicate one database.

    ``sync``, ``snapshot``, ``park``, ``close``, ``take_over`` and ``reset`` hold the tenant's lock
    and do local work only; ``survey``, ``upload_next``, ``stream``, ``compact``, ``listing`` and
    ``delete`` go to the network and hold no lock there.  At most one thread at a time runs the
    first two of these, one the third, and one the others.
    """

    # --- survey: network ---

    def survey(self) -> None:
        """List the replica once and decide at which TXID, and how, to go on.

        :raises DatabaseNotReadyError: the database file does not exist (yet)
        :raises FencedError: another live lineage writes there
        :raises ReplicaError: the storage failed
        """
        if not os.path.lexists(self.spec.db_path):
            raise DatabaseNotReadyError(f"{self.name}: database file does not exist")
        asked_ms = to_ms(self._clock.now())
        files = lineage.listing(self._client)
        remote = lineage.survey(self._client, files, self.node_id)
        merged = max((info.max_txid for info in files if info.level == 1), default=TXID(0))
        with self._lock:
            state = self._state()
            if state.fenced:
                raise FencedError(f"{self.name}: {state.fenced}", hint=fence_hint(self.name))
            self._take(remote, state, merged)
            self._late_ms = max(asked_ms, self._state().timestamp_ms)
        if self._on_listed is not None:
            self._on_listed(self, files)

    def _take(self, remote: lineage.Remote, state: SyncState, merged: TXID) -> None:
        try:
            self._folder.create(os.stat(self.spec.db_path, follow_symlinks=False))
            self._own()
            state = self._state()
            self._folder.clean()
            if self._elsewhere:
                self._folder.discard(self._folder.staged())
            staged = recover.staged_files(self._folder, self.name, remote.top)
            headers = [file.header for file in staged]
            verdict = lineage.judge(state, self._known, headers, remote)
            heals = verdict.action is Action.HEAL and self._engine.healing
            if self._surveyed and (heals or verdict.action is Action.CONTINUE):
                return  # a second look in this run; what is staged stands
            found = None
            if verdict.action is Action.CONTINUE:
                found = recover.recover(self._folder, state, verdict.base, staged, merged)
            else:
                self._folder.discard(self._folder.staged())
            self._engine.settle(verdict, remote, found, self._client.url)
        except OSError as error:
            raise self._failed(explain(self.spec, error)) from error
        self._known = self._surveyed = True
        self._known_node_id = self._engine.state.node_id
        self._elsewhere = False
        if verdict.action is Action.FENCED:
            self._engine.fence(verdict.cause)
            raise FencedError(f"{self.name}: {verdict.cause}", hint=fence_hint(self.name))

    # --- sync and park: local ---

    def sync(self) -> bool:
        """Ship what was committed since the last call into staged files.

        Attaches a parked tenant first; afterwards checkpoints and moves R.  Returns whether
        something was staged.  Nothing is as long as all pages have to go past the spool.

        :raises DatabaseError: the database, or the staging of its changes, failed; the caller
            tries again with backoff
        :raises FencedError: another live lineage writes to the replica
        """
        with self._lock:
            if self._state().fenced:
                return False
            if self._engine.waits_for_stream:
                return False
            if not self._surveyed:
                raise ReplicaTemporaryError(f"{self.name}: the replica was not listed yet")
            if not self._folder.exists():
                raise self._folder_lost(_replaced(self.spec))
            try:
                self._own()
                if self.needs_survey:
                    return False  # another process used the database: the replica is listed anew
                staged = turn.sync(self._engine)
            except TableLostError as error:
                raise self._folder_lost(error.strerror or str(error)) from error
            except OSError as error:
                raise self._failed(explain(self.spec, error)) from error
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
        self._disown()
        return error

    def park(self, *, force: bool = False) -> bool:
        """Seal and close the database; False if it must stay attached for now."""
        with self._lock:
            if not self.attached:
                return True  # what was noted when it was parked still counts
            stream = self._engine.stream
            if stream is not None and not stream.produced:
                return False
            before = prints(self.spec.db_path)
            try:
                if not self._engine.park(force=force):
                    return False
            except OSError as error:
                self._engine.detach(keep_wal=True)
                raise self._failed(explain(self.spec, error)) from error
            after = prints(self.spec.db_path)
            sealed = self._engine.state.fingerprint is not None
            # Only the last connection removes a WAL; any other move is a commit that came between.
            quiet = after == before or (before[1] is not None and after[1] is None)
            self._parked = after if quiet and not sealed else None
            self._disown()
            return True

    def close(self, *, going: bool = False) -> None:
        """Park, whatever the seal says, and let go of everything.

        ``going``: the database goes, or went; first what can still be had of it is staged.
        """
        with self._lock:
            self._engine.reads.leave(self.name)
            stream = self._engine.stream
            if stream is not None and not (going and stream.produced):
                streaming.end(self._engine, stream)
            try:
                if going:
                    self._engine.stream_wish = ""
                    farewell(self._engine)
                elif self.attached:
                    self.park(force=True)
                elif self._folder.owned:
                    self._engine.save()
            except OSError as error:
                raise self._failed(explain(self.spec, error)) from error
            finally:
                if not (
                    going and (self.pending or self.streaming)
                ):  # what waits is still to be uploaded
                    self._folder.disown()
                if not going:
                    self._engine.leave_spool()

    # --- upload: network ---

    def upload_next(self) -> bool:
        """Put the oldest staged file on the replica; False if there is none.

        :raises FencedError: another writer's file is there under that name
        :raises ReplicaError: the storage failed; the file stays staged
        """
        with self._lock:
            if not self.pending or self._state().fenced:
                return False
            info = self._engine.queue[0]
        try:
            with self._folder.base() as base:
                result = upload.put(self._client, base, info, late_ms=self._late_ms)
        except FileNotFoundError as error:
            with self._lock:
                if self._is_next(info):
                    raise self._folder_lost(f"staged file {info.name} was removed") from error
                return True
        except DatabaseError as error:  # nobody would look again while the database is quiet
            with self._lock:
                raise self._folder_lost(_replaced(self.spec)) from error
        except OSError as error:
            raise explain(self.spec, error) from error
        with self._lock:
            if not self._is_next(info):
                return True  # a reset came between
            if info.level == 0:
                self._late_ms = 0  # only the first number of a run can have been another's
            if result.outcome is upload.Outcome.FENCED:
                self._engine.fence(result.text)
                raise FencedError(f"{self.name}: {result.text}", hint=fence_hint(self.name))
            if result.outcome is upload.Outcome.SUPERSEDED:
                self._error = supersede(self._engine, result)
            else:
                self._error = acknowledge(self._engine, info) or self._error
            self._disown()
        if self._on_acknowledged is not None:
            self._on_acknowledged(self, result.info)
        return True

    def stream(self) -> bool:
        """Upload what the spool cannot hold while it is being encoded, R held; False if nothing is.

        Takes as long as the network.  What was committed meanwhile is left to the next sync.

        :raises DatabaseError: the database failed, or its WAL grew too long meanwhile
        :raises FencedError: another writer's file is there under that name
        :raises ReplicaError: the storage failed
        """
        engine, whole = self._engine, self._engine.stream_wish == "pages"
        try:
            with self._lock:
                if self._state().fenced or self.needs_survey:
                    return False
                self._own()
                stream = None if self.needs_survey else streaming.begin(engine)
            if stream is None:
                return False
            streaming.send(
                engine,
                stream,
                self._lock,
                self._client,
                self._late_ms,
                lambda result: self._streamed(stream, result),
            )
        except StreamEndedError:
            return False  # a reset, or the stop, came between
        except (OSError, PyrepError) as error:
            told = explain(self.spec, error) if isinstance(error, OSError) else error
            with self._lock:
                if whole:
                    self._error, self._degraded = str(told), isinstance(told, SpoolFullError)
                self._disown()
            raise told from error.__cause__
        return True

    def _streamed(self, stream: Stream, result: upload.PutResult) -> None:
        """Note what the storage said to one file of a stream."""
        with self._lock:
            if self._engine.stream is not stream:
                raise StreamEndedError(f"{self.name}: begins anew")
            if result.outcome is upload.Outcome.FENCED:
                self._engine.fence(result.text)
                raise FencedError(f"{self.name}: {result.text}", hint=fence_hint(self.name))
            if result.info.level == 0:
                self._late_ms = 0
            trouble = finish(self._engine, stream, result)
            if not stream.of_position:
                self._error, self._degraded = trouble, False
            self._disown()
        if self._on_acknowledged is not None:
            self._on_acknowledged(self, result.info)

    def _is_next(self, info: FileInfo) -> bool:
        return bool(self._engine.queue) and self._engine.queue[0] is info

    def _folder_lost(self, why: str) -> DatabaseError:
        """Begin again from the replica: somebody took away what pyrep had noted."""
        self._engine.detach(keep_wal=True)
        self._folder.disown()
        self._forget_staged()
        self._error = f"{self.name}: {why}; the replica is listed again"
        return DatabaseError(
            self._error,
            hint="Leave the state directory alone; to forget it: pyrep reset.",
        )

    # --- levels and snapshots ---

    def compact(self, level: int, files: Sequence[FileInfo]) -> FileInfo | None:
        """Merge what ``level`` lacks of the level below and store it; None if it lacks nothing.

        ``files`` are all that are known on the replica.  Network; no lock is held there.

        :raises LTXError: an input is missing, damaged or does not follow
        :raises ReplicaError: the storage failed
        """
        inputs = compactor.inputs_for(files, level)
        if not inputs or self._state().fenced:
            return None
        try:
            like = os.stat(self.spec.db_path, follow_symlinks=False)
            self._folder.create(like)
            with self._lock:
                self._own()
                self._state()
                if self._elsewhere:  # another database's files may have the same names and sizes
                    self._folder.discard(self._folder.staged())
            zstd_level = self.spec.settings.replica.zstd_level
            info = compactor.compact(
                self._client, self._folder, inputs, level, like, zstd_level=zstd_level
            )
            if level == 1:
                self._release(info.max_txid)
        except OSError as error:
            raise explain(self.spec, error) from error
        finally:
            with self._lock:
                self._disown()
        if self._on_acknowledged is not None:
            self._on_acknowledged(self, info)
        return info

    def _release(self, merged: TXID) -> None:
        """Delete the staged files that level 1 holds, also those of a run before."""
        with self._lock:
            self._engine.kept.release(merged)
            below = min(merged, self._state().durable_txid - 1)
            old = [i for i in self._folder.staged() if not i.level and i.max_txid <= below]
            self._folder.discard(old)

    def snapshot(self) -> bool:
        """Sync, and stage a level-9 file of that state; False if there is nothing to take.

        Never blocks a writer.  Attaches a parked tenant.

        :raises DatabaseError: it could not be staged, which leaves replication as it is
        """
        with self._lock:
            for _ in range(_SNAPSHOT_ATTEMPTS):
                self.sync()
                try:
                    if stage_snapshot(self._engine):
                        return True
                except OSError as error:
                    raise explain(self.spec, error) from error
        return False

    def listing(self) -> list[FileInfo]:
        """List the replica.

        :raises ReplicaError: the storage failed
        """
        return lineage.listing(self._client)

    def delete(self, files: Sequence[FileInfo]) -> None:
        """Delete files from the replica.

        :raises ReplicaError: the storage failed
        """
        self._client.delete_ltx(files)

    def heal(self, cause: str) -> None:
        """Let the next sync ship all pages, as a snapshot too: the chain of files is broken."""
        with self._lock:
            self._engine.heal_cause = cause

    # --- the operator ---

    def take_over(self) -> None:
        """End fencing: all pages go to the replica at the next number."""
        with self._lock:
            self._state()
            self._engine.detach()
            if self._folder.exists():
                self._own()
            self._engine.state = replace(self._state(), fenced="", take_over=True)
            self._start_anew()

    def reset(self) -> list[str]:
        """Forget the local position, keep the lineage; return the names that were removed."""
        with self._lock:
            self._engine.detach()
            if self._folder.exists():
                self._own()
            state = self._state()
            names = self._folder.remove()
            self._engine.state = SyncState(state.node_id, fenced=state.fenced)
            self._start_anew()
            return names

    def _start_anew(self) -> None:
        self._forget_staged()
        self._error, self._degraded = "", False
        if self._folder.exists():
            self._engine.save()
        self._folder.disown()


def _replaced(spec: TenantSpec) -> str:
    return f"{spec.state_path} was removed or replaced"
