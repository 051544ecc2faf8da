"""What is due when: levels, snapshots, retention; and what happens when one of them fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.effort import wait_until
from fixtures.fakeclock import FakeClock
from pyrep.catalog import Catalog, TenantRow
from pyrep.clock import to_ms
from pyrep.compactor import inputs_for
from pyrep.config.expand import TenantSpec
from pyrep.config.model import DatabaseConfig, SnapshotConfig
from pyrep.errors import LTXCorruptError, LTXNotFoundError, ReplicaTemporaryError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.log import RateLimiter
from pyrep.ltxfile import FileInfo
from pyrep.storage.registry import ReplicaSpec
from pyrep.store.maintenance import MAINTAIN, Maintenance, Schedule, forget_other_replica
from pyrep.tenant.tenant import TenantStatus

DAY = 86400.0
LEVELS = {1: 30.0, 2: 300.0, 3: 3600.0}


class FakeTenant:
    """Be a tenant whose replica is a list of files."""

    def __init__(self, name: str, clock: FakeClock, **snapshot: float) -> None:
        self.name = name
        times = {key: timedelta(seconds=value) for key, value in snapshot.items()}
        settings = DatabaseConfig(path=Path(name), snapshot=SnapshotConfig(**times))
        self.spec = TenantSpec(
            db_path=Path(name),
            name=name,
            relpath=None,
            replica=ReplicaSpec(path="/replica"),
            state_path=Path(f"{name}-state"),
            settings=settings,
        )
        self.clock = clock
        self.node_id = 0
        self.fenced = self.deleted = False
        self.files: list[FileInfo] = []
        self.calls: list[Any] = []
        self.errors: list[Exception] = []
        self.refusals: list[Exception] = []
        self.on_made: Callable[[FileInfo], None] = lambda info: None
        self.listed: list[FileInfo] | None = None

    def commit(self) -> FileInfo:
        txid = TXID(1 + max((i.max_txid for i in self.files), default=0))
        return self.add(FileInfo(0, txid, txid, 10, to_ms(self.clock.now())))

    def add(self, info: FileInfo) -> FileInfo:
        self.files.append(info)
        self.on_made(info)
        return info

    def compact(self, level: int, files: Sequence[FileInfo]) -> FileInfo | None:
        inputs = inputs_for(files, level)
        if not inputs:
            return None
        self.calls.append(level)
        if self.errors:
            raise self.errors.pop(0)
        low, high = inputs[0].min_txid, inputs[-1].max_txid
        return self.add(FileInfo(level, low, high, 20, inputs[-1].timestamp_ms))

    def snapshot_now(self) -> FileInfo:
        top = max(self.files, key=lambda info: info.max_txid)
        return self.add(FileInfo(9, TXID(1), top.max_txid, 30, top.timestamp_ms))

    def listing(self) -> list[FileInfo]:
        self.calls.append("list")
        return list(self.files if self.listed is None else self.listed)

    def delete(self, files: Sequence[FileInfo]) -> None:
        self.calls.append("delete")
        if self.refusals:
            raise self.refusals.pop(0)
        self.files = [info for info in self.files if info not in files]

    def heal(self, cause: str) -> None:
        self.calls.append(("heal", cause))

    def status(self) -> TenantStatus:
        state, txid = "fenced" if self.fenced else "parked", TXID(0)
        return TenantStatus(self.name, "memory:", state, txid, txid, 0, 0, 0.0, "", self.node_id)


@dataclass
class World:
    """Be the store: due times, asked for and fired by hand."""

    catalog: Catalog
    clock: FakeClock
    tenants: dict[str, FakeTenant] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    upkeep: Maintenance = None  # type: ignore[assignment]

    def begin(self, schedule: Schedule) -> None:
        limiter = RateLimiter(now=self.clock.monotonic)
        catalog: Any = self.catalog
        host: Any = self
        self.upkeep = Maintenance(schedule, catalog, self.clock, host, limiter, lambda: 1.0)
        self.upkeep.start()

    def tenant(self, name: str = "/data/a.db", **snapshot: float) -> FakeTenant:
        tenant = FakeTenant(name, self.clock, **snapshot)
        self.tenants[name] = tenant

        def made(info: FileInfo) -> None:
            self.catalog.add_file(name, info)
            self.upkeep.acknowledged(tenant, info)  # type: ignore[arg-type]

        tenant.on_made = made
        return tenant

    def lookup(self, name: str) -> FakeTenant | None:
        return self.tenants.get(name)

    def schedule(self, kind: str, name: str, delay: float) -> None:
        assert kind == MAINTAIN
        at = self.clock.monotonic() + delay
        self.due[name] = min(at, self.due.get(name, at))

    def take_snapshot(self, name: str) -> None:
        self.asked.append(("snapshot", name))

    def relist(self, name: str) -> None:
        self.asked.append(("relist", name))

    def run(self, seconds: float) -> None:
        """Let time pass, and fire what becomes due."""
        end = self.clock.monotonic() + seconds
        while self.due and min(self.due.values()) <= end:
            name = min(self.due, key=lambda each: self.due[each])
            at = self.due.pop(name)
            self.clock.advance(max(0.0, at - self.clock.monotonic()))
            self.upkeep.fire(name)
            wait_until(lambda: not (self._busy()), "the turn is over")
        self.clock.advance(end - self.clock.monotonic())

    def _busy(self) -> bool:
        pool = self.upkeep._pool
        with pool._lock:
            return bool(pool._waiting or pool._running)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock = FakeClock()
    with closing(Catalog(tmp_path / "catalog.db", clock=clock)) as catalog:
        world = World(catalog, clock)
        world.begin(Schedule(LEVELS, l0_retention=300.0, l0_check=15.0))
        yield world
        world.upkeep.close(10.0)


def levels(tenant: FakeTenant) -> dict[int, list[int]]:
    """Return the newest TXID of each file by level."""
    found: dict[int, list[int]] = {}
    for info in sorted(tenant.files):
        found.setdefault(info.level, []).append(info.max_txid)
    return found


def test_levels_form_one_after_the_other_and_then_it_is_quiet(world: World) -> None:
    tenant = world.tenant()
    for _ in range(3):
        tenant.commit()
        world.run(1.0)
    world.run(30.0)
    assert levels(tenant) == {0: [1, 2, 3], 1: [3]}
    world.run(300.0)
    assert levels(tenant)[2] == [3]
    world.run(4000.0)
    assert levels(tenant) == {0: [3], 1: [3], 2: [3], 3: [3]}
    assert tenant.calls == [1, 2, "delete", 3]
    world.run(DAY)
    assert world.asked == [("snapshot", tenant.name)]
    tenant.snapshot_now()
    world.run(3 * DAY)
    assert levels(tenant) == {0: [3], 1: [3], 2: [3], 3: [3], 9: [3]}
    assert world.due == {}
    assert "list" not in tenant.calls


def test_a_level_is_made_at_its_own_boundary_of_the_wall_clock(world: World) -> None:
    early, late = world.tenant("/data/early.db"), world.tenant("/data/late.db")
    late.node_id = 32760  # half way
    for tenant in (early, late):
        tenant.commit()
    world.run(14.9)
    assert (levels(early), levels(late)) == ({0: [1]}, {0: [1]})
    world.run(0.2)
    assert (1 in levels(early), 1 in levels(late)) == (False, True)
    world.run(15.0)
    assert 1 in levels(early)


def test_what_comes_after_a_compaction_waits_for_the_next_boundary(world: World) -> None:
    tenant = world.tenant()
    for _ in range(10):
        tenant.commit()
        world.run(10.0)
    assert tenant.calls.count(1) == 3
    assert [i.max_txid for i in tenant.files if i.level == 1] == [3, 6, 9]


def test_a_backlog_is_worked_off_at_once(world: World) -> None:
    tenant = world.tenant()
    for _ in range(200):
        tenant.commit()
    world.run(31.0)
    assert [i.max_txid for i in tenant.files if i.level == 1] == [64, 128, 192, 200]


def test_a_snapshot_is_taken_once_an_interval_and_only_after_changes(world: World) -> None:
    tenant = world.tenant(interval=600.0)
    tenant.commit()
    world.run(601.0)
    assert world.asked == [("snapshot", tenant.name)]
    tenant.snapshot_now()
    world.run(6000.0)
    assert len(world.asked) == 1
    tenant.commit()
    world.run(601.0)
    assert len(world.asked) == 2
    world.upkeep.retry_snapshot(tenant)  # type: ignore[arg-type]
    world.run(61.0)
    assert len(world.asked) == 3


def test_each_tenant_has_the_snapshot_schedule_of_its_entry(world: World) -> None:
    often = world.tenant("/data/often.db", interval=600.0, retention=1200.0)
    seldom = world.tenant("/data/seldom.db", interval=3600.0, retention=30 * DAY)
    for _ in range(12):
        for tenant in (often, seldom):
            tenant.commit()
        before = len(world.asked)
        world.run(600.0)
        for _, name in world.asked[before:]:
            world.tenants[name].snapshot_now()
    asked = [name for _, name in world.asked]
    assert 11 <= asked.count(often.name) <= 12
    assert 1 <= asked.count(seldom.name) <= 2
    world.run(2 * DAY)  # a pass that deletes comes at most once a day
    left = {t.name: sum(i.level == SNAPSHOT_LEVEL for i in t.files) for t in (often, seldom)}
    assert left[often.name] == 1
    assert left[seldom.name] == asked.count(seldom.name)


def test_old_snapshots_go_after_a_listing_at_most_once_a_day(world: World) -> None:
    tenant = world.tenant(interval=6 * 3600.0, retention=2 * DAY)
    for _ in range(40):
        tenant.commit()
        world.run(6 * 3600.0)
        tenant.snapshot_now()
    kept = [i for i in tenant.files if i.level == SNAPSHOT_LEVEL]
    assert 8 <= len(kept) <= 14
    assert 6 <= tenant.calls.count("list") <= 9
    assert min(to_ms(world.clock.now()) - i.timestamp_ms for i in kept) <= 2 * DAY * 1000


def test_what_the_storage_did_not_delete_is_deleted_later(world: World) -> None:
    tenant = world.tenant(interval=3600.0, retention=7200.0)
    tenant.refusals = [ReplicaTemporaryError("slow down") for _ in range(2)]
    for _ in range(3):
        tenant.commit()
    world.run(1000.0)
    assert levels(tenant)[0] == [3]
    tenant.snapshot_now()
    tenant.commit()
    world.run(1000.0)
    tenant.snapshot_now()
    tenant.refusals = [ReplicaTemporaryError("slow down")]
    world.run(3 * DAY)
    assert not tenant.refusals
    assert levels(tenant)[SNAPSHOT_LEVEL] == [4]


def test_a_replica_that_is_not_as_it_was_left_loses_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    tenant = world.tenant(interval=3600.0, retention=7200.0)
    tenant.commit()
    first = tenant.snapshot_now()
    world.run(3600.0)
    tenant.commit()
    second = tenant.snapshot_now()
    world.run(3600.0)
    tenant.commit()
    tenant.listed = [i for i in tenant.files if i != second]
    world.run(9000.0)
    assert first in tenant.files
    assert ("relist", tenant.name) in world.asked
    assert "not as it was left" in caplog.text
    world.catalog.flush()
    known = [stored.info for stored in world.catalog.files(tenant.name)]
    assert second not in known


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_a_clock_that_was_set_deletes_nothing(
    world: World, caplog: pytest.LogCaptureFixture, jump: float
) -> None:
    tenant = world.tenant()
    for _ in range(3):
        tenant.commit()
    world.clock._began -= jump
    world.run(2000.0)
    assert "delete" not in tenant.calls
    assert caplog.text.count("nothing is deleted from the replica") == 1


def test_without_leave_to_delete_nothing_is_deleted(tmp_path: Path) -> None:
    clock = FakeClock()
    with closing(Catalog(tmp_path / "catalog.db", clock=clock)) as catalog:
        world = World(catalog, clock)
        world.begin(Schedule(LEVELS, l0_retention=300.0, l0_check=15.0, delete=False))
        tenant = world.tenant(interval=600.0, retention=600.0)
        for _ in range(5):
            tenant.commit()
            tenant.snapshot_now()
            world.run(2000.0)
        world.upkeep.close(10.0)
        assert levels(tenant)[0] == [1, 2, 3, 4, 5]
        assert len(levels(tenant)[9]) == 5
        assert not {"delete", "list"} & set(map(str, tenant.calls))


def test_failures_back_off_are_named_and_recover(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tenant = world.tenant()
    tenant.errors = [ReplicaTemporaryError("no network") for _ in range(5)]
    tenant.commit()
    world.run(30.5)
    assert tenant.calls == [1]
    world.run(1.0)
    assert tenant.calls == [1, 1]
    world.run(1.4)
    assert tenant.calls == [1, 1]
    world.run(60.0)
    assert 1 in levels(tenant)
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("maintenance goes on") == 1
    assert 1 <= lines.count("maintenance failed") <= 2
    assert world.asked == []


def test_a_broken_tenant_does_not_hold_up_another(world: World) -> None:
    broken, fine = world.tenant("/data/a.db"), world.tenant("/data/b.db")
    broken.errors = [RuntimeError("a bug") for _ in range(100)]
    broken.commit()
    fine.commit()
    world.run(400.0)
    assert levels(fine).keys() == {0, 1, 2}
    assert levels(broken) == {0: [1]}


def test_a_level_that_fails_does_not_hold_up_the_rest(world: World) -> None:
    tenant = world.tenant(interval=60.0)
    tenant.commit()
    tenant.errors = [ReplicaTemporaryError("no") for _ in range(1000)]
    world.run(61.0)
    assert ("snapshot", tenant.name) in world.asked


def test_a_missing_input_lets_the_replica_be_listed(world: World) -> None:
    tenant = world.tenant()
    tenant.errors = [LTXNotFoundError("gone", op="open")]
    tenant.commit()
    world.run(31.0)
    assert world.asked == [("relist", tenant.name)]


def test_a_gap_lets_the_replica_be_listed(world: World) -> None:
    tenant = world.tenant()
    tenant.commit()
    tenant.commit()
    world.run(31.0)
    world.catalog.remove_files(tenant.name, [tenant.commit()])
    tenant.commit()
    world.run(31.0)
    assert ("relist", tenant.name) in world.asked


def test_an_input_that_is_damaged_twice_is_passed_over_and_healed(world: World) -> None:
    tenant = world.tenant()
    infos = [tenant.commit() for _ in range(4)]
    tenant.errors = [LTXCorruptError("bad", path=infos[1].name) for _ in range(2)]
    world.run(30.1)
    assert world.asked == []  # it may have been the way, not the file
    world.run(1.0)
    assert tenant.calls[-1] == ("heal", f"{infos[1].name} at level 0 of the replica is damaged")
    assert world.asked == [("relist", tenant.name)]
    world.run(5.0)
    assert levels(tenant)[1] == [1]
    tenant.add(FileInfo(9, TXID(1), TXID(5), 30, infos[3].timestamp_ms))
    tenant.commit()
    world.run(60.0)
    assert levels(tenant)[1][:2] == [1, 4]


def test_a_fenced_tenant_is_left_alone(world: World) -> None:
    tenant = world.tenant()
    tenant.commit()
    tenant.fenced = True
    world.run(4000.0)
    assert tenant.calls == []


def test_a_tenant_that_is_gone_is_forgotten(world: World) -> None:
    tenant = world.tenant()
    tenant.commit()
    del world.tenants[tenant.name]
    world.upkeep.unregistered(tenant.name)
    world.run(4000.0)
    assert tenant.calls == []


def test_nothing_begins_after_the_stop(world: World) -> None:
    tenant = world.tenant()
    tenant.commit()
    world.upkeep.stop()
    world.run(4000.0)
    assert tenant.calls == []


def test_the_dry_run_deletes_nothing(world: World) -> None:
    tenant = world.tenant()
    tenant.commit()
    tenant.commit()
    world.run(31.0)
    world.clock.advance(1000.0)
    decision = world.upkeep.decide(tenant)  # type: ignore[arg-type]
    assert [info.max_txid for info in decision.delete] == [1]
    assert levels(tenant)[0] == [1, 2]


# --- across restarts ---


def restarted(world: World) -> None:
    """Begin another run with the same catalog."""
    world.upkeep.close(10.0)
    world.catalog.flush()
    world.due.clear()
    world.begin(Schedule(LEVELS, l0_retention=300.0, l0_check=15.0))
    for tenant in world.tenants.values():
        world.upkeep.registered(tenant, moved=False)  # type: ignore[arg-type]


def test_a_restart_goes_on_and_schedules_only_what_has_something_new(world: World) -> None:
    idle, behind = world.tenant("/data/idle.db"), world.tenant("/data/behind.db")
    idle.commit()
    world.run(4000.0)
    idle.snapshot_now()
    world.run(3 * DAY)
    behind.commit()
    idle.calls.clear()
    restarted(world)
    assert set(world.due) == {behind.name}
    world.run(4000.0)
    assert levels(behind).keys() == {0, 1, 2, 3}
    assert idle.calls == []


def test_restarts_do_not_postpone_a_snapshot(world: World) -> None:
    tenant = world.tenant()
    tenant.commit()
    for _ in range(30):
        world.run(3600.0)
        restarted(world)
    assert ("snapshot", tenant.name) in world.asked


def test_another_replica_is_begun_anew(world: World) -> None:
    tenant = world.tenant()
    tenant.commit()
    for replica, moved in (("memory:", False), ("file:///elsewhere", True)):
        world.catalog.save_tenant(TenantRow(path=tenant.name, replica=replica))
        world.catalog.flush()
        fake: Any = tenant
        assert forget_other_replica(world.catalog, fake) is moved
        world.catalog.flush()
        assert bool(world.catalog.files(tenant.name)) is not moved
    tenant.spec = replace(tenant.spec, replica=ReplicaSpec(path="/elsewhere"))
