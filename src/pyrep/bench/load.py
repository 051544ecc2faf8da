"""Write to databases at a rate, as applications do, and measure how long commits take."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import random
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from pyrep.bench.database import opened
from pyrep.bench.journal import SCHEMA, TABLE, Commit, last_of, link, write_line

__all__ = ["PATTERNS", "Load", "Report", "run"]

PATTERNS = ("constant", "burst", "random", "wave")
_OPEN = 64  # connections a worker keeps
_ZIPF = 1.1


@dataclass(frozen=True, slots=True)
class Load:
    """Say what is to be done: operations a second over all workers, for so many seconds.

    ``pattern``: ``constant``; ``burst``, all of ten seconds' operations in the first three;
    ``random``, pauses as between customers; ``wave``, half to one and a half of the rate over a
    minute.  ``zipf``: few databases get most of the operations.
    """

    paths: Sequence[Path]
    rate: float
    seconds: float
    pattern: str = "constant"
    payload: int = 1024
    read_ratio: float = 0.0
    workers: int = 1
    zipf: bool = False
    seed: int = 0


@dataclass(slots=True)
class Report:
    """Count what was done; commit times are in seconds."""

    writes: int = 0
    reads: int = 0
    errors: int = 0
    first_error: str = ""
    seconds: float = 0.0
    commits: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return the commit time in milliseconds below which that share lies."""
        ordered = sorted(self.commits)
        if not ordered:
            return 0.0
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000

    def add(self, other: Report) -> None:
        """Count another worker's work in."""
        self.writes += other.writes
        self.reads += other.reads
        self.errors += other.errors
        self.first_error = self.first_error or other.first_error
        self.commits += other.commits


def run(
    load: Load,
    stop: threading.Event,
    *,
    journal: TextIO | None = None,
    on_count: Callable[[int], None] | None = None,
) -> Report:
    """Do the load until its time is over or ``stop`` is set."""
    keeper = _Journal(journal)
    began = time.monotonic()
    workers = [_Worker(load, number, stop, began, keeper) for number in range(load.workers)]
    threads = [threading.Thread(target=worker.work) for worker in workers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        stop.wait(0.2)
        if on_count is not None:
            on_count(sum(worker.report.writes for worker in workers))
        for thread in threads:
            thread.join(0.0 if not stop.is_set() else None)
    total = Report()
    for worker in workers:
        total.add(worker.report)
    total.seconds = time.monotonic() - began
    return total


class _Journal:
    """Write commits to a file, in the order in which they are known to have been made."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._lock = threading.Lock()

    def add(self, commit: Commit) -> None:
        if self._file is not None:
            with self._lock:
                self._file.write(write_line(commit))
                self._file.flush()


class _Worker:
    """Do one worker's share."""

    def __init__(
        self, load: Load, number: int, stop: threading.Event, began: float, journal: _Journal
    ) -> None:
        self.report = Report()
        self._load = load
        self._number = number
        self._stop = stop
        self._began = began
        self._journal = journal
        self._rng = random.Random(load.seed * 1009 + number)
        self._open: OrderedDict[Path, tuple[contextlib.ExitStack, sqlite3.Connection]]
        self._open = OrderedDict()
        self._heads: dict[Path, tuple[int, str]] = {}
        weights = (1 / (rank + 1) ** (_ZIPF if load.zipf else 0) for rank in range(len(load.paths)))
        self._shares = list(itertools.accumulate(weights))

    def work(self) -> None:
        """Operate at each tick; one that comes late is made up for, at most a second of them.

        Not beyond the end: what the machine could not do by then is left out.
        """
        interval = self._load.workers / self._load.rate
        end = self._began + self._load.seconds
        due = self._began + interval * self._number / self._load.workers
        try:
            while due < end and not self._stop.wait(max(0.0, due - time.monotonic())):
                if time.monotonic() >= end:
                    break
                self._operate()
                due = max(due + self._pause(interval, due), time.monotonic() - 1.0)
        finally:
            for stack, _ in self._open.values():
                stack.close()

    def _pause(self, interval: float, due: float) -> float:
        at = due - self._began
        if self._load.pattern == "burst":
            step = interval * 0.3
            return step if at % 10 + step < 3 else 10 - at % 10
        if self._load.pattern == "random":
            return self._rng.expovariate(1 / interval)
        if self._load.pattern == "wave":
            return interval / (1 + 0.5 * math.sin(at / 60 * 2 * math.pi))
        return interval

    def _operate(self) -> None:
        path = self._choose()
        try:
            connection = self._connection(path)
            if self._rng.random() < self._load.read_ratio:
                connection.execute(f"select count(*), sum(length(data)) from {TABLE}").fetchone()
                self.report.reads += 1
            else:
                self._write(path, connection)
        except Exception as error:
            self.report.errors += 1
            self.report.first_error = self.report.first_error or f"{path}: {error}"

    def _choose(self) -> Path:
        wanted = self._rng.random() * self._shares[-1]
        index = bisect.bisect_left(self._shares, wanted)
        return self._load.paths[min(index, len(self._load.paths) - 1)]

    def _connection(self, path: Path) -> sqlite3.Connection:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path][1]
        if len(self._open) >= _OPEN:
            self._open.popitem(last=False)[1][0].close()
        stack = contextlib.ExitStack()
        connection = stack.enter_context(opened(path))
        try:
            connection.execute("pragma synchronous = normal")
            connection.execute(SCHEMA)
            self._heads.setdefault(path, last_of(connection, self._number))
        except BaseException:
            stack.close()
            raise
        self._open[path] = (stack, connection)
        return connection

    def _write(self, path: Path, connection: sqlite3.Connection) -> None:
        number, digest = self._heads[path]
        data = self._rng.randbytes(self._load.payload)
        after = link(digest, data)
        begun, started = time.time(), time.monotonic()
        connection.execute(
            f"insert into {TABLE} values (?, ?, ?, ?, ?)",
            (self._number, number + 1, begun, data, after),
        )
        self.report.commits.append(time.monotonic() - started)
        self.report.writes += 1
        self._heads[path] = (number + 1, after)
        self._journal.add(Commit(str(path), self._number, number + 1, after, begun, time.time()))
