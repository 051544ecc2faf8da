"""What follows from the storage's yes to a staged file."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from pyrep.errors import DatabaseError, ReplicaTemporaryError
from pyrep.ltxfile import FileInfo
from pyrep.tenant.pages import sync_table
from pyrep.tenant.stream import Stream
from pyrep.tenant.sync import Engine
from pyrep.tenant.trouble import explain
from pyrep.tenant.upload import Outcome, PutResult

__all__ = ["acknowledge", "finish", "supersede"]

_TABLE_SYNC_TXIDS = 1000  # and at each park


def acknowledge(engine: Engine, info: FileInfo, *, streamed: bool = False) -> str:
    """Advance the durable position; the staged file stays until level 1 has it.

    One that was ``streamed`` is nowhere else.  Returns what went wrong with pyrep's own notes,
    which is no loss, or ''.
    """
    engine.dequeue()
    trouble = ""
    engine.reached = None  # the snapshot goes first, and closes every gap
    if info.level == 0:
        engine.state = replace(engine.state, durable_txid=info.max_txid)
        trouble = _fold(engine)
    try:
        if streamed:
            return trouble
        if info.level:
            engine.folder.discard([info])
        else:
            engine.kept.add(info, engine.queued_bytes)
    except OSError as error:
        trouble = str(explain(engine.spec, error))
    return trouble


def finish(engine: Engine, stream: Stream, result: PutResult) -> str:
    """Take up the storage's yes to a file of a stream; after the last one it is over.

    Returns what went wrong with pyrep's own notes, or ''.

    :raises ReplicaTemporaryError: an earlier attempt's snapshot has used the TXID up
    """
    if stream.of_position:
        engine.stream, engine.stream_wish = None, ""
        engine.count_spool()
        return ""
    if result.info.level:
        if result.outcome is Outcome.SUPERSEDED:
            raise ReplicaTemporaryError(
                f"{engine.name}: {result.info.name} of an earlier attempt is on the replica",
                hint="Every page is sent again, as the next TXID.",
            )
        stream.snapshot_stored = True
        return acknowledge(engine, engine.queue[0], streamed=True)
    engine.stream = None
    engine.attempted = frozenset()
    if result.outcome is Outcome.SUPERSEDED:
        engine.detach()
        return supersede(engine, result)
    trouble = acknowledge(engine, engine.queue[0], streamed=True)
    engine.trial.succeeded()
    if result.info.size <= engine.spec.settings.spool_limit:
        engine.outgrown = 0
    engine.save()
    return trouble


def supersede(engine: Engine, result: PutResult) -> str:
    """Take an earlier put of ours as that TXID: killed after the put, its staged file lost."""
    found = result.found
    if found is None:
        raise DatabaseError(f"{engine.name}: nothing is known of the file on the replica")
    engine.folder.discard(list(engine.queue))
    engine.replace_queue([])
    engine.pages.staged[:] = [found]
    trouble = _fold(engine)
    engine.state = replace(
        engine.state.unproven(),
        txid=found.txid,
        durable_txid=found.txid,
        commit=found.commit,
        db_checksum=found.post_checksum,
    )
    engine.diff_cause = f"txid {found.txid} was uploaded by a run of pyrep that was killed"
    engine.save()
    return trouble


def _fold(engine: Engine) -> str:
    """Take the file into the page-checksum table."""
    like = None
    with contextlib.suppress(FileNotFoundError):
        like = os.stat(engine.spec.db_path, follow_symlinks=False)
    try:
        with engine.folder.base() as base:
            engine.pages.fold(base, like)
            if engine.state.durable_txid % _TABLE_SYNC_TXIDS == 0:
                sync_table(base)
    except OSError as error:
        engine.pages.table = None
        engine.diff_cause = engine.diff_cause or "the page checksums could not be written"
        return str(explain(engine.spec, error))
    return ""
