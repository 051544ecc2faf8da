"""How fast is the native core on one core, beside what it is built on?

Question: do the checksum, the encoder, the decoder, the merge and the WAL reader run at the speed
of the processor and of liblz4?  Method: the database ``oltp`` of corpus.py, in the page cache (the
other corpora beside it: what a compressor makes of them); each row is the best and the
median of several rounds in this one process, the compared code in turn with ours, so that a
machine that slows down slows both.  Rows of one core count processor time, those of two threads
go by the clock.  Every result is checked before anything is timed.

"bare liblz4" is a loop in C (bare_lz4.h) that calls LZ4_compress_default (LZ4_decompress_safe) for
each page and nothing else.  Ours reads the pages from the database file and writes frames, index
and checksums; what it is measured by reads them from that file too, with the same calls.
The loop over pages that lie in memory already is printed beside it.

Known noise: other work on the machine; look at the ratio, not at the figures.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import corpus
from corpus import PAGE_SIZE
from pyrep import _checksum, _ltx, _wal, ltxio
from rows import Report, Row, verdict

GB = 1e9

Timed = Callable[[], float]


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of this thread that a call takes."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def elapsed(call: Callable[[], object]) -> float:
    """Return how long a call takes by the clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rounds(count: int, *calls: Timed) -> list[list[float]]:
    """Run the calls in turn, ``count`` times, after one round that does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(count + 1):
        for call, kept in zip(calls, times, strict=True):
            taken = call()
            if number:
                kept.append(taken)
    return times


def rate(size: int, times: list[float]) -> str:
    """Return the best and the median rate."""
    return f"{best(size, times):.2f} GB/s (median {size / statistics.median(times) / GB:.2f})"


def best(size: int, times: list[float]) -> float:
    """Return the best rate in GB/s."""
    return size / min(times) / GB


def beside(name: str, text: str) -> Row:
    """Return a row without a target."""
    return Row(name, "", text, verdict(None))


# --- checksums ---------------------------------------------------------------------------------


def bench_crc(report: Report, data: bytes, count: int) -> None:
    """Measure CRC-64 of pages, each implementation on its own; the one in use has the target."""
    pages = len(data) // PAGE_SIZE
    sums: dict[str, array[int]] = {}
    chosen = _checksum.implementation()

    def timed(name: str) -> Timed:
        def call() -> float:
            _checksum.select(name)
            sums[name] = array("Q", bytes(8 * pages))
            return seconds(lambda: _checksum.crc64_pages(data, PAGE_SIZE, sums[name]))

        return call

    names = _checksum.available()
    times = dict(zip(names, rounds(count, *map(timed, names)), strict=True))
    _checksum.select(chosen)
    check(all(found == sums["table"] for found in sums.values()), "page checksums differ")
    table = best(len(data), times["table"])
    for name in names:
        text, title = rate(len(data), times[name]), f"CRC-64 of pages, {name}"
        if name != chosen:
            report.add(beside(title, text))
            continue
        found = best(len(data), times[name])
        numbers = {"gb_per_second": found, "bare_gb_per_second": table}
        report.add(Row(title, ">= 8 GB/s", text, verdict(found >= 8), "crc", numbers=numbers))


# --- encode and decode -------------------------------------------------------------------------


class BareLZ4:
    """Run liblz4 alone over the pages (bare_lz4.h)."""

    def __init__(self, folder: Path, data: bytes) -> None:
        library = ctypes.CDLL(str(self._build(folder)))
        self._compress, self._decompress = library.bare_compress, library.bare_decompress
        self._read = library.bare_read_and_compress
        for function in (self._compress, self._decompress, self._read):
            function.restype = ctypes.c_size_t
        self._count = ctypes.c_size_t(len(data) // PAGE_SIZE)
        self._size = len(data)
        self._pages = data
        self._room = (ctypes.c_char * (len(data) + len(data) // 64))()
        self._sizes = (ctypes.c_int32 * self._count.value)()
        self._small = (ctypes.c_char * (64 * PAGE_SIZE))()
        self._compressed = self._run_compress()
        self.share = self._compressed / len(data)

    @staticmethod
    def _build(folder: Path) -> Path:
        source = Path(__file__).with_name("bare_lz4.h")
        library = folder / "bare_lz4.so"
        compiler = os.environ.get("CC", "cc")
        flags = ["-O3", "-shared", "-fPIC", "-x", "c", str(source), "-x", "none"]
        libs = os.environ.get("PYREP_LZ4_LIBS", "-l:liblz4.so.1").split()
        subprocess.run([compiler, *flags, "-o", str(library), *libs], check=True)
        return library

    def _run_compress(self) -> int:
        room = ctypes.c_size_t(len(self._room))
        return int(
            self._compress(self._pages, self._count, PAGE_SIZE, self._room, room, self._sizes)
        )

    def _run_decompress(self) -> None:
        total = self._decompress(self._room, self._count, PAGE_SIZE, self._small, self._sizes)
        check(total == self._size, "liblz4 did not decompress its own blocks")

    def _run_read(self, fd: int) -> None:
        room = ctypes.c_size_t(len(self._room))
        used = self._read(fd, self._count, PAGE_SIZE, self._room, room, self._small, self._sizes)
        check(used == self._compressed, "liblz4 compressed something else")

    def compress(self) -> float:
        """Compress every page in memory; return the seconds."""
        return seconds(self._run_compress)

    def read_and_compress(self, fd: int) -> float:
        """Read every page from a file and compress it; return the seconds."""
        return seconds(lambda: self._run_read(fd))

    def decompress(self) -> float:
        """Decompress every block; return the seconds."""
        return seconds(self._run_decompress)


def header(commit: int, low: int, high: int) -> _ltx.Header:
    """Return the header of a file to encode."""
    return _ltx.Header(
        page_size=PAGE_SIZE, commit=commit, min_txid=low, max_txid=high, timestamp_ms=1
    )


def encode(fd: int, head: _ltx.Header, pgnos: array[int], room: bytearray) -> list[memoryview]:
    """Encode pages of a database file; return the file in pieces that lie in ``room``."""
    encoder = _ltx.Encoder(head)
    offsets = array("q", [-1]) * len(pgnos)
    crcs = array("Q", bytes(8 * len(pgnos)))
    view, used, start = memoryview(room), 0, 0
    while start < len(pgnos):
        chunk = view[used : used + (1 << 20)]
        start, size = encoder.add_pages(fd, -1, pgnos, offsets, start, chunk, crcs)
        used += size
    first, tail = encoder.finish(0, 0)
    return [memoryview(first), view[:used], memoryview(tail)]


def bench_encode(report: Report, path: Path, bare: BareLZ4, count: int) -> bytes:
    """Measure encoding a snapshot; return it."""
    size = path.stat().st_size
    pages = size // PAGE_SIZE
    room = bytearray(size + (2 << 20))
    head, pgnos = header(pages, 1, 1), array("I", range(1, pages + 1))
    fd = os.open(path, os.O_RDONLY)
    try:
        data = b"".join(encode(fd, head, pgnos, room))
        check(decoded(data) == path.read_bytes(), "the encoded file holds other pages")
        ours, theirs, memory = rounds(
            3 * count,
            lambda: seconds(lambda: encode(fd, head, pgnos, room)),
            lambda: bare.read_and_compress(fd),
            bare.compress,
        )
    finally:
        os.close(fd)
    ratio = min(theirs) / min(ours)
    report.add(beside("bare liblz4, pages in memory", rate(size, memory)))
    report.add(beside("bare liblz4, pages read", rate(size, theirs)))
    text = (
        f"{rate(size, ours)}, {ratio:.0%} of bare liblz4, {min(memory) / min(ours):.0%} of memory, "
        f"pages compress to {bare.share:.0%}"
    )
    numbers = {"gb_per_second": best(size, ours), "bare_gb_per_second": best(size, theirs)}
    target = ">= 90 % of bare liblz4"
    report.add(
        Row(
            "LTX encode, pages read", target, text, verdict(ratio >= 0.9), "encode", numbers=numbers
        )
    )
    return data


def decoded(data: bytes) -> bytes:
    """Return a snapshot's pages one after the other."""
    return b"".join(page for _, page in ltxio.pages(io.BytesIO(data)))


