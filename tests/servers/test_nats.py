"""What only NATS has: descriptions with headers, subjects of tenants, one connection for all."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fixtures.clients import FILE, HEAD, Calling, client_of, put, refused
from fixtures.fault_proxy import TCPProxy
from fixtures.nats_server import NATSServer, place_of
from pyrep.errors import (
    LTXNotFoundError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.storage.nats_bucket import Bucket
from pyrep.storage.nats_config import nats_settings
from pyrep.storage.nats_session import NATSSession
from pyrep.storage.registry import connect

pytestmark = pytest.mark.nats


@pytest.fixture
def bucket(nats: NATSServer) -> Iterator[str]:
    name = nats.make_bucket()
    yield name
    nats.remove_bucket(name)


def messages(server: NATSServer, bucket: str) -> int:
    async def count(js: Any) -> int:
        return int((await js.stream_info(f"OBJ_{bucket}")).state.messages)

    return int(server.ask(count))


# --- what is stored -------------------------------------------------------------------------------


def test_a_single_database_has_the_names_of_litestream(nats: NATSServer, bucket: str) -> None:
    with client_of(nats.spec(bucket, "")) as client:
        info = put(client, data=HEAD)
        assert list(client.list_ltx(0)) == [info]  # to the millisecond, in one request
    name = f"ltx/0/{FILE}"
    place = base64.urlsafe_b64encode(name.encode()).decode()
    (found,) = nats.documents(bucket).items()
    assert found[0] == place
    document = found[1]
    assert document["headers"] == {"Litestream-Timestamp": ["2023-11-14T22:13:20.123Z"]}
    assert (document["name"], document["size"], document["chunks"]) == (name, len(HEAD), 1)

    async def get(js: Any) -> bytes:
        return bytes((await (await js.object_store(bucket)).get(name)).data)

    assert nats.ask(get) == HEAD  # the library proves size and digest


def test_tenants_share_a_bucket(nats: NATSServer, bucket: str) -> None:
    paths = ["db.db", "team a/db.db", "team a/\N{SNOWMAN}.db", ""]
    for number, path in enumerate(paths, 1):
        with client_of(nats.spec(bucket, path)) as client:
            put(client, number)
    for number, path in enumerate(paths, 1):
        with client_of(nats.spec(bucket, path)) as client:
            assert [info.min_txid for info in client.list_ltx(0)] == [number]
    names = {f"{path}/ltx/0/" if path else "ltx/0/" for path in paths}
    assert {name.rpartition("/")[0] + "/" for name in nats.objects(bucket)} == names
    places = nats.documents(bucket)
    assert place_of("team a/db.db", 0, FILE.replace("1", "2")) in places


def test_nothing_is_left_of_what_was_deleted_or_replaced(nats: NATSServer, bucket: str) -> None:
    with client_of(nats.spec(bucket, "t")) as client:
        for data in (HEAD + bytes(300_000), HEAD + bytes(500_000), HEAD):
            info = put(client, data=data)
        assert messages(nats, bucket) == 2
        with pytest.raises(ReplicaExistsError):
            put(client, data=HEAD + bytes(300_000), create_only=True)
        assert messages(nats, bucket) == 2
        client.delete_ltx([info])
        assert messages(nats, bucket) == 0
        assert put(client, create_only=True) == info


def test_a_file_whose_answer_was_lost_keeps_its_bytes(
    nats: NATSServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = Bucket.describe

    async def lose_the_answer(*words: Any, **more: Any) -> None:
        await describe(*words, **more)
        raise OSError("the connection was lost")

    with client_of(nats.spec(bucket, "t")) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "describe", lose_the_answer)
            with pytest.raises(ReplicaTemporaryError, match="was lost"):
                put(client, data=HEAD, create_only=True)
        (info,) = client.list_ltx(0)
        assert client.open_ltx(info).read() == HEAD
        with pytest.raises(ReplicaExistsError):  # the writer compares: it is its own
            put(client, data=HEAD, create_only=True)
        put(client, data=HEAD)
        assert messages(nats, bucket) == 2


def test_a_failing_source_leaves_no_bytes(nats: NATSServer, bucket: str) -> None:
    def fail() -> None:
        raise OSError("the source's disk")

    with client_of(nats.spec(bucket, "t")) as client:
        with pytest.raises(OSError, match="the source's disk"):
            put(client, data=Calling(HEAD + bytes(4 << 20), 2 << 20, fail))
        assert messages(nats, bucket) == 0


def test_an_object_that_litestream_deleted_may_be_created_again(
    nats: NATSServer, bucket: str
) -> None:
    with client_of(nats.spec(bucket, "")) as client:
        info = put(client)

        async def delete(js: Any) -> None:
            await (await js.object_store(bucket)).delete(f"ltx/0/{FILE}")

        nats.ask(delete)
        assert len(nats.documents(bucket)) == 1  # its kind of deletion leaves a note
        assert list(client.list_ltx(0)) == []
        with pytest.raises(LTXNotFoundError):
            client.open_ltx(info)
        assert put(client, create_only=True) == info
        assert list(client.list_ltx(0)) == [info]


def test_ranges_of_chunks_of_any_size(nats: NATSServer, bucket: str) -> None:
    """Other programs cut their objects as it comes."""
    data = HEAD + random.Random(3).randbytes(40_000)
    sizes = random.Random(4)

    async def store(js: Any) -> None:
        at = chunks = 0
        while at < len(data):
            piece = data[at : at + sizes.randint(1, 3000)]
            await js.publish(f"$O.{bucket}.C.other", piece)
            at, chunks = at + len(piece), chunks + 1
        name = f"ltx/0/{FILE}"
        document = {"name": name, "nuid": "other", "size": len(data), "chunks": chunks}
        token = base64.urlsafe_b64encode(name.encode()).decode()
        await js.publish(f"$O.{bucket}.M.{token}", json.dumps(document).encode())

    nats.ask(store)
    with client_of(nats.spec(bucket, "")) as client:
        (info,) = client.list_ltx(0)
        with client.open_ltx(info) as stream:
            assert stream.read() == data
        for offset in (1, 2999, 20_000, len(data) - 1, len(data)):
            for size in (1, 5000, None):
                if size is not None and offset + size > len(data):
                    continue
                with client.open_ltx(info, offset, size) as stream:
                    assert stream.read() == data[offset:][: len(data) if size is None else size]


def test_a_file_deleted_while_it_is_read_is_not_found(nats: NATSServer, bucket: str) -> None:
    with client_of(nats.spec(bucket, "t")) as client:
        info = put(client, data=HEAD + bytes(6 << 20))
        with client.open_ltx(info) as stream:
            stream.read(10)
            client.delete_ltx([info])
            with pytest.raises(LTXNotFoundError, match="deleted while it was read"):
                stream.read()


def test_a_file_replaced_while_it_is_read_is_to_be_read_again(
    nats: NATSServer, bucket: str
) -> None:
    with client_of(nats.spec(bucket, "t")) as client:
        info = put(client, data=HEAD + bytes(6 << 20))
        with client.open_ltx(info) as stream:
            stream.read(10)
            put(client, data=HEAD + bytes(5 << 20))
            with pytest.raises(ReplicaTemporaryError, match="replaced while it was read"):
                stream.read()


def test_a_missing_bucket_is_a_permanent_error(nats: NATSServer) -> None:
    error = refused(nats.spec("no-such-bucket", "t"), "stream not found")
    assert error.hint == "Create the bucket (nats object add NAME), or correct its name."
    with client_of(nats.spec("no-such-bucket", "t")) as client:
        for call in (lambda: list(client.list_ltx(0)), client.look_below):
            with pytest.raises(ReplicaPermanentError, match="stream not found"):
                call()


# --- connections ----------------------------------------------------------------------------------


def test_a_server_that_is_down_is_a_temporary_error(nats: NATSServer, bucket: str) -> None:
    with TCPProxy(nats.port) as proxy:
        spec = nats.spec(bucket, "t", port=proxy.port, timeout=1)
        with client_of(spec) as client:
            put(client)
            proxy.accepting = False
            proxy.cut()
            with pytest.raises(ReplicaTemporaryError, match=r"no connection|lost"):
                list(client.list_ltx(0))
            with pytest.raises(ReplicaTemporaryError, match="no connection"):
                list(client.list_ltx(0))
        port = proxy.port
    spec = nats.spec(bucket, "t", port=port)
    refusal = pytest.raises(ReplicaTemporaryError, match=r"no connection to 127\.0")
    with client_of(spec) as client, refusal:
        list(client.list_ltx(0))


def test_tenants_share_one_thread(nats: NATSServer, bucket: str) -> None:
    before = threading.active_count()
    clients = [connect(nats.spec(bucket, f"t{n}")) for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, clients))
    assert [t.name for t in threading.enumerate()].count("nats") == 1
    for client in clients:
        client.close()
    assert threading.active_count() <= before


def test_a_close_ends_what_does_not_mind_being_cancelled(nats: NATSServer, bucket: str) -> None:
    """As the library's attempts to connect again can: a cancellation is lost in ``wait_for``."""
    cancelled = []

    async def stubborn() -> None:
        while len(cancelled) < 3:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.append(True)

    async def begin(js: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(stubborn())

    spec = nats.spec(bucket, "t")
    session = NATSSession(nats_settings(url=spec.url, path=spec.path, options=spec.options).account)
    session.run("begin", "here", begin)
    session.close()
    assert "nats" not in [thread.name for thread in threading.enumerate()]
    assert len(cancelled) == 3
