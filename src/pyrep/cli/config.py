"""``pyrep config check``: read the configuration and show what is in effect."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pyrep.cli.common import config_flags, json_flag, read_config, report_problems
from pyrep.cli.databases import list_databases
from pyrep.cli.flags import Command, Group, fail
from pyrep.cli.output import printable, say, write_json
from pyrep.errors import ConfigError

__all__ = ["check", "command"]


class _ConfigGroup(Group):
    """Hold the commands about configurations, which are defined here."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; None for an unknown name."""
        return check if cmd_name == "check" else None


command = _ConfigGroup(
    name="config", help="Look at the configuration.", modules={"check": __name__}
)


@click.command(
    "check",
    cls=Command,
    short_help="Check the configuration and print what is in effect.",
    example="pyrep config check -config /etc/pyrep.yml",
)
@config_flags
@json_flag
@click.argument("words", nargs=-1)
def check(
    config_path: str | None, no_expand_env: bool, as_json: bool, words: tuple[str, ...]
) -> int:
    """Check the configuration and print the policy in effect, with warnings and errors.

    Databases are looked for and their replica paths compared, but nothing is written and no
    replica is asked. The exit code is 2 if anything is wrong; what would only be waited for
    (a directory that does not exist yet) is wrong too.
    """
    from pyrep.config.effective import effective

    if words:
        fail("too many arguments")
    try:
        config = read_config(config_path, no_expand_env)
    except ConfigError as error:
        if as_json:
            write_json({"config": None, "warnings": [], "errors": [str(error)]})
        raise
    policy = effective(config)
    policy.pop("warnings", None)
    tenants, problems = list_databases(config)
    if as_json:
        errors = [str(problem.error) for problem in problems]
        warnings = list(config.warnings)
        count = len(tenants)
        write_json({"config": policy, "databases": count, "warnings": warnings, "errors": errors})
    else:
        for line in _lines(policy, ""):
            click.echo(printable(line))
        for warning in config.warnings:
            say(f"Warning: {warning}")
        say(f"{len(tenants)} databases, {len(config.warnings)} warnings, {len(problems)} errors")
    report_problems(problems)
    return ConfigError.exit_code if problems else 0


def _lines(value: object, indent: str) -> Iterator[str]:
    """Yield a policy as indented ``key: value`` lines."""
    items: list[tuple[str, object]] = []
    if isinstance(value, dict):
        items = [(f"{key}:", item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [("-", item) for item in value]
    for label, item in items:
        if isinstance(item, dict | list):
            yield f"{indent}{label}" + ("" if item else " []" if item == [] else " {}")
            yield from _lines(item, indent + "  ")
        else:
            yield f"{indent}{label} {_scalar(item)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)
