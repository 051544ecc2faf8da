"""What is known of a tenant between two syncs (design: local position, fingerprint, lineage)."""

from __future__ import annotations

import json
import os
import secrets
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from pyrep.ids import TXID, Salts

__all__ = ["Fingerprint", "SyncState", "boot_id", "new_node_id"]

_FORMAT = 1
# Ten thousand positions are written at a start: no copies, no search for cycles.
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def new_node_id() -> int:
    """Make a lineage: a random non-zero 63-bit number, never derived from the machine.

    63 bits, because SQLite stores signed integers; images bake machine ids in, so two
    containers would be one lineage if it were derived.
    """
    return secrets.randbits(63) | 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identify the state of a database file by its inode; times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Fingerprint:
        """Take the fingerprint of a file's status."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


@dataclass(frozen=True, slots=True)
class SyncState:
    """Hold the local position of a tenant; continuity and checkpoints go by it.

    ``end_offset`` (bytes) is just past the last commit frame that was staged (0 = unknown: only a
    diff leads on; that must outlive the run that found it out), ``checksum`` that
    frame's cumulative checksum (None after an unclean stop: then the frame is recognised by its
    page), ``commit`` the database size in pages, ``db_checksum`` the
    database checksum (0 = unknown).  ``fingerprint`` exists only for a tenant parked with
    everything backfilled.  ``durable_txid`` is the highest TXID that the storage confirmed
    without a gap.  ``converted``: pyrep switched the file to WAL mode once.  ``wal_print`` is
    (inode, size, mtime in ns) of a WAL that was left at parking.  ``fenced`` says why uploads
    stopped, ``take_over`` that the operator ended that.  ``replica`` is where all that is true of
    ('' = nowhere yet): a state directory that was moved along with its folder, or is met by another
    configuration, knows nothing of the replica that the database has now.
    """

    node_id: int
    txid: TXID = TXID(0)
    durable_txid: TXID = TXID(0)
    page_size: int = 0
    salts: Salts = Salts(0, 0)
    end_offset: int = 0
    checksum: tuple[int, int] | None = (0, 0)
    commit: int = 0
    db_checksum: int = 0
    timestamp_ms: int = 0
    fingerprint: Fingerprint | None = None
    boot_id: str = ""
    fenced: str = ""
    take_over: bool = False
    converted: bool = False
    wal_print: tuple[int, int, int] | None = None
    replica: str = ""

    def to_json(self) -> str:
        """Return the text form that :meth:`from_json` reads."""
        raw = {"format": _FORMAT} | {name: getattr(self, name) for name in self.__slots__}
        if self.fingerprint is not None:
            raw["fingerprint"] = {n: getattr(self.fingerprint, n) for n in Fingerprint.__slots__}
        return _encode(raw)

    @classmethod
    def from_json(cls, text: str) -> SyncState:
        """Read the text form; raise ``ValueError`` if it is not one."""
        try:
            raw = json.loads(text)
            if raw.pop("format") != _FORMAT:
                raise ValueError("unknown format of a sync state")
            print_ = raw["fingerprint"]
            state = cls(
                **{
                    **raw,
                    "txid": TXID(raw["txid"]),
                    "durable_txid": TXID(raw["durable_txid"]),
                    "salts": Salts(*raw["salts"]),
                    "checksum": tuple(raw["checksum"]) if raw["checksum"] else None,
                    "fingerprint": Fingerprint(**print_) if print_ else None,
                    "wal_print": tuple(raw["wal_print"]) if raw["wal_print"] else None,
                    "boot_id": sys.intern(raw["boot_id"]),  # the same for ten thousand
                }
            )
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a sync state: {error}") from error
        if not _has_its_types(state):
            raise ValueError("not a sync state: a field of another type")
        if not 0 < state.node_id < 1 << 64 or min(state.txid, state.durable_txid) < 0:
            raise ValueError("not a sync state: impossible numbers")
        return state

    def unsealed(self) -> SyncState:
        """Return the state without its fingerprint."""
        return replace(self, fingerprint=None) if self.fingerprint else self

    def unproven(self) -> SyncState:
        """Return the state without a place in the WAL: the next sync, of any run, is a diff."""
        return replace(self, salts=Salts(0, 0), end_offset=0, fingerprint=None)


_FLAGS = ("take_over", "converted")
_TEXTS = ("boot_id", "fenced")
_NUMBERS = (
    *("node_id", "txid", "durable_txid", "page_size", "end_offset", "commit", "db_checksum"),
    "timestamp_ms",
)


def _has_its_types(state: SyncState) -> bool:
    """Return whether each field that was read from JSON is of its type, and fits into it."""
    numbers = [getattr(state, name) for name in _NUMBERS]
    prints = state.fingerprint
    times = [getattr(prints, name) for name in Fingerprint.__slots__] if prints else []
    for group, size in ((state.salts, 2), (state.checksum, 2), (state.wal_print, 3)):
        if group is not None and len(group) != size:
            return False
    numbers += [*state.salts, *(state.checksum or ())]
    times += state.wal_print or ()
    return (
        all(type(number) in (int, TXID) and 0 <= number < 1 << 64 for number in numbers)
        and all(type(number) is int for number in times)
        and all(isinstance(getattr(state, name), str) for name in _TEXTS)
        and all(isinstance(getattr(state, name), bool) for name in _FLAGS)
    )
