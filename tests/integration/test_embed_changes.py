"""A program adds and removes databases while its replication runs, and waits for what streams."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrep.embed import Replicator, start
from pyrep.errors import ConfigError, NotDurableError, PyrepError, ReplicationEndedError
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.file import FileReplicaClient


@pytest.fixture
def replicator(tmp_path: Path) -> Iterator[Replicator]:
    """Give a replication of nothing."""
    with start({"state-dir": str(tmp_path / "state"), "dbs": []}) as started:
        yield started


def _write(path: Path, number: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table if not exists note (number integer)")
        database.execute("insert into note values (?)", (number,))


def _stored(replica: Path, txid: int | None = None) -> list[int]:
    output = replica.parent / f"out-{threading.get_ident()}.db"
    restore(FileReplicaClient(replica), output, RestoreOptions(txid=txid))
    with contextlib.closing(sqlite3.connect(output)) as database:
        found = [row[0] for row in database.execute("select number from note order by number")]
    output.unlink()
    return found


def _open_files(pid: int, below: Path) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return [target for target in found if target.startswith(f"{below}/")]


def test_a_database_is_added_and_removed(replicator: Replicator, tmp_path: Path) -> None:
    path, replica = tmp_path / "a.db", tmp_path / "replica"
    _write(path, 1)
    with pytest.raises(ConfigError, match="no such database"):
        replicator.wait(path)
    replicator.add(path, {"path": str(replica)})
    assert _stored(replica, replicator.wait(path)) == [1]
    _write(path, 2)
    replicator.remove(path)
    assert _stored(replica) == [1, 2], "the last commit was stored before it returned"
    assert _open_files(replicator.pid, tmp_path / "a.db") == []
    with pytest.raises(ConfigError, match="no such database"):
        replicator.wait(path)
    _write(path, 3)
    replicator.add(path, {"path": str(replica)})
    assert _stored(replica, replicator.wait(path)) == [1, 2, 3], "it goes on where it was"


def test_a_directory_is_added_and_removed(replicator: Replicator, tmp_path: Path) -> None:
    folder, replica = tmp_path / "tenants", tmp_path / "replica"
    (folder / "deep").mkdir(parents=True)
    names = ["a.db", "deep/b.db"]
    for name in names:
        _write(folder / name, 1)
    _write(folder / "a.sqlite", 1)
    replicator.add_directory(folder, f"file://{replica}")
    replicator.wait_all([folder / name for name in names])
    assert all(_stored(replica / name) == [1] for name in names)
    with pytest.raises(ConfigError, match=r"a\.db: is no entry of the configuration"):
        replicator.remove(folder / "a.db")
    replicator.add_directory(folder, f"file://{replica}", pattern="*.sqlite")
    replicator.wait(folder / "a.sqlite")
    _write(folder / "a.db", 2)
    replicator.remove(folder)
    assert _stored(replica / "a.db") == [1, 2]
    assert _open_files(replicator.pid, folder) == []
    with pytest.raises(ConfigError, match="no such database"):
        replicator.wait(folder / "deep" / "b.db")


def test_one_that_is_not_there_yet_is_waited_for(replicator: Replicator, tmp_path: Path) -> None:
    path = tmp_path / "later" / "a.db"
    replicator.add(path, {"path": str(tmp_path / "replica")})
    path.parent.mkdir()
    _write(path, 1)
    assert _stored(tmp_path / "replica", replicator.wait(path)) == [1]


def test_a_database_that_was_created_a_moment_ago_is_covered(
    replicator: Replicator, tmp_path: Path
) -> None:
    folder = tmp_path / "tenants"
    folder.mkdir()
    replicator.add_directory(folder, {"path": str(tmp_path / "replica")})
    for number in range(5):  # no event may have come yet
        path = folder / f"{number}.db"
        _write(path, number)
        assert _stored(tmp_path / "replica" / path.name, replicator.wait(path)) == [number]


def test_what_is_no_database_is_told_when_the_time_is_over(
    replicator: Replicator, tmp_path: Path
) -> None:
    path = tmp_path / "a.db"
    path.write_text("not a database" * 100)
    replicator.add(path, {"path": str(tmp_path / "replica")})
    with pytest.raises(NotDurableError, match=r"a\.db: not durable within 0\.5 s: .*not a"):
        replicator.wait(path, timeout=0.5)


def test_what_is_wrong_changes_nothing(replicator: Replicator, tmp_path: Path) -> None:
    first, second, replica = tmp_path / "1.db", tmp_path / "2.db", tmp_path / "replica"
    for path in (first, second):
        _write(path, 1)
        os.utime(path, (0, 0))  # it was not written a moment ago
    replicator.add(first, {"path": str(replica)})
    with pytest.raises(ConfigError, match="is in the configuration already"):
        replicator.add(first, {"path": str(replica)})
    with pytest.raises(ConfigError, match="patth"):
        replicator.add(second, {"patth": str(replica)})
    with pytest.raises(ConfigError, match="share the replica path"):
        replicator.add(second, {"path": str(replica)})
    with pytest.raises(ConfigError, match=r"2\.db: is no entry"):
        replicator.remove(second)
    replicator.add(second, {"path": str(tmp_path / "replica-2")})
    replicator.wait_all([first, second])
    assert _stored(replica) == _stored(tmp_path / "replica-2") == [1]


def test_many_threads_add_wait_and_remove(replicator: Replicator, tmp_path: Path) -> None:
    failures: list[object] = []

    def work(thread: int) -> None:
        try:
            for turn in range(3):
                path, replica = tmp_path / f"{thread}.db", tmp_path / f"replica-{thread}"
                _write(path, turn)
                replicator.add(path, {"path": str(replica)})
                assert _stored(replica, replicator.wait(path)) == list(range(turn + 1))
                replicator.remove(path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with pytest.raises(ConfigError, match="no such database"):
        replicator.wait(tmp_path / "0.db")


def test_settings_at_the_top_hold_for_what_is_added(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, path, replica = tmp_path / "pyrep.yml", tmp_path / "a.db", tmp_path / "replica"
    config.write_text(f"state-dir: {tmp_path}/state\nsync-interval: 10m\ndbs: []\n")
    _write(path, 1)
    with start(config) as replicator:
        replicator.add(path, {"path": str(replica)})
        assert _stored(replica, replicator.wait(path)) == [1]
    assert "sync-interval=10m" in capfd.readouterr().err


def test_a_storage_that_fails_does_not_keep_one_forever(tmp_path: Path) -> None:
    """The last upload is tried for as long as a stop would, then the tenant goes."""
    settings = {"state-dir": str(tmp_path / "state"), "shutdown-sync-timeout": "1s", "dbs": []}
    path, replica = tmp_path / "a.db", tmp_path / "replica"
    _write(path, 1)
    with start(settings) as replicator:
        replicator.add(path, {"path": str(replica)})
        replicator.wait(path)
        level = replica / "ltx" / "0"
        level.rename(replica / "aside")
        level.write_text("in the way")
        _write(path, 2)
        with pytest.raises(PyrepError, match="was not complete within 0 s"):
            replicator.remove(path, timeout=0)
        with pytest.raises(ConfigError, match="is no entry"):
            replicator.remove(path)
        level.unlink()
        (replica / "aside").rename(level)
        replicator.add(path, {"path": str(replica)})
        assert _stored(replica, replicator.wait(path)) == [1, 2], "what was staged is not lost"


def test_nothing_is_added_after_the_end(tmp_path: Path) -> None:
    with start({"state-dir": str(tmp_path / "state"), "dbs": []}) as replicator:
        pass
    with pytest.raises(ReplicationEndedError, match="closed"):
        replicator.add(tmp_path / "a.db", {"path": str(tmp_path / "replica")})
    with pytest.raises(ReplicationEndedError, match="closed"):
        replicator.remove(tmp_path / "a.db")


# --- waiting for what goes past the spool ---------------------------------------------------------


def _large(path: Path, rows: int = 400) -> None:
    """Make a database of several times the spool's size, whatever compresses it."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table note (number integer, filler)")
        database.executemany(
            "insert into note values (?, randomblob(4000))", [(n,) for n in range(rows)]
        )


