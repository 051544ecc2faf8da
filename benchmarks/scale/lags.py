"""How long after its commit a row was at the replica: read from the replica's own files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from writer import MARK, ROW

from pyrep.ltxio import pages

__all__ = ["lags"]


def lags(replicas: Iterable[Path], since: float) -> list[float]:
    """Return the lag in seconds of each row that was written after ``since``.

    It ends when the level-0 file that brought the row first appeared under its name, as the file
    system noted it.
    """
    found: list[float] = []
    for replica in replicas:
        known: set[float] = set()
        for path in sorted((replica / "ltx" / "0").glob("*.ltx")):
            appeared = path.stat().st_ctime
            if appeared < since:
                continue
            fresh = {at for at in _rows(path) if at >= since} - known
            known |= fresh
            found += [appeared - at for at in fresh]
    return found


def _rows(path: Path) -> Iterator[float]:
    """Yield the times in a file's pages."""
    for _, page in pages(io.BytesIO(path.read_bytes()), name=str(path)):
        at = page.find(MARK)
        while at >= 0:
            yield float(ROW.unpack_from(page, at)[3])
            at = page.find(MARK, at + ROW.size)
