"""The sync engine on a real database that another process writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.rig import Rig
from pyrep.errors import DatabaseBusyError, DatabaseError, FencedError
from pyrep.restore.execute import restore
from pyrep.storage.memory import MemoryReplicaClient
from pyrep.tenant.spool import Spool


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def app(rig: Rig, start_app: Callable[..., App]) -> App:
    app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=200)
    app.execute("create table t (id integer primary key, a)")
    return app


def fill(app: App, rows: int, size: int = 2000) -> None:
    for _ in range(rows):
        app.execute("insert into t (a) values (randomblob(?))", (size,))


def test_each_txid_is_what_the_database_was(rig: Rig, app: App, tmp_path: Path) -> None:
    truths = {}
    for _ in range(5):
        fill(app, 3)
        assert rig.ship()
        truths[rig.durable] = rig.truth()
    assert list(truths) == [1, 2, 3, 4, 5]
    for txid, truth in truths.items():
        rig.expect_equal(txid, source=truth)


def test_nothing_new_ships_nothing(rig: Rig, app: App) -> None:
    fill(app, 1)
    assert rig.ship()
    assert not rig.ship()
    assert rig.durable == 1


def test_shrink_and_growth(rig: Rig, app: App) -> None:
    fill(app, 60)
    rig.ship()
    app.execute("delete from t where id % 2 = 0")
    rig.ship()
    app.execute("vacuum")
    rig.ship()
    rig.expect_equal()
    fill(app, 80)
    rig.ship()
    rig.expect_equal()


def test_park_and_wake(rig: Rig, app: App) -> None:
    fill(app, 5)
    rig.ship()
    rig.park()
    assert not rig.tenant.attached
    assert not rig.tenant.changed()
    fill(app, 1)
    assert rig.tenant.changed()
    rig.ship()
    rig.expect_equal()
    assert rig.durable == 2


def test_restart_goes_on_with_an_increment(rig: Rig, app: App) -> None:
    fill(app, 50)
    rig.ship()
    for clean in (True, False):
        before = rig.durable
        rig.restart(clean=clean)
        fill(app, 1)
        rig.ship()
        assert rig.durable == before + 1
        rig.expect_equal()
    assert max(info.size for info in rig.acknowledged[1:]) < rig.acknowledged[0].size / 2


def test_application_that_closes_leaves_one_clean_file(rig: Rig, app: App) -> None:
    fill(app, 5)
    rig.ship()
    app.close()
    rig.park()
    assert sorted(path.name for path in rig.db.parent.iterdir()) == [
        ".tenant.db-pyrep",
        "tenant.db",
    ]
    assert not rig.tenant.changed()
    rig.expect_equal()


@pytest.mark.parametrize("mode", ["passive", "full", "restart", "truncate"])
def test_checkpoints_of_the_application(rig: Rig, app: App, mode: str) -> None:
    fill(app, 20)
    rig.ship()
    for _ in range(6):
        fill(app, 3)
        rig.stage()
        app.checkpoint(mode)
        fill(app, 2)
    rig.ship()
    rig.expect_equal()


def test_stopped_while_the_application_checkpoints_and_writes(rig: Rig, app: App) -> None:
    fill(app, 100)
    rig.ship()
    full = rig.acknowledged[0].size
    rig.restart()
    app.checkpoint("truncate")
    fill(app, 2)
    app.checkpoint("truncate")
    fill(app, 1)
    rig.ship()
    assert rig.durable == 2
    assert rig.acknowledged[-1].size < full / 4
    rig.expect_equal()


def test_database_replaced_by_another_file(rig: Rig, app: App, start_app, tmp_path: Path) -> None:
    fill(app, 30)
    rig.ship()
    other = tmp_path / "other.db"
    with_other = start_app(other, journal_mode="wal")
    with_other.execute("create table other (id integer primary key, a)")
    for _ in range(10):
        with_other.execute("insert into other (a) values (randomblob(3000))")
    with_other.exit()
    app.exit()
    other.rename(rig.db)
    rig.ship()
    rig.expect_equal()


def test_database_overwritten_in_place(rig: Rig, app: App, start_app, tmp_path: Path) -> None:
    fill(app, 30)
    app.execute("vacuum into ?", (str(tmp_path / "backup.db"),))
    fill(app, 30)
    rig.ship()
    app.exit()
    rig.ship()
    rig.park()
    rig.db.write_bytes((tmp_path / "backup.db").read_bytes())
    assert rig.tenant.changed()
    rig.ship()
    rig.expect_equal()


def test_page_size_change(rig: Rig, app: App) -> None:
    fill(app, 30)
    rig.ship()
    rig.tenant.park(force=True)
    app.execute("pragma journal_mode=delete")
    app.execute("pragma page_size=1024")
    app.execute("vacuum")
    app.execute("pragma journal_mode=wal")
    rig.ship()
    rig.expect_equal()
    fill(app, 3)
    rig.ship()
    rig.expect_equal()


def test_a_snapshot_that_is_due_while_one_waits_is_that_one(rig: Rig, app: App) -> None:
    """The one that goes before all pages has the same name; a second would lose its file."""
    fill(app, 30)
    rig.ship()
    rig.tenant.park(force=True)
    for sql in ("journal_mode=delete", "page_size=1024"):
        app.execute(f"pragma {sql}")
    app.execute("vacuum")
    app.execute("pragma journal_mode=wal")
    rig.stage()
    assert rig.tenant.snapshot()
    rig.upload()
    assert [(i.level, i.max_txid) for i in rig.acknowledged] == [(0, 1), (9, 2), (0, 2)]
    rig.expect_equal()


def test_replica_emptied_or_cut_is_healed(rig: Rig, app: App) -> None:
    for _ in range(4):
        fill(app, 3)
        rig.ship()
    level0 = rig.replica / "ltx" / "0"
    for victims in (slice(None), slice(1, 2)):
        for path in sorted(level0.iterdir())[victims]:
            path.unlink()
        for _ in range(3):
            fill(app, 1)
            rig.ship()
        rig.restart()
        fill(app, 1)
        rig.ship()
        rig.expect_equal()


@pytest.mark.parametrize("setting", ["convert", "keep"])
def test_rollback_journal_database(tmp_path: Path, start_app, setting: str) -> None:
    rig = Rig(tmp_path, journal_mode=setting)
    app = start_app(rig.db, journal_mode="delete")
    app.execute("create table t (id integer primary key, a)")
    fill(app, 10)
    rig.ship()
    for _ in range(3):
        fill(app, 3)
        rig.ship()
        rig.expect_equal()
    mode = "wal" if setting == "convert" else "delete"
    assert app.execute("pragma journal_mode") == [(mode,)]
    assert rig.durable == 4
    rig.close()


def test_state_directory_removed_while_running(rig: Rig, app: App) -> None:
    fill(app, 20)
    rig.ship()
    shutil.rmtree(rig.spec().state_path)
    fill(app, 1)
    with pytest.raises(DatabaseError, match="was removed or replaced; the replica is listed again"):
        rig.ship()
    rig.ship()
    rig.expect_equal()
    assert rig.durable == 2


def test_state_directory_and_memory_gone_adopts_an_equal_replica(rig: Rig, app: App) -> None:
    fill(app, 20)
    rig.ship()
    rig.tenant.close()
    shutil.rmtree(rig.spec().state_path)
    rig.restart(clean=False)
    assert not rig.ship()
    fill(app, 1)
    rig.ship()
    assert rig.durable == 2
    rig.expect_equal()


def test_stranger_to_another_replica_is_fenced_until_taken_over(rig: Rig, app: App) -> None:
    fill(app, 20)
    rig.ship()
    rig.tenant.close()
    shutil.rmtree(rig.spec().state_path)
    fill(app, 1)
    rig.restart(clean=False)
    with pytest.raises(FencedError, match="lineage"):
        rig.ship()
    assert rig.tenant.status().state == "fenced"
    assert not rig.ship()
    rig.restart()
    with pytest.raises(FencedError, match="lineage"):
        rig.ship()
    rig.tenant.take_over()
    rig.ship()
    assert rig.durable == 2
    rig.expect_equal()


def test_two_writers_on_one_replica_path(rig: Rig, app: App, start_app, tmp_path: Path) -> None:
    fill(app, 5)
    rig.ship()
    other = Rig(tmp_path / "other", client=rig.client)
    theirs = start_app(other.db, journal_mode="wal")
    theirs.execute("create table t (id integer primary key, a)")
    with pytest.raises(FencedError):
        other.ship()
    fill(app, 1)
    rig.ship()
    rig.expect_equal()
    other.close()


def test_two_copies_of_one_tenant_on_one_replica_path(
    rig: Rig, app: App, start_app, tmp_path: Path
) -> None:
    """A cloned machine has database, state and lineage: the first to meet the other is fenced."""
    fill(app, 5)
    rig.ship()
    app.exit()
    rig.restart()
    twin_folder = tmp_path / "twin"
    shutil.copytree(rig.db.parent, twin_folder / rig.db.parent.name)
    twin = Rig(twin_folder, client=rig.client)
    apps = [start_app(one.db) for one in (rig, twin)]
    for one in (rig, twin):
        one.tenant.survey()
    fill(apps[0], 1)
    rig.ship()
    fill(apps[1], 2)
    with pytest.raises(FencedError, match="with a copy of this database") as caught:
        twin.ship()
    assert f"lineage {rig.tenant.node_id:016x}" in str(caught.value)
    fill(apps[0], 1)
    rig.ship()
    rig.expect_equal()
    twin.close()


def test_spool_limits_let_the_wal_go_and_recover(tmp_path: Path, start_app) -> None:
    for own, common in ((40_000, 10**9), (10**9, 40_000)):
        spool = Spool(common)
        rig = Rig(tmp_path / str(own), spool_limit=own, spool=spool)
        app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=200)
        app.execute("create table t (id integer primary key, a)")
        rig.ship()
        fill(app, 12)
        rig.stage()
        fill(app, 12)
        with pytest.raises(DatabaseError, match=r"spool-limit"):
            rig.stage()
        assert rig.tenant.status().state == "degraded"
        assert not rig.tenant.attached
        fill(app, 2)
        assert app.checkpoint("truncate") == (0, 0, 0)
        with pytest.raises(DatabaseError, match=r"too many bytes wait|spool-limit"):
            rig.stage()
        rig.upload()
        assert spool.left == common
        app.execute("delete from t where id > 5")
        app.execute("vacuum")
        rig.ship()
        rig.expect_equal()
        assert rig.tenant.status().state == "attached"
        rig.close()


def test_two_processes_on_one_database(rig: Rig, app: App, tmp_path: Path) -> None:
    fill(app, 5)
    rig.ship()
    other = Rig(tmp_path, client=MemoryReplicaClient())
    with pytest.raises(DatabaseBusyError, match=r"tenant.db: another pyrep process works with it"):
        other.ship()
    rig.park()
    fill(app, 1)
    other.ship()
    other.expect_equal()
    with pytest.raises(DatabaseBusyError, match=r"another pyrep process"):
        rig.ship()
    other.close()
    fill(app, 1)
    for _ in range(2):
        rig.ship()
    rig.expect_equal()
    other.close()


def test_file_written_in_place_in_keep_mode(tmp_path: Path, start_app) -> None:
    rig = Rig(tmp_path, journal_mode="keep")
    for path, text in ((rig.db, "old"), (tmp_path / "other.db", "new")):
        app = start_app(path, journal_mode="delete")
        app.execute("create table t (a)")
        app.execute("insert into t values (?)", (text,))
        app.exit()
    rig.ship()
    rig.db.write_bytes((tmp_path / "other.db").read_bytes())
    rig.ship()
    rig.expect_equal()
    rig.close()


def test_proof_comes_back_after_the_state_directory_is_lost(rig: Rig, app: App) -> None:
    fill(app, 5)
    rig.ship()
    shutil.rmtree(rig.spec().state_path)
    with pytest.raises(DatabaseError, match="was removed"):
        rig.ship()
    rig.ship()
    fill(app, 1)
    rig.ship()
    assert restore(rig.client, rig.folder / "proven.db").proven


def test_what_was_lost_is_not_reported_as_durable(rig: Rig, app: App) -> None:
    for _ in range(3):
        fill(app, 5)
        rig.ship()
    (last,) = [info for info in rig.client.list_ltx(0) if info.max_txid == 3]
    rig.client.delete_ltx([last])
    rig.restart()
    rig.tenant.survey()
    assert rig.durable == 2
    rig.tenant.sync()
    assert rig.durable == 2  # staged only
    rig.upload()
    assert rig.durable == 4
    rig.wipe_replica()
    rig.restart()
    fill(app, 1)
    rig.tenant.survey()
    assert rig.durable == 0
    rig.ship()
    assert rig.durable == 5
    rig.expect_equal()
