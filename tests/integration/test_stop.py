"""The end of the daemon: what it leaves beside the databases, and what it does when it cannot."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fixtures.app import App, Writer
from fixtures.effort import wait_until
from fixtures.host import Host

_FAIL = {"PYREP_ALLOW_FAILPOINTS": "1", "PYREP_FAILPOINT": "file.link:1:eio+"}
_IDLE_TENANTS = 200
_OWNER = 65534
_WATCHED_SECONDS = 4.0


def _fill(path: Path, rows: int = 20) -> None:
    """Be an application that writes some rows, and ends."""
    with App(path) as app:
        app.execute("create table if not exists t (id integer primary key, a)")
        app.execute_many("insert into t (a) values (randomblob(?))", [(1000,)] * rows)
        app.close()


def _files(host: Host) -> set[str]:
    """Return the names in the folder of databases, pyrep's state directories left out."""
    return {path.name for path in host.data.iterdir() if not path.name.endswith("-pyrep")}


def _expect_own_schema(host: Host, *names: str) -> None:
    for name in names:
        with App(host.data / name) as app:
            assert app.execute("select name from sqlite_schema") == [("t",)]


# --- what is left beside the databases ------------------------------------------------------------


def test_nothing_is_left_of_applications_that_have_ended(tmp_path: Path) -> None:
    """One ended before the daemon started, one while it ran, one wrote only while it ran."""
    names = ("before.db", "during.db", "late.db")
    with Host(tmp_path) as host, App(host.data / "during.db") as during:
        for name in ("before.db", "late.db"):
            _fill(host.data / name)
        during.execute("create table t (id integer primary key, a)")
        host.start()
        host.wait_shipped("before.db", "during.db")
        during.execute("insert into t (a) values (1)")
        during.close()
        _fill(host.data / "late.db")
        host.wait_shipped("late.db")
        assert host.stop() == 0, host.text()
        assert host.problems() == []
        assert _files(host) == set(names)
        _expect_own_schema(host, *names)
        host.expect_equal(names, others=False)


def test_files_of_an_open_application_stay_its_own(tmp_path: Path) -> None:
    with Host(tmp_path) as host, App(host.data / "open.db") as app:
        app.execute("create table t (id integer primary key, a)")
        host.start()
        app.execute("insert into t (a) values (1)")
        host.wait_shipped("open.db")
        inodes = {name: (host.data / name).stat().st_ino for name in _files(host)}
        assert host.stop() == 0, host.text()
        assert {name: (host.data / name).stat().st_ino for name in _files(host)} == inodes
        assert set(inodes) == {"open.db", "open.db-wal", "open.db-shm"}
        app.execute("insert into t (a) values (2)")
        app.close()
        assert _files(host) == {"open.db"}
        _expect_own_schema(host, "open.db")


