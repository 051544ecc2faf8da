"""``pyrep-bench tenants``: make a tree of tenants."""

from __future__ import annotations

from pathlib import Path

import click

from pyrep.bench.commands.common import metered
from pyrep.cli.common import db_path, json_flag
from pyrep.cli.flags import Command, Number, Size, fail
from pyrep.cli.output import write_json

__all__ = ["command"]


@click.command(
    "tenants",
    cls=Command,
    short_help="Make a tree of small databases.",
    example="pyrep-bench tenants -dir /tmp/tenants -count 100",
)
@click.option("-dir", "folder", metavar="DIR", help="Where the tree begins.")
@click.option("-count", type=Number(), default=100, show_default=True, help="Databases.")
@click.option("-size", type=Size(), default=65536, show_default=True, help="Bytes of each, about.")
@click.option("-depth", type=int, default=2, show_default=True, help="Folders deep, at most.")
@click.option("-seed", type=int, default=1, show_default=True, help="The same gives the same rows.")
@json_flag
@click.argument("words", nargs=-1)
def command(
    folder: str | None,
    count: int,
    size: int,
    depth: int,
    seed: int,
    as_json: bool,
    words: tuple[str, ...],
) -> None:
    """Make databases with schemas like real ones (a shop, a wiki, measurements) in WAL mode."""
    from pyrep.bench.make import make_tenants

    if words:
        fail("too many arguments")
    if not folder:
        fail("-dir is required")
    if depth < 0:
        fail("-depth must not be negative")
    with metered(f"made {{}} of {count} databases") as show:
        paths = make_tenants(
            Path(db_path(folder)), count, seed=seed, depth=depth, size=size, on_made=show
        )
    if as_json:
        write_json({"databases": [str(path) for path in paths]})
    else:
        click.echo(f"made {len(paths)} databases below {folder}")
