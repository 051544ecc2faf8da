"""Restore one database: plan, apply in order, prove, publish.

The planned files are applied one after another to a temporary file, so memory is constant at
any size: small files are read ahead on a few threads, large ones decoded by spans on all.
Nothing that exists is touched before the new file is proven.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pyrep import osfs, sqlite
from pyrep._ltx import Header
from pyrep.clock import Clock, SystemClock
from pyrep.errors import LTXCorruptError, LTXGapError, LTXNotFoundError
from pyrep.ids import TXID
from pyrep.restore.apply import Applier
from pyrep.restore.plan import Plan, plan
from pyrep.restore.proof import PageCRCs, check_integrity, check_mode, database_checksum, prove
from pyrep.restore.source import Source, in_order, list_files
from pyrep.restore.target import Ownership, Target, TempFile, describe_os_errors
from pyrep.storage.base import ReplicaClient
from pyrep.storage.reread import READS, reread

__all__ = ["Progress", "RestoreOptions", "RestoreResult", "plan_restore", "restore"]

REPLANS = 3
_READ_AHEAD_BYTES = 32 << 20
_READ_AHEAD_FILES = 32
_CONNECTIONS = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """Say how far a restore is; bytes are those of the LTX files.  A new plan begins at zero."""

    files_done: int
    files: int
    bytes_done: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """Say what to restore and how.

    ``txid`` or ``timestamp_ms`` (since the epoch) choose a state, neither the newest.
    ``force`` replaces what is there.  ``integrity_check`` is ``none``, ``quick`` or ``full``.
    ``threads`` 0 means every core.  ``ownership`` counts where no file is replaced.
    ``progress`` is called from several threads, one at a time; ``guard`` with a file that is
    about to be replaced, and raises if it is in use; ``on_page_crcs`` with the raw CRC-64 of
    every page, before the file is published.  Setting ``cancel`` ends the restore with an error.
    """

    txid: int | None = None
    timestamp_ms: int | None = None
    force: bool = False
    integrity_check: str = "none"
    threads: int = 0
    ownership: Ownership = field(default_factory=Ownership)
    progress: Callable[[Progress], None] | None = None
    guard: Callable[[Path], None] = sqlite.guard_unused
    on_page_crcs: PageCRCs | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """Describe a restored database.

    ``database_checksum`` is 0 if it was not computed; ``proven`` says that it travelled with
    the replica and was found again.  ``node_id`` is that of the last file applied, ``commit``
    counts pages, ``seconds`` is the time taken.
    """

    output: Path
    plan: Plan
    txid: TXID
    timestamp_ms: int
    page_size: int
    commit: int
    database_checksum: int
    proven: bool
    node_id: int
    integrity_check: str
    seconds: float

    @property
    def size(self) -> int:
        """Return the database's size in bytes."""
        return self.page_size * self.commit


def plan_restore(
    client: ReplicaClient, *, txid: int | None = None, timestamp_ms: int | None = None
) -> Plan:
    """List the replica and plan; a gap is believed only if a second listing shows it too.

    (A file may be listed while another is just being written or compacted.)

    :raises TXNotAvailableError: the wanted state is not there
    :raises LTXGapError: it lies beyond a gap
    """
    exact_times = timestamp_ms is not None
    try:
        files = list_files(client, exact_times=exact_times)
        return plan(files, txid=txid, timestamp_ms=timestamp_ms)
    except LTXGapError:
        files = list_files(client, exact_times=exact_times)
        return plan(files, txid=txid, timestamp_ms=timestamp_ms)


def restore(
    client: ReplicaClient, output: Path, options: RestoreOptions | None = None
) -> RestoreResult:
    """Restore a replica's database to ``output``; either all of it appears there or nothing.

    What is at ``output`` is replaced, with its sidecars, only with ``force`` and only when the
    new file is proven; an empty file without sidecars does not count.

    :raises OutputExistsError: something is there
    :raises TXNotAvailableError: the wanted state is not on the replica
    :raises LTXError: files are missing, damaged or of another lineage
    :raises ReplicaError: the storage failed
    :raises DatabaseError: the integrity check failed, or the old file is in use
    :raises PyrepError: the file system failed
    """
    options = options or RestoreOptions()
    check_mode(options.integrity_check)
    began = options.clock.monotonic()
    target = Target(output, force=options.force)
    target.check()
    chosen = plan_restore(client, txid=options.txid, timestamp_ms=options.timestamp_ms)
    target.make_parent(options.ownership)
    with TempFile(target.output) as temp:
        job = _Job(client, temp, options)
        chosen, header = job.apply_or_replan(chosen)
        checksum, proven = job.prove(chosen, header)
        check_integrity(temp, target.output, options.integrity_check)
        temp.finish(options.ownership, target.replaced())
        target.publish(temp, options.guard)
    return RestoreResult(
        output=target.output,
        plan=chosen,
        txid=chosen.max_txid,
        timestamp_ms=chosen.timestamp_ms,
        page_size=header.page_size,
        commit=header.commit,
        database_checksum=checksum,
        proven=proven,
        node_id=header.node_id,
        integrity_check=options.integrity_check,
        seconds=options.clock.monotonic() - began,
    )


