"""Version 3 of the SFTP protocol over one channel: requests go out together, each is answered.

What OpenSSH speaks.  Requests that do not depend on each other are sent in one piece and their
answers awaited afterwards, so that a transfer costs a round trip per window and not per packet;
no answer goes unread, so no failed write goes unnoticed.
"""

from __future__ import annotations

import contextlib
import itertools
import stat
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "BLOCK",
    "Attributes",
    "Broken",
    "Code",
    "Request",
    "Requests",
    "SFTPChannel",
    "StatusError",
    "Stream",
]

BLOCK = 32 << 10  # every server takes and gives this much in one packet
_MAX_PACKET = 1 << 20
_VERSION = 3
_READDIRS = 4  # requests on their way while a directory is listed

_INIT, _VERSION_REPLY = 1, 2
_OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT = 3, 4, 5, 6, 7, 8
_FSETSTAT, _OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR = 10, 11, 12, 13, 14, 15
_RENAME, _EXTENDED = 18, 200
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS = 101, 102, 103, 104, 105

_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES, _HAS_MORE = 1, 2, 4, 8, 0x80000000
_FLAG_READ, _FLAG_CREATE = 0x01, 0x02 | 0x08 | 0x20  # write, create, exclusively
_FSYNC, _POSIX_RENAME = b"fsync@openssh.com", b"posix-rename@openssh.com"
_UINT32 = (1 << 32) - 1

Request = tuple[int, bytes]
_Reply = tuple[int, bytes]


class Code:
    """Name the status codes of answers."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    UNSUPPORTED = 8


class Broken(Exception):
    """Say that the channel is of no use any more; ``silent``: it may be the only one."""

    silent = False


class StatusError(Exception):
    """Say that the server refused a request."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message or f"status {code}")
        self.code = code


class Stream(Protocol):
    """Carry bytes both ways, as a channel of an SSH connection does."""

    def sendall(self, s: bytes) -> None:
        """Send all bytes."""

    def recv(self, nbytes: int) -> bytes:
        """Receive at most so many bytes; none at the end."""

    def close(self) -> None:
        """Close both directions."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """Hold what is known of a file; times are in seconds since the epoch."""

    size: int = 0
    mode: int | None = None
    mtime: int = 0

    @property
    def is_file(self) -> bool:
        """Tell whether it is a plain file, as far as the server says."""
        return self.mode is None or stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Tell whether it is a directory."""
        return self.mode is not None and stat.S_ISDIR(self.mode)


def _text(data: bytes | memoryview | str) -> bytes:
    raw = data.encode() if isinstance(data, str) else bytes(data)
    return struct.pack(">I", len(raw)) + raw


class Requests:
    """Make requests; whoever calls the channel with them judges the answers."""

    @staticmethod
    def write(handle: bytes, offset: int, data: bytes) -> list[Request]:
        """Write bytes at an offset, in as many packets as it takes."""
        view = memoryview(data)
        return [
            (_WRITE, _text(handle) + struct.pack(">Q", offset + at) + _text(view[at : at + BLOCK]))
            for at in range(0, len(view), BLOCK)
        ]

    @staticmethod
    def read(handle: bytes, offset: int, size: int) -> list[Request]:
        """Read bytes from an offset, in as many packets as it takes."""
        return [
            (_READ, _text(handle) + struct.pack(">QI", offset + at, min(BLOCK, size - at)))
            for at in range(0, size, BLOCK)
        ]

    @staticmethod
    def set_mtime(handle: bytes, seconds: int) -> Request:
        """Set the times of a file; the protocol has 32 bits for each."""
        time = min(max(seconds, 0), _UINT32)
        return (_FSETSTAT, _text(handle) + struct.pack(">III", _HAS_TIMES, time, time))

    @staticmethod
    def fsync(handle: bytes) -> Request:
        """Make a file's content durable (an extension)."""
        return (_EXTENDED, _text(_FSYNC) + _text(handle))

    @staticmethod
    def open(path: str) -> Request:
        """Open a file for reading."""
        return (_OPEN, _text(path) + struct.pack(">II", _FLAG_READ, 0))

    @staticmethod
    def fstat(handle: bytes) -> Request:
        """Ask for the attributes of an open file."""
        return (_FSTAT, _text(handle))

    @staticmethod
    def close(handle: bytes) -> Request:
        """Close a file or directory."""
        return (_CLOSE, _text(handle))

    @staticmethod
    def remove(path: str) -> Request:
        """Remove a file."""
        return (_REMOVE, _text(path))


