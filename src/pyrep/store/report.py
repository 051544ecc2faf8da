"""Log a tenant's failures without flooding the log."""

from __future__ import annotations

import logging

from pyrep.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseNotReadyError,
    PyrepError,
    ReplicaError,
)
from pyrep.log import RateLimiter
from pyrep.store.entry import ManagedTenant

__all__ = [
    "LIST",
    "RETENTION",
    "SNAPSHOT",
    "STREAM",
    "SYNC",
    "UPLOAD",
    "complain",
    "recovered",
]

SYNC = "sync"
UPLOAD = "upload"
LIST = "list"
SNAPSHOT = "snapshot"
RETENTION = "retention"
STREAM = "stream"
_RECOVERED = {
    SYNC: "database can be synced again",
    UPLOAD: "replica accepts files again",
    LIST: "replica can be listed again",
    STREAM: "replica took what the spool cannot hold",
}

_log = logging.getLogger(__name__)


def complain(limiter: RateLimiter, tenant: ManagedTenant, op: str, error: Exception) -> None:
    """Log a failure of ``op``; of a tenant's failures in a row, one every 30 seconds.

    What only waits (busy, not ready) is a warning, and that its file is gone is none: it was
    deleted, and is let go of as soon as that is noticed.  An exception that is none of ours is
    logged with its traceback.
    """
    count = limiter.failed((tenant.name, op))
    if not count:
        return
    extra: dict[str, object] = {"db": tenant.name, "op": op, "error": str(error)}
    if isinstance(error, ReplicaError):
        extra["replica"] = tenant.status().replica
    if count > 1:
        extra["failures"] = count
    if not isinstance(error, PyrepError):
        _log.error("internal error", extra=extra, exc_info=error)
        return
    if error.hint:
        extra["hint"] = error.hint
    if tenant.deleted and not isinstance(error, ReplicaError):
        _log.info("database is gone", extra=extra)
        return
    waits = isinstance(error, DatabaseBusyError | DatabaseNotReadyError)
    _log.log(logging.WARNING if waits else logging.ERROR, _failure(op, error), extra=extra)


def recovered(limiter: RateLimiter, tenant: ManagedTenant, op: str) -> None:
    """Log that ``op`` works again, if its failure was logged."""
    if limiter.recovered((tenant.name, op)):
        _log.info(_RECOVERED[op], extra={"db": tenant.name, "op": op})


def _failure(op: str, error: PyrepError) -> str:
    """Return what failed; before a replica is listed the database itself may be in the way."""
    if op != LIST:
        return f"{op} failed"
    if isinstance(error, DatabaseError):
        return "database cannot be replicated yet"
    return "listing the replica failed"
