"""The contract of a watcher: which databases may have changed, and which names come and go?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

__all__ = ["Dirty", "DirtyKind", "Watcher"]


class DirtyKind(Enum):
    """Say what was seen."""

    CHANGED = "changed"  # a database may have unsynced frames
    NAMED = "named"  # a file, or its -wal or -journal, came, went or is another one now
    FOLDER = "folder"  # a folder came or went, with all that is below it
    OVERFLOW = "overflow"  # events were lost: any of this may have happened anywhere


@dataclass(frozen=True, slots=True)
class Dirty:
    """Name what may have changed; no path means everything."""

    path: Path | None
    kind: DirtyKind = DirtyKind.CHANGED


class Watcher(Protocol):
    """Watch database files and folders; it may report one too often, never too seldom.

    A report is a hint where to look: by then more may have happened there.  ``poll`` and the
    calls about folders come from one thread, the others from any.
    """

    def add(self, path: Path) -> None:
        """Watch a quiet database from now on, and look at it once: is it still as it was left?

        Once more for one that is watched already: it is looked at again.
        """

    def remove(self, path: Path) -> None:
        """Watch it no longer; one that is not watched is no error."""

    def watch_folder(self, folder: str) -> bool:
        """Report names that come and go in a folder from now on.

        False if that is not possible: then the caller looks there from time to time.
        """

    def forget_folder(self, folder: str, *, below: bool = True) -> None:
        """Watch a folder no longer, with ``below`` no folder below it either."""

    def poll(self, timeout: float | None) -> list[Dirty]:
        """Wait for changes, ``timeout`` seconds at most (None: for ever).

        Events that were lost come out as one ``Dirty`` without a path.
        """

    def wake(self) -> None:
        """Let ``poll`` return now."""

    def close(self) -> None:
        """Let go of what the watcher holds; what is asked of it afterwards has no effect."""
