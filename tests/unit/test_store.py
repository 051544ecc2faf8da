"""The store gives each tenant its turn: survey, sync, upload, park, and a fair place."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fixtures.effort import wait_until
from pyrep.catalog import Catalog
from pyrep.clock import SystemClock
from pyrep.config.expand import TenantSpec
from pyrep.config.model import DatabaseConfig, ReplicaConfig
from pyrep.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseNotReadyError,
    FencedError,
    PyrepError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.registry import ReplicaSpec
from pyrep.store import Store
from pyrep.store.entry import Leaving
from pyrep.tenant.capture import SpoolFullError
from pyrep.tenant.tenant import TenantStatus

INTERVAL = 0.02


class FakeTenant:
    """Be a tenant whose commits, failures and speed a test decides."""

    def __init__(self, name: str, *, interval: float = INTERVAL, surveyed: bool = True) -> None:
        entry = DatabaseConfig(
            path=Path(name), replica=ReplicaConfig(sync_interval=timedelta(seconds=interval))
        )
        self.spec = TenantSpec(
            db_path=Path(name),
            name=name,
            relpath=None,
            replica=ReplicaSpec(),
            state_path=Path(f"{name}-state"),
            settings=entry,
        )
        self.name = name
        self.attached = False
        self.wants_stream = self.streaming = self.waits_to_read = False
        self.needs_survey = not surveyed
        self.commits = 0
        self.staged = 0
        self.stored = 0
        self.fenced = False
        self.caught_up = True
        self.deleted = False
        self.idle_after = 0.1
        self.sealable = True
        self.sync_error: Exception | None = None
        self.upload_error: Exception | None = None
        self.survey_error: Exception | None = None
        self.survey_gate: threading.Semaphore | None = None
        self.close_error: Exception | None = None
        self.upload_gate = threading.Event()
        self.upload_gate.set()
        self.syncs: list[float] = []
        self.stagings: list[int] = []
        self.calls: list[str] = []
        self.closed = 0
        self.most_at_once = 0
        self._inside = 0
        self._changed_at = time.monotonic()
        self._lock = threading.Lock()

    def commit(self) -> None:
        """Commit something, as the application would."""
        with self._lock:
            self.commits += 1

    @property
    def pending(self) -> bool:
        return self.staged > self.stored and not self.fenced

    def state_json(self) -> str:
        return f'{{"txid": {self.staged}}}'

    def changed(self) -> bool:
        return not self.fenced and self.commits > self.staged

    def survey(self) -> None:
        self.calls.append("survey")
        assert self.survey_gate is None or self.survey_gate.acquire(timeout=60.0)
        if self.survey_error is not None:
            raise self.survey_error
        self.needs_survey = False

    def sync(self) -> bool:
        assert not self.needs_survey
        with self._lock:
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        try:
            self.syncs.append(time.monotonic())
            self.calls.append("sync")
            if self.sync_error is not None:
                raise self.sync_error
            self.attached = True
            if self.commits == self.staged:
                return False
            self.staged = self.commits
            self.stagings.append(self.staged)
            self._changed_at = time.monotonic()
            return True
        finally:
            with self._lock:
                self._inside -= 1

    def upload_next(self) -> bool:
        assert self.upload_gate.wait(20.0)
        if not self.pending:
            return False
        self.calls.append("upload")
        if self.upload_error is not None:
            self.fenced = isinstance(self.upload_error, FencedError)
            raise self.upload_error
        self.stored += 1
        return True

    def stream(self) -> bool:
        return False

    def idle_seconds(self) -> float:
        return time.monotonic() - self._changed_at

    def idle_limit(self) -> float:
        return self.idle_after

    def park(self, *, force: bool = False) -> bool:
        self.calls.append("park!" if force else "park")
        if not (self.sealable or force):
            return False
        self.attached = False
        return True

    def status(self) -> TenantStatus:
        state = "fenced" if self.fenced else "attached" if self.attached else "parked"
        return TenantStatus(
            self.name,
            "memory:",
            state,
            TXID(self.staged),
            TXID(self.stored),
            self.staged - self.stored,
            0,
            0.0,
            "",
            7,
        )

    def close(self, *, going: bool = False) -> None:
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error
        self.attached = False

    def take_over(self) -> None:
        self.fenced = False
        self.upload_error = None
        self.calls.append("take over")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with closing(Catalog(tmp_path / "catalog.db")) as catalog:
        yield catalog


@pytest.fixture
def make_store(catalog: Catalog) -> Iterator[Callable[..., Store]]:
    with ExitStack() as stack:

        def make(*tenants: FakeTenant, max_attached: int = 100, watch: bool = True) -> Store:
            store = Store(
                catalog,
                SystemClock(),
                max_attached=max_attached,
                watch_interval=INTERVAL,
                random=lambda: 0.0,
            )
            for tenant in tenants:
                store.register(tenant)
            store.start(watch=watch)
            stack.callback(store.drain, 0.0, 0.01)
            return store

        yield make


MakeStore = Callable[..., Store]


def _stored(*tenants: FakeTenant) -> Callable[[], bool]:
    return lambda: all(tenant.stored == tenant.commits for tenant in tenants)


# --- the ordinary way ---


def test_a_change_is_synced_uploaded_and_the_tenant_parked(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db")
    make_store(tenant)
    tenant.commit()
    wait_until(_stored(tenant), "the commit is stored")
    wait_until(lambda: not tenant.attached, "the quiet tenant is parked")
    tenant.commit()
    wait_until(_stored(tenant), "the next commit is stored too")


def test_what_is_committed_while_uploads_lag_goes_into_one_file(make_store: MakeStore) -> None:
    slow, other = (FakeTenant(f"/data/{name}.db", interval=0.1) for name in ("slow", "other"))
    slow.upload_gate.clear()
    make_store(slow, other)
    slow.commit()
    wait_until(lambda: slow.pending, "its first file waits")
    for number in range(1, 5):
        slow.commit()
        other.commit()
        wait_until(lambda n=number: other.stored == n, "an interval has passed")
    assert slow.staged == 1
    slow.upload_gate.set()
    wait_until(_stored(slow), "the rest is staged at once, and stored")
    assert slow.stagings == [1, 5]


def test_an_upload_that_takes_long_holds_staging_only_for_some_intervals(
    make_store: MakeStore,
) -> None:
    tenant = FakeTenant("/data/a.db")
    tenant.upload_gate.clear()
    make_store(tenant)
    for number in range(1, 4):
        tenant.commit()
        wait_until(lambda n=number: tenant.staged == n, "it is staged, so R moves")
    tenant.upload_gate.set()
    wait_until(_stored(tenant), "all is stored")


def test_an_unchanged_tenant_is_never_opened(make_store: MakeStore) -> None:
    quiet, busy = FakeTenant("/data/quiet.db", surveyed=False), FakeTenant("/data/busy.db")
    make_store(quiet, busy)
    busy.commit()
    wait_until(lambda: not busy.attached and busy.stored == 1, "the other one has had its turn")
    assert quiet.calls == []


def test_the_replica_is_listed_once_before_the_first_sync(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db", surveyed=False)
    make_store(tenant)
    tenant.commit()
    wait_until(_stored(tenant), "the commit is stored")
    tenant.commit()
    wait_until(_stored(tenant), "the second commit is stored")
    assert tenant.calls[:2] == ["survey", "sync"]
    assert tenant.calls.count("survey") == 1


def test_syncs_of_one_tenant_are_an_interval_apart_and_never_overlap(
    make_store: MakeStore,
) -> None:
    tenant = FakeTenant("/data/a.db", interval=0.1)
    tenant.idle_after = 10.0
    store = make_store(tenant)

    def enough() -> bool:
        tenant.commit()
        store.wake(tenant.name)  # as often as the loop turns
        return len(tenant.syncs) >= 6

    wait_until(enough, "six syncs")
    gaps = [b - a for a, b in zip(tenant.syncs, tenant.syncs[1:], strict=False)]
    assert min(gaps) >= 0.095
    assert tenant.most_at_once == 1


def test_the_number_of_threads_does_not_depend_on_the_tenants(make_store: MakeStore) -> None:
    tenants = [FakeTenant(f"/data/{number}.db") for number in range(300)]
    before = threading.active_count()
    make_store(*tenants)
    started = threading.active_count() - before
    for tenant in tenants:
        tenant.commit()
    wait_until(_stored(*tenants), "all commits are stored")
    assert started <= 18
    spare = 24  # while many uploads wait
    assert threading.active_count() - before <= started + spare


def test_what_happened_is_in_the_catalog(make_store: MakeStore, catalog: Catalog) -> None:
    tenant = FakeTenant("/data/a.db")
    store = make_store(tenant)
    tenant.commit()
    wait_until(lambda: tenant.stored == 1 and not tenant.attached, "stored and parked")
    store.acknowledged(tenant, FileInfo(0, TXID(1), TXID(1), 10, 20))

    def recorded() -> bool:
        catalog.flush()
        row = catalog.tenant(tenant.name)
        return row is not None and row.status == "parked" and row.durable_txid == 1

    wait_until(recorded, "the row says parked")
    row = catalog.tenant(tenant.name)
    assert row is not None
    assert (row.state, row.node_id) == ('{"txid": 1}', 7)
    assert [stored.info.max_txid for stored in catalog.files(tenant.name)] == [1]


def test_a_name_is_registered_once(make_store: MakeStore) -> None:
    store = make_store(FakeTenant("/data/a.db"))
    with pytest.raises(PyrepError, match="is registered already"):
        store.register(FakeTenant("/data/a.db"))


def test_a_tenant_that_the_catalog_kept_out_can_come_again(
    make_store: MakeStore, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise PyrepError("the catalog cannot be read")

    store, tenant = make_store(), FakeTenant("/data/a.db")
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "tenant", fail)
        with pytest.raises(PyrepError, match="cannot be read"):
            store.register(tenant)
    assert store.tenants() == []
    store.register(tenant)
    tenant.commit()
    wait_until(_stored(tenant), "the commit is stored")


def test_a_merge_that_outlasts_its_tenant_says_nothing_of_the_next(
    make_store: MakeStore, catalog: Catalog
) -> None:
    """With another replica retention would go by a file that is not there."""
    before, after = FakeTenant("/data/a.db"), FakeTenant("/data/a.db")
    store = make_store(before)
    store.unregister(before.name)
    store.register(after)
    store.acknowledged(before, FileInfo(1, TXID(1), TXID(9), 10, 20))
    store.acknowledged(after, FileInfo(0, TXID(1), TXID(1), 10, 20))
    catalog.flush()
    assert [stored.info.level for stored in catalog.files(after.name)] == [0]


def test_an_unregistered_tenant_is_left_alone(make_store: MakeStore) -> None:
    tenant, other = FakeTenant("/data/a.db"), FakeTenant("/data/b.db")
    store = make_store(tenant, other)
    assert store.unregister(tenant.name) is tenant
    assert store.unregister(tenant.name) is None
    assert store.lookup(tenant.name) is None
    assert store.lookup(other.name) is other
    tenant.commit()
    other.commit()
    wait_until(_stored(other), "the other one is stored")
    assert tenant.calls == []


def test_what_cannot_be_sealed_stays_attached_and_is_asked_again(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db")
    tenant.sealable = False
    make_store(tenant)
    tenant.commit()
    wait_until(lambda: tenant.calls.count("park") >= 3, "parking was tried again")
    assert tenant.attached
    tenant.sealable = True
    wait_until(lambda: not tenant.attached, "parked in the end")


# --- failures ---


def test_a_broken_tenant_does_not_delay_the_others(make_store: MakeStore) -> None:
    broken = [FakeTenant(f"/data/broken{number}.db") for number in range(20)]
    fine = [FakeTenant(f"/data/fine{number}.db") for number in range(20)]
    for number, tenant in enumerate(broken):
        tenant.sync_error = DatabaseError("broken") if number % 2 else RuntimeError("a bug")
    make_store(*broken, *fine)
    for tenant in (*broken, *fine):
        tenant.commit()
    wait_until(_stored(*fine), "the sound ones are stored")
    assert all(tenant.stored == 0 for tenant in broken)


def test_a_hanging_upload_does_not_delay_the_others(make_store: MakeStore) -> None:
    slow = [FakeTenant(f"/data/slow{number}.db") for number in range(5)]
    fine = [FakeTenant(f"/data/fine{number}.db") for number in range(20)]
    for tenant in slow:
        tenant.upload_gate.clear()
        tenant.commit()
    make_store(*slow, *fine)
    for tenant in fine:
        tenant.commit()
    wait_until(_stored(*fine), "the others are stored")
    for tenant in slow:
        tenant.upload_gate.set()
    wait_until(_stored(*slow), "the slow ones too")


def test_the_first_uploads_of_many_do_not_delay_what_another_commits(
    make_store: MakeStore,
) -> None:
    """Their replicas are listed slowly, one by one as the test lets them."""
    turns = threading.Semaphore(0)
    running, many = FakeTenant("/data/running.db"), 300
    newcomers = [FakeTenant(f"/data/{number}.db", surveyed=False) for number in range(many)]
    store = make_store(running)
    running.commit()
    wait_until(_stored(running), "it runs")
    for tenant in newcomers:
        tenant.survey_gate = turns
        tenant.commit()
        store.register(tenant)
    try:
        wait_until(lambda: store._shared.pools["upload"].backlog > many / 2, "most of them wait")
        running.commit()
        wait_until(lambda: running.staged == 2, "the other one has something to upload")
        turns.release(3)
        wait_until(_stored(running), "it is stored", timeout=15.0)
        assert sum(tenant.needs_survey for tenant in newcomers) > many / 2
    finally:
        turns.release(many)
    wait_until(_stored(*newcomers), "all are stored")


def test_failures_back_off_are_said_once_and_recovery_too(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tenant = FakeTenant("/data/a.db")
    tenant.sync_error = DatabaseError("/data/a.db: is malformed", hint="Restore it.")
    make_store(tenant)
    tenant.commit()
    wait_until(lambda: len(tenant.syncs) >= 2, "a second try")
    assert tenant.syncs[1] - tenant.syncs[0] >= 0.5
    tenant.sync_error = None
    wait_until(_stored(tenant), "the commit is stored in the end")
    lines = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert lines.count(("ERROR", "sync failed")) == 1
    assert lines.count(("INFO", "database can be synced again")) == 1
    record = next(r for r in caplog.records if r.getMessage() == "sync failed")
    assert (record.__dict__["db"], record.__dict__["op"]) == ("/data/a.db", "sync")
    assert record.__dict__["hint"] == "Restore it."


@pytest.mark.parametrize("error", [DatabaseBusyError("busy"), DatabaseNotReadyError("not yet")])
def test_what_only_waits_is_a_warning(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture, error: PyrepError
) -> None:
    tenant = FakeTenant("/data/a.db")
    tenant.sync_error = error
    make_store(tenant)
    tenant.commit()
    wait_until(lambda: bool(caplog.records), "a line is written")
    assert caplog.records[0].levelname == "WARNING"


def test_an_unexpected_error_is_logged_with_its_traceback(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    tenant = FakeTenant("/data/a.db")
    tenant.sync_error = RuntimeError("a bug")
    make_store(tenant)
    tenant.commit()
    wait_until(lambda: bool(caplog.records), "a line is written")
    assert caplog.records[0].exc_info is not None


def test_uploads_fail_and_recover_while_syncs_go_on(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tenant = FakeTenant("/data/a.db")
    tenant.idle_after = 60.0
    tenant.upload_error = ReplicaTemporaryError("no network")
    make_store(tenant)
    tenant.commit()
    wait_until(lambda: tenant.calls.count("upload") == 1, "an upload was tried")
    tenant.commit()
    wait_until(lambda: tenant.staged == 2, "the next commit is staged")
    assert tenant.calls.count("upload") == 1  # syncs do not cut the wait of uploads short
    tenant.upload_error = None
    wait_until(_stored(tenant), "both are stored")
    wait_until(lambda: "replica accepts files again" in caplog.text, "recovery is said")
    failures = [r for r in caplog.records if r.getMessage() == "upload failed"]
    assert [r.__dict__["replica"] for r in failures] == ["memory:"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ReplicaTemporaryError("no network"), "listing the replica failed"),
        (DatabaseError("no folder"), "database cannot be replicated yet"),
    ],
)
def test_a_survey_that_fails_is_named_and_tried_again(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture, error: PyrepError, message: str
) -> None:
    caplog.set_level(logging.INFO)
    tenant = FakeTenant("/data/a.db", surveyed=False)
    tenant.survey_error = error
    make_store(tenant)
    tenant.commit()
    wait_until(lambda: bool(caplog.records), "the failure is said")
    tenant.survey_error = None
    wait_until(_stored(tenant), "the commit is stored in the end")
    assert tenant.calls.count("survey") == 2
    assert [(record.getMessage(), record.__dict__["op"]) for record in caplog.records] == [
        (message, "list"),
        ("replica can be listed again", "list"),
    ]


def test_a_fenced_tenant_stays_so_until_it_is_taken_over(make_store: MakeStore) -> None:
    tenant, other = FakeTenant("/data/team/a.db"), FakeTenant("/data/b.db")
    tenant.upload_error = FencedError("another writer")
    store = make_store(tenant, other)
    tenant.commit()
    other.commit()
    wait_until(lambda: tenant.fenced, "the tenant is fenced")
    wait_until(_stored(other), "the other goes on")
    uploads = tenant.calls.count("upload")
    answers: list[tuple[bool, str]] = []
    store.take_over("/data/nothing*", lambda ok, text: answers.append((ok, text)))
    assert [ok for ok, _ in answers] == [False]
    store.take_over("/data/*", lambda ok, text: answers.append((ok, text)))
    wait_until(lambda: len(answers) == 2, "an answer")
    assert answers[1] == (True, "taken over: /data/team/a.db")
    wait_until(_stored(tenant), "uploads go on")
    assert uploads == 1
    assert "take over" not in other.calls


def test_take_over_reports_what_failed(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db")

    def refuse() -> None:
        raise DatabaseError("/data/a.db: no")

    tenant.take_over = refuse  # type: ignore[method-assign]
    answers: list[tuple[bool, str]] = []
    make_store(tenant).take_over("/data/a.db", lambda ok, text: answers.append((ok, text)))
    wait_until(lambda: bool(answers), "an answer")
    assert answers == [(False, "/data/a.db: no")]


# --- parking on request ---


def _ask_to_park(store: Store, name: str) -> tuple[bool, str]:
    answers: list[tuple[bool, str]] = []
    store.park(name, lambda ok, text: answers.append((ok, text)))
    wait_until(lambda: bool(answers), "an answer")
    return answers[0]


def test_park_syncs_first_and_closes(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db", interval=30.0)
    tenant.idle_after = 60.0
    store = make_store(tenant)
    tenant.commit()
    wait_until(_stored(tenant), "the first commit is stored")
    tenant.commit()
    assert _ask_to_park(store, tenant.name) == (
        True,
        "parked /data/a.db at txid 0000000000000002",
    )
    assert (tenant.staged, tenant.attached) == (2, False)


def test_park_insists_when_a_seal_is_not_to_be_had(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db")
    tenant.sealable, tenant.idle_after = False, 60.0
    store = make_store(tenant)
    tenant.commit()
    wait_until(lambda: tenant.attached, "attached")
    assert _ask_to_park(store, tenant.name)[0]
    assert "park!" in tenant.calls


def test_park_of_a_parked_tenant_opens_nothing(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db")
    store = make_store(tenant)
    assert _ask_to_park(store, tenant.name) == (True, "/data/a.db is parked")
    assert tenant.calls == []


def test_park_of_something_else_is_an_error(make_store: MakeStore) -> None:
    store = make_store(FakeTenant("/data/a.db"))
    assert _ask_to_park(store, "/data/b.db") == (False, "no such database: /data/b.db")


def test_park_of_a_broken_tenant_says_what_is_wrong(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db")
    tenant.sync_error = DatabaseError("/data/a.db: is malformed")
    store = make_store(tenant, watch=False)
    tenant.commit()
    assert _ask_to_park(store, tenant.name) == (False, "/data/a.db: is malformed")


# --- the attach budget ---


class _Counted(FakeTenant):
    """Count how many are attached at once."""

    held: set[str]
    most: list[int]

    def sync(self) -> bool:
        self.held.add(self.name)
        self.most.append(len(self.held))
        return super().sync()

    def park(self, *, force: bool = False) -> bool:
        parked = super().park(force=force)
        if parked:
            self.held.discard(self.name)
        return parked


def _counted(count: int) -> list[_Counted]:
    held: set[str] = set()
    most: list[int] = []
    tenants = [_Counted(f"/data/{number}.db") for number in range(count)]
    for tenant in tenants:
        tenant.held, tenant.most, tenant.idle_after = held, most, 3600.0
    return tenants


def test_quiet_tenants_make_room_for_newcomers(make_store: MakeStore) -> None:
    tenants = _counted(20)
    make_store(*tenants, max_attached=3)
    for tenant in tenants:
        tenant.commit()
    wait_until(_stored(*tenants), "all had their turn")
    assert max(tenants[0].most) <= 3
    assert any("park" in tenant.calls for tenant in tenants)


def test_busy_tenants_take_turns_and_it_is_said_once(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = _counted(9)
    stop = threading.Event()

    def application() -> None:
        while not stop.wait(0.002):
            for tenant in tenants:
                tenant.commit()

    writer = threading.Thread(target=application)
    writer.start()
    try:
        make_store(*tenants, max_attached=2)
        wait_until(lambda: min(tenant.stored for tenant in tenants) > 0, "all had a turn")
        wait_until(lambda: min(len(tenant.syncs) for tenant in tenants) > 2, "and more turns")
    finally:
        stop.set()
        writer.join()
    assert max(tenants[0].most) <= 2
    assert sum("may be attached" in record.getMessage() for record in caplog.records) == 1


def test_a_broken_tenant_gives_its_place_back(make_store: MakeStore) -> None:
    broken, fine = FakeTenant("/data/a.db"), FakeTenant("/data/b.db")
    broken.sync_error = DatabaseError("no")
    make_store(broken, fine, max_attached=1)
    broken.commit()
    wait_until(lambda: bool(broken.syncs), "the broken one had its turn")
    fine.commit()
    wait_until(_stored(fine), "the other one found a place")


# --- the stop ---


def test_the_drain_stores_what_is_dirty_and_closes_all(make_store: MakeStore) -> None:
    dirty = [FakeTenant(f"/data/{number}.db", surveyed=False) for number in range(30)]
    quiet = FakeTenant("/data/quiet.db")
    store = make_store(*dirty, quiet, watch=False, max_attached=4)
    for tenant in dirty:
        tenant.commit()
    assert store.drain(20.0, 0.01) == []
    assert _stored(*dirty)()
    assert quiet.calls == []
    assert {tenant.closed for tenant in (*dirty, quiet)} == {1}
    assert store.closed_in_order


def test_the_drain_takes_what_was_committed_after_the_last_sync(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db", interval=3600.0)
    tenant.idle_after = 3600.0
    store = make_store(tenant)
    tenant.commit()
    wait_until(_stored(tenant), "the first commit is stored")
    tenant.commit()
    assert store.drain(20.0, 0.01) == []
    assert tenant.stored == 2


def test_the_drain_tries_uploads_again(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db")
    store = make_store(tenant, watch=False)
    tenant.commit()
    tenant.upload_error = ReplicaTemporaryError("no network")

    def recover() -> None:
        wait_until(lambda: tenant.calls.count("upload") >= 3, "three tries")
        tenant.upload_error = None

    helper = threading.Thread(target=recover)
    helper.start()
    assert store.drain(20.0, 0.01) == []
    helper.join()
    assert tenant.stored == 1


def test_the_drain_names_what_it_could_not_upload(make_store: MakeStore) -> None:
    stuck, fine = FakeTenant("/data/stuck.db"), FakeTenant("/data/fine.db")
    stuck.upload_error = ReplicaTemporaryError("no network")
    store = make_store(stuck, fine, watch=False)
    stuck.commit()
    stuck.commit()
    fine.commit()
    (unsent,) = store.drain(0.3, 0.01)
    assert unsent.name == "/data/stuck.db"
    assert unsent.reason == "2 files not uploaded: no network"
    assert fine.stored == 1
    assert stuck.closed == 1


class _Tight(FakeTenant):
    """Have no room for a second staged file beside one that waits for its upload."""

    def sync(self) -> bool:
        if self.pending:
            self.calls.append("sync")
            raise SpoolFullError(f"{self.name}: no room")
        return super().sync()


@pytest.mark.parametrize("once", [False, True])
def test_the_drain_syncs_again_when_uploads_have_made_room(
    make_store: MakeStore, once: bool
) -> None:
    tenant = _Tight("/data/a.db")
    store = make_store(tenant, watch=False)
    tenant.commits, tenant.staged = 2, 1  # as a run leaves it that was killed
    assert store.drain(20.0, 0.01, everything=once) == []
    steps = [call for call in tenant.calls if call in ("sync", "upload")]
    assert steps == ["sync", "upload", "sync", "upload"]
    assert tenant.stored == 2


def test_a_drain_that_syncs_once_does_so_again_if_room_came_meanwhile(
    make_store: MakeStore,
) -> None:
    """Its last upload ended between the failure and the question whether one waits."""
    tenant = FakeTenant("/data/a.db")
    tenant.sync_error = SpoolFullError("/data/a.db: no room")
    store = make_store(tenant, watch=False)
    tenant.commit()
    failed = tenant.sync

    def sync() -> bool:
        try:
            return failed()
        finally:
            tenant.sync_error = None

    tenant.sync = sync  # type: ignore[method-assign]
    assert store.drain(20.0, 0.01, everything=True) == []
    assert tenant.stored == 1


def test_the_drain_names_what_there_was_no_room_to_stage(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db")
    tenant.sync_error = SpoolFullError("/data/a.db: no space left to stage")
    store = make_store(tenant, watch=False)
    tenant.commit()
    (unsent,) = store.drain(0.3, 0.01)
    assert unsent.reason == "not synced: /data/a.db: no space left to stage"
    assert len(tenant.syncs) > 1, "it is tried until the deadline"


def test_a_drain_without_time_tries_once(make_store: MakeStore) -> None:
    fine, stuck = FakeTenant("/data/fine.db"), FakeTenant("/data/stuck.db")
    stuck.upload_error = ReplicaPermanentError("forbidden")
    store = make_store(fine, stuck, watch=False)
    fine.commit()
    stuck.commit()
    assert [unsent.name for unsent in store.drain(5.0, 60.0)] == ["/data/stuck.db"]
    assert fine.stored == 1


def test_the_drain_can_be_cut_short(make_store: MakeStore) -> None:
    stuck = FakeTenant("/data/stuck.db")
    stuck.upload_gate.clear()
    store = make_store(stuck, watch=False)
    stuck.commit()
    cut = threading.Event()

    def cutter() -> None:
        wait_until(lambda: stuck.staged == 1, "the last sync is done")
        cut.set()

    helper = threading.Thread(target=cutter)
    helper.start()
    began = time.monotonic()
    unsent = store.drain(3600.0, 0.01, interrupted=cut.is_set)
    helper.join()
    assert time.monotonic() - began < 30.0
    assert [each.reason for each in unsent] == ["1 file not uploaded"]
    assert stuck.closed == 1
    stuck.upload_gate.set()


def test_a_database_that_was_broken_before_does_not_hold_the_stop(
    make_store: MakeStore,
) -> None:
    broken, gone = FakeTenant("/data/a.db"), FakeTenant("/data/b.db", surveyed=False)
    broken.sync_error = DatabaseError("/data/a.db: is malformed")
    gone.survey_error = DatabaseNotReadyError("/data/b.db: database file does not exist")
    store = make_store(broken, gone, watch=False)
    broken.commit()
    gone.commit()
    began = time.monotonic()
    assert store.drain(3600.0, 0.01) == []
    assert time.monotonic() - began < 30.0


def test_a_deleted_database_that_was_never_listed_does_not_hold_the_stop(
    make_store: MakeStore,
) -> None:
    """The stop comes before the store has let go of it."""
    tenant = FakeTenant("/data/a.db", surveyed=False)
    store = make_store(tenant, watch=False)
    tenant.commit()
    tenant.survey_error = DatabaseNotReadyError("/data/a.db: database file does not exist")
    store._shared.entries[tenant.name].leaving = Leaving(lambda tenant: None, time.monotonic())
    assert store.drain(3.0, 0.01) == []
    assert tenant.calls == ["survey"]


def test_a_survey_that_fails_to_the_end_is_named(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/a.db", surveyed=False)
    tenant.survey_error = ReplicaTemporaryError("no network")
    store = make_store(tenant, watch=False)
    tenant.commit()
    assert [u.reason for u in store.drain(0.2, 0.01)] == ["not synced: no network"]


def test_once_takes_every_tenant_and_names_each_failure(make_store: MakeStore) -> None:
    fine = FakeTenant("/data/fine.db", surveyed=False)
    broken, stuck = FakeTenant("/data/broken.db"), FakeTenant("/data/stuck.db")
    fenced = FakeTenant("/data/fenced.db")
    broken.sync_error = DatabaseError("is malformed")
    stuck.upload_error = ReplicaTemporaryError("no network")
    fenced.upload_error = FencedError("another writer")
    store = make_store(fine, broken, stuck, fenced, watch=False)
    stuck.commit()
    fenced.commit()
    found = {u.name: u.reason for u in store.drain(20.0, 0.01, everything=True)}
    assert found == {
        "/data/broken.db": "not synced: is malformed",
        "/data/stuck.db": "1 file not uploaded: no network",
        "/data/fenced.db": "1 file not uploaded: another writer",
    }
    assert "sync" in fine.calls
    assert stuck.calls.count("upload") == 1


def test_a_tenant_that_comes_during_the_drain_is_taken_along(make_store: MakeStore) -> None:
    early, late = FakeTenant("/data/early.db"), FakeTenant("/data/late.db", surveyed=False)
    store = make_store(early, watch=False)
    for tenant in (early, late):
        tenant.commit()
    stored_before: list[int] = []

    def latecomers() -> bool:
        if early.stored and store.lookup(late.name) is None:
            stored_before.append(early.stored)
            store.register(late)
            return False
        return True

    assert store.drain(0.5, 0.01, latecomers=latecomers) == []
    assert stored_before == [1]
    assert late.stored == 1
    assert (early.closed, late.closed) == (1, 1)
    assert len(early.syncs) == 1


def test_the_time_of_a_drain_counts_from_the_last_that_came(make_store: MakeStore) -> None:
    stuck, late = FakeTenant("/data/stuck.db"), FakeTenant("/data/late.db")
    stuck.upload_error = ReplicaTemporaryError("no network")
    store = make_store(stuck, watch=False)
    for tenant in (stuck, late):
        tenant.commit()

    def latecomers() -> bool:
        if time.monotonic() < over:
            return True
        store.register(late)
        return False

    timeout = 0.5
    over = time.monotonic() + 2 * timeout
    found = store.drain(timeout, 0.01, latecomers=latecomers)
    assert [unsent.name for unsent in found] == ["/data/stuck.db"]
    assert late.stored == 1


def test_nobody_comes_to_a_drain_that_is_cut_short(make_store: MakeStore) -> None:
    store = make_store(watch=False)
    asked: list[bool] = []

    def latecomers() -> bool:
        asked.append(True)
        return True

    assert (
        store.drain(3600.0, 0.01, interrupted=lambda: len(asked) > 1, latecomers=latecomers) == []
    )
    assert len(asked) == 2


def test_a_close_that_fails_is_logged_and_the_stop_is_not_in_order(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = [FakeTenant(f"/data/{number}.db") for number in range(3)]
    tenants[1].close_error = DatabaseError("/data/1.db: no")
    store = make_store(*tenants, watch=False)
    store.drain(1.0, 0.01)
    assert [tenant.closed for tenant in tenants] == [1, 1, 1]
    assert not store.closed_in_order
    assert [record.__dict__["db"] for record in caplog.records] == ["/data/1.db"]


def test_a_spec_may_name_a_link(make_store: MakeStore) -> None:
    tenant = FakeTenant("/data/real.db")
    tenant.spec = replace(tenant.spec, name="/data/link.db")
    store = make_store(tenant)
    assert store.lookup("/data/link.db") is tenant
    assert store.tenants() == [tenant]


def _waits(store: Store, name: str) -> list[tuple[int, Exception | None]]:
    told: list[tuple[int, Exception | None]] = []
    store.wait(name, lambda txid, error: told.append((txid, error)))
    return told


def test_who_waits_for_a_parked_tenant_has_it_looked_at(make_store: MakeStore) -> None:
    tenant = FakeTenant("/db", interval=3600.0)
    store = make_store(tenant)
    told = _waits(store, "/db")
    wait_until(lambda: told == [(0, None)], "there was nothing, and that was looked at")
    assert tenant.syncs
    tenant.commit()
    told = _waits(store, "/db")
    wait_until(lambda: told == [(1, None)], "the interval of an hour is not waited for")


def test_who_waits_is_told_after_the_upload_and_not_before(make_store: MakeStore) -> None:
    tenant = FakeTenant("/db")
    store = make_store(tenant)
    tenant.upload_gate.clear()
    tenant.commit()
    told = _waits(store, "/db")
    wait_until(lambda: tenant.staged == 1, "staged")
    assert told == []
    tenant.upload_gate.set()
    wait_until(lambda: told == [(1, None)], "told")


def test_who_waits_goes_on_waiting_through_failures(make_store: MakeStore) -> None:
    tenant = FakeTenant("/db")
    tenant.sync_error = DatabaseBusyError("busy")
    store = make_store(tenant)
    tenant.commit()
    told = _waits(store, "/db")
    wait_until(lambda: store.trouble("/db") == "busy", "a failure")
    assert told == []
    tenant.sync_error = None
    wait_until(lambda: told == [(1, None)], "told")


def test_who_waits_for_what_was_not_reached_waits_on(make_store: MakeStore) -> None:
    tenant = FakeTenant("/db")
    tenant.caught_up = False
    store = make_store(tenant)
    told = _waits(store, "/db")
    wait_until(lambda: len(tenant.syncs) >= 3, "it is synced again and again")
    assert told == []
    tenant.caught_up = True
    wait_until(lambda: bool(told), "told")


def test_who_waits_in_vain_is_told_so(make_store: MakeStore) -> None:
    fenced, gone = FakeTenant("/fenced"), FakeTenant("/gone")
    fenced.upload_error = FencedError("another writer")
    store = make_store(fenced, gone)
    gone.upload_gate.clear()
    fenced.commit()
    gone.commit()
    told = _waits(store, "/fenced")
    wait_until(lambda: bool(told), "told")
    assert isinstance(told[0][1], FencedError)
    later = _waits(store, "/fenced")
    wait_until(lambda: bool(later), "told at once")
    assert isinstance(later[0][1], FencedError)
    told = _waits(store, "/gone")
    wait_until(lambda: gone.staged == 1, "staged")
    store.unregister("/gone")
    assert str(told[0][1]) == "/gone: is not replicated any more"
    gone.upload_gate.set()
    assert str(_waits(store, "/gone")[0][1]) == "no such database: /gone"


def test_who_still_waits_at_the_stop_is_told_so(make_store: MakeStore) -> None:
    tenant = FakeTenant("/db")
    store = make_store(tenant)
    tenant.commit()
    tenant.sync_error = DatabaseBusyError("busy")
    told = _waits(store, "/db")
    wait_until(lambda: bool(tenant.syncs), "tried")
    store.drain(0.0, 0.01)
    assert str(told[0][1]) == "the replication has been stopped"


def test_memory_is_given_back_after_many_were_parked(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    monkeypatch.setattr("pyrep.store.syncing.give_back", lambda: given.append(True))
    tenants = [FakeTenant(f"/{number}") for number in range(150)]
    for tenant in tenants:
        tenant.idle_after = 0.0
        tenant.commit()
    make_store(*tenants)
    wait_until(lambda: all(t.stored and not t.attached for t in tenants), "all are parked")
    assert given == [True]


def test_a_change_after_quiet_does_not_wait_for_the_next_tick(make_store: MakeStore) -> None:
    """Of an attached tenant too: the interval spaces what is staged, not the looks."""
    tenant = FakeTenant("/db", interval=30.0)
    tenant.idle_after = 3600.0
    store = make_store(tenant)
    store.wake("/db")
    wait_until(lambda: tenant.attached and bool(tenant.syncs), "a look that found nothing")
    tenant.commit()
    store.wake("/db")
    wait_until(_stored(tenant), "stored long before the next tick")
    tenant.commit()
    store.wake("/db")
    looks = len(tenant.syncs)
    told = _waits(store, "/db")
    wait_until(lambda: bool(told), "one who waits")
    assert len(tenant.syncs) == looks + 1, "the second change waits for its interval"
