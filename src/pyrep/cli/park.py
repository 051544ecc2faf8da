"""``pyrep park``: let go of a database at once."""

from __future__ import annotations

import click

from pyrep.cli.common import config_flags, find_tenant, read_config
from pyrep.cli.flags import Command, Number, operand
from pyrep.cli.running import ask, running_pid

__all__ = ["command"]

_SECONDS = 30


@click.command(
    "park",
    cls=Command,
    short_help="Make the daemon let go of a database at once.",
    forms=("[flags] DB_PATH",),
    example="pyrep park /var/lib/app.db",
)
@config_flags
@click.option(
    "-timeout",
    type=Number(),
    default=_SECONDS,
    show_default=True,
    help="Seconds to wait for the daemon.",
)
@click.argument("words", nargs=-1)
def command(
    config_path: str | None, no_expand_env: bool, timeout: int, words: tuple[str, ...]
) -> None:
    """Make the running daemon close its connections to a database, for example to replace it.

    What was committed is staged first. The next change wakes the database again. Without a
    daemon there is nothing to park, which is no error.
    """
    name = operand(words, "database path required")
    config = read_config(config_path, no_expand_env)
    tenant = find_tenant(config, name)
    if running_pid(config) is None:
        click.echo("no daemon is running with this configuration: nothing to park")
        return
    click.echo(ask(config, "park", str(tenant.db_path), timeout))
