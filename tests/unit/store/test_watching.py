"""The first change after quiet: found by the watch that was armed, and synced at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from fixtures.effort import wait_until
from pyrep.catalog import Catalog
from pyrep.clock import Clock
from pyrep.config.expand import TenantSpec
from pyrep.config.model import DatabaseConfig, ReplicaConfig
from pyrep.ids import TXID
from pyrep.storage.registry import ReplicaSpec
from pyrep.store import Store
from pyrep.tenant.status import TenantStatus
from pyrep.watch.base import Dirty, DirtyKind

_INTERVAL_SECONDS = 1.0
_TICK_SECONDS = 1 / 64  # exact in binary, and less than the 20 ms of a tick
_PATH = Path("/data/a.db")


class ScriptedWatcher:
    """Tell of a write once after each time that it was armed, of nothing else, and look at none."""

    def __init__(self) -> None:
        self.armed: set[Path] = set()
        self._events: SimpleQueue[list[Dirty]] = SimpleQueue()

    def add(self, path: Path) -> None:
        self.armed.add(path)

    def remove(self, path: Path) -> None:
        self.armed.discard(path)

    def watch_folder(self, folder: str) -> bool:
        return True

    def forget_folder(self, folder: str, *, below: bool = True) -> None:
        """Watch no folder."""

    def poll(self, timeout: float | None) -> list[Dirty]:
        try:
            return self._events.get(timeout=timeout)
        except Empty:
            return []

    def tell(self, *dirty: Dirty) -> None:
        """Let one call of ``poll`` return this."""
        self._events.put(list(dirty))

    def wake(self) -> None:
        self.tell()

    def close(self) -> None:
        self.armed.clear()

    def written(self, path: Path) -> None:
        """Do what the kernel does at a write: the watch fires once, if there is one."""
        if path in self.armed:
            self.armed.discard(path)
            self.tell(Dirty(path))


class StoppedClock:
    """Stand still but for ``advance``; who waits for an event is woken by it at once."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._now)

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        due = None if timeout is None else self._now + timeout
        while not event.wait(0.001):
            if due is not None and self._now >= due:
                return event.is_set()
        return True


class QuietTenant:
    """Be a database that is written when the test says so; one that ``stays`` is never parked."""

    wants_stream = streaming = waits_to_read = needs_survey = False
    caught_up = True
    deleted = False

    def __init__(self, clock: Clock, *, stays: bool) -> None:
        sync_interval = timedelta(seconds=_INTERVAL_SECONDS)
        entry = DatabaseConfig(path=_PATH, replica=ReplicaConfig(sync_interval=sync_interval))
        self.spec = TenantSpec(
            db_path=_PATH,
            name=str(_PATH),
            relpath=None,
            replica=ReplicaSpec(),
            state_path=Path("/data/state"),
            settings=entry,
        )
        self.name = str(_PATH)
        self.attached = False
        self.commits = self.staged = self.stored = self.looks = 0
        self.synced_at: list[float] = []
        self._stays = stays
        self._clock = clock

    @property
    def pending(self) -> bool:
        return self.staged > self.stored

    def state_json(self) -> str:
        return "{}"

    def changed(self) -> bool:
        return self.commits > self.staged

    def sync(self) -> bool:
        self.attached = True
        self.looks += 1
        if self.commits == self.staged:
            return False
        self.staged = self.commits
        self.synced_at.append(self._clock.monotonic())
        return True

    def upload_next(self) -> bool:
        more = self.pending
        self.stored = self.staged
        return more

    def idle_seconds(self) -> float:
        return 0.0 if self._stays or self.pending else 3600.0

    def idle_limit(self) -> float:
        return 60.0

    def park(self, *, force: bool = False) -> bool:
        self.attached = False
        return True

    def close(self, *, going: bool = False) -> None:
        self.attached = False

    def status(self) -> TenantStatus:
        txids = TXID(self.staged), TXID(self.stored)
        return TenantStatus(self.name, "memory:", "attached", *txids, 0, 0, 0.0, "", 7)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with closing(Catalog(tmp_path / "catalog.db")) as catalog:
        yield catalog


