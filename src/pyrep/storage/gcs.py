"""Google Cloud Storage as a store of objects, through its JSON API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote, urlencode

import urllib3

from pyrep.storage.base import Capabilities
from pyrep.storage.checks import IncomingFile
from pyrep.storage.gcs_requests import GCSRequests, server_error
from pyrep.storage.gcs_session import GCSSession
from pyrep.storage.gcs_upload import METADATA, upload
from pyrep.storage.http import Answer, parse_size, parse_time, range_header, read_answer, unreadable
from pyrep.storage.objects import StoredObject, each

__all__ = ["GCSBucket"]

_FIELDS = "items(name,size,timeCreated,metadata),nextPageToken"
_FOLDER_FIELDS = f"prefixes,{_FIELDS}"
_PAGE = 1000
_NOT_FOUND = 404


class GCSBucket:
    """Keep objects in one bucket."""

    scheme = "gs"
    capabilities = Capabilities()

    def __init__(self, bucket: str, session: GCSSession) -> None:
        self._requests = GCSRequests(bucket, session)
        self.where = self._requests.where
        self.budget = session.budget

    def list_objects(self, prefix: str, after: str) -> Iterator[StoredObject]:
        """List the objects whose keys begin with ``prefix``, from ``after`` on."""
        query = {"prefix": prefix, "fields": _FIELDS}
        if after:
            query["startOffset"] = after
        for page in self._pages(prefix, query):
            yield from page[0]

    def list_folder(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Give the names that follow ``prefix`` up to the next slash, and whether one follows."""
        query = {"prefix": prefix, "delimiter": "/", "fields": _FOLDER_FIELDS}
        for objects, folders in self._pages(prefix, query):
            yield from ((item.key.removeprefix(prefix), False) for item in objects)
            yield from ((name.removeprefix(prefix)[:-1], True) for name in folders)

    def _pages(
        self, prefix: str, query: dict[str, str]
    ) -> Iterator[tuple[list[StoredObject], list[str]]]:
        """Give the objects and folders of each page of a listing."""
        where = self.where(prefix)
        query["maxResults"] = str(_PAGE)
        while True:
            url = f"{self._requests.path}?{urlencode(query, quote_via=quote)}"
            answer = self._requests.request("list", where, "GET", url)
            try:
                page = json.loads(answer.body)
                objects = [_stored(item) for item in page.get("items", ())]
                folders = [str(name) for name in page.get("prefixes", ())]
                token = str(page.get("nextPageToken", ""))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise unreadable(where, "list", error) from error
            yield objects, folders
            if not token:
                return
            if token == query.get("pageToken"):
                raise unreadable(where, "list", "the listing does not go on")
            query["pageToken"] = token

    def read(
        self, key: str, offset: int, size: int | None
    ) -> tuple[Answer, urllib3.BaseHTTPResponse | None]:
        """Begin to read an object: the answer of a 200, 206, 404 or 416, and the body if any."""
        where = self.where(key)
        # Stored as it is: a proxy that compresses would make the length and the ranges wrong.
        headers = {"accept-encoding": "identity", **range_header(offset, size)}
        response = self._requests.session.send(
            "read", where, "GET", self._url(key, alt="media"), headers
        )
        if response.status in (200, 206):
            return Answer(response.status, response.headers, b""), response
        answer = read_answer(response, where, "read")
        if answer.status not in (_NOT_FOUND, 416) or _no_bucket(answer):
            raise server_error(where, "read", answer)
        return answer, None

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, None if there is none."""
        where = self.where(key)
        url = self._url(key, fields="size")
        answer = self._requests.request("read", where, "GET", url, accept=(_NOT_FOUND,))
        if answer.status == _NOT_FOUND:
            return None
        try:
            return int(json.loads(answer.body)["size"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unreadable(where, "read", error) from error

    def upload(self, key: str, incoming: IncomingFile, *, create_only: bool) -> None:
        """Store all that ``incoming`` gives; nothing is there before all of it is.

        :raises ReplicaExistsError: ``create_only`` and there is an object of that name
        """
        upload(self._requests, key, incoming, create_only=create_only)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, one request for each; a missing one counts as deleted."""
        if len(keys) == 1:
            self._delete(keys[0])
        else:
            each(self._requests.session.workers(), self._delete, keys)

    def _delete(self, key: str) -> None:
        where = self.where(key)
        self._requests.request("delete", where, "DELETE", self._url(key), accept=(_NOT_FOUND,))

    def _url(self, key: str, **query: str) -> str:
        tail = f"?{urlencode(query)}" if query else ""
        return f"{self._requests.path}/{quote(key, safe='')}{tail}"


def _no_bucket(answer: Answer) -> bool:
    return b"bucket does not exist" in answer.body


def _stored(item: Mapping[str, object]) -> StoredObject:
    metadata = item.get("metadata")
    text = metadata.get(METADATA, "") if isinstance(metadata, dict) else ""
    time = parse_time(str(text))
    if time is None:
        time = parse_time(str(item.get("timeCreated", ""))) or 0
    return StoredObject(str(item["name"]), parse_size(str(item["size"])), time)
