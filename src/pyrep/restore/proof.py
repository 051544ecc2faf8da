"""Prove a restored file before it gets its name."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pyrep import _checksum, sqlite
from pyrep._ltx import Header
from pyrep.errors import ConfigError, DatabaseError, LTXChecksumError
from pyrep.restore.source import in_order
from pyrep.restore.target import TempFile, describe_os_errors

__all__ = [
    "INTEGRITY_CHECKS",
    "PageCRCs",
    "check_integrity",
    "check_mode",
    "database_checksum",
    "prove",
]

INTEGRITY_CHECKS = ("none", "quick", "full")
PageCRCs = Callable[[int, "array[int]"], None]

_WINDOW = 16 << 20  # bytes of the file per step; four steps a thread are under way
_SHOWN = 5  # rows of an integrity check that the error quotes


@dataclass(frozen=True, slots=True)
class _Window:
    """Hold a run of pages."""

    first_pgno: int
    pages: int


def database_checksum(
    temp: TempFile, header: Header, threads: int, on_page_crcs: PageCRCs | None = None
) -> int:
    """Read the file's pages back on all threads; return the database checksum.

    ``on_page_crcs`` gets the raw CRC-64 of each page, in ascending runs: the number of the
    first page and the values.
    """
    page_size, commit = header.page_size, header.commit
    step = max(1, _WINDOW // page_size)
    windows = (_Window(at, min(step, commit + 1 - at)) for at in range(1, commit + 1, step))

    def read(window: _Window) -> tuple[array[int], int]:
        crcs = array("Q", bytes(8 * window.pages))
        _checksum.crc64_pages_fd(temp.fd, window.first_pgno, page_size, crcs)
        return crcs, _checksum.database_checksum(crcs, window.first_pgno, page_size)

    total = 0
    with (
        describe_os_errors(temp.path, "reading the restored database back"),
        ThreadPoolExecutor(threads, "pyrep-prove") as pool,
    ):
        for window, (crcs, part) in in_order(pool, read, windows, ahead=threads * 4):
            total ^= part
            if on_page_crcs is not None:
                on_page_crcs(window.first_pgno, crcs)
    return total


def prove(temp: TempFile, name: str, found: int, wanted: int) -> None:
    """Compare the database checksum of a restored file with the one its last LTX file carries.

    :raises LTXChecksumError: they differ
    """
    if found != wanted:
        raise LTXChecksumError(
            f"the pages restored to {temp.path} have the database checksum {found:016x}, "
            f"but the file says {wanted:016x}; nothing was published",
            op="verify",
            path=name,
            hint="A file of the plan is not what was written there: restore an earlier state "
            "with -txid or -timestamp, and look at the replica with 'pyrep ltx'.",
        )


def check_integrity(temp: TempFile, output: Path, mode: str) -> None:
    """Run SQLite's check on the finished file; keep a bad one aside as ``<output>.bad``.

    An earlier ``.bad`` file is replaced.

    :raises DatabaseError: the check found something
    """
    if mode == "none":
        return
    rows = sqlite.integrity_check(temp.path, mode)
    if not rows:
        return
    bad = output.with_name(f"{output.name}.bad")
    temp.keep_as(bad)
    shown = "; ".join(rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    raise DatabaseError(
        f"{output}: the restored database fails SQLite's {mode} integrity check: {shown}{more}",
        hint=f"It is kept as {bad}; restore an earlier state with -txid or -timestamp.",
    )


def check_mode(mode: str) -> None:
    """Refuse an unknown kind of integrity check."""
    if mode not in INTEGRITY_CHECKS:
        raise ConfigError(f"invalid -integrity-check value: {mode}")