class SFTPChannel:
    """Speak with the server; safe for several threads, one exchange at a time.

    After :class:`Broken` the channel is closed.  ``users`` belongs to whoever hands channels out.
    """

    def __init__(self, stream: Stream) -> None:
        """Agree on the version.

        :raises Broken: the server speaks another protocol, or not at all
        """
        self.users = 0
        self.broken = False
        self._stream = stream
        self._lock = threading.Lock()  # held during an exchange: answers are for who asked
        self._received = b""
        self._last_id = 0
        self._extensions = self._shake_hands()

    @property
    def can_fsync(self) -> bool:
        """Tell whether the server makes content durable on request."""
        return _FSYNC in self._extensions

    @property
    def can_replace(self) -> bool:
        """Tell whether the server can rename over a file that exists."""
        return _POSIX_RENAME in self._extensions

    def exchange(self, requests: Sequence[Request]) -> list[_Reply | StatusError]:
        """Send requests and return their answers in the same order, refusals as values.

        :raises Broken: the connection is lost, or the server does not answer in time
        """
        with self._lock:
            if self.broken:
                raise Broken("the connection was lost")
            try:
                return self._exchange(requests)
            except (OSError, EOFError, Broken) as error:
                self.close()
                raise _broken(error) from error

    def ask(self, kind: int, request: Request) -> bytes:
        """Send one request and return its answer's content, which is to be of one kind.

        :raises StatusError: the server refused
        """
        (reply,) = self.exchange([request])
        return self.expect(kind, reply)

    def expect(self, kind: int, reply: _Reply | StatusError) -> bytes:
        """Return an answer's content; raise what is no answer of that kind."""
        if isinstance(reply, StatusError):
            raise reply
        if reply[0] != kind:
            self.close()
            raise Broken(f"the server answered with a packet of type {reply[0]}")
        return reply[1]

    def run(self, requests: Sequence[Request]) -> None:
        """Send requests that are answered by a status; raise the first refusal."""
        for reply in self.exchange(requests):
            self.expect(_STATUS, reply)

    def try_each(self, requests: Sequence[Request]) -> list[StatusError | None]:
        """Send requests that are answered by a status; return the refusals."""
        replies = self.exchange(requests)
        return [reply if isinstance(reply, StatusError) else None for reply in replies]

    def close(self) -> None:
        """Close the channel; open files of it are closed by the server."""
        self.broken = True
        with contextlib.suppress(OSError, EOFError):  # nobody is there to be told
            self._stream.close()

    # --- files and directories --------------------------------------------------------------------

    def create(self, path: str, mode: int) -> bytes:
        """Create a file for writing that must not exist; return its handle."""
        flags = struct.pack(">III", _FLAG_CREATE, _HAS_MODE, mode)
        return _string(self.ask(_HANDLE, (_OPEN, _text(path) + flags)), 0)[0]

    def open(self, path: str) -> bytes:
        """Open a file for reading; return its handle."""
        return _string(self.ask(_HANDLE, Requests.open(path)), 0)[0]

    def lstat(self, path: str) -> Attributes:
        """Return the attributes of a path, of a link its own."""
        return _attributes(self.ask(_ATTRS, (_LSTAT, _text(path))), 0)[0]

    def make_dir(self, path: str, mode: int) -> None:
        """Make a directory."""
        self.run([(_MKDIR, _text(path) + struct.pack(">II", _HAS_MODE, mode))])

    def remove_dir(self, path: str) -> None:
        """Remove a directory, which must be empty."""
        self.run([(_RMDIR, _text(path))])

    def move(self, old: str, new: str) -> None:
        """Rename a file; refused with ``FAILURE`` if the new name is taken."""
        self.run([(_RENAME, _text(old) + _text(new))])

    def move_over(self, old: str, new: str) -> None:
        """Rename a file in one step over whatever has the name (an extension)."""
        self.run([(_EXTENDED, _text(_POSIX_RENAME) + _text(old) + _text(new))])

    def stat_and_read(self, handle: bytes, offset: int, size: int) -> tuple[Attributes, bytes]:
        """Return an open file's attributes and some of its bytes, fewer at its end."""
        reads = Requests.read(handle, offset, size)
        head, *replies = self.exchange([Requests.fstat(handle), *reads])
        attributes = _attributes(self.expect(_ATTRS, head), 0)[0]
        return attributes, self._joined(replies, size) if attributes.is_file else b""

    def read(self, handle: bytes, offset: int, size: int) -> bytes:
        """Return bytes of an open file: at least one, unless it ends there."""
        return self._joined(self.exchange(Requests.read(handle, offset, size)), size)

    def heads(self, paths: Sequence[str], size: int) -> list[bytes | None]:
        """Return the first bytes of files (at most a block), None for one that is not there.

        :raises StatusError: one is there and cannot be read
        """
        opened = self.exchange(list(map(Requests.open, paths)))
        handles = [
            _string(self.expect(_HANDLE, reply), 0)[0]
            for reply in opened
            if not isinstance(reply, StatusError)
        ]
        reads = [Requests.read(handle, 0, size)[0] for handle in handles]
        closes = [Requests.close(handle) for handle in handles]
        replies = iter(self.exchange([*reads, *closes]))
        return [None if _is_missing(one) else self._joined([next(replies)], size) for one in opened]

    def list_dir(self, path: str) -> Iterator[tuple[bytes, Attributes]]:
        """Yield names and attributes of a directory, in no order."""
        handle = _string(self.ask(_HANDLE, (_OPENDIR, _text(path))), 0)[0]
        try:
            is_end = False
            while not is_end:
                replies = self.exchange([(_READDIR, _text(handle))] * _READDIRS)
                # A server with several threads may answer the first request last.
                is_end = any(map(_is_end, replies))
                for reply in itertools.filterfalse(_is_end, replies):
                    yield from _names(self.expect(_NAME, reply))
        finally:
            if not self.broken:
                self.try_each([Requests.close(handle)])

    def _joined(self, replies: Iterable[_Reply | StatusError], size: int) -> bytes:
        """Return the bytes of consecutive blocks up to the first that is not full."""
        parts: list[bytes] = []
        for at, reply in enumerate(replies):
            if _is_end(reply):
                break
            wanted = min(BLOCK, size - at * BLOCK)
            data = _string(self.expect(_DATA, reply), 0)[0]
            if not data or len(data) > wanted:
                self.close()
                raise Broken(f"the server gave {len(data)} bytes instead of {wanted}")
            parts.append(data)
            if len(data) < wanted:
                break
        return b"".join(parts)

    # --- packets ----------------------------------------------------------------------------------

    def _shake_hands(self) -> frozenset[bytes]:
        try:
            self._stream.sendall(struct.pack(">IBI", 5, _INIT, _VERSION))
            kind, body = self._packet()
            if kind != _VERSION_REPLY or len(body) < 4:
                raise Broken("the server does not speak sftp")
            names, at = set(), 4
            while at < len(body):
                name, at = _string(body, at)
                _, at = _string(body, at)
                names.add(name)
        except (OSError, EOFError, Broken) as error:
            self.close()
            raise _broken(error) from error
        return frozenset(names)

    def _exchange(self, requests: Sequence[Request]) -> list[_Reply | StatusError]:
        places: dict[int, int] = {}
        packets = []
        for place, (kind, body) in enumerate(requests):
            self._last_id = (self._last_id + 1) & _UINT32
            places[self._last_id] = place
            packets.append(struct.pack(">IBI", 5 + len(body), kind, self._last_id) + body)
        self._stream.sendall(b"".join(packets))
        replies: list[_Reply | StatusError] = [(0, b"")] * len(requests)
        while places:
            kind, body = self._packet()
            if len(body) < 4:
                raise Broken("the server's answer is too short")
            number = int.from_bytes(body[:4], "big")
            if number not in places:
                raise Broken(f"the server answered a request that was not made: {number}")
            replies[places.pop(number)] = _reply(kind, body[4:])
        return replies

    def _packet(self) -> _Reply:
        length = int.from_bytes(self._bytes(4), "big")
        if not 0 < length <= _MAX_PACKET:
            raise Broken(f"the server's answer has {length} bytes")
        packet = self._bytes(length)
        return packet[0], packet[1:]

    def _bytes(self, count: int) -> bytes:
        parts, missing = [self._received], count - len(self._received)
        while missing > 0:
            data = self._stream.recv(max(missing, BLOCK))
            if not data:
                raise Broken("the server closed the connection")
            parts.append(data)
            missing -= len(data)
        whole = b"".join(parts)
        self._received = whole[count:]
        return whole[:count]


