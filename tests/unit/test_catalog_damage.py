"""The catalog under damage and with many tenants: it is begun anew, and does not grow for ever."""

from __future__ import annotations

import logging
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.effort import times, wait_until
from fixtures.fakeclock import FakeClock
from pyrep.catalog import Access, Catalog, ProofRow, TenantRow
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo

_DAY = 86400.0
_MANY = 10_000


def _row(number: int, status: str = "parked") -> TenantRow:
    return TenantRow(
        path=f"/data/{number:05}.db",
        replica=f"file:///backup/{number:05}.db",
        node_id=number + 1,
        state='{"format": 1}',
        status=status,
        local_txid=TXID(number),
    )


def _fill(catalog: Catalog, count: int, status: str = "parked") -> None:
    for number in range(count):
        row = _row(number, status)
        catalog.save_tenant(row)
        catalog.add_file(row.path, FileInfo(0, TXID(1), TXID(1), 200, 1000))
        catalog.save_proof(ProofRow(row.path, TXID(1), None, catalog._clock.now()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def catalog(path: Path, clock: FakeClock) -> Iterator[Catalog]:
    with closing(Catalog(path, clock=clock)) as catalog:
        yield catalog


def _count(catalog: Catalog, table: str) -> int:
    return int(next(iter(catalog._db.execute(f"select count(*) from {table}")))[0])


# --- many tenants ---------------------------------------------------------------------------------


def test_ten_thousand_tenants_are_written_in_one_transaction(catalog: Catalog) -> None:
    commits: list[int] = []
    catalog._db.set_commit_hook(lambda: commits.append(1) is not None)
    _fill(catalog, _MANY)
    catalog.flush()
    catalog._db.set_commit_hook(None)
    assert len(commits) == 1
    assert len(catalog.tenants()) == len(list(catalog.levels())) == _MANY


def test_tenants_that_went_long_ago_are_forgotten_a_part_at_a_time(
    catalog: Catalog, clock: FakeClock
) -> None:
    kept = [replace(_row(20_000), status="parked"), replace(_row(20_001), status="absent")]
    catalog.save_tenant(kept[0])
    _fill(catalog, _MANY, "absent")
    catalog.flush()
    clock.advance(29 * _DAY)
    catalog.save_tenant(kept[1])
    catalog.flush()
    assert _count(catalog, "tenants") == _MANY + 2
    clock.advance(2 * _DAY)
    for left in range(_MANY - 1000, -1, -1000):
        catalog.save_tenant(replace(kept[0], pending_files=left))
        catalog.flush()
        assert [_count(catalog, name) for name in ("tenants", "files")] == [left + 2, left]
    assert _count(catalog, "proofs") == 0
    assert [row.path for row in catalog.tenants()] == [row.path for row in kept]


def test_tenants_that_come_and_go_for_ever_need_no_more_room(
    catalog: Catalog, clock: FakeClock
) -> None:
    sizes = []
    for generation in range(4):
        for number in range(900):
            row = _row(1000 * generation + number, "absent")
            catalog.save_tenant(row)
            catalog.add_file(row.path, FileInfo(0, TXID(1), TXID(1), 200, 1000))
        catalog.flush()
        sizes.append(catalog._db.pragma("page_count"))
        clock.advance(31 * _DAY)
        catalog.save_tenant(_row(99_999))
        catalog.flush()
        assert _count(catalog, "tenants") == 1
    assert max(sizes[1:]) <= sizes[0] + 8


def test_the_time_of_a_tombstone_stays_over_restarts(path: Path, clock: FakeClock) -> None:
    with closing(Catalog(path, clock=clock)) as catalog:
        catalog.save_tenant(_row(1))
        catalog.save_tenant(_row(2))
        catalog.mark_absent()
    for _ in range(4):  # the daemon is started every ten days, and only one of them is there
        clock.advance(10 * _DAY)
        with closing(Catalog(path, clock=clock)) as catalog:
            catalog.mark_absent()
            catalog.save_tenant(_row(1))
    with closing(Catalog(path, access=Access.READ)) as catalog:
        assert [row.path for row in catalog.tenants()] == [_row(1).path]


def test_a_tenant_that_was_idle_for_a_year_is_not_taken_for_gone(
    path: Path, clock: FakeClock
) -> None:
    with closing(Catalog(path, clock=clock)) as catalog:
        catalog.save_tenant(_row(1))
    clock.advance(365 * _DAY)
    with closing(Catalog(path, clock=clock)) as catalog:
        catalog.mark_absent()
        assert catalog.node_ids() == {_row(1).path: 2}


# --- damage ---------------------------------------------------------------------------------------


def test_flipped_bytes_anywhere_never_keep_the_daemon_from_starting(path: Path) -> None:
    with closing(Catalog(path)) as catalog:
        _fill(catalog, 60)
        catalog.mark_running("boot")
        catalog.submit_request("park", "/data/1.db")
    whole = path.read_bytes()
    spoilt = 0
    for seed in range(times(150)):
        dice = random.Random(seed)
        data = bytearray(whole)
        for _ in range(dice.choice((1, 1, 4, 64))):
            data[dice.randrange(100, len(data))] ^= dice.randrange(1, 256)
        path.write_bytes(data[: dice.choice((len(data), len(data), dice.randrange(len(data))))])
        with closing(Catalog(path)) as catalog:
            spoilt += not catalog.tenants()
            assert all(catalog.files(row.path) is not None for row in catalog.tenants())
            assert isinstance(catalog.node_ids() and catalog.proofs(), dict)
            assert all(levels for _, levels in catalog.levels())
            catalog.mark_running("boot")
            catalog.mark_absent()
            catalog.forget_requests("it was started again")
            catalog.save_tenant(_row(1))
            catalog.flush()
            assert catalog.tenant(_row(1).path) is not None
    assert spoilt > 20, "the damage was such that it was noticed"


@pytest.mark.parametrize(
    "change",
    [
        "update tenants set node_id = 'not hexadecimal!'",
        "update tenants set local_txid = 'x'",
        "update tenants set path = 'text'",
        "update tenants set updated_ms = 9223372036854775807",
        "update tenants set updated_ms = 'soon'",
        "update tenants set error = cast(x'ff' as text)",
        "update files set level = 10",
        "update files set min_txid = 'ABCDEF0123456789'",
        "update files set max_txid = '1'",
        "update files set size = -1",
        "update files set size = 'large'",
        "update files set acked_ms = -9223372036854775807 - 1",
        "update files set tenant = 7",
        "update proofs set txid = ''",
        "update proofs set verified_ms = 'never'",
        "update requests set argument = 5",
        "update boots set clean = 'perhaps'",
    ],
)
def test_rows_that_are_none_of_ours_lead_to_a_new_catalog(
    path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Catalog(path)) as catalog:
        _fill(catalog, 1)
        catalog.mark_running("boot")
        catalog.submit_request("park", "/data/1.db")
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(change).rowcount == 1
    with caplog.at_level(logging.WARNING), closing(Catalog(path)) as catalog:
        assert catalog.tenants() == catalog.open_requests() == []
    assert [r.getMessage() for r in caplog.records] == ["catalog moved aside, beginning a new one"]


def test_damage_that_appears_while_it_is_in_use_is_mended(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    catalog = Catalog(path, flush_seconds=0.01)
    with closing(catalog), caplog.at_level(logging.WARNING):
        _fill(catalog, 500)
        catalog.mark_running("boot")
        catalog.flush()

        def say_again() -> None:
            said.append("again")
            catalog.save_tenant(_row(7))

        catalog.on_renewed = say_again
        with closing(Catalog(path, access=Access.JOIN)) as other:  # so its cache holds no longer
            other.submit_request("park", "/data/1.db")
            list(other._db.execute("pragma wal_checkpoint(truncate)"))
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        catalog.start()
        catalog.save_tenant(_row(3))
        wait_until(lambda: bool(said), "a new catalog was begun")
        catalog.add_file(_row(3).path, FileInfo(0, TXID(1), TXID(1), 5, 6))
        catalog.flush()
        assert [row.path for row in catalog.tenants()] == [_row(3).path, _row(7).path]
        assert len(catalog.files(_row(3).path)) == 1
        assert catalog.trusted_boots() == {"boot"}, "this boot began in it, as it should"
    assert said == ["again"]
    assert [r.getMessage() for r in caplog.records] == ["catalog moved aside, beginning a new one"]
    assert Path(f"{path}.aside").stat().st_size == size
