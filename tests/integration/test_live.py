"""Databases and directories come, go and move while the daemon runs; events alone tell it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.app import App, checkpointed_copy
from fixtures.host import Host

_SLOW = "10m"  # so long that a test which passes did not wait for it
_MANY = 30


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Give a host whose daemon looks at nothing by itself."""
    with Host(
        tmp_path, entry={"monitor_interval": _SLOW}, reconcile_interval=_SLOW, levels=[]
    ) as made:
        yield made


def _make(path: Path, rows: int = 5, *, mode: str = "wal") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with App(path, journal_mode=mode) as app:
        app.execute("create table t (a)")
        app.execute_many("insert into t values (?)", [(f"{path.name} {n}",) for n in range(rows)])


def _insert(path: Path, text: str) -> None:
    with App(path) as app:
        app.execute("insert into t values (?)", (text,))


def _states(host: Host) -> dict[str, str]:
    return {name: str(row["status"]) for name, row in host.status().items()}


def _wait_gone(host: Host, *names: str) -> None:
    host.wait_for(
        lambda: all(_states(host).get(name) == "absent" for name in names), f"{names} let go of"
    )


def _replicated(host: Host) -> set[str]:
    return {name for name, state in _states(host).items() if state not in ("absent", "waiting")}


# --- one database ---


def test_a_database_that_is_created_is_taken_in_and_its_changes_are_events(host: Host) -> None:
    host.start()
    _make(host.data / "a.db")
    host.wait_shipped("a.db")
    for number in range(3):
        _insert(host.data / "a.db", f"later {number}")
        host.wait_shipped("a.db")
    assert host.stop() == 0
    assert host.problems() == []
    host.expect_equal(["a.db"])


def test_the_first_change_after_quiet_does_not_wait_for_the_interval(tmp_path: Path) -> None:
    with Host(
        tmp_path,
        entry={"monitor_interval": _SLOW, "idle_timeout": _SLOW},
        replica={"sync_interval": "2s"},
        reconcile_interval=_SLOW,
    ) as host:
        _make(host.data / "a.db")
        with App(host.data / "a.db") as app:
            host.start()
            host.wait_shipped("a.db")
            for number in range(3):  # attached, and quiet for longer than the interval
                before = len(list((host.replica / "a.db/ltx/0").iterdir()))
                app.execute("insert into t values (?)", (f"now {number}",))
                host.wait_for(
                    lambda n=before: len(list((host.replica / "a.db/ltx/0").iterdir())) == n + 1,
                    "another file",
                )
                host.wait_shipped("a.db")
        assert host.stop() == 0
        assert host.problems() == []


def test_a_database_that_is_removed_is_let_go_of_with_its_last_rows(host: Host) -> None:
    _make(host.data / "a.db")
    with App(host.data / "a.db") as app:
        host.start()
        host.wait_shipped("a.db")
        app.execute("insert into t values ('last')")
        truth = checkpointed_copy(host.data / "a.db", host.folder / "truth")
        for suffix in ("", "-wal", "-shm"):
            (host.data / f"a.db{suffix}").unlink()
        _wait_gone(host, "a.db")
    row = host.status()["a.db"]
    assert row["durable_txid"] == row["local_txid"] != "0" * 16
    assert row["pending_files"] == 0
    assert row["updated"]
    assert not _descriptors(host, "a.db")
    with closing(sqlite3.connect(host.restored("a.db"))) as db:
        assert ("last",) in db.execute("select a from t")
    assert truth.exists()
    assert host.stop() == 0
    assert host.problems() == []


def _descriptors(host: Host, name: str) -> list[str]:
    folder = Path(f"/proc/{host.pid}/fd")
    found = [os.readlink(link) for link in folder.iterdir() if link.is_symlink()]
    return [path for path in found if name in path]


def test_a_database_of_the_same_name_continues_the_replica(host: Host) -> None:
    _make(host.data / "a.db", 2000)
    host.start()
    host.wait_shipped("a.db")
    first = host.status()["a.db"]["local_txid"]
    (host.data / "a.db").unlink()
    _wait_gone(host, "a.db")
    _make(host.data / "a.db", 3)
    host.wait_shipped("a.db")
    assert host.status()["a.db"]["local_txid"] > first
    shutil.rmtree(host.data / ".a.db-pyrep")
    (host.data / "a.db").unlink()
    _wait_gone(host, "a.db")
    shutil.rmtree(host.data / ".a.db-pyrep", ignore_errors=True)
    _make(host.data / "a.db", 7)  # its lineage is in the catalog alone
    host.wait_shipped("a.db")
    assert host.stop() == 0
    host.expect_equal(["a.db"])
    assert "fenced" not in host.text()


