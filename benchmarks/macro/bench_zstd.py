"""zstd against LZ4 on tenants as applications make them: bytes and CPU, both restored.

Question: what does ``compression: zstd`` save on the storage, and what does it cost?  For each kind
of tenant one snapshot is written by one thread with LZ4 and with zstd at several levels, then
restored by one thread; the same for a merge of level-0 files, which are LZ4, to level 1.  Every
restore is compared with the database before a row is printed.  CPU seconds of this process count,
not the clock.

usage: bench_zstd.py [--mib 32] [--levels 1,3,9,19]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pyrep import ltxio
from pyrep._ltx import FLAG_NO_CHECKSUM, FLAG_ZSTD, Header

_PAGE = 4096
_MERGED = 32  # level-0 files
_FIRST = ["Anna", "Bela", "Carl", "Dora", "Emil", "Fred", "Gina", "Hugo", "Ines", "Jan", "Kai"]
_LAST = ["Arnold", "Becker", "Carter", "Dietz", "Evans", "Fischer", "Garcia", "Hansen", "Ito"]
_WORDS = [
    *("the", "order", "was", "shipped", "to", "your", "address", "on", "and", "payment", "for"),
    *("invoice", "has", "been", "received", "please", "find", "attached", "our", "offer", "with"),
    *("best", "regards", "customer", "service", "team", "delivery", "delayed", "until", "next"),
]


@dataclass(frozen=True)
class Kind:
    """Describe a kind of tenant: its tables, how a row is made, how many are written at once."""

    schema: str
    insert: str
    row: Callable[[random.Random, int], tuple[object, ...]]
    rows: int = 2000  # in a commit, at first


def _order(rng: random.Random, n: int) -> tuple[object, ...]:
    name = f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"
    mail = f"{name.lower().replace(' ', '.')}@example.com"
    return (name, mail, rng.randint(100, 99999), 1_700_000_000 + n * 13, rng.choice(_WORDS))


def _event(rng: random.Random, n: int) -> tuple[object, ...]:
    body = {
        "id": f"{rng.getrandbits(64):016x}",
        "type": rng.choice(["login", "view", "click", "purchase", "logout"]),
        "user": {"id": rng.randint(1, 5000), "name": rng.choice(_FIRST)},
        "path": f"/shop/{rng.choice(_WORDS)}/{rng.randint(1, 900)}",
        "ms": rng.randint(1, 400),
    }
    return (1_700_000_000_000 + n * 37, json.dumps(body))


def _message(rng: random.Random, n: int) -> tuple[object, ...]:
    text = " ".join(rng.choices(_WORDS, k=rng.randint(30, 400)))
    return (f"{rng.choice(_LAST)}, {rng.choice(_FIRST)}", text, 1_700_000_000 + n * 61)


def _photo(rng: random.Random, n: int) -> tuple[object, ...]:
    return (f"img_{n:06d}.jpg", rng.randbytes(rng.randint(4000, 60000)))


KINDS = {
    "orders": Kind(
        "create table t (id integer primary key, name, mail, cents, at, note);"
        "create index t_mail on t (mail); create index t_at on t (at)",
        "insert into t (name, mail, cents, at, note) values (?, ?, ?, ?, ?)",
        _order,
    ),
    "json events": Kind(
        "create table t (at integer, body text); create index t_at on t (at)",
        "insert into t values (?, ?)",
        _event,
    ),
    "mail": Kind(
        "create table t (id integer primary key, who, body, at); create index t_who on t (who)",
        "insert into t (who, body, at) values (?, ?, ?)",
        _message,
    ),
    "photos": Kind("create table t (name, data blob)", "insert into t values (?, ?)", _photo, 50),
}


def build(path: Path, kind: Kind, mib: float) -> list[bytes]:
    """Write a seeded database; return its bytes before and after each of the last commits."""
    rng = random.Random(7)
    states: list[bytes] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"pragma page_size = {_PAGE}")
        db.execute("pragma synchronous = off")
        db.executescript(kind.schema)
        row = 0
        while path.stat().st_size < mib * (1 << 20):
            row += _insert(db, kind, rng, row, kind.rows)
        states.append(path.read_bytes())
        for _ in range(_MERGED):
            row += _insert(db, kind, rng, row, kind.rows // 50)
            db.execute("delete from t where rowid in (select rowid from t limit 10)")
            states.append(path.read_bytes())
    return states


def _insert(db: sqlite3.Connection, kind: Kind, rng: random.Random, row: int, count: int) -> int:
    db.execute("begin")
    db.executemany(kind.insert, [kind.row(rng, row + i) for i in range(count)])
    db.execute("commit")
    return count


@contextmanager
def scratch(path: Path) -> Iterator[int]:
    """Give a new file, open."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        yield fd
    finally:
        os.close(fd)


