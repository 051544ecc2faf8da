"""Azure Blob Storage as a store of objects, through its REST API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import urllib3

from pyrep.storage.abs_requests import NO_QUERY, ABSRequests, error_code, server_error
from pyrep.storage.abs_session import ABSSession
from pyrep.storage.abs_upload import upload
from pyrep.storage.base import Capabilities
from pyrep.storage.checks import IncomingFile
from pyrep.storage.http import Answer, body_length, range_header, read_answer
from pyrep.storage.objects import StoredObject, each

__all__ = ["ABSContainer"]

_NOT_FOUND = 404
_NO_CONTAINER = frozenset(("ContainerNotFound", "ResourceNotFound", "ContainerDisabled"))


class ABSContainer:
    """Keep objects in one container."""

    scheme = "abs"
    capabilities = Capabilities()

    def __init__(self, container: str, session: ABSSession) -> None:
        self._requests = ABSRequests(container, session)
        self.where = self._requests.where
        self.budget = session.budget

    def list_objects(self, prefix: str, after: str) -> Iterator[StoredObject]:
        """List the blobs whose names begin with ``prefix``; the storage cannot start later."""
        for page in self._requests.pages(prefix):
            yield from (item for item in page[0] if item.key >= after)

    def list_folder(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Give the names that follow ``prefix`` up to the next slash, and whether one follows."""
        for blobs, folders in self._requests.pages(prefix, "/"):
            yield from ((item.key.removeprefix(prefix), False) for item in blobs)
            yield from ((name.removeprefix(prefix)[:-1], True) for name in folders)

    def read(
        self, key: str, offset: int, size: int | None
    ) -> tuple[Answer, urllib3.BaseHTTPResponse | None]:
        """Begin to read a blob: the answer of a 200, 206, 404 or 416, and the body if any."""
        where, path = self.where(key), self._requests.path(key)
        headers = range_header(offset, size)
        response = self._requests.session.send("read", where, "GET", path, NO_QUERY, headers)
        if response.status in (200, 206):
            return Answer(response.status, response.headers, b""), response
        answer = read_answer(response, where, "read")
        if answer.status not in (_NOT_FOUND, 416) or error_code(answer) in _NO_CONTAINER:
            raise server_error(where, "read", answer)
        return answer, None

    def size(self, key: str) -> int | None:
        """Return a blob's size in bytes, None if there is none."""
        where, path = self.where(key), self._requests.path(key)
        answer = self._requests.request("read", where, "HEAD", path, accept=(_NOT_FOUND,))
        return None if answer.status == _NOT_FOUND else body_length(where, answer.headers)

    def upload(self, key: str, incoming: IncomingFile, *, create_only: bool) -> None:
        """Store all that ``incoming`` gives; nothing is there before all of it is.

        :raises ReplicaExistsError: ``create_only`` and there is a blob of that name
        """
        upload(self._requests, key, incoming, create_only=create_only)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete blobs, one request for each; a missing one counts as deleted."""
        if len(keys) == 1:
            self._delete(keys[0])
        else:
            each(self._requests.session.workers(), self._delete, keys)

    def _delete(self, key: str) -> None:
        where, path = self.where(key), self._requests.path(key)
        self._requests.request("delete", where, "DELETE", path, accept=(_NOT_FOUND,))
