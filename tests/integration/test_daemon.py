"""The daemon as a process: start, serve, answer, stop, and what is then on the replica."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from fixtures.app import App, Writer, checkpointed_copy, db_digest, integrity, pages_equal
from fixtures.daemon import Daemon, pyrep, write_config
from fixtures.effort import wait_until

NAMES = ("db1.db", "team-a/db2.db", "team-b/east/db3.db", "shared/db4.db")


def _tree(base: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Build databases in WAL mode below a directory."""
    data = base / "data"
    for name in names:
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(path)
    return data


def _make(path: Path, rows: int = 10) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("create table item (id integer primary key, body text)")
        db.executemany("insert into item (body) values (?)", [("x" * 500,)] * rows)
        db.commit()


def _config(base: Path, *, extra: str = "", **settings: str) -> Path:
    return write_config(
        base,
        f"""
  - dir: {base}/data
    pattern: "*.db"
    recursive: true
    {extra}
    replica: {{type: file, path: {base}/replica/run, sync-interval: 100ms}}
""",
        **settings,
    )


def _restored(base: Path, name: str, replica: str = "replica/run") -> Path:
    out = base / "restored" / name
    done = pyrep("restore", "-o", out, f"file://{base}/{replica}/{name}")
    assert done.returncode == 0, done.stderr
    return out


def _assert_equal(base: Path, name: str) -> None:
    """Compare a restore with its source: pages, integrity and rows."""
    source, out = base / "data" / name, _restored(base, name)
    copy = base / "copies" / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    checkpointed_copy(source, copy)
    assert pages_equal(copy, out)
    assert integrity(out) == ["ok"]
    assert db_digest(out) == db_digest(source)


def _status(config: Path) -> dict[str, dict[str, object]]:
    done = pyrep("status", "-config", config, "-json")
    assert done.returncode == 0, done.stderr
    return {row["database"]: row for row in json.loads(done.stdout)["databases"]}


def _durable(config: Path, path: Path) -> Callable[[], bool]:
    """Return a condition: all of a database that was staged is on its replica."""

    def there() -> bool:
        row = _status(config).get(str(path))
        return row is not None and row["durable_txid"] == row["local_txid"] != "0" * 16

    return there


# --- the ordinary life ---


def test_a_stop_in_the_middle_of_load_loses_nothing(tmp_path: Path) -> None:
    data, config = _tree(tmp_path), _config(tmp_path)
    with Daemon("-config", config) as daemon, ExitStack() as stack:
        daemon.wait_for("replicating to", 4)
        writers = [
            stack.enter_context(Writer(data / name, rate=40, workers=2, read_ratio=0.1))
            for name in NAMES
        ]
        wait_until(
            lambda: all(
                len(list((tmp_path / "replica/run" / name).glob("ltx/0/*.ltx"))) >= 4
                for name in NAMES
            ),
            "four files of each",
        )
        assert daemon.stop() == 0
        reports = [writer.stop() for writer in writers]
    assert [report["errors"] for report in reports] == [0] * 4
    assert daemon.above_info() == []
    assert [line["count"] for line in daemon.lines("found databases in directory")] == [4]
    targets = {line["path"] for line in daemon.lines("replicating to")}
    assert targets == {f"{tmp_path}/replica/run/{name}" for name in NAMES}
    with Daemon("-config", config, "-once") as again:
        assert again.wait() == 0, again.error
    for name in NAMES:
        _assert_equal(tmp_path, name)
    found = {p.relative_to(tmp_path / "replica") for p in (tmp_path / "replica").rglob("ltx")}
    assert found == {Path("run") / name / "ltx" for name in NAMES}


