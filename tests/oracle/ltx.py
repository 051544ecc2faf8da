"""LTX files as values: a slow encoder, a strict slow decoder, apply and merge."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import zstandard

from oracle import lz4
from oracle.crc64 import FLAG, crc64, rolling_checksum

NO_CHECKSUM = 0x2
ZSTD = 0x100
_HEADER = struct.Struct(">4sIIIQQqQqqIIQ")


class LTXOracleError(Exception):
    """Say that bytes are no LTX file."""


@dataclass(frozen=True)
class LTX:
    """Hold an LTX file: header fields and pages by number."""

    page_size: int
    commit: int
    pages: dict[int, bytes] = field(default_factory=dict)
    min_txid: int = 2
    max_txid: int = 2
    timestamp_ms: int = 1_700_000_000_000
    flags: int = NO_CHECKSUM
    pre_apply: int = 0
    post_apply: int = 0
    wal: tuple[int, int, int, int] = (0, 0, 0, 0)  # offset, size, salts
    node_id: int = 0
    reserved: bytes = bytes(20)

    @property
    def lock_pgno(self) -> int:
        """Return the page that is never stored."""
        return 0x40000000 // self.page_size + 1

    def header(self) -> bytes:
        """Return the 100 bytes of the header."""
        return (
            _HEADER.pack(
                b"LTX1",
                self.flags,
                self.page_size,
                self.commit,
                self.min_txid,
                self.max_txid,
                self.timestamp_ms,
                self.pre_apply,
                *self.wal,
                self.node_id,
            )
            + self.reserved
        )


def uvarint(value: int) -> bytes:
    """Encode a number seven bits at a time, the lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def page_frame(pgno: int, block: bytes) -> bytes:
    """Return a page frame of today."""
    return struct.pack(">IHI", pgno, 1, len(block)) + block


def zstd_frame(pgno: int, frame: bytes) -> bytes:
    """Return a page frame that is a zstd one."""
    return struct.pack(">IHI", pgno, 3, len(frame)) + frame


def legacy_frame(pgno: int, lz4_frame: bytes) -> bytes:
    """Return a page frame of old files."""
    return struct.pack(">IH", pgno, 0) + lz4_frame


def encode(
    ltx: LTX,
    compress: Callable[[bytes], bytes] = lz4.literal_block,
    *,
    legacy: frozenset[int] = frozenset(),
    zstd: frozenset[int] = frozenset(),
) -> bytes:
    """Return the file's bytes; pages in ``legacy`` are LZ4 frames, those in ``zstd`` zstd ones."""
    out = bytearray(ltx.header())
    logical = bytearray(out)
    index = bytearray()
    for pgno, page in sorted(ltx.pages.items()):
        if pgno in legacy:
            frame = legacy_frame(pgno, lz4.frame(page))
            logical += frame[:6] + page
        else:
            if pgno in zstd:
                frame = zstd_frame(pgno, zstandard.ZstdCompressor().compress(page))
            else:
                frame = page_frame(pgno, compress(page))
            logical += frame[:10] + page
        index += uvarint(pgno) + uvarint(len(out)) + uvarint(len(frame))
        out += frame
    index += b"\0"
    tail = bytes(6) + index + struct.pack(">QQ", len(index), ltx.post_apply)
    checksum = crc64(bytes(logical) + tail) | FLAG
    return bytes(out) + tail + struct.pack(">Q", checksum)


def _take_page(data: bytes, place: int, page_size: int, *, zstd: bool) -> tuple[int, int, bytes]:
    """Return the frame's end, how much of it counts for the checksum, and the page."""
    flags, size = struct.unpack_from(">HI", data, place + 4)
    if flags not in ((1, 3) if zstd else (1,)):
        raise LTXOracleError("flags")
    block = data[place + 10 : place + 10 + size]
    if len(block) != size:
        raise LTXOracleError("cut off")
    if flags == 3:
        page = zstandard.ZstdDecompressor().decompress(block, allow_extra_data=False)
        return place + 10 + size, 10, page
    try:
        return place + 10 + size, 10, lz4.decompress_block(block, page_size)
    except lz4.LZ4Error as error:
        raise LTXOracleError(str(error)) from error


