"""The daemon with databases larger than their spool, and Litestream on what it stored."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.effort import wait_until
from fixtures.host import Host

_SPOOL = "256KiB"
_NAME = "large.db"


def _fill(path: Path, rows: int = 400) -> None:
    """Make a database of several times the spool's size, whatever compresses it."""
    with App(path, busy_timeout_ms=5000) as app:
        app.execute("create table if not exists t (id integer primary key, a)")
        app.execute_many("insert into t (a) values (randomblob(?))", [(4000,)] * rows)


def _stored(host: Host) -> list[Path]:
    return list(host.replica.rglob("*.ltx"))


def _streaming(host: Host) -> bool:
    """Return whether the daemon has begun to stream: all is read once, nothing is stored."""
    return bool(host.lines("shipping every page")) and not _stored(host)


@pytest.mark.interop
def test_large_databases_are_replicated_and_litestream_restores_them(tmp_path: Path) -> None:
    names = [f"{number}.db" for number in range(4)]  # twice as many as are streamed at a time
    with Host(tmp_path, entry={"spool_limit": _SPOOL}) as host:
        for name in names:
            _fill(host.data / name)
        host.start()
        host.wait_shipped(*names)
        for name in names:
            _fill(host.data / name, 5)
        host.wait_shipped(*names)
        assert host.stop() == 0, host.text()
        assert host.problems() == []
        host.expect_equal(names)
        left = {path.name for path in host.data.rglob("*.tmp")}
        assert left == set()


def test_once_waits_for_streams(tmp_path: Path) -> None:
    with Host(tmp_path, entry={"spool_limit": _SPOOL}) as host:
        _fill(host.data / _NAME)
        done = host.pyrep("replicate", "-config", str(host.config), "-once")
        assert done.returncode == 0, done.stdout + done.stderr
        host.expect_equal([_NAME], others=False)


def test_small_databases_do_not_wait_for_streams(tmp_path: Path) -> None:
    slow = {"bytes_per_second": "60KiB"}
    with Host(tmp_path, entry={"spool_limit": _SPOOL}, replica=slow) as host:
        for number in range(8):
            _fill(host.data / f"large-{number}.db", 200)
        _fill(host.data / "small.db", 1)
        host.start()
        host.wait_shipped("small.db")
        assert [path.parts[-4] for path in _stored(host)] == ["small.db"]


def test_a_stop_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    entry = {"spool_limit": _SPOOL}
    slow = {"bytes_per_second": "60KiB"}
    with Host(tmp_path, entry=entry, replica=slow, shutdown_sync_timeout="1s") as host:
        _fill(host.data / _NAME)
        host.start()
        host.wait_for(lambda: _streaming(host), "the stream has begun")
        began = time.monotonic()
        assert host.stop() == 8, host.text()
        assert time.monotonic() - began < 25
        assert _stored(host) == []
        assert any(_NAME in line["msg"] for line in host.problems())  # what waits is named
    with Host(tmp_path, entry=entry) as host:
        host.start()
        host.wait_shipped(_NAME)
        assert host.stop() == 0, host.text()
        host.expect_equal([_NAME], others=False)


def test_a_kill_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    entry = {"spool_limit": _SPOOL}
    with Host(tmp_path, entry=entry, replica={"bytes_per_second": "60KiB"}) as host:
        _fill(host.data / _NAME)
        host.start()
        host.wait_for(lambda: _streaming(host), "the stream has begun")
        host.kill()
        assert _stored(host) == []
        assert list(host.data.rglob("*.tmp")) == []
    with Host(tmp_path, entry=entry) as host:
        host.start()
        host.wait_shipped(_NAME)
        assert host.stop() == 0, host.text()
        host.expect_equal([_NAME], others=False)


def test_a_network_that_is_too_slow_is_told_and_cured(tmp_path: Path) -> None:
    entry = {"spool_limit": _SPOOL, "truncate_page_n": 100}
    with Host(tmp_path, entry=entry, replica={"bytes_per_second": "20KiB"}) as host:
        _fill(host.data / _NAME)
        with App(host.data / _NAME, busy_timeout_ms=5000) as app:
            app.checkpoint("truncate")
            host.start()
            host.wait_for(lambda: _streaming(host), "the stream has begun")
            for _ in range(130):
                app.execute("update t set a = randomblob(4000) where id = 1")
            host.wait_for(
                lambda: host.status()[_NAME]["status"] == "degraded", "R was let go", timeout=90
            )
            assert app.checkpoint("truncate")[0] == 0
            (line,) = host.about(_NAME)
            assert (line["msg"], line["op"]) == ("stream failed", "stream")
            assert "the replica takes every page too slowly" in line["error"]
            assert "spool-limit to at least 2MiB" in line["hint"]
            assert host.status()[_NAME]["error"] == line["error"]
        assert host.stop() == 8, host.text()
    with Host(tmp_path, entry={"spool_limit": "2MiB"}) as host:
        host.start()
        host.wait_shipped(_NAME)
        wait_until(lambda: host.status()[_NAME]["error"] == "", "it is healthy again")
        assert host.stop() == 0, host.text()
        host.expect_equal([_NAME], others=False)
