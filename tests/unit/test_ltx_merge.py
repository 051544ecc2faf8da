"""The Merger: what merging leaves equals what applying leaves; inputs are proven."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.ltxspec import PAGE_SIZES, encode, page, snapshot
from oracle import ltx as oracle
from oracle.ltx import LTX
from pyrep import _checksum
from pyrep._ltx import Merger
from pyrep.errors import LTXChecksumError, LTXCorruptError, LTXError, LTXGapError


@pytest.fixture(params=_checksum.available(), autouse=True, scope="module")
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run everything once with each CRC implementation."""
    before = _checksum.implementation()
    _checksum.select(request.param)
    yield
    _checksum.select(before)


def _merge(folder: Path, files: list[bytes], room: int = 1 << 18, piece: int = 1 << 16) -> bytes:
    """Merge files given as bytes and return the merged file's."""
    with ExitStack() as stack:
        fds = []
        for number, data in enumerate(files):
            path = folder / f"input-{number}"
            path.write_bytes(data)
            fds.append(os.open(path, os.O_RDONLY))
            stack.callback(os.close, fds[-1])
        names = [f"file {number}" for number in range(len(files))]
        merger = Merger(fds, [len(data) for data in files], names)
        chunk = bytearray(max(room, merger.max_frame_size()))
        body = bytearray()
        while size := merger.pages_into(chunk):
            body += chunk[:size]
        assert merger.offset == 100 + len(body)
        chunk = bytearray(piece)
        while size := merger.index(chunk):
            body += chunk[:size]
        head, tail = merger.finish()
        assert merger.header.pack() == head
        return head + bytes(body) + tail


def _chain(page_size: int, *, seed: int = 3, files: int = 6) -> list[LTX]:
    """Return a snapshot and files that overwrite, grow and shrink it."""
    rng = random.Random(seed)
    chain = [snapshot(page_size, 8, seed=seed)]
    for txid in range(2, files + 1):
        before, commit = chain[-1].commit, rng.randint(2, 12)
        numbers = {*range(before + 1, commit + 1), *rng.sample(range(1, commit + 1), 2)}
        pages = {n: page(txid * 100 + n, page_size) for n in sorted(numbers)}
        chain.append(LTX(page_size, commit, pages, txid, txid, 1_700_000_000_000 + txid))
    return chain


def _apply_all(files: list[LTX]) -> bytes:
    database = b""
    for ltx in files:
        database = oracle.apply(database, ltx)
    return database


@pytest.mark.parametrize("room", [0, 1 << 20])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_merging_equals_applying(tmp_path: Path, page_size: int, room: int) -> None:
    chain = _chain(page_size)
    merged = oracle.decode(_merge(tmp_path, [encode(ltx) for ltx in chain], room, 30))
    assert merged == oracle.merge(chain)
    assert oracle.apply(b"", merged) == _apply_all(chain)


@pytest.mark.parametrize("seed", range(8))
def test_merging_in_steps_is_merging_at_once(tmp_path: Path, seed: int) -> None:
    chain = _chain(1024, seed=seed, files=7)
    files = [encode(ltx) for ltx in chain]
    at_once = _merge(tmp_path, files)
    in_steps = _merge(tmp_path, [_merge(tmp_path, files[:3]), _merge(tmp_path, files[3:])])
    assert in_steps == at_once


def test_one_input_stays_what_it_is(tmp_path: Path) -> None:
    data = encode(snapshot(4096, 9))
    assert _merge(tmp_path, [data]) == data


def test_compressed_blocks_are_copied(tmp_path: Path) -> None:
    """Blocks of literals only come out as they went in: nothing was compressed again."""
    first = LTX(512, 9, {2: bytes(512), 5: bytes(512)}, 4, 4)
    second = LTX(512, 9, {2: b"n" * 512}, 5, 5)
    data = _merge(tmp_path, [oracle.encode(first), oracle.encode(second)])
    (size,) = struct.unpack_from(">I", data, 106)
    assert size == 512 + 3
    assert data == oracle.encode(oracle.merge([first, second]))


def test_old_frames_are_compressed_again(tmp_path: Path) -> None:
    first = LTX(1024, 9, {2: page(1, 1024), 5: page(2, 1024)}, 4, 4)
    second = LTX(1024, 9, {2: page(3, 1024)}, 5, 5)
    files = [oracle.encode(first, legacy=frozenset({2, 5})), oracle.encode(second)]
    assert oracle.decode(_merge(tmp_path, files)) == oracle.merge([first, second])


