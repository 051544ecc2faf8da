"""Objects of a JetStream object store, as coroutines: what other clients of it write and read.

An object is a message with its description on ``$O.<bucket>.M.…``, and messages with its bytes
on ``$O.<bucket>.C.<nuid>``.  The description is published last and makes the object visible.
"""

from __future__ import annotations

import asyncio
import base64
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from pyrep.clock import from_ms
from pyrep.storage.http import format_time, parse_time

__all__ = ["CHUNK", "Bucket", "Described", "Messages", "Places", "TakenError", "subject_token"]

CHUNK = 128 << 10
_TIMESTAMP = "Litestream-Timestamp"
_WRONG_LAST_SEQUENCE = 10071
_INACTIVE_SECONDS = 60.0
_EXPIRES_NS = 1_000_000_000  # what is asked for is there; what is gone is told after this
_PUBLISH_SECONDS = 60.0
_BATCH = 256
_PARALLEL = 32
_SUBJECTS = 100_000
_KNOWN_PLACES = 1 << 16  # chunks of which we remember where they are: 1 MiB for each client
_NO_MESSAGE = 10037
_EXPIRED = "408"


class TakenError(Exception):
    """Say that a name was taken meanwhile."""


@dataclass(frozen=True, slots=True)
class Described:
    """Hold what is known of an object; ``sequence`` is that of its description."""

    name: str
    nuid: str
    size: int
    chunks: int
    timestamp_ms: int
    deleted: bool = False
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """Hold where in the stream an object's chunks are, and at which of its bytes each begins."""

    sequences: array[int]
    starts: array[int]


def subject_token(text: str) -> str:
    """Return a text as one element of a subject."""
    return base64.urlsafe_b64encode(text.encode()).decode()


class Messages:
    """Read the messages of some subject in order, as many at a time as the caller wants."""

    def __init__(self, js: JetStreamContext, stream: str, config: ConsumerConfig) -> None:
        self._js = js
        self._stream = stream
        self._config = config
        self._name = ""
        self._inbox = ""
        self._subscription: Any = None
        self._life = js._nc.stats["reconnects"]
        self.left = 0

    async def open(self) -> Messages:
        """Ask for the messages; ``left`` is how many there are."""
        info = await self._js.add_consumer(self._stream, self._config)
        self._name, self.left = info.name, info.num_pending or 0
        if self.left:
            client = self._js._nc
            self._inbox = client.new_inbox()
            self._subscription = await client.subscribe(self._inbox)
        return self

    async def fetch(self, count: int) -> list[Msg]:
        """Return the next messages, fewer only if the rest has been deleted meanwhile."""
        found: list[Msg] = []
        while self.left and len(found) < count:
            found += await self._request(min(count - len(found), self.left))
        return found

    async def _request(self, count: int) -> list[Msg]:
        """Ask once; return what comes before the server has given all or gives up."""
        if self._js._nc.stats["reconnects"] != self._life:
            raise OSError("the connection was lost")  # a server that was away has forgotten us
        request = json.dumps({"batch": count, "expires": _EXPIRES_NS}).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        await self._js._nc.publish(subject, request, self._inbox)
        found: list[Msg] = []
        while len(found) < count:
            message = await self._subscription.next_msg(self._js._timeout)
            status = (message.headers or {}).get("Status")
            if status is not None and status != _EXPIRED:
                raise OSError(f"the server gave no messages, but status {status}")
            if status is not None:
                # Some were deleted, or the server was too slow: only it knows which.
                info = await self._js.consumer_info(self._stream, self._name)
                self.left = info.num_pending or 0
                return found
            found.append(message)
        self.left -= count
        return found

    async def close(self) -> None:
        """Let go of what the server keeps for this; it does so by itself after a while."""
        client = self._js._nc
        if self._subscription is not None and client.is_connected:
            await self._subscription.unsubscribe()
        if self._name and client.is_connected:
            await client.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", b"")


