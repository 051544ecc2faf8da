"""Write to many databases from one cheap process; each row carries its number and its time.

    python writer.py LIST --rate 1000 --seconds 60 [--random] [--churn DIR]

LIST names the databases, one on a line; all are opened once and stay open, as in a server.  One
commit is made each 1/rate seconds, round after round over all of them, in an order by chance (with
``--random``: at times by chance).  With ``--churn`` a database is created in DIR twice a second and
the one of ten seconds before removed.  "ready" is printed when all are open; the clock starts
with a line on standard input.  One JSON object comes at the end: commits, late ones, CPU seconds,
the time of the commits in milliseconds, and the names of the databases that churn left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import struct
import sys
import time
from pathlib import Path

MARK = b"pyrep-row"
ROW = struct.Struct(">9sIId")  # mark, database, number, time
_CHURN_SECONDS = 0.5
_CHURN_KEPT = 20


def create(path: Path) -> None:
    """Make a small database in WAL mode, without a WAL."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("pragma journal_mode = wal")
    database.execute("create table row (id integer primary key, data blob not null)")
    database.execute("insert into row (data) values (zeroblob(100))")
    database.close()


def connect(path: str) -> sqlite3.Connection:
    """Open a database as an application does that runs for long."""
    database = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    database.execute("pragma synchronous = normal")
    database.execute("pragma cache_size = 16")
    database.execute("select count(*) from row").fetchone()
    return database


class Churn:
    """Create databases and remove them later."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Path] = []
        self._due = time.monotonic()
        self.count = 0

    def step(self) -> None:
        """Do what is due."""
        if time.monotonic() < self._due:
            return
        self._due += _CHURN_SECONDS
        path = self._folder / f"churn-{self.count}.db"
        create(path)
        self._made.append(path)
        self.count += 1
        if len(self._made) > _CHURN_KEPT:
            gone = self._made.pop(0)
            for suffix in ("", "-wal", "-shm"):
                gone.with_name(gone.name + suffix).unlink(missing_ok=True)

    def left(self) -> list[str]:
        """Return the databases that are still there."""
        return [str(path) for path in self._made]


def run(options: argparse.Namespace) -> dict[str, object]:
    """Write until the time is over."""
    paths = Path(options.list).read_text().splitlines()
    databases = [connect(path) for path in paths]
    churn = Churn(Path(options.churn)) if options.churn else None
    rng = random.Random(options.seed)
    print("ready", flush=True)
    sys.stdin.readline()
    order, numbers = list(range(len(paths))), [0] * len(paths)
    rng.shuffle(order)
    commits: list[float] = []
    errors, late = [], 0
    began = due = time.monotonic()
    cpu = time.process_time()
    while (now := time.monotonic()) < began + options.seconds:
        if now < due:
            time.sleep(due - now)
        late += now - due > 0.5
        at = order[len(commits) % len(paths)]
        numbers[at] += 1
        data = ROW.pack(MARK, at, numbers[at], time.time()) + rng.randbytes(options.payload)
        before = time.monotonic()
        try:
            databases[at].execute("insert into row (data) values (?)", (data,))
        except sqlite3.Error as error:
            errors.append(f"{paths[at]}: {error}")
        commits.append(1000 * (time.monotonic() - before))
        due += (rng.uniform(0.5, 1.5) if options.random else 1.0) / options.rate
        if churn is not None:
            churn.step()
    return {
        "commits": len(commits),
        "late": late,
        "errors": errors[:10],
        "cpu": time.process_time() - cpu,
        "seconds": time.monotonic() - began,
        "ms": commits,
        "churned": churn.count if churn else 0,
        "left": churn.left() if churn else [],
    }


def main() -> None:
    """Write as the command line says and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list")
    parser.add_argument("--rate", type=float, required=True, help="commits a second, all together")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--payload", type=int, default=200, help="bytes a row")
    parser.add_argument("--churn", default="", help="create and remove databases there")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    print(json.dumps(run(options)), flush=True)
    os._exit(0)  # the databases stay as a killed application leaves them; closing takes long


if __name__ == "__main__":
    main()
