"""Whole restores of generated replicas: every plan, every check, every way to fail."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
from array import array
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.replicas import History, put
from pyrep import _checksum, osfs
from pyrep.errors import (
    ConfigError,
    DatabaseBusyError,
    DatabaseError,
    LTXChecksumError,
    LTXCorruptError,
    LTXError,
    LTXGapError,
    LTXNotFoundError,
    OutputExistsError,
    PyrepError,
    ReplicaTemporaryError,
    ShutdownInterruptedError,
    TXNotAvailableError,
)
from pyrep.osfs import Failpoint
from pyrep.restore import apply
from pyrep.restore.execute import REPLANS, Progress, RestoreOptions, plan_restore, restore
from pyrep.restore.target import Ownership
from pyrep.storage.memory import MemoryReplicaClient


@pytest.fixture(autouse=True)
def _no_failpoints():
    yield
    osfs.disarm()


@pytest.fixture
def history():
    return History().run(8)


@pytest.fixture
def client(history):
    made = MemoryReplicaClient()
    history.put_singles(made)
    return made


def back(client, tmp_path, **options) -> bytes:
    """Restore to a new file, check that nothing else is left, and return the bytes."""
    output = tmp_path / "out" / "db"
    restore(client, output, RestoreOptions(**options))
    assert os.listdir(output.parent) == ["db"]
    data = output.read_bytes()
    output.unlink()
    return data


def nothing_left(tmp_path) -> bool:
    return not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


# --- what is restored ---


def test_the_result_describes_the_database(client, history, tmp_path):
    result = restore(client, tmp_path / "db", RestoreOptions(integrity_check="none"))
    assert (tmp_path / "db").read_bytes() == history.image(8)
    assert (result.txid, result.timestamp_ms) == (8, 8000)
    assert (result.page_size, result.commit) == (512, history.states[-1].commit)
    assert result.size == len(history.image(8))
    assert result.database_checksum == history.checksum(8)
    assert result.proven
    assert result.node_id == 0x1122334455667788
    assert result.output == tmp_path / "db"
    assert result.seconds >= 0


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("seed", range(4))
def test_every_plan_of_a_state_leads_to_the_same_bytes(tmp_path, page_size, ours, seed):
    """Files of random ranges at all levels, random ones missing: each TXID that can be reached."""
    rng = random.Random(seed)
    history = History(page_size=page_size, seed=seed, ours=ours).run(9)
    client = MemoryReplicaClient()
    history.put_singles(client)
    for _ in range(10):
        low = rng.choice([1, 1, *range(2, 9)])
        history.put(client, rng.randint(1, 9), low, rng.randint(low, 9))
    restored = 0
    for missing in range(0, 9, 2):
        for txid in range(1, 10):
            try:
                plan_restore(client, txid=txid)
            except (LTXGapError, TXNotAvailableError):
                continue
            assert back(client, tmp_path, txid=txid) == history.image(txid)
            restored += 1
        singles = list(client.list_ltx(0))
        client.delete_ltx(rng.sample(singles, min(len(singles), missing)))
    assert restored >= 9


def test_a_time_is_restored(client, history, tmp_path):
    assert back(client, tmp_path, timestamp_ms=5999) == history.image(5)
    result = restore(client, tmp_path / "db", RestoreOptions(timestamp_ms=99_000))
    assert result.plan.after_newest


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_streamed_and_split_files_give_the_same_bytes(tmp_path, monkeypatch, threads):
    history = History(page_size=4096).run(6, pages=200)
    client = MemoryReplicaClient()
    history.put_singles(client)
    history.put(client, 9, 1, 3)
    for small, large in [(0, 1 << 40), (0, 0), (0, 50_000), (100_000, 200_000)]:
        monkeypatch.setattr(apply, "SMALL", small)
        monkeypatch.setattr(apply, "LARGE", large)
        for txid in (1, 3, 6):
            assert back(client, tmp_path, txid=txid, threads=threads) == history.image(txid)


def test_a_large_database_is_split_with_the_real_limits(tmp_path):
    history = History(page_size=65536)
    history.write({}, 700)
    history.write({1: history.page(), 650: history.page()}, 660)
    client = MemoryReplicaClient()
    history.put_singles(client)
    assert next(client.list_ltx(0)).size > apply.LARGE
    assert back(client, tmp_path, threads=3) == history.image(2)


def test_a_changed_page_size_starts_the_file_anew(tmp_path):
    history = History(page_size=1024).run(4, pages=40)
    history.page_size = 512
    history.write({}, 7)
    history.run(2)
    client = MemoryReplicaClient()
    history.put_singles(client)
    for txid in (4, 5, 7):
        assert back(client, tmp_path, txid=txid) == history.image(txid)


def test_a_changed_page_size_without_proof_is_refused(tmp_path):
    history = History(page_size=1024, ours=False).run(2)
    history.page_size = 512
    history.write({}, 7)
    client = MemoryReplicaClient()
    history.put_singles(client)
    with pytest.raises(LTXCorruptError, match="page size changes from 1024 to 512 bytes"):
        back(client, tmp_path)
    assert nothing_left(tmp_path)


def test_a_changed_page_size_with_pages_missing_is_refused(tmp_path):
    history = History(page_size=1024).run(2, pages=40)
    history.page_size = 512
    history.write({}, 7)
    history.run(1)
    lacking = history.states[2].changed - {4}
    history.states[2].changed = lacking
    client = MemoryReplicaClient()
    history.put_singles(client)
    with pytest.raises(LTXCorruptError, match="from 0 to 7 pages, of 7 new ones the file holds 6"):
        back(client, tmp_path, txid=3)


# --- proof ---


def test_a_wrong_database_checksum_publishes_nothing(client, history, tmp_path):
    history.put(client, 0, 8, 8, post=12345)
    with pytest.raises(LTXChecksumError) as caught:
        back(client, tmp_path)
    assert f"{history.checksum(8):016x}" in str(caught.value)
    assert "but the file says 0000000000003039; nothing was published" in str(caught.value)
    assert nothing_left(tmp_path)
    assert back(client, tmp_path, txid=7) == history.image(7)


def test_another_lineage_is_named(client, history, tmp_path):
    history.put(client, 0, 6, 6, pre=777)
    with pytest.raises(LTXChecksumError) as caught:
        back(client, tmp_path)
    assert str(caught.value) == (
        "memory:// level 0 0000000000000006-0000000000000006.ltx: the file belongs to another "
        "lineage: it continues a database with the checksum 0000000000000309, but after "
        f"0000000000000005-0000000000000005.ltx (level 0) it is {history.checksum(5):016x}"
    )
    assert "-txid 0000000000000005" in caught.value.hint
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("fields", [{"pre": 0}, {"pre": 0, "post": 0}, {"is_pyrep": False}])
def test_an_unknown_checksum_breaks_no_chain(client, history, tmp_path, fields):
    if "is_pyrep" in fields:
        fields = {**fields, "pre": 0, "post": 0}
    history.put(client, 0, 5, 5, **fields)
    assert back(client, tmp_path) == history.image(8)


def test_overlaps_are_not_compared(client, history, tmp_path):
    client.delete_ltx([info for info in client.list_ltx(0) if info.max_txid == 6])
    history.put(client, 2, 1, 4)
    history.put(client, 1, 3, 6, pre=424242)
    assert back(client, tmp_path) == history.image(8)


def test_a_state_without_checksums_is_not_called_proven(tmp_path):
    history = History(ours=False).run(3)
    client = MemoryReplicaClient()
    history.put_singles(client)
    result = restore(client, tmp_path / "db")
    assert (tmp_path / "db").read_bytes() == history.image(3)
    assert not result.proven
    assert result.database_checksum == 0
    assert result.node_id == 0


@pytest.mark.parametrize("ours", [True, False])
def test_page_crcs_are_handed_out_in_order(tmp_path, monkeypatch, ours):
    monkeypatch.setattr("pyrep.restore.proof._WINDOW", 4096)
    history = History(ours=ours).run(3, pages=60)
    client = MemoryReplicaClient()
    history.put_singles(client)
    table = array("Q")

    def keep(first_pgno, crcs):
        assert first_pgno == len(table) + 1
        table.extend(crcs)

    result = restore(client, tmp_path / "db", RestoreOptions(on_page_crcs=keep, threads=3))
    wanted = array("Q", bytes(8 * result.commit))
    _checksum.crc64_pages(history.image(3), 512, wanted)
    assert table == wanted
    assert result.database_checksum == history.checksum(3)
    assert result.proven == ours


def test_a_file_of_other_txids_than_its_name_is_refused(client, history, tmp_path):
    data = history.file(7, 7)
    client.storage.objects["ltx/0/0000000000000008-0000000000000008.ltx"] = (data, 8000)
    with pytest.raises(LTXCorruptError, match="header says txids 0000000000000007 to"):
        back(client, tmp_path)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_every_damaged_byte_and_cut_is_found(tmp_path, monkeypatch, small):
    monkeypatch.setattr(apply, "SMALL", small)
    history = History().run(2, pages=4)
    client = MemoryReplicaClient()
    history.put_singles(client)
    key = "ltx/0/0000000000000002-0000000000000002.ltx"
    good = client.storage.objects[key][0]
    rng = random.Random(5)
    places = [*rng.sample(range(len(good)), 60), 0, 99, 100, len(good) - 1]
    for at in places:
        damaged = bytearray(good)
        damaged[at] ^= 1 << rng.randrange(8)
        client.storage.objects[key] = (bytes(damaged), 2000)
        with pytest.raises(LTXError, match=r"memory:// level 0 0{15}2-0{15}2\.ltx"):
            back(client, tmp_path)
        client.storage.objects[key] = (good[:at], 2000)
        with pytest.raises(LTXCorruptError, match=r"memory:// level 0 0{15}2-0{15}2\.ltx"):
            back(client, tmp_path)
    client.storage.objects[key] = (good + b"x", 2000)
    with pytest.raises(LTXCorruptError):
        back(client, tmp_path)
    assert nothing_left(tmp_path)


def test_an_object_of_another_size_than_listed_is_refused(client, tmp_path):
    real = client.open_ltx

    def open_ltx(info, offset=0, size=None):
        stream = real(info, offset, size)
        return type(stream)(stream.read() + b"more")

    client.open_ltx = open_ltx
    with pytest.raises(LTXCorruptError, match=r"longer than the \d+ listed bytes"):
        back(client, tmp_path)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("split", [False, True])
def test_a_file_that_lacks_new_pages_is_refused(tmp_path, monkeypatch, ours, split):
    """Litestream's issue 1198: the database grows, the file does not hold all new pages."""
    if split:
        monkeypatch.setattr(apply, "SMALL", 0)
        monkeypatch.setattr(apply, "LARGE", 0)
    history = History(ours=ours)
    history.write({}, 5)
    history.write({2: history.page()}, 9)
    history.states[1].changed -= {7}
    client = MemoryReplicaClient()
    history.put_singles(client)
    with pytest.raises(LTXCorruptError, match="from 5 to 9 pages, of 4 new ones the file holds 3"):
        back(client, tmp_path, threads=2)
    assert nothing_left(tmp_path)
    assert back(client, tmp_path, txid=1) == history.image(1)


