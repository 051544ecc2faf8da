"""The ``pyrep`` program: finds the command, and turns whatever goes wrong into one clear error."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from pyrep.cli.flags import Command, Group
from pyrep.cli.output import Terminated, say
from pyrep.errors import PyrepError

__all__ = ["cli", "main", "run"]

# 128 + the signal's number, as a shell has it
_INTERRUPTED = 130
_PIPE_CLOSED = 141
_TERMINATED = 143

cli = Group(
    name="pyrep",
    help="Replicate SQLite databases, one replica for each, and restore them.",
    modules={
        "config": "pyrep.cli.config",
        "databases": "pyrep.cli.databases",
        "doctor": "pyrep.cli.doctor",
        "ltx": "pyrep.cli.ltx",
        "park": "pyrep.cli.park",
        "replicate": "pyrep.cli.replicate",
        "reset": "pyrep.cli.reset",
        "restore": "pyrep.cli.restore",
        "status": "pyrep.cli.status",
        "verify": "pyrep.cli.verify",
        "version": "pyrep.cli.version",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line of ``pyrep`` and return the exit code."""
    return run(cli, argv)


def run(program: Group, argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code; never raises and prints no traceback.

    Only when debugging (``PYREP_DEBUG=1`` or a log level below INFO) is the traceback of an
    unexpected error shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = bool(os.environ.get("PYREP_DEBUG"))
    try:
        code = _run(program, list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:  # it is None where the caller closed it
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return _PIPE_CLOSED
    except OSError as error:  # what was printed could not be written after all
        _drop_output()
        return _report_unexpected(error)
    except KeyboardInterrupt as error:
        say("Error: interrupted")
        return _TERMINATED if isinstance(error, Terminated) else _INTERRUPTED


def _run(program: Group, args: list[str]) -> int:
    """Run a command line; return the exit code of what it came to."""
    try:
        with program.make_context(program.name, args) as context:
            return int(program.invoke(context) or 0)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _report_usage(program, error)
    except PyrepError as error:
        return _report(error)
    except BrokenPipeError:
        raise
    except Exception as error:
        return _report_unexpected(error)


def _report(error: PyrepError) -> int:
    _trace(error)
    say(f"Error: {error}")
    if error.hint:
        say(f"Hint: {error.hint}")
    return error.exit_code


def _report_usage(program: Group, error: click.ClickException) -> int:
    say(f"Error: {error.format_message()}")
    context = getattr(error, "ctx", None)
    command = context.command if context else program
    path = context.command_path if context else program.name
    say(f"Try: {command.example if isinstance(command, Command) else f'{path} help'}")
    return error.exit_code


def _report_unexpected(error: Exception) -> int:
    shown = _trace(error)
    if isinstance(error, OSError) and error.strerror:
        where = (
            f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        )
        say(f"Error: {where}{error.strerror}")
    else:
        say(f"Error: unexpected {type(error).__name__}: {error}")
    if not shown:
        say("Hint: This is a bug or a failing machine; PYREP_DEBUG=1 shows where it happened.")
    return PyrepError.exit_code


def _trace(error: BaseException) -> bool:
    """Print the traceback if somebody is looking for it; return whether it was."""
    level = logging.getLogger("pyrep").getEffectiveLevel()
    if level >= logging.INFO and not os.environ.get("PYREP_DEBUG"):
        return False
    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    return True


def _drop_output() -> None:
    """Send what is still buffered nowhere: it cannot be written where it should go."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError, io.UnsupportedOperation):
        return  # no file below the stream (tests capture it): nothing is left to flush
    finally:
        os.close(nowhere)
