"""Levels, snapshots and retention with real databases: step by step, in a store, in the daemon."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from fixtures import litestream
from fixtures.app import App, Writer, checkpointed_copy, db_digest, differing_pages, integrity
from fixtures.effort import wait_until
from fixtures.host import Host
from fixtures.rig import Rig
from fixtures.ticking import ticking
from pyrep.catalog import Catalog
from pyrep.clock import SystemClock
from pyrep.config.expand import TenantSpec
from pyrep.config.model import SnapshotConfig
from pyrep.errors import DatabaseError, PyrepError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.file import FileReplicaClient
from pyrep.store import Schedule, Store
from pyrep.tenant.lineage import listing
from pyrep.tenant.position import boot_id
from pyrep.tenant.spool import Spool
from pyrep.tenant.tenant import Tenant

StartApp = Callable[..., App]


class CountingClient(FileReplicaClient):
    """Count every call."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: Counter[str] = Counter()

    def list_ltx(
        self, level: int, seek: TXID = TXID(0), *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        self.calls["list"] += 1
        return super().list_ltx(level, seek, exact_times=exact_times)

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        self.calls["open"] += 1
        return super().open_ltx(info, offset, size)

    def write_ltx(
        self,
        level: int,
        min_txid: TXID,
        max_txid: TXID,
        source: BinaryIO,
        *,
        create_only: bool = False,
    ) -> FileInfo:
        self.calls["write"] += 1
        return super().write_ltx(level, min_txid, max_txid, source, create_only=create_only)

    def delete_ltx(self, infos: Sequence[FileInfo]) -> None:
        self.calls["delete"] += 1
        super().delete_ltx(infos)


def by_level(client: FileReplicaClient) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for info in listing(client):
        found.setdefault(info.level, []).append((info.min_txid, info.max_txid))
    return found


# --- one tenant, step by step ---


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, client=CountingClient(tmp_path / "replica"))
    yield rig
    rig.close()


@pytest.fixture
def app(rig: Rig, start_app: StartApp) -> App:
    app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=200)
    app.execute("create table t (id integer primary key, a)")
    return app


def fill(app: App, rows: int = 3) -> None:
    for _ in range(rows):
        app.execute("insert into t (a) values (randomblob(2000))")


def ship(rig: Rig, app: App, times: int) -> None:
    for _ in range(times):
        fill(app)
        assert rig.ship()


def staged(rig: Rig) -> list[str]:
    return sorted(path.name for path in rig.spec().state_path.glob("*.ltx"))


def compact(rig: Rig, level: int = 1) -> FileInfo:
    made = rig.tenant.compact(level, listing(rig.client))
    assert made is not None
    return made


def test_staged_files_stay_until_level_1_has_them(rig: Rig, app: App) -> None:
    ship(rig, app, 5)
    assert len(staged(rig)) == 5
    made = compact(rig)
    assert (made.min_txid, made.max_txid) == (1, 5)
    assert isinstance(rig.client, CountingClient)
    assert rig.client.calls["open"] == 0
    assert staged(rig) == [f"{5:016x}-{5:016x}.ltx"]
    rig.client.delete_ltx([info for info in listing(rig.client) if not info.level])
    rig.expect_equal()


def test_kept_files_make_room_for_what_is_to_be_uploaded(
    tmp_path: Path, start_app: StartApp
) -> None:
    rig = Rig(tmp_path, spool_limit=100_000)
    with closing(rig):
        app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=200)
        app.execute("create table t (id integer primary key, a)")
        ship(rig, app, 40)
        held = [path.stat().st_size for path in rig.spec().state_path.glob("*.ltx")]
        assert 1 < len(held) < 40
        assert sum(held) <= 100_000
        compact(rig)
        rig.expect_equal()


@pytest.mark.parametrize("clean", [True, False])
def test_a_restart_knows_which_staged_files_are_still_of_use(
    rig: Rig, app: App, clean: bool
) -> None:
    ship(rig, app, 4)
    compact(rig)
    ship(rig, app, 3)
    before = staged(rig)
    rig.restart(clean=clean)
    assert rig.tenant.compact(2, listing(rig.client)) is not None  # needs no survey
    assert staged(rig) == before
    ship(rig, app, 1)
    assert staged(rig) == [f"{n:016x}-{n:016x}.ltx" for n in (5, 6, 7, 8)]
    rig.restart(clean=clean)
    compact(rig)
    assert staged(rig)[-1:] == [f"{8:016x}-{8:016x}.ltx"]
    ship(rig, app, 1)
    rig.expect_equal()


