"""The command line as a user has it: processes, a real daemon, live databases."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fixtures.app import App, checkpointed_copy, pages_equal
from fixtures.effort import wait_until

StartApp = Callable[..., App]
_NAMES = ("db1.db", "team-a/db2.db")


def pyrep(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    line = [sys.executable, "-m", "pyrep", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


class Site:
    """Hold a directory of live databases, its configuration and the daemon."""

    def __init__(self, root: Path, start_app: StartApp) -> None:
        self.root = root
        self.config = root / "pyrep.yml"
        self.log = root / "log"
        self.apps = {}
        for name in _NAMES:
            path = root / "dbs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.apps[name] = start_app(path)
            self.apps[name].script("create table t (x)")
        self.config.write_text(
            f"state-dir: {root}/state\n"
            f"dbs:\n  - dir: {root}/dbs\n    pattern: '*.db'\n    recursive: true\n"
            f"    monitor-interval: 100ms\n"
            f"    replica: {{path: {root}/replicas, sync-interval: 100ms}}\n"
        )

    def path(self, name: str) -> Path:
        """Return a database's path."""
        return self.root / "dbs" / name

    def insert(self, name: str) -> None:
        """Commit a row."""
        self.apps[name].execute("insert into t values (randomblob(100))")

    def run(self, verb: str, *words: object) -> subprocess.CompletedProcess[str]:
        """Run a command with the configuration."""
        return pyrep(*verb.split(), "-config", self.config, *words)

    def status(self) -> dict[str, dict[str, Any]]:
        """Return what ``pyrep status`` says of each database."""
        items = json.loads(self.run("status", "-json").stdout)["databases"]
        return {str(Path(i["database"]).relative_to(self.root / "dbs")): i for i in items}

    def is_durable(self) -> bool:
        """Return whether all that the daemon knows of is on the replicas."""
        items = self.status()
        return len(items) == len(_NAMES) and all(
            item["durable_txid"] == item["local_txid"] != "0" * 16 for item in items.values()
        )

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the daemon inside a ``with`` block, and stop it by SIGTERM."""
        line = [sys.executable, "-m", "pyrep", "replicate", "-config", str(self.config)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(line, stdout=log, stderr=log)
        try:
            wait_until(self.is_durable, "the first backup of every database")
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, self.log.read_text()
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def site(tmp_path: Path, start_app: StartApp) -> Site:
    """Return a directory of two live databases."""
    return Site(tmp_path, start_app)


def equal(site: Site, name: str, restored: Path) -> bool:
    """Return whether a restored file has the pages of its source."""
    copy = site.root / "copy.db"
    checkpointed_copy(site.path(name), copy)
    return pages_equal(copy, restored)


def test_once_replicates_everything_and_all_comes_back(site: Site) -> None:
    done = site.run("replicate", "-once")
    assert done.returncode == 0, done.stdout
    out = site.root / "out"
    done = site.run("restore -all", "-integrity-check", "full", "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert [name for name in _NAMES if not equal(site, name, out / name)] == []


def test_commands_beside_a_running_daemon(site: Site) -> None:
    database = site.path("db1.db")
    with site.daemon() as process:
        second = site.run("replicate")
        assert (second.returncode, f"pid {process.pid}" in second.stderr) == (9, True)
        refused = site.run("restore", "-force", database)
        assert (refused.returncode, "manages this database" in refused.stderr) == (3, True)
        assert site.run("reset", database).returncode == 3
        parked = site.run("park", database)
        assert parked.returncode == 0, parked.stderr
        assert site.status()["db1.db"]["status"] == "parked"
        site.insert("db1.db")
        wait_until(
            lambda: int(site.status()["db1.db"]["durable_txid"], 16) > 1, "a change after parking"
        )
        assert json.loads(site.run("status", "-json").stdout)["daemon_pid"] == process.pid
        assert site.run("reset", "-take-over", f"{site.root}/dbs/*").returncode != 0
        other = site.run("restore", "-o", site.root / "copy-of-1.db", database)
        assert other.returncode == 0, other.stderr
    assert equal(site, "db1.db", site.root / "copy-of-1.db")
    log = site.log.read_text()
    assert not [line for line in log.splitlines() if "level=WARN" in line or "level=ERROR" in line]


def test_a_restored_database_goes_on_with_an_increment(site: Site) -> None:
    assert site.run("replicate", "-once").returncode == 0
    database = site.path("db1.db")
    site.apps["db1.db"].exit()
    done = site.run("restore", "-force", database)
    assert done.returncode == 0, done.stderr
    line = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('insert into t"
    code = f"{line} values (1)'); c.commit(); c.close()"
    subprocess.run([sys.executable, "-c", code, str(database)], check=True)
    done = site.run("replicate", "-once")
    assert done.returncode == 0, done.stdout
    assert "shipping every page" not in done.stdout
    files = json.loads(site.run("ltx", "-json", database).stdout)["files"]
    assert [item["max_txid"] for item in files] == [f"{n:016x}" for n in (1, 2)]
    assert files[1]["size"] < files[0]["size"]


def test_a_single_database_needs_no_configuration(tmp_path: Path, start_app: StartApp) -> None:
    database, url = tmp_path / "app.db", (tmp_path / "replica").as_uri()
    start_app(database).script("create table t (x); insert into t values (1)")
    done = pyrep("replicate", "-once", database, url)
    assert done.returncode == 0, done.stdout
    done = pyrep("restore", "-json", "-o", tmp_path / "out.db", url)
    assert json.loads(done.stdout)["proven"] is True
    copy = tmp_path / "copy.db"
    checkpointed_copy(database, copy)
    assert pages_equal(copy, tmp_path / "out.db")


def test_a_missing_database_is_restored_first(tmp_path: Path, start_app: StartApp) -> None:
    database, url = tmp_path / "app.db", (tmp_path / "replica").as_uri()
    app = start_app(database)
    app.script("create table t (x); insert into t values (1)")
    assert pyrep("replicate", "-once", database, url).returncode == 0
    before = tmp_path / "before.db"
    checkpointed_copy(database, before)
    app.exit()
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    done = pyrep("replicate", "-once", "-restore-if-db-not-exists", database, url)
    assert done.returncode == 0, done.stdout
    assert pages_equal(before, database)


@pytest.mark.parametrize(
    ("command", "code", "text"), [("true", 0, ""), ("false", 1, "Error: exit status 1\n")]
)
def test_the_daemon_ends_with_its_command(site: Site, command: str, code: int, text: str) -> None:
    done = site.run("replicate", "-exec", command)
    assert (done.returncode, done.stderr) == (code, text)


def test_the_child_and_the_daemon_log_at_one_level(site: Site) -> None:
    command = f"{sys.executable} -c 'import os; print(os.environ[\"LOG_LEVEL\"])'"
    done = site.run("replicate", "-log-level", "error", "-exec", command)
    assert (done.returncode, done.stdout) == (0, "error\n")
