"""The documents of the S3 API that pyrep reads and writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from pyrep.storage.http import parse_size

__all__ = [
    "Deletion",
    "ListedObject",
    "Page",
    "ServerError",
    "complete_document",
    "delete_document",
    "parse_completion",
    "parse_deletion",
    "parse_error",
    "parse_page",
    "parse_upload_id",
]

_NAMESPACE = re.compile(r"\{[^}]*\}")
_MESSAGE_CHARS = 200


@dataclass(frozen=True, slots=True)
class ListedObject:
    """Describe one object of a listing: its decoded key, size, and LastModified as text."""

    key: str
    size: int
    modified: str


@dataclass(frozen=True, slots=True)
class Page:
    """Hold one page of a listing; ``token`` asks for the next one, empty at the end.

    ``folders`` are the common prefixes of a listing with a delimiter.
    """

    objects: tuple[ListedObject, ...]
    folders: tuple[str, ...]
    token: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class ServerError:
    """Hold what a server says went wrong; both are empty if it says nothing."""

    code: str = ""
    message: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.code, self.message)))


@dataclass(frozen=True, slots=True)
class Deletion:
    """Hold the answer to a batch delete: the keys that are gone, and an error for each other."""

    deleted: frozenset[str]
    errors: dict[str, ServerError]


def parse_page(data: bytes) -> Page:
    """Read the answer of ListObjectsV2.

    :raises ValueError: it is not one
    """
    root = _root(data, "ListBucketResult")
    decode = unquote_plus if _text(root, "EncodingType") == "url" else str
    objects = tuple(
        ListedObject(
            decode(_text(item, "Key")), parse_size(_text(item, "Size")), _text(item, "LastModified")
        )
        for item in _children(root, "Contents")
    )
    folders = tuple(decode(_text(item, "Prefix")) for item in _children(root, "CommonPrefixes"))
    truncated = _text(root, "IsTruncated") == "true"
    return Page(
        objects, folders, _text(root, "NextContinuationToken") if truncated else "", truncated
    )


def parse_deletion(data: bytes) -> Deletion:
    """Read the answer of DeleteObjects.

    :raises ValueError: it is not one
    """
    root = _root(data, "DeleteResult")
    errors = {
        _text(item, "Key"): ServerError(_text(item, "Code"), _short(_text(item, "Message")))
        for item in _children(root, "Error")
    }
    return Deletion(frozenset(_text(item, "Key") for item in _children(root, "Deleted")), errors)


def parse_upload_id(data: bytes) -> str:
    """Read the answer of CreateMultipartUpload.

    :raises ValueError: it is not one
    """
    found = _text(_root(data, "InitiateMultipartUploadResult"), "UploadId")
    if not found:
        raise ValueError("no upload id")
    return found


def parse_completion(data: bytes) -> ServerError | None:
    """Read the answer of CompleteMultipartUpload; return the error that it may be, else None.

    It begins before the work is done, so that one which breaks off proves nothing.

    :raises ValueError: it is neither
    """
    error = parse_error(data)
    if error is None:
        _root(data, "CompleteMultipartUploadResult")
    return error


def parse_error(data: bytes) -> ServerError | None:
    """Read an error document; return None if this is none."""
    try:
        root = _root(data, "Error")
    except ValueError:
        return None
    return ServerError(_text(root, "Code"), _short(_text(root, "Message")))


def delete_document(keys: Sequence[str]) -> bytes:
    """Return the body of DeleteObjects, which asks for an answer for every key."""
    objects = "".join(f"<Object><Key>{_escaped(key)}</Key></Object>" for key in keys)
    return _document(f"<Delete {_XMLNS}><Quiet>false</Quiet>{objects}</Delete>")


def complete_document(etags: Sequence[str]) -> bytes:
    """Return the body of CompleteMultipartUpload; parts count from 1."""
    parts = "".join(
        f"<Part><ETag>{_escaped(etag)}</ETag><PartNumber>{number}</PartNumber></Part>"
        for number, etag in enumerate(etags, 1)
    )
    return _document(f"<CompleteMultipartUpload {_XMLNS}>{parts}</CompleteMultipartUpload>")


_XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def _document(text: str) -> bytes:
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()


def _escaped(text: str) -> str:
    # A reader turns a bare carriage return into a line feed.
    return escape(text, {"\r": "&#13;", '"': "&quot;"})


def _root(data: bytes, name: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"no XML: {error}") from None
    if _NAMESPACE.sub("", root.tag) != name:
        raise ValueError(f"no {name} document")
    return root


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if _NAMESPACE.sub("", child.tag) == name)


def _text(element: ElementTree.Element, name: str) -> str:
    found = next(_children(element, name), None)
    return (found.text or "") if found is not None else ""


def _short(text: str) -> str:
    return " ".join(text.split())[:_MESSAGE_CHARS]