class Bucket:
    """Make, find and remove the objects of one bucket; each call is for the connection's thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stream = f"OBJ_{name}"
        self._places: dict[str, Places] = {}  # by nuid, the oldest first

    def meta_subject(self, place: str) -> str:
        """Return the subject of descriptions."""
        return f"$O.{self.name}.M.{place}"

    def chunk_subject(self, nuid: str) -> str:
        """Return the subject of an object's bytes."""
        return f"$O.{self.name}.C.{nuid}"

    async def look(self, js: JetStreamContext, place: str) -> Described | None:
        """Return the newest description on a subject, also of a deleted object."""
        try:
            message = await js.get_last_msg(self.stream, self.meta_subject(place))
        except NotFoundError as error:
            if error.err_code == _NO_MESSAGE:  # there is a stream, but none of that subject in it
                return None
            raise
        return _described(message.data or b"", message.seq or 0)

    async def send(self, js: JetStreamContext, nuid: str, data: bytes) -> None:
        """Store the next bytes of an object, in order."""
        subject = self.chunk_subject(nuid)
        answers = await asyncio.gather(
            *(
                js.publish(subject, data[at : at + CHUNK], timeout=_PUBLISH_SECONDS)
                for at in range(0, len(data), CHUNK)
            )
        )
        sequences = [answer.seq for answer in answers]
        if sequences != sorted(sequences):
            raise OSError("the server has stored the bytes in another order")

    async def describe(
        self, js: JetStreamContext, place: str, one: Described, digest: bytes, *, last: int | None
    ) -> None:
        """Make an object visible; with ``last`` only if the subject's last message is that one.

        :raises TakenError: it is another one
        """
        headers = {"Nats-Rollup": "sub"}
        if last is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(last)
        document = {
            "name": one.name,
            # A list: Litestream does not see an object whose header is a plain text.
            "headers": {_TIMESTAMP: [format_time(one.timestamp_ms)]},
            "options": {"max_chunk_size": CHUNK},
            "bucket": self.name,
            "nuid": one.nuid,
            "size": one.size,
            "mtime": from_ms(one.timestamp_ms).isoformat(),
            "chunks": one.chunks,
            "digest": f"SHA-256={base64.urlsafe_b64encode(digest).decode()}",
        }
        payload = json.dumps(document).encode()
        try:
            await js.publish(self.meta_subject(place), payload, headers=headers)
        except APIError as error:
            if error.err_code == _WRONG_LAST_SEQUENCE:
                raise TakenError from error
            raise

    async def find(self, js: JetStreamContext, places: str) -> list[Described]:
        """Return the objects on some subjects (with wildcards), in no order."""
        messages = await self._messages(js, self.meta_subject(places), whole=False)
        found = []
        try:
            while batch := await messages.fetch(_BATCH):
                found += [_described(message.data, _sequence(message)) for message in batch]
        finally:
            await messages.close()
        # One that is replaced meanwhile may come twice: the last is the one that counts.
        newest = {one.name: one for one in found if one is not None}
        return [one for one in newest.values() if not one.deleted]

    async def places(self, js: JetStreamContext) -> list[str]:
        """Return the last part of every description's subject."""
        found: dict[str, int] = {}
        subject, head = self.meta_subject(">"), self.meta_subject("")
        while True:
            request = json.dumps({"subjects_filter": subject, "offset": len(found)}).encode()
            answer = await js._api_request(
                f"$JS.API.STREAM.INFO.{self.stream}", request, timeout=_PUBLISH_SECONDS
            )
            page = answer["state"].get("subjects") or {}
            found |= page
            if len(page) < _SUBJECTS or len(found) >= answer.get("total", 0):
                return [name.removeprefix(head) for name in found]

    async def only_chunk(self, js: JetStreamContext, nuid: str) -> bytes | None:
        """Return the bytes of an object of one chunk, None if they are gone."""
        try:
            message = await js.get_last_msg(self.stream, self.chunk_subject(nuid))
        except NotFoundError:
            return None
        return message.data or b""

    async def chunk_places(self, js: JetStreamContext, nuid: str) -> Places:
        """Return where each chunk of an object is; asked for once, as long as it is remembered."""
        known = self._places.pop(nuid, None)
        if known is None:
            known = await self._find_places(js, nuid)
        self._places[nuid] = known  # now the newest
        while len(self._places) > 1 and sum(map(_length, self._places.values())) > _KNOWN_PLACES:
            del self._places[next(iter(self._places))]
        return known

    async def _find_places(self, js: JetStreamContext, nuid: str) -> Places:
        messages = await self._messages(js, self.chunk_subject(nuid), headers_only=True)
        found, at = Places(array("Q"), array("Q")), 0
        try:
            while batch := await messages.fetch(_BATCH):
                for message in batch:
                    found.sequences.append(_sequence(message))
                    found.starts.append(at)
                    at += int((message.headers or {}).get("Nats-Msg-Size", 0))
        finally:
            await messages.close()
        return found

    async def chunks_from(self, js: JetStreamContext, nuid: str, sequence: int) -> Messages:
        """Begin to read an object's chunks at a place in the stream (0: from the first)."""
        return await self._messages(js, self.chunk_subject(nuid), sequence=sequence)

    async def purge(self, js: JetStreamContext, subject: str) -> None:
        """Remove every message of a subject."""
        await js.purge_stream(self.stream, subject=subject)

    async def remove(self, js: JetStreamContext, places: Sequence[str]) -> None:
        """Remove objects, several at a time; one that is missing counts as removed."""
        gate = asyncio.Semaphore(_PARALLEL)

        async def remove(place: str) -> None:
            async with gate:
                one = await self.look(js, place)
                if one is None:
                    return
                await self.purge(js, self.meta_subject(place))
                await self.purge(js, self.chunk_subject(one.nuid))

        await asyncio.gather(*map(remove, places))

    async def _messages(
        self,
        js: JetStreamContext,
        subject: str,
        *,
        whole: bool = True,
        sequence: int = 0,
        headers_only: bool = False,
    ) -> Messages:
        policy = DeliverPolicy.ALL if whole else DeliverPolicy.LAST_PER_SUBJECT
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE if sequence else policy,
            opt_start_seq=sequence or None,
            ack_policy=AckPolicy.NONE,
            filter_subject=subject,
            headers_only=headers_only or None,
            inactive_threshold=_INACTIVE_SECONDS,
            mem_storage=True,
            num_replicas=1,
        )
        return await Messages(js, self.stream, config).open()


def _length(places: Places) -> int:
    return len(places.starts)


def _sequence(message: Msg) -> int:
    return int(message.metadata.sequence.stream)


def _described(data: bytes, sequence: int) -> Described | None:
    """Read a description; one that makes no sense is no object."""
    try:
        document = json.loads(data)
        headers = document.get("headers") or {}
        time = headers.get(_TIMESTAMP, document.get("mtime", ""))
        if isinstance(time, list):
            time = time[0] if time else ""
        return Described(
            name=str(document["name"]),
            nuid=str(document.get("nuid", "")),
            size=int(document.get("size") or 0),
            chunks=int(document.get("chunks") or 0),
            timestamp_ms=parse_time(str(time)) or 0,
            deleted=bool(document.get("deleted")),
            sequence=sequence,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
