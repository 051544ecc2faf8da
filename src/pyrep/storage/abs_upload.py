"""Writing a blob: in one request, or in blocks that are put together at the end."""

from __future__ import annotations

import base64
import hashlib
import random
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future

from pyrep.errors import ReplicaExistsError, ReplicaPermanentError, ReplicaTemporaryError
from pyrep.storage.abs_requests import METADATA, ABSRequests, error_code, server_error
from pyrep.storage.checks import IncomingFile
from pyrep.storage.http import format_time
from pyrep.storage.parts import MAX_PARTS, file_parts, part_sizes
from pyrep.storage.retry import RetryPolicy

__all__ = ["BLOCK_SIZE", "upload"]

BLOCK_SIZE = 8 << 20
_IN_FLIGHT = 32 << 20
_NONE_THERE = {"if-none-match": "*"}
_TYPE = "application/octet-stream"
_POLICY = RetryPolicy(attempts=4, base=0.2)
_NOT_FOUND = 404


def upload(requests: ABSRequests, key: str, incoming: IncomingFile, *, create_only: bool) -> None:
    """Store all that ``incoming`` gives under ``key``; nothing is there before all of it is.

    :raises ReplicaExistsError: ``create_only`` and there is a blob of that name
    """
    headers = {f"x-ms-meta-{METADATA}": format_time(incoming.timestamp_ms)}
    if create_only:
        headers |= _NONE_THERE
    parts = file_parts(incoming, part_sizes(BLOCK_SIZE, incoming.expected))
    first = next(parts)
    second = next(parts, b"")
    if second:
        _Blocks(requests, key).run(headers, first, second, parts)
        return
    headers |= {"x-ms-blob-type": "BlockBlob", "content-type": _TYPE, "content-md5": _md5(first)}
    requests.request(
        "write", requests.where(key), "PUT", requests.path(key), headers=headers, body=first
    )


class _Blocks:
    """Write one blob in blocks, several at a time, each tried again by itself.

    Blocks that are never put together cost nothing much: the storage drops them after a week, or
    when the blob is written.  Their ids are random, so that writers cannot mix theirs.
    """

    def __init__(self, requests: ABSRequests, key: str) -> None:
        self._requests = requests
        self._where = requests.where(key)
        self._path = requests.path(key)
        self._tag = secrets.token_hex(8)
        self._ids: list[str] = []
        self._sent: deque[Future[None]] = deque()
        self._stop = threading.Event()

    def run(
        self, headers: Mapping[str, str], first: bytes, second: bytes, others: Iterator[bytes]
    ) -> None:
        """Send all blocks and put the blob together; on any failure there is no blob."""
        if "if-none-match" in headers and self._is_there():
            raise self._exists()  # before the work; the end asks again
        try:
            for part in (first, second):
                self._send(part)
            del first, second
            for part in others:
                self._send(part)
            self._take(0)
        except BaseException:
            self._stop.set()
            for future in self._sent:
                future.cancel()
            for future in self._sent:
                if not future.cancelled():
                    future.exception()
            raise
        self._commit(headers)

    def _send(self, part: bytes) -> None:
        if len(self._ids) >= MAX_PARTS:
            raise ReplicaPermanentError(f"{self._where}: more than {MAX_PARTS} blocks")
        name = f"{self._tag}{len(self._ids):08d}"
        block_id = base64.b64encode(name.encode()).decode()
        self._ids.append(block_id)
        workers = self._requests.session.workers()
        self._sent.append(workers.submit(self._put_block, block_id, part))
        self._take(max(1, _IN_FLIGHT // len(part)) - 1)

    def _take(self, left: int) -> None:
        """Wait until no more than ``left`` blocks are on their way."""
        while len(self._sent) > left:
            self._sent.popleft().result()

    def _put_block(self, block_id: str, part: bytes) -> None:
        query = {"comp": "block", "blockid": block_id}
        headers = {"content-md5": _md5(part)}
        rng, failures = random.Random(), 0
        while True:
            try:
                self._requests.request(
                    "write", self._where, "PUT", self._path, query=query, headers=headers, body=part
                )
                return
            except ReplicaTemporaryError:
                failures += 1
                delay = _POLICY.delay(failures, rng)
                clock = self._requests.session.budget.clock
                if failures >= _POLICY.attempts or clock.wait(self._stop, delay):
                    raise

    def _commit(self, headers: Mapping[str, str]) -> None:
        latest = "".join(f"<Latest>{block_id}</Latest>" for block_id in self._ids)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{latest}</BlockList>'.encode()
        sent = {**headers, "x-ms-blob-content-type": _TYPE, "content-md5": _md5(body)}
        sent["content-type"] = "application/xml"
        answer = self._requests.request(
            "write",
            self._where,
            "PUT",
            self._path,
            query={"comp": "blocklist"},
            headers=sent,
            body=body,
            accept=(400,),
        )
        if answer.status != 400:
            return
        # Another writer that was put together meanwhile has swept our blocks away.
        swept = error_code(answer) == "InvalidBlockList" and "if-none-match" in headers
        raise (
            self._exists()
            if swept and self._is_there()
            else server_error(self._where, "write", answer)
        )

    def _is_there(self) -> bool:
        answer = self._requests.request(
            "write", self._where, "HEAD", self._path, accept=(_NOT_FOUND,)
        )
        return answer.status != _NOT_FOUND

    def _exists(self) -> ReplicaExistsError:
        return ReplicaExistsError(f"{self._where}: the object is already there")


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