def test_a_snapshot_is_the_position_with_its_time(rig: Rig, app: App) -> None:
    ship(rig, app, 3)
    assert rig.tenant.snapshot()
    rig.upload()
    (snapshot,) = (i for i in listing(rig.client) if i.level == SNAPSHOT_LEVEL)
    level0 = [i for i in listing(rig.client) if not i.level]
    assert (snapshot.min_txid, snapshot.max_txid) == (1, 3)
    assert snapshot.timestamp_ms == level0[-1].timestamp_ms
    status = rig.tenant.status()
    assert (status.durable_txid, status.pending_files, status.lag_seconds) == (3, 0, 0.0)
    rig.client.delete_ltx(level0)
    rig.expect_equal()
    assert [name for name in staged(rig) if name.startswith("snapshot")] == []


def test_a_snapshot_of_the_first_txid_is_no_level_0_file(rig: Rig, app: App) -> None:
    fill(app)
    rig.stage()
    assert rig.tenant.snapshot()
    assert len(staged(rig)) == 2
    rig.restart(clean=False)  # what is staged of it is made again when it is due
    rig.ship()
    assert by_level(rig.client) == {0: [(1, 1)]}
    assert rig.tenant.snapshot()
    rig.upload()
    assert by_level(rig.client) == {0: [(1, 1)], 9: [(1, 1)]}
    rig.expect_equal()


def test_a_snapshot_takes_what_was_not_synced_along(rig: Rig, app: App) -> None:
    ship(rig, app, 1)
    rig.park()
    fill(app)
    assert rig.tenant.snapshot()  # it wakes the tenant
    rig.upload()
    assert by_level(rig.client) == {0: [(1, 1), (2, 2)], 9: [(1, 2)]}
    rig.expect_equal()


def test_snapshots_under_load_are_what_the_levels_lead_to(rig: Rig, tmp_path: Path) -> None:
    with Writer(rig.db, rate=300, workers=2, payload_bytes=300) as writer:
        wait_until(rig.db.exists, "the database is there")
        wait_until(lambda: rig.db.stat().st_size > 4096, "and has content")
        with ticking(rig):
            for _ in range(8):
                before = rig.durable
                wait_until(lambda before=before: rig.durable > before, "the load goes on")
                assert rig.tenant.snapshot()
            wait_until(lambda: not rig.tenant.pending, "uploaded")
        report = writer.stop()
    assert report["errors"] == 0
    rig.ship()
    snapshots = [info for info in listing(rig.client) if info.level == SNAPSHOT_LEVEL]
    assert len(snapshots) == 8
    for snapshot in snapshots:
        whole, steps = tmp_path / "whole.db", tmp_path / "steps.db"
        restore(rig.client, whole, RestoreOptions(txid=snapshot.max_txid))
        moved = rig.replica / "ltx" / "9"
        moved.rename(rig.replica / "hidden")
        restore(rig.client, steps, RestoreOptions(txid=snapshot.max_txid))
        (rig.replica / "hidden").rename(moved)
        assert differing_pages(whole, steps) == []
        whole.unlink()
        steps.unlink()


def test_a_snapshot_of_a_database_without_wal(tmp_path: Path, start_app: StartApp) -> None:
    rig = Rig(tmp_path, journal_mode="keep")
    with closing(rig):
        app = start_app(rig.db, journal_mode="delete", busy_timeout_ms=200)
        app.execute("create table t (id integer primary key, a)")
        ship(rig, app, 2)
        fill(app)
        assert rig.tenant.snapshot()
        rig.upload()
        assert by_level(rig.client)[9] == [(1, 3)]
        rig.client.delete_ltx([info for info in listing(rig.client) if not info.level])
        rig.expect_equal()


def test_a_snapshot_that_is_not_what_was_shipped_is_an_error_and_healed(rig: Rig, app: App) -> None:
    ship(rig, app, 2)
    engine = rig.tenant._engine
    engine.state = replace(engine.state, db_checksum=engine.state.db_checksum ^ 1)
    with pytest.raises(DatabaseError, match="is not what the files on the replica lead to"):
        rig.tenant.snapshot()
    assert [name for name in staged(rig) if name.startswith("snapshot")] == []
    assert engine.diff_cause
    rig.ship()
    assert not engine.diff_cause


