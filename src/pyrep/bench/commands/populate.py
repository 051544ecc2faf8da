"""``pyrep-bench populate``: make one database of a wanted size."""

from __future__ import annotations

from pathlib import Path

import click

from pyrep.bench.commands.common import metered
from pyrep.cli.common import db_path, json_flag
from pyrep.cli.flags import Command, Number, Size, fail
from pyrep.cli.output import size_text, write_json

__all__ = ["command"]


@click.command(
    "populate",
    cls=Command,
    short_help="Make one database of a wanted size.",
    example="pyrep-bench populate -db /tmp/app.db -target-size 100MB",
)
@click.option("-db", metavar="PATH", help="The new database.")
@click.option("-target-size", type=Size(), default="100MB", show_default=True, help="Its bytes.")
@click.option("-row-size", type=Size(), default="1024", show_default=True, help="Payload of a row.")
@click.option("-batch-size", type=Number(), default=1000, show_default=True, help="Rows a commit.")
@click.option("-table-count", type=Number(), default=1, show_default=True, help="Tables.")
@click.option(
    "-index-ratio", type=float, default=0.2, show_default=True, help="Share of columns indexed."
)
@click.option("-page-size", type=int, default=4096, show_default=True, help="512 to 65536.")
@click.option("-seed", type=int, default=1, show_default=True, help="The same gives the same rows.")
@json_flag
@click.argument("words", nargs=-1)
def command(
    db: str | None,
    target_size: int,
    row_size: int,
    batch_size: int,
    table_count: int,
    index_ratio: float,
    page_size: int,
    seed: int,
    as_json: bool,
    words: tuple[str, ...],
) -> None:
    """Make a database in WAL mode and fill it; half of each row's payload is random bytes."""
    from pyrep.bench.database import size_of
    from pyrep.bench.make import Population, populate

    if words:
        fail("too many arguments")
    if not db:
        fail("-db is required")
    path = Path(db_path(db))
    wanted = Population(
        target_size, row_size, table_count, index_ratio, page_size, batch_size, seed
    )
    with metered(f"made {{:,}} of {target_size:,} bytes") as show:
        rows = populate(path, wanted, show)
    size = size_of(path)
    if as_json:
        write_json({"db_path": str(path), "rows": rows, "size": size})
    else:
        click.echo(f"made {path}: {rows} rows, {size_text(size)}")
