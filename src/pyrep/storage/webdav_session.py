"""One HTTP client for a WebDAV server and a user, shared by all replicas that agree in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

import urllib3

from pyrep.errors import ReplicaError, ReplicaPermanentError, ReplicaTemporaryError
from pyrep.storage.budget import Budget
from pyrep.storage.digest import Login
from pyrep.storage.http import (
    Answer,
    Connections,
    network_error,
    parse_time,
    read_answer,
    short_text,
    tls_context,
    unreadable,
)
from pyrep.storage.webdav_config import WebDAVAccount

__all__ = ["Entry", "WebDAVSession", "is_done", "server_error"]

_USER_AGENT = "pyrep"
_DAV = "{DAV:}"
_PIECE = 64 << 10
_MAX_ENTRY = 1 << 20
_DONE = (200, 201, 204)  # 202 promises nothing, and 207 of a move or deletion tells of failures
_UNAUTHORIZED = 401
_MULTI_STATUS = 207
_PROPFIND = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>'
    b"<resourcetype/><getcontentlength/><getlastmodified/></prop></propfind>"
)
_TEMPORARY_STATUS = frozenset((408, 423, 425, 429))
_HINTS = {
    401: "Check webdav-username and webdav-password.",
    403: "Let the user read, write and delete below the replica's path.",
    405: "Check that webdav-url is the address of a WebDAV folder.",
    507: "Free space on the server, or raise the user's quota.",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Describe what a folder holds."""

    name: str
    is_folder: bool
    size: int
    timestamp_ms: int


def server_error(where: str, op: str, answer: Answer) -> ReplicaError:
    """Return the error for an answer that is no success."""
    said = short_text(answer.headers.get("x-error-message", ""))
    message = f"{where}: cannot {op}: the server answered {answer.status} {said}".rstrip()
    # A success that says too little is tried again.
    is_server = answer.status // 100 == 2 or (
        answer.status >= 500 and answer.status not in (501, 505)
    )
    hint = _HINTS.get(answer.status, "")
    if is_server or answer.status in _TEMPORARY_STATUS:
        return ReplicaTemporaryError(message, hint=hint)
    return ReplicaPermanentError(message, hint=hint)


def is_done(answer: Answer) -> bool:
    """Tell whether a server has done all that it was asked for."""
    return answer.status in _DONE


