"""Restores to any TXID and any time that is left, from a bucket that a real daemon fills."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.bucket_host import BucketHost
from fixtures.effort import wait_until
from fixtures.servers import S3Server
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.base import ReplicaClient

NAME = "a.db"
TXIDS = 220
SAMPLES = 50
SYNC_MS = 50
KEYS = 40
NEVER = "1h"

Rows = Mapping[int, tuple[int, bytes]]


@dataclass
class Recorder:
    """Commit, and record what the database is after each commit and when that was."""

    app: App
    states: list[Rows] = field(default_factory=lambda: [{}])
    times: list[float] = field(default_factory=lambda: [0.0])  # when each commit began

    def commit(self) -> None:
        """Write, replace or delete a row, and count the commit."""
        number = len(self.states)
        key = random.Random(number).randrange(KEYS)
        rows = dict(self.states[-1])
        self.times.append(time.time())
        if number % 7 == 0 and key in rows:
            del rows[key]
            change = f"delete from t where key = {key}"
        else:
            data = random.Random(number).randbytes(100 + 40 * key)
            rows[key] = (number, data)
            change = f"insert or replace into t values ({key}, {number}, x'{data.hex()}')"
        self.states.append(rows)
        self.app.script(f"begin; {change}; update counter set n = {number}; commit")

    def held(self, path: Path) -> int:
        """Return which commit a restored database ends with, once it is that state exactly."""
        with closing(sqlite3.connect(path)) as db:
            ((number,),) = db.execute("select n from counter")
            rows = {key: (at, data) for key, at, data in db.execute("select * from t")}
        assert rows == self.states[number]
        return int(number)


def host_on(folder: Path, server: S3Server, bucket: str = "", **keys: object) -> BucketHost:
    entry = {"monitor_interval": "50ms"}
    replica = {"sync_interval": f"{SYNC_MS}ms"}
    return BucketHost(folder, server, bucket=bucket, entry=entry, replica=replica, **keys)


def files_of(client: ReplicaClient) -> list[FileInfo]:
    return [info for level in range(10) for info in client.list_ltx(level, exact_times=True)]


def reachable(files: Sequence[FileInfo]) -> dict[int, int]:
    """Return every TXID that a chain of files leads to, each with its time."""
    found: dict[int, int] = {0: 0}
    for info in sorted(files, key=lambda info: info.max_txid):
        if any(info.min_txid - 1 <= txid < info.max_txid for txid in found):
            before = found.get(int(info.max_txid), info.timestamp_ms)
            found[int(info.max_txid)] = min(before, info.timestamp_ms)
    del found[0]
    return found


def expect_every_point(
    client: ReplicaClient, recorder: Recorder, folder: Path, stored: Mapping[int, float]
) -> None:
    """Restore random TXIDs and random times; each is the state that was recorded.

    ``stored`` has the time at which each TXID was seen in the bucket.
    """
    rng = random.Random(6)
    states = reachable(files_of(client))
    out = folder / "out.db"
    held: dict[int, int] = {}
    for txid in rng.choices(sorted(states), k=SAMPLES):
        result = restore(client, out, RestoreOptions(txid=txid))
        assert result.txid == txid
        held[txid] = recorder.held(out)
        out.unlink()
    first, last = min(states.values()), max(states.values())
    moments = [rng.randint(first, last) for _ in range(SAMPLES - 10)]
    moments += rng.choices(list(states.values()), k=10)  # and exactly that of a file
    for moment in moments:
        result = restore(client, out, RestoreOptions(timestamp_ms=moment))
        assert result.txid == max(txid for txid, at in states.items() if at <= moment)
        held[int(result.txid)] = recorder.held(out)
        out.unlink()
    for txid, number in held.items():
        committed = recorder.times[number]
        lag = stored[txid] - committed
        assert -0.002 < states[txid] / 1000 - committed <= SYNC_MS / 1000 + lag
    order = sorted(held.items())
    assert [number for _, number in order] == sorted(held.values())


class Watcher:
    """Note when each TXID of level 0 is first seen in the bucket."""

    def __init__(self, client: ReplicaClient) -> None:
        self.stored: dict[int, float] = {}
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        newest = max(self.stored, default=0)
        for info in self._client.list_ltx(0, TXID(newest)):
            self.stored.setdefault(int(info.max_txid), time.time())

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            self.look()


@pytest.mark.slow
@pytest.mark.s3
def test_any_txid_and_any_time_is_the_recorded_state(
    radosgw_server: S3Server, tmp_path: Path
) -> None:
    """Look before anything is merged or deleted, and after compaction and retention."""
    quiet = {"levels": [{"interval": NEVER}], "snapshot": {"interval": NEVER}}
    quick = {
        "levels": [{"interval": "1s"}, {"interval": "2s"}, {"interval": "4s"}],
        "snapshot": {"interval": "3s", "retention": "6s"},
        "l0_retention": "1s",
        "l0_retention_check_interval": "200ms",
    }
    with host_on(tmp_path, radosgw_server, **quiet) as host, App(host.data / NAME) as app:
        app.script("create table t (key integer primary key, at, data); create table counter (n)")
        app.script("insert into counter values (0)")
        recorder = Recorder(app)
        client = host.client(NAME)
        with closing(client), Watcher(client) as watcher:
            host.start()
            write_until(recorder, lambda: len(watcher.stored) >= TXIDS)
            assert host.stop() == 0, host.text()
            watcher.look()
            assert len(reachable(files_of(client))) >= TXIDS
            expect_every_point(client, recorder, tmp_path, watcher.stored)

            again = host_on(tmp_path, radosgw_server, host.bucket, **quick)
            again.start()
            began, before = time.monotonic(), len(files_of(client))
            write_until(recorder, lambda: time.monotonic() - began > 9.0)
            wait_until(lambda: len(list(client.list_ltx(0))) == 1, "level 0 goes", timeout=60.0)
            levels = [len(list(client.list_ltx(level))) for level in (1, 2, 3, 9)]
            assert again.stop() == 0, again.text()
            assert all(levels)
            assert len(files_of(client)) < before, "retention has deleted"
            expect_every_point(client, recorder, tmp_path, watcher.stored)


def write_until(recorder: Recorder, condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + 120.0
    while not condition():
        assert time.monotonic() < deadline
        recorder.commit()
        pause.wait(0.015)
