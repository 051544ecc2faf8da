"""Which of the files that match are databases, and which are ready to be replicated?"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pyrep.clock import Clock
from pyrep.errors import DatabaseError, DatabaseNotReadyError
from pyrep.sqlite import Probe, probe

__all__ = ["Candidate", "Discovery", "Finding", "Kind"]

_REST_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0
_LOOK_ANYWAY_SECONDS = 30.0  # what keeps a file from being read may not show in its status

Identity = tuple[int, int, int, int, int]


class Candidate(Protocol):
    """Be a file that may be a database."""

    @property
    def db_path(self) -> Path:
        """Return the file's path."""


S = TypeVar("S", bound=Candidate)


class Kind(Enum):
    """Say what a look at a candidate found."""

    READY = "ready"
    WAITING = "waiting"  # a database that is just being made or copied
    MISSING = "missing"
    REJECTED = "rejected"  # no database
    UNREADABLE = "unreadable"  # it may be one


@dataclass(frozen=True, slots=True)
class Finding(Generic[S]):
    """Hold what a look found; ``reason`` says why it is not ready, ``inode`` what was seen."""

    candidate: S
    kind: Kind
    reason: str = ""
    hint: str = ""
    inode: tuple[int, int] | None = None


@dataclass(slots=True)
class _Pending(Generic[S]):
    """Remember a candidate that is not ready; times are monotonic."""

    finding: Finding[S]
    identity: Identity | None
    seen_at: float
    unrest_since: float
    looked_at: float


class Discovery(Generic[S]):
    """Tell databases from other files, and look again at what is not ready; one thread uses it."""

    def __init__(self, clock: Clock, look: Callable[[Path], Probe] = probe) -> None:
        self._clock = clock
        self._probe = look
        self._pending: dict[Path, _Pending[S]] = {}

    @property
    def pending(self) -> int:
        """Return how many candidates are not ready."""
        return len(self._pending)

    @property
    def restless(self) -> bool:
        """Return whether a candidate may become ready, or readable, without any event."""
        restless = (Kind.WAITING, Kind.UNREADABLE)
        return any(pending.finding.kind in restless for pending in self._pending.values())

    @property
    def waiting(self) -> int:
        """Return how many of them are databases that are just being made."""
        return sum(p.finding.kind is Kind.WAITING for p in self._pending.values())

    def candidates(self) -> list[S]:
        """Return the candidates that are not ready."""
        return [pending.finding.candidate for pending in self._pending.values()]

    def knows(self, path: Path) -> bool:
        """Return whether a file was offered and is not ready."""
        return path in self._pending

    def offer(self, candidate: S) -> Finding[S]:
        """Look at a candidate for the first time; one that is not ready is remembered."""
        now = self._clock.monotonic()
        pending = _Pending(Finding(candidate, Kind.MISSING), None, now, now, now)
        return self._look(pending)

    def forget(self, path: Path) -> None:
        """Look at a candidate no more."""
        self._pending.pop(path, None)

    def look(self, path: Path) -> Finding[S] | None:
        """Look at one candidate now; return the finding if it is new."""
        pending = self._pending.get(path)
        if pending is None:
            return None
        before = pending.finding
        after = self._look(pending)
        return after if after != before else None

    def look_again(self) -> list[Finding[S]]:
        """Look at what was not ready; return the findings that are new."""
        found = []
        for pending in list(self._pending.values()):
            before = pending.finding
            if self._is_due(pending):
                after = self._look(pending)
                if after != before:
                    found.append(after)
        return found

    def _is_due(self, pending: _Pending[S]) -> bool:
        """Say whether another look can find something new; costs one ``stat``."""
        if pending.finding.kind is Kind.WAITING:
            return True
        if self._clock.monotonic() - pending.looked_at >= _LOOK_ANYWAY_SECONDS:
            return True
        return _identity(pending.finding.candidate.db_path) != pending.identity

    def _look(self, pending: _Pending[S]) -> Finding[S]:
        candidate = pending.finding.candidate
        path = candidate.db_path
        pending.looked_at = now = self._clock.monotonic()
        identity = _identity(path)
        if identity is None or pending.identity is None:
            pending.unrest_since = now
        if identity != pending.identity:
            pending.identity, pending.seen_at = identity, now
        pending.finding = finding = self._judge(pending, candidate)
        if finding.kind is Kind.READY:
            self._pending.pop(path, None)
        else:
            self._pending[path] = pending
        return finding

    def _judge(self, pending: _Pending[S], candidate: S) -> Finding[S]:
        path = candidate.db_path
        try:
            found = self._probe(path)
        except DatabaseNotReadyError as error:
            return Finding(candidate, Kind.MISSING, _without(path, error))
        except DatabaseError as error:
            return Finding(candidate, Kind.UNREADABLE, _without(path, error), error.hint)
        inode = (found.device, found.inode)
        reason, hint = _not_a_database(found)
        if found.size == 0 and not self._at_rest(pending, found):
            return Finding(candidate, Kind.WAITING, "was created a moment ago", inode=inode)
        if reason:
            return Finding(candidate, Kind.REJECTED, reason, hint, inode)
        reason = self._unready(pending, found)
        if reason:
            return Finding(candidate, Kind.WAITING, reason, inode=inode)
        return Finding(candidate, Kind.READY, inode=inode)

    def _unready(self, pending: _Pending[S], found: Probe) -> str:
        """Return why a database is not ready, '' if it is."""
        if self._clock.monotonic() - pending.unrest_since >= _PATIENCE_SECONDS:
            return ""
        if found.size < found.page_count * found.page_size:
            return "is shorter than its header says"
        if os.path.lexists(f"{pending.finding.candidate.db_path}-wal"):
            return ""
        return "" if self._at_rest(pending, found) else "was written a moment ago"

    def _at_rest(self, pending: _Pending[S], found: Probe) -> bool:
        if self._clock.monotonic() - pending.seen_at >= _REST_SECONDS:
            return True
        return self._clock.now().timestamp() - found.mtime_ns / 1e9 >= _REST_SECONDS


def _identity(path: Path) -> Identity | None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _not_a_database(found: Probe) -> tuple[str, str]:
    """Return what a file is instead of a database, and what to do about it; '' if it is one."""
    if found.size == 0:
        return "is empty", "It is replicated from its first write on."
    if found.is_database:
        return "", ""
    return (
        "is not a SQLite database, or is encrypted",
        "Exclude it from the pattern, or replace it by a database.",
    )


def _without(path: Path, error: DatabaseError) -> str:
    """Return an error's text without the path, which the log line names anyway."""
    return str(error).removeprefix(f"{path}: ")
