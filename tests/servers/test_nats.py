"""What only NATS has: descriptions with headers, subjects of tenants, credentials and TLS."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fixtures.certificates import make_certificates
from fixtures.fault_proxy import Fault, TCPProxy
from fixtures.ltxbytes import build_ltx
from fixtures.nats_server import NATSServer, nats_server, place_of
from pyrep.errors import (
    LTXNotFoundError,
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage import registry
from pyrep.storage.base import ReplicaClient
from pyrep.storage.registry import ReplicaSpec, connect
from pyrep.storage.retry import RetryPolicy

pytestmark = pytest.mark.nats

ONCE = RetryPolicy(attempts=1)
PATIENT = RetryPolicy(attempts=40, base=0.02, cap=0.2)
HEAD = build_ltx(1, 1, timestamp_ms=1_700_000_000_123)
FILE = "0000000000000001-0000000000000001.ltx"


@contextmanager
def client_of(spec: ReplicaSpec, policy: RetryPolicy = ONCE) -> Iterator[ReplicaClient]:
    with closing(connect(spec, policy=policy)) as client:
        yield client


@pytest.fixture
def bucket(nats: NATSServer) -> Iterator[str]:
    name = nats.make_bucket()
    yield name
    nats.remove_bucket(name)


def put(client: ReplicaClient, txid: int = 1, data: bytes = b"", **more: bool) -> FileInfo:
    source = io.BytesIO(data or build_ltx(txid, txid))
    return client.write_ltx(0, TXID(txid), TXID(txid), source, **more)


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


def test_a_failing_source_leaves_no_bytes(nats: NATSServer, bucket: str) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 2 << 20:
                raise OSError("the source's disk")
            return super().read(size)

    with client_of(nats.spec(bucket, "t")) as client:
        with pytest.raises(OSError, match="the source's disk"):
            client.write_ltx(0, TXID(1), TXID(1), Failing(HEAD + bytes(4 << 20)))
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


def test_memory_does_not_grow_with_the_file(nats: NATSServer, bucket: str) -> None:
    size = 32 << 20

    class Large(io.RawIOBase):
        left = size

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            count = min(len(buffer), self.left)
            buffer[:count] = bytes(count)
            if self.left == size:
                buffer[: len(HEAD)] = HEAD
            self.left -= count
            return count

    with client_of(nats.spec(bucket, "t")) as client:
        put(client, 2)  # what is loaded only once is not counted
        tracemalloc.start()
        try:
            source = io.BufferedReader(Large())
            info = client.write_ltx(9, TXID(1), TXID(1), source)  # type: ignore[arg-type]
            with client.open_ltx(info) as stream:
                total = sum(len(piece) for piece in iter(lambda: stream.read(1 << 20), b""))
            with client.open_ltx(info, size - 100, 100) as stream:
                assert len(stream.read()) == 100
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert total == size
    assert peak < 16 << 20


# --- who we are -----------------------------------------------------------------------------------


def refused(spec: ReplicaSpec, message: str) -> ReplicaPermanentError:
    with client_of(spec) as client, pytest.raises(ReplicaPermanentError, match=message) as caught:
        put(client)
    assert "SECRET" not in str(caught.value) + caught.value.hint
    assert FILE in str(caught.value)
    return caught.value


def test_wrong_credentials_are_permanent_errors(nats: NATSServer, bucket: str) -> None:
    for keys in ({"password": "SECRET"}, {"username": None}, {"username": None, "token": "SECRET"}):
        error = refused(nats.spec(bucket, "t", **keys), "(?i)authorization")
        assert error.hint.startswith("Check the user and password")
    refused(
        nats.spec(bucket, "t", username=None, creds="/no/such/SECRET.creds"[:8]), "cannot write"
    )


def test_the_users_of_a_url_count(nats: NATSServer, bucket: str) -> None:
    spec = ReplicaSpec("nats", "", f"nats://u:S3CRET@127.0.0.1:{nats.port}/{bucket}/t")
    with client_of(spec) as client:
        put(client)
        assert client.url == f"nats://127.0.0.1:{nats.port}/{bucket}/t"
    refused(
        ReplicaSpec("nats", "", f"nats://u:SECRET@127.0.0.1:{nats.port}/{bucket}/t"),
        "(?i)authorization",
    )


def test_a_missing_bucket_is_a_permanent_error(nats: NATSServer) -> None:
    error = refused(nats.spec("no-such-bucket", "t"), "stream not found")
    assert error.hint == "Create the bucket (nats object add NAME), or correct its name."
    with client_of(nats.spec("no-such-bucket", "t")) as client:
        for call in (lambda: list(client.list_ltx(0)), client.look_below):
            with pytest.raises(ReplicaPermanentError, match="stream not found"):
                call()


def test_a_token(tmp_path: Path) -> None:
    extra = "authorization { token: S3CRET }"
    with nats_server(tmp_path, extra=extra, options={"token": "S3CRET"}) as server:
        bucket = server.make_bucket()
        with client_of(server.spec(bucket, "t")) as client:
            put(client)
        with client_of(
            ReplicaSpec("nats", "t", f"nats://S3CRET@127.0.0.1:{server.port}/{bucket}")
        ) as client:
            assert len(list(client.list_ltx(0))) == 1
        refused(server.spec(bucket, "t", token="SECRET"), "(?i)authorization")


def test_an_nkey(tmp_path: Path) -> None:
    import nkeys

    seed = nkeys.encode_seed(random.Random(7).randbytes(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    extra = f"authorization {{ users: [ {{ nkey: {public} }} ] }}"
    with nats_server(tmp_path, extra=extra, options={}) as server:
        for keys in ({"seed": seed.decode()}, {"nkey": seed.decode()}):
            refused(server.spec("b", "t", **keys), "stream not found")
        other = nkeys.encode_seed(random.Random(8).randbytes(32), nkeys.PREFIX_BYTE_USER)
        refused(server.spec("b", "t", seed=other.decode()), "(?i)authorization")


def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    extra = (
        f'tls {{ cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key", '
        f'ca_file: "{tmp_path}/ca.pem", verify: true }}'
    )
    keys = {
        "root_cas": (str(tmp_path / "ca.pem"),),
        "client_cert": str(tmp_path / "client.pem"),
        "client_key": str(tmp_path / "client.key"),
    }
    with nats_server(tmp_path, extra=extra, options={}) as server:
        refused(server.spec("b", "t", **keys), "stream not found")
        untrusted = {key: value for key, value in keys.items() if key != "root_cas"}
        error = refused(server.spec("b", "t", **untrusted), "(?i)certificate")
        assert error.hint == "Trust its certificate with root-cas."
        nobody = {"root_cas": keys["root_cas"]}
        with client_of(server.spec("b", "t", **nobody)) as client, pytest.raises(ReplicaError):
            list(client.list_ltx(0))
        refused(server.spec("b", "t", root_cas=("/no/such.pem",), tls=True), "cannot be used")


# --- connections ----------------------------------------------------------------------------------


def work(client: ReplicaClient, number: int) -> None:
    """Store, list, read and delete some files; the client's patience covers what happens."""
    for step in range(3):
        txid = number * 10 + step + 1
        data = build_ltx(txid, txid) + random.Random(txid).randbytes(300_000)
        try:
            info = put(client, txid, data, create_only=True)
        except ReplicaExistsError:  # ours: the answer was lost
            info = FileInfo(0, TXID(txid), TXID(txid))
        with client.open_ltx(info) as stream:
            assert stream.read() == data
        with client.open_ltx(info, 170_000, 50_000) as stream:
            assert stream.read() == data[170_000:220_000]
        assert txid in [one.min_txid for one in client.list_ltx(0)]
    client.delete_ltx([FileInfo(0, TXID(number * 10 + 1), TXID(number * 10 + 1))])