def test_the_daemon_goes_on_after_sigkill(tmp_path: Path, start_app: Callable[..., App]) -> None:
    data, config = _tree(tmp_path, ("a.db",)), _config(tmp_path)
    app = start_app(data / "a.db")
    with Daemon("-config", config) as daemon:
        daemon.wait_for("replicating to")
        app.execute("insert into item (body) values ('one')")
        wait_until(_durable(config, data / "a.db"), "the first state is durable")
        app.execute("insert into item (body) values ('two')")
        daemon.kill()
    with Daemon("-config", config) as daemon:
        daemon.wait_for("replicating to")
        app.execute("insert into item (body) values ('three')")
        wait_until(
            lambda: (
                len(list((tmp_path / "replica/run/a.db/ltx/0").glob("*.ltx"))) >= 2
                and _durable(config, data / "a.db")()
            ),
            "the second daemon has uploaded",
        )
        assert daemon.stop() == 0
    _assert_equal(tmp_path, "a.db")


def test_a_parked_database_is_one_clean_file(tmp_path: Path, start_app: Callable[..., App]) -> None:
    data, config = _tree(tmp_path, ("a.db", "b.db")), _config(tmp_path)
    app = start_app(data / "a.db")
    app.execute("insert into item (body) values ('more')")
    app.exit()
    with Daemon("-config", config) as daemon:
        wait_until(_durable(config, data / "a.db"), "the database is durable")
        done = pyrep("park", "-config", config, data / "a.db")
        assert done.returncode == 0, done.stderr
        assert "parked" in done.stdout
        assert _status(config)[str(data / "a.db")]["status"] == "parked"
        assert not list(data.glob("a.db-*"))
        wait_until(_durable(config, data / "b.db"), "the other one is durable")
        done = pyrep("park", "-config", config, data / "nothing.db")
        assert done.returncode != 0
        assert daemon.stop() == 0
    _assert_equal(tmp_path, "a.db")
    assert not [p for p in data.iterdir() if p.name.endswith(("-wal", "-shm"))]


def test_idle_tenants_cost_no_threads_and_no_descriptors(tmp_path: Path) -> None:
    names = tuple(f"t{number:03}.db" for number in range(60))
    _tree(tmp_path, names)
    config = _config(tmp_path, extra="idle-timeout: 100ms")
    with Daemon("-config", config) as daemon:
        daemon.wait_for("replicating to", 60)
        wait_until(
            lambda: {row["status"] for row in _status(config).values()} == {"parked"},
            "all are parked",
        )
        wait_until(lambda: daemon.threads <= 20, "the threads that were needed have ended")
        assert daemon.descriptors <= 40
        assert daemon.stop() == 0
    assert daemon.above_info() == []


# --- one daemon per configuration ---


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    _tree(tmp_path, ("a.db",))
    config = _config(tmp_path)
    with Daemon("-config", config) as first:
        first.wait_for("replicating to")
        with Daemon("-config", config) as second:
            assert second.wait() == 9
        assert f"(pid {first.pid})" in second.error
        assert f"{tmp_path}/state/pyrep.yml-" in second.error
        assert first.running
        assert first.stop() == 0
    with Daemon("-config", config) as third:
        third.wait_for("replicating to")
        assert third.stop(signal.SIGINT) == 0


def test_a_lock_file_left_by_a_kill_does_not_matter(tmp_path: Path) -> None:
    _tree(tmp_path, ("a.db",))
    config = _config(tmp_path)
    with Daemon("-config", config) as first:
        first.wait_for("replicating to")
        first.kill()
    done = pyrep("park", "-config", config, tmp_path / "data/a.db")
    assert (done.returncode, "no daemon" in done.stdout) == (0, True)
    with Daemon("-config", config) as second:
        second.wait_for("replicating to")
        assert second.stop() == 0


# --- the stop ---


def _unreachable(replica: Path) -> None:
    """Put a file where the replica's directory is to be: every upload fails."""
    replica.parent.mkdir(parents=True, exist_ok=True)
    replica.write_text("in the way")


