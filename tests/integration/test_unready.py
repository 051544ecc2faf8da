"""Databases that are not ready yet, or in error, when the daemon ends or runs only once."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.daemon import Daemon, write_config
from fixtures.effort import wait_until

_SHORT = "is shorter than its header says"


def _fill(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table t (a)")
        db.executemany("insert into t values (?)", [("x" * 3000,)] * 10)
    os.utime(path, (0, 0))  # it was not written a moment ago


def _half(path: Path) -> bytes:
    """Make a database whose second half is missing; return that half."""
    _fill(path)
    content = path.read_bytes()
    path.write_bytes(content[:8192])
    return content[8192:]


def _directory(base: Path) -> Path:
    return write_config(
        base,
        f"""
  - dir: {base}/data
    pattern: "*.db"
    replica: {{type: file, path: {base}/replica}}
""",
    )


def _is_shipped(base: Path, name: str) -> bool:
    return bool(list((base / "replica" / name).rglob("*.ltx")))


def test_once_does_what_is_ready_first_and_waits_for_the_rest(tmp_path: Path) -> None:
    _fill(tmp_path / "data/whole.db")
    rest = _half(tmp_path / "data/half.db")
    with Daemon("-config", _directory(tmp_path), "-once") as daemon:
        wait_until(lambda: _is_shipped(tmp_path, "whole.db"), "the whole one is replicated")
        assert daemon.running
        assert not _is_shipped(tmp_path, "half.db")
        with (tmp_path / "data/half.db").open("ab") as file:
            file.write(rest)
        assert daemon.wait() == 0, daemon.error
    assert _is_shipped(tmp_path, "half.db")
    assert daemon.above_info() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_once_that_is_interrupted_names_what_it_has_not_looked_at(
    tmp_path: Path, number: int
) -> None:
    _fill(tmp_path / "data/whole.db")
    _half(tmp_path / "data/half.db")
    with Daemon("-config", _directory(tmp_path), "-once") as daemon:
        wait_until(lambda: _is_shipped(tmp_path, "whole.db"), "the whole one is replicated")
        assert daemon.stop(number) == 8
    assert f"{tmp_path}/data/half.db (not looked at yet: {_SHORT})" in daemon.error


def test_a_stop_names_what_is_still_being_made(tmp_path: Path) -> None:
    _fill(tmp_path / "data/whole.db")
    rest = _half(tmp_path / "data/half.db")
    config = _directory(tmp_path)
    with Daemon("-config", config) as daemon:
        wait_until(lambda: _is_shipped(tmp_path, "whole.db"), "the whole one is replicated")
        assert daemon.stop() == 8
    assert f"{tmp_path}/data/half.db (not looked at yet: {_SHORT})" in daemon.error
    assert "whole.db" not in daemon.error
    with (tmp_path / "data/half.db").open("ab") as file:
        file.write(rest)
    with Daemon("-config", config) as daemon:
        daemon.wait_for("replicating to", 2)
        assert daemon.stop() == 0
    assert _is_shipped(tmp_path, "half.db")


def test_a_stop_names_what_it_leaves_in_error(tmp_path: Path) -> None:
    names = [f"{number}.db" for number in range(7)]
    for name in ("good.db", *names):
        _fill(tmp_path / "data" / name)
    config = _directory(tmp_path)
    with Daemon("-config", config) as daemon:
        wait_until(
            lambda: all(_is_shipped(tmp_path, name) for name in ("good.db", *names)),
            "all are replicated",
        )
        assert daemon.stop() == 0
    assert daemon.above_info() == []
    for name in names:
        (tmp_path / "data" / name).write_text("no database any more\n" * 1000)
    with Daemon("-config", config) as daemon:
        daemon.wait_for("sync failed", len(names))
        assert daemon.stop() == 0
    (line,) = daemon.lines("databases are left in error")
    assert (line["level"], line["count"], line["op"]) == ("WARN", 7, "stop")
    assert line["databases"] == "; ".join(
        [*(f"{tmp_path}/data/{name} (error)" for name in names[:5]), "and 2 more"]
    )
