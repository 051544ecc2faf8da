"""SIGHUP: what the new configuration says holds from then on; what is the same goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.app import App
from fixtures.daemon import Daemon, pyrep
from fixtures.effort import wait_until

_SLOW = "10m"
Entry = dict[str, Any]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("one/a.db", "one/b.db", "two/c.db", "single.db"):
        _make(tmp_path / name)
    return tmp_path


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with App(path) as app:
        app.execute("create table t (a)")
        app.execute_many("insert into t values (?)", [(n,) for n in range(10)])


def _insert(path: Path) -> None:
    with App(path) as app:
        app.execute("insert into t values ('later')")


def _directory(base: Path, name: str, *, replica: str = "replica", **keys: object) -> Entry:
    place = {"type": "file", "path": f"{base}/{replica}/{name}"}
    return {"dir": f"{base}/{name}", "pattern": "*.db", "replica": place, **keys}


def _write(base: Path, *entries: Entry, **keys: object) -> Path:
    path = base / "pyrep.yml"
    whole = {
        "state-dir": f"{base}/state",
        "reconcile-interval": _SLOW,
        "logging": {"type": "json"},
        **keys,
        "dbs": list(entries),
    }
    path.write_text(json.dumps(whole))
    return path


def _status(base: Path) -> dict[str, Entry]:
    done = pyrep("status", "-json", "-config", base / "pyrep.yml")
    rows = json.loads(done.stdout)["databases"]
    return {row["database"].removeprefix(f"{base}/"): row for row in rows}


def _managed(base: Path) -> set[str]:
    return {name for name, row in _status(base).items() if row["status"] != "absent"}


def _durable(base: Path, name: str) -> Callable[[], bool]:
    def durable() -> bool:
        row = _status(base).get(name)
        return row is not None and row["durable_txid"] == row["local_txid"] != "0" * 16

    return durable


def _files(base: Path, place: str) -> int:
    return len(list((base / place).rglob("*.ltx")))


def test_directories_appear_and_drain_and_the_others_go_on(base: Path) -> None:
    config = _write(base, _directory(base, "one"))
    with Daemon("-config", config) as daemon:
        wait_until(_durable(base, "one/a.db"), "the first directory")
        wait_until(_durable(base, "one/b.db"), "the first directory")
        _write(base, _directory(base, "two"), _directory(base, "one"))
        daemon.send(signal.SIGHUP)
        daemon.wait_for("configuration read again")
        wait_until(_durable(base, "two/c.db"), "the new directory")
        assert _managed(base) == {"one/a.db", "one/b.db", "two/c.db"}
        assert len(daemon.lines("replicating to")) == 3  # those of the first were not touched
        _write(base, _directory(base, "two"))
        daemon.send(signal.SIGHUP)
        wait_until(lambda: _managed(base) == {"two/c.db"}, "the first one has drained")
        before = _files(base, "replica/one")
        _insert(base / "one/a.db")
        _make(base / "one/new.db")
        _insert(base / "two/c.db")
        wait_until(lambda: _files(base, "replica/two/c.db/ltx/0") >= 2, "the other goes on")
        assert _files(base, "replica/one") == before
        assert daemon.stop() == 0
    assert daemon.above_info() == []


def test_the_settings_of_one_database_change_without_touching_another(base: Path) -> None:
    single: Entry = {
        "path": f"{base}/single.db",
        "replica": {"type": "file", "path": f"{base}/replica/single"},
    }
    config = _write(base, single, _directory(base, "one"))
    with Daemon("-config", config) as daemon:
        for name in ("single.db", "one/a.db", "one/b.db"):
            wait_until(_durable(base, name), name)
        moved = {**single, "replica": {"type": "file", "path": f"{base}/replica/moved"}}
        _write(base, moved, _directory(base, "one", pattern="*"))
        daemon.send(signal.SIGHUP)
        wait_until(lambda: _files(base, "replica/moved") > 0, "the new replica")
        wait_until(_durable(base, "single.db"), "it is durable there")
        names = [
            str(line["db"]).removeprefix(f"{base}/") for line in daemon.lines("replicating to")
        ]
        assert sorted(names) == ["one/a.db", "one/b.db", "single.db", "single.db"]
        (gone,) = daemon.lines("database is no longer replicated")
        assert gone["db"] == f"{base}/single.db"
        assert daemon.stop() == 0


def test_databases_of_a_directory_that_is_not_watched_survive_a_change(base: Path) -> None:
    """They have to leave before they come again, and no event tells that they have left."""
    config = _write(base, _directory(base, "one", watch=False))
    with Daemon("-config", config) as daemon:
        wait_until(_durable(base, "one/a.db"), "it is durable")
        _write(base, _directory(base, "one", replica="moved", watch=False))
        daemon.send(signal.SIGHUP)
        wait_until(lambda: _files(base, "moved/one/a.db") > 0, "it is at the new place")
        wait_until(lambda: _files(base, "moved/one/b.db") > 0, "the other one too")
        assert daemon.stop() == 0


def test_a_restart_with_another_replica_ships_there_without_a_change(base: Path) -> None:
    config = _write(base, _directory(base, "one"))
    with Daemon("-config", config) as daemon:
        wait_until(_durable(base, "one/a.db"), "it is durable")
        assert daemon.stop() == 0
    _write(base, _directory(base, "one", replica="elsewhere"))
    with Daemon("-config", config) as daemon:
        wait_until(lambda: _files(base, "elsewhere/one/a.db") > 0, "it is there")
        wait_until(lambda: _files(base, "elsewhere/one/b.db") > 0, "the other one too")
        assert daemon.stop() == 0


def test_a_broken_file_keeps_the_configuration_that_was(base: Path) -> None:
    config = _write(base, _directory(base, "one"))
    with Daemon("-config", config) as daemon:
        wait_until(_durable(base, "one/a.db"), "it runs")
        good = config.read_text()
        for text, said in (
            ("dbs: [", "pyrep.yml"),
            ("dbs: [{dir: /x, pattern: '*', replicaa: {path: /y}}]", "replicaa"),
        ):
            config.write_text(text)
            before = len(daemon.above_info())
            daemon.send(signal.SIGHUP)
            daemon.wait_for("the configuration stays as it was, the new one is wrong")
            wait_until(lambda n=before: len(daemon.above_info()) == n + 1, "one line more")
            assert said in str(daemon.above_info()[-1])
        config.write_text(good)
        _insert(base / "one/a.db")
        wait_until(lambda: _files(base, "replica/one/a.db/ltx/0") >= 2, "it goes on")
        _write(base, _directory(base, "one"), **{"spool-limit-total": "1GiB"})
        daemon.send(signal.SIGHUP)
        (line,) = daemon.wait_for("some settings take effect after a restart only")
        assert line["settings"] == "spool-limit-total"
        assert daemon.stop() == 0


def test_without_a_file_there_is_nothing_to_read_again(tmp_path: Path) -> None:
    _make(tmp_path / "a.db")
    with Daemon(tmp_path / "a.db", f"file://{tmp_path}/replica") as daemon:
        wait_until(lambda: _files(tmp_path, "replica") > 0, "it runs")
        daemon.send(signal.SIGHUP)
        said = "there is no configuration file to read again"
        wait_until(lambda: any(said in line for line in daemon.output), "that it stays as it was")
        assert daemon.stop() == 0