def test_a_renamed_database_goes_on_under_its_new_name(host: Host) -> None:
    _make(host.data / "a.db")
    _make(host.data / "c.db", 3)
    host.start()
    host.wait_shipped("a.db", "c.db")
    (host.data / "a.db").rename(host.data / "b.db")
    (host.data / "c.db").rename(host.data / "a.db")
    host.wait_shipped("a.db", "b.db")
    _wait_gone(host, "c.db")
    _insert(host.data / "b.db", "moved")
    host.wait_shipped("b.db")
    assert host.stop() == 0
    assert host.problems() == []
    host.expect_equal(["a.db", "b.db"])


def test_a_replaced_database_is_seen_without_any_write_to_it(host: Host) -> None:
    _make(host.data / "a.db")
    host.start()
    host.wait_shipped("a.db")
    _make(host.folder / "other", 9)
    (host.folder / "other").rename(host.data / "a.db")
    host.wait_shipped("a.db")
    with (host.folder / "other2").open("wb"):
        pass
    _make(host.folder / "other2", 1)
    shutil.copyfile(host.folder / "other2", host.data / "a.db")  # in place: the same inode
    host.wait_shipped("a.db")
    assert host.stop() == 0
    host.expect_equal(["a.db"])


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory"])
def test_a_database_that_is_to_keep_its_journal_is_watched_too(tmp_path: Path, mode: str) -> None:
    with Host(
        tmp_path,
        entry={"monitor_interval": _SLOW, "journal_mode": "keep", "idle_timeout": "1s"},
        reconcile_interval=_SLOW,
    ) as host:
        _make(host.data / "a.db", mode=mode)
        host.start()
        host.wait_shipped("a.db")
        with App(host.data / "a.db", journal_mode=mode) as app:
            for number in range(3):
                app.execute("insert into t values (?)", (f"journal {number}",))
                host.wait_shipped("a.db")
        assert host.stop() == 0
        assert host.problems() == []


