"""Write docs/cli.md from the click commands: ``python tests/tools/gen_cli.py > docs/cli.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import click

from pyrep.cli.flags import Command, Group, usage_lines
from pyrep.cli.main import cli

__all__ = ["DOCUMENTS", "commands", "render"]

_HEAD = """\
# Command line

This page is generated from the commands in `src/pyrep/cli/` by `tests/tools/gen_cli.py`; a test
compares the two. The command `help`, and `-h` after any other, print the same.

## Rules for all commands

- Flags have one dash or two, and come before the operands: `pyrep COMMAND [flags] [operands]`.
  A value follows after a space or `=`. Switches may be written `-json=true` or `-json=false`. Of
  a flag that is given twice the last one counts. `--` ends the flags.
- Results go to standard output. Errors, warnings, progress and the log go to standard error;
  only `replicate` logs to standard output, unless `logging: {stderr: true}` is set.
- An error is one line, `Error: <what is wrong>`, with a second one where there is something to
  do: `Hint:`, or `Try:` and an example when the command line itself is wrong.
- Exit codes are in [errors.md](errors.md). Beyond these, a command that is interrupted exits with
  130 (SIGINT) or, for `restore`, 143 (SIGTERM), and one whose output nobody reads any more with
  141.
- No traceback is printed, unless `PYREP_DEBUG=1` is set or the log level is below INFO.
- On a terminal progress is one line that changes; elsewhere a line every five seconds.
- `-json` prints one document whose first key is `"schema": 1`. Keys may be added to it without
  a new number. TXIDs are texts of 16 hex digits, sizes are bytes, times are RFC 3339 in UTC.
- A database is named by its path, relative or absolute, `~/` and `sqlite://` allowed. One of a
  directory is found by its path too, whether the file exists or not.
"""

_JSON_HEAD = """\

## JSON documents

| command | keys | keys of each list's items |
|---|---|---|
"""

# Command, keys of the document, keys of the items; a test compares them with what is printed.
DOCUMENTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("databases", ("databases", "problems"), ("path", "replica", "url")),
    ("doctor", ("url", "failed", "checks"), ("check", "result", "detail", "milliseconds")),
    ("ltx", ("files",), ("level", "name", "min_txid", "max_txid", "size", "timestamp")),
    (
        "status",
        ("daemon_pid", "databases"),
        (
            "database",
            "replica",
            "status",
            "local_txid",
            "durable_txid",
            "pending_files",
            "pending_bytes",
            "lag_seconds",
            "error",
            "updated",
        ),
    ),
    ("config check", ("config", "databases", "warnings", "errors"), ()),
    (
        "restore",
        (
            "db_path",
            "replica",
            "txid",
            "timestamp",
            "size",
            "proven",
            "duration_ms",
            "integrity_check",
        ),
        (),
    ),
    (
        "restore -dry-run",
        ("source", "target_path", "replica", "min_txid", "max_txid", "files"),
        ("level", "name", "min_txid", "max_txid", "size", "timestamp"),
    ),
    (
        "restore -all",
        ("databases", "problems", "not_matched", "count", "duration_ms"),
        (
            "database",
            "status",
            "db_path",
            "replica",
            "txid",
            "timestamp",
            "size",
            "proven",
            "duration_ms",
            "integrity_check",
        ),
    ),
    (
        "verify",
        ("databases", "problems", "count"),
        (
            "database",
            "status",
            "proven_before",
            "txid",
            "timestamp",
            "files",
            "bytes",
            "checksum",
            "proven",
            "findings",
        ),
    ),
)

_TAIL = """\

A `restore` that had nothing to do (`-if-db-not-exists`, `-if-replica-exists`) prints `db_path` and
`skipped`, the reason. With `-all`, an item that is not restored has `error` instead of a result,
and with `-dry-run` every item has the keys of a dry run.

## Restoring many databases

`pyrep restore -all -o DIR` finds the databases of a configuration by their files and by what is
below the replica paths, so it works when the directories are lost. `pyrep restore -all -o DIR URL`
needs no configuration: every replica at and below the URL is restored. Each database goes to its
relative path below DIR; one named by `path:` to its file name; where two would have the same place,
both go to their whole path below DIR. A replica with others below it, `team` beside `team/a.db`,
goes to `team/team`, because no file can have its folder's name. One that fails stops no other, and
neither does a folder of the storage that cannot be read. The exit code is that of the failures if
they share one, else 1.

    pyrep restore -all -o /srv/restored -timestamp 2026-07-01T12:00:00Z s3://backups/tenants