def everybody_works(client: ReplicaClient, threads: int = 4) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda number: work(client, number), range(threads)))
    found = [int(info.min_txid) for info in client.list_ltx(0)]
    assert found == [number * 10 + step for number in range(threads) for step in (2, 3)]


def test_slow_and_cut_connections(nats: NATSServer, bucket: str) -> None:
    def plan(number: int) -> Fault | None:
        if number >= 6:
            return Fault(pace=5e6) if number == 6 else None
        after = 100_000 * number
        return Fault(cut_up=after) if number % 2 else Fault(cut_down=after, reset=False)

    with TCPProxy(nats.port, plan) as proxy:
        spec = nats.spec(bucket, "t", port=proxy.port, reconnect_wait=0)
        with client_of(spec, PATIENT) as client:
            everybody_works(client)
        assert proxy.accepted > 3


def test_a_server_that_is_away_while_an_upload_is_in_flight(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        bucket = server.make_bucket()

        class Interrupted(io.BytesIO):
            turns = 0

            def read(self, size: int | None = -1) -> bytes:
                if self.tell() > 2 << 20 and self.turns < 1:
                    self.turns += 1
                    server.stop()
                    back.start()
                return super().read(size)

        back = threading.Timer(0.3, server.start)
        with client_of(server.spec(bucket, "t", reconnect_wait=0), PATIENT) as client:
            source = Interrupted(HEAD + bytes(6 << 20))
            info = client.write_ltx(0, TXID(1), TXID(1), source, create_only=True)
            back.join()
            assert source.turns == 1
            assert client.open_ltx(info).read() == source.getvalue()
            with client.open_ltx(info) as stream:
                start = stream.read(1000)
                server.stop()
                server.start()
                assert start + stream.read() == source.getvalue()


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


def test_tenants_share_one_connection_and_one_thread(nats: NATSServer, bucket: str) -> None:
    with TCPProxy(nats.port) as proxy:
        clients = [connect(nats.spec(bucket, f"t{n}", port=proxy.port)) for n in range(20)]
        before = threading.active_count()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, clients))
        assert proxy.accepted == 1
        assert [t.name for t in threading.enumerate()].count("nats") == 1
        for client in clients:
            client.close()
        assert threading.active_count() <= before
    assert len(registry._sessions) == 0
