"""Command lines: Go's flags, and the answer to every line that is wrong."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fixtures.cli import pyrep
from pyrep.cli.flags import Command, Group, Number
from pyrep.cli.main import cli
from tools.gen_cli import commands


def parse(line: str) -> dict[str, object]:
    """Return what click hands to the command of a line."""
    group: Group = cli
    words = shlex.split(line)
    context = click.Context(group, info_name="pyrep")
    command: click.Command = group
    while isinstance(command, click.Group):
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    with command.make_context(command.name, words, parent=context) as made:
        return made.params


# Each line, and the parameters that it sets apart from the defaults.
LINES: list[tuple[str, dict[str, object]]] = [
    ("replicate", {}),
    ("replicate -config /etc/x.yml", {"config_path": "/etc/x.yml"}),
    ("replicate --config=/etc/x.yml", {"config_path": "/etc/x.yml"}),
    ("replicate -config= -once", {"config_path": "", "once": True}),
    ("replicate -no-expand-env", {"no_expand_env": True}),
    ("replicate -no-expand-env=false", {}),
    ("replicate -once -once=0", {}),
    ("replicate -once=false -once=T", {"once": True}),
    ("replicate -exec 'app -x -y'", {"exec_command": "app -x -y"}),
    ("replicate -exec -x", {"exec_command": "-x"}),
    ("replicate -log-level debug", {"log_level": "debug"}),
    ("replicate -restore-if-db-not-exists", {"restore_missing": True}),
    ("replicate /db file:///r", {"words": ("/db", "file:///r")}),
    ("replicate -once /db file:///r", {"once": True, "words": ("/db", "file:///r")}),
    ("restore /db", {"words": ("/db",)}),
    ("restore -- -db", {"words": ("-db",)}),
    ("restore -", {"words": ("-",)}),
    ("restore -o /x file:///r", {"output": "/x", "words": ("file:///r",)}),
    ("restore --o=/x=y /db", {"output": "/x=y", "words": ("/db",)}),
    ("restore -o /x -o /y /db", {"output": "/y", "words": ("/db",)}),
    ("restore -txid 00000000000000ff /db", {"txid": 255, "words": ("/db",)}),
    ("restore -parallelism 3 /db", {"parallelism": 3, "words": ("/db",)}),
    ("restore -if-db-not-exists -if-replica-exists /db",
     {"if_db_not_exists": True, "if_replica_exists": True, "words": ("/db",)}),
    ("restore -dry-run -force -json /db",
     {"dry_run": True, "force": True, "as_json": True, "words": ("/db",)}),
    ("restore -integrity-check full /db", {"integrity_check": "full", "words": ("/db",)}),
    ("restore -all -o /x", {"every": True, "output": "/x"}),
    ("databases -config /c -no-expand-env -json",
     {"config_path": "/c", "no_expand_env": True, "as_json": True}),
    ("status", {}),
    ("status -json /db", {"as_json": True, "words": ("/db",)}),
    ("ltx /db", {"words": ("/db",)}),
    ("ltx -level all -json file:///r", {"level": "all", "as_json": True, "words": ("file:///r",)}),
    ("reset -config /c -dry-run /db", {"config_path": "/c", "dry_run": True, "words": ("/db",)}),
    ("reset --take-over '/x/*.db'", {"take_over": "/x/*.db"}),
    ("park -timeout 5 /db", {"timeout": 5, "words": ("/db",)}),
    ("version -verbose", {"verbose": True}),
    ("config check -json", {"as_json": True}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), LINES, ids=[line for line, _ in LINES])
def test_flags_are_read_as_go_reads_them(line: str, expected: dict[str, object]) -> None:
    words = line.split()
    bare = "config check" if words[0] == "config" else words[0]
    assert parse(line) == parse(bare) | expected


def test_a_time_has_a_zone_and_comes_out_in_utc() -> None:
    moment = parse("restore -timestamp 2026-01-31T14:00:00.5+02:00 /db")["timestamp"]
    assert str(moment) == "2026-01-31 12:00:00.500000+00:00"


# Each wrong line, its message, and the exit code.
WRONG: list[tuple[str, str, int]] = [
    ("", "command required", 2),
    ("-config x", "flags follow the command: -config", 2),
    ("verison", "pyrep verison: unknown command (did you mean version?)", 2),
    ("info", "pyrep info: unknown command", 2),
    ("config", "command required", 2),
    ("config chekc", "pyrep config chekc: unknown command (did you mean check?)", 2),
    ("replicate /db", "must specify at least one replica URL for /db", 2),
    ("replicate /db -once",
     'flag "-once" must be positioned before DB_PATH and REPLICA_URL arguments', 2),
    ("replicate -config x /db file:///r",
     "cannot specify a replica URL and the -config flag", 2),
    ("replicate -exec x -once /db file:///r", "cannot specify -once with a command to execute", 2),
    ("replicate -force-snapshot -once", "flag provided but not defined: -force-snapshot", 2),
    ("replicate -log-level loud /db file:///r",
     "-log-level: unknown log level 'loud' (TRACE, DEBUG, INFO, WARN or ERROR)", 2),
    ("replicate -config /nowhere.yml", "config file not found: /nowhere.yml", 2),
    ("replicate /db oss://", "database config #1: bucket required for oss replica", 2),
    ("replicate /db s3://", "database config #1: bucket required for s3 replica", 2),
    ("restore", "database path or replica URL required", 2),
    ("restore ''", "database path or replica URL required", 2),
    ("restore /a /b", "too many arguments", 2),
    ("restore file:///r", "-o is required when restoring from a replica URL", 2),
    ("restore -config x -o y file:///r", "cannot specify a replica URL and the -config flag", 2),
    ("restore -overwrite /db", "flag provided but not defined: -overwrite", 2),
    ("restore -parallel x /db",
     "flag provided but not defined: -parallel (did you mean -parallelism?)", 2),
    ("restore -f /db", "flag provided but not defined: -f", 2),
    ("restore ---force /db", "bad flag syntax: ---force", 2),
    ("restore -=x /db", "bad flag syntax: -=x", 2),
    ("restore -o", "flag needs an argument: -o", 2),
    ("restore -force=maybe /db", 'invalid boolean value "maybe" for -force: parse error', 2),
    ("restore -txid 12 /db", "invalid txid format: '12' (16 hex digits expected)", 2),
    ("restore -txid 0000000000000000 /db",
     "invalid txid format: '0000000000000000' (the first is 0000000000000001)", 2),
    ("restore -txid 0000000000000001 -timestamp 2026-01-01T00:00:00Z /db",
     "cannot specify both -txid and -timestamp", 2),
    ("restore -timestamp yesterday /db",
     "invalid -timestamp 'yesterday', must be in ISO 8601 format with a zone "
     "(for example 2026-01-31T12:00:00Z)", 2),
    ("restore -integrity-check deep /db",
     "invalid -integrity-check value: deep (must be one of none, quick, full)", 2),
    ("restore -parallelism 0 /db", "-parallelism must be greater than 0", 2),
    ("restore -parallelism x /db", 'invalid value "x" for flag -parallelism: not a number', 2),
    ("restore -all", "-o is required with -all", 2),
    ("restore -all -o /x /db",
     "-all restores every database of the configuration or below a replica URL", 2),
    ("restore -all -txid 0000000000000001 -o /x",
     "cannot specify -txid with -all: TXIDs are counted for each database", 2),
    ("restore -o /x oss:///path", "bucket required for oss replica", 2),
    ("restore -o /x s3://b/p?regon=x", 'unknown parameter in s3 replica url: "regon"', 2),
    ("restore -o /x ftp://host/path", 'unsupported replica URL scheme: "ftp"', 2),
    ("restore -config /nowhere.yml /db", "config file not found: /nowhere.yml", 2),
    ("databases /db", "too many arguments", 2),
    ("databases -config /nowhere.yml", "config file not found: /nowhere.yml", 2),
    ("ltx", "database path or replica URL required", 2),
    ("ltx -level ten /db", 'invalid level: must be 0-9 or "all"', 2),
    ("ltx -level 10 /db", "level must be between 0 and 9", 2),
    ("ltx -level -1 /db", "level must be between 0 and 9", 2),
    ("ltx -config x file:///r", "cannot specify a replica URL and the -config flag", 2),
    ("status /a /b", "too many arguments", 2),
    ("reset", "database path required", 2),
    ("reset -take-over /a /b", "too many arguments", 2),
    ("park", "database path required", 2),
    ("park -timeout 0 /db", "-timeout must be greater than 0", 2),
    ("version now", "too many arguments", 2),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message", "code"), WRONG, ids=[line for line, _, _ in WRONG])
def test_wrong_lines_are_answered(line: str, message: str, code: int) -> None:
    done = pyrep(*shlex.split(line))
    assert (done.error, done.code, done.out) == (message, code, "")


def test_a_usage_error_is_followed_by_an_example() -> None:
    assert pyrep("ltx").err.splitlines() == [
        "Error: database path or replica URL required",
        "Try: pyrep ltx -level all /var/lib/app.db",
    ]
    assert pyrep("config", "chekc").err.splitlines()[-1] == "Try: pyrep config help"
    assert pyrep("nonsense").err.splitlines()[-1] == "Try: pyrep help"


def test_a_call_without_command_prints_the_usage_too() -> None:
    done = pyrep()
    assert "pyrep COMMAND" in done.err
    assert all(f"\n  {name} " in done.err for name in cli.list_commands(click.Context(cli)))


@pytest.mark.parametrize(
    "line",
    [
        "help", "-h", "-help", "--help", "help restore", "restore -h", "restore -help",
        "restore --help", "restore /db -h", "restore -force -h", "config help", "config check -h",
    ],
)  # fmt: skip
def test_help_is_printed_and_is_no_error(line: str) -> None:
    done = pyrep(*line.split())
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage:\n  pyrep ")


def test_every_example_is_a_line_that_is_understood() -> None:
    for path, command in commands():
        assert command.example.startswith(f"{path} ")
        assert isinstance(parse(command.example.removeprefix("pyrep ")), dict)


def test_flags_take_values_that_look_like_flags() -> None:
    @click.command("x", cls=Command, forms=("[flags] FILE",), example="x y")
    @click.option("-n", "number", type=Number())
    @click.option("-name", "name")
    @click.argument("words", nargs=-1)
    def command(**params: object) -> dict[str, object]:
        return params

    with command.make_context("x", ["--name", "--n", "-n=7", "--", "-n", "-1"]) as made:
        assert made.params == {"name": "--n", "number": 7, "words": ("-n", "-1")}


@pytest.mark.parametrize(
    ("words", "heavy", "code"),
    [
        (["version"], {"apsw", "yaml", "pyrep._ltx", "pyrep.config.load", "pyrep.daemon"}, 0),
        # a restore is what somebody waits for: it needs nothing of the daemon's work
        (
            ["restore", "-o", "out.db", "file:///nowhere/replica"],
            {"pyrep.daemon.run", "pyrep.store", "pyrep.tenant", "pyrep.watch", "pyrep.schedule"},
            6,
        ),
    ],
    ids=["version", "restore"],
)
def test_only_what_a_command_needs_is_paid_for(
    tmp_path: Path, words: list[str], heavy: set[str], code: int
) -> None:
    program = (
        "import sys; from pyrep.cli.main import main;"
        f"code = main({words!r});"
        f"print(code, *sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == str(code), done.stderr