def test_a_page_that_was_cut_off_does_not_come_back(tmp_path: Path) -> None:
    """Applied one by one the page is zeros after the growth, so it must not be the old one."""
    chain = [
        LTX(512, 9, {8: b"old" + bytes(509)}, 4, 4),
        LTX(512, 5, {1: bytes(512)}, 5, 5),
        LTX(512, 9, {9: bytes(512)}, 6, 6),
    ]
    merged = oracle.decode(_merge(tmp_path, [encode(ltx) for ltx in chain]))
    assert set(merged.pages) == {1, 9}


def test_snapshot_with_a_hole_is_refused(tmp_path: Path) -> None:
    chain = [snapshot(512, 9), LTX(512, 5, {}, 2, 2), LTX(512, 9, {9: bytes(512)}, 3, 3)]
    with pytest.raises(LTXCorruptError, match="nonsequential page numbers in snapshot: 5,9"):
        _merge(tmp_path, [encode(ltx) for ltx in chain])
    short = [snapshot(512, 3), LTX(512, 5, {4: bytes(512)}, 2, 2)]
    with pytest.raises(LTXCorruptError, match="incomplete snapshot"):
        _merge(tmp_path, [encode(ltx) for ltx in short])


# --- the merged header -------------------------------------------------------------------------


def _ours(txid: int, pre: int, post: int, node_id: int = 5, **changes: object) -> LTX:
    mark = b"PYR1" + struct.pack(">QQ", pre, post)
    ltx = LTX(512, 9, {1: bytes(512)}, txid, txid, 10 * txid, node_id=node_id, reserved=mark)
    return replace(ltx, wal=(32, 536, 1, 2), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "files",
    [
        [_ours(4, 10, 20), _ours(5, 20, 30)],
        [_ours(4, 0, 20), _ours(5, 20, 0)],
        [_ours(4, 10, 20), _ours(5, 20, 30, node_id=6)],
        [_ours(4, 10, 20), _ours(5, 0, 0, 0, reserved=bytes(20))],
        [_ours(4, 0, 0, 0, reserved=bytes(20)), _ours(5, 20, 30)],
        [_ours(4, 0, 0, 0, reserved=bytes(20)), _ours(5, 0, 0, 0, reserved=bytes(20))],
    ],
)
def test_header(tmp_path: Path, files: list[LTX]) -> None:
    merged = oracle.decode(_merge(tmp_path, [encode(ltx) for ltx in files]))
    assert merged == oracle.merge(files)
    assert merged.wal == (0, 0, 0, 0)
    assert merged.timestamp_ms == 50


def test_inputs_with_rolling_checksums_become_a_file_without(tmp_path: Path) -> None:
    mark = 1 << 63
    first = LTX(512, 9, {1: bytes(512)}, 4, 4, flags=0, pre_apply=mark | 1, post_apply=mark | 2)
    second = LTX(512, 9, {2: bytes(512)}, 5, 5, flags=0, pre_apply=mark | 2, post_apply=mark | 3)
    merged = oracle.decode(_merge(tmp_path, [oracle.encode(first), oracle.encode(second)]))
    assert (merged.flags, merged.pre_apply, merged.post_apply) == (2, 0, 0)
    assert set(merged.pages) == {1, 2}


# --- what follows what -------------------------------------------------------------------------


def _range(low: int, high: int) -> bytes:
    return encode(LTX(512, 9, {1: bytes(512)}, low, high))


