"""Writing an object: in one request, or in parts with memory that does not grow with its size."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future

from pyrep.errors import (
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.storage.checks import IncomingFile
from pyrep.storage.http import unreadable
from pyrep.storage.parts import MAX_PARTS, file_parts, part_sizes
from pyrep.storage.retry import RetryPolicy
from pyrep.storage.s3_bucket import Answer, S3Bucket
from pyrep.storage.s3_errors import is_unsupported
from pyrep.storage.s3_xml import complete_document, parse_completion, parse_upload_id

__all__ = ["upload"]

log = logging.getLogger(__name__)

_IN_FLIGHT = 32 << 20
_NONE_THERE = {"if-none-match": "*"}
_TYPE = {"content-type": "application/octet-stream"}
_PART_POLICY = RetryPolicy(attempts=4, base=0.2)


def upload(
    bucket: S3Bucket,
    key: str,
    incoming: IncomingFile,
    metadata: Mapping[str, str],
    *,
    create_only: bool,
) -> None:
    """Store all that ``incoming`` gives under ``key``; nothing is there before all of it is.

    :raises ReplicaExistsError: ``create_only`` and there is an object of that name
    """
    settings = bucket.settings
    headers = {**_TYPE, **settings.write_headers, **settings.key_headers, **metadata}
    parts = file_parts(incoming, part_sizes(settings.part_size, incoming.expected))
    first = next(parts)
    second = next(parts, b"")
    if second:
        every = _one_by_one([first, second], parts)
        del first, second  # held by nobody but the request that sends them
        _Multipart(bucket, key, headers, create_only).run(every)
    elif create_only:
        _create(bucket, key, headers, first)
    else:
        _put(bucket, key, headers, first)


def _one_by_one(head: list[bytes], others: Iterator[bytes]) -> Iterator[bytes]:
    """Give the parts that were read already, then the others, and keep none."""
    while head:
        yield head.pop(0)
    yield from others


def _put(
    bucket: S3Bucket,
    key: str,
    headers: Mapping[str, str],
    body: bytes,
    accept: tuple[int, ...] = (),
) -> Answer:
    answer = bucket.request("write", "PUT", key, headers=headers, body=body, accept=accept)
    if answer.status == 200 and not answer.headers.get("etag"):
        raise unreadable(bucket.where(key), "write", "it has no ETag")
    return answer


def _create(bucket: S3Bucket, key: str, headers: Mapping[str, str], body: bytes) -> None:
    """Write if there is no such object, in one step where the server knows how."""
    if not bucket.facts.conditional_put:
        _look_first(bucket, key)
    if bucket.facts.conditional_put is False:
        _put(bucket, key, headers, body)
        return
    conditional = {**headers, **_NONE_THERE}
    answer = _put(bucket, key, conditional, body, accept=(412, 501))
    if answer.status == 412:
        bucket.facts.conditional_put = True
        raise _exists(bucket, key)
    if is_unsupported(answer.status, answer.error):
        _no_conditions(bucket)
        _put(bucket, key, headers, body)
    elif answer.status == 501:
        raise bucket.failure("write", key, answer.status, answer.error)
    elif bucket.facts.conditional_put is None:
        _probe(bucket, key, conditional, body)


def _probe(bucket: S3Bucket, key: str, conditional: Mapping[str, str], body: bytes) -> None:
    """Find out whether the server minds the condition, with the object that was just written.

    The same bytes under the same name do no harm where it does not.
    """
    try:
        answer = _put(bucket, key, conditional, body, accept=(412,))
    except ReplicaTemporaryError as error:
        log.debug("create-only probe failed: object=%s error=%s", bucket.where(key), error)
        return  # the next write asks again
    if answer.status == 412:
        bucket.facts.conditional_put = True
    else:
        _no_conditions(bucket)


def _no_conditions(bucket: S3Bucket) -> None:
    if bucket.facts.conditional_put is not False:
        log.warning(
            "storage knows no create-only writes: fencing is best effort",
            extra={"replica": bucket.where()},
        )
    bucket.facts.conditional_put = False


def _look_first(bucket: S3Bucket, key: str) -> None:
    if bucket.head("write", key) is not None:
        raise _exists(bucket, key)


def _exists(bucket: S3Bucket, key: str) -> ReplicaExistsError:
    return ReplicaExistsError(f"{bucket.where(key)}: the object is already there")


class _Multipart:
    """Write one object in parts, several at a time, each tried again by itself."""

    def __init__(
        self, bucket: S3Bucket, key: str, headers: Mapping[str, str], create_only: bool
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._create_only = create_only
        self._headers = headers
        self._upload_id = ""
        self._etags: list[str] = []
        self._sent: deque[Future[str]] = deque()
        self._stop = threading.Event()

    def run(self, parts: Iterator[bytes]) -> None:
        """Send all parts and put the object together; on any failure nothing is left."""
        if self._create_only:
            _look_first(self._bucket, self._key)  # before the work; again before the end
        self._begin()
        try:
            for part in parts:
                self._send(part)
            self._take(0)
            self._complete()
        except BaseException:
            self._abort()
            raise

    def _begin(self) -> None:
        answer = self._bucket.request(
            "write", "POST", self._key, query=(("uploads", ""),), headers=self._headers
        )
        try:
            self._upload_id = parse_upload_id(answer.body)
        except ValueError as error:
            raise unreadable(self._bucket.where(self._key), "write", error) from error

    def _send(self, part: bytes) -> None:
        number = len(self._etags) + len(self._sent) + 1
        if number > MAX_PARTS:
            raise ReplicaPermanentError(
                f"{self._bucket.where(self._key)}: more than {MAX_PARTS} parts",
                hint="Set a larger part-size.",
            )
        workers = self._bucket.session.workers()
        self._sent.append(workers.submit(self._put_part, number, part))
        self._take(max(1, min(self._bucket.settings.concurrency, _IN_FLIGHT // len(part))) - 1)

    def _take(self, left: int) -> None:
        """Wait until no more than ``left`` parts are on their way."""
        while len(self._sent) > left:
            self._etags.append(self._sent.popleft().result())

    def _put_part(self, number: int, part: bytes) -> str:
        query = (("partNumber", str(number)), ("uploadId", self._upload_id))
        rng, failures = random.Random(), 0
        while True:
            try:
                answer = self._bucket.request(
                    "write",
                    "PUT",
                    self._key,
                    query=query,
                    headers=self._bucket.settings.key_headers,
                    body=part,
                )
            except ReplicaTemporaryError:
                failures += 1
                delay = _PART_POLICY.delay(failures, rng)
                clock = self._bucket.session.budget.clock
                if failures >= _PART_POLICY.attempts or clock.wait(self._stop, delay):
                    raise
                continue
            etag = answer.headers.get("etag", "")
            if not etag:
                raise unreadable(self._bucket.where(self._key), "write", "it has no ETag")
            return etag

    def _complete(self) -> None:
        bucket = self._bucket
        condition: Mapping[str, str] = {}
        if self._create_only:
            _look_first(bucket, self._key)
            # Not known yet is no reason to leave it out: between the look and this is a moment.
            condition = {} if bucket.facts.conditional_put is False else _NONE_THERE
        answer = self._ask_to_complete(condition)
        if condition and is_unsupported(answer.status, answer.error):
            _no_conditions(bucket)
            answer = self._ask_to_complete({})
        if answer.status == 412:
            raise _exists(bucket, self._key)
        if answer.status // 100 != 2:
            raise bucket.failure("write", self._key, answer.status, answer.error)
        try:
            error = parse_completion(answer.body)
        except ValueError as unread:
            raise unreadable(bucket.where(self._key), "write", unread) from unread
        if error is not None:  # a server may find out after it has said 200
            raise bucket.failure("write", self._key, 500, error)

    def _ask_to_complete(self, condition: Mapping[str, str]) -> Answer:
        return self._bucket.request(
            "write",
            "POST",
            self._key,
            query=(("uploadId", self._upload_id),),
            headers={**self._bucket.settings.key_headers, **condition},
            body=complete_document(self._etags),
            accept=(405, 412, 501),
        )

    def _abort(self) -> None:
        """Throw the parts away; what cannot be is told, since it costs money until it is."""
        self._stop.set()
        for future in self._sent:
            future.cancel()
        for future in self._sent:
            if not future.cancelled():
                future.exception()
        try:
            self._bucket.request(
                "abort the upload of",
                "DELETE",
                self._key,
                query=(("uploadId", self._upload_id),),
                accept=(404,),
                urgent=True,
            )
        except ReplicaError as error:
            log.warning(
                "parts of an unfinished upload are left; let a lifecycle rule remove them",
                extra={"replica": self._bucket.where(self._key), "error": str(error)},
            )
