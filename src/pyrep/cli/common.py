"""What several commands share: their flags, the configuration, finding a tenant."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pyrep.cli.flags import fail
from pyrep.cli.output import say
from pyrep.errors import ConfigError

if TYPE_CHECKING:
    from pyrep.config.expand import Problem, TenantSpec
    from pyrep.config.model import Config

__all__ = [
    "config_flags",
    "db_path",
    "default_config",
    "find_tenant",
    "json_flag",
    "log_to_stderr",
    "names_replica",
    "read_config",
    "report_problems",
]

_log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

_DATABASE_SCHEMES = ("sqlite://", "sqlite3://")
_CONFIG_HELP = (
    "Configuration file; else $PYREP_CONFIG, $LITESTREAM_CONFIG, /etc/pyrep.yml or "
    "/etc/litestream.yml."
)


def config_flags(function: Function) -> Function:
    """Add ``-config`` and ``-no-expand-env``."""
    function = click.option(
        "-no-expand-env",
        "no_expand_env",
        is_flag=True,
        help="Leave $NAME and ${NAME} in the configuration as they are.",
    )(function)
    return click.option("-config", "config_path", metavar="PATH", help=_CONFIG_HELP)(function)


def json_flag(function: Function) -> Function:
    """Add ``-json``."""
    return click.option("-json", "as_json", is_flag=True, help="Print JSON.")(function)


def log_to_stderr(config: Config | None = None) -> None:
    """Send the log to standard error: standard output belongs to what a command prints."""
    from pyrep import log

    chosen = config.logging if config else log.LoggingConfig(type="pretty")
    log.setup(replace(chosen, stderr=True), stream=sys.stderr)


def read_config(config_path: str | None, no_expand_env: bool) -> Config:
    """Read the configuration and log as it says, on standard error."""
    from pyrep.config.load import load

    config = load(config_path, expand_env=not no_expand_env)
    log_to_stderr(config)
    return config


def default_config() -> Config | None:
    """Return the configuration in its usual place; None if there is none that can be used."""
    from pyrep.config.load import config_path, load

    if not config_path(None, os.environ).is_file():
        return None
    try:
        return load()
    except ConfigError as error:
        # Nobody asked for it; and no daemon can run with it as it is.
        _log.warning("the configuration cannot be used", extra={"error": str(error)})
        return None


def db_path(text: str) -> str:
    """Return the absolute path of a database named on the command line.

    :raises ConfigError: the text is no path
    """
    from pyrep.config.paths import expand_path

    try:
        return expand_path(text)
    except ValueError as exc:
        raise ConfigError(f"invalid database path {text!r}: {exc}") from None


def find_tenant(config: Config, text: str) -> TenantSpec:
    """Return the tenant whose database is at a path, whether the file exists or not.

    :raises ConfigError: the configuration has no such database
    """
    from pyrep.config.expand import tenant_at

    path = db_path(text)
    found = tenant_at(config, path)
    if found is None:
        raise ConfigError(
            f"database not found in config: {path}",
            hint=f"'pyrep databases -config {config.source}' lists them."
            if config.source
            else "'pyrep databases' lists them.",
        )
    return found


def report_problems(problems: Iterable[Problem]) -> None:
    """Print what is wrong with entries of the configuration."""
    for problem in problems:
        say(f"Error: {problem.error}")
        if problem.error.hint:
            say(f"Hint: {problem.error.hint}")


def names_replica(text: str, config_path: str | None) -> bool:
    """Return whether an operand is a replica's URL (it has no place in a configuration)."""
    from pyrep.storage.registry import is_url

    if not is_url(text) or text.startswith(_DATABASE_SCHEMES):
        return False
    if config_path:
        fail("cannot specify a replica URL and the -config flag")
    return True