def test_a_snapshot_that_finds_no_room_leaves_replication_as_it_is(
    tmp_path: Path, start_app: StartApp
) -> None:
    spool = Spool(200_000)
    rig = Rig(tmp_path, spool=spool)
    with closing(rig):
        app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=200)
        app.execute("create table t (id integer primary key, a)")
        ship(rig, app, 20)
        spool.hold("another tenant", 150_000)
        with pytest.raises(DatabaseError, match="spool-limit"):
            rig.tenant.snapshot()
        assert rig.tenant.status().state == "attached"
        ship(rig, app, 1)
        rig.expect_equal()


def test_a_second_look_at_the_replica_leaves_what_is_staged(rig: Rig, app: App) -> None:
    ship(rig, app, 3)
    rig.tenant.heal("a file of the replica is damaged")
    assert rig.tenant.sync()
    before = staged(rig)
    rig.tenant.survey()
    assert staged(rig) == before
    rig.upload()
    assert by_level(rig.client)[9] == [(1, 4)]
    rig.tenant.survey()
    ship(rig, app, 1)
    rig.expect_equal()


# --- a store with its catalog: what is asked of the replica ---


@contextmanager
def running(
    tmp_path: Path, spec: TenantSpec, client: FileReplicaClient, levels: dict[int, float]
) -> Iterator[Store]:
    with closing(Catalog(tmp_path / "catalog.db")) as catalog:
        catalog.start()
        schedule = Schedule(levels, l0_retention=0.5, l0_check=0.1)
        clock = SystemClock()
        store = Store(catalog, clock, max_attached=9, watch_interval=0.05, schedule=schedule)
        tenant = Tenant(
            spec,
            client,
            known_node_id=catalog.node_ids().get(str(spec.db_path), 0),
            trusted_boots=frozenset({boot_id()}),
            clock=clock,
            on_acknowledged=store.acknowledged,
            on_listed=store.listed,
        )
        store.register(tenant)
        store.start()
        try:
            yield store
        finally:
            assert store.drain(20.0, 0.05) == []


def wait_parked(store: Store, rig: Rig) -> None:
    tenant = store.lookup(str(rig.db))
    assert tenant is not None
    wait_until(lambda: not tenant.attached, "the tenant is parked")


def quick_spec(rig: Rig, **snapshot: timedelta) -> TenantSpec:
    spec = rig.spec()
    quick = replace(spec.settings.replica, sync_interval=timedelta(seconds=0.05))
    settings = replace(
        spec.settings,
        replica=quick,
        idle_timeout=timedelta(seconds=0.5),
        snapshot=SnapshotConfig(**snapshot),
    )
    return replace(spec, settings=settings)


def test_the_replica_is_listed_once_and_an_idle_tenant_asks_nothing(
    tmp_path: Path, start_app: StartApp
) -> None:
    rig, client = Rig(tmp_path), CountingClient(tmp_path / "replica")
    spec = quick_spec(rig, interval=timedelta(seconds=2), retention=timedelta(seconds=3))
    app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=2000)
    app.execute("create table t (id integer primary key, a)")
    fill(app)
    everything = {0: 1, 1: 1, 2: 1, 9: 1}
    with running(tmp_path, spec, client, {1: 0.5, 2: 1.0}):
        for _ in range(30):
            fill(app, 1)
            time.sleep(0.1)

        def quiet() -> bool:
            return {level: len(files) for level, files in by_level(rig.client).items()} == (
                everything
            )

        wait_until(quiet, "the levels have run out", timeout=60.0)
        asked = client.calls.copy()
        pause = threading.Event()
        pause.wait(5.0)
        assert client.calls == asked
    assert client.calls["list"] <= 10 * 5  # the survey, and passes of retention 3 seconds apart
    rig.expect_equal()
    # another run, in which nothing happens
    client.calls.clear()
    with running(tmp_path, spec, client, {1: 0.5, 2: 1.0}):
        pause.wait(3.0)
    assert client.calls == {}


def test_a_restart_goes_on_without_a_listing(tmp_path: Path, start_app: StartApp) -> None:
    rig, client = Rig(tmp_path), CountingClient(tmp_path / "replica")
    spec = quick_spec(rig)
    app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=2000)
    app.execute("create table t (id integer primary key, a)")
    fill(app)
    with running(tmp_path, spec, client, {1: 0.2}) as store:
        for _ in range(10):
            fill(app, 1)
            time.sleep(0.1)
        wait_until(lambda: len(by_level(rig.client).get(1, [])) >= 3, "level 1 forms")
        wait_parked(store, rig)
    client.calls.clear()
    with running(tmp_path, spec, client, {1: 0.2, 2: 1.0, 3: 1.0}):
        wait_until(lambda: 3 in by_level(rig.client), "level 3 forms")
    assert client.calls["list"] == 0
    found = by_level(rig.client)
    assert found[3][-1][1] == found[0][-1][1]
    rig.expect_equal()


