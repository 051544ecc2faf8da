"""The Encoder: files that the slow decoder reads, batches from files, refused pages."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.ltxspec import PAGE_SIZES, encode, header_of, page, snapshot
from fixtures.wal import opened, sqlite_wal
from oracle import ltx as oracle
from oracle import wal as oracle_wal
from oracle.crc64 import crc64
from oracle.ltx import LTX
from pyrep import _checksum, _wal
from pyrep._ltx import Encoder, Header
from pyrep.errors import LTXError, WALError


@pytest.fixture(params=_checksum.available(), autouse=True, scope="module")
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run everything once with each CRC implementation."""
    before = _checksum.implementation()
    _checksum.select(request.param)
    yield
    _checksum.select(before)


def _lock(page_size: int) -> int:
    return 0x40000000 // page_size + 1


def _incremental(page_size: int = 512, commit: int = 20, *numbers: int) -> LTX:
    pages = {pgno: page(pgno, page_size) for pgno in numbers}
    return LTX(page_size, commit, pages, 5, 5)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_snapshot_is_read_by_the_oracle(page_size: int) -> None:
    ltx = snapshot(page_size, 4)
    assert oracle.decode(encode(ltx)) == ltx


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_pages_that_do_not_compress(page_size: int) -> None:
    ltx = LTX(page_size, 2, {2: os.urandom(page_size)})
    data = encode(ltx)
    assert len(data) > 100 + page_size
    assert oracle.decode(data) == ltx


def test_no_pages_at_all() -> None:
    ltx = LTX(512, 7)
    assert oracle.decode(encode(ltx)) == ltx


def test_frames_and_index_of_the_known_layout() -> None:
    """Two pages of equal bytes: frames of 36 bytes or less at 100 and behind."""
    ltx = LTX(1024, 2, {1: b"2" * 1024, 2: b"3" * 1024}, 1, 1)
    data = encode(ltx)
    (size,) = struct.unpack_from(">I", data, 106)
    assert struct.unpack_from(">IH", data, 100) == (1, 1)
    assert struct.unpack_from(">IH", data, 110 + size) == (2, 1)
    index = bytes([1]) + oracle.uvarint(100) + oracle.uvarint(10 + size)
    assert index in data[-40:]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_pages_around_the_lock_page(page_size: int) -> None:
    lock = _lock(page_size)
    ltx = _incremental(page_size, lock + 2, lock - 1, lock + 1, lock + 2)
    assert oracle.decode(encode(ltx)) == ltx
    with pytest.raises(LTXError, match=f"the lock page must not be stored: page {lock}"):
        encode(_incremental(page_size, lock + 2, lock - 1, lock))


def test_pyreps_own_bytes_come_from_finish() -> None:
    header = Header(page_size=512, commit=1, min_txid=1, max_txid=1, timestamp_ms=5, node_id=77)
    encoder = Encoder(header)
    room = bytearray(encoder.max_frame_size())
    body = bytes(room[: encoder.add_page(1, page(1, 512), room)])
    head, tail = encoder.finish(0x1111, 0x2222)
    parsed = Header.parse(head)
    assert (parsed.pre_checksum, parsed.post_checksum, parsed.node_id) == (0x1111, 0x2222, 77)
    assert (header.pre_checksum, header.post_checksum) == (0, 0)
    assert oracle.decode(head + body + tail).reserved == b"PYR1" + struct.pack(
        ">QQ", 0x1111, 0x2222
    )


def test_checksums_need_the_mark() -> None:
    encoder = Encoder(header_of(LTX(512, 1)))
    with pytest.raises(LTXError, match="only pyrep's files"):
        encoder.finish(1, 0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0], "page number required"),
        ([21], "page number 21 out of bounds for commit size 20"),
        ([2, 2], "out-of-order page numbers: 2,2"),
        ([3, 2], "out-of-order page numbers: 3,2"),
    ],
)
def test_refused_pages(numbers: list[int], message: str) -> None:
    encoder = Encoder(header_of(_incremental()))
    room = bytearray(encoder.max_frame_size())
    for pgno in numbers[:-1]:
        encoder.add_page(pgno, bytes(512), room)
    with pytest.raises(LTXError, match=message) as caught:
        encoder.add_page(numbers[-1], bytes(512), room)
    assert (caught.value.op, caught.value.min_txid) == ("encode", 5)
    with pytest.raises(LTXError, match="the encoder is closed"):
        encoder.add_page(20, bytes(512), room)
    with pytest.raises(LTXError, match="the encoder is closed"):
        encoder.finish(0, 0)


@pytest.mark.parametrize("numbers", [[2], [1, 3]])
def test_snapshots_are_sequential(numbers: list[int]) -> None:
    ltx = LTX(512, 5, {pgno: bytes(512) for pgno in numbers}, 1, 1)
    with pytest.raises(LTXError, match="nonsequential page numbers in snapshot"):
        encode(ltx)


