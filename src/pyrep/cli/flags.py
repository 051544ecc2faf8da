"""Command lines as Go's flag package reads them, for click.

One dash or two before a name, ``-flag value`` or ``-flag=value``, switches also as
``-flag=true`` and ``-flag=false``; the last of several counts; the first operand ends the
flags.  The words are brought into click's form, then click takes over.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import click

__all__ = ["Command", "Duration", "Group", "Number", "OneOf", "Size", "Time", "Transaction"]
__all__ += ["fail", "operand", "usage_lines"]

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
_HELP = ("-h", "-help", "--help")
_FLAGS = "[flags]"
_SETTINGS: dict[str, Any] = {"help_option_names": list(_HELP), "max_content_width": 100}


class Command(click.Command):
    """Be a command with Go's flags; ``forms`` are what follows its name in its usage lines.

    ``example`` is a whole command line, shown when this command was called wrongly.
    """

    def __init__(
        self, *args: Any, example: str, forms: Sequence[str] = (_FLAGS,), **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.context_settings = _SETTINGS
        self.example = example
        self.forms = forms

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Bring the words into click's form and let it parse them."""
        return super().parse_args(ctx, self._normalized(ctx, args))

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one usage line for each form."""
        formatter.write("Usage:\n")
        for line in usage_lines(self, ctx.command_path):
            formatter.write(f"  {line}\n")

    def _normalized(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        flags = {
            name.lstrip("-"): param
            for param in self.get_params(ctx)
            if isinstance(param, click.Option)
            for name in param.opts
        }
        given: dict[str, list[str]] = {}
        rest = list(args)
        while rest and len(rest[0]) > 1 and rest[0].startswith("-"):
            word = rest.pop(0)
            if word == "--":
                break
            name, equals, value = word[1:].removeprefix("-").partition("=")
            param = flags.get(name) or self._refuse_flag(ctx, word, name, flags)
            key = param.name or name
            if param.is_flag:
                given[key] = [param.opts[0]] if _is_set(ctx, name, equals, value) else []
                continue
            if not equals and not rest:
                fail(f"flag needs an argument: -{name}", ctx)
            given[key] = [param.opts[0], value if equals else rest.pop(0)]
        else:
            if any(word in _HELP for word in rest):
                return ["--help"]
            self._refuse_late_flags(ctx, rest)
        return [*(word for words in given.values() for word in words), "--", *rest]

    def _refuse_flag(
        self, ctx: click.Context, word: str, name: str, flags: dict[str, click.Option]
    ) -> NoReturn:
        if not name or name.startswith("-"):
            fail(f"bad flag syntax: {word}", ctx)
        near = difflib.get_close_matches(name, flags, n=1)
        advice = f" (did you mean -{near[0]}?)" if near else ""
        fail(f"flag provided but not defined: -{name}{advice}", ctx)

    def _refuse_late_flags(self, ctx: click.Context, rest: Sequence[str]) -> None:
        late = next((word for word in rest[1:] if word.startswith("-") and len(word) > 1), None)
        if late is not None:
            places = " and ".join(_operand_names(self.forms)) or "other"
            fail(f'flag "{late}" must be positioned before {places} arguments', ctx)


class Group(click.Group):
    """Be a set of commands that are imported when they are called."""

    def __init__(self, *args: Any, modules: dict[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.context_settings = _SETTINGS
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for an unknown name."""
        module = self._modules.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(module).command
        return command if isinstance(command, click.Command) else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Answer a call for help; refuse a call without a command."""
        if args and args[0] == "help":
            args = [*args[1:], "--help"]
        if not args or (args[0].startswith("-") and args[0] not in _HELP):
            click.echo(ctx.get_help(), err=True)
            click.echo(err=True)
            where = f"flags follow the command: {args[0]}" if args else "command required"
            fail(where, ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first word names."""
        name = args[0]
        found = self.get_command(ctx, name)
        if found is None:
            near = difflib.get_close_matches(name, self._modules, n=1)
            advice = f" (did you mean {near[0]}?)" if near else ""
            fail(f"{ctx.command_path} {name}: unknown command{advice}", ctx)
        return name, found, args[1:]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the usage line."""
        formatter.write(f"Usage:\n  {ctx.command_path} COMMAND [flags] [arguments]\n")


def usage_lines(command: Command, path: str) -> Iterator[str]:
    """Yield the usage lines of a command called as ``path``."""
    for form in command.forms:
        yield f"{path} {form}"


def fail(message: str, ctx: click.Context | None = None) -> NoReturn:
    """Raise the error for a command line that is wrong."""
    raise click.UsageError(message, ctx or click.get_current_context(silent=True))


def operand(words: Sequence[str], missing: str) -> str:
    """Return the only operand; ``missing`` is the message if there is none."""
    if not words or not words[0]:
        fail(missing)
    if len(words) > 1:
        fail("too many arguments")
    return words[0]


def _operand_names(forms: Sequence[str]) -> list[str]:
    """Return the operands' names in usage lines: what follows ``[flags]``."""
    words = (word for form in forms for word in form.partition(_FLAGS)[2].split())
    return list(dict.fromkeys(word.strip("[]") for word in words))


