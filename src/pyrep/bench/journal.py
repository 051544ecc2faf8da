"""The table that a load writes, and the journal by which each of its states can be known again.

Each row of a worker holds a digest over its payload and the digest of the row before.  So the
last row of each worker names all rows of it, and a state that lost, changed or mixed up one of
them shows.  The journal is a file of JSON lines, one for each commit: database, worker, number,
digest, and the times just before and after the commit.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pyrep.bench.database import opened
from pyrep.errors import ConfigError, DatabaseError

__all__ = ["SCHEMA", "TABLE", "Commit", "last_of", "link", "read_journal", "rows_of", "write_line"]

TABLE = "pyrep_bench_load"
SCHEMA = (
    f"create table if not exists {TABLE} (worker integer not null, number integer not null,"
    " written_at real not null, data blob not null, digest text not null,"
    " primary key (worker, number))"
)
_NOTHING = "0" * 32


@dataclass(frozen=True, slots=True)
class Commit:
    """Describe one committed row; times are seconds since the epoch."""

    db: str
    worker: int
    number: int
    digest: str
    begun: float
    done: float


def link(digest: str, data: bytes) -> str:
    """Return the digest of a row whose predecessor has ``digest``."""
    return hashlib.blake2b(digest.encode() + data, digest_size=16).hexdigest()


def last_of(connection: sqlite3.Connection, worker: int) -> tuple[int, str]:
    """Return number and digest of a worker's newest row."""
    row = connection.execute(
        f"select number, digest from {TABLE} where worker = ? order by number desc limit 1",
        (worker,),
    ).fetchone()
    return (int(row[0]), str(row[1])) if row else (0, _NOTHING)


def rows_of(path: Path) -> dict[int, list[str]]:
    """Return, by worker, the digest of each row in order, computed from the payloads.

    :raises DatabaseError: a row is missing, or its digest is not that of the rows up to it
    """
    found: dict[int, list[str]] = {}
    with opened(path, readonly=True) as connection:
        there = connection.execute("select 1 from sqlite_master where name = ?", (TABLE,))
        if there.fetchone() is None:
            return {}
        rows = connection.execute(
            f"select worker, number, data, digest from {TABLE} order by worker, number"
        )
        for worker, number, data, digest in rows:
            chain = found.setdefault(worker, [])
            wanted = link(chain[-1] if chain else _NOTHING, data)
            if number != len(chain) + 1 or digest != wanted:
                raise DatabaseError(
                    f"{path}: row {number} of worker {worker} does not follow row {len(chain)}"
                )
            chain.append(digest)
    return found


def write_line(commit: Commit) -> str:
    """Return a commit as the journal has it."""
    return json.dumps(asdict(commit)) + "\n"


def read_journal(path: Path) -> Iterator[Commit]:
    """Give the commits of a journal; a last line that was cut off is left out.

    :raises ConfigError: it is no journal
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield Commit(**json.loads(line))
    except OSError as error:
        raise ConfigError(f"{path}: journal cannot be read: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: is no journal of pyrep-bench: {error}") from error
