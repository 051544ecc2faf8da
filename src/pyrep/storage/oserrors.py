"""The system's errors as ours: temporary or permanent, with what was done to which path."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from pyrep.errors import ReplicaError, ReplicaPermanentError, ReplicaTemporaryError

__all__ = ["os_errors", "translate_os_error"]

_PERMANENT = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EFBIG,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
_RIGHTS = "Let the user that runs pyrep read, write and search the replica's directories."
_NOT_A_DIRECTORY = "Move the file away that stands where the replica needs a directory."
_DISK = "Check the disk, and the mount if it is a network file system."
_HINTS = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "Mount the replica's file system writable.",
    errno.ENOSPC: "Free space or inodes on the replica's file system.",
    errno.EDQUOT: "Free space or raise the quota of the user that runs pyrep.",
    errno.ENAMETOOLONG: "A name may have 255 bytes, a whole path 4095: use a shorter replica path.",
    errno.ENOTDIR: _NOT_A_DIRECTORY,
    errno.EEXIST: _NOT_A_DIRECTORY,
    errno.EFBIG: "Raise the limit of the file size (ulimit -f) or use another file system.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
}


@contextlib.contextmanager
def os_errors(action: str, path: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into the error that :func:`translate_os_error` makes."""
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, action, path) from error


def translate_os_error(error: OSError, action: str, path: str) -> ReplicaError:
    """Return our error for the system's: "<path>: <action> failed: <reason>", with a hint.

    What is not known to stay is temporary: a full disk, a lost mount, too many open files.
    """
    code = error.errno or 0
    kind = ReplicaPermanentError if code in _PERMANENT else ReplicaTemporaryError
    reason = (error.strerror or str(error)).lower()
    return kind(f"{path}: {action} failed: {reason}", hint=_HINTS.get(code, ""))
