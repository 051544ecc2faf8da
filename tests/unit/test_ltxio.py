"""Whole files: the writer, verify, pages, apply on one thread and on several, merge."""

from __future__ import annotations

import io
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from fixtures.ltxspec import PAGE_SIZES, encode, header_of, page, snapshot, write
from fixtures.wal import opened
from oracle import ltx as oracle
from oracle.crc64 import crc64, rolling_checksum
from oracle.ltx import LTX
from pyrep import ltxio, osfs
from pyrep.errors import LTXChecksumError, LTXCorruptError, LTXError, LTXGapError


class Trickle(io.RawIOBase):
    """A stream that only has ``read`` and gives little at a time, as a network may."""

    readinto = None  # type: ignore[assignment]

    def __init__(self, data: bytes, most: int = 100) -> None:
        self._source = io.BytesIO(data)
        self._most = most

    def readable(self) -> bool:
        """Say yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read at most a little."""
        return self._source.read(min(size, self._most) if size >= 0 else self._most)


def _streams(data: bytes) -> list[BinaryIO]:
    return [io.BytesIO(data), io.BufferedReader(io.BytesIO(data)), Trickle(data)]  # type: ignore[list-item]


@contextmanager
def _new(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def _disarmed() -> Iterator[None]:
    yield
    osfs.disarm()


def _incremental(page_size: int = 512) -> LTX:
    return LTX(page_size, 9, {n: page(n, page_size) for n in (2, 3, 7)}, 3, 4)


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_read_whole_files(page_size: int) -> None:
    ltx = _incremental(page_size)
    data = encode(ltx)
    for stream in _streams(data):
        assert dict(ltxio.pages(stream)) == ltx.pages
    for stream in _streams(data):
        header, pgnos, crcs = ltxio.page_crcs(stream)
        assert (header.min_txid, header.max_txid) == (3, 4)
        assert dict(zip(pgnos, crcs, strict=True)) == {n: crc64(p) for n, p in ltx.pages.items()}
        assert (pgnos.typecode, crcs.typecode) == ("I", "Q")
    for stream in _streams(data):
        assert ltxio.verify(stream).pack() == data[:100]
    for stream in _streams(data):
        assert ltxio.read_header(stream).pack() == data[:100]


def test_read_header_reads_no_further() -> None:
    stream = io.BytesIO(encode(_incremental()))
    ltxio.read_header(stream)
    assert stream.tell() == 100


def test_more_pages_than_one_batch_and_window() -> None:
    ltx = snapshot(512, 3000)
    header, pgnos, crcs = ltxio.page_crcs(io.BytesIO(encode(ltx)))
    assert header.commit == 3000
    assert list(pgnos) == list(range(1, 3001))
    assert crcs[2999] == crc64(ltx.pages[3000])


def _applied(source: BinaryIO, **named: str) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(9 * 512)
        ltxio.apply(source, file.fileno(), **named)


READERS: list[Callable[..., Any]] = [
    ltxio.verify,
    ltxio.page_crcs,
    lambda source, **named: list(ltxio.pages(source, **named)),
    _applied,
]


@pytest.mark.parametrize("reader", READERS)
def test_errors_name_the_file(reader: Callable[..., Any]) -> None:
    data = encode(LTX(512, 9, {}, 3, 4))
    wrong = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(LTXChecksumError, match=r"^level 1 of x: file checksum mismatch") as caught:
        reader(io.BytesIO(wrong), name="level 1 of x")
    error = caught.value
    assert (error.path, error.op, error.min_txid, error.max_txid) == (
        "level 1 of x",
        "decode",
        3,
        4,
    )
    with pytest.raises(LTXCorruptError, match=r"^x: the file is cut off"):
        reader(io.BytesIO(data[:-1]), name="x")
    with pytest.raises(LTXCorruptError, match=r"^the file is cut off"):
        reader(io.BytesIO(data[:-1]))
    with pytest.raises(LTXCorruptError, match=r"^x: bytes after the trailer"):
        reader(Trickle(data + bytes(400)), name="x")
    with pytest.raises(LTXCorruptError, match=r"^x: short header: 3 bytes"):
        reader(io.BytesIO(b"LTX"), name="x")


def test_read_header_names_the_file() -> None:
    with pytest.raises(LTXCorruptError, match=r"^x: not an LTX file"):
        ltxio.read_header(io.BytesIO(bytes(100)), name="x")


def test_foreign_errors_pass_through() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise TimeoutError("too slow")

        readinto = None  # type: ignore[assignment]

    with pytest.raises(TimeoutError, match="too slow"):
        ltxio.verify(Broken(), name="x")  # type: ignore[arg-type]


# --- apply -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_apply_a_chain(tmp_path: Path, page_size: int) -> None:
    chain = [
        snapshot(page_size, 6),
        LTX(page_size, 9, {n: page(n + 50, page_size) for n in (1, 3, 4, 7, 8, 9)}, 2, 2),
        LTX(page_size, 3, {2: page(99, page_size)}, 3, 3),
        LTX(page_size, 5, {4: page(97, page_size), 5: page(98, page_size)}, 4, 5),
    ]
    expected = b""
    path = tmp_path / "db"
    with _new(path) as fd:
        for ltx in chain:
            expected = oracle.apply(expected, ltx)
            header = ltxio.apply(io.BytesIO(encode(ltx)), fd)
            assert header.max_txid == ltx.max_txid
            assert path.read_bytes() == expected


def test_growth_without_its_pages_is_refused(tmp_path: Path) -> None:
    with _new(tmp_path / "db") as fd:
        ltxio.apply(io.BytesIO(encode(snapshot(512, 3))), fd)
        short = encode(LTX(512, 5, {5: page(98, 512)}, 2, 2))
        with pytest.raises(LTXCorruptError, match=r"pages are missing: .* from 3 to 5 pages"):
            ltxio.apply(io.BytesIO(short), fd)


def _opener(data: bytes, calls: list[tuple[int, int]] | None = None) -> ltxio.Opener:
    def opener(offset: int, size: int) -> BinaryIO:
        if calls is not None:
            calls.append((offset, size))
        assert offset >= 0
        assert size > 0
        assert offset + size <= len(data)
        return io.BytesIO(data[offset : offset + size])

    return opener


@pytest.fixture
def _small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ltxio, "MIN_SPAN_BYTES", 5000)
    monkeypatch.setattr(ltxio, "MAX_SPAN_BYTES", 20_000)