def _is_end(reply: _Reply | StatusError) -> bool:
    return isinstance(reply, StatusError) and reply.code == Code.EOF


def _is_missing(reply: _Reply | StatusError) -> bool:
    """Tell whether there is no such file; raise another refusal."""
    if not isinstance(reply, StatusError):
        return False
    if reply.code != Code.NO_SUCH_FILE:
        raise reply
    return True


def _reply(kind: int, body: bytes) -> _Reply | StatusError:
    if kind != _STATUS:
        return kind, body
    if len(body) < 4:
        raise Broken("the server's answer is too short")
    code = int.from_bytes(body[:4], "big")
    if code == Code.OK:
        return kind, b""
    message = _string(body, 4)[0] if len(body) >= 8 else b""
    return StatusError(code, message.decode(errors="replace").strip().rstrip(".").lower())


def _string(body: bytes, at: int) -> tuple[bytes, int]:
    """Return a text of a packet and the place after it."""
    end = at + 4 + int.from_bytes(body[at : at + 4], "big")
    if at + 4 > len(body) or end > len(body):
        raise Broken("the server's answer is too short")
    return body[at + 4 : end], end


def _attributes(body: bytes, at: int) -> tuple[Attributes, int]:
    """Return the attributes in a packet and the place after them."""
    size, mode, mtime = 0, None, 0
    try:
        (flags,) = struct.unpack_from(">I", body, at)
        at += 4
        if flags & _HAS_SIZE:
            (size,) = struct.unpack_from(">Q", body, at)
            at += 8
        if flags & _HAS_OWNER:
            at += 8
        if flags & _HAS_MODE:
            (mode,) = struct.unpack_from(">I", body, at)
            at += 4
        if flags & _HAS_TIMES:
            _, mtime = struct.unpack_from(">II", body, at)
            at += 8
        more = struct.unpack_from(">I", body, at)[0] if flags & _HAS_MORE else 0
    except struct.error:
        raise Broken("the server's answer is too short") from None
    at += 4 if flags & _HAS_MORE else 0
    for _ in range(2 * more):
        _, at = _string(body, at)
    return Attributes(size, mode, mtime), at


def _names(body: bytes) -> Iterator[tuple[bytes, Attributes]]:
    count, at = int.from_bytes(body[:4], "big"), 4
    for _ in range(count):
        name, at = _string(body, at)
        _, at = _string(body, at)  # as ls -l would print it
        attributes, at = _attributes(body, at)
        yield name, attributes


def _broken(error: Exception) -> Broken:
    if isinstance(error, TimeoutError):
        broken = Broken("the server stopped answering")
        broken.silent = True
        return broken
    return Broken(str(error) or "the connection was lost")
