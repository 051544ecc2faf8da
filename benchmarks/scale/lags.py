"""How long after its commit a row was at the replica: read from the replica's own files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from writer import MARK, ROW

from pyrep.ltxio import pages

__all__ = ["lags"]


def lags(arrivals: Mapping[Path, float], since: float) -> list[float]:
    """Return the lag in seconds of each row that was written after ``since``.

    It ends when the first level-0 file that has the row got its name; ``arrivals`` are those
    names with their times.
    """
    found: list[float] = []
    known: dict[Path, set[float]] = {}
    for path in sorted(arrivals):
        seen = known.setdefault(path.parent, set())
        fresh = {at for at in _rows(path) if at >= since} - seen
        seen |= fresh
        found += [arrivals[path] - at for at in fresh]
    return found


def _rows(path: Path) -> Iterator[float]:
    """Yield the times in a file's pages."""
    for _, page in pages(io.BytesIO(path.read_bytes()), name=str(path)):
        at = page.find(MARK)
        while at >= 0:
            yield float(ROW.unpack_from(page, at)[3])
            at = page.find(MARK, at + ROW.size)
