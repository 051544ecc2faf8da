"""The page of measured numbers: one table, charts beside it, and the raw JSON."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import anonymous
from plots import Bars, chart
from rows import MEASURES, Row

__all__ = ["Result", "table", "write"]

_PAGE = "benchmarks.md"
_FOLDER = "benchmarks"  # of charts and raw numbers, beside the page


@dataclass(frozen=True)
class Result:
    """Hold what a run of all benchmarks found."""

    rows: Sequence[Row]
    raw: Mapping[str, Any]  # by bench
    machine: Mapping[str, str]
    command: str
    day: str
    minutes: float


@dataclass(frozen=True)
class _Bar:
    """Say which number of which row is drawn, and its target: fixed, or a share of another bar."""

    id: str
    number: str
    label: str
    unit: str
    target: float | None = None
    share_of: tuple[float, str] | None = None


def _gigabytes(id: str, label: str, target: float | None = None) -> _Bar:
    return _Bar(id, "gb_per_second", label, "GB/s", target)


_CHARTS: dict[str, tuple[str, Sequence[_Bar]]] = {
    "core": (
        "The core, one core of the processor (more is better)",
        [
            _gigabytes("crc", "CRC-64 (bare: by table)", 8),
            _Bar(
                "encode", "gb_per_second", "encode (bare: liblz4)", "GB/s", share_of=(0.9, "bare")
            ),
            _gigabytes("decode", "decode, verify (bare: liblz4)", 2),
            _gigabytes("merge", "merge", 1.5),
        ],
    ),
    "large": (
        "A large database (less is better; bare: writing and syncing)",
        [
            _Bar("snapshot", "seconds", "first snapshot", "s", share_of=(1 / 5, "litestream")),
            _Bar("snapshot", "cpu_seconds", "its CPU", "CPU-s"),
            _Bar("snapshot", "mb", "its memory", "MB", 128),
            _Bar("restore", "seconds", "restore", "s", share_of=(1 / 8, "litestream")),
            _Bar("restore", "cpu_seconds", "its CPU", "CPU-s"),
            _Bar("restore", "mb", "its memory", "MB", 128),
        ],
    ),
    "idle": (
        "Idle tenants (less is better)",
        [
            _Bar("idle-1000", "mb", "1,000: memory", "MB", 60),
            _Bar("idle-1000", "descriptors", "1,000: descriptors", "", 100),
            _Bar("idle-1000", "cpu_percent", "1,000: CPU of a core", "%", 0.2),
            _Bar("idle-3000", "mb", "3,000: memory", "MB", 120),
            _Bar("idle-3000", "descriptors", "3,000: descriptors", "", 200),
            _Bar("idle-3000", "cpu_percent", "3,000: CPU of a core", "%", 1),
            _Bar("idle-10000", "mb", "10,000: memory", "MB", 120),
            _Bar("idle-10000", "descriptors", "10,000: descriptors", "", 200),
            _Bar("idle-10000", "cpu_percent", "10,000: CPU of a core", "%", 1),
        ],
    ),
    "latency": (
        "From a commit to the replica (less is better)",
        [
            _Bar("latency-10", "p50_ms", "one of 10: p50", "ms", 20),
            _Bar("latency-10", "p99_ms", "one of 10: p99", "ms", 100),
            _Bar("latency-many", "p50_ms", "one of many: p50", "ms", 20),
            _Bar("latency-many", "p99_ms", "one of many: p99", "ms", 100),
        ],
    ),
    "writers": (
        "1,000 tenants write once a second each (less is better)",
        [
            _Bar("writers", "cpu_percent", "CPU of a core", "%", 60),
            _Bar("writers", "mb", "memory", "MB", 200),
            _Bar("writers", "stall_p99_ms", "stall of a commit, p99", "ms", 10),
            _Bar("writers", "stall_max_ms", "longest stall", "ms", 100),
            _Bar("writers", "lag_p50_ms", "lag, p50", "ms"),
            _Bar("writers", "lag_p99_ms", "lag, p99", "ms", 2000),
        ],
    ),
    "tools": (
        "The same work in turn (less is better)",
        [
            _Bar("field", "cpu_percent", "four under load: CPU of a core", "%"),
            _Bar("field", "mb", "their memory", "MB"),
            _Bar("field", "commit_p99_ms", "their commits, p99", "ms"),
            _Bar("transaction", "stored_seconds", "large transaction stored", "s"),
            _Bar("transaction", "cpu_seconds", "its CPU", "CPU-s"),
            _Bar("transaction", "mb", "its memory", "MB"),
            _Bar("commits", "lag_p50_ms", "100 commits/s: lag p50", "ms"),
            _Bar("commits", "lag_p99_ms", "their lag p99", "ms"),
            _Bar("commits", "cpu_ms_per_commit", "CPU of a commit", "ms"),
            _Bar("idle", "requests_per_tenant_and_day", "idle: requests", "a day"),
        ],
    ),
}


# --- the table ------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield what, target, pyrep, Litestream and verdict of every number to reach, in their order.

    A number that was measured more than once has as many lines.
    """
    for measure in MEASURES:
        theirs = "; ".join(
            row.measured for row in _select(rows, measure.beside or measure.id, "litestream")
        )
        ours = _select(rows, measure.id, "pyrep")
        for row in ours:
            what = f"{measure.what}: {row.row}" if len(ours) > 1 else measure.what
            yield what, row.target or measure.target, row.measured, theirs, row.verdict
            theirs = ""


