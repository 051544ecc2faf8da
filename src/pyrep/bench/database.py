"""Open databases with the interpreter's SQLite library, and what several commands ask of them."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from pyrep.errors import ConfigError, DatabaseError

__all__ = [
    "below",
    "opened",
    "quoted",
    "row_counts",
    "row_digest",
    "schema",
    "size_of",
    "translated",
    "user_tables",
]

_BUSY_SECONDS = 30.0


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, with the database's name."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise DatabaseError(f"{path}: {error}") from error


@contextlib.contextmanager
def opened(
    path: Path, *, create: bool = False, readonly: bool = False
) -> Iterator[sqlite3.Connection]:
    """Yield a connection in autocommit mode; it waits 30 s for others.

    :raises DatabaseError: the database cannot be opened, or a statement failed
    """
    mode = "rwc" if create else "ro" if readonly else "rw"
    with translated(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            yield connection
        finally:
            connection.close()


def below(folder: Path, match: str) -> list[Path]:
    """Return the databases of a directory tree whose file name matches, sorted.

    :raises ConfigError: there is none
    """
    found = sorted(
        path for path in folder.rglob("*") if fnmatchcase(path.name, match) and path.is_file()
    )
    if not found:
        raise ConfigError(f"no file below {folder} matches {match}")
    return found


def user_tables(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the tables that are not SQLite's own, sorted."""
    rows = connection.execute(
        "select name from sqlite_master where type = 'table' and name not like 'sqlite\\_%'"
        " escape '\\' order by name"
    )
    return [str(name) for (name,) in rows]


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def schema(path: Path) -> list[tuple[str, ...]]:
    """Return type, name and SQL of everything in the schema."""
    with opened(path, readonly=True) as connection:
        rows = connection.execute(
            "select type, name, ifnull(sql, '') from sqlite_master order by 2"
        )
        return [tuple(map(str, row)) for row in rows]


def row_counts(path: Path) -> dict[str, int]:
    """Return the number of rows of each table."""
    found = {}
    with opened(path, readonly=True) as connection:
        for table in user_tables(connection):
            row = connection.execute(f"select count(*) from {quoted(table)}").fetchone()
            found[table] = int(row[0])
    return found


def row_digest(path: Path) -> dict[str, tuple[int, str]]:
    """Return the number of rows of each table and a digest of them, in the order of their keys."""
    found = {}
    with opened(path, readonly=True) as connection:
        connection.text_factory = _text
        for table in user_tables(connection):
            digest, count = hashlib.blake2b(digest_size=16), 0
            for row in connection.execute(f"select * from {quoted(table)} order by 1"):
                digest.update(repr(row).encode())
                count += 1
            found[table] = (count, digest.hexdigest())
    return found


def _text(data: bytes) -> str:
    """Keep what is no UTF-8: SQLite stores any bytes as text."""
    return data.decode("utf-8", "surrogateescape")


def size_of(path: Path) -> int:
    """Return the bytes of a database and its WAL."""
    total = 0
    for name in (path, path.with_name(f"{path.name}-wal")):
        with contextlib.suppress(FileNotFoundError):
            total += name.stat().st_size
    return total
