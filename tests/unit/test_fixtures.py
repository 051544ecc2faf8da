"""The helpers that the proofs rest on: each can tell right from wrong."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fixtures import effort, litestream
from fixtures.app import (
    App,
    AppError,
    Writer,
    checkpointed_copy,
    db_digest,
    differing_pages,
    integrity,
    pages_equal,
    row_counts,
)

StartApp = Callable[..., App]


def _filled(app: App, rows: int = 20) -> None:
    app.execute("create table t (id integer primary key, v blob)")
    for number in range(rows):
        app.execute("insert into t (v) values (?)", (bytes([number]) * 3000,))


def test_app_answers_rows_and_errors(start_app: StartApp, tmp_path: Path) -> None:
    app = start_app(tmp_path / "a.db")
    app.script("create table t (v); insert into t values (1.5); insert into t values (null)")
    assert app.execute_many("insert into t values (?)", [(b"\x00\xff",), ("x;y",)]) == 2
    assert app.execute("select v from t") == [(1.5,), (None,), (b"\x00\xff",), ("x;y",)]
    with pytest.raises(AppError, match="no such table: missing") as caught:
        app.execute("select * from missing")
    assert caught.value.kind == "OperationalError"


def test_app_connections_lock_each_other_out(start_app: StartApp, tmp_path: Path) -> None:
    one = start_app(tmp_path / "a.db")
    one.execute("create table t (v)")
    two = start_app(tmp_path / "a.db", busy_timeout_ms=0)
    one.execute("begin immediate")
    with pytest.raises(AppError, match="database is locked"):
        two.execute("insert into t values (1)")


def test_killed_app_leaves_its_wal(start_app: StartApp, tmp_path: Path) -> None:
    app = start_app(tmp_path / "a.db", autocheckpoint=0)
    _filled(app)
    app.kill()
    assert (tmp_path / "a.db-wal").stat().st_size > 20 * 3000
    with pytest.raises(AppError, match="has ended"):
        app.execute("select 1")


def test_ended_app_closes_its_connections(tmp_path: Path) -> None:
    with App(tmp_path / "a.db") as app:
        _filled(app)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["a.db"]


def test_digest_sees_rows_in_the_wal_and_touches_nothing(
    start_app: StartApp, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    app = start_app(folder / "a.db", autocheckpoint=0)
    _filled(app)
    before = db_digest(folder / "a.db")
    app.execute("update t set v = 'other' where id = 7")
    app.kill()
    files = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
    assert db_digest(folder / "a.db") != before
    assert row_counts(folder / "a.db") == {"t": 20}
    assert integrity(folder / "a.db") == ["ok"]
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == files


def test_digest_depends_on_types_and_schema(tmp_path: Path) -> None:
    digests = set()
    for name, script in {
        "text": "create table t (v); insert into t values ('1');",
        "number": "create table t (v); insert into t values (1);",
        "column": "create table t (w); insert into t values (1);",
    }.items():
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection:
            connection.executescript(script)
        digests.add(db_digest(tmp_path / f"{name}.db"))
    assert len(digests) == 3


def test_one_changed_byte_is_found_on_its_page(start_app: StartApp, tmp_path: Path) -> None:
    app = start_app(tmp_path / "a.db")
    _filled(app)
    copy = checkpointed_copy(tmp_path / "a.db", tmp_path / "copy.db")
    app.exit()
    shutil.copyfile(copy, tmp_path / "other.db")
    assert pages_equal(tmp_path / "a.db", copy)
    with (tmp_path / "other.db").open("r+b") as file:
        file.seek(4096 * 4 + 100)
        file.write(b"\xaa")
    assert differing_pages(copy, tmp_path / "other.db") == [5]
    with (tmp_path / "other.db").open("r+b") as file:
        file.truncate(4096 * 4)
    assert not pages_equal(copy, tmp_path / "other.db")


def test_writer_reports_what_it_wrote(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.db", rate=100, duration=0.5, workers=2, read_ratio=0.2) as writer:
        report = writer.finish()
    assert report["errors"] == 0
    assert report["reads"] > 0
    assert row_counts(tmp_path / "a.db") == {"load": report["writes"]}
    assert (
        0 < report["commit_ms"]["p50"] <= report["commit_ms"]["p99"] <= report["commit_ms"]["max"]
    )


def test_writer_counts_errors(start_app: StartApp, tmp_path: Path) -> None:
    app = start_app(tmp_path / "a.db")
    with Writer(tmp_path / "a.db", rate=50, duration=1.0, busy_timeout_ms=0) as writer:
        effort.wait_until(
            lambda: app.execute("select count(*) from sqlite_schema where name = 'load'") == [(1,)],
            "the writer's table",
        )
        app.execute("begin immediate")
        report = writer.finish()
    assert report["errors"] > 0
    assert "locked" in report["first_error"]


@pytest.mark.interop
def test_litestream_round_trip_and_its_vfs(start_app: StartApp, tmp_path: Path) -> None:
    app = start_app(tmp_path / "a.db")
    _filled(app)
    url = litestream.file_url(tmp_path / "replica")
    entry = litestream.database(
        tmp_path / "a.db", tmp_path / "replica", replica_sync_interval="100ms"
    )
    socket = tmp_path / "ls.sock"
    config = litestream.write_config(tmp_path / "litestream.yml", [entry], socket=socket)
    with litestream.replicate(config) as daemon:
        app.execute("delete from t where id = 3")
        txid = daemon.sync(tmp_path / "a.db")
        app.execute("delete from t where id = 4")
    app.exit()
    listed = litestream.ltx(url, level=0)
    assert int(listed[-1]["max_txid"], 16) > txid
    newest = litestream.restore(url, tmp_path / "newest.db")
    earlier = litestream.restore(url, tmp_path / "earlier.db", txid=txid)
    assert row_counts(newest)["t"] == 18
    assert row_counts(earlier)["t"] == 19
    assert pages_equal(checkpointed_copy(tmp_path / "a.db", tmp_path / "copy.db"), newest)
    view = litestream.vfs_read(url, tmp_path / "scratch")
    assert view.digest == db_digest(newest)
    assert view.integrity == ["ok"]
    assert view.txid == listed[-1]["max_txid"]


@pytest.mark.interop
def test_litestream_once_and_its_errors(start_app: StartApp, tmp_path: Path) -> None:
    app = start_app(tmp_path / "a.db")
    _filled(app)
    config = litestream.write_config(
        tmp_path / "once.yml", [litestream.database(tmp_path / "a.db", tmp_path / "replica")]
    )
    litestream.once(config, force_snapshot=True)
    levels = {entry["level"] for entry in litestream.ltx(litestream.file_url(tmp_path / "replica"))}
    assert levels == {0, 9}
    with pytest.raises(litestream.LitestreamError, match="no matching backup"):
        litestream.restore(litestream.file_url(tmp_path / "nothing"), tmp_path / "x.db")


@pytest.mark.interop
def test_vfs_of_an_empty_replica_ends_at_the_time_limit(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        litestream.vfs_read(
            litestream.file_url(tmp_path / "nothing"), tmp_path / "scratch", timeout=2.0
        )