# --- the replica changes or fails meanwhile ---


@pytest.mark.parametrize("times", range(1, REPLANS + 1))
def test_a_vanished_file_is_planned_around(client, history, tmp_path, caplog, times):
    listed = []
    real = client.list_ltx

    def list_ltx(level, **more):
        if level == 0:
            listed.append(1)
        return real(level, **more)

    client.list_ltx = list_ltx
    left = [times]

    def faults(op, info):
        if op == "open" and info.max_txid == 4 and left[0]:
            left[0] -= 1
            raise LTXNotFoundError("no such ltx file", path=info.name)

    client.faults = faults
    with caplog.at_level(logging.INFO):
        assert back(client, tmp_path) == history.image(8)
    assert len(listed) == times + 1
    assert caplog.text.count("planning again") == times


def test_retention_during_a_restore_leads_to_the_merged_file(client, history, tmp_path):
    def faults(op, info):
        if op == "open" and info.level == 0 and info.max_txid == 3:
            client.faults = lambda op, info: None
            history.put(client, 1, 1, 6)
            client.delete_ltx([info for info in client.list_ltx(0) if info.max_txid <= 6])

    client.faults = faults
    assert back(client, tmp_path) == history.image(8)


def test_files_that_vanish_again_and_again_are_an_error(client, tmp_path):
    def faults(op, info):
        if op == "open" and info.max_txid == 4:
            raise LTXNotFoundError("no such ltx file", path=info.name)

    client.faults = faults
    with pytest.raises(LTXNotFoundError, match="no such ltx file"):
        back(client, tmp_path)
    assert nothing_left(tmp_path)


