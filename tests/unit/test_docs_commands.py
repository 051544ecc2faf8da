"""Every command line in the documentation is understood, and every command is documented."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fixtures.sources import ROOT
from pyrep.cli.main import cli

_PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
_FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE_LINE = re.compile(r"^(?: {4,}|)(?:\$ )?(pyrep [a-z].*)$", re.MULTILINE)
_INLINE = re.compile(r"`(pyrep [a-z][^`]*)`")


def _command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words after ``pyrep`` of each command line in a page's code."""
    fenced = "\n".join(_FENCE.findall(text))
    prose = _FENCE.sub("", text)
    indented = "\n".join(line for line in prose.split("\n") if line.startswith("    "))
    for code in (fenced, indented):
        for line in _CODE_LINE.findall(code):
            yield shlex.split(line, comments=True)[1:]
    for line in _INLINE.findall(prose):
        yield shlex.split(line)[1:]


def _parse(words: list[str]) -> None:
    """Resolve a command and parse its flags; nothing is run."""
    command: click.Command = cli
    name: str | None = "pyrep"
    with click.Context(cli, info_name="pyrep") as context:
        while isinstance(command, click.Group) and words:
            name, found, words = command.resolve_command(context, words)
            assert found is not None
            command = found
        command.make_context(name, list(words), parent=context).close()


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_command_lines_are_understood(page: Path) -> None:
    for words in _command_lines(page.read_text()):
        try:
            _parse(words)
        except click.ClickException as error:
            pytest.fail(f"pyrep {shlex.join(words)}: {error.format_message()}", pytrace=False)


def test_every_command_is_documented() -> None:
    text = "".join(page.read_text() for page in _PAGES)
    used = {words[0] for words in _command_lines(text) if words}
    assert sorted(set(cli.list_commands(click.Context(cli))) - used) == []


def test_wrong_command_lines_are_seen() -> None:
    text = "Run `pyrep verison` and\n\n    pyrep version -nonsense  # comment\n"
    found = list(_command_lines(text))
    assert found == [["version", "-nonsense"], ["verison"]]
    for words in found:
        with pytest.raises(click.ClickException):
            _parse(words)