def _check_next(ltx: LTX, pgno: int, last: int) -> None:
    expected = last + 1
    if expected == ltx.lock_pgno:
        expected += 1
    if pgno > ltx.commit or pgno == ltx.lock_pgno or pgno <= last:
        raise LTXOracleError(f"page {pgno} after {last}")
    if ltx.min_txid == 1 and pgno != expected:
        raise LTXOracleError(f"page {pgno} instead of {expected}")


def parse_header(data: bytes) -> LTX:
    """Read the header; only what the tests produce is checked."""
    if len(data) < 100 or data[:4] != b"LTX1":
        raise LTXOracleError("header")
    _, flags, page_size, commit, low, high, ms, pre, *wal, node = _HEADER.unpack_from(data)
    return LTX(page_size, commit, {}, low, high, ms, flags, pre, 0, (*wal,), node, data[80:100])


def decode(data: bytes) -> LTX:
    """Read and verify a whole file without old frames."""
    ltx = parse_header(data)
    logical = bytearray(data[:100])
    index = bytearray()
    pages: dict[int, bytes] = {}
    place, last = 100, 0
    while data[place : place + 6] != bytes(6):
        if place + 10 > len(data):
            raise LTXOracleError("cut off")
        (pgno,) = struct.unpack_from(">I", data, place)
        _check_next(ltx, pgno, last)
        zstd = bool(ltx.flags & ZSTD)
        end, head, page = _take_page(data, place, ltx.page_size, zstd=zstd)
        index += uvarint(pgno) + uvarint(place) + uvarint(end - place)
        logical += data[place : place + head] + page
        pages[pgno] = page
        place, last = end, pgno
    index += b"\0"
    tail = bytes(6) + index + struct.pack(">Q", len(index))
    if data[place : place + len(tail)] != tail or len(data) != place + len(tail) + 16:
        raise LTXOracleError("index or length")
    post, checksum = struct.unpack(">QQ", data[-16:])
    if checksum != crc64(bytes(logical) + data[place:-8]) | FLAG:
        raise LTXOracleError("file checksum")
    _check_end(ltx, pages, post)
    return replace(ltx, pages=pages, post_apply=post)


def _check_end(ltx: LTX, pages: dict[int, bytes], post: int) -> None:
    if ltx.flags & NO_CHECKSUM and post:
        raise LTXOracleError("post-apply checksum")
    if ltx.min_txid != 1:
        return
    if set(pages) != set(range(1, ltx.commit + 1)) - {ltx.lock_pgno}:
        raise LTXOracleError("incomplete snapshot")
    if not ltx.flags & NO_CHECKSUM and rolling_checksum(sorted(pages.items())) != post:
        raise LTXOracleError("rolling checksum")


def apply(database: bytes, ltx: LTX) -> bytes:
    """Return the database after the file."""
    size = ltx.commit * ltx.page_size
    out = bytearray(database[:size]) + bytes(max(0, size - len(database)))
    for pgno, page in ltx.pages.items():
        out[(pgno - 1) * ltx.page_size : pgno * ltx.page_size] = page
    return bytes(out)


def merge(files: list[LTX]) -> LTX:
    """Return the file that does what all do, one after the other."""
    pages: dict[int, bytes] = {}
    for ltx in files:
        pages |= ltx.pages
        pages = {pgno: page for pgno, page in pages.items() if pgno <= ltx.commit}
    first, last = files[0], files[-1]
    nodes = {ltx.node_id for ltx in files}
    ours = any(ltx.reserved.startswith(b"PYR1") for ltx in files)
    before = first.reserved[4:12] if first.reserved.startswith(b"PYR1") else bytes(8)
    after = last.reserved[12:20] if last.reserved.startswith(b"PYR1") else bytes(8)
    return LTX(
        last.page_size,
        last.commit,
        dict(sorted(pages.items())),
        first.min_txid,
        last.max_txid,
        last.timestamp_ms,
        node_id=last.node_id if len(nodes) == 1 else 0,
        reserved=b"PYR1" + before + after if ours else bytes(20),
    )
