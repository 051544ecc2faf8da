"""The page-checksum table: what it holds, the overlay over it, and what a crash leaves."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import pytest

from pyrep import _checksum
from pyrep.ids import TXID
from pyrep.tenant.pages import TABLE_NAME, LocalPages, PageTable, StagedPages

_PAGE_SIZE = 4096


class Model:
    """Hold the checksums as a plain dictionary, and make staged files of its changes."""

    def __init__(self) -> None:
        self.rng = random.Random(5)
        self.crcs: dict[int, int] = {}
        self.txid = 0

    def total(self) -> int:
        total = 0
        for pgno, crc in self.crcs.items():
            total ^= _checksum.page_term(crc, pgno)
        return total

    def change(self, pgnos: list[int], commit: int, *, full: bool = False) -> StagedPages:
        before, self.txid = self.total(), self.txid + 1
        chosen = list(range(1, commit + 1)) if full else sorted(pgnos)
        new = {pgno: self.rng.getrandbits(64) for pgno in chosen}
        self.crcs = {n: crc for n, crc in (self.crcs | new).items() if n <= commit}
        numbers = array("I") if full else array("I", chosen)
        crcs = array("Q", [new[pgno] for pgno in chosen])
        return StagedPages(
            TXID(self.txid), _PAGE_SIZE, commit, numbers, crcs, full, before, self.total(), 0, 0
        )


def expect(pages: LocalPages, base: Path, model: Model) -> None:
    count = max(model.crcs)
    wanted = [model.crcs[pgno] for pgno in range(1, count + 1)]
    assert list(pages.window(base, 1, count)) == wanted
    assert list(pages.lookup(base, range(1, count + 1))) == wanted
    assert pages.terms(base, range(1, count + 1)) == model.total()
    assert pages.range_terms(base, 1, count, _PAGE_SIZE) == model.total()
    assert pages.db_checksum == model.total()
    assert pages.commit == count


_STEPS = [([1, 3], 10), ([2, 3, 11, 12], 12), ([1], 7), ([1, 8, 9], 9), ([4, 5, 6], 9)]


@pytest.mark.parametrize("lag", [0, 1, 3, 10])
def test_table_and_overlay_are_the_local_view(tmp_path: Path, lag: int) -> None:
    """``lag`` files wait for their acknowledgement at any time."""
    model, pages = Model(), LocalPages(None)
    pages.staged.append(model.change([], 10, full=True))
    for pgnos, commit in _STEPS:
        while len(pages.staged) > lag:
            pages.fold(tmp_path, None)
        expect(pages, tmp_path, model)
        pages.staged.append(model.change(pgnos, commit))
        expect(pages, tmp_path, model)
    while pages.staged:
        pages.fold(tmp_path, None)
        expect(pages, tmp_path, model)
    loaded = PageTable.load(tmp_path)
    assert loaded == pages.table
    assert loaded is not None
    assert (loaded.txid, loaded.page_count, loaded.db_checksum) == (6, 9, model.total())


def test_a_staged_file_is_not_in_the_table_before_it_is_folded(tmp_path: Path) -> None:
    model, pages = Model(), LocalPages(None)
    pages.staged.append(model.change([], 10, full=True))
    pages.fold(tmp_path, None)
    content = (tmp_path / TABLE_NAME).read_bytes()
    pages.staged.append(model.change([2, 5], 10))
    expect(pages, tmp_path, model)
    assert (tmp_path / TABLE_NAME).read_bytes() == content
    assert PageTable.load(tmp_path) == pages.table


@pytest.mark.parametrize("at", [0, 5, 9, 13, 17, 25, 33, 64, 71, 143])
def test_any_changed_byte_makes_it_unusable(tmp_path: Path, at: int) -> None:
    model, pages = Model(), LocalPages(None)
    pages.staged.append(model.change([], 10, full=True))
    pages.fold(tmp_path, None)
    data = bytearray((tmp_path / TABLE_NAME).read_bytes())
    data[at] ^= 1
    (tmp_path / TABLE_NAME).write_bytes(data)
    assert PageTable.load(tmp_path) is None


@pytest.mark.parametrize("size", [0, 1, 63, 64, 100, 143])
def test_any_cut_makes_it_unusable(tmp_path: Path, size: int) -> None:
    model, pages = Model(), LocalPages(None)
    pages.staged.append(model.change([], 10, full=True))
    pages.fold(tmp_path, None)
    data = (tmp_path / TABLE_NAME).read_bytes()
    assert len(data) == 144
    (tmp_path / TABLE_NAME).write_bytes(data[:size])
    assert PageTable.load(tmp_path) is None


def test_a_crash_between_entries_and_header_is_seen_and_redone(tmp_path: Path) -> None:
    """The header still names the old TXID while some entries are new."""
    model, pages = Model(), LocalPages(None)
    pages.staged.append(model.change([], 10, full=True))
    pages.fold(tmp_path, None)
    old_header = (tmp_path / TABLE_NAME).read_bytes()[:64]
    pages.staged.append(model.change([2, 5], 10))
    pages.fold(tmp_path, None)
    torn = old_header + (tmp_path / TABLE_NAME).read_bytes()[64:]
    (tmp_path / TABLE_NAME).write_bytes(torn)
    assert PageTable.load(tmp_path) is None


def test_without_a_table_only_a_full_file_makes_pages_known(tmp_path: Path) -> None:
    model, pages = Model(), LocalPages(None)
    assert not pages.usable
    model.change([], 10, full=True)
    pages.staged.append(model.change([2], 10))
    assert not pages.usable
    pages.forget()
    pages.staged.append(model.change([], 4, full=True))
    assert pages.usable
    expect(pages, tmp_path, model)


def test_the_lock_page_has_no_checksum(tmp_path: Path) -> None:
    """At 65536-byte pages it is page 16385."""
    lock, count = 16385, 16390
    crcs = array("Q", [pgno * 3 for pgno in range(1, count + 1)])
    crcs[lock - 1] = 0
    total = _checksum.database_checksum(crcs, 1, 65536)
    pages = LocalPages(None)
    pages.staged.append(StagedPages(TXID(1), 65536, count, array("I"), crcs, True, 0, total, 0, 0))
    pages.fold(tmp_path, None)
    assert PageTable.load(tmp_path) == pages.table
    assert pages.window(tmp_path, lock, 1)[0] == 0
    assert pages.range_terms(tmp_path, 1, count, 65536) == total


def test_growth_over_the_lock_page_leaves_its_entry_zero(tmp_path: Path) -> None:
    lock = 16385
    first = array("Q", [pgno * 3 for pgno in range(1, lock)])
    total = _checksum.database_checksum(first, 1, 65536)
    pages = LocalPages(None)
    pages.staged.append(
        StagedPages(TXID(1), 65536, lock - 1, array("I"), first, True, 0, total, 0, 0)
    )
    pages.fold(tmp_path, None)
    after = total ^ _checksum.page_term(9, lock + 1)
    grown = StagedPages(
        TXID(2), 65536, lock + 1, array("I", [lock + 1]), array("Q", [9]), False, total, after, 0, 0
    )
    pages.staged.append(grown)
    pages.fold(tmp_path, None)
    assert list(pages.window(tmp_path, lock, 2)) == [0, 9]
    assert PageTable.load(tmp_path) == pages.table
