"""Scenarios of R: moves, checkpoints of both sides, readers that pin the WAL, the emergency."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.app import App, Writer, differing_pages
from fixtures.effort import times, wait_until
from fixtures.fakeclock import FakeClock
from fixtures.power import salts
from fixtures.rig import Rig
from fixtures.ticking import Hammer, ticking
from pyrep.errors import DatabaseBusyError
from pyrep.sqlite import Attachment

_INSERT = "insert into t (a) values (randomblob(2000))"
_MOVES = 2000
_GENERATIONS = 30  # that many restarts of the WAL at least


@dataclass
class Trace:
    """Count what pyrep does to a database."""

    moves: int = 0
    checkpoints: int = 0
    write_locks: int = 0
    generations: set[tuple[int, int]] = field(default_factory=set)


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Trace:
    found = Trace()

    def counted(name: str, counter: str) -> None:
        original = getattr(Attachment, name)

        def call(self, *arguments):
            setattr(found, counter, getattr(found, counter) + 1)
            return original(self, *arguments)

        monkeypatch.setattr(Attachment, name, call)

    counted("move", "moves")
    counted("passive", "checkpoints")
    counted("write_lock", "write_locks")
    return found


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Return a function that makes a rig with these settings; all are closed at the end."""
    with ExitStack() as stack:

        def build(folder: Path = tmp_path, **settings: Any) -> Rig:
            rig = Rig(folder, **settings)
            stack.callback(rig.close)
            return rig

        yield build


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


@pytest.fixture
def app(rig: Rig, start_app: Callable[..., App]) -> App:
    app = start_app(rig.db, busy_timeout_ms=100, autocheckpoint=0)
    app.execute("create table t (id integer primary key, a)")
    return app


def fill(app: App, rows: int) -> None:
    for _ in range(rows):
        app.execute(_INSERT)


# --- a gap between end and begin loses data, an overlap does not ---


def restart_twice(app: App) -> Callable[[], None]:
    """Return what an application does in a moment of its own: commit, checkpoint, commit."""

    def act() -> None:
        app.execute("update t set a = randomblob(2000) where id < 4")
        app.checkpoint("passive")
        fill(app, 1)

    return act


def test_a_gap_in_the_move_loses_data(rig, app, monkeypatch) -> None:
    """What the tests below would see: the loss is found by comparing, and by nothing else."""
    act = restart_twice(app)

    def gap(self: Attachment) -> None:
        self.end()
        act()
        self._begin(self._idle)
        self._reader = 1 - self._reader

    fill(app, 10)
    rig.ship()
    app.execute("insert into t (a) values ('before')")
    with monkeypatch.context() as patch:
        patch.setattr(Attachment, "move", gap)
        rig.ship()
    rig.ship()
    assert differing_pages(rig.truth(), rig.restored()) != []


@pytest.mark.parametrize("moment", ["before", "between", "after"])
@pytest.mark.parametrize("mark", ["zero", "above-zero"])
def test_an_overlapped_move_loses_nothing(rig, app, monkeypatch, moment, mark) -> None:
    act = restart_twice(app)
    begin, move = Attachment._begin, Attachment.move

    def acting_begin(self: Attachment, connection) -> None:
        begin(self, connection)
        act()

    def acting_move(self: Attachment) -> None:
        if moment == "before":
            act()
        move(self)
        if moment == "after":
            act()

    fill(app, 10)
    rig.ship()
    if mark == "zero":
        app.checkpoint("passive")
        rig.ship()
    app.execute("insert into t (a) values ('before')")
    with monkeypatch.context() as patch:
        patch.setattr(Attachment, "move", acting_move)
        if moment == "between":
            patch.setattr(Attachment, "_begin", acting_begin)
        rig.ship()
    rig.ship()
    rig.expect_equal()
    fill(app, 2)
    rig.ship()
    rig.expect_equal()


