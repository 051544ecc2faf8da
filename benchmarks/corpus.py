"""Data that benchmarks measure with, always the same: what flatters, what starves, what is real.

    python benchmarks/corpus.py oltp FILE --mib 64

``zeros`` and ``random`` are the two ends for a compressor, ``text`` are sentences; these three are
bytes without structure.  ``oltp`` (rows as applications have them: names, texts, numbers, short
tokens, an index), ``blobs`` (pictures: long random values on overflow pages) and ``mixed`` (half
random, half repeated values, text, numbers, an index) are databases written by SQLite itself,
so their pages have the gaps and pointers of real ones.  Bytes of a database depend on SQLite's
version too; the digest says whether two runs had the same.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sqlite3
import string
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DATABASES", "KINDS", "PAGE_SIZE", "Corpus", "make"]

PAGE_SIZE = 4096
_CHUNK = 1 << 20
_SEED = 20

Row = tuple[object, ...]


@dataclass(frozen=True)
class Corpus:
    """Name a file of data: its kind, its bytes, its SHA-256."""

    kind: str
    path: Path
    size: int
    digest: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.size >> 20} MiB, sha256 {self.digest[:16]}"


@dataclass(frozen=True)
class _Database:
    """Say how rows of a database come about, and how many are committed at once."""

    columns: str
    index: str
    row: Callable[[random.Random], Row]
    rows: int


def make(kind: str, path: Path, mib: float) -> Corpus:
    """Write a corpus of at least ``mib`` MiB; a database may be a commit larger."""
    size = int(mib * (1 << 20))
    if kind in DATABASES:
        _write_database(DATABASES[kind], path, size)
    else:
        with path.open("wb") as file:
            for chunk in _BYTES[kind](random.Random(_SEED), size):
                file.write(chunk)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Corpus(kind, path, path.stat().st_size, digest)


# --- bytes without structure ----------------------------------------------------------------------


def _cut(size: int) -> Iterator[int]:
    whole = -(-size // PAGE_SIZE) * PAGE_SIZE
    for at in range(0, whole, _CHUNK):
        yield min(_CHUNK, whole - at)


def _zeros(_: random.Random, size: int) -> Iterator[bytes]:
    return (bytes(count) for count in _cut(size))


def _random(rng: random.Random, size: int) -> Iterator[bytes]:
    return (rng.randbytes(count) for count in _cut(size))


def _text(rng: random.Random, size: int) -> Iterator[bytes]:
    words = _words(rng)
    for count in _cut(size):
        # the shortest word and its space are three bytes, so there are always enough
        yield " ".join(rng.choices(words, k=count // 3 + 1)).encode()[:count]


def _words(rng: random.Random) -> list[str]:
    """Return words of letters as often as English has them."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    weights = range(len(letters), 0, -1)
    return ["".join(rng.choices(letters, weights, k=rng.randint(2, 10))) for _ in range(4000)]


_BYTES: dict[str, Callable[[random.Random, int], Iterator[bytes]]] = {
    "zeros": _zeros,
    "random": _random,
    "text": _text,
}


# --- databases ------------------------------------------------------------------------------------


_WORDS = _words(random.Random(_SEED))
_FEW_WORDS = [
    *("alpha", "beta", "gamma", "delta", "omega", "customer"),
    *("invoice", "order", "street", "town", "payment", "note"),
]


def _note(rng: random.Random) -> Row:
    return (
        f"{rng.choice(_WORDS)} {rng.choice(_WORDS)}",
        f"{rng.choice(_WORDS)}@example.com",
        " ".join(rng.choices(_WORDS, k=rng.randint(4, 80))),
        rng.random(),
        rng.randbytes(rng.randint(0, 48)),
    )


def _picture(rng: random.Random) -> Row:
    name = "".join(rng.choices(string.ascii_lowercase, k=8))
    return (f"{name}.jpg", rng.getrandbits(31), rng.randbytes(rng.randint(4000, 60_000)))


def _record(rng: random.Random) -> Row:
    return (
        rng.randbytes(300) + b"abc" * 100,
        " ".join(rng.choices(_FEW_WORDS, k=40)),
        rng.getrandbits(31),
        rng.random(),
        1_700_000_000 + rng.randrange(20_000),
    )


DATABASES = {
    "oltp": _Database(
        "author text, mail text, body text, score real, token blob", "mail", _note, 1000
    ),
    "blobs": _Database("name text, taken integer, data blob", "taken", _picture, 20),
    "mixed": _Database("data blob, text, n, f real, at", "at", _record, 1000),
}
KINDS = (*_BYTES, *DATABASES)


def _write_database(kind: _Database, path: Path, size: int) -> None:
    rng = random.Random(_SEED)
    count = kind.columns.count(",") + 1
    insert = f"insert into t values (null{', ?' * count})"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"pragma page_size = {PAGE_SIZE}")
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = off")
        db.execute(f"create table t (id integer primary key, {kind.columns})")
        db.execute(f"create index t_index on t ({kind.index})")
        while path.stat().st_size < size:
            db.execute("begin")
            db.executemany(insert, [kind.row(rng) for _ in range(kind.rows)])
            db.execute("commit")
            db.execute("pragma wal_checkpoint(truncate)")


def main() -> None:
    """Make one corpus and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--mib", type=float, default=64.0)
    wanted = parser.parse_args()
    print(make(wanted.kind, wanted.path, wanted.mib))


if __name__ == "__main__":
    main()
