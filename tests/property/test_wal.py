"""The WAL reader against the slow one: any frames, bounds, cuts and changed bytes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import effort
from oracle import wal as oracle
from oracle.wal import Frame
from pyrep import _checksum, _wal
from pyrep.errors import WALError

pytestmark = pytest.mark.property

LOCK = 0x40000000 // 512 + 1
PGNOS = st.one_of(st.integers(1, 12), st.sampled_from([LOCK - 1, LOCK, LOCK + 1]))
COMMITS = st.one_of(st.just(0), st.integers(1, 14), st.sampled_from([LOCK - 1, LOCK, LOCK + 1]))
FRAMES = st.lists(
    st.builds(Frame, PGNOS, COMMITS, st.binary(min_size=4, max_size=4).map(lambda b: b * 128)),
    max_size=24,
)


@pytest.fixture(params=_checksum.available(), autouse=True, scope="module")
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run everything once with each CRC implementation."""
    before = _checksum.implementation()
    _checksum.select(request.param)
    yield
    _checksum.select(before)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Give a file to write WALs to."""
    path: Path = tmp_path_factory.mktemp("wal") / "wal"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def _fill(fd: int, data: bytes) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)


def _scan(fd: int, data: bytes, **bounds: int) -> _wal.WALScan:
    header = _wal.parse_header(data)
    assert header is not None
    return _wal.scan(fd, header, **bounds)  # type: ignore[arg-type]


def _same(found: _wal.WALScan, wanted: oracle.Result) -> None:
    assert dict(zip(found.pgnos, found.offsets, strict=True)) == wanted.page_map
    assert list(found.pgnos) == sorted(found.pgnos)
    assert found.end_offset == wanted.end_offset
    assert (found.checksum1, found.checksum2) == wanted.sums
    assert (found.frames, found.commit) == (wanted.frames, wanted.commit)
    assert (found.complete, found.limited) == (wanted.complete, wanted.limited)
    assert found.min_commit == min(wanted.commits, default=0)
    assert found.commits == len(wanted.commits)


@given(
    frames=FRAMES,
    big_endian=st.booleans(),
    max_frame=st.integers(0, 30),
    max_bytes=st.one_of(st.just(0), st.integers(1, 8000)),
    extra=st.binary(max_size=600),
    salts=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_any_wal(
    file: int,
    frames: list[Frame],
    big_endian: bool,
    max_frame: int,
    max_bytes: int,
    extra: bytes,
    salts: tuple[int, int],
) -> None:
    data = oracle.build(frames, 512, salts, big_endian=big_endian) + extra
    _fill(file, data)
    wanted = oracle.scan(data, max_frame=max_frame, max_bytes=max_bytes)
    _same(_scan(file, data, max_frame=max_frame, max_bytes=max_bytes), wanted)


@given(frames=FRAMES, cuts=st.lists(st.integers(0, 24), max_size=5))
def test_resuming_at_commits_is_reading_at_once(
    file: int, frames: list[Frame], cuts: list[int]
) -> None:
    data = oracle.build(frames, 512)
    _fill(file, data)
    whole = _scan(file, data, max_frame=len(frames))
    pages: dict[int, int] = {}
    end, sums = 32, (0, 0)
    for limit in [*sorted(cuts), len(frames)]:
        part = _scan(
            file,
            data,
            start_offset=end,
            checksum1=sums[0],
            checksum2=sums[1],
            max_frame=min(limit, len(frames)),
        )
        if part.frames:
            pages = {p: o for p, o in pages.items() if p <= part.commit}
            pages |= zip(part.pgnos, part.offsets, strict=True)
        end, sums = part.end_offset, (part.checksum1, part.checksum2)
    assert end == whole.end_offset
    # A page beyond a commit in the middle may come from before it: that is the caller's rule.
    later = {p: o for p, o in zip(whole.pgnos, whole.offsets, strict=True) if p in pages}
    assert later == {p: o for p, o in pages.items() if p <= whole.commit}


@pytest.mark.fuzz
def test_changed_bytes_never_add_anything(file: int) -> None:
    rng = random.Random(11)
    frames = [Frame(rng.randint(1, 9), rng.choice([0, 9]), rng.randbytes(512)) for _ in range(12)]
    data = oracle.build(frames, 512)
    places = dict.fromkeys(range(32, len(data)))
    for _ in range(effort.times(500)):
        wrong = bytearray(data)
        place = rng.choice([*range(32), *places])
        wrong[place] ^= 1 << rng.randrange(8)
        cut = rng.choice([len(wrong), rng.randrange(len(wrong) + 1)])
        _fill(file, bytes(wrong[:cut]))
        try:
            header = _wal.parse_header(wrong[:cut])
        except WALError:
            continue
        if header is None:
            continue
        found = _wal.scan(file, header, max_frame=1 << 40)
        touched = (place - 32) // 536
        assert found.frames <= touched
        assert found.end_offset <= cut
