"""Checksums against the slow ones: all lengths, alignments and cuts."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracle import crc64 as oracle
from oracle import wal as oracle_wal
from pyrep import _checksum

pytestmark = pytest.mark.property
MASK64 = (1 << 64) - 1


@pytest.fixture(params=_checksum.available(), autouse=True, scope="module")
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run everything once with each implementation."""
    before = _checksum.implementation()
    _checksum.select(request.param)
    yield
    _checksum.select(before)


@given(data=st.binary(max_size=2000), start=st.integers(0, 64), crc=st.integers(0, MASK64))
def test_crc64(data: bytes, start: int, crc: int) -> None:
    view = memoryview(data)[start:]
    assert _checksum.crc64(view, crc) == oracle.crc64(view, crc)


@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_cuts(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    continued = combined = 0
    for low, high in itertools.pairwise(edges):
        piece = data[low:high]
        continued = _checksum.crc64(piece, continued)
        combined = _checksum.crc64_combine(combined, _checksum.crc64(piece), len(piece))
    assert continued == combined == oracle.crc64(data)


@given(crc1=st.integers(0, MASK64), zeros=st.integers(0, 600))
def test_joining_equals_continuing_with_zeros(crc1: int, zeros: int) -> None:
    crc2 = _checksum.crc64(bytes(zeros))
    assert _checksum.crc64_combine(crc1, crc2, zeros) == oracle.crc64(bytes(zeros), crc1)


@given(
    first=st.integers(0, MASK64),
    second=st.integers(0, MASK64),
    third=st.integers(0, MASK64),
    sizes=st.tuples(st.integers(0, 1 << 60), st.integers(0, 1 << 60)),
)
def test_joining_is_associative(
    first: int, second: int, third: int, sizes: tuple[int, int]
) -> None:
    two, three = sizes
    join = _checksum.crc64_combine
    left = join(join(first, second, two), third, three)
    right = join(first, join(second, third, three), two + three)
    assert left == right


@given(
    crcs=st.lists(st.integers(0, MASK64), max_size=40),
    page_size=st.sampled_from([512, 4096, 65536]),
    around_lock=st.booleans(),
    cut=st.integers(0, 40),
)
def test_database_checksum(crcs: list[int], page_size: int, around_lock: bool, cut: int) -> None:
    lock = 0x40000000 // page_size + 1
    first = max(1, lock - 5) if around_lock else 1
    expected = 0
    for pgno, crc in enumerate(crcs, first):
        if pgno != lock:
            expected ^= oracle.mix64((crc + pgno * 0x9E3779B97F4A7C15) & MASK64)
    cut = min(cut, len(crcs))
    low = _checksum.database_checksum(array("Q", crcs[:cut]), first, page_size)
    high = _checksum.database_checksum(array("Q", crcs[cut:]), first + cut, page_size)
    assert low ^ high == expected


@given(
    words=st.binary(max_size=800).map(lambda data: data[: len(data) // 8 * 8]),
    sums=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    big_endian=st.booleans(),
)
def test_wal_checksum(words: bytes, sums: tuple[int, int], big_endian: bool) -> None:
    expected = oracle_wal.checksum(words, sums, big_endian=big_endian)
    assert _checksum.wal_checksum(words, *sums, big_endian=big_endian) == expected
