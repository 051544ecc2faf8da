"""Turn errors of the operating system into errors that name the tenant and the remedy."""

from __future__ import annotations

import errno

from pyrep.config.expand import TenantSpec
from pyrep.errors import DatabaseError
from pyrep.tenant.capture import SpoolFullError

__all__ = ["explain"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(spec: TenantSpec, error: OSError) -> DatabaseError:
    """Return the error to raise for one that came while a tenant was worked on."""
    name, folder = str(spec.db_path), spec.state_path
    if error.errno in _NO_SPACE:
        return SpoolFullError(
            f"{name}: no space left to stage changes in {folder}",
            hint="Free space there; nothing is lost: pyrep compares every page afterwards.",
        )
    where = str(error.filename or "")
    reason = (error.strerror or str(error)).lower()
    if error.errno in _NOT_ALLOWED and not where.startswith(name):
        return DatabaseError(
            f"{name}: state directory {folder} cannot be written: {reason}",
            hint="Give the user that runs pyrep write access there, or set meta-dir to a folder "
            "in which it has it.",
        )
    return DatabaseError(f"{name}: {reason}{where and f' ({where})'}")