def _header(data: bytes, txid: int, *, zstd: bool, snapshot: bool) -> Header:
    return Header(
        page_size=_PAGE,
        commit=len(data) // _PAGE,
        min_txid=1 if snapshot else txid,
        max_txid=txid,
        timestamp_ms=1,
        flags=FLAG_NO_CHECKSUM | (FLAG_ZSTD if zstd else 0),
        wal_offset=32,
    )


def write(path: Path, data: bytes, pgnos: array[int], header: Header, level: int | None) -> float:
    """Write pages of a database as one file; return the CPU seconds."""
    began = time.process_time()
    with scratch(path) as fd:
        writer = ltxio.LTXWriter(fd, header, zstd_level=level)
        for pgno in pgnos:
            writer.add_page(pgno, data[(pgno - 1) * _PAGE : pgno * _PAGE])
        writer.finish(0, 0)
    return time.process_time() - began


def restored(sources: list[Path], folder: Path) -> tuple[bytes, float]:
    """Apply files one after another; return the database and the CPU seconds."""
    target = folder / "restored"
    began = time.process_time()
    with scratch(target) as fd:
        for source in sources:
            with source.open("rb") as stream:
                ltxio.apply(stream, fd)
    took = time.process_time() - began
    return target.read_bytes(), took


def _changed(before: bytes, after: bytes) -> array[int]:
    pages = range(len(after) // _PAGE)
    cuts = (slice(at * _PAGE, (at + 1) * _PAGE) for at in pages)
    return array("I", (n for n, cut in enumerate(cuts, 1) if before[cut] != after[cut]))


@dataclass(frozen=True)
class Row:
    """Hold what one way of compressing took: bytes, CPU seconds to write and to restore."""

    size: int
    write: float
    restore: float


def snapshot_row(data: bytes, folder: Path, level: int | None) -> Row:
    """Write and restore a snapshot."""
    path = folder / "snapshot.ltx"
    header = _header(data, 1, zstd=level is not None, snapshot=True)
    took = write(path, data, array("I", range(1, len(data) // _PAGE + 1)), header, level)
    back, restore = restored([path], folder)
    if back != data:
        sys.exit("the restored snapshot differs; nothing is measured")
    return Row(path.stat().st_size, took, restore)


def merge_row(states: list[bytes], folder: Path, level: int | None) -> Row:
    """Merge level-0 files to level 1 and restore base and merged file."""
    base = folder / "base.ltx"
    first = states[0]
    numbers = array("I", range(1, len(first) // _PAGE + 1))
    write(base, first, numbers, _header(first, 1, zstd=False, snapshot=True), None)
    paths = []
    for txid, (before, after) in enumerate(pairwise(states), 2):
        paths.append(folder / f"{txid}.ltx")
        header = _header(after, txid, zstd=False, snapshot=False)
        write(paths[-1], after, _changed(before, after), header, None)
    merged = folder / "merged.ltx"
    with ExitStack() as stack:
        fds = [stack.enter_context(path.open("rb")).fileno() for path in paths]
        out = stack.enter_context(scratch(merged))
        began = time.process_time()
        ltxio.merge(fds, out, zstd_level=level)
        took = time.process_time() - began
    back, restore = restored([base, merged], folder)
    if back != states[-1]:
        sys.exit("the restored merge differs; nothing is measured")
    return Row(merged.stat().st_size, took, restore)


def table(name: str, states: list[bytes], folder: Path, levels: list[int]) -> None:
    """Print the rows of one kind of tenant."""
    ways: list[int | None] = [None, *levels]
    base: list[Row] = []
    for level in ways:
        rows = [snapshot_row(states[-1], folder, level), merge_row(states, folder, level)]
        base = base or rows
        label = "lz4" if level is None else f"zstd {level}"
        cells = [
            f"{row.size / 1e6:8.2f} MB {row.size / plain.size:5.0%} "
            f"{row.write:6.2f} s {row.restore:5.2f} s"
            for row, plain in zip(rows, base, strict=True)
        ]
        print(f"{name:<12} {label:<8} {cells[0]}   {cells[1]}", flush=True)


def main() -> None:
    """Build the tenants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=32, help="size of each tenant")
    parser.add_argument("--levels", default="1,3,9,19", help="levels of zstd")
    wanted = parser.parse_args()
    levels = [int(level) for level in wanted.levels.split(",")]
    head = f"{'size':>11} {'':>5} {'write':>8} {'restore':>7}"
    print(
        f"CPU seconds, one thread; tenants of {wanted.mib:g} MiB; every restore equals its source"
    )
    print(f"{'':<21} {'snapshot':<36}merge of {_MERGED} level-0 files")
    print(f"{'tenant':<12} {'':<8} {head}   {head}")
    with tempfile.TemporaryDirectory(prefix="pyrep-bench-") as place:
        folder = Path(place)
        for name, kind in KINDS.items():
            database = folder / f"{name}.db"
            table(name, build(database, kind, wanted.mib), folder, levels)
            database.unlink()


if __name__ == "__main__":
    main()
