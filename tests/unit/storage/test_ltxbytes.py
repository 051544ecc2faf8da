"""The files that storage tests store are real LTX files."""

from __future__ import annotations

from array import array

import pytest

from fixtures.ltxbytes import build_ltx, crc64
from pyrep._ltx import Decoder, Header
from pyrep.errors import LTXChecksumError

HEADER_SIZE = 100
PAGES = {1: b"a" * 512, 2: bytes(range(256)) * 2, 7: b"short".ljust(512, b"\0")}


def decode(data: bytes) -> dict[int, bytes]:
    header = Header.parse(data[:HEADER_SIZE])
    decoder = Decoder(header)
    out, pgnos = bytearray(512 * 8), array("I", [0] * 8)
    used, count, done = decoder.decode(data[HEADER_SIZE:], out, pgnos)
    assert done
    decoder.tail(data[HEADER_SIZE + used :])
    decoder.close()
    return {pgnos[n]: bytes(out[n * 512 : n * 512 + 512]) for n in range(count)}


def test_the_known_checksum() -> None:
    assert crc64(b"123456789") == 0xB90956C775A41001
    assert crc64(b"6789", crc64(b"12345")) == 0xB90956C775A41001


def test_a_file_decodes() -> None:
    data = build_ltx(3, 9, timestamp_ms=77, pages=PAGES, commit=7, node_id=5)
    header = Header.parse(data[:HEADER_SIZE])
    found = (header.min_txid, header.max_txid, header.timestamp_ms, header.commit, header.node_id)
    assert found == (3, 9, 77, 7, 5)
    assert decode(data) == PAGES


def test_the_file_checksum_is_checked() -> None:
    data = bytearray(build_ltx(3, 9, pages=PAGES, commit=7))
    data[-1] ^= 1
    with pytest.raises(LTXChecksumError):
        decode(bytes(data))
