"""Send every page past the spool: encoded and uploaded at the same time, while R is held.

A file of all pages that the spool cannot hold goes through a bounded one (:mod:`.ring`): one
thread encodes, under the tenant's lock for a moment at a time, another uploads and holds none.
The pages are read twice: the header comes first and names the checksum of all of them.  R may
move when the last page is in the spool; what was committed after it waits for the next sync.
"""

from __future__ import annotations

import logging
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import BinaryIO, cast

from pyrep import _checksum, osfs
from pyrep._ltx import Encoder
from pyrep.errors import DatabaseBusyError, DatabaseError, PyrepError, ReplicaError
from pyrep.ids import SNAPSHOT_LEVEL, TXID, lock_pgno
from pyrep.storage.base import ReplicaClient
from pyrep.tenant.capture import SnapshotSource
from pyrep.tenant.checkpoint import DEFAULT_TRUNCATE_PAGES
from pyrep.tenant.pages import StagedPages
from pyrep.tenant.ring import Ring, StreamEndedError
from pyrep.tenant.session import Session
from pyrep.tenant.snapshot import check_snapshot, reach
from pyrep.tenant.statedir import create_file
from pyrep.tenant.stream import Stream
from pyrep.tenant.sync import Engine
from pyrep.tenant.trial import Progress
from pyrep.tenant.trouble import explain
from pyrep.tenant.upload import PutResult, put_stream

__all__ = ["begin", "end", "send"]

_CHUNK_BYTES = 1 << 20
_LOOK_SECONDS = 0.25
_DURABLE_SECONDS = 60.0
_RESERVE = 4  # one part in so many of the spool stays free for what is committed meanwhile
_log = logging.getLogger(__name__)
_ENDED = "the stream was given up"

Lock = AbstractContextManager[bool]


# --- the beginning --------------------------------------------------------------------------------


def begin(engine: Engine) -> Stream | None:
    """Attach, find R's snapshot and make the spool; None if that is not possible now.

    :raises DatabaseError: the database cannot be read, or the last attempt has shown that this
        one would fail too
    """
    wish = engine.stream_wish
    of_position = wish == "snapshot"
    if not wish or engine.stream is not None or (engine.queue and not of_position):
        return None
    if not of_position:
        engine.kept.clear()
    capacity = _capacity(engine)
    engine.trial.check(capacity, engine.clock.monotonic())
    session = engine.ready()
    if session.rollback:
        engine.counter = session.counter()
    with engine.capturing(session) as capture:
        source = capture.source()
    if of_position and not reach(engine, session, source):
        raise DatabaseBusyError(f"{engine.name}: moved on before its snapshot was begun")
    levels = _levels(engine, source, of_position=of_position)
    ring = _ring(engine, session)
    engine.stream = Stream(
        ring,
        session,
        capture,
        source,
        levels,
        engine.state,
        (engine.heal_cause, engine.all_cause),
        _wal_limit(engine, source),
        Progress(source.commit, len(levels)),
    )
    engine.kept.trim(engine.queued_bytes)
    engine.changed_at = engine.clock.monotonic()
    return engine.stream


