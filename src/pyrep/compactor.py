"""Merge the files of one level into the next one, through local temporary files.

An input is read from the staged file where that is still there, else downloaded once.  Page
blocks are copied as they are; every input is verified wholly while it is read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyrep import ltxio, osfs
from pyrep._ltx import HEADER_SIZE, Header
from pyrep.errors import (
    LTXCorruptError,
    LTXGapError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.plan import gaps
from pyrep.storage.base import ReplicaClient
from pyrep.storage.reread import reread
from pyrep.tenant.statedir import StateDir, create_file

__all__ = ["MAX_INPUTS", "compact", "inputs_for"]

MAX_INPUTS = 64  # descriptors are bounded; what is left comes at once after
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Input:
    info: FileInfo
    fd: int


def inputs_for(files: Iterable[FileInfo], level: int) -> list[FileInfo]:
    """Return the files of ``level - 1`` that ``level`` does not hold yet, oldest first.

    What lies below a hole of the level alone is passed over: another level holds it, or a
    snapshot that healed the replica.

    :raises LTXGapError: TXIDs that should come next are in no file of any level
    """
    everything = sorted(files)
    reached = max((i.max_txid for i in everything if i.level == level), default=TXID(0))
    source = [i for i in everything if i.level == level - 1 and i.max_txid > reached]
    if not source:
        return []
    first = source[0]
    if first.min_txid > reached + 1:
        _refuse_gap(everything, reached, first)
    chosen = [first]
    for info in source[1:]:
        if len(chosen) == MAX_INPUTS or info.min_txid > chosen[-1].max_txid + 1:
            break
        if info.max_txid > chosen[-1].max_txid:
            chosen.append(info)
    return chosen


def _refuse_gap(files: Sequence[FileInfo], reached: TXID, first: FileInfo) -> None:
    """Raise if a TXID between ``reached`` and ``first`` is in no file."""
    for hole in gaps(files):
        low, high = max(hole.have, reached) + 1, min(hole.next, first.min_txid) - 1
        if low <= high:
            raise LTXGapError(
                f"the replica lacks txids {TXID(low)} to {TXID(high)}",
                op="compact",
                level=first.level,
                min_txid=TXID(low),
                max_txid=TXID(high),
            )


def compact(
    client: ReplicaClient,
    folder: StateDir,
    inputs: Sequence[FileInfo],
    level: int,
    like: os.stat_result | None,
    *,
    zstd_level: int | None = None,
) -> FileInfo:
    """Merge ``inputs`` and store the result at ``level``; return what is there now.

    It is compressed with LZ4, or zstd where there is a ``zstd_level``.  A page size that changes
    among the inputs ends the merge before it.  An existing valid file of the same range counts
    as written.  A staged file that is damaged is deleted, and the replica's is taken.

    :raises LTXCorruptError: an input on the replica is damaged; ``path`` names it
    :raises LTXNotFoundError: an input is not on the replica any more
    :raises LTXGapError: the inputs do not follow each other
    :raises ReplicaError: the storage failed
    :raises OSError: the temporary files could not be written
    """

    def attempt() -> FileInfo:
        try:
            return _compact(client, base, inputs, level, like, zstd_level)
        except LTXCorruptError as error:
            if not _drop_staged(base, inputs, error.path):
                raise
        return _compact(client, base, inputs, level, like, zstd_level)

    with folder.base() as base:
        return reread(attempt)


def _compact(
    client: ReplicaClient,
    base: Path,
    inputs: Sequence[FileInfo],
    level: int,
    like: os.stat_result | None,
    zstd_level: int | None,
) -> FileInfo:
    with contextlib.ExitStack() as stack:
        opened = [
            _Input(info, stack.enter_context(_local(client, base, info, like))) for info in inputs
        ]
        merged = _one_page_size(opened)
        out = stack.enter_context(_scratch(base, f"level{level}", like))
        ltxio.merge(
            [item.fd for item in merged],
            out,
            op="compact",
            names=[item.info.name for item in merged],
            zstd_level=zstd_level,
        )
        low, high = merged[0].info.min_txid, merged[-1].info.max_txid
        with open(f"/proc/self/fd/{out}", "rb") as source:
            try:
                return client.write_ltx(level, low, high, source, create_only=True)
            except ReplicaExistsError:
                return _existing(client, FileInfo(level, low, high))


def _one_page_size(opened: Sequence[_Input]) -> list[_Input]:
    sizes = [_page_size(item) for item in opened]
    count = next((n for n, size in enumerate(sizes) if size != sizes[0]), len(sizes))
    return list(opened[:count])


def _page_size(item: _Input) -> int:
    try:
        return Header.parse(os.pread(item.fd, HEADER_SIZE, 0)).page_size
    except LTXCorruptError as error:
        raise LTXCorruptError(error.message, op="compact", path=item.info.name) from error


@contextlib.contextmanager
def _scratch(base: Path, name: str, like: os.stat_result | None) -> Iterator[int]:
    """Yield a new file without a name: it is gone with its descriptor, also after a kill."""
    with create_file(base, f"{name}.tmp", "compact", like) as fd:
        osfs.unlink("compact.unlink", base / f"{name}.tmp", missing_ok=True)
        yield fd


@contextlib.contextmanager
def _local(
    client: ReplicaClient, base: Path, info: FileInfo, like: os.stat_result | None
) -> Iterator[int]:
    """Yield a descriptor of the file: the staged one, or a copy of the replica's."""
    fd = -1 if info.level else _open_staged(base / info.name, info.size)
    if fd < 0:
        with _downloaded(client, base, info, like) as copy:
            yield copy
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _open_staged(path: Path, size: int) -> int:
    """Open a staged file, -1 if it is not there or not what was uploaded."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    if os.fstat(fd).st_size == size:
        return fd
    os.close(fd)
    return -1


@contextlib.contextmanager
def _downloaded(
    client: ReplicaClient, base: Path, info: FileInfo, like: os.stat_result | None
) -> Iterator[int]:
    with _scratch(base, f"level{info.level}-{info.name}", like) as fd:
        with client.open_ltx(info) as source:
            while chunk := source.read(_COPY_BYTES):
                osfs.write_all("compact.write", fd, chunk)
        yield fd


def _drop_staged(base: Path, inputs: Sequence[FileInfo], name: str) -> bool:
    """Delete the staged file of that name if an input was read from it; tell whether it was."""
    for info in inputs:
        if info.level or info.name != name:
            continue
        fd = _open_staged(base / name, info.size)
        if fd >= 0:
            os.close(fd)
            osfs.unlink("compact.unlink", base / name, missing_ok=True)
            return True
    return False


def _verify(client: ReplicaClient, info: FileInfo) -> None:
    with client.open_ltx(info) as source:
        ltxio.verify(source, name=info.name)


def _existing(client: ReplicaClient, wanted: FileInfo) -> FileInfo:
    for info in client.list_ltx(wanted.level, wanted.min_txid):
        if (info.min_txid, info.max_txid) == (wanted.min_txid, wanted.max_txid):
            try:
                reread(lambda info=info: _verify(client, info))  # type: ignore[misc]
            except LTXCorruptError as error:
                raise ReplicaPermanentError(
                    f"level {info.level} has a damaged file in the way: {error}",
                    hint="Move that file away; it is made again from the level below.",
                ) from error
            return info
    raise ReplicaTemporaryError(f"{wanted.name} was refused as existing and is not listed")
