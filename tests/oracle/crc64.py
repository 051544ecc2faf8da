"""CRC-64/ISO and the checksums built on it, one bit and one byte at a time."""

from __future__ import annotations

from collections.abc import Iterable

MASK = (1 << 64) - 1
FLAG = 1 << 63
_POLY = 0xD800000000000000


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_POLY if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


def crc64(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Return the CRC of ``data``, continuing from ``crc``."""
    crc ^= MASK
    for byte in bytes(data):
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ MASK


def mix64(value: int) -> int:
    """Return the murmur3 finaliser of a 64-bit number."""
    value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCD & MASK
    value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ (value >> 33)


def database_checksum(database: bytes, page_size: int) -> int:
    """Return pyrep's checksum of a whole database file."""
    lock = 0x40000000 // page_size + 1
    total = 0
    for pgno in range(1, len(database) // page_size + 1):
        page = database[(pgno - 1) * page_size : pgno * page_size]
        if pgno != lock:
            total ^= mix64((crc64(page) + pgno * 0x9E3779B97F4A7C15) & MASK)
    return total


def page_checksum(pgno: int, page: bytes) -> int:
    """Return LTX's own checksum of one page."""
    return crc64(pgno.to_bytes(4, "big") + page) | FLAG


def rolling_checksum(pages: Iterable[tuple[int, bytes]]) -> int:
    """Return LTX's own rolling checksum of a database's pages (the lock page is not given)."""
    total = 0
    for pgno, page in pages:
        total = FLAG | (total ^ page_checksum(pgno, page))
    return total