@pytest.mark.parametrize("page_size", [32768, 65536])
def test_snapshot_skips_the_lock_page(page_size: int) -> None:
    """Sequential up to the lock page and after it, without a file of a gigabyte."""
    lock = _lock(page_size)
    encoder = Encoder(header_of(LTX(page_size, lock + 1, {}, 1, 1)))
    room = bytearray(encoder.max_frame_size())
    for pgno in range(1, lock):
        encoder.add_page(pgno, bytes(page_size), room)
    with pytest.raises(LTXError, match="the lock page must not be stored"):
        encoder.add_page(lock, bytes(page_size), room)
    complete = Encoder(header_of(LTX(page_size, lock + 1, {}, 1, 1)))
    for pgno in [*range(1, lock), lock + 1]:
        complete.add_page(pgno, bytes(page_size), room)
    complete.finish(0, 0)
    assert complete.pages == lock
    until_lock = Encoder(header_of(LTX(page_size, lock, {}, 1, 1)))
    for pgno in range(1, lock):
        until_lock.add_page(pgno, bytes(page_size), room)
    assert until_lock.finish(0, 0)


def test_snapshot_must_be_complete() -> None:
    for pages in ({}, {1: bytes(512)}):
        with pytest.raises(LTXError, match="incomplete snapshot"):
            encode(LTX(512, 2, pages, 1, 1))


def test_refused_headers() -> None:
    with pytest.raises(LTXError, match="zero pages"):
        Encoder(header_of(LTX(512, 0)))
    with pytest.raises(LTXError, match="without rolling checksums"):
        Encoder(header_of(LTX(512, 1, flags=0, pre_apply=1 << 63)))


def test_buffers_are_checked() -> None:
    encoder = Encoder(header_of(_incremental()))
    room = bytearray(encoder.max_frame_size())
    with pytest.raises(LTXError, match="invalid page buffer size: 511, expecting 512"):
        encoder.add_page(1, bytes(511), room)
    with pytest.raises(ValueError, match="must hold max_frame_size"):
        encoder.add_page(1, bytes(512), room[:-1])
    with pytest.raises(ValueError, match="at least 30 bytes"):
        encoder.index(bytearray(29))
    with pytest.raises((TypeError, BufferError)):
        encoder.add_page(1, bytes(512), bytes(len(room)))


def test_index_in_pieces_is_the_same_tail() -> None:
    ltx = snapshot(512, 300)
    whole = encode(ltx)
    header = header_of(ltx)
    encoder = Encoder(header)
    room = bytearray(encoder.max_frame_size())
    body = b"".join(
        bytes(room[: encoder.add_page(pgno, data, room)]) for pgno, data in ltx.pages.items()
    )
    piece = bytearray(31)
    tail = bytearray()
    while size := encoder.index(piece):
        tail += piece[:size]
    with pytest.raises(LTXError, match="the encoder is closed"):
        encoder.add_page(1, ltx.pages[1], room)
    head, rest = encoder.finish(0, 0)
    assert head + body + bytes(tail) + rest == whole
    assert len(rest) == 16
    with pytest.raises(LTXError, match="the encoder is closed"):
        encoder.finish(0, 0)


def _collect(
    header: Header,
    db_fd: int,
    wal_fd: int,
    pgnos: array[int],
    offsets: array[int],
    room_size: int,
    start: int = 0,
) -> tuple[bytes, array[int]]:
    encoder = Encoder(header)
    room = bytearray(max(room_size, encoder.max_frame_size()))
    crcs = array("Q", bytes(8 * len(pgnos)))
    body = bytearray()
    while start < len(pgnos):
        after, size = encoder.add_pages(db_fd, wal_fd, pgnos, offsets, start, room, crcs)
        assert after > start
        body += room[:size]
        start = after
    assert encoder.offset == 100 + len(body)
    head, tail = encoder.finish(0, 0)
    return head + bytes(body) + tail, crcs


@pytest.mark.parametrize("room", [0, 20_000, 1 << 20])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_batches_from_database_and_wal(tmp_path: Path, page_size: int, room: int) -> None:
    case = sqlite_wal(tmp_path, page_size)
    with opened(case.database) as db_fd, opened(case.wal) as wal_fd:
        wal_header = _wal.parse_header(case.wal.read_bytes()[:32])
        assert wal_header is not None
        scan = _wal.scan(wal_fd, wal_header, max_frame=1 << 30)
        places = dict(zip(scan.pgnos, scan.offsets, strict=True))
        pgnos = array("I", range(1, scan.commit + 1))
        offsets = array("q", (places.get(pgno, -1) for pgno in pgnos))
        header = Header(
            page_size=page_size,
            commit=scan.commit,
            min_txid=1,
            max_txid=1,
            timestamp_ms=1,
            wal_offset=32,
            wal_size=scan.end_offset - 32,
            wal_salt1=wal_header.salt1,
            wal_salt2=wal_header.salt2,
        )
        data, crcs = _collect(header, db_fd, wal_fd, pgnos, offsets, room)
    ltx = oracle.decode(data)
    assert oracle.apply(b"", ltx) == case.expected
    assert list(crcs) == [crc64(ltx.pages[pgno]) for pgno in pgnos]


