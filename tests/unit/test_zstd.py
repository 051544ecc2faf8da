"""zstd pages: written and read everywhere, beside LZ4 ones; hostile frames are refused."""

from __future__ import annotations

import gc
import io
import random
import subprocess
import sys
from array import array
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from fixtures.ltxspec import PAGE_SIZES, encode, header_of, page, snapshot
from fixtures.wal import opened
from oracle import ltx as oracle
from oracle.ltx import LTX, NO_CHECKSUM, ZSTD
from pyrep import ltxio, ltxwriter, zstdpages
from pyrep._ltx import FLAG_ZSTD, PAGE_FLAG_SIZE, PAGE_FLAG_ZSTD, Decoder, Encoder, Header
from pyrep.errors import LTXCorruptError, LTXError
from pyrep.zstdpages import ZstdPages

FLAGS = NO_CHECKSUM | ZSTD


def _frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return number, flags and compressed bytes of each page of a file."""
    found, place = [], 100
    while data[place : place + 6] != bytes(6):
        pgno, flags = int.from_bytes(data[place : place + 4]), data[place + 5]
        size = int.from_bytes(data[place + 6 : place + 10])
        found.append((pgno, flags, data[place + 10 : place + 10 + size]))
        place += 10 + size
    return found


def _zstd(ltx: LTX) -> LTX:
    return replace(ltx, flags=FLAGS)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_what_is_written_is_read(tmp_path: Path, page_size: int) -> None:
    ltx = _zstd(snapshot(page_size, 30))
    # What does not compress fits too.
    ltx = replace(ltx, pages={**ltx.pages, 7: random.Random(7).randbytes(page_size)})
    data = encode(ltx)
    assert {flags for _, flags, _ in _frames(data)} == {PAGE_FLAG_SIZE | PAGE_FLAG_ZSTD}
    assert int.from_bytes(data[4:8]) == FLAGS
    assert oracle.decode(data).pages == ltx.pages
    assert dict(ltxio.pages(io.BytesIO(data))) == ltx.pages
    assert ltxio.verify(io.BytesIO(data)).flags & FLAG_ZSTD
    header, pgnos, crcs = ltxio.page_crcs(io.BytesIO(data))
    assert (header.commit, list(pgnos)) == (30, list(range(1, 31)))
    assert len(crcs) == 30
    for _, _, frame in _frames(data):
        head = zstandard.get_frame_parameters(frame)
        assert (head.content_size, head.dict_id) == (page_size, 0)
    expected = oracle.apply(b"", ltx)
    for number, threads in enumerate((0, 1, 3)):
        path = tmp_path / f"out{number}"
        with path.open("w+b") as out:
            if threads:
                ltxio.apply_parallel(
                    lambda offset, size: io.BytesIO(data[offset : offset + size]),
                    len(data),
                    out.fileno(),
                    threads,
                )
            else:
                ltxio.apply(io.BytesIO(data), out.fileno())
        assert path.read_bytes() == expected


def test_all_three_kinds_in_one_file() -> None:
    pages = {n: page(n, 512) for n in (2, 3, 5, 7)}
    ltx = LTX(512, 9, pages, flags=FLAGS)
    data = oracle.encode(ltx, zstd=frozenset({3, 5}), legacy=frozenset({7}))
    assert dict(ltxio.pages(io.BytesIO(data))) == pages


def test_the_header_must_announce_zstd() -> None:
    ltx = LTX(512, 9, {3: page(3, 512)})
    data = oracle.encode(ltx, zstd=frozenset({3}))
    with pytest.raises(LTXCorruptError, match="unknown flags 0x0003 of page 3"):
        ltxio.verify(io.BytesIO(data))


@pytest.mark.parametrize("flags", [2, 4, 5, 7])
def test_other_flags_are_unknown(flags: int) -> None:
    data = bytearray(oracle.encode(LTX(512, 9, {3: page(3, 512)}, flags=FLAGS)))
    data[105] = flags
    with pytest.raises(LTXCorruptError, match=f"unknown flags 0x000{flags} of page 3"):
        ltxio.verify(io.BytesIO(data))


def test_levels_make_a_difference() -> None:
    text = b" ".join(b"customer %d owes %d" % (n, n * 7919 % 1000) for n in range(3000))
    ltx = LTX(65536, 9, {3: text[:65536]}, flags=FLAGS)
    sizes = []
    for level in (1, None, 19):
        encoder = Encoder(header_of(ltx), zstd_level=level)
        sizes.append(encoder.add_page(3, ltx.pages[3], bytearray(70_000)))
    assert len(set(sizes)) == 3


@pytest.mark.parametrize("level", [None, 1])
def test_threads_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int | None
) -> None:
    (tmp_path / "db").write_bytes(b"".join(page(n, 4096) for n in range(1, 200)))
    files = []
    for parallel in (1 << 60, 0):
        monkeypatch.setattr(ltxwriter, "PARALLEL_BYTES", parallel)
        monkeypatch.setattr(ltxwriter, "PART_BYTES", 1 << 16)
        monkeypatch.setattr(ltxwriter, "_cores", 2)
        with (tmp_path / "ltx").open("w+b") as out, opened(tmp_path / "db") as db:
            header = header_of(LTX(4096, 199, {}, 1, 1, flags=FLAGS))
            writer = ltxio.LTXWriter(out.fileno(), header, zstd_level=level)
            writer.add_pages(db, -1, array("I", range(1, 200)), array("q", [-1]) * 199)
            writer.finish(0, 0)
        files.append((tmp_path / "ltx").read_bytes())
    assert files[0] == files[1]
    assert oracle.decode(files[0]).commit == 199


# --- merging -----------------------------------------------------------------------------------


def _merge(folder: Path, files: list[bytes], level: int | None) -> bytes:
    with ExitStack() as stack:
        fds = []
        for number, data in enumerate(files):
            path = folder / f"input-{number}"
            path.write_bytes(data)
            fds.append(stack.enter_context(opened(path)))
        out = stack.enter_context((folder / "merged").open("w+b"))
        names = [f"file {number}" for number in range(len(files))]
        ltxio.merge(fds, out.fileno(), names=names, zstd_level=level)
    return (folder / "merged").read_bytes()


def _chain() -> list[LTX]:
    second = LTX(1024, 10, {n: page(90 + n, 1024) for n in (2, 9, 10)}, 2, 2)
    third = LTX(1024, 7, {n: page(70 + n, 1024) for n in (1, 7)}, 3, 3)
    return [snapshot(1024, 8), second, third]


@pytest.mark.parametrize("level", [None, 3])
@pytest.mark.parametrize("kinds", ["lll", "zzz", "lzl", "zlz", "oll", "ozz", "mmm"])
def test_any_mixture_merges(tmp_path: Path, kinds: str, level: int | None) -> None:
    files = []
    for kind, ltx in zip(kinds, _chain(), strict=True):
        numbers = sorted(ltx.pages)
        if kind == "l":
            files.append(encode(ltx))
        elif kind == "z":
            files.append(encode(_zstd(ltx)))
        elif kind == "o":
            files.append(oracle.encode(ltx, legacy=frozenset(numbers[::2])))
        else:
            files.append(oracle.encode(_zstd(ltx), zstd=frozenset(numbers[::2])))
    data = _merge(tmp_path, files, level)
    merged = oracle.decode(data)
    assert merged.pages == oracle.merge(_chain()).pages
    assert merged.flags == (NO_CHECKSUM if level is None else FLAGS)
    wanted = PAGE_FLAG_SIZE | (0 if level is None else PAGE_FLAG_ZSTD)
    assert {flags for _, flags, _ in _frames(data)} == {wanted}


@pytest.mark.parametrize("level", [None, 19])
def test_what_is_compressed_so_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int | None
) -> None:
    def never(self: ZstdPages, data: bytes) -> bytes:
        raise AssertionError("compressed anew")

    files = [encode(ltx if level is None else _zstd(ltx)) for ltx in _chain()]
    monkeypatch.setattr(ZstdPages, "compress", never)
    merged = _frames(_merge(tmp_path, files, level))
    there = {frame for data in files for frame in _frames(data)}
    assert set(merged) < there


def test_a_damaged_input_is_named(tmp_path: Path) -> None:
    ltx = _zstd(snapshot(512, 4))
    data = bytearray(encode(ltx))
    data[data.index(_frames(bytes(data))[2][2]) + 12] ^= 0xFF
    with pytest.raises(LTXCorruptError) as caught:
        _merge(tmp_path, [bytes(data)], None)
    assert caught.value.path == "file 0"


# --- hostile frames ----------------------------------------------------------------------------


def _head(descriptor: int, fields: bytes) -> bytes:
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + fields


def _run(count: int) -> bytes:
    """Return a last block of ``count`` equal bytes."""
    return (1 | 1 << 1 | count << 3).to_bytes(3, "little") + b"a"


_SIZE_512 = (512 - 256).to_bytes(2, "little")
_GOOD = _head(0x60, _SIZE_512) + _run(512)
_TRAINED = zstandard.train_dictionary(4096, [page(n, 512) for n in range(400)])

HOSTILE = {
    "a terabyte": (_head(0xE0, (1 << 40).to_bytes(8, "little")) + _run(512), "not one page"),
    "no size": (_head(0x00, b"\x00") + _run(512), "not one page"),
    "twice the size": (_head(0x60, (768).to_bytes(2, "little")) + _run(1024), "not one page"),
    "a gigabyte of window": (
        _head(0x80, bytes([20 << 3]) + (512).to_bytes(4, "little")) + _run(512),
        "a window of 1073741824 bytes",
    ),
    "less than it says": (_head(0x60, _SIZE_512) + _run(511), "broken zstd frame"),
    "more than it says": (_head(0x60, _SIZE_512) + _run(513), "broken zstd frame"),
    "one byte after it": (_GOOD + b"x", "unused data"),
    "another frame after it": (_GOOD + _GOOD, "unused data"),
    "skippable": (b"\x50\x2a\x4d\x18" + (512).to_bytes(4, "little") + bytes(512), "broken"),
    "skippable before it": (b"\x50\x2a\x4d\x18\x01\0\0\0x" + _GOOD, "not one page"),
    "a dictionary by number": (_head(0x61, b"\x05" + _SIZE_512) + _run(512), "dictionary"),
    "a real dictionary": (
        zstandard.ZstdCompressor(dict_data=_TRAINED).compress(page(3, 512)),
        "dictionary",
    ),
    "a wrong magic": (b"\x28\xb5\x2f\xfe" + _GOOD[4:], "broken zstd frame of page 3"),
    "one byte": (b"\x28", "broken zstd frame of page 3"),
    "cut off": (_GOOD[:-1], "broken zstd frame of page 3"),
    "reserved block": (_head(0x60, _SIZE_512) + b"\x07\0\0", "broken zstd frame of page 3"),
}


def _file(frame: bytes) -> bytes:
    """Return a file whose page 3 is stored as ``frame``; only the checksum is not right."""
    ltx = LTX(512, 9, {3: b"a" * 512}, flags=FLAGS)
    index = b"\x03" + oracle.uvarint(100) + oracle.uvarint(10 + len(frame)) + b"\0"
    tail = bytes(6) + index + len(index).to_bytes(8) + bytes(8) + (1 << 63).to_bytes(8)
    return ltx.header() + oracle.zstd_frame(3, frame) + tail


def test_the_good_frame_is_good() -> None:
    assert ZstdPages(512).decompress(_GOOD) == b"a" * 512
    with pytest.raises(LTXCorruptError, match="file checksum mismatch"):
        ltxio.verify(io.BytesIO(_file(_GOOD)))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frames_are_refused(tmp_path: Path, name: str) -> None:
    frame, message = HOSTILE[name]
    data = _file(frame)
    with pytest.raises(LTXCorruptError, match=message) as caught:
        ltxio.verify(io.BytesIO(data), name="it")
    assert "page 3" in caught.value.message
    assert caught.value.path == "it"
    with pytest.raises(LTXCorruptError, match=message):
        _merge(tmp_path, [data], None)


def test_a_frame_larger_than_any_page_needs_is_not_even_read() -> None:
    frame = zstandard.ZstdCompressor().compress(random.Random(1).randbytes(600))
    with pytest.raises(LTXCorruptError, match="impossible compressed size"):
        ltxio.verify(io.BytesIO(_file(frame)))


# --- what python-zstandard does ----------------------------------------------------------------


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(_zstd(snapshot(512, 2)))
    plain = encode(snapshot(512, 2))
    zstdpages._library.cache_clear()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    try:
        with pytest.raises(LTXError, match="zstd pages need python-zstandard") as caught:
            ltxio.verify(io.BytesIO(data))
        assert "Install" in caught.value.hint
        ltxio.verify(io.BytesIO(plain))
    finally:
        zstdpages._library.cache_clear()


def test_lz4_loads_nothing() -> None:
    code = (
        "import io, sys\n"
        "from pyrep import ltxio\n"
        "ltxio.verify(io.BytesIO(bytes.fromhex(sys.argv[1])))\n"
        "sys.exit('zstandard' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, encode(snapshot(512, 2)).hex()], check=False)
    assert done.returncode == 0


class _Interrupt(ZstdPages):
    def decompress(self, frame: bytes) -> bytes:
        raise KeyboardInterrupt

    def compress(self, page: bytes) -> bytes:
        raise MemoryError("none left")


def test_other_errors_pass_through_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(_zstd(snapshot(512, 2)))
    monkeypatch.setattr(zstdpages, "ZstdPages", _Interrupt)
    with pytest.raises(KeyboardInterrupt):
        ltxio.verify(io.BytesIO(data))
    with pytest.raises(MemoryError, match="none left"):
        encode(_zstd(snapshot(512, 2)))
    with pytest.raises(MemoryError, match="none left"):
        _merge(tmp_path, [encode(snapshot(512, 2))], 3)


def test_a_frame_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZstdPages, "compress", lambda self, page: bytes(1000))
    with pytest.raises(LTXError, match="1000 bytes are more than"):
        encode(_zstd(snapshot(512, 2)))


def test_objects_do_not_pile_up() -> None:
    data = encode(_zstd(snapshot(512, 2)))

    def alive() -> int:
        gc.collect()
        return Counter(type(o).__name__ for o in gc.get_objects())["ZstdPages"]

    before = alive()
    for _ in range(20):
        ltxio.verify(io.BytesIO(data))
        Decoder(Header.parse(data))
    assert alive() == before
