"""Many restores: order, bounds, one broken tenant among good ones."""

from __future__ import annotations

import threading

import pytest

from fixtures.replicas import History
from pyrep.errors import (
    LTXCorruptError,
    OutputExistsError,
    ReplicaPermanentError,
    ShutdownInterruptedError,
)
from pyrep.restore.execute import RestoreOptions
from pyrep.restore.fleet import FleetItem, restore_all
from pyrep.storage.memory import MemoryReplicaClient, MemoryStorage


@pytest.fixture
def tenants(tmp_path):
    storage = MemoryStorage()
    made = []
    for n in range(12):
        history = History(seed=n).run(4)
        client = MemoryReplicaClient(storage, f"t{n}")
        history.put_singles(client)
        made.append((FleetItem(f"t{n}", client, tmp_path / f"{n}" / "db"), history))
    return made


def test_all_are_restored_in_order(tenants):
    done = []
    results = restore_all((item for item, _ in tenants), on_done=done.append, workers=3)
    assert [r.item for r in results] == [item for item, _ in tenants]
    assert all(r.error is None for r in results)
    for item, history in tenants:
        assert item.output.read_bytes() == history.image(4)
    assert sorted(d.item.name for d in done) == sorted(item.name for item, _ in tenants)


def test_broken_tenants_never_stop_the_others(tenants):
    items = [item for item, _ in tenants]
    items[3].client.storage.objects["t3/ltx/0/0000000000000003-0000000000000003.ltx"] = (
        b"x" * 200,
        0,
    )

    def forbidden(op, info):
        raise ReplicaPermanentError("forbidden")

    def bug(op, info):
        raise ZeroDivisionError("a bug")

    items[5].client.faults = forbidden
    items[7].client.faults = bug
    results = restore_all(items, workers=4)
    assert [n for n, r in enumerate(results) if r.error] == [3, 5, 7]
    assert isinstance(results[3].error, LTXCorruptError)
    assert isinstance(results[5].error, ReplicaPermanentError)
    assert str(results[7].error) == "t7: unexpected ZeroDivisionError: a bug"
    assert all(r.result.txid == 4 for n, r in enumerate(results) if n not in (3, 5, 7))


def test_two_tenants_never_share_an_output(tenants, tmp_path):
    items = [item for item, _ in tenants[:3]]
    (tmp_path / "link").symlink_to("0")
    items[2] = FleetItem("t2", items[2].client, tmp_path / "link" / "db")
    results = restore_all(items)
    assert results[0].error is None
    assert results[1].error is None
    assert isinstance(results[2].error, OutputExistsError)
    assert "t2 and t0 would be restored to the same place" in str(results[2].error)


def test_options_of_an_item_come_before_the_common_ones(tenants):
    items = [item for item, _ in tenants[:2]]
    items[1] = FleetItem("t1", items[1].client, items[1].output, RestoreOptions(txid=2))
    results = restore_all(items, RestoreOptions(txid=3))
    assert [r.result.txid for r in results] == [3, 2]


def test_workers_bound_what_runs_side_by_side(tenants):
    running, most, lock = set(), [0], threading.Lock()

    def faults(op, info):
        with lock:
            running.add(threading.current_thread().name)
            most[0] = max(most[0], len(running))

    items = [item for item, _ in tenants]
    for item in items:
        item.client.faults = lambda op, info: op == "list" and faults(op, info)
    assert all(r.error is None for r in restore_all(items, workers=2))
    assert most[0] <= 2


def test_cancel_refuses_the_rest_each_with_its_own_error(tenants):
    options = RestoreOptions()
    items = [item for item, _ in tenants]
    results = restore_all(items, options, workers=1, on_done=lambda result: options.cancel.set())
    assert results[0].error is None
    assert all(isinstance(r.error, ShutdownInterruptedError) for r in results[1:])
    assert str(results[1].error) == "t1: not begun before the interruption"


def test_an_interrupt_ends_those_under_way_and_is_raised(tenants):
    options = RestoreOptions()

    def on_done(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_all([item for item, _ in tenants], options, workers=2, on_done=on_done)
    assert options.cancel.is_set()
    assert not all(item.output.exists() for item, _ in tenants)


def test_an_empty_fleet_is_no_error():
    assert restore_all([]) == []
