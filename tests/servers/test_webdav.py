"""What only WebDAV has: folders, moves, and servers that differ; and one that goes and comes."""

from __future__ import annotations

import io
import os
import random
import secrets
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fixtures.apache import WebDAVServer, apache
from fixtures.fault_proxy import Fault, TCPProxy
from fixtures.ltxbytes import build_ltx
from pyrep.errors import ReplicaExistsError, ReplicaPermanentError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage import registry
from pyrep.storage.base import ReplicaClient
from pyrep.storage.registry import ReplicaSpec, connect
from pyrep.storage.retry import RetryPolicy

pytestmark = pytest.mark.webdav

ONCE = RetryPolicy(attempts=1)
PATIENT = RetryPolicy(attempts=40, base=0.02, cap=0.2)
HEAD = build_ltx(1, 1, timestamp_ms=1_700_000_000_123)
FILE = "0000000000000001-0000000000000001.ltx"


@contextmanager
def client_of(spec: ReplicaSpec, policy: RetryPolicy = ONCE) -> Iterator[ReplicaClient]:
    with closing(connect(spec, policy=policy)) as client:
        yield client


@pytest.fixture
def top() -> str:
    """Return the name of a folder that nobody else has."""
    return secrets.token_hex(8)


def put(client: ReplicaClient, txid: int = 1, data: bytes = b"", **more: bool) -> FileInfo:
    source = io.BytesIO(data or build_ltx(txid, txid))
    return client.write_ltx(0, TXID(txid), TXID(txid), source, **more)


def test_a_file_has_its_name_only_when_it_is_whole(webdav_server: WebDAVServer, top: str) -> None:
    folder = webdav_server.data / top / "ltx/0"
    seen: list[list[str]] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            seen.append(os.listdir(folder) if folder.exists() else [])
            return super().read(size)

    with client_of(webdav_server.spec(top)) as client:
        data = HEAD + random.Random(1).randbytes(3 << 20)
        info = client.write_ltx(0, TXID(1), TXID(1), Watched(data), create_only=True)
        assert not any(name.endswith(".ltx") for names in seen for name in names)
        assert os.listdir(folder) == [info.name]
        assert (folder / info.name).read_bytes() == data
        assert list(client.list_ltx(0, exact_times=True)) == [info]
        (listed,) = client.list_ltx(0)
        assert listed.timestamp_ms % 1000 == 0


