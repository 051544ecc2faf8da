"""Files of all pages that the spool cannot hold: streamed past it while R is held."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.app import App, checkpointed_copy, differing_pages
from fixtures.effort import wait_until
from fixtures.fakeclock import FakeClock
from fixtures.rig import Rig
from fixtures.throttle import Throttled
from pyrep import osfs
from pyrep.errors import (
    DatabaseBusyError,
    DatabaseError,
    PyrepError,
    ReplicaTemporaryError,
)
from pyrep.storage.file import FileReplicaClient
from pyrep.storage.memory import MemoryReplicaClient
from pyrep.tenant.capture import SpoolFullError

_SPOOL = 256 << 10
_ROWS = 400  # about six times the spool, whatever compresses it
_FEW_ROWS = 90  # a little more than the spool

MakeRig = Callable[..., Rig]
StartApp = Callable[..., App]
Filled = Callable[..., tuple[Rig, App]]


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(**settings: object) -> Rig:
        replica = Throttled(FileReplicaClient(tmp_path / "replica"))
        chosen = {"client": replica, "spool_limit": _SPOOL, **settings}
        rigs.append(Rig(tmp_path, **chosen))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    osfs.disarm()
    for rig in rigs:
        rig.close()


@pytest.fixture
def filled(make_rig: MakeRig, start_app: StartApp) -> Filled:
    """Return a function that gives a rig and an application that has filled its database."""

    def make(rows: int = _ROWS, **settings: object) -> tuple[Rig, App]:
        rig = make_rig(**settings)
        app = start_app(rig.db, busy_timeout_ms=200)
        _fill(app, rows)
        return rig, app

    return make


class Sending:
    """Run ``tenant.stream`` on a thread of its own, as the daemon does."""

    def __init__(self, rig: Rig) -> None:
        self.error: PyrepError | None = None
        self.done = False
        self._rig = rig
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.done = self._rig.tenant.stream()
        except PyrepError as error:
            self.error = error

    def result(self) -> bool:
        """Wait for its end; return what it returned."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.done


def _fill(app: App, rows: int = _ROWS) -> None:
    app.execute("create table if not exists t (id integer primary key, a)")
    app.execute_many("insert into t (a) values (randomblob(?))", [(4000,)] * rows)


def _network(rig: Rig) -> Throttled:
    assert isinstance(rig.client, Throttled)
    return rig.client


def _produced(rig: Rig) -> bool:
    stream = rig.tenant._engine.stream
    return stream is not None and stream.produced


def _stuck(rig: Rig) -> None:
    """Wait until the spool is full and the network stands."""

    def full() -> bool:
        stream = rig.tenant._engine.stream
        held = stream is not None and stream.ring.held == stream.ring.capacity
        return held and _network(rig).stuck

    wait_until(full, "the spool is full")


def _replica_files(rig: Rig) -> list[str]:
    """Return all files of the replica's folder, temporary ones too."""
    return sorted(path.name for path in rig.replica.rglob("*") if path.is_file())


def _slow_first_snapshot(rig: Rig, sent: int) -> Sending:
    """Begin a first snapshot and let the network stop after ``sent`` bytes."""
    _network(rig).allow(sent)
    rig.stage()
    assert rig.tenant.wants_stream
    sending = Sending(rig)
    _stuck(rig)
    return sending


def _expect_moving(rig: Rig, app: App) -> None:
    """Require that R moves at syncs, so that the application's blocking checkpoints end."""
    for _ in range(2):
        app.checkpoint("passive")
        rig.tenant.sync()
    assert app.checkpoint("restart")[0] == 0


# --- what goes through ----------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [False, True], ids=["file", "memory"])
def test_a_first_snapshot_larger_than_the_spool(filled: Filled, memory: bool) -> None:
    rig, app = filled(client=MemoryReplicaClient()) if memory else filled()
    assert not rig.stage()
    assert rig.tenant.wants_stream
    assert not rig.tenant.attached  # R is not held while it waits for its turn
    rig.upload()
    assert rig.durable == 1
    first = rig.truth()
    app.execute("insert into t (a) values ('more')")
    rig.ship()
    assert rig.durable == 2
    rig.expect_equal()
    rig.expect_equal(1, source=first)