def _is_set(ctx: click.Context, name: str, equals: str, value: str) -> bool:
    if not equals or value in _TRUE:
        return True
    if value not in _FALSE:
        fail(f'invalid boolean value "{value}" for -{name}: parse error', ctx)
    return False


if TYPE_CHECKING:
    _Type = click.ParamType
else:

    class _Type(click.ParamType):
        """Take a type argument, which older versions of click do not."""

        def __class_getitem__(cls, _: type) -> type:
            return cls


class Number(_Type[int]):
    """Read a whole number of at least 1."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        flag = param.opts[0] if param else "value"
        try:
            number = int(value)
        except ValueError:
            fail(f'invalid value "{value}" for flag {flag}: not a number', ctx)
        if number < 1:
            fail(f"{flag} must be greater than 0", ctx)
        return number


class OneOf(_Type[str]):
    """Read one of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.name = "|".join(words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word."""
        if value not in self.words:
            flag = param.opts[0] if param else ""
            fail(f"invalid {flag} value: {value} (must be one of {', '.join(self.words)})", ctx)
        return str(value)


class Transaction(_Type[int]):
    """Read a TXID of 16 hex digits."""

    name = "TXID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the TXID as a plain number."""
        from pyrep.ids import TXID

        if isinstance(value, int):
            return value
        try:
            txid = TXID.parse(value)
        except ValueError as exc:
            fail(str(exc), ctx)
        return int(txid) or fail(f"invalid txid format: {value!r} (the first is {1:016x})", ctx)


class Time(_Type[datetime]):
    """Read a time with its zone, as RFC 3339 writes it."""

    name = "TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the time in UTC."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None or "T" not in value.upper():
            fail(
                f"invalid -timestamp {value!r}, must be in ISO 8601 format with a zone "
                "(for example 2026-01-31T12:00:00Z)",
                ctx,
            )
        return moment.astimezone(UTC)


class Duration(_Type[timedelta]):
    """Read a duration above zero, as Go writes it."""

    name = "DURATION"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return the duration."""
        from pyrep.units import parse_duration

        if isinstance(value, timedelta):
            return value
        flag = param.opts[0] if param else "value"
        try:
            duration = parse_duration(value)
        except ValueError as exc:
            fail(f"{flag}: {exc}", ctx)
        if duration <= timedelta():
            fail(f"{flag} must be greater than 0", ctx)
        return duration


class Size(_Type[int]):
    """Read a size above zero, in bytes or with a unit."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the size in bytes."""
        from pyrep.units import parse_size

        if isinstance(value, int):
            return value
        flag = param.opts[0] if param else "value"
        try:
            size = parse_size(value)
        except ValueError as exc:
            fail(f"{flag}: {exc}", ctx)
        return size or fail(f"{flag} must be greater than 0", ctx)