def test_what_was_not_uploaded_is_named(tmp_path: Path) -> None:
    data = _tree(tmp_path, ("a.db",))
    config = _config(tmp_path, timeout="1s")
    _unreachable(tmp_path / "replica/run")
    with Daemon("-config", config) as daemon:
        wait_until(lambda: bool(daemon.above_info()), "the failure is said")
        assert daemon.stop() == 8
    assert str(data / "a.db") in daemon.error
    assert "before everything was uploaded" in daemon.error


def test_a_second_signal_cuts_the_stop_short(tmp_path: Path) -> None:
    data = _tree(tmp_path, ("a.db",))
    config = _config(tmp_path, timeout="1h")
    failing = {"PYREP_ALLOW_FAILPOINTS": "1", "PYREP_FAILPOINT": "file.fsync:2:eio+"}
    with App(data / "a.db") as app:
        with Daemon("-config", config, env=failing) as daemon:
            wait_until(_durable(config, data / "a.db"), "the first state is durable")
            app.execute("insert into item (body) values ('unsent')")
            wait_until(lambda: bool(daemon.above_info()), "the failure is said")
            daemon.send(signal.SIGINT)
            daemon.wait_for("signal received, shutting down")
            assert daemon.stop(signal.SIGINT) == 8
            assert f"{data}/a.db (1 file not uploaded" in daemon.error
        with Daemon("-config", config) as after:
            after.wait_for("replicating to")
            wait_until(
                lambda: len(list((tmp_path / "replica/run/a.db/ltx/0").glob("*.ltx"))) == 2,
                "what was left is uploaded",
            )
            assert after.stop() == 0
    _assert_equal(tmp_path, "a.db")


def test_sighup_and_unknown_requests_do_no_harm(tmp_path: Path) -> None:
    _tree(tmp_path, ("a.db",))
    config = _config(tmp_path)
    with Daemon("-config", config) as daemon:
        daemon.wait_for("replicating to")
        daemon.send(signal.SIGHUP)
        daemon.wait_for("configuration read again")
        daemon.send(signal.SIGUSR1)
        assert daemon.stop() == 0
    assert daemon.above_info() == []


# --- once ---


def test_once_uploads_everything_and_ends(tmp_path: Path) -> None:
    _tree(tmp_path)
    config = _config(tmp_path)
    for _ in range(2):
        with Daemon("-config", config, "-once") as daemon:
            assert daemon.wait() == 0, daemon.error
        assert daemon.above_info() == []
    for name in NAMES:
        _assert_equal(tmp_path, name)


def test_once_names_what_failed_and_does_the_rest(tmp_path: Path) -> None:
    data = _tree(tmp_path, ("good.db",))
    (data / "text.db").write_text("no database")
    config = write_config(
        tmp_path,
        f"""
  - path: {data}/missing.db
    replica: {{type: file, path: {tmp_path}/replica/run/missing.db}}
  - path: {data}/text.db
    replica: {{type: file, path: {tmp_path}/replica/run/text.db}}
  - path: {data}/good.db
    replica: {{type: file, path: {tmp_path}/replica/run/good.db}}
""",
    )
    with Daemon("-config", config, "-once") as daemon:
        assert daemon.wait() == 1
    assert f"{data}/missing.db" in daemon.error
    assert f"{data}/text.db" in daemon.error
    assert "good.db" not in daemon.error
    _assert_equal(tmp_path, "good.db")


# --- what is not ready, not there, not a database ---


def test_files_that_are_no_databases_are_named_once_and_the_rest_runs(tmp_path: Path) -> None:
    data = _tree(tmp_path, ("good.db",))
    (data / "empty.db").touch()
    os.utime(data / "empty.db", (0, 0))  # it was not created a moment ago
    (data / "text.db").write_text("no database")
    config = _config(tmp_path, extra="monitor-interval: 50ms")
    with Daemon("-config", config) as daemon:
        wait_until(_durable(config, data / "good.db"), "the good one is durable")
        lines = daemon.lines("file is no database and left out")
        assert {line["db"] for line in lines} == {f"{data}/empty.db", f"{data}/text.db"}
        found = daemon.lines("found databases in directory")
        assert [(line["count"], line["left-out"]) for line in found] == [(1, 2)]
        (data / "text.db").unlink()
        _make(data / "text.db")
        wait_until(_durable(config, data / "text.db"), "what became a database is durable")
        assert daemon.stop() == 0
    assert len(daemon.lines("file is no database and left out")) == 2
    _assert_equal(tmp_path, "text.db")


