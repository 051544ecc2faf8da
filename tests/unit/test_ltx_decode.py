"""The Decoder: files of the slow encoder, old frames, spans, everything that must be refused."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from fixtures.ltxspec import PAGE_SIZES, encode, header_of, page, snapshot
from oracle import crc64 as oracle_crc
from oracle import ltx as oracle
from oracle import lz4
from oracle.ltx import LTX
from pyrep import _checksum
from pyrep._ltx import Decoder, Header, IndexScan
from pyrep.errors import LTXChecksumError, LTXCorruptError


@pytest.fixture(params=_checksum.available(), autouse=True, scope="module")
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run everything once with each CRC implementation."""
    before = _checksum.implementation()
    _checksum.select(request.param)
    yield
    _checksum.select(before)


def _decode(data: bytes, *, step: int = 0, room: int = 4) -> tuple[dict[int, bytes], int]:
    """Decode a file fed in pieces of ``step`` bytes; return its pages and post-apply checksum."""
    header = Header.parse(data)
    decoder = Decoder(header)
    step = step or len(data)
    size = header.page_size
    out, pgnos, crcs = bytearray(room * size), array("I", [0] * room), array("Q", [0] * room)
    pages: dict[int, bytes] = {}
    place, limit, done = 100, 100 + step, False
    while not done:
        used, count, done = decoder.decode(data[place:limit], out, pgnos, crcs)
        for i in range(count):
            pages[pgnos[i]] = bytes(out[i * size : (i + 1) * size])
            assert crcs[i] == oracle_crc.crc64(pages[pgnos[i]])
        place += used
        if count < room and not done:
            if limit >= len(data):
                decoder.close()  # raises: the file is cut off
            limit += step
    assert decoder.pages == len(pages)
    for start in range(place, len(data), step):
        decoder.tail(data[start : start + step])
    return pages, decoder.close()


def _refused(
    data: bytes, message: str, kind: type[LTXCorruptError] = LTXCorruptError
) -> LTXCorruptError:
    with pytest.raises(kind, match=message) as caught:
        _decode(data)
    return caught.value


def _incremental(page_size: int = 512) -> LTX:
    return LTX(page_size, 9, {n: page(n, page_size) for n in (2, 3, 7)}, 3, 4)


@pytest.mark.parametrize("step", [0, 1, 7, 100, 4000])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_files_of_the_oracle_in_pieces(page_size: int, step: int) -> None:
    if step == 1 and page_size > 512:
        step = 333
    ltx = _incremental(page_size)
    assert _decode(oracle.encode(ltx), step=step) == (ltx.pages, 0)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_own_files(page_size: int) -> None:
    ltx = snapshot(page_size, 5)
    assert _decode(encode(ltx)) == (ltx.pages, 0)
    assert _decode(encode(ltx), room=1) == (ltx.pages, 0)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_pages_around_the_lock_page(page_size: int) -> None:
    lock = 0x40000000 // page_size + 1
    numbers = (lock - 1, lock + 1)
    ltx = LTX(page_size, lock + 1, {n: page(n, page_size) for n in numbers})
    assert _decode(oracle.encode(ltx))[0] == ltx.pages
    wrong = replace(ltx, pages={lock: page(1, page_size)})
    _refused(oracle.encode(wrong), f"the lock page must not be stored: page {lock}")


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_old_frames(page_size: int) -> None:
    ltx = _incremental(page_size)
    for legacy in ({3}, {2, 3, 7}):
        data = oracle.encode(ltx, legacy=frozenset(legacy))
        assert _decode(data, step=101) == (ltx.pages, 0)


def _old_file(ltx: LTX, frame: bytes) -> bytes:
    """Return a file of one page whose LZ4 frame is given."""
    ((pgno, data),) = ltx.pages.items()
    head = struct.pack(">IH", pgno, 0)
    index = oracle.uvarint(pgno) + oracle.uvarint(100) + oracle.uvarint(6 + len(frame)) + b"\0"
    tail = bytes(6) + index + struct.pack(">QQ", len(index), 0)
    checksum = oracle_crc.crc64(ltx.header() + head + data + tail) | 1 << 63
    return ltx.header() + head + frame + tail + struct.pack(">Q", checksum)


