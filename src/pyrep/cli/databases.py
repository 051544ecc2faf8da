"""``pyrep databases``: list the databases of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyrep.cli.common import config_flags, json_flag, read_config, report_problems
from pyrep.cli.flags import Command, fail
from pyrep.cli.output import write_json, write_table
from pyrep.errors import ConfigError, DatabaseError, DatabaseNotReadyError

if TYPE_CHECKING:
    from pyrep.config.expand import Problem, TenantSpec
    from pyrep.config.model import Config
    from pyrep.sqlite import Probe

__all__ = ["command", "list_databases"]


@click.command(
    "databases",
    cls=Command,
    short_help="List the databases of the configuration.",
    example="pyrep databases -config /etc/pyrep.yml",
)
@config_flags
@json_flag
@click.argument("words", nargs=-1)
def command(
    config_path: str | None, no_expand_env: bool, as_json: bool, words: tuple[str, ...]
) -> int:
    """List the databases of the configuration, those of directories included.

    No replica is asked. What is wrong with an entry is said on standard error, and the exit
    code is that of the first such error.
    """
    from pyrep.config.expand import describe_replica

    if words:
        fail("too many arguments")
    tenants, problems = list_databases(read_config(config_path, no_expand_env))
    rows = [(t.name, t.replica.type or "file", describe_replica(t.replica)) for t in tenants]
    if as_json:
        names = ("path", "replica", "url")
        write_json(
            {
                "databases": [dict(zip(names, row, strict=True)) for row in rows],
                "problems": [{"path": str(p.path), "error": str(p.error)} for p in problems],
            }
        )
    else:
        write_table(("path", "replica", "url"), rows)
    report_problems(problems)
    return problems[0].error.exit_code if problems else 0


def list_databases(config: Config) -> tuple[list[TenantSpec], list[Problem]]:
    """Return the tenants that a daemon would manage now, and what is wrong with others.

    A file of a directory whose header is not SQLite's is none; a database that an entry names
    is one even while it is missing.
    """
    from pyrep.config.claims import Claims, claim_all
    from pyrep.config.expand import Problem, expand

    expansion = expand(config)
    problems = list(expansion.problems)
    inodes: dict[str, tuple[int, int] | None] = {}
    candidates: list[TenantSpec] = []
    for tenant in expansion.tenants:
        try:
            found = _look(tenant)
        except DatabaseError as exc:
            problems.append(Problem(tenant.db_path, tenant.index, ConfigError(str(exc))))
            continue
        if found is None or found.is_database:
            candidates.append(tenant)
            inodes[tenant.name] = (found.device, found.inode) if found else None
        elif tenant.relpath is None:
            error = ConfigError(f"{tenant.name}: is not a SQLite database")
            problems.append(Problem(tenant.db_path, tenant.index, error))
    accepted, conflicts = claim_all(Claims(), candidates, lambda tenant: inodes[tenant.name])
    return accepted, problems + conflicts


def _look(tenant: TenantSpec) -> Probe | None:
    """Read a database's header; None if there is no file."""
    from pyrep.sqlite import probe

    try:
        return probe(tenant.db_path)
    except DatabaseNotReadyError:
        return None