works on any machine that has the credentials (`AWS_ACCESS_KEY_ID`…) and may list the bucket; add
`-parallelism 16` where many small databases come from far away. How they are found:
[storage.md](storage.md#finding-replicas).

`status` of an item is `restored`, `skipped`, `failed`, or `planned` in a dry run.

## What `pyrep verify` finds

`status` of a database is `ok`, `warning` (every state from the newest back to the last snapshot is
whole), `damaged`, `failed` (the storage could not be read) or `not begun` (beyond `-for` or
`-bytes`). The exit code is 0 for the first two, 4 if something is damaged. Each finding has a kind:

| kind | meaning |
|---|---|
| `unreadable` | a file is listed and not there |
| `damaged` | a file breaks the format or a checksum, or has another size |
| `misnamed` | a file holds other TXIDs than its name says |
| `foreign` | a file does not continue the database that those before it left |
| `overlap` | two files lead to different states of one TXID |
| `gap` | no file leads from one TXID to the next |
| `hole` | a level lacks files that others lead across (a warning) |
| `lost` | a file that the storage confirmed is gone or has another size |
| `behind` | the newest TXID that the storage confirmed is not reached |
| `empty` | there are no LTX files (a warning while a daemon has yet to store the first) |
| `times` | the time of a file is before that of the one before it (a warning) |
| `restore` | with `-integrity-check`: what the files lead to cannot be restored, or is unsound |

What looks wrong is looked at again, with a new listing, and counts only if it is found twice in a
row: a daemon may write, merge and delete meanwhile. What only the last of five looks has is a
warning that says so. `lost` and `behind` need the catalog, so they are found for databases of a
configuration, not for a URL. Memory is 20 bytes a page of the largest
database. Replicas of Litestream carry no checksum from file to file; there a foreign file is found
by the other levels and by its place in the WAL, so `-integrity-check full` says more.

## States in `pyrep status`

`new`: nothing is staged yet. `attached`: the daemon has it open. `parked`: all is staged and it is
closed. `fenced`: another writer's files are on the replica; `reset -take-over` ends that.
`degraded`: changes cannot be staged for lack of space. `waiting`: it is no complete database yet.
`error`: the last attempt failed and is repeated. `absent`: the last daemon did not find it.

## Differences from Litestream 0.5

- Exit codes tell the class of an error; there it is always 1. A wrong command line exits with 2.
- Lists are objects with a schema number (`{"schema": 1, "databases": [...]}`), not bare arrays; the
  items have Litestream's keys and more. `restore -json` has the number and further keys too.
- Commands other than `replicate` log to standard error.
- Flags after an operand are refused by every command, not only by `replicate`.
- `replicate -force-snapshot` and `-enforce-retention`, `restore -f` and `-follow-interval` are
  unknown flags, and so are the commands `info`, `list`, `register`, `start`, `stop`, `sync`,
  `unregister` and `wal`: what they need is not built.
- `replicate -once` replicates every database and fails at the end if one failed; there the first
  error ends it.
- `restore` finds databases of directories by their paths; `-parallelism` is used, and its default
  is the number of cores; `-timestamp` includes the time itself, and a time after the newest state
  gives the newest.
- `restore -force` replaces the old database only when the new one is complete and proven, and
  refuses while a process has it open or a running daemon manages it.
- `restore -all`, `config check`, `park` and `reset -take-over` are new.
- `databases` and `status` know the databases of directories. `status` reports what the daemon's
  catalog says: the WAL's size is not in it, the durable TXID, lag and last error are.
- `reset` uses a configuration that is in its usual place without being told, and refuses while a
  daemon manages the database.
"""


def render() -> str:
    """Return the text of docs/cli.md."""
    parts = [_HEAD]
    for path, command in commands():
        parts += _section(path, command)
    parts.append(_JSON_HEAD)
    for name, keys, items in DOCUMENTS:
        parts.append(f"| `{name}` | {_codes(keys)} | {_codes(items)} |\n")
    parts.append(_TAIL)
    return "".join(parts)


def commands() -> Iterator[tuple[str, Command]]:
    """Yield every command with the words that call it."""
    yield from _below(cli, "pyrep")


def _below(group: Group, path: str) -> Iterator[tuple[str, Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, Group):
            yield from _below(command, f"{path} {name}")
        elif isinstance(command, Command):
            yield f"{path} {name}", command


def _section(path: str, command: Command) -> Iterator[str]:
    yield f"\n## {path}\n\n```\n"
    for line in usage_lines(command, path):
        yield f"{line}\n"
    yield f"```\n\n{inspect.cleandoc(command.help or '')}\n\n| flag | meaning |\n|---|---|\n"
    context = click.Context(command, info_name=path)
    for param in command.get_params(context):
        record = param.get_help_record(context) if isinstance(param, click.Option) else None
        if record is not None and "--help" not in param.opts:
            names, meaning = (text.replace("|", "\\|") for text in record)
            yield f"| `{names}` | {meaning} |\n"
    yield f"\nExample: `{command.example}`\n"


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.stdout.write(render())