def test_a_gap_made_by_hand_is_named_and_healed(
    tmp_path: Path, start_app: StartApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig, client = Rig(tmp_path), CountingClient(tmp_path / "replica")
    spec = quick_spec(rig)
    app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=2000)
    app.execute("create table t (id integer primary key, a)")
    fill(app)
    with running(tmp_path, spec, client, {1: 0.3}) as store:
        for _ in range(12):
            fill(app, 1)
            time.sleep(0.1)
        wait_until(lambda: len(by_level(rig.client).get(0, [])) == 1, "level 0 is gone")
        wait_parked(store, rig)
    victim = [info for info in listing(rig.client) if info.level == 1][1]
    rig.client.delete_ltx([victim])
    with running(tmp_path, spec, client, {1: 0.3, 2: 0.5}):
        wait_until(lambda: SNAPSHOT_LEVEL in by_level(rig.client), "healed", timeout=60.0)
        head = by_level(rig.client)[0][-1][1]
        wait_until(
            lambda: by_level(rig.client).get(2, [(0, 0)])[-1][1] >= head, "and merged", timeout=60.0
        )
    failures = [r for r in caplog.records if r.getMessage() == "maintenance failed"]
    assert failures
    assert str(victim.min_txid) in failures[0].__dict__["error"]
    causes = [r.__dict__["cause"] for r in caplog.records if r.msg == "shipping every page"]
    assert any(f"lacks txids {victim.min_txid} to {victim.max_txid}" in cause for cause in causes)
    rig.expect_equal()
    out = litestream.restore(litestream.file_url(rig.replica), tmp_path / "theirs.db")
    assert differing_pages(rig.truth(), out) == []


def test_a_damaged_file_is_healed_too(
    tmp_path: Path, start_app: StartApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig, client = Rig(tmp_path), CountingClient(tmp_path / "replica")
    spec = quick_spec(rig)
    app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=2000)
    app.execute("create table t (id integer primary key, a)")
    fill(app)
    with running(tmp_path, spec, client, {1: 0.3}) as store:
        for _ in range(12):
            fill(app, 1)
            time.sleep(0.1)
        wait_until(lambda: len(by_level(rig.client).get(0, [])) == 1, "level 0 is gone")
        wait_parked(store, rig)
    victim = [info for info in listing(rig.client) if info.level == 1][1]
    path = rig.replica / "ltx" / "1" / victim.name
    data, times = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with running(tmp_path, spec, client, {1: 0.3, 2: 0.5}):
        wait_until(lambda: SNAPSHOT_LEVEL in by_level(rig.client), "healed", timeout=60.0)
        fill(app)
    causes = [r.__dict__["cause"] for r in caplog.records if r.msg == "shipping every page"]
    assert any("is damaged" in cause for cause in causes)
    rig.expect_equal()


# --- the daemon ---

QUICK = {
    "levels": [{"interval": "1s"}, {"interval": "2s"}, {"interval": "4s"}],
    "snapshot": {"interval": "3s", "retention": "30s"},
    "l0_retention": "1s",
    "l0_retention_check_interval": "200ms",
}


@contextmanager
def quick_host(tmp_path: Path, **keys: object) -> Iterator[Host]:
    entry = {"idle_timeout": "2s", "monitor_interval": "100ms"}
    with Host(
        tmp_path, entry=entry, replica={"sync_interval": "100ms"}, **{**QUICK, **keys}
    ) as host:
        yield host


