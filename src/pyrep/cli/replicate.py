"""``pyrep replicate``: run the daemon."""

from __future__ import annotations

import os
from functools import partial

import click

from pyrep.cli.common import config_flags
from pyrep.cli.flags import Command, fail
from pyrep.errors import ConfigError

__all__ = ["command"]


@click.command(
    "replicate",
    cls=Command,
    short_help="Run the daemon.",
    forms=("[flags]", "[flags] DB_PATH REPLICA_URL"),
    example="pyrep replicate /var/lib/app.db file:///backups/app.db",
)
@config_flags
@click.option(
    "-exec", "exec_command", metavar="CMD", help="Run this program, and end when it ends."
)
@click.option("-log-level", metavar="LEVEL", help="TRACE, DEBUG, INFO, WARN or ERROR.")
@click.option(
    "-restore-if-db-not-exists",
    "restore_missing",
    is_flag=True,
    help="First restore databases named by path that do not exist.",
)
@click.option("-once", is_flag=True, help="Replicate what has changed, then end.")
@click.argument("words", nargs=-1)
def command(
    config_path: str | None,
    no_expand_env: bool,
    exec_command: str | None,
    log_level: str | None,
    restore_missing: bool,
    once: bool,
    words: tuple[str, ...],
) -> int:
    """Replicate the databases of the configuration, or one database, until a signal comes.

    The first SIGINT or SIGTERM ends it cleanly: what was committed is uploaded first. A second
    one cuts that short; the exit code is then 8, and the error names what was not uploaded.
    SIGHUP reads the configuration again.
    """
    from pyrep import log
    from pyrep.config.load import from_args, load
    from pyrep.daemon.run import run
    from pyrep.storage.registry import parse_url

    if words and config_path:
        fail("cannot specify a replica URL and the -config flag")
    reread = None
    if words:
        config = from_args(words[0], words[1:])
        parse_url(words[1])  # a daemon would run, waiting for a replica that cannot be
    else:
        config = load(config_path, expand_env=not no_expand_env)
        reread = partial(load, config.source, expand_env=not no_expand_env)
    if once and (exec_command or config.exec):
        fail("cannot specify -once with a command to execute")
    try:
        log.setup(config.logging, level=log_level)
    except ValueError as error:
        raise ConfigError(str(error), field="-log-level") from None
    if log_level:
        os.environ["LOG_LEVEL"] = log_level  # the child process is to log alike
    run(
        config,
        once=once,
        exec_command=exec_command,
        restore_missing=restore_missing,
        load=reread,
    )
    return 0