def test_a_missing_path_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config = write_config(
        tmp_path,
        f"  - path: {tmp_path}/data/a.db\n"
        f"    replica: {{type: file, path: {tmp_path}/replica/run/a.db}}",
    )
    with Daemon("-config", config) as daemon:
        daemon.wait_for("waiting for database")
        name = f"{tmp_path}/data/a.db"
        wait_until(lambda: name in _status(config), "the catalog has it")
        assert _status(config)[name]["status"] == "waiting"
        _make(tmp_path / "data/a.db")
        wait_until(_durable(config, tmp_path / "data/a.db"), "the new database is durable")
        assert daemon.stop() == 0
    assert daemon.above_info() == []
    _assert_equal(tmp_path, "a.db")


def test_a_missing_directory_is_looked_for_again(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        f"""
  - dir: {tmp_path}/data
    pattern: "*.db"
    replica: {{type: file, path: {tmp_path}/replica/run}}
reconcile-interval: 200ms
""",
    )
    with Daemon("-config", config) as daemon:
        (line,) = daemon.wait_for("not replicated")
        assert line["dir"] == f"{tmp_path}/data"
        _tree(tmp_path, ("a.db",))
        wait_until(_durable(config, tmp_path / "data/a.db"), "the new database is durable")
        assert daemon.stop() == 0
    assert len(daemon.lines("not replicated")) == 1


def test_a_configuration_that_yields_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config = _config(tmp_path, extra="watch: false")
    with Daemon("-config", config) as daemon:
        assert daemon.wait() == 2
    assert "yields no database" in daemon.error


def test_an_empty_list_is_an_error_line_and_the_daemon_runs(tmp_path: Path) -> None:
    config = tmp_path / "pyrep.yml"
    config.write_text(f"state-dir: {tmp_path}/state\nlogging: {{type: json}}\ndbs: []\n")
    with Daemon("-config", config) as daemon:
        daemon.wait_for("no databases specified in configuration")
        assert daemon.stop() == 0


def test_a_broken_database_does_not_delay_the_others_and_recovers(
    tmp_path: Path, start_app: Callable[..., App]
) -> None:
    data = _tree(tmp_path, ("good.db", "locked.db"))
    config = _config(tmp_path, extra="busy-timeout: 10ms")
    app = start_app(data / "locked.db")
    app.script("pragma locking_mode = exclusive; insert into item (body) values ('mine')")
    with Daemon("-config", config) as daemon:
        wait_until(_durable(config, data / "good.db"), "the good one is durable")
        wait_until(lambda: bool(daemon.above_info()), "the locked one is named")
        assert {line["db"] for line in daemon.above_info()} == {f"{data}/locked.db"}
        app.exit()
        wait_until(_durable(config, data / "locked.db"), "the other one is durable too")
        assert daemon.stop() == 0
    for name in ("good.db", "locked.db"):
        _assert_equal(tmp_path, name)


# --- exec and restore ---


def test_the_daemon_ends_with_its_command(tmp_path: Path) -> None:
    data = _tree(tmp_path, ("a.db",))
    config = _config(tmp_path)
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "c.execute(\"insert into item (body) values ('from the command')\"); c.commit()"
    )
    program = tmp_path / "program.py"
    program.write_text(script)
    command = f"{sys.executable} {program} '{data}/a.db'"
    with Daemon("-config", config, "-exec", command) as daemon:
        assert daemon.wait() == 0, daemon.error
    _assert_equal(tmp_path, "a.db")


