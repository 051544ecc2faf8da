"""Whose files are on the replica, and at which TXID do we go on?

Decided once a tenant and daemon run, before its first file is numbered: one listing and the
header of the newest file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pyrep._ltx import HEADER_SIZE, Header
from pyrep.clock import from_ms
from pyrep.errors import ReplicaTemporaryError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.plan import chain_head, gaps
from pyrep.storage.base import ReplicaClient
from pyrep.storage.reread import reread
from pyrep.tenant.position import SyncState

__all__ = [
    "Action",
    "Remote",
    "Verdict",
    "describe_twin",
    "describe_writer",
    "judge",
    "listing",
    "survey",
]


@dataclass(frozen=True, slots=True)
class Remote:
    """Hold what one listing of a replica showed.

    ``head`` is the newest TXID that is reached without a gap, ``top`` the highest one there.
    """

    head: TXID = TXID(0)
    top: TXID = TXID(0)
    newest: FileInfo | None = None
    header: Header | None = None
    missing: str = ""


class Action(Enum):
    """Say how a tenant goes on."""

    CONTINUE = "continue"  # the replica ends where we are, or at a file that we have staged
    FIRST = "first"  # nothing there: TXID 1 with all pages
    ALL_PAGES = "all pages"  # whole chain of another hand: all pages at the next number
    HEAL = "heal"  # broken chain: a level-9 file from TXID 1 as well
    ADOPT = "adopt"  # our state is lost: go on if the database equals the replica's end
    FENCED = "fenced"  # another live lineage


@dataclass(frozen=True, slots=True)
class Verdict:
    """Hold the action, the TXID after which numbering goes on, and why (for the log)."""

    action: Action
    base: TXID
    cause: str = ""


def listing(client: ReplicaClient) -> list[FileInfo]:
    """List a replica once, all levels."""
    return [info for level in range(SNAPSHOT_LEVEL + 1) for info in client.list_ltx(level)]


def survey(client: ReplicaClient, files: Sequence[FileInfo], node_id: int) -> Remote:
    """Look at a listing, and read the header of the newest file.

    One that names another lineage than ``node_id`` is read twice: nothing in a header shows that
    a byte of it was changed on the way.

    :raises ReplicaTemporaryError: the second time it was another one
    """
    if not files:
        return Remote()
    newest = max(files, key=lambda info: (info.max_txid, -info.level))
    header = _header(client, newest)
    if header.node_id != node_id and _header(client, newest).pack() != header.pack():
        raise ReplicaTemporaryError(
            f"{client.url}: the header of {newest.name} at level {newest.level} was read twice, "
            "with different results"
        )
    holes = gaps(files)
    missing = ", ".join(f"txids {TXID(hole.have + 1)} to {TXID(hole.next - 1)}" for hole in holes)
    return Remote(chain_head(files), newest.max_txid, newest, header, missing)


def _header(client: ReplicaClient, info: FileInfo) -> Header:
    def read() -> Header:
        with client.open_ltx(info, 0, HEADER_SIZE) as source:
            return Header.parse(source.read(HEADER_SIZE))

    return reread(read)


def judge(state: SyncState, known: bool, staged: Sequence[Header], remote: Remote) -> Verdict:
    """Decide how a tenant goes on.

    ``known``: the lineage in ``state`` was found (in the state directory or the catalog), not
    made just now.  ``staged`` are the headers of the verified level-0 files of the state
    directory, by TXID.
    """
    header = remote.header
    durable = state.durable_txid
    if header is None:
        if not durable:
            return Verdict(Action.CONTINUE if staged else Action.FIRST, TXID(0))
        return Verdict(Action.HEAL, durable, f"the replica is empty, it had txid {durable}")
    ours = header.node_id == state.node_id
    foreign = header.is_pyrep and not ours
    if foreign and not state.take_over:
        if not known:
            return Verdict(Action.ADOPT, remote.top)
        return Verdict(Action.FENCED, remote.top, describe_writer(header))
    base = TXID(max(durable, remote.top))
    if remote.missing or not remote.head:
        what = remote.missing or "every file that starts at the first txid"
        return Verdict(Action.HEAL, base, f"the replica lacks {what}")
    if remote.head < durable:
        lost = f"txids {TXID(remote.head + 1)} to {durable}"
        return Verdict(Action.HEAL, base, f"the replica was cut back: it lacks {lost}")
    if not ours or state.take_over:
        hand = "Litestream" if not header.is_pyrep else "another pyrep"
        cause = f"the newest file on the replica (txid {base}) is {hand}'s"
        return Verdict(Action.ALL_PAGES, base, "the replica was taken over" if ours else cause)
    if remote.top == durable:
        return Verdict(Action.CONTINUE, remote.top)
    if _is_staged(staged, remote.top, header):
        # A level-9 file goes before its level-0 twin: then the twin is still to be uploaded.
        alone = remote.newest is not None and remote.newest.level > 0
        return Verdict(Action.CONTINUE, TXID(remote.top - 1) if alone else remote.top)
    return Verdict(Action.ALL_PAGES, base, f"the replica is ahead of us (txid {remote.top})")


def _is_staged(staged: Sequence[Header], txid: int, remote: Header) -> bool:
    """Return whether the replica's newest file is one that we staged, its answer lost."""
    return any(
        header.max_txid == txid
        and header.pre_checksum == remote.pre_checksum
        and header.post_checksum == remote.post_checksum
        and header.commit == remote.commit
        and remote.post_checksum
        for header in staged
    )


def describe_writer(header: Header) -> str:
    """Say whose file this is, for the error of a fenced tenant."""
    return f"another writer's files are on the replica ({_whose(header)})"


def describe_twin(header: Header) -> str:
    """Say whose file this is if it has our own lineage and we have not written it."""
    return (
        "another pyrep process, with a copy of this database, writes to the same replica "
        f"({_whose(header)})"
    )


def _whose(header: Header) -> str:
    when = from_ms(header.timestamp_ms).isoformat(timespec="seconds")
    return f"lineage {header.node_id:016x}, newest txid {TXID(header.max_txid)} of {when}"
