"""Stage a level-9 file of the database as it is at the position."""

from __future__ import annotations

from pyrep.errors import DatabaseError
from pyrep.ids import SNAPSHOT_LEVEL
from pyrep.tenant.capture import OutgrownError, SnapshotSource
from pyrep.tenant.position import SyncState
from pyrep.tenant.session import Session
from pyrep.tenant.sync import Engine, info_of

__all__ = ["check_snapshot", "reach", "stage_snapshot"]


def stage_snapshot(engine: Engine) -> bool:
    """Stage and enqueue a snapshot of exactly the position; False if the database moved on.

    One that the spool cannot hold is wished for as a stream.  It has the time of that state, and
    needs R only until its last page is staged.

    :raises DatabaseError: the database is not what the replica's files lead to; the next sync is
        a diff
    """
    session = engine.session
    if session is None or not engine.state.txid or engine.stream is not None:
        return False
    if engine.stream_wish:
        return engine.stream_wish == "snapshot"
    with engine.capturing(session) as capture:
        source = capture.source()
    if engine.outgrows(source):
        return not engine.wish_stream("snapshot")
    if not reach(engine, session, source):
        return False
    if any(i.level == SNAPSHOT_LEVEL and i.max_txid == engine.state.txid for i in engine.queue):
        return True  # the one that goes before all pages is of this very state
    try:
        with engine.capturing(session) as capture:
            staged = capture.stage_snapshot(source, following=False)
    except OutgrownError:
        engine.outgrown = source.commit
        return not engine.wish_stream("snapshot")
    info = info_of(staged, SNAPSHOT_LEVEL)
    try:
        check_snapshot(engine, engine.state, staged.post_checksum)
    except DatabaseError:
        engine.folder.discard([info])
        raise
    engine.enqueue(info)
    return True


def check_snapshot(engine: Engine, state: SyncState, post: int) -> None:
    """Refuse a snapshot of ``state`` whose database checksum is not that of the position.

    :raises DatabaseError: so it is; the next sync is a diff
    """
    if state.db_checksum and post not in (0, state.db_checksum):
        engine.diff_cause = "the database is not what the files on the replica lead to"
        raise DatabaseError(
            f"{engine.name}: at txid {state.txid} {engine.diff_cause}",
            hint="Every page is compared now, and what differs is shipped.",
        )


def reach(engine: Engine, session: Session, source: SnapshotSource) -> bool:
    """Bring the position to the snapshot's source, which commits of others cannot move."""
    if session.rollback:
        return engine.counter is not None and source.change_counter == engine.counter[0]
    return engine.ship_to(session, source.view)
