"""What a program and its child say to each other: one JSON object a line, errors by class."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from pyrep import errors
from pyrep.errors import PyrepError

__all__ = ["Message", "Wire", "from_error", "to_error"]

Message = dict[str, Any]
_CHUNK = 64 << 10


class Wire:
    """Send and receive messages over one end of a socket pair; any thread may send."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send a message; return False if nobody is there."""
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._end.sendall(data)
        except OSError:
            return False
        return True

    def messages(self) -> Iterator[Message]:
        """Yield what comes in until the other side has closed or gone."""
        pending = b""
        while chunk := self._receive():
            *lines, pending = (pending + chunk).split(b"\n")
            yield from map(json.loads, lines)

    def _receive(self) -> bytes:
        try:
            return self._end.recv(_CHUNK)
        except OSError:  # reset: the other side was killed
            return b""

    def hang_up(self) -> None:
        """Let the other side see the end; what it still says can be read."""
        try:
            self._end.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it has gone already

    def close(self) -> None:
        """Let go of the socket."""
        self._end.close()


def from_error(error: PyrepError) -> Message:
    """Return an error as a message."""
    return {"class": type(error).__name__, "text": str(error), "hint": error.hint}


def to_error(message: Mapping[str, Any]) -> PyrepError:
    """Return the error of a message, of its class if that is one of pyrep's."""
    kind = getattr(errors, str(message["class"]), PyrepError)
    known = isinstance(kind, type) and issubclass(kind, PyrepError)
    return (kind if known else PyrepError)(message["text"], hint=message["hint"])