@pytest.mark.parametrize("options", [{}, {"content_size": True}, {"block_checksum": True}])
def test_old_frames_of_other_shapes(options: dict[str, Any]) -> None:
    data = bytes([5]) * 1024
    ltx = LTX(1024, 9, {4: data})
    run = lz4.run_block(5, 1024)
    for frame in (
        lz4.frame(data, **options),
        lz4.frame(data, blocks=[run], stored=False, **options),
        lz4.frame(data, blocks=[data[:500], data[:524]], **options),
    ):
        assert _decode(_old_file(ltx, frame), step=50) == ({4: data}, 0)


def _broken_frames() -> list[bytes]:
    data = bytes([5]) * 1024
    good = lz4.frame(data)
    sums = bytearray(good)
    sums[-1] ^= 1
    descriptor = bytearray(good)
    descriptor[6] ^= 1
    return [
        bytes(sums),
        bytes(descriptor),
        b"\x05" + good[1:],
        lz4.frame(data[:1023]),
        lz4.frame(data + b"!"),
        lz4.frame(data, blocks=[b"\0"] * 200, stored=False),
        lz4.frame(data, blocks=[bytes(4000)]),
        lz4.frame(data, blocks=[b"\xf0\xff\xff"], stored=False),
    ]


@pytest.mark.parametrize("frame", _broken_frames())
def test_broken_old_frames(frame: bytes) -> None:
    ltx = LTX(1024, 9, {4: bytes([5]) * 1024})
    _refused(_old_file(ltx, frame), "broken LZ4 frame of page 4|the file is cut off")


@pytest.mark.parametrize("low", [1, 5])
def test_rolling_checksums(low: int) -> None:
    pages = {pgno: page(pgno, 512) for pgno in (1, 2, 3)}
    post = oracle_crc.rolling_checksum(sorted(pages.items()))
    pre = 0 if low == 1 else 1 << 63 | 99
    ltx = LTX(512, 3, pages, low, low, flags=0, pre_apply=pre, post_apply=post)
    assert _decode(oracle.encode(ltx)) == (pages, post)
    other = replace(ltx, post_apply=post ^ 1)
    if low == 1:
        _refused(oracle.encode(other), "post-apply checksum mismatch", LTXChecksumError)
    else:
        assert _decode(oracle.encode(other))[1] == post ^ 1
    without = replace(ltx, post_apply=0)
    _refused(oracle.encode(without), "invalid post-apply checksum: 0000000000000000")


def test_no_rolling_checksum_where_the_header_says_none() -> None:
    ltx = replace(_incremental(), post_apply=1 << 63)
    _refused(oracle.encode(ltx), "invalid post-apply checksum: 8000000000000000")


@pytest.mark.parametrize(
    ("numbers", "low", "message"),
    [
        ((10,), 3, "page number 10 out of bounds for commit size 9"),
        ((2,), 1, "nonsequential page numbers in snapshot: 0,2"),
        ((1, 3), 1, "nonsequential page numbers in snapshot: 1,3"),
        ((1, 2), 1, "incomplete snapshot: the last page is 2, expected 9"),
        ((), 1, "incomplete snapshot: the last page is 0, expected 9"),
    ],
)
def test_pages_in_the_wrong_place(numbers: tuple[int, ...], low: int, message: str) -> None:
    ltx = LTX(512, 9, {n: page(n, 512) for n in numbers}, low, 4)
    error = _refused(oracle.encode(ltx), message)
    assert (error.op, error.min_txid, error.max_txid) == ("decode", low, 4)


@pytest.mark.parametrize("numbers", [(3, 2), (2, 2)])
def test_pages_out_of_order(numbers: tuple[int, ...]) -> None:
    body = b"".join(oracle.page_frame(n, lz4.literal_block(page(n, 512))) for n in numbers)
    data = _incremental().header() + body + bytes(6)
    _refused(data, f"out-of-order page numbers: {numbers[0]},{numbers[1]}")


def test_page_zero_with_flags() -> None:
    _refused(_incremental().header() + struct.pack(">IH", 0, 1), "page number required")


@pytest.mark.parametrize("flags", [2, 3, 4, 0x8000, 0xFFFF])
def test_unknown_page_flags(flags: int) -> None:
    data = _incremental().header() + struct.pack(">IHI", 2, flags, 100)
    _refused(data, f"unknown flags 0x{flags:04x} of page 2")


