"""First snapshot of one database and its restore, whole processes, pyrep beside Litestream.

Question: how long, how much CPU and how much memory until a large database is on a file replica,
and until it is back?  Each round copies the same seeded database twice and lets both programs
replicate it once and restore it, one after the other; results are compared with the source before
their time counts.  Ratios of one round count; absolute figures move with the machine.

usage: bench_snapshot.py [--mib 1024] [--rounds 2]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fixtures.app import pages_equal
from fixtures.litestream import program

_WORDS = [
    *("alpha", "beta", "gamma", "delta", "omega", "customer"),
    *("invoice", "order", "street", "town", "payment", "note"),
]
_ROWS_PER_COMMIT = 20_000


@dataclass(frozen=True)
class Run:
    """Hold what one process took: wall and CPU seconds, peak resident MB."""

    seconds: float
    cpu: float
    mb: float


def build(path: Path, mib: int) -> None:
    """Write a seeded database of about ``mib`` MiB: random bytes, text, numbers, an index."""
    rng = random.Random(7)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=off")
        db.execute("create table t (id integer primary key, data blob, text, n, f real, at)")
        db.execute("create index t_at on t (at)")
        while path.stat().st_size < mib << 20:
            rows = [
                (
                    rng.randbytes(300) + b"abc" * 100,
                    " ".join(rng.choices(_WORDS, k=40)),
                    rng.getrandbits(31),
                    rng.random(),
                    1_700_000_000 + i,
                )
                for i in range(_ROWS_PER_COMMIT)
            ]
            db.execute("begin")
            db.executemany("insert into t (data, text, n, f, at) values (?, ?, ?, ?, ?)", rows)
            db.execute("commit")
            db.execute("pragma wal_checkpoint(truncate)")


def measure(arguments: list[str], log: Path) -> Run:
    """Run a program to its end and return what it took; its output goes to ``log``."""
    os.sync()  # what was prepared is not to be written back on this program's time
    environment = {k: v for k, v in os.environ.items() if k != "AWS_CA_BUNDLE"}
    began = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{log.read_text()[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def one_round(tool: str, source: Path, folder: Path) -> tuple[Run, Run]:
    """Replicate a copy of ``source`` once and restore it; return both runs."""
    folder.mkdir()
    database, output, log = folder / "app.db", folder / "out.db", folder / "log"
    shutil.copyfile(source, database)
    url = f"file://{folder}/replica"
    state = f"state-dir: {folder}/state\n" if tool == "pyrep" else ""
    config = folder / "config.yml"
    config.write_text(f"{state}dbs:\n  - path: {database}\n    replica:\n      url: {url}\n")
    command = [sys.executable, "-m", "pyrep"] if tool == "pyrep" else [str(program())]
    snapshot = measure([*command, "replicate", "-config", str(config), "-once"], log)
    restore = measure([*command, "restore", "-o", str(output), url], log)
    truth = source if tool == "pyrep" else database
    if not pages_equal(truth, output):
        sys.exit(f"{tool}: the restore differs from the database; nothing is measured")
    shutil.rmtree(folder)
    return snapshot, restore


def row(name: str, ours: list[Run], theirs: list[Run], target: float) -> bool:
    """Print one row; return whether the ratio and the memory reach the target."""
    ratio = statistics.median(b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True))
    memory = max(run.mb for run in ours)
    reached = ratio >= target and memory <= 128
    print(
        f"{name:<16} pyrep {_text(ours)}   litestream {_text(theirs)}   "
        f"{ratio:.1f} times faster (target {target:.0f}), {'reached' if reached else 'MISSED'}"
    )
    return reached


def _text(runs: list[Run]) -> str:
    seconds = statistics.median(run.seconds for run in runs)
    cpu = statistics.median(run.cpu for run in runs)
    return f"{seconds:6.2f} s {cpu:6.2f} CPU-s {max(run.mb for run in runs):4.0f} MB"


def main() -> None:
    """Run the rounds and print the two rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the database")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--build", type=Path, help="only make the database, here")
    wanted = parser.parse_args()
    if wanted.build:
        build(wanted.build, wanted.mib)
        return
    with tempfile.TemporaryDirectory(prefix="pyrep-bench-") as scratch:
        folder = Path(scratch)
        source = folder / "source.db"
        # In a process of its own: a child's peak memory counts from its parent's at the fork.
        builder = [sys.executable, __file__, "--build", str(source), "--mib", str(wanted.mib)]
        subprocess.run(builder, check=True)
        results: dict[str, list[tuple[Run, Run]]] = {"pyrep": [], "litestream": []}
        # The first round is a warm-up: it gets the page cache its memory, for both.
        for number in range(wanted.rounds + 1):
            for tool, runs in results.items():
                runs.append(one_round(tool, source, folder / f"{tool}-{number}"))
        results = {tool: runs[1:] for tool, runs in results.items()}
        print(f"database of {source.stat().st_size >> 20} MiB, {wanted.rounds} rounds, medians")
        pairs = [
            ([r[i] for r in results["pyrep"]], [r[i] for r in results["litestream"]])
            for i in (0, 1)
        ]
        row("first snapshot", *pairs[0], target=5)
        row("restore", *pairs[1], target=8)


if __name__ == "__main__":
    main()
