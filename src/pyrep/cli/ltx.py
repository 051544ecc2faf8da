"""``pyrep ltx``: list the LTX files of a replica."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from pyrep.cli.common import (
    config_flags,
    find_tenant,
    json_flag,
    log_to_stderr,
    names_replica,
    read_config,
)
from pyrep.cli.flags import Command, fail, operand
from pyrep.cli.output import size_text, write_json, write_table

if TYPE_CHECKING:
    from pyrep.ltxfile import FileInfo
    from pyrep.storage.base import ReplicaClient

__all__ = ["command", "file_document"]

_ALL = "all"


@click.command(
    "ltx",
    cls=Command,
    short_help="List the LTX files on a replica.",
    forms=("[flags] DB_PATH", "[flags] REPLICA_URL"),
    example="pyrep ltx -level all /var/lib/app.db",
)
@config_flags
@json_flag
@click.option(
    "-level", "level", metavar="0-9|all", default="0", show_default=True, help="Levels to list."
)
@click.argument("words", nargs=-1)
def command(
    config_path: str | None,
    no_expand_env: bool,
    as_json: bool,
    level: str,
    words: tuple[str, ...],
) -> None:
    """List the LTX files on the replica of a database, or on the one that a URL names."""
    from pyrep.restore.plan import time_text

    where = operand(words, "database path or replica URL required")
    levels = _levels(level)
    with closing(_client(where, config_path, no_expand_env)) as client:
        files = [info for level_no in levels for info in client.list_ltx(level_no)]
    if as_json:
        write_json({"files": [file_document(info) for info in files]})
        return
    columns = ("level", "min_txid", "max_txid", "size", "created")
    rows = (
        (i.level, i.min_txid, i.max_txid, size_text(i.size), time_text(i.timestamp_ms))
        for i in files
    )
    write_table(columns, rows)


def file_document(info: FileInfo) -> dict[str, object]:
    """Return an LTX file as JSON has it."""
    from pyrep.restore.plan import time_text

    return {
        "level": info.level,
        "name": info.name,
        "min_txid": str(info.min_txid),
        "max_txid": str(info.max_txid),
        "size": info.size,
        "timestamp": time_text(info.timestamp_ms),
    }


def _levels(text: str) -> list[int]:
    if text == _ALL:
        return list(range(10))
    try:
        number = int(text)
    except ValueError:
        fail('invalid level: must be 0-9 or "all"')
    if not 0 <= number <= 9:
        fail("level must be between 0 and 9")
    return [number]


def _client(where: str, config_path: str | None, no_expand_env: bool) -> ReplicaClient:
    from pyrep.storage.registry import ReplicaSpec, connect
    from pyrep.storage.retry import PATIENT

    if names_replica(where, config_path):
        log_to_stderr()
        return connect(ReplicaSpec(url=where), policy=PATIENT)
    return connect(
        find_tenant(read_config(config_path, no_expand_env), where).replica, policy=PATIENT
    )
