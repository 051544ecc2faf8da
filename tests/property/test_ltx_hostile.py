"""Hostile LTX files: truncated, changed, spliced.  Only pyrep's errors, never another outcome."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures import effort
from fixtures.ltxspec import encode, page, snapshot
from oracle import ltx as oracle
from oracle.crc64 import FLAG, crc64
from oracle.ltx import LTX, NO_CHECKSUM, ZSTD
from pyrep import ltxio
from pyrep.errors import LTXCorruptError, LTXError

pytestmark = pytest.mark.fuzz

# Small files of every kind: a snapshot, an increment, old frames, none at all, ours.
FILES: dict[str, bytes] = {
    "snapshot": encode(snapshot(512, 4)),
    "increment": oracle.encode(LTX(512, 9, {2: page(2, 512), 7: page(7, 512)})),
    "old": oracle.encode(LTX(512, 9, {2: page(2, 512), 7: page(7, 512)}), legacy=frozenset({2})),
    "empty": oracle.encode(LTX(1024, 3)),
    "zstd": encode(replace(snapshot(512, 4), flags=NO_CHECKSUM | ZSTD)),
    "mixed": oracle.encode(
        LTX(512, 9, {n: page(n, 512) for n in (2, 3, 7)}, flags=NO_CHECKSUM | ZSTD),
        zstd=frozenset({3}),
        legacy=frozenset({7}),
    ),
    "ours": encode(LTX(1024, 3, {3: page(3, 1024)}, reserved=b"PYR1" + bytes(16))),
}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    """Give a descriptor to apply and merge to."""
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def _verify(data: bytes, target: int, path: Path) -> None:
    ltxio.verify(io.BytesIO(data))


_BASE_BYTES = 1 << 20


def _apply(data: bytes, target: int, path: Path) -> None:
    os.ftruncate(target, _BASE_BYTES)  # increments need a database to grow from
    ltxio.apply(io.BytesIO(data), target)


def _apply_parallel(data: bytes, target: int, path: Path) -> None:
    def opener(offset: int, size: int) -> io.BytesIO:
        assert 0 <= offset <= offset + size <= len(data)
        return io.BytesIO(data[offset : offset + size])

    os.ftruncate(target, _BASE_BYTES)
    ltxio.apply_parallel(opener, len(data), target, 2)


def _merge(data: bytes, target: int, path: Path) -> None:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        ltxio.merge([fd], target)
    finally:
        os.close(fd)


WAYS: list[Callable[[bytes, int, Path], None]] = [_verify, _apply, _apply_parallel, _merge]


def _content(data: bytes) -> tuple[bytes, dict[int, bytes]]:
    return data[:100], dict(ltxio.pages(io.BytesIO(data)))


def _refused_or_the_same(name: str, wrong: bytes, target: int, path: Path, ways: int) -> bool:
    """Check that a changed file is refused by all ways, and return True.

    The one exception is a compressed block that decodes to the same page in another way: the
    checksums cover the page.
    """
    for way in WAYS[:ways]:
        try:
            way(wrong, target, path)
        except LTXCorruptError:
            continue
        assert _content(wrong) == _content(FILES[name])
        return False
    return True


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FILES)
def test_the_files_themselves_are_good(
    name: str, way: Callable[[bytes, int, Path], None], target: int, tmp_path: Path
) -> None:
    way(FILES[name], target, tmp_path / "x")


@pytest.mark.parametrize("name", FILES)
def test_every_truncation(name: str, target: int, tmp_path: Path) -> None:
    data = FILES[name]
    for size in range(len(data)):
        for way in WAYS[: 4 if size % 13 == 0 else 1]:
            with pytest.raises(LTXCorruptError):
                way(data[:size], target, tmp_path / "x")


@pytest.mark.parametrize("name", FILES)
def test_changed_bytes(name: str, target: int, tmp_path: Path) -> None:
    data = FILES[name]
    rng = random.Random(name)
    for round_no in range(effort.times(500)):
        wrong = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            wrong[rng.randrange(len(wrong))] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
            )
        if wrong == data:
            continue
        for way in WAYS[: 4 if round_no % 10 == 0 else 1]:
            with pytest.raises(LTXCorruptError):
                way(bytes(wrong), target, tmp_path / "x")


@pytest.mark.parametrize("name", FILES)
def test_every_byte_counts(name: str, target: int, tmp_path: Path) -> None:
    data = FILES[name]
    accepted = 0
    for place in range(len(data)):
        wrong = bytearray(data)
        wrong[place] ^= 1 << place % 8
        accepted += not _refused_or_the_same(name, bytes(wrong), target, tmp_path / "x", 1)
    assert accepted < len(data) // 20


@pytest.mark.parametrize("name", FILES)
def test_pieces_put_elsewhere(name: str, target: int, tmp_path: Path) -> None:
    data = FILES[name]
    rng = random.Random(name)
    for _ in range(effort.times(200)):
        low, high = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        place = rng.randrange(len(data) + 1)
        wrong = rng.choice(
            [
                data[:low] + data[high:],
                data[:high] + data[low:],
                data[:place] + data[low:high] + data[place:],
                data[:place] + rng.randbytes(8) + data[place:],
            ]
        )
        if wrong != data:
            _refused_or_the_same(name, wrong, target, tmp_path / "x", 1)


def _resealed(data: bytearray) -> bytes:
    """Give a file without pages that was changed the checksum it then has."""
    return bytes(data[:-8]) + (crc64(data[:-8]) | FLAG).to_bytes(8, "big")


def test_a_right_checksum_does_not_excuse_a_wrong_shape() -> None:
    """What a forger can seal: header fields and tail of a file without pages."""
    data = FILES["empty"]
    rng = random.Random(5)
    refused = accepted = 0
    for _ in range(effort.times(500)):
        wrong = bytearray(data)
        wrong[rng.randrange(len(wrong) - 8)] ^= 1 << rng.randrange(8)
        try:
            header = ltxio.verify(io.BytesIO(_resealed(wrong)))
        except LTXError:
            refused += 1
        else:
            accepted += 1
            assert header.pack() == bytes(wrong[:100])
            assert wrong[100:] == bytearray(data[100:-8]) + wrong[-8:]
    assert refused
    assert accepted
