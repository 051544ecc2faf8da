"""``compression: zstd``: levels and snapshots of a real database, restored at every TXID."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.rig import Rig
from pyrep import ltxio
from pyrep._ltx import FLAG_ZSTD
from pyrep.config.model import ReplicaConfig
from pyrep.ids import SNAPSHOT_LEVEL
from pyrep.ltxfile import FileInfo
from pyrep.tenant.lineage import listing

StartApp = Callable[..., App]
ZSTD = ReplicaConfig(compression="zstd", compression_level=6)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, replica=ZSTD)
    yield rig
    rig.close()


@pytest.fixture
def app(rig: Rig, start_app: StartApp) -> App:
    app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=200)
    app.execute("create table t (id integer primary key, a)")
    return app


def ship(rig: Rig, app: App, truths: dict[int, Path], times: int = 3) -> None:
    for number in range(times):
        app.execute("insert into t (a) values (randomblob(3000) || ?)", ("x" * 4000,))
        if number == 1:
            app.execute("delete from t where id % 3 = 0")
            app.execute("vacuum")
        assert rig.ship()
        truths[int(rig.durable)] = rig.truth()


def merge(rig: Rig, level: int) -> FileInfo:
    made = rig.tenant.compact(level, listing(rig.client))
    assert made is not None
    return made


def kinds(rig: Rig) -> dict[int, set[bool]]:
    """Return, by level, whether its files are zstd; every file is verified."""
    found: dict[int, set[bool]] = {}
    for info in listing(rig.client):
        with rig.client.open_ltx(info) as source:
            header = ltxio.verify(source)
        found.setdefault(info.level, set()).add(bool(header.flags & FLAG_ZSTD))
    return found


def test_levels_and_snapshots_are_zstd_and_level_0_never_is(rig: Rig, app: App) -> None:
    truths: dict[int, Path] = {}
    ship(rig, app, truths)
    merge(rig, 1)
    ship(rig, app, truths)
    merge(rig, 1)
    merge(rig, 2)
    assert rig.tenant.snapshot()
    rig.upload()
    ship(rig, app, truths)
    assert kinds(rig) == {0: {False}, 1: {True}, 2: {True}, SNAPSHOT_LEVEL: {True}}
    for txid, truth in truths.items():
        rig.expect_equal(txid, source=truth)
    # Without level 0 every restore reads zstd.
    rig.client.delete_ltx([i for i in listing(rig.client) if not i.level and i.max_txid <= 6])
    for txid in (3, 6, 7, 9):
        rig.expect_equal(txid, source=truths[txid])


def test_the_kind_may_change_at_any_time(rig: Rig, app: App) -> None:
    truths: dict[int, Path] = {}
    ship(rig, app, truths)
    merge(rig, 1)
    rig.settings["replica"] = ReplicaConfig()
    rig.restart()
    ship(rig, app, truths)
    merge(rig, 1)
    assert kinds(rig) == {0: {False}, 1: {False, True}}
    made = merge(rig, 2)
    assert (made.min_txid, made.max_txid) == (1, 6)
    assert kinds(rig)[2] == {False}
    rig.settings["replica"] = ZSTD
    rig.restart()
    ship(rig, app, truths)
    merge(rig, 1)
    merge(rig, 2)
    assert kinds(rig)[2] == {False, True}
    merge(rig, 3)
    assert kinds(rig)[3] == {True}
    rig.client.delete_ltx([i for i in listing(rig.client) if i.level in (0, 1, 2)])
    rig.expect_equal(9, source=truths[9])


def test_a_broken_chain_is_healed_by_a_zstd_snapshot(rig: Rig, app: App) -> None:
    truths: dict[int, Path] = {}
    ship(rig, app, truths)
    rig.wipe_replica()
    rig.tenant.heal("somebody emptied the replica")
    ship(rig, app, truths, 1)
    assert kinds(rig) == {0: {False}, SNAPSHOT_LEVEL: {True}}
    rig.expect_equal(4, source=truths[4])


def test_the_table_of_the_benchmark() -> None:
    """zstd beside LZ4 on tenants of four kinds; the program compares each restore."""
    script = Path(__file__).parents[2] / "benchmarks" / "macro" / "bench_zstd.py"
    command = [sys.executable, str(script), "--mib", "0.5", "--levels", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sizes: dict[str, list[float]] = {}
    for line in done.stdout.splitlines()[3:]:
        sizes.setdefault(line[:12].strip(), []).append(float(line[21:].split()[0]))
    assert list(sizes) == ["orders", "json events", "mail", "photos"]
    for name, (lz4, zstd) in sizes.items():
        assert zstd <= lz4, name
        if name != "photos":
            assert zstd < lz4 * 0.9, name
