"""Each program restores every state that the other one wrote, whatever the files are merged to."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures import litestream
from fixtures.app import App, Writer, db_digest, differing_pages, integrity, row_counts
from fixtures.effort import times
from fixtures.litestream_turns import both_restore, complaints
from fixtures.rig import Rig
from pyrep import ltxio
from pyrep.ids import SNAPSHOT_LEVEL
from pyrep.ltxfile import FileInfo
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.file import FileReplicaClient

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("litestream")]

StartApp = Callable[..., App]
TXIDS = 30


def run(rig: Rig, app: App) -> dict[int, Path]:
    """Make 30 TXIDs that grow, shrink and vacuum; return the database at each."""
    app.execute("create table t (id integer primary key, a)")
    truths = {}
    for number in range(TXIDS):
        size = (17, 900, 9000)[number % 3]
        for _ in range(4):
            app.execute("insert into t (a) values (randomblob(?))", (size,))
        if number % 7 == 3:
            app.execute("delete from t where id % 2 = 0")
            app.execute("vacuum")
        if number % 5 == 4:
            app.checkpoint("passive")
        rig.ship()
        truths[int(rig.durable)] = rig.truth()
    assert list(truths) == list(range(1, TXIDS + 1))
    return truths


def merged(client: FileReplicaClient, infos: list[FileInfo], level: int, scratch: Path) -> FileInfo:
    """Merge files of a replica and store the result at a level."""
    names = []
    for info in infos:
        name = scratch / f"{info.level}-{info.name}"
        with client.open_ltx(info) as source, name.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        names.append(name)
    sources = [os.open(name, os.O_RDONLY) for name in names]
    out = scratch / "merged"
    try:
        with out.open("w+b") as target:
            ltxio.merge(sources, target.fileno())
            target.seek(0)
            low, high = infos[0].min_txid, infos[-1].max_txid
            return client.write_ltx(level, low, high, target, create_only=True)
    finally:
        for source in sources:
            os.close(source)


@dataclass(frozen=True)
class History:
    """Hold a replica that pyrep wrote and the database at each of its TXIDs."""

    replica: Path
    truths: dict[int, Path]


@pytest.fixture(scope="module", params=[512, 4096, 65536])
def written(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[History]:
    """Write a history once for all tests of a page size."""
    rig = Rig(tmp_path_factory.mktemp("history"))
    with App(rig.db, busy_timeout_ms=100, page_size=request.param) as app:
        truths = run(rig, app)
    rig.close()
    yield History(rig.replica, truths)
    shutil.rmtree(rig.folder)


@pytest.fixture
def history(written: History, tmp_path: Path) -> History:
    """Return a history whose replica the test may change."""
    replica = shutil.copytree(written.replica, tmp_path / "replica")
    return History(replica, written.truths)


@pytest.fixture
def client(history: History) -> Iterator[FileReplicaClient]:
    client = FileReplicaClient(history.replica)
    yield client
    client.close()


def expect_both(history: History, client: FileReplicaClient, txid: int, folder: Path) -> None:
    """Require that both programs restore one TXID to the bytes that the database had."""
    url = litestream.file_url(history.replica)
    theirs = litestream.restore(url, folder / "theirs.db", txid=txid)
    restore(client, folder / "ours.db", RestoreOptions(txid=txid))
    for output in (theirs, folder / "ours.db"):
        assert differing_pages(output, history.truths[txid]) == []
        output.unlink()


def test_each_txid_of_pyrep(history: History, client: FileReplicaClient, tmp_path: Path) -> None:
    listed = litestream.ltx(litestream.file_url(history.replica))
    assert [(f["level"], int(f["min_txid"], 16), int(f["max_txid"], 16)) for f in listed] == [
        (0, txid, txid) for txid in range(1, TXIDS + 1)
    ]
    assert [f["size"] for f in listed] == [info.size for info in client.list_ltx(0)]
    for txid in history.truths:
        expect_both(history, client, txid, tmp_path)


def test_files_that_pyrep_merged(
    history: History, client: FileReplicaClient, tmp_path: Path
) -> None:
    """Levels 1 and 2 in blocks, then a level-9 file; each time the files below it are removed."""
    for level, step in ((1, 4), (2, 3), (SNAPSHOT_LEVEL, TXIDS)):
        below = list(client.list_ltx(level - 1 if level < SNAPSHOT_LEVEL else 2))
        for at in range(0, len(below), step):
            merged(client, below[at : at + step], level, tmp_path)
        client.delete_ltx(below)
        for txid in {info.max_txid for info in client.list_ltx(level)}:
            expect_both(history, client, txid, tmp_path)
    assert [(i.min_txid, i.max_txid) for i in client.list_ltx(SNAPSHOT_LEVEL)] == [(1, TXIDS)]
    both_restore(history.replica, history.truths[TXIDS], exact=True, vfs=True).unlink()


def test_snapshot_in_the_middle_and_level_0_after_it(
    history: History, client: FileReplicaClient, tmp_path: Path
) -> None:
    middle = 11
    files = list(client.list_ltx(0))
    merged(client, files[:middle], SNAPSHOT_LEVEL, tmp_path)
    client.delete_ltx(files[: middle - 1])
    for txid in (middle, middle + 1, TXIDS):
        expect_both(history, client, txid, tmp_path)


@pytest.mark.parametrize("snapshots", [False, True])
def test_litestream_compacts_while_pyrep_restores(
    tmp_path: Path, start_app: StartApp, snapshots: bool
) -> None:
    """Restore again and again while levels 1 to 3 (and 9) are made and level 0 is deleted.

    A snapshot that Litestream 0.5.17 takes while the application writes can lack a page; its own
    restore shows the same.  So with snapshots Litestream's restore alone is the judge.
    """
    db, replica = tmp_path / "tenant.db", tmp_path / "replica"
    app = start_app(db, busy_timeout_ms=5000)
    app.execute("create table t (id integer primary key, a)")
    config = litestream.write_config(
        tmp_path / "litestream.json",
        [litestream.database(db, replica, monitor_interval="20ms", replica_sync_interval="20ms")],
        levels=["1s", "2s", "3s"],
        snapshot_interval="3s" if snapshots else "24h",
        socket=tmp_path / "litestream.sock",
        l0_retention="500ms",
        l0_retention_check_interval="500ms",
    )
    client = FileReplicaClient(replica)
    levels: set[int] = set()
    with litestream.replicate(config) as daemon, Writer(db, rate=100, autocheckpoint=50) as load:
        ends = time.monotonic() + times(7)
        while time.monotonic() < ends or not levels >= {1, SNAPSHOT_LEVEL if snapshots else 2}:
            app.execute("insert into t (a) values (randomblob(3000))")
            acknowledged = daemon.sync(db)
            output = tmp_path / "ours.db"
            result = restore(client, output)
            assert result.txid >= acknowledged
            levels |= {info.level for info in result.plan.files}
            if not snapshots:
                assert integrity(output) == ["ok"]
                assert row_counts(output)["t"] == count(app, "t")
            elif len(levels) > 2:
                compare_while_paused(daemon, replica, tmp_path)
            output.unlink()
        report = load.stop()
        daemon.sync(db)
        log = daemon.stop()
    client.close()
    assert complaints(log) == []
    assert report["errors"] == 0
    assert snapshots or db_digest(both_restore(replica, db)) == db_digest(db)


def count(app: App, table: str) -> int:
    return int(app.execute(f"select count(*) from {table}")[0][0])


def compare_while_paused(daemon: litestream.Daemon, replica: Path, folder: Path) -> None:
    """Let both programs restore what the stopped daemon has written so far."""
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        theirs = litestream.restore(litestream.file_url(replica), folder / "theirs.db")
        client = FileReplicaClient(replica)
        restore(client, folder / "paused.db")
        client.close()
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
    assert differing_pages(folder / "paused.db", theirs) == []
    theirs.unlink()
    (folder / "paused.db").unlink()