def commit_and_record(host: Host, name: str, app: App, states: dict[int, str]) -> None:
    """Commit, wait until it is stored, and note what the database is at that TXID."""
    client = FileReplicaClient(host.replica / name)
    before = max(states, default=0)
    app.execute("insert into t (a) values (randomblob(3000))")

    def stored() -> int:
        return max((info.max_txid for info in client.list_ltx(0)), default=TXID(0))

    wait_until(lambda: stored() > before, "the commit is stored")
    states[stored()] = db_digest(host.data / name)


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.timeout(240)
def test_levels_form_and_restore_to_every_state_that_is_left(
    tmp_path: Path, start_app: StartApp
) -> None:
    states: dict[int, str] = {}
    with quick_host(tmp_path) as host, ExitStack() as stack:
        app = stack.enter_context(App(host.data / "a.db", journal_mode="wal"))
        app.execute("create table t (id integer primary key, a)")
        host.start()
        began = time.monotonic()
        while time.monotonic() - began < 14.0:
            commit_and_record(host, "a.db", app, states)
        client = FileReplicaClient(host.replica / "a.db")
        wait_until(lambda: len(by_level(client)[0]) == 1, "level 0 goes but for the newest")
        wait_until(lambda: set(by_level(client)) == {0, 1, 2, 3, 9}, "all levels are there")
        files = listing(client)
        for _ in range(3):
            _expect_states(tmp_path, client, files, states)
            commit_and_record(host, "a.db", app, states)
        assert host.stop() == 0, host.text()
        assert host.problems() == []
        host.expect_equal(["a.db"])


def _expect_states(
    tmp_path: Path, client: FileReplicaClient, files: list[FileInfo], states: dict[int, str]
) -> None:
    """Restore each TXID that can be reached, some times between, and both with Litestream."""
    out = tmp_path / "state.db"
    reached = 0
    for info in random.Random(1).sample(files, min(12, len(files))):
        moment = info.timestamp_ms + 1
        for options in (RestoreOptions(txid=info.max_txid), RestoreOptions(timestamp_ms=moment)):
            try:
                result = restore(client, out, options)
            except PyrepError:
                continue  # deleted since the listing
            assert db_digest(out) == states[result.txid]
            assert result.txid == info.max_txid or options.txid is None
            out.unlink()
            reached += 1
    assert reached > 4
    newest = max(info.max_txid for info in files)
    url = client.url
    assert db_digest(litestream.restore(url, out, txid=newest)) == states[newest]
    out.unlink()


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "point",
    [
        "compact.open:3:kill-after",
        "compact.write:2:torn",
        "file.link:9:kill",
        "file.delete:2:kill-after",
    ],
)
def test_a_kill_during_maintenance_leaves_nothing_half_visible(
    tmp_path: Path, start_app: StartApp, point: str
) -> None:
    with quick_host(tmp_path) as host, App(host.data / "a.db", journal_mode="wal") as app:
        app.execute("create table t (id integer primary key, a)")
        host.start(environ={"PYREP_ALLOW_FAILPOINTS": "1", "PYREP_FAILPOINT": point})
        for _ in range(300):
            app.execute("insert into t (a) values (randomblob(3000))")
            time.sleep(0.05)
            if not host.running:
                break
        assert not host.running, f"{point} was not reached"
        client = FileReplicaClient(host.replica / "a.db")
        out = tmp_path / "killed.db"
        restore(client, out)
        assert integrity(out) == ["ok"]
        host.kill()
        host.start()
        for _ in range(10):
            app.execute("insert into t (a) values (randomblob(3000))")
            time.sleep(0.1)
        host.wait_shipped("a.db")
        wait_until(lambda: {1, 2, 3} <= set(by_level(client)), "levels form", timeout=60.0)
        assert host.stop() == 0, host.text()
        assert host.problems() == []
        host.expect_equal(["a.db"])
        state = host.data / ".a.db-pyrep"
        assert [path.name for path in state.iterdir() if path.suffix == ".tmp"] == []


def test_retention_that_is_disabled_is_said_and_deletes_nothing(
    tmp_path: Path, start_app: StartApp
) -> None:
    with quick_host(tmp_path, retention={"enabled": False}) as host:
        with App(host.data / "a.db", journal_mode="wal") as app:
            app.execute("create table t (id integer primary key, a)")
            host.start()
            for _ in range(20):
                app.execute("insert into t (a) values (randomblob(3000))")
                time.sleep(0.1)
        client = FileReplicaClient(host.replica / "a.db")
        wait_until(lambda: 1 in by_level(client), "level 1 forms")
        assert host.stop() == 0
        (line,) = host.problems()
        assert line["msg"] == "retention is disabled: nothing is deleted from replicas"
        numbers = [low for low, _ in by_level(client)[0]]
        assert numbers == list(range(1, len(numbers) + 1))
        copy = checkpointed_copy(host.data / "a.db", tmp_path / "truth.db")
        restore(client, tmp_path / "out.db")
        assert differing_pages(copy, tmp_path / "out.db") == []