def test_files_of_a_crashed_application_are_only_those_it_left(tmp_path: Path) -> None:
    with Host(tmp_path) as host, App(host.data / "crashed.db") as app:
        app.execute("create table t (id integer primary key, a)")
        host.start()
        app.execute_many("insert into t (a) values (randomblob(?))", [(900,)] * 50)
        host.wait_shipped("crashed.db")
        app.execute("insert into t (a) values ('the last words')")
        app.kill()
        assert host.stop() == 0, host.text()
        assert _files(host) <= {"crashed.db", "crashed.db-wal", "crashed.db-shm"}
        host.expect_equal(["crashed.db"], others=False)
        with App(host.data / "crashed.db") as after:
            assert after.execute("select count(*) from t where a = 'the last words'") == [(1,)]
        _expect_own_schema(host, "crashed.db")
        assert _files(host) == {"crashed.db"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own files of another user")
def test_what_root_creates_beside_a_database_belongs_to_its_owner(tmp_path: Path) -> None:
    """An application that cannot write a -wal or -shm of root's is read-only from then on."""
    with Host(tmp_path) as host:
        database = host.data / "owned.db"
        _fill(database)
        os.chown(database, _OWNER, _OWNER)
        database.chmod(0o600)
        host.start()
        host.wait_for(lambda: "owned.db-shm" in _files(host), "the database is attached")
        host.wait_shipped("owned.db")
        beside = [database.with_name(name) for name in ("owned.db-wal", "owned.db-shm")]
        state = database.with_name(".owned.db-pyrep")
        for path in [*beside, state, *state.iterdir()]:
            status = path.stat()
            assert (status.st_uid, status.st_gid) == (_OWNER, _OWNER), path
            assert status.st_mode & 0o077 == 0, path
        assert host.stop() == 0, host.text()
        assert _files(host) == {"owned.db"}


# --- a stop that cannot upload --------------------------------------------------------------------


def _expect_left(host: Host, *names: str) -> None:
    """Require the last words of a daemon that could not upload everything."""
    text = host.text()
    assert "shutdown ended before everything was uploaded" in text
    for name in names:
        assert re.search(rf"{re.escape(str(host.data / name))} \(\d+ files? not uploaded: ", text)
    assert "Nothing is lost: what is staged is uploaded at the next start." in text


def _expect_nothing_lost(host: Host, *names: str) -> None:
    """Require that the next run uploads what was left, at the numbers it had."""
    host.start()
    host.wait_shipped(*names)
    assert host.stop() == 0, host.text()
    assert host.problems() == []
    host.expect_equal(names, others=False)
    for name in names:
        found = sorted(path.stem for path in (host.replica / name / "ltx" / "0").iterdir())
        assert found == [f"{n:016x}-{n:016x}" for n in range(1, len(found) + 1)]


def test_stop_while_the_replica_refuses(tmp_path: Path) -> None:
    """What cannot succeed later either is not waited for; the exit code is 8."""
    with Host(tmp_path, plain=True) as host:
        _fill(host.data / "a.db")
        host.start()
        host.wait_shipped("a.db")
        level = host.replica / "a.db" / "ltx" / "0"
        level.chmod(0o555)
        try:
            _fill(host.data / "a.db")
            host.wait_for(lambda: bool(host.about("a.db")), "the refusal")
            assert host.stop() == 8
        finally:
            level.chmod(0o755)
        (line,) = host.about("a.db")
        assert (line["msg"], line["op"]) == ("upload failed", "upload")
        assert line["error"].endswith("permission denied")
        assert line["hint"].startswith("Let the user that runs pyrep")
        _expect_left(host, "a.db")
        _expect_nothing_lost(host, "a.db")


@pytest.mark.slow
def test_stop_while_uploads_fail_ends_by_the_deadline(tmp_path: Path) -> None:
    names = ("a.db", "b.db")
    with Host(tmp_path, shutdown_sync_timeout="4s") as host:
        for name in names:
            _fill(host.data / name)
        host.start(environ=_FAIL)
        host.wait_for(lambda: len(host.problems()) == len(names), "both fail")
        began = time.monotonic()
        assert host.stop() == 8
        took = time.monotonic() - began
        assert 3.5 < took < 12, f"the drain took {took:.1f} s"
        _expect_left(host, *names)
        _expect_nothing_lost(host, *names)


def test_stop_names_what_was_renamed_and_not_taken_in_yet(tmp_path: Path) -> None:
    """It waits until what is staged under the old name is stored, which does not come to pass."""
    with Host(tmp_path, entry={"idle_timeout": "1s"}, shutdown_sync_timeout="60s") as host:
        _fill(host.data / "a.db")
        host.start(environ=_FAIL)
        host.wait_for(lambda: bool(host.problems()), "the upload fails")
        host.wait_for(lambda: not (host.data / "a.db-wal").exists(), "it is parked")
        (host.data / "a.db").rename(host.data / "b.db")
        host.wait_for(lambda: bool(host.lines("database is no longer replicated")), "it goes")
        host.signal()
        host.wait_for(lambda: bool(host.lines("signal received, shutting down")), "the stop")
        host.signal()
        assert host.wait() == 8
        assert f"{host.data}/b.db (not looked at yet: it waits for" in host.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_cuts_the_stop_short(tmp_path: Path, number: int) -> None:
    with Host(tmp_path, shutdown_sync_timeout="80s") as host:
        _fill(host.data / "a.db")
        host.start(environ=_FAIL)
        host.wait_for(lambda: bool(host.problems()), "an upload fails")
        host.signal(number)
        host.wait_for(lambda: bool(host.lines("waiting for the last uploads")), "progress")
        (progress,) = host.lines("waiting for the last uploads")
        assert (progress["pending"], progress["of"]) == (1, 1)
        assert 60 < progress["seconds-left"] < 80
        began = time.monotonic()
        host.signal(number)
        assert host.wait() == 8
        assert time.monotonic() - began < 15
        _expect_left(host, "a.db")
        _expect_nothing_lost(host, "a.db")


# --- no stop at all -------------------------------------------------------------------------------


@contextmanager
def _load(*paths: Path) -> Iterator[list[Writer]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(Writer(path, rate=100, workers=2, payload_bytes=500))
            for path in paths
        ]


@pytest.mark.slow
@pytest.mark.crash
def test_killed_in_the_middle_of_load(tmp_path: Path) -> None:
    """SIGKILL several times under load; at the end every restore equals its source."""
    names = ("a.db", "b.db")
    with Host(tmp_path, replica={"sync_interval": "100ms"}) as host:
        paths = [host.data / name for name in names]
        with _load(*paths) as writers:
            for path in paths:
                wait_until(path.exists, "the load is under way")
            for turn in range(4):
                host.start()
                shipped = 4 * (turn + 1)
                host.wait_for(lambda n=shipped: _shipped_files(host, names) >= n, "more files")
                host.kill()
            host.start()
            reports = [writer.stop() for writer in writers]
        host.wait_shipped(*names)
        assert host.stop() == 0, host.text()
        assert host.problems() == []
        host.expect_equal(names)
        assert [report["errors"] for report in reports] == [0, 0]


def _shipped_files(host: Host, names: tuple[str, ...]) -> int:
    """Return how many files the tenant with the fewest has on its replica."""
    return min(len(list((host.replica / name).rglob("*.ltx"))) for name in names)


# --- idle tenants ---------------------------------------------------------------------------------


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _open_files(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return [str(fd.readlink()) for fd in folder.iterdir() if fd.is_symlink()]


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _memory_mb(pid: int) -> float:
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    ]
    return int(line.split()[1]) / 1024


def _settled(host: Host, count: int) -> None:
    """Wait until every tenant is shipped and parked."""

    def parked() -> bool:
        rows = host.status().values()
        return sum(row["status"] == "parked" for row in rows) == count

    host.wait_for(parked, f"{count} tenants are parked", timeout=120)


@pytest.mark.slow
def test_idle_tenants_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Merges and snapshots that fall due open a state directory for a moment: none does here.
    never = {"levels": [{"interval": "100000h"}], "snapshot": {"interval": "100000h"}}
    with Host(tmp_path, entry={"idle_timeout": "1s"}, **never) as host:
        _fill(host.data / "0.db")
        host.start()
        _settled(host, 1)
        threads, files = _threads(host.pid), len(_open_files(host.pid))
        assert host.stop() == 0, host.text()
        content = (host.data / "0.db").read_bytes()
        for number in range(1, _IDLE_TENANTS):
            (host.data / f"{number}.db").write_bytes(content)
        host.start()
        _settled(host, _IDLE_TENANTS)
        assert _threads(host.pid) == threads
        held = [path for path in _open_files(host.pid) if path.startswith(str(host.data))]
        assert held == []
        assert len(_open_files(host.pid)) <= files + 2
        share = _idle_share(host.pid)
        memory = _memory_mb(host.pid)
        assert host.stop() == 0, host.text()
        assert host.problems() == []
    with capsys.disabled():
        print(
            f"\n{_IDLE_TENANTS} idle tenants: {threads} threads, {files} descriptors, "
            f"{memory:.0f} MB, {100 * share:.1f} % of a core"
        )
    assert share < 0.1
    assert memory < 120


def _idle_share(pid: int) -> float:
    """Return which share of a core a process uses while nothing happens."""
    began, before = time.monotonic(), _cpu_seconds(pid)
    wait_until(lambda: time.monotonic() - began >= _WATCHED_SECONDS, "some time has passed")
    return (_cpu_seconds(pid) - before) / (time.monotonic() - began)
