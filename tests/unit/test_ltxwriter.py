"""Writing LTX files on several threads: the same bytes, the same errors, bounded threads."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fixtures.ltxspec import PAGE_SIZES, header_of, page
from fixtures.wal import opened, sqlite_wal
from oracle import ltx as oracle
from oracle.ltx import LTX
from pyrep import _wal, ltxwriter
from pyrep._ltx import Encoder, Header
from pyrep.errors import LTXError, WALError

Threads = Callable[[int], None]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    """Return what sets how many threads compress parts of about ten pages; 0: none does."""

    def use(count: int) -> None:
        monkeypatch.setattr(ltxwriter, "PARALLEL_BYTES", 0 if count else 1 << 60)
        monkeypatch.setattr(ltxwriter, "PART_BYTES", 1 << 16)
        monkeypatch.setattr(ltxwriter, "_cores", max(2, count))
        monkeypatch.setattr(ltxwriter, "_helpers", threading.BoundedSemaphore(max(1, count)))

    return use


@contextmanager
def _new(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _lists(wal_fd: int, raw: bytes) -> tuple[_wal.WALScan, array[int], array[int], Header]:
    """Return the pages of a database with a WAL, where each lies, and the header of a snapshot."""
    wal = _wal.parse_header(raw)
    assert wal is not None
    scan = _wal.scan(wal_fd, wal, max_frame=1 << 30)
    places = dict(zip(scan.pgnos, scan.offsets, strict=True))
    pgnos = array("I", range(1, scan.commit + 1))
    header = Header(
        page_size=wal.page_size,
        commit=scan.commit,
        min_txid=1,
        max_txid=1,
        timestamp_ms=1,
        wal_offset=32,
        wal_size=scan.end_offset - 32,
        wal_salt1=wal.salt1,
        wal_salt2=wal.salt2,
    )
    return scan, pgnos, array("q", (places.get(pgno, -1) for pgno in pgnos)), header


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_the_bytes_do_not_depend_on_the_threads(
    tmp_path: Path, threads: Threads, page_size: int
) -> None:
    case = sqlite_wal(tmp_path, page_size)
    files, sums = [], []
    for count in (0, 1, 2, 5):
        threads(count)
        path = tmp_path / f"{count}.ltx"
        with opened(case.database) as db, opened(case.wal) as wal, _new(path) as fd:
            _, pgnos, offsets, header = _lists(wal, case.wal.read_bytes()[:32])
            writer = ltxwriter.LTXWriter(fd, header)
            crcs = array("Q")
            # In calls of several sizes: what was added before must not matter.
            for at, end in ((0, 1), (1, 20), (20, len(pgnos))):
                crcs += writer.add_pages(db, wal, pgnos[at:end], offsets[at:end])
            assert writer.pages == len(pgnos)
            assert writer.finish(1, 2) == path.stat().st_size
        files.append(path.read_bytes())
        sums.append(crcs)
    assert len(set(files)) == 1
    assert all(other == sums[0] for other in sums)


def test_gaps_between_parts(tmp_path: Path, threads: Threads) -> None:
    ltx = LTX(4096, 1000, {}, 7, 7)
    pgnos = array("I", (n for n in range(1, 1001) if n % 3))
    data = b"".join(page(n, 4096) for n in range(1, 11)) * 100
    (tmp_path / "db").write_bytes(data)
    files = []
    for count in (0, 3):
        threads(count)
        with opened(tmp_path / "db") as db, _new(tmp_path / "ltx") as fd:
            writer = ltxwriter.LTXWriter(fd, header_of(ltx))
            writer.add_pages(db, -1, pgnos, array("q", [-1]) * len(pgnos))
            writer.finish(0, 0)
        files.append((tmp_path / "ltx").read_bytes())
    assert files[0] == files[1]


def test_the_lock_page_between_parts(threads: Threads, tmp_path: Path) -> None:
    threads(2)
    lock = (1 << 30) // 65536 + 1
    pgnos = array("I", (n for n in range(1, lock + 30) if n != lock))
    (tmp_path / "db").write_bytes(b"")
    with opened(tmp_path / "db") as db, _new(tmp_path / "ltx") as fd:
        writer = ltxwriter.LTXWriter(fd, header_of(LTX(65536, lock + 29, {}, 1, 1)))
        writer.add_pages(db, -1, pgnos, array("q", [-1]) * len(pgnos))
        writer.finish(0, 0)
        assert writer.pages == lock + 28


@pytest.mark.parametrize("count", [0, 2])
def test_errors_are_the_same(tmp_path: Path, threads: Threads, count: int) -> None:
    threads(count)
    (tmp_path / "db").write_bytes(bytes(100 * 4096))
    cases = [
        ([*range(1, 60), 59, 60], "out-of-order page numbers: 59,59"),
        ([*range(1, 60), 101], "page number 101 out of bounds"),
        ([0, *range(1, 60)], "page number required"),
    ]
    for numbers, message in cases:
        with opened(tmp_path / "db") as db, _new(tmp_path / "ltx") as fd:
            writer = ltxwriter.LTXWriter(fd, header_of(LTX(4096, 100, {}, 7, 7)))
            with pytest.raises(LTXError, match=message):
                writer.add_pages(db, -1, array("I", numbers), array("q", [-1]) * len(numbers))


def test_an_overwritten_wal_ends_all_threads(tmp_path: Path, threads: Threads) -> None:
    threads(3)
    case = sqlite_wal(tmp_path, 4096)
    before = threading.active_count()
    with opened(case.database) as db, opened(case.wal) as wal, _new(tmp_path / "ltx") as fd:
        scan, pgnos, offsets, header = _lists(wal, case.wal.read_bytes()[:32])
        place = max(scan.offsets)
        with open(case.wal, "r+b") as file:
            file.seek(place)
            file.write((4_000_000).to_bytes(4, "big"))
        writer = ltxwriter.LTXWriter(fd, header)
        with pytest.raises(WALError, match="a frame of page 4000000"):
            writer.add_pages(db, wal, pgnos, offsets)
    assert threading.active_count() == before
    assert all(ltxwriter._helpers.acquire(blocking=False) for _ in range(3))


def _no_pool(*_: object) -> None:
    raise AssertionError("threads were started")


def test_few_pages_start_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ltxwriter, "ThreadPoolExecutor", _no_pool)
    (tmp_path / "db").write_bytes(b"")
    count = ltxwriter.PARALLEL_BYTES // 4096 - 1
    with opened(tmp_path / "db") as db, _new(tmp_path / "ltx") as fd:
        writer = ltxwriter.LTXWriter(fd, header_of(LTX(4096, count, {}, 1, 1)))
        writer.add_pages(db, -1, array("I", range(1, count + 1)), array("q", [-1]) * count)
        assert writer.pages == count


def test_threads_are_bounded_in_the_process(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(2)
    assert ltxwriter._helpers.acquire(blocking=False)
    with ltxwriter._helping(2) as got:
        assert got == 1
        with ltxwriter._helping(2) as more:
            assert more == 0
            monkeypatch.setattr(ltxwriter, "ThreadPoolExecutor", _no_pool)
            (tmp_path / "db").write_bytes(bytes(100 * 4096))
            with opened(tmp_path / "db") as db, _new(tmp_path / "ltx") as fd:
                writer = ltxwriter.LTXWriter(fd, header_of(LTX(4096, 100, {}, 1, 1)))
                writer.add_pages(db, -1, array("I", range(1, 101)), array("q", [-1]) * 100)
    with ltxwriter._helping(2) as got:
        assert got == 1


def test_one_core_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ltxwriter, "_cores", 1)
    with ltxwriter._helping(1) as got:
        assert got == 0


def test_pages_one_by_one(tmp_path: Path) -> None:
    pages = {n: page(n, 512) for n in range(1, 60)}
    with _new(tmp_path / "ltx") as fd:
        writer = ltxwriter.LTXWriter(fd, header_of(LTX(512, 59, {}, 1, 1)))
        for pgno, data in pages.items():
            writer.add_page(pgno, data)
        assert writer.finish(0, 0) == (tmp_path / "ltx").stat().st_size
    assert oracle.decode((tmp_path / "ltx").read_bytes()).pages == pages


def test_parts_must_meet() -> None:
    header = header_of(LTX(512, 20, {}, 7, 7))
    whole, room = Encoder(header), bytearray(2000)
    part = whole.part(3)
    part.add_page(4, page(4, 512), room)
    with pytest.raises(LTXError, match="one ends with page 0, the next begins after page 3"):
        whole.join(part)
    whole.add_page(3, page(3, 512), room)
    whole.join(part)
    assert whole.last_pgno == 4
    with pytest.raises(LTXError, match="the encoder is closed"):
        whole.join(part)
