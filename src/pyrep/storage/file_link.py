"""Give a staged file a second name on the replica instead of copying it.

A file and its name on the replica are then one: that is right only for a file that nobody writes
any more and nobody else can write, so anything in doubt is copied.  Of a large file this saves half
of the bytes, of a small one the making of an inode, which can cost more than all the rest: a file
system that looks for a free one passes over those that were freed a moment ago, one by one.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
from typing import BinaryIO

from pyrep import osfs
from pyrep.storage.file_sync import shared_sync

__all__ = ["StableFile", "link_file", "linkable", "seal"]

_log = logging.getLogger(__name__)

# What linkat() says where a second name is not to be had, and a copy will do.
_NOT_TO_BE_HAD = frozenset(
    {
        *(errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOENT),
        *(errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL),
    }
)


class StableFile(io.FileIO):
    """Read a file of ours that is never written again, so that a storage may keep it itself."""


def linkable(source: BinaryIO, folder: str, wanted: int | None) -> bool:
    """Return whether the file is ours alone and on the file system of ``folder``.

    All of its bytes must be ``wanted``.  (A tenant that owns the staged file could write what
    the replica holds.)  A folder that somebody removed is made again by who copies.
    """
    if not isinstance(source, StableFile):
        return False
    status = os.fstat(source.fileno())
    try:
        device = os.stat(folder).st_dev
    except FileNotFoundError:
        return False
    return (
        status.st_size == wanted
        and stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        and status.st_dev == device
    )


def seal(source: BinaryIO, mode: int, timestamp_ms: int) -> bool:
    """Give the open file its mode and time and make it durable; return whether that worked."""
    fd = source.fileno()
    try:
        osfs.chmod("file.chmod", fd, mode)
        osfs.utime_ns("file.utime", fd, timestamp_ms * 1_000_000)
        shared_sync(fd).sync(fd, lambda: osfs.fsync("file.fsync", fd))
    except OSError as error:
        name = os.readlink(f"/proc/self/fd/{fd}")
        _log.warning("staged files are copied from now on: path=%s error=%s", name, error)
        return False
    return True


def link_file(source: BinaryIO, target: str) -> bool:
    """Publish the file that is open under a free name; return False if it has to be copied.

    :raises FileExistsError: the name is taken
    """
    fd = source.fileno()
    try:
        osfs.link_fd("file.link", fd, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NOT_TO_BE_HAD:
            raise
        return False
    return True
