"""Texts that become paths: expansion, file name patterns, URLs of tenants."""

from __future__ import annotations

import functools
import os
import posixpath
import re
from urllib.parse import quote

__all__ = ["compile_pattern", "expand_path", "join_url", "with_bucket"]

_SCHEMES = ("sqlite://", "sqlite3://")
_URL = re.compile(r"(\w+://[^/?]*)([^?]*)(\?.*)?", re.DOTALL)


def expand_path(text: str) -> str:
    """Return an absolute path: ``sqlite://`` dropped, ``~`` and ``~/`` replaced.

    Raises ``ValueError`` for a NUL character, or when the home directory is not known.
    """
    if "\0" in text:
        raise ValueError("a path cannot contain a NUL character")
    for scheme in _SCHEMES:
        text = text.removeprefix(scheme)
    if text == "~" or text.startswith("~/"):
        home = os.path.expanduser("~")
        if home == "~":
            raise ValueError("the home directory is not known")
        text = home + text[1:]
    return os.path.abspath(text)


@functools.lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    r"""Translate a shell glob for file names: ``*``, ``?``, ``[a-z]``, ``[^a-z]`` and ``\x``.

    Raises ``ValueError`` for a malformed pattern.  A leading dot is matched like any other
    character, and ``**`` means no more than ``*``.
    """
    if "/" in pattern:
        raise ValueError("a pattern matches file names and cannot contain '/'")
    regex, at = "", 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            piece, at = _class(pattern, at + 1)
        elif char == "\\":
            literal, at = _literal(pattern, at)
            piece = re.escape(literal)
        else:
            piece, at = {"*": ".*", "?": "."}.get(char) or re.escape(char), at + 1
        regex += piece
    return re.compile(rf"(?:{regex})\Z", re.DOTALL)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """Translate a character class whose ``[`` stands before ``at``; return the next place."""
    negated = pattern.startswith("^", at)
    at += negated
    body, count = "", 0
    while not (count and pattern.startswith("]", at)):
        low, at = _member(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _member(pattern, at + 1)
        count += 1
        if low <= high:  # a range that runs backwards holds nothing
            body += f"{re.escape(low)}-{re.escape(high)}"
    if not body:
        return (r"[\s\S]" if negated else r"[^\s\S]"), at + 1
    return f"[{'^' if negated else ''}{body}]", at + 1


def _member(pattern: str, at: int) -> tuple[str, int]:
    if at >= len(pattern) or pattern[at] in "-]":
        raise ValueError(f"malformed pattern {pattern!r} at character {at + 1}")
    return _literal(pattern, at)


def _literal(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at] == "\\":
        at += 1
    if at >= len(pattern):
        raise ValueError(f"malformed pattern {pattern!r}: nothing follows the last backslash")
    return pattern[at], at + 1


def join_url(url: str, relpath: str) -> str:
    """Append a tenant's relative path to a URL's path, percent-encoded.

    Everything else (user, host, query, the encoding of the path so far) stays as it is,
    except that the path is cleaned of empty, ``.`` and ``..`` elements.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("not a url")
    base = posixpath.normpath("/" + match[2].strip("/"))
    tail = quote(os.fsencode(relpath), safe="/")
    return f"{match[1]}{base.rstrip('/')}/{tail}{match[3] or ''}"


def with_bucket(url: str, bucket: str) -> str:
    """Return a URL whose path begins with a bucket: its own, else the one given."""
    match = _URL.fullmatch(url)
    if match is None or match[2].strip("/") or not bucket:
        return url
    return f"{match[1]}/{bucket}{match[3] or ''}"
