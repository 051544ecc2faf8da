"""SFTP's packets, with a server that says what the test wants."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from pyrep.storage.sftp_protocol import (
    BLOCK,
    Attributes,
    Broken,
    Code,
    Requests,
    SFTPChannel,
    StatusError,
)

STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
WRITE, READ, READDIR = 6, 5, 12
Answer = Callable[[int, int, bytes], bytes]


def text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def packet(kind: int, number: int, body: bytes) -> bytes:
    return struct.pack(">IBI", 5 + len(body), kind, number) + body


def status(number: int, code: int, message: bytes = b"No.") -> bytes:
    return packet(STATUS, number, struct.pack(">I", code) + text(message) + text(b"en"))


class Server:
    """Answer each request by a function; give bytes in small pieces."""

    def __init__(self, answer: Answer, extensions: bytes = b"", step: int = 3) -> None:
        self.answer = answer
        self.kinds: list[int] = []
        self.closed = False
        self._extensions = extensions
        self._step = step
        self._out = bytearray()

    def sendall(self, s: bytes) -> None:
        while s:
            length = int.from_bytes(s[:4], "big")
            kind, number, body = s[4], int.from_bytes(s[5:9], "big"), s[9 : 4 + length]
            s = s[4 + length :]
            self.kinds.append(kind)
            if kind == 1:
                hello = struct.pack(">BI", 2, 3) + self._extensions
                self._out += struct.pack(">I", len(hello)) + hello
            else:
                self._out += self.answer(kind, number, body)

    def recv(self, nbytes: int) -> bytes:
        data = bytes(self._out[: min(nbytes, self._step)])
        del self._out[: len(data)]
        return data

    def close(self) -> None:
        self.closed = True


def test_extensions_are_seen() -> None:
    names = text(b"fsync@openssh.com") + text(b"1") + text(b"x") + text(b"")
    channel = SFTPChannel(Server(lambda *_: b"", names))
    assert (channel.can_fsync, channel.can_replace) == (True, False)


def test_a_failed_write_among_many_is_noticed() -> None:
    writes = []

    def answer(kind: int, number: int, body: bytes) -> bytes:
        writes.append(body)
        return status(number, Code.FAILURE if len(writes) == 3 else Code.OK, b"Disk full.")

    server = Server(answer)
    channel = SFTPChannel(server)
    with pytest.raises(StatusError, match="disk full"):
        channel.run(Requests.write(b"h", 10, bytes(5 * BLOCK - 1)))
    assert server.kinds == [1] + [WRITE] * 5
    offsets = [int.from_bytes(body[5:13], "big") for body in writes]
    assert offsets == [10 + number * BLOCK for number in range(5)]
    assert [int.from_bytes(body[13:17], "big") for body in writes] == [BLOCK] * 4 + [BLOCK - 1]
    channel.run([Requests.remove("next")])  # every answer was read: the channel is of use


def test_answers_may_come_in_any_order() -> None:
    late: list[bytes] = []

    def answer(kind: int, number: int, body: bytes) -> bytes:
        late.insert(0, packet(DATA, number, text(body[5:13])))
        return b"".join(late) if len(late) == 3 else b""

    channel = SFTPChannel(Server(answer))
    replies = channel.exchange(Requests.read(b"h", 0, 3 * BLOCK))
    offsets = [int.from_bytes(channel.expect(DATA, reply)[4:], "big") for reply in replies]
    assert offsets == [0, BLOCK, 2 * BLOCK]


def test_a_read_ends_with_the_first_short_block() -> None:
    content = bytes(range(256)) * 200

    def answer(kind: int, number: int, body: bytes) -> bytes:
        offset, size = struct.unpack(">QI", body[5:])
        data = content[offset : offset + min(size, 20_000)]
        return packet(DATA, number, text(data)) if data else status(number, Code.EOF)

    channel = SFTPChannel(Server(answer, step=5000))
    assert channel.read(b"h", 0, 4 * BLOCK) == content[:20_000]
    assert channel.read(b"h", 50_000, BLOCK) == content[50_000:]
    assert channel.read(b"h", 60_000, BLOCK) == b""


def test_a_directory_is_listed_to_its_end() -> None:
    answers = iter([2, 3, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0])
    entry = text(b"name") + text(b"-rw name") + struct.pack(">IQII", 1 | 8, 7, 1, 2)

    def answer(kind: int, number: int, body: bytes) -> bytes:
        if kind == READDIR:
            count = next(answers)
            names = struct.pack(">I", count) + entry * count
            return packet(NAME, number, names) if count else status(number, Code.EOF)
        return packet(HANDLE, number, text(b"h")) if kind == 11 else status(number, Code.OK)

    server = Server(answer)
    assert list(SFTPChannel(server).list_dir("d")) == [(b"name", Attributes(7, None, 2))] * 11
    assert server.kinds[-1] == 4  # closed


def test_a_directory_whose_end_is_told_first_is_listed_to_its_end() -> None:
    """Take all that a server with several threads gives, in whatever order."""
    answers = iter([0, 2, 0, 3])
    entry = text(b"name") + text(b"-rw name") + struct.pack(">I", 0)

    def answer(kind: int, number: int, body: bytes) -> bytes:
        if kind == READDIR:
            count = next(answers)
            names = struct.pack(">I", count) + entry * count
            return packet(NAME, number, names) if count else status(number, Code.EOF)
        return packet(HANDLE, number, text(b"h")) if kind == 11 else status(number, Code.OK)

    assert len(list(SFTPChannel(Server(answer)).list_dir("d"))) == 5


def heads(files: dict[bytes, bytes | int], *names: str) -> tuple[list[bytes | None], list[bytes]]:
    """Return the first bytes of files (a number: what a server answers instead), and the handles
    that are still open."""
    handles: list[bytes] = []

    def answer(kind: int, number: int, body: bytes) -> bytes:
        name = body[4 : 4 + int.from_bytes(body[:4], "big")]
        content = files.get(name, Code.NO_SUCH_FILE)
        if kind == 3 and isinstance(content, int):
            return status(number, content)
        if kind == 3:
            handles.append(name)
            return packet(HANDLE, number, text(name))
        if kind == READ and isinstance(content, bytes) and content:
            return packet(DATA, number, text(content[:4]))
        if kind == READ:
            return status(number, Code.EOF)
        handles.remove(name)
        return status(number, Code.OK)

    channel = SFTPChannel(Server(answer, step=100))
    try:
        return channel.heads(names, 4), handles
    except StatusError as error:
        return [str(error.code).encode()], handles


def test_only_a_missing_file_has_no_head() -> None:
    files: dict[bytes, bytes | int] = {b"a": b"longer", b"c": b"", b"d": b"xy"}
    assert heads(files, "a", "b", "c", "d") == ([b"long", None, b"", b"xy"], [])


def test_a_file_that_cannot_be_opened_is_no_missing_one() -> None:
    """Tell of a server that has no more handles, or lets us not read: files would be left out."""
    for code in (Code.FAILURE, Code.PERMISSION_DENIED):
        assert heads({b"a": b"longer", b"b": code}, "a", "b") == ([str(code).encode()], [])


def test_all_kinds_of_attributes_are_read() -> None:
    flags = 1 | 2 | 4 | 8 | 0x80000000
    body = struct.pack(">IQIIIII", flags, 1 << 40, 0, 0, 0o100600, 5, 6)
    body += struct.pack(">I", 1) + text(b"more") + text(b"of it")
    channel = SFTPChannel(Server(lambda kind, number, _: packet(ATTRS, number, body)))
    found = channel.lstat("f")
    assert found == Attributes(1 << 40, 0o100600, 6)
    assert found.is_file
    assert not found.is_directory


HOSTILE: dict[str, Answer] = {
    "the server closed": lambda kind, number, body: b"",
    "of type 103": lambda kind, number, body: packet(DATA, number, text(b"")),
    "not made": lambda kind, number, body: status(number + 9, Code.OK),
    "has 4294967295 bytes": lambda kind, number, body: b"\xff" * 8,
    "has 0 bytes": lambda kind, number, body: bytes(4),
    "too short": lambda kind, number, body: struct.pack(">IBH", 3, STATUS, 1),
    "is too short": lambda kind, number, body: packet(STATUS, number, b"\0"),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_an_answer_that_makes_no_sense_ends_the_channel(message: str) -> None:
    server = Server(HOSTILE[message])
    channel = SFTPChannel(server)
    with pytest.raises(Broken, match=message):
        channel.run([Requests.remove("f")])
    assert (channel.broken, server.closed) == (True, True)
    with pytest.raises(Broken, match="lost"):
        channel.run([Requests.remove("f")])


@pytest.mark.parametrize("body", [b"", b"\0\0\0\xff", text(b"h")[:-1]])
def test_a_text_that_ends_early_is_no_text(body: bytes) -> None:
    channel = SFTPChannel(Server(lambda kind, number, _: packet(HANDLE, number, body)))
    with pytest.raises(Broken, match="too short"):
        channel.open("f")


def test_more_bytes_than_asked_for_end_the_channel() -> None:
    channel = SFTPChannel(Server(lambda kind, number, _: packet(DATA, number, text(bytes(11)))))
    with pytest.raises(Broken, match="11 bytes instead of 10"):
        channel.read(b"h", 0, 10)


@pytest.mark.parametrize("hello", [b"SSH-2.0-x\r\n", struct.pack(">IBI", 5, 101, 3), b""])
def test_a_server_of_something_else_is_told(hello: bytes) -> None:
    class Other(Server):
        def sendall(self, s: bytes) -> None:
            self._out += hello

    with pytest.raises(Broken):
        SFTPChannel(Other(lambda *_: b""))