def test_commits_that_outgrow_the_spool_are_streamed_at_once(
    make_rig: MakeRig, start_app: StartApp
) -> None:
    """No error, and no second sync: ``-once`` has only one."""
    rig = make_rig()
    app = start_app(rig.db)
    app.execute("create table t (id integer primary key, a)")
    rig.ship()
    app.execute("begin")
    app.execute_many("insert into t (a) values (randomblob(?))", [(4000,)] * _FEW_ROWS)
    app.execute("commit")
    rig.ship()
    rig.ship()
    assert rig.tenant.status().error == ""
    rig.expect_equal()


def test_a_file_that_fits_is_staged_whole(filled: Filled) -> None:
    rig, _ = filled(20)
    assert rig.stage()
    assert not rig.tenant.streaming
    rig.upload()
    rig.expect_equal()


def test_the_spool_never_holds_more_than_its_limit(filled: Filled) -> None:
    rig, _ = filled()
    seen: list[int] = []

    def look() -> None:
        engine = rig.tenant._engine
        if engine.stream is not None:
            ring = engine.stream.ring
            folder = [entry.stat().st_size for entry in os.scandir(rig.spec().state_path)]
            staged = sum(size for size in folder if size > 4096)
            seen.append(os.fstat(ring._fd).st_size + staged)
            assert ring.held <= ring.capacity <= engine.queued_bytes <= _SPOOL

    _network(rig).on_read = look
    rig.ship()
    assert max(seen) > _SPOOL // 2
    assert max(seen) <= _SPOOL
    rig.expect_equal()


def test_r_may_move_once_the_last_page_is_in_the_spool(filled: Filled) -> None:
    rig, app = filled(_FEW_ROWS)
    sending = _slow_first_snapshot(rig, 1000)
    first = rig.truth()
    app.execute("insert into t (a) values ('meanwhile')")
    assert app.checkpoint("restart")[0] == 1  # R keeps what is not in the spool
    assert not rig.stage()
    _network(rig).allow(200_000)
    wait_until(lambda: _produced(rig) and _network(rig).stuck, "the last page is in the spool")
    assert rig.stage()  # what was committed meanwhile; then R moves
    _expect_moving(rig, app)
    assert rig.durable == 0
    assert _replica_files(rig)[0].endswith(".tmp")
    _network(rig).allow(None)
    assert sending.result()
    assert rig.durable == 1
    rig.upload()
    assert rig.durable == 2
    rig.expect_equal()
    rig.expect_equal(1, source=first)


# --- a network that is too slow -------------------------------------------------------------------


def _overflow(app: App, frames: int = 130) -> None:
    """Let the WAL pass the threshold of the tests."""
    for _ in range(frames):
        app.execute("update t set a = randomblob(4000) where id = 1")


def test_r_is_let_go_before_the_wal_fills_the_disk(filled: Filled) -> None:
    rig, app = filled(_FEW_ROWS, truncate_page_n=100)
    app.checkpoint("truncate")
    for attempt in (1, 2, 3):
        sending = _slow_first_snapshot(rig, 120_000)
        assert rig.tenant.attached
        _overflow(app)
        wait_until(lambda: not rig.tenant.attached, "R is let go")
        assert app.checkpoint("truncate")[0] == 0
        _network(rig).allow(1)  # the write notices that its source has ended
        sending.result()
        assert isinstance(sending.error, DatabaseBusyError if attempt < 3 else SpoolFullError)
        assert _replica_files(rig) == []
        assert rig.tenant.status().local_txid == 0
    assert "of about 3" in str(sending.error)
    assert "spool-limit to at least 1MiB" in sending.error.hint
    status = rig.tenant.status()
    assert (status.state, status.error) == ("degraded", str(sending.error))
    _network(rig).allow(None)  # the network got faster
    rig.ship()
    assert rig.tenant.status().state == "attached"
    assert rig.tenant.status().error == ""
    assert rig.durable == 1
    rig.expect_equal()