def bench_decode(report: Report, data: bytes, size: int, bare: BareLZ4, count: int) -> None:
    """Measure decoding with all checks."""

    def ours() -> float:
        return seconds(lambda: ltxio.verify(io.BytesIO(data)))

    mine, theirs = rounds(count, ours, bare.decompress)
    report.add(beside("bare liblz4, decompress", rate(size, theirs)))
    found = best(size, mine)
    numbers = {"gb_per_second": found, "bare_gb_per_second": best(size, theirs)}
    title, text = "LTX decode and verify", rate(size, mine)
    report.add(Row(title, ">= 2 GB/s", text, verdict(found >= 2), "decode", numbers=numbers))


def bench_other(report: Report, folder: Path, kind: str, mib: int, count: int) -> None:
    """Show what encoding and decoding of another corpus takes."""
    path = folder / kind
    made = corpus.make(kind, path, mib)
    pages = made.size // PAGE_SIZE
    room, head = bytearray(made.size + (2 << 20)), header(pages, 1, 1)
    pgnos = array("I", range(1, pages + 1))
    fd = os.open(path, os.O_RDONLY)
    try:
        data = b"".join(encode(fd, head, pgnos, room))
        check(decoded(data) == path.read_bytes(), f"the encoded file of {kind} holds other pages")
        up, down = rounds(
            count,
            lambda: seconds(lambda: encode(fd, head, pgnos, room)),
            lambda: seconds(lambda: ltxio.verify(io.BytesIO(data))),
        )
    finally:
        os.close(fd)
    text = (
        f"encode {rate(made.size, up)}, decode {rate(made.size, down)}, "
        f"pages compress to {len(data) / made.size:.0%}"
    )
    report.add(beside(f"corpus {made.kind}", text))
    path.unlink()