def test_a_command_that_fails_makes_the_daemon_fail(tmp_path: Path) -> None:
    _tree(tmp_path, ("a.db",))
    with Daemon("-config", _config(tmp_path), "-exec", "sh -c 'exit 7'") as daemon:
        assert daemon.wait() == 1
    assert "exit status 7" in daemon.error


def test_a_command_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    _tree(tmp_path, ("a.db",))
    with Daemon("-config", _config(tmp_path), "-exec", "/no/such/program") as daemon:
        assert daemon.wait() == 1
    assert "cannot exec /no/such/program" in daemon.error


def test_signals_reach_the_command_and_its_end_by_them_is_no_error(tmp_path: Path) -> None:
    _tree(tmp_path, ("a.db",))
    ready = tmp_path / "ready"
    program = tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {ready}\nexec sleep 1000\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with Daemon("-config", _config(tmp_path), "-exec", program) as daemon:
        wait_until(ready.exists, "the command runs")
        assert daemon.stop() == 0, daemon.error
    assert daemon.lines("sending signal to exec process")


def test_a_missing_database_is_restored_first(tmp_path: Path) -> None:
    data = _tree(tmp_path, ("a.db",))
    config = write_config(
        tmp_path,
        f"  - path: {data}/a.db\n    restore-if-db-not-exists: true\n"
        f"    replica: {{type: file, path: {tmp_path}/replica/run/a.db}}",
    )
    with Daemon("-config", config, "-once") as daemon:
        assert daemon.wait() == 0, daemon.error
    before = db_digest(data / "a.db")
    for path in data.glob("a.db*"):
        path.unlink()
    with Daemon("-config", config) as daemon:
        daemon.wait_for("database restored")
        daemon.wait_for("replicating to")
        assert db_digest(data / "a.db") == before
        assert daemon.stop() == 0
    assert daemon.above_info() == []
    assert len(list((tmp_path / "replica/run/a.db/ltx/0").glob("*.ltx"))) == 1
    _assert_equal(tmp_path, "a.db")


@pytest.mark.parametrize("flag", ["-restore-if-db-not-exists", None])
def test_without_a_backup_it_starts_fresh(tmp_path: Path, flag: str | None) -> None:
    (tmp_path / "data").mkdir()
    key = "" if flag else "    restore-if-db-not-exists: true\n"
    config = write_config(
        tmp_path,
        f"  - path: {tmp_path}/data/a.db\n{key}"
        f"    replica: {{type: file, path: {tmp_path}/replica/run/a.db}}",
    )
    with Daemon("-config", config, *filter(None, [flag])) as daemon:
        daemon.wait_for("no backup found, starting fresh")
        daemon.wait_for("waiting for database")
        assert daemon.stop() == 0


def test_what_is_replicated_by_arguments_needs_no_file(tmp_path: Path) -> None:
    data = _tree(tmp_path, ("a.db",))
    target = f"file://{tmp_path}/replica/run/a.db"
    with Daemon("-once", data / "a.db", target) as daemon:
        assert daemon.wait() == 0, daemon.error
    with Daemon(data / "a.db", target) as daemon:
        wait_until(lambda: any("replicating to" in line for line in daemon.output), "it runs")
        assert daemon.stop() == 0
    _assert_equal(tmp_path, "a.db")


def test_two_entries_for_one_replica_are_an_error_for_the_second_alone(tmp_path: Path) -> None:
    data = _tree(tmp_path, ("a.db", "b.db"))
    replica = f"    replica: {{type: file, path: {tmp_path}/replica/run/a.db}}\n"
    config = write_config(
        tmp_path, f"  - path: {data}/a.db\n{replica}  - path: {data}/b.db\n{replica}"
    )
    with Daemon("-config", config, "-once") as daemon:
        assert daemon.wait() == 1
    assert f"{data}/b.db" in daemon.error
    assert "would share the replica path" in daemon.error
    _assert_equal(tmp_path, "a.db")
