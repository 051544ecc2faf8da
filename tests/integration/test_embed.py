"""A program replicates its own databases: it writes with its SQLite, a child process replicates."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.effort import wait_until
from fixtures.sources import ROOT
from pyrep.embed import Replicator, start, start_directory
from pyrep.errors import (
    ConfigError,
    NotDurableError,
    ReplicationEndedError,
    StateLockedError,
)
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.file import FileReplicaClient


class Site:
    """Own a directory of databases, written in this process, and their replicas."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.data, self.replica = folder / "data", folder / "replica"
        self.data.mkdir()
        self.paths = [self.data / f"{number}.db" for number in range(count)]
        self.databases = [sqlite3.connect(p, check_same_thread=False) for p in self.paths]
        for database in self.databases:
            database.execute("pragma journal_mode = wal")
            database.execute("create table note (number integer)")
            database.commit()

    def start(self) -> Replicator:
        return start_directory(
            self.data, {"path": str(self.replica)}, state_dir=self.folder / "state"
        )

    def write(self, at: int, number: int) -> None:
        with self.databases[at] as database:
            database.execute("insert into note values (?)", (number,))

    def stored(self, at: int, txid: int | None = None) -> set[int]:
        """Return the numbers that the replica has, at a TXID."""
        output = self.folder / f"out-{at}.db"
        client = FileReplicaClient(self.replica / self.paths[at].name)
        restore(client, output, RestoreOptions(txid=txid))
        with contextlib.closing(sqlite3.connect(output)) as database:
            found = {row[0] for row in database.execute("select number from note")}
        output.unlink()
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, 3)
    yield site
    for database in site.databases:
        database.close()


def test_wait_covers_what_was_committed(site: Site) -> None:
    with site.start() as replicator:
        for number in range(12):
            at = number % 3
            site.write(at, number)
            txid = replicator.wait(site.paths[at])
            assert number in site.stored(at, txid)
        assert replicator.wait(site.paths[at]) == txid, "nothing new has no number of its own"


def test_wait_covers_a_database_that_is_parked(site: Site) -> None:
    with site.start() as replicator:
        for at, path in enumerate(site.paths):
            site.databases[at].close()
            replicator.wait(path)
        wait_until(lambda: _descriptors(replicator.pid, site.data) == 0, "all are parked")
        with contextlib.closing(sqlite3.connect(site.paths[0])) as database:
            database.execute("insert into note values (7)")
            database.commit()
            txid = replicator.wait(site.paths[0])
        assert 7 in site.stored(0, txid)


def _descriptors(pid: int, below: Path) -> int:
    folder = f"/proc/{pid}/fd"
    targets = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"{folder}/{name}"))
    return sum(target.startswith(f"{below}/") for target in targets)