def test_a_hopeless_attempt_is_not_repeated_at_once(filled: Filled) -> None:
    clock = FakeClock()
    rig, app = filled(truncate_page_n=100, clock=clock)
    app.checkpoint("truncate")
    sending = _slow_first_snapshot(rig, 100_000)
    _overflow(app)
    wait_until(lambda: not rig.tenant.attached, "R is let go")
    _network(rig).allow(1)
    sending.result()
    assert isinstance(sending.error, SpoolFullError)  # twice the bandwidth would not do
    assert "spool-limit to at least 2MiB" in sending.error.hint
    assert rig.tenant.status().state == "degraded"
    _network(rig).allow(None)
    for seconds in (0, 1800):
        clock.advance(seconds)
        with pytest.raises(SpoolFullError, match="too slowly"):
            rig.tenant.stream()
        assert not rig.tenant.attached
    clock.advance(1801)
    assert rig.tenant.stream()
    assert rig.durable == 1
    assert rig.tenant.status().error == ""
    rig.expect_equal()


def test_a_larger_spool_ends_it(filled: Filled) -> None:
    rig, app = filled(truncate_page_n=100)
    app.checkpoint("truncate")
    sending = _slow_first_snapshot(rig, 0)
    _overflow(app)
    wait_until(lambda: not rig.tenant.attached, "R is let go")
    _network(rig).fail()
    sending.result()
    assert isinstance(sending.error, SpoolFullError)
    rig.settings["spool_limit"] = 2 << 20  # what the hint says
    rig.restart()
    _network(rig).allow(None)
    assert rig.ship()
    rig.expect_equal()


# --- a network, or a run, that breaks -------------------------------------------------------------


def test_a_storage_that_fails_in_the_middle(filled: Filled) -> None:
    rig, app = filled()
    sending = _slow_first_snapshot(rig, 300_000)
    _network(rig).fail()
    assert not sending.result()
    assert isinstance(sending.error, ReplicaTemporaryError)
    assert _replica_files(rig) == []
    assert not rig.tenant.attached
    assert rig.tenant.wants_stream
    app.execute("insert into t (a) values ('between')")
    _network(rig).allow(None)
    rig.ship()
    assert [info.max_txid for info in rig.client.list_ltx(0)] == [1]
    rig.expect_equal()


def test_a_page_that_another_hand_writes_between_the_two_readings(filled: Filled) -> None:
    rig, app = filled()
    app.checkpoint("truncate")
    sending = _slow_first_snapshot(rig, 100_000)
    _overwrite_last_page(rig.db)
    _network(rig).allow(None)
    sending.result()
    assert isinstance(sending.error, DatabaseBusyError)
    assert "was written while it was being read" in str(sending.error)
    assert _replica_files(rig) == []
    rig.upload()
    assert rig.durable == 1
    assert differing_pages(rig.truth(), rig.restored()) == []


def _overwrite_last_page(path: Path) -> None:
    """Write past SQLite, in a process of its own: a close in ours would drop SQLite's locks."""
    program = "import os, sys; f = open(sys.argv[1], 'r+b'); f.seek(-100, 2); f.write(bytes(100))"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


def test_what_was_staged_behind_a_stream_that_failed_is_staged_again(filled: Filled) -> None:
    rig, app = filled(_FEW_ROWS)
    sending = _slow_first_snapshot(rig, 1000)
    _network(rig).allow(200_000)
    wait_until(lambda: _produced(rig) and _network(rig).stuck, "the last page is in the spool")
    app.execute("insert into t (a) values ('behind')")
    assert rig.stage()
    assert rig.tenant.status().local_txid == 2
    assert not rig.tenant.pending  # it waits for the stream
    _network(rig).fail()
    sending.result()
    assert rig.tenant.status().local_txid == 0
    assert rig.tenant.status().pending_files == 0
    _network(rig).allow(None)
    rig.ship()
    assert rig.durable == 1
    rig.expect_equal()


