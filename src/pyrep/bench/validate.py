"""Restore databases with ``pyrep restore`` and compare them with their sources."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pyrep.bench.database import opened, row_counts, row_digest, schema
from pyrep.bench.journal import Commit, rows_of
from pyrep.errors import PyrepError

__all__ = ["CHECKS", "Check", "check_copy", "check_past", "restore_copy"]

CHECKS = ("quick", "integrity", "checksum", "rows", "full")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """Hold one comparison: ``problem`` is empty if all is as it should be."""

    db: str
    what: str
    problem: str = ""


def restore_copy(words: Sequence[str], output: Path, timestamp: str = "") -> None:
    """Restore to a new file, as an operator does; ``words`` are flags and the operand.

    :raises PyrepError: the restore failed; the text is its own
    """
    flags = ["-force", "-o", str(output)] + (["-timestamp", timestamp] if timestamp else [])
    done = subprocess.run(
        [sys.executable, "-m", "pyrep", "restore", *flags, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise PyrepError(f"restore failed with {done.returncode}: {lines[0]}")


def check_copy(source: Path, copy: Path, kind: str) -> Iterator[Check]:
    """Compare a restored copy with its source, which must be at rest.

    ``quick`` and ``integrity`` let SQLite check the copy and compare the numbers of rows;
    ``checksum`` compares whole files after a checkpoint of the source, ``rows`` schema and rows;
    ``full`` is all of them.
    """
    wanted = CHECKS[:-1] if kind == "full" else (kind,)
    for what in wanted:
        try:
            yield Check(str(source), what, _problem(source, copy, what))
        except PyrepError as error:
            yield Check(str(source), what, str(error))


def _problem(source: Path, copy: Path, what: str) -> str:
    if what in ("quick", "integrity"):
        unsound = _pragma(copy, "quick_check" if what == "quick" else "integrity_check")
        return unsound or _different(row_counts(source), row_counts(copy))
    if what == "checksum":
        with opened(source) as connection:
            busy = connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
        if busy:
            return "the source is in use: its WAL cannot be emptied, so its bytes say nothing"
        return "" if _sum(source) == _sum(copy) else "the files differ"
    if schema(source) != schema(copy):
        return "the schemas differ"
    return _different(row_digest(source), row_digest(copy))


def _different(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    tables = sorted(before.keys() | after.keys())
    different = [name for name in tables if before.get(name) != after.get(name)]
    return f"tables differ: {', '.join(different)}" if different else ""


def _pragma(path: Path, name: str) -> str:
    with opened(path, readonly=True) as connection:
        rows = [str(row[0]) for row in connection.execute(f"pragma {name}")]
    return "" if rows == ["ok"] else "; ".join(rows[:5])


def _sum(path: Path) -> str:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# --- the past ---------------------------------------------------------------------------------


def check_past(
    source: Path,
    words: Sequence[str],
    commits: Sequence[Commit],
    output: Path,
    *,
    samples: int,
    slack: float,
    seed: int,
) -> Iterator[Check]:
    """Restore at random times of the commits (one at least); each must be a state of then.

    Nothing committed ``slack`` seconds before the time may lack, nothing begun after it may be
    there, and every row must have the digest of the journal.
    """
    first = min(each.done for each in commits) + slack
    last = max(each.done for each in commits) + slack
    rng = random.Random(seed)
    for _ in range(samples):
        moment = rng.uniform(first, last)
        text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
        try:
            restore_copy(words, output, text)
            problem = _past_problem(commits, rows_of(output), moment, slack)
        except PyrepError as error:
            problem = str(error)
        yield Check(str(source), f"past {text}", problem)


def _past_problem(
    commits: Sequence[Commit], rows: dict[int, list[str]], moment: float, slack: float
) -> str:
    by_worker: dict[int, list[Commit]] = defaultdict(list)
    for commit in commits:
        by_worker[commit.worker].append(commit)
    for worker, made in by_worker.items():
        there = rows.get(worker, [])
        needed = max((c.number for c in made if c.done <= moment - slack), default=0)
        possible = max((c.number for c in made if c.begun <= moment), default=made[0].number - 1)
        if len(there) < needed:
            return f"worker {worker} has {len(there)} rows, {needed} were committed by then"
        if len(there) > possible:
            return f"worker {worker} has {len(there)} rows, only {possible} were begun by then"
        for commit in made:
            if commit.number <= len(there) and there[commit.number - 1] != commit.digest:
                return f"worker {worker}: row {commit.number} is not the one that was written"
    return ""