class _Job:
    """Apply the files of one restore to its temporary file, and say how far it is."""

    def __init__(self, client: ReplicaClient, temp: TempFile, options: RestoreOptions) -> None:
        self._client = client
        self._temp = temp
        self._options = options
        self._threads = options.threads or len(os.sched_getaffinity(0))
        self._source = Source(client, options.clock, options.cancel, self._add_bytes)
        self._lock = threading.Lock()
        self._progress = Progress(0, 0, 0, 0)  # guarded by _lock

    def apply_or_replan(self, chosen: Plan) -> tuple[Plan, Header]:
        """Apply the plan; if a file has vanished meanwhile (retention), plan again.

        Returns the plan that was applied and the header of its last file.

        :raises LTXNotFoundError: files vanished from each of ``REPLANS`` further plans too
        """
        options = self._options
        for _ in range(REPLANS):
            try:
                return chosen, self._apply_or_reread(chosen)
            except LTXNotFoundError as error:
                _log.info("%s: planning again: %s", self._client.url, error)
            self._empty()
            chosen = plan_restore(
                self._client, txid=options.txid, timestamp_ms=options.timestamp_ms
            )
        return chosen, self._apply_or_reread(chosen)

    def _apply_or_reread(self, chosen: Plan) -> Header:
        """Apply the plan; if a file arrives damaged that is whole in the storage, begin anew.

        Pages of a damaged file may have gone anywhere, so nothing that was written is kept.  From
        then on small files are verified before they are applied.

        :raises LTXCorruptError: a file is damaged in the storage
        """
        for attempt in range(READS - 1):
            try:
                return self._apply(chosen, verify=attempt > 0)
            except LTXCorruptError as error:
                self._look_again(chosen, error)
            self._empty()
        return self._apply(chosen, verify=True)

    def _look_again(self, chosen: Plan, error: LTXCorruptError) -> None:
        """Raise the error again unless the file that it names is whole by now."""
        damaged = [info for info in chosen.files if self._source.name(info) == error.path]
        if not damaged:
            raise error
        reread(lambda: self._source.verify(damaged[0]))
        _log.info("%s: applying again: %s", self._client.url, error)

    def _empty(self) -> None:
        with describe_os_errors(self._temp.path, "starting again"):
            osfs.truncate("restore.truncate", self._temp.fd, 0)

    def prove(self, chosen: Plan, header: Header) -> tuple[int, bool]:
        """Return the database checksum (0: not needed) and whether the replica vouches for it.

        :raises LTXChecksumError: the pages are not those that the last file speaks of
        """
        wanted, on_page_crcs = header.post_checksum, self._options.on_page_crcs
        if not wanted and on_page_crcs is None:
            return 0, False
        found = database_checksum(self._temp, header, self._threads, on_page_crcs)
        if wanted:
            prove(self._temp, self._source.name(chosen.files[-1]), found, wanted)
        return found, bool(wanted)

    def _apply(self, chosen: Plan, *, verify: bool) -> Header:
        self._report(Progress(0, len(chosen.files), 0, chosen.size))
        for info in chosen.files:
            self._source.check_size(info)
        applier = Applier(self._source, self._temp, self._threads, verify=verify)
        connections = max(1, min(self._client.capabilities.connections, _CONNECTIONS))
        pool = ThreadPoolExecutor(connections, "pyrep-fetch")
        try:
            for info, data in in_order(
                pool,
                applier.read_ahead,
                chosen.files,
                ahead=_READ_AHEAD_FILES,
                cost=applier.bytes_ahead,
                budget=_READ_AHEAD_BYTES,
            ):
                header = applier.apply(info, data)
                self._add(files=1)
        finally:
            pool.shutdown(cancel_futures=True)
        return header  # a plan has one file at least

    def _add_bytes(self, count: int) -> None:
        self._add(count=count)

    def _add(self, *, files: int = 0, count: int = 0) -> None:
        with self._lock:
            now = self._progress
            done = min(now.bytes_done + count, now.bytes)  # what is read twice counts once
            self._report(Progress(now.files_done + files, now.files, done, now.bytes))

    def _report(self, progress: Progress) -> None:
        self._progress = progress
        if self._options.progress is not None:
            self._options.progress(progress)
