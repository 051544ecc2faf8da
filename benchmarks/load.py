"""Write to one SQLite database at a fixed rate, as an application would, and report latencies.

    python benchmarks/load.py DB --rate 40 --duration 8 --workers 2 --payload 1024 --read-ratio 0.1

Uses the sqlite3 module of the interpreter (another SQLite library than pyrep's) and nothing of
pyrep.  Stops after ``--duration`` seconds (0: never), at SIGTERM or at SIGINT, and prints one
JSON object: writes, reads, errors, first_error, seconds, rate, and the time of the commits in
milliseconds (p50, p99, max).  With ``--progress`` a JSON line of the counts comes each second.

Every row carries its number, the time it was written and a random payload.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

_SCHEMA = """
create table if not exists load (
    id integer primary key, worker integer not null, number integer not null,
    written_at real not null, data blob not null
)
"""


_INSERT = "insert into load (worker, number, written_at, data) values (?, ?, ?, ?)"


@dataclass
class Counts:
    """Hold what one worker has done; only that worker writes it."""

    writes: int = 0
    reads: int = 0
    errors: int = 0
    first_error: str = ""
    commit_seconds: list[float] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Run the load and print the report; return 1 if any statement failed."""
    options = _parse(argv)
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    _prepare(options)
    started = time.monotonic()
    counts = [Counts() for _ in range(options.workers)]
    workers = [
        threading.Thread(target=_work, args=(options, index, counts[index], stop, started))
        for index in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    _watch(options, counts, stop, started)
    stop.set()
    for worker in workers:
        worker.join()
    report = _report(counts, time.monotonic() - started)
    print(json.dumps(report), flush=True)
    return 1 if report["errors"] else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="write to one SQLite database at a fixed rate")
    parser.add_argument("database")
    parser.add_argument("--rate", type=float, default=40.0, help="operations a second, all workers")
    parser.add_argument("--duration", type=float, default=0.0, help="seconds (0: until a signal)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--payload", type=int, default=1024, help="bytes a row")
    parser.add_argument("--read-ratio", type=float, default=0.0, help="share of reads, 0 to 1")
    parser.add_argument("--busy-timeout", type=int, default=5000, help="milliseconds")
    parser.add_argument("--autocheckpoint", type=int, default=1000, help="pages (0: off)")
    parser.add_argument("--journal-mode", default="wal")
    parser.add_argument("--fill", type=int, default=0, help="rows to write before the load begins")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args(argv)
    if options.rate <= 0 or options.workers < 1 or not 0 <= options.read_ratio <= 1:
        parser.error("--rate must be positive, --workers at least 1, --read-ratio from 0 to 1")
    return options


def _connect(options: argparse.Namespace) -> sqlite3.Connection:
    connection = sqlite3.connect(
        options.database, timeout=options.busy_timeout / 1000, isolation_level=None
    )
    connection.execute(f"pragma wal_autocheckpoint = {options.autocheckpoint}")
    connection.execute("pragma synchronous = normal")
    return connection


def _prepare(options: argparse.Namespace) -> None:
    connection = _connect(options)
    try:
        connection.execute(f"pragma journal_mode = {options.journal_mode}")
        connection.execute(_SCHEMA)
        rng = random.Random(options.seed)
        connection.execute("begin immediate")
        rows = ((-1, n, time.time(), rng.randbytes(options.payload)) for n in range(options.fill))
        connection.executemany(_INSERT, rows)
        connection.execute("commit")
    finally:
        connection.close()


def _work(
    options: argparse.Namespace, index: int, counts: Counts, stop: threading.Event, started: float
) -> None:
    """Do one operation at each tick; a late worker catches up without a burst."""
    interval = options.workers / options.rate
    rng = random.Random(None if options.seed is None else options.seed + index)
    connection = _connect(options)
    due = started + interval * index / options.workers
    try:
        while not stop.wait(max(0.0, due - time.monotonic())):
            _operate(connection, options, index, counts, rng)
            due = max(due + interval, time.monotonic() - interval)
    finally:
        connection.close()


def _operate(
    connection: sqlite3.Connection,
    options: argparse.Namespace,
    index: int,
    counts: Counts,
    rng: random.Random,
) -> None:
    try:
        if rng.random() < options.read_ratio:
            connection.execute(
                "select count(*) from load where id > ?", (counts.writes,)
            ).fetchone()
            counts.reads += 1
            return
        row = (index, counts.writes + 1, time.time(), rng.randbytes(options.payload))
        before = time.monotonic()
        connection.execute(_INSERT, row)
        counts.commit_seconds.append(time.monotonic() - before)
        counts.writes += 1
    except sqlite3.Error as error:
        counts.errors += 1
        counts.first_error = counts.first_error or f"{type(error).__name__}: {error}"


def _watch(
    options: argparse.Namespace, counts: list[Counts], stop: threading.Event, started: float
) -> None:
    """Wait for the end; tell the counts once a second if that is wanted."""
    end = started + options.duration if options.duration > 0 else None
    while True:
        left = 1.0 if end is None else min(1.0, end - time.monotonic())
        if left <= 0 or stop.wait(left):
            return
        if options.progress:
            totals = {
                "writes": sum(c.writes for c in counts),
                "errors": sum(c.errors for c in counts),
            }
            print(json.dumps(totals), flush=True)


def _report(counts: list[Counts], seconds: float) -> dict[str, Any]:
    commits = sorted(t for c in counts for t in c.commit_seconds)
    writes = sum(c.writes for c in counts)
    return {
        "writes": writes,
        "reads": sum(c.reads for c in counts),
        "errors": sum(c.errors for c in counts),
        "first_error": next((c.first_error for c in counts if c.first_error), ""),
        "seconds": round(seconds, 3),
        "rate": round(writes / seconds, 2),
        "commit_ms": {
            "p50": _quantile_ms(commits, 0.50),
            "p99": _quantile_ms(commits, 0.99),
            "max": _quantile_ms(commits, 1.0),
        },
    }


def _quantile_ms(ordered: list[float], share: float) -> float:
    if not ordered:
        return 0.0
    index = min(len(ordered) - 1, int(share * len(ordered)))
    return round(ordered[index] * 1000, 3)


if __name__ == "__main__":
    sys.exit(main())