@pytest.mark.slow
def test_thousands_of_moves_lose_nothing(make_rig, start_app, trace, caplog) -> None:
    """Two writers, VACUUM and all checkpoint modes: no diff is needed, nothing is missing."""
    caplog.set_level(logging.INFO)
    rig = make_rig(min_checkpoint_page_count=20)
    with start_app(rig.db) as first:
        first.script(
            "create table t (i integer primary key, a);"
            "create table seq (n integer); insert into seq values (0)"
        )
    with ExitStack() as stack:
        hammers = [
            stack.enter_context(Hammer(rig.db, seed, busy_timeout_ms=3000, kinds="all"))
            for seed in (1, 2)
        ]
        while trace.moves < times(_MOVES) or len(trace.generations) <= _GENERATIONS:
            try:
                rig.ship()
            except DatabaseBusyError:
                continue
            trace.generations.add(rig.tenant._engine.state.salts)
        reports = [hammer.finish() for hammer in hammers]
    rig.ship()
    rig.expect_equal()
    causes = {record.cause for record in caplog.records if hasattr(record, "cause")}
    assert causes == {"this is the first backup"}
    assert sum(report["checkpoints"] for report in reports) > 10, reports
    print(f"{trace.moves} moves, {len(trace.generations)} generations, {reports}")


# --- the application is never in the way, nor pyrep in its ---


@pytest.mark.parametrize("mode", ["full", "restart", "truncate"])
def test_blocking_checkpoint_of_the_application_ends_after_a_few_ticks(rig, app, mode) -> None:
    app.open("patient", busy_timeout_ms=10_000)
    rig.ship()
    with ticking(rig):
        for _ in range(5):
            fill(app, 3)
            started = time.monotonic()
            busy, _, _ = app.checkpoint(mode, connection="patient")
            assert not busy
            assert time.monotonic() - started < 2.0
    rig.ship()
    rig.expect_equal()


def test_without_ticks_a_blocking_checkpoint_waits_for_its_timeout(rig, app) -> None:
    """What the test above would see: a reader that stands still blocks."""
    rig.ship()
    fill(app, 3)
    app.checkpoint("passive")
    busy, _, _ = app.checkpoint("restart")
    assert busy


@pytest.mark.slow
def test_an_application_without_patience_never_meets_a_lock(make_rig, start_app, trace) -> None:
    """With a busy timeout of 0 each lock of ours would be an error; there are none."""
    rig = make_rig(min_checkpoint_page_count=20)
    app = start_app(rig.db)
    app.script(
        "create table t (i integer primary key, a);"
        "create table seq (n integer); insert into seq values (0)"
    )
    app.close()
    with Hammer(rig.db, 7, busy_timeout_ms=0, kinds="rows") as hammer:
        goal = times(200)
        while trace.checkpoints < goal:
            rig.ship()
        report = hammer.finish()
    assert report["errors"] == {}
    assert report["commits"] > goal
    assert trace.write_locks == 0
    rig.ship()
    rig.expect_equal()


def test_a_writer_that_never_rests_does_not_grow_the_wal(make_rig, trace, caplog) -> None:
    """R's mark of the last tick would keep each checkpoint short, and the WAL from restarting."""
    caplog.set_level(logging.WARNING)
    rig = make_rig(min_checkpoint_page_count=50)
    wal = Path(f"{rig.db}-wal")
    with Writer(rig.db, rate=150, workers=2, autocheckpoint=0) as writer:
        wait_until(lambda: wal.exists() and wal.stat().st_size > 100_000, "the load began")
        with ticking(rig, seconds=0.1) as failures:
            seen: set[bytes] = set()

            def restarted() -> bool:
                seen.add(salts(wal))
                return len(seen) > 6 or bool(failures)

            wait_until(restarted, "the WAL is restarted again and again")
        report = writer.stop()
    assert report["errors"] == 0
    assert trace.write_locks == 0
    assert caplog.records == []
    rig.ship()
    rig.expect_equal()


