"""The requests that pyrep makes of a bucket: answers checked, failures classified."""

from __future__ import annotations

import base64
import hashlib
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import urllib3

from pyrep.errors import (
    ReplicaError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
    ReplicaThrottledError,
)
from pyrep.storage.budget import THROTTLING
from pyrep.storage.http import read_answer, unreadable
from pyrep.storage.s3_calls import Call, S3Sender
from pyrep.storage.s3_config import S3Settings
from pyrep.storage.s3_errors import is_unsupported, refused, server_error
from pyrep.storage.s3_xml import (
    ListedObject,
    Page,
    ServerError,
    delete_document,
    parse_deletion,
    parse_error,
    parse_page,
)

__all__ = ["BATCH", "Answer", "S3Bucket"]

log = logging.getLogger(__name__)

BATCH = 1000
_EXPIRED = frozenset(("ExpiredToken", "TokenRefreshRequired", "InvalidToken"))
_EXISTS = "FileAlreadyExists"  # of OSS, with 409
_NOT_FOUND = 404
_NO_ERROR = ServerError()


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold a whole answer; ``error`` is what its body says if it is no success."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    error: ServerError = _NO_ERROR


class S3Bucket:
    """Talk to one bucket as one replica is configured to."""

    def __init__(self, settings: S3Settings, session: S3Sender) -> None:
        self.settings = settings
        self.session = session
        self.facts = session.facts

    def where(self, key: str = "") -> str:
        """Return the name of an object, or of the bucket, for messages."""
        place = f"{self.settings.scheme}://{self.settings.bucket}"
        return f"{place}/{key}" if key else place

    def request(
        self,
        op: str,
        method: str,
        key: str = "",
        *,
        query: tuple[tuple[str, str], ...] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        accept: Sequence[int] = (),
        urgent: bool = False,
        place: str = "",
    ) -> Answer:
        """Send a request and read its answer: a success (2xx) or a status in ``accept``.

        An ``urgent`` one waits for no budget.  ``place`` is what a request of the bucket is about.

        :raises ReplicaError: any other answer, or none
        """
        call = self._call(op, method, key, query, headers, body, urgent=urgent)
        call = replace(call, where=self.where(key or place))
        answer = self._read(call, self.session.send(call))
        if answer.status // 100 == 2 or answer.status in accept:
            return answer
        raise self.failure(op, key or place, answer.status, answer.error)

    def failure(self, op: str, key: str, status: int, error: ServerError) -> ReplicaError:
        """Return the error for an answer that is no success."""
        return self._noted(server_error(self.where(key), op, status, error), status)

    def _noted(self, failure: ReplicaError, status: int) -> ReplicaError:
        """Tell the budget that the storage is asked too often, if only the error says so."""
        if isinstance(failure, ReplicaThrottledError) and status not in THROTTLING:
            self.session.budget.throttled()
        return failure

    def stream(
        self, op: str, key: str, headers: Mapping[str, str], accept: Sequence[int]
    ) -> tuple[Answer, urllib3.BaseHTTPResponse | None]:
        """Begin to read an object: the answer without its body, and the body of a 200 or 206.

        :raises ReplicaError: the status is none of these and not in ``accept``
        """
        call = self._call(op, "GET", key, (), {**self.settings.key_headers, **headers}, b"")
        response = self.session.send(call)
        if response.status in (200, 206):
            return Answer(response.status, response.headers, b""), response
        answer = self._read(call, response)
        if answer.status not in accept:
            raise self.failure(op, key, answer.status, answer.error)
        return answer, None

    def head(self, op: str, key: str) -> Answer | None:
        """Return an object's headers, or None if there is none."""
        answer = self.request(
            op, "HEAD", key, headers=self.settings.key_headers, accept=(_NOT_FOUND,)
        )
        return answer if answer.status != _NOT_FOUND else None

    def list_objects(self, prefix: str, after: str = "") -> Iterator[ListedObject]:
        """List the objects whose keys begin with ``prefix`` and come after ``after``."""
        more = (("start-after", after),) if after else ()
        for page in self._pages(prefix, *more):
            yield from page.objects

    def list_folder(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """List what is directly below a prefix that ends in a slash: names, and if folders.

        :raises ReplicaError: also if a name cannot be read from the answer
        """
        for page in self._pages(prefix, ("delimiter", "/")):
            keys = [item.key for item in page.objects]
            for key in (*keys, *page.folders):
                if not key.startswith(prefix):
                    raise unreadable(self.where(prefix), "list", f"it has {key!r} in it")
                name = key[len(prefix) :]
                yield name.removesuffix("/"), name.endswith("/")

    def _pages(self, prefix: str, *more: tuple[str, str]) -> Iterator[Page]:
        query = (("list-type", "2"), ("prefix", prefix), ("encoding-type", "url"), *more)
        token = ""
        while True:
            pairs = (*query, ("continuation-token", token)) if token else query
            answer = self.request("list", "GET", query=tuple(sorted(pairs)), place=prefix)
            try:
                page = parse_page(answer.body)
            except ValueError as error:
                raise unreadable(self.where(prefix), "list", error) from error
            yield page
            if not page.truncated:
                return
            if not page.token or page.token == token:
                raise unreadable(self.where(prefix), "list", "the listing does not go on")
            token = page.token

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; a missing one counts as deleted.

        The endpoint's first delete is proven by a look: some providers answer a batch with
        success and keep the objects.

        :raises ReplicaError: one of them could not be deleted, or the answer leaves one out
        """
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            if len(batch) == 1 or self.facts.batch_delete is False:
                self._delete_each(batch)
                continue
            done = self._delete_batch(batch)
            if not done or (self.facts.batch_delete is None and self._is_there(batch[0])):
                self.facts.batch_delete = False
                log.warning(
                    "storage does not delete in batches, objects are deleted one by one",
                    extra={"replica": self.where()},
                )
                self._delete_each(batch)
                self._prove_gone(batch[0])
            else:
                self.facts.batch_delete = True

    def _delete_each(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.request("delete", "DELETE", key, accept=(_NOT_FOUND,))
            if not self.facts.single_delete:
                self._prove_gone(key)
                self.facts.single_delete = True

    def _delete_batch(self, keys: Sequence[str]) -> bool:
        """Delete up to 1,000 objects at once; return False if the server cannot do that."""
        body = delete_document(keys)
        answer = self.request(
            "delete",
            "POST",
            query=(("delete", ""),),
            headers=self._integrity(body),
            body=body,
            accept=(405, 501),
        )
        if is_unsupported(answer.status, answer.error):
            return False
        try:
            result = parse_deletion(answer.body)
        except ValueError as error:
            raise unreadable(self.where(), "delete", error) from error
        for key, reason in result.errors.items():
            if reason.code != "NoSuchKey":
                raise self._noted(refused(self.where(key), "delete", reason), answer.status)
        missing = set(keys) - result.deleted - set(result.errors)
        if missing:
            raise ReplicaTemporaryError(
                f"{self.where(min(missing))}: the storage did not say that it was deleted "
                f"({len(missing)} of {len(keys)} objects)"
            )
        return True

    def _integrity(self, body: bytes) -> dict[str, str]:
        headers = {"content-type": "application/xml"}
        if self.settings.content_md5:
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            return headers | {"content-md5": base64.b64encode(digest).decode()}
        crc = zlib.crc32(body).to_bytes(4, "big")
        return headers | {"x-amz-checksum-crc32": base64.b64encode(crc).decode()}

    def _is_there(self, key: str) -> bool:
        return self.head("look at", key) is not None

    def _prove_gone(self, key: str) -> None:
        if self._is_there(key):
            raise ReplicaPermanentError(
                f"{self.where(key)}: the storage said that it was deleted, and it is still there",
                hint="Find out whether the bucket forbids deletion, and what its provider says.",
            )

    def _call(
        self,
        op: str,
        method: str,
        key: str,
        query: tuple[tuple[str, str], ...],
        headers: Mapping[str, str] | None,
        body: bytes,
        *,
        urgent: bool = False,
    ) -> Call:
        settings = self.settings
        return Call(
            op,
            self.where(key),
            method,
            settings.bucket,
            key,
            query,
            headers or {},
            body,
            settings.path_style,
            settings.sign_payload,
            urgent,
        )

    def _read(self, call: Call, response: urllib3.BaseHTTPResponse) -> Answer:
        """Read a whole answer and learn what it says of region and credentials."""
        whole = read_answer(response, call.where, call.op, head=call.method == "HEAD")
        answer = Answer(whole.status, whole.headers, whole.body)
        if answer.status // 100 == 2:
            return answer
        if self.session.learn_region(self.settings.bucket, response):
            raise ReplicaTemporaryError(
                f"{call.where}: the bucket is in region {self.facts.regions[call.bucket]}"
            )
        answer = replace(answer, error=parse_error(answer.body) or _NO_ERROR)
        if answer.error.code == _EXISTS:
            answer = replace(answer, status=412)  # as all others say it
        nameless = call.method == "HEAD" and answer.status in (400, 403)
        if answer.error.code in _EXPIRED or nameless:
            self.session.forget_credentials()
        return answer
