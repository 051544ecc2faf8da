"""Reading a bucket of NATS whose server is slow, or says something unusual."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nats")

from pyrep.storage.nats_bucket import Bucket


def description(name: str, size: int) -> bytes:
    return json.dumps({"name": name, "nuid": f"n{size}", "size": size, "chunks": 1}).encode()


class Server:
    """Give messages in answers to requests: at most ``pace`` for each, then a status."""

    def __init__(self, messages: list[bytes], pace: int, status: str = "408") -> None:
        self.waiting = messages
        self.pace = pace
        self.status = status
        self.answers: list[Any] = []
        self.stats = {"reconnects": 0}
        self.is_connected = True
        self._timeout = 1.0
        self._nc = self

    async def add_consumer(self, stream: str, config: object) -> Any:
        return await self.consumer_info(stream, "c")

    async def consumer_info(self, stream: str, name: str) -> Any:
        return SimpleNamespace(name="c", num_pending=len(self.waiting))

    def new_inbox(self) -> str:
        return "inbox"

    async def subscribe(self, inbox: str) -> Any:
        return self

    async def unsubscribe(self) -> None:
        pass

    async def publish(self, subject: str, request: bytes, reply: str = "") -> None:
        if "MSG.NEXT" not in subject:
            return
        wanted = json.loads(request)["batch"]
        given = [self.waiting.pop(0) for _ in range(min(wanted, self.pace, len(self.waiting)))]
        place = SimpleNamespace(sequence=SimpleNamespace(stream=7))
        self.answers += [SimpleNamespace(data=d, headers=None, metadata=place) for d in given]
        if len(given) < wanted:
            headers = {"Status": self.status}
            self.answers.append(SimpleNamespace(data=b"", headers=headers, metadata=None))

    async def next_msg(self, timeout: float) -> Any:
        return self.answers.pop(0)


def find(server: Any) -> list[tuple[str, int]]:
    found = asyncio.run(Bucket("b").find(server, "*"))
    return [(one.name, one.size) for one in found]


def test_a_slow_server_makes_no_listing_shorter() -> None:
    """Ask again when the server gave up waiting for itself: it still has what is missing."""
    names = [(f"f{number:04}", number) for number in range(700)]
    for pace in (1, 3, 255, 256, 257):
        assert find(Server([description(*one) for one in names], pace)) == names


def test_what_was_deleted_meanwhile_is_not_waited_for() -> None:
    class Shrinking(Server):
        async def publish(self, subject: str, request: bytes, reply: str = "") -> None:
            del self.waiting[5:]
            await super().publish(subject, request, reply)

    messages = [description(f"f{number}", number) for number in range(9)]
    assert len(find(Shrinking(messages, 256))) == 5


def test_a_file_that_is_replaced_meanwhile_is_listed_once() -> None:
    assert find(Server([description("f", 1), description("f", 2)], 256)) == [("f", 2)]


def test_another_status_is_no_end_of_a_listing() -> None:
    with pytest.raises(OSError, match="status 409"):
        find(Server([description("f", 1)], 0, "409"))