def test_an_upload_that_is_cut_leaves_no_name_and_is_tidied_up(
    webdav_server: WebDAVServer, top: str
) -> None:
    folder = webdav_server.data / top / "ltx/0"
    with TCPProxy(webdav_server.port) as proxy:

        class Cutting(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() > 2 << 20:
                    proxy.cut()
                return super().read(size)

        with client_of(webdav_server.spec(top, port=proxy.port)) as client:
            data = HEAD + bytes(6 << 20)
            with pytest.raises(ReplicaTemporaryError, match=r"0001\.ltx: cannot write"):
                client.write_ltx(0, TXID(1), TXID(1), Cutting(data), create_only=True)
            assert list(client.list_ltx(0)) == []
            info = put(client, data=data, create_only=True)
            assert [name for name in os.listdir(folder) if "pyrep" in name] == []
            assert client.open_ltx(info).read() == data


def test_what_a_dead_writer_left_is_removed_after_a_day(
    webdav_server: WebDAVServer, top: str
) -> None:
    old, young = f".pyrep-{'0' * 16}-{0x60000000:08x}.tmp", f".pyrep-{'1' * 16}-{1 << 40:08x}.tmp"
    for name in (old, young, ".pyrep-x.tmp"):
        webdav_server.write(f"{top}/ltx/0/{name}", b"x")
    folder = webdav_server.data / top / "ltx/0"
    with client_of(webdav_server.spec(top)) as client:
        assert list(client.list_ltx(0)) == []
        assert (folder / old).exists()  # a listing changes nothing
        info = put(client)
    assert sorted(os.listdir(folder)) == sorted([young, ".pyrep-x.tmp", info.name])


def test_folders_that_are_removed_meanwhile_are_made_again(
    webdav_server: WebDAVServer, top: str
) -> None:
    with client_of(webdav_server.spec(top), PATIENT) as client:
        info = put(client)
        with client_of(webdav_server.spec(top)) as other:
            other.delete_all()
        assert not (webdav_server.data / top / "ltx").exists()
        assert put(client) == info


def test_memory_does_not_grow_with_the_file(webdav_server: WebDAVServer, top: str) -> None:
    size = 48 << 20

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

    with client_of(webdav_server.spec(top)) as client:
        put(client, 2)  # what is loaded only once is not counted
        tracemalloc.start()
        try:
            source = io.BufferedReader(Large())
            info = client.write_ltx(9, TXID(1), TXID(1), source)  # type: ignore[arg-type]
            with client.open_ltx(info) as stream:
                total = sum(len(piece) for piece in iter(lambda: stream.read(1 << 20), b""))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert total == size
    assert peak < 8 << 20


# --- who we are -----------------------------------------------------------------------------------


def refused(spec: ReplicaSpec, message: str) -> ReplicaPermanentError:
    with client_of(spec) as client, pytest.raises(ReplicaPermanentError, match=message) as caught:
        put(client, data=HEAD + bytes(3 << 20))
    assert "SECRET" not in str(caught.value) + caught.value.hint
    return caught.value


def test_wrong_credentials_are_permanent_errors(webdav_server: WebDAVServer, top: str) -> None:
    for keys in ({"webdav_password": "SECRET"}, {"webdav_username": None, "webdav_password": None}):
        error = refused(webdav_server.spec(top, **keys), "the server answered 401")
        assert error.hint == "Check webdav-username and webdav-password."
    assert not (webdav_server.data / top).exists()


def test_users_of_a_url_count(webdav_server: WebDAVServer, top: str) -> None:
    url = f"webdav://u:S3CRET@127.0.0.1:{webdav_server.port}/{top}"
    with client_of(ReplicaSpec(url=url)) as client:
        put(client)
        assert client.url == f"webdav://127.0.0.1:{webdav_server.port}/{top}"


def test_a_folder_that_is_no_webdav_says_so(webdav_server: WebDAVServer) -> None:
    webdav_server.write("plain.txt", b"x")
    error = refused(webdav_server.spec("plain.txt"), "the server answered")
    assert "plain.txt" in str(error)


def test_tls_with_a_root_and_a_client_certificate(tmp_path: Path, top: str) -> None:
    key = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    key += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    key += ["-addext", "subjectAltName=IP:127.0.0.1"]
    for name in ("server", "client"):
        files = ["-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"]
        subprocess.run([*key, *files], check=True, capture_output=True)
    extra = (
        f"SSLEngine on\nSSLCertificateFile {tmp_path}/server.pem\n"
        f"SSLCertificateKeyFile {tmp_path}/server.key\n"
        f"SSLVerifyClient require\nSSLCACertificateFile {tmp_path}/client.pem\n"
    )
    keys = {
        "root_cas": (str(tmp_path / "server.pem"),),
        "client_cert": str(tmp_path / "client.pem"),
        "client_key": str(tmp_path / "client.key"),
    }
    with apache(extra=extra, modules=("ssl", "socache_shmcb")) as server:
        server.scheme = "https"
        with client_of(server.spec(top, **keys)) as client:
            info = put(client)
            assert client.open_ltx(info).read() == build_ltx(1, 1)
            assert client.url.startswith("webdavs://")
        untrusted = {name: value for name, value in keys.items() if name != "root_cas"}
        error = refused(server.spec(top, **untrusted), "(?i)certificate")
        assert "root-cas" in error.hint
        with client_of(server.spec(top, **untrusted, skip_verify=True)) as client:
            assert len(list(client.list_ltx(0))) == 1


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
        assert txid in [one.min_txid for one in client.list_ltx(0, exact_times=True)]
    client.delete_ltx([FileInfo(0, TXID(number * 10 + 1), TXID(number * 10 + 1))])


def test_slow_and_cut_connections(webdav_server: WebDAVServer, top: str) -> None:
    def plan(number: int) -> Fault | None:
        if number >= 10:
            return Fault(pace=5e6) if number == 10 else None
        after = 40_000 * number
        return Fault(cut_up=after) if number % 2 else Fault(cut_down=after, reset=False)

    with TCPProxy(webdav_server.port, plan) as proxy:
        with client_of(webdav_server.spec(top, port=proxy.port), PATIENT) as client:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda number: work(client, number), range(4)))
            found = [int(info.min_txid) for info in client.list_ltx(0)]
        assert found == [number * 10 + step for number in range(4) for step in (2, 3)]
        assert proxy.accepted > 5


def test_a_server_that_is_away_while_an_upload_is_in_flight(top: str) -> None:
    with apache() as server:

        class Interrupted(io.BytesIO):
            turns = 0

            def read(self, size: int | None = -1) -> bytes:
                if self.tell() > 2 << 20 and self.turns < 1:
                    self.turns += 1
                    server.stop()
                    back.start()
                return super().read(size)

        back = threading.Timer(0.3, server.start)
        with client_of(server.spec(top), PATIENT) as client:
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


def test_a_server_that_is_down_is_a_temporary_error(webdav_server: WebDAVServer, top: str) -> None:
    with TCPProxy(webdav_server.port) as proxy:
        port = proxy.port
    refusal = pytest.raises(ReplicaTemporaryError, match="cannot list")
    with client_of(webdav_server.spec(top, port=port)) as client, refusal:
        list(client.list_ltx(0))


def test_tenants_share_connections(webdav_server: WebDAVServer, top: str) -> None:
    with TCPProxy(webdav_server.port) as proxy:
        clients = [connect(webdav_server.spec(f"{top}/{n}", port=proxy.port)) for n in range(20)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, clients))
        assert proxy.accepted <= 4
        for client in clients:
            client.close()
    assert len(registry._sessions) == 0
