"""LTX files against the slow code: any pages, any pieces, any merge."""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.ltxspec import PAGE_SIZES, encode
from oracle import ltx as oracle
from oracle.ltx import LTX
from pyrep import _checksum, ltxio
from pyrep._ltx import Decoder, Header, IndexScan

pytestmark = pytest.mark.property


@pytest.fixture(params=_checksum.available(), autouse=True, scope="module")
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run everything once with each CRC implementation."""
    before = _checksum.implementation()
    _checksum.select(request.param)
    yield
    _checksum.select(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder that all examples share."""
    return tmp_path_factory.mktemp("ltx")


def _content(page_size: int) -> st.SearchStrategy[bytes]:
    """Pages of zeros, runs, short repetitions, and noise at some place."""
    piece = st.binary(min_size=1, max_size=24)
    return st.lists(piece, min_size=1, max_size=8).map(
        lambda pieces: (b"".join(pieces) * page_size)[:page_size]
    )


@st.composite
def _files(draw: st.DrawFn, *, page_size: int | None = None) -> LTX:
    size = page_size or draw(st.sampled_from(PAGE_SIZES[:4]))
    lock = 0x40000000 // size + 1
    base = draw(st.sampled_from([0, lock - 4]))
    commit = base + draw(st.integers(1, 12))
    places = st.integers(base + 1, commit).filter(lambda pgno: pgno != lock)
    numbers = draw(st.sets(places, max_size=8))
    return LTX(
        size,
        commit,
        {pgno: draw(_content(size)) for pgno in sorted(numbers)},
        min_txid=draw(st.integers(2, 9)),
        max_txid=draw(st.integers(9, 99)),
        timestamp_ms=draw(st.integers(-(1 << 40), 1 << 60)),
        wal=draw(st.tuples(st.integers(32, 1 << 62), *[st.integers(0, 1 << 31)] * 3)),
        node_id=draw(st.integers(0, (1 << 64) - 1)),
        reserved=draw(st.one_of(st.just(bytes(20)), st.binary(min_size=20, max_size=20))),
    )


@given(ltx=_files())
def test_own_files_are_read_by_the_oracle(ltx: LTX) -> None:
    plain = replace(ltx, reserved=bytes(20))
    assert oracle.decode(encode(plain)) == plain


@given(ltx=_files(), legacy=st.sets(st.integers(1, 12)))
def test_files_of_the_oracle_are_read(ltx: LTX, legacy: set[int]) -> None:
    data = oracle.encode(ltx, legacy=frozenset(legacy & set(ltx.pages)))
    assert dict(ltxio.pages(io.BytesIO(data))) == ltx.pages


@given(ltx=_files(page_size=512), cuts=st.lists(st.integers(1, 700), min_size=1, max_size=9))
def test_any_pieces(ltx: LTX, cuts: list[int]) -> None:
    data = oracle.encode(ltx)
    decoder = Decoder(Header.parse(data))
    out, pgnos = bytearray(1024), array("I", [0, 0])
    pages: dict[int, bytes] = {}
    held, place, turn, done = b"", 100, 0, False
    while not done:
        step = cuts[turn % len(cuts)]
        held += data[place : place + step]
        place, turn = place + step, turn + 1
        count = 1
        while count and not done:
            used, count, done = decoder.decode(held, out, pgnos)
            held = held[used:]
            pages |= {pgnos[i]: bytes(out[i * 512 : i * 512 + 512]) for i in range(count)}
    for start in range(0, len(held), 5):
        decoder.tail(held[start : start + 5])
    decoder.tail(data[place:])
    assert decoder.close() == 0
    assert pages == ltx.pages


@given(ltx=_files(), every=st.integers(1, 3000), step=st.integers(1, 40))
def test_any_spans(ltx: LTX, every: int, step: int) -> None:
    data = encode(replace(ltx, reserved=bytes(20)))
    header = Header.parse(data)
    size = int.from_bytes(data[-24:-16], "big")
    start = len(data) - 24 - size
    scan = IndexScan(header, start - 6, every)
    for place in range(start, start + size, step):
        scan.feed(data[place : min(place + step, start + size)])
    scan.close()
    whole = Decoder(header)
    room, pgnos = bytearray(12 * ltx.page_size), array("I", [0] * 12)
    stops = [offset for offset, _ in scan.points[1:]] + [start - 6]
    for (offset, before), stop in zip(scan.points, stops, strict=False):
        part = Decoder.part(header, offset, before)
        part.decode(data[offset:stop], room, pgnos)
        whole.join(part)
    assert whole.decode(data[start - 6 : start], room, pgnos)[2]
    whole.tail(data[start:])
    assert whole.close() == 0
    assert whole.pages == len(ltx.pages)


@st.composite
def _chains(draw: st.DrawFn) -> list[LTX]:
    """A snapshot and files after it that hold what growth needs, as writers must."""
    commit = draw(st.integers(1, 9))
    pages = {pgno: draw(_content(512)) for pgno in range(1, commit + 1)}
    chain = [LTX(512, commit, pages, 1, 1)]
    for txid in range(2, draw(st.integers(2, 7))):
        before, commit = commit, draw(st.integers(1, 12))
        numbers = draw(st.sets(st.integers(1, commit), max_size=4))
        numbers |= set(range(before + 1, commit + 1))
        pages = {pgno: draw(_content(512)) for pgno in sorted(numbers)}
        chain.append(LTX(512, commit, pages, txid, txid, txid, node_id=draw(st.integers(0, 1))))
    return chain


def _merge(folder: Path, files: list[bytes]) -> bytes:
    fds = []
    try:
        for number, data in enumerate(files):
            fds.append(os.open(folder / f"in-{number}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
            os.pwrite(fds[-1], data, 0)
        fds.append(os.open(folder / "out", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
        ltxio.merge(fds[:-1], fds[-1])
    finally:
        for fd in fds:
            os.close(fd)
    return (folder / "out").read_bytes()


def _apply(folder: Path, files: list[bytes]) -> bytes:
    fd = os.open(folder / "db", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for data in files:
            ltxio.apply(io.BytesIO(data), fd)
    finally:
        os.close(fd)
    return (folder / "db").read_bytes()


@given(chain=_chains(), cut=st.integers(1, 6))
def test_merging_equals_applying(folder: Path, chain: list[LTX], cut: int) -> None:
    files = [encode(ltx) for ltx in chain]
    expected = b""
    for ltx in chain:
        expected = oracle.apply(expected, ltx)
    assert _apply(folder, files) == expected
    merged = _merge(folder, files)
    assert oracle.decode(merged) == oracle.merge(chain)
    assert _apply(folder, [merged]) == expected
    if cut < len(files):
        halves = [_merge(folder, files[:cut]), _merge(folder, files[cut:])]
        assert _apply(folder, halves) == expected
        assert oracle.decode(_merge(folder, halves)).pages == oracle.decode(merged).pages
