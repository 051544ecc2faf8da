"""The WAL reader: headers, the checksum chain, resuming, bounds, the page map."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from fixtures.ltxspec import PAGE_SIZES, page
from fixtures.wal import opened, sqlite_wal
from oracle import wal as oracle
from oracle.wal import Frame
from pyrep import _wal
from pyrep.errors import WALError

MAX = (1 << 32) - 1


def _frames(page_size: int, *numbers: tuple[int, int]) -> list[Frame]:
    """Return frames (page number, commit), each with a page of its own."""
    return [
        Frame(pgno, commit, page(i * 7 + pgno, page_size))
        for i, (pgno, commit) in enumerate(numbers)
    ]


def _header(data: bytes) -> _wal.WALHeader:
    header = _wal.parse_header(data)
    assert header is not None
    return header


def _scan(path: Path, data: bytes, **options: int) -> _wal.WALScan:
    path.write_bytes(data)
    with opened(path) as fd:
        return _wal.scan(fd, _header(data), **{"max_frame": MAX, **options})


def _assert_same(found: _wal.WALScan, wanted: oracle.Result) -> None:
    assert dict(zip(found.pgnos, found.offsets, strict=True)) == wanted.page_map
    assert list(found.pgnos) == sorted(found.pgnos)
    assert (found.pgnos.typecode, found.offsets.typecode) == ("I", "q")
    assert found.end_offset == wanted.end_offset
    assert (found.checksum1, found.checksum2) == wanted.sums
    assert (found.frames, found.commits) == (wanted.frames, len(wanted.commits))
    assert found.commit == wanted.commit
    assert found.min_commit == min(wanted.commits, default=0)
    assert (found.complete, found.limited) == (wanted.complete, wanted.limited)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_header(page_size: int, big_endian: bool) -> None:
    data = oracle.build_header(page_size, (0xA1, 0xB2), big_endian=big_endian, sequence=5)
    header = _header(data + b"more")
    assert header.page_size == page_size
    assert (header.salt1, header.salt2, header.sequence) == (0xA1, 0xB2, 5)
    assert header.big_endian is big_endian
    assert (header.checksum1, header.checksum2) == struct.unpack(">II", data[24:])
    assert f"page_size={page_size}" in repr(header)


def test_torn_header_means_no_wal() -> None:
    data = oracle.build_header(4096, (1, 2))
    assert _wal.parse_header(b"") is None
    assert all(_wal.parse_header(data[:size]) is None for size in range(32))
    for place in range(4, 32):
        torn = bytearray(data)
        torn[place] ^= 0x10
        assert _wal.parse_header(torn) is None


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 0x377F0684, "invalid wal magic: 0x377f0684"),
        (4, 3007001, "unsupported wal version: 3007001"),
        (8, 1000, "invalid wal page size: 1000"),
        (8, 256, "invalid wal page size: 256"),
        (8, 131072, "invalid wal page size: 131072"),
    ],
)
def test_foreign_header_is_an_error(place: int, value: int, message: str) -> None:
    data = bytearray(oracle.build_header(4096, (1, 2)))
    struct.pack_into(">I", data, place, value)
    sums = oracle.checksum(bytes(data[:24]), (0, 0), big_endian=False)
    struct.pack_into(">II", data, 24, *sums)
    with pytest.raises(WALError, match=message):
        _wal.parse_header(data)


def test_made_by_nobody() -> None:
    with pytest.raises(WALError, match="invalid wal page size: 0"):
        _wal.scan(0, _wal.WALHeader(), max_frame=1)


@pytest.mark.parametrize("vacuum", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_page_map_of_a_real_wal_makes_the_checkpointed_database(
    tmp_path: Path, page_size: int, big_endian: bool, vacuum: bool
) -> None:
    case = sqlite_wal(tmp_path, page_size, big_endian=big_endian, vacuum=vacuum)
    data = case.wal.read_bytes()
    with opened(case.wal) as fd:
        found = _wal.scan(fd, _header(data), max_frame=MAX)
    assert found.commits > 10
    assert found.end_offset == len(data)
    database = bytearray(case.database.read_bytes()[: found.commit * page_size])
    database += bytes(found.commit * page_size - len(database))
    for pgno, offset in zip(found.pgnos, found.offsets, strict=True):
        database[(pgno - 1) * page_size : pgno * page_size] = data[offset + 24 :][:page_size]
    assert bytes(database) == case.expected


def test_matches_the_oracle_at_every_bound(tmp_path: Path) -> None:
    case = sqlite_wal(tmp_path, 512)
    data = case.wal.read_bytes()
    total = (len(data) - 32) // 536
    header = _header(data)
    with opened(case.wal) as fd:
        for max_frame in [*range(12), *range(12, total, 17), total - 1, total, total + 1]:
            wanted = oracle.scan(data, max_frame=max_frame)
            _assert_same(_wal.scan(fd, header, max_frame=max_frame), wanted)


def test_ranges_join(tmp_path: Path) -> None:
    case = sqlite_wal(tmp_path, 1024)
    data = case.wal.read_bytes()
    header = _header(data)
    total = (len(data) - 32) // 1048
    pages: dict[int, int] = {}
    with opened(case.wal) as fd:
        whole = _wal.scan(fd, header, max_frame=total)
        end, sums, frames = 32, (0, 0), 0
        while True:
            part = _wal.scan(
                fd,
                header,
                start_offset=end,
                checksum1=sums[0],
                checksum2=sums[1],
                max_frame=total,
                max_bytes=20_000,
            )
            wanted = oracle.scan(
                data, start=end, sums=sums if frames else None, max_frame=total, max_bytes=20_000
            )
            _assert_same(part, wanted)
            pages |= zip(part.pgnos, part.offsets, strict=True)
            end, sums = part.end_offset, (part.checksum1, part.checksum2)
            frames += part.frames
            if not part.limited:
                break
    assert part.complete
    assert (end, frames) == (whole.end_offset, whole.frames)
    assert pages == dict(zip(whole.pgnos, whole.offsets, strict=True))


def test_wrong_running_checksum_finds_nothing(tmp_path: Path) -> None:
    data = oracle.build(_frames(512, (1, 1), (2, 2), (3, 3)), 512)
    found = _scan(tmp_path / "wal", data, start_offset=32 + 536, checksum1=1, checksum2=2)
    assert (found.frames, found.end_offset, found.complete) == (0, 32 + 536, False)


@pytest.mark.parametrize("offset", [0, 31, 33, 32 + 535, 32 + 24, -504])
def test_unaligned_start_is_an_error(tmp_path: Path, offset: int) -> None:
    data = oracle.build(_frames(512, (1, 1)), 512)
    with pytest.raises(WALError, match="unaligned wal offset"):
        _scan(tmp_path / "wal", data, start_offset=offset)


def test_range_above_the_limit_is_empty_and_complete(tmp_path: Path) -> None:
    data = oracle.build(_frames(512, (1, 1), (2, 2)), 512)
    for start, limit in ((32, 0), (32 + 536, 1), (32 + 2 * 536, 1), (32 + 2 * 536, 2)):
        found = _scan(
            tmp_path / "wal", data, start_offset=start, checksum1=3, checksum2=4, max_frame=limit
        )
        assert (found.frames, found.commits, found.end_offset) == (0, 0, start)
        assert found.complete
        assert not found.limited
        assert len(found.pgnos) == 0


def test_uncommitted_and_phantom_frames_are_not_read(tmp_path: Path) -> None:
    frames = _frames(512, (1, 2), (2, 2), (1, 0), (3, 0), (2, 9))
    data = oracle.build(frames, 512)
    found = _scan(tmp_path / "wal", data, max_frame=4)
    assert (found.frames, found.commits, found.commit, found.complete) == (2, 2, 2, False)
    assert dict(zip(found.pgnos, found.offsets, strict=True)) == {1: 32, 2: 32 + 536}
    assert _scan(tmp_path / "wal", data, max_frame=5).commit == 9


@pytest.mark.parametrize("place", [0, 7, 8, 12, 16, 20, 24, 24 + 511])
def test_chain_ends_at_a_changed_frame(tmp_path: Path, place: int) -> None:
    data = bytearray(oracle.build(_frames(512, (1, 1), (2, 2), (3, 3)), 512))
    data[32 + 536 + place] ^= 1
    found = _scan(tmp_path / "wal", bytes(data))
    assert (found.frames, found.commit, found.end_offset) == (1, 1, 32 + 536)


def test_chain_ends_at_page_zero(tmp_path: Path) -> None:
    found = _scan(tmp_path / "wal", oracle.build(_frames(512, (1, 1), (0, 2), (3, 3)), 512))
    assert (found.frames, found.commit) == (1, 1)


def test_chain_ends_at_a_hole(tmp_path: Path) -> None:
    data = oracle.build(_frames(512, (1, 1), (2, 2), (3, 3)), 512)
    holed = data[: 32 + 536] + bytes(536) + data[32 + 2 * 536 :]
    assert _scan(tmp_path / "wal", holed, max_frame=3).frames == 1


def test_every_truncation(tmp_path: Path) -> None:
    data = oracle.build(_frames(512, (1, 1), (2, 0), (3, 3)), 512)
    for size in [*range(32, len(data), 19), 32 + 535, 32 + 536, len(data) - 1]:
        found = _scan(tmp_path / "wal", data[:size], max_frame=3)
        assert found.frames == (0 if size < 32 + 536 else 1)
        assert not found.complete


def test_shrink_drops_pages_and_is_told(tmp_path: Path) -> None:
    frames = _frames(512, (9, 0), (2, 9), (1, 3), (5, 6), (1, 6))
    data = oracle.build(frames, 512)
    found = _scan(tmp_path / "wal", data)
    assert list(found.pgnos) == [1, 2, 5]
    assert (found.commit, found.min_commit, found.shrunk_to) == (6, 3, 3)
    assert _scan(tmp_path / "wal", data, max_frame=2).shrunk_to == 0
    assert _scan(tmp_path / "wal", data, max_frame=2, commit=12).shrunk_to == 9
    grown = oracle.build(_frames(512, (2, 3), (3, 4), (4, 4)), 512)
    assert _scan(tmp_path / "wal", grown).shrunk_to == 0
    assert _scan(tmp_path / "wal", grown, commit=3).shrunk_to == 0


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_lock_page_is_dropped(tmp_path: Path, page_size: int) -> None:
    lock = 0x40000000 // page_size + 1
    frames = _frames(page_size, (lock - 1, 0), (lock, 0), (lock + 1, lock + 1))
    found = _scan(tmp_path / "wal", oracle.build(frames, page_size))
    assert list(found.pgnos) == [lock - 1, lock + 1]


def test_many_pages(tmp_path: Path) -> None:
    numbers = [((n * 7919) % 20011 + 1, 0) for n in range(6000)]
    frames = [Frame(pgno, commit, bytes(512)) for pgno, commit in [*numbers, (1, 30000)]]
    data = oracle.build(frames, 512)
    found = _scan(tmp_path / "wal", data)
    _assert_same(found, oracle.scan(data, max_frame=MAX))


def test_byte_limit_ends_at_a_commit(tmp_path: Path) -> None:
    data = oracle.build(_frames(512, (1, 1), (2, 0), (3, 3), (4, 4)), 512)
    for max_bytes, frames in ((1, 1), (536, 1), (537, 3), (3 * 536, 3), (3 * 536 + 1, 4)):
        found = _scan(tmp_path / "wal", data, max_frame=4, max_bytes=max_bytes)
        assert found.frames == frames, max_bytes
        assert found.limited is (frames < 4)
        assert found.complete is (frames == 4)


def test_a_failed_read_is_an_os_error(tmp_path: Path) -> None:
    header = _header(oracle.build_header(512, (1, 2)))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            _wal.scan(fd, header, max_frame=1)
    finally:
        os.close(fd)


def test_result_tells_itself(tmp_path: Path) -> None:
    found = _scan(tmp_path / "wal", oracle.build(_frames(512, (1, 1)), 512), max_frame=1)
    assert repr(found) == (
        "WALScan(32..568, frames=1, commits=1, commit=1, pages=1, complete=True, limited=False)"
    )


def test_threads_scan_side_by_side(tmp_path: Path) -> None:
    case = sqlite_wal(tmp_path, 4096)
    data = case.wal.read_bytes()
    header = _header(data)
    ends: list[int] = []

    def work() -> None:
        with opened(case.wal) as fd:
            ends.extend(_wal.scan(fd, header, max_frame=MAX).end_offset for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [len(data)] * 80
