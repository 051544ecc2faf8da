"""What tenants together have in their spools, looked at after every single write."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.effort import wait_until
from fixtures.rig import Rig
from fixtures.throttle import Throttled
from pyrep import osfs
from pyrep.errors import PyrepError
from pyrep.storage.file import FileReplicaClient
from pyrep.tenant.capture import SpoolFullError
from pyrep.tenant.spool import Spool

_LIMIT = 400_000
_PIECE = 64 << 10

StartApp = Callable[..., App]


class Meter:
    """Add up what lies in the spools of some tenants, after every write to any of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rigs: list[Rig] = []
        self.most = self.writes = self.streamed = 0
        self._write = osfs.pwrite_all
        self._lock = threading.Lock()
        monkeypatch.setattr(osfs, "pwrite_all", self._observed)

    def _observed(self, op: str, fd: int, data: memoryview | bytes, offset: int) -> None:
        self._write(op, fd, data, offset)
        if op in ("stage.write", "stream.write"):
            with self._lock:
                self.writes += 1
                self.streamed += op == "stream.write"
                self.most = max(self.most, sum(map(_held, self.rigs)))


def _held(rig: Rig) -> int:
    """Return the bytes that wait for their upload, are being written, or are in a ring."""
    engine = rig.tenant._engine
    waiting = sum(info.size for info in list(engine.queue))
    stream = engine.stream
    ring = os.fstat(stream.ring._fd).st_size if stream is not None else 0
    return waiting + ring + sum(map(_size, rig.spec().state_path.rglob("*.ltx.tmp")))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed meanwhile
        return 0


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(monkeypatch)


@pytest.fixture
def make_rigs(tmp_path: Path, meter: Meter) -> Iterator[Callable[[int], list[Rig]]]:
    def make(count: int) -> list[Rig]:
        spool = Spool(_LIMIT)
        for number in range(count):
            folder = tmp_path / str(number)
            folder.mkdir()
            network = Throttled(FileReplicaClient(folder / "replica"))
            meter.rigs.append(Rig(folder, client=network, spool=spool, spool_limit=_LIMIT))
        return meter.rigs

    yield make
    for rig in meter.rigs:
        rig.close()


def _fill(app: App, rows: int) -> None:
    app.execute("create table if not exists t (id integer primary key, a)")
    app.execute_many("insert into t (a) values (randomblob(?))", [(4000,)] * rows)


def _ship_to_the_end(rig: Rig, failures: list[BaseException]) -> None:
    """Do what the pools do for a tenant until nothing is left, whatever is full meanwhile."""
    try:
        for _ in range(2000):
            try:
                if not rig.ship() and rig.tenant.caught_up and not rig.tenant.wants_stream:
                    return
            except SpoolFullError:
                threading.Event().wait(0.001)  # another tenant has the room
        raise AssertionError(f"{rig.db} was never done")
    except BaseException as error:
        failures.append(error)


def test_the_common_limit_holds_after_every_write(
    make_rigs: Callable[[int], list[Rig]], meter: Meter, start_app: StartApp
) -> None:
    rigs = make_rigs(4)
    for number, rig in enumerate(rigs):  # two are streamed past the spool, two are staged
        _fill(start_app(rig.db, busy_timeout_ms=5000), 300 if number < 2 else 40)
    failures: list[BaseException] = []
    threads = [threading.Thread(target=_ship_to_the_end, args=(r, failures)) for r in rigs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert meter.writes > 20
    assert meter.streamed > 4
    assert _LIMIT // 4 < meter.most <= _LIMIT
    for rig in rigs:
        assert rig.spool is not None
        assert rig.spool.left == _LIMIT, "everything was given back"
        rig.expect_equal()


def _begin_stream(rig: Rig) -> threading.Thread:
    """Let a tenant begin a stream that the network holds up."""
    network = rig.client
    assert isinstance(network, Throttled)
    network.allow(1000)

    def stream() -> None:
        try:
            rig.tenant.stream()
        except PyrepError:
            return

    thread = threading.Thread(target=stream)
    thread.start()
    wait_until(lambda: network.stuck, "the network stands")
    return thread


def test_two_streams_share_what_is_left(
    make_rigs: Callable[[int], list[Rig]], meter: Meter, start_app: StartApp
) -> None:
    """The second begins before the first tenant was looked at again."""
    rigs = make_rigs(2)
    for rig in rigs:
        _fill(start_app(rig.db, busy_timeout_ms=5000), 300)
        rig.stage()
        assert rig.tenant.wants_stream
    threads = [_begin_stream(rig) for rig in rigs]
    first, second = (rig.tenant._engine.stream for rig in rigs)
    assert first is not None
    assert second is not None
    assert first.ring.capacity + second.ring.capacity <= _LIMIT
    spool = rigs[0].spool
    assert spool is not None
    assert spool.left == _LIMIT - first.ring.capacity - second.ring.capacity
    for rig in rigs:
        rig.client.allow(None)  # type: ignore[attr-defined]
    for thread in threads:
        thread.join()
    assert meter.most <= _LIMIT
    for rig in rigs:
        rig.ship()
        rig.expect_equal()
    assert spool.left == _LIMIT


def _write_and_stage(rig: Rig, app: App) -> None:
    for _ in range(100):  # nothing is uploaded
        _fill(app, 10)
        rig.stage()


def test_at_the_bound_r_is_let_go_and_the_wal_shrinks_again(
    make_rigs: Callable[[int], list[Rig]],
    meter: Meter,
    start_app: StartApp,
) -> None:
    (rig,) = make_rigs(1)
    app = start_app(rig.db, busy_timeout_ms=200)
    _fill(app, 10)
    rig.ship()
    wal = Path(f"{rig.db}-wal")
    with pytest.raises(SpoolFullError, match="spool-limit"):
        _write_and_stage(rig, app)
    assert rig.tenant.status().state == "degraded"
    assert meter.most <= _LIMIT
    assert wal.stat().st_size > 40_000
    assert app.checkpoint("truncate")[0] == 0, "nobody holds a read transaction"
    assert wal.stat().st_size == 0
    for _ in range(5):  # the application goes on for as long as it likes
        _fill(app, 60)
        with pytest.raises(SpoolFullError):
            rig.stage()
        assert app.checkpoint("truncate")[0] == 0
    assert wal.stat().st_size == 0
    rig.upload()
    while rig.ship():
        pass
    assert rig.tenant.status().state != "degraded"
    assert meter.most <= _LIMIT
    rig.expect_equal()
