"""A restore that is killed at every step: the old database whole, or the new one."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.replicas import History
from pyrep import osfs
from pyrep.errors import OutputExistsError
from pyrep.osfs import Failpoint
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.file import FileReplicaClient

pytestmark = pytest.mark.crash

SUFFIXES = ("", "-wal", "-shm", "-journal")
OPS = ["open", "write", "truncate", "chmod", "fsync", "aside", "fsync_dir", "rename", "unlink"]
CHILD = """
import sys
from pathlib import Path
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.file import FileReplicaClient
options = RestoreOptions(force=True, threads=1)
restore(FileReplicaClient(Path(sys.argv[1])), Path(sys.argv[2]), options)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a replica, the database it holds, and an old set with commits in its WAL."""
    folder = tmp_path_factory.mktemp("crash")
    history = History(page_size=4096).run(3, pages=30)
    client = FileReplicaClient(folder / "replica")
    history.put_singles(client)
    client.close()
    script = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA journal_mode=wal')\n"
        "db.execute('CREATE TABLE t (x)')\n"
        "db.execute('PRAGMA wal_checkpoint')\n"
        "for n in range(50): db.execute('INSERT INTO t VALUES (?)', (n,))\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder / "old")], check=True)
    old = {s: Path(f"{folder}/old{s}").read_bytes() for s in ("", "-wal", "-shm")}
    old["-journal"] = b"not a journal"
    assert len(old["-wal"]) > 4096
    return folder / "replica", history.image(3), old


def make_old(output: Path, old: dict[str, bytes]) -> None:
    for suffix, data in old.items():
        Path(f"{output}{suffix}").write_bytes(data)


def calls_of(op: str, prepared, tmp_path: Path) -> int:
    """Return how often a restore calls a step."""
    replica, _, old = prepared
    output = tmp_path / "count" / "db"
    output.parent.mkdir()
    make_old(output, old)
    point = Failpoint(op, 1 << 30, "eio")
    osfs.arm([point])
    client = FileReplicaClient(replica)
    restore(client, output, RestoreOptions(force=True, threads=1))
    client.close()
    osfs.disarm()
    return point.calls


def killed(replica: Path, output: Path, op: str, nth: int, action: str) -> None:
    """Run a restore in another process that is killed at a step."""
    env = {**os.environ, "PYREP_ALLOW_FAILPOINTS": "1", "PYREP_FAILPOINT": f"{op}:{nth}:{action}"}
    child = subprocess.run([sys.executable, "-c", CHILD, replica, output], env=env, check=False)
    assert child.returncode == -signal.SIGKILL


def is_new(output: Path, new: bytes) -> bool:
    """Say whether the new database is in place, and then that no old sidecar is beside it."""
    if not output.exists() or output.read_bytes() != new:
        return False
    assert not any(Path(f"{output}{suffix}").exists() for suffix in SUFFIXES[1:])
    return True


def put_back(output: Path) -> None:
    """Do what the manual says: rename each aside name back."""
    for suffix in SUFFIXES:
        aside = Path(f"{output}{suffix}.pyrep-old-1")
        if aside.exists():
            assert not Path(f"{output}{suffix}").exists()
            aside.rename(f"{output}{suffix}")


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM t").fetchone()[0])


def check_old(output: Path, old: dict[str, bytes]) -> None:
    """Check that the old set is whole once its names are put back, with its last commits."""
    put_back(output)
    assert {s: Path(f"{output}{s}").read_bytes() for s in SUFFIXES} == old
    Path(f"{output}-journal").unlink()
    assert rows(output) == 50


@pytest.mark.parametrize("op", [f"restore.{op}" for op in OPS])
def test_a_kill_at_every_call_of_a_step_loses_nothing(prepared, tmp_path, op):
    replica, new, old = prepared
    calls = calls_of(op, prepared, tmp_path)
    assert calls
    for nth in range(1, calls + 1):
        for action in ("kill", "kill-after", *(["torn"] if op == "restore.write" else [])):
            output = tmp_path / f"{nth}{action}" / "db"
            output.parent.mkdir()
            make_old(output, old)
            killed(replica, output, op, nth, action)
            if not is_new(output, new):
                check_old(output, old)


@pytest.mark.parametrize("action", ["kill", "kill-after"])
@pytest.mark.parametrize("op", ["mkdir", "open", "write", "truncate", "fsync", "rename"])
def test_a_kill_without_an_old_file_leaves_nothing_or_all(prepared, tmp_path, op, action):
    replica, new, _ = prepared
    output = tmp_path / "new" / "directory" / "db"
    killed(replica, output, f"restore.{op}", 1, action)
    assert output.exists() == ((op, action) == ("rename", "kill-after"))
    client = FileReplicaClient(replica)
    if not output.exists():
        restore(client, output)
    client.close()
    assert is_new(output, new)
    assert os.listdir(output.parent) == ["db"]


@pytest.mark.parametrize(
    ("op", "nth", "action"),
    [
        ("restore.write", 2, "torn"),
        ("restore.aside", 1, "kill-after"),
        ("restore.aside", 3, "kill"),
        ("restore.rename", 1, "kill"),
        ("restore.rename", 1, "kill-after"),
        ("restore.unlink", 2, "kill"),
    ],
)
def test_the_next_restore_finishes_what_was_killed(prepared, tmp_path, op, nth, action):
    replica, new, old = prepared
    output = tmp_path / "db"
    make_old(output, old)
    killed(replica, output, op, nth, action)
    client = FileReplicaClient(replica)
    with pytest.raises(OutputExistsError):
        restore(client, output)
    published = is_new(output, new)
    restore(client, output, RestoreOptions(force=True))
    client.close()
    assert is_new(output, new)
    left = sorted(set(os.listdir(tmp_path)) - {"db"})
    assert not [name for name in left if ".tmp-" in name]
    if not published:
        assert left == []
    else:  # the new file was in place: the replaced set is only named, never deleted
        assert left
        assert all(name.endswith(".pyrep-old-1") for name in left)
