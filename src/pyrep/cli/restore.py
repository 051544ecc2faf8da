"""``pyrep restore``: write a database as its replica has it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyrep.cli.common import (
    config_flags,
    db_path,
    default_config,
    find_tenant,
    json_flag,
    log_to_stderr,
    names_replica,
    read_config,
)
from pyrep.cli.flags import Command, Number, OneOf, Time, Transaction, fail, operand
from pyrep.cli.output import Meter, say, size_text, write_json, write_table
from pyrep.cli.restoring import (
    Job,
    Wanted,
    describe,
    interruptible,
    options,
    plan_document,
    result_document,
    write_state,
)
from pyrep.errors import TXNotAvailableError

if TYPE_CHECKING:
    from pyrep.config.expand import TenantSpec
    from pyrep.config.model import Config
    from pyrep.restore.execute import Progress
    from pyrep.storage.base import ReplicaClient

__all__ = ["command"]

_log = logging.getLogger(__name__)


@click.command(
    "restore",
    cls=Command,
    forms=(
        "[flags] DB_PATH",
        "-o PATH [flags] REPLICA_URL",
        "-all -o DIR [flags]",
        "-all -o DIR [flags] REPLICA_URL",
    ),
    short_help="Write a database, or every one, as the replica has it.",
    example="pyrep restore -o /tmp/app.db file:///backups/app.db",
)
@config_flags
@click.option("-o", "output", metavar="PATH", help="Where to; else to the database's own path.")
@click.option("-txid", type=Transaction(), help="Restore the state of this TXID.")
@click.option("-timestamp", type=Time(), help="Restore the newest state at or before this time.")
@click.option(
    "-all",
    "every",
    is_flag=True,
    help="Restore every database of the configuration, or below the URL, to paths below -o.",
)
@click.option("-if-db-not-exists", is_flag=True, help="Do nothing where the output path exists.")
@click.option("-if-replica-exists", is_flag=True, help="Do nothing where there is no backup.")
@click.option("-force", is_flag=True, help="Replace what is at the output path, once proven.")
@click.option("-dry-run", is_flag=True, help="Print which files would be used; write nothing.")
@click.option(
    "-integrity-check",
    type=OneOf("none", "quick", "full"),
    metavar="none|quick|full",
    default="none",
    show_default=True,
    help="Let SQLite check the new database before it gets its name.",
)
@click.option(
    "-parallelism", type=Number(), help="Threads to use; else as many as there are cores."
)
@json_flag
@click.argument("words", nargs=-1)
def command(**flags: Any) -> int:
    """Restore a database, or with -all every one: the newest state, one TXID, or one time.

    What is at the output path is replaced only with -force, and only when the new database is
    complete and proven; its -wal, -shm and -journal go with it. A database that a running
    daemon manages is refused. Restoring to the path that the configuration names writes the
    database's replication state too, so that the daemon goes on with increments.
    """
    wanted = Wanted(**flags)
    if wanted.txid is not None and wanted.timestamp is not None:
        fail("cannot specify both -txid and -timestamp")
    if wanted.every:
        from pyrep.cli.restore_all import restore_every

        return restore_every(wanted)
    where = operand(wanted.words, "database path or replica URL required")
    return _restore(wanted, _job(wanted, where))


def _job(wanted: Wanted, where: str) -> Job:
    """Find out what is meant by the operand and where it goes."""
    from pyrep.config.expand import describe_replica, tenant_at
    from pyrep.storage.registry import ReplicaSpec, parse_url

    if names_replica(where, wanted.config_path):
        if not wanted.output:
            fail("-o is required when restoring from a replica URL")
        parse_url(where)
        log_to_stderr()
        output = db_path(wanted.output)
        spec = ReplicaSpec(url=where)
        return Job(describe_replica(spec), spec, Path(output), _url_managers(output, where))
    config = read_config(wanted.config_path, wanted.no_expand_env)
    tenant = find_tenant(config, where)
    output = db_path(wanted.output) if wanted.output else str(tenant.db_path)
    there = tenant_at(config, output)
    return Job(
        describe_replica(tenant.replica),
        tenant.replica,
        Path(output),
        ((config, there),) if there else (),
        tenant if there == tenant else None,
    )


def _url_managers(output: str, url: str) -> tuple[tuple[Config, TenantSpec], ...]:
    """Return the tenants at a path: of the default configuration, and of the same operands."""
    from pyrep.config.expand import tenant_at
    from pyrep.config.load import from_args

    configs = (default_config(), from_args(output, [url]))
    pairs = ((config, tenant_at(config, output)) for config in configs if config)
    return tuple((config, tenant) for config, tenant in pairs if tenant)


def _restore(wanted: Wanted, job: Job) -> int:
    if wanted.if_db_not_exists and os.path.lexists(job.output):
        return _skip(wanted, job, "database already exists, skipping")
    from pyrep.storage.registry import connect
    from pyrep.storage.retry import PATIENT

    with (
        closing(connect(job.replica, stop=job.cancel, policy=PATIENT)) as client,
        interruptible(job.cancel),
    ):
        try:
            if wanted.dry_run:
                return _show_plan(wanted, job, client)
            return _write(wanted, job, client)
        except TXNotAvailableError as error:
            if not wanted.if_replica_exists:
                raise
            return _skip(wanted, job, f"no matching backups found, skipping: {error}")


def _skip(wanted: Wanted, job: Job, reason: str) -> int:
    _log.info(reason, extra={"db": str(job.output)})
    if wanted.as_json:
        write_json({"db_path": str(job.output), "skipped": reason})
    return 0


def _show_plan(wanted: Wanted, job: Job, client: ReplicaClient) -> int:
    from pyrep.restore.execute import plan_restore
    from pyrep.restore.plan import time_text

    plan = plan_restore(client, txid=wanted.txid, timestamp_ms=wanted.timestamp_ms)
    if wanted.as_json:
        write_json(plan_document(job, plan, client.scheme))
        return 0
    click.echo(f"source:      {job.source}")
    click.echo(f"target:      {job.output}")
    click.echo(f"replica:     {client.scheme}")
    click.echo(f"txid range:  {plan.min_txid} to {plan.max_txid}")
    click.echo(f"state of:    {time_text(plan.timestamp_ms)}")
    click.echo()
    rows = (
        (i.level, i.name, i.min_txid, i.max_txid, size_text(i.size), time_text(i.timestamp_ms))
        for i in plan.files
    )
    write_table(("level", "file", "min_txid", "max_txid", "size", "timestamp"), rows)
    return 0


def _write(wanted: Wanted, job: Job, client: ReplicaClient) -> int:
    from pyrep.restore.execute import restore
    from pyrep.restore.plan import time_text

    job.check()
    meter = Meter()
    try:
        result = restore(client, job.output, options(wanted, job, _shown_on(meter)))
    finally:
        meter.close()
    write_state(job, result)
    if result.plan.after_newest:
        newest = time_text(result.timestamp_ms)
        say(f"-timestamp is after the newest state, which is restored: {newest}")
    if wanted.as_json:
        write_json(result_document(result, client.scheme))
    else:
        click.echo(describe(job.source, result))
    return 0


def _shown_on(meter: Meter) -> Callable[[Progress], None]:
    """Return what shows a restore's progress."""

    def show(progress: Progress) -> None:
        def text(seconds: float) -> str:
            share = progress.bytes_done / progress.bytes if progress.bytes else 1.0
            rate = progress.bytes_done / max(seconds, 0.001)
            left = (progress.bytes - progress.bytes_done) / rate if rate else 0.0
            return (
                f"restoring: {share:4.0%}, {progress.files_done} of {progress.files} files, "
                f"{size_text(int(rate))}/s, {left:.0f}s left"
            )

        meter.show(text)

    return show