def test_a_gap_of_one_listing_is_not_believed(client, history, tmp_path):
    real, calls = client.list_ltx, []

    def list_ltx(level, **more):
        calls.append(level)
        hidden = 5 if len(calls) == 1 else 0
        return (info for info in real(level, **more) if info.max_txid != hidden)

    client.list_ltx = list_ltx
    assert back(client, tmp_path) == history.image(8)


def test_a_gap_of_two_listings_is_an_error_before_anything_is_written(client, tmp_path):
    client.delete_ltx([info for info in client.list_ltx(0) if info.max_txid == 5])
    with pytest.raises(LTXGapError, match="have up to 0000000000000004 but next file starts at"):
        back(client, tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_empty_replica_touches_nothing(tmp_path):
    (tmp_path / "db").write_bytes(b"old")
    with pytest.raises(TXNotAvailableError, match="no matching backup files available"):
        restore(MemoryReplicaClient(), tmp_path / "db", RestoreOptions(force=True))
    assert (tmp_path / "db").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["db"]


def test_a_failing_storage_is_an_error_and_leaves_nothing(client, tmp_path):
    class NoWait:
        def monotonic(self):
            return 0.0

        def wait(self, event, timeout):
            return event.is_set()

    def faults(op, info):
        if op == "open" and info.max_txid >= 5:
            raise ReplicaTemporaryError("memory://: connection refused")

    client.faults = faults
    with pytest.raises(ReplicaTemporaryError, match="connection refused"):
        back(client, tmp_path, clock=NoWait())
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_cancel_ends_a_restore(client, tmp_path, monkeypatch, small):
    monkeypatch.setattr(apply, "SMALL", small)
    cancel = threading.Event()

    def faults(op, info):
        if op == "open" and info.max_txid == 3:
            cancel.set()

    client.faults = faults
    with pytest.raises(ShutdownInterruptedError, match="interrupted"):
        back(client, tmp_path, cancel=cancel)
    assert nothing_left(tmp_path)


def test_progress_counts_to_the_end(client, tmp_path):
    seen = []
    restore(client, tmp_path / "db", RestoreOptions(progress=seen.append))
    total = sum(info.size for info in client.list_ltx(0))
    assert seen[0] == Progress(0, 8, 0, total)
    assert seen[-1] == Progress(8, 8, total, total)
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)


