"""From what a server says to our errors: temporary, permanent, not found, exists."""

from __future__ import annotations

from pyrep.errors import (
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
    ReplicaThrottledError,
)
from pyrep.storage.budget import THROTTLING
from pyrep.storage.s3_xml import ServerError

__all__ = ["is_unsupported", "refused", "server_error"]

# Refusals (4xx) after which the same request may succeed.
_TEMPORARY_CODES = frozenset(
    (
        *("BadDigest", "ConditionalRequestConflict", "ExpiredToken", "IncompleteBody"),
        *("InternalError", "OperationAborted", "RequestTimeout"),
        *("TokenRefreshRequired", "XAmzContentSHA256Mismatch"),
    )
)
_TEMPORARY_STATUS = frozenset((307, 408, 409, 425))
# What says that there are too many requests, with whatever status.
_THROTTLING_CODES = frozenset(
    (
        *("BandwidthLimitExceeded", "RequestLimitExceeded", "ServiceUnavailable", "SlowDown"),
        *("Throttling", "ThrottlingException", "TooManyRequests"),
    )
)
_NOT_IMPLEMENTED = 501
_HINTS = {
    "NoSuchBucket": "Create the bucket, or correct its name.",
    "RequestTimeTooSkewed": "Set this machine's clock right.",
    "AuthorizationHeaderMalformed": "Set the replica's region to that of the bucket.",
    "PermanentRedirect": "Set the replica's region or endpoint to that of the bucket.",
    "KMS.NotFoundException": "Correct sse-kms-key-id.",
}
_ACCESS_HINT = "Check the access key, its secret, and what it may do in the bucket."


def is_unsupported(status: int, error: ServerError) -> bool:
    """Tell whether an answer means that the server does not know what was asked for."""
    return status in (405, _NOT_IMPLEMENTED) or error.code in ("NotImplemented", "MethodNotAllowed")


def server_error(where: str, op: str, status: int, error: ServerError) -> ReplicaError:
    """Return the error for an answer that is no success; ``where`` names the object or bucket."""
    reason = f"{status} {error}" if error.code or error.message else f"{status}"
    message = f"{where}: cannot {op}: the storage answered {reason}"
    if status == 412:
        return ReplicaExistsError(f"{where}: the object is already there")
    if status in THROTTLING or error.code in _THROTTLING_CODES:
        return ReplicaThrottledError(message)
    temporary = status >= 500 and status != _NOT_IMPLEMENTED
    if status == 400 and not error.code:
        temporary = True  # as an expired token is told where the answer has no body (HEAD)
    if temporary or status in _TEMPORARY_STATUS or error.code in _TEMPORARY_CODES:
        return ReplicaTemporaryError(message)
    hint = _HINTS.get(error.code, _ACCESS_HINT if status in (401, 403) else "")
    return ReplicaPermanentError(message, hint=hint)


def refused(where: str, op: str, error: ServerError) -> ReplicaError:
    """Return the error for one object of a batch, which has a code and no status."""
    message = f"{where}: cannot {op}: the storage answered {error}"
    if error.code in _THROTTLING_CODES:
        return ReplicaThrottledError(message)
    kind = ReplicaTemporaryError if error.code in _TEMPORARY_CODES else ReplicaPermanentError
    return kind(message)
