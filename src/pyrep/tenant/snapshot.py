"""Stage a level-9 file of the database as it is at the position."""

from __future__ import annotations

from pyrep.errors import DatabaseError
from pyrep.ids import SNAPSHOT_LEVEL
from pyrep.tenant.capture import SnapshotSource
from pyrep.tenant.session import Session
from pyrep.tenant.sync import Engine, info_of

__all__ = ["stage_snapshot"]


def stage_snapshot(engine: Engine) -> bool:
    """Stage and enqueue a snapshot of exactly the position; False if the database moved on.

    It has the time of that state, and needs R only until its last page is staged.

    :raises DatabaseError: the database is not what the replica's files lead to; the next sync is
        a diff
    """
    session = engine.session
    if session is None or not engine.state.txid:
        return False
    with engine.capturing(session) as capture:
        source = capture.source()
    if not _reach(engine, session, source):
        return False
    with engine.capturing(session) as capture:
        staged = capture.stage_snapshot(source, following=False)
    info, state = info_of(staged, SNAPSHOT_LEVEL), engine.state
    if state.db_checksum and staged.post_checksum not in (0, state.db_checksum):
        engine.folder.discard([info])
        engine.diff_cause = "the database is not what the files on the replica lead to"
        raise DatabaseError(
            f"{engine.name}: at txid {state.txid} {engine.diff_cause}",
            hint="Every page is compared now, and what differs is shipped.",
        )
    engine.enqueue(info)
    return True


def _reach(engine: Engine, session: Session, source: SnapshotSource) -> bool:
    """Bring the position to the snapshot's source, which commits of others cannot move."""
    if session.rollback:
        return engine.counter is not None and source.change_counter == engine.counter[0]
    return engine.ship_to(session, source.view)