def _select(rows: Sequence[Row], id: str, tool: str) -> list[Row]:
    return [row for row in rows if (row.id, row.tool) == (id, tool)]


def _line(cells: Sequence[str]) -> str:
    """Return a line of a table; nothing in a cell may end it or begin a tag."""
    return "| " + " | ".join(" ".join(_plain(cell).split()) for cell in cells) + " |"


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("<", "&lt;")


# --- charts ---------------------------------------------------------------------------------------


def _bars(rows: Sequence[Row], bar: _Bar) -> Bars:
    """Return the bars of one number; of several rows of a program the first counts."""
    values: list[tuple[str, float]] = []
    for tool in ("pyrep", "litestream"):
        found = [row.numbers for row in _select(rows, bar.id, tool) if bar.number in row.numbers]
        if not found:
            continue
        values.append((tool, found[0][bar.number]))
        if f"bare_{bar.number}" in found[0] and tool == "pyrep":
            values.append(("bare", found[0][f"bare_{bar.number}"]))
    target = bar.target
    if bar.share_of is not None:
        share, name = bar.share_of
        target = share * dict(values)[name] if name in dict(values) else None
    return Bars(bar.label, bar.unit, values, target)


# --- the page -------------------------------------------------------------------------------------


def write(result: Result, docs: Path) -> None:
    """Write the page, its charts and the raw numbers below ``docs``, each file whole.

    Everything is made beside its place first, so that an error changes nothing.
    """
    docs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".benchmarks-", dir=docs) as scratch:
        staged = Path(scratch)
        (staged / _FOLDER).mkdir()
        for name, (title, bars) in _CHARTS.items():
            drawn = chart(title, [_bars(result.rows, bar) for bar in bars])
            (staged / _FOLDER / f"{name}.svg").write_text(drawn)
        (staged / _FOLDER / "results.json").write_text(_json(result))
        (staged / _PAGE).write_text(anonymous(_page(result)))
        shutil.rmtree(docs / _FOLDER, ignore_errors=True)
        (staged / _FOLDER).replace(docs / _FOLDER)
        (staged / _PAGE).replace(docs / _PAGE)


def _json(result: Result) -> str:
    document = {
        "day": result.day,
        "command": result.command,
        "minutes": round(result.minutes, 1),
        "machine": result.machine,
        "rows": [asdict(row) for row in result.rows],
        "raw": result.raw,
    }
    return anonymous(json.dumps(document, indent=1)) + "\n"


def _page(result: Result) -> str:
    named = {measure.id for measure in MEASURES}
    also = [row for row in result.rows if row.id not in named]
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{result.command}` on {result.day}, in {result.minutes:.0f} minutes; "
        "whoever runs it again replaces this page.",
        "",
        "**How to read it.** Litestream runs in the same run on the same machine, one program "
        "after the other; ratios count, absolute numbers move with the machine. Every "
        "result is checked before its time counts. *reached* and *missed* are verdicts on the "
        "target; *failed* is a row that could not run, with its reason. *bare* is what the "
        "machine does without pyrep: liblz4 alone, a table for checksums, writing and syncing as "
        "many bytes. What each row does, and the known noise: "
        "[benchmarks/README.md](../benchmarks/README.md).",
        "",
        "| | |",
        "|---|---|",
        *(_line(pair) for pair in result.machine.items()),
        "",
        "## Numbers to reach",
        "",
        _line(["what", "target", "pyrep", "Litestream", "verdict"]),
        "|---|---|---|---|---|",
        *(_line(cells) for cells in table(result.rows)),
        "",
        "Each group of bars below has a scale of its own, beginning at zero.",
        "",
        *(f"![{title}]({_FOLDER}/{name}.svg)\n" for name, (title, _) in _CHARTS.items()),
        "## Also measured",
        "",
        _line(["what", "measured", "target", "verdict"]),
        "|---|---|---|---|",
        *(_line([row.row, row.measured, row.target, row.verdict]) for row in also),
        "",
        f"All numbers, unrounded: [results.json]({_FOLDER}/results.json).",
        "",
    ]
    return "\n".join(lines)