# --- merge -------------------------------------------------------------------------------------


def merged(fds: list[int], sizes: list[int], room: memoryview) -> tuple[_ltx.Header, list[bytes]]:
    """Merge files into a buffer that is used again and again."""
    merger = _ltx.Merger(fds, sizes)
    while merger.pages_into(room):
        pass
    return merger.header, list(merger.finish())


def bench_merge(report: Report, folder: Path, path: Path, snapshot: bytes, count: int) -> None:
    """Measure merging a snapshot with a file that replaces every fourth page."""
    size = path.stat().st_size
    pages = size // PAGE_SIZE
    fd = os.open(path, os.O_RDONLY)
    room = bytearray(size + (2 << 20))
    every_fourth = array("I", range(4, pages + 1, 4))
    change = b"".join(encode(fd, header(pages, 2, 2), every_fourth, room))
    os.close(fd)
    files = [folder / "snapshot.ltx", folder / "change.ltx"]
    for file, content in zip(files, (snapshot, change), strict=True):
        file.write_bytes(content)
    fds = [os.open(file, os.O_RDONLY) for file in files]
    sizes = [len(snapshot), len(change)]
    try:
        check_merge(folder, fds, path)
        (times,) = rounds(
            count, lambda: seconds(lambda: merged(fds, sizes, memoryview(room)[: 1 << 20]))
        )
    finally:
        for opened in fds:
            os.close(opened)
    found, text = best(size, times), f"{rate(size, times)} of merged pages"
    numbers = {"gb_per_second": found}
    report.add(
        Row(
            "merge of two files",
            ">= 1.5 GB/s",
            text,
            verdict(found >= 1.5),
            "merge",
            numbers=numbers,
        )
    )


