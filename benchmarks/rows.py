"""Lines of the table of numbers to reach, and the JSON in which a benchmark hands them on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "MEASURES",
    "Measure",
    "Report",
    "Row",
    "read_json",
    "verdict",
    "write_json",
]


@dataclass(frozen=True)
class Measure:
    """Name one number to reach: its key, what it is, and the bench that measures it.

    Litestream's number has the same key, or that in ``beside``.
    """

    id: str
    what: str
    target: str
    bench: str
    beside: str = ""


MEASURES = (
    Measure("crc", "CRC-64/ISO of pages, one core", ">= 8 GB/s", "core"),
    Measure("encode", "LTX encode of 4 KB pages, one core", ">= 90 % of bare liblz4", "core"),
    Measure("decode", "LTX decode and verify, one core", ">= 2 GB/s", "core"),
    Measure("merge", "merge without re-encoding, one core", ">= 1.5 GB/s", "core"),
    Measure(
        "snapshot", "first snapshot of a 1 GB database", "<= 1/5 of the time, <= 128 MB", "snapshot"
    ),
    Measure("restore", "its restore", "<= 1/8 of the time, <= 128 MB", "snapshot"),
    Measure(
        "idle-1000",
        "1,000 idle tenants",
        "<= 60 MB, 100 descriptors, 32 threads, 0.2 % of a core",
        "scale",
    ),
    Measure("idle-3000", "3,000 idle tenants", "as 10,000", "scale"),
    Measure(
        "idle-10000",
        "10,000 idle tenants",
        "<= 120 MB, 200 descriptors, 1 % of a core",
        "scale",
    ),
    Measure("requests", "requests of idle tenants", "0", "scale", beside="idle"),
    Measure(
        "start",
        "start with 10,000 unchanged tenants",
        "<= 5 s to watching, 0 requests, 0 databases opened",
        "scale",
    ),
    Measure(
        "latency-10",
        "commit to stored, one of 10 commits, the others idle",
        "p50 <= 20 ms, p99 <= 100 ms",
        "scale",
    ),
    Measure(
        "latency-many",
        "the same, one of 10,000 (Litestream: of 500)",
        "p50 <= 20 ms, p99 <= 100 ms",
        "scale",
    ),
    Measure(
        "writers",
        "1,000 tenants, one write a second each",
        "<= 60 % of a core, 200 MB, stall p99 10 ms, max 100 ms, lag p99 2 s",
        "scale",
    ),
)


@dataclass(frozen=True)
class Row:
    """Hold one line: what was measured beside its target.

    ``verdict`` is ``reached``, ``missed``, ``beside`` (without a target) or ``failed`` (could not
    run, ``measured`` says why).  ``id`` is that of a :class:`Measure`, or empty.  ``numbers`` carry
    their units in their names.
    """

    row: str
    target: str
    measured: str
    verdict: str
    id: str = ""
    tool: str = "pyrep"
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        target = f"   (target {self.target})" if self.target and self.verdict != "beside" else ""
        shown = self.verdict if self.verdict in {"reached", "beside"} else self.verdict.upper()
        return f"{shown:<8} {self.row}: {self.measured}{target}"


def verdict(reached: bool | None) -> str:
    """Return the word for whether a target was reached; None: there is none."""
    return {True: "reached", False: "missed", None: "beside"}[reached]


class Report:
    """Print rows as they come; with a path they are in that file at once.

    So what was measured before a benchmark broke off is not lost.
    """

    def __init__(self, path: Path | None = None, raw: dict[str, Any] | None = None) -> None:
        self._path = path
        self.rows: list[Row] = []
        self.raw = {} if raw is None else raw

    @staticmethod
    def add_option(parser: argparse.ArgumentParser) -> None:
        """Add ``--json FILE``."""
        parser.add_argument("--json", type=Path, help="write the rows to this file, too")

    def add(self, row: Row) -> None:
        """Print a row and keep it."""
        print(row, flush=True)
        self.rows.append(row)
        self._write()

    def _write(self, *, finished: bool = False) -> None:
        if self._path is not None:
            write_json(self._path, self.rows, self.raw, finished=finished)

    def finish(self) -> int:
        """Write the file once more, as finished; return the exit code: 1 if a target was missed."""
        self._write(finished=True)
        return int(any(row.verdict in {"missed", "failed"} for row in self.rows))


def write_json(
    path: Path, rows: Sequence[Row], raw: dict[str, Any] | None = None, *, finished: bool = True
) -> None:
    """Write rows, and whatever else was measured, to a file, which appears whole."""
    document = {"rows": [asdict(row) for row in rows], "raw": raw or {}, "finished": finished}
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(document, indent=1))
    unfinished.replace(path)


def read_json(path: Path) -> tuple[list[Row], dict[str, Any], bool]:
    """Return what :func:`write_json` wrote; last, whether the benchmark came to its end.

    :raises ValueError: the file is another one
    """
    document = json.loads(path.read_text())
    try:
        rows = [Row(**row) for row in document["rows"]]
        return rows, dict(document["raw"]), bool(document["finished"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} holds no rows of a benchmark: {error}") from error
