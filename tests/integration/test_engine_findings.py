"""What the stateful test found, each in as few steps as it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.app import App, checkpointed_copy, pages_equal
from fixtures.rig import Rig
from pyrep import osfs
from pyrep.errors import DatabaseError


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    osfs.disarm()
    rig.close()


@pytest.fixture
def app(rig: Rig, start_app: Callable[..., App]) -> App:
    app = start_app(rig.db, busy_timeout_ms=200)
    app.execute("create table t (id integer primary key, a)")
    app.execute("insert into t (a) values (1)")
    return app


def test_parked_with_a_commit_that_was_not_shipped(rig: Rig, app: App) -> None:
    rig.ship()
    app.execute("insert into t (a) values (2)")
    assert rig.tenant.park(force=True)
    assert rig.tenant.changed()
    rig.ship()
    assert rig.durable == 2
    rig.expect_equal()


def test_parked_twice_with_a_commit_between(rig: Rig, app: App) -> None:
    rig.ship()
    assert rig.tenant.park(force=True)
    app.execute("insert into t (a) values (2)")
    assert rig.tenant.park(force=True)
    assert rig.tenant.changed()


def test_a_commit_between_the_last_look_and_the_close_wakes(
    rig: Rig, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.ship()
    park = rig.tenant._engine.park

    def park_and_commit(*, force: bool) -> bool:
        done = park(force=force)
        app.execute("insert into t (a) values (2)")
        return done

    monkeypatch.setattr(rig.tenant._engine, "park", park_and_commit)
    assert rig.tenant.park(force=True)
    assert rig.tenant.changed()


def test_parked_without_wal_mode_and_with_a_commit_that_was_not_shipped(
    tmp_path: Path, start_app: Callable[..., App]
) -> None:
    rig = Rig(tmp_path, journal_mode="keep")
    app = start_app(rig.db, journal_mode="delete", busy_timeout_ms=200)
    app.execute("create table t (id integer primary key, a)")
    rig.ship()
    app.execute("insert into t (a) values (1)")
    assert rig.tenant.park(force=True)
    assert rig.tenant.changed()
    rig.ship()
    rig.expect_equal()
    rig.close()


@pytest.mark.parametrize("attached_without_wal", [False, True])
def test_replaced_by_a_file_without_wal_mode_blocks_no_writer(
    rig: Rig, app: App, start_app: Callable[..., App], tmp_path: Path, attached_without_wal: bool
) -> None:
    """The application went back from WAL mode once, so pyrep does not switch again."""
    rig.ship()
    rig.tenant.park(force=True)
    app.execute("pragma journal_mode = delete")
    rig.ship()
    rig.tenant.park(force=True)
    app.execute("pragma journal_mode = wal")
    rig.ship()
    if attached_without_wal:
        rig.tenant.park(force=True)
        app.execute("pragma journal_mode = delete")
        rig.ship()
    app.exit()
    other = tmp_path / "other.db"
    start_app(other, journal_mode="delete").execute("create table other (a)")
    for name in ("-wal", "-shm"):
        rig.db.with_name(rig.db.name + name).unlink(missing_ok=True)
    other.rename(rig.db)
    writer = start_app(rig.db, journal_mode=None, busy_timeout_ms=200)
    for value in range(3):
        rig.ship()
        rig.expect_equal()
        writer.execute("insert into other values (?)", (value,))


def test_a_state_that_cannot_be_saved_at_the_stop_is_an_error_of_ours(rig: Rig, app: App) -> None:
    rig.ship()
    osfs.arm(osfs.parse_failpoints("state.write:1:eio"))
    with pytest.raises(DatabaseError, match=r"tenant\.db"):
        rig.tenant.close()


def test_no_snapshot_is_uploaded_whose_level_0_file_could_not_be_staged(rig: Rig, app: App) -> None:
    """Else TXID 2 would name two contents, and later increments would go on from the other."""
    rig.ship()
    rig.wipe_replica()
    rig.restart()
    osfs.arm(osfs.parse_failpoints("stage.rename:2:eio"))
    with pytest.raises(DatabaseError):
        rig.stage()
    osfs.disarm()
    rig.upload()
    app.execute("delete from t")
    rig.ship()
    rig.expect_equal(2)
    app.execute("insert into t (a) values (3)")
    rig.ship()
    rig.expect_equal()
    assert rig.durable == 3


def test_a_range_cut_short_takes_no_newer_page_from_the_file(
    rig: Rig, start_app: Callable[..., App], tmp_path: Path
) -> None:
    """The database shrinks, grows again and changes; the cut lies before the last of the three."""
    app = start_app(rig.db, busy_timeout_ms=200, auto_vacuum="full", autocheckpoint=0)
    app.execute("create table t (id integer primary key, a)")
    app.execute_many("insert into t (a) values (randomblob(?))", [(3000,)] * 12)
    rig.ship()
    wal = Path(f"{rig.db}-wal")
    known, began = [checkpointed_copy(rig.db, tmp_path / "0.db")], wal.stat().st_size
    shrink = "delete from t where id > 2"
    grow = "insert into t (id, a) values (50, zeroblob(30000))"
    change = "update t set a = randomblob(length(a)) where id in (1, 50)"
    for number, sql in enumerate((shrink, grow, change), 1):
        app.execute(sql)
        known.append(checkpointed_copy(rig.db, tmp_path / f"{number}.db"))
        if sql == grow:
            rig.settings["max_sync_wal_bytes"] = wal.stat().st_size - began
    rig.restart()
    busy, frames, backfilled = app.checkpoint("passive")
    assert (busy, backfilled) == (0, frames)  # the file holds the last state
    rig.ship()
    assert rig.durable > 1
    for txid in range(2, rig.durable + 1):
        restored = rig.restored(txid)
        assert any(pages_equal(restored, truth) for truth in known), f"txid {txid} never was"
    rig.expect_equal(rig.durable, source=known[-1])


def test_a_folder_that_takes_the_place_of_ours_brings_no_page_checksums_for_ours(
    tmp_path: Path, start_app: Callable[..., App]
) -> None:
    """What was noted of another database, at the same place, must not stand for ours."""
    rigs = [Rig(tmp_path / name) for name in ("ours", "other")]
    for number, rig in enumerate(rigs):
        app = start_app(rig.db)
        app.execute("create table t (id integer primary key, a)")
        app.execute("insert into t (a) values (?)", (f"rig {number}",))
        rig.ship()
        app.close()
    ours, other = rigs
    other.close()
    ours.db.parent.rename(tmp_path / "away")
    other.db.parent.rename(ours.db.parent)
    with pytest.raises(DatabaseError, match="was removed or replaced"):
        ours.ship()
    ours.ship()
    assert ours.durable == 2
    ours.expect_equal()
    ours.close()


class _Door:
    """Be a tenant's lock, and tell when another thread than the one that made it comes to it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._owner = threading.get_ident()
        self.met = threading.Event()

    def __enter__(self) -> None:
        if threading.get_ident() != self._owner:
            self.met.set()
        self._lock.acquire()

    def __exit__(self, *problem: object) -> None:
        self._lock.release()


def test_who_asks_for_the_position_while_it_is_first_read_does_not_set_it_back(
    rig: Rig, app: App
) -> None:
    """A file was staged twice under one TXID, the second time with a checksum of nothing."""
    rig.ship()
    rig.restart(clean=False)
    app.execute("insert into t (a) values (2)")
    rig.tenant._lock = door = _Door(rig.tenant._lock)  # type: ignore[assignment]
    asking = threading.Thread(target=rig.tenant.status)
    with door:
        asking.start()
        assert door.met.wait(60)
        rig.stage()
    asking.join()
    assert rig.tenant.status().local_txid == 2
    app.execute("insert into t (a) values (3)")
    rig.ship()
    assert rig.durable == 3
    rig.expect_equal()