# --- the output ---


def test_existing_output_is_refused_before_the_replica_is_asked(tmp_path):
    (tmp_path / "db").write_bytes(b"old")

    def faults(op, info):
        raise ReplicaTemporaryError("asked")

    with pytest.raises(OutputExistsError):
        restore(MemoryReplicaClient(faults=faults), tmp_path / "db")


def test_force_touches_the_old_file_only_when_the_new_one_is_proven(client, history, tmp_path):
    history.put(client, 0, 8, 8, post=1)
    (tmp_path / "db").write_bytes(b"old")
    (tmp_path / "db-wal").write_bytes(b"old wal")
    with pytest.raises(LTXChecksumError):
        restore(client, tmp_path / "db", RestoreOptions(force=True))
    assert sorted(os.listdir(tmp_path)) == ["db", "db-wal"]
    restore(client, tmp_path / "db", RestoreOptions(force=True, txid=7))
    assert os.listdir(tmp_path) == ["db"]
    assert (tmp_path / "db").read_bytes() == history.image(7)


def test_ownership_of_a_new_file(client, tmp_path):
    ownership = Ownership(os.geteuid(), os.getegid(), 0o640)
    restore(client, tmp_path / "db", RestoreOptions(ownership=ownership))
    assert (tmp_path / "db").stat().st_mode & 0o7777 == 0o640


def test_a_database_in_use_is_not_replaced(client, tmp_path, start_app):
    app = start_app(tmp_path / "db")
    app.execute("CREATE TABLE t (x)")
    with pytest.raises(DatabaseBusyError, match="another process has the database open"):
        restore(client, tmp_path / "db", RestoreOptions(force=True))
    assert app.execute("SELECT count(*) FROM t") == [(0,)]
    app.exit()
    restore(client, tmp_path / "db", RestoreOptions(force=True))