@pytest.mark.parametrize("changed", [False, True], ids=["same", "changed"])
def test_the_answer_to_a_stream_is_lost(filled: Filled, changed: bool) -> None:
    rig, app = filled()
    first = checkpointed_copy(rig.db, rig.folder / "first.db")
    rig.stage()
    _network(rig).lose_answer()
    with pytest.raises(ReplicaTemporaryError):
        rig.tenant.stream()
    assert rig.durable == 0
    if changed:
        app.execute("insert into t (a) values ('between')")
    rig.upload()
    assert rig.durable == 1
    rig.expect_equal(1, source=first)
    rig.ship()
    assert rig.durable == 1 + changed
    rig.expect_equal()


@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "killed"])
@pytest.mark.parametrize("produced", [False, True], ids=["reading", "draining"])
def test_the_run_ends_in_the_middle(filled: Filled, clean: bool, produced: bool) -> None:
    rig, app = filled(_FEW_ROWS)
    sending = _slow_first_snapshot(rig, 1000)
    if produced:
        _network(rig).allow(200_000)
        wait_until(lambda: _produced(rig) and _network(rig).stuck, "all is in the spool")
        app.execute("insert into t (a) values ('behind')")
        assert rig.stage()
    old = rig.tenant
    rig.restart(clean=clean)
    _network(rig).fail()
    if not clean:
        old._engine.drop_stream()  # its threads are gone with the process
    sending.result()
    assert _replica_files(rig) == []
    _network(rig).allow(None)
    app.execute("insert into t (a) values ('after')")
    rig.ship()
    assert rig.durable == 1
    rig.expect_equal()


# --- a broken chain, a new page size, no WAL ------------------------------------------------------


def _lose_replica(rig: Rig) -> None:
    for path in list(rig.replica.rglob("*.ltx")):
        path.unlink()


def test_an_emptied_replica_is_healed_by_two_streams(filled: Filled) -> None:
    rig, app = filled()
    rig.ship()
    _lose_replica(rig)
    rig.restart()
    app.execute("insert into t (a) values ('next')")
    rig.ship()
    assert rig.durable == 2
    assert [info.max_txid for info in rig.client.list_ltx(9)] == [2]
    assert [info.max_txid for info in rig.client.list_ltx(0)] == [2]
    rig.expect_equal()
    app.execute("insert into t (a) values ('more')")
    rig.ship()
    assert rig.durable == 3
    rig.expect_equal()


@pytest.mark.parametrize("lost", [False, True], ids=["snapshot stored", "its answer lost"])
def test_a_heal_that_breaks_between_its_files_uses_its_number_up(
    filled: Filled, lost: bool
) -> None:
    rig, app = filled()
    rig.ship()
    _lose_replica(rig)
    rig.restart()
    app.execute("insert into t (a) values ('healed')")
    rig.stage()
    if lost:
        _network(rig).lose_answer()
    else:
        acknowledged = rig.acknowledged

        def break_after_snapshot() -> None:
            if acknowledged and acknowledged[-1].level == 9:
                acknowledged.pop()
                _network(rig).fail()

        _network(rig).on_read = break_after_snapshot
    with pytest.raises(ReplicaTemporaryError):
        rig.tenant.stream()
    healed = rig.truth()
    app.execute("insert into t (a) values ('between')")
    rig.ship()
    assert rig.durable == 3
    rig.expect_equal()
    rig.expect_equal(2, source=healed)
    assert [info.max_txid for info in rig.client.list_ltx(0)] == [3]