def test_many_threads_wait_for_many_databases(site: Site) -> None:
    failures: list[object] = []

    def work(replicator: Replicator, thread: int) -> None:
        try:
            for step in range(6):
                at, number = (thread + step) % 3, 100 * thread + step
                with lock[at]:
                    site.write(at, number)
                txid = replicator.wait_all(site.paths)[site.paths[at].as_posix()]
                seen.append((at, number, txid))
        except BaseException as error:
            failures.append(error)

    lock = [threading.Lock() for _ in range(3)]
    seen: list[tuple[int, int, int]] = []
    with site.start() as replicator:
        threads = [threading.Thread(target=work, args=(replicator, n)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(seen) == 36
    for at, number, txid in seen:
        assert number in site.stored(at, txid)


def test_close_uploads_what_is_left(site: Site) -> None:
    replicator = site.start()
    for at in range(3):
        replicator.wait(site.paths[at])
        site.write(at, 5)
    replicator.close()
    replicator.close()
    assert not replicator.running
    assert all(5 in site.stored(at) for at in range(3))
    with pytest.raises(ReplicationEndedError, match="closed"):
        replicator.wait(site.paths[0])


def test_wait_says_what_is_in_the_way_and_goes_on_when_it_is_gone(site: Site) -> None:
    with site.start() as replicator:
        replicator.wait(site.paths[0])
        level = site.replica / site.paths[0].name / "ltx" / "0"
        level.rename(level.with_name("kept"))
        level.write_text("in the way")
        site.write(0, 1)
        with pytest.raises(NotDurableError, match=r"0\.db: not durable within 1 s: .*ltx/0"):
            replicator.wait(site.paths[0], timeout=1.0)
        level.unlink()
        level.with_name("kept").rename(level)
        txid = replicator.wait(site.paths[0])
        assert 1 in site.stored(0, txid)


def test_a_database_that_is_not_replicated_is_refused(site: Site) -> None:
    with site.start() as replicator:
        with pytest.raises(ConfigError, match="no such database"):
            replicator.wait(site.folder / "other.db")
        with pytest.raises(ConfigError, match="no such database"):
            replicator.wait_all([site.paths[0], site.folder / "other.db"])
        assert replicator.wait_all([]) == {}


def test_a_wrong_configuration_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patern"):
        start({"dbs": [{"dir": str(tmp_path), "patern": "*.db"}]})
    with pytest.raises(ConfigError, match="not found"):
        start(tmp_path / "missing.yml")


def test_a_second_one_is_refused(site: Site) -> None:
    with site.start(), pytest.raises(StateLockedError):
        site.start()


def test_a_file_of_configuration_is_taken(site: Site) -> None:
    config = site.folder / "pyrep.yml"
    config.write_text(
        f"state-dir: {site.folder}/state\ndbs:\n  - path: {site.paths[0]}\n"
        f"    replica: {{path: {site.replica}/{site.paths[0].name}}}\n"
    )
    with start(config) as replicator:
        site.write(0, 3)
        assert 3 in site.stored(0, replicator.wait(site.paths[0]))


def test_the_death_of_the_child_is_an_error(site: Site) -> None:
    replicator = site.start()
    replicator.wait(site.paths[0])
    os.kill(replicator.pid, signal.SIGSTOP)
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            replicator.wait(site.paths[0], timeout=60.0)
        except ReplicationEndedError as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    os.kill(replicator.pid, signal.SIGKILL)
    thread.join()
    assert "signal SIGKILL" in str(failures[0])
    wait_until(lambda: not replicator.running, "the end is known")
    assert not Path(f"/proc/{replicator.pid}").exists(), "it was reaped"
    with pytest.raises(ReplicationEndedError, match="SIGKILL"):
        replicator.wait(site.paths[0])
    with pytest.raises(ReplicationEndedError, match="SIGKILL"):
        replicator.close()


def test_a_child_that_is_stopped_by_others_is_an_error(site: Site) -> None:
    replicator = site.start()
    os.kill(replicator.pid, signal.SIGTERM)
    wait_until(lambda: not replicator.running, "the end is known")
    with pytest.raises(ReplicationEndedError, match="ended unasked"):
        replicator.close()


def test_a_child_that_does_not_stop_is_killed(site: Site) -> None:
    replicator = site.start()
    os.kill(replicator.pid, signal.SIGSTOP)
    with pytest.raises(ReplicationEndedError, match=r"did not stop within 0\.1 s"):
        replicator.close(timeout=0.1)
    assert not Path(f"/proc/{replicator.pid}").exists()


def test_an_interpreter_that_cannot_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReplicationEndedError, match="cannot run"):
        start({"dbs": []}, python=str(tmp_path / "no-python"))
    with pytest.raises(ReplicationEndedError, match="exit code 1"):
        start({"dbs": []}, python="/bin/false")


def test_forks_may_not_use_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with site.start() as replicator:
        with monkeypatch.context() as fork:
            fork.setattr(os, "getpid", lambda: -1)
            with pytest.raises(ReplicationEndedError, match="forks"):
                replicator.wait(site.paths[0])
        replicator.wait(site.paths[0])


_PROGRAM = """
import sys
from pyrep.embed import start_directory
assert "apsw" not in sys.modules, "the program's own process must not load another SQLite"
replicator = start_directory({data!r}, {{"path": {replica!r}}}, state_dir={state!r})
print(replicator.pid, flush=True)
print(sys.stdin.readline(), end="", flush=True)
"""


def _program(site: Site, *, log: Path) -> subprocess.Popen[str]:
    text = _PROGRAM.format(
        data=str(site.data), replica=str(site.replica), state=str(site.folder / "state")
    )
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


@pytest.mark.parametrize("how", ["killed", "ends"])
def test_the_child_ends_with_the_program(site: Site, tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    with _program(site, log=log) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        assert os.getsid(pid) == pid, "a Ctrl-C in a terminal does not reach it"
        site.write(0, 9)
        if how == "killed":
            program.kill()
        else:
            program.stdin.write("input and output are the program's own\n")
            program.stdin.flush()
            assert program.stdout.readline() == "input and output are the program's own\n"
    wait_until(lambda: not Path(f"/proc/{pid}/fd").exists(), "the child has ended")
    assert 9 in site.stored(0), "what was committed was uploaded first"
    assert "pyrep shut down" in log.read_text()


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "embed.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"stored as txid [0-9]+\n", done.stdout)
