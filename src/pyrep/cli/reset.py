"""``pyrep reset``: forget a database's local replication state, or end its fencing."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyrep.cli.common import config_flags, db_path, find_tenant, read_config
from pyrep.cli.flags import Command, fail, operand
from pyrep.cli.output import printable
from pyrep.cli.running import ask, node_id, refuse_managed, rows, running_pid
from pyrep.errors import ConfigError, DatabaseNotReadyError

if TYPE_CHECKING:
    from pyrep.config.expand import TenantSpec
    from pyrep.config.model import Config
    from pyrep.tenant.tenant import Tenant

__all__ = ["command"]

_SECONDS = 60.0
_FENCED = "fenced"
_ADVICE = "Stop the daemon first; it keeps this state in memory too."


@click.command(
    "reset",
    cls=Command,
    short_help="Forget a database's local state, or end its fencing.",
    forms=("[flags] DB_PATH", "-take-over GLOB [flags]"),
    example="pyrep reset /var/lib/app.db",
)
@config_flags
@click.option(
    "-take-over",
    metavar="DB_PATH|GLOB",
    help="End the fencing of a database, or of the fenced ones that match: the replica is ours.",
)
@click.option("-dry-run", is_flag=True, help="Print what would be done; change nothing.")
@click.argument("words", nargs=-1)
def command(
    config_path: str | None,
    no_expand_env: bool,
    take_over: str | None,
    dry_run: bool,
    words: tuple[str, ...],
) -> None:
    """Forget what is known locally about a database's replication; the replica stays.

    The next sync compares with the replica and ships every page. With -take-over instead, the
    databases that are fenced (another writer's files are on their replica) are replicated
    again, beginning with every page; a running daemon does it at once. A glob is matched
    against whole paths and belongs in quotes.
    """
    if take_over:
        if words:
            fail("too many arguments")
        _take_over(read_config(config_path, no_expand_env), take_over, dry_run)
        return
    name = operand(words, "database path required")
    config, tenant = _tenant(name, config_path, no_expand_env)
    if not tenant.db_path.exists():
        raise DatabaseNotReadyError(f"database does not exist: {tenant.db_path}")
    _reset(config, tenant, dry_run)


def _tenant(name: str, config_path: str | None, no_expand_env: bool) -> tuple[Config, TenantSpec]:
    """Find the database in the configuration, or without one take the state beside it."""
    from pyrep.config import load
    from pyrep.config.expand import tenant_at

    if config_path or load.config_path(None, os.environ).is_file():
        config = read_config(config_path, no_expand_env)
        return config, find_tenant(config, name)
    path = db_path(name)
    # A reset does not look at the replica, so any will do; the folder of state is the default.
    config = load.from_args(path, [Path(path).with_name("unused").as_uri()])
    tenant = tenant_at(config, path)
    if tenant is None:
        raise ConfigError(f"database not found: {path}")
    return config, tenant


def _reset(config: Config, tenant: TenantSpec, dry_run: bool) -> None:
    folder = tenant.state_path
    if not folder.is_dir():
        click.echo(printable(f"no local state to reset for {tenant.name}"))
        click.echo(printable(f"(the state directory {folder} does not exist)"))
        return
    if dry_run:
        for name in sorted(os.listdir(folder)):
            click.echo(printable(f"would remove {folder / name}"))
        return
    refuse_managed(config, tenant, _ADVICE)
    with _open(config, tenant) as handle:
        names = handle.reset()
    for name in names:
        click.echo(printable(f"removed {folder / name}"))
    click.echo(printable(f"reset {tenant.name}: the next sync ships every page"))


def _take_over(config: Config, pattern: str, dry_run: bool) -> None:
    """Let the daemon end the fencing, or do it here when none runs."""
    wanted = db_path(pattern)
    tenants = _named_or_fenced(config, wanted)
    if dry_run:
        for tenant in tenants:
            click.echo(printable(f"would take over the replica of {tenant.db_path}"))
        return
    if running_pid(config) is not None:
        click.echo(printable(ask(config, "reset-take-over", wanted, _SECONDS)))
        return
    if not tenants:
        raise ConfigError(f"no such database, and no fenced one that matches: {wanted}")
    for tenant in tenants:
        with _open(config, tenant) as handle:
            handle.take_over()
        click.echo(printable(f"took over {tenant.db_path}: the next sync ships every page"))


def _named_or_fenced(config: Config, wanted: str) -> list[TenantSpec]:
    """Return the database of that path, fenced or not; else the fenced ones that match a glob."""
    from pyrep.config.expand import tenant_at

    named = tenant_at(config, wanted)
    if named is not None and named.db_path.exists():
        return [named]
    fenced = (row.path for row in rows(config) if row.status == _FENCED)
    return [find_tenant(config, path) for path in fenced if fnmatch.fnmatchcase(path, wanted)]


@contextmanager
def _open(config: Config, tenant: TenantSpec) -> Iterator[Tenant]:
    """Yield a tenant's engine, for local work only."""
    from pyrep.clock import SystemClock
    from pyrep.storage.registry import connect
    from pyrep.storage.retry import PATIENT
    from pyrep.tenant.tenant import Tenant

    lineage = node_id(config, tenant)
    with closing(connect(tenant.replica, policy=PATIENT)) as client:
        handle = Tenant(tenant, client, known_node_id=lineage, clock=SystemClock())
        with closing(handle):
            yield handle
