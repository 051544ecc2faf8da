"""``pyrep status``: show how far each database is replicated."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from pyrep.cli.common import config_flags, db_path, json_flag, read_config
from pyrep.cli.flags import Command, fail
from pyrep.cli.output import say, size_text, write_json, write_table
from pyrep.cli.running import rows, running_pid

if TYPE_CHECKING:
    from pyrep.catalog import TenantRow
    from pyrep.config.model import Config

__all__ = ["command"]


@click.command(
    "status",
    cls=Command,
    short_help="Show how far each database is replicated.",
    forms=("[flags] [DB_PATH]",),
    example="pyrep status /var/lib/app.db",
)
@config_flags
@json_flag
@click.argument("words", nargs=-1)
def command(
    config_path: str | None, no_expand_env: bool, as_json: bool, words: tuple[str, ...]
) -> None:
    """Show each database's local and durable TXID, lag, state and last error.

    The answer comes from the daemon's catalog, whether the daemon runs or not; no replica is
    asked. A TXID is durable once the storage confirmed it and all before it.
    """
    if len(words) > 1:
        fail("too many arguments")
    config = read_config(config_path, no_expand_env)
    pid = running_pid(config)
    wanted = os.path.realpath(db_path(words[0])) if words else None
    ran = pid is not None or _has_catalog(config)
    found = rows(config) if ran else _configured(config)
    chosen = [row for row in found if wanted in (None, row.path)]
    if as_json:
        write_json({"daemon_pid": pid, "databases": [_document(row) for row in chosen]})
        return
    columns = ("database", "status", "local txid", "durable txid", "pending", "lag", "error")
    write_table(columns, [_cells(row) for row in chosen])
    if not ran:
        say("no daemon has run with this configuration yet")
    elif pid is None:
        say("no daemon is running with this configuration; this is what the last one left")


def _has_catalog(config: Config) -> bool:
    from pyrep import daemon

    return daemon.catalog_path(config).exists()


def _configured(config: Config) -> list[TenantRow]:
    """Return rows of the databases named by ``path``; directories are not searched."""
    from pyrep.catalog import TenantRow
    from pyrep.config.expand import describe_replica, expand

    single = replace(config, dbs=tuple(entry for entry in config.dbs if entry.path))
    return [
        TenantRow(path=str(spec.db_path), replica=describe_replica(spec.replica), status="new")
        for spec in expand(single).tenants
    ]


def _cells(row: TenantRow) -> tuple[object, ...]:
    pending = f"{row.pending_files} files, {size_text(row.pending_bytes)}"
    return (
        row.path,
        row.status,
        str(row.local_txid) if row.local_txid else "-",
        str(row.durable_txid) if row.durable_txid else "-",
        pending if row.pending_files else "-",
        f"{_lag(row):.1f}s",
        row.error or "-",
    )


def _document(row: TenantRow) -> dict[str, object]:
    return {
        "database": row.path,
        "replica": row.replica,
        "status": row.status,
        "local_txid": str(row.local_txid),
        "durable_txid": str(row.durable_txid),
        "pending_files": row.pending_files,
        "pending_bytes": row.pending_bytes,
        "lag_seconds": round(_lag(row), 3),
        "error": row.error,
        "updated": row.updated_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if row.updated_at
        else None,
    }


def _lag(row: TenantRow) -> float:
    """Return the lag as of now: what waited when the row was written still does."""
    if not row.pending_files or row.updated_at is None:
        return row.lag_seconds
    return row.lag_seconds + max(0.0, (datetime.now(UTC) - row.updated_at).total_seconds())
