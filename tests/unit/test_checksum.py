"""Checksums: known answers, joins, pages from buffers and files, the choice of the code."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.ltxspec import PAGE_SIZES, page
from fixtures.wal import opened
from oracle import crc64 as oracle
from oracle import wal as oracle_wal
from pyrep import _checksum
from pyrep.errors import ConfigError

THREE_PAGES = bytes([1]) * 512 + bytes([2]) * 512 + bytes([3]) * 512


@pytest.fixture(params=_checksum.available(), autouse=True, scope="module")
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run everything once with each implementation that this processor has."""
    before = _checksum.implementation()
    _checksum.select(request.param)
    yield request.param
    _checksum.select(before)


def _words(count: int) -> array[int]:
    return array("Q", bytes(8 * count))


def test_selected_implementation_is_named(implementation: str) -> None:
    assert _checksum.implementation() == implementation


def test_known_answers() -> None:
    assert _checksum.crc64(b"") == 0
    assert _checksum.crc64(b"123456789") == 0xB90956C775A41001
    assert _checksum.crc64(THREE_PAGES[:512]) == 0xF78CCEEEEEEEEEEE


@pytest.mark.parametrize("offset", [0, 1, 7, 8, 15, 31])
def test_every_length_at_odd_alignments(offset: int) -> None:
    data = page(offset, 1024)
    for size in range(700):
        piece = memoryview(data)[offset : offset + size]
        assert _checksum.crc64(piece) == oracle.crc64(piece), size


@pytest.mark.parametrize("size", [4095, 4096, 4097, 65536, 65536 + 129])
def test_long_input_is_the_same_in_pieces(size: int) -> None:
    data = page(size, size)
    whole = oracle.crc64(data)
    assert _checksum.crc64(data) == whole
    for cut in (0, 1, 255, 256, 257, size // 2, size):
        first, second = data[:cut], data[cut:]
        crc = _checksum.crc64(first)
        assert _checksum.crc64(second, crc) == whole
        assert _checksum.crc64_combine(crc, _checksum.crc64(second), len(second)) == whole


def test_join_with_a_length_that_no_buffer_has() -> None:
    zeros = 1 << 40
    crc = _checksum.crc64(b"x")
    step = _checksum.crc64(bytes(1 << 20))
    size, piece = 1 << 20, step
    while size < zeros:
        piece = _checksum.crc64_combine(piece, piece, size)
        size *= 2
    total = _checksum.crc64_combine(crc, piece, zeros)
    half = _checksum.crc64_combine(step, step, 1 << 20)
    assert half == _checksum.crc64(bytes(2 << 20))
    assert _checksum.crc64_combine(total, _checksum.crc64(b"y"), 1) == _checksum.crc64(b"y", total)


def test_any_buffer_is_taken() -> None:
    words = array("H", [1, 2, 3])
    assert _checksum.crc64(words) == oracle.crc64(words.tobytes())
    with pytest.raises(TypeError):
        _checksum.crc64("text")  # type: ignore[arg-type]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_pages_of_a_buffer(page_size: int) -> None:
    data = page(page_size, 3 * page_size)
    out = _words(4)
    assert _checksum.crc64_pages(data, page_size, out) == 3
    expected = [oracle.crc64(data[i : i + page_size]) for i in range(0, len(data), page_size)]
    assert list(out) == [*expected, 0]


def test_pages_of_a_buffer_are_checked() -> None:
    with pytest.raises(ValueError, match="whole number"):
        _checksum.crc64_pages(bytes(1000), 512, _words(4))
    with pytest.raises(ValueError, match="no room"):
        _checksum.crc64_pages(bytes(1024), 512, _words(1))
    with pytest.raises(ValueError, match="invalid page size"):
        _checksum.crc64_pages(bytes(1000), 500, _words(4))
    with pytest.raises((TypeError, BufferError, ValueError)):
        _checksum.crc64_pages(bytes(512), 512, bytes(8))
    assert _checksum.crc64_pages(b"", 512, _words(0)) == 0


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_pages_of_a_file(tmp_path: Path, page_size: int) -> None:
    count = 3 * (1 << 20) // page_size + 5
    data = b"".join(page(n % 7, page_size) for n in range(count))
    path = tmp_path / "db"
    path.write_bytes(data[:-100])
    wanted = _words(count)
    _checksum.crc64_pages(data[:-100] + bytes(100), page_size, wanted)
    zero = oracle.crc64(bytes(page_size))
    with opened(path) as fd:
        out = _words(count + 2)
        _checksum.crc64_pages_fd(fd, 1, page_size, out)
        assert out == wanted + array("Q", [zero, zero])
        middle = _words(7)
        _checksum.crc64_pages_fd(fd, 4, page_size, middle)
        assert middle == wanted[3:10]
        beyond = _words(2)
        _checksum.crc64_pages_fd(fd, count + 100, page_size, beyond)
        assert list(beyond) == [zero, zero]
        _checksum.crc64_pages_fd(fd, 1, page_size, _words(0))
        with pytest.raises(ValueError, match="start at 1"):
            _checksum.crc64_pages_fd(fd, 0, page_size, out)


def test_a_failed_read_is_an_os_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            _checksum.crc64_pages_fd(fd, 1, 512, _words(1))
    finally:
        os.close(fd)


def test_database_checksum_vectors() -> None:
    out = _words(3)
    _checksum.crc64_pages(THREE_PAGES, 512, out)
    assert _checksum.database_checksum(out, 1, 512) == 0xB880389DBF14CFEE
    swapped = array("Q", [out[0], out[2], out[1]])
    assert _checksum.database_checksum(swapped, 1, 512) == 0xDAE85FD73E6AE0F6
    assert oracle.database_checksum(THREE_PAGES, 512) == 0xB880389DBF14CFEE


def test_database_checksum_joins_by_xor_and_from_terms() -> None:
    crcs = array("Q", [1, 2**64 - 1, 5, 0x1234567890ABCDEF])
    whole = _checksum.database_checksum(crcs, 1, 4096)
    first = _checksum.database_checksum(crcs[:2], 1, 4096)
    second = _checksum.database_checksum(crcs[2:], 3, 4096)
    assert whole == first ^ second
    terms = 0
    for pgno, crc in enumerate(crcs, 1):
        terms ^= _checksum.page_term(crc, pgno)
    assert whole == terms
    assert _checksum.database_checksum(b"", 1, 4096) == 0


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_lock_page_is_left_out(page_size: int) -> None:
    lock = 0x40000000 // page_size + 1
    crcs = array("Q", [11, 22, 33])
    expected = _checksum.page_term(11, lock - 1) ^ _checksum.page_term(33, lock + 1)
    assert _checksum.database_checksum(crcs, lock - 1, page_size) == expected


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([bytes([n]) * 512 for n in (1, 2, 3)], 0xEFFFFFFFECD99000),
        ([b"1" * 512], 0xEB1A999231044DDD),
        ([b"2" * 1024, b"3" * 1024], 0xE1899B6D587AAAAA),
    ],
)
def test_oracle_knows_the_rolling_checksum(pages: list[bytes], expected: int) -> None:
    assert oracle.rolling_checksum(enumerate(pages, 1)) == expected