def test_a_reader_of_the_application_is_reported_and_stalls_nobody(
    make_rig, start_app, trace, caplog
) -> None:
    caplog.set_level(logging.WARNING)
    clock = FakeClock()
    rig = make_rig(clock=clock, min_checkpoint_page_count=10, truncate_page_n=30)
    app = start_app(rig.db, busy_timeout_ms=0, autocheckpoint=0)
    app.execute("create table t (id integer primary key, a)")
    rig.ship()
    fill(app, 3)
    app.open("reader")
    app.execute("begin", connection="reader")
    app.execute("select count(*) from t", connection="reader")
    for _ in range(15):
        fill(app, 5)  # would raise if a lock of ours were in its way
        clock.advance(10)
        assert rig.ship()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.message for record in warnings] == [
        "a reader of the application keeps the WAL from being checkpointed"
    ] * 2
    assert warnings[0].db == str(rig.db)
    assert warnings[0].seconds == 60
    assert warnings[0].frames > 0
    assert warnings[1].seconds > warnings[0].seconds
    assert trace.write_locks == 0  # a write lock would not move the reader
    rig.expect_equal()
    app.execute("commit", connection="reader")
    generation = salts(Path(f"{rig.db}-wal"))
    for _ in range(3):
        fill(app, 1)
        rig.ship()
    assert salts(Path(f"{rig.db}-wal")) != generation
    rig.expect_equal()


# --- the emergency ---


def fall_short(rig: Rig, app: App, rounds: int) -> None:
    """Let checkpoints fall short: somebody commits inside each of them."""
    passive = Attachment.passive

    def overtaken(self: Attachment):
        if not self._idle.in_transaction:  # in the emergency it holds the write lock
            fill(app, 2)
        return passive(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attachment, "passive", overtaken)
        for _ in range(rounds):
            fill(app, 10)
            rig.ship()


@pytest.mark.parametrize(("limit", "expected"), [(60, True), (-1, False), (100_000, False)])
def test_emergency_checkpoint(make_rig, start_app, trace, caplog, limit, expected) -> None:
    caplog.set_level(logging.WARNING)
    rig = make_rig(min_checkpoint_page_count=10, truncate_page_n=limit)
    app = start_app(rig.db, busy_timeout_ms=0, autocheckpoint=0)
    app.execute("create table t (id integer primary key, a)")
    rig.ship()
    generation = salts(Path(f"{rig.db}-wal"))
    fall_short(rig, app, 12)
    fill(app, 1)
    assert (trace.write_locks > 0) is expected
    assert (salts(Path(f"{rig.db}-wal")) != generation) is expected
    said = [r.message for r in caplog.records if "truncate-page-n" in r.message]
    assert bool(said) is expected
    rig.ship()
    rig.expect_equal()


def test_a_commit_before_the_emergency_lock_is_shipped(make_rig, start_app, monkeypatch) -> None:
    """The tail is synced under the lock; else it would be backfilled, restarted over and lost."""
    rig = make_rig(min_checkpoint_page_count=10, truncate_page_n=60)
    app = start_app(rig.db, busy_timeout_ms=0, autocheckpoint=0)
    app.execute("create table t (id integer primary key, a)")
    rig.ship()
    write_lock, locks = Attachment.write_lock, []

    def late(self: Attachment):
        fill(app, 3)
        locks.append(self)
        return write_lock(self)

    monkeypatch.setattr(Attachment, "write_lock", late)
    fall_short(rig, app, 12)
    assert locks
    fill(app, 3)
    rig.ship()
    fill(app, 3)
    rig.ship()
    rig.expect_equal()


def test_a_refused_emergency_lock_is_tried_again(make_rig, start_app, trace) -> None:
    """A writer of the application that holds the lock is not waited for beyond our timeout."""
    rig = make_rig(
        min_checkpoint_page_count=10,
        truncate_page_n=60,
        busy_timeout=timedelta(milliseconds=20),
    )
    app = start_app(rig.db, busy_timeout_ms=0, autocheckpoint=0)
    app.execute("create table t (id integer primary key, a)")
    rig.ship()
    fall_short(rig, app, 4)
    fill(app, 60)
    app.open("holder", busy_timeout_ms=0)

    passive = Attachment.passive

    def held(self: Attachment):
        fill(app, 1)
        app.execute("begin immediate", connection="holder")
        return passive(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attachment, "passive", held)
        patch.setattr("pyrep.tenant.session._CHECKPOINT_ATTEMPTS", 1)
        with pytest.raises(DatabaseBusyError):
            rig.ship()
    app.execute("rollback", connection="holder")
    assert rig.tenant.attached
    assert trace.write_locks == 1
    fill(app, 3)
    rig.ship()
    rig.expect_equal()
