"""Whether a database may be attached: what it is, whose it is, where it lies."""

from __future__ import annotations

import os
from pathlib import Path

from pyrep.errors import DatabaseError, DatabaseNotReadyError
from pyrep.sqlite import REMOTE_FILE_SYSTEMS, Probe, file_system_type, probe

__all__ = ["check_openable"]


def check_openable(path: Path, *, same_host: bool) -> Probe:
    """Probe a database file and refuse one that must not be attached.

    :raises DatabaseNotReadyError: missing, empty, or shorter than its header says
    :raises DatabaseError: no database, not ours to open, or on a file system without locks
    """
    found = probe(path)
    if found.size == 0:
        raise DatabaseNotReadyError(
            f"{path}: is empty; it is replicated from its first write on",
        )
    if not found.is_database:
        raise DatabaseError(
            f"{path}: is not a SQLite database, or is encrypted",
            hint="Exclude it from the pattern, or replace it by a database.",
        )
    wal = path.with_name(path.name + "-wal")
    if found.size < found.page_count * found.page_size and not wal.exists():
        raise DatabaseNotReadyError(
            f"{path}: is shorter ({found.size} bytes) than its header says "
            f"({found.page_count} pages of {found.page_size} bytes): half copied or truncated",
            hint="Finish the copy or restore the file; pyrep looks again by itself.",
        )
    _check_owner(path, found)
    if not same_host:
        _check_file_system(path)
    return found


def _check_owner(path: Path, found: Probe) -> None:
    """Refuse if the -wal and -shm that we may create could not be written by the owner.

    Root's SQLite gives these files the database's owner; anybody else's creates them as its own,
    with the database's mode and its own group.
    """
    user = os.geteuid()
    if user in (0, found.uid):
        return
    everybody = found.mode & 0o006 == 0o006
    group = found.mode & 0o060 == 0o060 and _new_files_get_group(path, found.gid)
    if not (everybody or group):
        raise DatabaseError(
            f"{path}: belongs to user {found.uid}, who could not write the -wal and -shm files "
            f"that pyrep (user {user}) may have to create",
            hint="Run pyrep as root or as the owner, or give both a common group with write access "
            "(mode 0660, folder with the set-group-id bit).",
        )


def _new_files_get_group(path: Path, gid: int) -> bool:
    folder = os.stat(path.parent)
    return folder.st_gid == gid if folder.st_mode & 0o2000 else os.getegid() == gid


def _check_file_system(path: Path) -> None:
    kind = file_system_type(path)
    if kind in REMOTE_FILE_SYSTEMS or kind.startswith("fuse."):
        raise DatabaseError(
            f"{path}: lies on a {kind} file system, where locks and shared memory may not reach "
            "the application",
            hint="If every program that uses the database runs on this host, set same-host: true.",
        )
