"""The end of a database that is deleted, renamed, or not configured any more."""

from __future__ import annotations

from pyrep.tenant.continuity import look
from pyrep.tenant.sync import Engine

__all__ = ["farewell"]


def farewell(engine: Engine) -> None:
    """Stage what was committed last, if that can be proven, and close the database.

    A file that went is read through what is open of it.
    """
    session = engine.session
    if session is None:
        return
    try:
        if not session.rollback:
            engine.ship_to(session, look(session.att))
    finally:
        if session.att.identity_error():
            engine.detach(keep_wal=True)
        else:
            engine.park(force=True)