@pytest.mark.parametrize(
    "ranges", [[(4, 5), (6, 6)], [(4, 5), (5, 6)], [(4, 5), (4, 6)], [(4, 5), (2, 6)]]
)
def test_contiguous_and_overlapping_inputs(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    merged = oracle.decode(_merge(tmp_path, [_range(*txids) for txids in ranges]))
    assert (merged.min_txid, merged.max_txid) == (ranges[0][0], ranges[-1][1])


@pytest.mark.parametrize(
    "ranges", [[(4, 5), (7, 7)], [(4, 5), (5, 5)], [(4, 5), (4, 5)], [(4, 5), (2, 3)]]
)
def test_gaps_and_containment(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    low, high = ranges[1]
    with pytest.raises(LTXGapError, match=rf"\(4,5\) -> \({low},{high}\)"):
        _merge(tmp_path, [_range(*txids) for txids in ranges])


def test_the_last_txid_there_is(tmp_path: Path) -> None:
    top = (1 << 64) - 1
    merged = oracle.decode(_merge(tmp_path, [_range(top - 1, top - 1), _range(top, top)]))
    assert merged.max_txid == top


def test_page_sizes_must_agree(tmp_path: Path) -> None:
    files = [_range(4, 4), encode(LTX(1024, 9, {1: bytes(1024)}, 5, 5))]
    with pytest.raises(LTXError, match="mismatched page sizes: 512 != 1024"):
        _merge(tmp_path, files)


def test_no_input() -> None:
    with pytest.raises(LTXError, match="at least one input"):
        Merger([], [])
    with pytest.raises(LTXError, match="each with its size"):
        Merger([1], [])


# --- broken inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_input_is_proven_and_named(tmp_path: Path, which: int) -> None:
    files = [encode(ltx) for ltx in _chain(512, files=3)]
    wrong = bytearray(files[which])
    wrong[-1] ^= 1
    files[which] = bytes(wrong)
    with pytest.raises(LTXChecksumError, match=f"^file {which}: file checksum mismatch") as caught:
        _merge(tmp_path, files)
    assert caught.value.path == f"file {which}"


def test_a_superseded_page_is_proven_too(tmp_path: Path) -> None:
    first = LTX(512, 9, {2: b"a" * 512}, 4, 4)
    files = [bytearray(oracle.encode(first)), encode(LTX(512, 9, {2: b"b" * 512}, 5, 5))]
    files[0][300] ^= 1
    with pytest.raises(LTXChecksumError, match="file 0"):
        _merge(tmp_path, [bytes(data) for data in files])


def test_truncated_inputs(tmp_path: Path) -> None:
    good = _range(4, 4)
    data = _range(5, 5)
    for size in range(len(data)):
        with pytest.raises(LTXCorruptError, match=r"file 1: (the file is cut off|short header)"):
            _merge(tmp_path, [good, data[:size]])
    with pytest.raises(LTXCorruptError, match="file 1: bytes after the trailer"):
        _merge(tmp_path, [good, data + b"!"])


def test_a_file_shorter_than_its_size(tmp_path: Path) -> None:
    path = tmp_path / "input"
    data = encode(snapshot(512, 50))
    path.write_bytes(data[: len(data) // 2])
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(LTXCorruptError, match="cut off"):
            Merger([fd], [len(data)]).pages_into(bytearray(1 << 20))
    finally:
        os.close(fd)


def test_zero_pages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LTXCorruptError, match="file 0: a database of zero pages"):
        _merge(tmp_path, [oracle.encode(LTX(512, 0, {}, 4, 4)), _range(5, 5)])


def test_a_failed_read_is_an_os_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            Merger([fd], [500])
    finally:
        os.close(fd)


def test_steps_out_of_order(tmp_path: Path) -> None:
    path = tmp_path / "input"
    data = encode(snapshot(512, 50))
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        merger = Merger([fd], [len(data)])
        with pytest.raises(ValueError, match="must hold max_frame_size"):
            merger.pages_into(bytearray(100))
        with pytest.raises(LTXError, match="there are pages left to merge"):
            merger.finish()
        chunk = bytearray(1 << 20)
        while merger.pages_into(chunk):
            pass
        assert merger.pages == 50
        merger.finish()
        with pytest.raises(LTXError, match="the merger is closed"):
            merger.finish()
        with pytest.raises(LTXError, match="the merger is closed"):
            merger.pages_into(chunk)
    finally:
        os.close(fd)


def test_many_inputs_in_small_windows(tmp_path: Path) -> None:
    """A window is small when there are many files, and frames then lie across its end."""
    files = [
        encode(LTX(512, 300, {n: page(txid + n, 512) for n in range(1, 40)}, txid, txid))
        for txid in range(2, 300)
    ]
    merged = oracle.decode(_merge(tmp_path, files))
    assert merged.pages == {n: page(299 + n, 512) for n in range(1, 40)}
    assert (merged.min_txid, merged.max_txid) == (2, 299)


def test_frames_across_the_end_of_a_window(tmp_path: Path) -> None:
    """A file of several megabytes is read in windows of a quarter of one."""
    rng = random.Random(4)
    pages = {n: rng.randbytes(4096) for n in range(1, 400)}
    first = encode(LTX(4096, 400, pages, 2, 2))
    second = encode(LTX(4096, 400, {400: bytes(4096)}, 3, 3))
    merged = oracle.parse_header(_merge(tmp_path, [first, second]))
    assert (merged.commit, merged.max_txid) == (400, 3)