def test_a_new_page_size(make_rig: MakeRig, start_app: StartApp) -> None:
    rig = make_rig()
    app = start_app(rig.db, busy_timeout_ms=200, page_size=1024)
    _fill(app)
    rig.ship()
    rig.park()
    old = rig.truth()
    app.script("pragma journal_mode = delete; pragma page_size = 4096; vacuum")
    app.execute("pragma journal_mode = wal")
    rig.ship()
    assert rig.durable == 2
    assert [info.max_txid for info in rig.client.list_ltx(9)] == [2]
    rig.expect_equal()
    rig.expect_equal(1, source=old)


def test_without_wal_mode(make_rig: MakeRig, start_app: StartApp) -> None:
    rig = make_rig(journal_mode="keep")
    app = start_app(rig.db, journal_mode="delete", busy_timeout_ms=0)
    _fill(app)
    sending = _slow_first_snapshot(rig, 300_000)
    app.execute("update t set a = 'meanwhile' where id = 7")  # nobody is blocked
    wait_until(lambda: not rig.tenant.attached, "the change is seen")
    _network(rig).allow(1)
    sending.result()
    assert isinstance(sending.error, DatabaseBusyError)
    assert _replica_files(rig) == []
    _network(rig).allow(None)
    rig.ship()
    assert rig.durable == 1
    app.execute("update t set a = 'later' where id = 8")
    rig.ship()
    assert rig.durable == 2
    rig.expect_equal()


def test_a_difference_larger_than_the_spool(filled: Filled) -> None:
    rig, app = filled(20)
    rig.ship()
    rig.restart()
    _fill(app, _ROWS)
    app.checkpoint("truncate")
    app.execute("insert into t (a) values ('restarted')")
    rig.ship()
    assert rig.durable == 2
    rig.expect_equal()


# --- snapshots of the position --------------------------------------------------------------------


def test_a_snapshot_larger_than_the_spool_holds_up_nothing(filled: Filled) -> None:
    rig, app = filled()
    rig.ship()
    _expect_moving(rig, app)  # the file holds all
    rig.tenant.snapshot()
    assert rig.tenant.wants_stream
    assert not rig.tenant.streaming  # syncs go on
    first = rig.truth()
    _network(rig).allow(300_000)
    sending = Sending(rig)
    _stuck(rig)
    for _ in range(3):  # syncs go on, and R stays: no checkpoint reaches the pages not read yet
        app.execute("update t set a = randomblob(4000) where id > 397")
        assert rig.stage()
        app.checkpoint("passive")
    _network(rig).allow(None)
    assert sending.result()
    rig.upload()
    assert rig.durable == 4
    (snapshot,) = rig.client.list_ltx(9)
    assert snapshot.max_txid == 1
    for info in rig.client.list_ltx(0):
        if info.max_txid == 1:
            rig.client.delete_ltx([info])
    rig.expect_equal(1, source=first)
    rig.expect_equal()
    _expect_moving(rig, app)


def test_a_snapshot_that_would_fill_the_disk_is_given_up(filled: Filled) -> None:
    rig, app = filled(truncate_page_n=100)
    rig.ship()
    _expect_moving(rig, app)
    assert app.checkpoint("truncate")[0] == 0
    app.execute("insert into t (a) values ('begins a WAL')")
    rig.ship()
    rig.tenant.snapshot()
    _network(rig).allow(100_000)
    sending = Sending(rig)
    _stuck(rig)
    _overflow(app)
    assert rig.stage()  # what is committed is staged all the time
    wait_until(lambda: rig.tenant._engine.stream is None, "it is given up")
    _network(rig).allow(1)
    sending.result()
    assert isinstance(sending.error, DatabaseError)
    assert list(rig.client.list_ltx(9)) == []
    _network(rig).allow(None)
    rig.ship()
    assert rig.tenant.attached
    assert rig.tenant.status().error == ""
    _expect_moving(rig, app)
    rig.expect_equal()
