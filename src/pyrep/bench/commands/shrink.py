"""``pyrep-bench shrink``: delete rows."""

from __future__ import annotations

import click

from pyrep.bench.commands.common import choose, source_flags
from pyrep.cli.common import json_flag
from pyrep.cli.flags import Command, OneOf, fail
from pyrep.cli.output import size_text, write_json

__all__ = ["command"]

_MODES = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")


@click.command(
    "shrink",
    cls=Command,
    short_help="Delete rows, and let SQLite give pages back.",
    example="pyrep-bench shrink -db /tmp/app.db -delete-percentage 50 -vacuum",
)
@source_flags
@click.option(
    "-delete-percentage", type=float, default=50.0, show_default=True, help="Of each table's rows."
)
@click.option("-vacuum", is_flag=True, help="VACUUM at the end.")
@click.option("-checkpoint", is_flag=True, help="Checkpoint after the deletions.")
@click.option(
    "-checkpoint-mode",
    type=OneOf(*_MODES),
    metavar="|".join(_MODES),
    default="PASSIVE",
    show_default=True,
    help="How.",
)
@click.option("-seed", type=int, default=1, show_default=True, help="Which rows.")
@json_flag
@click.argument("words", nargs=-1)
def command(
    db: str | None,
    folder: str | None,
    match: str,
    delete_percentage: float,
    vacuum: bool,
    checkpoint: bool,
    checkpoint_mode: str,
    seed: int,
    as_json: bool,
    words: tuple[str, ...],
) -> None:
    """Delete a random share of the rows of every table but that of the load."""
    from pyrep.bench.shrink import shrink

    if words:
        fail("too many arguments")
    if not 0 <= delete_percentage <= 100:
        fail("-delete-percentage must be from 0 to 100")
    found = []
    for path in choose(db, folder, match):
        done = shrink(
            path,
            delete_percentage,
            seed=seed,
            checkpoint=checkpoint_mode if checkpoint else "",
            vacuum=vacuum,
        )
        found.append(
            {
                "db_path": str(path),
                "rows_deleted": done.rows,
                "size_before": done.before,
                "size": done.after,
            }
        )
        if not as_json:
            click.echo(
                f"{path}: {done.rows} rows deleted, {size_text(done.before)} before, "
                f"{size_text(done.after)} now"
            )
    if as_json:
        write_json({"databases": found})