@pytest.mark.parametrize("big_endian", [False, True])
def test_wal_checksum(big_endian: bool) -> None:
    data = page(3, 4096)
    expected = oracle_wal.checksum(data, (7, 9), big_endian=big_endian)
    assert _checksum.wal_checksum(data, 7, 9, big_endian=big_endian) == expected
    first = _checksum.wal_checksum(data[:8], 7, 9, big_endian=big_endian)
    assert _checksum.wal_checksum(data[8:], *first, big_endian=big_endian) == expected
    assert _checksum.wal_checksum(b"", 7, 9, big_endian=big_endian) == (7, 9)
    with pytest.raises(ValueError, match="multiple of eight"):
        _checksum.wal_checksum(b"1234", big_endian=big_endian)


def test_unknown_choice_is_refused(implementation: str) -> None:
    with pytest.raises(ConfigError, match="PYREP_CRC") as caught:
        _checksum.select("sse9")
    assert "table" in caught.value.hint
    assert _checksum.implementation() == implementation


@pytest.mark.parametrize("choice", [*_checksum.available(), "sse9", ""])
def test_choice_of_the_environment(choice: str) -> None:
    code = "from pyrep import _checksum; print(_checksum.implementation())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYREP_CRC": choice},
        capture_output=True,
        text=True,
        check=False,
    )
    if choice == "sse9":
        assert done.returncode != 0
        assert "ConfigError: PYREP_CRC: no such CRC-64 implementation" in done.stderr
    else:
        assert done.stdout.strip() == (choice or _checksum.available()[0])
