"""The contract of a watcher: which databases may have changed?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

__all__ = ["Dirty", "DirtyKind", "Watcher"]


class DirtyKind(Enum):
    """Say what was seen."""

    CHANGED = "changed"
    OVERFLOW = "overflow"


@dataclass(frozen=True, slots=True)
class Dirty:
    """Name a database that may have unsynced frames; no path means: any of them may."""

    path: Path | None
    kind: DirtyKind = DirtyKind.CHANGED


class Watcher(Protocol):
    """Watch database files; it may report one too often, never too seldom."""

    def add(self, path: Path) -> None:
        """Watch a database from now on; a change before this call may be missed."""

    def remove(self, path: Path) -> None:
        """Watch it no longer; one that is not watched is no error."""

    def poll(self, timeout: float | None) -> list[Dirty]:
        """Wait for changes, ``timeout`` seconds at most (None: for ever); one thread calls it.

        Events that were lost come out as one ``Dirty`` without a path.
        """

    def wake(self) -> None:
        """Let ``poll`` return now; from any thread."""

    def close(self) -> None:
        """Let go of what the watcher holds."""