def _settings(tmp_path: Path, **replica: str) -> dict[str, object]:
    entry = {"path": str(tmp_path / "a.db"), "spool-limit": "256KiB", "truncate-page-n": 100}
    where = {"path": str(tmp_path / "replica"), **replica}
    return {"state-dir": str(tmp_path / "state"), "dbs": [{**entry, "replica": where}]}


def test_wait_covers_what_is_larger_than_the_spool(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    _large(path)
    with start(_settings(tmp_path)) as replicator:
        txid = replicator.wait(path)
        assert _stored(tmp_path / "replica", txid) == list(range(400))
        _write_row(path, 400)
        assert _stored(tmp_path / "replica", replicator.wait(path))[-1] == 400


def test_wait_covers_what_was_committed_while_pages_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    _large(path)
    with start(_settings(tmp_path, **{"bytes-per-second": "400KiB"})) as replicator:
        with pytest.raises(NotDurableError, match=r"not durable within 0\.2 s"):
            replicator.wait(path, timeout=0.2)
        _write_row(path, 400)
        assert _stored(tmp_path / "replica", replicator.wait(path)) == list(range(401))


def test_wait_says_that_a_stream_is_too_slow(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    _large(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        settings = _settings(tmp_path, **{"bytes-per-second": "20KiB"})
        with start(settings) as replicator:
            said = ""
            while "too slowly" not in said:  # the WAL grows until R is let go
                for _ in range(60):
                    database.execute("update note set filler = randomblob(4000) where number = 1")
                with pytest.raises(NotDurableError, match=r"a\.db: not durable") as failure:
                    replicator.wait(path, timeout=0.5)
                said = str(failure.value)
            os.kill(replicator.pid, 9)
            with pytest.raises(ReplicationEndedError):
                replicator.wait(path)
            with pytest.raises(ReplicationEndedError):
                replicator.close()
    assert "takes every page too slowly" in json.dumps(said)


def _write_row(path: Path, number: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("insert into note (number) values (?)", (number,))
