"""Writing an object of Google Cloud Storage: in one request, or resumable, piece by piece.

Both come into being with the last byte, and both carry an MD5 that the storage compares.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import random
import re
import secrets
from collections.abc import Iterator, Mapping
from itertools import repeat
from urllib.parse import quote, urlencode

from pyrep.errors import ReplicaError, ReplicaExistsError, ReplicaTemporaryError
from pyrep.storage.checks import IncomingFile
from pyrep.storage.gcs_requests import GCSRequests
from pyrep.storage.http import Answer, format_time, unreadable
from pyrep.storage.parts import file_parts
from pyrep.storage.retry import RetryPolicy

__all__ = ["METADATA", "PART_SIZE", "upload"]

log = logging.getLogger(__name__)

METADATA = "litestream-timestamp"
PART_SIZE = 8 << 20  # the storage wants a multiple of 256 KiB
_TYPE = "application/octet-stream"
_POLICY = RetryPolicy(attempts=4, base=0.2)
_GONE = (404, 410)
_MORE = 308  # what was sent is kept, and more may come
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)\Z", re.ASCII)


def upload(requests: GCSRequests, key: str, incoming: IncomingFile, *, create_only: bool) -> None:
    """Store all that ``incoming`` gives under ``key``; nothing is there before all of it is.

    :raises ReplicaExistsError: ``create_only`` and there is an object of that name
    """
    resource: dict[str, object] = {
        "name": key,
        "contentType": _TYPE,
        "metadata": {METADATA: format_time(incoming.timestamp_ms)},
    }
    query = {"ifGenerationMatch": "0"} if create_only else {}
    parts = file_parts(incoming, repeat(PART_SIZE))
    first = next(parts)
    second = next(parts, b"")
    if second:
        _Resumable(requests, key).run(resource, query, first, second, parts)
        return
    resource["md5Hash"] = _base64(_md5(first).digest())
    boundary = secrets.token_hex(16)
    body = b"".join(
        (
            f"--{boundary}\r\ncontent-type: application/json; charset=UTF-8\r\n\r\n".encode(),
            json.dumps(resource).encode(),
            f"\r\n--{boundary}\r\ncontent-type: {_TYPE}\r\n\r\n".encode(),
            first,
            f"\r\n--{boundary}--\r\n".encode(),
        )
    )
    url = f"{requests.upload_path}?{urlencode({'uploadType': 'multipart', **query})}"
    headers = {"content-type": f"multipart/related; boundary={boundary}"}
    requests.request("write", requests.where(key), "POST", url, headers=headers, body=body)


class _Resumable:
    """Write one object piece by piece; a piece that was lost half-way is gone on with."""

    def __init__(self, requests: GCSRequests, key: str) -> None:
        self._requests = requests
        self._where = requests.where(key)
        self._session_url = ""
        self._sent = 0
        self._md5 = _md5()

    def run(
        self,
        resource: Mapping[str, object],
        query: Mapping[str, str],
        first: bytes,
        second: bytes,
        others: Iterator[bytes],
    ) -> None:
        """Send everything; on any failure nothing is left."""
        if query:
            self._look_first(str(resource["name"]))  # before the work; again before the end
        self._begin(resource, query)
        try:
            self._send(first, last=False)
            del first
            for part in others:
                self._send(second, last=False)
                second = part
            if query:
                self._look_first(str(resource["name"]))
            self._send(second, last=True)
        except BaseException:
            self._abort()
            raise

    def _look_first(self, key: str) -> None:
        """Refuse a name that is taken; the storage itself decides between writers at the end."""
        url = f"{self._requests.path}/{quote(key, safe='')}?fields=size"
        answer = self._requests.request("write", self._where, "GET", url, accept=(404,))
        if answer.status != 404:
            raise ReplicaExistsError(f"{self._where}: the object is already there")

    def _begin(self, resource: Mapping[str, object], query: Mapping[str, str]) -> None:
        url = f"{self._requests.upload_path}?{urlencode({'uploadType': 'resumable', **query})}"
        headers = {"content-type": "application/json; charset=UTF-8"}
        headers["x-upload-content-type"] = _TYPE
        body = json.dumps(resource).encode()
        answer = self._requests.request(
            "write", self._where, "POST", url, headers=headers, body=body
        )
        self._session_url = answer.headers.get("location", "")
        if "://" not in self._session_url:
            raise unreadable(self._where, "write", "it names no place for the upload")

    def _send(self, part: bytes, *, last: bool) -> None:
        """Send one piece; after a failure ask how much of it arrived, and send the rest."""
        self._md5.update(part)
        start, end = self._sent, self._sent + len(part)
        rng, failures, unsure = random.Random(), 0, False
        while self._sent < end:
            before = self._sent
            try:
                rest = memoryview(part)[self._sent - start :]
                answer = self._ask() if unsure else self._put(bytes(rest), end if last else None)
                self._take(answer, start, end, last=last)
                unsure = False
            except ReplicaTemporaryError:
                unsure = True
                failures += 1
                budget, delay = self._requests.session.budget, _POLICY.delay(failures, rng)
                if failures >= _POLICY.attempts or budget.clock.wait(budget.stop, delay):
                    raise
            else:
                failures = 0 if self._sent > before else failures

    def _put(self, data: bytes, total: int | None) -> Answer:
        span = f"bytes {self._sent}-{self._sent + len(data) - 1}/"
        headers = {"content-range": f"{span}{'*' if total is None else total}"}
        if total is not None:
            headers["x-goog-hash"] = f"md5={_base64(self._md5.digest())}"
        return self._request(headers, data)

    def _ask(self) -> Answer:
        """Ask how far the upload has come."""
        return self._request({"content-range": "bytes */*"}, b"")

    def _request(self, headers: Mapping[str, str], body: bytes) -> Answer:
        answer = self._requests.request(
            "write",
            self._where,
            "PUT",
            self._session_url,
            headers=headers,
            body=body,
            accept=(_MORE, *_GONE),
        )
        if answer.status in _GONE:
            raise ReplicaTemporaryError(f"{self._where}: cannot write: the upload was thrown away")
        return answer

    def _take(self, answer: Answer, start: int, end: int, *, last: bool) -> None:
        """Learn from an answer how much the storage has."""
        if answer.status != _MORE:
            if not last:
                raise unreadable(self._where, "write", "it ends an upload that goes on")
            self._sent = end
            return
        match = _RANGE.match(answer.headers.get("range", ""))
        kept = int(match[1]) + 1 if match else 0
        if not start <= kept <= end or (last and kept == end):
            raise unreadable(self._where, "write", f"it keeps {kept} bytes of {end}")
        self._sent = kept

    def _abort(self) -> None:
        """Throw away what was sent; the storage does so itself after a week, at no cost."""
        try:
            self._requests.request(
                "abort the upload of",
                self._where,
                "DELETE",
                self._session_url,
                accept=(404, 410, 499),
            )
        except ReplicaError as error:
            log.debug("upload not aborted: object=%s error=%s", self._where, error)


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
