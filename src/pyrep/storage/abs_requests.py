"""The requests that pyrep makes of a container of Azure Blob Storage: failures classified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote
from xml.etree import ElementTree

from pyrep.errors import (
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.storage.abs_session import ABSSession
from pyrep.storage.http import Answer, parse_size, parse_time, read_answer, short_text, unreadable
from pyrep.storage.objects import StoredObject

__all__ = ["METADATA", "NO_QUERY", "ABSRequests", "error_code", "server_error"]

METADATA = "litestreamtimestamp"
NO_QUERY: Mapping[str, str] = {}
_PAGE = "5000"
_EXISTS_CODES = frozenset(("BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet"))
_TEMPORARY_CODES = frozenset(
    (
        *("ServerBusy", "InternalError", "OperationTimedOut", "ContainerBeingDeleted"),
        *("Md5Mismatch", "InvalidBlockList", "AccountBeingCreated"),
    )
)
_TEMPORARY_STATUS = frozenset((408, 425, 429))
_HINTS = {
    "ContainerNotFound": "Create the container, or correct its name.",
    "ResourceNotFound": "Create the container, or correct its name.",
    "AuthenticationFailed": "Check the account key or the SAS token, and this machine's clock.",
}
_ACCESS_HINT = "Check the credentials, and what they may do in the container."


class ABSRequests:
    """Ask one container."""

    def __init__(self, container: str, session: ABSSession) -> None:
        self.session = session
        self._container = container
        self._path = f"/{quote(container, safe='')}"

    def where(self, key: str = "") -> str:
        """Return the name of a blob, or of the container, for messages."""
        return f"abs://{self._container}/{key}" if key else f"abs://{self._container}"

    def path(self, key: str) -> str:
        """Return the encoded path of a blob."""
        return f"{self._path}/{quote(key, safe='/')}"

    def request(
        self,
        op: str,
        where: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = NO_QUERY,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        accept: Sequence[int] = (),
    ) -> Answer:
        """Send a request and read its answer: a success (2xx) or a status in ``accept``.

        :raises ReplicaError: any other answer, or none
        """
        response = self.session.send(op, where, method, path, query, headers or {}, body)
        answer = read_answer(response, where, op, head=method == "HEAD")
        if answer.status // 100 == 2 or answer.status in accept:
            return answer
        raise server_error(where, op, answer)

    def pages(
        self, prefix: str, delimiter: str = ""
    ) -> Iterator[tuple[list[StoredObject], list[str]]]:
        """Give the blobs and folders of each page of a listing."""
        where = self.where(prefix)
        query = {"restype": "container", "comp": "list", "prefix": prefix, "maxresults": _PAGE}
        query |= {"delimiter": delimiter} if delimiter else {"include": "metadata"}
        while True:
            answer = self.request("list", where, "GET", self._path, query=query)
            try:
                root = ElementTree.fromstring(answer.body)
                blobs = [_stored(item) for item in root.iterfind("Blobs/Blob")]
                folders = [_name(item) for item in root.iterfind("Blobs/BlobPrefix")]
            except (ElementTree.ParseError, ValueError) as error:
                raise unreadable(where, "list", error) from error
            marker = root.findtext("NextMarker") or ""
            if root.tag != "EnumerationResults" or (marker and marker == query.get("marker")):
                raise unreadable(where, "list", "the listing does not go on")
            yield blobs, folders
            if not marker:
                return
            query["marker"] = marker


def error_code(answer: Answer) -> str:
    """Return the code of a failure, also of one without a body."""
    return str(answer.headers.get("x-ms-error-code", ""))


def server_error(where: str, op: str, answer: Answer) -> ReplicaError:
    """Return the error for an answer that is no success; ``where`` names the blob."""
    code = error_code(answer)
    if code in _EXISTS_CODES or answer.status == 412:
        return ReplicaExistsError(f"{where}: the object is already there")
    said = " ".join(filter(None, (str(answer.status), code, _message(answer.body))))
    message = f"{where}: cannot {op}: the storage answered {said}"
    if answer.status >= 500 or answer.status in _TEMPORARY_STATUS or code in _TEMPORARY_CODES:
        return ReplicaTemporaryError(message)
    hint = _HINTS.get(code, _ACCESS_HINT if answer.status in (401, 403) else "")
    return ReplicaPermanentError(message, hint=hint)


def _message(body: bytes) -> str:
    """Return the first line of what the storage says; the others hold ids and signed texts."""
    try:
        text = ElementTree.fromstring(body).findtext("Message") or ""
    except ElementTree.ParseError:
        return ""
    return short_text(text.partition("\n")[0])


def _name(item: ElementTree.Element) -> str:
    name = item.findtext("Name")
    if not name:
        raise ValueError("a blob without a name")
    return name


def _stored(item: ElementTree.Element) -> StoredObject:
    time = parse_time(item.findtext(f"Metadata/{METADATA}") or "")
    if time is None:
        created = item.findtext("Properties/Creation-Time") or ""
        time = parse_time(created or item.findtext("Properties/Last-Modified") or "")
    size = item.findtext("Properties/Content-Length") or ""
    return StoredObject(_name(item), parse_size(size), time or 0)
