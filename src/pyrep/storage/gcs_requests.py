"""The requests that pyrep makes of a bucket of Google Cloud Storage: failures classified."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from pyrep.errors import (
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
    ReplicaThrottledError,
)
from pyrep.storage.budget import THROTTLING
from pyrep.storage.gcs_session import GCSSession
from pyrep.storage.http import Answer, read_answer, short_text

__all__ = ["GCSRequests", "server_error"]

_TEMPORARY_STATUS = frozenset((408, 409, 425))
_TEMPORARY_REASONS = frozenset(("rateLimitExceeded", "userRateLimitExceeded", "backendError"))
_ACCESS_HINT = "Check which account the credentials are of, and what it may do in the bucket."
_BUCKET_HINT = "Create the bucket, or correct its name."


class GCSRequests:
    """Ask one bucket; ``path`` is that of its objects, ``upload_path`` where uploads go."""

    def __init__(self, bucket: str, session: GCSSession) -> None:
        self.session = session
        self.path = f"/storage/v1/b/{quote(bucket, safe='')}/o"
        self.upload_path = f"/upload{self.path}"
        self._bucket = bucket

    def where(self, key: str = "") -> str:
        """Return the name of an object, or of the bucket, for messages."""
        return f"gs://{self._bucket}/{key}" if key else f"gs://{self._bucket}"

    def request(
        self,
        op: str,
        where: str,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        accept: Sequence[int] = (),
    ) -> Answer:
        """Send a request and read its answer: a success (2xx) or a status in ``accept``.

        :raises ReplicaError: any other answer, or none
        """
        response = self.session.send(op, where, method, url, headers or {}, body)
        answer = read_answer(response, where, op)
        if answer.status // 100 == 2 or answer.status in accept:
            return answer
        raise server_error(where, op, answer)


def server_error(where: str, op: str, answer: Answer) -> ReplicaError:
    """Return the error for an answer that is no success; ``where`` names the object or bucket."""
    reason, text = _explanation(answer.body)
    said = f"{answer.status} {text}".rstrip()
    if answer.status == 412:
        return ReplicaExistsError(f"{where}: the object is already there")
    message = f"{where}: cannot {op}: the storage answered {said}"
    if answer.status in THROTTLING:
        return ReplicaThrottledError(message)
    temporary = answer.status >= 500 or answer.status in _TEMPORARY_STATUS
    if temporary or reason in _TEMPORARY_REASONS:
        return ReplicaTemporaryError(message)
    hint = _ACCESS_HINT if answer.status in (401, 403) else ""
    return ReplicaPermanentError(message, hint=_BUCKET_HINT if answer.status == 404 else hint)


def _explanation(body: bytes) -> tuple[str, str]:
    """Return the reason and the text of an error document; other bodies are text."""
    try:
        found = json.loads(body)["error"]
        if isinstance(found, str):  # as the token endpoint says it
            return found, short_text(found)
        reasons = found.get("errors") or [{}]
        return str(reasons[0].get("reason", "")), short_text(str(found.get("message", "")))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "", short_text(body.decode(errors="replace"))