def _capacity(engine: Engine) -> int:
    left = engine.room().left - engine.kept.newest_bytes
    return max(1, left - left // _RESERVE)


def _ring(engine: Engine, session: Session) -> Ring:
    """Make the bounded file, its room taken out of the common spool before it is there.

    :raises SpoolFullError: there is none any more
    """
    while not engine.spool.claim(_claimant(engine), capacity := _capacity(engine)):
        pass  # another tenant was faster: there is less now
    try:
        with engine.capturing(session) as capture:
            with create_file(capture.base, "stream.tmp", "stream", capture.like) as fd:
                ring = Ring(os.dup(fd), capacity)
            osfs.unlink("stream.unlink", capture.base / "stream.tmp")  # a kill leaves nothing
    except BaseException:
        engine.spool.unclaim(_claimant(engine))
        raise
    return ring


def _claimant(engine: Engine) -> str:
    """Return under which name a stream takes its room, apart from what the tenant stages."""
    return f"{engine.name} stream"


def _wal_limit(engine: Engine, source: SnapshotSource) -> int:
    """Return the frames in the WAL beyond which R is let go; never forbidden, it needs no lock."""
    limit = engine.spec.settings.truncate_page_n
    limit = limit if limit > 0 else DEFAULT_TRUNCATE_PAGES
    log = source.view.log
    return limit if log < limit else limit + log


def _levels(engine: Engine, source: SnapshotSource, *, of_position: bool) -> tuple[int, ...]:
    if of_position:
        return (SNAPSHOT_LEVEL,)
    return (SNAPSHOT_LEVEL, 0) if engine.needs_snapshot(source) else (0,)


# --- the producing side ---------------------------------------------------------------------------


def _produce(engine: Engine, stream: Stream, lock: Lock) -> None:
    """Put all files of a stream into its spool, waiting for room without the lock.

    :raises DatabaseError: the database cannot be read, was written, or R had to be let go
    :raises StreamEndedError: the stream was given up
    """
    chunks = _chunks(engine, stream)
    while True:
        with lock:
            _check_alive(engine, stream)
            chunk = next(chunks, None)
        if chunk is None:
            return
        while chunk:
            chunk = chunk[stream.ring.write_some(chunk) :]
            while chunk and not stream.ring.wait_room(_LOOK_SECONDS):
                with lock:
                    _check_alive(engine, stream)
                    _check_ground(engine, stream)


def _check_alive(engine: Engine, stream: Stream) -> None:
    """Refuse to go on if the tenant has gone another way meanwhile."""
    attached = stream.produced or engine.session is stream.session
    if engine.stream is not stream or not attached:
        raise StreamEndedError(_ENDED)


def _check_ground(engine: Engine, stream: Stream) -> None:
    """Give up, while the spool is full, if R must not be held any longer."""
    if stream.produced:
        return
    if stream.session.rollback:
        stream.capture.recheck(stream.source)
    elif stream.session.att.noop().log > stream.wal_limit:
        now = engine.clock.monotonic()
        sent, capacity = stream.ring.taken, stream.ring.capacity
        raise engine.trial.too_slow(engine.name, stream.progress, sent, capacity, now)


def _chunks(engine: Engine, stream: Stream) -> Iterator[memoryview]:
    """Give the bytes of all files in pieces, some of them empty; each step needs the lock."""
    source, capture = stream.source, stream.capture
    crcs = array("Q")
    for first, count in capture.windows(source.commit):
        with capture.hold():
            crcs.extend(capture.current_crcs(source, first, count))
        yield memoryview(b"")
    capture.recheck(source)
    lock_page = lock_pgno(source.page_size)
    if lock_page <= source.commit:
        crcs[lock_page - 1] = 0
    _take_up(engine, stream, crcs)
    for number in range(len(stream.levels)):
        yield from _encode(stream, number, crcs)
        stream.ring.end_file()


def _take_up(engine: Engine, stream: Stream, crcs: array[int]) -> None:
    """Note what the files will be: their content is known now, and R keeps it."""
    source, capture, own = stream.source, stream.capture, stream.of_position
    post = _checksum.database_checksum(crcs, 1, source.page_size)
    stream.headers = [
        capture.header_of_all(source, level, following=not own, post=post)
        for level in stream.levels
    ]
    if own:
        check_snapshot(engine, stream.before, post)
        return
    last = stream.headers[-1]
    staged = StagedPages(
        TXID(last.max_txid),
        source.page_size,
        source.commit,
        array("I"),
        crcs,
        True,
        0,
        post,
        last.timestamp_ms,
        0,
    )
    snapshot = stream.info(0) if len(stream.levels) > 1 else None
    engine.take_up_all(stream.session, snapshot, staged, capture.at_source(staged, source))


def _encode(stream: Stream, number: int, crcs: array[int]) -> Iterator[memoryview]:
    """Give one file in pieces; with the last page of the last file R may move."""
    header, att = stream.headers[number], stream.capture.att
    head, encoder = header.pack(), Encoder(header, zstd_level=stream.capture.zstd_level)
    buffer = memoryview(bytearray(max(_CHUNK_BYTES, encoder.max_frame_size())))
    yield memoryview(head)
    for window in stream.capture.all_pages(stream.source):
        offsets = stream.source.offsets(window)
        found, start = array("Q", bytes(8 * len(window))), 0
        while start < len(window):
            first = start
            with stream.capture.hold():
                start, size = encoder.add_pages(
                    att.db_fd, att.wal_fd, window, offsets, first, buffer, found
                )
            _check_same(stream, window, found, crcs, range(first, start))
            stream.progress.made(encoder.pages, encoder.offset)
            yield buffer[:size]
    stream.capture.recheck(stream.source)
    stream.produced = number + 1 == len(stream.levels)
    while size := encoder.index(buffer):
        yield buffer[:size]
    written, tail = encoder.finish(0, header.post_checksum)
    if written != head:
        raise DatabaseError(f"{att.path}: the header of a streamed file came out otherwise")
    yield memoryview(tail)


def _check_same(
    stream: Stream, window: array[int], found: array[int], crcs: array[int], part: range
) -> None:
    """Refuse pages that are not what was there at the first reading."""
    first, last = window[part[0]], window[part[-1]]
    if last - first == len(part) - 1:
        same = found[part[0] : part[-1] + 1] == crcs[first - 1 : last]
    else:
        same = all(found[at] == crcs[window[at] - 1] for at in part)
    if not same:
        raise DatabaseBusyError(f"{stream.capture.att.path}: was written while it was being read")


# --- the sending side -----------------------------------------------------------------------------


def send(
    engine: Engine,
    stream: Stream,
    lock: Lock,
    client: ReplicaClient,
    late_ms: int,
    stored: Callable[[PutResult], None],
) -> None:
    """Upload the files of a stream while a thread of its own makes them; network, no lock.

    ``late_ms`` is as :func:`~pyrep.tenant.upload.put` has it; ``stored`` is called after each file.
    After any failure the tenant is where it
    was before.

    :raises DatabaseError: the database cannot be read, was written, or R had to be let go
    :raises StreamEndedError: the stream was given up by somebody else
    :raises ReplicaError: the storage failed
    """
    failures: list[Exception] = []

    def make() -> None:
        try:
            _produce(engine, stream, lock)
        except Exception as error:
            failures.append(error)
            with lock:  # at once: the upload may notice late
                end(engine, stream)

    thread = threading.Thread(target=make, name="pyrep-pages", daemon=True)
    thread.start()
    try:
        _upload(engine, stream, client, late_ms, stored)
    except (PyrepError, OSError):
        # What the making met is the cause of what the upload met.
        for failure in failures:
            if not isinstance(failure, StreamEndedError):
                raise failure from None
        raise
    finally:
        try:
            with lock:
                end(engine, stream)
        finally:
            thread.join()
            stream.ring.close()
            engine.spool.unclaim(_claimant(engine))


def _upload(
    engine: Engine,
    stream: Stream,
    client: ReplicaClient,
    late_ms: int,
    stored: Callable[[PutResult], None],
) -> None:
    stream.ring.wait_bytes()
    if stream.of_position:
        _wait_durable(engine, stream)
    for number in range(len(stream.levels)):
        source = cast(BinaryIO, stream.ring.reader(number))
        try:
            result = put_stream(
                client,
                stream.info(number),
                stream.headers[number],
                source,
                late_ms=late_ms,
                earlier=engine.attempted,
            )
        except ReplicaError:
            stream.uncertain = True
            raise
        while source.read(_CHUNK_BYTES):
            pass  # it was there already
        stored(result)


def _wait_durable(engine: Engine, stream: Stream) -> None:
    """Let the snapshot's TXID go first: it may just have been staged."""
    deadline = engine.clock.monotonic() + _DURABLE_SECONDS
    while engine.state.durable_txid < stream.before.txid:
        if stream.ring.wait_given_up(_LOOK_SECONDS):
            raise StreamEndedError(_ENDED)
        if engine.clock.monotonic() > deadline:
            raise DatabaseBusyError(f"{engine.name}: uploads wait, the snapshot must wait too")


# --- the end --------------------------------------------------------------------------------------


def end(engine: Engine, stream: Stream) -> None:
    """End a stream; one that is not complete leaves the tenant where it was before.

    What was staged after it goes too: it follows a TXID that the replica does not have.  The
    number is free again, unless a snapshot is, or may be, there under it.
    """
    stream.ring.give_up(_ENDED)
    if engine.stream is not stream:
        return
    engine.stream = None
    if stream.of_position:
        engine.stream_wish = "" if engine.stream_wish == "snapshot" else engine.stream_wish
        engine.count_spool()
        return
    engine.detach()
    if stream.headers:
        _go_back(engine, stream)
    engine.count_spool()


def _go_back(engine: Engine, stream: Stream) -> None:
    stale = list(engine.queue)
    engine.pages.staged.clear()
    engine.attempted |= {stream.headers[-1].post_checksum}
    heal, cause = stream.causes
    state = replace(stream.before.unproven(), durable_txid=engine.state.durable_txid)
    if len(stream.levels) > 1 and (stream.uncertain or stream.snapshot_stored):
        state = replace(state, txid=TXID(stream.headers[0].max_txid))
    if stream.snapshot_stored:  # it closes the chain, in the new page size
        state = replace(state, page_size=stream.source.page_size)
        heal, cause = "", heal or cause or "the page size changed"
    engine.state = state
    engine.heal_cause, engine.all_cause, engine.diff_cause = heal, cause, ""
    engine.replace_queue([])
    engine.stream_wish = "pages"
    try:
        engine.folder.discard(stale)
    except OSError as error:  # the next start sees that they do not follow
        extra = {"db": engine.name, "error": str(explain(engine.spec, error))}
        _log.warning("cannot remove staged files that do not count any more", extra=extra)