class Scene:
    """Hold a store with one tenant, the watcher that the test plays, and a clock that stands."""

    def __init__(self, catalog: Catalog, *, stays: bool) -> None:
        self.clock = StoppedClock()
        self.watcher = ScriptedWatcher()
        self.tenant = QuietTenant(self.clock, stays=stays)
        self._stays = stays
        self.store = Store(
            catalog, self.clock, max_attached=5, watcher_for=lambda changed: self.watcher
        )
        self.store.register(self.tenant)  # type: ignore[arg-type]
        self.store.start()

    def write(self) -> None:
        """Commit something, and let the watch fire if it is armed."""
        self.tenant.commits += 1
        self.watcher.written(_PATH)

    def rest(self) -> None:
        """Let time pass until all is stored and quiet; then it stands still."""
        tenant, step = self.tenant, _INTERVAL_SECONDS / 4

        def quiet() -> bool:
            resting = tenant.attached == self._stays and _PATH in self.watcher.armed
            if resting and tenant.stored == tenant.commits:
                return True
            self.clock.advance(step)
            return False

        wait_until(quiet, "stored, quiet and armed", timeout=10.0)


@pytest.fixture(params=[False, True], ids=["parked", "attached"])
def scene(request: pytest.FixtureRequest, catalog: Catalog) -> Iterator[Scene]:
    scene = Scene(catalog, stays=request.param)
    try:
        scene.write()
        scene.rest()
        yield scene
    finally:
        scene.store.drain(0.0, 0.01)


def test_the_first_change_after_quiet_is_told_by_the_armed_watch(scene: Scene) -> None:
    """No sweep looks at anything and no timer fires, for the time stands still."""
    for _ in range(3):
        before = scene.clock.monotonic()
        scene.write()
        wait_until(lambda: scene.tenant.stored == scene.tenant.commits, "stored", timeout=10.0)
        assert scene.tenant.synced_at[-1] - before <= _TICK_SECONDS
        scene.rest()


def test_a_write_that_no_watch_tells_of_is_not_seen(scene: Scene) -> None:
    """So it is the watch that the test before shows: there is nothing else in this scene."""
    scene.watcher.armed.clear()
    looks = scene.tenant.looks
    scene.write()
    assert not threading.Event().wait(0.2)
    assert scene.tenant.looks == looks


def test_a_commit_that_follows_its_first_write_is_synced_within_a_tick(scene: Scene) -> None:
    looks = scene.tenant.looks
    scene.watcher.written(_PATH)  # the first frame of a transaction that is not committed yet
    wait_until(lambda: scene.tenant.looks > looks, "a look that finds nothing", timeout=10.0)
    committed = scene.clock.monotonic()
    scene.write()  # one that was parked again is watched, the other is looked at by itself
    scene.clock.advance(_TICK_SECONDS)
    wait_until(lambda: scene.tenant.stored == scene.tenant.commits, "stored", timeout=10.0)
    assert scene.tenant.synced_at[-1] - committed <= _TICK_SECONDS


def test_what_was_told_in_a_round_that_failed_is_looked_for_everywhere(scene: Scene) -> None:
    told: list[DirtyKind] = []

    def fail_once(dirty: Dirty) -> None:
        told.append(dirty.kind)
        if len(told) == 1:
            raise OSError("the catalog cannot be read")

    def told_again() -> bool:
        scene.clock.advance(1.0)
        return len(told) > 1

    scene.watcher.armed.clear()
    scene.store.on_event = fail_once
    scene.watcher.tell(Dirty(Path("/data/b.db"), DirtyKind.NAMED), Dirty(_PATH))
    wait_until(told_again, "another round", timeout=10.0)
    assert told == [DirtyKind.NAMED, DirtyKind.OVERFLOW]
    assert scene.tenant.attached or _PATH in scene.watcher.armed
