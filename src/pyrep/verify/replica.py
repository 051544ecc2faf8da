"""Verify one replica, also while a daemon writes to it and deletes from it."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyrep import ltxio, osfs
from pyrep.clock import Clock, SystemClock
from pyrep.errors import (
    DatabaseError,
    LTXCorruptError,
    LTXError,
    PyrepError,
    ReplicaError,
    ShutdownInterruptedError,
    TXNotAvailableError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.execute import RestoreOptions, RestoreResult, restore
from pyrep.restore.plan import chain_head
from pyrep.restore.proof import check_mode
from pyrep.restore.source import Source, list_files
from pyrep.storage.base import ReplicaClient
from pyrep.verify.chain import Verification, file_name, verify_files
from pyrep.verify.findings import Finding, Severity
from pyrep.verify.replay import FilePages

__all__ = ["Known", "VerifyOptions", "verify_replica"]

_LOOKS = 5  # a finding counts when two looks in a row have it
_PAUSE_SECONDS = 1.0
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Known:
    """Hold what the storage confirmed: the newest TXID up to which all is there, and files.

    ``awaited``: a daemon has the database and nothing was stored yet.
    """

    durable_txid: TXID = TXID(0)
    files: Sequence[FileInfo] = ()
    awaited: bool = False


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """Say how thorough a verification is.

    ``integrity_check`` other than ``none`` restores the newest state below ``scratch`` (a
    directory; None: the system's) and lets SQLite check it, ``quick`` or ``full``.
    ``known`` returns what the storage is known to hold by now; it is asked around each listing.
    ``on_bytes`` is told how many bytes arrived; setting ``cancel`` ends it with an error.
    """

    integrity_check: str = "none"
    scratch: Path | None = None
    known: Callable[[], Known] = Known
    on_bytes: Callable[[int], None] = lambda _: None
    cancel: threading.Event = field(default_factory=threading.Event)
    clock: Clock = field(default_factory=SystemClock)


def verify_replica(client: ReplicaClient, options: VerifyOptions | None = None) -> Verification:
    """Read everything on a replica and prove that it is whole.

    Files come and go while a daemon works.  So what looks wrong is looked at again, from a new
    listing, and counts only if it is found twice in a row; what the last look alone has is a
    warning.

    :raises ReplicaError: the storage failed
    :raises ShutdownInterruptedError: ``options.cancel`` was set
    """
    options = options or VerifyOptions()
    check_mode(options.integrity_check)
    source = Source(client, options.clock, options.cancel, options.on_bytes)
    found = _look(source, options)
    for _ in range(_LOOKS - 1):
        if not found.findings:
            break
        before = found.findings
        if options.clock.wait(options.cancel, _PAUSE_SECONDS):
            raise ShutdownInterruptedError(f"{client.url}: verification was interrupted")
        found = _look(source, options)
        if set(before).issuperset(found.findings):
            break
    else:
        found = replace(
            found, findings=tuple(f if f in before else _seen_once(f) for f in found.findings)
        )
    if options.integrity_check != "none" and found.txid:
        found = _restored(client, found, options)
    return found


def _seen_once(finding: Finding) -> Finding:
    text = f"{finding.text}; no other look saw it, so files may have come or gone meanwhile"
    return replace(finding, text=text, severity=Severity.WARNING)


def _look(source: Source, options: VerifyOptions) -> Verification:
    """Verify what one listing shows, and compare it with what is known to be there.

    What is known is asked before and after: a file is known once it is stored and forgotten
    before it is deleted, so one that is known both times was there between them.
    """
    before = options.known()
    listing = list_files(source.client)
    after = options.known()
    if before.awaited and not listing:
        text = "nothing was stored yet"
        empty = verify_files((), lambda info: _read(source, info))
        return replace(empty, findings=(Finding("empty", "", text, Severity.WARNING),))
    found = verify_files(listing, lambda info: _read(source, info))
    found = _without_deleted(source, options, listing, found)
    lost = _lost(listing, set(before.files).intersection(after.files))
    durable = min(before.durable_txid, after.durable_txid)
    if found.txid < durable and found.ok:
        text = f"the files lead to txid {found.txid}, but {durable} was stored here"
        lost.append(Finding("behind", "", text))
    return replace(found, findings=(*found.findings, *lost))


def _without_deleted(
    source: Source, options: VerifyOptions, listing: Iterable[FileInfo], found: Verification
) -> Verification:
    """Leave out that files could not be read which are listed no more, if others lead as far."""
    unreadable = {finding.file for finding in found.findings if finding.kind == "unreadable"}
    if not unreadable or found.txid < chain_head(listing):
        return found
    there = {file_name(info) for info in (*list_files(source.client), *options.known().files)}
    deleted = unreadable - there
    held = [info for info in listing if file_name(info) not in deleted]
    return replace(
        found,
        files=len(held),
        bytes=sum(info.size for info in held),
        findings=tuple(f for f in found.findings if f.file not in deleted),
    )


def _lost(listing: Iterable[FileInfo], known: Iterable[FileInfo]) -> list[Finding]:
    """Find the files that the storage confirmed and does not list, or lists with another size."""
    sizes = {(info.level, info.name): info.size for info in listing}
    found = []
    for info in known:
        size = sizes.get((info.level, info.name))
        if size is None:
            found.append(Finding("lost", file_name(info), "it was stored and is not there"))
        elif size != info.size:
            text = f"it was stored with {info.size} bytes and has {size}"
            found.append(Finding("lost", file_name(info), text))
    return found


def _read(source: Source, info: FileInfo) -> FilePages:
    """Decode a file to its end and verify it by itself."""
    source.check_size(info)
    with source.open(info) as stream:
        header, pgnos, crcs = ltxio.page_crcs(stream)
        if stream.read(1):
            raise LTXCorruptError("bytes follow the end of the file")
    return FilePages(header, pgnos, crcs)


def _restored(client: ReplicaClient, found: Verification, options: VerifyOptions) -> Verification:
    """Restore the newest state that was found, as an operator would, and remove it again.

    :raises PyrepError: this host cannot do it (no room): that says nothing of a sound replica
    """
    try:
        result = _restore(client, found.txid, options)
    except (LTXError, TXNotAvailableError, DatabaseError) as error:
        text = f"txid {found.txid} cannot be restored: {error}"
    except (ReplicaError, ShutdownInterruptedError):
        raise
    except PyrepError:
        if found.ok:
            raise
        return found
    else:
        if result.txid > found.txid or result.database_checksum == found.checksum:
            return found
        text = f"the restored txid {result.txid} has the database checksum "
        text += f"{result.database_checksum:016x}, the files lead to {found.checksum:016x}"
    return replace(found, findings=(*found.findings, Finding("restore", "", text)))


def _restore(client: ReplicaClient, txid: TXID, options: VerifyOptions) -> RestoreResult:
    """Restore a TXID, or the newest if that one was merged with later ones meanwhile."""
    scratch = options.scratch or Path(tempfile.gettempdir())
    output = scratch / f"pyrep-verify-{os.getpid()}-{next(_numbers)}.db"
    wanted = RestoreOptions(
        txid=txid,
        integrity_check=options.integrity_check,
        on_page_crcs=lambda _first, _crcs: None,
        cancel=options.cancel,
        clock=options.clock,
    )
    try:
        try:
            return restore(client, output, wanted)
        except TXNotAvailableError:
            return restore(client, output, replace(wanted, txid=None))
    finally:
        for path in (output, output.with_name(f"{output.name}.bad")):
            osfs.unlink("verify.unlink", path, missing_ok=True)
