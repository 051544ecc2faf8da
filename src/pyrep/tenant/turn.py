"""One sync of a tenant, in whichever journal mode its database is."""

from __future__ import annotations

from pyrep.errors import DatabaseBusyError
from pyrep.sqlite import WAL_VERSIONS
from pyrep.tenant.session import Session
from pyrep.tenant.sync import Engine

__all__ = ["sync"]

_ATTEMPTS = 8
_PATIENCE_SECONDS = 1.0  # a large database is not read over and over


def sync(engine: Engine) -> bool:
    """Stage all that was committed; return whether there was something.

    Nothing is done as long as all pages have to go, or are going, past the spool, or as the
    whole database has to be read and too many others are being read.
    """
    if engine.waits_for_stream:
        return False
    if engine.session is None and engine.must_read_all and not engine.may_read_all():
        return False
    try:
        staged = _sync(engine)
    except BaseException:
        engine.reads.leave(engine.name)
        raise
    if engine.reads.waits(engine.name):
        engine.detach()  # R holds nothing up meanwhile
    else:
        engine.reads.leave(engine.name)
    return staged


def _sync(engine: Engine) -> bool:
    session = engine.ready()
    # Without WAL mode R would block every commit, also after a replacement.
    staged = _sync_rollback(engine, session) if session.rollback else engine.sync(session)
    if engine.stream_wish == "pages":
        engine.detach()  # its turn may come late
    return staged


def _sync_rollback(engine: Engine, session: Session) -> bool:
    """Ship a change by short reads and a diff; return whether something was staged."""
    if session.att.header()[18:20] == WAL_VERSIONS:
        engine.detach()  # the application switched to WAL mode
        return _sync(engine)
    counter = session.counter()
    if counter == engine.counter and not _has_cause(engine):
        return False
    if not engine.may_read_all():
        return False
    if engine.adopting:
        engine.adopt(session)
    if not _has_cause(engine) and engine.state.page_size:
        engine.diff_cause = "the database is not in WAL mode"
    deadline = engine.clock.monotonic() + _PATIENCE_SECONDS
    staged = False
    for attempt in range(1, _ATTEMPTS + 1):
        counter = session.counter()
        try:
            staged = _ship(engine, session)
            break
        except DatabaseBusyError:  # a commit came between: normal under load
            if attempt == _ATTEMPTS or engine.clock.monotonic() >= deadline:
                raise
    engine.counter = counter
    engine.changed_at = engine.clock.monotonic()
    engine.idle_factor = 1.0
    return staged


def _has_cause(engine: Engine) -> bool:
    return bool(engine.heal_cause or engine.all_cause or engine.diff_cause)


def _ship(engine: Engine, session: Session) -> bool:
    if engine.diff_cause and not (engine.heal_cause or engine.all_cause):
        return engine.ship_diff(session)
    return engine.ship_all(session)
