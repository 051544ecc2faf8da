"""Choose the LTX files that lead to a wanted state: pure decisions over a listing.

A file whose min TXID is 1 starts a plan.  After reaching TXID ``n`` every file with
``min_txid <= n + 1 <= max_txid`` carries on, whatever its level; overlaps do no harm, since
a file holds the newest version of each page that its range changed.  A larger reach is
never worse, so the greedy choice (the file that reaches furthest) is the shortest plan and
reaches every TXID that any plan reaches.  A file is never cut in the middle: a target
inside a merged file needs the smaller files of a lower level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, NoReturn

from pyrep.clock import from_ms
from pyrep.errors import ConfigError, LTXGapError, TXNotAvailableError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo

__all__ = ["Gap", "Plan", "chain_head", "gaps", "plan", "time_text"]

_by_min = attrgetter("min_txid")


class Gap(NamedTuple):
    """Name a hole: files reach ``have`` (0: none starts at TXID 1), the next starts at ``next``."""

    have: TXID
    next: TXID


@dataclass(frozen=True, slots=True)
class Plan:
    """List the files to apply, in order, and the state they lead to.

    ``timestamp_ms`` is the time of that state in milliseconds since the epoch;
    ``after_newest`` says that a later time was asked for than the replica has.
    """

    files: tuple[FileInfo, ...]
    min_txid: TXID
    max_txid: TXID
    timestamp_ms: int
    after_newest: bool = False

    @property
    def size(self) -> int:
        """Return the bytes to read."""
        return sum(info.size for info in self.files)


def plan(
    files: Iterable[FileInfo], *, txid: int | None = None, timestamp_ms: int | None = None
) -> Plan:
    """Choose files of any level for the newest state, for exactly ``txid`` or for a time.

    For a time, the newest state is meant that a file at or before it shows to have existed
    then; where only a merged file holds that state, the nearest one before it.

    :raises TXNotAvailableError: nothing there, TXID not reachable, time before the oldest state
    :raises LTXGapError: the wanted state lies beyond a hole
    """
    if txid is not None and timestamp_ms is not None:
        raise ConfigError("cannot specify index & timestamp to restore")
    if txid is not None and txid < 1:
        raise ConfigError("must be at least 1", field="txid", value=txid)
    ordered = sorted(files, key=_by_min)
    if not ordered:
        raise TXNotAvailableError(
            "no matching backup files available",
            hint="check the replica's path, and that something was ever replicated to it",
        )
    bound = _bound(ordered, txid, timestamp_ms)
    head = chain_head(ordered)
    if bound > head or not head:
        _refuse_gap(ordered)
    chain = _chain(ordered, bound)
    reached = chain[-1].max_txid if chain else TXID(0)
    if txid is not None and reached != txid:
        _refuse_txid(ordered, TXID(txid), reached)
    if not chain:
        _refuse_time(ordered, timestamp_ms or 0)
    state_ms = _state_ms(ordered, reached)
    late = timestamp_ms is not None and reached == head and timestamp_ms > state_ms
    return Plan(tuple(chain), chain[0].min_txid, reached, state_ms, late)


def chain_head(files: Iterable[FileInfo]) -> TXID:
    """Return the newest TXID that files of any level reach from TXID 1 without a gap, else 0."""
    reached = TXID(0)
    for info in sorted(files, key=_by_min):
        if info.min_txid > reached + 1:
            break
        reached = max(reached, info.max_txid)
    return reached


def gaps(files: Iterable[FileInfo]) -> list[Gap]:
    """Return every hole between TXID 1 and the newest TXID, in order; empty if whole."""
    found = []
    reached = TXID(0)
    for info in sorted(files, key=_by_min):
        if info.min_txid > reached + 1:
            found.append(Gap(reached, info.min_txid))
        reached = max(reached, info.max_txid)
    return found


def time_text(ms: int) -> str:
    """Return milliseconds since the epoch as RFC 3339 text; out of its range, the bare number."""
    try:
        moment = from_ms(ms)
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bound(ordered: Sequence[FileInfo], txid: int | None, timestamp_ms: int | None) -> int:
    """Return the TXID that no file of the plan may pass."""
    if txid is not None:
        return txid
    if timestamp_ms is None:
        return max(info.max_txid for info in ordered)
    # A file at or before the time proves that its last TXID existed by then, and so did all
    # before it; their own files may have later times where a storage keeps only its own clock.
    return max((info.max_txid for info in ordered if info.timestamp_ms <= timestamp_ms), default=0)


def _chain(ordered: Sequence[FileInfo], bound: int) -> list[FileInfo]:
    """Return the shortest plan to the furthest TXID <= ``bound``; ``ordered`` is by min TXID."""
    chain: list[FileInfo] = []
    reached = 0
    best: FileInfo | None = None
    for info in ordered:
        while info.min_txid > reached + 1:
            if best is None or best.max_txid <= reached:
                return chain
            chain.append(best)
            reached = best.max_txid
        if info.max_txid <= bound and (best is None or _rank(info) > _rank(best)):
            best = info
    if best is not None and best.max_txid > reached:
        chain.append(best)
    return chain


def _rank(info: FileInfo) -> tuple[int, int, int]:
    """Order candidates: the furthest first, then the least overlap, then the higher level."""
    return info.max_txid, info.min_txid, info.level


def _state_ms(ordered: Sequence[FileInfo], txid: int) -> int:
    """Return the time of a state: the earliest that any file ending there carries."""
    return min(info.timestamp_ms for info in ordered if info.max_txid == txid)


def _refuse_gap(ordered: Sequence[FileInfo]) -> None:
    """Raise the error of the first hole, if there is one."""
    holes = gaps(ordered)
    if not holes:
        return
    have, following = holes[0]
    message = f"non-contiguous ltx files: have up to {have} but next file starts at {following}"
    hint = f"restore the state before the gap with -txid {have}"
    if not have:
        message = f"no ltx file starts at txid {TXID(1)}: the first file starts at {following}"
        hint = "the first snapshot is missing: nothing on this replica can be restored without it"
    raise LTXGapError(message, op="plan", min_txid=have, max_txid=following, hint=hint)


def _refuse_txid(ordered: Sequence[FileInfo], txid: TXID, below: TXID) -> NoReturn:
    """Raise the error for a TXID between the states that the files lead to."""
    # Nothing between `below` and the target is reachable, so the next state above is reached
    # in one step from `below`.
    steps = [i.max_txid for i in ordered if i.max_txid > txid and i.min_txid <= below + 1]
    near = []
    if below:
        near.append(f"below it is {below}")
    if steps:
        near.append(f"above it is {min(steps)}")
    where = "; the nearest " + ", the nearest ".join(near)
    raise TXNotAvailableError(
        f"transaction {txid} not available{where}",
        hint="choose one of these with -txid; 'pyrep ltx' lists the files",
    )


def _refuse_time(ordered: Sequence[FileInfo], timestamp_ms: int) -> NoReturn:
    """Raise the error for a time before the oldest state."""
    oldest = min(info.max_txid for info in ordered if info.min_txid == 1)
    raise TXNotAvailableError(
        f"no state at or before {time_text(timestamp_ms)}: the oldest on the replica is of "
        f"{time_text(_state_ms(ordered, oldest))} (txid {oldest})",
        hint="choose that time or a later one, or leave the time out for the newest state",
    )
