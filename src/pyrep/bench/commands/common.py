"""What the commands share: choosing databases, interrupts, progress."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click

from pyrep.bench.database import below
from pyrep.cli.common import db_path
from pyrep.cli.flags import fail
from pyrep.cli.output import Meter
from pyrep.errors import DatabaseNotReadyError

__all__ = ["choose", "metered", "source_flags", "stoppable"]

Function = TypeVar("Function", bound=Callable[..., Any])


def source_flags(function: Function) -> Function:
    """Add ``-db``, ``-dir`` and ``-match``."""
    function = click.option(
        "-match", metavar="GLOB", default="*.db", show_default=True, help="File names below -dir."
    )(function)
    function = click.option("-dir", "folder", metavar="DIR", help="A directory of databases.")(
        function
    )
    return click.option("-db", metavar="PATH", help="One database.")(function)


def choose(db: str | None, folder: str | None, match: str) -> list[Path]:
    """Return the databases that the flags name."""
    if (db is None) == (folder is None):
        fail("either -db or -dir is required")
    if folder is not None:
        return below(Path(db_path(folder)), match)
    path = Path(db_path(db or ""))
    if not path.is_file():
        raise DatabaseNotReadyError(f"database does not exist: {path}")
    return [path]


@contextlib.contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set, so that work ends in order."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def metered(text: str) -> Iterator[Callable[[int], None]]:
    """Yield what shows a growing number in a text with ``{}``."""
    meter = Meter()
    try:
        yield lambda count: meter.show(lambda _: text.format(count))
    finally:
        meter.close()