@pytest.mark.usefixtures("_small_spans")
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_apply_parallel(tmp_path: Path, threads: int) -> None:
    ltx = snapshot(1024, 800)
    data = encode(ltx)
    calls: list[tuple[int, int]] = []
    with _new(tmp_path / "db") as fd:
        header = ltxio.apply_parallel(_opener(data, calls), len(data), fd, threads)
    assert header.pack() == data[:100]
    assert (tmp_path / "db").read_bytes() == oracle.apply(b"", ltx)
    assert len(calls) > 8
    pieces = sorted((o, s) for o, s in calls if o >= 100 and o + s < len(data) - 24)
    assert sum(size for _, size in pieces) <= len(data)


@pytest.mark.usefixtures("_small_spans")
def test_apply_parallel_on_top_of_a_database(tmp_path: Path) -> None:
    base = snapshot(1024, 100)
    ltx = LTX(1024, 90, {n: page(n + 7, 1024) for n in range(2, 90, 2)}, 2, 2)
    data = encode(ltx)
    with _new(tmp_path / "db") as fd:
        ltxio.apply(io.BytesIO(encode(base)), fd)
        ltxio.apply_parallel(_opener(data), len(data), fd, 2)
    assert (tmp_path / "db").read_bytes() == oracle.apply(oracle.apply(b"", base), ltx)


def test_apply_parallel_of_a_file_without_pages(tmp_path: Path) -> None:
    base, data = encode(snapshot(512, 6)), encode(LTX(512, 4, {}, 3, 4))
    with _new(tmp_path / "db") as fd:
        ltxio.apply_parallel(_opener(base), len(base), fd, 2)
        before = (tmp_path / "db").read_bytes()
        ltxio.apply_parallel(_opener(data), len(data), fd, 2)
    assert (tmp_path / "db").read_bytes() == before[:2048]