def test_a_half_copied_database_waits_until_it_is_whole(host: Host) -> None:
    _make(host.folder / "whole", 3000)
    content = (host.folder / "whole").read_bytes()
    host.start()
    with (host.data / "a.db").open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        host.wait_for(lambda: _states(host).get("a.db") == "waiting", "the half is seen")
        file.write(content[len(content) // 2 :])
    host.wait_shipped("a.db")
    assert host.stop() == 0
    assert host.problems() == []


def test_what_is_no_database_becomes_one_in_place(host: Host) -> None:
    (host.data / "a.db").write_text("no database")
    (host.data / "b.db").write_text("no database either")
    _make(host.folder / "whole")
    host.start()
    assert host.status() == {}
    shutil.copyfile(host.folder / "whole", host.data / "a.db")
    (host.data / "b.db").unlink()
    host.wait_shipped("a.db")
    assert host.stop() == 0
    assert len(host.problems()) == 2


# --- directories ---


def test_directories_come_and_go_with_all_that_is_in_them(host: Host) -> None:
    host.start()
    names = [f"team/{n}/deep/{n % 3}.db" for n in range(_MANY)]
    for name in names:
        _make(host.data / name, 2)
    host.wait_for(lambda: _replicated(host) == set(names), "all are taken in")
    host.wait_shipped(*names)
    shutil.rmtree(host.data / "team/0")
    _wait_gone(host, names[0])
    shutil.rmtree(host.data / "team")
    _wait_gone(host, *names)
    _make(host.data / names[5], 4)
    host.wait_shipped(names[5])
    assert _replicated(host) == {names[5]}
    assert host.stop() == 0
    assert host.problems() == []


def test_a_renamed_directory_is_a_new_one(host: Host) -> None:
    for name in ("old/a.db", "old/deep/b.db"):
        _make(host.data / name)
    host.start()
    host.wait_shipped("old/a.db", "old/deep/b.db")
    (host.data / "old").rename(host.data / "new")
    host.wait_shipped("new/a.db", "new/deep/b.db")
    _wait_gone(host, "old/a.db", "old/deep/b.db")
    _insert(host.data / "new/deep/b.db", "moved")
    _make(host.data / "new/deep/c.db")
    _make(host.data / "old/a.db", 11)
    names = {"new/a.db", "new/deep/b.db", "new/deep/c.db", "old/a.db"}
    host.wait_shipped(*names)
    host.wait_for(lambda: _replicated(host) == names, "exactly these")
    assert host.stop() == 0
    host.expect_equal(sorted(names))
    assert host.problems() == []


def _wait_sealed(host: Host, *names: str) -> None:
    """Wait until the databases are parked so that nothing but their status tells of a change."""

    def sealed(name: str) -> bool:
        path = (host.data / name).parent / f".{Path(name).name}-pyrep/state.json"
        return path.exists() and json.loads(path.read_text())["fingerprint"] is not None

    host.wait_for(lambda: all(map(sealed, names)), f"{names} sealed")


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_quiet_databases_that_were_moved_with_their_state_are_stored_anew(
    tmp_path: Path, running: bool
) -> None:
    """Nothing of them has changed but the place; the replica of that has another content."""
    with Host(
        tmp_path,
        entry={"monitor_interval": _SLOW, "idle_timeout": "1s"},
        reconcile_interval=_SLOW,
        levels=[],
    ) as host:
        for number, name in enumerate(("a/1.db", "a/2.db", "b/1.db")):
            _make(host.data / name, 5 + number)
        host.start()
        host.wait_shipped("a/1.db", "a/2.db", "b/1.db")
        _wait_sealed(host, "a/1.db", "a/2.db", "b/1.db")
        if not running:
            assert host.stop() == 0
        for before, after in (("a", "c"), ("b", "a"), ("c", "b")):
            (host.data / before).rename(host.data / after)
        if not running:
            host.start()
        names = ["a/1.db", "b/1.db", "b/2.db"]
        host.wait_for(lambda: _replicated(host) == set(names), "exactly these")
        assert host.stop() == 0
        host.expect_equal(names)
        assert host.problems() == []


def test_a_folder_that_cannot_be_entered_for_a_while_is_not_gone(tmp_path: Path) -> None:
    with Host(
        tmp_path, plain=True, entry={"monitor_interval": _SLOW}, reconcile_interval=_SLOW
    ) as host:
        _make(host.data / "team/a.db")
        host.start()
        host.wait_shipped("team/a.db")
        (host.data / "team").chmod(0)
        try:
            host.signal(signal.SIGHUP)  # everything is looked at
            host.wait_for(lambda: bool(host.lines("configuration read again")), "the look")
        finally:
            (host.data / "team").chmod(0o755)
        _insert(host.data / "team/a.db", "later")
        host.wait_shipped("team/a.db")
        assert host.lines("database is no longer replicated") == []
        assert host.stop() == 0


def test_a_tree_that_is_moved_in_is_found(host: Host) -> None:
    for name in ("x.db", "y/z.db"):
        _make(host.folder / "tree" / name)
    host.start()
    (host.folder / "tree").rename(host.data / "tree")
    host.wait_shipped("tree/x.db", "tree/y/z.db")
    (host.data / "tree").rename(host.folder / "gone")
    _wait_gone(host, "tree/x.db", "tree/y/z.db")
    assert host.stop() == 0
    assert host.problems() == []


def test_the_directory_itself_comes_and_goes(host: Host) -> None:
    host.data.rmdir()
    host.start(wait=False)
    host.wait_for(lambda: bool(host.lines("not replicated")), "the missing directory is told")
    _make(host.data / "a.db")
    host.wait_shipped("a.db")
    shutil.rmtree(host.data)
    _wait_gone(host, "a.db")
    _make(host.data / "a.db", 3)
    host.wait_shipped("a.db")
    assert host.stop() == 0
    host.expect_equal(["a.db"])


def test_without_watch_nothing_new_is_taken_in_but_changes_are_seen(tmp_path: Path) -> None:
    with Host(
        tmp_path,
        entry={"monitor_interval": _SLOW, "watch": False},
        reconcile_interval="100ms",
    ) as host:
        _make(host.data / "a.db")
        host.start()
        host.wait_shipped("a.db")
        _make(host.data / "b.db")
        _make(host.data / "new/c.db")
        _insert(host.data / "a.db", "seen")
        host.wait_shipped("a.db")
        assert _replicated(host) == {"a.db"}
        (host.data / "a.db").unlink()
        _wait_gone(host, "a.db")
        assert host.stop() == 0


def test_a_link_that_appears_is_said_once_and_not_followed(host: Host) -> None:
    _make(host.folder / "outside")
    host.start()
    (host.data / "link.db").symlink_to(host.folder / "outside")
    (host.data / "folder").symlink_to(host.folder)
    host.wait_for(lambda: bool(host.lines("link to a file is not followed")), "the link is told")
    _make(host.data / "a.db")
    host.wait_shipped("a.db")
    assert _replicated(host) == {"a.db"}
    assert host.stop() == 0
    assert len(host.lines("link to a file is not followed")) == 1


def test_a_single_database_is_followed_too(tmp_path: Path) -> None:
    path = tmp_path / "data/later/a.db"
    with Host(tmp_path, reconcile_interval=_SLOW) as host:
        text = host.config.read_text().replace(f'"dir": "{host.data}"', f'"path": "{path}"')
        for key in ('"pattern": "*.db",', '"recursive": true,', '"watch": true,'):
            text = text.replace(key, "")
        host.config.write_text(text)
        host.start(wait=False)
        host.wait_for(lambda: bool(host.lines("waiting for database")), "it is waited for")
        _make(path)
        host.wait_for(lambda: _durable(host), "it is durable")
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        host.wait_for(lambda: _states(host).get("later/a.db") == "waiting", "it is awaited again")
        before = host.status()["later/a.db"]["durable_txid"]
        assert before != "0" * 16
        _make(path, 8)
        host.wait_for(lambda: host.status()["later/a.db"]["durable_txid"] > before, "it goes on")
        assert host.stop() == 0
        assert host.problems() == []


def _durable(host: Host) -> bool:
    row = host.status().get("later/a.db")
    return row is not None and row["durable_txid"] == row["local_txid"] != "0" * 16
