"""``pyrep doctor``: try what a storage can do."""

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
from pyrep.cli.flags import Command, operand
from pyrep.cli.output import say, write_json, write_table
from pyrep.errors import ReplicaError

if TYPE_CHECKING:
    from pyrep.storage.registry import ReplicaSpec

__all__ = ["command"]


@click.command(
    "doctor",
    cls=Command,
    short_help="Try what the storage of a replica can do.",
    forms=("[flags] DB_PATH", "[flags] REPLICA_URL"),
    example="pyrep doctor s3://bucket/path",
)
@config_flags
@json_flag
@click.argument("words", nargs=-1)
def command(
    config_path: str | None, no_expand_env: bool, as_json: bool, words: tuple[str, ...]
) -> int:
    """Write, read, list and delete files below a scratch path, and say what the storage can do.

    The scratch path is a new one below the replica of the database, or below the path of the
    URL. About 20 MiB are moved, and nothing outside it is touched; nothing is left in it.
    A check is ok, limited (the storage works, and what it does not guarantee is said) or failed.
    The exit code is 5 if one failed.
    """
    from pyrep.doctor import examine, scratch_spec
    from pyrep.storage.registry import connect

    where = operand(words, "database path or replica URL required")
    spec, name = scratch_spec(_replica(where, config_path, no_expand_env))
    with closing(connect(spec)) as client:
        findings = list(examine(client, name))
        url = client.url
    failed = [finding for finding in findings if finding.result == "failed"]
    if as_json:
        checks = [
            {
                "check": finding.check,
                "result": finding.result,
                "detail": finding.detail,
                "milliseconds": finding.milliseconds,
            }
            for finding in findings
        ]
        write_json({"url": url, "failed": len(failed), "checks": checks})
    else:
        rows = [(f.check, f.result, f"{f.milliseconds} ms", f.detail) for f in findings]
        write_table(("check", "result", "time", "detail"), rows)
    for hint in dict.fromkeys(finding.hint for finding in failed if finding.hint):
        say(f"Hint: {hint}")
    return ReplicaError.exit_code if failed else 0


def _replica(where: str, config_path: str | None, no_expand_env: bool) -> ReplicaSpec:
    from pyrep.storage.registry import ReplicaSpec

    if names_replica(where, config_path):
        log_to_stderr()
        return ReplicaSpec(url=where)
    return find_tenant(read_config(config_path, no_expand_env), where).replica
