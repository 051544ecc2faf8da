"""What commands print: tables, JSON, progress; one thing on one line, whatever names hold."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TextIO

import click

from pyrep.clock import Clock, SystemClock
from pyrep.units import round_size

__all__ = [
    "SCHEMA",
    "Meter",
    "Terminated",
    "printable",
    "say",
    "size_text",
    "write_json",
    "write_table",
]

SCHEMA = 1
_TERMINAL_SECONDS = 0.1
_PLAIN_SECONDS = 5.0


class Terminated(KeyboardInterrupt):
    """Be raised in the main thread by SIGTERM, as ``KeyboardInterrupt`` is by SIGINT."""


def printable(text: str) -> str:
    """Return a text without control characters and broken UTF-8; these are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """Print a line on standard error, where it is in no program's way."""
    click.echo(printable(text), err=True)


def size_text(size: int) -> str:
    """Return a size for people."""
    return round_size(size)


def write_json(document: Mapping[str, object]) -> None:
    """Print a document with the number of its schema."""
    whole = {"schema": SCHEMA, **document}
    text = json.dumps(whole, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(whole, indent=2)
    click.echo(text)


def write_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows below their column names, two spaces apart."""
    lines = [list(columns), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


class Meter:
    """Show how far something is: one line that changes on a terminal, else a line now and then.

    Usable from several threads.  ``close`` ends the changing line.
    """

    def __init__(self, *, stream: TextIO | None = None, clock: Clock | None = None) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock or SystemClock()
        self._terminal = self._stream.isatty()
        self._every = _TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS
        self._lock = threading.Lock()
        self._began = self._last = self._clock.monotonic()  # _last: guarded by _lock
        self._shown = 0  # characters of the changing line; guarded by _lock

    def show(self, text: Callable[[float], str]) -> None:
        """Show a text made from the seconds since the beginning, unless the last is too fresh."""
        with self._lock:
            now = self._clock.monotonic()
            if now - self._last < self._every:
                return
            self._last = now
            line = printable(text(now - self._began))
            if self._terminal:
                self._stream.write("\r" + line.ljust(self._shown))
                self._shown = len(line)
            else:
                self._stream.write(line + "\n")
            self._stream.flush()

    def line(self, text: str) -> None:
        """Print a line that stays, above the changing one."""
        with self._lock:
            self._erase()
            self._stream.write(printable(text) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Remove the changing line."""
        with self._lock:
            self._erase()

    def _erase(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._stream.flush()
            self._shown = 0