def test_batches_read_zeros_past_the_end_of_the_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(page(1, 512) + page(2, 300))
    pgnos, offsets = array("I", [1, 2, 3, 9]), array("q", [-1] * 4)
    with opened(path) as fd:
        data, _ = _collect(header_of(_incremental()), fd, -1, pgnos, offsets, 0)
    assert oracle.decode(data).pages == {
        1: page(1, 512),
        2: page(2, 300) + bytes(212),
        3: bytes(512),
        9: bytes(512),
    }


def test_batches_may_start_in_the_middle_and_need_no_checksums(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(page(1, 5 * 512))
    encoder = Encoder(header_of(_incremental()))
    room = bytearray(10_000)
    pgnos, offsets = array("I", [1, 2, 3]), array("q", [-1] * 3)
    with opened(path) as fd:
        assert encoder.add_pages(fd, -1, pgnos, offsets, 1, room)[0] == 3
        assert encoder.add_pages(fd, -1, pgnos, offsets, 3, room) == (3, 0)
    assert encoder.pages == 2


def test_batch_lists_are_checked() -> None:
    encoder = Encoder(header_of(_incremental()))
    room = bytearray(10_000)
    pgnos = array("I", [1, 2])
    for offsets, start, message in (
        (array("q", [-1]), 0, "differ in length"),
        (array("q", [-1, -1]), 3, "start is beyond"),
        (array("q", [-1, -1]), -1, "start is beyond"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.add_pages(-1, -1, pgnos, offsets, start, room)
    with pytest.raises(ValueError, match="checksums of all pages"):
        encoder.add_pages(-1, -1, pgnos, array("q", [-1, -1]), 0, room, array("Q", [0]))
    with pytest.raises(ValueError, match="must hold max_frame_size"):
        encoder.add_pages(-1, -1, pgnos, array("q", [-1, -1]), 0, room[:100])


@pytest.mark.parametrize(
    ("pgno", "salts", "cut", "message"),
    [
        (4, (1, 2), 0, "the wal was overwritten: a frame of page 3 where page 4 was"),
        (3, (1, 3), 0, "the wal was overwritten: other salts at the frame of page 3"),
        (3, (9, 2), 0, "the wal was overwritten: other salts at the frame of page 3"),
        (3, (1, 2), 1, "the wal ends before the frame of page 3"),
    ],
)
def test_overwritten_wal_is_seen(
    tmp_path: Path, pgno: int, salts: tuple[int, int], cut: int, message: str
) -> None:
    frames = [oracle_wal.Frame(n, 3, page(n, 512)) for n in (1, 3)]
    path = tmp_path / "wal"
    data = oracle_wal.build(frames, 512, salts)
    path.write_bytes(data[: len(data) - cut])
    ltx = replace(_incremental(), wal=(32, 1072, 1, 2))
    encoder = Encoder(header_of(ltx))
    with opened(path) as fd, pytest.raises(WALError, match=message) as caught:
        encoder.add_pages(-1, fd, array("I", [pgno]), array("q", [32 + 536]), 0, bytearray(10_000))
    assert caught.value.hint


def test_without_salts_in_the_header_only_the_number_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    path.write_bytes(oracle_wal.build([oracle_wal.Frame(3, 3, page(3, 512))], 512, (5, 6)))
    with opened(path) as fd:
        data, _ = _collect(header_of(_incremental()), -1, fd, array("I", [3]), array("q", [32]), 0)
    assert oracle.decode(data).pages == {3: page(3, 512)}


def test_a_failed_read_is_an_os_error(tmp_path: Path) -> None:
    encoder = Encoder(header_of(_incremental()))
    with ExitStack() as stack:
        fd = os.open(tmp_path, os.O_RDONLY)
        stack.callback(os.close, fd)
        with pytest.raises(IsADirectoryError):
            encoder.add_pages(fd, -1, array("I", [1]), array("q", [-1]), 0, bytearray(10_000))


def test_batches_refuse_what_single_pages_refuse() -> None:
    for number, message in ((0, "page number required"), (21, "out of bounds"), (99, "bounds")):
        encoder = Encoder(header_of(_incremental()))
        with pytest.raises(LTXError, match=message):
            encoder.add_pages(-1, -1, array("I", [number]), array("q", [-1]), 0, bytearray(10_000))