def test_apply_parallel_of_a_file_with_a_rolling_checksum(tmp_path: Path) -> None:
    pages = {n: page(n, 512) for n in range(1, 6)}
    post = rolling_checksum(pages.items())
    ltx = LTX(512, 5, pages, 1, 1, flags=0, post_apply=post)
    data = oracle.encode(ltx)
    with _new(tmp_path / "db") as fd:
        ltxio.apply_parallel(_opener(data), len(data), fd, 2)
        assert (tmp_path / "db").read_bytes() == oracle.apply(b"", ltx)
        wrong = oracle.encode(replace(ltx, post_apply=post ^ 1))
        with pytest.raises(LTXChecksumError, match="post-apply"):
            ltxio.apply_parallel(_opener(wrong), len(wrong), fd, 2)


@pytest.mark.usefixtures("_small_spans")
def test_apply_parallel_refuses_what_apply_refuses(tmp_path: Path) -> None:
    data = encode(snapshot(512, 400))
    places = [4, 99, 100, 110, 5000, len(data) // 2, len(data) - 600, len(data) - 24]
    with _new(tmp_path / "db") as fd:
        for place in [*places, *range(len(data) - 24, len(data)), *range(100, len(data), 4001)]:
            wrong = bytearray(data)
            wrong[place] ^= 0x55
            with pytest.raises(LTXCorruptError, match=r"^x: "):
                ltxio.apply_parallel(_opener(bytes(wrong)), len(wrong), fd, 2, name="x")
        for size in [*range(0, 200, 9), *range(200, len(data), 1001), len(data) - 1]:
            with pytest.raises(LTXCorruptError, match=r"^x: "):
                ltxio.apply_parallel(_opener(data[:size]), size, fd, 2, name="x")


def test_apply_parallel_sees_an_object_that_ends_early(tmp_path: Path) -> None:
    data = encode(snapshot(512, 400))

    def opener(offset: int, size: int) -> BinaryIO:
        cut = 9000 if offset == 100 else offset + size
        return io.BytesIO(data[offset:cut])

    with _new(tmp_path / "db") as fd, pytest.raises(LTXCorruptError, match="cut off"):
        ltxio.apply_parallel(opener, len(data), fd, 2)


@pytest.mark.usefixtures("_disarmed", "_small_spans")
@pytest.mark.parametrize("op", ["restore.write", "restore.truncate"])
def test_steps_of_apply_have_names(tmp_path: Path, op: str) -> None:
    data = encode(snapshot(512, 400))
    with _new(tmp_path / "db") as fd:
        osfs.arm([osfs.Failpoint(op, 1, "enospc")])
        with pytest.raises(OSError, match="no space left"):
            ltxio.apply(io.BytesIO(data), fd)
        osfs.arm([osfs.Failpoint(op, 1, "eio")])
        with pytest.raises(OSError, match="input/output error"):
            ltxio.apply_parallel(_opener(data), len(data), fd, 2)


# --- the writer --------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_writer(tmp_path: Path, page_size: int) -> None:
    count = 40
    database = b"".join(page(n, page_size) for n in range(1, count + 1))
    (tmp_path / "db").write_bytes(database)
    ltx = LTX(page_size, 60, {}, 7, 7, reserved=b"PYR1" + bytes(16))
    with opened(tmp_path / "db") as db_fd, _new(tmp_path / "ltx") as fd:
        writer = ltxio.LTXWriter(fd, header_of(ltx))
        first = array("I", range(1, count))
        crcs = writer.add_pages(db_fd, -1, first, array("q", [-1]) * len(first))
        assert writer.pages == count - 1
        writer.add_page(50, page(50, page_size))
        last = array("I", [51, 52])
        assert len(writer.add_pages(db_fd, -1, last, array("q", [-1, -1]))) == 2
        assert len(writer.add_pages(db_fd, -1, array("I"), array("q"))) == 0
        before = writer.size
        size = writer.finish(3, 4)
    data = (tmp_path / "ltx").read_bytes()
    assert before < size == len(data)
    decoded = oracle.decode(data)
    assert decoded.reserved == b"PYR1" + (3).to_bytes(8, "big") + (4).to_bytes(8, "big")
    assert decoded.pages[50] == page(50, page_size)
    assert decoded.pages[51] == bytes(page_size)
    assert list(crcs) == [crc64(page(n, page_size)) for n in first]
    assert oracle.apply(b"", decoded)[: len(database) - page_size] == database[:-page_size]


def test_writer_in_many_chunks(tmp_path: Path) -> None:
    rng_pages = {n: os.urandom(4096) for n in range(1, 701)}
    (tmp_path / "db").write_bytes(b"".join(rng_pages.values()))
    with opened(tmp_path / "db") as db_fd, _new(tmp_path / "ltx") as fd:
        writer = ltxio.LTXWriter(fd, header_of(LTX(4096, 700, {}, 1, 1)))
        writer.add_pages(db_fd, -1, array("I", range(1, 701)), array("q", [-1]) * 700)
        size = writer.finish(0, 0)
    assert size > 2 * ltxio.CHUNK_BYTES
    with (tmp_path / "ltx").open("rb") as source:
        assert dict(ltxio.pages(source)) == rng_pages


def test_an_unfinished_file_is_none(tmp_path: Path) -> None:
    with _new(tmp_path / "ltx") as fd:
        writer = ltxio.LTXWriter(fd, header_of(LTX(512, 900, {}, 7, 7)))
        for number in range(1, 900):
            writer.add_page(number, os.urandom(512))
    data = (tmp_path / "ltx").read_bytes()
    with pytest.raises(LTXCorruptError):
        ltxio.read_header(io.BytesIO(data))


@pytest.mark.usefixtures("_disarmed")
def test_steps_of_the_writer_have_names(tmp_path: Path) -> None:
    with _new(tmp_path / "ltx") as fd:
        writer = ltxio.LTXWriter(fd, header_of(LTX(512, 9, {}, 7, 7)), op="spool")
        writer.add_page(1, bytes(512))
        osfs.arm([osfs.Failpoint("spool.write", 1, "enospc")])
        with pytest.raises(OSError, match="no space left"):
            writer.finish(0, 0)


def test_writer_refuses_an_incomplete_snapshot(tmp_path: Path) -> None:
    with _new(tmp_path / "ltx") as fd:
        writer = ltxio.LTXWriter(fd, header_of(LTX(512, 2, {}, 1, 1)))
        writer.add_page(1, bytes(512))
        with pytest.raises(LTXError, match="incomplete snapshot"):
            writer.finish(0, 0)
    with pytest.raises(LTXCorruptError):
        ltxio.read_header(io.BytesIO((tmp_path / "ltx").read_bytes()))


# --- merge -------------------------------------------------------------------------------------


def _merge(tmp_path: Path, files: list[LTX], **options: Any) -> LTX:
    paths = [write(tmp_path / f"in-{n}", ltx) for n, ltx in enumerate(files)]
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        with _new(tmp_path / "merged") as fd:
            header, size = ltxio.merge(fds, fd, names=[path.name for path in paths], **options)
    finally:
        for source in fds:
            os.close(source)
    data = (tmp_path / "merged").read_bytes()
    assert size == len(data)
    assert header.pack() == data[:100]
    return oracle.decode(data)


def test_merge(tmp_path: Path) -> None:
    files = [snapshot(512, 700), LTX(512, 650, {5: page(9, 512)}, 2, 4)]
    assert _merge(tmp_path, files) == oracle.merge(files)


def test_merge_names_the_wrong_file(tmp_path: Path) -> None:
    with pytest.raises(LTXGapError, match="non-contiguous"):
        _merge(tmp_path, [snapshot(512, 3), LTX(512, 3, {}, 5, 5)])
    data = bytearray(encode(_incremental()))
    data[-1] ^= 1
    (tmp_path / "x").write_bytes(data)
    with opened(tmp_path / "x") as source, _new(tmp_path / "y") as fd:
        with pytest.raises(LTXChecksumError, match=r"^x: file checksum mismatch"):
            ltxio.merge([source], fd, names=["x"])
        with pytest.raises(LTXCorruptError):
            ltxio.read_header(io.BytesIO((tmp_path / "y").read_bytes()))


@pytest.mark.usefixtures("_disarmed")
def test_steps_of_merge_have_names(tmp_path: Path) -> None:
    osfs.arm([osfs.Failpoint("compact.write", 2, "enospc")])
    with pytest.raises(OSError, match="no space left"):
        _merge(tmp_path, [snapshot(512, 3)], op="compact")
