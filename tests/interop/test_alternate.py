"""pyrep and Litestream take turns on one database and one replica."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.app import App, Writer, row_counts
from fixtures.effort import wait_until
from fixtures.litestream_turns import Turns, both_restore
from fixtures.rig import Rig

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("litestream")]

StartApp = Callable[..., App]
ALL_PAGES = "shipping every page"
DIFF = "comparing every page with the replica"


def create(app: App, rows: int = 60) -> None:
    app.execute("create table t (id integer primary key, a, b)")
    app.execute("create index t_b on t (b)")
    insert(app, rows)


def insert(app: App, rows: int, size: int = 700) -> None:
    for _ in range(rows):
        app.execute("insert into t (a, b) values (randomblob(?), abs(random()) % 1000)", (size,))


def stir(app: App) -> None:
    """Write, delete, checkpoint in every mode and vacuum, as an application does."""
    insert(app, 15)
    app.checkpoint("passive")
    app.execute("delete from t where id % 3 = 0")
    app.checkpoint("full")
    insert(app, 5, 5000)
    app.checkpoint("restart")
    app.execute("vacuum")
    insert(app, 5)
    app.checkpoint("truncate")
    app.execute("update t set b = b + 1 where id % 2 = 0")


def between(app: App, number: int) -> None:
    """Let the application do something else at each hand-over."""
    insert(app, 1)
    if number == 2:
        app.checkpoint("restart")
        insert(app, 1)
    elif number == 3:
        app.checkpoint("truncate")
        insert(app, 2)
        app.checkpoint("truncate")
        insert(app, 1)
    elif number == 4:
        app.execute("vacuum")


def busy_rig(app: App) -> Callable[[Rig], None]:
    """Return work for a turn of pyrep: the application stirs, pyrep ships in between."""

    def work(rig: Rig) -> None:
        rig.ship()
        for _ in range(2):
            stir(app)
            rig.ship()
        insert(app, 3)

    return work


def written(app: App) -> bool:
    """Say whether the load has written a row."""
    tables = app.execute("select count(*) from sqlite_schema where name = 'load'")
    return tables == [(1,)] and app.execute("select count(*) > 0 from load") == [(1,)]


def kinds(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what pyrep shipped that was no increment."""
    return [r.message for r in caplog.records if r.message in (ALL_PAGES, DIFF)]


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("first", ["pyrep", "litestream"])
def test_in_turn(tmp_path: Path, start_app: StartApp, page_size: int, first: str) -> None:
    turns = Turns(tmp_path, start_app, page_size=page_size)
    create(turns.app)
    for number in range(5):
        between(turns.app, number)
        if (number % 2 == 0) == (first == "pyrep"):
            turns.pyrep(busy_rig(turns.app))
        else:
            turns.litestream(lambda: stir(turns.app))
    turns.judge()


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_litestream_takes_over_a_diff(
    tmp_path: Path, start_app: StartApp, page_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pyrep")
    turns = Turns(tmp_path, start_app, page_size=page_size)
    create(turns.app)
    turns.pyrep(lambda rig: None)
    for rows in (1, 0):  # the diff's last frame is one of its pages, or no frame is left
        turns.app.execute("delete from t where id < 10")
        turns.app.checkpoint("truncate")
        insert(turns.app, 2)
        turns.app.checkpoint("truncate")
        insert(turns.app, rows)
        caplog.clear()
        turns.pyrep(lambda rig: None)
        assert kinds(caplog) == [DIFF]
        insert(turns.app, 1)
        turns.litestream(lambda: insert(turns.app, 3))
        caplog.clear()
        turns.pyrep(lambda rig: None)
        assert kinds(caplog) == [ALL_PAGES]
    turns.litestream(lambda: insert(turns.app, 3))
    turns.judge()


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_litestream_takes_over_a_first_snapshot_without_wal(
    tmp_path: Path, start_app: StartApp, page_size: int
) -> None:
    turns = Turns(tmp_path, start_app, page_size=page_size)
    create(turns.app)
    turns.app.close()
    assert [path.name for path in turns.rig.db.parent.glob("tenant.db*")] == ["tenant.db"]
    turns.pyrep(lambda rig: None)
    assert [path.name for path in turns.rig.db.parent.glob("tenant.db*")] == ["tenant.db"]
    turns.app.open()
    insert(turns.app, 2)
    turns.litestream(lambda: insert(turns.app, 2))
    turns.pyrep(busy_rig(turns.app))
    turns.litestream(lambda: stir(turns.app))
    turns.judge()


def test_litestream_takes_over_a_diff_without_wal(
    tmp_path: Path, start_app: StartApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pyrep")
    turns = Turns(tmp_path, start_app)
    create(turns.app)
    turns.pyrep(lambda rig: None)
    insert(turns.app, 5)
    turns.app.close()
    caplog.clear()
    turns.pyrep(lambda rig: None)
    assert kinds(caplog) == [DIFF]
    turns.app.open()
    turns.litestream(lambda: insert(turns.app, 2))
    turns.judge()


def test_hand_over_while_the_application_writes(tmp_path: Path, start_app: StartApp) -> None:
    turns = Turns(tmp_path, start_app)
    create(turns.app)
    marks = []

    def mark(rig: Rig | None = None) -> None:
        for _ in range(30):
            insert(turns.app, 1)
            if rig is not None:
                rig.ship()
        marks.append(turns.app.execute("select max(id) from t")[0][0])

    turns.live = True
    with Writer(turns.rig.db, rate=200, autocheckpoint=50) as load:
        wait_until(lambda: written(turns.app), "the load has begun")
        for number in range(6):
            if number % 2:
                turns.litestream(mark)
            elif number == 4:
                turns.pyrep_daemon(mark)
            else:
                turns.pyrep(mark)
        report = load.stop()
    turns.live = False
    turns.litestream(mark)
    turns.pyrep(mark)
    assert report["first_error"] == ""
    for leg, newest in zip(turns.legs, marks, strict=True):
        restored = both_restore(leg.replica, leg.truth, exact=leg.writer == "pyrep")
        with closing(sqlite3.connect(f"file:{restored}?immutable=1", uri=True)) as db:
            assert db.execute("select max(id) from t").fetchone() == (newest,)
            assert db.execute("select count(*) = max(id) from load").fetchone() == (1,)
    assert row_counts(restored)["load"] == report["writes"]


def test_daemons_in_turn(tmp_path: Path, start_app: StartApp) -> None:
    turns = Turns(tmp_path, start_app)
    create(turns.app)
    for _ in range(2):
        turns.pyrep_daemon(lambda: stir(turns.app))
        insert(turns.app, 1)
        turns.litestream(lambda: stir(turns.app))
        insert(turns.app, 1)
    turns.pyrep_daemon(lambda: stir(turns.app))
    turns.judge()


@pytest.mark.parametrize("damage", ["emptied", "cut back", "file missing", "first missing"])
@pytest.mark.parametrize("before", ["pyrep", "litestream"])
def test_damaged_replica_is_healed(
    tmp_path: Path, start_app: StartApp, damage: str, before: str
) -> None:
    turns = Turns(tmp_path, start_app)
    create(turns.app)

    def increments(rig: Rig) -> None:
        for _ in range(5):
            insert(turns.app, 2)
            rig.ship()

    turns.pyrep(increments)
    if before == "litestream":
        turns.litestream(lambda: insert(turns.app, 2))
        turns.pyrep(increments)
    files = sorted((turns.rig.replica / "ltx" / "0").iterdir())
    victims = {
        "emptied": files,
        "cut back": files[-2:],
        "file missing": files[2:3],
        "first missing": files[:1],
    }[damage]
    for path in victims:
        path.unlink()
    insert(turns.app, 1)
    turns.pyrep(increments)
    turns.litestream(lambda: stir(turns.app))
    turns.pyrep(increments)
    for leg in turns.legs[-3:]:
        both_restore(leg.replica, leg.truth, exact=leg.writer == "pyrep", vfs=True)
