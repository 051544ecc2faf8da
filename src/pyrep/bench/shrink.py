"""Delete rows from a database, and let SQLite give the pages back."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from pyrep.bench.database import opened, quoted, size_of, user_tables
from pyrep.bench.journal import TABLE

__all__ = ["Shrunk", "shrink"]


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Say what became of a database; sizes in bytes, its WAL included."""

    rows: int
    before: int
    after: int


def shrink(
    path: Path, percentage: float, *, seed: int, checkpoint: str = "", vacuum: bool = False
) -> Shrunk:
    """Delete that share of each table's rows but the load's own; then checkpoint, then VACUUM.

    A checkpoint that other connections hinder does what it can.

    :raises DatabaseError: SQLite failed
    """
    rng, before, rows = random.Random(seed), size_of(path), 0
    with opened(path) as connection:
        for table in user_tables(connection):
            if table != TABLE:
                rows += _delete(connection, table, percentage, rng)
        if checkpoint:
            connection.execute(f"pragma wal_checkpoint({checkpoint})").fetchone()
        if vacuum:
            connection.execute("vacuum")
    return Shrunk(rows, before, size_of(path))


def _delete(
    connection: sqlite3.Connection, table: str, percentage: float, rng: random.Random
) -> int:
    name = quoted(table)
    try:
        keys = [key for (key,) in connection.execute(f"select rowid from {name}")]
    except sqlite3.OperationalError:  # WITHOUT ROWID: its first column is part of its key
        column = quoted(str(connection.execute(f"pragma table_info({name})").fetchone()[1]))
        keys = [key for (key,) in connection.execute(f"select distinct {column} from {name}")]
    else:
        column = "rowid"
    gone = [(key,) for key in keys if rng.random() * 100 < percentage]
    connection.execute("begin immediate")
    try:
        before = connection.total_changes
        connection.executemany(f"delete from {name} where {column} = ?", gone)
        connection.execute("commit")
    except BaseException:
        connection.execute("rollback")
        raise
    return connection.total_changes - before