class WebDAVSession:
    """Send authorized requests; safe for several threads."""

    def __init__(self, account: WebDAVAccount, budget: Budget) -> None:
        self.budget = budget
        budget.endpoint = account.origin
        self._account = account
        context = tls_context(account.tls)
        self._connections = Connections(lambda: {"ssl_context": context}, budget)
        self.workers = self._connections.workers
        self._headers = {"user-agent": _USER_AGENT}
        is_private = account.origin.startswith("https:")
        self._login = Login(account.user, account.password, at_once=is_private)

    def where(self, path: str) -> str:
        """Return the name of a file or folder for messages."""
        scheme, _, host = self._account.origin.partition("://")
        place = f"{unquote(self._account.root)}/{path}".rstrip("/")
        return f"{'webdavs' if scheme == 'https' else 'webdav'}://{host}{place}"

    def address(self, path: str) -> str:
        """Return the whole address of a path."""
        return self._account.origin + self._target(path)

    def open(
        self,
        op: str,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO = b"",
        *,
        where: str = "",
    ) -> urllib3.BaseHTTPResponse:
        """Send a request; the answer, whatever its status, has its body still to read.

        ``where`` is what messages name instead of the path.
        """
        target = self._target(path)
        origin = self._account.origin
        where = where or self.where(path)
        for is_again in (False, True):
            sent = {**self._headers, **self._login.headers(method, target), **(headers or {})}
            response = self._connections.send(op, where, method, origin, target, sent, body)
            if response.status != _UNAUTHORIZED or is_again:
                break
            asked = response.headers.getlist("www-authenticate")
            if not self._login.learn(asked, sent.get("authorization", "")):
                break
            read_answer(response, where, op, head=method == "HEAD")  # the connection is used again
            if not isinstance(body, bytes):  # it is read; the next attempt begins at its start
                raise ReplicaTemporaryError(f"{where}: cannot {op}: the server asks who we are")
        return response

    def request(
        self,
        op: str,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO = b"",
        *,
        accept: Sequence[int] = (),
        where: str = "",
    ) -> Answer:
        """Send a request and read its answer: that it is done, or a status in ``accept``.

        :raises ReplicaError: any other answer, or none
        """
        where = where or self.where(path)
        response = self.open(op, method, path, headers, body, where=where)
        answer = read_answer(response, where, op, head=method == "HEAD")
        if is_done(answer) or answer.status in accept:
            return answer
        raise server_error(where, op, answer)

    def list_folder(self, op: str, folder: str) -> list[Entry]:
        """Return what is in a folder, in no order; one that is missing is empty."""
        path = f"{folder}/" if folder else ""
        headers = {"depth": "1", "content-type": "application/xml", "accept": "application/xml"}
        headers["content-length"] = str(len(_PROPFIND))
        response = self.open(op, "PROPFIND", path, headers, _PROPFIND)
        where = self.where(folder)
        if response.status != _MULTI_STATUS:
            answer = read_answer(response, where, op)
            if answer.status == 404:
                return []
            raise server_error(where, op, answer)
        try:
            found = list(_entries(response))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise network_error(where, op, error) from error
        except (ElementTree.ParseError, ValueError) as error:
            raise unreadable(where, op, error) from error
        finally:
            response.close()
        return _children(found)

    def close(self) -> None:
        """Close idle connections, end the threads, log what was used."""
        self._connections.close()
        self.budget.close()

    def _target(self, path: str) -> str:
        return f"{self._account.root}/{quote(path, safe='/-_.~')}"


def _entries(response: urllib3.BaseHTTPResponse) -> Iterator[tuple[list[str], Entry]]:
    """Read a multi-status answer piece by piece: each path, and what is there."""
    parser: ElementTree.XMLPullParser[ElementTree.Element] = ElementTree.XMLPullParser(("end",))
    pending = 0
    while piece := response.read(_PIECE, decode_content=True):
        parser.feed(piece)
        pending += len(piece)
        events = cast(Iterator[tuple[str, ElementTree.Element]], parser.read_events())
        for _, element in events:
            if element.tag == f"{_DAV}response":
                pending = 0
                yield _entry(element)
                element.clear()
        if pending > _MAX_ENTRY:
            raise ValueError("one of its elements is too long")
    parser.close()


def _entry(element: ElementTree.Element) -> tuple[list[str], Entry]:
    status = (element.findtext(f"{_DAV}status") or "").split()[1:2]
    if status and status[0][:1] != "2" and status != ["404"]:
        raise ValueError(f"it says status {status[0]} for one of its elements")
    href = (element.findtext(f"{_DAV}href") or "").strip()
    parts = [unquote(part) for part in urlsplit(href).path.split("/") if part]
    size = (element.findtext(f".//{_DAV}getcontentlength") or "0").strip()
    modified = parse_time((element.findtext(f".//{_DAV}getlastmodified") or "").strip())
    is_folder = element.find(f".//{_DAV}resourcetype/{_DAV}collection") is not None
    name = parts[-1] if parts else ""
    return parts, Entry(name, is_folder, int(size) if size.isdecimal() else 0, modified or 0)


def _children(found: list[tuple[list[str], Entry]]) -> list[Entry]:
    """Leave out the folder itself: the only one whose path is shorter than all others."""
    depth = min((len(parts) for parts, _ in found), default=0)
    shortest = [entry for parts, entry in found if len(parts) == depth]
    if len(shortest) == 1 and shortest[0].is_folder:
        return [entry for parts, entry in found if len(parts) == depth + 1]
    return shortest
