"""``pyrep version``: say which version this is."""

from __future__ import annotations

import platform

import click

from pyrep import __version__
from pyrep.cli.flags import Command, fail

__all__ = ["command"]


@click.command(
    "version",
    cls=Command,
    example="pyrep version -verbose",
    help="Print the version.",
)
@click.option(
    "-verbose",
    is_flag=True,
    help="Also print the versions of Python and APSW (it brings SQLite), and the platform.",
)
@click.argument("words", nargs=-1)
def command(verbose: bool, words: tuple[str, ...]) -> None:
    """Print the version."""
    if words:
        fail("too many arguments")
    if not verbose:
        click.echo(__version__)
        return
    from importlib.metadata import version

    rows = {
        "Version": __version__,
        "Python": platform.python_version(),
        "APSW": version("apsw"),
        "OS/Arch": f"{platform.system().lower()}/{platform.machine()}",
    }
    for name, value in rows.items():
        click.echo(f"{name + ':':<10}{value}")