def check_merge(folder: Path, fds: list[int], path: Path) -> None:
    """Check that the merged file has the database's pages."""
    out = os.open(folder / "merged.ltx", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        ltxio.merge(fds, out)
    finally:
        os.close(out)
    found = decoded((folder / "merged.ltx").read_bytes())
    check(found == path.read_bytes(), "the merged file holds other pages")


# --- WAL ---------------------------------------------------------------------------------------


def make_wal(path: Path, megabytes: int) -> None:
    """Let SQLite write a WAL of about so many megabytes."""
    rng = random.Random(21)
    live = path.with_suffix(".live")
    with closing(sqlite3.connect(live)) as db:
        db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)")
        while os.path.getsize(f"{live}-wal") < megabytes << 20:
            rows = [(rng.randrange(4000), rng.randbytes(2000)) for _ in range(200)]
            db.executemany("INSERT OR REPLACE INTO t VALUES (?, ?)", rows)
            db.commit()
        path.write_bytes(Path(f"{live}-wal").read_bytes())


def scan(path: Path) -> _wal.WALScan:
    """Read a whole WAL."""
    fd = os.open(path, os.O_RDONLY)
    try:
        head = _wal.parse_header(os.pread(fd, 32, 0))
        if head is None:
            sys.exit("wrong result: no WAL was written")
        return _wal.scan(fd, head, max_frame=1 << 40)
    finally:
        os.close(fd)


def side_by_side(work: Callable[[int], object], count: int) -> float:
    """Do the same work on some threads at once; return the seconds until all are done."""
    gate = threading.Barrier(count + 1)

    def run(number: int) -> None:
        gate.wait()
        work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    gate.wait()
    return elapsed(lambda: [thread.join() for thread in threads])


def bench_wal(report: Report, folder: Path, megabytes: int, count: int) -> None:
    """Measure the WAL reader on one thread, and on two threads with a file each.

    The same is done with bytes in memory, which shows whether two cores were free at all.
    """
    paths = [folder / "one.wal", folder / "two.wal"]
    for path in paths:
        make_wal(path, megabytes)
    size = paths[0].stat().st_size
    check(scan(paths[0]).end_offset == size, "frames of the WAL were refused")
    data = bytes(size)
    one, two, control_one, control_two = rounds(
        20 * count,  # short ones: two cores must be free at the same moment
        lambda: side_by_side(lambda number: scan(paths[number]), 1),
        lambda: side_by_side(lambda number: scan(paths[number]), 2),
        lambda: side_by_side(lambda _: _checksum.crc64(data), 1),
        lambda: side_by_side(lambda _: _checksum.crc64(data), 2),
    )
    control = min(control_two) / min(control_one)
    report.add(beside("WAL scan, one thread", rate(size, one)))
    ratio = min(two) / min(one)
    text = f"{rate(2 * size, two)} {ratio:.2f}x the time (bytes in memory: {control:.2f}x)"
    title = "WAL scan, two threads, two files"
    report.add(Row(title, "<= 1.15x", text, verdict(ratio <= 1.15)))


def check(good: bool, problem: str) -> None:
    """Stop if a result is wrong: its speed would mean nothing."""
    if not good:
        sys.exit(f"wrong result: {problem}")


def main() -> int:
    """Run all rows; return 1 if one missed its target."""
    parser = argparse.ArgumentParser(description="Measure the native core.")
    parser.add_argument("--megabytes", type=int, default=64, help="size of the database")
    parser.add_argument("--rounds", type=int, default=9, help="how often each row runs")
    Report.add_option(parser)
    options = parser.parse_args()
    report, count = Report(options.json), options.rounds
    with tempfile.TemporaryDirectory(prefix="pyrep-bench-") as name:
        folder = Path(name)
        made = corpus.make("oltp", folder / "oltp.db", options.megabytes)
        data = made.path.read_bytes()
        print(f"{made}, {PAGE_SIZE}-byte pages, best of {count} rounds")
        bench_crc(report, data, count)
        bare = BareLZ4(folder, data)
        snapshot = bench_encode(report, made.path, bare, count)
        bench_decode(report, snapshot, len(data), bare, count)
        bench_merge(report, folder, made.path, snapshot, count)
        for kind in ("zeros", "random", "text", "blobs"):
            bench_other(report, folder, kind, max(1, options.megabytes // 4), count)
        bench_wal(report, folder, min(options.megabytes, 16), count)
    report.raw = {"corpus": made.digest, "size": made.size, "rounds": count}
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