def sqlite_history(path: Path, *, damage: int = 0) -> History:
    """Return a history of one state: a real database, with one page overwritten if asked."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=wal")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT UNIQUE)")
        db.executemany("INSERT INTO t (x) VALUES (?)", ((f"row {n}",) for n in range(2000)))
        db.commit()
    data = path.read_bytes()
    pages = {n // 4096 + 1: data[n : n + 4096] for n in range(0, len(data), 4096)}
    if damage:
        pages[damage] = bytes(4096)
    history = History(page_size=4096)
    history.write(pages, len(pages))
    return history


@pytest.mark.parametrize("mode", ["none", "quick", "full"])
def test_integrity_checks_pass_and_leave_no_sidecars(tmp_path, mode):
    history = sqlite_history(tmp_path / "source")
    client = MemoryReplicaClient()
    history.put_singles(client)
    assert back(client, tmp_path, integrity_check=mode) == (tmp_path / "source").read_bytes()


@pytest.mark.parametrize("mode", ["quick", "full"])
@pytest.mark.parametrize("damage", [1, 3])
def test_a_failed_integrity_check_keeps_the_file_aside(tmp_path, mode, damage):
    history = sqlite_history(tmp_path / "source", damage=damage)
    client = MemoryReplicaClient()
    history.put_singles(client)
    output = tmp_path / "out" / "db"
    with pytest.raises(DatabaseError, match=f"fails SQLite's {mode} integrity check") as caught:
        restore(client, output, RestoreOptions(integrity_check=mode))
    assert f"kept as {output}.bad" in caught.value.hint
    assert os.listdir(output.parent) == ["db.bad"]
    assert (output.parent / "db.bad").read_bytes() == history.image(1)


def test_an_unknown_integrity_check_is_refused(client, tmp_path):
    with pytest.raises(ConfigError, match="invalid -integrity-check value: deep"):
        restore(client, tmp_path / "db", RestoreOptions(integrity_check="deep"))


def test_an_old_wal_is_never_applied_to_the_new_file(tmp_path, start_app):
    app = start_app(tmp_path / "db", autocheckpoint=0)
    app.execute("CREATE TABLE old (x)")
    app.kill()
    assert (tmp_path / "db-wal").stat().st_size
    history = sqlite_history(tmp_path / "source")
    client = MemoryReplicaClient()
    history.put_singles(client)
    restore(client, tmp_path / "db", RestoreOptions(force=True))
    reader = start_app(tmp_path / "db")
    assert reader.execute("SELECT name FROM sqlite_schema WHERE type='table'") == [("t",)]
    assert reader.execute("SELECT count(*) FROM t") == [(2000,)]


# --- the file system fails ---

OPS = ["restore.mkdir", "restore.open", "restore.write", "restore.truncate", "restore.chmod"]
OPS += ["restore.fsync", "restore.rename", "restore.fsync_dir"]


@pytest.mark.parametrize("action", ["enospc", "eio"])
@pytest.mark.parametrize("op", OPS)
def test_each_failing_step_is_a_clear_error(client, tmp_path, op, action):
    output = tmp_path / "out" / "db"
    nth = 2 if op == "restore.fsync_dir" else 1
    point = Failpoint(op, nth, action)
    osfs.arm([point])
    with pytest.raises(PyrepError) as caught:
        restore(client, output)
    osfs.disarm()
    assert point.calls >= nth
    assert str(output) in str(caught.value)
    assert "room" in caught.value.hint or "disk" in caught.value.hint
    if op == "restore.fsync_dir":
        assert "is in place, but making it durable failed" in str(caught.value)
        assert os.listdir(output.parent) == ["db"]
    else:
        assert nothing_left(tmp_path)


@pytest.mark.parametrize("op", ["restore.write", "restore.truncate"])
def test_a_disk_that_fills_up_in_any_write_leaves_the_old_file(client, history, tmp_path, op):
    (tmp_path / "db").write_bytes(b"old")
    calls = 1
    while True:
        point = Failpoint(op, calls, "enospc")
        osfs.arm([point])
        try:
            restore(client, tmp_path / "db", RestoreOptions(force=True))
        except PyrepError:
            assert os.listdir(tmp_path) == ["db"]
            assert (tmp_path / "db").read_bytes() == b"old"
        else:
            break
        calls += 1
    assert calls > history.newest
    assert (tmp_path / "db").read_bytes() == history.image(8)


def test_reading_the_file_back_may_fail_too(client, tmp_path, monkeypatch):
    def crc64_pages_fd(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_checksum, "crc64_pages_fd", crc64_pages_fd)
    with pytest.raises(PyrepError, match="reading the restored database back failed: Input"):
        back(client, tmp_path)
    assert nothing_left(tmp_path)


def test_a_wrong_file_put_by_hand_is_found(client, history, tmp_path):
    put(client, 0, 8, 8, History(seed=99).run(8).file(8, 8))
    with pytest.raises(LTXChecksumError, match="another lineage"):
        back(client, tmp_path)
