"""The catalog keeps what it is told, together, and is never more than a cache."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fixtures.effort import wait_until
from fixtures.fakeclock import FakeClock
from pyrep import osfs
from pyrep.catalog import SCHEMA_VERSION, Access, Answer, Catalog, Request, TenantRow
from pyrep.clock import from_ms
from pyrep.errors import PyrepError
from pyrep.ids import MAX_TXID, TXID
from pyrep.ltxfile import FileInfo

TOP_BIT = 0x8000_0000_0000_0001
ROW = TenantRow(
    path="/data/a.db",
    replica="file:///backup/a.db",
    node_id=TOP_BIT,
    state='{"format": 1}',
    status="parked",
    local_txid=TXID(MAX_TXID),
    durable_txid=TXID(TOP_BIT),
    pending_files=2,
    pending_bytes=1 << 40,
    lag_seconds=1.5,
    error="it broke",
    updated_at=datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    with closing(Catalog(path, clock=FakeClock())) as catalog:
        yield catalog


@pytest.fixture
def failpoints() -> Iterator[None]:
    yield
    osfs.disarm()


def _read(path: Path) -> list[TenantRow]:
    with closing(Catalog(path, access=Access.READ)) as catalog:
        return catalog.tenants()


# --- tenants ---


def test_a_tenant_comes_back_as_it_was(catalog: Catalog) -> None:
    catalog.save_tenant(ROW)
    catalog.flush()
    assert catalog.tenants() == [ROW]
    assert catalog.tenant(ROW.path) == ROW
    assert catalog.tenant("/data/other.db") is None


def test_numbers_above_the_top_bit_keep_their_order(catalog: Catalog) -> None:
    for low in (1, TOP_BIT, MAX_TXID, (1 << 63) - 1):
        catalog.add_file("/data/a.db", FileInfo(0, TXID(low), TXID(low)))
    catalog.flush()
    found = [stored.info.min_txid for stored in catalog.files("/data/a.db")]
    assert found == [1, (1 << 63) - 1, TOP_BIT, MAX_TXID]


def test_a_name_that_is_no_text_is_kept(catalog: Catalog) -> None:
    row = replace(ROW, path="/data/\udcff\udc80.db", error="/data/\udcff.db: broke")
    catalog.save_tenant(row)
    catalog.flush()
    found = catalog.tenant(row.path)
    assert found is not None
    assert found.path == row.path
    assert found.error == "/data/\\udcff.db: broke"
    assert catalog.node_ids() == {row.path: TOP_BIT}


def test_what_is_queued_is_not_seen_before_the_flush(catalog: Catalog, path: Path) -> None:
    catalog.save_tenant(ROW)
    assert catalog.tenants() == []
    assert _read(path) == []
    catalog.flush()
    assert _read(path) == [ROW]


def test_the_last_of_several_rows_counts(catalog: Catalog) -> None:
    for number in range(5):
        catalog.save_tenant(replace(ROW, pending_files=number))
    catalog.flush()
    assert catalog.tenants() == [replace(ROW, pending_files=4)]


@pytest.mark.parametrize("between", [True, False], ids=["flushed", "queued"])
def test_a_row_without_state_leaves_the_state(catalog: Catalog, between: bool) -> None:
    catalog.save_tenant(ROW)
    if between:
        catalog.flush()
    catalog.save_tenant(replace(ROW, state="", status="attached"))
    catalog.flush()
    assert catalog.tenants() == [replace(ROW, status="attached")]


def test_a_row_without_time_gets_the_clocks(catalog: Catalog) -> None:
    catalog.save_tenant(replace(ROW, updated_at=None))
    catalog.flush()
    assert catalog.tenants()[0].updated_at == FakeClock().now()


def test_absent_tenants_keep_their_lineage(catalog: Catalog) -> None:
    catalog.save_tenant(ROW)
    catalog.flush()
    catalog.mark_absent()
    found = catalog.tenants()[0]
    assert (found.status, found.node_id, found.pending_files) == ("absent", TOP_BIT, 0)
    assert catalog.node_ids() == {ROW.path: TOP_BIT}


def test_a_lineage_of_zero_is_none(catalog: Catalog) -> None:
    catalog.save_tenant(replace(ROW, node_id=0))
    catalog.flush()
    assert catalog.node_ids() == {}


def test_a_listing_replaces_what_is_known_and_keeps_its_times(catalog: Catalog) -> None:
    known, gone = FileInfo(0, TXID(1), TXID(1), 10, 100), FileInfo(0, TXID(2), TXID(2), 10, 200)
    other = FileInfo(0, TXID(9), TXID(9), 10, 900)
    for info in (known, gone):
        catalog.add_file("/a.db", info)
    catalog.add_file("/b.db", other)
    catalog.flush()
    (before, _) = catalog.files("/a.db")
    new = FileInfo(9, TXID(1), TXID(2), 30, 200)
    catalog.replace_files("/a.db", [replace(known, timestamp_ms=777), new])
    catalog.flush()
    found = catalog.files("/a.db")
    assert [stored.info for stored in found] == [known, new]
    assert found[0].acked_at == before.acked_at
    assert found[1].acked_at == from_ms(200)
    assert [stored.info for stored in catalog.files("/b.db")] == [other]
    catalog.replace_files("/a.db", ())
    catalog.flush()
    assert catalog.files("/a.db") == []


def test_files_are_forgotten_at_once(catalog: Catalog) -> None:
    infos = [FileInfo(1, TXID(n), TXID(n + 1), 10, 100) for n in (1, 3, 5)]
    for info in infos:
        catalog.add_file("/a.db", info)
    catalog.remove_files("/a.db", infos[:2])
    assert [stored.info for stored in catalog.files("/a.db")] == infos[2:]


def test_levels_are_summed_up_by_tenant(catalog: Catalog) -> None:
    for name, level, low, high in (
        ("/a.db", 0, 1, 1),
        ("/a.db", 0, 2, 2),
        ("/a.db", 1, 1, 2),
        ("/b.db", 9, 1, 1 << 63),
    ):
        catalog.add_file(name, FileInfo(level, TXID(low), TXID(high), 10, 100))
    catalog.flush()
    found = dict(catalog.levels())
    tops = {name: {n: (r.top, r.count) for n, r in rows.items()} for name, rows in found.items()}
    assert tops == {"/a.db": {0: (2, 2), 1: (2, 1)}, "/b.db": {9: (1 << 63, 1)}}
    row = found["/a.db"][0]
    assert 0 < row.first_acked_ms <= row.last_acked_ms


def test_files_are_kept_once_with_their_acknowledgement(catalog: Catalog) -> None:
    info = FileInfo(0, TXID(7), TXID(7), 1234, 1_700_000_000_123)
    catalog.add_file("/data/a.db", info)
    catalog.add_file("/data/a.db", info)
    catalog.add_file("/data/b.db", info)
    catalog.flush()
    (stored,) = catalog.files("/data/a.db")
    assert stored.info == info
    assert stored.acked_at == FakeClock().now()


# --- group commit ---


def test_the_thread_writes_by_itself_and_at_the_end(path: Path) -> None:
    catalog = Catalog(path, flush_seconds=0.01)
    catalog.start()
    catalog.save_tenant(ROW)
    wait_until(lambda: _read(path) == [ROW], "the thread has flushed")
    catalog.save_tenant(replace(ROW, pending_files=9))
    catalog.close()
    catalog.close()
    assert _read(path)[0].pending_files == 9


def test_rows_of_many_threads_arrive(path: Path) -> None:
    catalog = Catalog(path, flush_seconds=0.001)
    catalog.start()

    def work(name: str) -> None:
        for number in range(50):
            catalog.add_file(name, FileInfo(0, TXID(number + 1), TXID(number + 1)))
            catalog.save_tenant(replace(ROW, path=name, pending_files=number))

    threads = [threading.Thread(target=work, args=(f"/data/{n}.db",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    catalog.close()
    with closing(Catalog(path, access=Access.READ)) as after:
        assert [row.pending_files for row in after.tenants()] == [49] * 4
        assert [len(after.files(f"/data/{n}.db")) for n in range(4)] == [50] * 4


def test_what_cannot_be_written_stays_queued_in_order(catalog: Catalog, path: Path) -> None:
    # Another connection of the same library: two libraries in one process see no locks.
    with closing(Catalog(path, access=Access.JOIN)) as other:
        other._db.execute("begin immediate")
        catalog._db.set_busy_timeout(0)
        catalog.save_tenant(ROW)
        catalog.add_file(ROW.path, FileInfo(0, TXID(1), TXID(1)))
        with pytest.raises(PyrepError, match=r"catalog cannot be used.*locked"):
            catalog.flush()
        catalog.save_tenant(replace(ROW, state="", pending_files=3))
        other._db.execute("rollback")
    catalog.flush()
    assert catalog.tenants() == [replace(ROW, pending_files=3)]
    assert len(catalog.files(ROW.path)) == 1


# --- opening ---


def test_a_reader_needs_no_daemon_and_writes_nothing(path: Path) -> None:
    with closing(Catalog(path)) as catalog:
        catalog.save_tenant(ROW)
    before = path.read_bytes()
    assert _read(path) == [ROW]
    assert path.read_bytes() == before


def test_a_reader_works_beside_a_daemon(catalog: Catalog, path: Path) -> None:
    catalog.save_tenant(ROW)
    catalog.flush()
    with closing(Catalog(path, access=Access.READ)) as reader:
        assert reader.tenants() == [ROW]
        catalog.save_tenant(replace(ROW, pending_files=5))
        catalog.flush()
        assert reader.tenants()[0].pending_files == 5


@pytest.mark.parametrize("access", [Access.READ, Access.JOIN])
def test_a_missing_catalog_is_not_made_by_others(path: Path, access: Access) -> None:
    with pytest.raises(PyrepError, match="there is no catalog") as caught:
        Catalog(path, access=access)
    assert "daemon" in caught.value.hint
    assert not path.exists()


def _damage_text(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def _damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def _older(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma user_version = 0")


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma application_id = 7")


def test_a_file_of_no_tenant_is_an_error_of_ours(path: Path) -> None:
    with closing(Catalog(path)) as catalog:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("drop table files")
            columns = "tenant, level, min_txid, max_txid, size, timestamp_ms, acked_ms"
            db.execute(f"create table files ({columns})")
            db.execute("insert into files values (null, 0, '1', '1', 1, 1, 1)")
        with pytest.raises(PyrepError, match="a row that cannot be read"):
            list(catalog.levels())


@pytest.mark.parametrize("spoil", [_damage_text, _damage_pages, _older, _foreign])
def test_a_catalog_that_cannot_be_used_is_begun_anew(
    path: Path, spoil: object, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Catalog(path)) as catalog:
        catalog.save_tenant(ROW)
    assert callable(spoil)
    spoil(path)
    spoilt = path.read_bytes()
    with caplog.at_level(logging.WARNING), closing(Catalog(path)) as catalog:
        assert catalog.tenants() == []
        catalog.save_tenant(ROW)
        catalog.flush()
        assert catalog.tenants() == [ROW]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert Path(f"{path}.aside").read_bytes() == spoilt


def test_an_empty_file_is_taken_without_a_word(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.touch()
    with closing(Catalog(path)) as catalog:
        assert catalog.tenants() == []
    assert not caplog.records


@pytest.mark.parametrize("access", list(Access))
def test_a_catalog_of_the_future_is_refused_and_left_alone(path: Path, access: Access) -> None:
    with closing(Catalog(path)) as catalog:
        catalog.save_tenant(ROW)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"pragma user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(PyrepError, match="has version 2, this pyrep knows 1"):
        Catalog(path, access=access)
    assert not Path(f"{path}.aside").exists()


@pytest.mark.parametrize("access", [Access.READ, Access.JOIN])
def test_others_do_not_rebuild_a_damaged_catalog(path: Path, access: Access) -> None:
    path.write_bytes(b"x" * 5000)
    with pytest.raises(PyrepError, match="catalog cannot be used"):
        Catalog(path, access=access)
    assert path.read_bytes() == b"x" * 5000


@pytest.mark.usefixtures("failpoints")
def test_a_failure_to_move_aside_is_an_error(path: Path) -> None:
    path.write_bytes(b"x" * 5000)
    osfs.arm(osfs.parse_failpoints("catalog.rename:1:eio"))
    with pytest.raises(PyrepError, match="damaged catalog cannot be moved aside"):
        Catalog(path)


# --- boots ---


def _run(path: Path, boot: str, *, clean: bool) -> frozenset[str]:
    """Play one run of the daemon; return the boots that it trusts."""
    with ExitStack() as stack:
        catalog = stack.enter_context(closing(Catalog(path)))
        catalog.mark_running(boot)
        trusted = catalog.trusted_boots()
        if clean:
            catalog.mark_clean_stop()
    return trusted


def test_the_first_boot_is_trusted(path: Path) -> None:
    assert _run(path, "A", clean=True) == {"A"}


def test_clean_stops_make_a_chain(path: Path) -> None:
    _run(path, "A", clean=True)
    _run(path, "B", clean=True)
    assert _run(path, "C", clean=False) == {"A", "B", "C"}


def test_an_unclean_stop_breaks_the_chain_in_another_boot(path: Path) -> None:
    _run(path, "A", clean=True)
    _run(path, "B", clean=False)
    assert _run(path, "C", clean=True) == {"C"}
    assert _run(path, "D", clean=True) == {"C", "D"}


def test_an_unclean_stop_in_the_same_boot_does_not(path: Path) -> None:
    _run(path, "A", clean=True)
    _run(path, "B", clean=False)
    assert _run(path, "B", clean=True) == {"A", "B"}
    assert _run(path, "C", clean=True) == {"A", "B", "C"}


def test_a_clean_stop_does_not_heal_a_run_that_began_after_it(path: Path) -> None:
    _run(path, "A", clean=True)
    _run(path, "A", clean=False)
    assert _run(path, "B", clean=True) == {"B"}


def test_the_chain_does_not_grow_for_ever(path: Path) -> None:
    with closing(Catalog(path)) as catalog:
        for number in range(300):
            catalog.mark_running(f"boot {number}")
            catalog.mark_clean_stop()
        assert len(catalog.trusted_boots()) == 256
        assert "boot 299" in catalog.trusted_boots()


# --- requests ---


def test_a_request_travels_from_one_process_to_the_other(catalog: Catalog, path: Path) -> None:
    with closing(Catalog(path, access=Access.JOIN)) as client:
        number = client.submit_request("park", "/data/\udcff.db")
        assert client.answer(number) is None
        assert catalog.open_requests() == [Request(number, "park", "/data/\udcff.db")]
        catalog.answer_request(number, True, "parked")
        catalog.flush()
        assert client.answer(number) == Answer(True, "parked")
    assert catalog.open_requests() == []


def test_the_first_answer_counts(catalog: Catalog) -> None:
    number = catalog.submit_request("park", "/data/a.db")
    catalog.answer_request(number, False, "busy")
    catalog.answer_request(number, True, "parked")
    catalog.flush()
    assert catalog.answer(number) == Answer(False, "busy")


def test_forgotten_requests_are_answered_with_an_error(catalog: Catalog) -> None:
    old = catalog.submit_request("park", "/data/a.db")
    catalog.answer_request(old, True, "parked")
    new = catalog.submit_request("park", "/data/b.db")
    catalog.forget_requests("the daemon ended")
    assert catalog.answer(new) == Answer(False, "the daemon ended")
    assert catalog.answer(old) is None


def test_a_last_flush_that_fails_is_logged_and_the_file_closed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = Catalog(path)
    with closing(Catalog(path, access=Access.JOIN)) as other:
        other._db.execute("begin immediate")
        catalog._db.set_busy_timeout(0)
        catalog.save_tenant(ROW)
        catalog.close()
    assert [record.getMessage() for record in caplog.records] == ["cannot write the catalog"]
    assert _read(path) == []


def test_the_thread_says_once_that_it_cannot_write_and_tries_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = Catalog(path, flush_seconds=0.01)
    catalog._db.set_busy_timeout(0)
    with closing(Catalog(path, access=Access.JOIN)) as other:
        other._db.execute("begin immediate")
        catalog.start()
        catalog.save_tenant(ROW)
        wait_until(lambda: bool(caplog.records), "the failure is said")
        other._db.execute("rollback")
    catalog.close()
    assert len(caplog.records) == 1
    assert _read(path) == [ROW]
