"""``pyrep-bench load``: write to databases at a rate."""

from __future__ import annotations

import contextlib
import math
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from pyrep.bench.commands.common import choose, metered, source_flags, stoppable
from pyrep.cli.common import db_path, json_flag
from pyrep.cli.flags import Command, Duration, Number, OneOf, Size, fail
from pyrep.cli.output import write_json

if TYPE_CHECKING:
    from pyrep.bench.load import Load, Report

__all__ = ["command"]


@click.command(
    "load",
    cls=Command,
    short_help="Write to databases at a rate.",
    example="pyrep-bench load -dir /tmp/tenants -write-rate 200 -duration 10s",
)
@source_flags
@click.option("-write-rate", type=float, default=100.0, show_default=True, help="Per second, all.")
@click.option("-duration", type=Duration(), default="1m", show_default=True, help="How long.")
@click.option(
    "-pattern",
    type=OneOf("constant", "burst", "random", "wave"),
    metavar="constant|burst|random|wave",
    default="constant",
    show_default=True,
    help="How the operations are spread over time.",
)
@click.option("-payload-size", type=Size(), default="1024", show_default=True, help="Bytes a row.")
@click.option("-read-ratio", type=float, default=0.2, show_default=True, help="Share of reads.")
@click.option("-workers", type=Number(), default=1, show_default=True, help="Threads.")
@click.option(
    "-choice",
    type=OneOf("uniform", "zipf"),
    metavar="uniform|zipf",
    default="uniform",
    show_default=True,
    help="Which of the databases: each as often, or few of them mostly.",
)
@click.option("-journal", metavar="FILE", help="Write down each commit, for validate -journal.")
@click.option("-seed", type=int, default=1, show_default=True, help="For payloads and choices.")
@json_flag
@click.argument("words", nargs=-1)
def command(
    db: str | None,
    folder: str | None,
    match: str,
    write_rate: float,
    duration: timedelta,
    pattern: str,
    payload_size: int,
    read_ratio: float,
    workers: int,
    choice: str,
    journal: str | None,
    seed: int,
    as_json: bool,
    words: tuple[str, ...],
) -> int:
    """Write rows to a table of its own in one database or many, and report commit times.

    The exit code is 1 if an operation failed. SIGINT and SIGTERM end it in order.
    """
    from pyrep.bench.load import Load, run

    if words:
        fail("too many arguments")
    if not 0 < write_rate < math.inf or not 0 <= read_ratio <= 1:
        fail("-write-rate must be above 0, -read-ratio from 0 to 1")
    load = Load(
        choose(db, folder, match),
        write_rate,
        duration.total_seconds(),
        pattern,
        payload_size,
        read_ratio,
        workers,
        choice == "zipf",
        seed,
    )
    with contextlib.ExitStack() as stack:
        file = None
        if journal is not None:
            file = stack.enter_context(_opened(Path(db_path(journal))))
        stop = stack.enter_context(stoppable())
        show = stack.enter_context(metered("{:,} commits"))
        report = run(load, stop, journal=file, on_count=show)
    if as_json:
        write_json(_document(load, report))
    else:
        _print(load, report)
    return 1 if report.errors else 0


def _opened(journal: Path) -> TextIO:
    from pyrep.errors import ConfigError

    try:
        return journal.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{journal}: journal cannot be written: {error.strerror}") from error


def _document(load: Load, report: Report) -> dict[str, object]:
    shares = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    return {
        "databases": len(load.paths),
        "writes": report.writes,
        "reads": report.reads,
        "errors": report.errors,
        "first_error": report.first_error,
        "seconds": round(report.seconds, 3),
        "commit_ms": {name: round(report.percentile(share), 3) for name, share in shares},
    }


def _print(load: Load, report: Report) -> None:
    rate = report.writes / report.seconds if report.seconds else 0.0
    click.echo(
        f"{report.writes} commits ({rate:.1f}/s) and {report.reads} reads on "
        f"{len(load.paths)} databases, {report.errors} errors; commits took p50 "
        f"{report.percentile(0.5):.2f}, p99 {report.percentile(0.99):.2f}, max "
        f"{report.percentile(1.0):.2f} ms"
    )
    if report.first_error:
        click.echo(f"first error: {report.first_error}")
