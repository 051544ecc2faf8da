"""Decide which files of a replica may go: a pure function over what is known to be there.

The floor: a restore of every point since ``now - snapshot retention`` stays possible, from the
newest snapshot at or before that time on.  The last snapshot, the newest file of each level (the
next compaction goes on from it), and above all the newest level-0 file (Litestream looks only
there when it takes over) are never deleted.  On a clock that cannot be right nothing is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyrep.ids import SNAPSHOT_LEVEL
from pyrep.ltxfile import FileInfo

__all__ = ["Decision", "Policy", "clock_is_plausible", "confirmed", "decide"]

_CLOCK_SLACK_MS = 60_000
_JUMP_MS = 300_000


@dataclass(frozen=True, slots=True)
class Policy:
    """Hold the times in milliseconds; ``l0_retention_ms`` 0 keeps every level-0 file."""

    snapshot_retention_ms: int
    l0_retention_ms: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Say what may be deleted, and why it may.

    ``merged`` are level-0 files that an acknowledged level-1 file holds whole.  ``superseded``
    serve only points before ``floor``, the snapshot that everything kept rests on (None: there is
    none old enough).  ``refused`` says why nothing may be deleted, or is empty.  ``next_ms`` is
    the time from which on more may go if nothing is added, None if never.
    """

    merged: tuple[FileInfo, ...] = ()
    superseded: tuple[FileInfo, ...] = ()
    floor: FileInfo | None = None
    refused: str = ""
    next_ms: int | None = None

    @property
    def delete(self) -> tuple[FileInfo, ...]:
        """Return all that may be deleted, sorted."""
        return tuple(sorted(self.merged + self.superseded))


def clock_is_plausible(wall_ms: int, began_wall_ms: int, elapsed_ms: int) -> bool:
    """Return whether the wall clock moved as the monotonic clock did since the start."""
    return abs(wall_ms - began_wall_ms - elapsed_ms) <= _JUMP_MS


def decide(files: Iterable[FileInfo], now_ms: int, policy: Policy) -> Decision:
    """Return which of a replica's files may be deleted at ``now_ms``."""
    everything = sorted(files)
    newest_ms = max((info.timestamp_ms for info in everything), default=0)
    if now_ms < newest_ms - _CLOCK_SLACK_MS:
        return Decision(refused="the clock is behind the newest file of the replica")
    cutoff_ms = now_ms - policy.snapshot_retention_ms
    floor = _floor(everything, cutoff_ms)
    newest = _newest_of_levels(everything)
    old = _below(everything, floor, newest) if floor is not None else []
    merged: list[FileInfo] = []
    waiting: list[int] = []
    if policy.l0_retention_ms > 0:
        l0_cutoff_ms = now_ms - policy.l0_retention_ms
        old = [info for info in old if info.level or info.timestamp_ms <= l0_cutoff_ms]
        covered = [info for info in _covered(everything) if info != newest[0]]
        merged = [info for info in covered if info.timestamp_ms <= l0_cutoff_ms]
        waiting += [i.timestamp_ms + policy.l0_retention_ms for i in covered[len(merged) :][:1]]
    else:
        old = [info for info in old if info.level]
    aging = [i.timestamp_ms for i in everything if _is_snapshot(i) and i.timestamp_ms > cutoff_ms]
    waiting += [ms + policy.snapshot_retention_ms for ms in aging]
    held = set(merged)
    superseded = tuple(info for info in old if info not in held)
    return Decision(tuple(merged), superseded, floor, next_ms=min(waiting, default=None))


def confirmed(decision: Decision, known: Iterable[FileInfo], listing: Iterable[FileInfo]) -> bool:
    """Return whether a listing shows every file that is to stay, with the size that is known.

    It is asked before files are deleted because a snapshot makes them needless: what restores
    rest on afterwards must really be there.
    """
    going = set(decision.delete)
    there = {(i.level, i.min_txid, i.max_txid): i.size for i in listing}
    staying = [info for info in known if info not in going]
    return all(there.get((i.level, i.min_txid, i.max_txid)) == i.size for i in staying)


def _is_snapshot(info: FileInfo) -> bool:
    return info.level == SNAPSHOT_LEVEL


def _newest_of_levels(files: Sequence[FileInfo]) -> dict[int, FileInfo]:
    newest: dict[int, FileInfo] = {}
    for info in files:
        if info.level not in newest or info.max_txid > newest[info.level].max_txid:
            newest[info.level] = info
    return newest


def _floor(files: Sequence[FileInfo], cutoff_ms: int) -> FileInfo | None:
    """Return the newest snapshot at or before the cutoff: older points are not wanted."""
    old = [info for info in files if _is_snapshot(info) and info.timestamp_ms <= cutoff_ms]
    return max(old, key=lambda info: (info.max_txid, info.timestamp_ms), default=None)


def _below(
    files: Sequence[FileInfo], floor: FileInfo, newest: dict[int, FileInfo]
) -> list[FileInfo]:
    """Return the files that serve only points before the floor."""
    return [
        info
        for info in files
        if info != newest[info.level]
        and (info.max_txid <= floor.max_txid if not _is_snapshot(info) else _older(info, floor))
    ]


def _older(snapshot: FileInfo, floor: FileInfo) -> bool:
    return snapshot != floor and snapshot.max_txid < floor.max_txid


def _covered(files: Sequence[FileInfo]) -> list[FileInfo]:
    """Return the level-0 files that one level-1 file holds whole, by time."""
    level1 = [info for info in files if info.level == 1]
    covered: list[FileInfo] = []
    at = 0
    for info in files:
        if info.level:
            break
        while at < len(level1) and level1[at].max_txid < info.max_txid:
            at += 1
        if at < len(level1) and level1[at].min_txid <= info.min_txid:
            covered.append(info)
    return sorted(covered, key=lambda info: (info.timestamp_ms, info))
