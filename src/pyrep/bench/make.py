"""Make databases: one of a wanted size, or a tree of small tenants with schemas like real ones."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyrep.bench.database import opened, size_of
from pyrep.errors import ConfigError, OutputExistsError

__all__ = ["Population", "make_tenants", "populate", "tenant_path"]

_EPOCH = 1_700_000_000
_WORDS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet"),
    *("jetty", "knoll", "lagoon", "meadow", "north", "orchard", "prairie", "quarry", "ridge"),
    *("summit", "timber", "upland", "valley", "willow", "yonder", "zephyr"),
)
_FOLDERS = ("east", "west", "north", "south", "team-a", "team-b", "shared", "archive")
_ROW_OVERHEAD = 64  # bytes of a row beside its payload, about
_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


@dataclass(frozen=True, slots=True)
class Population:
    """Say what one database is to hold; sizes are in bytes."""

    target_size: int
    row_size: int = 1024
    tables: int = 1
    index_ratio: float = 0.2
    page_size: int = 4096
    batch: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Refuse what SQLite cannot have.

        :raises ConfigError: a number is out of its range
        """
        if self.page_size not in _SIZES:
            raise ConfigError(
                "must be a power of two from 512 to 65536", field="-page-size", value=self.page_size
            )
        if not 0 <= self.index_ratio <= 1:
            raise ConfigError("must be from 0 to 1", field="-index-ratio", value=self.index_ratio)


def populate(path: Path, wanted: Population, on_bytes: Callable[[int], None]) -> int:
    """Make a database of about the wanted size; return its rows.

    The same seed gives the same rows.  ``on_bytes`` is told the size so far.

    :raises OutputExistsError: there is a file already
    :raises DatabaseError: SQLite failed
    """
    wanted.check()
    if path.exists():
        raise OutputExistsError(f"{path} exists", hint="Choose another path, or delete it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random(wanted.seed), 0
    with opened(path, create=True) as connection:
        connection.execute(f"pragma page_size = {wanted.page_size}")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        for number in range(wanted.tables):
            _create(connection, number, rng, wanted.index_ratio)
        while (missing := wanted.target_size - size_of(path)) > 0:
            fitting = missing // (wanted.tables * (wanted.row_size + _ROW_OVERHEAD))
            batch = max(1, min(wanted.batch, fitting))
            connection.execute("begin immediate")
            for number in range(wanted.tables):
                _fill(connection, number, rng, wanted.row_size, range(rows, rows + batch))
            connection.execute("commit")
            rows += batch * wanted.tables
            connection.execute("pragma wal_checkpoint(truncate)")
            on_bytes(min(size_of(path), wanted.target_size))
    return rows


def _create(
    connection: sqlite3.Connection, number: int, rng: random.Random, index_ratio: float
) -> None:
    table = f"bench_{number}"
    connection.execute(
        f"create table {table} (id integer primary key, data blob not null, text_field text,"
        " int_field integer, float_field real, timestamp integer)"
    )
    for column in ("timestamp", "int_field"):
        if rng.random() < index_ratio:
            connection.execute(f"create index {table}_{column} on {table} ({column})")


def _fill(
    connection: sqlite3.Connection, number: int, rng: random.Random, row_size: int, rows: range
) -> None:
    connection.executemany(
        f"insert into bench_{number} (data, text_field, int_field, float_field, timestamp)"
        " values (?, ?, ?, ?, ?)",
        (
            (
                rng.randbytes(row_size // 2) + bytes(row_size - row_size // 2),
                " ".join(rng.choices(_WORDS, k=6)),
                rng.randrange(1_000_000),
                rng.random(),
                _EPOCH + row,
            )
            for row in rows
        ),
    )


# --- a tree of tenants ------------------------------------------------------------------------


def tenant_path(number: int, depth: int) -> Path:
    """Return the path of a tenant below the tree's folder: up to ``depth`` folders deep."""
    rng = random.Random(number)
    folders = [rng.choice(_FOLDERS) for _ in range(rng.randrange(depth + 1))]
    return Path(*folders, f"tenant-{number:06d}.db")


def make_tenants(
    folder: Path,
    count: int,
    *,
    seed: int,
    depth: int,
    size: int,
    on_made: Callable[[int], None],
) -> list[Path]:
    """Make ``count`` databases below a folder, each of about ``size`` bytes; return their paths.

    They differ in schema (a shop, a wiki, a series of measurements), the same seed gives the
    same rows.  ``on_made`` is told how many there are.

    :raises OutputExistsError: one of them exists
    """
    paths = []
    for number in range(count):
        path = folder / tenant_path(number, depth)
        if path.exists():
            raise OutputExistsError(f"{path} exists", hint="Choose an empty directory with -dir.")
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = random.Random(seed * 1_000_003 + number)
        with opened(path, create=True) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = normal")
            _TENANTS[number % len(_TENANTS)](connection, rng, max(1, size))
        paths.append(path)
        on_made(number + 1)
    return paths


def _rows(size: int, row: int) -> int:
    return max(1, size // row)


def _shop(connection: sqlite3.Connection, rng: random.Random, size: int) -> None:
    connection.executescript(
        "create table customer (id integer primary key, name text, email text unique, since int);"
        "create table item (id integer primary key, title text, price int, stock int);"
        "create table purchase (id integer primary key, customer int references customer,"
        " item int references item, amount int, at int);"
        "create index purchase_customer on purchase (customer);"
        "create index purchase_at on purchase (at);"
    )
    count = _rows(size, 220)
    connection.execute("begin")
    for number in range(count):
        name = " ".join(rng.choices(_WORDS, k=2))
        email = f"{name.replace(' ', '.')}.{number}@example.org"
        connection.execute("insert into customer values (null, ?, ?, ?)", (name, email, number))
        title = " ".join(rng.choices(_WORDS, k=4))
        connection.execute(
            "insert into item values (null, ?, ?, ?)", (title, rng.randrange(9000), 7)
        )
        connection.execute(
            "insert into purchase values (null, ?, ?, ?, ?)",
            (rng.randrange(number + 1) + 1, rng.randrange(number + 1) + 1, 1, _EPOCH + number),
        )
    connection.execute("commit")


def _wiki(connection: sqlite3.Connection, rng: random.Random, size: int) -> None:
    connection.executescript(
        "create table page (id integer primary key, slug text unique, body text, changed int);"
        "create table revision (page int, number int, body text, primary key (page, number))"
        " without rowid;"
    )
    connection.execute("begin")
    for number in range(_rows(size, 1800)):
        body = " ".join(rng.choices(_WORDS, k=120))
        slug = f"{rng.choice(_WORDS)}-{number}"
        connection.execute("insert into page values (null, ?, ?, ?)", (slug, body, number))
        connection.execute("insert into revision values (?, 1, ?)", (number, body))
    connection.execute("commit")


def _series(connection: sqlite3.Connection, rng: random.Random, size: int) -> None:
    connection.executescript(
        "create table sample (sensor int, at int, value real, primary key (sensor, at))"
        " without rowid;"
        "create table photo (id integer primary key, at int, data blob);"
    )
    connection.execute("begin")
    connection.executemany(
        "insert into sample values (?, ?, ?)",
        ((n % 8, _EPOCH + n // 8 * 60, rng.gauss(20, 3)) for n in range(_rows(size // 2, 26))),
    )
    connection.execute(
        "insert into photo values (null, ?, ?)", (_EPOCH, rng.randbytes(max(1, size // 2)))
    )
    connection.execute("commit")


_TENANTS = (_shop, _wiki, _series)