@pytest.mark.parametrize("size", [0, 600, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_hostile_compressed_sizes(size: int) -> None:
    data = _incremental().header() + struct.pack(">IHI", 2, 1, size)
    _refused(data, f"impossible compressed size {size} of page 2")


@pytest.mark.parametrize(
    "block",
    [
        lz4.literal_block(bytes(511)),
        lz4.literal_block(bytes(513)),
        lz4.run_block(7, 520),
        b"\xf0\xff\xff\xff\xff",
        b"\x11a\0\0" + bytes(20),
        b"\x1fa\x09\0" + b"\xff" * 3 + b"\0",
    ],
)
def test_broken_blocks(block: bytes) -> None:
    _refused(_incremental().header() + oracle.page_frame(2, block), "broken compressed block")


def test_index_must_be_that_of_the_pages() -> None:
    data = oracle.encode(_incremental())
    start = data.rindex(bytes(6) + bytes([2, 100])) + 6
    for place, message in (
        (start, "the page index does not match the pages"),
        (len(data) - 17, "wrong page index size"),
        (len(data) - 24, "wrong page index size"),
    ):
        wrong = bytearray(data)
        wrong[place] ^= 1
        _refused(bytes(wrong), message)


def test_file_checksum_must_match_and_be_marked() -> None:
    data = oracle.encode(_incremental())
    wrong = bytearray(data)
    wrong[-1] ^= 1
    error = _refused(bytes(wrong), "file checksum mismatch", LTXChecksumError)
    assert f"stored {wrong[-8:].hex()}" in str(error)
    wrong = bytearray(data)
    wrong[-8] &= 0x7F
    _refused(bytes(wrong), "invalid file checksum")


@pytest.mark.parametrize("place", [15, 33, 39, 79, 99])
def test_header_bytes_are_covered(place: int) -> None:
    wrong = bytearray(oracle.encode(_incremental()))
    wrong[place] ^= 0x40
    _refused(bytes(wrong), "file checksum mismatch", LTXChecksumError)


def test_page_bytes_are_covered() -> None:
    data = oracle.encode(_incremental())
    wrong = bytearray(data)
    wrong[200] ^= 1
    _refused(bytes(wrong), "file checksum mismatch", LTXChecksumError)


def test_every_truncation_and_any_addition() -> None:
    data = encode(_incremental())
    for size in range(100, len(data)):
        _refused(data[:size], "the file is cut off")
    _refused(data + b"\0", "bytes after the trailer")


def test_feeding_out_of_order() -> None:
    data = encode(_incremental())
    out, pgnos = bytearray(2048), array("I", [0] * 4)

    def fresh() -> Decoder:
        return Decoder(Header.parse(data))

    with pytest.raises(LTXCorruptError, match="out of order"):
        fresh().tail(b"x")
    with pytest.raises(LTXCorruptError, match="cut off"):
        fresh().close()
    decoder = fresh()
    used, _, done = decoder.decode(data[100:], out, pgnos)
    assert done
    with pytest.raises(LTXCorruptError, match="out of order"):
        decoder.decode(b"x", out, pgnos)
    decoder.tail(b"")
    decoder.tail(data[100 + used :])
    assert decoder.close() == 0
    with pytest.raises(LTXCorruptError, match="out of order"):
        decoder.close()


def test_nothing_more_after_an_error() -> None:
    decoder = Decoder(header_of(_incremental()))
    out, pgnos = bytearray(512), array("I", [0])
    with pytest.raises(LTXCorruptError, match="out of bounds"):
        decoder.decode(struct.pack(">IH", 99, 1), out, pgnos)
    with pytest.raises(LTXCorruptError, match="out of order"):
        decoder.decode(b"", out, pgnos)


def test_buffers_are_checked() -> None:
    decoder = Decoder(header_of(_incremental()))
    calls: list[Callable[[], Any]] = [
        lambda: decoder.decode(b"", bytearray(511), array("I", [0])),
        lambda: decoder.decode(b"", bytearray(512), array("I")),
        lambda: decoder.decode(b"", bytearray(512), array("I", [0]), array("Q")),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="no room for a page"):
            call()
    assert decoder.decode(b"", bytearray(512), array("I", [0])) == (0, 0, False)
    with pytest.raises((TypeError, BufferError)):
        decoder.decode(b"", bytes(512), array("I", [0]))


def test_zero_pages_are_refused() -> None:
    with pytest.raises(LTXCorruptError, match="zero pages"):
        Decoder(header_of(LTX(512, 0)))


# --- spans -------------------------------------------------------------------------------------


def _index_place(data: bytes) -> tuple[int, int]:
    """Return where the index begins, and its size."""
    size = int.from_bytes(data[-24:-16], "big")
    return len(data) - 24 - size, size


def _points(data: bytes, every: int, step: int = 5) -> list[tuple[int, int]]:
    start, size = _index_place(data)
    scan = IndexScan(Header.parse(data), start - 6, every)
    for place in range(start, start + size, step):
        scan.feed(data[place : min(place + step, start + size)])
    scan.close()
    return scan.points


def _part(data: bytes, point: tuple[int, int], stop: int) -> Decoder:
    part = Decoder.part(Header.parse(data), *point)
    out, pgnos = bytearray(1 << 20), array("I", bytes(4096))
    place = point[0]
    while place < stop:
        used, count, done = part.decode(data[place:stop], out, pgnos)
        assert count
        assert not done
        place += used
    assert part.offset == stop
    return part


@pytest.mark.parametrize("every", [1, 100, 1000, 1 << 30])
@pytest.mark.parametrize("low", [1, 4])
def test_spans_join_to_the_whole(low: int, every: int) -> None:
    whole = snapshot(1024, 60)
    ltx = replace(whole, min_txid=low, max_txid=4)
    data = encode(ltx)
    points = _points(data, every)
    assert points[0] == (100, 0)
    assert len(points) == {1: 60, 1 << 30: 1}.get(every, len(points))
    end = _index_place(data)[0] - 6
    decoder = Decoder(Header.parse(data))
    for point, stop in zip(points, [*(offset for offset, _ in points[1:]), end], strict=True):
        decoder.join(_part(data, point, stop))
    assert (decoder.pages, decoder.last_pgno, decoder.offset) == (60, 60, end)
    assert decoder.decode(data[end:], bytearray(1024), array("I", [0])) == (6, 0, True)
    decoder.tail(data[end + 6 :])
    assert decoder.close() == 0


def test_spans_that_do_not_meet() -> None:
    data = encode(snapshot(512, 10))
    points = _points(data, 1)
    decoder = Decoder(Header.parse(data))
    with pytest.raises(LTXCorruptError, match="the spans do not meet"):
        decoder.join(_part(data, points[1], points[2][0]))
    wrong_page = Decoder.part(Header.parse(data), 100, 3)
    with pytest.raises(LTXCorruptError, match="the spans do not meet"):
        decoder.join(wrong_page)


def test_a_span_with_the_wrong_page_before_is_refused() -> None:
    data = encode(snapshot(512, 10))
    points = _points(data, 1)
    part = Decoder.part(Header.parse(data), points[3][0], 7)
    with pytest.raises(LTXCorruptError, match="out-of-order page numbers: 7,4"):
        part.decode(data[points[3][0] :], bytearray(5120), array("I", [0] * 10))


def test_no_spans_with_a_rolling_checksum() -> None:
    pages = {1: bytes(512)}
    post = oracle_crc.rolling_checksum(pages.items())
    header = header_of(LTX(512, 1, pages, 1, 1, flags=0, post_apply=post))
    assert Decoder(header).tracks
    with pytest.raises(LTXCorruptError, match="cannot be decoded in parts"):
        Decoder(header).join(Decoder.part(header, 100, 0))


def test_broken_indexes_give_no_points() -> None:
    data = encode(snapshot(512, 6))
    start, size = _index_place(data)
    index = data[start : start + size]
    header = Header.parse(data)
    entry = oracle.uvarint
    for broken in (
        index[:-1],
        index + b"\1",
        b"\0",
        b"\x80" * 20,
        entry(1) + entry(101) + entry(50) + b"\0",
        entry(7) + entry(100) + entry(50) + b"\0",
        entry(1) + entry(100) + entry(6) + b"\0",
        entry(1) + entry(100) + entry(100_000) + b"\0",
        entry(1) + entry(100) + entry(60) + entry(1) + entry(160) + entry(60) + b"\0",
        entry(1) + entry(100) + b"\0",
        index[: len(index) - 1] + entry(1 << 40),
    ):
        scan = IndexScan(header, start - 6, 1)
        with pytest.raises(LTXCorruptError, match="broken page index"):
            _feed_and_close(scan, broken)
    late = IndexScan(header, start - 7, 1)
    with pytest.raises(LTXCorruptError, match="broken page index"):
        _feed_and_close(late, index)


def _feed_and_close(scan: IndexScan, data: bytes) -> None:
    scan.feed(b"")
    scan.feed(data)
    scan.close()
